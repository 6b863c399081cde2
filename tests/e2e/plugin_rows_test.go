package e2e

import (
	"bufio"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"gssproxyd/tests/lab"
	"gssproxyd/xdr"
)

// Each test here is one thing a plugin of the mechglue may do to its program, and ours must not. So
// that it is known to be able to fail, it is run with Debian's too, which does it.

// row runs a test, which returns what the plugin does to the program: nothing in our case, and what
// is expected in Debian's.
func row(t *testing.T, debians string, test func(t *testing.T, p lab.Plugin) error) {
	t.Helper()
	needOurs(t)
	t.Run(string(lab.Ours), func(t *testing.T) { check(t, test(t, lab.Ours)) })
	t.Run(string(lab.Debians), func(t *testing.T) {
		if err := test(t, lab.Debians); err == nil || !strings.Contains(err.Error(), debians) {
			t.Errorf("%v, want %q: this test shows nothing", err, debians)
		}
	})
}

// program is a run of the lab's program of threads, children and descriptors.
type program struct {
	t   *testing.T
	cmd *exec.Cmd
	in  io.WriteCloser
	out *bufio.Reader
	err strings.Builder
}

// threads starts one as nobody. It is killed when it does not end in time.
func threads(t *testing.T, env []string, args ...string) *program {
	t.Helper()
	r := realm(t)
	p := &program{t: t, cmd: r.Command(lab.Nobody, env, filepath.Join(r.Dir, "threads"), args...)}
	var err error
	p.in, err = p.cmd.StdinPipe()
	check(t, err)
	out, err := p.cmd.StdoutPipe()
	check(t, err)
	p.out = bufio.NewReader(out)
	p.cmd.Stderr = &p.err
	check(t, p.cmd.Start())
	timer := time.AfterFunc(2*lab.Patience, func() { p.cmd.Process.Kill() })
	t.Cleanup(func() {
		timer.Stop()
		p.cmd.Process.Kill()
		p.cmd.Wait()
	})
	return p
}

// goOn sends the line it waits for.
func (p *program) goOn() {
	p.t.Helper()
	_, err := io.WriteString(p.in, "\n")
	check(p.t, err)
}

// line is the next line it writes.
func (p *program) line() string {
	p.t.Helper()
	line, err := p.out.ReadString('\n')
	if err != nil {
		p.t.Fatalf("%v after %q; %v: %s", err, line, p.cmd.Wait(), &p.err)
	}
	return strings.TrimSuffix(line, "\n")
}

// end waits for its end, and returns what it still writes.
func (p *program) end() (string, error) {
	rest, err := io.ReadAll(p.out)
	if err := errors.Join(err, p.cmd.Wait()); err != nil {
		return string(rest), fmt.Errorf("%w: %s", err, &p.err)
	}
	return string(rest), nil
}

// proxy is a socket in front of a daemon's: what goes through may be held, and the socket be absent
// for a while.
type proxy struct {
	socket, daemon string
	mu             sync.Mutex
	l              *net.UnixListener
	conns          []net.Conn
	hold           chan struct{} // nil: nothing is held; else the next connection's requests, until it is closed
	held           chan struct{} // has one for each connection that is held
}

func newProxy(t *testing.T, daemon string) *proxy {
	t.Helper()
	p := &proxy{socket: filepath.Join(realm(t).Path("proxy")), daemon: daemon, held: make(chan struct{}, 100)}
	p.listen(t)
	t.Cleanup(p.absent)
	return p
}

func (p *proxy) listen(t *testing.T) {
	t.Helper()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: p.socket, Net: "unix"})
	check(t, err)
	check(t, os.Chmod(p.socket, 0o666))
	p.mu.Lock()
	p.l = l
	p.mu.Unlock()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go p.serve(c)
		}
	}()
}

// absent ends the connections and removes the socket.
func (p *proxy) absent() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.l.Close()
	for _, c := range p.conns {
		c.Close()
	}
	p.conns = nil
}

// holdNext holds the requests of the next connection, and of no other, until release.
func (p *proxy) holdNext() (release func()) {
	hold := make(chan struct{})
	p.mu.Lock()
	p.hold = hold
	p.mu.Unlock()
	return sync.OnceFunc(func() { close(hold) })
}

