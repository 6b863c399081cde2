package rpc_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"gssproxyd/limits"
	"gssproxyd/mech/reason"
	"gssproxyd/rpc"
	"gssproxyd/rpc/rpctest"
	"gssproxyd/tests/lab"
	"gssproxyd/xdr"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// patience bounds waits for things that must happen; it is reached only when something is broken.
const patience = time.Minute

// unhex reads hexadecimal digits in groups; "#" starts a comment.
func unhex(t testing.TB, s string) []byte {
	t.Helper()
	var b strings.Builder
	for line := range strings.Lines(s) {
		line, _, _ = strings.Cut(line, "#")
		b.WriteString(strings.Join(strings.Fields(line), ""))
	}
	raw, err := hex.DecodeString(b.String())
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

// record puts a mark before body.
func record(body []byte) []byte {
	return append(binary.BigEndian.AppendUint32(nil, 1<<31|uint32(len(body))), body...)
}

// call is the record of a call with xid 7.
func call(proc uint32, args ...byte) []byte {
	h := xdr.CallHeader{XID: 7, RPCVersion: 2, Program: xdr.Program, Version: xdr.Version, Procedure: proc}
	return record(append(h.Append(nil), args...))
}

// echo answers with the arguments.
func echo(_ context.Context, c *rpc.Call, reply []byte) ([]byte, rpc.AcceptStat) {
	return append(reply, c.Args...), rpc.Success
}

// echoed is the record that answers call(proc, args...).
func echoed(args ...byte) []byte {
	return record(append([]byte{0, 0, 0, 7, 0, 0, 0, 1, 15 + 8: 0}, args...))
}

func dial(t testing.TB, path string) *net.UnixConn {
	t.Helper()
	c, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(patience))
	return c.(*net.UnixConn)
}

func send(t testing.TB, c net.Conn, b []byte) {
	t.Helper()
	if _, err := c.Write(b); err != nil {
		t.Fatal(err)
	}
}

// receive reads one record, mark included.
func receive(t testing.TB, c net.Conn) []byte {
	t.Helper()
	b := make([]byte, 4)
	if _, err := io.ReadFull(c, b); err != nil {
		t.Fatalf("no reply: %v", err)
	}
	mark := binary.BigEndian.Uint32(b)
	if mark>>31 != 1 {
		t.Fatalf("mark %08x has no last-fragment bit", mark)
	}
	b = append(b, make([]byte, mark&^(1<<31))...)
	if _, err := io.ReadFull(c, b[4:]); err != nil {
		t.Fatalf("half a reply: %v", err)
	}
	return b
}

func expect(t testing.TB, c net.Conn, want []byte) {
	t.Helper()
	if got := receive(t, c); !bytes.Equal(got, want) {
		t.Fatalf("reply\n%s\nwant\n%s", hex.Dump(got), hex.Dump(want))
	}
}

// expectClosed wants the end of the connection and nothing before it.
func expectClosed(t testing.TB, c net.Conn) {
	t.Helper()
	b, err := io.ReadAll(c)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatal("the connection is not closed")
	}
	if len(b) > 0 {
		t.Fatalf("answered\n%s", hex.Dump(b))
	}
}

