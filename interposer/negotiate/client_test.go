package negotiate

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/cookiejar"
	"net/url"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"gssproxyd/interposer"
	"gssproxyd/interposer/interposertest"
	"gssproxyd/mech"
	"gssproxyd/mech/reason"
	"gssproxyd/rpc"
	"gssproxyd/rpc/rpctest"
	"gssproxyd/xdr"
)

// protocols are what a test runs with where connections matter.
var protocols = []string{"HTTP/1.1", "HTTP/2.0"}

// serveBy serves with s over TLS by one of the protocols, with bindings.
func serveBy(t *testing.T, protocol string, s *http.Server) (base string) {
	s.TLSConfig = &tls.Config{Certificates: []tls.Certificate{certificate(t, ecdsaKey(t), x509.ECDSAWithSHA256, "localhost")}}
	s.Protocols = new(http.Protocols)
	s.Protocols.SetHTTP1(protocol == "HTTP/1.1")
	s.Protocols.SetHTTP2(protocol == "HTTP/2.0")
	Bind(s)
	return serve(t, s)
}

// delegated is a client who has delegated a credential to us.
func delegated(t *testing.T, c *interposer.Client, name string) *interposer.Peer {
	t.Helper()
	token := interposertest.Token(name, "HTTP@localhost", mech.FlagDeleg, false)
	s, _, err := c.AcceptSecContext(t.Context(), interposer.AcceptRequest{Token: token, Mech: mech.KRB5, Delegate: true})
	check(t, err)
	defer s.Close()
	p, err := s.Peer()
	check(t, err)
	return p
}

func TestUnusableTransport(t *testing.T) {
	d := interposertest.Start(t)
	c := d.Client(t)
	used := &Transport{Daemon: c, Cred: interposer.ServiceCred}
	used.CloseIdleConnections()
	used.Cred = delegated(t, c, "bob@EXAMPLE.TEST").Delegated
	moved := &Transport{Daemon: c, Cred: interposer.ServiceCred}
	moved.CloseIdleConnections()
	moved.Daemon = interposertest.Start(t).Client(t)
	for _, tt := range []struct {
		rt   *Transport
		want string
	}{
		{&Transport{Cred: interposer.ServiceCred}, "Transport.Daemon is nil"},
		{&Transport{Daemon: c}, "interposer.ServiceCred"},
		{used, "a Transport for each credential"},
		{moved, "or Transport.Daemon was changed"},
	} {
		body := newClosing(strings.NewReader("text"))
		req, err := http.NewRequest("POST", "https://localhost", body)
		check(t, err)
		if _, err := tt.rt.RoundTrip(req); err == nil || !strings.Contains(err.Error(), tt.want) || !body.closed.Load() {
			t.Errorf("%v, want %q; body closed: %v", err, tt.want, body.closed.Load())
		}
	}
	// What is not a request at all is for http.Transport to say.
	if _, err := client(t, d).RoundTrip(new(http.Request)); err == nil {
		t.Error("a request without a URL was answered")
	}
}

// closing is a body that can be read once, and says when it is closed.
type closing struct {
	io.Reader
	closed atomic.Bool
	ended  chan struct{}
}

func newClosing(r io.Reader) *closing { return &closing{Reader: r, ended: make(chan struct{})} }

func (c *closing) Close() error {
	if !c.closed.Swap(true) {
		close(c.ended)
	}
	return nil
}

// wait waits until it is closed, which may be after the response.
func (c *closing) wait(t *testing.T) {
	t.Helper()
	select {
	case <-c.ended:
	case <-time.After(20 * time.Second):
		t.Error("the body is not closed")
	}
}

func TestAs(t *testing.T) {
	d := interposertest.Start(t)
	h, _ := authenticator(t, d)
	var requests atomic.Int32
	base := serve(t, &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		requests.Add(1)
		h.Wrap(hello).ServeHTTP(w, r)
	})})
	rt := client(t, d)
	rt.Plain = []string{"localhost"}
	bob := delegated(t, rt.Daemon, "bob@EXAMPLE.TEST")

	if _, body := get(t, rt, base); !strings.HasPrefix(body, "hello, alice@") {
		t.Errorf("as the service: %q", body)
	}
	as, err := rt.As(bob)
	check(t, err)
	defer as.CloseIdleConnections()
	accepted, sent := d.Accepted.Load(), requests.Load()
	if _, body := get(t, as, base); !strings.HasPrefix(body, "hello, bob@") {
		t.Errorf("as bob: %q", body)
	}
	if n, m := d.Accepted.Load()-accepted, requests.Load()-sent; n != 1 || m != 1 {
		t.Errorf("%d tokens were accepted in %d requests, want one in one: it is known that the server asks", n, m)
	}
	if _, body := get(t, rt, base); !strings.HasPrefix(body, "hello, alice@") {
		t.Errorf("as the service again: %q", body)
	}

	bob.Delegated = nil
	for who, p := range map[string]*interposer.Peer{"nobody has authenticated": nil, "bob@": bob} {
		if as, err := rt.As(p); as != nil || !errors.Is(err, ErrNotDelegated) || !strings.Contains(err.Error(), who) {
			t.Errorf("as %v: %v, %v", p, as, err)
		}
	}

	d.Forget()
	if resp, err := as.RoundTrip(request(t, "GET", base, nil)); mech.ReasonOf(err) != reason.BadCredential {
		t.Errorf("with a handle that does not open: %v, %v", resp, err)
	}
}

