package mechglue

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"gssproxyd/tests/lab"
	"gssproxyd/xdr"
)

// The procedures that the tests call. Only a token to be accepted is never sent twice.
const (
	initiate = xdr.ProcInitSecContext
	accept   = xdr.ProcAcceptSecContext
)

// builds are how the program is compiled: for what C does not define, for races, with short deadlines, as it is, for
// forks of threads, which the address sanitizer's own memory does not survive, and with a file of the test's for the kernel's
// overflow uid, which is one for all programs.
var builds = []struct {
	name  string
	flags []string
}{
	{"address", []string{"-fsanitize=address,undefined", "-fno-sanitize-recover=all"}},
	{"thread", []string{"-fsanitize=thread"}},
	{"short", []string{"-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-DACCEPT_SECONDS=1", "-DOTHER_SECONDS=1"}},
	{"plain", nil},
	{"overflow", []string{"-fsanitize=address,undefined", "-fno-sanitize-recover=all", `-DOVERFLOW_UID=getenv("OVERFLOW_UID")`}},
}

var built string // the directory of programs, once there is one

// programs are those of builds in a directory that anybody may enter, and beside them the default socket.
var programs = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "mechglue")
	built = dir
	if err == nil {
		err = os.Chmod(dir, 0o755)
	}
	sources := []string{"csrc/transport.c"}
	for _, f := range []string{"transport", "status", "trace", "entry", "xdr", "gss_proxy_xdr"} {
		sources = append(sources, plugin+f+".c")
	}
	// The go command keeps a test's result until a file changes that the test itself has looked at.
	for _, f := range append([]string{plugin + "plugin.h", plugin + "xdr.h", plugin + "gss_proxy_xdr.h"}, sources...) {
		_, missing := os.Stat(f)
		err = errors.Join(err, missing)
	}
	for _, b := range builds {
		if err != nil {
			break
		}
		args := append([]string{"-std=c11", "-D_GNU_SOURCE", "-O1", "-g", "-Wall", "-Wextra", "-I" + plugin,
			"-isystem", "/usr/include/mit-krb5", `-DDEFAULT_SOCKET="` + dir + `/default"`,
			"-o", filepath.Join(dir, b.name)}, b.flags...)
		args = append(args, sources...)
		args = append(args, "-L/usr/lib/"+multiarch()+"/mit-krb5", "-lgssapi_krb5", "-lkrb5", "-pthread")
		var text []byte
		if text, err = exec.Command("gcc", args...).CombinedOutput(); err != nil {
			err = fmt.Errorf("gcc: %w\n%s", err, text)
		}
	}
	return dir, err
})

func multiarch() string {
	text, _ := exec.Command("gcc", "-print-multiarch").Output()
	return strings.TrimSpace(string(text))
}

func TestMain(m *testing.M) {
	code := m.Run()
	if built != "" {
		os.RemoveAll(built)
	}
	os.Exit(code)
}

// client is the program, and trace the file of its GSSPROXY_TRACE.
type client struct {
	t      testing.TB
	cmd    *exec.Cmd
	in     io.WriteCloser
	out    *bufio.Scanner
	errors bytes.Buffer
	kill   *time.Timer
	trace  string
}

// start runs a build until the test ends. change may be nil.
func start(t *testing.T, build, socket string, change func(*exec.Cmd)) *client {
	t.Helper()
	if _, err := exec.LookPath("gcc"); err != nil {
		lab.Lacking(t, "gcc", err)
	}
	dir, err := programs()
	if err != nil {
		t.Fatal(err)
	}
	return startProgram(t, filepath.Join(dir, build), socket, change)
}

