package rpc

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
	"kernel.org/pub/linux/libs/security/libcap/cap"
)

const (
	alice, bob     = 4711, 4712
	staff, nobodys = 4713, 4714
)

// connects reports whether a process of a user can connect; if not, the kernel says so.
func connects(t *testing.T, path string, uid, gid uint32, groups ...uint32) bool {
	t.Helper()
	out := child(t, "TestConnect", path, &syscall.Credential{Uid: uid, Gid: gid, Groups: groups})
	switch {
	case strings.Contains(out, "connected\n"):
		return true
	case !strings.Contains(out, syscall.EACCES.Error()+"\n"):
		t.Fatalf("uid %d, gid %d: %s", uid, gid, out)
	}
	return false
}

// child runs a test in a process of its own, with an argument.
func child(t *testing.T, test, arg string, as *syscall.Credential) string {
	t.Helper()
	cmd := exec.Command("/proc/self/exe", "-test.run=^"+test+"$", "-test.v", "-test.count=1")
	cmd.Dir = "/"
	cmd.Env = append(os.Environ(), "RPC_CHILD="+arg)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: as}
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return string(out)
}

// argument is that of a child.
func argument(t *testing.T) string {
	arg := os.Getenv("RPC_CHILD")
	if arg == "" {
		t.Skip("for another test to start")
	}
	return arg
}

func TestConnect(t *testing.T) {
	fd, err := syscall.Socket(syscall.AF_UNIX, syscall.SOCK_STREAM, 0)
	if err == nil {
		err = syscall.Connect(fd, &syscall.SockaddrUnix{Name: argument(t)})
	}
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println("connected")
}

// aRoom is a directory that all users reach, and that root alone may write in.
func aRoom(t *testing.T) string {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root, to be other users")
	}
	dir, err := os.MkdirTemp("", "rpc")
	if err == nil {
		t.Cleanup(func() { os.RemoveAll(dir) })
		err = os.Chmod(dir, 0o755)
	}
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

