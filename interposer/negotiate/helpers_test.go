package negotiate

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"testing"
	"time"

	"go.uber.org/goleak"

	"gssproxyd/interposer"
	"gssproxyd/interposer/interposertest"
	"gssproxyd/tests/lab"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// hello answers who is there, and what was sent.
var hello = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	p := ClientFrom(r.Context())
	if p == nil {
		io.WriteString(w, "hello, whoever")
		return
	}
	fmt.Fprintf(w, "hello, %s, with %s and %d bytes", p.Name, p.Flags, len(body))
})

// serve serves with s until the test ends, over TLS if it is configured, and returns where.
func serve(t *testing.T, s *http.Server) (base string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	check(t, err)
	s.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, 0)
	done := make(chan error)
	scheme := "http"
	if s.TLSConfig != nil {
		scheme = "https"
		go func() { done <- s.ServeTLS(l, "", "") }()
	} else {
		go func() { done <- s.Serve(l) }()
	}
	t.Cleanup(func() {
		s.Close()
		if err := <-done; !errors.Is(err, http.ErrServerClosed) {
			t.Error(err)
		}
	})
	_, port, _ := net.SplitHostPort(l.Addr().String())
	return scheme + "://localhost:" + port
}

// authenticator is one that belongs in front of hello, and its log.
func authenticator(t *testing.T, d *interposertest.Daemon) (*Authenticator, *lab.LogBuffer) {
	var log lab.LogBuffer
	return &Authenticator{Daemon: d.Client(t), Log: slog.New(slog.NewTextHandler(&log, nil))}, &log
}

// challenge answers as a server does that wants authentication.
func challenge(w http.ResponseWriter, token []byte) {
	w.Header().Set("WWW-Authenticate", say(token))
	http.Error(w, "authentication is required", http.StatusUnauthorized)
}

// client is a Transport on connections of its own.
func client(t *testing.T, d *interposertest.Daemon) *Transport {
	base := &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, ForceAttemptHTTP2: true}
	c := &Transport{Daemon: d.Client(t), Cred: interposer.ServiceCred, Base: base, Plain: []string{"localhost", "127.0.0.1"}}
	t.Cleanup(c.CloseIdleConnections)
	t.Cleanup(base.CloseIdleConnections)
	return c
}

// get makes a request and returns the status and the body.
func get(t *testing.T, rt http.RoundTripper, url string) (*http.Response, string) {
	t.Helper()
	resp, err := (&http.Client{Transport: rt, Timeout: 20 * time.Second}).Get(url)
	check(t, err)
	return resp, read(t, resp)
}

func read(t *testing.T, resp *http.Response) string {
	t.Helper()
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	check(t, err)
	return string(b)
}

// raw makes a request with a header, and returns the answer's status and token.
func raw(t *testing.T, rt http.RoundTripper, url, authorization string) (*http.Response, []byte) {
	t.Helper()
	req, err := http.NewRequest("GET", url, nil)
	check(t, err)
	req.Header.Set("Authorization", authorization)
	resp, err := rt.RoundTrip(req)
	check(t, err)
	read(t, resp)
	token, _ := credentials(resp.Header.Values("WWW-Authenticate"))
	return resp, token
}

// passOn answers with what a server answers to the same header.
func passOn(t *testing.T, rt http.RoundTripper, to string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		out, err := http.NewRequestWithContext(r.Context(), r.Method, to, nil)
		if err != nil {
			t.Error(err)
			return
		}
		out.Header = r.Header.Clone()
		resp, err := rt.RoundTrip(out)
		if err != nil {
			t.Error(err)
			return
		}
		defer resp.Body.Close()
		w.Header()["Www-Authenticate"] = resp.Header["Www-Authenticate"]
		w.WriteHeader(resp.StatusCode)
		io.Copy(w, resp.Body)
	})
}

// certificate makes one that is signed with its own key.
func certificate(t *testing.T, key crypto.Signer, alg x509.SignatureAlgorithm, name string) tls.Certificate {
	t.Helper()
	c := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, DNSNames: []string{name}, SignatureAlgorithm: alg,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
	}
	der, err := x509.CreateCertificate(rand.Reader, c, c, key.Public(), key)
	check(t, err)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

func ecdsaKey(t *testing.T) crypto.Signer {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	check(t, err)
	return key
}
