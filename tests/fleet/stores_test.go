package fleet

import (
	"bytes"
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
	"log"
	"math/big"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"filippo.io/age"

	"gssproxyd/keystore/delivery"
	keytabs "gssproxyd/keytab"
	"gssproxyd/tests/lab"
	"gssproxyd/xdr"
)

// testStore is a store of one host: what one signs and says, by the API's few words, with keys that a
// test gives it.
type testStore struct {
	t         *testing.T
	server    *httptest.Server
	signer    ed25519.PrivateKey
	recipient age.Recipient
	revision  uint64

	mu      sync.Mutex
	has     map[string]*delivery.Delivery
	changed chan struct{}
	acked   map[string]uint64
}

const storeHost = "web1.example.com"

// newStore starts a store, writes the files that a host needs into dir, and returns its section of a
// configuration, without the name.
func newStore(t *testing.T, dir, identity string) (s *testStore, section string) {
	t.Helper()
	s = &testStore{t: t, has: make(map[string]*delivery.Delivery), changed: make(chan struct{}), acked: make(map[string]uint64)}
	var err error
	_, s.signer, err = ed25519.GenerateKey(nil)
	check(t, err)
	secret, err := age.GenerateX25519Identity()
	check(t, err)
	check(t, os.WriteFile(identity, []byte(secret.String()+"\n"), 0o600))
	s.recipient = secret.Recipient()

	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	check(t, err)
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: storeHost}, DNSNames: []string{storeHost, "localhost"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	check(t, err)
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	check(t, err)
	cert, pemKey := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER})
	for name, b := range map[string][]byte{"cert.pem": cert, "key.pem": pemKey} {
		check(t, os.WriteFile(filepath.Join(dir, name), b, 0o644))
	}
	pair, err := tls.X509KeyPair(cert, pemKey)
	check(t, err)
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(cert)
	s.server = httptest.NewUnstartedServer(s)
	s.server.TLS = &tls.Config{Certificates: []tls.Certificate{pair}, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: pool, MinVersion: tls.VersionTLS13}
	s.server.Config.ErrorLog = log.New(io.Discard, "", 0)
	s.server.StartTLS()
	t.Cleanup(s.stop)
	return s, fmt.Sprintf("url = %s\nca = %[2]s/cert.pem\ncert = %[2]s/cert.pem\nkey = %[2]s/key.pem\nsigner = %[3]s\nhost = %[4]s\n",
		strings.Replace(s.server.URL, "127.0.0.1", "localhost", 1), dir, delivery.FormatSigner(s.signer.Public().(ed25519.PublicKey)), storeHost)
}

// stop has nobody answer any more.
func (s *testStore) stop() {
	s.server.CloseClientConnections()
	s.server.Close()
}

