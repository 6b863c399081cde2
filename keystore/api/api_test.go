package api

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
	"fmt"
	"io"
	"log/slog"
	"maps"
	"math/big"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"gssproxyd/audit"
	"gssproxyd/keystore"
	"gssproxyd/keystore/bolt"
	"gssproxyd/keystore/delivery"
	"gssproxyd/keytab/sealed"
	"gssproxyd/limits"
	"gssproxyd/mech/reason"
	"gssproxyd/rpc"
)

const (
	www   = "HTTP/www.example.com@EXAMPLE.COM"
	mail  = "smtp/mail.example.com@EXAMPLE.COM"
	web1  = "web1.example.com"
	web2  = "web2.example.com"
	spiff = "spiffe://example.com/web3"
)

// authority makes certificates.
type authority struct {
	t    *testing.T
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	n    int64
}

func newAuthority(t *testing.T, name string) *authority {
	a := &authority{t: t}
	a.key = newKey(t)
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign, SubjectKeyId: []byte(name),
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, a.key.Public(), a.key)
	if err == nil {
		a.cert, err = x509.ParseCertificate(der)
	}
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func newKey(t *testing.T) *ecdsa.PrivateKey {
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// issue makes a certificate for names; change may change it.
func (a *authority) issue(change func(*x509.Certificate), names ...string) tls.Certificate {
	a.t.Helper()
	a.n++
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1000 + a.n), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth}, KeyUsage: x509.KeyUsageDigitalSignature,
	}
	for _, n := range names {
		if u, err := url.Parse(n); err == nil && u.Scheme != "" {
			tmpl.URIs = append(tmpl.URIs, u)
		} else {
			tmpl.DNSNames = append(tmpl.DNSNames, n)
		}
	}
	tmpl.IPAddresses = []net.IP{net.IPv4(127, 0, 0, 1)}
	if change != nil {
		change(tmpl)
	}
	key := newKey(a.t)
	der, err := x509.CreateCertificate(rand.Reader, tmpl, a.cert, key.Public(), a.key)
	if err != nil {
		a.t.Fatal(err)
	}
	leaf, _ := x509.ParseCertificate(der)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}
}

// crl makes a revocation list in PEM.
func (a *authority) crl(next time.Time, revoked ...tls.Certificate) []byte {
	a.n++
	tmpl := &x509.RevocationList{Number: big.NewInt(a.n), ThisUpdate: time.Now().Add(-time.Hour), NextUpdate: next}
	for _, c := range revoked {
		tmpl.RevokedCertificateEntries = append(tmpl.RevokedCertificateEntries, x509.RevocationListEntry{SerialNumber: c.Leaf.SerialNumber, RevocationTime: time.Now()})
	}
	der, err := x509.CreateRevocationList(rand.Reader, tmpl, a.cert, a.key)
	if err != nil {
		a.t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: der})
}

func certPEM(c *x509.Certificate) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})
}

// world is a store that is served.
type world struct {
	t      *testing.T
	dir    string
	ca     *authority
	store  *keystore.Store
	signer ed25519.PublicKey
	host   *sealed.Identity // of all hosts
	server *Server
	addr   string
	root   *Client
	ahead  atomic.Int64 // the store's clock, by so many nanoseconds
	stop   func()       // as a signal does

	mu     sync.Mutex
	events []audit.Event
}

type instanceIdentity struct{ *sealed.Identity }

func (i instanceIdentity) Recipient() string { return i.Identity.Recipient().String() }

