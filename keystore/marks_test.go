package keystore

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

func testMarks(t *testing.T, dir string) *marks {
	t.Helper()
	m, err := openMarks(dir)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func stateDir(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	return dir
}

func TestMarksAreKept(t *testing.T) {
	dir := stateDir(t)
	m := testMarks(t, dir)
	if err := m.of([]byte{1, 2}); err != nil {
		t.Fatal(err)
	}
	// Several at a time, more than are kept before the file is made anew.
	var done sync.WaitGroup
	for i := range 4 {
		done.Go(func() {
			for n := range 500 {
				m.saw(fmt.Sprintf("kept/entry/%d", i), Mark{1, uint64(n + 1)})
				if n%100 == 0 {
					if err := m.flush(); err != nil {
						t.Error(err)
					}
				}
			}
		})
	}
	done.Wait()
	m.saw("kept/entry/0", Mark{1, 7}) // is lower
	m.saw("kept/entry/9", Mark{2, 1})
	if err := m.flush(); err != nil {
		t.Fatal(err)
	}
	m.close()
	b, err := os.ReadFile(filepath.Join(dir, marksFile))
	if lines := strings.Count(string(b), "\n"); err != nil || lines > 1100 || !strings.HasPrefix(string(b), "gssproxyd key store marks 1 0102\n") {
		t.Errorf("%d lines, %v", lines, err)
	}
	m = testMarks(t, dir)
	defer m.close()
	for i := range 4 {
		if got := m.get(fmt.Sprintf("kept/entry/%d", i)); got != (Mark{1, 500}) {
			t.Errorf("%d: %v", i, got)
		}
	}
	if got := m.names(2); len(got) != 1 || got[0] != "kept/entry/9" {
		t.Errorf("%q", got)
	}
	if m.of([]byte{1, 3}) == nil {
		t.Error("another store's")
	}
}

// A line that was being written when the machine stopped is none; any other damage is an error, and
// not a mark that is forgotten.
func TestMarksDamaged(t *testing.T) {
	dir := stateDir(t)
	path := filepath.Join(dir, marksFile)
	good := marksMagic + "0102\n" + markLine("a", Mark{1, 1}) + "\n" + markLine("b", Mark{1, 2}) + "\n"
	for name, test := range map[string]struct {
		content, want string
		b             Mark
	}{
		"good":      {good, "", Mark{1, 2}},
		"torn":      {good[:len(good)-1], "", Mark{}},
		"torn more": {good[:len(good)-12], "", Mark{}},
		"bad end":   {strings.TrimSuffix(good, "\n")[:len(good)-2] + "z\n", "", Mark{}},
		"damaged":   {strings.Replace(good, "a 1 1", "a 1 0", 1), "marks:2", Mark{}},
		"no marks":  {"hello\n", "marks:1", Mark{}},
		"empty":     {"", "", Mark{}},
	} {
		if err := os.WriteFile(path, []byte(test.content), 0o600); err != nil {
			t.Fatal(err)
		}
		m, err := openMarks(dir)
		if test.want != "" {
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("%s: %v", name, err)
			}
			continue
		}
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if got := m.get("b"); got != test.b {
			t.Errorf("%s: %v", name, got)
		}
		// What is written then is read.
		if err := m.of([]byte{1, 2}); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		m.saw("c", Mark{1, 3})
		if err := m.flush(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		m.close()
		if m = testMarks(t, dir); m.get("c") != (Mark{1, 3}) {
			t.Errorf("%s: what came after is lost", name)
		}
		m.close()
	}
}

// Where marks cannot be written no change is answered with success, and later they are.
func TestMarksNotWritten(t *testing.T) {
	dir := stateDir(t)
	m := testMarks(t, dir)
	defer func() { m.close() }()
	m.saw("a", Mark{1, 1})
	if err := m.flush(); err != nil {
		t.Fatal(err)
	}
	m.saw("a", Mark{1, 2})
	full := m.file
	full.Close()
	place := filepath.Join(dir, marksFile)
	if err := os.Remove(place); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(place, 0o700); err != nil { // so that no file can take it
		t.Fatal(err)
	}
	if err := m.flush(); err == nil {
		t.Error("nothing was said")
	}
	if err := os.Remove(place); err != nil {
		t.Fatal(err)
	}
	if err := m.flush(); err != nil {
		t.Error(err)
	}
	m.close()
	m = testMarks(t, dir)
	if got := m.get("a"); got != (Mark{1, 2}) {
		t.Errorf("%v", got)
	}
}
