//go:build !race

package nowait

import (
	"syscall"
	"unsafe"
)

// Read is read(2) on what does not block. At the end of a stream n is 0.
func Read(fd uintptr, b []byte) (n int, err error) {
	read, _, errno := syscall.RawSyscall(syscall.SYS_READ, fd, uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(len(b)))
	if errno != 0 {
		return 0, errno
	}
	return int(read), nil
}

// Write is write(2) on what does not block.
func Write(fd uintptr, b []byte) (n int, err error) {
	written, _, errno := syscall.RawSyscall(syscall.SYS_WRITE, fd, uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(len(b)))
	if errno != 0 {
		return 0, errno
	}
	return int(written), nil
}
