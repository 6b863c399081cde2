package negotiate

import (
	"bytes"
	"crypto"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"gssproxyd/interposer"
	"gssproxyd/interposer/interposertest"
	"gssproxyd/mech"
	"gssproxyd/mech/reason"
	"gssproxyd/mech/spnego"
)

func TestRequests(t *testing.T) {
	d := interposertest.Start(t)
	a, log := authenticator(t, d)
	base := serve(t, &http.Server{Handler: a.Wrap(hello)})
	rt := client(t, d)

	resp, _ := get(t, rt.Base, base)
	if resp.StatusCode != http.StatusUnauthorized || resp.Header.Get("WWW-Authenticate") != "Negotiate" {
		t.Errorf("without a token: %s, %q", resp.Status, resp.Header)
	}
	for _, preemptive := range []bool{false, true} {
		rt.Preemptive = preemptive
		before := d.Initiated.Load()
		resp, body := get(t, rt, base)
		if want := "hello, alice@EXAMPLE.TEST, with mutual, integrity, transferable and 0 bytes"; body != want {
			t.Errorf("%s: %q, want %q", resp.Status, body, want)
		}
		if server := ServerFrom(resp); server == nil || server.Name.Display != "HTTP@localhost" || server.Flags&mech.FlagMutual == 0 {
			t.Errorf("the server is %+v", server)
		}
		if resp.Request.Header.Get("Authorization") != "" {
			t.Error("the token is left in the response's request")
		}
		if n := d.Initiated.Load() - before; n != 2 {
			t.Errorf("%d steps, want 2", n)
		}
	}
	if s := log.String(); s != "" {
		t.Errorf("logged: %s", s)
	}

	req, err := http.NewRequest("GET", base, nil)
	check(t, err)
	req.Header.Set("Authorization", "Basic YTpi")
	resp, err = rt.RoundTrip(req)
	check(t, err)
	if read(t, resp); resp.StatusCode != http.StatusUnauthorized {
		t.Errorf("with another's Authorization: %s", resp.Status)
	}
}

func TestConcurrentRequests(t *testing.T) {
	d := interposertest.Start(t)
	a, _ := authenticator(t, d)
	s := &http.Server{Handler: a.Wrap(hello)}
	Bind(s)
	base := serve(t, s)
	rt := client(t, d)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 10 {
				req, err := http.NewRequest("POST", base, strings.NewReader("12345"))
				if err == nil {
					var resp *http.Response
					if resp, err = rt.RoundTrip(req); err == nil {
						var b []byte
						b, err = io.ReadAll(resp.Body)
						resp.Body.Close()
						if !strings.HasSuffix(string(b), "and 5 bytes") {
							err = fmt.Errorf("%s: %q, %v", resp.Status, b, err)
						}
					}
				}
				if err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
}

// once is a body that can be read once, and says when it is closed.
type once struct {
	io.Reader
	close  sync.Once
	closed chan struct{}
}

func (o *once) Close() error {
	o.close.Do(func() { close(o.closed) })
	return nil
}

func TestBodies(t *testing.T) {
	d := interposertest.Start(t)
	a, _ := authenticator(t, d)
	base := serve(t, &http.Server{Handler: a.Wrap(hello)})
	const size = 1 << 20 // more than the connection's buffers
	received := fmt.Sprintf("and %d bytes", size)
	// post is a client's first request; the body is closed in any case.
	post := func(preemptive bool) (*http.Response, error) {
		rt := client(t, d)
		rt.Preemptive = preemptive
		body := &once{Reader: io.LimitReader(rand.Reader, size), closed: make(chan struct{})}
		req, err := http.NewRequest("POST", base, body)
		check(t, err)
		defer func() { <-body.closed }()
		return rt.RoundTrip(req)
	}

	req, err := http.NewRequest("POST", base, bytes.NewReader(make([]byte, size)))
	check(t, err)
	resp, err := client(t, d).RoundTrip(req)
	check(t, err)
	if body := read(t, resp); !strings.HasSuffix(body, received) {
		t.Errorf("with GetBody: %s %s", resp.Status, body)
	}
	resp, err = post(false)
	check(t, err)
	if read(t, resp); resp.StatusCode != http.StatusUnauthorized {
		t.Errorf("a body that cannot be sent again: %s", resp.Status)
	}
	resp, err = post(true)
	check(t, err)
	if body := read(t, resp); !strings.HasSuffix(body, received) {
		t.Errorf("preemptive: %s %s", resp.Status, body)
	}
	d.Services = []string{"another"}
	if _, err := post(true); !errors.Is(err, reason.ServerUnknown) {
		t.Errorf("%v, want server-unknown", err)
	}
}

// TestUnproven: servers that let in whoever comes and prove nothing.
func TestUnproven(t *testing.T) {
	d := interposertest.Start(t)
	status, header := 0, ""
	base := serve(t, &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") == "" {
			challenge(w, nil)
			return
		}
		w.Header().Set("WWW-Authenticate", header)
		w.WriteHeader(status)
		io.WriteString(w, "welcome")
	})})
	for _, tt := range []struct {
		name   string
		oneWay bool
		status int
		header string
		reason reason.ID // empty: the response comes back
	}{
		{"no proof", false, http.StatusOK, "", reason.MutualFailed},
		{"no proof, redirect", false, http.StatusFound, "", reason.MutualFailed},
		{"bad proof", false, http.StatusOK, say((&spnego.NegTokenResp{State: spnego.AcceptCompleted, SupportedMech: []byte(mech.KRB5), ResponseToken: []byte("x")}).Append(nil)), reason.MutualFailed},
		{"garbage", false, http.StatusOK, say([]byte("x")), reason.DefectiveToken},
		{"garbage with an error", false, http.StatusTeapot, say([]byte("x")), reason.DefectiveToken},
		{"an error", false, http.StatusTeapot, "", ""},
		{"refused", false, http.StatusUnauthorized, "Negotiate", ""},
		{"another scheme", false, http.StatusUnauthorized, "Basic", ""},
		{"rejected", false, http.StatusUnauthorized, say((&spnego.NegTokenResp{State: spnego.Reject}).Append(nil)), reason.WrongMech},
		{"no proof wanted", true, http.StatusOK, "", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			status, header = tt.status, tt.header
			rt := client(t, d)
			rt.OneWay = tt.oneWay
			req, err := http.NewRequest("GET", base, nil)
			check(t, err)
			resp, err := rt.RoundTrip(req)
			var e *mech.Error
			if tt.reason != "" {
				if !errors.As(err, &e) || e.Reason != tt.reason || !strings.Contains(err.Error(), "localhost") {
					t.Errorf("%v, want %s", err, tt.reason)
				}
				return
			}
			check(t, err)
			if body := read(t, resp); resp.StatusCode != tt.status || body != "welcome" || ServerFrom(resp) != nil {
				t.Errorf("%s: %q, %v", resp.Status, body, ServerFrom(resp))
			}
		})
	}
}

