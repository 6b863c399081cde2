package files

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
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

	m.asThePageSays(t)

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

// asThePageSays looks at a mount as the kernel has it: it is of the type, and has the options, that gssproxyd-fs(5) says, and
// no others that let or deny something.
func (m *mount) asThePageSays(t *testing.T) {
	t.Helper()
	b, err := os.ReadFile("../../docs/gssproxyd-fs.5")
	check(t, err)
	_, text, _ := strings.Cut(string(b), "The mount is of the type\n.Li ")
	kind, text, _ := strings.Cut(text, " ,\n")
	text, _, found := strings.Cut(text, ":\nthe kernel looks at the modes")
	if !found {
		t.Fatalf("gssproxyd-fs(5) says nothing of the mount's type and options where this test looks: %.200q", text)
	}
	var page []string
	for _, word := range strings.Fields(strings.ReplaceAll(text, " Ns =", "=")) {
		if !slices.Contains([]string{"with", "the", "options", ".Cm", ",", "and"}, word) {
			page = append(page, word)
		}
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	check(t, err)
	for line := range strings.Lines(string(mounts)) {
		// ID parent major:minor root directory options tags - type source options of the file system's
		before, after, _ := strings.Cut(line, " - ")
		left, right := strings.Fields(before), strings.Fields(after)
		if left[4] != m.dir {
			continue
		}
		options := slices.Concat(strings.Split(left[5], ","), strings.Split(right[2], ","))
		for _, implied := range []string{"rw", "user_id=0", "group_id=0"} {
			options = slices.DeleteFunc(options, func(o string) bool { return o == implied })
		}
		slices.Sort(options)
		slices.Sort(page)
		if right[0] != kind || !slices.Equal(options, page) {
			t.Errorf("the mount is of type %s with %q; gssproxyd-fs(5) has %s with %q", right[0], options, kind, page)
		}
		for _, o := range []string{"nosuid", "nodev", "noexec"} {
			if !slices.Contains(options, o) {
				t.Errorf("it is mounted without %s", o)
			}
		}
		return
	}
	t.Errorf("%s is not mounted", m.dir)
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
