package lab

import (
	"errors"
	"fmt"
	"net"
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"
)

// WireAs connects to a socket as user u: the daemon sees this process with u's ids. An empty socket
// is the daemon's own.
func (d *Daemon) WireAs(u User, socket string) (*Wire, error) {
	if socket == "" {
		socket = d.Socket
	}
	// The kernel notes the effective ids of the thread that connects.
	defer become(u)()
	c, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: socket, Net: "unix"})
	if err != nil {
		return nil, err
	}
	return d.newWire(c), nil
}

// become gives the thread of the caller, and no other, the effective ids of u, until the function
// returned is called.
func become(u User) (back func()) {
	runtime.LockOSThread()
	setid(syscall.SYS_SETRESGID, u.GID)
	setid(syscall.SYS_SETRESUID, u.UID)
	return func() {
		setid(syscall.SYS_SETRESUID, 0)
		setid(syscall.SYS_SETRESGID, 0)
		runtime.UnlockOSThread()
	}
}

// setid changes one effective id of this thread. A thread that is not who it should be must not go
// on.
func setid(call uintptr, id uint32) {
	keep := ^uintptr(0)
	if _, _, err := syscall.RawSyscall(call, keep, uintptr(id), keep); err != 0 {
		panic(fmt.Sprintf("lab: becoming %d: %v", id, err))
	}
}

// FillKeyrings uses up all of the kernel's room for keys of user u (keyrings(7): quota), until free
// is called.
func FillKeyrings(u User) (free func(), err error) {
	full, done, freed := make(chan error), make(chan struct{}), make(chan struct{})
	go func() {
		defer close(freed)
		defer become(u)()
		var err error
		for size := 2048; size > 0 && err == nil; size /= 2 { // the gaps get smaller
			for i := 0; err == nil; i++ {
				_, err = unix.AddKey("user", fmt.Sprintf("lab-filler-%d-%d", size, i), make([]byte, size), unix.KEY_SPEC_THREAD_KEYRING)
			}
			if errors.Is(err, unix.EDQUOT) {
				err = nil
			}
		}
		full <- err
		<-done
		unix.KeyctlInt(unix.KEYCTL_CLEAR, unix.KEY_SPEC_THREAD_KEYRING, 0, 0, 0)
	}()
	free = func() {
		close(done)
		<-freed
	}
	if err := <-full; err != nil {
		free()
		return nil, err
	}
	return free, nil
}
