package lab

import (
	"fmt"
	"net"
	"runtime"
	"syscall"
)

// WireAs connects to a socket as user u: the daemon sees this process with u's ids. An empty socket is the daemon's own.
func (d *Daemon) WireAs(u User, socket string) (*Wire, error) {
	if socket == "" {
		socket = d.Socket
	}
	// The kernel notes the effective ids of the thread that connects.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	become(syscall.SYS_SETRESGID, u.GID)
	become(syscall.SYS_SETRESUID, u.UID)
	c, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: socket, Net: "unix"})
	become(syscall.SYS_SETRESUID, 0)
	become(syscall.SYS_SETRESGID, 0)
	if err != nil {
		return nil, err
	}
	return &Wire{UnixConn: c}, nil
}

// become changes the effective id of this thread alone. A thread that is not who it should be must not go on.
func become(call uintptr, id uint32) {
	keep := ^uintptr(0)
	if _, _, err := syscall.RawSyscall(call, keep, uintptr(id), keep); err != 0 {
		panic(fmt.Sprintf("lab: becoming %d: %v", id, err))
	}
}
