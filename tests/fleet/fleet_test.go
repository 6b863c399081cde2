package fleet

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"filippo.io/age"
	clientv3 "go.etcd.io/etcd/client/v3"

	keytabs "gssproxyd/keytab"
	"gssproxyd/tests/lab"
	"gssproxyd/xdr"
)

// keystored is the path of our key store, built on first use as our daemon is.
func keystored(t *testing.T) string {
	t.Helper()
	path := filepath.Join(realm(t).Dir, "keystored")
	if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
		check(t, lab.BuildProgram("./keystored", path, true))
	}
	return path
}

// fleet is an etcd cluster, two instances of keystored over it, three hosts with our daemon, and a realm with
// a kadmind.
type fleet struct {
	t         *testing.T
	dir       string
	kadmind   *lab.Kadmind
	etcd      []*lab.Etcd
	backend   func(instance string) string // lines of keystored.conf
	ca        *lab.Authority
	password  string            // of etcd's, if it asks for one
	krb5      map[string]string // of instances that have another krb5.conf
	disks     bool              // each instance has its state on one of its own
	principal string            // of the entry, with the realm
	target    string            // as clients name it
	stores    []*storeInstance
	hosts     []*fleetHost
}

// storeInstance is one keystored.
type storeInstance struct {
	f         *fleet
	dir, conf string
	url       string
	signer    string
	krb5      string // krb5.conf
	*lab.Process
}

// fleetHost is one host: a daemon with all of its own.
type fleetHost struct {
	name   string
	serial int64 // of the certificate
	dir    string
	front  string // the socket of the service that initiates
	cache  string // what that has got is there
	*lab.Daemon
}

// run runs a command of an instance to its end. What it prints has no key.
func (s *storeInstance) run(args ...string) (string, error) {
	r := realm(s.f.t)
	out, err := r.Run(lab.Root, []string{"KRB5_CONFIG=" + s.krb5}, keystored(s.f.t), append(args, "-c", s.conf)...)
	return out, errors.Join(err, r.Scan("what keystored "+strings.Join(args, " ")+" wrote", []byte(out)))
}

// must is run for what has to succeed.
func (s *storeInstance) must(args ...string) string {
	s.f.t.Helper()
	out, err := s.run(args...)
	check(s.f.t, err)
	return out
}

// json is what a command prints with --json.
func (s *storeInstance) json(res any, args ...string) {
	s.f.t.Helper()
	out := s.must(append(args, "--json")...)
	if err := json.Unmarshal([]byte(out), res); err != nil {
		s.f.t.Fatalf("%v: %v\n%s", args, err, out)
	}
}

// start starts serving, and returns when it answers.
func (s *storeInstance) start() {
	s.f.t.Helper()
	r := realm(s.f.t)
	cmd := r.Command(lab.Root, []string{"KRB5_CONFIG=" + s.krb5}, keystored(s.f.t), "serve", "-c", s.conf)
	var err error
	s.Process, err = r.Start(cmd, s.dir+"/log")
	check(s.f.t, err)
	lab.Await(s.f.t, "keystored list", func() bool {
		_, err := s.run("list")
		return err == nil
	})
}

// newInstance writes the files of an instance.
func (f *fleet) newInstance(name, signer string) *storeInstance {
	f.t.Helper()
	port, err := lab.FreePort()
	check(f.t, err)
	s := &storeInstance{f: f, dir: f.dir + "/" + name, url: fmt.Sprintf("https://localhost:%d", port), signer: signer, krb5: f.kadmind.Conf}
	s.conf = s.dir + "/keystored.conf"
	if f.krb5[name] != "" {
		s.krb5 = f.krb5[name]
	}
	check(f.t, os.Mkdir(s.dir, 0o755))
	check(f.t, os.Mkdir(s.dir+"/state", 0o700))
	if f.disks {
		disk(f.t, s.dir+"/state", "1m")
	}
	f.ca.Issue(f.t, s.dir, "localhost")
	text := fmt.Sprintf("[keystored]\n%sname = %s\nlisten = 127.0.0.1:%d\ncert = %[4]s/cert.pem\nkey = %[4]s/key.pem\nclient_ca = %[5]s/ca.pem\ncrl = %[5]s/crl.pem\n"+
		"state_dir = %[4]s/state\nsocket = %[4]s/socket\naudit = %[4]s/audit.log\n", f.backend(name), name, port, s.dir, f.ca.Dir)
	check(f.t, os.WriteFile(s.conf, []byte(text), 0o600))
	if s.signer == "" {
		var made struct{ Signer string }
		s.json(&made, "init", "--without-recovery")
		s.signer = made.Signer
	}
	check(f.t, os.WriteFile(s.conf, []byte(text+"signer = "+s.signer+"\n[realm/"+lab.Name+"]\nchange = kadmin\n"), 0o600))
	f.stores = append(f.stores, s)
	return s
}

