package negotiate

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/tls"
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
	h, log := handler(t, d)
	base := serve(t, &http.Server{Handler: h})
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
		if server := FromContext(resp.Request.Context()); server == nil || server.Name.Display != "HTTP@localhost" || server.Flags&mech.FlagMutual == 0 {
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
	h, _ := handler(t, d)
	s := &http.Server{Handler: h}
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
	closed atomic.Bool
}

func (o *once) Close() error {
	o.closed.Store(true)
	return nil
}

func TestBodies(t *testing.T) {
	d := interposertest.Start(t)
	h, _ := handler(t, d)
	base := serve(t, &http.Server{Handler: h})
	rt := client(t, d)
	post := func(body io.ReadCloser) (*http.Response, error) {
		req, err := http.NewRequest("POST", base, body)
		check(t, err)
		return rt.RoundTrip(req)
	}
	const size = 1 << 20 // more than the connection's buffers
	large := func() io.Reader { return io.LimitReader(rand.Reader, size) }

	req, err := http.NewRequest("POST", base, bytes.NewReader(make([]byte, size)))
	check(t, err)
	resp, err := rt.RoundTrip(req)
	check(t, err)
	if body := read(t, resp); !strings.HasSuffix(body, fmt.Sprintf("and %d bytes", size)) {
		t.Errorf("with GetBody: %s %s", resp.Status, body)
	}

	body := &once{Reader: large()}
	resp, err = post(body)
	check(t, err)
	if read(t, resp); resp.StatusCode != http.StatusUnauthorized {
		t.Errorf("a body that cannot be sent again: %s", resp.Status)
	}
	rt.Preemptive = true
	body = &once{Reader: large()}
	resp, err = post(body)
	check(t, err)
	if text := read(t, resp); !strings.HasSuffix(text, fmt.Sprintf("and %d bytes", size)) || !body.closed.Load() {
		t.Errorf("preemptive: %s %s, closed %v", resp.Status, text, body.closed.Load())
	}

	d.Services = []string{"another"}
	body = &once{Reader: large()}
	var refusal *mech.Error
	if _, err := post(body); !errors.As(err, &refusal) || refusal.Reason != reason.ServerUnknown || !body.closed.Load() {
		t.Errorf("%v, want server-unknown; closed %v", err, body.closed.Load())
	}
}

func TestPolicies(t *testing.T) {
	d := interposertest.Start(t)
	h, log := handler(t, d)
	base := serve(t, &http.Server{Handler: h})
	rt := client(t, d)
	for _, tt := range []struct {
		name   string
		set    func()
		status int
		logged string
	}{
		{"allowed", func() { h.Allow = Principals("bob@EXAMPLE.TEST", "alice@EXAMPLE.TEST") }, http.StatusOK, ""},
		{"not allowed", func() { h.Allow = Principals("bob@EXAMPLE.TEST") }, http.StatusForbidden, "principal=alice@EXAMPLE.TEST"},
		{"by path", func() {
			h.Allow = func(r *http.Request, _ *interposer.Peer) error {
				if r.URL.Path != "/" {
					return errors.New("elsewhere")
				}
				return nil
			}
		}, http.StatusOK, ""},
		{"flags", func() { h.Require = mech.FlagMutual | mech.FlagInteg }, http.StatusOK, ""},
		{"missing flags", func() { h.Require = mech.FlagConf | mech.FlagMutual }, http.StatusUnauthorized, "the context lacks: confidentiality"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			h.Allow, h.Require = nil, 0
			tt.set()
			resp, body := get(t, rt, base+"/")
			if resp.StatusCode != tt.status || (tt.status == http.StatusOK) != strings.HasPrefix(body, "hello, alice") {
				t.Errorf("%s: %q", resp.Status, body)
			}
			if !strings.Contains(log.String(), tt.logged) {
				t.Errorf("%q is not in the log:\n%s", tt.logged, log)
			}
		})
	}
	t.Run("delegation", func(t *testing.T) {
		h.Allow, h.Require, h.Delegate = nil, 0, true
		var got *interposer.Cred
		h.Next = http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { got = FromContext(r.Context()).Delegated })
		if get(t, rt, base); got != nil {
			t.Errorf("delegated unasked: %v", got)
		}
		rt.Flags = mech.FlagDeleg
		if get(t, rt, base); got == nil || got.Name().Display != "alice@EXAMPLE.TEST" {
			t.Errorf("delegated: %v", got)
		}
	})
}

