package stores

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log"
	"log/slog"
	"maps"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"gssproxyd/audit"
	"gssproxyd/conf"
	"gssproxyd/gssproxyd/nss"
	"gssproxyd/keystore/delivery"
	"gssproxyd/keytab"
	"gssproxyd/limits"
	"gssproxyd/mech/krb5/etype"
	"gssproxyd/tests/lab"
)

// The program that the tests start is this one again.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == HelperArg {
		if err := Help(os.Stdin); err != nil {
			os.Exit(1)
		}
		return
	}
	goleak.VerifyTestMain(m)
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

const (
	host = "web1.example.com"
	www  = "HTTP/www.example.com@EXAMPLE.COM"
	ldap = "ldap/web1.example.com@EXAMPLE.COM"
)

// authority makes certificates.
type authority struct {
	t    *testing.T
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pem  []byte
}

func newAuthority(t *testing.T) *authority {
	a := &authority{t: t}
	a.cert, a.key, a.pem, _ = a.make(&x509.Certificate{Subject: pkix.Name{CommonName: "the stores'"}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign})
	return a
}

func (a *authority) make(tmpl *x509.Certificate) (*x509.Certificate, *ecdsa.PrivateKey, []byte, []byte) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	check(a.t, err)
	tmpl.SerialNumber = big.NewInt(time.Now().UnixNano())
	tmpl.NotBefore, tmpl.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
	parent, signer := a.cert, a.key
	if parent == nil {
		parent, signer = tmpl, key
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, parent, &key.PublicKey, signer)
	check(a.t, err)
	cert, err := x509.ParseCertificate(der)
	check(a.t, err)
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	check(a.t, err)
	return cert, key, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER})
}

// issue makes a certificate for a name.
func (a *authority) issue(name string) (cert, key []byte) {
	_, _, cert, key = a.make(&x509.Certificate{
		Subject: pkix.Name{CommonName: name}, DNSNames: []string{name, "127.0.0.1"}, IPAddresses: nil,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	})
	return cert, key
}

// fakeStore is a store over TLS.
type fakeStore struct {
	t      *testing.T
	ca     *authority
	signer ed25519.PrivateKey
	server *httptest.Server
	url    string

	mu       sync.Mutex
	changed  chan struct{}
	has      map[string][]byte // deliveries by principal
	refused  []refusedByThem
	acked    map[string]mark
	denied   map[string]int    // of whom no acknowledgement is taken, and how many were not
	previous map[string]string // what was said of previous keys last
	asked    []string          // names of the clients' certificates
	override http.HandlerFunc

	acks atomic.Int64                              // requests
	old  atomic.Pointer[func(http.ResponseWriter)] // what it answers to an acknowledgement of many, which it does not know
}

func newFakeStore(t *testing.T) *fakeStore {
	_, signer, err := ed25519.GenerateKey(nil)
	check(t, err)
	f := &fakeStore{t: t, ca: newAuthority(t), signer: signer, changed: make(chan struct{}), has: make(map[string][]byte), acked: make(map[string]mark), previous: make(map[string]string)}
	f.start("127.0.0.1:0")
	t.Cleanup(func() { f.server.Close() })
	return f
}

func (f *fakeStore) start(address string) {
	f.server = httptest.NewUnstartedServer(http.HandlerFunc(f.serve))
	if f.url != "" {
		f.server.Listener.Close()
		l, err := (&netListener{}).listen(address)
		check(f.t, err)
		f.server.Listener = l
	}
	cert, key := f.ca.issue("localhost")
	pair, err := tls.X509KeyPair(cert, key)
	check(f.t, err)
	pool := x509.NewCertPool()
	pool.AddCert(f.ca.cert)
	f.server.TLS = &tls.Config{Certificates: []tls.Certificate{pair}, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: pool, MinVersion: tls.VersionTLS13}
	f.server.Config.ErrorLog = log.New(io.Discard, "", 0)
	f.server.StartTLS()
	f.url = "https://localhost:" + port(f.server.URL)
}

