package rpc_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"gssproxyd/rpc"
	"gssproxyd/rpc/rpctest"
	"gssproxyd/xdr"
)

func dialClient(t testing.TB, path string) *rpc.Client {
	t.Helper()
	c, err := rpc.Dial(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func TestClient(t *testing.T) {
	path, _ := rpctest.Start(t, func(ctx context.Context, c *rpc.Call, reply []byte) ([]byte, rpc.AcceptStat) {
		if c.Proc == 2 {
			return reply, rpc.GarbageArgs
		}
		return echo(ctx, c, reply)
	})
	c := dialClient(t, path)
	var kept [][]byte
	for _, n := range []int{0, 4, 100, 5000, rpc.MaxRecord - 40} {
		args := []byte(strings.Repeat("a", n))
		if n > 0 {
			args[0] = byte(len(kept))
		}
		if n > rpc.MaxRecord-24-40 {
			args = args[:rpc.MaxRecord-40]
		}
		got, err := c.Call(t.Context(), 1, args)
		if err != nil {
			t.Fatal(err)
		}
		if string(got) != string(args) {
			t.Errorf("%d bytes came back as %d", len(args), len(got))
		}
		kept = append(kept, got)
	}
	for i, b := range kept[1:] {
		if b[0] != byte(i+1) {
			t.Error("results do not belong to the caller")
		}
	}
	if _, err := c.Call(t.Context(), 1, make([]byte, rpc.MaxRecord-39)); err == nil || !strings.Contains(err.Error(), "at most 1048576") {
		t.Errorf("a call that is too long: %v", err)
	}
	var refusal *rpc.Error
	if _, err := c.Call(t.Context(), 2, nil); !errors.As(err, &refusal) || refusal.Reply.Accepted.Outcome.Stat != rpc.GarbageArgs {
		t.Errorf("garbage: %v", err)
	} else if want := "rpc: GET_CALL_CONTEXT: the server answered GARBAGE_ARGS"; err.Error() != want {
		t.Errorf("%q, want %q", err, want)
	}
	if _, err := c.Call(t.Context(), 0, nil); err != nil {
		t.Errorf("after an *Error: %v", err)
	}
	if _, err := c.Call(t.Context(), 16, nil); !errors.As(err, &refusal) || refusal.Reply.Accepted.Outcome.Stat != rpc.ProcUnavail {
		t.Errorf("procedure 16: %v", err)
	}
}

// scripted is a server that answers the first call with fixed bytes, in which the xid is filled in
// at offset 4, and closes.
func scripted(t *testing.T, answer []byte) string {
	t.Helper()
	path := filepath.Join(socketDir(t), "s")
	l, err := rpc.Listen(path, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	t.Cleanup(func() { l.Close(); <-done })
	go func() {
		defer close(done)
		c, err := l.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		request := make([]byte, 4096)
		n, err := c.Read(request)
		if err != nil || n < 44 {
			t.Errorf("request of %d bytes, %v", n, err)
			return
		}
		if len(answer) >= 8 && string(answer[4:8]) == "\x00\x00\x00\x00" {
			copy(answer[4:8], request[4:8])
		}
		c.Write(answer)
	}()
	return path
}

func TestClientBadReplies(t *testing.T) {
	const ok = "00000000 00000001 00000000 00000000 00000000 00000000"
	for _, tt := range []struct{ name, answer, want string }{
		{"nothing", "", "closed the connection without an answer"},
		{"half a mark", "8000", "EOF"},
		{"half a reply", "80000018 00000000 00000001", "without an answer: the reply is not complete"},
		{"another xid", "80000018 11111111 00000001 00000000 00000000 00000000 00000000", "the reply is to call"},
		{"no header", "80000008 00000000 00000001", "the reply has no header"},
		{"a call", "80000018 00000000 00000000 00000000 00000000 00000000 00000000", "something else than a reply"},
		{"too long", "80100001 00000000", "longer than 1048576"},
		{"RPC mismatch", "80000018 00000000 00000001 00000001 00000000 00000002 00000002", "denied the call: RPC_MISMATCH"},
		{"authentication", "80000014 00000000 00000001 00000001 00000001 00000007", "denied the call: AUTH_ERROR FAILED"},
		{"program", "80000018 00000000 00000001 00000000 00000000 00000000 00000001", "answered PROG_UNAVAIL"},
		{"good", "80000018" + ok, ""},
		{"fragments", "00000010" + ok[:9*4] + "00000000 80000008" + ok[9*4:], ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := dialClient(t, scripted(t, unhex(t, tt.answer)))
			_, err := c.Call(t.Context(), 1, nil)
			switch {
			case tt.want == "" && err != nil:
				t.Error(err)
			case tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)):
				t.Errorf("%v, want %q", err, tt.want)
			}
			if errors.Is(err, rpc.ErrNotSent) {
				t.Errorf("%v: the call was sent", err)
			}
		})
	}
}