func TestServerRefusals(t *testing.T) {
	d := interposertest.Start(t)
	h, log := handler(t, d)
	base := serve(t, &http.Server{Handler: h})
	rt := client(t, d)
	kerberos := func(broken bool) []byte {
		return interposertest.Token("alice@EXAMPLE.TEST", "HTTP@localhost", mech.FlagMutual, broken)
	}
	reject := (&spnego.NegTokenResp{State: spnego.AcceptCompleted}).Append(nil)
	for _, tt := range []struct {
		name, header string
		status       int
		token        string
		logged       string
	}{
		{"Kerberos without negotiation", say(kerberos(false)), http.StatusOK, "the acceptor's answer", ""},
		{"scheme in another case", strings.Replace(say(kerberos(false)), "Neg", "nEG", 1), http.StatusOK, "the acceptor's answer", ""},
		{"refused", say(kerberos(true)), http.StatusUnauthorized, "KRB-ERROR", "reason=clock-skew"},
		{"no token", "Negotiate", http.StatusUnauthorized, "", "reason=defective-token"},
		{"no base64", "Negotiate !", http.StatusUnauthorized, "", "reason=defective-token"},
		{"NTLM", say([]byte("NTLMSSP\x00\x01")), http.StatusUnauthorized, "", "reason=defective-token"},
		{"another scheme", "Basic YTpi", http.StatusUnauthorized, "", ""},
		{"a continuation of nothing", say(reject), http.StatusUnauthorized, "", "not begun on this connection"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			before := len(log.String())
			resp, token := raw(t, rt.Base, base, tt.header)
			if resp.StatusCode != tt.status || string(token) != tt.token {
				t.Errorf("%s, token %q", resp.Status, token)
			}
			if got := log.String()[before:]; !strings.Contains(got, tt.logged) || (got == "") != (tt.logged == "") {
				t.Errorf("%q is not what was logged:\n%s", tt.logged, got)
			}
		})
	}
	d.Stop()
	resp, _ := raw(t, rt.Base, base, say(kerberos(false)))
	if resp.StatusCode != http.StatusServiceUnavailable || resp.Header.Get("WWW-Authenticate") != "" {
		t.Errorf("without the daemon: %s", resp.Status)
	}
	rt.Preemptive = true
	if _, err := (&http.Client{Transport: rt}).Get(base); err == nil {
		t.Error("a token without the daemon")
	}
}

// optimist's first token is of a mechanism that the server does not have.
type optimist struct{ spnego.Context }

func (optimist) Step(context.Context, []byte) ([]byte, bool, error) {
	return []byte("NTLMSSP\x00\x01"), false, nil
}

// kerberos is the other mechanism on the list.
type kerberos struct {
	c *interposer.Client
	s *interposer.SecContext
}

func (k *kerberos) Step(ctx context.Context, token []byte) ([]byte, bool, error) {
	i, err := k.c.InitSecContext(ctx, interposer.InitRequest{
		Target: interposer.Name{Display: "HTTP@localhost", Type: mech.NTHostbased}, Flags: mech.FlagMutual | mech.FlagInteg, Context: k.s, Token: token,
	})
	if err != nil {
		return nil, false, err
	}
	k.s = i.Context
	return i.Token, i.Context.Open(), nil
}
func (k *kerberos) Flags() uint32                          { return k.s.Flags() }
func (k *kerberos) GetMIC(dst, msg []byte) ([]byte, error) { return k.s.GetMIC(dst, msg) }
func (k *kerberos) VerifyMIC(msg, mic []byte) (mech.Major, error) {
	return k.s.VerifyMIC(msg, mic)
}

