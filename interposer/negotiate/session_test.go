package negotiate

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/cookiejar"
	"net/http/httptest"
	"reflect"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"gssproxyd/interposer"
	"gssproxyd/interposer/interposertest"
	"gssproxyd/mech"
)

func newKey(t testing.TB) []byte {
	key := make([]byte, 32)
	_, err := rand.Read(key)
	check(t, err)
	return key
}

// alice is a client with all that a Peer can have.
func alice(t testing.TB) *interposer.Peer {
	return &interposer.Peer{
		Name:    interposer.Name{Display: "alice@EXAMPLE.TEST", Type: mech.NTKrb5Principal, Exported: []byte{4, 1, 0}, Composite: []byte("composite")},
		Flags:   mech.FlagMutual | mech.FlagDeleg,
		Expires: time.Now().Add(24 * time.Hour),
		Attributes: []interposer.Attribute{
			{Name: interposer.AuthIndicator, Value: []byte("otp"), Authenticated: true},
			{Name: interposer.AuthIndicator, Value: []byte("pkinit"), Authenticated: true},
			{Name: interposer.PAC, Value: []byte("SECRET"), Authenticated: true},
			{Name: interposer.PAC + "client-info", Value: []byte("SECRET"), Authenticated: true},
			{Name: "claimed", Value: []byte("SECRET")},
		},
		Delegated: interposer.ServiceCred,
	}
}

// save returns the cookie of a session that c begins for p, nil if it sets none.
func save(t testing.TB, c *CookieSession, p *interposer.Peer) *http.Cookie {
	t.Helper()
	w := httptest.NewRecorder()
	check(t, c.Save(w, nil, p))
	cookies := w.Result().Cookies()
	if len(cookies) != 1 {
		t.Fatalf("%d cookies, want 1", len(cookies))
	}
	return cookies[0]
}

// load returns the client that c has for the cookie.
func load(t testing.TB, c *CookieSession, cookie *http.Cookie) *interposer.Peer {
	t.Helper()
	r := httptest.NewRequest("GET", "/", nil)
	r.AddCookie(cookie)
	p, err := c.Load(r)
	check(t, err)
	return p
}

func TestCookieSession(t *testing.T) {
	c := &CookieSession{Keys: [][]byte{newKey(t)}}
	cookie := save(t, c, alice(t))
	if want := "__Host-negotiate=" + cookie.Value + "; Path=/; HttpOnly; Secure; SameSite=Lax"; cookie.Raw != want {
		t.Errorf("Set-Cookie: %s, want %s", cookie.Raw, want)
	}
	if text, err := base64.RawURLEncoding.DecodeString(cookie.Value); err != nil || bytes.Contains(text, []byte("SECRET")) || bytes.Contains(text, []byte("pac")) {
		t.Errorf("the cookie has what it should not: %q, %v", text, err)
	}
	got, want := load(t, c, cookie), alice(t)
	want.Name.Composite, want.Attributes, want.Delegated = nil, want.Attributes[:2], nil
	if got == nil || time.Until(got.Expires) > defaultMaxAge || time.Until(got.Expires) < defaultMaxAge-time.Hour {
		t.Fatalf("it ends at %v", got.Expires)
	}
	if want.Expires = got.Expires; !reflect.DeepEqual(got, want) {
		t.Errorf("%s %+v\nwant %s %+v", got, *got, want, *want)
	}
	if p := load(t, c, &http.Cookie{Name: "another", Value: cookie.Value}); p != nil {
		t.Errorf("a cookie of another name is %v", p)
	}
	other := &CookieSession{Keys: c.Keys, Name: "other"}
	if p := load(t, other, &http.Cookie{Name: "other", Value: cookie.Value}); p != nil {
		t.Errorf("a cookie of another application is %v", p)
	}

	// What was signed by another version of this package, or is cut short.
	p := alice(t)
	p.Attributes = p.Attributes[:1]
	text := encode(p, p.Expires)
	if _, ok := decode(append([]byte{version + 1}, text[1:]...)); ok {
		t.Error("another version is read")
	}
	p.Attributes = nil
	complete := len(encode(p, p.Expires))
	for i := range text {
		if _, ok := decode(text[:i]); ok != (i == complete) {
			t.Errorf("%d bytes of %d: %v", i, len(text), ok)
		}
	}

	// Whatever octet is changed, added or taken away.
	for i := range cookie.Value {
		for _, bad := range []string{
			cookie.Value[:i], cookie.Value[:i] + cookie.Value[i+1:], cookie.Value[:i] + "A" + cookie.Value[i:], flip(cookie.Value, i),
		} {
			if p := load(t, c, &http.Cookie{Name: cookie.Name, Value: bad}); p != nil {
				t.Fatalf("%q is %v", bad, p)
			}
		}
	}
	if p := load(t, c, &http.Cookie{Name: cookie.Name, Value: strings.Repeat("A", 1<<20)}); p != nil {
		t.Errorf("a cookie of a megabyte is %v", p)
	}
}