// The answers of the C daemon to every fault of a header, in its order of checks: each call also
// has the faults of the rows below it, where it can.
func TestHeaderAnswers(t *testing.T) {
	const nobody = "00000000 00000000" // an empty cred or verf
	long := "00000190" + strings.Repeat("61", 400)
	for _, tt := range []struct{ name, call, reply string }{
		{"xid only", "00000007", ""},
		{"short header", "00000007 00000000 00000002 00061af0 00000001 00000001 00000000 00000000 00000000", ""},
		{"message type reply", "00000007 00000001 00000003 00000000 00000000 00000000 00000001" + nobody, ""},
		{"message type 2", "00000007 00000002 00000002 00061af0 00000001 00000001" + nobody + nobody, ""},
		{"cred of 401 bytes", "00000007 00000000 00000002 00061af0 00000001 00000001 00000000 00000191" + strings.Repeat("61", 404) + nobody, ""},
		{"verf of 401 bytes", "00000007 00000000 00000002 00061af0 00000001 00000001" + nobody + "00000000 00000191" + strings.Repeat("61", 404), ""},
		{"cred longer than the record", "00000007 00000000 00000002 00061af0 00000001 00000001 00000000 ffffffff" + nobody, ""},

		{"RPC version 3", "00000007 00000000 00000003 00000000 00000009 00000010 00000001 00000000" + nobody,
			"00000007 00000001 00000001 00000000 00000002 00000002"},
		{"RPC version 0", "00000007 00000000 00000000 00061af0 00000001 00000001" + nobody + nobody,
			"00000007 00000001 00000001 00000000 00000002 00000002"},
		{"another program", "00000007 00000000 00000002 00061af1 00000009 00000010 00000001 00000000" + nobody,
			"00000007 00000001 00000000 00000000 00000000 00000001"},
		{"version 2", "00000007 00000000 00000002 00061af0 00000002 00000010 00000001 00000000" + nobody,
			"00000007 00000001 00000000 00000000 00000000 00000002 00000001 00000001"},
		{"version 0", "00000007 00000000 00000002 00061af0 00000000 00000001" + nobody + nobody,
			"00000007 00000001 00000000 00000000 00000000 00000002 00000001 00000001"},
		{"procedure 16", "00000007 00000000 00000002 00061af0 00000001 00000010 00000001 00000000" + nobody,
			"00000007 00000001 00000000 00000000 00000000 00000003"},
		{"procedure 2^32-1", "00000007 00000000 00000002 00061af0 00000001 ffffffff" + nobody + nobody,
			"00000007 00000001 00000000 00000000 00000000 00000003"},
		{"AUTH_SYS", "00000007 00000000 00000002 00061af0 00000001 00000001 00000001 00000000" + nobody,
			"00000007 00000001 00000001 00000001 00000007"},
		{"AUTH_SYS to procedure 0", "00000007 00000000 00000002 00061af0 00000001 00000000 00000001 00000000" + nobody,
			"00000007 00000001 00000001 00000001 00000007"},

		{"procedure 0", "00000007 00000000 00000002 00061af0 00000001 00000000" + nobody + nobody,
			"00000007 00000001 00000000 00000000 00000000 00000000"},
		{"procedure 0 with arguments", "00000007 00000000 00000002 00061af0 00000001 00000000" + nobody + nobody + "12345678",
			"00000007 00000001 00000000 00000000 00000000 00000000"},
		{"procedure 1", "00000007 00000000 00000002 00061af0 00000001 00000001" + nobody + nobody + "12345678",
			"00000007 00000001 00000000 00000000 00000000 00000000 12345678"},
		{"procedure 15", "fffffffe 00000000 00000002 00061af0 00000001 0000000f" + nobody + nobody,
			"fffffffe 00000001 00000000 00000000 00000000 00000000"},
		{"verf flavor 6", "00000007 00000000 00000002 00061af0 00000001 00000001" + nobody + "00000006 00000000",
			"00000007 00000001 00000000 00000000 00000000 00000000"},
		{"bodies of 400 bytes", "00000007 00000000 00000002 00061af0 00000001 00000001 00000000" + long + "00000000" + long + "aaaaaaaa",
			"00000007 00000001 00000000 00000000 00000000 00000000 aaaaaaaa"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			path, _ := rpctest.Start(t, echo)
			c := dial(t, path)
			send(t, c, record(unhex(t, tt.call)))
			if tt.reply == "" {
				expectClosed(t, c)
				return
			}
			expect(t, c, record(unhex(t, tt.reply)))
			send(t, c, call(1, 'o', 'k'))
			expect(t, c, echoed('o', 'k'))
		})
	}
}

func TestHandlerStatus(t *testing.T) {
	const head = "00000007 00000001 00000000 00000000 00000000 "
	for _, tt := range []struct {
		stat  rpc.AcceptStat
		reply string
	}{
		{rpc.GarbageArgs, head + "00000004"},
		{rpc.SystemErr, head + "00000005"},
		{rpc.ProcUnavail, head + "00000003"},
		{rpc.ProgMismatch, head + "00000002 00000001 00000001"},
	} {
		path, _ := rpctest.Start(t, func(_ context.Context, _ *rpc.Call, reply []byte) ([]byte, rpc.AcceptStat) {
			return append(reply, "dropped"...), tt.stat
		})
		c := dial(t, path)
		send(t, c, call(1))
		expect(t, c, record(unhex(t, tt.reply)))
	}
}

