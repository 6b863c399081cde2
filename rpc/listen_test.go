package rpc

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"gssproxyd/openat"
)

// What has come into the place of a new socket gets none of its permissions.
func TestPermit(t *testing.T) {
	dir := t.TempDir()
	target := filepath.Join(dir, "secret")
	if err := os.WriteFile(target, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("secret", filepath.Join(dir, "s")); err != nil {
		t.Fatal(err)
	}
	d, err := openat.OpenDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	for _, name := range []string{"s", "secret"} {
		if err := permit(d, name, own(0o666)); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	if st, err := os.Stat(target); err != nil || st.Mode() != 0o600 {
		t.Errorf("the link's target has mode %v, %v", st.Mode(), err)
	}
}

// A socket is made only where nobody else can put something in its place.
func TestListenWhere(t *testing.T) {
	dir, err := os.MkdirTemp("", "rpc")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Symlink(".", filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	const stranger = 4711
	for _, test := range []struct {
		name string
		mode os.FileMode
		uid  int
		path string
		err  string
	}{
		{"own", 0o755, 0, "s", ""},
		{"by-link", 0o755, 0, "../link/by-link/s", ""},
		{"sticky", os.ModeSticky | 0o777, 0, "s", ""},
		{"group", 0o775, 0, "s", "mode 0775"},
		{"everyone", 0o777, 0, "s", "mode 0777"},
		{"everyone-above", 0o777, 0, "sub/s", "on the way"},
		{"theirs", 0o755, stranger, "s", "uid 4711"},
		{"theirs-above", 0o755, stranger, "sub/s", "on the way"},
		{"link-anybody-can-make", os.ModeSticky | 0o777, 0, "link/s", "symbolic link"},
	} {
		sub := filepath.Join(dir, test.name)
		for _, d := range []string{sub, filepath.Join(sub, "sub")} {
			if err := os.Mkdir(d, 0o755); err != nil {
				t.Fatal(err)
			}
		}
		if err := os.Symlink("sub", filepath.Join(sub, "link")); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(sub, test.mode); err != nil {
			t.Fatal(err)
		}
		if test.uid != 0 {
			if os.Geteuid() != 0 {
				t.Logf("%s: not run: needs root to give directories away", test.name)
				continue
			}
			if err := os.Chown(sub, test.uid, test.uid); err != nil {
				t.Fatal(err)
			}
		}
		for range 2 { // the second time in the place of a stale one
			l, err := Listen(sub+"/"+test.path, 0o666)
			switch {
			case err == nil:
				l.Close()
				if st, err := os.Stat(sub + "/" + test.path); err != nil || st.Mode() != os.ModeSocket|0o666 {
					t.Errorf("%s: mode %v, %v", test.name, st.Mode(), err)
				}
				if test.err != "" {
					t.Errorf("%s: no error", test.name)
				}
			case test.err == "" || !strings.Contains(err.Error(), test.err):
				t.Errorf("%s: %v; expected %q", test.name, err, test.err)
			}
		}
	}

	// A path that clients could use, of a name that cannot be said relative to an open directory.
	t.Chdir(dir)
	if _, err := Listen(strings.Repeat("s", 107), 0o600); err == nil || !strings.Contains(err.Error(), "107 bytes long, at most") {
		t.Errorf("a long name: %v", err)
	}
}