// TestRenewed has a daemon that gives out another handle each time, as it does when tickets were
// added to a credential.
func TestRenewed(t *testing.T) {
	cred := func(handle string) []byte {
		return (&xdr.Cred{CredHandleReference: []byte(handle)}).Append(nil)
	}
	var used []string
	socket, _ := rpctest.Start(t, func(_ context.Context, c *rpc.Call, reply []byte) ([]byte, rpc.AcceptStat) {
		var arg xdr.ArgInitSecContext
		arg.Decode(xdr.NewDecoder(c.Args))
		used = append(used, string(arg.CredHandle.V.CredHandleReference))
		res := xdr.ResInitSecContext{
			Status:        xdr.Status{MajorStatus: uint64(mech.ContinueNeeded)},
			ContextHandle: xdr.Some(xdr.Ctx{Mech: []byte(mech.KRB5), State: []byte("half")}),
			OutputToken:   xdr.Some([]byte("token")),
			Options:       []xdr.Option{{Option: []byte("sync_creds\x00"), Value: cred(used[len(used)-1] + "+")}},
		}
		return res.Append(reply), rpc.Success
	})
	daemon := interposer.New(socket, interposer.Options{})
	defer daemon.Close()
	base := serve(t, &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("WWW-Authenticate", "Negotiate")
		w.WriteHeader(http.StatusUnauthorized)
	})})
	bob := new(interposer.Cred)
	check(t, bob.UnmarshalBinary(cred("bob")))
	rt := &Transport{Daemon: daemon, Cred: bob, Plain: []string{"localhost"}}
	defer rt.CloseIdleConnections()
	for range 3 {
		if resp, _ := get(t, rt, base); resp.StatusCode != http.StatusUnauthorized {
			t.Error(resp.Status)
		}
	}
	if got := strings.Join(used, " "); got != "bob bob+ bob++" {
		t.Errorf("handles: %s", got)
	}
}

func request(t *testing.T, method, url string, body io.Reader) *http.Request {
	t.Helper()
	req, err := http.NewRequest(method, url, body)
	check(t, err)
	return req
}

// TestConnectionBound has a server that takes every request without a token for one of the user who
// has authenticated on the connection, as RFC 4559 allows. Nobody may become another by that.
func TestConnectionBound(t *testing.T) {
	type userKey struct{}
	for _, protocol := range protocols {
		t.Run(protocol, func(t *testing.T) {
			d := interposertest.Start(t)
			h, _ := authenticator(t, d)
			authenticated := h.Wrap(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				name := ClientFrom(r.Context()).Name.Display
				r.Context().Value(userKey{}).(*atomic.Value).Store(name)
				io.WriteString(w, name)
			}))
			base := serveBy(t, protocol, &http.Server{
				ConnContext: func(ctx context.Context, _ net.Conn) context.Context {
					return context.WithValue(ctx, userKey{}, new(atomic.Value))
				},
				Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					user, known := r.Context().Value(userKey{}).(*atomic.Value).Load().(string)
					switch {
					case r.Proto != protocol:
						http.Error(w, r.Proto, http.StatusHTTPVersionNotSupported)
					case r.URL.Path == "/away":
						http.Redirect(w, r, strings.Replace("https://"+r.Host+"/open", "localhost", "127.0.0.1", 1), http.StatusFound)
					case r.Header.Get("Authorization") == "" && known:
						io.WriteString(w, user)
					case r.URL.Path == "/open" && r.Header.Get("Authorization") == "":
						io.WriteString(w, "nobody")
					default:
						authenticated.ServeHTTP(w, r)
					}
				}),
			})
			alice := client(t, d)
			alice.Target = func(u *url.URL) (interposer.Name, bool) {
				return interposer.HostbasedName("HTTP", u.Hostname()), u.Path != "/open"
			}
			other := &Transport{Daemon: alice.Daemon, Cred: delegated(t, alice.Daemon, "carol@EXAMPLE.TEST").Delegated, Base: alice.Base}
			defer other.CloseIdleConnections()
			defer alice.Base.CloseIdleConnections()
			for range 3 {
				bob, err := alice.As(delegated(t, alice.Daemon, "bob@EXAMPLE.TEST"))
				check(t, err)
				for _, tt := range []struct {
					rt         http.RoundTripper
					path, want string
				}{
					{alice, "/", "alice@EXAMPLE.TEST"},
					{bob, "/", "bob@EXAMPLE.TEST"},
					{other, "/", "carol@EXAMPLE.TEST"},
					{alice, "/open", "nobody"},
					{bob, "/open", "nobody"},
					{alice.Base, "/open", "nobody"},
					{alice, "/away", "nobody"},
					{alice, "/", "alice@EXAMPLE.TEST"},
				} {
					if resp, body := get(t, tt.rt, base+tt.path); body != tt.want {
						t.Errorf("%s: %s %q, want %q", tt.path, resp.Status, body, tt.want)
					}
				}
				bob.CloseIdleConnections()
			}
		})
	}
}

