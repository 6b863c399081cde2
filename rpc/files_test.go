package rpc_test

import (
	"bytes"
	"context"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"gssproxyd/rpc"
	"gssproxyd/rpc/rpctest"
	"gssproxyd/tests/lab"
)

// sent is a file to be sent of which the test sees when the last descriptor has been closed.
type sent struct {
	*os.File
	read *os.File
}

func pipe(t *testing.T) sent {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		r.Close()
		w.Close()
	})
	return sent{w, r}
}

// closed waits until nobody has the file.
func (s sent) closed(t *testing.T, what string) {
	t.Helper()
	s.File.Close()
	s.read.SetReadDeadline(time.Now().Add(patience))
	if _, err := io.Copy(io.Discard, s.read); err != nil {
		t.Errorf("%s: the file is still open: %v", what, err)
	}
	s.read.Close()
}

// sendWith sends bytes with files.
func sendWith(t *testing.T, c *net.UnixConn, b []byte, files ...sent) {
	t.Helper()
	var fds []int
	for _, f := range files {
		fds = append(fds, int(f.Fd()))
	}
	if n, _, err := c.WriteMsgUnix(b, unix.UnixRights(fds...), nil); err != nil || n != len(b) {
		t.Fatalf("%d bytes, %v", n, err)
	}
}

// takes is a server that takes files. It says how many there were: what proc 1 has brought is written
// to and left, what proc 2 has is taken to where it returns, proc 3 panics, and proc 4 waits.
func takes(t *testing.T) (path string, taken chan *os.File, begun, finish chan bool) {
	t.Helper()
	taken, begun, finish = make(chan *os.File, 10), make(chan bool), make(chan bool)
	path = filepath.Join(socketDir(t), "s")
	rpctest.StartAt(t, path, &rpc.Server{Files: true, Match: func(_ context.Context, _ *rpc.Conn, proc uint32) (rpc.Service, bool) {
		h := rpctest.Handler(func(_ context.Context, c *rpc.Call, reply []byte) ([]byte, rpc.AcceptStat) {
			brought := byte(0)
			if c.File != nil {
				brought = 1
				if flags, err := unix.FcntlInt(c.File.Fd(), unix.F_GETFD, 0); err != nil || flags&unix.FD_CLOEXEC == 0 {
					t.Errorf("flags %x, %v", flags, err)
				}
			}
			switch c.Proc {
			case 2:
				taken <- c.File
				c.File = nil
			case 3:
				panic("with a file")
			case 4:
				begun <- true
				<-finish
			}
			return append(reply, brought), rpc.Success
		})
		switch proc {
		case 9:
			return nil, false
		case 8:
			return atOnce{h, func() int { return 3 }}, true
		}
		return h, true
	}})
	return path, taken, begun, finish
}