func TestMatch(t *testing.T) {
	var log lab.LogBuffer
	allowed := atomic.Bool{}
	service := rpctest.Handler(func(_ context.Context, c *rpc.Call, reply []byte) ([]byte, rpc.AcceptStat) {
		if c.XID != 7 || c.Proc != 2 {
			t.Errorf("call %+v", c)
		}
		return reply, rpc.Success
	})
	s := &rpc.Server{
		Match: func(_ context.Context, c *rpc.Conn, proc uint32) (rpc.Service, bool) {
			if c.Peer.PID != int32(os.Getpid()) || len(c.ID) != 10 || c.Socket == "" {
				t.Errorf("conn %+v", c)
			}
			return service, allowed.Load() || proc == 2
		},
		Log: slog.New(slog.NewTextHandler(&log, nil)),
	}
	path := filepath.Join(socketDir(t), "s")
	rpctest.StartAt(t, path, s)
	for _, proc := range []uint32{0, 1, 3, 16} {
		c := dial(t, path)
		send(t, c, call(2))
		expect(t, c, echoed())
		send(t, c, call(proc)) // not even an RPC error
		expectClosed(t, c)
	}
	allowed.Store(true)
	c := dial(t, path)
	send(t, c, call(0))
	expect(t, c, echoed())
	if log.String() != "" {
		t.Errorf("the reason is Match's to log, but: %s", log.String())
	}
}

// fragments cuts body at the given lengths; the rest is the last one.
func fragments(body []byte, lengths ...int) []byte {
	var b []byte
	for _, n := range lengths {
		b = binary.BigEndian.AppendUint32(b, uint32(n))
		b = append(b, body[:n]...)
		body = body[n:]
	}
	return append(b, record(body)...)
}

func TestRecords(t *testing.T) {
	body := call(1, bytes.Repeat([]byte("abcd"), 5000)...)[4:]
	reply := echoed(body[40:]...)
	full := call(1, bytes.Repeat([]byte{'x'}, rpc.MaxRecord-40)...)
	every := func(n, of int) []int {
		var cuts []int
		for ; of > n; of -= n {
			cuts = append(cuts, n)
		}
		return cuts
	}
	for _, tt := range []struct {
		name  string
		send  []byte
		reply []byte // nil: closed
	}{
		{"one fragment", record(body), reply},
		{"two fragments", fragments(body, 100), reply},
		{"fragments of 400 bytes", fragments(body, every(400, len(body))...), reply},
		{"header in pieces of one byte", fragments(body, every(1, 44)...), reply},
		{"empty fragments between", fragments(body, 0, 0, 100, 0, 4000, 0), reply},
		{"empty last fragment", fragments(body, len(body)), reply},
		{"full record", full, echoed(full[44:][:0]...)},
		{"length 0", record(nil), nil},
		{"length 3", record([]byte{1, 2, 3}), nil},
		{"1 MiB + 1", unhex(t, "80100001 00000007"), nil},
		{"2^31 - 1", unhex(t, "ffffffff 00000007"), nil},
		{"2^31 - 1, not last", unhex(t, "7fffffff 00000007"), nil},
		{"1 MiB + 1 in two fragments", append(binary.BigEndian.AppendUint32(nil, 100), append(body[:100:100], unhex(t, "800fff9d")...)...), nil},
		{"1023 empty fragments", append(make([]byte, 4*1023), record(body)...), reply},
		{"1024 empty fragments", append(make([]byte, 4*1024), record(body)...), nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			path, _ := rpctest.Start(t, func(ctx context.Context, c *rpc.Call, reply []byte) ([]byte, rpc.AcceptStat) {
				if len(c.Args) > 900<<10 {
					if !bytes.Equal(c.Args, full[44:]) {
						t.Error("arguments are damaged")
					}
					return reply, rpc.Success
				}
				return echo(ctx, c, reply)
			})
			c := dial(t, path)
			// In the background, since the server may close before the end.
			sent := make(chan struct{})
			go func() { defer close(sent); c.Write(tt.send) }()
			defer func() { <-sent }()
			if tt.reply == nil {
				expectClosed(t, c)
				return
			}
			expect(t, c, tt.reply)
			<-sent
			send(t, c, call(1, 'o', 'k'))
			expect(t, c, echoed('o', 'k'))
		})
	}
}