func listenFor(t *testing.T, path string, a Access) *net.UnixListener {
	t.Helper()
	l, err := ListenFor(path, a)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

func is(t *testing.T, path string, mode os.FileMode, uid, gid uint32) {
	t.Helper()
	st, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if sys := st.Sys().(*syscall.Stat_t); st.Mode().Perm() != mode || sys.Uid != uid || sys.Gid != gid {
		t.Errorf("%s: mode %v of %d:%d; want %v of %d:%d", filepath.Base(path), st.Mode().Perm(), sys.Uid, sys.Gid, mode, uid, gid)
	}
}

// Who may connect, from the first moment on, and after each change of a socket that is open.
func TestAccess(t *testing.T) {
	path := aRoom(t) + "/s"
	listenFor(t, path, Access{0o660, -1, staff})
	for i, test := range []struct {
		a                                      Access
		uid, gid                               uint32
		aliceMay, staffMay, bobMay, nobodysMay bool
	}{
		{Access{0o660, -1, staff}, 0, staff, false, true, false, false},
		{Access{0o666, -1, -1}, 0, 0, true, true, true, true},
		{Access{0o660, alice, nobodys}, alice, nobodys, true, false, false, true},
		{Access{0o600, alice, nobodys}, alice, nobodys, true, false, false, false},
		{Access{0o620, bob, staff}, bob, staff, false, true, true, false},
		{Access{0o660, -1, staff}, 0, staff, false, true, false, false},
		{Access{0o600, -1, -1}, 0, 0, false, false, false, false},
	} {
		if i > 0 {
			if err := SetAccess(path, test.a); err != nil {
				t.Fatal(err)
			}
		}
		is(t, path, test.a.Mode, test.uid, test.gid)
		for who, may := range map[[3]uint32]bool{
			{alice, alice, alice}: test.aliceMay, {5000, staff, 5000}: test.staffMay, {5000, 5000, staff}: test.staffMay,
			{bob, bob, bob}: test.bobMay, {5000, nobodys, 5000}: test.nobodysMay, {0, 0, 0}: true,
		} {
			if got := connects(t, path, who[0], who[1], who[2]); got != may {
				t.Errorf("%d: %+v: uid %d with the groups %d and %d connects: %t", i, test.a, who[0], who[1], who[2], got)
			}
		}
	}
}

// A socket is somebody's only where that one cannot put something else in its place.
func TestAccessWhere(t *testing.T) {
	dir := aRoom(t)
	if err := os.Chmod(dir, os.ModeSticky|0o777); err != nil {
		t.Fatal(err)
	}
	const want = "where uid 4711 could replace"
	theirs := Access{0o600, alice, -1}
	if _, err := ListenFor(dir+"/s", theirs); err == nil || !strings.Contains(err.Error(), want) {
		t.Error(err)
	}
	listenFor(t, dir+"/s", Access{0o660, 0, staff})
	is(t, dir+"/s", 0o660, 0, staff)
	for _, f := range []func(string, Access) error{SetAccess, CheckPlace} {
		if err := f(dir+"/s", theirs); err == nil || !strings.Contains(err.Error(), want) {
			t.Error(err)
		}
	}
	// What somebody else has put there gets nothing.
	if err := errors.Join(os.Remove(dir+"/s"), syscall.Mkfifo(dir+"/s", 0o600), os.Lchown(dir+"/s", alice, alice)); err != nil {
		t.Fatal(err)
	}
	if err := SetAccess(dir+"/s", own(0o666)); err == nil || !strings.Contains(err.Error(), "is not a socket") {
		t.Error(err)
	}
	if err := os.Remove(dir + "/s"); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("unix", dir+"/s")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if err := os.Lchown(dir+"/s", alice, alice); err != nil {
		t.Fatal(err)
	}
	if err := SetAccess(dir+"/s", own(0o666)); err == nil || !strings.Contains(err.Error(), "a socket of uid 4711") {
		t.Error(err)
	}
}

// Who owned a socket until now has no say in its group and mode, however often he changes them.
func TestAccessTakenAway(t *testing.T) {
	path := aRoom(t) + "/s"
	listenFor(t, path, Access{0o600, alice, alice})
	stop, ended := make(chan struct{}), make(chan error)
	go func() {
		ended <- as(alice, nobodys, func() error {
			for {
				select {
				case <-stop:
					return nil
				default: // most of the time it is not hers
					os.Chmod(path, 0o666)
					os.Lchown(path, -1, nobodys)
				}
			}
		})
	}()
	for range 500 {
		if err := SetAccess(path, own(0o600)); err != nil {
			t.Fatal(err)
		}
		is(t, path, 0o600, 0, 0)
		if err := SetAccess(path, Access{0o600, alice, alice}); err != nil {
			t.Fatal(err)
		}
	}
	close(stop)
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

// What it takes: no capability but those to become another user, except to have another owner.
func TestAccessWithoutCapabilities(t *testing.T) {
	dir := aRoom(t)
	if out := child(t, "TestWithoutCapabilities", dir, nil); !strings.Contains(out, "--- PASS") {
		t.Errorf("%s", out)
	}
}

func TestWithoutCapabilities(t *testing.T) {
	dir := argument(t)
	check := func(err error) {
		t.Helper()
		if err != nil {
			t.Error(err)
		}
	}
	// What an earlier daemon, with more of them, has left; its owner has seen to it that nobody connects.
	for _, mode := range []os.FileMode{0o600, 0o000} {
		path := fmt.Sprintf("%s/left%o", dir, mode)
		l, err := ListenFor(path, Access{0o600, alice, staff})
		check(err)
		l.Close()
		check(os.Chmod(path, mode))
	}
	live := listenFor(t, dir+"/live", Access{0o600, alice, staff})
	check(unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0))

	keep := cap.NewSet()
	check(errors.Join(keep.SetFlag(cap.Permitted, true, cap.SETUID, cap.SETGID), keep.SetFlag(cap.Effective, true, cap.SETUID, cap.SETGID)))
	check(keep.SetProc())
	listenFor(t, dir+"/group", Access{0o660, -1, staff})
	is(t, dir+"/group", 0o660, 0, staff)
	check(SetAccess(dir+"/group", Access{0o620, -1, nobodys}))
	is(t, dir+"/group", 0o620, 0, nobodys)
	check(SetAccess(dir+"/group", own(0o666)))
	is(t, dir+"/group", 0o666, 0, 0)
	check(SetAccess(dir+"/live", Access{0o660, alice, nobodys}))
	is(t, dir+"/live", 0o660, alice, nobodys)

	for _, name := range []string{"/new", "/group"} {
		f := SetAccess
		if name == "/new" {
			f = func(path string, a Access) error { _, err := ListenFor(path, a); return err }
		}
		if err := f(dir+name, Access{0o600, alice, -1}); err == nil || !strings.Contains(err.Error(), "CAP_CHOWN") {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := os.Stat(dir + "/new"); !errors.Is(err, os.ErrNotExist) {
		t.Error("a socket of the wrong owner is left")
	}

	for _, name := range []string{"/left600", "/left0"} {
		listenFor(t, dir+name, own(0o666))
		is(t, dir+name, 0o666, 0, 0)
	}
	if _, err := ListenFor(dir+"/live", own(0o666)); err == nil || !strings.Contains(err.Error(), "is listening there already") {
		t.Errorf("somebody's socket that is answered: %v", err)
	}
	live.Close()
	if dumpable, err := unix.PrctlRetInt(unix.PR_GET_DUMPABLE, 0, 0, 0, 0); err != nil || dumpable != 0 {
		t.Errorf("the process is dumpable: %d, %v", dumpable, err)
	}
}