// flip changes one character of base64 for another.
func flip(s string, i int) string {
	c := "A"
	if s[i] == 'A' {
		c = "B"
	}
	return s[:i] + c + s[i+1:]
}

func TestCookieKeys(t *testing.T) {
	older, newer := newKey(t), newKey(t)
	before, during, after := &CookieSession{Keys: [][]byte{older}}, &CookieSession{Keys: [][]byte{newer, older}}, &CookieSession{Keys: [][]byte{newer}}
	first, second := save(t, before, alice(t)), save(t, during, alice(t))
	for _, tt := range []struct {
		name   string
		c      *CookieSession
		cookie *http.Cookie
		ok     bool
	}{
		{"before, with the older", before, first, true},
		{"during, with the older", during, first, true},
		{"during, with the newer", during, second, true},
		{"after, with the older", after, first, false},
		{"after, with the newer", after, second, true},
		{"before, with the newer", before, second, false},
	} {
		if p := load(t, tt.c, tt.cookie); (p != nil) != tt.ok {
			t.Errorf("%s: %v", tt.name, p)
		}
	}
}

// TestCookieExpiry: a session is over with the context, and after MaxAge.
func TestCookieExpiry(t *testing.T) {
	for _, tt := range []struct {
		name        string
		max         time.Duration
		context     time.Duration // 0: zero; negative: never
		lasts, gone time.Duration
	}{
		{"with the context", 24 * time.Hour, time.Hour, time.Hour - 2*time.Second, time.Hour},
		{"with its age", time.Hour, 24 * time.Hour, time.Hour - 2*time.Second, time.Hour},
		{"with its age, by default", 0, 24 * time.Hour, 8*time.Hour - 2*time.Second, 8 * time.Hour},
		{"context without an end", time.Hour, -1, time.Hour - 2*time.Second, time.Hour},
		{"context of which that is not known", time.Hour, 0, time.Hour - 2*time.Second, time.Hour},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := &CookieSession{Keys: [][]byte{newKey(t)}, MaxAge: tt.max}
				p := alice(t)
				switch p.Expires = time.Now().Add(tt.context); {
				case tt.context < 0:
					p.Expires = interposer.Never
				case tt.context == 0:
					p.Expires = time.Time{}
				}
				cookie := save(t, c, p)
				time.Sleep(tt.lasts)
				got := load(t, c, cookie)
				if got == nil || !p.Expires.IsZero() && got.Expires.After(p.Expires) {
					t.Errorf("after %v: %+v", tt.lasts, got)
				}
				time.Sleep(tt.gone - tt.lasts)
				if got := load(t, c, cookie); got != nil {
					t.Errorf("after %v: %v", tt.gone, got)
				}
			})
		})
	}
}