// TestSeveralRequests negotiates over several requests, which belong to one connection.
func TestSeveralRequests(t *testing.T) {
	d := interposertest.Start(t)
	h, log := handler(t, d)
	s := &http.Server{Handler: h}
	Bind(s)
	bound, unbound := serve(t, s), serve(t, &http.Server{Handler: h})
	begin := func() (*spnego.Initiator, []byte) {
		i := &spnego.Initiator{Mechs: []spnego.Mech{
			{OID: spnego.NTLM, New: func() spnego.Context { return optimist{} }},
			{OID: mech.KRB5, New: func() spnego.Context { return &kerberos{c: d.Client(t)} }},
		}}
		token, _, err := i.Step(t.Context(), nil)
		check(t, err)
		return i, token
	}
	rt := client(t, d).Base

	i, token := begin()
	for n := 1; ; n++ {
		resp, answer := raw(t, rt, bound, say(token))
		if resp.StatusCode == http.StatusOK {
			if n != 3 {
				t.Errorf("%d requests, want 3", n)
			}
			break
		}
		if resp.StatusCode != http.StatusUnauthorized || answer == nil {
			t.Fatalf("request %d: %s\n%s", n, resp.Status, log)
		}
		var err error
		token, _, err = i.Step(t.Context(), answer)
		check(t, err)
	}

	// Another connection knows nothing of the first; nor does the first when a new context has been
	// begun there.
	i, token = begin()
	_, answer := raw(t, rt, bound, say(token))
	second, _, err := i.Step(t.Context(), answer)
	check(t, err)
	if resp, _ := raw(t, client(t, d).Base, bound, say(second)); resp.StatusCode != http.StatusUnauthorized {
		t.Errorf("on another connection: %s", resp.Status)
	}
	kerberos := interposertest.Token("alice@EXAMPLE.TEST", "HTTP@localhost", 0, false)
	if resp, _ := raw(t, rt, bound, say(kerberos)); resp.StatusCode != http.StatusOK {
		t.Errorf("a new context: %s", resp.Status)
	}
	if resp, _ := raw(t, rt, bound, say(second)); resp.StatusCode != http.StatusUnauthorized {
		t.Errorf("after a new context: %s", resp.Status)
	}

	_, token = begin()
	if resp, answer := raw(t, rt, unbound, say(token)); resp.StatusCode != http.StatusUnauthorized || answer != nil || !strings.Contains(log.String(), "given to Bind") {
		t.Errorf("a server without Bind: %s, %q\n%s", resp.Status, answer, log)
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
	rt := client(t, d)
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
			status, header, rt.OneWay = tt.status, tt.header, tt.oneWay
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
			if body := read(t, resp); resp.StatusCode != tt.status || body != "welcome" || FromContext(resp.Request.Context()) != nil {
				t.Errorf("%s: %q, %v", resp.Status, body, FromContext(resp.Request.Context()))
			}
		})
	}
}

func TestRedirects(t *testing.T) {
	d := interposertest.Start(t)
	h, _ := handler(t, d)
	// The other server shall see no token.
	var tokens atomic.Int32
	other := serve(t, &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "" {
			tokens.Add(1)
		}
		challenge(w, nil)
	})})
	where := ""
	h.Next = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/away" {
			http.Redirect(w, r, where, http.StatusFound)
			return
		}
		hello(w, r)
	})
	base := serve(t, &http.Server{Handler: h})
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

