package samba

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/big"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"gssproxyd/tests/lab"
)

// account is one whose keys are rotated.
type account struct {
	name  string   // with the realm
	spns  []string // as clients name them
	asked string   // by which name the host asks the store for it

	front, cache string // where programs on the host initiate as it, and where its tickets are kept
	acceptor     *lab.Tool
}

// rotation is a domain, a store that rotates keys in it, and a host with its daemon.
type rotation struct {
	t        *testing.T
	d        *domain
	dir      string
	conf     string // of the store
	krb5Conf string
	program  string
	store    *lab.Process
	kpasswd  *gate
	host     *lab.Daemon
	accounts []*account
}

// gate is a kpasswd server that hands on to the domain controller's, and can be shut.
type gate struct {
	net.Listener
	shut atomic.Pointer[shut]
}

// shut says where a request is held for ever.
type shut struct {
	before bool          // it reaches the domain controller; false: it has, and the answer is held
	held   chan struct{} // closed when one is
}

// open starts the gate, which ends with the test.
func (g *gate) open(t *testing.T) {
	t.Helper()
	var err error
	g.Listener, err = net.Listen("tcp", "127.0.0.1:0")
	check(t, err)
	var conns sync.WaitGroup
	ended := make(chan struct{})
	t.Cleanup(func() { close(ended); g.Close(); conns.Wait() })
	conns.Go(func() {
		for {
			conn, err := g.Accept()
			if err != nil {
				return
			}
			conns.Go(func() {
				defer conn.Close()
				if err := g.hand(conn, ended); err != nil {
					t.Logf("kpasswd: %v", err)
				}
			})
		}
	})
}

// hand hands one request on, and the answer back.
func (g *gate) hand(conn net.Conn, ended <-chan struct{}) error {
	message := func(r io.Reader) ([]byte, error) {
		b := make([]byte, 4)
		if _, err := io.ReadFull(r, b); err != nil {
			return nil, err
		}
		b = append(b, make([]byte, int(b[2])<<8|int(b[3]))...)
		_, err := io.ReadFull(r, b[4:])
		return b, err
	}
	request, err := message(conn)
	if err != nil {
		return err
	}
	shut := g.shut.Load()
	hold := func() error { close(shut.held); <-ended; return nil }
	if shut != nil && shut.before {
		return hold()
	}
	dc, err := net.Dial("tcp", controller+":464")
	if err != nil {
		return err
	}
	defer dc.Close()
	if _, err := dc.Write(request); err != nil {
		return err
	}
	answer, err := message(dc)
	if err != nil {
		return err
	}
	if shut != nil {
		return hold()
	}
	_, err = conn.Write(answer)
	return err
}

// certificate is one file with which everybody proves who he is, and the authority.
func certificate(t *testing.T, dir string, names ...string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	check(t, err)
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "all"}, DNSNames: names, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	check(t, err)
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	check(t, err)
	check(t, os.WriteFile(dir+"/cert.pem", pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o644))
	check(t, os.WriteFile(dir+"/key.pem", pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER}), 0o600))
}

const hostName = "web.ad.test"

