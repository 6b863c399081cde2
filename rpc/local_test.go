package rpc_test

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"gssproxyd/limits"
	"gssproxyd/mech/reason"
	"gssproxyd/rpc"
	"gssproxyd/rpc/peer"
	"gssproxyd/rpc/rpctest"
	"gssproxyd/tests/lab"
)

// local returns a connection without a socket, of a user that is nobody else's.
func local(t *testing.T, s *rpc.Server) *rpc.Local {
	t.Helper()
	l, err := s.Local(&peer.Info{UID: 4711, GID: 4712, PID: 1}, "/run/s")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

// A call without a socket is executed as that of a connection, by the same server.
func TestLocal(t *testing.T) {
	var seen []*rpc.Conn
	s := &rpc.Server{Match: func(ctx context.Context, c *rpc.Conn, proc uint32) (rpc.Service, bool) {
		if limits.Payer(ctx) != 4711 {
			t.Errorf("the payer is %d", limits.Payer(ctx))
		}
		seen = append(seen, c)
		return rpctest.Handler(func(ctx context.Context, c *rpc.Call, reply []byte) ([]byte, rpc.AcceptStat) {
			if c.Proc == 2 {
				return append(reply, 1, 2, 3), rpc.GarbageArgs
			}
			if limits.Payer(ctx) != 4711 || c.N != uint64(len(seen)) {
				t.Errorf("call %d, payer %d", c.N, limits.Payer(ctx))
			}
			clear(c.Args[len(c.Args)/2:]) // which are ours
			return append(append(reply, byte(c.N)), c.Args...), rpc.Success
		}), true
	}}
	l := local(t, s)
	if got, err := l.Call(t.Context(), 1, []byte{5, 6}); err != nil || !bytes.Equal(got, []byte{1, 5, 0}) {
		t.Errorf("%x, %v", got, err)
	}
	for proc, want := range map[uint32]rpc.AcceptStat{2: rpc.GarbageArgs, 16: rpc.ProcUnavail} {
		got, err := l.Call(t.Context(), proc, nil)
		if e, ok := errors.AsType[*rpc.Error](err); !ok || e.Reply.Accepted.Outcome.Stat != want || got != nil {
			t.Errorf("procedure %d: %x, %v", proc, got, err)
		}
	}
	args := bytes.Repeat([]byte{7}, 300_000)
	if got, err := l.Call(t.Context(), 3, args); err != nil || len(got) != len(args)+1 || got[1] != 7 || args[len(args)-1] != 7 {
		t.Errorf("%d bytes, %v; the arguments are still there: %t", len(got), err, args[len(args)-1] == 7)
	}
	if got, err := l.Call(t.Context(), 0, nil); err != nil || len(got) != 0 { // NULL is for no handler
		t.Errorf("%x, %v", got, err)
	}
	for _, c := range seen {
		if c != seen[0] || c.Socket != "/run/s" || len(c.ID) != 10 || c.Peer.UID != 4711 {
			t.Errorf("%+v", c)
		}
	}
}

// A record has its greatest length here, too, in both directions.
func TestLocalTooLong(t *testing.T) {
	s := &rpc.Server{Match: rpctest.Everybody(func(_ context.Context, c *rpc.Call, reply []byte) ([]byte, rpc.AcceptStat) {
		return append(append(reply, c.Args...), c.Args[:c.Proc]...), rpc.Success
	})}
	l := local(t, s)
	const header = 40
	if _, err := l.Call(t.Context(), 1, make([]byte, rpc.MaxRecord-header+1)); err == nil || !strings.Contains(err.Error(), "at most 1048576 are possible") {
		t.Errorf("arguments: %v", err)
	}
	args := make([]byte, rpc.MaxRecord-header)
	if got, err := l.Call(t.Context(), 15, args); err != nil || len(got) != len(args)+15 {
		t.Errorf("the longest: %d bytes, %v", len(got), err)
	}
	tooLong := local(t, &rpc.Server{Match: rpctest.Everybody(func(_ context.Context, c *rpc.Call, reply []byte) ([]byte, rpc.AcceptStat) {
		return append(reply, make([]byte, rpc.MaxRecord)...), rpc.Success
	})})
	_, err := tooLong.Call(t.Context(), 1, nil)
	if e, ok := errors.AsType[*rpc.Error](err); !ok || e.Reply.Accepted.Outcome.Stat != rpc.SystemErr {
		t.Errorf("results: %v", err)
	}
}

// A panic of a handler is the end of one call, and one of who matches that of the connection.
func TestLocalPanic(t *testing.T) {
	var log lab.LogBuffer
	s := &rpc.Server{Log: slog.New(slog.NewTextHandler(&log, nil)), Match: func(_ context.Context, _ *rpc.Conn, proc uint32) (rpc.Service, bool) {
		if proc == 3 {
			panic("match")
		}
		return rpctest.Handler(func(ctx context.Context, c *rpc.Call, reply []byte) ([]byte, rpc.AcceptStat) {
			if c.Proc == 2 {
				explode([8]byte(c.Args))
			}
			return echo(ctx, c, reply)
		}), true
	}}
	l := local(t, s)
	_, err := l.Call(t.Context(), 2, []byte("K3Y-BYTES"))
	if e, ok := errors.AsType[*rpc.Error](err); !ok || e.Reply.Accepted.Outcome.Stat != rpc.SystemErr {
		t.Errorf("%v", err)
	}
	if got, err := l.Call(t.Context(), 1, []byte{1}); err != nil || !bytes.Equal(got, []byte{1}) {
		t.Errorf("after a panic: %x, %v", got, err)
	}
	if _, err := l.Call(t.Context(), 3, nil); !errors.Is(err, rpc.ErrNoAnswer) {
		t.Errorf("%v", err)
	}
	if _, err := l.Call(t.Context(), 1, nil); !errors.Is(err, rpc.ErrNotSent) {
		t.Errorf("after the end: %v", err)
	}
	if text := log.String(); !strings.Contains(text, "explode") || !strings.Contains(text, "panic between calls") || strings.Contains(text, "K3Y") {
		t.Error(text)
	}
}

// It is one of its user's connections until it is closed, and a refusal is as visible as that of
// another one.
func TestLocalMaxConns(t *testing.T) {
	var log lab.LogBuffer
	told, tell := denied()
	lim := limits.ForProcess()
	lim.Conns = limits.NewBudget("connections", 8)
	s := &rpc.Server{Match: rpctest.Everybody(echo), Denied: tell, Limits: lim, Log: slog.New(slog.NewTextHandler(&log, nil))}
	var list []*rpc.Local
	for {
		l, err := s.Local(&peer.Info{UID: 4711, PID: 7}, "/run/s")
		if err == nil {
			list = append(list, l)
			continue
		}
		if f, ok := errors.AsType[*rpc.Fault](err); !ok || f.Reason != reason.TooManyConnections || !errors.Is(err, reason.TooManyConnections) || errors.Is(err, reason.BadRecord) {
			t.Errorf("%v", err)
		}
		break
	}
	if n := lim.Conns.Held(4711); n == 0 || n != len(list) || len(s.Connections()) != n {
		t.Fatalf("%d are held, %d listed, of %d", n, len(s.Connections()), len(list))
	}
	if d := <-told; d.why != reason.TooManyConnections || d.conn.Peer.UID != 4711 || d.conn.Peer.PID != 7 || d.conn.Socket != "/run/s" || d.conn.ID == "" {
		t.Errorf("%+v of %+v", d, d.conn)
	}
	if text := log.String(); !strings.Contains(text, "connection refused") || !strings.Contains(text, "reason=too-many-connections") {
		t.Error(text)
	}
	for _, l := range list {
		l.Close()
		l.Close()
	}
	if n := lim.Conns.Held(4711); n != 0 || len(s.Connections()) != 0 {
		t.Errorf("%d are held, %d listed after Close", n, len(s.Connections()))
	}
	if _, err := list[0].Call(t.Context(), 1, nil); !errors.Is(err, rpc.ErrNotSent) {
		t.Errorf("after Close: %v", err)
	}
}

// Who is served by nothing gets no answer, and the connection is given back.
func TestLocalNoService(t *testing.T) {
	lim := limits.ForProcess()
	s := &rpc.Server{Limits: lim, Match: func(context.Context, *rpc.Conn, uint32) (rpc.Service, bool) { return nil, false }}
	l := local(t, s)
	if _, err := l.Call(t.Context(), 1, nil); !errors.Is(err, rpc.ErrNoAnswer) {
		t.Error(err)
	}
	if n := lim.Conns.Held(4711); n != 0 {
		t.Errorf("%d connections are held", n)
	}
}

// What is too much is refused with a reason, and who is to know is told.
func TestLocalFaults(t *testing.T) {
	begun, finish := make(chan bool), make(chan bool)
	for _, test := range []struct {
		why    reason.ID
		limits func(*limits.Limits)
	}{
		{reason.TooMuchBuffered, func(l *limits.Limits) { l.Buffers = limits.NewBudget("bytes", 1000) }},
		{reason.TooManyLargeCalls, func(l *limits.Limits) { l.Turns = limits.NewTurns("large calls", 1, 1) }},
	} {
		told, tell := denied()
		lim := limits.ForProcess()
		test.limits(lim)
		s := &rpc.Server{Limits: lim, Denied: tell, Match: rpctest.Everybody(func(_ context.Context, c *rpc.Call, reply []byte) ([]byte, rpc.AcceptStat) {
			begun <- true
			<-finish
			return reply, rpc.Success
		})}
		large, first := make([]byte, 20_000), make(chan error, 1)
		if test.why == reason.TooManyLargeCalls {
			l := local(t, s)
			go func() {
				_, err := l.Call(t.Context(), 1, large)
				first <- err
			}()
			<-begun
		} else {
			first <- nil
		}
		l := local(t, s)
		if _, err := l.Call(t.Context(), 1, large); !errors.Is(err, test.why) {
			t.Errorf("%s: %v", test.why, err)
		}
		if d := <-told; d.why != test.why || d.conn.Peer.UID != 4711 {
			t.Errorf("%+v of %+v", d, d.conn)
		}
		if len(first) == 0 {
			finish <- true
		}
		if err := <-first; err != nil {
			t.Error(err)
		}
		if n := lim.Buffers.Held(4711); n != 0 {
			t.Errorf("%d bytes are held", n)
		}
	}
}

// hanging is a server of which proc 2 says that it has begun, and waits for finish or the end of its
// context.
func hanging() (s *rpc.Server, begun chan struct{}, finish chan struct{}) {
	begun, finish = make(chan struct{}, 10), make(chan struct{})
	return &rpc.Server{Match: rpctest.Everybody(func(ctx context.Context, c *rpc.Call, reply []byte) ([]byte, rpc.AcceptStat) {
		if c.Proc == 2 {
			begun <- struct{}{}
			select {
			case <-finish:
			case <-ctx.Done():
			}
		}
		return echo(ctx, c, reply)
	})}, begun, finish
}

// A call that is being executed is listed, carries no second one, and holds the connection that is
// closed meanwhile until it has ended.
func TestLocalBusy(t *testing.T) {
	s, begun, _ := hanging()
	lim := limits.ForProcess()
	s.Limits = lim
	l := local(t, s)
	done := make(chan error)
	go func() {
		_, err := l.Call(t.Context(), 2, nil)
		done <- err
	}()
	<-begun
	list := s.Connections()
	if len(list) != 1 || list[0].Socket != "/run/s" || list[0].InCall != 1 || list[0].Proc != 2 || list[0].Calls != 1 {
		t.Errorf("%+v", list)
	}
	if _, err := l.Call(t.Context(), 1, nil); err == nil || !strings.Contains(err.Error(), "another call") {
		t.Errorf("a second call: %v", err)
	}
	l.Close() // which ends the call's context
	if err := <-done; !errors.Is(err, rpc.ErrNoAnswer) {
		t.Error(err)
	}
	if n := lim.Conns.Held(4711); n != 0 || len(s.Connections()) > 0 {
		t.Errorf("%d are held, %d listed", n, len(s.Connections()))
	}
}

// The end of the caller's context is that of the handler's, and of the connection.
func TestLocalContext(t *testing.T) {
	s, begun, _ := hanging()
	l := local(t, s)
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		<-begun
		cancel()
	}()
	if _, err := l.Call(ctx, 2, nil); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	if _, err := l.Call(t.Context(), 1, nil); !errors.Is(err, rpc.ErrNotSent) {
		t.Errorf("the connection is good: %v", err)
	}
	if _, err := local(t, s).Call(ctx, 1, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("with a context that has ended: %v", err)
	}
}

