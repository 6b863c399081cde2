package keytab

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// TestDenied: who may not read a keytab is told who that is and whose it is.
func TestDenied(t *testing.T) {
	path := filepath.Join(t.TempDir(), "keytab")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	uid := os.Geteuid()
	want := fmt.Sprintf("permission denied: uid %d may not read it, whose it is, with mode 0600: chmod it to 0600, or have AppArmor or SELinux allow it", uid)
	if err := denied(path, unix.EACCES); err.Error() != want || !errors.Is(err, fs.ErrPermission) {
		t.Errorf("%v, want %s", err, want)
	}
	if uid == 0 {
		if err := os.Chown(path, 4711, 4711); err != nil {
			t.Fatal(err)
		}
		want = "permission denied: uid 0 may not read it; it is uid 4711's, with mode 0600: chown it to uid 0, or copy it to a file of that user's"
		if err := denied(path, unix.EACCES); err.Error() != want {
			t.Errorf("%v, want %s", err, want)
		}
	}
	want = fmt.Sprintf("permission denied: uid %d may not search a directory on the way to it", uid)
	if err := denied(path+"/on/the/way", unix.EACCES); err.Error() != want {
		t.Errorf("%v, want %s", err, want)
	}
	if err := denied(path, unix.ENOENT); err != unix.ENOENT {
		t.Errorf("%v", err)
	}
}
