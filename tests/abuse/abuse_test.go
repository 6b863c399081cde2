package abuse

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/jcmturner/gokrb5/v8/keytab"

	"gssproxyd/mech"
	"gssproxyd/tests/lab"
	"gssproxyd/xdr"
)

const (
	hostileUID  = 100_000 // and those that follow
	otherUID    = 200_000 // a user who is refused now and then
	kernelUsers = 4       // who have accounts, in a name service that is not a file in /etc
	accountUID  = 31_000  // the first of them
	targets     = 8       // services that the initiator initiates to

	maxRSS     = 128 << 20
	maxLines   = 200                   // of the log, a second
	maxRefused = 10                    // tries of a key that the KDC refuses, and one a second
	pace       = 10 * time.Millisecond // of calls, nightly
	tooLarge   = 1 << 30               // a daemon that is larger is stopped, before the machine is out of memory
)

// TestAbuse lets one uid, and then twenty, do each abuse, and all of them at once.
func TestAbuse(t *testing.T) {
	s := newScene(t)
	kinds := []string{}
	for _, a := range abuses {
		kinds = append(kinds, a.name)
	}
	for _, uids := range []int{1, 20} {
		var usual map[string]time.Duration
		for _, kind := range append(kinds, allAtOnce) {
			t.Run(fmt.Sprintf("%s by %d", kind, uids), func(t *testing.T) {
				p99s := s.play(t, kind, uids)
				if kind == wellBehaved {
					usual = p99s
				}
				for _, name := range slices.Sorted(maps.Keys(p99s)) {
					t.Logf("p99 of %s: %v, beside well-behaved callers %v", name, p99s[name], usual[name])
					if nightly && usual != nil && p99s[name] > 2*usual[name] {
						t.Errorf("p99 of %s is %v, more than twice of what it is beside well-behaved callers, %v", name, p99s[name], usual[name])
					}
				}
			})
		}
	}
}

// scene is a realm, a daemon's configuration, and those who are to be served.
type scene struct {
	realm   *lab.Realm
	options lab.Options
	self    string // the program of hostile users
	ccache  []byte // of 16 MiB
	users   []*lab.Tool

	calls    int // of each who is to be served
	refusals int // of each kind, of the one who is refused now and then; no more than a caller may write into the log
}

const config = `[gssproxy]
[service/kernel]
  mechs = krb5
  euid = 0
  kernel_nfsd = yes
  socket = DIR/kernel
  cred_store = keytab:DIR/keytab
  cred_usage = accept
[service/root]
  mechs = krb5
  euid = 0
  cred_store = keytab:DIR/keytab
  cred_usage = accept
[service/web]
  mechs = krb5
  euid = 33
  cred_store = keytab:DIR/keytab
  cred_usage = accept
[service/initiator]
  mechs = krb5
  euid = 34
  cred_store = client_keytab:DIR/client.keytab
  cred_usage = initiate
[service/good]
  mechs = krb5
  euid = 0
  allow_any_uid = yes
  socket = DIR/good
  cred_store = keytab:DIR/keytab
  cred_store = rcache:none:
  cred_usage = accept
[service/tickets]
  mechs = krb5
  euid = 0
  allow_any_uid = yes
  socket = DIR/tickets
  cred_store = client_keytab:DIR/client.keytab
  cred_store = ccache:FILE:DIR/state/tickets_%U
  cred_usage = initiate
[service/refused]
  mechs = krb5
  euid = 0
  allow_any_uid = yes
  socket = DIR/refused
  cred_store = client_keytab:DIR/refused.keytab
  cred_usage = initiate
[service/dead]
  mechs = krb5
  euid = 0
  allow_any_uid = yes
  socket = DIR/dead
  cred_store = client_keytab:DIR/dead.keytab
  cred_usage = initiate
[service/users]
  mechs = krb5
  euid = 35
  allow_any_uid = yes
  cred_store = keytab:DIR/keytab
  cred_store = ccache:FILE:DIR/users/krb5cc_%U
`

