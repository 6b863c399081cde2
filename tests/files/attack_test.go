package files

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestOtherPath: a mount is known by another path that leads to it.
func TestOtherPath(t *testing.T) {
	m := newMount(t, "")
	link := m.Path("link")
	check(t, os.Symlink(filepath.Dir(m.dir), link))
	defer os.Remove(link)
	conf := filepath.Join(m.Options.Dir, "gssproxy.conf")
	by := func(name string) string {
		out, _ := exec.Command(m.Gssproxyd, name, "-c", conf, "-s", m.Socket, filepath.Join(link, filepath.Base(m.dir))).CombinedOutput()
		return string(out)
	}
	if out := by("mount"); !strings.Contains(out, "a daemon answers there") {
		t.Errorf("mounted twice: %q", out)
		unix.Unmount(m.dir, unix.MNT_DETACH)
	}
	if out := by("umount"); out != "" {
		t.Errorf("unmounted: %q", out)
	} else {
		check(t, m.command("mount"))
	}
}
