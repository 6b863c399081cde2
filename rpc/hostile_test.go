package rpc_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"io"
	"log/slog"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"gssproxyd/mech/reason"
	"gssproxyd/rpc"
	"gssproxyd/rpc/rpctest"
	"gssproxyd/tests/lab"
	"gssproxyd/xdr"
)

// Out of files: the connection waits, the log does not fill the disk, and when files are there
// again the call is answered.
func TestOutOfFiles(t *testing.T) { testOutOfFiles(t, func(*rpc.Server) {}) }

// A call on a connection that is still in the backlog has been sent, too.
func TestShutdownBacklog(t *testing.T) {
	var wg sync.WaitGroup
	defer wg.Wait()
	testOutOfFiles(t, func(s *rpc.Server) {
		wg.Go(func() {
			if err := s.Shutdown(t.Context()); err != nil {
				t.Error(err)
			}
		})
	})
}

// testOutOfFiles calls meanwhile while there is a call in the backlog.
func testOutOfFiles(t *testing.T, meanwhile func(*rpc.Server)) {
	var log lab.LogBuffer
	path := filepath.Join(socketDir(t), "s")
	s := &rpc.Server{Match: rpctest.Everybody(echo), Log: slog.New(slog.NewTextHandler(&log, nil))}
	rpctest.StartAt(t, path, s)
	warm := dial(t, path) // the peer package and the poller have opened what they need
	send(t, warm, call(0))
	expect(t, warm, echoed())

	fd, err := syscall.Socket(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer syscall.Close(fd)
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	none := syscall.Rlimit{Cur: 0, Max: limit.Max}
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &none); err != nil {
		t.Fatal(err)
	}
	restore := func() {
		if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
			t.Fatal(err)
		}
	}
	defer restore()
	if err := syscall.Connect(fd, &syscall.SockaddrUnix{Name: path}); err != nil {
		t.Fatal(err)
	}
	if _, err := syscall.Write(fd, call(1, 'o', 'k')); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(patience); log.String() == ""; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("nothing in the log")
		}
	}
	meanwhile(s)
	time.Sleep(100 * time.Millisecond) // a spinning loop would be through it a thousand times
	restore()
	most := 2 + int(time.Since(began)/time.Second)
	if text := log.String(); strings.Count(text, "\n") > most || !strings.Contains(text, "too many open files") {
		t.Errorf("log, %d lines at most expected:\n%s", most, text)
	}
	got := make([]byte, 30)
	want := echoed('o', 'k')
	if n, err := syscall.Read(fd, got); err != nil || !bytes.Equal(got[:n], want) {
		t.Errorf("read %x, %v; want %x", got[:max(n, 0)], err, want)
	}
}

// A rule is not taken to be unmet because there are no descriptors to look at the peer with.
func TestOutOfFilesForRule(t *testing.T) {
	var log lab.LogBuffer
	path := filepath.Join(socketDir(t), "s")
	var known atomic.Bool
	asks := func(_ context.Context, c *rpc.Conn, proc uint32) (rpc.Service, bool) {
		if proc == 2 {
			_, ok := c.Peer.Program.Get()
			known.Store(ok)
		}
		return rpctest.Handler(echo), true
	}
	told, tell := denied()
	rpctest.StartAt(t, path, &rpc.Server{Match: asks, Denied: tell, Log: slog.New(slog.NewTextHandler(&log, nil))})
	c, other, first := dial(t, path), dial(t, path), dial(t, path)
	for proc, c := range []net.Conn{c, other, first} {
		send(t, c, call(uint32(proc)))
		expect(t, c, echoed())
	}
	if !known.Load() {
		t.Skip("not run: the kernel has no SO_PEERPIDFD")
	}
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &syscall.Rlimit{Cur: 0, Max: limit.Max}); err != nil {
		t.Fatal(err)
	}
	restore := func() {
		if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
			t.Fatal(err)
		}
	}
	defer restore()
	send(t, c, call(2))
	expectClosed(t, c)
	send(t, other, call(1))
	expect(t, other, echoed())
	restore()
	send(t, other, call(2))
	expect(t, other, echoed())
	if d := <-told; d.why != reason.CallerUnknown || len(told) > 0 {
		t.Errorf("%+v", d)
	}
	if text := log.String(); !strings.Contains(text, "reason=caller-unknown") || !strings.Contains(text, "too many open files") {
		t.Errorf("log: %s", text)
	}
}

// Whatever arrives, each answer is a record with a reply header, there are no more answers than
// records, and the next connection works.
func FuzzServer(f *testing.F) {
	f.Add(call(1, 1, 2, 3, 4))
	f.Add(append(call(0), call(1)...))
	f.Add(fragments(call(1)[4:], 4, 0, 20))
	f.Add([]byte{0x80, 0, 0, 0})
	f.Add([]byte{0x80, 0x10, 0, 1, 0, 0, 0, 7})
	f.Add([]byte{0xff, 0xff, 0xff, 0xff})
	f.Add(make([]byte, 5000))
	path, _ := rpctest.Start(f, echo)
	f.Fuzz(func(t *testing.T, b []byte) {
		c := dial(t, path)
		defer c.Close()
		c.Write(b) // fails if the server closes first
		c.CloseWrite()
		answers, err := io.ReadAll(c)
		if err != nil && !strings.Contains(err.Error(), "reset") {
			t.Fatal(err)
		}
		n := 0
		for len(answers) > 0 {
			if len(answers) < 4 {
				t.Fatalf("half a mark: %x", answers)
			}
			mark := binary.BigEndian.Uint32(answers)
			size := int(mark &^ (1 << 31))
			if mark>>31 != 1 || size > len(answers)-4 {
				t.Fatalf("mark %08x before %d bytes", mark, len(answers)-4)
			}
			var h xdr.ReplyHeader
			d := xdr.NewDecoder(answers[4 : 4+size])
			if h.Decode(d); d.Err() != nil || h.MsgType != xdr.MsgReply {
				t.Fatalf("no reply header: %x", answers)
			}
			answers = answers[4+size:]
			n++
		}
		if n > len(b)/44 {
			t.Fatalf("%d answers to %d bytes", n, len(b))
		}
		next := dial(t, path)
		defer next.Close()
		send(t, next, call(0))
		expect(t, next, echoed())
	})
}