// newScene prepares everything but the daemon, of which each abuse has one of its own.
func newScene(t *testing.T) *scene {
	t.Helper()
	r := lab.New(t)
	s := &scene{realm: r, calls: 32, refusals: 1}
	if nightly {
		s.calls, s.refusals = int(time.Minute/pace), 5
	}
	dir := r.Path("daemon")
	check(t, os.MkdirAll(filepath.Join(dir, "users"), 0o755))
	s.options = lab.Options{Dir: dir, Keytab: filepath.Join(dir, "keytab"), Quiet: true, Config: strings.ReplaceAll(config, "DIR", dir)}

	// Principals and keytabs: services, a client, one whose key is another by now, and one of a
	// realm whose KDC says nothing.
	var services []string
	for i := range targets {
		services = append(services, fmt.Sprintf("svc%d/%s", i, lab.Host))
		check(t, r.RandKey(services[i]))
	}
	check(t, r.Ktadd(s.options.Keytab, services...))
	for _, client := range []string{"client", "refused"} {
		check(t, r.RandKey(client))
		check(t, r.Ktadd(filepath.Join(dir, client+".keytab"), client))
	}
	check(t, r.Rotate("refused"))
	dead := keytab.New()
	check(t, dead.AddEntry("client", "DEAD.TEST", "password", time.Now(), 1, 18))
	b, err := dead.Marshal()
	check(t, err)
	check(t, os.WriteFile(filepath.Join(dir, "dead.keytab"), b, 0o600))
	silent, err := net.Listen("tcp4", "127.0.0.1:0")
	check(t, err)
	t.Cleanup(func() { silent.Close() })
	b, err = os.ReadFile(r.Conf)
	check(t, err)
	s.options.Krb5Conf = r.Path("abuse.conf")
	conf := strings.Replace(string(b), "  "+lab.Name+" = {\n", fmt.Sprintf("  DEAD.TEST = {\n    kdc = %s\n  }\n  %s = {\n"+
		"    auth_to_local = RULE:[1:$1](aa.*)s/a/bb/g\n    auth_to_local = DEFAULT\n", silent.Addr(), lab.Name), 1)
	check(t, os.WriteFile(s.options.Krb5Conf, []byte(conf), 0o644))

	var passwd strings.Builder
	for i := range kernelUsers {
		name := fmt.Sprintf("user%d", i)
		fmt.Fprintf(&passwd, "%s:x:%d:%d::/:\n", name, accountUID+i, accountUID+i)
		check(t, r.AddPrincipal(name, name))
		env, err := r.Kinit(name, name)
		check(t, err)
		g, err := r.Tool(lab.Nobody, env...)
		check(t, err)
		t.Cleanup(func() { g.Close() })
		s.users = append(s.users, g)
	}
	s.options.Binary = s.starter(t, passwd.String())

	// This program again, where others may run it, and without the race detector, with which twenty
	// take long to start.
	s.self = r.Path("caller")
	build := exec.Command("go", "test", "-c", "-o", s.self, ".")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	s.ccache = s.largeCcache(t, 16<<20)
	return s
}

// starter is a script that starts the daemon that is shipped, with as many files as it may have
// open there, where users are in a name service besides the files in /etc. It goes before the KDC,
// which elsewhere has a machine of its own.
func (s *scene) starter(t *testing.T, passwd string) string {
	t.Helper()
	apart := exec.Command("/bin/true")
	apart.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS}
	if err := apart.Run(); err != nil {
		lab.Lacking(t, "mount(2)", err)
	}
	if _, err := os.Stat("/usr/lib/libnss_extrausers.so.2"); err != nil {
		lab.Lacking(t, "libnss-extrausers", err)
	}
	files := uint64(4096)
	if nightly {
		var allowed syscall.Rlimit
		check(t, syscall.Getrlimit(syscall.RLIMIT_NOFILE, &allowed))
		files = min(32768, allowed.Max) // the unit that is shipped says 32768
	}
	dir := s.realm.Path("start")
	check(t, os.MkdirAll(filepath.Join(dir, "extrausers"), 0o755))
	check(t, lab.Build(filepath.Join(dir, "gssproxyd"), false))
	for name, text := range map[string]string{
		"extrausers/passwd": passwd,
		"extrausers/group":  "",
		"nsswitch.conf":     "passwd: files extrausers\ngroup: files extrausers\n",
		"start": fmt.Sprintf(`#!/bin/sh
ulimit -n %d || exit 1
exec unshare -m sh -ec '
mount --bind %[2]s/nsswitch.conf /etc/nsswitch.conf
mount -t tmpfs none /var/lib
mkdir /var/lib/extrausers
mount --bind %[2]s/extrausers /var/lib/extrausers
exec nice -n -10 %[2]s/gssproxyd "$@"' sh "$@"
`, files, dir),
	} {
		check(t, os.WriteFile(filepath.Join(dir, name), []byte(text), 0o755))
	}
	return filepath.Join(dir, "start")
}

