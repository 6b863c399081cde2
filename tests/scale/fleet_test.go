package scale

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	crand "crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"filippo.io/age"

	"gssproxyd/keystore"
	"gssproxyd/keystore/api"
	"gssproxyd/keystore/delivery"
	"gssproxyd/mech/krb5/etype"
	"gssproxyd/tests/lab"
)

const (
	groupPrincipal = "HTTP/group.example.com@EXAMPLE.COM"
	fleetPrincipal = "host/fleet.example.com@EXAMPLE.COM"

	// admins is how many connections administrators have: fewer than one uid may.
	admins = 12
)

// fleet is an etcd, a keystored over it, and hosts.
type fleet struct {
	t         *testing.T
	dir       string
	realm     *lab.Realm
	etcd      program
	data      string // etcd's directory
	keystored program
	process   *lab.Process
	addr      string
	signer    ed25519.PublicKey
	admins    chan *api.Client
	ca        *authority
	entries   int // of each host
	hosts     []*host
	acks      acks
	served    atomic.Int64 // hosts that were told what there is since the last start
	round     atomic.Int64 // counts starts
	interval  int64
	refused   sync.Once // tells of the first refusal
	running   sync.WaitGroup
}

// host is one.
type host struct {
	f    *fleet
	name string
	from net.IP
	cert tls.Certificate
	id   *age.X25519Identity
	have []api.Have
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// newFleet makes what is there before anything runs.
func newFleet(t *testing.T, hosts, entries int) *fleet {
	f := &fleet{t: t, dir: t.TempDir(), entries: entries / hosts, admins: make(chan *api.Client, admins)}
	etcd := lab.NewEtcd(t, 1)[0]
	f.etcd, f.data = program{etcd.PID()}, etcd.Data
	f.realm = &lab.Realm{Dir: f.dir}
	t.Cleanup(func() {
		if err := f.realm.Close(); err != nil {
			t.Error(err)
		}
	})
	check(t, lab.BuildProgram("./keystored", f.path("keystored"), !*full))
	f.ca = newAuthority(t)
	server := f.ca.issue("localhost")
	key, err := x509.MarshalPKCS8PrivateKey(server.PrivateKey)
	check(t, err)
	f.write("ca.pem", "CERTIFICATE", f.ca.cert.Raw)
	f.write("cert.pem", "CERTIFICATE", server.Certificate[0])
	f.write("key.pem", "PRIVATE KEY", key)
	f.write("crl.pem", "X509 CRL", f.ca.crl())
	port, err := lab.FreePort()
	check(t, err)
	f.addr = fmt.Sprintf("127.0.0.1:%d", port)
	check(t, os.Mkdir(f.path("state"), 0o700))
	text := fmt.Sprintf("[keystored]\nbackend = etcd:%s\nname = one\nlisten = %s\ncert = %[3]s/cert.pem\nkey = %[3]s/key.pem\nclient_ca = %[3]s/ca.pem\ncrl = %[3]s/crl.pem\n"+
		"state_dir = %[3]s/state\nsocket = %[3]s/socket\naudit = %[3]s/audit.log\n", etcd.Endpoint, f.addr, f.dir)
	check(t, os.WriteFile(f.path("keystored.conf"), []byte(text), 0o600))
	made, err := exec.Command(f.path("keystored"), "init", "--without-recovery", "--json", "-c", f.path("keystored.conf")).Output()
	check(t, err)
	var store struct{ Signer string }
	check(t, json.Unmarshal(made, &store))
	f.signer, err = delivery.ParseSigner(store.Signer)
	check(t, err)
	check(t, os.WriteFile(f.path("keystored.conf"), []byte(text+"signer = "+store.Signer+"\n"), 0o600))
	for i := range hosts {
		id, err := age.GenerateX25519Identity()
		check(t, err)
		h := &host{f: f, name: fmt.Sprintf("web%d.example.com", i), from: net.IPv4(127, 1, byte(i>>8), byte(i)), id: id}
		h.cert = f.ca.issue(h.name)
		for k := range f.entries {
			h.have = append(h.have, api.Have{Principal: f.own(i, k)})
		}
		if h.have = append(h.have, api.Have{Principal: fleetPrincipal}); i < f.groupOf(hosts) {
			h.have = append(h.have, api.Have{Principal: groupPrincipal})
		}
		f.hosts = append(f.hosts, h)
	}
	return f
}

func (f *fleet) path(name string) string { return filepath.Join(f.dir, name) }

func (f *fleet) write(name, kind string, der []byte) {
	f.t.Helper()
	check(f.t, os.WriteFile(f.path(name), pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600))
}

// own is the principal of an entry that one host has.
func (f *fleet) own(host, k int) string {
	return fmt.Sprintf("HTTP/service%d.web%d.example.com@EXAMPLE.COM", k, host)
}

// group is how many hosts have the entry of some.
func (f *fleet) group() int            { return f.groupOf(len(f.hosts)) }
func (f *fleet) groupOf(hosts int) int { return min(50, hosts) }
func (f *fleet) database() (size int64) {
	if info, err := os.Stat(filepath.Join(f.data, "member/snap/db")); err == nil {
		size = info.Size()
	}
	return size
}

// start starts keystored, and returns when that was, as soon as it serves.
func (f *fleet) start() time.Time {
	f.t.Helper()
	f.served.Store(0)
	f.round.Add(1)
	begun := time.Now()
	p, err := f.realm.Start(exec.Command(f.path("keystored"), "serve", "-c", f.path("keystored.conf")), f.path("log"))
	check(f.t, err)
	f.process, f.keystored = p, program{p.PID()}
	lab.Await(f.t, "keystored", func() bool {
		c, err := net.Dial("unix", f.path("socket"))
		if err == nil {
			c.Close()
		}
		return err == nil
	})
	for len(f.admins) < admins {
		f.admins <- api.NewClient(f.path("socket"))
	}
	f.t.Logf("keystored serves administrators after %v", time.Since(begun))
	return begun
}

// restart ends keystored and starts it again.
func (f *fleet) restart() time.Time {
	f.t.Helper()
	check(f.t, f.process.Stop())
	for range admins {
		(<-f.admins).Close()
	}
	return f.start()
}

// all calls f for each number below n, as many at a time as administrators have connections.
func (f *fleet) all(n int, do func(i int) error) {
	f.t.Helper()
	var next, failed atomic.Int64
	var wg sync.WaitGroup
	for range admins {
		wg.Go(func() {
			for i := int(next.Add(1)) - 1; i < n; i = int(next.Add(1)) - 1 {
				if err := do(i); err != nil {
					if failed.Add(1) == 1 {
						f.t.Error(err)
					}
					return
				}
			}
		})
	}
	wg.Wait()
	if failed.Load() > 0 {
		f.t.FailNow()
	}
}

// enrol enrols all hosts.
func (f *fleet) enrol() {
	f.t.Helper()
	begun := time.Now()
	f.all(len(f.hosts), func(i int) error {
		h := f.hosts[i]
		return f.ask("host-add", &api.HostRequest{Name: h.name, Recipient: h.id.Recipient().String()})
	})
	f.t.Logf("%d hosts are enrolled after %v", len(f.hosts), time.Since(begun))
}

// fill imports all entries.
func (f *fleet) fill() {
	f.t.Helper()
	begun := time.Now()
	put := func(principal string, hosts ...string) error {
		key := make([]byte, 32)
		crand.Read(key)
		return f.ask("import", &api.ImportRequest{Principal: principal, Write: true, Hosts: hosts, Keys: []api.KeyGiven{{KVNO: 1, Enctype: int32(etype.AES256SHA1), Key: key}}})
	}
	f.all(len(f.hosts)*f.entries, func(i int) error {
		host, k := i/f.entries, i%f.entries
		return put(f.own(host, k), f.hosts[host].name)
	})
	var group []string
	for _, h := range f.hosts[:f.group()] {
		group = append(group, h.name)
	}
	check(f.t, put(groupPrincipal, group...))
	check(f.t, put(fleetPrincipal, "*.example.com"))
	f.t.Logf("%d entries are imported after %v", len(f.hosts)*f.entries+2, time.Since(begun))
}

// connect has all hosts ask until the test ends.
func (f *fleet) connect() {
	ctx, cancel := context.WithCancel(f.t.Context())
	f.t.Cleanup(func() {
		cancel()
		f.running.Wait()
	})
	for _, h := range f.hosts {
		f.running.Go(func() { h.run(ctx) })
	}
}

// awaitServed waits until all hosts were told what there is.
func (f *fleet) awaitServed(begun time.Time) {
	f.t.Helper()
	for end := begun.Add(lab.Patience + 10*time.Minute); f.served.Load() < int64(len(f.hosts)); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			f.t.Fatalf("%d of %d hosts are served", f.served.Load(), len(f.hosts))
		}
	}
}