// TestPools: a Transport takes the settings of Base, and nothing else.
func TestPools(t *testing.T) {
	var mu sync.Mutex
	states := make(map[net.Conn]http.ConnState)
	closed := make(chan struct{}, 100)
	base := serveBy(t, "HTTP/2.0", &http.Server{
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, r.Proto) }),
		ConnState: func(c net.Conn, s http.ConnState) {
			mu.Lock()
			defer mu.Unlock()
			if states[c] = s; s == http.StateClosed {
				closed <- struct{}{}
			}
		},
	})
	d := interposertest.Start(t)
	insecure := func() *tls.Config { return &tls.Config{InsecureSkipVerify: true} }
	own := &http.Transport{TLSClientConfig: insecure(), ForceAttemptHTTP2: true}
	get(t, own, base)
	defer own.CloseIdleConnections()
	taken := own.Clone() // has own's HTTP/2 set, as golang.org/x/net/http2 would
	taken.TLSNextProto = own.TLSNextProto
	std := new(http.Transport) // has HTTP/2 by default, before it is cloned
	std.Clone()
	std.TLSClientConfig.InsecureSkipVerify = true
	for name, b := range map[string]*http.Transport{"used": own, "function": taken, "default": std} {
		mu.Lock()
		before := len(states)
		mu.Unlock()
		rt := &Transport{Daemon: d.Client(t), Cred: interposer.ServiceCred, Base: b}
		if resp, body := get(t, rt, base); body != "HTTP/2.0" {
			t.Errorf("%s: %s %q", name, resp.Status, body)
		}
		rt.Target = func(*url.URL) (interposer.Name, bool) { return interposer.Name{}, false }
		if resp, body := get(t, rt, base); body != "HTTP/2.0" {
			t.Errorf("%s: %s %q", name, resp.Status, body)
		}
		mu.Lock()
		n := len(states) - before
		mu.Unlock()
		if n != 2 {
			t.Fatalf("%s: %d connections, want 2", name, n)
		}
		rt.CloseIdleConnections()
		<-closed
		<-closed
	}

	for _, b := range []*http.Transport{nil, {}, {IdleConnTimeout: time.Hour, ExpectContinueTimeout: time.Minute}} {
		p := newPool(&Transport{Base: b})
		idle, expect := 90*time.Second, time.Second
		if b != nil && b.IdleConnTimeout != 0 {
			idle, expect = b.IdleConnTimeout, b.ExpectContinueTimeout
		}
		if p.IdleConnTimeout != idle || p.ExpectContinueTimeout != expect {
			t.Errorf("%v and %v, want %v and %v", p.IdleConnTimeout, p.ExpectContinueTimeout, idle, expect)
		}
	}
	off := newPool(&Transport{Base: &http.Transport{TLSNextProto: map[string]func(string, *tls.Conn) http.RoundTripper{}}})
	if off.TLSNextProto == nil || off.ForceAttemptHTTP2 {
		t.Error("HTTP/2 is there again that was turned off")
	}
}

func TestPlainHTTP(t *testing.T) {
	d := interposertest.Start(t)
	h, _ := authenticator(t, d)
	base := serve(t, &http.Server{Handler: h.Wrap(hello)})
	for _, preemptive := range []bool{false, true} {
		rt := client(t, d)
		rt.Plain, rt.Preemptive = nil, preemptive
		before := d.Initiated.Load()
		_, err := rt.RoundTrip(request(t, "GET", base, nil))
		if err == nil || !strings.Contains(err.Error(), `put "localhost" in Transport.Plain`) || d.Initiated.Load() != before {
			t.Errorf("%v, %d tokens", err, d.Initiated.Load()-before)
		}
		req := request(t, "GET", base, nil)
		req.Header.Set("Authorization", "Basic YTpi")
		resp, err := rt.RoundTrip(req)
		check(t, err)
		if read(t, resp); resp.StatusCode != http.StatusUnauthorized {
			t.Errorf("with another's Authorization: %s", resp.Status)
		}
	}
	for _, tt := range []struct {
		plain, url string
		ok         bool
	}{
		{"", "https://a", true},
		{"", "http://a", false},
		{"a", "http://A:8080", true},
		{"A", "http://a", true},
		{"a", "http://b.a", false},
		{".a", "http://a", false},
		{".a", "http://b.a", true},
		{".A", "http://c.b.a", true},
		{".a", "http://ba", false},
		{"::1", "http://[::1]:80", true},
		{"", "http://", false},
		{"a", "ftp://a", false},
	} {
		u, err := url.Parse(tt.url)
		check(t, err)
		if got := (&Transport{Plain: []string{tt.plain}}).safe(u); got != tt.ok {
			t.Errorf("%s with %q: %v", tt.url, tt.plain, got)
		}
	}
}