// stop has nobody answer any more.
func (f *fakeStore) stop() {
	f.server.CloseClientConnections()
	f.server.Close()
}

func (f *fakeStore) serve(w http.ResponseWriter, r *http.Request) {
	f.mu.Lock()
	override := f.override
	f.asked = append(f.asked, r.TLS.PeerCertificates[0].Subject.CommonName)
	f.mu.Unlock()
	if override != nil {
		override(w, r)
		return
	}
	d := json.NewDecoder(r.Body)
	d.DisallowUnknownFields()
	switch r.Method + " " + r.URL.Path {
	case "POST /v1/acknowledge":
		type marked struct {
			Principal string
			mark
		}
		var a struct {
			marked
			InForce []marked `json:"in_force"`
		}
		if err := d.Decode(&a); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		f.acks.Add(1)
		old := f.old.Load()
		if a.InForce != nil && old != nil {
			(*old)(w)
			return
		}
		answer := struct {
			Noted   []string        `json:"noted"`
			Refused []refusedByThem `json:"refused"`
		}{}
		deny := false
		f.mu.Lock()
		list := a.InForce
		if list == nil {
			list = []marked{a.marked}
		}
		for _, one := range list {
			if _, deny = f.denied[one.Principal]; deny {
				f.denied[one.Principal]++
				answer.Refused = append(answer.Refused, refusedByThem{Principal: one.Principal, Reason: "store-no-right"})
			} else {
				f.acked[one.Principal] = one.mark
				answer.Noted = append(answer.Noted, one.Principal)
			}
		}
		f.wake()
		f.mu.Unlock()
		if a.InForce != nil {
			json.NewEncoder(w).Encode(answer)
			return
		}
		if deny {
			w.Header().Set("Connection", "close")
			w.WriteHeader(http.StatusForbidden)
			json.NewEncoder(w).Encode(map[string]string{"reason": "store-no-right", "text": "the policy does not name the host", "hint": "none"})
			return
		}
		w.WriteHeader(http.StatusNoContent)
	case "POST /v1/watch":
		var q struct {
			Have []struct {
				Principal    string
				PreviousUsed time.Time `json:"previous_used"`
				PreviousKVNO uint32    `json:"previous_kvno"`
				mark
			}
			Wait int `json:"wait_seconds"`
		}
		if err := d.Decode(&q); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		for {
			answer := struct {
				Deliveries []json.RawMessage `json:"deliveries"`
				Refused    []refusedByThem   `json:"refused"`
			}{}
			f.mu.Lock()
			for _, h := range q.Have {
				f.previous[h.Principal] = fmt.Sprintf("%d %s", h.PreviousKVNO, h.PreviousUsed.Format(time.RFC3339))
				var d delivery.Delivery
				var s struct{ Payload []byte }
				if raw := f.has[h.Principal]; raw != nil && json.Unmarshal(raw, &s) == nil && json.Unmarshal(s.Payload, &d) == nil && h.mark.before(markOf(&d)) {
					answer.Deliveries = append(answer.Deliveries, raw)
				}
			}
			answer.Refused = f.refused
			changed := f.changed
			f.mu.Unlock()
			if len(answer.Deliveries) > 0 || q.Wait == 0 {
				json.NewEncoder(w).Encode(answer)
				return
			}
			select {
			case <-changed:
			case <-r.Context().Done():
				return
			}
		}
	default:
		http.NotFound(w, r)
	}
}

// wake has watches look again. f.mu is held.
func (f *fakeStore) wake() {
	close(f.changed)
	f.changed = make(chan struct{})
}

// put has the store deliver.
func (f *fakeStore) put(d *delivery.Delivery) {
	raw := f.sign(d)
	f.mu.Lock()
	defer f.mu.Unlock()
	f.has[d.Principal] = raw
	f.wake()
}