func startProgram(t testing.TB, path, socket string, change func(*exec.Cmd)) *client {
	t.Helper()
	c := &client{t: t, cmd: exec.Command(path), trace: filepath.Join(t.TempDir(), "trace")}
	c.cmd.Env = append(os.Environ(), "GSSPROXY_SOCKET="+socket, "GSSPROXY_TRACE="+c.trace, "TSAN_OPTIONS=halt_on_error=1")
	c.cmd.Stderr = &c.errors
	if change != nil {
		change(c.cmd)
	}
	out, err := c.cmd.StdoutPipe()
	if err == nil {
		c.out = bufio.NewScanner(out)
		c.in, err = c.cmd.StdinPipe()
	}
	if err != nil {
		t.Fatal(err)
	}
	if err := c.cmd.Start(); err != nil {
		if errors.Is(err, syscall.EPERM) {
			lab.Lacking(t, "user namespaces", err)
		}
		t.Fatal(err)
	}
	c.kill = time.AfterFunc(2*time.Minute, func() { c.cmd.Process.Kill() })
	t.Cleanup(func() {
		c.in.Close()
		err := c.cmd.Wait()
		if !c.kill.Stop() {
			t.Error("the program hung")
		}
		if err != nil || c.errors.Len() > 0 {
			t.Errorf("the program: %v\n%s", err, &c.errors)
		}
	})
	return c
}

// tell lets the program do something, and hear returns what it says of that.
func (c *client) tell(format string, args ...any) {
	c.t.Helper()
	if _, err := fmt.Fprintf(c.in, format+"\n", args...); err != nil {
		c.t.Fatal(err)
	}
}

func (c *client) hear() string {
	c.t.Helper()
	if !c.out.Scan() {
		c.t.Fatalf("the program is silent: %v", c.out.Err())
	}
	return c.out.Text()
}

func (c *client) do(format string, args ...any) string {
	c.t.Helper()
	c.tell(format, args...)
	return c.hear()
}

// want compares what the program said, and has with what it may only contain.
func (c *client) want(got, want string) {
	c.t.Helper()
	if got != want {
		c.t.Errorf("it said %q, want %q", got, want)
	}
}

func (c *client) has(got string, parts ...string) {
	c.t.Helper()
	for _, p := range parts {
		if !strings.Contains(got, p) {
			c.t.Errorf("it said %q, without %q", got, p)
		}
	}
}

// traced waits until there are n lines with the text in the trace.
func (c *client) traced(text string, n int) {
	c.t.Helper()
	for range 6000 {
		lines, _ := os.ReadFile(c.trace)
		if bytes.Count(lines, []byte(text)) >= n {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	c.t.Fatalf("%q is not traced", text)
}

// daemon is a fake one. Its answer takes a connection, the number of the call, from 1 on, and the call without the record's
// header, and reports whether the connection goes on.
type daemon struct {
	t      testing.TB
	path   string
	answer func(c net.Conn, n int, call []byte) bool

	mu    sync.Mutex
	l     *net.UnixListener
	conns map[net.Conn]bool
	calls int
	uids  []uint32 // of each connection
	ended int      // connections
	done  sync.WaitGroup
}

func serve(t testing.TB, answer func(c net.Conn, n int, call []byte) bool) *daemon {
	t.Helper()
	dir, err := os.MkdirTemp("", "mechglue")
	if err != nil {
		t.Fatal(err)
	}
	os.Chmod(dir, 0o755)
	d := &daemon{t: t, path: filepath.Join(dir, "s"), answer: answer}
	d.start()
	t.Cleanup(func() {
		d.stop()
		os.RemoveAll(dir)
	})
	return d
}

func (d *daemon) start() {
	d.t.Helper()
	os.Remove(d.path)
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: d.path, Net: "unix"})
	if err != nil {
		d.t.Fatal(err)
	}
	os.Chmod(d.path, 0o666)
	d.listen(l)
}

func (d *daemon) listen(l *net.UnixListener) {
	d.l, d.conns = l, map[net.Conn]bool{}
	d.done.Go(func() {
		for {
			c, err := l.AcceptUnix()
			if err != nil {
				return
			}
			d.mu.Lock()
			if d.conns == nil {
				c.Close()
			} else {
				d.conns[c] = true
				d.uids = append(d.uids, uidOf(c))
				d.done.Go(func() { d.talk(c) })
			}
			d.mu.Unlock()
		}
	})
}