func TestCookieErrors(t *testing.T) {
	good := &CookieSession{Keys: [][]byte{newKey(t)}}
	large := alice(t)
	for range 40 {
		large.Attributes = append(large.Attributes, interposer.Attribute{Name: "x", Value: make([]byte, 100), Authenticated: true})
	}
	for _, tt := range []struct {
		name string
		c    *CookieSession
		p    *interposer.Peer
		text string
	}{
		{"nil", nil, alice(t), "the CookieSession is nil"},
		{"no keys", new(CookieSession), alice(t), "Keys is empty"},
		{"nobody", good, nil, "no client"},
		{"key of zeros", &CookieSession{Keys: [][]byte{newKey(t), make([]byte, 32)}}, alice(t), "Keys[1] is all zeros"},
		{"too large", good, large, "browsers have room"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := httptest.NewRecorder()
			err := tt.c.Save(w, nil, tt.p)
			// What the browser has is the session of whoever was there before.
			ends := len(w.Result().Cookies()) == 1 && w.Result().Cookies()[0].MaxAge < 0 && w.Result().Cookies()[0].Name == defaultName
			if err == nil || !strings.Contains(err.Error(), tt.text) || ends != (tt.c == good) {
				t.Errorf("%v, header %v", err, w.Header())
			}
			if p, err := tt.c.Load(httptest.NewRequest("GET", "/", nil)); p != nil || (err == nil) != (tt.c == good) {
				t.Errorf("Load: %v, %v", p, err)
			}
		})
	}
}

// TestCookieKeysAreSecret: no way of printing shows them.
func TestCookieKeysAreSecret(t *testing.T) {
	c := &CookieSession{Keys: [][]byte{bytes.Repeat([]byte("K"), 32)}}
	var log strings.Builder
	slog.New(slog.NewTextHandler(&log, nil)).Info("x", "p", c, "v", *c)
	slog.New(slog.NewJSONHandler(&log, nil)).Info("x", "p", c, "v", *c)
	text, err := json.Marshal(c)
	check(t, err)
	for _, s := range []string{
		log.String(), string(text), fmt.Sprint(c, *c), fmt.Sprintf("%v %+v %#v %x %s", c, c, c, c, c), fmt.Sprintf("%v %+v %#v %x", *c, *c, *c, *c),
		fmt.Sprintf("%+v", Authenticator{Session: c}),
	} {
		for _, secret := range []string{"KKKK", "75 75", "S0tL", "4b4b", "0x4b"} {
			if strings.Contains(s, secret) {
				t.Errorf("the key is in %s", s)
			}
		}
	}
}

// FuzzCookieSession: what was signed is read without a panic, whatever it is, and says the same when
// it is written again; what was not signed is none.
func FuzzCookieSession(f *testing.F) {
	c := &CookieSession{Keys: [][]byte{newKey(f)}}
	p := alice(f)
	f.Add(encode(p, p.Expires))
	f.Add([]byte{version, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 'a', 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1})
	f.Fuzz(func(t *testing.T, text []byte) {
		p, ok := decode(text)
		if ok {
			again, ok := decode(encode(p, p.Expires))
			want := *p
			want.Attributes = nil
			for _, a := range p.Attributes {
				if !strings.HasPrefix(a.Name, interposer.PAC) {
					want.Attributes = append(want.Attributes, a)
				}
			}
			if !ok || !reflect.DeepEqual(again, &want) {
				t.Errorf("%+v\nis read again as %+v, %v", *p, again, ok)
			}
		}
		value := base64.RawURLEncoding.EncodeToString(slices.Concat(text, c.sign(c.Keys[0], text)))
		if got := load(t, c, &http.Cookie{Name: c.name(), Value: value}); got != nil && !ok {
			t.Errorf("%q is %v", text, got)
		}
		if got := load(t, c, &http.Cookie{Name: c.name(), Value: base64.RawURLEncoding.EncodeToString(text)}); got != nil {
			t.Errorf("%q is %v, unsigned", text, got)
		}
		r := httptest.NewRequest("GET", "/", nil)
		r.Header["Cookie"] = []string{c.name() + "=" + string(text)}
		if got, err := c.Load(r); got != nil || err != nil {
			t.Errorf("%q is %v, %v", r.Header, got, err)
		}
	})
}