// newHost raises a host, and enrols it.
func (f *fleet) newHost(name string) *fleetHost {
	f.t.Helper()
	r := realm(f.t)
	h := &fleetHost{name: name, dir: f.dir + "/" + name}
	h.front, h.cache = h.dir+"/front.sock", h.dir+"/cache"
	check(f.t, os.Mkdir(h.dir, 0o755))
	check(f.t, os.Mkdir(h.dir+"/state", 0o700))
	h.serial = f.ca.Issue(f.t, h.dir, name)
	text := "[gssproxy]\n  debug_level = 1\n  audit = " + h.dir + "/audit.log\n" +
		"[service/accept]\n  mechs = krb5\n  euid = 0\n  allow_any_uid = yes\n  cred_usage = accept\n  cred_store = keytab:STORE:main:" + f.principal + "\n" +
		"[service/initiate]\n  mechs = krb5\n  euid = 0\n  allow_any_uid = yes\n  cred_usage = initiate\n  socket = " + h.front +
		"\n  cred_store = client_keytab:STORE:main:" + f.principal + "\n  cred_store = ccache:FILE:" + h.cache + "\n"
	text += "\n[store/main]\n"
	for _, s := range f.stores {
		text += "url = " + s.url + "\n"
	}
	text += fmt.Sprintf("ca = %s/ca.pem\ncert = %[2]s/cert.pem\nkey = %[2]s/key.pem\nsigner = %[3]s\nhost = %[4]s\n", f.ca.Dir, h.dir, f.stores[0].signer, name)
	h.Daemon = daemon(f.t, lab.Options{Dir: h.dir, Config: text, Keytab: h.dir + "/none"})
	recipient, err := r.Run(lab.Root, nil, r.Gssproxyd, "keytab", "recipient", "--state-dir", h.dir+"/state")
	check(f.t, err)
	f.stores[0].must("host", "add", name, "--recipient", strings.TrimSpace(recipient))
	f.hosts = append(f.hosts, h)
	return h
}

// etcdConf are the lines of keystored.conf about a cluster, which is asked at these URLs, by default
// those of its members.
func etcdConf(t *testing.T, c *lab.EtcdCluster, members []*lab.Etcd, urls ...string) string {
	t.Helper()
	if len(urls) == 0 {
		for _, e := range members {
			urls = append(urls, e.Endpoint)
		}
	}
	text := "backend = etcd:" + strings.Join(urls, ",") + "\n"
	if c.CA == nil {
		return text
	}
	r := realm(t)
	dir := r.Path("etcd-client")
	check(t, os.Mkdir(dir, 0o755))
	c.CA.Issue(t, dir, "keystored")
	check(t, os.WriteFile(dir+"/password", []byte(c.Password+"\n"), 0o600))
	return text + fmt.Sprintf("etcd_ca = %s/ca.pem\netcd_cert = %[2]s/cert.pem\netcd_key = %[2]s/key.pem\netcd_user = keystored\netcd_password_file = %[2]s/password\n", c.CA.Dir, dir)
}

// secure is a cluster of three members with TLS and authentication.
func secure(t *testing.T) *lab.EtcdCluster {
	t.Helper()
	return &lab.EtcdCluster{Members: 3, CA: lab.NewAuthority(t, realm(t).Path("etcd-ca")), Password: rand.Text()}
}

// newFleet raises all of it, over an etcd cluster.
func newFleet(t *testing.T, c *lab.EtcdCluster) *fleet {
	t.Helper()
	f := prepare(t)
	f.etcd = c.Start(t)
	lines := etcdConf(t, c, f.etcd)
	f.backend = func(string) string { return lines }
	f.password = c.Password
	f.raise()
	return f
}

// prepare is for a fleet without a backend: an authority and a kadmind.
func prepare(t *testing.T) *fleet {
	t.Helper()
	r := realm(t)
	name := strings.ToLower(strings.ReplaceAll(t.Name(), "/", "-"))
	f := &fleet{t: t, dir: r.Path("fleet"), principal: name + "/" + lab.Host + "@" + lab.Name, target: name + "@" + lab.Host}
	check(t, os.Mkdir(f.dir, 0o755))
	f.ca = lab.NewAuthority(t, f.dir+"/ca")
	var err error
	f.kadmind, err = r.Kadmind()
	check(t, err)
	t.Cleanup(func() {
		for _, s := range f.stores {
			if s.Process == nil {
				continue
			}
			s.Stop()
			if t.Failed() {
				t.Logf("log of keystored:\n%s", tail(s.Output(), 8<<10))
			}
		}
	})
	return f
}