func uidOf(c *net.UnixConn) (uid uint32) {
	raw, err := c.SyscallConn()
	if err != nil {
		return 0
	}
	raw.Control(func(fd uintptr) {
		if cred, err := syscall.GetsockoptUcred(int(fd), syscall.SOL_SOCKET, syscall.SO_PEERCRED); err == nil {
			uid = cred.Uid
		}
	})
	return uid
}

func (d *daemon) talk(c net.Conn) {
	defer func() {
		d.mu.Lock()
		c.Close()
		delete(d.conns, c)
		d.ended++
		d.mu.Unlock()
	}()
	for {
		header := make([]byte, 4)
		if _, err := io.ReadFull(c, header); err != nil {
			return
		}
		n := binary.BigEndian.Uint32(header)
		if n>>31 != 1 || n&^(1<<31) > 1<<20 {
			d.t.Errorf("a record's header is %#x", n)
			return
		}
		call := make([]byte, n&^(1<<31))
		if _, err := io.ReadFull(c, call); err != nil {
			return
		}
		d.mu.Lock()
		d.calls++
		n = uint32(d.calls)
		d.mu.Unlock()
		if !d.answer(c, int(n), call) {
			return
		}
	}
}

// stop takes the socket away and ends all connections.
func (d *daemon) stop() {
	d.l.Close()
	d.mu.Lock()
	for c := range d.conns {
		c.Close()
	}
	d.conns = nil
	d.mu.Unlock()
	d.done.Wait()
}

// seen are the calls so far.
func (d *daemon) seen() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.calls
}

// by returns who has connected: the uid of each connection, in their order.
func (d *daemon) by() []uint32 {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Clone(d.uids)
}