func (p *proxy) serve(c net.Conn) {
	defer c.Close()
	p.mu.Lock()
	hold := p.hold
	p.hold = nil
	p.conns = append(p.conns, c)
	p.mu.Unlock()
	first := make([]byte, 1)
	if _, err := io.ReadFull(c, first); err != nil {
		return
	}
	if hold != nil {
		p.held <- struct{}{}
		<-hold
	}
	d, err := net.Dial("unix", p.daemon)
	if err != nil {
		return
	}
	defer d.Close()
	if _, err := d.Write(first); err != nil {
		return
	}
	go func() {
		io.Copy(d, c)
		d.Close()
	}()
	io.Copy(c, d)
}

// received waits for something that another goroutine tells.
func received[T any](t *testing.T, from <-chan T, what string) T {
	t.Helper()
	select {
	case v := <-from:
		return v
	case <-time.After(lab.Patience):
		t.Fatalf("%s does not happen", what)
		panic("unreachable")
	}
}

// hanging is a socket of a daemon that takes connections and never answers.
func hanging(t *testing.T) string {
	t.Helper()
	socket := realm(t).Path("hanging")
	l, err := net.Listen("unix", socket)
	check(t, err)
	check(t, os.Chmod(socket, 0o666))
	t.Cleanup(func() { l.Close() })
	return socket
}

// aToken is what alice sends to the service first.
func aToken(t *testing.T) []byte {
	t.Helper()
	_, token, err := alice(t).Init(service, lab.Usual, nil)
	check(t, err)
	return token
}

// TestPluginRestart: the daemon is restarted between two calls of a program that has SIGPIPE as it
// is by default.
func TestPluginRestart(t *testing.T) {
	row(t, "signal: broken pipe", func(t *testing.T, p lab.Plugin) error {
		d := daemon(t, "ours", lab.Options{})
		g := threads(t, d.PluginEnvOf(p), "twice")
		if first := g.line(); first != "0" {
			t.Fatal(first)
		}
		check(t, d.Restart())
		g.goOn()
		out, err := g.end()
		if err == nil && out != "0\n" {
			err = errors.New(out)
		}
		return err
	})
}

// TestNightlyPluginRestarts: the daemon is killed and started anew, fifty times, under sixteen threads
// that acquire, initiate and canonicalize: each such call may be made again, and none fails. Between
// two kills there is time for some to be answered.
func TestNightlyPluginRestarts(t *testing.T) {
	lab.Nightly(t)
	needOurs(t)
	d := alicesDaemon(t)
	g := threads(t, d.PluginEnvOf(lab.Ours), "busy", "16", service)
	failed := 0
	calls := func() (n int) {
		t.Helper()
		g.goOn()
		for {
			line := g.line()
			if _, err := fmt.Sscanf(line, "calls %d", &n); err == nil {
				return n
			}
			if failed++; failed < 10 {
				t.Error(line)
			}
		}
	}
	for range 50 {
		for before := calls(); calls() < before+64; {
			time.Sleep(time.Millisecond)
		}
		check(t, d.Crash())
	}
	check(t, g.in.Close())
	out, err := g.end()
	check(t, err)
	if failed += strings.Count(out, "\n"); failed != 0 {
		t.Errorf("%d calls failed\n%s", failed, tail(out, 1<<10))
	}
}

// TestPluginAbsence: the socket is absent for a moment, when the program makes its second call. Its
// connection is closed first, as that of a program which the daemon has not heard of for long.
func TestPluginAbsence(t *testing.T) {
	row(t, "signal: broken pipe", func(t *testing.T, p lab.Plugin) error {
		between := newProxy(t, daemon(t, "ours", lab.Options{}).Socket)
		trace := filepath.Join(nobodyDir(t), "trace") // Debian's has none
		g := threads(t, append(realm(t).PluginEnvOf(p, between.socket), "GSSPROXY_TRACE="+trace), "twice")
		if first := g.line(); first != "0" {
			t.Fatal(first)
		}
		between.absent()
		g.goOn()
		for until := time.Now().Add(lab.Patience); p == lab.Ours; time.Sleep(time.Millisecond) {
			if told, _ := os.ReadFile(trace); strings.Contains(string(told), "waiting for "+between.socket) {
				break
			}
			if time.Now().After(until) {
				t.Fatal("it does not wait for the daemon")
			}
		}
		between.listen(t)
		out, err := g.end()
		if err == nil && out != "0\n" {
			err = errors.New(out)
		}
		return err
	})
}

