package negotiate

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/fstest"

	"gssproxyd/interposer"
	"gssproxyd/interposer/interposertest"
	"gssproxyd/mech"
	"gssproxyd/mech/reason"
	"gssproxyd/mech/spnego"
	"gssproxyd/rpc"
	"gssproxyd/rpc/rpctest"
	"gssproxyd/xdr"
)

func TestPolicies(t *testing.T) {
	d := interposertest.Start(t)
	a, log := authenticator(t, d)
	base := serve(t, &http.Server{Handler: a.Wrap(hello)})
	rt := client(t, d)
	for _, tt := range []struct {
		name   string
		set    func()
		status int
		logged string
	}{
		{"allowed", func() { a.Allow = Principals("bob@EXAMPLE.TEST", "alice@EXAMPLE.TEST") }, http.StatusOK, ""},
		{"not allowed", func() { a.Allow = Principals("bob@EXAMPLE.TEST") }, http.StatusForbidden, "principal=alice@EXAMPLE.TEST"},
		{"by path", func() {
			a.Allow = func(r *http.Request, _ *interposer.Peer) error {
				if r.URL.Path != "/" {
					return errors.New("elsewhere")
				}
				return nil
			}
		}, http.StatusOK, ""},
		{"flags", func() { a.Require = mech.FlagMutual | mech.FlagInteg }, http.StatusOK, ""},
		{"missing flags", func() { a.Require = mech.FlagConf | mech.FlagMutual }, http.StatusForbidden, "the authentication lacks: confidentiality"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			a.Allow, a.Require = nil, 0
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
		a.Allow, a.Require, a.Delegate = nil, 0, true
		var got *interposer.Cred
		base := serve(t, &http.Server{Handler: a.Wrap(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
			got = ClientFrom(r.Context()).Delegated
		}))})
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
	a, log := authenticator(t, d)
	base := serve(t, &http.Server{Handler: a.Wrap(hello)})
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

func (k *kerberos) Step(ctx context.Context, token []byte) (reply []byte, established bool, err error) {
	if k.s == nil {
		k.s, reply, err = k.c.InitSecContext(ctx, interposer.InitRequest{
			Target: interposer.HostbasedName("HTTP", "localhost"), Cred: interposer.ServiceCred, Flags: mech.FlagMutual | mech.FlagInteg,
		})
	} else {
		reply, err = k.s.Step(ctx, token)
	}
	return reply, err == nil && k.s.Established(), err
}
func (k *kerberos) Flags() uint32                          { return uint32(k.s.Flags()) }
func (k *kerberos) GetMIC(dst, msg []byte) ([]byte, error) { return k.s.GetMIC(dst, msg) }
func (k *kerberos) VerifyMIC(msg, mic []byte) (mech.Major, error) {
	return mech.Complete, k.s.VerifyMIC(msg, mic)
}

// TestSeveralRequests negotiates over several requests, which belong to one connection.
func TestSeveralRequests(t *testing.T) {
	d := interposertest.Start(t)
	a, log := authenticator(t, d)
	s := &http.Server{Handler: a.Wrap(hello)}
	Bind(s)
	bound, unbound := serve(t, s), serve(t, &http.Server{Handler: a.Wrap(hello)})
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

	// Several users may have their requests on one connection of HTTP/2.
	s = &http.Server{Handler: a.Wrap(hello), TLSConfig: &tls.Config{Certificates: []tls.Certificate{certificate(t, ecdsaKey(t), x509.ECDSAWithSHA256, "localhost")}}}
	Bind(s)
	_, token = begin()
	before := len(log.String())
	if resp, answer := raw(t, rt, serve(t, s), say(token)); resp.ProtoMajor != 2 || resp.StatusCode != http.StatusUnauthorized || answer != nil || !strings.Contains(log.String()[before:], "takes HTTP/1") {
		t.Errorf("%s: %s, %q\n%s", resp.Proto, resp.Status, answer, log)
	}
}

// TestServerFault: what the daemon refuses because of the server is none of the client's, who would
// be asked for another token in vain.
func TestServerFault(t *testing.T) {
	for _, tt := range []struct {
		major  mech.Major
		reason reason.ID
		status int
	}{
		{mech.NoCred, reason.NoKeytab, http.StatusServiceUnavailable},
		{mech.Failure, reason.NoKeytab, http.StatusServiceUnavailable},
		{mech.Failure, reason.ReplayCache, http.StatusServiceUnavailable},
		{mech.DefectiveCredential, reason.BadCredential, http.StatusServiceUnavailable},
		{mech.Unavailable, "", http.StatusServiceUnavailable},
		{mech.Failure, reason.NoKey, http.StatusUnauthorized}, // of the ticket: a fresh one may help
		{mech.Failure, reason.Replay, http.StatusUnauthorized},
	} {
		t.Run(tt.major.Text()+" "+string(tt.reason), func(t *testing.T) {
			path, _ := rpctest.Start(t, func(_ context.Context, _ *rpc.Call, reply []byte) ([]byte, rpc.AcceptStat) {
				res := xdr.ResAcceptSecContext{Status: xdr.Status{MajorStatus: uint64(tt.major), MinorStatusString: []byte("[" + tt.reason + "] no")}}
				return res.Append(reply), rpc.Success
			})
			daemon := interposer.New(path, interposer.Options{})
			defer daemon.Close()
			r := httptest.NewRequest("GET", "/", nil)
			r.Header.Set("Authorization", say(kerberosToken("alice@EXAMPLE.TEST", 0)))
			w := httptest.NewRecorder()
			(&Authenticator{Daemon: daemon, Log: slog.New(slog.DiscardHandler)}).Wrap(hello).ServeHTTP(w, r)
			if w.Code != tt.status || (w.Header().Get("WWW-Authenticate") != "") != (tt.status == http.StatusUnauthorized) {
				t.Errorf("%d, want %d; %v", w.Code, tt.status, w.Header())
			}
		})
	}
}

// TestContinuedElsewhere: what one Authenticator has begun, by its rules, another does not go on
// with.
func TestContinuedElsewhere(t *testing.T) {
	d := interposertest.Start(t)
	lax, log := authenticator(t, d)
	lax.IgnoreBindings = true
	strict := &Authenticator{Daemon: lax.Daemon, Log: lax.Log, Bindings: func(*http.Request) *interposer.ChannelBindings {
		return &interposer.ChannelBindings{AppData: []byte("tls-server-end-point:x")}
	}}
	mux := http.NewServeMux()
	mux.Handle("/lax", lax.Wrap(hello))
	mux.Handle("/strict", strict.Wrap(hello))
	s := &http.Server{Handler: mux}
	Bind(s)
	base, rt := serve(t, s), client(t, d).Base
	for _, tt := range []struct {
		first, second string
		status        int
	}{
		{"/lax", "/lax", http.StatusOK},
		{"/lax", "/strict", http.StatusUnauthorized},
		{"/strict", "/lax", http.StatusUnauthorized},
	} {
		i := &spnego.Initiator{Mechs: []spnego.Mech{
			{OID: spnego.NTLM, New: func() spnego.Context { return optimist{} }},
			{OID: mech.KRB5, New: func() spnego.Context { return &kerberos{c: d.Client(t)} }},
		}}
		token, _, err := i.Step(t.Context(), nil)
		check(t, err)
		var resp *http.Response
		for n, path := range []string{tt.first, tt.second, tt.second} {
			var answer []byte
			if resp, answer = raw(t, rt, base+path, say(token)); resp.StatusCode == http.StatusOK || answer == nil {
				break
			}
			if token, _, err = i.Step(t.Context(), answer); err != nil {
				t.Fatalf("%v, request %d: %v", tt, n, err)
			}
		}
		if resp.StatusCode != tt.status {
			t.Errorf("%v: %s\n%s", tt, resp.Status, log)
		}
	}
}

func TestChannelBindings(t *testing.T) {
	d := interposertest.Start(t)
	a, log := authenticator(t, d)
	a.Require = mech.FlagChannelBound
	ecKey := ecdsaKey(t)
	localhost, elsewhere := certificate(t, ecKey, x509.ECDSAWithSHA256, "localhost"), certificate(t, ecKey, x509.ECDSAWithSHA384, "elsewhere")
	start := func(c *tls.Config, bind bool) string {
		s := &http.Server{Handler: a.Wrap(hello), TLSConfig: c}
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
			rt.Base.TLSClientConfig.ClientSessionCache = tls.NewLRUClientSessionCache(0)
			for range 2 { // on a new connection, and on one that would be resumed
				if resp, body := get(t, rt, base); resp.StatusCode != http.StatusOK || !strings.Contains(body, "channel-bound") {
					t.Fatalf("%s %s\n%s", resp.Status, body, log)
				}
				rt.CloseIdleConnections()
			}
		})
	}
	t.Run("no bindings", func(t *testing.T) {
		rt := client(t, d)
		rt.IgnoreBindings = true
		if resp, body := get(t, rt, bound); resp.StatusCode != http.StatusForbidden || !strings.Contains(body, "lacks: channel-bound") {
			t.Errorf("%s %s", resp.Status, body)
		}
	})
	// Somebody in between has a certificate of his own and passes the requests on.
	t.Run("man in the middle", func(t *testing.T) {
		middle := serve(t, &http.Server{
			TLSConfig: &tls.Config{Certificates: []tls.Certificate{certificate(t, ecdsaKey(t), x509.ECDSAWithSHA256, "localhost")}},
			Handler:   passOn(t, client(t, d).Base, bound),
		})
		a.Require = 0
		defer func() { a.Require = mech.FlagChannelBound }()
		resp, err := (&http.Client{Transport: client(t, d)}).Get(middle)
		if err == nil {
			read(t, resp)
			t.Errorf("%s", resp.Status)
		}
		if !strings.Contains(log.String(), "reason=bad-bindings") {
			t.Errorf("%v\n%s", err, log)
		}
		a.IgnoreBindings = true
		defer func() { a.IgnoreBindings = false }()
		if resp, body := get(t, client(t, d), middle); resp.StatusCode != http.StatusOK || strings.Contains(body, "channel-bound") {
			t.Errorf("unchecked: %s %s", resp.Status, body)
		}
	})
	t.Run("without Bind", func(t *testing.T) {
		a.Require = 0
		base := start(&tls.Config{Certificates: []tls.Certificate{localhost}}, false)
		if resp, body := get(t, client(t, d), base); resp.StatusCode != http.StatusOK || strings.Contains(body, "channel-bound") {
			t.Errorf("%s %s", resp.Status, body)
		}
	})
}