// until waits until what it is asked, with the lock held, is so.
func (d *daemon) until(what string, so func() bool) {
	d.t.Helper()
	for range 6000 {
		d.mu.Lock()
		ok := so()
		d.mu.Unlock()
		if ok {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	d.t.Fatalf("not so: %s", what)
}

const callHeader = 40 // bytes: xid 0 2 program version procedure, credential, verifier

// words are 32-bit words of a record, and record is one of them and results.
func words(w ...uint32) (b []byte) {
	for _, v := range w {
		b = binary.BigEndian.AppendUint32(b, v)
	}
	return b
}

func record(b ...[]byte) []byte {
	all := bytes.Join(b, nil)
	return append(words(1<<31|uint32(len(all))), all...)
}

func xid(call []byte) uint32 { return binary.BigEndian.Uint32(call) }

// reply is the right answer to a call: what was sent.
func reply(call []byte) []byte {
	return record(words(xid(call), 1, 0, 0, 0, 0), call[callHeader:])
}

func echo(c net.Conn, _ int, call []byte) bool {
	c.Write(reply(call))
	return true
}

func each(t *testing.T, f func(t *testing.T, build string)) {
	for _, b := range builds[:2] {
		t.Run(b.name, func(t *testing.T) { f(t, b.name) })
	}
}

func TestTransportCalls(t *testing.T) {
	each(t, func(t *testing.T, build string) {
		d := serve(t, func(c net.Conn, n int, call []byte) bool {
			want := words(xid(call), 0, 2, 400112, 1, uint32(accept), 0, 0, 0, 0)
			if n == 1 && !bytes.Equal(call[:callHeader], want) {
				t.Errorf("the header is %x, want %x", call[:callHeader], want)
			}
			return echo(c, n, call)
		})
		c := start(t, build, d.path, nil)
		for _, n := range []int{0, 1, 8 << 10, 100_000, 1<<20 - 100} {
			c.want(c.do("call %d %d", accept, n), "ok")
		}
		c.has(c.do("call %d %d", accept, 1<<20), "gssproxyd at "+d.path, "Message too long")
		if n := len(d.by()); n != 1 {
			t.Errorf("%d connections for one call after another", n)
		}
		c.want(c.do("threads %d 200 8", accept), "0 failed ")
		if n := len(d.by()); n > 9 {
			t.Errorf("%d connections for eight threads", n)
		}
	})
}

// Of twenty calls at once sixteen connections are kept.
func TestTransportKeeps(t *testing.T) {
	each(t, func(t *testing.T, build string) {
		var all sync.WaitGroup
		all.Add(20)
		d := serve(t, func(c net.Conn, n int, call []byte) bool {
			all.Done()
			all.Wait()
			return echo(c, n, call)
		})
		c := start(t, build, d.path, nil)
		c.want(c.do("threads %d 1 20", initiate), "0 failed ")
		if n := len(strings.Fields(c.do("sockets"))) - 1; n != 16 {
			t.Errorf("%d sockets are kept", n)
		}
	})
}

func TestTransportRestart(t *testing.T) {
	each(t, func(t *testing.T, build string) {
		d := serve(t, echo)
		c := start(t, build, d.path, nil)
		c.want(c.do("call %d 10", accept), "ok")
		for i, p := range []xdr.Proc{accept, initiate} {
			d.stop()
			c.tell("call %d 10", p)
			c.traced("waiting for "+d.path, i+1)
			d.start()
			c.want(c.hear(), "ok")
		}
		d.stop()
		begun := time.Now()
		c.has(c.do("call %d 10", initiate), "gssproxyd at "+d.path+": No such file or directory; is gssproxyd running")
		if took := time.Since(begun); took < time.Second || took > 12*time.Second {
			t.Errorf("it waited for %v", took)
		}
		c = start(t, build, d.path, nil) // which has never seen it
		c.has(c.do("call %d 10", initiate), "is gssproxyd running")
		if lines, _ := os.ReadFile(c.trace); bytes.Contains(lines, []byte("waiting for")) {
			t.Errorf("it waited: %s", lines)
		}
		d.start()
	})
}

// Under load nothing but a token can be lost.
func TestTransportRestarts(t *testing.T) {
	each(t, func(t *testing.T, build string) {
		d := serve(t, echo)
		c := start(t, build, d.path, nil)
		c.tell("threads %d 3000 8", initiate)
		for i := 1; i <= 10; i++ {
			d.until("calls go on", func() bool { return d.calls >= 100*i })
			d.stop()
			d.start()
		}
		c.want(c.hear(), "0 failed ")
	})
}

func TestTransportFull(t *testing.T) {
	fd, err := syscall.Socket(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "s")
	err = errors.Join(syscall.Bind(fd, &syscall.SockaddrUnix{Name: path}), syscall.Listen(fd, 0))
	f := os.NewFile(uintptr(fd), path)
	l, err2 := net.FileListener(f)
	if err = errors.Join(err, err2, f.Close()); err != nil {
		t.Fatal(err)
	}
	first, err := net.Dial("unix", path) // the queue is full now
	if err != nil {
		t.Fatal(err)
	}
	first.Close()
	c := start(t, "address", path, nil)
	c.tell("call %d 10", initiate)
	d := &daemon{t: t, path: path, answer: echo}
	d.until("it waits for a connection", func() bool {
		now, err := os.ReadFile(fmt.Sprintf("/proc/%d/syscall", c.cmd.Process.Pid))
		return err == nil && bytes.HasPrefix(now, fmt.Appendf(nil, "%d ", syscall.SYS_CONNECT))
	})
	d.listen(l.(*net.UnixListener))
	defer d.stop()
	c.want(c.hear(), "ok")

	d = serve(t, echo)
	d.stop()
	os.WriteFile(d.path, nil, 0o666) // a file, and not a socket
	c = start(t, "address", d.path, nil)
	c.has(c.do("call %d 10", initiate), "Connection refused; is gssproxyd running")
	os.Remove(d.path)
	d.start()
}

func TestTransportEnds(t *testing.T) {
	for _, tt := range []struct {
		name   string
		proc   xdr.Proc
		before int    // calls that are answered
		ends   int    // calls, after those, whose connection ends instead; -1 for all
		part   int    // bytes of the answer before
		want   string // what is said of the last call
		seen   int    // calls after those before
	}{
		{"no service, accept", accept, 0, -1, 0, "does its configuration have a service for this user and program?", 1},
		{"no service, init", initiate, 0, -1, 0, "does its configuration have a service for this user and program?", 2},
		{"restart, init", initiate, 0, 1, 0, "ok", 2},
		{"accept", accept, 1, -1, 0, "a token counts once", 1},
		{"accept, half", accept, 1, -1, 20, "a token counts once", 1},
		{"init", initiate, 1, 1, 0, "ok", 2},
		{"init, half", initiate, 1, 1, 20, "ok", 2},
		{"init twice", initiate, 1, 2, 3, "ok", 3},
		{"init always", initiate, 1, -1, 0, "does its configuration", 3},
	} {
		t.Run(tt.name, func(t *testing.T) {
			each(t, func(t *testing.T, build string) {
				var first []byte
				d := serve(t, func(c net.Conn, n int, call []byte) bool {
					if n == tt.before+1 {
						first = call
					} else if n > tt.before && !bytes.Equal(call, first) {
						t.Errorf("another call is made: %x, not %x", call, first)
					}
					if n > tt.before && (tt.ends < 0 || n <= tt.before+tt.ends) {
						c.Write(reply(call)[:tt.part])
						return false
					}
					return echo(c, n, call)
				})
				c := start(t, build, d.path, nil)
				for range tt.before {
					c.want(c.do("call %d 10", tt.proc), "ok")
				}
				c.has(c.do("call %d 10", tt.proc), tt.want)
				if n := d.seen() - tt.before; n != tt.seen {
					t.Errorf("the call was made %d times, want %d", n, tt.seen)
				}
			})
		})
	}
}

// A connection that the daemon ended meanwhile is replaced: it has had nothing of the call.
func TestTransportIdleEnds(t *testing.T) {
	each(t, func(t *testing.T, build string) {
		d := serve(t, func(c net.Conn, n int, call []byte) bool {
			echo(c, n, call)
			return false
		})
		c := start(t, build, d.path, nil)
		for i := 1; i <= 3; i++ {
			c.want(c.do("call %d 300000", accept), "ok")
			d.until("it is closed", func() bool { return d.ended == i })
		}
		if n := d.seen(); n != 3 {
			t.Errorf("%d calls", n)
		}
	})
}

func TestTransportWrongAnswers(t *testing.T) {
	for _, tt := range []struct {
		name   string
		answer func(call []byte) []byte
		want   string
	}{
		{"xid", func(b []byte) []byte { return record(words(xid(b)+1, 1, 0, 0, 0, 0), b[callHeader:]) }, "its answer is to another call"},
		{"call", func(b []byte) []byte { return record(words(xid(b), 0, 0, 0, 0, 0), b[callHeader:]) }, "its answer is none"},
		{"empty", func(b []byte) []byte { return record() }, "another call"},
		{"short", func(b []byte) []byte { return record(words(xid(b), 1, 0, 0, 0)) }, "its answer is none"},
		{"stat", func(b []byte) []byte { return record(words(xid(b), 1, 2, 0, 0, 0)) }, "its answer is none"},
		{"accept stat", func(b []byte) []byte { return record(words(xid(b), 1, 0, 0, 0, 6)) }, "its answer is none"},
		{"verifier", func(b []byte) []byte { return record(words(xid(b), 1, 0, 0, 1<<20, 0)) }, "its answer is none"},
		{"rpc version", func(b []byte) []byte { return record(words(xid(b), 1, 1, 0, 3, 3)) }, "another version of RPC"},
		{"credential", func(b []byte) []byte { return record(words(xid(b), 1, 1, 1, 1)) }, "asks for an RPC credential"},
		{"program", func(b []byte) []byte { return record(words(xid(b), 1, 0, 0, 0, 1)) }, "does not serve gssproxy's protocol"},
		{"version", func(b []byte) []byte { return record(words(xid(b), 1, 0, 0, 0, 2, 1, 1)) }, "another version of gssproxy's"},
		{"procedure", func(b []byte) []byte { return record(words(xid(b), 1, 0, 0, 0, 3)) }, "does not know this call"},
		{"arguments", func(b []byte) []byte { return record(words(xid(b), 1, 0, 0, 0, 4)) }, "could not read the call"},
		{"trouble", func(b []byte) []byte { return record(words(xid(b), 1, 0, 0, 0, 5)) }, "in trouble"},
		{"pieces", func(b []byte) []byte { return words(24, xid(b), 1, 0, 0, 0, 0) }, "in pieces"},
		{"long", func(b []byte) []byte { return words(1<<31 | (1<<20 + 1)) }, "longer than 1048576 bytes"},
		{"longest", func(b []byte) []byte { return words(0xffffffff) }, "longer than 1048576 bytes"},
		{"more", func(b []byte) []byte { return append(reply(b), 0) }, "more came than its answer"},
		{"results", func(b []byte) []byte { return record(words(xid(b), 1, 0, 0, 0, 0, 11), b[callHeader+4:]) }, "cannot be read"},
		{"verifier is skipped", func(b []byte) []byte { return record(words(xid(b), 1, 0, 6, 3, 0x01020300, 0), b[callHeader:]) }, "ok"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			d := serve(t, func(c net.Conn, n int, call []byte) bool {
				if n == 1 {
					c.Write(tt.answer(call))
					return true
				}
				return echo(c, n, call)
			})
			c := start(t, "address", d.path, nil)
			c.has(c.do("call %d 10", initiate), tt.want)
			c.want(c.do("call %d 10", initiate), "ok")
			if n := d.seen(); n != 2 {
				t.Errorf("%d calls", n)
			}
		})
	}
}

// A byte at a time is an answer as well, as long as there is time.
func TestTransportDribble(t *testing.T) {
	each(t, func(t *testing.T, build string) {
		d := serve(t, func(c net.Conn, n int, call []byte) bool {
			for _, b := range reply(call) {
				c.Write([]byte{b})
				time.Sleep(time.Millisecond)
			}
			return true
		})
		c := start(t, build, d.path, nil)
		c.want(c.do("call %d 100", accept), "ok")
	})
}

// One deadline, of a second here, is waited for all that is done in a call, and nothing is sent when it is past.
func TestTransportDeadline(t *testing.T) {
	hang := func(c net.Conn, n int, call []byte) bool { return true }
	forever := func(c net.Conn, n int, call []byte) bool {
		c.Write(words(1<<31 | 1<<20))
		for {
			if _, err := c.Write([]byte{0}); err != nil {
				return false
			}
			time.Sleep(20 * time.Millisecond)
		}
	}
	for name, answer := range map[string]func(net.Conn, int, []byte) bool{"hang": hang, "dribble": forever} {
		t.Run(name, func(t *testing.T) {
			for _, p := range []xdr.Proc{accept, initiate} {
				d := serve(t, answer)
				c := start(t, "short", d.path, nil)
				begun := time.Now()
				c.has(c.do("call %d 10", p), "gssproxyd at "+d.path+": it did not answer in time: Connection timed out")
				c.has(c.do("again %d 10", p), "no time is left")
				if took := time.Since(begun); took < time.Second || took > 30*time.Second {
					t.Errorf("it took %v", took)
				}
				if n := d.seen(); n != 1 {
					t.Errorf("%d calls", n)
				}
			}
		})
	}
}

// The sanitizers' allocators have locks of their own, which a child of a program with threads may find
// taken for ever: this is for the program as it is.
func TestTransportForks(t *testing.T) {
	d := serve(t, echo)
	c := start(t, "plain", d.path, nil)
	c.want(c.do("forks 40"), "40 children, 1 sockets at most, 0 calls failed")
}

func TestTransportDescriptors(t *testing.T) {
	each(t, func(t *testing.T, build string) {
		d := serve(t, echo)
		c := start(t, build, d.path, nil)
		c.want(c.do("call %d 10", accept), "ok")
		c.want(c.do("exec"), "sockets:")
		c.want(c.do("take"), "1 taken")
		c.want(c.do("call %d 10", accept), "ok")
		c.want(c.do("taken"), "1 checked")

		c = start(t, build, d.path, nil)
		c.want(c.do("unstdio"), "0")
		c.want(c.do("call %d 10", accept), "ok")
		c.want(c.do("sockets"), "sockets: 3")
	})
}

// When the program becomes another user its connections go, since the daemon knows them as the first one's.
func TestTransportAnotherUser(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("not root")
	}
	each(t, func(t *testing.T, build string) {
		d := serve(t, echo)
		c := start(t, build, d.path, nil)
		c.want(c.do("call %d 10", accept), "ok")
		c.want(c.do("seteuid 1234"), "0")
		c.want(c.do("call %d 10", accept), "ok")
		d.until("the first is closed", func() bool { return d.ended == 1 })
		c.want(c.do("seteuid 0"), "0")
		c.want(c.do("call %d 10", accept), "ok")
		d.until("the second is closed", func() bool { return d.ended == 2 })
		if got := fmt.Sprint(d.by()); got != "[0 1234 0]" {
			t.Errorf("the users were %s", got)
		}
	})
}