// newWorld serves a new store. before may change the server.
func newWorld(t *testing.T, before func(*world), admins ...Admin) *world {
	t.Helper()
	w := &world{t: t, dir: t.TempDir(), ca: newAuthority(t, "the authority")}
	ctx, cancel := context.WithCancel(t.Context())
	w.stop = cancel
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	log := slog.New(slog.NewTextHandler(t.Output(), nil))
	b, err := bolt.Open(filepath.Join(w.dir, "store.db"))
	must(err)
	o := keystore.Options{Identity: instanceIdentity{w.identity("instance")}, Name: "one", StateDir: filepath.Join(w.dir, "instance"), Audit: w.record, Log: log, Now: func() time.Time { return time.Now().Add(time.Duration(w.ahead.Load())) }}
	w.signer, err = keystore.Create(ctx, b, o, nil)
	must(err)
	o.Signers = []ed25519.PublicKey{w.signer}
	w.store, err = keystore.Open(ctx, b, o)
	must(err)
	w.host = w.identity("host")

	server := w.ca.issue(nil, "localhost")
	key, err := x509.MarshalPKCS8PrivateKey(server.PrivateKey)
	must(err)
	w.write("cert", certPEM(server.Leaf))
	w.write("key", pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key}))
	w.write("ca", certPEM(w.ca.cert))
	w.write("crl", w.ca.crl(time.Now().Add(time.Hour)))
	certificates, err := OpenCertificates(Files{w.path("cert"), w.path("key"), w.path("ca"), w.path("crl")}, log)
	must(err)
	w.server = New(Options{Store: w.store, Certificates: certificates, Audit: w.record, Log: log}, admins)
	w.server.touchEvery = time.Second / 50
	if before != nil {
		before(w)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(err)
	w.addr = l.Addr().String()
	socket, err := rpc.Listen(w.path("socket"), 0o600)
	must(err)
	synced := make(chan struct{})
	var serving sync.WaitGroup
	serving.Go(func() { w.server.Follow(ctx, func() { close(synced) }) })
	serving.Go(func() { certificates.Follow(ctx) })
	<-synced
	serving.Go(func() { w.server.ServeTLS(ctx, l) })
	serving.Go(func() { w.server.ServeSocket(ctx, socket) })
	w.root = NewClient(w.path("socket"))
	t.Cleanup(func() {
		w.root.Close()
		cancel()
		serving.Wait()
		w.store.Close()
		b.Close()
	})
	return w
}

// identity makes one in a directory of its own.
func (w *world) identity(name string) *sealed.Identity {
	w.t.Helper()
	dir := w.path(name)
	err := os.Mkdir(dir, 0o700)
	if err == nil {
		var i *sealed.Identity
		if i, err = sealed.MakeHostIdentity("", dir); err == nil {
			return i
		}
	}
	w.t.Fatal(err)
	return nil
}

func (w *world) path(name string) string { return filepath.Join(w.dir, name) }

// write replaces a file.
func (w *world) write(name string, b []byte) {
	w.t.Helper()
	err := os.WriteFile(w.path(name+".new"), b, 0o600)
	if err == nil {
		err = os.Rename(w.path(name+".new"), w.path(name))
	}
	if err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) record(_ context.Context, e *audit.Event) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.events = append(w.events, *e)
}

// audited reports whether there is an event with a reason, and one of a kind without.
func (w *world) audited(kind audit.Kind, id reason.ID) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.ContainsFunc(w.events, func(e audit.Event) bool { return e.Kind == kind && e.Reason == string(id) })
}

// do asks as root on the host.
func (w *world) do(name string, args, res any) {
	w.t.Helper()
	if res == nil {
		res = new(json.RawMessage)
	}
	if err := w.root.Call(w.t.Context(), name, args, res, func(string) {}); err != nil {
		w.t.Fatalf("%s: %v", name, err)
	}
}

var keyBytes = bytes.Repeat([]byte{7}, 32)

// give puts an entry into the store that some hosts may have.
func (w *world) give(principal string, hosts ...string) {
	w.t.Helper()
	w.do("import", &ImportRequest{Principal: principal, Write: true, Hosts: hosts, Keys: []KeyGiven{{KVNO: 3, Enctype: 18, Key: keyBytes}}}, nil)
}

func (w *world) enrol(names ...string) {
	w.t.Helper()
	for _, n := range names {
		w.do("host-add", &HostRequest{Name: n, Recipient: w.host.Recipient().String()}, nil)
	}
}

// client returns a client with a certificate, or without one.
func (w *world) client(certs ...tls.Certificate) *http.Client {
	roots := x509.NewCertPool()
	roots.AddCert(w.ca.cert)
	tr := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots, Certificates: certs, ServerName: "localhost"}}
	w.t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr}
}