// raise starts two instances, and hosts with an entry whose keys have come by keystored import.
func (f *fleet) raise() {
	f.t.Helper()
	one := f.newInstance("one", "")
	one.start()
	two := f.newInstance("two", one.signer)
	var is struct{ Recipient string }
	two.json(&is, "recipient")
	one.must("master", "grant", "two", "--recipient", is.Recipient)
	two.start()
	f.populate()
}

// populate imports the entry, and raises three hosts that have it.
func (f *fleet) populate() {
	f.t.Helper()
	r, one := realm(f.t), f.stores[0]
	check(f.t, r.RandKey(strings.TrimSuffix(f.principal, "@"+lab.Name)))
	path, err := r.Keytab("fleet.keytab", f.principal)
	check(f.t, err)
	out := one.must("import", "--write", "--hosts", "web*.example.test", path)
	if !strings.Contains(out, path) {
		f.t.Errorf("import: %s", out)
	}
	for i := range 3 {
		f.newHost(fmt.Sprintf("web%d.example.test", i+1))
	}
	for _, h := range f.hosts { // without asking for what is refused: that is not audited again and again
		lab.Await(f.t, h.name+" has no keys", func() bool {
			text, _ := h.Administer(lab.Root, "status")
			return strings.Contains(text, f.principal+": epoch 1, revision 1, ")
		})
	}
}

// acceptor is an unmodified acceptor on a host.
func (f *fleet) acceptor(h *fleetHost) *lab.Tool {
	f.t.Helper()
	g := tool(f.t, lab.Nobody, h.PluginEnv()...)
	check(f.t, g.Acquire(f.target))
	return g
}

// traffic is what clients do all the time. Each failure is one.
type traffic struct {
	f      *fleet
	ctx    context.Context
	stop   context.CancelFunc
	wg     sync.WaitGroup
	mu     sync.Mutex
	failed []error

	acceptors []*lab.Tool       // of each host
	clients   [][]*atomic.Int64 // accepts, of each client at each host, and renewals of its ticket
	fresh     atomic.Int64      // accepts of tickets that were got just then
	inits     []*atomic.Int64   // of each host
}

func (f *fleet) newTraffic() *traffic {
	f.t.Helper()
	w := &traffic{f: f}
	w.ctx, w.stop = context.WithCancel(f.t.Context())
	f.t.Cleanup(w.end)
	for _, h := range f.hosts {
		w.acceptors = append(w.acceptors, f.acceptor(h))
	}
	w.client()
	w.always("fresh ticket", func(n int) error {
		r := realm(f.t)
		env, err := r.Kinit("alice", "alice")
		if err != nil {
			return err
		}
		return f.with(env, func(g *lab.Tool) error {
			for _, a := range w.acceptors {
				if err := acceptThrough(g, a, f.target); err != nil {
					return err
				}
			}
			w.fresh.Add(1)
			return os.Remove(strings.TrimPrefix(env[len(env)-1], "KRB5CCNAME=FILE:"))
		})
	})
	// Each login is a new one, with the key that the store gave.
	for i, h := range f.hosts {
		w.inits = append(w.inits, new(atomic.Int64))
		w.always("initiate at "+h.name, func(n int) error {
			if err := os.Remove(h.cache); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
			return f.with(realm(f.t).PluginEnv(h.front), func(g *lab.Tool) error {
				_, token, err := g.Init(f.target, lab.Usual, nil)
				if err != nil {
					return fmt.Errorf("initiator: %w", err)
				}
				a := w.acceptors[n%len(w.acceptors)]
				got, err := a.Accept(token, nil)
				if err != nil {
					return fmt.Errorf("acceptor: %w", err)
				}
				if got.Client != f.principal {
					return fmt.Errorf("initiated as %q", got.Client)
				}
				w.inits[i].Add(1)
				return a.Delete(got.ID)
			})
		})
	}
	return w
}

// with runs a program for a call or a few.
func (f *fleet) with(env []string, use func(*lab.Tool) error) error {
	g, err := realm(f.t).Tool(lab.Nobody, env...)
	if err != nil {
		return err
	}
	return errors.Join(use(g), g.Close())
}

// always does something again and again.
func (w *traffic) always(what string, do func(n int) error) {
	w.wg.Go(func() {
		for n := 0; w.ctx.Err() == nil; n++ {
			if err := do(n); err != nil {
				w.mu.Lock()
				w.failed = append(w.failed, fmt.Errorf("%s, %d: %w", what, n, err))
				w.mu.Unlock()
			}
		}
	})
}