// kerberosToken is one that the fake accepts.
func kerberosToken(user string, flags interposer.Flags) []byte {
	return interposertest.Token(user, "HTTP@localhost", flags, false)
}

// ask has h answer a request, without a connection.
func ask(h http.Handler, r *http.Request) *http.Response {
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w.Result()
}

// incoming makes a GET request with the values of an Authorization header.
func incoming(t *testing.T, path string, authorization ...string) *http.Request {
	r := httptest.NewRequestWithContext(t.Context(), "GET", path, nil)
	for _, v := range authorization {
		r.Header.Add("Authorization", v)
	}
	return r
}

func TestWrapPanics(t *testing.T) {
	d := interposertest.Start(t)
	key := newKey(t)
	with := func(s Session) *Authenticator { return &Authenticator{Daemon: d.Client(t), Session: s} }
	for _, tt := range []struct {
		name string
		a    *Authenticator
		next http.Handler
		text string
	}{
		{"no Authenticator", nil, hello, "Daemon is nil"},
		{"no daemon", &Authenticator{}, hello, "Daemon is nil"},
		{"no handler", with(nil), nil, "Wrap(nil)"},
		{"nil session", with((*CookieSession)(nil)), hello, "the CookieSession is nil"},
		{"no keys", with(&CookieSession{}), hello, "Keys is empty"},
		{"short key", with(&CookieSession{Keys: [][]byte{key, key[1:]}}), hello, "Keys[1] has 31 bytes"},
		{"no age", with(&CookieSession{Keys: [][]byte{key}, MaxAge: -1}), hello, "MaxAge is -1ns"},
		{"no name", with(&CookieSession{Keys: [][]byte{key}, Name: "a b"}), hello, "Name: "},
	} {
		t.Run(tt.name, func(t *testing.T) {
			defer func() {
				if text, ok := recover().(string); !ok || !strings.Contains(text, tt.text) {
					t.Errorf("panic: %q, want one that says %q", text, tt.text)
				}
			}()
			tt.a.Wrap(tt.next)
		})
	}
	with(&CookieSession{Keys: [][]byte{key}}).Wrap(hello)
	if ServerFrom(nil) != nil || ServerFrom(new(http.Response)) != nil || EndPoint(nil) != nil {
		t.Error("nil was somebody")
	}
}

