// Package rpctest gives tests a server to talk to.
package rpctest

import (
	"context"
	"os"
	"path/filepath"
	"testing"
	"time"

	"gssproxyd/rpc"
)

// Handler answers calls, one after the other. It is an [rpc.Service].
type Handler func(ctx context.Context, c *rpc.Call, reply []byte) ([]byte, rpc.AcceptStat)

// Handle implements [rpc.Service].
func (h Handler) Handle(ctx context.Context, c *rpc.Call, reply []byte) ([]byte, rpc.AcceptStat) {
	return h(ctx, c, reply)
}

// Parallel implements [rpc.Service].
func (h Handler) Parallel() int { return 1 }

// Everybody returns the Match of a server that serves h to everybody.
func Everybody(h Handler) func(context.Context, *rpc.Conn, uint32) (rpc.Service, bool) {
	return func(context.Context, *rpc.Conn, uint32) (rpc.Service, bool) { return h, true }
}

// Start serves handle to everybody on a new socket until stop is called or the test ends, whichever
// is first, and returns the socket's path.
func Start(t testing.TB, handle Handler) (path string, stop func()) {
	t.Helper()
	dir, err := os.MkdirTemp("", "rpc") // t.TempDir can be too long for a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	path = filepath.Join(dir, "s")
	return path, StartAt(t, path, &rpc.Server{Match: Everybody(handle)})
}

// StartAt runs s at path until stop is called or the test ends.
func StartAt(t testing.TB, path string, s *rpc.Server) (stop func()) {
	t.Helper()
	l, err := rpc.Listen(path, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx, l, path) }()
	stopped := false
	stop = func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		select {
		case err := <-done:
			if err != nil {
				t.Errorf("Serve: %v", err)
			}
		case <-time.After(time.Minute):
			t.Error("the server does not end")
		}
	}
	t.Cleanup(stop)
	return stop
}