// post asks over HTTPS, and returns the status and the refusal, if it is one.
func (w *world) post(c *http.Client, path string, args, res any, headers ...string) (int, Refusal, error) {
	b, err := json.Marshal(args)
	if err != nil {
		w.t.Fatal(err)
	}
	method := http.MethodPost
	if path == "/v1/list" {
		method = http.MethodGet
	}
	req, err := http.NewRequestWithContext(w.t.Context(), method, "https://"+w.addr+path, bytes.NewReader(b))
	if err != nil {
		w.t.Fatal(err)
	}
	for i := 0; i+1 < len(headers); i += 2 {
		req.Header.Set(headers[i], headers[i+1])
		if headers[i] == "Host" {
			req.Host = headers[i+1]
		}
	}
	answer, err := c.Do(req)
	if err != nil {
		return 0, Refusal{}, err
	}
	defer answer.Body.Close()
	b, err = io.ReadAll(answer.Body)
	if err != nil {
		return 0, Refusal{}, err
	}
	var r Refusal
	switch {
	case answer.StatusCode >= 400:
		err = json.Unmarshal(b, &r)
	case len(b) > 0 && res != nil:
		err = json.Unmarshal(b, res)
	}
	return answer.StatusCode, r, err
}

// watching waits until a number of watches wait for a principal.
func (w *world) watching(key string, n int) {
	w.t.Helper()
	for end := time.Now().Add(time.Minute); ; time.Sleep(time.Millisecond) {
		w.server.index.mu.Lock()
		now := len(w.server.index.waits[key])
		w.server.index.mu.Unlock()
		if now == n {
			return
		}
		if time.Now().After(end) {
			w.t.Fatalf("%d watches of %q, want %d", now, key, n)
		}
	}
}

// watched is one answer of a watch.
type watched struct {
	status int
	Watched
	refusal Refusal
	err     error
}

// watch begins a watch, which waits.
func (w *world) watch(c *http.Client, wait int, have ...Have) <-chan watched {
	done := make(chan watched, 1)
	go func() {
		var a watched
		a.status, a.refusal, a.err = w.post(c, "/v1/watch", Watch{have, wait}, &a.Watched)
		done <- a
	}()
	return done
}

// deliveries are what an answer has for a host, verified.
func (w *world) deliveries(a watched, host string) (list []*delivery.Delivery) {
	w.t.Helper()
	if a.err != nil || a.status != http.StatusOK {
		w.t.Fatalf("%d %+v %v", a.status, a.refusal, a.err)
	}
	for _, b := range a.Deliveries {
		d, err := delivery.Verify(b, host, []ed25519.PublicKey{w.signer})
		if err != nil {
			w.t.Fatal(err)
		}
		list = append(list, d)
	}
	return list
}