// newRotation raises the store and the host, with the accounts imported of keytabs.
func newRotation(t *testing.T, d *domain, accounts ...*account) *rotation {
	t.Helper()
	r := &rotation{t: t, d: d, dir: d.Path("keystored"), kpasswd: new(gate), accounts: accounts}
	r.conf, r.krb5Conf, r.program = r.dir+"/keystored.conf", r.dir+"/krb5.conf", r.dir+"/program"
	check(t, os.MkdirAll(r.dir+"/state", 0o700))
	check(t, os.Chmod(r.dir, 0o755))
	check(t, lab.BuildProgram("./keystored", r.program, true))
	certificate(t, r.dir, "localhost", hostName)
	r.kpasswd.open(t)
	check(t, os.WriteFile(r.krb5Conf, []byte(strings.Replace(fmt.Sprintf(krb5Conf, ""), "kdc = "+controller, "kdc = "+controller+"\n    kpasswd_server = "+r.kpasswd.Addr().String(), 1)), 0o644))

	port, err := lab.FreePort()
	check(t, err)
	text := fmt.Sprintf("[keystored]\nbackend = bolt:%[1]s/state/store.db\nlisten = 127.0.0.1:%[2]d\ncert = %[1]s/cert.pem\nkey = %[1]s/key.pem\nclient_ca = %[1]s/cert.pem\n"+
		"state_dir = %[1]s/state\nsocket = %[1]s/socket\naudit = %[1]s/audit.log\n[realm/AD.TEST]\nchange = kpasswd\n", r.dir, port)
	check(t, os.WriteFile(r.conf, []byte(text), 0o600))
	var made struct{ Signer string }
	r.json(&made, "init", "--without-recovery")
	check(t, os.WriteFile(r.conf, []byte(strings.Replace(text, "socket =", "signer = "+made.Signer+"\nsocket =", 1)), 0o600))
	r.start()
	t.Cleanup(func() {
		r.store.Stop()
		if t.Failed() {
			t.Logf("log of keystored:\n%s", tail(r.store.Output(), 8<<10))
		}
	})
	var config strings.Builder
	config.WriteString("[gssproxy]\n  debug_level = 1\n")
	for i, a := range accounts {
		out := r.must("import", "--write", "--hosts", hostName, r.keytab(a))
		if !strings.Contains(out, a.name+": new (kvno ") || strings.Count(out, ": new") != 1 {
			t.Errorf("%s is not one entry:\n%s", a.name, out)
		}
		a.front, a.cache = fmt.Sprintf("%s/front-%d", r.dir, i), fmt.Sprintf("%s/cache-%d", r.dir, i)
		fmt.Fprintf(&config, "[service/accept-%[1]d]\nmechs = krb5\neuid = 0\nallow_any_uid = yes\nsocket = %[2]s/accept-%[1]d\ncred_store = keytab:STORE:main:%[3]s\ncred_usage = accept\n"+
			"[service/initiate-%[1]d]\nmechs = krb5\neuid = 0\nallow_any_uid = yes\nsocket = %[4]s\ncred_store = client_keytab:STORE:main:%[3]s\ncred_store = ccache:FILE:%[5]s\ncred_usage = initiate\n",
			i, r.dir, a.asked, a.front, a.cache)
	}
	fmt.Fprintf(&config, "[service/lab]\nmechs = krb5\neuid = 0\ncred_store = keytab:%[1]s/none\n[store/main]\nurl = https://localhost:%[2]d\nca = %[1]s/cert.pem\ncert = %[1]s/cert.pem\nkey = %[1]s/key.pem\nsigner = %[3]s\nhost = %[4]s\n",
		r.dir, port, made.Signer, hostName)
	r.host, err = d.Ours(lab.Options{Dir: r.dir + "/host", Config: config.String(), Keytab: r.dir + "/none"})
	check(t, err)
	t.Cleanup(func() {
		if err := r.host.Stop(); err != nil {
			t.Errorf("the daemon ended badly: %v", err)
		}
		if t.Failed() {
			t.Logf("log of the daemon:\n%s", tail(r.host.Output(), 8<<10))
		}
	})
	recipient, err := d.Run(lab.Root, nil, d.Gssproxyd, "keytab", "recipient", "--state-dir", r.dir+"/host/state")
	check(t, err)
	r.must("host", "add", hostName, "--recipient", strings.TrimSpace(recipient))
	for i, a := range accounts {
		lab.Await(t, "the keys of "+a.name, func() bool { return r.entry(a).Acknowledged[hostName].Revision == r.entry(a).Revision })
		a.acceptor = d.plugin(t, lab.Nobody, fmt.Sprintf("%s/accept-%d", r.dir, i))
		check(t, a.acceptor.Acquire(""))
	}
	return r
}

// keytab is what an administrator has of an account: its name and all service names.
func (r *rotation) keytab(a *account) string {
	r.t.Helper()
	names := []string{strings.TrimSuffix(a.name, "@"+realmName)}
	for _, spn := range a.spns {
		names = append(names, strings.Replace(spn, "@", "/", 1))
	}
	return r.d.keytab(r.t, names...)
}

// run runs a command of keystored.
func (r *rotation) run(args ...string) (string, error) {
	cmd := r.d.Command(lab.Root, []string{"KRB5_CONFIG=" + r.krb5Conf}, r.program, append(args, "-c", r.conf)...)
	out, err := cmd.CombinedOutput()
	if err != nil {
		err = fmt.Errorf("keystored %s: %w\n%s", strings.Join(args, " "), err, out)
	}
	return string(out), errors.Join(err, r.d.Scan("what keystored "+args[0]+" wrote", out))
}

func (r *rotation) must(args ...string) string {
	r.t.Helper()
	out, err := r.run(args...)
	check(r.t, err)
	return out
}

func (r *rotation) json(res any, args ...string) {
	r.t.Helper()
	check(r.t, json.Unmarshal([]byte(r.must(append(args, "--json")...)), res))
}