// client is one more client, whose ticket is made with the key that the KDC has now, and which keeps it.
// A ticket that it has got at the same time is renewed, again and again as it was got, and used.
func (w *traffic) client() {
	w.f.t.Helper()
	r, service := realm(w.f.t), strings.TrimSuffix(w.f.principal, "@"+lab.Name)
	env, err := r.Kinit("alice", "alice", "-r", "7d", "-S", service)
	check(w.f.t, err)
	ticket := strings.TrimPrefix(env[len(env)-1], "KRB5CCNAME=FILE:")
	g, counts, hosts := alice(w.f.t), []*atomic.Int64{}, len(w.acceptors)
	w.f.t.Cleanup(w.end) // before g ends
	for range hosts + 1 {
		counts = append(counts, new(atomic.Int64))
	}
	n := len(w.clients)
	w.clients = append(w.clients, counts)
	w.always(fmt.Sprintf("client %d", n), func(n int) error {
		i := n % hosts
		if err := acceptThrough(g, w.acceptors[i], w.f.target); err != nil {
			return fmt.Errorf("at %s: %w", w.f.hosts[i].name, err)
		}
		counts[i].Add(1)
		if n%(10*hosts) > 0 {
			return nil
		}
		copied := r.Path("renewed")
		defer os.Remove(copied)
		b, err := os.ReadFile(ticket)
		if err == nil {
			err = os.WriteFile(copied, b, 0o600)
		}
		if err != nil {
			return err
		}
		env := []string{"KRB5CCNAME=FILE:" + copied}
		if _, err := r.Run(lab.Root, env, "/usr/bin/kinit", "-R", "-S", service); err != nil {
			return fmt.Errorf("a ticket is not renewed: %w", err)
		}
		if err := os.Chmod(copied, 0o666); err != nil {
			return err
		}
		err = w.f.with(env, func(g *lab.Tool) error { return acceptThrough(g, w.acceptors[(n/hosts)%hosts], w.f.target) })
		if err != nil {
			return fmt.Errorf("with a ticket that was renewed: %w", err)
		}
		counts[hosts].Add(1)
		return nil
	})
}

// counts are how often it went well: accepts of each client at each host and renewals of its ticket, fresh
// tickets, and logins of each host.
func (w *traffic) counts() (list []int64) {
	for _, c := range w.clients {
		for _, n := range c {
			list = append(list, n.Load())
		}
	}
	list = append(list, w.fresh.Load())
	for _, n := range w.inits {
		list = append(list, n.Load())
	}
	return list
}

// all waits until everybody has done all that he does twice more: once since now.
func (w *traffic) all(what string) {
	w.f.t.Helper()
	before := w.counts()
	lab.Await(w.f.t, "traffic "+what, func() bool {
		for i, n := range w.counts() {
			if n < before[i]+2 {
				return false
			}
		}
		return true
	})
}

// end stops all, and reports what has failed.
func (w *traffic) end() {
	w.stop()
	w.wg.Wait()
	for i, err := range w.failed {
		if i == 5 {
			w.f.t.Errorf("and %d more", len(w.failed)-i)
			break
		}
		w.f.t.Error(err)
	}
	w.failed = nil
}

// listed is what keystored list says of an entry.
type listed struct {
	Principal       string
	KVNO            int
	Rotation, Alarm string
}

// ask is what an instance says of the entry.
func (f *fleet) ask(s *storeInstance) (e listed, err error) {
	out, err := s.run("list", "--json")
	if err != nil {
		return e, err
	}
	var list struct{ Entries []listed }
	if err := json.Unmarshal([]byte(out), &list); err != nil {
		return e, fmt.Errorf("%w\n%s", err, out)
	}
	for _, e := range list.Entries {
		if e.Principal == f.principal {
			return e, nil
		}
	}
	return e, fmt.Errorf("%s is not there\n%s", f.principal, out)
}

// entry is ask, where an instance must answer.
func (f *fleet) entry(s *storeInstance) listed {
	f.t.Helper()
	e, err := f.ask(s)
	check(f.t, err)
	return e
}

// written says what was written to an etcd that is asked in the clear: docs/keystore.md has it by the day.
func (f *fleet) written() {
	f.t.Helper()
	c, err := clientv3.New(clientv3.Config{Endpoints: []string{f.etcd[0].Endpoint}})
	check(f.t, err)
	defer c.Close()
	const prefix = "/keystored/record/"
	last, err := c.Get(f.t.Context(), prefix)
	check(f.t, err)
	type sum struct{ writes, bytes int }
	sums := map[string]*sum{}
	for r := range c.Watch(f.t.Context(), prefix, clientv3.WithPrefix(), clientv3.WithRev(1), clientv3.WithProgressNotify()) {
		check(f.t, r.Err())
		for _, e := range r.Events {
			kind, rest, found := strings.Cut(strings.TrimPrefix(string(e.Kv.Key), prefix), "/")
			if found {
				kind, _, _ = strings.Cut(rest, "/")
			}
			if sums[kind] == nil {
				sums[kind] = new(sum)
			}
			sums[kind].writes++
			sums[kind].bytes += len(e.Kv.Key) + len(e.Kv.Value)
		}
		if len(r.Events) > 0 && r.Events[len(r.Events)-1].Kv.ModRevision >= last.Header.Revision-1 {
			break
		}
	}
	for kind, s := range sums {
		f.t.Logf("written of %s: %d times, %d bytes each", kind, s.writes, s.bytes/s.writes)
	}
}