func TestRedirects(t *testing.T) {
	d := interposertest.Start(t)
	a, _ := authenticator(t, d)
	// The other server shall see no token.
	var tokens atomic.Int32
	other := serve(t, &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "" {
			tokens.Add(1)
		}
		challenge(w, nil)
	})})
	where := ""
	base := serve(t, &http.Server{Handler: a.Wrap(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/away" {
			http.Redirect(w, r, where, http.StatusFound)
			return
		}
		hello(w, r)
	}))})
	rt := client(t, d)
	for _, preemptive := range []bool{false, true} {
		rt.Preemptive = preemptive
		where = "/home"
		if resp, body := get(t, rt, base+"/away"); !strings.HasPrefix(body, "hello, alice") {
			t.Errorf("to the same server: %s %s", resp.Status, body)
		}
		for _, host := range []string{"localhost", "127.0.0.1"} { // another port, another name
			where = strings.Replace(other, "localhost", host, 1)
			if resp, _ := get(t, rt, base+"/away"); resp.StatusCode != http.StatusUnauthorized || tokens.Load() != 0 {
				t.Errorf("to %s: %s, %d tokens", where, resp.Status, tokens.Load())
			}
		}
	}
	// The program itself may ask it.
	rt.Preemptive = false
	if get(t, rt, other); tokens.Load() != 1 {
		t.Errorf("%d tokens, want 1", tokens.Load())
	}
	rt.Target = func(u *url.URL) (interposer.Name, bool) { return interposer.Name{}, "http://"+u.Host != other }
	if get(t, rt, other); tokens.Load() != 1 {
		t.Errorf("%d tokens where the program wants none to go", tokens.Load()-1)
	}
}