func (r *rotation) start() {
	r.t.Helper()
	var err error
	r.store, err = r.d.Start(r.d.Command(lab.Root, []string{"KRB5_CONFIG=" + r.krb5Conf}, r.program, "serve", "-c", r.conf), r.dir+"/log")
	check(r.t, err)
	lab.Await(r.t, "keystored list", func() bool {
		_, err := r.run("list")
		return err == nil
	})
}

// shown is what keystored show says of an entry.
type shown struct {
	Revision, KVNO  int
	Enctypes        []string
	Rotation, Alarm string
	Aliases         []string
	Acknowledged    map[string]struct{ Revision int }
}

func (r *rotation) entry(a *account) (e shown) {
	r.t.Helper()
	r.json(&e, "show", a.name)
	return e
}

// traffic is what clients and the host do all the time. Each failure is one.
type traffic struct {
	r    *rotation
	ctx  context.Context
	stop context.CancelFunc
	wg   sync.WaitGroup

	mu     sync.Mutex
	failed []error
	counts []*count
}

type count struct {
	what string
	n    atomic.Int64
}

func (r *rotation) newTraffic() *traffic {
	w := &traffic{r: r}
	w.ctx, w.stop = context.WithCancel(r.t.Context())
	r.t.Cleanup(w.end)
	w.renewals()
	for _, a := range r.accounts {
		w.client(a)
		w.always("fresh tickets for "+a.name, func(int) error {
			env, err := r.d.Kinit("alice", password)
			if err != nil {
				return err
			}
			defer os.Remove(strings.TrimPrefix(env[len(env)-1], "KRB5CCNAME=FILE:"))
			return r.with(env, func(g *lab.Tool) error { return a.accept(g) })
		})
		// Each login is a new one, with the key that the store gave.
		w.always("logins of "+a.name, func(n int) error {
			if err := os.Remove(a.cache); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
			return r.with(r.d.PluginEnv(a.front), func(g *lab.Tool) error {
				target := a.spns[n%len(a.spns)]
				_, token, err := g.Init(target, lab.Usual, nil)
				if err != nil {
					return fmt.Errorf("initiator: %w", err)
				}
				got, err := a.acceptor.Accept(token, nil)
				if err != nil {
					return fmt.Errorf("acceptor: %w", err)
				}
				if got.Client != a.name {
					return fmt.Errorf("initiated as %q", got.Client)
				}
				return a.acceptor.Delete(got.ID)
			})
		})
	}
	return w
}

// accept has a client establish contexts with each service of the account.
func (a *account) accept(g *lab.Tool) error {
	for _, target := range a.spns {
		id, token, err := g.Init(target, lab.Usual|lab.Mutual, nil)
		if err != nil {
			return fmt.Errorf("%s: initiator: %w", target, err)
		}
		got, err := a.acceptor.Accept(token, nil)
		if err != nil {
			return fmt.Errorf("%s: acceptor: %w", target, err)
		}
		if _, _, err := g.Step(id, got.Token); err != nil {
			return fmt.Errorf("%s: initiator: %w", target, err)
		}
		if err := errors.Join(g.Delete(id), a.acceptor.Delete(got.ID)); err != nil {
			return err
		}
	}
	return nil
}

// with runs a program for a few calls.
func (r *rotation) with(env []string, use func(*lab.Tool) error) error {
	g, err := r.d.Tool(lab.Nobody, env...)
	if err != nil {
		return err
	}
	return errors.Join(use(g), g.Close())
}

// client is one more client, which keeps the tickets that it gets now.
func (w *traffic) client(a *account) {
	w.r.t.Helper()
	g := w.r.d.client(w.r.t, "alice")
	check(w.r.t, a.accept(g))
	w.always(fmt.Sprintf("client %d of %s", len(w.counts), a.name), func(int) error { return a.accept(g) })
}

// renewals are those of a ticket-granting ticket, which then gets tickets for all services.
func (w *traffic) renewals() {
	w.r.t.Helper()
	env, err := w.r.d.Kinit("alice", password, "-r", "1d")
	check(w.r.t, err)
	w.always("renewals", func(int) error {
		if _, err := w.r.d.Run(lab.Root, env, "/usr/bin/kinit", "-R"); err != nil {
			return err
		}
		g, err := w.r.d.Tool(lab.Root, env...)
		if err != nil {
			return err
		}
		for _, a := range w.r.accounts {
			err = errors.Join(err, a.accept(g))
		}
		return errors.Join(err, g.Close())
	})
}

// always does something again and again.
func (w *traffic) always(what string, do func(n int) error) {
	c := &count{what: what}
	w.counts = append(w.counts, c)
	w.wg.Go(func() {
		for n := 0; w.ctx.Err() == nil; n++ {
			if err := do(n); err == nil {
				c.n.Add(1)
			} else {
				w.mu.Lock()
				w.failed = append(w.failed, fmt.Errorf("%s, %d: %w", what, n, err))
				w.mu.Unlock()
			}
		}
	})
}