// hangs has n threads accept at once, and says what is wrong if one of them fails to give up within
// the deadline of one call, or says nothing of the daemon.
func hangs(t *testing.T, p lab.Plugin, n int) error {
	socket := hanging(t)
	out, err := threads(t, realm(t).PluginEnvOf(p, socket), "accept", strconv.Itoa(n), hex.EncodeToString(aToken(t))).end()
	check(t, err)
	for line := range strings.Lines(out) {
		var major uint32
		var ms int
		if _, err := fmt.Sscan(line, &major, &ms); err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		if major == 0 || ms < 3000 || ms > 14000 || !strings.Contains(line, socket) {
			return fmt.Errorf("not given up after the 5 s of a call: %s", out)
		}
	}
	if strings.Count(out, "\n") != n {
		t.Fatal(out)
	}
	return nil
}

// TestPluginHangingDaemon: a daemon takes the connection and does not answer.
func TestPluginHangingDaemon(t *testing.T) {
	needOurs(t)
	for _, n := range []int{1, 3} {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			t.Parallel()
			check(t, hangs(t, lab.Ours, n))
		})
	}
}

// TestNightlyPluginHangingDaemon: Debian's waits for three times 15 s, for each of the calls that an
// accept is made of.
func TestNightlyPluginHangingDaemon(t *testing.T) {
	lab.Nightly(t)
	err := hangs(t, lab.Debians, 1)
	if err == nil {
		t.Error("it does not: the test with our plugin shows nothing")
	}
	t.Logf("Debian's plugin: %v", err)
}

// TestPluginHangingKDC: one thread of a program waits for a KDC by way of the daemon, and another
// accepts.
func TestPluginHangingKDC(t *testing.T) {
	row(t, "waits for the thread that initiates", func(t *testing.T, p lab.Plugin) error {
		r := realm(t)
		alices, err := r.Keytab("alice.keytab", "alice")
		check(t, err)
		relay, err := r.Relay()
		check(t, err)
		defer relay.Close()
		asked, answer := make(chan struct{}, 100), make(chan struct{})
		goOn := sync.OnceFunc(func() { close(answer) })
		defer goOn()
		relay.Set(func(_ context.Context, ask func() []byte) []byte {
			asked <- struct{}{}
			<-answer
			return ask()
		})
		keys := keytab(t)
		d := daemon(t, "ours", lab.Options{Keytab: keys, Krb5Conf: relay.Conf, Config: config(
			svc{"both", lab.Nobody.UID, []string{"cred_store = keytab:" + keys, "cred_store = client_keytab:" + alices}},
			svc{"lab", 0, nil},
		)})
		g := threads(t, d.PluginEnvOf(p), "behind", service, hex.EncodeToString(aToken(t)))
		received(t, asked, "asking the KDC")
		g.goOn()
		var thread int
		if _, err := fmt.Sscanf(g.line(), "accepting %d", &thread); err != nil {
			t.Fatal(err)
		}
		if p == lab.Debians {
			waitForLock(t, g.cmd.Process.Pid, thread)
			goOn()
			// The lock is given back before the one thread says that it is done.
			if lines := []string{g.line(), g.line()}; !slices.Contains(lines, "initiated 0") || !slices.Contains(lines, "accepted 0") {
				t.Fatal(lines)
			}
			return errors.New("the thread that accepts waits for the thread that initiates")
		}
		if line := g.line(); line != "accepted 0" {
			return errors.New(line)
		}
		goOn()
		if line := g.line(); line != "initiated 0" {
			return errors.New(line)
		}
		_, err = g.end()
		return err
	})
}

// waitForLock waits until a thread waits for a lock.
func waitForLock(t *testing.T, pid, thread int) {
	t.Helper()
	const futex = "202 "
	for until := time.Now().Add(lab.Patience); time.Now().Before(until); time.Sleep(time.Millisecond) {
		call, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/syscall", pid, thread))
		check(t, err)
		if strings.HasPrefix(string(call), futex) {
			return
		}
	}
	t.Fatal("it waits for no lock")
}