// TestPreemption: a server that has asked gets a token at once from then on.
func TestPreemption(t *testing.T) {
	for _, protocol := range protocols {
		t.Run(protocol, func(t *testing.T) {
			d := interposertest.Start(t)
			h, log := authenticator(t, d)
			h.Require = mech.FlagChannelBound
			wrapped := h.Wrap(hello)
			var requests atomic.Int32
			handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if requests.Add(1); r.URL.Path == "/open" {
					fmt.Fprintf(w, "open, %d tokens", len(r.Header["Authorization"]))
					return
				}
				wrapped.ServeHTTP(w, r)
			})
			s := &http.Server{Handler: handler}
			base := serveBy(t, protocol, s)
			rt := client(t, d)
			ask := func(path string, legs int32, want string, proven bool) {
				t.Helper()
				before := requests.Load()
				resp, body := get(t, rt, base+path)
				if n := requests.Load() - before; n != legs || !strings.Contains(body, want) || (ServerFrom(resp) != nil) != proven {
					t.Errorf("%s: %s %q in %d legs, from %v\n%s", path, resp.Status, body, n, ServerFrom(resp), log)
				}
			}
			ask("/open", 1, "open, 0 tokens", false)
			ask("/", 2, "channel-bound", true)
			ask("/", 1, "channel-bound", true)
			ask("/open", 1, "open, 1 tokens", false)

			// The channel is another one now.
			s.Close()
			base2 := serveBy(t, protocol, &http.Server{Handler: handler})
			u, err := url.Parse(base)
			check(t, err)
			_, addr, _ := strings.Cut(base2, "localhost")
			known, asked := rt.asked.get(place(u))
			if !asked || known.bound == nil {
				t.Fatalf("remembered: %v, %v", known, asked)
			}
			base = "https://localhost" + addr
			u2, err := url.Parse(base)
			check(t, err)
			rt.asked.add(place(u2), known)
			ask("/", 2, "channel-bound", true)
			ask("/", 1, "channel-bound", true)
		})
	}
}

// TestPreemptionAndSessions: a request with a session's cookie gets no token unasked, since the
// server needs none; one with other cookies does, once it is clear that they do not help.
func TestPreemptionAndSessions(t *testing.T) {
	d := interposertest.Start(t)
	h, _ := authenticator(t, d)
	h.Session = &CookieSession{Keys: [][]byte{newKey(t)}, Name: "session"}
	without, _ := authenticator(t, d)
	mux := http.NewServeMux()
	mux.Handle("/session", h.Wrap(hello))
	mux.Handle("/", without.Wrap(hello))
	base := serveBy(t, "HTTP/1.1", &http.Server{Handler: mux})
	jar, err := cookiejar.New(nil)
	check(t, err)
	c := &http.Client{Transport: client(t, d), Jar: jar}
	for i, tt := range []struct {
		path   string
		tokens int32
	}{{"/session", 1}, {"/session", 0}, {"/session", 0}, {"/", 1}, {"/", 1}} {
		initiated, accepted := d.Initiated.Load(), d.Accepted.Load()
		resp, err := c.Get(base + tt.path)
		check(t, err)
		if body := read(t, resp); !strings.Contains(body, "hello, alice") {
			t.Errorf("%d: %s %s", i, resp.Status, body)
		}
		if n := d.Accepted.Load() - accepted; n != tt.tokens || (n == 0) != (d.Initiated.Load() == initiated) {
			t.Errorf("%d: %d tokens, want %d", i, n, tt.tokens)
		}
	}
	u, err := url.Parse(base)
	check(t, err)
	if known, _ := c.Transport.(*Transport).asked.get(place(u)); !known.despite {
		t.Error("it is not remembered that cookies do not help")
	}
}

// TestPreemptive sends tokens to servers that have never asked.
func TestPreemptive(t *testing.T) {
	d := interposertest.Start(t)
	h, _ := authenticator(t, d)
	wrapped := h.Wrap(hello)
	var requests atomic.Int32
	base := serveBy(t, "HTTP/1.1", &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if requests.Add(1); r.URL.Path == "/open" {
			io.WriteString(w, "open")
			return
		}
		wrapped.ServeHTTP(w, r)
	})})
	rt := client(t, d)
	rt.Preemptive = true
	for _, oneWay := range []bool{false, true} {
		rt.OneWay = oneWay
		if resp, body := get(t, rt, base+"/open"); body != "open" || ServerFrom(resp) != nil {
			t.Errorf("no authentication is asked for: %s %q, from %v", resp.Status, body, ServerFrom(resp))
		}
	}
	rt.OneWay = false
	before := requests.Load()
	if resp, body := get(t, rt, base); !strings.HasPrefix(body, "hello, alice") || ServerFrom(resp) == nil || requests.Load() != before+1 {
		t.Errorf("%s %q, from %v", resp.Status, body, ServerFrom(resp))
	}

	d.Services = []string{"another"}
	if resp, body := get(t, rt, base+"/open"); body != "open" || ServerFrom(resp) != nil {
		t.Errorf("a server that the KDC does not know: %s %q", resp.Status, body)
	}
	for _, body := range []io.Reader{nil, newClosing(strings.NewReader("text"))} { // the other one cannot be sent again
		if resp, err := rt.RoundTrip(request(t, "POST", base, body)); mech.ReasonOf(err) != reason.ServerUnknown {
			t.Errorf("when it asks: %v, %v", resp, err)
		}
	}
}

// TestPreemptiveUnbound: a server may want tokens that are bound to the channel, which the first one
// cannot be.
func TestPreemptiveUnbound(t *testing.T) {
	d := interposertest.Start(t)
	h, _ := authenticator(t, d)
	h.Require = mech.FlagChannelBound
	base := serveBy(t, "HTTP/1.1", &http.Server{Handler: h.Wrap(hello)})
	rt := client(t, d)
	rt.Preemptive = true
	for i, want := range []int32{2, 1} {
		before := d.Accepted.Load()
		if resp, body := get(t, rt, base); !strings.HasPrefix(body, "hello, alice") || ServerFrom(resp) == nil || d.Accepted.Load()-before != want {
			t.Errorf("%d: %s %q after %d tokens, want %d", i, resp.Status, body, d.Accepted.Load()-before, want)
		}
	}
	h.Require = mech.FlagAnon // which nobody has
	before := d.Accepted.Load()
	if resp, _ := get(t, rt, base); resp.StatusCode != http.StatusForbidden || d.Accepted.Load()-before != 1 {
		t.Errorf("%s after %d tokens", resp.Status, d.Accepted.Load()-before)
	}
}