func TestEndlessEmptyFragments(t *testing.T) {
	path, _ := rpctest.Start(t, echo)
	c := dial(t, path)
	zeros := make([]byte, 64<<10)
	for {
		if _, err := c.Write(zeros); err != nil {
			if errors.Is(err, os.ErrDeadlineExceeded) {
				t.Fatal("the server reads empty fragments for ever")
			}
			break
		}
	}
}

func TestSlowSender(t *testing.T) {
	path, _ := rpctest.Start(t, echo)
	c := dial(t, path)
	two := append(call(1, []byte("first")...), fragments(call(1, []byte("second")...)[4:], 7, 30)...)
	for i := range two {
		send(t, c, two[i:i+1])
	}
	expect(t, c, echoed([]byte("first")...))
	expect(t, c, echoed([]byte("second")...))
}

// Calls that lie in one buffer, around its end, and in a buffer that has grown.
func TestPipelining(t *testing.T) {
	path, _ := rpctest.Start(t, echo)
	c := dial(t, path)
	var calls []byte
	var want [][]byte
	for i := range 2000 {
		args := bytes.Repeat([]byte{byte(i)}, i%97*4)
		if i%250 == 249 {
			args = bytes.Repeat([]byte{byte(i)}, 30000)
		}
		if i%3 == 0 {
			calls = append(calls, fragments(call(1, args...)[4:], 20)...)
		} else {
			calls = append(calls, call(1, args...)...)
		}
		want = append(want, echoed(args...))
	}
	sent := make(chan error, 1)
	go func() {
		_, err := c.Write(calls)
		sent <- err
	}()
	for _, w := range want {
		expect(t, c, w)
	}
	if err := <-sent; err != nil {
		t.Error(err)
	}
}

func TestReplyLength(t *testing.T) {
	var log lab.LogBuffer
	path := filepath.Join(socketDir(t), "s")
	handle := func(_ context.Context, c *rpc.Call, reply []byte) ([]byte, rpc.AcceptStat) {
		switch c.Proc {
		case 1:
			return append(reply, make([]byte, rpc.MaxRecord-24)...), rpc.Success
		case 2:
			return append(reply, make([]byte, rpc.MaxRecord-23)...), rpc.Success
		case 3:
			return nil, rpc.Success
		}
		return reply, rpc.Success
	}
	rpctest.StartAt(t, path, &rpc.Server{Match: rpctest.Everybody(handle), Log: slog.New(slog.NewTextHandler(&log, nil))})
	systemErr := record(unhex(t, "00000007 00000001 00000000 00000000 00000000 00000005"))
	began := time.Now()
	c := dial(t, path)
	send(t, c, call(1))
	expect(t, c, echoed(make([]byte, rpc.MaxRecord-24)...))
	send(t, c, call(2))
	expect(t, c, systemErr)
	send(t, c, call(3))
	expect(t, c, systemErr)
	const again = 200
	for range again { // a client that can have this again and again does not fill the log with it
		send(t, c, call(3))
		expect(t, c, systemErr)
	}
	lines, most := strings.Count(log.String(), "no reply of a possible length"), limits.UsualRate.Burst+1+int(time.Since(began)/limits.UsualRate.Every)
	if lines == 0 || lines > most && most < again {
		t.Errorf("%d lines in the log, at most %d wanted", lines, most)
	}
	send(t, c, call(4))
	expect(t, c, echoed())
}

func TestPanic(t *testing.T) {
	var log lab.LogBuffer
	secret := "K3Y-BYTES"
	s := &rpc.Server{
		Match: rpctest.Everybody(func(_ context.Context, c *rpc.Call, reply []byte) ([]byte, rpc.AcceptStat) {
			switch c.Proc {
			case 1:
				panic(string(c.Args))
			case 2:
				explode([8]byte(c.Args))
			case 3:
				panic(errors.New(string(c.Args)))
			}
			return reply, rpc.Success
		}),
		Log: slog.New(slog.NewTextHandler(&log, nil)),
	}
	path := filepath.Join(socketDir(t), "s")
	rpctest.StartAt(t, path, s)
	c := dial(t, path)
	for proc := range uint32(3) {
		send(t, c, call(proc+1, []byte(secret)...))
		expect(t, c, record(unhex(t, "00000007 00000001 00000000 00000000 00000000 00000005")))
		send(t, c, call(4))
		expect(t, c, echoed())
	}
	text := log.String()
	if !strings.Contains(text, "explode") || !strings.Contains(text, "server_test.go") {
		t.Errorf("no stack in the log:\n%s", text)
	}
	for _, s := range []string{secret, hex.EncodeToString([]byte(secret)), "0x4b"} {
		if strings.Contains(text, s) {
			t.Errorf("argument bytes in the log:\n%s", text)
		}
	}
}