// A host is given what it may have, and is told within one answer of each change: that it may not have
// it any more, and that it may again.
func TestWatch(t *testing.T) {
	w := newWorld(t, nil)
	w.enrol(web1)
	w.give(www, "web*.example.com")
	w.give(mail)
	c := w.client(w.ca.issue(nil, web1))
	have := Have{Principal: www}

	got := w.deliveries(<-w.watch(c, 60, have), web1)
	if len(got) != 1 || got[0].Principal != www || got[0].Withdrawn != "" {
		t.Fatalf("%+v", got)
	}
	plain, err := w.host.Open(got[0].Sealed)
	if err != nil {
		t.Fatal(err)
	}
	var keys delivery.Keys
	if err := json.Unmarshal(plain, &keys); err != nil || len(keys) != 1 || keys[0].KVNO != 3 || !bytes.Equal(keys[0].Key, keyBytes) {
		t.Fatal(len(keys), err)
	}
	if !w.audited(audit.KeyDelivered, "") {
		t.Error("no audit line about keys that were delivered")
	}
	next := func(what string, change func()) *delivery.Delivery {
		t.Helper()
		have.Mark = keystore.Mark{Epoch: got[0].Epoch, Revision: got[0].Revision}
		waits := w.watch(c, 60, have)
		w.watching(www, 1)
		change()
		got = w.deliveries(<-waits, web1)
		if len(got) != 1 || got[0].Revision <= have.Revision {
			t.Fatalf("%s: %+v", what, got)
		}
		return got[0]
	}
	named := &Named{www}
	for _, step := range []struct {
		name string
		args any
		want reason.ID
	}{
		{"disable", &DisableRequest{www, "it was stolen"}, reason.StoreDisabled},
		{"enable", named, ""},
		{"policy", &PolicyRequest{Principal: www, Hosts: &[]string{web2}}, reason.StoreNoRight},
		{"policy", &PolicyRequest{Principal: www, Hosts: &[]string{"*.example.com"}, Rules: &map[string][]string{"operations": {"accept"}}}, ""},
		{"delete", named, reason.StoreDeleted},
	} {
		d := next(step.name, func() { w.do(step.name, step.args, nil) })
		if d.Withdrawn != string(step.want) || (len(d.Sealed) > 0) != (step.want == "") {
			t.Errorf("%s: withdrawn %q, %d bytes sealed", step.name, d.Withdrawn, len(d.Sealed))
		}
		if step.want != "" && !w.audited(audit.StoreDenied, step.want) {
			t.Errorf("%s: no audit line", step.name)
		}
	}

	// What it is not to have.
	got = w.deliveries(<-w.watch(c, 60, Have{Principal: mail}), web1)
	if len(got) != 1 || got[0].Withdrawn != string(reason.StoreNoRight) || got[0].Sealed != nil {
		t.Errorf("%+v", got)
	}
	// What is not there, and what the host has a later one of, is no difference: it is said at the end.
	later := have
	later.Epoch, later.Revision = got[0].Epoch, got[0].Revision+100
	a := <-w.watch(c, 0, Have{Principal: "none@EXAMPLE.COM"}, later)
	if len(w.deliveries(a, web1)) != 0 || len(a.Refused) != 2 || a.Refused[0].Reason != reason.StoreNoEntry || a.Refused[1].Reason != reason.StoreRolledBack || a.Refused[0].Hint == "" {
		t.Errorf("%+v", a)
	}
	waits := w.watch(c, 60, Have{Principal: "new@EXAMPLE.COM"})
	w.watching("new@EXAMPLE.COM", 1)
	w.give("new@EXAMPLE.COM", web1)
	if got := w.deliveries(<-waits, web1); len(got) != 1 || got[0].Withdrawn != "" {
		t.Errorf("%+v", got)
	}

	var list Listed
	if status, r, err := w.post(c, "/v1/list", nil, &list); status != 200 || err != nil || len(list.Principals) != 2 {
		t.Errorf("%d %v %v %v", status, r, err, list)
	}
	// A host that is removed is refused while it waits.
	waits = w.watch(c, 60, Have{Principal: "new@EXAMPLE.COM", Mark: keystore.Mark{Epoch: 1 << 60}})
	w.watching("new@EXAMPLE.COM", 1)
	w.do("host-remove", &HostNamed{web1}, nil)
	if a := <-waits; a.status != 403 || a.refusal.Reason != reason.StoreNotEnrolled {
		t.Errorf("%+v", a)
	}
}

func TestAcknowledge(t *testing.T) {
	w := newWorld(t, nil)
	w.enrol(web1)
	w.give(www, web1)
	c := w.client(w.ca.issue(nil, web1))
	got := w.deliveries(<-w.watch(c, 60, Have{Principal: www}), web1)
	mark := keystore.Mark{Epoch: got[0].Epoch, Revision: got[0].Revision}
	if status, r, err := w.post(c, "/v1/acknowledge", Have{Principal: www, Mark: mark}, nil); status != 204 || err != nil {
		t.Fatal(status, r, err)
	}
	var shown Shown
	if w.do("show", &Named{www}, &shown); shown.Acknowledged[web1] != mark || shown.KVNO != 3 {
		t.Errorf("%+v", shown)
	}
	var hosts HostsShown
	if w.do("host-list", &Nothing{}, &hosts); len(hosts.Hosts) != 1 || hosts.Hosts[0].Seen == nil {
		t.Errorf("%+v", hosts)
	}
	mark.Revision++
	if status, r, err := w.post(c, "/v1/acknowledge", Have{Principal: www, Mark: mark}, nil); status != 400 || r.Reason != reason.StoreRequest || err != nil {
		t.Errorf("what does not exist is acknowledged: %d %v %v", status, r, err)
	}
	if status, r, _ := w.post(c, "/v1/acknowledge", Have{Principal: "none@A", Mark: mark}, nil); status != 404 || r.Reason != reason.StoreNoEntry {
		t.Errorf("%d %v", status, r)
	}
}

