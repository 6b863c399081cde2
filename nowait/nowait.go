// Package nowait makes system calls that do not wait, on sockets and devices that do not block.
//
// Go's runtime is not told of them. It is told of those of package syscall, to look after them should they wait: each that
// comes when nothing else runs wakes a thread (sysmon), which costs several times what a short call to the daemon does. As long
// as one of these takes, nothing else runs on its processor, and garbage collection does not begin: with that the whole
// process would wait. So none may wait for a disk, a lock that is held for long, or another program, but as any use of memory
// may where that is short. In particular:
//
//   - a file of /proc or of any other file system is not opened or read so: who holds a directory has others wait;
//   - a socket is not read so if files can come with what is read (SCM_RIGHTS). They are closed by who does not want them,
//     and closing may wait.
//
// Errors are of type [syscall.Errno], EINTR among them.
package nowait

import (
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Poll says which of the events there are, such as POLLIN. POLLERR and POLLHUP are always among them.
func Poll(fd uintptr, events int16) (there int16, err error) {
	list := [1]unix.PollFd{{Fd: int32(fd), Events: events}}
	var atOnce unix.Timespec
	_, _, errno := syscall.RawSyscall6(unix.SYS_PPOLL, uintptr(unsafe.Pointer(&list)), 1, uintptr(unsafe.Pointer(&atOnce)), 0, 0, 0)
	if errno != 0 {
		return 0, errno
	}
	return list[0].Revents, nil
}