// TestWhoIsAsked: which requests need a token, and what reaches the handler of which.
func TestWhoIsAsked(t *testing.T) {
	d := interposertest.Start(t)
	a, log := authenticator(t, d)
	var seen []string // Authorization, as the handler has it
	h := a.Wrap(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		seen = r.Header.Values("Authorization")
		hello(w, r)
	}))
	token := say(kerberosToken("alice@EXAMPLE.TEST", 0))
	broken := say(interposertest.Token("alice@EXAMPLE.TEST", "HTTP@localhost", 0, true))
	const basic = "Basic YTpi"
	healthz := func(r *http.Request) bool { return r.URL.Path == "/healthz" }
	for _, tt := range []struct {
		name          string
		optional      bool
		skip          func(*http.Request) bool
		path          string
		authorization []string
		status        int
		body          string
		seen          []string
	}{
		{"nothing", false, nil, "/", nil, 401, "", nil},
		{"another scheme", false, nil, "/", []string{basic}, 401, "", nil},
		{"a token", false, nil, "/", []string{token}, 200, "hello, alice", nil},
		{"a token and another scheme", false, nil, "/", []string{token, basic}, 200, "hello, alice", []string{basic}},
		{"a token in the second header", false, nil, "/", []string{"Negotiate", token}, 200, "hello, alice", nil},
		{"optional, nothing", true, nil, "/", nil, 200, "hello, whoever", nil},
		{"optional, another scheme", true, nil, "/", []string{basic}, 200, "hello, whoever", []string{basic}},
		{"optional, a token", true, nil, "/", []string{token}, 200, "hello, alice", nil},
		{"optional, refused", true, nil, "/", []string{broken}, 401, "", nil},
		{"optional, no token", true, nil, "/", []string{"Negotiate"}, 401, "", nil},
		{"skipped", false, healthz, "/healthz", nil, 200, "hello, whoever", nil},
		{"skipped, a token", false, healthz, "/healthz", []string{token}, 200, "hello, whoever", []string{token}},
		{"not skipped", false, healthz, "/", nil, 401, "", nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			a.Optional, a.Skip, seen = tt.optional, tt.skip, nil
			r := incoming(t, tt.path, tt.authorization...)
			resp := ask(h, r)
			if body := read(t, resp); resp.StatusCode != tt.status || !strings.HasPrefix(body, tt.body) {
				t.Errorf("%s: %q\n%s", resp.Status, body, log)
			}
			if fmt.Sprint(seen) != fmt.Sprint(tt.seen) {
				t.Errorf("the handler sees the credentials %q, want %q", seen, tt.seen)
			}
			if got := r.Header.Values("Authorization"); len(got) != len(tt.authorization) {
				t.Errorf("the caller's request has been changed: %q", got)
			}
		})
	}
}