// What a host has in force of many entries it says at once, and is told of which that cannot be.
func TestAcknowledgeMany(t *testing.T) {
	w := newWorld(t, nil)
	w.enrol(web1)
	w.give(www, web1)
	w.give(mail, "*.example.com")
	w.give("host/other@EXAMPLE.COM", web2)
	w.do("alias", &AliasRequest{Principal: www, Add: []string{"HTTP/www@EXAMPLE.COM"}}, nil)
	c := w.client(w.ca.issue(nil, web1))
	at := func(revision uint64) keystore.Mark { return keystore.Mark{Epoch: 1, Revision: revision} }
	var got Noted
	all := []Marked{{www, at(1)}, {"HTTP/www@EXAMPLE.COM", at(2)}, {mail, at(1)}, {"host/other@EXAMPLE.COM", at(1)}, {"none@A", at(1)}, {"", at(1)}}
	if status, r, err := w.post(c, "/v1/acknowledge", Acknowledged{InForce: all}, &got); status != http.StatusOK || err != nil {
		t.Fatal(status, r, err)
	}
	if want := []string{www, "HTTP/www@EXAMPLE.COM", mail}; !slices.Equal(got.Noted, want) {
		t.Errorf("%q", got.Noted)
	}
	refused := map[string]reason.ID{}
	for _, r := range got.Refused {
		refused[r.Principal] = r.Reason
	}
	if want := map[string]reason.ID{"host/other@EXAMPLE.COM": reason.StoreNoRight, "none@A": reason.StoreNoEntry, "": reason.StoreRequest}; !maps.Equal(refused, want) {
		t.Errorf("%v", refused)
	}
	for principal, want := range map[string]map[string]keystore.Mark{www: {web1: at(2)}, mail: {web1: at(1)}, "host/other@EXAMPLE.COM": {}} {
		if marks, err := w.store.Acknowledged(t.Context(), principal); err != nil || !maps.Equal(marks, want) {
			t.Errorf("%s: %v, %v", principal, marks, err)
		}
	}
	for what, said := range map[string]Acknowledged{
		"both":     {Marked: Marked{www, at(1)}, InForce: all},
		"too many": {InForce: make([]Marked, maxInForce+1)},
		"none":     {},
	} {
		if status, r, err := w.post(c, "/v1/acknowledge", said, nil); status != http.StatusBadRequest || r.Reason != reason.StoreRequest || err != nil {
			t.Errorf("%s: %d %v %v", what, status, r, err)
		}
	}
}

// A host that has nothing gets all that it may have at once, though that is more than it may ask for.
func TestFirstDelivery(t *testing.T) {
	w := newWorld(t, nil)
	w.enrol(web1)
	watch := Watch{}
	for i := range askedRate.Burst + 20 {
		principal := fmt.Sprintf("HTTP/%d.example.com@EXAMPLE.COM", i)
		w.give(principal, web1)
		watch.Have = append(watch.Have, Have{Principal: principal})
	}
	var got Watched
	if status, r, err := w.post(w.client(w.ca.issue(nil, web1)), "/v1/watch", watch, &got); status != http.StatusOK || err != nil || len(got.Deliveries) != len(watch.Have) {
		t.Error(status, r, err, len(got.Deliveries))
	}
}