// killed has the first instance killed in the middle of a rotation. The second one finishes it.
func (f *fleet) killed() {
	f.t.Helper()
	one, two := f.stores[0], f.stores[1]
	for {
		before := f.entry(two)
		r := realm(f.t)
		cmd := r.Command(lab.Root, nil, keystored(f.t), "rotate", f.principal, "-c", one.conf)
		rotate, err := r.Start(cmd, f.dir+"/rotate.out")
		check(f.t, err)
		var seen string
		lab.Await(f.t, "a rotation", func() bool {
			e := f.entry(two)
			seen = e.Rotation
			return seen != "" || e.KVNO > before.KVNO
		})
		if seen == "" { // it was over before anybody looked
			<-rotate.Done()
			continue
		}
		one.Kill()
		<-rotate.Done()
		lab.Await(f.t, "the second instance does not finish", func() bool {
			e := f.entry(two)
			return e.Rotation == "" && e.KVNO == before.KVNO+1
		})
		f.t.Logf("killed when the step %s was done; the other one has finished", seen)
		one.start()
		return
	}
}

// TestFleet: keys of three hosts come from a store of two instances over etcd. While the keys are
// rotated nobody notices, with old tickets, which are renewed, and new ones, and an instance killed in the
// middle; what
// the store says of who may do what is in force at the hosts; they live without the store. In all
// that is left behind there is no key.
func TestFleet(t *testing.T) { testFleet(t, &lab.EtcdCluster{Members: 1}, 3) }

// TestNightlyFleet is TestFleet with more rotations, and an etcd of three members that has TLS with client
// certificates and asks for passwords.
func TestNightlyFleet(t *testing.T) { lab.Nightly(t); testFleet(t, secure(t), 30) }

func testFleet(t *testing.T, cluster *lab.EtcdCluster, rotations int) {
	if lab.UnderUnit() {
		t.Skip("the identities of the hosts are the test's")
	}
	f := newFleet(t, cluster)
	one := f.stores[0]
	before := f.entry(one).KVNO

	w := f.newTraffic()
	w.all("at first")
	for n := 1; n <= rotations; n++ {
		switch {
		case n%10 == 2:
			f.killed()
		default:
			f.stores[n%2].must("rotate", f.principal)
		}
		w.client()
		w.all(fmt.Sprintf("after rotation %d", n))
	}
	t.Logf("accepts of each client at each host and renewals of its ticket, fresh tickets, logins of each host: %d", w.counts())
	w.end()
	if cluster.CA == nil {
		f.written()
	}
	if e, now := f.entry(one), f.keys(); e.KVNO < before+rotations || e.KVNO != now || e.Alarm != "" {
		t.Errorf("%+v, at the KDC kvno %d, before %d", e, now, before)
	}
	f.authority()
	backup := f.dir + "/backup"
	one.must("backup", backup)
	f.down()
	f.nothing(backup)
}

// keys makes all keys that the entry has ever had secrets of the realm, and returns the version that
// the KDC has now. It keeps those of before.
func (f *fleet) keys() (kvno int) {
	f.t.Helper()
	path, err := realm(f.t).Keytab("fleet.keytab", f.principal)
	check(f.t, err)
	b, err := os.ReadFile(path)
	check(f.t, err)
	entries, err := keytabs.Parse(b)
	check(f.t, err)
	versions := map[uint32]bool{}
	for _, e := range entries {
		versions[e.KVNO] = true
		kvno = max(kvno, int(e.KVNO))
	}
	if len(versions) != kvno {
		f.t.Fatalf("of %d versions the KDC has %d", kvno, len(versions))
	}
	return kvno
}

// tries has an unmodified acceptor on a host accept a client.
func (f *fleet) tries(h *fleetHost, client *lab.Tool) error {
	return f.with(h.PluginEnv(), func(g *lab.Tool) error {
		return errors.Join(g.Acquire(f.target), acceptThrough(client, g, f.target))
	})
}

// accepts waits until a host accepts, or an unmodified acceptor there is refused for a reason.
func (f *fleet) accepts(h *fleetHost, client *lab.Tool, want string) {
	f.t.Helper()
	begun, last := time.Now(), error(nil)
	lab.Await(f.t, h.name+" and "+want, func() bool {
		last = f.tries(h, client)
		return want == "" && last == nil || want != "" && last != nil && strings.Contains(last.Error(), "["+want+"]")
	})
	f.t.Logf("%s after %v: %v", h.name, time.Since(begun), last)
}