// largeCcache is a credential cache with one ticket as often as goes into size bytes.
func (s *scene) largeCcache(t *testing.T, size int) []byte {
	t.Helper()
	env, err := s.realm.Kinit("alice", "alice")
	check(t, err)
	path := strings.TrimPrefix(env[0], "KRB5CCNAME=FILE:")
	before, err := os.ReadFile(path)
	check(t, err)
	_, err = s.realm.Run(lab.Root, env, "/usr/bin/kvno", "svc0/"+lab.Host)
	check(t, err)
	after, err := os.ReadFile(path)
	check(t, err)
	ticket := after[len(before):]
	return append(after, bytes.Repeat(ticket, (size-len(after))/len(ticket))...)
}

// play has uids abuse a new daemon for as long as it takes to serve all others, and returns the p99
// of how long that takes for each of them.
func (s *scene) play(t *testing.T, kind string, uids int) map[string]time.Duration {
	t.Helper()
	for _, name := range []string{"log", "state"} { // of the daemon before
		check(t, os.RemoveAll(filepath.Join(s.options.Dir, name)))
	}
	if kind == "ccache of 16 MiB" || kind == allAtOnce {
		for i := range uids {
			path := filepath.Join(s.options.Dir, "users", fmt.Sprintf("krb5cc_%d", hostileUID+i))
			check(t, os.WriteFile(path, s.ccache, 0o600))
			check(t, os.Chown(path, hostileUID+i, hostileUID+i))
			defer os.Remove(path)
		}
	}
	d, err := s.realm.Ours(s.options)
	check(t, err)
	defer d.Kill() // in good order it would wait for the KDC
	victims := s.victims(t)
	other := s.caller(otherUID)
	other.tokens = s.tokens(t, 0, 2)
	w, err := other.connect("sock")
	check(t, err)
	check(t, other.call(w, xdr.ProcAcceptSecContext, lab.AcceptArg(other.tokens[1], nil)))
	w.Close()

	start := time.Now()
	lines, refused := strings.Count(d.Output(), "\n"), s.refusedByKDC(t)
	crowd := s.crowd(t, kind, uids)
	defer crowd.end(t)
	defer guard(t, d)()
	crowd.ready(t)

	// The victims, and between calls of the first of them the one who is refused now and then.
	every, provoked := s.calls/s.refusals, 0
	var wg sync.WaitGroup
	for i, v := range victims {
		wg.Go(func() {
			v.serve(s.calls, func(n int) {
				if i == 0 && n%every == every/2 {
					other.provoke()
					provoked++
				}
			})
		})
	}
	wg.Wait()
	_, peak, rssErr := d.RSS()
	crowd.end(t)
	took := time.Since(start)
	d.Kill()

	p99s := make(map[string]time.Duration)
	for _, v := range victims {
		if v.err != nil {
			t.Errorf("%s after %d calls: %v; the log says of uid %d:\n%s", v.name, len(v.took), v.err, v.uid, linesOf(d.Output(), v.uid))
			continue
		}
		slices.Sort(v.took)
		p99s[v.name] = v.took[len(v.took)*99/100]
	}
	check(t, rssErr)
	out := d.Output()
	if strings.Contains(out, "panic") {
		t.Errorf("the daemon's log has a panic:\n%s", out[max(0, len(out)-8<<10):])
	}
	lines = strings.Count(out, "\n") - lines
	t.Logf("%d MiB resident at most, %d lines in %v; the callers: %v", peak>>20, lines, took.Round(time.Millisecond), crowd.done())
	if peak >= maxRSS {
		t.Errorf("the daemon had %d MiB, %d are allowed", peak>>20, maxRSS>>20)
	}
	if most := int(maxLines * (1 + took.Seconds())); lines > most {
		t.Errorf("%d lines in the log after %v, %d are allowed", lines, took, most)
	}
	refused = s.refusedByKDC(t) - refused
	if most := int(maxRefused + took.Seconds()); refused > most {
		t.Errorf("the KDC has refused a key %d times in %v, and %d are allowed before it locks the account", refused, took, most)
	}
	for _, r := range other.refusals() {
		n := 0
		for line := range strings.Lines(out) {
			if strings.Contains(line, fmt.Sprintf(" uid=%d ", otherUID)) && strings.Contains(line, r.reason) {
				n++
			}
		}
		if n < provoked {
			t.Errorf("of %d refusals of another uid with %q %d are in the log, which says of it:\n%s", provoked, r.reason, n, linesOf(out, otherUID))
		}
	}
	return p99s
}

// linesOf returns the last lines of a log about a uid, and about none.
func linesOf(log string, uid uint32) string {
	var lines []string
	for line := range strings.Lines(log) {
		if strings.Contains(line, fmt.Sprintf(" uid=%d ", uid)) || !strings.Contains(line, " uid=") {
			lines = append(lines, line)
		}
	}
	return strings.Join(lines[max(0, len(lines)-10):], "")
}

