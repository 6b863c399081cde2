package reason

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

// Whoever meets an id in a log or an error text finds a section on it, and no section is on
// anything else.
func TestDocumented(t *testing.T) {
	page, err := os.ReadFile("../../docs/reasons.md")
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	for _, r := range All {
		id := string(r.ID)
		if r.Text == "" || r.Hint == "" {
			t.Errorf("%s has no text or no hint", id)
		}
		if seen[id] {
			t.Errorf("%s is listed twice", id)
		}
		seen[id] = true
		if !regexp.MustCompile(`^[a-z][a-z0-9-]*[a-z]$`).MatchString(id) {
			t.Errorf("%q is no id", id)
		}
		if !regexp.MustCompile(`\n### ` + id + "\n\n[A-Z`][^#]{30}").Match(page) {
			t.Errorf("docs/reasons.md has no section ### %s", id)
		}
		if r.ID.Doc() != r {
			t.Errorf("%s: %+v", id, r.ID.Doc())
		}
	}
	for _, section := range regexp.MustCompile(`(?m)^### (.*)$`).FindAllStringSubmatch(string(page), -1) {
		if !seen[section[1]] {
			t.Errorf("docs/reasons.md has a section on %q, which is no reason", section[1])
		}
	}
}

// What is declared is listed, and happens: some code of another package names it, and some test.
func TestGiven(t *testing.T) {
	declared := map[string]string{} // ids by name
	files, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range files {
		file, err := parser.ParseFile(token.NewFileSet(), name, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range file.Decls {
			if g, ok := d.(*ast.GenDecl); ok && g.Tok == token.CONST {
				for _, s := range g.Specs {
					v := s.(*ast.ValueSpec)
					if declared[v.Names[0].Name], err = strconv.Unquote(v.Values[0].(*ast.BasicLit).Value); err != nil {
						t.Fatal(err)
					}
				}
			}
		}
	}
	named, provoked := map[string]bool{}, map[string]bool{} // by name, and in tests by id as well
	err = filepath.WalkDir("../..", func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() || filepath.Base(filepath.Dir(path)) == "reason" {
			return err
		}
		in := named
		switch test := strings.HasSuffix(path, "_test.go") || strings.Contains(path, "/testdata/script"); {
		case test:
			in = provoked
		case !strings.HasSuffix(path, ".go"):
			return nil
		}
		b, err := os.ReadFile(path)
		for _, m := range regexp.MustCompile(`\breason\.(\w+)|\b([a-z0-9]+(?:-[a-z0-9]+)+)\b|(?:\[|reason[= ]|")([a-z0-9-]+)`).FindAllSubmatch(b, -1) {
			in[string(m[1])], in[string(m[2])], in[string(m[3])] = true, true, true
		}
		return err
	})
	if err != nil || len(declared) != len(All) {
		t.Errorf("%d ids are declared, %d listed; %v", len(declared), len(All), err)
	}
	for name, id := range declared {
		if ID(id).Doc().Text == "" {
			t.Errorf("%s is not in All", id)
		}
		if !named[name] {
			t.Errorf("nothing gives %s: use it, or remove it and its section in docs/reasons.md", name)
		}
		if !provoked[name] && !provoked[id] {
			t.Errorf("no test provokes %s and looks for it", id)
		}
	}
}
