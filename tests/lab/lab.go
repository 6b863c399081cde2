// Package lab raises a real Kerberos realm in a temporary directory: MIT's krb5kdc on a loopback
// port, its own krb5.conf and database, principals, keytabs and tickets, the daemons under test,
// and unmodified clients run as whatever user a test asks for. Nothing outside the directory is
// touched but the C daemon's pid file, whose place nothing can change, and everything started ends
// with Close.
//
// Three rules keep the results honest:
//
//   - A program gets a clean environment. Nothing of the caller's (GSS_USE_PROXY, KRB5CCNAME, ...) leaks in.
//   - KRB5CCNAME is MEMORY:lab unless a test says otherwise: the plugin stores sealed handles in the application's
//     default cache and sends them to the next daemon it meets.
//   - Keytabs are root's, mode 0600; the programs in front of the daemon are not root.
//
// The core returns errors, so that the demonstration can use it; New is the wrapper for tests.
package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// Name is the realm; Domain the DNS domain that belongs to it; Host the host all services of the
// lab live on.
const (
	Name   = "EXAMPLE.TEST"
	Domain = "example.test"
	Host   = "lab.example.test"
)

// User is who a program runs as.
type User struct{ UID, GID uint32 }

// Root runs the daemons; Nobody the applications in front of them.
var (
	Root   = User{0, 0}
	Nobody = User{65534, 65534}
)

// file is one that has to be there, and the Debian package that has it.
type file struct{ path, pkg string }

// programs are what a realm cannot do without.
var programs = []file{
	{"/usr/sbin/krb5kdc", "krb5-kdc"},
	{"/usr/sbin/kdb5_util", "krb5-kdc"},
	{"/usr/sbin/kadmin.local", "krb5-admin-server"},
	{"/usr/bin/kinit", "krb5-user"},
	{"/usr/bin/gss-server", "krb5-gss-samples"},
	{"/usr/bin/gss-client", "krb5-gss-samples"},
}

// peer is the C project's: a daemon beside ours, and a plugin.
var peer = []file{
	{"/usr/sbin/gssproxy", "gssproxy"},
	{debiansMech, "gssproxy"},
}

// compiler is what our plugin and the lab's own C programs are made with.
var compiler = []file{
	{"/usr/include/gssapi/gssapi_ext.h", "libkrb5-dev"},
	{"/usr/bin/cc", "gcc"},
	{"/usr/bin/make", "make"},
}

// Missing says what keeps a realm from being raised here, nil if nothing does.
func Missing() error { return missing(programs, compiler, peer) }

func missing(lists ...[]file) error {
	if os.Geteuid() != 0 {
		return errors.New("needs root: it starts programs as other users and keeps keytabs from them")
	}
	for _, p := range slices.Concat(lists...) {
		if _, err := os.Stat(p.path); err != nil {
			return fmt.Errorf("%s is not there: run tests/install-deps (Debian package %s)", p.path, p.pkg)
		}
	}
	return nil
}

// Realm is one running realm.
type Realm struct {
	Dir  string // everything lives here; 0755, the secrets in it 0600
	Conf string // krb5.conf of clients and daemons

	// Gssproxyd is the daemon Ours starts. Empty: the module's own is built on first use, with the
	// race detector where the C compiler allows.
	Gssproxyd string

	// Plugin is what PluginEnv gives programs: what LAB_PLUGIN says, "ours" or "debian"; ours if it
	// says nothing. Debian's where there are no tools.
	Plugin Plugin

	secrets secrets

	port  int
	kdc   *Process
	mu    sync.Mutex
	procs []*Process      // started, to be stopped by Close
	names map[string]bool // given out by Path
}

// Up raises a realm with the user principal alice@EXAMPLE.TEST (password "alice").
func Up(ctx context.Context) (*Realm, error) {
	if err := Missing(); err != nil {
		return nil, err
	}
	return raise(ctx, func(r *Realm) error { return r.buildTools(ctx) })
}

// UpWithoutTools is Up where there is nothing of the C project: without Tool and CDaemon, and with the
// clock as it is.
func UpWithoutTools(ctx context.Context) (*Realm, error) {
	if err := missing(programs, compiler); err != nil {
		return nil, err
	}
	return raise(ctx, (*Realm).buildPlugin)
}

func raise(ctx context.Context, build func(*Realm) error) (*Realm, error) {
	r, err := empty()
	if err != nil {
		return nil, err
	}
	if err = r.startKDC(ctx); err == nil {
		err = r.AddPrincipal("alice", "alice")
	}
	if err == nil {
		err = build(r)
	}
	if err != nil {
		r.Close()
		return nil, err
	}
	return r, nil
}

