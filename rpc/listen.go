package rpc

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"gssproxyd/openat"
	"gssproxyd/rpc/peer"
)

// backlog is how many connections may wait to be accepted; the kernel cuts it to
// net.core.somaxconn. Clients connect without waiting, and for them a full backlog is an error in
// the application.
const backlog = 4096

// maxPath is the longest path that fits into a sockaddr_un with its NUL.
const maxPath = 107

// Listen makes a listening unix socket at path with the given permissions, whatever the umask. A
// socket that nobody answers on is replaced; one that is answered, and anything that is not a
// socket, is an error. Closing the listener leaves the file in place, since a successor may have
// its own there.
//
// A socket that is answered is replaced too if it has the name path + [Aside] as well: somebody who
// may write in the directory has set it aside for that. The new one listens before it gets its name,
// by a rename: whoever connects meanwhile reaches the old one or the new one, and is never refused.
// Connections of the old one stay.
//
// Clients find the socket by its path, and the permissions are given to what is there: so others
// must not be able to put something else in its place. A directory in which they could, the
// socket's own or one on the way, is an error, and all is done relative to the one directory that
// was looked at. Its address, which diagnostic tools show, is therefore a name under /proc/self/fd.
func Listen(path string, mode os.FileMode) (*net.UnixListener, error) {
	return ListenFor(path, own(mode))
}

// ListenFor is [Listen] for a socket whose file may have another owner or group than who makes it.
// One with another owner is not made in a directory where others may write at all.
func ListenFor(path string, a Access) (*net.UnixListener, error) {
	l, err := listen(path, a)
	if err != nil {
		return nil, fmt.Errorf("socket %s: %w", path, err)
	}
	return l, nil
}

// Aside is what the name of a socket that is to be replaced ends with, beside its own name.
const Aside = ".aside"

// CheckPlace returns why [ListenFor] would make no socket at path, as far as the path and its directory
// say it. Nothing is made, and nobody who listens there is asked.
func CheckPlace(path string, a Access) error {
	dir, _, err := place(path, a)
	if err != nil {
		return err
	}
	return dir.Close()
}

// place opens the directory for a socket, in which others can take nothing away.
func place(path string, a Access) (dir *openat.Dir, name string, err error) {
	if len(path) > maxPath {
		return nil, "", fmt.Errorf("the path is %d bytes long, at most %d are possible", len(path), maxPath)
	}
	if dir, name, err = openat.Parent(path); err != nil {
		return nil, "", err
	}
	if err := cmp.Or(dir.CheckKeeps(), a.check(dir)); err != nil {
		dir.Close()
		return nil, "", err
	}
	return dir, name, nil
}

func listen(path string, a Access) (*net.UnixListener, error) {
	dir, name, err := place(path, a)
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	if err := checkFree(dir, name); err != nil {
		return nil, err
	}
	temp := name + "." + rand.Text()[:8]
	here := fmt.Sprintf("/proc/self/fd/%d/%s", dir.FD(), temp)
	if len(here) > maxPath {
		return nil, fmt.Errorf("the name in its directory is %d bytes long, at most %d are possible", len(name), maxPath-len(here)+len(name))
	}
	config := net.ListenConfig{Control: func(_, _ string, raw syscall.RawConn) error {
		// The mode of the unbound socket, cut by the umask, becomes that of the file: nobody gets
		// in before it is given the one asked for, and its group.
		return peer.Control(raw, func(fd int) error { return syscall.Fchmod(fd, uint32(a.Mode.Perm())) })
	}}
	nl, err := config.Listen(context.Background(), "unix", here)
	if err != nil {
		return nil, errors.Unwrap(err)
	}
	l := nl.(*net.UnixListener)
	l.SetUnlinkOnClose(false)
	raw, err := l.SyscallConn()
	if err == nil {
		err = peer.Control(raw, func(fd int) error { return syscall.Listen(fd, backlog) })
	}
	if err == nil {
		err = permit(dir, temp, a)
	}
	if err == nil {
		err = dir.Rename(temp, name)
	}
	if err != nil {
		dir.Remove(temp)
		l.Close()
		return nil, err
	}
	return l, nil
}

// errNoSocket is about a name that means something else.
var errNoSocket = errors.New("the path exists and is not a socket; remove it or name another path")

// openSocket opens a socket's file, which is for nothing but to refer to it.
func openSocket(dir *openat.Dir, name string) (f *os.File, st unix.Stat_t, err error) {
	if f, err = dir.Open(name, unix.O_PATH, 0); err != nil {
		return nil, st, err
	}
	if err = unix.Fstat(int(f.Fd()), &st); err == nil && st.Mode&unix.S_IFMT != unix.S_IFSOCK {
		err = errNoSocket
	}
	if err != nil {
		f.Close()
		return nil, st, err
	}
	return f, st, nil
}

// stopListening refuses new connections and wakes who waits for them by a deadline; those in the
// backlog can still be accepted.
func stopListening(l *net.UnixListener) {
	raw, err := l.SyscallConn()
	if err == nil {
		err = peer.Control(raw, func(fd int) error { return syscall.Shutdown(fd, syscall.SHUT_RD) })
	}
	if err == nil {
		err = l.SetDeadline(time.Now())
	}
	if err != nil {
		l.Close()
	}
}

// checkFree returns why the name may not be given to a new socket: it means something else, or
// somebody listens there and has not been set aside. Two daemons that start at the same moment can
// still take the path from each other.
func checkFree(dir *openat.Dir, name string) error {
	old, st, err := openSocket(dir, name)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer old.Close()
	if dir.Closed() { // so the other name means something
		if aside, err := dir.Means(name+Aside, &st); err != nil || aside {
			return err
		}
	}
	var c net.Conn
	dial := func() (err error) {
		c, err = net.DialTimeout("unix", fmt.Sprintf("/proc/self/fd/%d", old.Fd()), time.Second)
		return err
	}
	if err = dial(); errors.Is(err, syscall.EACCES) {
		// It was given to somebody, who may do with its mode what he wants, and without its
		// capabilities root may not connect.
		err = as(int(st.Uid), int(st.Gid), func() error {
			if err := openat.Chmod(old, os.FileMode(st.Mode).Perm()|0o200); err != nil {
				return err
			}
			return dial()
		})
	}
	switch {
	case err == nil:
		defer c.Close()
		who := "another process"
		if info, err := peer.Credentials(c.(*net.UnixConn)); err == nil {
			who = fmt.Sprintf("process %d", info.PID)
		}
		return fmt.Errorf("%s is listening there already; stop it first, or take its place without it: gssproxyd migrate", who)
	case errors.Is(err, syscall.ECONNREFUSED):
		return nil
	default: // EAGAIN is a full backlog, so somebody is there
		return fmt.Errorf("cannot find out whether another process is listening there: %w", err)
	}
}