// TestSession: after the first request none needs a token, and what is allowed is asked each time.
func TestSession(t *testing.T) {
	d := interposertest.Start(t)
	a, log := authenticator(t, d)
	a.Session, a.Delegate = &CookieSession{Keys: [][]byte{newKey(t)}}, true
	a.Allow = func(r *http.Request, p *interposer.Peer) error {
		if r.URL.Path == "/private" && p.Name.Display != "bob@EXAMPLE.TEST" {
			return errors.New("not bob")
		}
		return nil
	}
	var delegated *interposer.Cred
	h := a.Wrap(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		delegated = ClientFrom(r.Context()).Delegated
		if r.URL.Path == "/cached" {
			w.Header().Set("Cache-Control", "no-store")
		}
		hello(w, r)
	}))
	token := func(user string) string { return say(kerberosToken(user, mech.FlagDeleg|mech.FlagMutual)) }
	do := func(path, authorization string, cookies ...*http.Cookie) *http.Response {
		r := incoming(t, path)
		if authorization != "" {
			r.Header.Set("Authorization", authorization)
		}
		for _, c := range cookies {
			r.AddCookie(c)
		}
		return ask(h, r)
	}

	if resp := do("/private", token("alice@EXAMPLE.TEST")); resp.StatusCode != http.StatusForbidden || len(resp.Cookies()) != 0 {
		t.Errorf("who is not allowed: %s, %d cookies", resp.Status, len(resp.Cookies()))
	}
	resp := do("/", token("alice@EXAMPLE.TEST"))
	if body := read(t, resp); !strings.HasPrefix(body, "hello, alice") || len(resp.Cookies()) != 1 || resp.Header.Get("Cache-Control") != "private" || delegated == nil {
		t.Fatalf("with a token: %s, %q, %q", resp.Status, body, resp.Header)
	}
	session := resp.Cookies()[0]

	d.Stop() // nothing of what follows asks the daemon
	before := len(log.String())
	for _, tt := range []struct {
		path, cache string
		status      int
	}{{"/", "private", http.StatusOK}, {"/cached", "no-store", http.StatusOK}, {"/private", "private", http.StatusForbidden}} {
		resp := do(tt.path, "", session)
		body := read(t, resp)
		if resp.StatusCode != tt.status || resp.Header.Get("Cache-Control") != tt.cache || len(resp.Cookies()) != 0 {
			t.Errorf("%s with a session: %s, %q", tt.path, resp.Status, resp.Header)
		}
		if tt.status == http.StatusOK && (!strings.HasPrefix(body, "hello, alice@EXAMPLE.TEST, with delegation, mutual") || delegated != nil) {
			t.Errorf("%s with a session: %q, delegated %v", tt.path, body, delegated)
		}
	}
	if got := log.String()[before:]; strings.Count(got, "\n") != 1 || !strings.Contains(got, "not bob") {
		t.Errorf("logged: %s", got)
	}
	a.Require = mech.FlagChannelBound
	if resp := do("/", "", session); resp.StatusCode != http.StatusForbidden {
		t.Errorf("without the flags required: %s", resp.Status)
	}
	a.Require = 0
	if resp := do("/", "", &http.Cookie{Name: session.Name, Value: flip(session.Value, 30)}); resp.StatusCode != http.StatusUnauthorized {
		t.Errorf("with a session that is made up: %s", resp.Status)
	}
	if resp := do("/", token("bob@EXAMPLE.TEST"), session); resp.StatusCode != http.StatusServiceUnavailable {
		t.Errorf("with a session and a token, which counts: %s", resp.Status)
	}
}