// Shutdown waits for calls in flight, not for connections without; there is no later one.
func TestLocalShutdown(t *testing.T) {
	s, begun, finish := hanging()
	busy, idle := local(t, s), local(t, s)
	done, down := make(chan error), make(chan error)
	go func() {
		_, err := busy.Call(t.Context(), 2, nil)
		done <- err
	}()
	<-begun
	go func() { down <- s.Shutdown(t.Context()) }()
	lab.Await(t, "the end of the service", func() bool {
		_, err := s.Local(&peer.Info{UID: 4711}, "/run/s")
		return errors.Is(err, rpc.ErrShutdown)
	})
	if _, err := idle.Call(t.Context(), 1, nil); !errors.Is(err, rpc.ErrNotSent) || !errors.Is(err, rpc.ErrShutdown) {
		t.Errorf("a late call: %v", err)
	}
	select {
	case err := <-down:
		t.Fatalf("Shutdown has not waited: %v", err)
	case err := <-done:
		t.Fatalf("the call has ended: %v", err)
	default:
	}
	close(finish)
	if err := <-done; err != nil {
		t.Error(err)
	}
	if err := <-down; err != nil {
		t.Error(err)
	}
}

// Where Shutdown has waited enough the call's context ends.
func TestLocalCut(t *testing.T) {
	s, begun, _ := hanging()
	l := local(t, s)
	done := make(chan error)
	go func() {
		_, err := l.Call(t.Context(), 2, nil)
		done <- err
	}()
	<-begun
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := s.Shutdown(ctx); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	if err := <-done; !errors.Is(err, rpc.ErrNoAnswer) {
		t.Error(err)
	}
}