// TestSkippedPaths: a path that a handler would read as another one is not skipped, however Skip
// compares it.
func TestSkippedPaths(t *testing.T) {
	d := interposertest.Start(t)
	a, _ := authenticator(t, d)
	files := http.FileServerFS(fstest.MapFS{"public/a": {Data: []byte("public")}, "private/a": {Data: []byte("private")}})
	for name, skip := range map[string]func(r *http.Request) bool{
		"what is public":      func(r *http.Request) bool { return strings.HasPrefix(r.URL.Path, "/public/") },
		"what is not private": func(r *http.Request) bool { return !strings.HasPrefix(r.URL.Path, "/private/") },
	} {
		a.Skip = skip
		h := a.Wrap(files)
		for path, status := range map[string]int{
			"/public/a":                http.StatusOK,
			"/public/":                 http.StatusOK,
			"/private/a":               http.StatusUnauthorized,
			"/public/../private/a":     http.StatusUnauthorized,
			"/public/%2e%2e/private/a": http.StatusUnauthorized,
			"//private/a":              http.StatusUnauthorized,
			"/./private/a":             http.StatusUnauthorized,
			"/public/..":               http.StatusUnauthorized,
		} {
			w := httptest.NewRecorder()
			h.ServeHTTP(w, httptest.NewRequest("GET", path, nil))
			if w.Code != status {
				t.Errorf("%s: %s: %d %q, want %d", name, path, w.Code, w.Body, status)
			}
		}
	}
}