func TestLed(t *testing.T) {
	at := func(s string) *url.URL {
		u, err := url.Parse(s)
		check(t, err)
		return u
	}
	for _, tt := range []struct {
		from, to string
		ok       bool
	}{
		{"http://a/x", "http://A:80/y", true},
		{"http://a", "https://a", true},
		{"http://a:8080", "https://a:8443", true},
		{"https://a", "http://a", false},
		{"https://a", "https://a:443", true},
		{"https://a", "https://a:8443", false},
		{"https://a", "https://b", false},
		{"https://a", "https://a.b", false},
	} {
		first := &http.Request{URL: at(tt.from)}
		if !sameServer(first) {
			t.Errorf("%s was not led to", tt.from)
		}
		between := &http.Request{URL: at("https://between"), Response: &http.Response{Request: first}}
		for _, by := range []*http.Request{first, between} {
			if got := sameServer(&http.Request{URL: at(tt.to), Response: &http.Response{Request: by}}); got != tt.ok {
				t.Errorf("from %s by %s to %s: %v, want %v", tt.from, by.URL, tt.to, got, tt.ok)
			}
		}
	}
	if sameServer(&http.Request{URL: at("http://a"), Response: new(http.Response)}) {
		t.Error("led from nowhere")
	}
}

func TestEndPoint(t *testing.T) {
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	check(t, err)
	ecKey := ecdsaKey(t)
	_, edKey, err := ed25519.GenerateKey(rand.Reader)
	check(t, err)
	sum256 := func(b []byte) []byte { s := sha256.Sum256(b); return s[:] }
	sum384 := func(b []byte) []byte { s := sha512.Sum384(b); return s[:] }
	sum512 := func(b []byte) []byte { s := sha512.Sum512(b); return s[:] }
	for _, tt := range []struct {
		key crypto.Signer
		alg x509.SignatureAlgorithm
		sum func([]byte) []byte
	}{
		{rsaKey, x509.SHA256WithRSA, sum256}, {rsaKey, x509.SHA384WithRSA, sum384}, {rsaKey, x509.SHA512WithRSA, sum512},
		{rsaKey, x509.SHA256WithRSAPSS, sum256}, {rsaKey, x509.SHA384WithRSAPSS, sum384}, {rsaKey, x509.SHA512WithRSAPSS, sum512},
		{ecKey, x509.ECDSAWithSHA256, sum256}, {ecKey, x509.ECDSAWithSHA384, sum384}, {ecKey, x509.ECDSAWithSHA512, sum512},
		{edKey, x509.PureEd25519, nil},
	} {
		pair := certificate(t, tt.key, tt.alg, "localhost")
		b := endPointOf(&pair)
		if tt.sum == nil {
			if b != nil {
				t.Errorf("%v has bindings", tt.alg)
			}
			continue
		}
		if b == nil || string(b.AppData) != "tls-server-end-point:"+string(tt.sum(pair.Certificate[0])) {
			t.Errorf("%v: %+v", tt.alg, b)
		}
	}
	// Hashes that are too weak give way to SHA-256. Nobody signs with them any more.
	for _, alg := range []x509.SignatureAlgorithm{x509.MD5WithRSA, x509.SHA1WithRSA, x509.ECDSAWithSHA1} {
		b := EndPoint(&x509.Certificate{Raw: []byte("raw"), SignatureAlgorithm: alg})
		if b == nil || string(b.AppData) != "tls-server-end-point:"+string(sum256([]byte("raw"))) {
			t.Errorf("%v: %+v", alg, b)
		}
	}
}

func TestCredentials(t *testing.T) {
	for _, tt := range []struct {
		values []string
		token  string
		ok     bool
	}{
		{nil, "", false},
		{[]string{""}, "", false},
		{[]string{"Basic realm=\"x\""}, "", false},
		{[]string{"Negotiate"}, "", true},
		{[]string{"negotiate  QQ== "}, "A", true},
		{[]string{"NEGOTIATE !"}, "", true},
		{[]string{"NegotiateX QQ=="}, "", false},
		{[]string{`Basic realm="a, Negotiate QQ==, \" b", Negotiate Qg==`}, "B", true},
		{[]string{`Digest a=b`, `Negotiate QQ==`}, "A", true},
		{[]string{`,, ,Negotiate QQ==,Basic`}, "A", true},
		{[]string{`Basic realm="unfinished, Negotiate`}, "", false},
		{[]string{`Basic realm="\`}, "", false},
		{[]string{"Negotiate", "Negotiate QQ=="}, "A", true},
		{[]string{"Negotiate, Negotiate !, Negotiate QQ=="}, "A", true},
		{[]string{"Negotiate QQ==", "Negotiate"}, "A", true},
	} {
		token, ok := credentials(tt.values)
		if string(token) != tt.token || ok != tt.ok {
			t.Errorf("%q: %q, %v", tt.values, token, ok)
		}
	}
}

func FuzzCredentials(f *testing.F) {
	f.Add(`Basic realm="a, Negotiate QQ==, \" b", Negotiate Qg==`)
	f.Fuzz(func(t *testing.T, s string) {
		token, ok := credentials([]string{s})
		if token != nil && (!ok || len(token) == 0) {
			t.Errorf("%q, %v", token, ok)
		}
	})
}