func TestMemory(t *testing.T) {
	m := new(memory)
	b := known{bound: new(interposer.ChannelBindings)}
	for i := range 3 * most {
		m.add(fmt.Sprint(i), b)
		if got, asked := m.get(fmt.Sprint(i)); got != b || !asked {
			t.Fatalf("%d: %v, %v", i, got, asked)
		}
		m.add(fmt.Sprint(i), known{})
	}
	if len(m.m) != most {
		t.Errorf("%d are remembered, want %d", len(m.m), most)
	}
}

// TestServerFrom: who has proven itself is said of the response, and of no other.
func TestServerFrom(t *testing.T) {
	d := interposertest.Start(t)
	h, _ := authenticator(t, d)
	wrapped := h.Wrap(hello)
	base := serveBy(t, "HTTP/1.1", &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/open" {
			wrapped.ServeHTTP(w, r)
		}
	})})
	rt := client(t, d)
	rt.Flags = mech.FlagDeleg
	resp, err := rt.RoundTrip(request(t, "GET", base, nil))
	check(t, err)
	read(t, resp)
	server := ServerFrom(resp)
	if server == nil || server.Name.Display != "HTTP@localhost" || !server.Flags.Has(mech.FlagMutual|mech.FlagDeleg) {
		t.Errorf("%v with %v", server, server.Flags)
	}
	if resp.Request.Header.Get("Authorization") != "" {
		t.Error("the token is left in the response's request")
	}
	for name, ctx := range map[string]context.Context{
		"an incoming request's": NewContext(t.Context(), &interposer.Peer{}),
		"an earlier response's": resp.Request.Context(),
	} {
		resp, err := rt.RoundTrip(request(t, "GET", base+"/open", nil).WithContext(ctx))
		check(t, err)
		if read(t, resp); ServerFrom(resp) != nil {
			t.Errorf("with %s context: from %v", name, ServerFrom(resp))
		}
	}
}

func TestDrain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, w := io.Pipe()
		begun := time.Now()
		drain(r)
		if d := time.Since(begun); d != time.Second {
			t.Errorf("a body that stalls: %v", d)
		}
		w.Close()

		r, w = io.Pipe()
		written := make(chan int)
		go func() {
			n := 0
			for {
				m, err := w.Write(make([]byte, 1000))
				if n += m; err != nil {
					written <- n
					return
				}
			}
		}()
		drain(r)
		if n := <-written; n < drainSize || n > drainSize+1000 {
			t.Errorf("%d bytes of an endless body", n)
		}
	})
}

// TestStalledChallenge has a server that does not end what it says with its 401.
func TestStalledChallenge(t *testing.T) {
	for _, protocol := range protocols {
		t.Run(protocol, func(t *testing.T) {
			d := interposertest.Start(t)
			h, _ := authenticator(t, d)
			wrapped := h.Wrap(hello)
			base := serveBy(t, protocol, &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if r.Header.Get("Authorization") != "" {
					wrapped.ServeHTTP(w, r)
					return
				}
				w.Header().Set("WWW-Authenticate", "Negotiate")
				w.WriteHeader(http.StatusUnauthorized)
				http.NewResponseController(w).Flush()
				<-r.Context().Done()
			})})
			if resp, body := get(t, client(t, d), base); !strings.HasPrefix(body, "hello, alice") {
				t.Errorf("%s %q", resp.Status, body)
			}
		})
	}
}

func TestCookies(t *testing.T) {
	d := interposertest.Start(t)
	h, _ := authenticator(t, d)
	wrapped := h.Wrap(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		http.SetCookie(w, &http.Cookie{Name: "last", Value: "2", Path: "/"})
		io.WriteString(w, r.Header.Get("Cookie"))
	}))
	handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") == "" {
			for _, c := range []*http.Cookie{
				{Name: "stick", Value: "1"}, {Name: "mine", Value: "new"}, {Name: "last", Value: "1", Path: "/"},
				{Name: "elsewhere", Value: "1", Path: "/elsewhere"}, {Name: "foreign", Value: "1", Domain: "example.com"},
				{Name: "secure", Value: "1", Secure: true}, {Name: "gone", Value: "1", MaxAge: -1},
			} {
				http.SetCookie(w, c)
			}
		}
		wrapped.ServeHTTP(w, r)
	})
	for _, base := range []string{serve(t, &http.Server{Handler: handler}), serveBy(t, "HTTP/2.0", &http.Server{Handler: handler})} {
		want := "own=1; stick=1; mine=new; last=1; secure=1" // localhost is as secure as https
		rt := client(t, d)
		rt.Plain = []string{"localhost"}
		jar, err := cookiejar.New(nil)
		check(t, err)
		req := request(t, "GET", base+"/path/", nil)
		req.Header.Set("Cookie", "own=1; mine=old")
		resp, err := (&http.Client{Transport: rt, Jar: jar}).Do(req)
		check(t, err)
		if body := read(t, resp); sorted(body) != sorted(want) {
			t.Errorf("sent %q, want %q", body, want)
		}
		if req.Header.Get("Cookie") != "own=1; mine=old" {
			t.Errorf("the request has now %q", req.Header)
		}
		var kept []string
		for _, c := range jar.Cookies(req.URL) {
			kept = append(kept, c.Name+"="+c.Value)
		}
		want = strings.Replace(strings.TrimPrefix(want, "own=1; "), "last=1", "last=2", 1)
		if got := strings.Join(kept, "; "); sorted(got) != sorted(want) {
			t.Errorf("the jar has %q, want %q", got, want)
		}
	}

	var c cookies
	req := request(t, "GET", "http://a/path/", nil)
	c.note(req.URL, &http.Response{Header: http.Header{"Set-Cookie": {"a=b", "secure=1; Secure"}}})
	if c.add(req); req.Header.Get("Cookie") != "a=b" {
		t.Errorf("sent by plain http: %q", req.Header)
	}
}