// TestPluginFork: forty children are made while a thread is in the middle of a call, and each makes
// one of its own.
func TestPluginFork(t *testing.T) {
	row(t, "well 0 badly 0 hanging 40", func(t *testing.T, p lab.Plugin) error {
		between := newProxy(t, daemon(t, "ours", lab.Options{}).Socket)
		defer between.holdNext()()
		seconds := "50"
		if p == lab.Debians {
			seconds = "2" // they hang for ever
		}
		g := threads(t, realm(t).PluginEnvOf(p, between.socket), "fork", "40", seconds)
		received(t, between.held, "the thread's call")
		g.goOn()
		out, err := g.end()
		check(t, err)
		if out != "well 40 badly 0 hanging 0\n" {
			return errors.New(out)
		}
		return nil
	})
}

// TestPluginExec: a program that becomes another one leaves it no descriptor of the daemon.
func TestPluginExec(t *testing.T) {
	row(t, "socket:", func(t *testing.T, p lab.Plugin) error {
		without, err := realm(t).Run(lab.Nobody, nil, "/bin/ls", "-l", "/proc/self/fd")
		check(t, err)
		d := daemon(t, "ours", lab.Options{})
		out, err := threads(t, d.PluginEnvOf(p), "exec", "/bin/ls", "-l", "/proc/self/fd").end()
		check(t, err)
		if strings.Count(out, "socket:") != strings.Count(without, "socket:") {
			return errors.New(out)
		}
		return nil
	})
}

// TestPluginDescriptor: a program closes the plugin's descriptor, as daemons do that close all they
// do not know, and has a socket of its own at its number. Nothing arrives there, it stays open, here
// and in a child, and the plugin goes on.
func TestPluginDescriptor(t *testing.T) {
	const good = "bytes 0 open 1 well 1 child: open 1 well 1\n"
	row(t, "child: open 0", func(t *testing.T, p lab.Plugin) error {
		d := daemon(t, "ours", lab.Options{})
		out, err := threads(t, d.PluginEnvOf(p), "steal").end()
		check(t, err)
		if p == lab.Debians && strings.HasPrefix(out, "bytes 0 ") {
			t.Error("nothing arrives at the program's own peer")
		}
		if out != good {
			return errors.New(out)
		}
		return nil
	})
}

// alicesDaemon is one that has alice's keys for nobody, and the shared keytab to accept with.
func alicesDaemon(t *testing.T) *lab.Daemon {
	t.Helper()
	alices, err := realm(t).Keytab("alice.keytab", "alice")
	check(t, err)
	keys := keytab(t)
	return daemon(t, "ours", lab.Options{Keytab: keys, Config: config(
		svc{"both", lab.Nobody.UID, []string{"cred_store = keytab:" + keys, "cred_store = client_keytab:" + alices}},
		svc{"lab", 0, nil},
	)})
}

// TestPluginIdentity: a user has tickets, and a program of the user's a credential that the daemon
// has and nobody else: it initiates with that, and not as the user.
func TestPluginIdentity(t *testing.T) {
	row(t, "initiates as bob@", func(t *testing.T, p lab.Plugin) error {
		r := realm(t)
		made(t, r.AddPrincipal("bob", "bob"))
		env, err := r.Kinit("bob", "bob")
		check(t, err)
		d := alicesDaemon(t)
		g := tool(t, lab.Nobody, slices.Concat(d.PluginEnvOf(p), []string{"GSSPROXY_BEHAVIOR=LOCAL_FIRST"}, env)...)
		const want = "alice@" + lab.Name
		c, err := g.From("MEMORY:other") // not from the user's cache
		check(t, err)
		if c.Name != want {
			t.Fatalf("a credential of %s", c.Name)
		}
		_, token, err := g.Init(service, lab.Usual, nil)
		check(t, err)
		mit := tool(t, lab.Root, "KRB5_KTNAME="+d.Options.Keytab)
		check(t, mit.Acquire(""))
		a, err := mit.Accept(token, nil)
		check(t, err)
		if a.Client != want {
			return fmt.Errorf("a credential of %s initiates as %s", c.Name, a.Client)
		}
		return nil
	})
}

