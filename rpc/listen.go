package rpc

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"syscall"
	"time"

	"gssproxyd/rpc/peer"
)

// backlog is how many connections may wait to be accepted; the kernel cuts it
// to net.core.somaxconn. Clients connect without waiting, and for them a full
// backlog is an error in the application.
const backlog = 4096

// maxPath is the longest path that fits into a sockaddr_un with its NUL.
const maxPath = 107

// Listen makes a listening unix socket at path with the given permissions,
// whatever the umask. A socket that nobody answers on is replaced; one that is
// answered, and anything that is not a socket, is an error. Closing the
// listener leaves the file in place, since a successor may have its own there.
func Listen(path string, mode os.FileMode) (*net.UnixListener, error) {
	if len(path) > maxPath {
		return nil, fmt.Errorf("socket %s: the path is %d bytes long, at most %d are possible", path, len(path), maxPath)
	}
	if err := makeWay(path); err != nil {
		return nil, fmt.Errorf("socket %s: %w", path, err)
	}
	config := net.ListenConfig{Control: func(_, _ string, raw syscall.RawConn) error {
		// The mode of the unbound socket, cut by the umask, becomes that of
		// the file: nobody gets in before the chmod below.
		return controlErr(raw, func(fd int) error { return syscall.Fchmod(fd, uint32(mode.Perm())) })
	}}
	nl, err := config.Listen(context.Background(), "unix", path)
	if err != nil {
		return nil, fmt.Errorf("socket %s: %w", path, errors.Unwrap(err))
	}
	l := nl.(*net.UnixListener)
	l.SetUnlinkOnClose(false)
	raw, err := l.SyscallConn()
	if err == nil {
		err = controlErr(raw, func(fd int) error { return syscall.Listen(fd, backlog) })
	}
	if err == nil {
		err = os.Chmod(path, mode.Perm())
	}
	if err != nil {
		l.Close()
		return nil, fmt.Errorf("socket %s: %w", path, err)
	}
	return l, nil
}

// stopListening refuses new connections and wakes who waits for them by a
// deadline; those in the backlog can still be accepted.
func stopListening(l *net.UnixListener) {
	raw, err := l.SyscallConn()
	if err == nil {
		err = controlErr(raw, func(fd int) error {
			cred, err := syscall.GetsockoptUcred(fd, syscall.SOL_SOCKET, syscall.SO_PEERCRED)
			if err != nil {
				return err
			}
			if int(cred.Pid) != os.Getpid() { // of the process that called listen(2)
				return syscall.EPERM
			}
			return syscall.Shutdown(fd, syscall.SHUT_RD)
		})
	}
	if err == nil {
		err = l.SetDeadline(time.Now())
	}
	if err != nil {
		l.Close()
	}
}

// makeWay removes a socket that nobody listens on. Two daemons that start at
// the same moment can still take the path from each other.
func makeWay(path string) error {
	st, err := os.Lstat(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if st.Mode().Type() != os.ModeSocket {
		return errors.New("the path exists and is not a socket; remove it or name another path")
	}
	c, err := net.DialTimeout("unix", path, time.Second)
	switch {
	case err == nil:
		defer c.Close()
		who := "another process"
		if info, err := peer.Credentials(c.(*net.UnixConn)); err == nil {
			who = fmt.Sprintf("process %d", info.PID)
		}
		return fmt.Errorf("%s is listening there already; stop it first", who)
	case errors.Is(err, syscall.ECONNREFUSED):
		return os.Remove(path)
	case errors.Is(err, os.ErrNotExist):
		return nil
	default: // EAGAIN is a full backlog, so somebody is there
		return fmt.Errorf("cannot find out whether another process is listening there: %w", err)
	}
}

func controlErr(raw syscall.RawConn, f func(fd int) error) error {
	var ferr error
	if err := raw.Control(func(fd uintptr) { ferr = f(int(fd)) }); err != nil {
		return err
	}
	return ferr
}