// refusedByKDC is how often the KDC has refused a key.
func (s *scene) refusedByKDC(t *testing.T) int {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(s.realm.Dir, "kdc", "krb5kdc.log"))
	check(t, err)
	return bytes.Count(b, []byte(" PREAUTH_FAILED: "))
}

// guard stops a daemon that takes the memory of the machine; the function returned ends the watch.
func guard(t *testing.T, d *lab.Daemon) (end func()) {
	var wg sync.WaitGroup
	stop := make(chan struct{})
	wg.Go(func() {
		for {
			select {
			case <-stop:
				return
			case <-time.After(20 * time.Millisecond):
			}
			if now, _, err := d.RSS(); err == nil && now > tooLarge {
				t.Errorf("the daemon has %d MiB: it is stopped", now>>20)
				d.Kill()
				return
			}
		}
	})
	return func() {
		close(stop)
		wg.Wait()
	}
}

// victim is somebody who must be served.
type victim struct {
	name string
	*caller
	socket string
	anew   bool // each call has a connection of its own
	call   func(w *lab.Wire, n int) error

	took []time.Duration
	err  error // the first
}

// serve makes the calls, one after the other, up to the first that fails, and nightly for a minute
// at most. before is called before each.
func (v *victim) serve(calls int, before func(n int)) {
	tick := time.NewTicker(pace)
	defer tick.Stop()
	end := time.Now().Add(time.Minute)
	var w *lab.Wire
	for n := 0; n < calls && v.err == nil; n++ {
		before(n)
		if nightly {
			if (<-tick.C).After(end) {
				break
			}
		}
		start := time.Now()
		if w == nil {
			if w, v.err = v.connect(v.socket); v.err != nil {
				return
			}
			w.Patience = time.Minute // how long it takes is not what is asked, but for the p99
		}
		v.err = v.call(w, n)
		v.took = append(v.took, time.Since(start))
		if v.anew {
			w.Close()
			w = nil
		}
	}
	if w != nil {
		w.Close()
	}
}

// provoke has the caller refused once in every way.
func (c *caller) provoke() {
	for _, r := range c.refusals() {
		if w, err := c.connect(r.socket); err == nil {
			r.do(w)
			w.Close()
		}
	}
}

// victims are those who must be served, with fresh tokens.
func (s *scene) victims(t *testing.T) []*victim {
	t.Helper()
	accept := func(user int) func(w *lab.Wire, n int) error {
		tokens := s.tokens(t, user, s.calls)
		return func(w *lab.Wire, n int) error {
			res, err := w.Accept(tokens[n], nil)
			if err == nil {
				err = statusError(res.Status)
			}
			return err
		}
	}
	var kernels [kernelUsers][][]byte
	for i := range kernels {
		kernels[i] = s.tokens(t, i, (s.calls+kernelUsers-1)/kernelUsers)
	}
	return []*victim{
		{name: "root", caller: s.caller(0), socket: "sock", anew: true, call: accept(0)},
		{name: "web", caller: s.caller(33), socket: "sock", anew: true, call: accept(1)},
		{name: "kernel", caller: s.caller(0), socket: "kernel", call: func(w *lab.Wire, n int) error {
			return kernelAccept(w, kernels[n%kernelUsers][n/kernelUsers], uint32(accountUID+n%kernelUsers))
		}},
		{name: "initiator", caller: s.caller(34), socket: "sock", anew: true, call: func(w *lab.Wire, n int) error {
			var res xdr.ResInitSecContext
			err := w.Call(xdr.ProcInitSecContext, initArg(fmt.Sprintf("svc%d@%s", n%targets, lab.Host)), &res)
			if err == nil {
				err = statusError(res.Status)
			}
			return err
		}},
	}
}

// caller is a caller of this process.
func (s *scene) caller(uid uint32) *caller {
	return &caller{uid: uid, sockets: s.options.Dir, outcomes: make(map[string]int)}
}

// tokens are fresh tokens of one of the kernel's users.
func (s *scene) tokens(t *testing.T, user, n int) [][]byte {
	t.Helper()
	tokens, err := s.users[user].Tokens(n, "svc0@"+lab.Host, lab.Usual|lab.Mutual, nil)
	check(t, err)
	return tokens
}

func initArg(target string) *xdr.ArgInitSecContext {
	return &xdr.ArgInitSecContext{
		TargetName: xdr.Some(xdr.Name{DisplayName: []byte(target), NameType: []byte(mech.NTHostbased)}),
		MechType:   []byte(mech.KRB5), ReqFlags: lab.Usual,
	}
}