//go:noinline
func explode(b [8]byte) {
	var none []int
	none[int(b[0])] = 1
}

// inTime calls try with servers of ever longer timeouts until the machine is fast enough for one:
// until try reports that what has to come before the timeout did.
func inTime(t *testing.T, try func(timeout time.Duration) bool) {
	t.Helper()
	for timeout := 20 * time.Millisecond; timeout < patience; timeout *= 8 {
		if try(timeout) {
			return
		}
	}
	t.Error("nothing comes in time")
}

// wasRead waits until the server has read what c sent.
func wasRead(t *testing.T, c *net.UnixConn) {
	t.Helper()
	raw, err := c.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	for unread, deadline := 1, time.Now().Add(patience); unread > 0; time.Sleep(time.Millisecond) {
		raw.Control(func(fd uintptr) { unread, err = unix.IoctlGetInt(int(fd), unix.TIOCOUTQ) })
		if err != nil || time.Now().After(deadline) {
			t.Fatalf("%d bytes are not read: %v", unread, err)
		}
	}
}

// answered reports whether the next reply is want: there is none when the server closed the
// connection before.
func answered(c net.Conn, want []byte) bool {
	got := make([]byte, len(want))
	_, err := io.ReadFull(c, got)
	return err == nil && bytes.Equal(got, want)
}

// server is a server with a timeout of records.
func server(h rpctest.Handler, timeout time.Duration) *rpc.Server {
	s := &rpc.Server{Match: rpctest.Everybody(h)}
	s.SetTimeout(timeout)
	return s
}

// A started record has its time, an idle connection all the time in the world.
func TestRecordTimeout(t *testing.T) {
	inTime(t, func(timeout time.Duration) bool { return testRecordTimeout(t, timeout) })
}

func testRecordTimeout(t *testing.T, timeout time.Duration) bool {
	path := filepath.Join(socketDir(t), "s")
	var log lab.LogBuffer
	s := server(echo, timeout)
	s.Log = slog.New(slog.NewTextHandler(&log, nil))
	rpctest.StartAt(t, path, s)
	idle, used := dial(t, path), dial(t, path)
	used.Write(call(1)[:20])
	wasRead(t, used)
	used.Write(call(1)[20:])
	if !answered(used, echoed()) {
		return false
	}
	for _, n := range []int{1, 3, 4, 43} {
		c := dial(t, path)
		send(t, c, call(1)[:n])
		expectClosed(t, c)
		c = dial(t, path)
		send(t, c, append(call(1), call(1)[:n]...))
		expect(t, c, echoed())
		expectClosed(t, c)
	}
	if !strings.Contains(log.String(), "reason=record-timeout") {
		t.Errorf("log: %s", log.String())
	}
	send(t, idle, call(1))
	expect(t, idle, echoed())
	send(t, used, call(1))
	expect(t, used, echoed())
	return true
}

func TestNeverReadingClient(t *testing.T) {
	path := filepath.Join(socketDir(t), "s")
	log := make(lines, 100)
	s := server(func(_ context.Context, _ *rpc.Call, reply []byte) ([]byte, rpc.AcceptStat) {
		return append(reply, make([]byte, 900<<10)...), rpc.Success
	}, 50*time.Millisecond)
	s.Log = slog.New(slog.NewTextHandler(log, nil))
	rpctest.StartAt(t, path, s)
	c := dial(t, path)
	send(t, c, call(1))
	// The server gives up while half of the reply is in the socket.
	for {
		if _, err := c.Write(call(1)); err != nil {
			if errors.Is(err, os.ErrDeadlineExceeded) {
				t.Fatal("the server still waits")
			}
			break
		}
		time.Sleep(time.Millisecond)
	}
	if line := <-log; !strings.Contains(line, "reason=reply-unread") {
		t.Errorf("log: %s", line)
	}
	other := dial(t, path)
	send(t, other, call(0))
	expect(t, other, echoed())
}