// Connections with and without a socket come and go, and so does the server.
func TestLocalRace(t *testing.T) {
	lim := limits.ForProcess()
	s := &rpc.Server{Match: rpctest.Everybody(echo), Limits: lim}
	path := filepath.Join(socketDir(t), "s")
	rpctest.StartAt(t, path, s)
	var wg sync.WaitGroup
	for i := range 4 {
		wg.Go(func() {
			for {
				l, err := s.Local(&peer.Info{UID: 4711}, path)
				if errors.Is(err, rpc.ErrShutdown) {
					return
				} else if err != nil {
					t.Error(err)
					return
				}
				if i%2 == 0 {
					go l.Close()
				}
				if got, err := l.Call(t.Context(), 1, []byte{byte(i)}); err == nil && !bytes.Equal(got, []byte{byte(i)}) ||
					err != nil && !errors.Is(err, rpc.ErrNotSent) && !errors.Is(err, rpc.ErrNoAnswer) {
					t.Errorf("%x, %v", got, err)
				}
				l.Close()
			}
		})
	}
	c := dialClient(t, path)
	for range 200 {
		if _, err := c.Call(t.Context(), 1, nil); err != nil {
			t.Error(err)
		}
		s.Connections()
	}
	if err := s.Shutdown(t.Context()); err != nil {
		t.Error(err)
	}
	wg.Wait()
	if n := lim.Conns.Held(4711); n != 0 {
		t.Errorf("%d are held", n)
	}
}

// What is wanted to know of the peer is read when the connection begins.
func TestLocalNeeds(t *testing.T) {
	p, err := peer.FromPID(int32(os.Getpid()))
	if err != nil {
		t.Fatal(err)
	}
	var asked *rpc.Conn
	s := &rpc.Server{Match: rpctest.Everybody(echo), Needs: func(c *rpc.Conn) peer.Evidence {
		asked = c
		return peer.EvidenceProgram
	}}
	l, err := s.Local(p, "/run/s")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if asked == nil || asked.Peer != p || asked.Socket != "/run/s" {
		t.Errorf("%+v", asked)
	}
}
