package main

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// TestEveryReasonIsDocumented: whoever meets a reason id in a log or an error text finds a section on it.
func TestEveryReasonIsDocumented(t *testing.T) {
	page, err := os.ReadFile("../docs/reasons.md")
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	for _, r := range reasons() {
		id := string(r.ID)
		if r.Text == "" || r.Hint == "" {
			t.Errorf("reason %s has no text or no hint", id)
		}
		if seen[id] {
			t.Errorf("reason %s is listed twice", id)
		}
		seen[id] = true
		if !strings.Contains(string(page), "\n### "+id+"\n") {
			t.Errorf("docs/reasons.md has no section ### %s", id)
		}
	}
	for _, section := range regexp.MustCompile(`(?m)^### (.*)$`).FindAllStringSubmatch(string(page), -1) {
		if !seen[section[1]] {
			t.Errorf("docs/reasons.md has a section on %q, which is no reason", section[1])
		}
	}
}

// TestHeadingsOfTroubleshooting: whoever has a word, an option's or a program's name, finds it in a heading.
func TestHeadingsOfTroubleshooting(t *testing.T) {
	page, err := os.ReadFile("../docs/troubleshooting.md")
	if err != nil {
		t.Fatal(err)
	}
	headings := strings.Join(regexp.MustCompile(`(?m)^#+ .*$`).FindAllString(string(page), -1), "\n")
	for _, word := range []string{
		"log", "explain --uid", "check", "status",
		"Apache", "mod_auth_gssapi", "curl", "sshd", "ssh\n", "PostgreSQL", "slapd", "ldapwhoami", "mount.nfs", "FreeIPA",
		"GSS_USE_PROXY", "SIGPIPE", "klist", "X-GSSPROXY", "KRB5CCNAME=MEMORY:", "KDC proxy", "https://", "version 1",
		"localauth", "idmapd.conf", "rpc.svcgssd", "LoadCredential", "ReadWritePaths",
	} {
		if !strings.Contains(headings, word) {
			t.Errorf("no heading of docs/troubleshooting.md has %q", word)
		}
	}
}

// TestLinks: what the pages refer to is there, sections too.
func TestLinks(t *testing.T) {
	pages, err := filepath.Glob("../docs/*.md")
	if err != nil || len(pages) == 0 {
		t.Fatal(pages, err)
	}
	pages = append(pages, "../README.md", "../CHANGELOG.md", "../CONTRIBUTING.md")
	notInSlug := regexp.MustCompile(`[^a-z0-9 _-]`)
	code := regexp.MustCompile("`[^`]*`")
	sections := func(page string) map[string]bool {
		all := map[string]bool{}
		text, err := os.ReadFile(page)
		if err != nil {
			t.Errorf("%v", err)
		}
		for _, m := range regexp.MustCompile(`(?m)^#+ (.*)$`).FindAllStringSubmatch(string(text), -1) {
			all[strings.ReplaceAll(notInSlug.ReplaceAllString(strings.ToLower(m[1]), ""), " ", "-")] = true
		}
		return all
	}
	for _, page := range pages {
		text, err := os.ReadFile(page)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range regexp.MustCompile(`\]\(([^)\s]+)\)`).FindAllStringSubmatch(code.ReplaceAllString(string(text), ""), -1) {
			file, section, _ := strings.Cut(m[1], "#")
			if strings.Contains(file, "://") {
				continue
			}
			target := page
			if file != "" {
				target = filepath.Join(filepath.Dir(page), file)
			}
			if _, err := os.Stat(target); err != nil {
				t.Errorf("%s: %v", page, err)
			} else if section != "" && !sections(target)[section] {
				t.Errorf("%s: %s has no section #%s", page, target, section)
			}
		}
	}
}

// TestEveryReasonIsGiven: the other way round, what is documented happens: some code names the reason besides its
// declaration and its place in the list with its text.
func TestEveryReasonIsGiven(t *testing.T) {
	declaration := regexp.MustCompile(`(?m)^\t(Reason\w+) +(?:mech\.)?Reason += "`)
	name := regexp.MustCompile(`\bReason\w+`)
	declared, named := map[string]bool{}, map[string]int{}
	err := filepath.WalkDir("..", func(path string, _ fs.DirEntry, err error) error {
		if err != nil || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
			return err
		}
		b, err := os.ReadFile(path)
		for _, m := range declaration.FindAllSubmatch(b, -1) {
			if declared[string(m[1])] {
				t.Errorf("%s: a second %s: this test cannot tell them apart", path, m[1])
			}
			declared[string(m[1])] = true
		}
		for _, n := range name.FindAll(b, -1) {
			named[string(n)]++
		}
		return err
	})
	if want := len(reasons()); err != nil || len(declared) != want {
		t.Fatalf("%d reasons are declared, %d listed; %v", len(declared), want, err)
	}
	for n := range declared {
		if named[n] < 3 {
			t.Errorf("nothing gives %s: use it, or remove it and its section in docs/reasons.md", n)
		}
	}
}