// UpWithoutKDC is Up for a realm of somebody else's, whose krb5.conf is to have the text conf: a
// directory, the tools, and no KDC nor principals.
func UpWithoutKDC(ctx context.Context, conf string) (*Realm, error) {
	if err := Missing(); err != nil {
		return nil, err
	}
	r, err := empty()
	if err != nil {
		return nil, err
	}
	err = os.WriteFile(r.Conf, []byte(conf), 0o644)
	if err == nil {
		err = r.buildTools(ctx)
	}
	if err != nil {
		r.Close()
		return nil, err
	}
	return r, nil
}

// empty is a realm that is nothing but its directory.
func empty() (*Realm, error) {
	dir, err := os.MkdirTemp("", "gsslab-")
	if err != nil {
		return nil, err
	}
	mode := fs.FileMode(0o755)
	if UnderUnit() { // the daemon makes caches in it, as it may in /tmp
		mode = 0o777 | fs.ModeSticky
	}
	return &Realm{Dir: dir, Conf: filepath.Join(dir, "krb5.conf")}, os.Chmod(dir, mode)
}

// Close stops everything the realm started and removes its directory. It is an error if a key was in
// what our daemon or its commands wrote.
func (r *Realm) Close() error {
	r.mu.Lock()
	procs := r.procs
	r.procs = nil
	r.mu.Unlock()
	for i := len(procs) - 1; i >= 0; i-- {
		procs[i].Stop()
	}
	r.secrets.mu.Lock()
	leaks := r.secrets.leaks
	r.secrets.mu.Unlock()
	return errors.Join(append(leaks, os.RemoveAll(r.Dir))...)
}

// New raises a realm for one test and takes it down with it. Where it cannot be raised the test is
// skipped with the reason; with CI=true that is a failure.
func New(t testing.TB) *Realm {
	t.Helper()
	Require(t)
	r, err := Up(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	})
	return r
}

// Require skips the test, or with CI=true fails it, where a realm cannot be raised.
func Require(t testing.TB) {
	t.Helper()
	if err := Missing(); err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
}

// Path is a new name in the realm's directory: BASE, BASE-2, ...
func (r *Realm) Path(base string) string {
	r.mu.Lock()
	defer r.mu.Unlock()
	p := filepath.Join(r.Dir, base)
	for i := 2; ; i++ {
		if _, err := os.Lstat(p); errors.Is(err, os.ErrNotExist) && !r.names[p] {
			if r.names == nil {
				r.names = map[string]bool{}
			}
			r.names[p] = true
			return p
		}
		p = filepath.Join(r.Dir, fmt.Sprintf("%s-%d", base, i))
	}
}

// MkdirFor makes a new directory of the realm that belongs to u.
func (r *Realm) MkdirFor(u User, base string) (string, error) {
	p := r.Path(base)
	if err := os.Mkdir(p, 0o755); err != nil {
		return "", err
	}
	return p, os.Chown(p, int(u.UID), int(u.GID))
}

// Command is a program of user u with the realm's environment and the variables of env, which win.
func (r *Realm) Command(u User, env []string, path string, args ...string) *exec.Cmd {
	cmd := exec.Command(path, args...)
	cmd.Dir = "/"
	cmd.Env = append([]string{
		"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/nonexistent", "LC_ALL=C",
		"KRB5_CONFIG=" + r.Conf, "KRB5CCNAME=MEMORY:lab",
		"GORACE=atexit_sleep_ms=0", // or a program with the race detector lingers for a second
	}, env...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if u != Root {
		cmd.SysProcAttr.Credential = &syscall.Credential{Uid: u.UID, Gid: u.GID}
	}
	return cmd
}

// Run runs a program to its end, at most 30 seconds, and returns what it wrote to stdout and
// stderr.
func (r *Realm) Run(u User, env []string, path string, args ...string) (string, error) {
	return r.runInput(u, env, "", path, args...)
}

func (r *Realm) runInput(u User, env []string, input, path string, args ...string) (string, error) {
	cmd := r.Command(u, env, path, args...)
	if input != "" {
		cmd.Stdin = strings.NewReader(input)
	}
	var written bytes.Buffer
	cmd.Stdout, cmd.Stderr = &written, &written
	err := cmd.Start()
	if err == nil {
		timer := time.AfterFunc(Patience, func() { cmd.Process.Kill() })
		err = cmd.Wait()
		timer.Stop()
	}
	out := written.Bytes()
	if err != nil {
		err = fmt.Errorf("%s %s: %w\n%s", filepath.Base(path), strings.Join(args, " "), err, out)
	}
	r.mu.Lock()
	ours := path == r.Gssproxyd
	r.mu.Unlock()
	if ours {
		err = errors.Join(err, r.Scan("what gssproxyd "+strings.Join(args, " ")+" wrote", out))
	}
	return string(out), err
}

// Patience bounds waits for what must happen. It is reached only where something is broken: a
// machine that is merely busy does not take so long.
const Patience = time.Minute

// Await waits for a condition that somebody else brings about, and fails the test when patience is
// over; what says for what it waited, or what was so all the time.
func Await(t testing.TB, what string, so func() bool) {
	t.Helper()
	for deadline := time.Now().Add(Patience); !so(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%s: waited in vain", what)
		}
	}
}

