package scrape

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

// Options is what [Serve] serves.
type Options struct {
	Listener *os.File // each helper gets it; it stays the caller's to close
	Start    StartFunc

	// Text returns the text in one of two formats. It waits for nothing.
	Text func(openMetrics bool) ([]byte, error)

	Log *slog.Logger
}

// pace is how long it is at least between two answers. Who asks the helper more often gets the same
// text again, and costs the daemon nothing.
const pace = 250 * time.Millisecond

// answerTimeout is how long the helper may take to read an answer.
const answerTimeout = 5 * time.Second

// How soon a helper that has ended gets a successor: later and later, unless it lived for long.
const (
	pauseAtFirst = time.Second
	pauseAtMost  = time.Minute
)

// Serve has a helper running, and answers it, until ctx ends. The helper ends with that, and with
// this process.
func Serve(ctx context.Context, o Options) {
	pause := pauseAtFirst
	for {
		started := time.Now()
		err := o.serveOne(ctx)
		if ctx.Err() != nil {
			return
		}
		if time.Since(started) > pauseAtMost {
			pause = pauseAtFirst
		}
		o.Log.Error("the helper that serves the metrics has ended: another one is started", "error", err, "in", pause)
		wait(ctx, pause)
		pause = min(2*pause, pauseAtMost)
	}
}

// wait waits until d is over, or ctx.
func wait(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
	}
}

// serveOne starts a helper and answers it until it ends, or ctx does.
func (o *Options) serveOne(ctx context.Context) error {
	if ctx.Err() != nil {
		return nil
	}
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return os.NewSyscallError("socketpair", err)
	}
	theirs := os.NewFile(uintptr(pair[1]), "conversation")
	conn, err := fileConn(os.NewFile(uintptr(pair[0]), "conversation"))
	if err != nil {
		theirs.Close()
		return err
	}
	defer conn.Close()
	process, err := o.Start(theirs, o.Listener)
	theirs.Close()
	if err != nil {
		return err
	}
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	err = o.answer(ctx, conn)
	conn.Close()
	end, ended := process.End()
	if !ended {
		o.Log.Error("the helper that serves the metrics does not end, and is left alone", "pid", process.PID(), "error", end)
	}
	if errors.Is(err, io.EOF) || errors.Is(err, net.ErrClosed) {
		err = errDead
	}
	if err != errDead && end != nil {
		return fmt.Errorf("%w; then: %w", err, end)
	}
	return cmp.Or(end, err)
}

// answer answers the helper until it asks no more.
func (o *Options) answer(ctx context.Context, conn net.Conn) error {
	var last time.Time
	for first := true; ; first = false {
		var asked [1]byte
		if _, err := io.ReadFull(conn, asked[:]); err != nil {
			return err
		}
		switch {
		case asked[0] == askPlain, asked[0] == askOpen:
		case asked[0] == sayUser && first: // no more than once: who speaks with strangers fills no log
			o.Log.Warn("the helper that serves the metrics runs as this daemon's user")
			continue
		case asked[0] == sayRoot:
			return errors.New("it could not become another user than root, which takes CAP_SETUID and CAP_SETGID, and as root it does not serve")
		default:
			return errors.New("it asks for nothing that there is")
		}
		wait(ctx, time.Until(last.Add(pace)))
		last = time.Now()
		text, err := o.Text(asked[0] == askOpen)
		conn.SetWriteDeadline(time.Now().Add(answerTimeout))
		if err := writeAnswer(conn, text, err); err != nil {
			return err
		}
	}
}