func (f *fakeStore) sign(d *delivery.Delivery) []byte {
	raw, err := delivery.Sign(d, f.signer)
	check(f.t, err)
	return raw
}

// await waits until the store has heard that something is loaded.
func (f *fakeStore) await(principal string, m mark) {
	f.t.Helper()
	for end := time.After(time.Minute); ; {
		f.mu.Lock()
		got, changed := f.acked[principal], f.changed
		f.mu.Unlock()
		if got == m {
			return
		}
		select {
		case <-changed:
		case <-end:
			f.t.Fatalf("%s: %v is acknowledged, not %v", principal, got, m)
		}
	}
}

// seal seals to the host of the tests, by saying so.
func seal(keys delivery.Keys) []byte {
	b, _ := json.Marshal(keys)
	return append([]byte("sealed to host:"), b...)
}

func unseal(sealed []byte) (etype.Secret, error) {
	b, ok := bytes.CutPrefix(sealed, []byte("sealed to host:"))
	if !ok {
		return nil, errors.New("it is not sealed to this host")
	}
	return bytes.Clone(b), nil
}

// aes returns a key of a version.
func aes(kvno uint32, state string) delivery.Key {
	return delivery.Key{State: state, KVNO: kvno, Enctype: 18, Key: bytes.Repeat([]byte{byte(kvno)}, 32), Since: 1700000000}
}

// of makes a delivery of a revision.
func of(principal string, revision uint64, keys ...delivery.Key) *delivery.Delivery {
	if keys == nil {
		keys = []delivery.Key{aes(uint32(revision), "current")}
	}
	return &delivery.Delivery{Host: host, Principal: principal, Epoch: 1, Revision: revision, Issued: time.Unix(1750000000, 0), Sealed: seal(keys)}
}

// seen is what a follower has been told last.
type seen struct {
	mu      sync.Mutex
	used    []keytab.Previous
	keys    []keytab.Entry // without the keys
	err     error
	changed chan struct{}
}

func (s *seen) put(keys []keytab.Entry, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.keys, s.err = nil, err
	for _, k := range keys {
		k.Key = bytes.Clone(k.Key)
		s.keys = append(s.keys, k)
	}
	if s.changed != nil {
		close(s.changed)
	}
	s.changed = make(chan struct{})
}

// previous is what the follower says of previous keys.
func (s *seen) previous() []keytab.Previous {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.used
}

func (s *seen) now() (keys []keytab.Entry, changed <-chan struct{}, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.keys, s.changed, s.err
}

// until waits until a follower has seen what is expected.
func (s *seen) until(t *testing.T, what string, is func([]keytab.Entry, error) bool) {
	t.Helper()
	for end := time.After(time.Minute); ; {
		keys, changed, err := s.now()
		if is(keys, err) {
			return
		}
		select {
		case <-changed:
		case <-end:
			t.Fatalf("not seen: %s; but %v, %v", what, len(keys), err)
		}
	}
}

// kvno is a single key of a version.
func kvno(n uint32) func([]keytab.Entry, error) bool {
	return func(keys []keytab.Entry, err error) bool { return err == nil && len(keys) == 1 && keys[0].KVNO == n }
}

// daemon is the daemon's side.
type daemon struct {
	*Stores
	t      *testing.T
	dir    string
	config *conf.Config
	log    *lab.LogBuffer

	mu     sync.Mutex
	events []audit.Event
}

// newDaemon has a state directory and a configuration, and no helper yet.
func newDaemon(t *testing.T, f *fakeStore, start StartFunc) *daemon {
	t.Helper()
	d := &daemon{t: t, dir: t.TempDir(), log: new(lab.LogBuffer)}
	check(t, os.Chmod(d.dir, 0o700))
	cert, key := f.ca.issue(host)
	for name, b := range map[string][]byte{"ca.pem": f.ca.pem, "cert.pem": cert, "key.pem": key} {
		check(t, os.WriteFile(filepath.Join(d.dir, name), b, 0o600))
	}
	d.config = d.configuration(f)
	d.again(start)
	return d
}

