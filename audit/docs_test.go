package audit

import (
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// TestDocs: docs/audit.md has the kinds and fields that there are, in that order, with their texts.
func TestDocs(t *testing.T) {
	page, err := os.ReadFile("../docs/audit.md")
	if err != nil {
		t.Fatal(err)
	}
	mark := regexp.MustCompile("`|, see \\[[^]]*\\]\\([^)]*\\)")
	rows := func(head string) (rows [][2]string) {
		_, table, _ := strings.Cut(string(page), "\n| "+head+" |")
		table, _, _ = strings.Cut(table, "\n\n")
		for _, m := range regexp.MustCompile("(?m)^\\| `([^`]+)` \\| (.*) \\|$").FindAllStringSubmatch(table, -1) {
			rows = append(rows, [2]string{m[1], mark.ReplaceAllString(m[2], "")})
		}
		return rows
	}
	var kinds, fields [][2]string
	for _, k := range Kinds {
		kinds = append(kinds, [2]string{string(k.Kind), k.Text})
	}
	for _, f := range Fields {
		fields = append(fields, [2]string{f.Name, f.Text})
	}
	for head, want := range map[string][][2]string{"kind": kinds, "field": fields} {
		if got := rows(head); !slices.Equal(got, want) {
			t.Errorf("the table of %ss in docs/audit.md has\n%q, want\n%q", head, got, want)
		}
	}
}
