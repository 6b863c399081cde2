package interposer

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"gssproxyd/mech"
	"gssproxyd/rpc"
	"gssproxyd/rpc/rpctest"
	"gssproxyd/xdr"
)

func TestAgain(t *testing.T) {
	refused := &net.OpError{Op: "dial", Err: syscall.ECONNREFUSED}
	for _, tt := range []struct {
		name     string
		patience time.Duration
		proc     xdr.Proc
		errs     []error // of one attempt after the other; the last of all the others
		again    int     // how often a call is made again; -1: until patience ends
		within   time.Duration
	}{
		{"refused", time.Minute, xdr.ProcAcceptSecContext, []error{refused}, -1, time.Minute},
		{"no socket", time.Minute, xdr.ProcInitSecContext, []error{syscall.ENOENT}, -1, time.Minute},
		{"closed before the call", time.Minute, xdr.ProcAcceptSecContext, []error{rpc.ErrNotSent}, -1, time.Minute},
		{"no patience", 0, xdr.ProcInitSecContext, []error{refused}, 0, 0},
		{"no patience, no answer", 0, xdr.ProcInitSecContext, []error{rpc.ErrNoAnswer}, 0, 0},
		{"little patience", 5 * time.Millisecond, xdr.ProcInitSecContext, []error{refused}, 1, 2 * time.Millisecond},
		{"no answer", time.Minute, xdr.ProcInitSecContext, []error{rpc.ErrNoAnswer}, maxUnanswered, 20 * time.Millisecond},
		{"reset", time.Minute, xdr.ProcAcquireCred, []error{syscall.ECONNRESET}, maxUnanswered, 20 * time.Millisecond},
		{"half a call", time.Minute, xdr.ProcAcquireCred, []error{syscall.EPIPE}, maxUnanswered, 20 * time.Millisecond},
		{"no answer for a token", time.Minute, xdr.ProcAcceptSecContext, []error{rpc.ErrNoAnswer}, 0, 0},
		{"reset with a token", time.Minute, xdr.ProcAcceptSecContext, []error{syscall.ECONNRESET}, 0, 0},
		{"half a token", time.Minute, xdr.ProcAcceptSecContext, []error{syscall.EPIPE}, 0, 0},
		{"two restarts", time.Minute, xdr.ProcInitSecContext,
			[]error{rpc.ErrNoAnswer, refused, rpc.ErrNoAnswer, refused, refused, rpc.ErrNoAnswer, rpc.ErrNoAnswer, rpc.ErrNoAnswer, rpc.ErrNoAnswer}, 8, time.Second},
		{"no permission", time.Minute, xdr.ProcInitSecContext, []error{syscall.EACCES}, 0, 0},
		{"not a daemon", time.Minute, xdr.ProcInitSecContext, []error{errors.New("the reply has no header")}, 0, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var a attempts
				begun := time.Now()
				n := 0
				for a.again(t.Context(), tt.patience, tt.proc, fmt.Errorf("rpc: %w", tt.errs[min(n, len(tt.errs)-1)])) {
					if n++; n > 10000 {
						t.Fatal("there is no end")
					}
				}
				took := time.Since(begun)
				if took > tt.within || tt.again >= 0 && n != tt.again || tt.again < 0 && took < tt.patience-maxPause {
					t.Errorf("%d times in %v, want %d within %v", n, took, tt.again, tt.within)
				}
			})
		})
	}
}

func TestAgainUntilContextEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
		defer cancel()
		begun := time.Now()
		for a := (attempts{}); a.again(ctx, time.Hour, xdr.ProcInitSecContext, syscall.ENOENT); {
		}
		if took := time.Since(begun); took != 3*time.Second {
			t.Errorf("it took %v", took)
		}
	})
}

// silent reads a call on each connection and closes it without an answer. After n of them it is
// gone, and then run, before the last one is closed.
func silent(t *testing.T, path string, n int, then func()) (calls *atomic.Int32) {
	t.Helper()
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	calls = new(atomic.Int32)
	done := make(chan struct{})
	t.Cleanup(func() {
		l.Close()
		<-done
	})
	go func() {
		defer close(done)
		for {
			nc, err := l.Accept()
			if err != nil {
				return
			}
			mark := make([]byte, 4)
			if _, err := io.ReadFull(nc, mark); err != nil {
				t.Error(err)
			}
			if _, err := io.CopyN(io.Discard, nc, int64(binary.BigEndian.Uint32(mark)&^(1<<31))); err != nil {
				t.Error(err)
			}
			last := int(calls.Add(1)) == n
			if last {
				l.Close()
				then()
			}
			nc.Close()
			if last {
				return
			}
		}
	}()
	return calls
}