// kernelAccept asks as the kernel's NFS server does, and wants to hear that the initiator is the
// user with the uid.
func kernelAccept(w *lab.Wire, token []byte, uid uint32) error {
	arg := lab.AcceptArg(token, nil)
	arg.CallCtx.Options = []xdr.Option{
		{Option: []byte("exported_context_type\x00"), Value: []byte("linux_lucid_v1\x00")},
		{Option: []byte("exported_creds_type\x00"), Value: []byte("linux_creds_v1\x00")},
	}
	var res xdr.ResAcceptSecContext
	if err := w.Call(xdr.ProcAcceptSecContext, arg, &res); err != nil {
		return err
	}
	if err := statusError(res.Status); err != nil {
		return err
	}
	if len(res.Options) != 1 || len(res.Options[0].Value) < 4 {
		return fmt.Errorf("options %v", res.Options)
	}
	if got := binary.NativeEndian.Uint32(res.Options[0].Value); got != uid {
		return fmt.Errorf("the initiator is uid %d, want %d", int32(got), uid)
	}
	return nil
}

// statusError is a call's status as an error, nil for success.
func statusError(s xdr.Status) error {
	if s.MajorStatus == uint64(mech.Complete) {
		return nil
	}
	return fmt.Errorf("major %#x: %s", s.MajorStatus, bytes.TrimSuffix(s.MinorStatusString, []byte{0}))
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// crowd is the hostile processes.
type crowd struct {
	procs []*process
	ended sync.Once
}

// process is one of them.
type process struct {
	cmd  *exec.Cmd
	in   io.WriteCloser
	out  *bufio.Reader
	errs bytes.Buffer
	done done
}

// crowd starts hostile processes.
// What they do with the processors by themselves is the kernel's to divide, and not what is tested:
// they come after the daemon and those who are to be served. Nightly they get only what nobody else
// wants, which on a machine that is busy with other things would be nothing.
func (s *scene) crowd(t *testing.T, kind string, uids int) *crowd {
	t.Helper()
	c := new(crowd)
	t.Cleanup(func() { c.end(t) })
	last := []string{"/usr/bin/nice", "-n", "19"}
	if nightly {
		last = []string{"/usr/bin/chrt", "--idle", "0"}
	}
	w, err := s.caller(0).connect("sock")
	check(t, err)
	defer w.Close()
	for i, token := range s.tokens(t, 0, uids) {
		res, err := w.Accept(token, nil)
		check(t, err)
		check(t, statusError(res.Status))
		p := &process{cmd: s.realm.Command(lab.User{UID: uint32(hostileUID + i), GID: uint32(hostileUID + i)}, []string{
			"ABUSE_KIND=" + kind, "ABUSE_SOCKETS=" + s.options.Dir,
			"ABUSE_TOKENS=" + strings.Repeat(hex.EncodeToString(token)+" ", 2),
			"ABUSE_CONTEXT=" + hex.EncodeToString(res.ContextHandle.V.Append(nil)),
		}, last[0], append(last[1:], s.self)...)}
		p.cmd.Stderr = &p.errs
		out, err := p.cmd.StdoutPipe()
		check(t, err)
		p.in, err = p.cmd.StdinPipe()
		check(t, err)
		p.out = bufio.NewReader(out)
		check(t, p.cmd.Start())
		c.procs = append(c.procs, p)
	}
	return c
}

// ready waits until all of them are at it.
func (c *crowd) ready(t *testing.T) {
	t.Helper()
	for _, p := range c.procs {
		if line, err := p.out.ReadString('\n'); line != "at it\n" {
			p.cmd.Process.Kill()
			t.Fatalf("a hostile process says %q: %v %s", line, err, &p.errs)
		}
	}
}

// end ends them and hears what they have done: something, or the test shows nothing.
func (c *crowd) end(t *testing.T) {
	c.ended.Do(func() {
		for _, p := range c.procs {
			p.in.Close()
		}
		for _, p := range c.procs {
			err := json.NewDecoder(p.out).Decode(&p.done)
			if err := errors.Join(err, p.cmd.Wait()); err != nil || p.done.Tries == 0 {
				t.Errorf("a hostile process has done %+v: %v %s", p.done, err, &p.errs)
			}
		}
	})
}

// done is what all of them together have done.
func (c *crowd) done() done {
	sum := done{Outcomes: make(map[string]int)}
	for _, p := range c.procs {
		sum.Tries += p.done.Tries
		for outcome, n := range p.done.Outcomes {
			sum.Outcomes[outcome] += n
		}
	}
	return sum
}