// run asks until ctx ends: after each error it waits about a second, which spreads hosts.
func (h *host) run(ctx context.Context) {
	for ctx.Err() == nil {
		h.ask(ctx)
		select {
		case <-time.After(500*time.Millisecond + rand.N(time.Second)):
		case <-ctx.Done():
		}
	}
}

// ask asks over one connection.
func (h *host) ask(ctx context.Context) error {
	round := h.f.round.Load()
	d := tls.Dialer{NetDialer: &net.Dialer{Timeout: 30 * time.Second, LocalAddr: &net.TCPAddr{IP: h.from}}, Config: &tls.Config{
		MinVersion: tls.VersionTLS13, RootCAs: h.f.ca.pool, ServerName: "localhost", Certificates: []tls.Certificate{h.cert},
	}}
	c, err := d.DialContext(ctx, "tcp", h.f.addr)
	if err != nil {
		return err
	}
	defer c.Close()
	stop := context.AfterFunc(ctx, func() { c.Close() })
	defer stop()
	r := bufio.NewReader(c)
	for served := false; ; {
		asked := api.Watch{Have: h.have}
		if served {
			asked.WaitSeconds = 60
		}
		var got api.Watched
		if err := h.post(c, r, "/v1/watch", asked, &got); err != nil {
			return err
		}
		for _, b := range got.Deliveries {
			if err := h.take(c, r, b); err != nil {
				return err
			}
		}
		if !served && len(got.Deliveries) == 0 {
			if served = true; round == h.f.round.Load() {
				h.f.served.Add(1)
			}
		}
	}
}