// Process is a program that runs until stopped, its output in a file.
type Process struct {
	Cmd *exec.Cmd
	Log string

	done chan struct{} // closed when it has ended
	err  error         // how; read after done
}

// Start runs cmd in the background, its stdout and stderr appended to the file log. Close stops it.
func (r *Realm) Start(cmd *exec.Cmd, log string) (*Process, error) {
	f, err := os.OpenFile(log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	cmd.Stdout, cmd.Stderr = f, f
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	p := &Process{Cmd: cmd, Log: log, done: make(chan struct{})}
	go func() {
		p.err = cmd.Wait()
		close(p.done)
	}()
	r.mu.Lock()
	r.procs = append(r.procs, p)
	r.mu.Unlock()
	return p, nil
}

// PID is the process id.
func (p *Process) PID() int { return p.Cmd.Process.Pid }

// Done is closed when the program has ended.
func (p *Process) Done() <-chan struct{} { return p.done }

// Stop asks the program to end (SIGTERM), insists when patience is over, and returns how it ended.
func (p *Process) Stop() error {
	p.Cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-p.done:
	case <-time.After(Patience):
		return errors.Join(fmt.Errorf("did not end on SIGTERM within %v", Patience), p.Kill())
	}
	return p.err
}

// Kill ends the program at once (SIGKILL) and waits until it is gone.
func (p *Process) Kill() error {
	p.Cmd.Process.Kill()
	<-p.done
	return p.err
}

// Output is what the program has written so far.
func (p *Process) Output() string {
	b, _ := os.ReadFile(p.Log)
	return string(b)
}

// WaitOutput waits until the program has written text.
func (p *Process) WaitOutput(text string, limit time.Duration) error {
	return p.wait(limit, fmt.Sprintf("write %q", text), func() bool { return strings.Contains(p.Output(), text) })
}

// wait polls until ready, and fails with the program's output when it ends first or the time is up.
func (p *Process) wait(limit time.Duration, what string, ready func() bool) error {
	deadline := time.Now().Add(limit)
	for {
		if ready() {
			return nil
		}
		select {
		case <-p.done:
			if ready() {
				return nil
			}
			return fmt.Errorf("%s ended (%v) before it did %s; its output:\n%s", p.Cmd.Path, p.err, what, p.Output())
		case <-time.After(2 * time.Millisecond):
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("%s did not %s within %v; its output:\n%s", p.Cmd.Path, what, limit, p.Output())
		}
	}
}

// FreePort finds a port of the loopback interface nobody has, over TCP and UDP. It is below those
// that the kernel gives to whoever asks for none, so that hardly anybody else takes it before the
// caller does.
func FreePort() (port int, err error) {
	for range 100 {
		port = 10000 + rand.IntN(20000)
		address := net.JoinHostPort("127.0.0.1", strconv.Itoa(port))
		var l net.Listener
		if l, err = net.Listen("tcp4", address); err != nil {
			continue
		}
		l.Close()
		var u net.PacketConn
		if u, err = net.ListenPacket("udp4", address); err != nil {
			continue
		}
		u.Close()
		return port, nil
	}
	return 0, err
}

// Listening says whether something listens at the TCP port. It looks and does not connect: a server
// that serves one connection still has it to give.
func Listening(port int) bool {
	for _, f := range []string{"/proc/net/tcp", "/proc/net/tcp6"} {
		b, err := os.ReadFile(f)
		if err != nil {
			continue
		}
		for line := range strings.Lines(string(b)) {
			// sl local_address rem_address st ...; state 0A is LISTEN
			if f := strings.Fields(line); len(f) > 3 && f[3] == "0A" && strings.HasSuffix(f[1], fmt.Sprintf(":%04X", port)) {
				return true
			}
		}
	}
	return false
}

// Err is how the program ended, nil while it runs.
func (p *Process) Err() error {
	select {
	case <-p.done:
		return fmt.Errorf("the process has ended: %v", p.err)
	case <-time.After(100 * time.Millisecond):
		return nil
	}
}
