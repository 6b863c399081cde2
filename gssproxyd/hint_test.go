package main

import (
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"syscall"
	"testing"

	"gssproxyd/mech"
	"gssproxyd/mech/reason"
	"gssproxyd/rpc"
)

// What a client of the daemon meets comes with what to do about it, and without the way it came.
func TestWithHint(t *testing.T) {
	dial := func(err error) error {
		return fmt.Errorf("gssproxy: rpc: %w", &net.OpError{Op: "dial", Net: "unix", Addr: &net.UnixAddr{Net: "unix", Name: "/s"}, Err: os.NewSyscallError("connect", err)})
	}
	for want, err := range map[string]error{
		"no daemon answers on /s: no such file or directory\nhint: start the daemon ":     dial(syscall.ENOENT),
		"no daemon answers on /s: connection refused\nhint: start the daemon ":            dial(syscall.ECONNREFUSED),
		"this user cannot reach the socket /s: permission denied\nhint: look at its mode": dial(syscall.EACCES),
		"[replay] Request is a replay\nhint: Harmless when ":                              &mech.Error{Minor: mech.KRB5Minor(34), Reason: reason.Replay},
		"No such file or directory": &mech.Error{Minor: uint32(syscall.ENOENT)}, // the C daemon's
		"INIT: " + rpc.ErrNoAnswer.Error() + "\nhint: the daemon's log says why; ": fmt.Errorf("gssproxy: INIT: %w", rpc.ErrNoAnswer),
		"the server at /s runs as uid 7":                                           errors.New("gssproxy: rpc: the server at /s runs as uid 7"),
	} {
		if got := withHint(err); !strings.HasPrefix(got.Error(), want) {
			t.Errorf("%v: %q, want %q", err, got, want)
		}
	}
	if withHint(nil) != nil {
		t.Error("an error of nothing")
	}
}