// listenAs serves at path as another user, whose socket it then is.
func listenAs(t *testing.T, uid int, path string) *daemon {
	t.Helper()
	made := make(chan *daemon)
	go func() {
		defer close(made)
		runtime.LockOSThread() // and it ends with its thread
		if _, _, e := syscall.RawSyscall(syscall.SYS_SETRESUID, ^uintptr(0), uintptr(uid), ^uintptr(0)); e != 0 {
			t.Errorf("setresuid: %v", e)
			return
		}
		l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
		if err != nil {
			t.Errorf("listen: %v", err)
			return
		}
		os.Chmod(path, 0o666)
		d := &daemon{t: t, path: path, answer: echo}
		d.listen(l)
		made <- d
	}()
	d := <-made
	if d == nil {
		t.FailNow()
	}
	t.Cleanup(d.stop)
	return d
}

func TestTransportWhoIsBelieved(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("not root")
	}
	dir, err := programs()
	if err != nil {
		t.Fatal(err)
	}
	open, err := os.MkdirTemp("", "mechglue")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(open)
	os.Chmod(open, 0o777)
	as := func(uid uint32) func(*exec.Cmd) {
		return func(cmd *exec.Cmd) {
			cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
		}
	}
	// namespace lets the program run as uid 1000 in a user namespace with and without root.
	namespace := func(root, explicit bool) func(*exec.Cmd) {
		return func(cmd *exec.Cmd) {
			ids := []syscall.SysProcIDMap{{ContainerID: 1000, HostID: 1000, Size: 1}}
			if root {
				ids = append(ids, syscall.SysProcIDMap{ContainerID: 0, HostID: 5000, Size: 1})
			}
			cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWUSER, UidMappings: ids, GidMappings: ids,
				Credential: &syscall.Credential{Uid: 1000, Gid: 1000, NoSetGroups: true}}
			if !explicit {
				cmd.Env = append(cmd.Env, "GSSPROXY_SOCKET=")
			}
		}
	}
	rootPath, nobodyPath, userPath := filepath.Join(open, "root"), filepath.Join(open, "nobody"), filepath.Join(open, "user")
	listenAs(t, 0, rootPath)
	nobody := listenAs(t, 65534, nobodyPath)
	listenAs(t, 1234, userPath)
	listenAs(t, 0, filepath.Join(dir, "default"))
	const refused = ": it runs as uid 65534: Operation not permitted; only root's and uid "
	for _, tt := range []struct {
		name, path string
		change     func(*exec.Cmd)
		want       string
	}{
		{"root's, of root", rootPath, nil, "ok"},
		{"root's, of a user", rootPath, as(1234), "ok"},
		{"a user's own", userPath, as(1234), "ok"},
		{"a user's, of root", userPath, nil, userPath + ": it runs as uid 1234: Operation not permitted; only root's and uid 0's is believed"},
		{"nobody's, of root", nobodyPath, nil, nobodyPath + refused + "0's"},
		{"nobody's, of a user", nobodyPath, as(1234), nobodyPath + refused + "1234's"},
		{"root is not known", rootPath, namespace(false, true), "ok"},
		{"root is another one", rootPath, namespace(true, true), rootPath + refused + "1000's"},
		{"the default socket", rootPath, namespace(false, false), dir + "/default" + refused + "1000's"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := start(t, "address", tt.path, tt.change)
			c.has(c.do("call %d 10", accept), tt.want)
		})
	}
	if n := nobody.seen(); n != 0 {
		t.Errorf("nobody's server got %d calls", n)
	}
}