// Who a host is is in its certificate, and nowhere else.
func TestIdentity(t *testing.T) {
	w := newWorld(t, nil)
	w.enrol(web1, web2, spiff)
	w.give(www, web1)
	other := newAuthority(t, "the authority") // of the same name
	ask := func(c *http.Client, headers ...string) (int, Refusal, error) {
		var a Watched
		status, r, err := w.post(c, "/v1/watch", Watch{Have: []Have{{Principal: www}}}, &a, headers...)
		if status == 200 {
			host := web1
			if _, err := delivery.Verify(a.Deliveries[0], host, []ed25519.PublicKey{w.signer}); err != nil {
				return 0, Refusal{}, err
			}
		}
		return status, r, err
	}
	if status, r, err := ask(w.client(w.ca.issue(nil, strings.ToUpper(web1)))); status != 200 {
		t.Fatal(status, r, err)
	}
	for name, test := range map[string]struct {
		cert tls.Certificate
		want reason.ID
	}{
		"not enrolled":     {w.ca.issue(nil, "web9.example.com"), reason.StoreNotEnrolled},
		"no name":          {w.ca.issue(nil), reason.StoreCertificate},
		"a common name":    {w.ca.issue(func(c *x509.Certificate) { c.Subject.CommonName = web1 }), reason.StoreCertificate},
		"a wildcard":       {w.ca.issue(nil, "*.example.com"), reason.StoreNotEnrolled},
		"two hosts' names": {w.ca.issue(nil, web1, web2), reason.StoreCertificate},
	} {
		if status, r, err := ask(w.client(test.cert)); status != 403 || r.Reason != test.want || err != nil {
			t.Errorf("%s: %d %v %v", name, status, r, err)
		}
		if !w.audited(audit.StoreDenied, test.want) {
			t.Errorf("%s: no audit line", name)
		}
	}
	// Another host's name in whatever a client can write.
	var a Watched
	c := w.client(w.ca.issue(nil, web2))
	status, _, err := w.post(c, "/v1/watch?host="+web1, map[string]any{"have": []Have{{Principal: www}}, "host": web1}, &a,
		"Host", web1, "X-Forwarded-For", web1, "X-SSL-Client-SAN", web1, "X-Forwarded-Client-Cert", "DNS="+web1, "Authorization", "Bearer "+web1)
	if status != 200 || err != nil {
		t.Fatal(status, err)
	}
	d, err := delivery.Verify(a.Deliveries[0], web2, []ed25519.PublicKey{w.signer})
	if err != nil || d.Withdrawn != string(reason.StoreNoRight) {
		t.Errorf("%+v %v", d, err)
	}
	var list Listed
	if status, _, err := w.post(w.client(w.ca.issue(nil, spiff)), "/v1/list", nil, &list); status != 200 || err != nil {
		t.Errorf("a URI: %d %v", status, err)
	}

	w.mu.Lock()
	w.events = nil
	w.mu.Unlock()
	w.write("crl", w.ca.crl(time.Now().Add(time.Hour)))
	for name, cert := range map[string][]tls.Certificate{
		"none":              nil,
		"another authority": {other.issue(nil, web1)},
		"expired":           {w.ca.issue(func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) }, web1)},
		"not yet":           {w.ca.issue(func(c *x509.Certificate) { c.NotBefore = time.Now().Add(time.Minute) }, web1)},
		"for servers":       {w.ca.issue(func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth} }, web1)},
	} {
		if status, r, err := ask(w.client(cert...)); err == nil {
			t.Errorf("%s: %d %v", name, status, r)
		}
	}
	if !w.audited(audit.StoreDenied, reason.StoreCertificate) {
		t.Error("no audit line about a certificate that is refused in the handshake")
	}
	// Neither an older TLS nor a session that goes on.
	old := w.client(w.ca.issue(nil, web1))
	old.Transport.(*http.Transport).TLSClientConfig.MaxVersion = tls.VersionTLS12
	if _, _, err := ask(old); err == nil {
		t.Error("TLS 1.2 is spoken")
	}
	resuming := w.client(w.ca.issue(nil, web1))
	tr := resuming.Transport.(*http.Transport)
	tr.TLSClientConfig.ClientSessionCache = tls.NewLRUClientSessionCache(1)
	for range 2 {
		if status, _, err := ask(resuming); status != 200 {
			t.Fatal(status, err)
		}
		tr.CloseIdleConnections()
	}
	conn, err := tls.Dial("tcp", w.addr, tr.TLSClientConfig)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if conn.ConnectionState().DidResume {
		t.Error("a session was resumed")
	}
}

// A certificate that stops being good while its host waits is refused at once.
func TestCertificateDuringWatch(t *testing.T) {
	for name, spoil := range map[string]func(w *world, cert tls.Certificate){
		"revoked": func(w *world, cert tls.Certificate) { w.write("crl", w.ca.crl(time.Now().Add(time.Hour), cert)) },
		"list out of date": func(w *world, _ tls.Certificate) {
			w.write("crl", w.ca.crl(time.Now().Add(-time.Minute)))
		},
		"list of another": func(w *world, _ tls.Certificate) {
			w.write("crl", newAuthority(w.t, "the authority").crl(time.Now().Add(time.Hour)))
		},
		"another authority": func(w *world, _ tls.Certificate) {
			w.write("ca", certPEM(newAuthority(w.t, "another").cert))
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, nil)
			w.enrol(web1)
			w.give(www, web1)
			cert := w.ca.issue(nil, web1)
			c := w.client(cert)
			got := w.deliveries(<-w.watch(c, 60, Have{Principal: www}), web1)
			waits := w.watch(c, 60, Have{Principal: www, Mark: keystore.Mark{Epoch: got[0].Epoch, Revision: got[0].Revision}})
			w.watching(www, 1)
			spoil(w, cert)
			if a := <-waits; a.status != 403 || a.refusal.Reason != reason.StoreCertificate || !w.audited(audit.StoreDenied, reason.StoreCertificate) {
				t.Errorf("%+v", a)
			}
			if a := <-w.watch(c, 0, Have{Principal: www}); a.err == nil && a.status != 403 {
				t.Errorf("afterwards: %+v", a)
			}
		})
	}
}

