package fuse

import (
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// These are system calls on /dev/fuse. None of them waits in the kernel (see DisabledCapabilities in [Serve]), so Go's runtime is
// not told of them (RawSyscall): to look after those it is told of, should they wait, it wakes a thread (sysmon) for each that
// comes when nothing else runs, which costs several times what a short request does.
//
// While such a call takes, nothing else runs on its processor, and garbage collection does not begin: if it waited, so would the
// whole daemon. So there are none for anything else:
//
//   - whoever listens at the other end of a socket is woken within a write, and within a read that makes room there. That may be
//     a million who wait, of one process;
//   - files that come over a socket and nobody wants (SCM_RIGHTS) are closed within a read, and closing may wait;
//   - who holds a directory has whoever opens something there wait, in /proc too.

// readOnce is read(2). The error is a [syscall.Errno].
func readOnce(fd uintptr, b []byte) (n int, err error) {
	read, _, errno := syscall.RawSyscall(syscall.SYS_READ, fd, uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(len(b)))
	if errno != 0 {
		return 0, errno
	}
	return int(read), nil
}

// writeOnce is write(2) of an answer: one thread waits for it.
func writeOnce(fd uintptr, b []byte) error {
	if _, _, errno := syscall.RawSyscall(syscall.SYS_WRITE, fd, uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(len(b))); errno != 0 {
		return errno
	}
	return nil
}

// pollOnce says which of the events there are, such as POLLIN; POLLERR is always among them. It is none if that cannot be said.
func pollOnce(fd uintptr, events int16) int16 {
	list := [1]unix.PollFd{{Fd: int32(fd), Events: events}}
	var atOnce unix.Timespec
	syscall.RawSyscall6(unix.SYS_PPOLL, uintptr(unsafe.Pointer(&list)), 1, uintptr(unsafe.Pointer(&atOnce)), 0, 0, 0)
	return list[0].Revents
}