func TestCleanPaths(t *testing.T) {
	for p, want := range map[string]bool{
		"/": true, "/a": true, "/a/": true, "/a/..b": true, "*": true, "": true, "a/b": true,
		"//": false, "/a//": false, "/a/./": false, "/..": false, "..": false, "../a": false, "a/../..": false,
	} {
		if clean(p) != want {
			t.Errorf("%q: %v", p, !want)
		}
	}
}

// TestNobody: whose name is not known has not proven who he is, even if the daemon accepts him.
func TestNobody(t *testing.T) {
	a, log := authenticator(t, interposertest.Start(t))
	for _, name := range []interposer.Name{{}, interposer.Principal("WELLKNOWN/ANONYMOUS@EXAMPLE.TEST"), {Display: "WELLKNOWN/ANONYMOUS@WELLKNOWN:ANONYMOUS", Type: mech.NTAnonymous}} {
		r := httptest.NewRequest("GET", "/", nil)
		w := httptest.NewRecorder()
		a.Wrap(hello).ServeHTTP(w, r.WithContext(NewContext(r.Context(), &interposer.Peer{Name: name})))
		if w.Code != http.StatusForbidden || !strings.Contains(log.String(), "anonymous") {
			t.Errorf("%q: %d %s\n%s", name, w.Code, w.Body, log)
		}
	}
}

// TestFlushedPage: a page that flushes before it writes has not another status for that.
func TestFlushedPage(t *testing.T) {
	a, _ := authenticator(t, interposertest.Start(t))
	a.Unauthorized = http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		if err := http.NewResponseController(w).Flush(); err != nil {
			t.Error(err)
		}
		io.WriteString(w, "get a ticket")
	})
	w := httptest.NewRecorder()
	a.Wrap(hello).ServeHTTP(w, httptest.NewRequest("GET", "/", nil))
	if w.Code != http.StatusUnauthorized || !w.Flushed || w.Body.String() != "get a ticket" {
		t.Errorf("%d %q, flushed: %v", w.Code, w.Body, w.Flushed)
	}
}

func TestPreflight(t *testing.T) {
	for _, tt := range []struct {
		method string
		header http.Header
		want   bool
	}{
		{"OPTIONS", http.Header{"Origin": {"https://b"}, "Access-Control-Request-Method": {"PUT"}}, true},
		{"OPTIONS", http.Header{"Origin": {"https://b"}}, false},
		{"OPTIONS", http.Header{"Access-Control-Request-Method": {"PUT"}}, false},
		{"GET", http.Header{"Origin": {"https://b"}, "Access-Control-Request-Method": {"PUT"}}, false},
	} {
		r := httptest.NewRequest(tt.method, "/", nil)
		r.Header = tt.header
		if got := Preflight(r); got != tt.want {
			t.Errorf("%s %v: %v", tt.method, tt.header, got)
		}
	}
}

// TestOtherSchemes: challenges are added to those that are there, also on a page of the program's.
func TestOtherSchemes(t *testing.T) {
	d := interposertest.Start(t)
	a, _ := authenticator(t, d)
	outer := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("WWW-Authenticate", "Bearer")
		a.Wrap(hello).ServeHTTP(w, r)
	})
	check := func(what string, resp *http.Response, status int, body string, challenges ...string) {
		t.Helper()
		if got := resp.Header.Values("WWW-Authenticate"); fmt.Sprint(got) != fmt.Sprint(challenges) {
			t.Errorf("%s: the challenges are %q, want %q", what, got, challenges)
		}
		if got := read(t, resp); resp.StatusCode != status || !strings.HasPrefix(got, body) {
			t.Errorf("%s: %s %q", what, resp.Status, got)
		}
	}
	answer := say([]byte("the acceptor's answer"))
	token := say(kerberosToken("alice@EXAMPLE.TEST", mech.FlagMutual))
	check("nothing", ask(outer, incoming(t, "/")), 401, "authentication is required", "Bearer", "Negotiate")
	check("a token", ask(outer, incoming(t, "/", token)), 200, "hello, alice", "Bearer", answer)

	a.Unauthorized = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Add("WWW-Authenticate", "Basic")
		switch r.URL.Path {
		case "/silent":
		case "/wrong":
			w.WriteHeader(http.StatusNoContent)
		default:
			if r.URL.Path == "/hints" {
				w.WriteHeader(http.StatusEarlyHints)
			}
			io.WriteString(w, "log in!")
			http.NewResponseController(w).Flush()
		}
	})
	check("own page", ask(outer, incoming(t, "/")), 401, "log in!", "Bearer", "Negotiate", "Basic")
	resp, _ := get(t, client(t, d).Base, serve(t, &http.Server{Handler: outer})+"/hints")
	if resp.StatusCode != http.StatusUnauthorized {
		t.Errorf("own page with early hints: %s", resp.Status)
	}
	check("own page that writes nothing", ask(outer, incoming(t, "/silent")), 401, "", "Bearer", "Negotiate", "Basic")
	check("own page with a status of its own", ask(outer, incoming(t, "/wrong")), 401, "", "Bearer", "Negotiate", "Basic")

	a.Allow = func(*http.Request, *interposer.Peer) error { return errors.New("secret") }
	check("not allowed", ask(outer, incoming(t, "/", token)), 403, "not allowed\n", "Bearer", answer)
	a.Forbidden = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "not you, %s", ClientFrom(r.Context()))
	})
	check("own page", ask(outer, incoming(t, "/", token)), 403, "not you, alice@EXAMPLE.TEST", "Bearer", answer)
	a.Allow, a.Forbidden, a.Require = nil, nil, mech.FlagChannelBound
	check("missing flags", ask(outer, incoming(t, "/", token)), 403, "the authentication lacks: channel-bound", "Bearer", answer)
}