func TestClientContext(t *testing.T) {
	begun := make(chan struct{}, 8)
	release := make(chan struct{})
	path, stop := rpctest.Start(t, func(_ context.Context, c *rpc.Call, reply []byte) ([]byte, rpc.AcceptStat) {
		if c.Proc == 2 {
			begun <- struct{}{}
			<-release
		}
		return reply, rpc.Success
	})
	defer stop()
	defer close(release)

	c := dialClient(t, path)
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		<-begun
		cancel()
	}()
	if _, err := c.Call(ctx, 2, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	if _, err := c.Call(t.Context(), 1, nil); !errors.Is(err, rpc.ErrNotSent) {
		t.Errorf("on a cut connection: %v", err)
	}

	c = dialClient(t, path)
	ctx, cancel = context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if _, err := c.Call(ctx, 2, nil); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("deadline: %v", err)
	}

	c = dialClient(t, path)
	<-ctx.Done()
	if _, err := c.Call(ctx, 1, nil); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("ended context: %v", err)
	}
	for _, d := range []time.Duration{time.Hour, time.Minute, 0} { // the deadline of an earlier call is forgotten
		ctx := t.Context()
		if d > 0 {
			var cancel context.CancelFunc
			ctx, cancel = context.WithTimeout(ctx, d)
			defer cancel()
		}
		if _, err := c.Call(ctx, 1, nil); err != nil {
			t.Errorf("an ended context has spoilt the connection: %v", err)
		}
	}
}

func TestClientServerGone(t *testing.T) {
	path, stop := rpctest.Start(t, echo)
	c := dialClient(t, path)
	if _, err := c.Call(t.Context(), 1, nil); err != nil {
		t.Fatal(err)
	}
	stop()
	if _, err := c.Call(t.Context(), 1, nil); !errors.Is(err, rpc.ErrNotSent) {
		t.Errorf("%v, want ErrNotSent", err)
	}
	if _, err := rpc.Dial(t.Context(), path); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("%v, want ECONNREFUSED", err)
	}
}

// A call that the server has not got all of cannot have been executed.
func TestClientServerGoneHalfway(t *testing.T) {
	path := filepath.Join(socketDir(t), "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	gone := make(chan error, 1)
	go func() {
		nc, err := l.Accept()
		if err == nil {
			_, err = io.ReadFull(nc, make([]byte, 1000))
			nc.Close()
		}
		gone <- err
	}()
	c := dialClient(t, path)
	if _, err := c.Call(t.Context(), 1, make([]byte, rpc.MaxRecord/2)); !errors.Is(err, rpc.ErrNotSent) { // more than the kernel holds
		t.Errorf("%v, want ErrNotSent", err)
	}
	if err := <-gone; err != nil {
		t.Error(err)
	}
}

func TestClientUnmatched(t *testing.T) {
	path := filepath.Join(socketDir(t), "s")
	rpctest.StartAt(t, path, &rpc.Server{
		Match: func(context.Context, *rpc.Conn, uint32) (rpc.Service, bool) { return nil, false },
	})
	c := dialClient(t, path)
	if _, err := c.Call(t.Context(), uint32(xdr.ProcIndicateMechs), nil); !errors.Is(err, rpc.ErrNoAnswer) {
		t.Errorf("%v, want ErrNoAnswer", err)
	}
}

// A full backlog is no error: the server is alive and comes round to it.
func TestDialFullBacklog(t *testing.T) {
	path := filepath.Join(socketDir(t), "s")
	fd, err := syscall.Socket(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer syscall.Close(fd)
	if err := syscall.Bind(fd, &syscall.SockaddrUnix{Name: path}); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Listen(fd, 0); err != nil {
		t.Fatal(err)
	}
	first := dialClient(t, path)
	defer first.Close()
	inTime(t, func(timeout time.Duration) bool {
		ctx, cancel := context.WithTimeout(t.Context(), timeout)
		defer cancel()
		_, err := rpc.Dial(ctx, path)
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%v, want the deadline", err)
		}
		return errors.Is(err, syscall.EAGAIN) // it was tried before the deadline
	})
	go func() {
		if nfd, _, err := syscall.Accept(fd); err == nil {
			syscall.Close(nfd)
		}
	}()
	dialClient(t, path)
}

// A socket of another user's server may be a trap for tokens.
func TestDialServerUID(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root to listen as another user")
	}
	path := filepath.Join(socketDir(t), "s")
	l := listenAs(t, path, 65534)
	defer l.Close()
	if c, err := rpc.Dial(t.Context(), path); err == nil {
		c.Close()
		t.Error("uid 65534 is trusted")
	} else if !strings.Contains(err.Error(), "runs as uid 65534") {
		t.Error(err)
	}
	trusted := func(serverUID ...uint32) error {
		c, err := rpc.Dial(t.Context(), path, serverUID...)
		if err != nil {
			return err
		}
		return c.Close()
	}
	if err := trusted(1, 65534); err != nil {
		t.Error(err)
	}
	as(t, 65534, func() error { return trusted() }) // nobody else is nobody, outside of user namespaces
}

// listenAs listens with another effective uid, as SO_PEERCRED will say.
func listenAs(t *testing.T, path string, uid int) (l net.Listener) {
	t.Helper()
	if err := os.Chmod(filepath.Dir(path), 0o777); err != nil {
		t.Fatal(err)
	}
	as(t, uid, func() (err error) {
		l, err = net.Listen("unix", path)
		return err
	})
	return l
}

// as calls f with another effective uid.
func as(t *testing.T, uid int, f func() error) {
	t.Helper()
	c := make(chan error)
	go func() {
		// The thread changes its uid and is thrown away: the goroutine is locked to it and never
		// unlocked.
		runtime.LockOSThread()
		if _, _, e := syscall.RawSyscall(syscall.SYS_SETRESUID, ^uintptr(0), uintptr(uid), ^uintptr(0)); e != 0 {
			c <- fmt.Errorf("setresuid: %w", e)
			return
		}
		c <- f()
	}()
	if err := <-c; err != nil {
		t.Fatal(err)
	}
}