// hasLine reports whether one of the audit logs has a line of a kind and a reason.
func (f *fleet) hasLine(kind, reason string, logs ...string) bool {
	f.t.Helper()
	for _, log := range logs {
		b, err := os.ReadFile(log)
		check(f.t, err)
		for line := range bytes.Lines(b) {
			var e struct{ Kind, Reason string }
			if json.Unmarshal(line, &e) == nil && e.Kind == kind && e.Reason == reason {
				return true
			}
		}
	}
	return false
}

// audited waits until one of the audit logs has a line of a kind and a reason.
func (f *fleet) audited(kind, reason string, logs ...string) {
	f.t.Helper()
	lab.Await(f.t, fmt.Sprintf("%s for %s in %s", kind, reason, logs), func() bool { return f.hasLine(kind, reason, logs...) })
}

// lost waits until a host says that it has no contact, and returns its status.
func (f *fleet) lost(h *fleetHost) (text string) {
	f.t.Helper()
	lab.Await(f.t, h.name+" does not say that there is no contact", func() bool {
		text, _ = h.Administer(lab.Root, "status")
		return strings.Contains(text, "key store main: NO CONTACT: ")
	})
	return text
}

// authority is what the store says of who may do what: in force at the hosts, with the reason at
// programs there, and lines in the audit logs at both ends.
func (f *fleet) authority() {
	f.t.Helper()
	one, web1, web3 := f.stores[0], f.hosts[0], f.hosts[2]
	stores := []string{one.dir + "/audit.log", f.stores[1].dir + "/audit.log"}
	client := alice(f.t)
	denied := func(h *fleetHost, reason, text string) {
		f.t.Helper()
		f.accepts(h, client, reason)
		// Refusals that come faster than their lines may are counted in the next one.
		lab.Await(f.t, "call-denied for "+reason+" in the audit log of "+h.name, func() bool {
			if f.hasLine("call-denied", reason, h.dir+"/audit.log") {
				return true
			}
			f.tries(h, client)
			return false
		})
		var d xdr.AdminResDenials
		check(f.t, h.AsJSON(&d, "denials"))
		if n := len(d.Denials); n == 0 || d.Denials[n-1].Reason != reason || !strings.Contains(d.Denials[n-1].Text, text) {
			f.t.Errorf("%s, %q: %+v", reason, text, d.Denials)
		}
	}

	// A policy that no longer names a host.
	one.must("policy", f.principal, "--hosts", "web2.example.test", "--hosts", "web3.example.test")
	denied(web1, "store-no-right", f.principal)
	f.audited("store-denied", "store-no-right", stores...)
	f.accepts(web3, client, "")
	one.must("policy", f.principal, "--hosts", "web*.example.test")
	f.accepts(web1, client, "")

	// No host is to use the keys.
	one.must("disable", f.principal, "--why", "they are in a backup that was sold")
	for _, h := range f.hosts {
		denied(h, "store-disabled", "they are in a backup that was sold")
	}
	f.audited("store-denied", "store-disabled", stores...)
	one.must("enable", f.principal)
	for _, h := range f.hosts {
		f.accepts(h, client, "")
	}

	// A rule that narrows.
	one.must("policy", f.principal, "--rule", "operations=initiate")
	denied(web1, "operation-not-allowed", "")
	f.audited("entry-changed", "", stores...)
	check(f.t, f.with(realm(f.t).PluginEnv(web1.front), func(g *lab.Tool) error {
		_, _, err := g.Init(f.target, lab.Usual, nil)
		return err
	}))
	one.must("policy", f.principal, "--rule", "")
	f.accepts(web1, client, "")

	// A certificate that was revoked: the store has nothing to say any more, and the host goes on.
	f.ca.Revoke(f.t, web3.serial)
	f.lost(web3)
	f.audited("store-denied", "store-certificate", stores...)
	f.accepts(web3, client, "")
}

// down has no store answer: hosts go on, and say how old it is what they have.
func (f *fleet) down() {
	f.t.Helper()
	for _, s := range f.stores {
		check(f.t, s.Stop())
	}
	web1 := f.hosts[0]
	check(f.t, web1.Restart())
	f.accepts(web1, alice(f.t), "")
	if text := f.lost(web1); !strings.Contains(text, "it has answered last: ") || !strings.Contains(text, f.principal+": epoch 1, revision ") || !strings.Contains(text, " ago\n") {
		f.t.Error(text)
	}
}