// TestNested: an Authenticator further in asks for more, not for another token.
func TestNested(t *testing.T) {
	d := interposertest.Start(t)
	outer, _ := authenticator(t, d)
	outer.Optional = true
	inner, _ := authenticator(t, d)
	inner.Allow = Principals("alice@EXAMPLE.TEST")
	h := outer.Wrap(inner.Wrap(hello))
	for user, status := range map[string]int{"": 401, "alice@EXAMPLE.TEST": 200, "bob@EXAMPLE.TEST": 403} {
		r := incoming(t, "/")
		if user != "" {
			r.Header.Set("Authorization", say(kerberosToken(user, 0)))
		}
		if resp := ask(h, r); resp.StatusCode != status {
			t.Errorf("%q: %s, want %d", user, resp.Status, status)
		}
	}
	if n := d.Accepted.Load(); n != 2 {
		t.Errorf("%d tokens were accepted, want 2", n)
	}
	r := incoming(t, "/", say(kerberosToken("bob@EXAMPLE.TEST", 0)))
	r = r.WithContext(NewContext(r.Context(), &interposer.Peer{Name: interposer.Principal("alice@EXAMPLE.TEST")}))
	passed := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "" {
			t.Error("the token is passed on")
		}
		hello(w, r)
	})
	if resp := ask(inner.Wrap(passed), r); !strings.HasPrefix(read(t, resp), "hello, alice") {
		t.Errorf("with a client of the program's: %s", resp.Status)
	}
}

// silent starts a daemon that takes calls and answers them when the test ends. It tells of each.
func silent(t *testing.T) (*interposer.Client, <-chan struct{}) {
	asked := make(chan struct{}, 1)
	path, _ := rpctest.Start(t, func(ctx context.Context, _ *rpc.Call, reply []byte) ([]byte, rpc.AcceptStat) {
		asked <- struct{}{}
		<-ctx.Done()
		return reply, rpc.SystemErr
	})
	c := interposer.New(path, interposer.Options{})
	t.Cleanup(func() { c.Close() })
	return c, asked
}

// TestClientGone: who does not wait for the answer is no fault of the daemon's.
func TestClientGone(t *testing.T) {
	for _, proto := range []string{"HTTP/1.1", "HTTP/2.0"} {
		t.Run(proto, func(t *testing.T) {
			daemon, asked := silent(t)
			var log strings.Builder
			a := &Authenticator{Daemon: daemon, Log: slog.New(slog.NewTextHandler(&log, nil))}
			status := make(chan int, 1)
			h := a.Wrap(hello)
			s := &http.Server{
				TLSConfig: &tls.Config{Certificates: []tls.Certificate{certificate(t, ecdsaKey(t), x509.ECDSAWithSHA256, "localhost")}},
				Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					if r.Proto != proto {
						t.Errorf("the protocol is %s", r.Proto)
					}
					rec := httptest.NewRecorder()
					h.ServeHTTP(rec, r)
					status <- rec.Code
				}),
			}
			base := serve(t, s)
			rt := &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, ForceAttemptHTTP2: proto == "HTTP/2.0"}
			defer rt.CloseIdleConnections()
			ctx, cancel := context.WithCancel(t.Context())
			req, err := http.NewRequestWithContext(ctx, "GET", base, nil)
			check(t, err)
			req.Header.Set("Authorization", say(kerberosToken("alice@EXAMPLE.TEST", 0)))
			go func() {
				<-asked
				cancel()
			}()
			if resp, err := rt.RoundTrip(req); !errors.Is(err, context.Canceled) {
				t.Errorf("%v, %v", resp, err)
			}
			if got := <-status; got != statusClientGone {
				t.Errorf("status %d, want %d", got, statusClientGone)
			}
			if log.Len() > 0 {
				t.Errorf("logged: %s", &log)
			}
		})
	}
}