// lines is a log whose lines are waited for.
type lines chan string

func (l lines) Write(b []byte) (int, error) {
	l <- string(b)
	return len(b), nil
}

// A slow reader gets all of a long reply.
func TestSlowReader(t *testing.T) {
	path := filepath.Join(socketDir(t), "s")
	rpctest.StartAt(t, path, &rpc.Server{
		Match: rpctest.Everybody(func(_ context.Context, _ *rpc.Call, reply []byte) ([]byte, rpc.AcceptStat) {
			return append(reply, bytes.Repeat([]byte("reply"), 200000)...), rpc.Success
		}),
		Limits: buffers(5 << 18),
	})
	c := dial(t, path)
	// The memory there is is enough for one such reply, and they are held one after the other.
	send(t, c, append(append(call(1), call(1)...), call(1)...))
	want := echoed(bytes.Repeat([]byte("reply"), 200000)...)
	for range 3 {
		var got []byte
		for len(got) < len(want) {
			b := make([]byte, min(33333, len(want)-len(got)))
			n, err := c.Read(b)
			if err != nil {
				t.Fatal(err)
			}
			got = append(got, b[:n]...)
			runtime.Gosched()
		}
		if !bytes.Equal(got, want) {
			t.Fatal("the reply is damaged")
		}
	}
}

// buffers are limits for so many bytes of buffers.
func buffers(n int) *limits.Limits {
	l := limits.ForProcess()
	l.Buffers = limits.NewBudget("bytes of buffers", n)
	return l
}

// Half records take what the server allows for them and no more; a claimed length alone takes
// nothing.
func TestHeldMemory(t *testing.T) {
	var log lab.LogBuffer
	path := filepath.Join(socketDir(t), "s")
	rpctest.StartAt(t, path, &rpc.Server{Match: rpctest.Everybody(echo), Limits: buffers(4 << 20), Log: slog.New(slog.NewTextHandler(&log, nil))})
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	half := record(make([]byte, rpc.MaxRecord))[:rpc.MaxRecord]
	var wg sync.WaitGroup
	var refused atomic.Int32
	for range 40 {
		c := dial(t, path)
		send(t, dial(t, path), half[:4])
		wg.Go(func() {
			if _, err := c.Write(half); err != nil {
				refused.Add(1)
			}
		})
	}
	wg.Wait()
	runtime.GC()
	runtime.ReadMemStats(&after)
	if n := refused.Load(); n < 30 {
		t.Errorf("%d of 40 half records refused", n)
	}
	if grown := int64(after.HeapAlloc) - int64(before.HeapAlloc); grown > 8<<20 {
		t.Errorf("%d KiB more in use", grown>>10)
	}
	if text := log.String(); !strings.Contains(text, `reason=too-much-buffered hint="look at what the uid runs`) || !strings.Contains(text, "bytes of buffers: uid ") {
		t.Errorf("log: %s", text)
	}
	c := dial(t, path)
	send(t, c, call(1, 'o', 'k'))
	expect(t, c, echoed('o', 'k'))
}

// denial is what Denied is told.
type denial struct {
	conn *rpc.Conn
	why  reason.ID
	text string
}

// denied returns a Denied, and where what it is told goes.
func denied() (told chan denial, tell func(context.Context, *rpc.Conn, reason.ID, string)) {
	told = make(chan denial, 1000)
	return told, func(_ context.Context, c *rpc.Conn, why reason.ID, text string) { told <- denial{c, why, text} }
}