// Which uid means that its user is not known is the kernel's to say.
func TestTransportOverflowUID(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("not root")
	}
	dir, err := os.MkdirTemp("", "mechglue")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	os.Chmod(dir, 0o777)
	path := filepath.Join(dir, "root")
	listenAs(t, 0, path)
	for name, tt := range map[string]struct{ says, want string }{
		"it":      {"65534\n", "ok"},
		"another": {"4711\n", path + ": it runs as uid 65534: Operation not permitted"},
		"no uid":  {"4294967296\n", "ok"},
		"nothing": {"", "ok"},
	} {
		t.Run(name, func(t *testing.T) {
			file := filepath.Join(dir, name)
			if err := os.WriteFile(file, []byte(tt.says), 0o644); err != nil {
				t.Fatal(err)
			}
			c := start(t, "overflow", path, func(cmd *exec.Cmd) {
				ids := []syscall.SysProcIDMap{{ContainerID: 1000, HostID: 1000, Size: 1}}
				cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWUSER, UidMappings: ids, GidMappings: ids,
					Credential: &syscall.Credential{Uid: 1000, Gid: 1000, NoSetGroups: true}}
				cmd.Env = append(cmd.Env, "OVERFLOW_UID="+file)
			})
			c.has(c.do("call %d 10", accept), tt.want)
		})
	}
}