// all waits until everybody has done all that he does twice more: once since now.
func (w *traffic) all(what string) {
	w.r.t.Helper()
	var before []int64
	for _, c := range w.counts {
		before = append(before, c.n.Load())
	}
	for i, c := range w.counts {
		lab.Await(w.r.t, c.what+" "+what, func() bool {
			w.mu.Lock()
			defer w.mu.Unlock()
			return c.n.Load() >= before[i]+2 || len(w.failed) > 20
		})
	}
}

// end stops all, and reports what has failed.
func (w *traffic) end() {
	w.stop()
	w.wg.Wait()
	for i, err := range w.failed {
		if i == 5 {
			w.r.t.Errorf("and %d more", len(w.failed)-i)
			break
		}
		w.r.t.Error(err)
	}
	w.failed = nil
}

// testKeystored: keystored rotates a computer account and a service account, with three service names
// each, while clients come with old tickets and new ones, and the host initiates as both.
func testKeystored(t *testing.T, d *domain) {
	d.directory(t, "age", "0")
	computer := &account{name: "ROT$@AD.TEST", spns: []string{"HTTP@rot.ad.test", "HTTP@www.ad.test", "host@rot.ad.test"}, asked: "ROT$@AD.TEST"}
	service := &account{name: "svc-rot@AD.TEST", spns: []string{"HTTP@svc.ad.test", "HTTP@svc", "postgres@db.ad.test"}, asked: "HTTP/svc.ad.test@AD.TEST"}
	r := newRotation(t, d, computer, service)
	for _, a := range r.accounts {
		if e := r.entry(a); len(e.Aliases) != len(a.spns) || !slices.Contains(e.Enctypes, "aes256-cts-hmac-sha1-96") {
			t.Errorf("%+v", e)
		}
	}
	w := r.newTraffic()
	w.all("at first")
	const rotations = 5
	for n := 1; n <= rotations; n++ {
		for i, a := range r.accounts {
			before := r.entry(a)
			switch n {
			case 2 + i: // of the one the answer is lost, of the other the request never comes
				r.killed(a, i == 1)
			default:
				r.must("rotate", a.name)
			}
			if e := r.entry(a); e.KVNO != before.KVNO+1 || e.Rotation != "" || e.Alarm != "" {
				t.Errorf("rotation %d of %s: %+v, before %+v", n, a.name, e, before)
			}
			w.client(a)
			w.all(fmt.Sprintf("after rotation %d of %s", n, a.name))
		}
	}
	for _, c := range w.counts {
		t.Logf("%s: %d", c.what, c.n.Load())
	}
	w.end()
	r.enctype()
	r.renamed(service)
	r.tooSoon(service)
	r.rc4()
}

// tooSoon: the domain's minimum age of passwords keeps an account from changing its key. It is said,
// with what to do, and the key is what it was.
func (r *rotation) tooSoon(a *account) {
	r.t.Helper()
	before := r.entry(a)
	r.d.directory(r.t, "age", "1")
	_, err := r.run("rotate", a.name)
	said(r.t, err, "[key-change-refused]", a.name, "the minimum password age may not have elapsed", "a minimum age that is not over")
	lab.Await(r.t, "the alarm", func() bool { // it is tried again meanwhile
		e := r.entry(a)
		return e.KVNO == before.KVNO && e.Rotation == "acknowledged" && strings.Contains(e.Alarm, "[key-change-refused]") && strings.Contains(e.Alarm, "the minimum password age may not have elapsed")
	})
	r.d.directory(r.t, "age", "0")
	r.must("rotate", a.name)
	if e := r.entry(a); e.KVNO != before.KVNO+1 || e.Alarm != "" {
		r.t.Errorf("%+v", e)
	}
}

