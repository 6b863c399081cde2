package rpc

import (
	"fmt"
	"os"
	"runtime"

	"golang.org/x/sys/unix"

	"gssproxyd/openat"
)

// Access is who may connect to a socket: those whom the mode of its file lets write to it.
type Access struct {
	Mode         os.FileMode
	Owner, Group int // of the file; -1: those of who makes it
}

// ForEverybody are the permissions of a socket to which anyone may connect: who may do what is
// decided by who the kernel says the caller is.
const ForEverybody os.FileMode = 0o666

// own is an access without an owner or group of its own.
func own(mode os.FileMode) Access { return Access{mode, -1, -1} }

// check returns why a socket with an owner may not be in a directory: there the owner could put
// something else in its place.
func (a Access) check(dir *openat.Dir) error {
	if a.Owner > 0 && a.Owner != os.Geteuid() && !dir.Closed() {
		return fmt.Errorf("others may write in the directory, where uid %d could replace the socket that belongs to it; name a path elsewhere, or let the socket have a group instead of an owner", a.Owner)
	}
	return nil
}

// SetAccess gives the socket at path, which somebody listens on, another access. Connections stay,
// and nobody is refused meanwhile who may connect before and after.
func SetAccess(path string, a Access) error {
	err := setAccess(path, a)
	if err != nil {
		return fmt.Errorf("socket %s: %w", path, err)
	}
	return nil
}

func setAccess(path string, a Access) error {
	dir, name, err := place(path, a)
	if err != nil {
		return err
	}
	defer dir.Close()
	// What it may have had before goes.
	if a.Owner < 0 {
		a.Owner = os.Geteuid()
	}
	if a.Group < 0 {
		a.Group = os.Getegid()
	}
	return permit(dir, name, a)
}

// permit gives a socket of ours its access, and nothing else that may have come into its place.
func permit(dir *openat.Dir, name string, a Access) error {
	socket, st, err := openSocket(dir, name)
	if err != nil {
		return err
	}
	defer socket.Close()
	if st.Uid != uint32(os.Geteuid()) && !dir.Closed() {
		return fmt.Errorf("a socket of uid %d has taken the place of ours", st.Uid)
	}
	return a.give(socket, &st)
}

// give gives an open socket its access. Its group takes no capability but CAP_SETGID, with which a
// thread is in that group: who owns a file may give it to any group of its own. Its mode is the
// owner's to change; only another owner takes CAP_CHOWN. That comes first: until then the former one
// may change the rest again.
func (a Access) give(f *os.File, st *unix.Stat_t) error {
	chown := func(uid, gid int) error {
		return os.NewSyscallError("chown", unix.Fchownat(int(f.Fd()), "", uid, gid, unix.AT_EMPTY_PATH))
	}
	if a.Owner >= 0 && a.Owner != int(st.Uid) {
		if err := chown(a.Owner, -1); err != nil {
			return fmt.Errorf("it cannot be given to uid %d, which takes CAP_CHOWN (under the unit: the example socket-owner.conf; or let the socket have a group instead of an owner): %w", a.Owner, err)
		}
		if err := unix.Fstat(int(f.Fd()), st); err != nil {
			return os.NewSyscallError("fstat", err)
		}
	}
	group, mode := int(st.Gid), a.Mode.Perm()
	if a.Group >= 0 {
		group = a.Group
	}
	change := func() error {
		if group != int(st.Gid) {
			// Neither the former group under the new mode nor the other way round.
			if err := openat.Chmod(f, mode&os.FileMode(st.Mode)); err != nil {
				return err
			}
			if err := chown(-1, group); err != nil {
				return fmt.Errorf("it cannot be given to gid %d, which takes CAP_SETGID or to be in that group: %w", group, err)
			}
		}
		return openat.Chmod(f, mode)
	}
	if int(st.Uid) == os.Geteuid() && group == int(st.Gid) {
		return change()
	}
	return as(int(st.Uid), group, change)
}

// as calls f on a thread that is another user and group to files, as far as this process may have it
// so. The thread ends with it.
func as(uid, gid int, f func() error) error {
	dumpable, err := unix.PrctlRetInt(unix.PR_GET_DUMPABLE, 0, 0, 0, 0)
	if err != nil {
		return err
	}
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		// What they have not changed shows in what f does.
		unix.Setfsgid(gid)
		unix.Setfsuid(uid)
		if dumpable == 0 { // a change of these has the process dumpable again
			if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
				done <- err
				return
			}
		}
		done <- f()
	}()
	return <-done
}