// What is in force stays so when files that replace it cannot be used.
func TestCertificatesUnusable(t *testing.T) {
	w := newWorld(t, nil)
	w.enrol(web1)
	cs := w.server.o.Certificates
	for _, name := range []string{"cert", "key", "ca", "crl"} {
		good, err := os.ReadFile(w.path(name))
		if err != nil {
			t.Fatal(err)
		}
		_, changed := cs.current()
		w.write(name, good[:len(good)/2])
		cs.reread()
		select {
		case <-changed:
			t.Errorf("%s: half a file was taken", name)
		default:
		}
		if status, r, err := w.post(w.client(w.ca.issue(nil, web1)), "/v1/list", nil, nil); status != 200 {
			t.Errorf("%s: %d %v %v", name, status, r, err)
		}
		w.write(name, good)
	}
	if _, err := OpenCertificates(Files{w.path("cert"), w.path("key"), w.path("key"), ""}, nil); err == nil || !strings.Contains(err.Error(), "client_ca") {
		t.Error(err)
	}
}

// A certificate that expires while its host waits.
func TestExpiryDuringWatch(t *testing.T) {
	var clock struct {
		sync.Mutex
		ahead time.Duration
	}
	w := newWorld(t, func(w *world) {
		w.server.o.Certificates.now = func() time.Time {
			clock.Lock()
			defer clock.Unlock()
			return time.Now().Add(clock.ahead)
		}
	})
	w.enrol(web1)
	w.write("crl", w.ca.crl(time.Now().Add(24*time.Hour)))
	c := w.client(w.ca.issue(nil, web1))
	waits := w.watch(c, 60, Have{Principal: www})
	w.watching(www, 1)
	clock.Lock()
	clock.ahead = 2 * time.Hour
	clock.Unlock()
	w.give(www, web1)
	if a := <-waits; a.status != 403 || a.refusal.Reason != reason.StoreCertificate || !strings.Contains(a.refusal.Text, "expired") {
		t.Errorf("%+v", a)
	}
}

// Requests that are not as they should be cost nobody else anything.
func TestBadRequests(t *testing.T) {
	w := newWorld(t, nil)
	w.enrol(web1)
	c := w.client(w.ca.issue(nil, web1))
	raw := func(method, path, body string) (int, Refusal) {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), method, "https://"+w.addr+path, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		answer, err := c.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer answer.Body.Close()
		var r Refusal
		json.NewDecoder(answer.Body).Decode(&r)
		return answer.StatusCode, r
	}
	for _, test := range []struct {
		method, path, body string
		status             int
	}{
		{"POST", "/v1/watch", `{"have":"` + strings.Repeat("a", MaxBody) + `"}`, 413},
		{"POST", "/v1/watch", strings.Repeat("[", 100000), 400},
		{"POST", "/v1/watch", `{"have":`, 400},
		{"POST", "/v1/watch", ``, 400},
		{"POST", "/v1/watch", `{} {}`, 400},
		{"POST", "/v1/watch", `{"wait_seconds":61}`, 400},
		{"POST", "/v1/watch", `{"wait_seconds":-1}`, 400},
		{"POST", "/v1/watch", `{"have":[` + strings.Repeat(`{},`, maxHave) + `{}]}`, 400},
		{"GET", "/v1/watch", ``, 405},
		{"POST", "/v1/list", ``, 405},
		{"GET", "/v1/nothing", ``, 404},
		{"GET", "/v1/../etc/passwd", ``, 404},
	} {
		if status, r := raw(test.method, test.path, test.body); status != test.status || r.Reason != reason.StoreRequest || r.Text == "" {
			t.Errorf("%s %s %.40s: %d %v", test.method, test.path, test.body, status, r)
		}
	}
	if status, r := raw("POST", "/v1/watch", `{"of_a_later_version":1}`); status != 200 {
		t.Error(status, r)
	}
	// Half a request: others are answered meanwhile.
	conn := half(t, w, c)
	if status, r := raw("GET", "/v1/list", ""); status != 200 {
		t.Error(status, r)
	}
	conn.Close()
	conn, err := tls.Dial("tcp", w.addr, c.Transport.(*http.Transport).TLSClientConfig)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	io.WriteString(conn, "GET /v1/list HTTP/1.1\r\nHost: x\r\nX: "+strings.Repeat("x", 1<<20)+"\r\n\r\n")
	if b, _ := io.ReadAll(conn); bytes.Contains(b, []byte(" 200 ")) {
		t.Errorf("a header of a mebibyte is taken: %.80s", b)
	}
}