// TestOversizedToken: a token that no call has room for is the client's fault.
func TestOversizedToken(t *testing.T) {
	d := interposertest.Start(t)
	a, log := authenticator(t, d)
	base := serve(t, &http.Server{Handler: a.Wrap(hello), MaxHeaderBytes: 2 * rpc.MaxRecord})
	resp, _ := raw(t, client(t, d).Base, base, scheme+" "+base64.StdEncoding.EncodeToString(make([]byte, rpc.MaxRecord)))
	if resp.StatusCode != http.StatusUnauthorized || !strings.Contains(log.String(), "reason=defective-token") {
		t.Errorf("%s\n%s", resp.Status, log)
	}
}

// TestBindingsElsewhere: what ends the TLS tells which channel it was.
func TestBindingsElsewhere(t *testing.T) {
	d := interposertest.Start(t)
	a, log := authenticator(t, d)
	a.Require = mech.FlagChannelBound
	cert := certificate(t, ecdsaKey(t), x509.ECDSAWithSHA256, "localhost")
	backend := serve(t, &http.Server{Handler: a.Wrap(hello)})
	front := serve(t, &http.Server{
		TLSConfig: &tls.Config{Certificates: []tls.Certificate{cert}},
		Handler:   passOn(t, client(t, d).Base, backend),
	})
	for _, tt := range []struct {
		name     string
		bindings *interposer.ChannelBindings
		ignore   bool
		status   int
	}{
		{"its certificate", endPointOf(&cert), false, http.StatusOK},
		{"none", nil, false, http.StatusForbidden},
		{"another certificate", &interposer.ChannelBindings{AppData: []byte("tls-server-end-point:x")}, false, http.StatusUnauthorized},
		{"ignored", endPointOf(&cert), true, http.StatusForbidden},
	} {
		t.Run(tt.name, func(t *testing.T) {
			a.IgnoreBindings = tt.ignore
			a.Bindings = func(*http.Request) *interposer.ChannelBindings { return tt.bindings }
			resp, err := client(t, d).RoundTrip(mustGet(t, front))
			if tt.status == http.StatusUnauthorized { // with a token that says why, which is an error
				if err == nil || !strings.Contains(log.String(), "reason=bad-bindings") {
					resp.Body.Close()
					t.Errorf("%s", resp.Status)
				}
				return
			}
			check(t, err)
			if read(t, resp); resp.StatusCode != tt.status {
				t.Errorf("%s, want %d\n%s", resp.Status, tt.status, log)
			}
		})
	}
}

func mustGet(t *testing.T, url string) *http.Request {
	req, err := http.NewRequestWithContext(t.Context(), "GET", url, nil)
	check(t, err)
	return req
}

// TestNoPAC: a program that logs its clients does not log their groups.
func TestNoPAC(t *testing.T) {
	p := &interposer.Peer{Name: interposer.Principal("alice@EXAMPLE.TEST"), Attributes: []interposer.Attribute{
		{Name: interposer.PAC, Value: []byte("SECRET"), Authenticated: true},
	}}
	var text, json strings.Builder
	slog.New(slog.NewTextHandler(&text, nil)).Info("x", "client", p)
	slog.New(slog.NewJSONHandler(&json, nil)).Info("x", "client", p)
	for _, s := range []string{text.String(), json.String(), fmt.Sprintf("%v %+v %#v", p, p, p)} {
		if strings.Contains(s, "SECRET") || strings.Contains(s, "U0VDUkVU") || strings.Contains(s, "83 69 67") || !strings.Contains(s, "alice") {
			t.Error(s)
		}
	}
}