func TestChannelBindings(t *testing.T) {
	d := interposertest.Start(t)
	h, log := handler(t, d)
	h.Require = mech.FlagChannelBound
	ecKey := ecdsaKey(t)
	localhost, elsewhere := certificate(t, ecKey, x509.ECDSAWithSHA256, "localhost"), certificate(t, ecKey, x509.ECDSAWithSHA384, "elsewhere")
	start := func(c *tls.Config, bind bool) string {
		s := &http.Server{Handler: h, TLSConfig: c}
		if bind {
			Bind(s)
		}
		return serve(t, s)
	}
	several := &tls.Config{Certificates: []tls.Certificate{elsewhere, localhost}}
	bound := start(several, true)
	if len(several.Certificates) != 2 || several.GetCertificate != nil {
		t.Error("Bind has changed the caller's configuration")
	}
	for name, base := range map[string]string{
		"one certificate": start(&tls.Config{Certificates: []tls.Certificate{localhost}}, true),
		"by name":         bound,
		"by function": start(&tls.Config{GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
			return &localhost, nil
		}}, true),
		"by configuration": start(&tls.Config{GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
			return &tls.Config{Certificates: []tls.Certificate{localhost}}, nil
		}}, true),
		"HTTP/2 only": start(&tls.Config{Certificates: []tls.Certificate{localhost}, NextProtos: []string{"h2"}}, true),
	} {
		t.Run(name, func(t *testing.T) {
			rt := client(t, d)
			for _, preemptive := range []bool{false, true} {
				rt.Preemptive = preemptive
				for range 2 { // on a new connection, and on one that is kept or resumed
					if resp, body := get(t, rt, base); !strings.Contains(body, "channel-bound") {
						t.Fatalf("%s %s\n%s", resp.Status, body, log)
					}
					rt.CloseIdleConnections()
				}
			}
		})
	}
	t.Run("no bindings", func(t *testing.T) {
		rt := client(t, d)
		rt.IgnoreBindings = true
		if resp, _ := get(t, rt, bound); resp.StatusCode != http.StatusUnauthorized {
			t.Error(resp.Status)
		}
	})
	// Somebody in between has a certificate of his own and passes the requests on.
	t.Run("man in the middle", func(t *testing.T) {
		forward := client(t, d).Base
		middle := serve(t, &http.Server{
			TLSConfig: &tls.Config{Certificates: []tls.Certificate{certificate(t, ecdsaKey(t), x509.ECDSAWithSHA256, "localhost")}},
			Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				out, err := http.NewRequest(r.Method, bound, nil)
				if err != nil {
					t.Error(err)
					return
				}
				out.Header = r.Header
				resp, err := forward.RoundTrip(out)
				if err != nil {
					t.Error(err)
					return
				}
				defer resp.Body.Close()
				w.Header()["Www-Authenticate"] = resp.Header["Www-Authenticate"]
				w.WriteHeader(resp.StatusCode)
				io.Copy(w, resp.Body)
			}),
		})
		h.Require = 0
		defer func() { h.Require = mech.FlagChannelBound }()
		resp, err := (&http.Client{Transport: client(t, d)}).Get(middle)
		if err == nil {
			read(t, resp)
			t.Errorf("%s", resp.Status)
		}
		if !strings.Contains(log.String(), "reason=bad-bindings") {
			t.Errorf("%v\n%s", err, log)
		}
		h.IgnoreBindings = true
		defer func() { h.IgnoreBindings = false }()
		if resp, body := get(t, client(t, d), middle); resp.StatusCode != http.StatusOK || strings.Contains(body, "channel-bound") {
			t.Errorf("unchecked: %s %s", resp.Status, body)
		}
	})
	t.Run("without Bind", func(t *testing.T) {
		h.Require = 0
		base := start(&tls.Config{Certificates: []tls.Certificate{localhost}}, false)
		if resp, body := get(t, client(t, d), base); resp.StatusCode != http.StatusOK || strings.Contains(body, "channel-bound") {
			t.Errorf("%s %s", resp.Status, body)
		}
	})
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