// nothing ends all, and looks for keys in what is left: those of the entry, of the store, and of
// hosts and instances, but where they belong. The audit logs are as they were written.
func (f *fleet) nothing(backup string) {
	f.t.Helper()
	r := realm(f.t)
	for _, h := range f.hosts {
		check(f.t, h.Stop())
		out, err := r.Run(lab.Root, nil, r.Gssproxyd, "audit", "verify", h.dir+"/audit.log")
		if err != nil {
			f.t.Errorf("%v\n%s", err, out)
		}
	}
	for _, s := range f.stores {
		if out, err := s.run("audit", "verify", s.dir+"/audit.log"); err != nil {
			f.t.Errorf("%v\n%s", err, out)
		}
		if out := s.Output(); strings.Contains(out, "DATA RACE") || strings.Contains(out, "panic") {
			f.t.Error("the log of keystored has a data race or a panic")
		}
	}
	for _, e := range f.etcd {
		e.Stop() // which ends by the signal
	}
	f.keys()
	f.storeKeys(backup)
	identities, err := filepath.Glob(f.dir + "/*/state/host.age")
	check(f.t, err)
	if len(identities) != 5 {
		f.t.Error(identities)
	}
	for _, path := range identities {
		b, err := os.ReadFile(path)
		check(f.t, err)
		_, secret, found := strings.Cut(string(b), "AGE-SECRET-KEY-1")
		if !found {
			f.t.Errorf("%s: no identity", path)
		}
		r.Secret("the identity "+path, []byte(strings.TrimSpace(secret)))
	}
	everyFile(f.t, filepath.Dir(f.etcd[0].Data))          // with all logs
	r.Secret("the password for etcd", []byte(f.password)) // which etcd itself writes down in the clear
	everyFile(f.t, f.dir)
}

// storeKeys makes the store's own keys secrets of the realm: what is in the keyring, as
// docs/keystore.md has it.
func (f *fleet) storeKeys(backup string) {
	f.t.Helper()
	b, err := os.ReadFile(backup)
	check(f.t, err)
	var keyring []byte
	for line := range bytes.Lines(b) {
		var record struct {
			Name  string
			Value []byte
		}
		check(f.t, json.Unmarshal(line, &record))
		if record.Name == "keyring" {
			keyring = record.Value
		}
	}
	const head, signature = 5 + 8 + 8 + 32, 64
	if len(keyring) < head+signature {
		f.t.Fatal("the backup has no keyring")
	}
	id, err := os.Open(f.stores[0].dir + "/state/host.age")
	check(f.t, err)
	defer id.Close()
	identities, err := age.ParseIdentities(id)
	check(f.t, err)
	plain, err := age.Decrypt(bytes.NewReader(keyring[head:len(keyring)-signature]), identities...)
	check(f.t, err)
	var k struct {
		NameKey, Signer []byte
		Masters         []struct{ Key []byte }
	}
	check(f.t, json.NewDecoder(plain).Decode(&k))
	if len(k.NameKey) == 0 || len(k.Signer) == 0 || len(k.Masters) == 0 {
		f.t.Fatal("the keyring lacks keys")
	}
	r := realm(f.t)
	r.Secret("the name key", k.NameKey)
	r.Secret("the signer's seed", k.Signer)
	for _, m := range k.Masters {
		r.Secret("a master key", m.Key)
	}
}

