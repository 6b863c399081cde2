package scrape

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"gssproxyd/gssproxyd/nss"
)

// Options is what [Serve] serves.
type Options struct {
	Listener *os.File // each helper gets it; it stays the caller's to close, and nobody listens on it after Serve
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

// Serve has a helper running, and answers it, until ctx ends. The helper ends with that, and with
// this process. Its address is free then, also where a helper that was killed is not gone yet.
func Serve(ctx context.Context, o Options) {
	defer shutdown(o.Listener)
	(&nss.Kept{
		Does: "serves the metrics", Log: o.Log, Serve: o.answer,
		Start: func(conversation *os.File) (nss.Process, error) { return o.Start(conversation, o.Listener) },
	}).Run(ctx)
}

// shutdown ends listening for all who have a descriptor of the socket.
func shutdown(listener *os.File) {
	if raw, err := listener.SyscallConn(); err == nil {
		raw.Control(func(fd uintptr) { unix.Shutdown(int(fd), unix.SHUT_RDWR) })
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
