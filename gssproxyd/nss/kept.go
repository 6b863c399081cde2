package nss

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// Kept is a helper of another kind that is to run all the time, with a conversation with the daemon.
type Kept struct {
	Does  string // what it does, for the log: "asks the key stores"
	Start func(conversation *os.File) (Process, error)

	// Serve is the daemon's side of the conversation, until that ends, which it does with ctx.
	Serve func(ctx context.Context, conn net.Conn) error

	Log *slog.Logger
}

// How soon a helper that has ended gets a successor: later and later, unless it lived for long.
const (
	pauseAtFirst = time.Second
	pauseAtMost  = time.Minute
)

// Run has a helper running, and serves it, until ctx ends. The helper ends with that, and with this
// process.
func (k *Kept) Run(ctx context.Context) {
	pause := pauseAtFirst
	for ctx.Err() == nil {
		started := time.Now()
		err := k.one(ctx)
		if ctx.Err() != nil {
			return
		}
		if time.Since(started) > pauseAtMost {
			pause = pauseAtFirst
		}
		k.Log.Error("the helper that "+k.Does+" has ended: another one is started", "error", err, "in", pause)
		timer := time.NewTimer(pause)
		select {
		case <-ctx.Done():
		case <-timer.C:
		}
		timer.Stop()
		pause = min(2*pause, pauseAtMost)
	}
}

// errGone means that the other end of a conversation is gone.
var errGone = errors.New("the other end is gone")

// one starts a helper and serves it until it ends, or ctx does.
func (k *Kept) one(ctx context.Context) error {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return os.NewSyscallError("socketpair", err)
	}
	theirs := os.NewFile(uintptr(pair[1]), "conversation")
	defer theirs.Close()
	ours := os.NewFile(uintptr(pair[0]), "conversation")
	conn, err := net.FileConn(ours)
	ours.Close()
	if err != nil {
		return err
	}
	defer conn.Close()
	process, err := k.Start(theirs)
	theirs.Close()
	if err != nil {
		return err
	}
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	err = k.Serve(ctx, conn)
	conn.Close()
	end, ended := process.End()
	if !ended {
		k.Log.Error("the helper that "+k.Does+" does not end, and is left alone", "pid", process.PID(), "error", end)
	}
	switch {
	case errors.Is(err, io.EOF) || errors.Is(err, net.ErrClosed):
		return cmp.Or(end, errGone)
	case end != nil:
		return fmt.Errorf("%w; then: %w", err, end)
	}
	return err
}