// TestSessionAnew: who authenticates has a session of his own, whatever came with the request.
func TestSessionAnew(t *testing.T) {
	d := interposertest.Start(t)
	a, _ := authenticator(t, d)
	c := &CookieSession{Keys: [][]byte{newKey(t)}}
	a.Session = c
	r := incoming(t, "/", say(kerberosToken("bob@EXAMPLE.TEST", 0)))
	planted := save(t, c, alice(t))
	r.AddCookie(planted)
	resp := ask(a.Wrap(hello), r)
	if body := read(t, resp); !strings.HasPrefix(body, "hello, bob") || len(resp.Cookies()) != 1 {
		t.Fatalf("%s %q", resp.Status, body)
	}
	if p := load(t, c, resp.Cookies()[0]); p.String() != "bob@EXAMPLE.TEST" {
		t.Errorf("the session is %v's", p)
	}
}

// store is a Session of a program's own.
type store struct {
	peer       *interposer.Peer
	load, save error
}

func (s *store) Load(*http.Request) (*interposer.Peer, error) { return s.peer, s.load }
func (s *store) Save(_ http.ResponseWriter, _ *http.Request, p *interposer.Peer) error {
	if s.save == nil {
		s.peer = p
	}
	return s.save
}

// TestCookieStays: whoever has the cookie is the client, so a handler that passes requests on does
// not get it.
func TestCookieStays(t *testing.T) {
	a, _ := authenticator(t, interposertest.Start(t))
	session := &CookieSession{Keys: [][]byte{newKey(t)}}
	a.Session = session
	var seen []string
	h := a.Wrap(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		if ClientFrom(r.Context()) == nil {
			t.Error("nobody")
		}
		seen = r.Header["Cookie"]
	}))
	value := save(t, session, alice(t)).String()
	value, _, _ = strings.Cut(value, ";")
	for _, token := range []string{"", say(kerberosToken("alice@EXAMPLE.TEST", 0))} {
		for _, tt := range []struct{ sent, want []string }{
			{[]string{value}, nil},
			{[]string{`a="b c"; ` + value + `; c=d,e;f`}, []string{`a="b c"; c=d,e;f`}},
			{[]string{value + ";" + value, "a=b", value + "; c=d"}, []string{"a=b", "c=d"}},
		} {
			r := httptest.NewRequest("GET", "/", nil)
			if r.Header["Cookie"] = tt.sent; token != "" {
				r.Header.Set("Authorization", token)
			}
			sent := slices.Clone(tt.sent)
			if ask(h, r); !slices.Equal(seen, tt.want) || !slices.Equal(r.Header["Cookie"], sent) {
				t.Errorf("of %q the handler has %q, and %q is left", sent, seen, r.Header["Cookie"])
			}
		}
	}
}

// TestOwnSession: one that fails costs no more than a token, and one that forgets the time lets
// nobody in.
func TestOwnSession(t *testing.T) {
	d := interposertest.Start(t)
	a, log := authenticator(t, d)
	a.Delegate = true
	s := new(store)
	a.Session = s
	h := a.Wrap(hello)
	token := say(kerberosToken("alice@EXAMPLE.TEST", mech.FlagDeleg))

	s.load, s.save = errors.New("load fails"), errors.New("save fails")
	if resp := ask(h, incoming(t, "/")); resp.StatusCode != http.StatusUnauthorized || !strings.Contains(log.String(), "load fails") {
		t.Errorf("Load fails: %s\n%s", resp.Status, log)
	}
	if resp := ask(h, incoming(t, "/", token)); resp.StatusCode != http.StatusOK || !strings.Contains(log.String(), "save fails") {
		t.Errorf("Save fails: %s\n%s", resp.Status, log)
	}
	before := len(log.String())
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	if ask(h, incoming(t, "/").WithContext(gone)); len(log.String()) != before {
		t.Errorf("the client is gone: %s", log.String()[before:])
	}
	s.load, s.save = nil, nil
	if resp := ask(h, incoming(t, "/", token)); resp.StatusCode != http.StatusOK || s.peer == nil || s.peer.Delegated == nil {
		t.Errorf("saved: %s, %v", resp.Status, s.peer)
	}
	if resp := ask(h, incoming(t, "/")); resp.StatusCode != http.StatusOK {
		t.Errorf("loaded: %s", resp.Status)
	}
	s.peer.Expires = time.Time{} // not known
	if resp := ask(h, incoming(t, "/")); resp.StatusCode != http.StatusOK {
		t.Errorf("without an end: %s", resp.Status)
	}
	s.peer.Expires = time.Now().Add(-time.Second)
	if resp := ask(h, incoming(t, "/")); resp.StatusCode != http.StatusUnauthorized {
		t.Errorf("over: %s", resp.Status)
	}
}

