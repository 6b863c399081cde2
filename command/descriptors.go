package command

import (
	"fmt"
	"os"
	"strconv"
	"syscall"
)

// InheritOnce keeps the descriptors that whoever started this program left open, but for the
// standard ones, from the programs that it starts itself: they may be anything. Those that are
// meant for it (a socket, the pipe to a waiting parent) it has, and does not pass on either.
func InheritOnce() error {
	open, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return fmt.Errorf("cannot see which descriptors were left open: %w", err)
	}
	for _, entry := range open {
		if fd, err := strconv.Atoi(entry.Name()); err == nil && fd > 2 {
			syscall.CloseOnExec(fd)
		}
	}
	return nil
}