// take takes what is delivered, and acknowledges it.
func (h *host) take(c net.Conn, r *bufio.Reader, b []byte) error {
	d, err := delivery.Verify(b, h.name, []ed25519.PublicKey{h.f.signer})
	if err == nil && d.Withdrawn != "" {
		err = fmt.Errorf("%s is withdrawn: %s", d.Principal, d.Withdrawn)
	}
	var keys io.Reader
	if err == nil {
		keys, err = age.Decrypt(bytes.NewReader(d.Sealed), h.id)
	}
	if err == nil {
		_, err = io.Copy(io.Discard, keys)
	}
	if err != nil {
		h.f.t.Errorf("%s: %v", h.name, err)
		return err
	}
	has := api.Have{Principal: d.Principal, Mark: keystore.Mark{Epoch: d.Epoch, Revision: d.Revision}}
	for i := range h.have {
		if h.have[i].Principal == d.Principal {
			h.have[i] = has
		}
	}
	if err := h.post(c, r, "/v1/acknowledge", has, nil); err != nil {
		return err
	}
	h.f.acks.note(d.Principal)
	return nil
}

// post asks for something, with HTTP as far as it takes to do so.
func (h *host) post(c net.Conn, r *bufio.Reader, path string, args, res any) error {
	body, err := json.Marshal(args)
	if err != nil {
		return err
	}
	if _, err := fmt.Fprintf(c, "POST %s HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n%s", path, len(body), body); err != nil {
		return err
	}
	answer, err := http.ReadResponse(r, nil)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	text, err := io.ReadAll(answer.Body)
	switch {
	case err != nil:
		return err
	case answer.StatusCode/100 != 2:
		h.f.refused.Do(func() { h.f.t.Logf("%s: %s: %s", h.name, answer.Status, text) })
		return fmt.Errorf("%s: %s", answer.Status, text)
	case res != nil:
		return json.Unmarshal(text, res)
	}
	return nil
}

// acks waits for acknowledgements of one entry.
type acks struct {
	mu        sync.Mutex
	principal string
	left      int
	done      chan time.Time
}

// expect returns what has the time of the last of so many acknowledgements.
func (a *acks) expect(principal string, n int) <-chan time.Time {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.principal, a.left, a.done = principal, n, make(chan time.Time, 1)
	return a.done
}

func (a *acks) note(principal string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if principal != a.principal {
		return
	}
	if a.left--; a.left == 0 {
		a.done <- time.Now()
	}
}

func (a *acks) missing() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.left
}

// authority signs certificates.
type authority struct {
	t    *testing.T
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pool *x509.CertPool
	n    int64
}

func newAuthority(t *testing.T) *authority {
	a := &authority{t: t, pool: x509.NewCertPool()}
	tmpl := &x509.Certificate{Subject: pkix.Name{CommonName: "the fleet's"}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign, SubjectKeyId: []byte{1}}
	made := a.sign(tmpl)
	a.key = made.PrivateKey.(*ecdsa.PrivateKey)
	var err error
	a.cert, err = x509.ParseCertificate(made.Certificate[0])
	check(t, err)
	a.pool.AddCert(a.cert)
	return a
}

func (a *authority) issue(name string) tls.Certificate {
	return a.sign(&x509.Certificate{DNSNames: []string{name}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}, KeyUsage: x509.KeyUsageDigitalSignature})
}

func (a *authority) sign(tmpl *x509.Certificate) tls.Certificate {
	a.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), crand.Reader)
	check(a.t, err)
	a.n++
	tmpl.SerialNumber, tmpl.NotBefore, tmpl.NotAfter = big.NewInt(a.n), time.Now().Add(-time.Hour), time.Now().Add(24*time.Hour)
	parent, signer := a.cert, a.key
	if parent == nil {
		parent, signer = tmpl, key
	}
	der, err := x509.CreateCertificate(crand.Reader, tmpl, parent, key.Public(), signer)
	check(a.t, err)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// crl is a revocation list with as many in it as certificates of a year.
func (a *authority) crl() []byte {
	tmpl := &x509.RevocationList{Number: big.NewInt(1), ThisUpdate: time.Now().Add(-time.Hour), NextUpdate: time.Now().Add(24 * time.Hour)}
	for i := range 5000 {
		tmpl.RevokedCertificateEntries = append(tmpl.RevokedCertificateEntries, x509.RevocationListEntry{SerialNumber: big.NewInt(1<<40 + int64(i)), RevocationTime: time.Now()})
	}
	der, err := x509.CreateRevocationList(crand.Reader, tmpl, a.cert, a.key)
	check(a.t, err)
	return der
}
