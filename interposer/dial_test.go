package interposer

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"gssproxyd/limits"
	"gssproxyd/mech/reason"
	"gssproxyd/rpc"
	"gssproxyd/rpc/peer"
	"gssproxyd/rpc/rpctest"
)

// Both are callers.
var _, _ Caller = (*rpc.Client)(nil), (*rpc.Local)(nil)

// within returns a client of a server in this process, for whom p is, and how often it has connected.
func within(t *testing.T, s func() *rpc.Server, o Options) (c *Client, dials *atomic.Int32) {
	t.Helper()
	dials = new(atomic.Int32)
	o.Dial = func(context.Context) (Caller, error) {
		dials.Add(1)
		return s().Local(&peer.Info{UID: 4711}, "/run/s")
	}
	return clientAt(t, "", o), dials
}

// Calls need no socket: the daemon's own are made within it, for who is named, and connections are
// kept.
func TestDial(t *testing.T) {
	t.Setenv("GSSPROXY_SOCKET", "/nonexistent")
	s := &rpc.Server{Match: rpctest.Everybody(func(ctx context.Context, c *rpc.Call, reply []byte) ([]byte, rpc.AcceptStat) {
		if c.Conn.Peer.UID != 4711 || c.Conn.Socket != "/run/s" || limits.Payer(ctx) != 4711 {
			t.Errorf("%+v", c.Conn)
		}
		return half(ctx, c, reply)
	})}
	c, dials := within(t, func() *rpc.Server { return s }, Options{})
	for range 3 {
		if err := initiate(t, c); err != nil {
			t.Error(err)
		}
		if err := accept(t, c); err != nil {
			t.Error(err)
		}
	}
	if n := dials.Load(); n != 1 || len(s.Connections()) != 1 {
		t.Errorf("connected %d times, %d are there", n, len(s.Connections()))
	}
	c.Close()
	if n := len(s.Connections()); n != 0 {
		t.Errorf("%d connections after Close", n)
	}
}

// The errors are those of a socket: a server that has ended is replaced by another one, who has no
// service is told so, and who has too many connections, why.
func TestDialErrors(t *testing.T) {
	first, second := &rpc.Server{Match: rpctest.Everybody(half)}, &rpc.Server{Match: rpctest.Everybody(half)}
	var now atomic.Pointer[rpc.Server]
	now.Store(first)
	c, dials := within(t, now.Load, Options{})
	if err := accept(t, c); err != nil {
		t.Error(err)
	}
	if err := first.Shutdown(t.Context()); err != nil {
		t.Error(err)
	}
	now.Store(second)
	if err := accept(t, c); err != nil || dials.Load() != 2 {
		t.Errorf("%v, connected %d times", err, dials.Load())
	}
	now.Store(first)
	c, _ = within(t, now.Load, Options{WaitForDaemon: time.Hour})
	if err := accept(t, c); !errors.Is(err, rpc.ErrShutdown) {
		t.Error(err)
	}

	none := &rpc.Server{Match: func(context.Context, *rpc.Conn, uint32) (rpc.Service, bool) { return nil, false }}
	c, dials = within(t, func() *rpc.Server { return none }, Options{WaitForDaemon: time.Hour})
	if err := initiate(t, c); !errors.Is(err, rpc.ErrNoAnswer) || strings.Contains(fmt.Sprint(err), DefaultSocket) || dials.Load() != 1+maxUnanswered {
		t.Errorf("%v, connected %d times", err, dials.Load())
	}

	few := &rpc.Server{Match: rpctest.Everybody(half), Limits: limits.ForProcess()}
	few.Limits.Conns = limits.NewBudget("connections", 1)
	only, err := few.Local(&peer.Info{UID: 4711}, "/run/s")
	if err != nil {
		t.Fatal(err)
	}
	defer only.Close()
	c, _ = within(t, func() *rpc.Server { return few }, Options{})
	if err := initiate(t, c); !errors.Is(err, reason.TooManyConnections) {
		t.Error(err)
	}
}
