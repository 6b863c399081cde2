package fuse

import (
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// TestJSONPage: docs/json.md has the fields that files take and answer, and no others.
func TestJSONPage(t *testing.T) {
	page, err := os.ReadFile("../docs/json.md")
	if err != nil {
		t.Fatal(err)
	}
	_, section, _ := strings.Cut(string(page), "\n## Files\n")
	section, _, _ = strings.Cut(section, "\n## ")
	parts := map[string]string{}
	for _, part := range strings.Split(section, "\n### ")[1:] {
		heading, text, _ := strings.Cut(part, "\n")
		parts[heading] = text
	}
	wants := map[string]reflect.Type{
		"Asked: `init`":   reflect.TypeFor[InitArgs](),
		"Asked: `accept`": reflect.TypeFor[AcceptArgs](),
		"Asked: `wrap`, `unwrap`, `getmic`, `verifymic`": reflect.TypeFor[MessageArgs](),
		"Asked: `names`":                                    reflect.TypeFor[NamesArgs](),
		"Answered: `init`, `accept`":                        reflect.TypeFor[ContextState](),
		"Answered: `wrap`, `unwrap`, `getmic`, `verifymic`": reflect.TypeFor[Message](),
		"Answered: `names`":                                 reflect.TypeFor[Names](),
		"Answered: a refusal":                               reflect.TypeFor[refusal](),
	}
	for heading := range parts {
		if wants[heading] == nil {
			t.Errorf("docs/json.md: Files: nothing is held to %q", heading)
		}
	}
	for heading, of := range wants {
		var want, have []string
		for f := range of.Fields() {
			name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
			want = append(want, name)
		}
		for _, row := range regexp.MustCompile("(?m)^\\| `([a-z_]+)` \\|").FindAllStringSubmatch(parts[heading], -1) {
			have = append(have, row[1])
		}
		if !slices.Equal(have, want) {
			t.Errorf("docs/json.md: Files: %s: %q, want %q", heading, have, want)
		}
	}
}

// TestErrnoPage: gssproxyd-fs(5) has every error that is returned here, and no others but the kernel's
// own.
func TestErrnoPage(t *testing.T) {
	page, err := os.ReadFile("../docs/gssproxyd-fs.5")
	if err != nil {
		t.Fatal(err)
	}
	_, section, _ := strings.Cut(string(page), "\n.Sh ERRORS\n")
	section, _, _ = strings.Cut(section, "\n.Sh ")
	// Those that come from the kernel and from go-fuse.
	returned := map[string]bool{"ENOTCONN": true, "ECONNABORTED": true, "EOPNOTSUPP": true, "EROFS": true}
	files, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		if strings.HasSuffix(file, "_test.go") {
			continue
		}
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range regexp.MustCompile(`\b(?:syscall|gofuse)\.(E[A-Z]+)\b`).FindAllStringSubmatch(string(text), -1) {
			returned[m[1]] = true
		}
	}
	described := regexp.MustCompile(`(?m)^\.It Er (E[A-Z]+)$`).FindAllStringSubmatch(section, -1)
	for _, m := range described {
		if !returned[m[1]] {
			t.Errorf("the page has %s, which nothing returns", m[1])
		}
		delete(returned, m[1])
	}
	for name := range returned {
		t.Errorf("the page does not say what %s means", name)
	}
}