func TestStatusTexts(t *testing.T) {
	c := start(t, "address", "/nowhere", nil)
	c.want(c.do("texts"), "0x70000 0x96c73a25 no ?[31mkey?for you|no credentials|0x1 0|one; two|No such file or directory|seen: tw|newer|"+
		"what failed is only known to the thread it failed in")
}

// The trace is one line for each decision, in a file that is only ours to read, and never a link.
func TestTrace(t *testing.T) {
	d := serve(t, echo)
	c := start(t, "address", d.path, nil)
	c.want(c.do("call %d 10", accept), "ok")
	if info, err := os.Stat(c.trace); err != nil || info.Mode() != 0o600 {
		t.Errorf("%v %v", info, err)
	}
	want := fmt.Sprintf(" %d %[1]d connected to %s\n", c.cmd.Process.Pid, d.path)
	if line, _ := os.ReadFile(c.trace); !strings.HasSuffix(string(line), want) || bytes.Count(line, []byte("\n")) != 1 {
		t.Errorf("it is %q, without %q", line, want)
	}
	dir := t.TempDir()
	target, link, fifo := filepath.Join(dir, "target"), filepath.Join(dir, "link"), filepath.Join(dir, "fifo")
	err := errors.Join(os.WriteFile(target, nil, 0o600), os.Symlink(target, link), syscall.Mkfifo(fifo, 0o600))
	if err != nil {
		t.Fatal(err)
	}
	reader, err := os.OpenFile(fifo, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer reader.Close()
	for _, file := range []string{link, fifo} {
		c = start(t, "address", d.path, func(cmd *exec.Cmd) { cmd.Env = append(cmd.Env, "GSSPROXY_TRACE="+file) })
		c.want(c.do("call %d 10", accept), "ok")
	}
	if b, _ := os.ReadFile(target); len(b) > 0 {
		t.Errorf("it was written through a link: %q", b)
	}
	if n, err := reader.Read(make([]byte, 100)); n > 0 {
		t.Errorf("a fifo was written to: %v", err)
	}
}
