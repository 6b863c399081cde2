package rpc_test

import (
	"bytes"
	"context"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"gssproxyd/rpc"
	"gssproxyd/rpc/rpctest"
)

// atOnce is a service that answers so many calls of a connection at once.
type atOnce struct {
	rpctest.Handler
	n func() int
}

func (s atOnce) Parallel() int { return s.n() }

// many is the Match of a server that answers n calls of a connection at once, of everybody.
func many(n func() int, h rpctest.Handler) func(context.Context, *rpc.Conn, uint32) (rpc.Service, bool) {
	return func(context.Context, *rpc.Conn, uint32) (rpc.Service, bool) { return atOnce{h, n}, true }
}

// parallel starts a server that executes n calls of a connection at once. Proc 2 waits for finish,
// and says when it has begun; the others echo.
func parallel(t *testing.T, n int) (s *rpc.Server, path string, begun chan struct{}, finish chan struct{}) {
	begun, finish = make(chan struct{}, 100), make(chan struct{})
	path = filepath.Join(socketDir(t), "s")
	s = &rpc.Server{Match: many(func() int { return n }, func(ctx context.Context, c *rpc.Call, reply []byte) ([]byte, rpc.AcceptStat) {
		if c.Proc == 2 {
			begun <- struct{}{}
			select {
			case <-finish:
			case <-ctx.Done():
			}
		}
		return echo(ctx, c, reply)
	})}
	rpctest.StartAt(t, path, s)
	return s, path, begun, finish
}

// A call that takes its time keeps no other call of the connection waiting, until there are too
// many of them.
func TestParallel(t *testing.T) {
	_, path, begun, finish := parallel(t, 3)
	c := dial(t, path)
	send(t, c, append(call(2, 1, 1, 1, 1), call(2, 1, 1, 1, 1)...))
	<-begun
	<-begun
	for i := range byte(100) { // through the place that is left
		args := bytes.Repeat([]byte{i}, 4+int(i)*400)
		send(t, c, call(1, args...))
		expect(t, c, echoed(args...))
	}
	send(t, c, call(0)) // NULL is a call like others
	expect(t, c, echoed())
	send(t, c, append(call(2, 1, 1, 1, 1), call(1, 2, 2, 2, 2)...)) // no place for the second
	<-begun
	close(finish)
	got := map[byte]int{}
	for range 4 {
		b := receive(t, c)
		got[b[len(b)-1]]++
	}
	if got[1] != 3 || got[2] != 1 {
		t.Errorf("%v", got)
	}
}

// A connection whose calls were executed beside it, and are not any more, has no deadline left
// over.
func TestParallelNoMore(t *testing.T) {
	inTime(t, func(timeout time.Duration) bool { return testParallelNoMore(t, timeout) })
}

func testParallelNoMore(t *testing.T, timeout time.Duration) bool {
	var n atomic.Int32
	n.Store(2)
	path := filepath.Join(socketDir(t), "s")
	s := &rpc.Server{Match: many(func() int { return int(n.Load()) }, echo)}
	s.SetTimeout(timeout)
	rpctest.StartAt(t, path, s)
	c := dial(t, path)
	send(t, c, call(1, 1, 1, 1, 1))
	if !answered(c, echoed(1, 1, 1, 1)) {
		return false
	}
	n.Store(1)
	time.Sleep(2 * timeout) // a deadline that is left over is past
	send(t, c, call(1, 2, 2, 2, 2))
	expect(t, c, echoed(2, 2, 2, 2))
	return true
}

// At most so many at once, and every one is answered, once.
func TestParallelLimit(t *testing.T) {
	var now, most atomic.Int32
	path := filepath.Join(socketDir(t), "s")
	rpctest.StartAt(t, path, &rpc.Server{Match: many(func() int { return 4 }, func(ctx context.Context, c *rpc.Call, reply []byte) ([]byte, rpc.AcceptStat) {
		n := now.Add(1)
		defer now.Add(-1)
		for m := most.Load(); n > m && !most.CompareAndSwap(m, n); m = most.Load() {
		}
		return echo(ctx, c, reply)
	})})
	c := dial(t, path)
	const calls = 2000
	sent := make(chan struct{})
	go func() {
		defer close(sent)
		for i := range calls {
			c.Write(call(1, byte(i>>8), byte(i), 0, 0))
		}
	}()
	seen := map[[2]byte]bool{}
	for range calls {
		b := receive(t, c)
		key := [2]byte(b[len(b)-4:])
		if seen[key] {
			t.Fatalf("%x is answered twice", key)
		}
		seen[key] = true
	}
	<-sent
	if most.Load() > 4 {
		t.Errorf("%d at once", most.Load())
	}
}

// The end waits for them, as for other calls.
func TestParallelShutdown(t *testing.T) {
	s, path, begun, finish := parallel(t, 3)
	c := dial(t, path)
	send(t, c, append(call(2, 1, 1, 1, 1), call(2, 1, 1, 1, 1)...))
	<-begun
	<-begun
	done := make(chan error)
	go func() { done <- s.Shutdown(t.Context()) }()
	close(finish)
	expect(t, c, echoed(1, 1, 1, 1))
	expect(t, c, echoed(1, 1, 1, 1))
	expectClosed(t, c)
	if err := <-done; err != nil {
		t.Error(err)
	}

	s, path, begun, _ = parallel(t, 3)
	c = dial(t, path)
	send(t, c, call(2))
	<-begun
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := s.Shutdown(ctx); err == nil {
		t.Error("there was no patience")
	}
}

// A client that goes away, reads nothing or sends nonsense behind a call ends the connection and
// nothing else.
func TestParallelClientGone(t *testing.T) {
	_, path, begun, finish := parallel(t, 3)
	c := dial(t, path)
	send(t, c, call(2))
	<-begun
	c.Close()
	d := dial(t, path)
	send(t, d, append(call(2, 1, 1, 1, 1), record([]byte("no call at all"))...))
	<-begun
	close(finish)
	expect(t, d, echoed(1, 1, 1, 1)) // what came before is answered
	expectClosed(t, d)
}