// TestPluginHandleAlone: whose default cache has a handle initiates with that or not at all. With the
// daemon gone, the user's collection has another cache, and .k5identity chooses it for the target: it
// is of somebody else.
func TestPluginHandleAlone(t *testing.T) {
	needOurs(t)
	r := realm(t)
	made(t, r.AddPrincipal("bob", "bob"))
	bobs, err := r.Keytab("bob.keytab", "bob")
	check(t, err)
	check(t, os.Chown(bobs, int(lab.Nobody.UID), int(lab.Nobody.GID)))
	socket, home := alicesDaemon(t).Socket, nobodyDir(t)
	collection := filepath.Join(home, "caches")
	program := func(behavior string, env ...string) *lab.Tool {
		return tool(t, lab.Nobody, slices.Concat(r.PluginEnvOf(lab.Ours, socket), []string{"GSSPROXY_BEHAVIOR=" + behavior, "HOME=" + home}, env)...)
	}
	if _, err := program("REMOTE_ONLY", "KRB5CCNAME=DIR:"+collection).Credential("", "-", 1); err != nil {
		t.Fatal(err)
	}
	if out, err := r.Run(lab.Nobody, []string{"KRB5CCNAME=DIR::" + collection + "/tktbob"}, "/usr/bin/kinit", "-k", "-t", bobs, "bob"); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	check(t, os.WriteFile(filepath.Join(home, ".k5identity"), []byte("bob@"+lab.Name+" service=svc\n"), 0o644))
	socket = filepath.Join(home, "nobody listens")
	for _, behavior := range []string{"LOCAL_FIRST", "REMOTE_FIRST"} {
		if _, _, err := program(behavior, "KRB5CCNAME=DIR:"+collection).Init(service, lab.Usual, nil); err == nil {
			t.Errorf("%s: somebody else initiates", behavior)
		}
	}
	if _, _, err := program("LOCAL_ONLY", "KRB5CCNAME=DIR:"+collection).Init(service, lab.Usual, nil); err != nil {
		t.Errorf("locally nobody could: %v: this test shows nothing", err)
	}
}

// TestPluginAcceptorsCache: a program with a user's tickets in its cache acquires a credential to
// accept with, and the tickets are still there.
func TestPluginAcceptorsCache(t *testing.T) {
	row(t, "Encrypted/Credentials/v1@X-GSSPROXY:", func(t *testing.T, p lab.Plugin) error {
		r := realm(t)
		d := daemon(t, "ours", lab.Options{})
		env, err := r.Kinit("alice", "alice")
		check(t, err)
		before, err := os.ReadFile(strings.TrimPrefix(env[0], "KRB5CCNAME=FILE:"))
		check(t, err)
		path := filepath.Join(nobodyDir(t), "cc")
		check(t, os.WriteFile(path, before, 0o600))
		check(t, os.Chown(path, int(lab.Nobody.UID), int(lab.Nobody.GID)))
		env[0] = "KRB5CCNAME=FILE:" + path
		check(t, tool(t, lab.Nobody, append(d.PluginEnvOf(p), env...)...).Acquire(service))
		out, err := r.Run(lab.Nobody, env, "/usr/bin/klist")
		check(t, err)
		if after, err := os.ReadFile(path); err != nil || string(after) != string(before) || !strings.Contains(out, "krbtgt/"+lab.Name) {
			return fmt.Errorf("the cache is another one (%v):\n%s", err, out)
		}
		return nil
	})
}

// TestPluginLifetime: an initiator's credential lives as long as its ticket.
func TestPluginLifetime(t *testing.T) {
	row(t, "acquired 0", func(t *testing.T, p lab.Plugin) error {
		out, err := threads(t, alicesDaemon(t).PluginEnvOf(p), "lifetime").end()
		check(t, err)
		var said [3]int
		if _, err := fmt.Sscanf(out, "acquired %d inquired %d by mech %d\n", &said[0], &said[1], &said[2]); err != nil {
			t.Fatalf("%q: %v", out, err)
		}
		for _, life := range said {
			if life < 9*3600 || life > 24*3600 {
				return errors.New(out)
			}
		}
		return nil
	})
}