// rc4: where the domain makes tickets with RC4, a key of it is made too, or the rotation is refused
// before anything is changed: if the types of keys are named and it is not among them, or if the
// account has no other keys to log in with.
func (r *rotation) rc4() {
	r.t.Helper()
	unset, old := &account{name: "UNSET$@AD.TEST"}, &account{name: "OLD$@AD.TEST"}
	for _, a := range []*account{unset, old} {
		r.must("import", "--write", r.keytab(a))
	}
	before := r.entry(unset)
	r.must("rotate", unset.name)
	if e := r.entry(unset); e.KVNO != before.KVNO+1 || !slices.Contains(e.Enctypes, "arcfour-hmac") || !slices.Contains(e.Enctypes, "aes256-cts-hmac-sha1-96") {
		r.t.Errorf("%+v, before %+v", e, before)
	}
	refused := func(a *account, words ...string) {
		r.t.Helper()
		before := r.entry(a)
		_, err := r.run("rotate", a.name)
		said(r.t, err, append(words, a.name)...)
		if e := r.entry(a); e.Revision != before.Revision || e.KVNO != before.KVNO {
			r.t.Errorf("%+v, before %+v", e, before)
		}
	}
	refused(old, "[enctype-not-permitted]", "Give the principal AES keys (Active Directory: msDS-SupportedEncryptionTypes = 24 of its account")
	check(r.t, r.store.Stop())
	b, err := os.ReadFile(r.conf)
	check(r.t, err)
	check(r.t, os.WriteFile(r.conf, append(b, "enctypes = aes256-cts-hmac-sha1-96, aes128-cts-hmac-sha1-96\n"...), 0o600))
	r.start()
	refused(unset, "[rotation-impossible]", "with a key of type arcfour-hmac", "set msDS-SupportedEncryptionTypes of the account to 24")
}

// said checks that err has the words.
func said(t *testing.T, err error, words ...string) {
	t.Helper()
	for _, word := range words {
		if err == nil || !strings.Contains(err.Error(), word) {
			t.Errorf("%v does not say %q", err, word)
		}
	}
}

// renamed: an account has another user principal name since its key was made, and so another salt. The
// keys that are the domain's are those that hosts have in the end.
func (r *rotation) renamed(a *account) {
	r.t.Helper()
	before := r.entry(a)
	r.d.directory(r.t, "upn", strings.TrimSuffix(a.name, "@"+realmName), "renamed@ad.test")
	r.must("rotate", a.name)
	if e := r.entry(a); e.KVNO != before.KVNO+1 || e.Alarm != "" {
		r.t.Errorf("%+v", e)
	}
	if out := r.must("history", a.name); !strings.Contains(out, `the salt "AD.TESTrenamed"`) {
		r.t.Error(out)
	}
	lab.Await(r.t, "the keys of "+a.name, func() bool { e := r.entry(a); return e.Acknowledged[hostName].Revision == e.Revision })
	check(r.t, a.accept(r.d.client(r.t, "alice")))
}

// killed has the store killed when the request to change the key was sent: before it has reached the
// domain controller, or when that has done it. The store finishes it when it runs again.
func (r *rotation) killed(a *account, before bool) {
	r.t.Helper()
	kvno := r.entry(a).KVNO
	s := &shut{before: before, held: make(chan struct{})}
	r.kpasswd.shut.Store(s)
	rotate, err := r.d.Start(r.d.Command(lab.Root, nil, r.program, "rotate", a.name, "-c", r.conf), r.dir+"/rotate.log")
	check(r.t, err)
	select {
	case <-s.held:
	case <-rotate.Done():
		r.t.Fatalf("it asks nobody:\n%s", rotate.Output())
	case <-time.After(lab.Patience):
		r.t.Fatal("the domain controller is never asked")
	}
	r.store.Kill()
	<-rotate.Done()
	r.kpasswd.shut.Store(nil)
	r.start()
	if e := r.entry(a); e.Rotation != "sent" {
		r.t.Errorf("%+v", e)
	}
	begun := time.Now()
	for e := r.entry(a); e.Rotation != ""; e = r.entry(a) {
		if time.Since(begun) > 3*lab.Patience {
			r.t.Fatalf("it is not finished: %+v", e)
		}
	}
	r.t.Logf("%s: killed when the request was sent (it was executed: %v), from kvno %d; finished %v after the start", a.name, !before, kvno, time.Since(begun).Round(time.Second))
}

// enctype sees that tickets are of aes256.
func (r *rotation) enctype() {
	r.t.Helper()
	env, err := r.d.Kinit("alice", password)
	check(r.t, err)
	for _, a := range r.accounts {
		for _, spn := range a.spns {
			_, err := r.d.Run(lab.Root, env, "/usr/bin/kvno", strings.Replace(spn, "@", "/", 1))
			check(r.t, err)
		}
	}
	out, err := r.d.Run(lab.Root, env, "/usr/bin/klist", "-e")
	check(r.t, err)
	if n := bytes.Count([]byte(out), []byte("(skey, tkt): aes256-cts-hmac-sha1-96, aes256-cts-hmac-sha1-96")); n != 1+6 {
		r.t.Errorf("%d of 7 tickets are of aes256:\n%s", n, out)
	}
}
