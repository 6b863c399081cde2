package files

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"gssproxyd/tests/lab"
)

// TestMountCommand: what is mounted and not served, or not answered, is not waited for.
func TestMountCommand(t *testing.T) {
	m := newMount(t, "")
	serves := func(when string) {
		t.Helper()
		if _, err := os.ReadFile(m.dir + "/modules/krb5/status"); err != nil {
			t.Errorf("%s: %v", when, err)
		}
	}
	serves("at first")
	if err := m.command("mount"); err == nil || !strings.Contains(err.Error(), "a daemon answers there") {
		t.Errorf("a second mount: %v", err)
	}

	check(t, m.Crash()) // and it is there again
	if _, err := os.ReadDir(m.dir); !errors.Is(err, unix.ENOTCONN) {
		t.Errorf("after the daemon's end: %v", err)
	}
	check(t, m.command("mount"))
	serves("after the daemon's end")

	check(t, unix.Kill(m.PID(), unix.SIGSTOP))
	err := m.command("umount")
	check(t, unix.Kill(m.PID(), unix.SIGCONT))
	check(t, err)

	check(t, m.command("mount"))
	check(t, m.Crash())
	check(t, m.command("umount"))

	// Who has files open keeps nobody from mounting.
	for range 10 {
		check(t, m.command("mount"))
		f, err := os.OpenFile(m.dir+"/modules/krb5/operations/names/transact", os.O_RDWR, 0)
		check(t, err)
		defer f.Close()
		check(t, m.command("umount"))
		if _, err := f.Read(make([]byte, 1)); !errors.Is(err, unix.ENOTCONN) {
			t.Errorf("a file that was open: %v", err)
		}
	}

	check(t, m.Daemon.Stop())
	if err := m.command("mount"); err == nil || !strings.Contains(err.Error(), "no daemon answers") {
		t.Errorf("without a daemon: %v", err)
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	check(t, err)
	if strings.Contains(string(mounts), m.dir) {
		t.Error("what nobody serves is left mounted")
	}
	check(t, m.Daemon.Start())
	check(t, m.command("mount"))
	serves("in the end")
}

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