const halfRequest = "POST /v1/watch HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{"

// half asks half a question.
func half(t *testing.T, w *world, c *http.Client) net.Conn {
	t.Helper()
	conn, err := tls.Dial("tcp", w.addr, c.Transport.(*http.Transport).TLSClientConfig)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	if _, err := io.WriteString(conn, halfRequest); err != nil {
		t.Fatal(err)
	}
	return conn
}

// Half a request is not waited for without end.
func TestSlowBody(t *testing.T) {
	w := newWorld(t, func(w *world) { w.server.bodyTimeout = time.Second })
	w.enrol(web1)
	conn, err := tls.Dial("tcp", w.addr, w.client(w.ca.issue(nil, web1)).Transport.(*http.Transport).TLSClientConfig)
	if err != nil {
		return // the handshake was too slow for it already
	}
	defer conn.Close()
	io.WriteString(conn, halfRequest)
	io.Copy(io.Discard, conn) // which ends
}

// Each host has its share.
func TestShares(t *testing.T) {
	w := newWorld(t, nil)
	w.enrol(web1, web2)
	c := w.client(w.ca.issue(nil, web1))
	var waits []<-chan watched
	for i := range watchesEach {
		waits = append(waits, w.watch(c, 60, Have{Principal: www}))
		w.watching(www, i+1)
	}
	if a := <-w.watch(c, 60, Have{Principal: www}); a.status != 429 || a.refusal.Reason != reason.StoreRate {
		t.Errorf("%+v", a)
	}
	if a := <-w.watch(w.client(w.ca.issue(nil, web2)), 0, Have{Principal: www}); a.status != 200 {
		t.Errorf("%+v", a)
	}
	w.give(www, web1)
	for _, one := range waits {
		w.deliveries(<-one, web1)
	}
	w.watching(www, 0)
}

// Who asks too often is told so, and nobody else pays.
func TestAskedTooOften(t *testing.T) {
	w := newWorld(t, nil)
	w.enrol(web1, web2)
	w.server.asked = newRates(limits.Rate{Burst: 3, Every: time.Hour})
	c := w.client(w.ca.issue(nil, web1))
	for range 3 {
		if status, r, err := w.post(c, "/v1/list", nil, nil); status != 200 {
			t.Fatal(status, r, err)
		}
	}
	if status, r, _ := w.post(c, "/v1/list", nil, nil); status != 429 || r.Reason != reason.StoreRate || !w.audited(audit.StoreDenied, reason.StoreRate) {
		t.Error(status, r)
	}
	if status, _, err := w.post(w.client(w.ca.issue(nil, web2)), "/v1/list", nil, nil); status != 200 {
		t.Error("another host pays", status, err)
	}
}

// Who shows no certificate holds no more than a part of the connections.
func TestHandshakes(t *testing.T) {
	w := newWorld(t, func(w *world) { w.server.handshakes = newShares(2, 2) })
	w.enrol(web1)
	var silent []net.Conn
	for range 2 {
		c, err := net.Dial("tcp", w.addr)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		silent = append(silent, c)
	}
	open := func() int {
		w.server.mu.Lock()
		defer w.server.mu.Unlock()
		return len(w.server.open)
	}
	await(t, func() bool { return open() == 2 })
	one, err := net.Dial("tcp", w.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer one.Close()
	if _, err := one.Read(make([]byte, 1)); err == nil {
		t.Error("a third one is kept open")
	}
	silent[0].Close()
	await(t, func() bool { return open() == 1 })
	if status, r, err := w.post(w.client(w.ca.issue(nil, web1)), "/v1/list", nil, nil); status != 200 {
		t.Error(status, r, err)
	}
}

func await(t *testing.T, f func() bool) {
	t.Helper()
	for end := time.Now().Add(time.Minute); !f(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("in vain")
		}
	}
}