// sorted sorts the elements of a list of cookies.
func sorted(list string) string {
	l := strings.Split(list, "; ")
	slices.Sort(l)
	return strings.Join(l, "; ")
}

// TestExpect sends a body that can be read once to a server that asks before it reads it.
func TestExpect(t *testing.T) {
	for _, protocol := range protocols {
		t.Run(protocol, func(t *testing.T) {
			d := interposertest.Start(t)
			h, _ := authenticator(t, d)
			base := serveBy(t, protocol, &http.Server{Handler: h.Wrap(hello)})
			rt := client(t, d)
			rt.Base.ExpectContinueTimeout = time.Minute // the server says so or does not
			const size = 1 << 20
			for range 2 { // asked, and because it was
				body := newClosing(io.LimitReader(zeros{}, size))
				req := request(t, "POST", base, body)
				req.Header.Set("Expect", "100-continue")
				resp, err := rt.RoundTrip(req)
				check(t, err)
				if text := read(t, resp); !strings.HasSuffix(text, fmt.Sprintf("and %d bytes", size)) {
					t.Errorf("%s %q", resp.Status, text)
				}
				body.wait(t)
			}
			// What ends between the legs closes the body too.
			refused := client(t, d)
			refused.Base.ExpectContinueTimeout = time.Minute
			d.Services = []string{"another"}
			body := newClosing(zeros{})
			req := request(t, "POST", base, body)
			req.Header.Set("Expect", "100-continue")
			if _, err := refused.RoundTrip(req); mech.ReasonOf(err) != reason.ServerUnknown {
				t.Error(err)
			}
			body.wait(t)
		})
	}
}

// TestTrailer: a program may set its request's trailer while the body is read.
func TestTrailer(t *testing.T) {
	for _, protocol := range protocols {
		t.Run(protocol, func(t *testing.T) {
			d := interposertest.Start(t)
			h, _ := authenticator(t, d)
			base := serveBy(t, protocol, &http.Server{Handler: h.Wrap(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				io.Copy(io.Discard, r.Body)
				io.WriteString(w, r.Trailer.Get("Sum"))
			}))})
			rt := client(t, d)
			get(t, rt, base) // knows that it is asked
			req := request(t, "POST", base, nil)
			req.Trailer = http.Header{"Sum": nil}
			req.Body = io.NopCloser(io.MultiReader(strings.NewReader("text"), trailing(func() { req.Trailer.Set("Sum", "42") })))
			req.ContentLength = -1
			resp, err := rt.RoundTrip(req)
			check(t, err)
			if body := read(t, resp); body != "42" {
				t.Errorf("%s %q", resp.Status, body)
			}
		})
	}
}

// trailing is the end of a body.
type trailing func()

func (f trailing) Read([]byte) (int, error) {
	f()
	return 0, io.EOF
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}

func TestOnceBody(t *testing.T) {
	start := func() (*closing, *requestBody, io.ReadCloser) {
		body := newClosing(strings.NewReader("text"))
		b := newRequestBody(request(t, "POST", "http://a", body))
		first, err := b.next()
		check(t, err)
		return body, &b, first
	}
	body, b, first := start()
	if !b.again() {
		t.Fatal("a body that was not read cannot be sent again")
	}
	second, err := b.next()
	check(t, err)
	if n, err := first.Read(make([]byte, 1)); n != 0 || !errors.Is(err, errAnswered) {
		t.Errorf("the first leg reads %d, %v", n, err)
	}
	if first.Close(); body.closed.Load() {
		t.Error("the first leg has closed it")
	}
	if text, err := io.ReadAll(second); string(text) != "text" || err != nil {
		t.Errorf("%q, %v", text, err)
	}
	if b.again() {
		t.Error("a body that was read can be sent again")
	}
	if second.Close(); !body.closed.Load() {
		t.Error("the last leg has not closed it")
	}
	b.end()

	body, b, first = start()
	first.Close() // unread
	if body.closed.Load() {
		t.Error("closed before it is known that no leg follows")
	}
	if b.end(); !body.closed.Load() {
		t.Error("not closed at the end")
	}

	body, b, first = start()
	if b.end(); body.closed.Load() {
		t.Error("closed while a leg has it")
	}
	if first.Close(); !body.closed.Load() {
		t.Error("not closed after the end")
	}
}