// A call brings one file, which is the handler's if it takes it and closed otherwise. What comes in
// any other way is closed.
func TestFiles(t *testing.T) {
	path, taken, begun, finish := takes(t)
	files := func() int {
		list, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Fatal(err)
		}
		return len(list)
	}
	warm := dial(t, path)
	send(t, warm, call(1))
	expect(t, warm, echoed(0))
	before := files()

	c := dial(t, path)
	first, second := pipe(t), pipe(t)
	sendWith(t, c, call(1), first)
	expect(t, c, echoed(1))
	first.closed(t, "left by the handler")
	send(t, c, call(1))
	expect(t, c, echoed(0)) // the next call has none

	first = pipe(t)
	sendWith(t, c, call(2), first)
	expect(t, c, echoed(1))
	f := <-taken
	if _, err := f.WriteString("taken"); err != nil {
		t.Error(err)
	}
	f.Close()
	first.closed(t, "taken by the handler")

	first = pipe(t)
	sendWith(t, c, call(3), first)
	receive(t, c)
	first.closed(t, "panic")

	// In halves: with the second one, and with both.
	first = pipe(t)
	send(t, c, call(1)[:10])
	wasRead(t, c)
	sendWith(t, c, call(1)[10:], first)
	expect(t, c, echoed(1))
	first.closed(t, "with the second half")
	first = pipe(t)
	sendWith(t, c, call(2)[:10], first)
	sendWith(t, c, call(2)[10:], second)
	expect(t, c, echoed(1))
	second.closed(t, "a second one")
	f = <-taken
	f.Close()
	first.closed(t, "the first of two")
	first, second = pipe(t), pipe(t)
	sendWith(t, c, call(1), first, second)
	expect(t, c, echoed(1))
	first.closed(t, "the first of two at once")
	second.closed(t, "the second of two at once")

	// Behind another call that has not been read yet: whose it is cannot be told.
	first = pipe(t)
	send(t, c, call(4))
	<-begun
	send(t, c, call(1))
	sendWith(t, c, call(1), first)
	finish <- true
	for range 3 {
		expect(t, c, echoed(0))
	}
	first.closed(t, "with another call")

	// For nobody.
	for what, b := range map[string][]byte{"NULL": call(0), "no procedure": call(16), "in parallel": call(8)} {
		first = pipe(t)
		sendWith(t, c, b, first)
		receive(t, c)
		first.closed(t, what)
	}
	for what, b := range map[string][]byte{"no service": call(9), "no call": record([]byte("no call at all")), "too long": {0xff, 0xff, 0xff, 0xff}} {
		d := dial(t, path)
		first = pipe(t)
		sendWith(t, d, b, first)
		expectClosed(t, d)
		d.Close()
		first.closed(t, what)
	}
	d := dial(t, path)
	first = pipe(t)
	sendWith(t, d, call(1)[:20], first)
	wasRead(t, d)
	d.Close()
	first.closed(t, "half a call")

	c.Close()
	lab.Await(t, "no more descriptors than before", func() bool { return files()-before <= 0 })
}

// A server that takes none never has them.
func TestNoFiles(t *testing.T) {
	path, _ := rpctest.Start(t, func(_ context.Context, c *rpc.Call, reply []byte) ([]byte, rpc.AcceptStat) {
		if c.File != nil {
			t.Error("a file has come")
		}
		return reply, rpc.Success
	})
	c, f := dial(t, path), pipe(t)
	sendWith(t, c, call(1), f)
	expect(t, c, echoed())
	f.closed(t, "not taken")
}

// The client sends a file with a call of any length, and keeps it.
func TestCallWith(t *testing.T) {
	path := filepath.Join(socketDir(t), "s")
	rpctest.StartAt(t, path, &rpc.Server{Files: true, Match: rpctest.Everybody(func(ctx context.Context, c *rpc.Call, reply []byte) ([]byte, rpc.AcceptStat) {
		if c.File == nil {
			return reply, rpc.GarbageArgs
		}
		c.File.Write([]byte{byte(c.N)})
		return echo(ctx, c, reply)
	})})
	c, f := dialClient(t, path), pipe(t)
	for n, length := range []int{0, 10, 1_000_000} { // more than a socket takes at once
		args := bytes.Repeat([]byte{byte(length)}, length)
		if got, err := c.CallWith(t.Context(), 1, args, f.File); err != nil || !bytes.Equal(got, args) {
			t.Fatalf("%d bytes: %d, %v", length, len(got), err)
		}
		var b [1]byte
		if _, err := f.read.Read(b[:]); err != nil || b[0] != byte(n+1) {
			t.Errorf("%d bytes: another file: %x, %v", length, b, err)
		}
	}
	if _, err := c.Call(t.Context(), 1, nil); err == nil {
		t.Error("the file has come again")
	}
	f.File.Close()
	if _, err := c.CallWith(t.Context(), 1, nil, f.File); err == nil || !strings.Contains(err.Error(), "closed file") {
		t.Errorf("with a file that is closed: %v", err)
	}
}
