package migrate

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// A client is a process that has opened connections to a daemon, or has left them to its children.
type client struct{ pid, connections int }

// connected returns who is connected to a daemon by its process, the kernel under 0. The
// connections are found as the daemon's own descriptors: that shows clients in any namespace.
func connected(daemon int) ([]client, error) {
	byPID := make(map[int]int)
	listens := make(map[string]bool)
	var accepted []func() // the names that are listened on have to be known first
	for _, pid := range append(descendants(daemon), daemon) {
		err := eachSocket(pid, func(fd int) {
			sa, err := unix.Getsockname(fd)
			at, ok := sa.(*unix.SockaddrUnix)
			if err != nil || !ok || at.Name == "" {
				return
			}
			if listening, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ACCEPTCONN); err == nil && listening == 1 {
				listens[at.Name] = true
			} else if cred, err := unix.GetsockoptUcred(fd, unix.SOL_SOCKET, unix.SO_PEERCRED); err == nil && int(cred.Pid) != os.Getpid() {
				accepted = append(accepted, func() {
					if listens[at.Name] {
						byPID[int(cred.Pid)]++
					}
				})
			}
		})
		if err != nil {
			return nil, fmt.Errorf("who is connected to process %d is not known, and only root can find it out: %w", pid, err)
		}
	}
	for _, count := range accepted {
		count()
	}
	var all []client
	for _, pid := range slices.Sorted(maps.Keys(byPID)) {
		all = append(all, client{pid, byPID[pid]})
	}
	return all, nil
}

// eachSocket calls f with a copy of every descriptor of a process that is a socket.
func eachSocket(pid int, f func(fd int)) error {
	pidfd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return ended(err)
	}
	defer unix.Close(pidfd)
	dir := fmt.Sprintf("/proc/%d/fd/", pid)
	names, err := os.ReadDir(dir)
	if err != nil {
		return ended(err)
	}
	for _, n := range names {
		target, err := os.Readlink(dir + n.Name())
		number, err2 := strconv.Atoi(n.Name())
		if err != nil || err2 != nil || !strings.HasPrefix(target, "socket:") {
			continue // or closed by now
		}
		fd, err := unix.PidfdGetfd(pidfd, number, 0)
		if errors.Is(err, unix.EBADF) {
			continue
		}
		if err != nil {
			return ended(err)
		}
		f(fd)
		unix.Close(fd)
	}
	return nil
}

// ended makes nothing of an error that says that the process has ended.
func ended(err error) error {
	if errors.Is(err, unix.ESRCH) || errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return err
}

// descendants returns the processes that a process has started, and those that they have.
func descendants(pid int) (all []int) {
	for _, p := range processes() {
		if fmt.Sprint(pid) == status(p, "PPid") {
			all = append(append(all, p), descendants(p)...)
		}
	}
	return all
}

// status returns a field of /proc/PID/status, "" if there is none or the process has ended.
func status(pid int, key string) string {
	b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	for line := range strings.Lines(string(b)) {
		if value, ok := strings.CutPrefix(line, key+":"); ok {
			return strings.TrimSpace(value)
		}
	}
	return ""
}

func processes() (pids []int) {
	dirs, _ := os.ReadDir("/proc")
	for _, d := range dirs {
		if pid, err := strconv.Atoi(d.Name()); err == nil {
			pids = append(pids, pid)
		}
	}
	return pids
}
