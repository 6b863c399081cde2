package main

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"strings"
	"syscall"

	"gssproxyd/mech"
	"gssproxyd/rpc"
)

// hinted is an error with what to do about it, in a line of its own.
func hinted(text, hint string) error { return errors.New(text + "\nhint: " + hint) }

// startIt is what to do where no daemon answers.
const startIt = "start the daemon (systemctl start gssproxyd)"

// withHint adds to an error of a client of the daemon what to do about it, and takes off the names
// of the packages that it came through.
func withHint(err error) error {
	if err == nil {
		return nil
	}
	if refusal, ok := errors.AsType[*mech.Error](err); ok {
		if hint := refusal.Reason.Doc().Hint; hint != "" {
			return hinted(refusal.Error(), hint)
		}
		return refusal
	}
	if dial, ok := errors.AsType[*net.OpError](err); ok && dial.Op == "dial" {
		if errors.Is(err, fs.ErrPermission) {
			return hinted(fmt.Sprintf("this user cannot reach the socket %v: %v", dial.Addr, cause(err)),
				"look at its mode, and at the directories on the way to it")
		}
		return hinted(fmt.Sprintf("no daemon answers on %v: %v", dial.Addr, cause(err)), startIt+", or name its socket with -s or GSSPROXY_SOCKET")
	}
	text := strings.TrimPrefix(strings.TrimPrefix(err.Error(), "gssproxy: "), "rpc: ")
	if errors.Is(err, rpc.ErrNoAnswer) {
		return hinted(text, fmt.Sprintf("the daemon's log says why; gssproxyd explain --uid %d says which service is for this user", os.Geteuid()))
	}
	return errors.New(text)
}

// cause is the system's error at the bottom of one about a socket, which names the socket and the
// call again.
func cause(err error) error {
	if errno, ok := errors.AsType[syscall.Errno](err); ok {
		return errno
	}
	return err
}