// TestKeystoreTutorial runs the commands of docs/keystore-tutorial.md as they are written, on two
// machines that are two directories: from a host with a clear keytab to a store with rotation.
// Clients get in between any two blocks.
func TestKeystoreTutorial(t *testing.T) {
	if lab.UnderUnit() {
		t.Skip("the identities of the hosts are the test's")
	}
	lab.NeedPrograms(t, "/usr/bin/age", "/usr/bin/age-keygen", "/usr/bin/openssl")
	r := realm(t)
	page, err := os.ReadFile("../../docs/keystore-tutorial.md")
	check(t, err)
	dir := r.Path("tutorial")
	keys1, web1, bin := dir+"/keys1", dir+"/web1", dir+"/bin"
	etc := web1 + "/conf.d"
	for _, d := range []string{dir, keys1, keys1 + "/etc", keys1 + "/log", web1, etc, bin} {
		check(t, os.Mkdir(d, 0o755))
	}
	check(t, os.Mkdir(keys1+"/lib", 0o700))
	port, err := lab.FreePort()
	check(t, err)
	kadmind, err := r.Kadmind()
	check(t, err)
	principal, target := "tutorial/"+lab.Host, "tutorial@"+lab.Host
	check(t, r.RandKey(principal))
	check(t, r.Ktadd(etc+"/http.keytab", principal))
	here := strings.NewReplacer(
		"/etc/gssproxy/keystored", keys1+"/etc/keystored", "/var/lib/keystored", keys1+"/lib", "/var/log/keystored", keys1+"/log", "/etc/gssproxy", etc,
		"HTTP/www.example.com", principal, "EXAMPLE.COM", lab.Name,
		"https://keys1.example.com:8443", fmt.Sprintf("https://localhost:%d", port), "DNS:keys1.example.com", "DNS:localhost", "= :8443\n", fmt.Sprintf("= 127.0.0.1:%d\nstate_dir = %s/lib\nsocket = %s/socket\n", port, keys1, keys1),
	)
	check(t, os.WriteFile(etc+"/80-httpd.conf", []byte(here.Replace("[service/http]\n  mechs = krb5\n  euid = nobody\n  cred_usage = accept\n  cred_store = keytab:/etc/gssproxy/http.keytab\n")), 0o600))
	self, err := os.Executable()
	check(t, err)
	// The service is for the test, which looks whether the daemon answers.
	conf := "[gssproxy]\n  debug_level = 1\n[service/lab]\n  mechs = krb5\n  euid = 0\n  program = " + self + "\n  cred_usage = accept\n"
	d := daemon(t, lab.Options{Dir: web1, Config: conf, Keytab: web1 + "/none"})

	// Programs find theirs as they do where there is one machine, and there are no other users.
	for name, script := range map[string]string{
		"gssproxyd": fmt.Sprintf("GSSPROXYD_STATE_DIR=%[1]s/state exec %[2]s \"$@\" -c %[1]s/gssproxy.conf -C %[3]s -s %[4]s", web1, r.Gssproxyd, etc, d.Socket),
		"keystored": fmt.Sprintf("exec %s \"$@\" -c %s/etc/keystored.conf", keystored(t), keys1),
		"runuser":   `shift 3; exec "$@"`,
		"chown":     "",
		"scp":       fmt.Sprintf("while [ $# -gt 1 ]; do files=\"$files $1\"; shift; done\ncase $1 in root@web1:*) test ! $PWD = %s;; *) test $PWD = %[1]s;; esac && cp $files ${1#*:}", etc),
		"systemctl": "echo \"$@\" >>" + dir + "/systemctl",
	} {
		check(t, os.WriteFile(bin+"/"+name, []byte("#!/bin/sh\n"+script+"\n"), 0o755))
	}
	env := []string{"PATH=" + bin + ":/usr/bin:/bin", "KRB5_CONFIG=" + kadmind.Conf}
	var said []string // by commands
	var server *lab.Process
	t.Cleanup(func() {
		if server == nil {
			return
		}
		server.Stop()
		if t.Failed() {
			t.Logf("log of keystored:\n%s", tail(server.Output(), 8<<10))
		}
	})
	// manage does what systemctl was asked to.
	manage := func() {
		t.Helper()
		b, err := os.ReadFile(dir + "/systemctl")
		if errors.Is(err, fs.ErrNotExist) {
			return
		}
		check(t, err)
		check(t, os.Remove(dir+"/systemctl"))
		if !strings.HasSuffix(string(b), " keystored\n") {
			t.Fatalf("systemctl %s", b)
		}
		if server != nil {
			check(t, server.Stop())
		}
		server, err = r.Start(r.Command(lab.Root, env, bin+"/keystored", "serve"), fmt.Sprintf("%s/log/%d", keys1, len(said)))
		check(t, err)
		check(t, server.WaitOutput("serving", lab.Patience))
	}

	g := tool(t, lab.Nobody, d.PluginEnv()...)
	check(t, g.Acquire(target))
	works := func() {
		t.Helper()
		check(t, acceptThrough(alice(t), g, target))
	}
	works()
	for _, section := range strings.Split(string(page), "\n## ")[1:] {
		in := keys1 + "/etc/keystored.d"
		if strings.HasPrefix(section, "On web1") {
			in = etc
		}
		for _, block := range regexp.MustCompile(`(?m)(?:^    .*\n)+`).FindAllString(section, -1) {
			// A command after which a machine does something is one after which the shell waits.
			for _, part := range strings.SplitAfter(strings.ReplaceAll(block, "\n    ", "\n"), "keystored\n") {
				cmd := r.Command(lab.Root, env, "/bin/sh", "-e", "-c", here.Replace(part))
				if cmd.Dir = in; len(said) == 0 {
					cmd.Dir = dir
				}
				out, err := cmd.CombinedOutput()
				if err != nil {
					t.Fatalf("%v\n%s\n%s", err, part, out)
				}
				check(t, r.Scan(part, out))
				said = append(said, string(out))
				manage()
			}
			if strings.HasSuffix(block, "gssproxyd status\n") {
				lab.Await(t, "status has no keys of the store", func() bool {
					out, _ := d.Administer(lab.Root, "status")
					return strings.Contains(out, "@"+lab.Name+": epoch 1, revision 1, ")
				})
			}
			works()
		}
	}
	show := said[len(said)-1]
	for _, want := range []string{"key: current, kvno 2, ", "key: previous, kvno 1, ", "interval: 720h", "host web1.example.com: revision "} {
		if !strings.Contains(show, want) {
			t.Errorf("no %q:\n%s", want, show)
		}
	}
	if _, err := os.Lstat(etc + "/http.keytab"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the keytab: %v", err)
	}
	check(t, d.Stop())
	check(t, server.Stop())
	_, err = r.Keytab("tutorial.keytab", principal)
	check(t, err)
	everyFile(t, dir)
}