// TestPluginTexts: an error's text says where the daemon is missed, or what it says.
func TestPluginTexts(t *testing.T) {
	text := func(t *testing.T, err error, want ...string) error {
		t.Helper()
		var e *lab.GSSError
		if !errors.As(err, &e) {
			t.Fatalf("%v, want an error of GSS", err)
		}
		for _, w := range want {
			if !strings.Contains(e.Text, w) {
				return fmt.Errorf("%q without %q", e.Text, w)
			}
		}
		return nil
	}
	const nowhere = "/nonexistent/gssproxyd.sock"
	t.Run("absent", func(t *testing.T) {
		row(t, "without", func(t *testing.T, p lab.Plugin) error {
			g := tool(t, lab.Nobody, realm(t).PluginEnvOf(p, nowhere)...)
			_, _, initiating := g.Init(service, lab.Usual, nil)
			return errors.Join(
				text(t, g.Acquire(service), nowhere, "No such file or directory"),
				text(t, initiating, nowhere, "No such file or directory"))
		})
	})
	t.Run("absent, and no keytab", func(t *testing.T) {
		row(t, "without", func(t *testing.T, p lab.Plugin) error {
			const keytab = "/nonexistent/keytab"
			g := tool(t, lab.Nobody, append(realm(t).PluginEnvOf(p, nowhere), "GSSPROXY_BEHAVIOR=LOCAL_FIRST", "KRB5_KTNAME="+keytab)...)
			return text(t, g.Acquire(service), nowhere, keytab)
		})
	})
	t.Run("refused", func(t *testing.T) {
		row(t, "without", func(t *testing.T, p lab.Plugin) error {
			keys, err := realm(t).Keytab("svc.keytab", "svc/"+lab.Host)
			check(t, err)
			d := daemon(t, "ours", lab.Options{Keytab: keys})
			var res xdr.ResAcquireCred
			check(t, wire(t, d).Call(xdr.ProcAcquireCred, &xdr.ArgAcquireCred{CredUsage: xdr.CredInitiate}, &res))
			reason := callID.ReplaceAllString(strings.TrimSuffix(string(res.Status.MinorStatusString), "\x00"), "")
			if reason == "" {
				t.Fatal("the daemon gives no reason")
			}
			_, err = tool(t, lab.Nobody, append(d.PluginEnvOf(p), "GSSPROXY_BEHAVIOR=LOCAL_FIRST")...).Credential("", "-", 1)
			_, token, asking := alice(t).Init("HTTP@"+lab.Host, lab.Usual, nil)
			check(t, asking)
			_, accepting := tool(t, lab.Nobody, d.PluginEnvOf(p)...).Accept(token, nil)
			return errors.Join(text(t, err, reason), text(t, accepting, "[no-key]"))
		})
	})
}

// coldStarts runs programs of 16 threads that begin at once, with a cache that is not there yet, and
// counts those in which a thread failed.
func coldStarts(t *testing.T, p lab.Plugin, runs int) (failed int, why string) {
	t.Helper()
	d := alicesDaemon(t)
	for range runs {
		cache := filepath.Join(nobodyDir(t), "cc")
		out, err := threads(t, append(d.PluginEnvOf(p), "KRB5CCNAME=FILE:"+cache), "cold", "16", service).end()
		if err != nil || out != strings.Repeat("0\n", 16) {
			failed++
			why = fmt.Sprintf("%s%v", out, err)
		}
	}
	return failed, why
}

// TestPluginColdStart: whichever of its threads comes first.
func TestPluginColdStart(t *testing.T) {
	needOurs(t)
	if n, why := coldStarts(t, lab.Ours, 20); n != 0 {
		t.Errorf("%d of 20 programs failed, the last one:\n%s", n, why)
	}
}

// TestNightlyPluginColdStart says how many fail with Debian's.
func TestNightlyPluginColdStart(t *testing.T) {
	lab.Nightly(t)
	n, why := coldStarts(t, lab.Debians, 100)
	t.Logf("%d of 100 programs failed with Debian's plugin, the last one:\n%s", n, why)
}
