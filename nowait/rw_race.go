//go:build race

package nowait

import "syscall"

// With the race detector these are the calls of package syscall, which tell it that who has read something comes after who has
// written it.

// Read is read(2) on what does not block. At the end of a stream n is 0.
func Read(fd uintptr, b []byte) (n int, err error) {
	n, err = syscall.Read(int(fd), b)
	return max(n, 0), err
}

// Write is write(2) on what does not block.
func Write(fd uintptr, b []byte) (n int, err error) {
	n, err = syscall.Write(int(fd), b)
	return max(n, 0), err
}
