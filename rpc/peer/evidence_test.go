package peer

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// The groups are those at connect(2), however many.
func TestGroups(t *testing.T) {
	needRoot(t)
	l, path := listen(t)
	if err := os.Chmod(path, 0o666); err != nil {
		t.Fatal(err)
	}
	for _, n := range []int{0, 1, 64, 65, 3000} {
		var groups []uint32
		for i := range n {
			groups = append(groups, uint32(100+i))
		}
		ch := start(t, self(t), &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 0, Gid: 7, Groups: groups}}, "connect", path)
		ch.ready(t)
		_, p := accept(t, l)
		ch.end(t) // they are the connection's
		if got, known := p.Groups.Get(); !known || !slices.Equal(got, groups) || p.GID != 7 {
			t.Errorf("%d groups: %d, known %t, gid %d", n, len(got), known, p.GID)
		}
		if kept := p.process.listed.Load() != nil; kept != (n <= fewGroups) {
			t.Errorf("%d groups: kept for the connection: %t", n, kept)
		}
		if got, known := p.Groups.Get(); !known || !slices.Equal(got, groups) {
			t.Errorf("%d groups: %d the second time, known %t", n, len(got), known)
		}
	}
}

// A program is trusted whose file is root's, and that nobody else may write to, as long as it is the
// program that was seen before.
func TestTrusted(t *testing.T) {
	needRoot(t)
	l, path := listen(t)
	text, err := os.ReadFile(self(t))
	if err != nil {
		t.Fatal(err)
	}
	program := filepath.Join(t.TempDir(), "program")
	for _, test := range []struct {
		uid, gid int
		mode     os.FileMode
		want     bool
	}{
		{0, 0, 0o755, true},
		{0, 1, 0o755, true}, // a group that may not write
		{0, 0, 0o775, false},
		{0, 0, 0o757, false},
		{1, 0, 0o755, false},
	} {
		os.Remove(program)
		if err := os.WriteFile(program, text, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Chown(program, test.uid, test.gid); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(program, test.mode); err != nil {
			t.Fatal(err)
		}
		ch := start(t, program, nil, "connect", path)
		ch.ready(t)
		_, p := accept(t, l)
		if got, known := p.Trusted.Get(); !known || got != test.want {
			t.Errorf("%+v: %t, known %t", test, got, known)
		}
		if name, _ := p.Program.Get(); name != program {
			t.Errorf("the program is %q", name)
		}
		ch.end(t)
	}
}

// Which file system a program is on is not asked of a process that serves it, and may not answer.
func TestTrustedFileSystem(t *testing.T) {
	const mounts = `22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
23 22 0:5 / /dev rw - devtmpfs udev rw
220 22 0:50 / /home/a/mnt rw,nosuid,nodev - fuse.sshfs a@b:/ rw,user_id=1000
221 22 0:51 / /mnt/a\\040-\\040ext4 rw master:1 - fuse x rw
222 22 8:17 / /media/usb rw - fuseblk /dev/sdb1 rw
`
	for id, want := range map[string]string{"22": "ext4", "23": "devtmpfs", "220": "fuse.sshfs", "221": "fuse", "222": "fuseblk", "2": "", "35": ""} {
		if got, err := fsType(strings.NewReader(mounts), id); got != want || err != nil {
			t.Errorf("mount %s: %q, %v; want %q", id, got, err, want)
		}
	}
	if held, err := heldByKernel(mount{}); held || err != nil {
		t.Errorf("a mount that is not known: %t, %v", held, err)
	}
}

// A program is not trusted that is on a file system which a process serves, and nobody waits for
// that process.
func TestTrustedServed(t *testing.T) {
	needRoot(t)
	dir := t.TempDir()
	dev, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Skip(err)
	}
	defer unix.Close(dev) // which ends the file system, if somebody waits for it
	if err := unix.Mount("test", dir, "fuse.test", unix.MS_NOSUID|unix.MS_NODEV, fmt.Sprintf("fd=%d,rootmode=40000,user_id=0,group_id=0,allow_other", dev)); err != nil {
		t.Skip(err)
	}
	defer unix.Unmount(dir, unix.MNT_DETACH)
	st, err := stat(unix.AT_FDCWD, dir)
	if err != nil || !st.mount.known {
		t.Skip("the mount is not known: ", err)
	}
	if held, err := heldByKernel(st.mount); held || err != nil {
		t.Errorf("%t, %v", held, err)
	}
}

// A process that has executed another program since is not trusted for the first one.
func TestTrustedIsOfTheProgram(t *testing.T) {
	l, path := listen(t)
	ch := start(t, self(t), nil, "connect", path)
	ch.ready(t)
	_, p := accept(t, l)
	p.process.running.Do(func() { p.process.running.value = facts{program: Known("/another/program")} })
	if _, known := p.Trusted.Get(); known {
		t.Error("trusted for another program")
	}
}

// A process is where its control group is, whatever it has made below.
func TestPlace(t *testing.T) {
	needRoot(t)
	root := cgroup2(t)
	unit := fmt.Sprintf("/system.slice/gssproxyd-test-%d.service", os.Getpid())
	forged := unit + "/kubepods/pod8e3cbf3e-5c4a-4d1c-9a3e-0f6e2d0e9b11"
	if err := os.MkdirAll(root+forged, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for dir := forged; dir != "/"; dir = filepath.Dir(dir) {
			os.Remove(root + dir)
		}
	})
	l, path := listen(t)
	for _, group := range []string{unit, forged} {
		fd, err := unix.Open(root+group, unix.O_PATH|unix.O_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		ch := start(t, self(t), &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: fd}, "connect", path)
		unix.Close(fd)
		ch.ready(t)
		_, p := accept(t, l)
		if got, known := p.Place.Get(); !known || got != (Place{Unit: filepath.Base(unit)}) {
			t.Errorf("%s: %+v, known %t", group, got, known)
		}
		ch.end(t)
	}
}

// cgroup2 returns where the hierarchy of version 2 is mounted.
func cgroup2(t *testing.T) string {
	t.Helper()
	for _, dir := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/unified"} {
		var fs unix.Statfs_t
		if unix.Statfs(dir, &fs) == nil && fs.Type == unix.CGROUP2_SUPER_MAGIC {
			return dir
		}
	}
	if os.Getenv("CI") == "true" {
		t.Fatal("no control groups of version 2 are mounted")
	}
	t.Skip("no control groups of version 2 are mounted")
	return ""
}