// Connections beyond the limit are refused, and the log says whose, why, and what there was.
func TestMaxConns(t *testing.T) {
	var log lab.LogBuffer
	path := filepath.Join(socketDir(t), "s")
	lim := limits.ForProcess()
	lim.Conns = limits.NewBudget("connections", 3)
	told, tell := denied()
	rpctest.StartAt(t, path, &rpc.Server{Match: rpctest.Everybody(echo), Denied: tell, Limits: lim, Log: slog.New(slog.NewTextHandler(&log, nil))})
	var conns []*net.UnixConn
	for range 3 {
		c := dial(t, path)
		send(t, c, call(1))
		expect(t, c, echoed())
		conns = append(conns, c)
	}
	expectClosed(t, dial(t, path))
	if text, uid := log.String(), os.Geteuid(); !strings.Contains(text, "reason=too-many-connections") ||
		!strings.Contains(text, fmt.Sprintf("uid %d has 3, and 1 more would be over its share of the 0 that are free", uid)) {
		t.Errorf("log: %s", text)
	}
	if d := <-told; d.why != reason.TooManyConnections || !strings.Contains(d.text, "has 3, and 1 more") || d.conn.ID == "" || d.conn.Socket == "" ||
		d.conn.Peer.UID != uint32(os.Geteuid()) || d.conn.Peer.PID != int32(os.Getpid()) {
		t.Errorf("%+v of %+v", d, d.conn)
	}
	conns[0].Close()
	for {
		c := dial(t, path)
		if _, err := c.Write(call(0)); err != nil {
			continue // the server has not noticed the Close yet
		}
		if _, err := io.ReadFull(c, make([]byte, 28)); err == nil {
			return
		}
	}
}

func TestShutdown(t *testing.T) {
	path := filepath.Join(socketDir(t), "s")
	begun, finish := make(chan struct{}), make(chan struct{})
	s := &rpc.Server{Match: rpctest.Everybody(func(ctx context.Context, c *rpc.Call, reply []byte) ([]byte, rpc.AcceptStat) {
		if c.Proc == 2 {
			close(begun)
			<-finish
			if ctx.Err() != nil {
				t.Error("the context has ended")
			}
		}
		return append(reply, byte(c.Proc)), rpc.Success
	})}
	stop := rpctest.StartAt(t, path, s)
	idle, busy, half := dial(t, path), dial(t, path), dial(t, path)
	send(t, idle, call(1))
	expect(t, idle, echoed(1))
	send(t, half, call(1)[:10])
	send(t, busy, append(call(2), call(3)...)) // both were sent before the end
	<-begun
	done := make(chan error)
	go func() { done <- s.Shutdown(t.Context()) }()
	expectClosed(t, idle)
	expectClosed(t, half)
	if _, err := net.Dial("unix", path); err == nil {
		t.Error("the listener is open")
	}
	// Each connection is told in its own time. Writing nothing says whether something could be
	// written.
	for deadline := time.Now().Add(patience); ; time.Sleep(time.Millisecond) {
		if _, err := busy.Write(nil); err != nil {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("a call can be sent after the end")
		}
	}
	close(finish)
	expect(t, busy, echoed(2))
	expect(t, busy, echoed(3))
	expectClosed(t, busy)
	if err := <-done; err != nil {
		t.Error(err)
	}
	stop()
	l, err := rpc.Listen(path, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Serve(t.Context(), l, path); err != rpc.ErrShutdown {
		t.Errorf("Serve after Shutdown: %v", err)
	}
}

func TestShutdownOutOfPatience(t *testing.T) {
	path := filepath.Join(socketDir(t), "s")
	begun := make(chan struct{})
	s := &rpc.Server{Match: rpctest.Everybody(func(ctx context.Context, c *rpc.Call, reply []byte) ([]byte, rpc.AcceptStat) {
		close(begun)
		<-ctx.Done()
		return reply, rpc.Success
	})}
	rpctest.StartAt(t, path, s)
	c := dial(t, path)
	send(t, c, call(1))
	<-begun
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if err := s.Shutdown(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Error(err)
	}
	// The handler may still get its answer out; then the connection ends.
	if _, err := io.ReadAll(c); errors.Is(err, os.ErrDeadlineExceeded) {
		t.Error("the connection is not closed")
	}
}

// Who knows that Serve has returned can listen there.
func TestServeCloses(t *testing.T) {
	path := filepath.Join(socketDir(t), "s")
	for range 300 {
		l, err := rpc.Listen(path, 0o600)
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- (&rpc.Server{Match: rpctest.Everybody(echo)}).Serve(ctx, l, path) }()
		dial(t, path).Close()
		cancel()
		if err := <-done; err != nil {
			t.Fatal(err)
		}
	}
}