func initiate(t *testing.T, c *Client) error {
	s, _, err := c.InitSecContext(t.Context(), InitRequest{Target: HostbasedName("HTTP", "www"), Cred: ServiceCred})
	if err == nil {
		s.Close()
	}
	return err
}

func accept(t *testing.T, c *Client) error {
	s, _, err := c.AcceptSecContext(t.Context(), AcceptRequest{Token: []byte("AP-REQ")})
	if err == nil {
		s.Close()
	}
	return err
}

// half answers every call of INIT and ACCEPT with a context that is half established.
func half(_ context.Context, c *rpc.Call, reply []byte) ([]byte, rpc.AcceptStat) {
	w := xdr.Some(xdr.Ctx{Mech: []byte(mech.KRB5), ExportedContextToken: []byte("half")})
	if xdr.Proc(c.Proc) == xdr.ProcInitSecContext {
		return (&xdr.ResInitSecContext{ContextHandle: w}).Append(reply), rpc.Success
	}
	return (&xdr.ResAcceptSecContext{ContextHandle: w}).Append(reply), rpc.Success
}

// A daemon that is killed has another one in its place a moment later.
func TestExchangedDaemon(t *testing.T) {
	path := filepath.Join(socketDir(t), "s")
	ready := make(chan struct{})
	calls := silent(t, path, 1, func() { close(ready) }) // nobody is there yet
	c := clientAt(t, path, Options{WaitForDaemon: time.Minute})
	done := make(chan error, 1)
	go func() { done <- initiate(t, c) }()
	<-ready
	rpctest.StartAt(t, path, &rpc.Server{Match: rpctest.Everybody(half)})
	if err := <-done; err != nil || calls.Load() != 1 {
		t.Errorf("%v, %d calls at the first daemon", err, calls.Load())
	}
}

// A token that may have been accepted is not sent again: it would be a replay.
func TestTokenCountsOnce(t *testing.T) {
	path := filepath.Join(socketDir(t), "s")
	calls := silent(t, path, 2, func() {})
	c := clientAt(t, path, Options{WaitForDaemon: time.Minute})
	if err := accept(t, c); !errors.Is(err, rpc.ErrNoAnswer) || calls.Load() != 1 {
		t.Errorf("%v after %d calls", err, calls.Load())
	}
}

// A caller without a service gets no answer however long it waits.
func TestNoServiceIsNotWaitedFor(t *testing.T) {
	for _, tt := range []struct {
		wait  time.Duration
		calls int32
	}{{time.Hour, 1 + maxUnanswered}, {0, 1}} {
		path := filepath.Join(socketDir(t), "s")
		calls := silent(t, path, 100, nil)
		err := initiate(t, clientAt(t, path, Options{WaitForDaemon: tt.wait}))
		if !errors.Is(err, rpc.ErrNoAnswer) || calls.Load() != tt.calls {
			t.Errorf("WaitForDaemon %v: %v after %d calls, want %d", tt.wait, err, calls.Load(), tt.calls)
		}
	}
}

func TestWaitEnds(t *testing.T) {
	path := filepath.Join(socketDir(t), "s")
	if err := clientAt(t, path, Options{}).Ping(t.Context()); !errors.Is(err, syscall.ENOENT) {
		t.Errorf("without WaitForDaemon: %v", err)
	}

	c := clientAt(t, path, Options{WaitForDaemon: time.Hour})
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if err := c.Ping(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("with a deadline: %v", err)
	}
	done := make(chan error, 1)
	go func() { done <- c.Ping(t.Context()) }()
	c.Close()
	if err := <-done; !errors.Is(err, net.ErrClosed) {
		t.Errorf("after Close: %v", err)
	}
}

// While daemons end as they should and follow each other no call fails, not even one whose token
// counts once.
func TestCallsDuringRestarts(t *testing.T) {
	path := filepath.Join(socketDir(t), "s")
	start := func() (stop func()) {
		d := &rpc.Server{Match: rpctest.Everybody(half)}
		end := rpctest.StartAt(t, path, d)
		return func() {
			if err := d.Shutdown(t.Context()); err != nil {
				t.Error(err)
			}
			end()
		}
	}
	stop := start()
	c := clientAt(t, path, Options{WaitForDaemon: time.Minute})
	progress := make(chan struct{}, 1)
	ended := make(chan struct{})
	var wg sync.WaitGroup
	for n := range 8 {
		wg.Go(func() {
			for {
				select {
				case <-ended:
					return
				default:
				}
				call := initiate
				if n%2 == 0 {
					call = accept
				}
				if err := call(t, c); err != nil {
					t.Error(err)
				}
				select {
				case progress <- struct{}{}:
				default:
				}
			}
		})
	}
	for range 10 {
		for range 20 {
			<-progress
		}
		stop()
		stop = start()
	}
	close(ended)
	wg.Wait()
}
