package files

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"gssproxyd/tests/lab"
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

// TestMountStopped: a daemon that does not answer is waited for no longer than elsewhere.
func TestMountStopped(t *testing.T) {
	m := newMount(t, "")
	check(t, unix.Kill(m.PID(), unix.SIGSTOP))
	defer unix.Kill(m.PID(), unix.SIGCONT)
	ctx, cancel := context.WithTimeout(t.Context(), lab.Patience)
	defer cancel()
	out, err := exec.CommandContext(ctx, m.Gssproxyd, "mount", "-c", filepath.Join(m.Options.Dir, "gssproxy.conf"), "-s", m.Socket, m.dir).CombinedOutput()
	if err == nil || !strings.Contains(string(out), "does not answer") {
		t.Errorf("%v: %s", err, out)
	}
}