// A reload takes a listener away; the calls and connections of it live on.
func TestCloseListener(t *testing.T) {
	path := filepath.Join(socketDir(t), "s")
	l, err := rpc.Listen(path, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	s := &rpc.Server{
		Match: rpctest.Everybody(echo),
	}
	done := make(chan error, 1)
	go func() { done <- s.Serve(context.Background(), l, path) }()
	c := dial(t, path)
	send(t, c, call(1))
	expect(t, c, echoed())
	l.Close()
	send(t, c, call(1))
	expect(t, c, echoed())
	c.Close()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestListen(t *testing.T) {
	dir := socketDir(t)
	path := filepath.Join(dir, "s")
	l, err := rpc.Listen(path, 0o666)
	if err != nil {
		t.Fatal(err)
	}
	if st, err := os.Stat(path); err != nil || st.Mode() != os.ModeSocket|0o666 {
		t.Errorf("mode %v, %v", st.Mode(), err)
	}
	if _, err := rpc.Listen(path, 0o666); err == nil || !strings.Contains(err.Error(), fmt.Sprintf("process %d is listening", os.Getpid())) {
		t.Errorf("a live socket: %v", err)
	}
	l.Close()
	if _, err := os.Stat(path); err != nil {
		t.Errorf("the file is gone after Close: %v", err)
	}
	if l, err = rpc.Listen(path, 0o600); err != nil {
		t.Fatalf("a stale socket: %v", err)
	}
	l.Close()
	if st, err := os.Stat(path); err != nil || st.Mode() != os.ModeSocket|0o600 {
		t.Errorf("mode %v, %v", st.Mode(), err)
	}
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]string{
		file:                           "not a socket",
		filepath.Join(dir, "x", "s"):   "no such file or directory",
		dir + strings.Repeat("/s", 60): "at most 107",
	} {
		if l, err := rpc.Listen(path, 0o600); err == nil {
			l.Close()
			t.Errorf("%s: no error", path)
		} else if !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), path) {
			t.Errorf("%s: %v; want %q", path, err, want)
		}
	}
}

// A socket that is set aside is replaced while it is answered: whoever connects is answered by the
// one or the other, and connections of the old one go on. Before, it is not replaced.
func TestListenAside(t *testing.T) {
	path := filepath.Join(socketDir(t), "s")
	answer := func(n byte) (c net.Conn, stop func()) {
		t.Helper()
		l, err := rpc.Listen(path, 0o600)
		if err != nil {
			t.Fatal(err)
		}
		s := &rpc.Server{Match: rpctest.Everybody(func(_ context.Context, _ *rpc.Call, reply []byte) ([]byte, rpc.AcceptStat) {
			return append(reply, n), rpc.Success
		})}
		done := make(chan error, 1)
		go func() { done <- s.Serve(context.Background(), l, path) }()
		return dial(t, path), func() {
			l.Close()
			if err := <-done; err != nil {
				t.Error(err)
			}
		}
	}
	old, stop := answer(0)
	enough := make(chan struct{})
	var hammers sync.WaitGroup
	for range 4 {
		hammers.Go(func() {
			for {
				select {
				case <-enough:
					return
				default:
				}
				c, err := net.Dial("unix", path)
				if err != nil {
					t.Errorf("refused: %v", err)
					return
				}
				c.(*net.UnixConn).CloseWrite()
				io.ReadAll(c) // until it has been accepted, or the backlog fills up
				c.Close()
			}
		})
	}
	end := sync.OnceFunc(func() { close(enough); hammers.Wait() })
	defer end()
	stops := []func(){stop}
	for n := range byte(200) {
		os.Remove(path + rpc.Aside)
		if _, err := rpc.Listen(path, 0o600); err == nil || !strings.Contains(err.Error(), "listening there already") {
			t.Fatalf("not set aside: %v", err)
		}
		if err := os.Link(path, path+rpc.Aside); err != nil {
			t.Fatal(err)
		}
		c, stop := answer(n + 1)
		stops = append(stops, func() { c.Close(); stop() })
		send(t, c, call(1))
		expect(t, c, echoed(n+1))
	}
	end()
	send(t, old, call(1))
	expect(t, old, echoed(0))
	old.Close()
	for _, stop := range stops {
		stop()
	}
	left, err := filepath.Glob(filepath.Join(filepath.Dir(path), "*"))
	if err != nil || len(left) != 2 {
		t.Errorf("left: %v, %v", left, err)
	}
}

func socketDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "rpc")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}