// proxy is one that lets through whom it has authenticated, and has passed on what it says.
func proxy(t *testing.T, d *interposertest.Daemon, asks bool) (base *url.URL, passed *atomic.Int32) {
	t.Helper()
	passed = new(atomic.Int32)
	daemon := d.Client(t)
	var ways sync.WaitGroup
	ways.Add(1)
	t.Cleanup(func() { ways.Done(); ways.Wait() })
	out := &http.Transport{}
	t.Cleanup(out.CloseIdleConnections)
	handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		token, _ := credentials(r.Header.Values("Proxy-Authorization"))
		if asks {
			s, _, err := daemon.AcceptSecContext(r.Context(), interposer.AcceptRequest{Token: token})
			if err != nil || s.Target().Display != "HTTP@127.0.0.1" {
				w.Header().Set("Proxy-Authenticate", "Negotiate")
				http.Error(w, "no proof", http.StatusProxyAuthRequired)
				return
			}
			s.Close()
		} else if token != nil {
			http.Error(w, "a token nobody has asked for", http.StatusBadRequest)
			return
		}
		passed.Add(1)
		if r.Method != http.MethodConnect {
			r.Header.Del("Proxy-Authorization")
			r.RequestURI = ""
			resp, err := out.RoundTrip(r)
			if err != nil {
				http.Error(w, err.Error(), http.StatusBadGateway)
				return
			}
			defer resp.Body.Close()
			for name, values := range resp.Header {
				w.Header()[name] = values
			}
			w.WriteHeader(resp.StatusCode)
			io.Copy(w, resp.Body)
			return
		}
		server, err := net.Dial("tcp", r.Host)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadGateway)
			return
		}
		conn, _, err := http.NewResponseController(w).Hijack()
		if err != nil {
			server.Close()
			return
		}
		io.WriteString(conn, "HTTP/1.1 200 OK\r\n\r\n") // nothing comes before this
		for _, way := range [][2]net.Conn{{conn, server}, {server, conn}} {
			ways.Go(func() {
				io.Copy(way[0], way[1])
				way[0].Close()
				way[1].Close()
			})
		}
	})
	base, err := url.Parse(strings.Replace(serve(t, &http.Server{Handler: handler}), "localhost", "127.0.0.1", 1))
	check(t, err)
	return base, passed
}

func TestProxy(t *testing.T) {
	d := interposertest.Start(t)
	h, _ := authenticator(t, d)
	handler := h.Wrap(hello)
	servers := map[string]string{"http": serve(t, &http.Server{Handler: handler})}
	for _, protocol := range protocols {
		servers[protocol] = serveBy(t, protocol, &http.Server{Handler: handler})
	}
	for name, base := range servers {
		t.Run(name, func(t *testing.T) {
			asking, passed := proxy(t, d, true)
			start := func(at *url.URL) *Transport {
				rt := client(t, d)
				rt.Plain = []string{"localhost"}
				rt.Proxy = true
				rt.Base.Proxy = http.ProxyURL(at)
				return rt
			}
			rt := start(asking)
			post := func(rt http.RoundTripper) (*http.Response, error) {
				return rt.RoundTrip(request(t, "POST", base, strings.NewReader("12345")))
			}
			for i := range 2 {
				before := d.Initiated.Load()
				resp, err := post(rt)
				check(t, err)
				if body := read(t, resp); !strings.HasPrefix(body, "hello, alice") || !strings.HasSuffix(body, "5 bytes") {
					t.Errorf("%s %q", resp.Status, body)
				}
				if server := ServerFrom(resp); server == nil || server.Name.Display != "HTTP@localhost" {
					t.Errorf("from %v", server)
				}
				rt.CloseIdleConnections() // so that the next has its own CONNECT
				if want := []int32{3, 3}[i]; name != "http" && d.Initiated.Load()-before != want {
					t.Errorf("%d steps, want %d", d.Initiated.Load()-before, want)
				}
			}
			if passed.Load() == 0 {
				t.Error("nothing has passed the proxy")
			}

			rt.Target = func(*url.URL) (interposer.Name, bool) { return interposer.Name{}, false }
			resp, err := post(rt)
			check(t, err)
			if read(t, resp); resp.StatusCode != http.StatusUnauthorized {
				t.Errorf("without authentication to the server: %s", resp.Status)
			}

			// One that the KDC does not know gets nothing, and the body is closed.
			poor := interposertest.Start(t)
			poor.Services = []string{"HTTP@localhost"}
			unknown := client(t, poor)
			unknown.Plain, unknown.Proxy, unknown.Base.Proxy = rt.Plain, true, rt.Base.Proxy
			for i := range 2 {
				body := newClosing(strings.NewReader("text"))
				resp, err := unknown.RoundTrip(request(t, "POST", base, body))
				// By plain http the body is gone when the proxy has asked first.
				refused := i == 0 && err == nil && resp.StatusCode == http.StatusProxyAuthRequired
				if err == nil {
					read(t, resp)
				}
				if !refused && (mech.ReasonOf(err) != reason.ServerUnknown || !strings.Contains(err.Error(), "proxy 127.0.0.1")) {
					t.Errorf("a proxy that the KDC does not know: %v", err)
				}
				body.wait(t)
			}

			silent, _ := proxy(t, d, false)
			resp, err = post(start(silent))
			check(t, err)
			if body := read(t, resp); !strings.HasPrefix(body, "hello, alice") {
				t.Errorf("a proxy that does not ask: %s %q", resp.Status, body)
			}

			for why, set := range map[string]func(*Transport){
				"Proxy is not set": func(rt *Transport) { rt.Proxy = false },
				"another's service": func(rt *Transport) {
					rt.Base.Proxy = http.ProxyURL(&url.URL{Scheme: "http", Host: "localhost:" + asking.Port()})
				},
			} {
				rt := start(asking)
				set(rt)
				resp, err := post(rt)
				if err == nil {
					read(t, resp)
				}
				if (err == nil) != (name == "http") || err == nil && resp.StatusCode != http.StatusProxyAuthRequired {
					t.Errorf("%s: %v, %v", why, resp, err)
				}
			}
		})
	}
}

