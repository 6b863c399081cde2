package bolt

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// What others can read, write or replace is not opened.
func TestOpenJudges(t *testing.T) {
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	dir := t.TempDir()
	path := filepath.Join(dir, "store.db")
	b, err := Open(path)
	must(err)
	must(b.Close())
	if st, err := os.Stat(path); err != nil || st.Mode() != 0o600 {
		t.Errorf("%v, %v", st.Mode(), err)
	}
	refused := func(path, why string) {
		t.Helper()
		if b, err := Open(path); err == nil || !strings.Contains(err.Error(), why) {
			t.Errorf("%v, want %q", err, why)
			if err == nil {
				b.Close()
			}
		}
	}
	must(os.Chmod(path, 0o640))
	refused(path, "0640")
	must(os.Chmod(path, 0o600))
	must(os.Link(path, filepath.Join(dir, "second")))
	refused(path, "one name")
	must(os.Remove(filepath.Join(dir, "second")))
	must(os.Symlink(path, filepath.Join(dir, "link")))
	refused(filepath.Join(dir, "link"), "symbolic link")
	must(os.Chmod(dir, 0o777))
	refused(path, "chmod go-w")
	must(os.Chmod(dir, 0o700))
	b, err = Open(path)
	must(err)
	must(b.Close())
}