// ServeHTTP implements [http.Handler].
func (s *testStore) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	type mark struct {
		Principal       string
		Epoch, Revision uint64
	}
	switch r.URL.Path {
	case "/v1/acknowledge":
		var m mark
		json.NewDecoder(r.Body).Decode(&m)
		s.mu.Lock()
		s.acked[m.Principal] = m.Revision
		s.mu.Unlock()
	case "/v1/watch":
		var q struct {
			Have []mark
			Wait int `json:"wait_seconds"`
		}
		json.NewDecoder(r.Body).Decode(&q)
		for {
			var answer struct {
				Deliveries []json.RawMessage `json:"deliveries"`
			}
			s.mu.Lock()
			for _, m := range q.Have {
				if d := s.has[m.Principal]; d != nil && d.Revision > m.Revision {
					b, _ := delivery.Sign(d, s.signer)
					answer.Deliveries = append(answer.Deliveries, b)
				}
			}
			changed := s.changed
			s.mu.Unlock()
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

// put has the store deliver the keys of a keytab file, as of states by version, and returns when the
// daemon has them.
func (s *testStore) put(principal, path string, states map[uint32]string, rules map[string][]string) {
	s.t.Helper()
	b, err := os.ReadFile(path)
	check(s.t, err)
	entries, err := keytabs.Parse(b)
	check(s.t, err)
	var keys delivery.Keys
	for _, e := range entries {
		if states[e.KVNO] != "" {
			keys = append(keys, delivery.Key{State: states[e.KVNO], KVNO: e.KVNO, Enctype: int32(e.Enctype), Key: e.Key, Since: time.Now().Unix()})
		}
	}
	plain, err := json.Marshal(keys)
	check(s.t, err)
	var sealed bytes.Buffer
	w, err := age.Encrypt(&sealed, s.recipient)
	check(s.t, err)
	_, err = w.Write(plain)
	check(s.t, err)
	check(s.t, w.Close())
	s.deliver(&delivery.Delivery{Host: storeHost, Principal: principal, Epoch: 1, Issued: time.Now(), Rules: rules, Sealed: sealed.Bytes()})
}

func (s *testStore) deliver(d *delivery.Delivery) {
	s.t.Helper()
	s.mu.Lock()
	s.revision++
	d.Revision = s.revision
	s.has[d.Principal] = d
	close(s.changed)
	s.changed = make(chan struct{})
	s.mu.Unlock()
	lab.Await(s.t, "the daemon has not loaded a delivery", func() bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		return s.acked[d.Principal] == d.Revision
	})
}

// TestKeyStore: a service's keys come from a store. An unmodified client gets in with them, with tickets
// for a new key as soon as the KDC gives those out, and while the store is down, through a restart of
// the daemon; what the entry forbids is refused, and so is all when the store takes the keys away, for
// its reason.
func TestKeyStore(t *testing.T) {
	if lab.UnderUnit() {
		t.Skip("the identity of the host is the test's")
	}
	r := realm(t)
	principal, target := "stored/"+lab.Host, "stored@"+lab.Host
	full := principal + "@" + lab.Name
	check(t, r.RandKey(principal, "aes256-cts-hmac-sha1-96"))
	path, err := r.Keytab("stored.keytab", principal)
	check(t, err)
	dir := r.Path("stored")
	check(t, os.Mkdir(dir, 0o755))
	check(t, os.Mkdir(filepath.Join(dir, "state"), 0o700))
	s, section := newStore(t, dir, filepath.Join(dir, "state", "host.age"))
	config := "[gssproxy]\ndebug_level = 1\n[store/main]\n" + section + "[service/lab]\nmechs = krb5\neuid = 0\nallow_any_uid = yes\ncred_usage = accept\ncred_store = keytab:STORE:main:" + full + "\n"
	d := daemon(t, lab.Options{Config: config, Dir: dir})
	accept := func(want string) {
		t.Helper()
		err := lab.AcceptOne(alice(t), target, wire(t, d))
		if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("%v, want %q", err, want)
		}
	}
	accept("[no-delivery]")

	s.put(full, path, map[uint32]string{1: "current"}, nil)
	accept("")
	initiator, acceptor := alice(t), tool(t, lab.Nobody, d.PluginEnv()...) // with MIT's library, and no keys
	_, token, err := initiator.Init(target, lab.Usual, nil)
	check(t, err)
	check(t, acceptor.Acquire(target))
	if a, err := acceptor.Accept(token, nil); err != nil || a.Major != 0 || !strings.HasPrefix(a.Client, "alice@") {
		t.Errorf("%+v, %v", a, err)
	}

	// The next key, while the KDC changes it: tickets for the former one are good, and those for the next.
	old := alice(t)
	_, early, err := old.Init(target, lab.Usual|lab.Mutual, nil)
	check(t, err)
	check(t, r.Rotate(principal, "aes256-cts-hmac-sha1-96"))
	next, err := r.Keytab("stored-next.keytab", principal)
	check(t, err)
	rotated := map[uint32]string{1: "current", 2: "pending"}
	s.put(full, next, rotated, map[string][]string{"operations": {"accept"}, "client_realms": {lab.Name}})
	accept("")
	res, err := wire(t, d).Accept(early, nil)
	check(t, err)
	if res.Status.MajorStatus != 0 {
		t.Error(lab.StatusError(res.Status))
	}
	out, err := d.Administer(lab.Root, "keytabs")
	check(t, err)
	if !strings.Contains(out, "STORE:main:"+full+": of lab (keytab)") || !strings.Contains(out, "pending: it accepts") {
		t.Error(out)
	}

	// What the entry forbids, which the configuration permits; and the keys are taken away.
	s.put(full, next, rotated, map[string][]string{"client_realms": {"ELSEWHERE"}})
	accept("[client-not-allowed]")
	s.deliver(&delivery.Delivery{Host: storeHost, Principal: full, Epoch: 1, Issued: time.Now(), Withdrawn: "keys-withdrawn", Text: "the host is to be retired"})
	accept("[keys-withdrawn]")
	var denials xdr.AdminResDenials
	check(t, d.AsJSON(&denials, "denials"))
	if n := len(denials.Denials); n == 0 || denials.Denials[n-1].Reason != "keys-withdrawn" || !strings.Contains(denials.Denials[n-1].Text, "the host is to be retired") {
		t.Errorf("%+v", denials)
	}
	s.put(full, next, map[uint32]string{1: "previous", 2: "current"}, nil)
	accept("")

	// The store is down, and the daemon starts anew.
	s.stop()
	check(t, d.Restart())
	accept("")
	var status struct{ Daemon xdr.AdminResStatus }
	lab.Await(t, "status does not say that there is no contact", func() bool {
		check(t, d.AsJSON(&status, "status"))
		return len(status.Daemon.Stores) == 1 && status.Daemon.Stores[0].Lost != ""
	})
	if e := status.Daemon.Stores[0].Entries; len(e) != 1 || e[0].Revision != 5 || e[0].Issued == "" || e[0].Text != "" {
		t.Errorf("%+v", e)
	}
	out, err = d.Administer(lab.Root, "status")
	check(t, err)
	if !strings.Contains(out, "key store main: NO CONTACT: ") || !strings.Contains(out, full+": epoch 1, revision 5, of ") {
		t.Error(out)
	}
}