func (d *daemon) configuration(f *fakeStore) *conf.Config {
	return &conf.Config{
		KeyStores: []*conf.KeyStore{{
			Name: "main", URLs: []string{f.url}, CA: filepath.Join(d.dir, "ca.pem"), Cert: filepath.Join(d.dir, "cert.pem"), Key: filepath.Join(d.dir, "key.pem"),
			Signers: []string{delivery.FormatSigner(f.signer.Public().(ed25519.PublicKey))}, Host: host,
		}},
		Services: []*conf.Service{{CredStore: []conf.KeyValue{{Key: "keytab", Value: "STORE:main:" + www}, {Key: "client_keytab", Value: "STORE:main:" + ldap}}}},
	}
}

// again is a restart.
func (d *daemon) again(start StartFunc) {
	if d.Stores != nil {
		d.Close()
	}
	d.Stores = New(Options{
		Dir: d.dir, Hostname: "not.this.one", Open: unseal, Start: start, Lines: limits.NewMeter(), Log: slog.New(slog.NewTextHandler(d.log, nil)),
		Record: func(_ context.Context, e *audit.Event) error {
			d.mu.Lock()
			defer d.mu.Unlock()
			d.events = append(d.events, *e)
			return nil
		},
	})
	d.Stores.afterBad, d.Stores.betweenPolls = time.Millisecond, time.Millisecond
	check(d.t, d.Configure(d.config))
	d.t.Cleanup(d.Close)
}

// take takes a delivery, and reports whether it was a good one.
func (d *daemon) take(store string, raw []byte) (good bool) {
	_, good = d.Stores.take(store, raw)
	return good
}

// told is what the store is told of an entry.
func (d *daemon) told(principal string) have {
	_, list := d.order("main")
	return list[slices.IndexFunc(list, func(h have) bool { return h.Principal == principal })]
}

func (d *daemon) follow(principal string) *seen {
	s := new(seen)
	d.t.Cleanup(d.Follow("main", principal, s.put, s.previous))
	return s
}

// denied returns the reasons of what was refused since the last time.
func (d *daemon) denied() (ids []string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, e := range d.events {
		if e.Kind == audit.DeliveryDenied {
			ids = append(ids, e.Reason)
		}
	}
	d.events = nil
	return ids
}

// files returns what is in the state directory, by name.
func (d *daemon) files() map[string]string {
	all := make(map[string]string)
	check(d.t, filepath.WalkDir(d.dir, func(path string, e os.DirEntry, err error) error {
		if err == nil && !e.IsDir() {
			b, err := os.ReadFile(path)
			all[path] = string(b)
			return err
		}
		return err
	}))
	return all
}

func (d *daemon) unchanged(before map[string]string) {
	d.t.Helper()
	if !maps.Equal(before, d.files()) {
		d.t.Error("files have changed")
	}
}

// inside runs the helper in this process.
func inside(conversation *os.File) (nss.Process, error) {
	return insideWith(conversation, func(conn net.Conn) net.Conn { return conn })
}

// insideWith runs it with another connection around that of its conversation.
func insideWith(conversation *os.File, around func(net.Conn) net.Conn) (nss.Process, error) {
	conn, err := fileConn(conversation)
	if err != nil {
		return nil, err
	}
	conn = around(conn)
	p := &process{end: func() { conn.Close() }, ended: make(chan struct{})}
	go func() {
		defer close(p.ended)
		p.err = help(conn)
		conn.Close()
	}()
	return p, nil
}

// process is one that is none.
type process struct {
	end   func()
	ended chan struct{}
	err   error
}

func (p *process) PID() int { return 0 }

func (p *process) End() (error, bool) {
	p.end()
	<-p.ended
	return p.err, true
}
