package rpc_test

import (
	"context"
	"encoding/binary"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"gssproxyd/limits"
	"gssproxyd/mech/reason"
	"gssproxyd/rpc"
	"gssproxyd/rpc/rpctest"
	"gssproxyd/tests/lab"
)

// What is done for a call the caller pays for.
func TestCallerPays(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root to call as another user")
	}
	path, _ := rpctest.Start(t, func(ctx context.Context, _ *rpc.Call, reply []byte) ([]byte, rpc.AcceptStat) {
		return binary.BigEndian.AppendUint32(reply, limits.Payer(ctx)), rpc.Success
	})
	for name, mode := range map[string]os.FileMode{filepath.Dir(path): 0o755, path: 0o666} {
		if err := os.Chmod(name, mode); err != nil {
			t.Fatal(err)
		}
	}
	var c net.Conn
	as(t, 65534, func() (err error) {
		c, err = net.Dial("unix", path)
		return err
	})
	defer c.Close()
	send(t, c, call(1))
	expect(t, c, echoed(0, 0, 0xff, 0xfe))
}

// Large calls have their turn, one at a time here; the others do not wait for them, and a call that
// ends its turn early lets the next one begin.
func TestLargeCalls(t *testing.T) {
	lim := limits.ForProcess()
	lim.Turns = limits.NewTurns("large calls", 1, 100)
	begun, finish := make(chan byte, 10), make(chan bool)
	path := filepath.Join(socketDir(t), "s")
	rpctest.StartAt(t, path, &rpc.Server{Limits: lim, Match: rpctest.Everybody(func(ctx context.Context, c *rpc.Call, reply []byte) ([]byte, rpc.AcceptStat) {
		if len(c.Args) > 4 {
			begun <- c.Args[0]
			if <-finish {
				limits.EndTurn(ctx)
				begun <- 0
				<-finish
			}
		}
		return reply, rpc.Success
	})})
	large := make([]byte, 20_000)
	first, second, small := dial(t, path), dial(t, path), dial(t, path)
	large[0] = 1
	send(t, first, call(1, large...))
	if n := <-begun; n != 1 {
		t.Fatalf("call %d has begun", n)
	}
	large[0] = 2
	send(t, second, call(1, large...))
	send(t, small, call(1))
	expect(t, small, echoed())
	if len(begun) > 0 {
		t.Error("the second has not waited for its turn")
	}
	finish <- true
	if a, b := <-begun, <-begun; a+b != 2 { // in any order
		t.Errorf("%d and %d have come about", a, b)
	}
	close(finish)
	expect(t, first, echoed())
	expect(t, second, echoed())
}

// Of more large calls than may wait, the last one's connection is closed.
func TestTooManyLargeCalls(t *testing.T) {
	lim := limits.ForProcess()
	lim.Turns = limits.NewTurns("large calls", 1, 2)
	told, tell := denied()
	begun, finish, log := make(chan bool, 10), make(chan bool), make(lines, 100)
	path := filepath.Join(socketDir(t), "s")
	rpctest.StartAt(t, path, &rpc.Server{
		Limits: lim, Denied: tell, Log: slog.New(slog.NewTextHandler(log, nil)),
		Match: rpctest.Everybody(func(_ context.Context, _ *rpc.Call, reply []byte) ([]byte, rpc.AcceptStat) {
			begun <- true
			<-finish
			return reply, rpc.Success
		}),
	})
	large := make([]byte, 20_000)
	var waiting []net.Conn
	line := ""
	for line == "" { // the second waits, and a later one is too many
		c := dial(t, path)
		send(t, c, call(1, large...))
		waiting = append(waiting, c)
		if len(waiting) == 1 {
			<-begun
			continue
		}
		select {
		case line = <-log:
		case <-time.After(10 * time.Millisecond): // it waits, or has not come so far: one more will be too many
		}
	}
	if !strings.Contains(line, "reason=too-many-large-calls") {
		t.Errorf("log: %s", line)
	}
	if d := <-told; d.why != reason.TooManyLargeCalls {
		t.Errorf("%+v", d)
	}
	close(finish)
	expect(t, waiting[0], echoed())
}

// Whoever sends nonsense over and over does not fill the log, and the next line says how much there
// was.
func TestComplaints(t *testing.T) {
	var log lab.LogBuffer
	path := filepath.Join(socketDir(t), "s")
	told, tell := denied()
	rpctest.StartAt(t, path, &rpc.Server{Match: rpctest.Everybody(echo), Denied: tell, Log: slog.New(slog.NewTextHandler(&log, nil))})
	for range 200 {
		c := dial(t, path)
		send(t, c, record([]byte("no call at all")))
		expectClosed(t, c)
		c.Close()
		select {
		case d := <-told: // of each, and before the connection is closed
			if d.why != reason.BadRecord || d.text == "" {
				t.Errorf("%+v", d)
			}
		default:
			t.Error("nobody is told")
		}
	}
	c := dial(t, path)
	send(t, c, call(1))
	expect(t, c, echoed())
	c.Close()
	if len(told) > 0 {
		t.Errorf("%+v", <-told)
	}
	text := log.String()
	if n := strings.Count(text, "reason=bad-record"); n < 20 || n > 100 { // twenty, and one a second
		t.Errorf("%d lines", n)
	}
}
