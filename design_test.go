package gssproxyd_test

import (
	"io/fs"
	"os"
	"path"
	"regexp"
	"strings"
	"testing"
)

// The table of docs/design.md names every package, and none that is not there.
func TestDesign(t *testing.T) {
	page, err := os.ReadFile("docs/design.md")
	if err != nil {
		t.Fatal(err)
	}
	_, rooms, _ := strings.Cut(string(page), "\n## Rooms\n")
	named := map[string]bool{} // with true: and it is there
	for _, m := range regexp.MustCompile("(?m)^\\| `([^`]+)` \\|").FindAllStringSubmatch(rooms, -1) {
		named[m[1]] = false
	}
	err = fs.WalkDir(os.DirFS("."), ".", func(file string, d fs.DirEntry, err error) error {
		name := path.Dir(file)
		switch {
		case err != nil:
			return err
		case d.IsDir() && (d.Name() == "testdata" || file != "." && strings.HasPrefix(d.Name(), ".")):
			return fs.SkipDir // no packages, for the go command
		case path.Ext(file) != ".go" || name == ".":
			return nil
		}
		if _, ok := named[name]; !ok {
			t.Errorf("docs/design.md does not say what %s is for", name)
		}
		named[name] = true
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for name, there := range named {
		if !there {
			t.Errorf("docs/design.md has a package %s, which does not exist", name)
		}
	}
}
