package openat

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestRead(t *testing.T) {
	dir := t.TempDir()
	path := func(name string) string { return filepath.Join(dir, name) }
	must(t, os.WriteFile(path("file"), []byte("12345"), 0o600))
	must(t, os.WriteFile(path("empty"), nil, 0o600))
	must(t, os.Symlink("file", path("link")))
	must(t, os.Mkdir(path("dir"), 0o700))
	must(t, unix.Mkfifo(path("fifo"), 0o600))
	d, err := OpenDir(dir)
	must(t, err)
	defer d.Close()
	for _, test := range []struct {
		name    string
		most    int64
		content string
		wrong   string // what the error has in it
		wrongIn string // and that of the directory's, if it is another one
	}{
		{"file", 5, "12345", "", ""},
		{"empty", 0, "", "", ""},
		{"file", 4, "", "it has 5 bytes; at most 4 are read", ""},
		{"link", 5, "12345", "", "too many levels of symbolic links"},
		{"dir", 5, "", "it is a directory", ""},
		{"fifo", 5, "", "it is not a regular file", ""},
		{"none", 5, "", "no such file", ""},
	} {
		is := func(b []byte, err error, wrong string) {
			t.Helper()
			if wrong == "" && (err != nil || string(b) != test.content) || wrong != "" && (b != nil || err == nil || !strings.Contains(err.Error(), wrong)) {
				t.Errorf("%s, at most %d: %q, %v; want %q, %q", test.name, test.most, b, err, test.content, wrong)
			}
		}
		b, st, err := ReadFile(path(test.name), test.most)
		is(b, err, test.wrong)
		if err == nil && st.Size != int64(len(b)) {
			t.Errorf("%s: size %d", test.name, st.Size)
		}
		wrong := test.wrong
		if test.wrongIn != "" {
			wrong = test.wrongIn
		}
		b, err = d.ReadFile(test.name, test.most)
		is(b, err, wrong)
	}
}

// A file that is shorter than it says, since its writer is at work, is not taken.
func TestReadOfChanging(t *testing.T) {
	f, err := os.Create(filepath.Join(t.TempDir(), "file"))
	must(t, err)
	defer f.Close()
	_, err = f.WriteString("12345") // and the end of it is where reading begins
	must(t, err)
	if b, _, err := Read(f, 10); b != nil || !errors.Is(err, ErrChanging) {
		t.Errorf("%q, %v", b, err)
	}
}