// TestProxyChosenAnew: a token is for the proxy that gets it, also where Base chooses another one
// each time.
func TestProxyChosenAnew(t *testing.T) {
	d := interposertest.Start(t)
	at, _ := proxy(t, d, true)
	got := make(chan string, 10)
	other := serve(t, &http.Server{Handler: http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		got <- r.Header.Get("Proxy-Authorization")
	})})
	elsewhere, err := url.Parse(other)
	check(t, err)
	rt := client(t, d)
	rt.Proxy = true
	rt.Base.Proxy = http.ProxyURL(at)
	base := serve(t, &http.Server{Handler: hello})
	if resp, body := get(t, rt, base); resp.StatusCode != http.StatusOK { // it is known now that the proxy asks
		t.Fatalf("%s %q", resp.Status, body)
	}

	var n atomic.Int32
	changing := client(t, d)
	changing.Proxy, changing.asked = true, rt.asked
	changing.Base.Proxy = func(*http.Request) (*url.URL, error) {
		return []*url.URL{at, elsewhere}[n.Add(1)%2], nil
	}
	for range 4 {
		if resp, body := get(t, changing, base); resp.StatusCode != http.StatusOK {
			t.Errorf("%s %q", resp.Status, body)
		}
	}
	close(got)
	if len(got) == 0 {
		t.Error("the other proxy was not used")
	}
	for token := range got {
		if token != "" {
			t.Error("another proxy has got a token")
		}
	}
}

// TestProxyTLS: by plain http there is no channel to the server, whatever there is to the proxy.
func TestProxyTLS(t *testing.T) {
	d := interposertest.Start(t)
	tokens := make(chan []byte, 10)
	front := serve(t, &http.Server{
		TLSConfig: &tls.Config{Certificates: []tls.Certificate{certificate(t, ecdsaKey(t), x509.ECDSAWithSHA256, "localhost")}},
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if token, _ := credentials(r.Header.Values("Authorization")); token != nil {
				tokens <- token
				return
			}
			challenge(w, nil)
		}),
	})
	at, err := url.Parse(front)
	check(t, err)
	rt := client(t, d)
	rt.Base.ForceAttemptHTTP2 = false // which http.Transport does not speak to a proxy
	rt.OneWay, rt.Base.Proxy = true, http.ProxyURL(at)
	get(t, rt, "http://localhost/")
	if token := <-tokens; !bytes.Contains(token, []byte(`"Bindings":null`)) {
		t.Errorf("the token is bound to something: %s", token)
	}
}

// TestProxyBody sends a body that can be read once through a proxy that asks.
func TestProxyBody(t *testing.T) {
	d := interposertest.Start(t)
	at, _ := proxy(t, d, true)
	base := serveBy(t, "HTTP/1.1", &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.Copy(w, r.Body) })})
	rt := client(t, d)
	rt.Proxy, rt.Base.Proxy = true, http.ProxyURL(at)
	resp, err := rt.RoundTrip(request(t, "POST", base, io.MultiReader(strings.NewReader("text"))))
	check(t, err)
	if body := read(t, resp); body != "text" {
		t.Errorf("%s %q", resp.Status, body)
	}
}

// TestProxyHooks: what Base does with a CONNECT stays.
func TestProxyHooks(t *testing.T) {
	refusal := errors.New("refused by the program")
	var with http.Header
	base := &http.Transport{
		GetProxyConnectHeader:  func(context.Context, *url.URL, string) (http.Header, error) { return with, nil },
		OnProxyConnectResponse: func(context.Context, *url.URL, *http.Request, *http.Response) error { return refusal },
	}
	d := interposertest.Start(t)
	rt := &Transport{Daemon: d.Client(t), Cred: interposer.ServiceCred, Base: base, Proxy: true, asked: new(memory)}
	u := &url.URL{Scheme: "http", Host: "proxy:3128"}
	rt.asked.add(proxyPlace(u), known{})
	p := newPool(rt)
	with = http.Header{"A": {"b"}}
	h, err := p.GetProxyConnectHeader(t.Context(), u, "server:443")
	check(t, err)
	if h.Get("A") != "b" || !strings.HasPrefix(h.Get("Proxy-Authorization"), "Negotiate ") || len(with) != 1 {
		t.Errorf("%q of %q", h, with)
	}
	with = http.Header{"Proxy-Authorization": {"Basic YTpi"}}
	if h, err := p.GetProxyConnectHeader(t.Context(), u, "server:443"); err != nil || h.Get("Proxy-Authorization") != "Basic YTpi" {
		t.Errorf("%q, %v", h, err)
	}
	if err := p.OnProxyConnectResponse(t.Context(), u, nil, nil); err != refusal {
		t.Error(err)
	}
}