// TestSessionHTTP2 is a browser's: a jar that keeps the cookie, and both protocols.
func TestSessionHTTP2(t *testing.T) {
	for _, proto := range []string{"HTTP/1.1", "HTTP/2.0"} {
		t.Run(proto, func(t *testing.T) {
			d := interposertest.Start(t)
			a, _ := authenticator(t, d)
			a.Session = &CookieSession{Keys: [][]byte{newKey(t)}}
			s := httptest.NewUnstartedServer(a.Wrap(hello))
			s.EnableHTTP2 = proto == "HTTP/2.0"
			s.StartTLS()
			defer s.Close()
			rt := client(t, d)
			rt.Base = s.Client().Transport.(*http.Transport)
			jar, err := cookiejar.New(nil)
			check(t, err)
			for _, rt := range []http.RoundTripper{rt, rt.Base, rt.Base} { // only the first has a token
				resp, err := (&http.Client{Transport: rt, Jar: jar, Timeout: 20 * time.Second}).Get(s.URL)
				check(t, err)
				if body := read(t, resp); resp.Proto != proto || !strings.HasPrefix(body, "hello, alice") {
					t.Errorf("%s %s %q", resp.Proto, resp.Status, body)
				}
			}
			if n := d.Accepted.Load(); n != 1 {
				t.Errorf("%d tokens were accepted, want 1", n)
			}
		})
	}
}

// BenchmarkSession is a request over a connection that is kept: to a handler alone, with a session,
// and with a token each time, whose Kerberos the fake does not do.
func BenchmarkSession(b *testing.B) {
	d := interposertest.Start(b)
	c := &CookieSession{Keys: [][]byte{newKey(b)}}
	a := &Authenticator{Daemon: d.Client(b), Session: c, Log: slog.New(slog.DiscardHandler)}
	var known atomic.Bool
	next := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		known.Store(ClientFrom(r.Context()) != nil)
		io.WriteString(w, "hello")
	})
	cookie := save(b, c, alice(b))
	for _, bb := range []struct {
		name, header, value string
		h                   http.Handler
	}{
		{"plain", "Cookie", cookie.Name + "=" + cookie.Value, next},
		{"session", "Cookie", cookie.Name + "=" + cookie.Value, a.Wrap(next)},
		{"token", "Authorization", say(kerberosToken("alice@EXAMPLE.TEST", 0)), a.Wrap(next)},
	} {
		b.Run(bb.name, func(b *testing.B) {
			s := httptest.NewServer(bb.h)
			defer s.Close()
			rt := new(http.Transport)
			defer rt.CloseIdleConnections()
			req, err := http.NewRequest("GET", s.URL, nil)
			check(b, err)
			req.Header.Set(bb.header, bb.value)
			b.ReportAllocs()
			for b.Loop() {
				resp, err := rt.RoundTrip(req)
				check(b, err)
				io.Copy(io.Discard, resp.Body)
				resp.Body.Close()
				if resp.StatusCode != http.StatusOK || known.Load() == (bb.name == "plain") {
					b.Fatal(resp.Status)
				}
			}
		})
	}
}
