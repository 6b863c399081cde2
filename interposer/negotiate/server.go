package negotiate

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"path"
	"slices"
	"strings"
	"sync"
	"time"

	"gssproxyd/interposer"
	"gssproxyd/mech"
	"gssproxyd/mech/reason"
)

// Authenticator lets those through to a handler who prove who they are. A request without proof is
// answered 401 Unauthorized, one whose sender may not make it 403 Forbidden, and while the daemon
// cannot help 503 Service Unavailable. Nobody is anonymous (RFC 8062): that is 403. Refusals are
// logged with the daemon's reason.
//
// Its challenge is one among others: WWW-Authenticate headers that are set already stay.
//
// The fields are not to be changed once requests are served.
type Authenticator struct {
	Daemon *interposer.Client // required
	Cred   *interposer.Cred   // what accepts; nil: the one that the daemon's configuration says

	// Require has the mech.Flag bits without which a client may not make a request, which is answered
	// 403. mech.FlagChannelBound demands channel bindings; otherwise they are checked when the client
	// sends some.
	Require interposer.Flags

	// Allow decides whether the authenticated peer may make the request; the error is logged, and not
	// shown to the client. nil: everybody the daemon accepts may.
	Allow func(r *http.Request, p *interposer.Peer) error

	// Delegate takes the credential that a client delegates: Peer.Delegated, for Transport.As. With a
	// CookieSession only the request that has brought the token has it.
	Delegate bool

	// Optional lets requests through that bring no Negotiate credentials: ClientFrom is nil then. If
	// the handler wants some after all it answers 401 with the header "WWW-Authenticate: Negotiate".
	// Credentials that are refused are answered 401 nonetheless.
	Optional bool

	// Skip says which requests are not looked at: they reach the handler as they are, and ClientFrom
	// is nil. It is for paths and methods that are for everybody; see Preflight. It is not asked about
	// a path such as /public/../private, which a handler may read as another one: requests for those
	// are always looked at. A token that a request brings is still good, as nobody has looked at it:
	// a reverse proxy does not pass it on to whom it does not trust. nil: none.
	Skip func(r *http.Request) bool

	// Bindings returns the channel bindings of a request, for TLS that is ended elsewhere: EndPoint of
	// the certificate that is shown there, or nil if there are none. What it learns of a header it
	// has to know to be the proxy's, and not the client's. nil: what Bind has found.
	Bindings func(r *http.Request) *interposer.ChannelBindings

	// IgnoreBindings leaves the channel unchecked, for a server behind a proxy whose certificate it
	// does not know.
	IgnoreBindings bool

	// Unauthorized and Forbidden write the pages for 401 and 403, whose status they need not set:
	// nothing else can be answered there. The headers of a challenge are set before; Unauthorized may
	// add that of another scheme. Forbidden finds the client with ClientFrom. nil: a line of text.
	Unauthorized, Forbidden http.Handler

	// Session remembers who has authenticated, so that the next request needs no token. One that
	// brings a token nonetheless begins anew: its client wants the server's proof. Require and Allow
	// are asked on every request. nil: nobody is remembered. See CookieSession for what a client of a
	// session lacks.
	Session Session

	Log *slog.Logger // nil: slog.Default()
}

// Principals is for Authenticator.Allow: it lets only these through, which are named with their
// realms, such as "alice@EXAMPLE.COM".
func Principals(names ...string) func(*http.Request, *interposer.Peer) error {
	return func(_ *http.Request, p *interposer.Peer) error {
		if !slices.Contains(names, p.Name.Display) {
			return errors.New("not among the principals allowed")
		}
		return nil
	}
}

// Preflight is for Authenticator.Skip: it reports whether a request is a browser's question whether
// a page of another origin may make the one that it has in mind. Browsers ask it without
// credentials. The handler has to answer it.
func Preflight(r *http.Request) bool {
	return r.Method == http.MethodOptions && r.Header.Get("Origin") != "" && r.Header.Get("Access-Control-Request-Method") != ""
}

// Wrap returns a handler in front of next, which finds the client with ClientFrom, and which does
// not see the client's token, nor the cookie of a CookieSession. Without Daemon, without next, and
// with a CookieSession that cannot work it panics.
//
// A client that is in a request's context already, put there by an Authenticator further out or by
// NewContext, is not asked again: only Require and Allow are.
func (a *Authenticator) Wrap(next http.Handler) http.Handler {
	switch {
	case a == nil || a.Daemon == nil:
		panic("negotiate: Authenticator.Daemon is nil: it has to be a client of the daemon, from interposer.New")
	case next == nil:
		panic("negotiate: Wrap(nil): it takes the handler that authenticated requests are for")
	}
	if c, ok := a.Session.(*CookieSession); ok {
		if err := c.check(); err != nil {
			panic(err.Error())
		}
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if a.Skip == nil || !clean(r.URL.Path) || !a.Skip(r) {
			if r = a.authenticate(w, r); r == nil {
				return // answered
			}
		}
		next.ServeHTTP(w, r)
	})
}

// clean reports whether a path is as path.Clean would have it, but for a slash at its end. One that
// http.StripPrefix has left may have none at its beginning.
func clean(p string) bool {
	if !strings.HasPrefix(p, "/") {
		p = "/" + p
	}
	c := path.Clean(p)
	return c == p || c != "/" && c+"/" == p
}

// authenticate returns the request for the handler, with the client in it, or nil if it is answered.
func (a *Authenticator) authenticate(w http.ResponseWriter, r *http.Request) *http.Request {
	token, offered := credentials(r.Header.Values("Authorization"))
	p, fresh := ClientFrom(r.Context()), false
	switch {
	case p != nil:
	case offered:
		if p = a.accept(w, r, token); p == nil {
			return nil
		}
		fresh = true
	default:
		if p = a.load(r); p != nil {
			private(w)
			break
		}
		if a.Optional {
			return r
		}
		a.challenge(w, r, nil)
		return nil
	}
	r = r.WithContext(NewContext(r.Context(), p))
	if offered {
		r.Header = withoutToken(r.Header)
	}
	if c, ok := a.Session.(*CookieSession); ok {
		r.Header = c.without(r.Header)
	}
	if !a.allowed(w, r, p) {
		return nil
	}
	if fresh && a.Session != nil {
		if err := a.Session.Save(w, r, p); err != nil {
			a.log(r, "no session", "principal", p.Name.Display, "error", err)
		}
		private(w)
	}
	return r
}

// allowed reports whether a client may make the request, which is answered if not.
func (a *Authenticator) allowed(w http.ResponseWriter, r *http.Request, p *interposer.Peer) bool {
	if anonymous(&p.Name) {
		a.log(r, "not allowed", "principal", p.Name.Display, "error", "the client is anonymous")
		answer(w, r, http.StatusForbidden, a.Forbidden, "not allowed")
		return false
	}
	if missing := a.Require &^ p.Flags; missing != 0 {
		text := "the authentication lacks: " + missing.String()
		a.log(r, "not allowed", "principal", p.Name.Display, "error", text)
		answer(w, r, http.StatusForbidden, a.Forbidden, text)
		return false
	}
	if a.Allow == nil {
		return true
	}
	if err := a.Allow(r, p); err != nil {
		a.log(r, "not allowed", "principal", p.Name.Display, "error", err)
		answer(w, r, http.StatusForbidden, a.Forbidden, "not allowed")
		return false
	}
	return true
}

// anonymous reports whether a name is nobody's. An anonymous ticket may say the realm.
func anonymous(n *interposer.Name) bool {
	return n.Display == "" || n.Type == mech.NTAnonymous || strings.HasPrefix(n.Display, "WELLKNOWN/ANONYMOUS@")
}

// load returns the client of the request's session, nil if there is none.
func (a *Authenticator) load(r *http.Request) *interposer.Peer {
	if a.Session == nil {
		return nil
	}
	p, err := a.Session.Load(r)
	if err != nil && r.Context().Err() == nil {
		a.log(r, "cannot load the session", "error", err)
	}
	if err != nil || p == nil || !p.Expires.IsZero() && !p.Expires.After(time.Now()) {
		return nil
	}
	return p
}

// private keeps the answer to one user out of caches that others share: without an Authorization
// header they do not know that it is one. The handler may set something else.
func private(w http.ResponseWriter) {
	if h := w.Header(); h.Get("Cache-Control") == "" {
		h.Set("Cache-Control", "private")
	}
}

// withoutToken returns a copy of a request's header without Negotiate credentials: they are for us,
// and a handler that passes requests on must not pass them on.
func withoutToken(h http.Header) http.Header {
	const name = "Authorization"
	clean := maps.Clone(h)
	delete(clean, name)
	for _, v := range h[name] {
		if _, ours := credentials([]string{v}); !ours {
			clean.Add(name, v)
		}
	}
	return clean
}

func (a *Authenticator) challenge(w http.ResponseWriter, r *http.Request, token []byte) {
	w.Header().Add("WWW-Authenticate", say(token))
	answer(w, r, http.StatusUnauthorized, a.Unauthorized, "authentication is required")
}

// answer answers with a page, or with a text if there is none.
func answer(w http.ResponseWriter, r *http.Request, status int, page http.Handler, text string) {
	if page == nil {
		http.Error(w, text, status)
		return
	}
	fixed := &fixedStatus{ResponseWriter: w, status: status}
	page.ServeHTTP(fixed, r)
	if !fixed.wrote {
		fixed.WriteHeader(status)
	}
}

// fixedStatus is for a page whose status is not its own to choose.
type fixedStatus struct {
	http.ResponseWriter
	status int
	wrote  bool
}

func (f *fixedStatus) WriteHeader(status int) {
	if status >= 200 {
		f.wrote, status = true, f.status
	}
	f.ResponseWriter.WriteHeader(status)
}

func (f *fixedStatus) Write(b []byte) (int, error) {
	if !f.wrote {
		f.WriteHeader(f.status)
	}
	return f.ResponseWriter.Write(b)
}

// FlushError is for http.ResponseController, which would have another status sent.
func (f *fixedStatus) FlushError() error {
	if !f.wrote {
		f.WriteHeader(f.status)
	}
	return http.NewResponseController(f.ResponseWriter).Flush()
}

// Unwrap is for http.ResponseController.
func (f *fixedStatus) Unwrap() http.ResponseWriter { return f.ResponseWriter }

// serverFault reports whether what is refused is this server and not its client.
func serverFault(e *mech.Error) bool {
	switch e.Major.Routine() {
	case mech.NoCred, mech.DefectiveCredential, mech.Unavailable:
		return true
	}
	return e.Reason == reason.ReplayCache || e.Reason == reason.NoKeytab
}

func (a *Authenticator) log(r *http.Request, msg string, args ...any) {
	log := a.Log
	if log == nil {
		log = slog.Default()
	}
	log.WarnContext(r.Context(), "negotiate: "+msg, append([]any{"client", r.RemoteAddr, "path", r.URL.Path}, args...)...)
}

// statusClientGone is what proxies log of a client that has closed the connection. Nobody gets it
// but the handlers around this one, who would otherwise note a success.
const statusClientGone = 499

// accept takes one token and returns who has sent it, or nil if the request is answered.
func (a *Authenticator) accept(w http.ResponseWriter, r *http.Request, token []byte) *interposer.Peer {
	p, reply, err := a.step(r, token)
	refusal, refused := errors.AsType[*mech.Error](err)
	switch {
	case refused && !serverFault(refusal):
		a.log(r, "refused", "reason", refusal.Reason, "error", err)
		a.challenge(w, r, refusal.Token)
		return nil
	case err != nil && !refused && r.Context().Err() != nil:
		w.WriteHeader(statusClientGone)
		return nil
	case err != nil:
		a.log(r, "cannot authenticate", "error", err)
		http.Error(w, "authentication is not available", http.StatusServiceUnavailable)
		return nil
	case p == nil:
		a.challenge(w, r, reply)
		return nil
	}
	if len(reply) > 0 {
		w.Header().Add("WWW-Authenticate", say(reply))
	}
	return p
}

// step takes one token and returns the next one for the client, and who that is once it is known.
func (a *Authenticator) step(r *http.Request, token []byte) (p *interposer.Peer, reply []byte, err error) {
	if token == nil {
		return nil, nil, defective("there is no token, or it is not base64")
	}
	c, several := r.Context().Value(connKey{}).(*conn)
	if !several {
		c = new(conn)
	}
	if r.ProtoMajor > 1 { // requests come in any order, several at a time
		c, several = &conn{bindings: c.endPoint()}, false
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	sec := c.half
	c.half = nil
	if sec != nil && (token[0] != negTokenResp || c.by != a) {
		sec.Close()
		sec = nil
	}
	if sec == nil && token[0] == negTokenResp {
		return nil, nil, defective("the token continues what was not begun on this connection, with this Authenticator")
	}
	ctx, cancel := context.WithTimeout(r.Context(), callTimeout)
	defer cancel()
	if sec != nil {
		reply, err = sec.Step(ctx, token)
	} else {
		sec, reply, err = a.Daemon.AcceptSecContext(ctx, interposer.AcceptRequest{
			Token: token, Cred: a.Cred, Delegate: a.Delegate, Bindings: a.bindings(r, c),
		})
	}
	switch {
	case err != nil:
		return nil, nil, err
	case sec.Established():
		defer sec.Close()
		p, err = sec.Peer()
		return p, reply, err
	case !several:
		sec.Close()
		return nil, nil, defective("the client wants to negotiate in several requests, which takes HTTP/1 and a server that was given to Bind")
	}
	c.half, c.by = sec, a
	return nil, reply, nil
}

// bindings returns those of a request that came by c, which is locked.
func (a *Authenticator) bindings(r *http.Request, c *conn) *interposer.ChannelBindings {
	switch {
	case a.IgnoreBindings:
		return nil
	case a.Bindings != nil:
		return a.Bindings(r)
	}
	return c.bindings
}

// negTokenResp begins the second and later tokens of a negotiation (RFC 4178 section 4.2): [1] in
// DER.
const negTokenResp = 0xa1

func defective(text string) *mech.Error {
	return mech.Errorf(mech.DefectiveToken, 0, reason.DefectiveToken, "%s", text).Of("")
}

// conn is what belongs to one connection of a server.
type conn struct {
	mu       sync.Mutex
	half     *interposer.SecContext      // to be continued by the next request
	by       *Authenticator              // which has begun half, with its Cred and Bindings
	bindings *interposer.ChannelBindings // nil: there are none
}

func (c *conn) endPoint() *interposer.ChannelBindings {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.bindings
}

type connKey struct{}

// Bind prepares a server, before it serves, for what concerns its connections: contexts that take
// more than one request, which happens when the client offers another mechanism before Kerberos,
// and channel bindings over TLS.
//
// For the latter the certificates have to be in s.TLSConfig, not in files that are named to
// ServeTLS. TLS sessions are not resumed then, because a session does not tell which certificate it
// began with.
func Bind(s *http.Server) {
	if s == nil {
		panic("negotiate: Bind(nil): it takes the server that is to serve")
	}
	next := s.ConnContext
	s.ConnContext = func(ctx context.Context, c net.Conn) context.Context {
		if next != nil {
			ctx = next(ctx, c)
		}
		return context.WithValue(ctx, connKey{}, new(conn))
	}
	if s.TLSConfig != nil {
		s.TLSConfig = bindTLS(s.TLSConfig)
	}
}

// bindTLS returns a configuration that notes which certificate a connection shows. The handshake's
// context is the connection's.
func bindTLS(of *tls.Config) *tls.Config {
	c := of.Clone()
	if of.GetConfigForClient != nil {
		c.GetConfigForClient = func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
			special, err := of.GetConfigForClient(hello)
			if special == nil || err != nil {
				return special, err
			}
			return bindTLS(special), nil
		}
	}
	if of.GetCertificate == nil && len(of.Certificates) == 0 {
		return c
	}
	c.SessionTicketsDisabled = true
	c.Certificates = nil
	c.GetCertificate = func(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
		cert, err := choose(of, hello)
		if c, ok := hello.Context().Value(connKey{}).(*conn); ok && err == nil {
			c.mu.Lock()
			defer c.mu.Unlock()
			c.bindings = endPointOf(cert)
		}
		return cert, err
	}
	return c
}

// choose chooses the certificate as package tls documents it.
func choose(c *tls.Config, hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
	if c.GetCertificate != nil && (len(c.Certificates) == 0 || hello.ServerName != "") {
		if cert, err := c.GetCertificate(hello); cert != nil || err != nil {
			return cert, err
		}
	}
	for i := range c.Certificates {
		if cert := &c.Certificates[i]; hello.SupportsCertificate(cert) == nil {
			return cert, nil
		}
	}
	if len(c.Certificates) == 0 {
		return nil, errors.New("negotiate: no certificate for this connection")
	}
	return &c.Certificates[0], nil
}

func endPointOf(cert *tls.Certificate) *interposer.ChannelBindings {
	leaf := cert.Leaf
	if leaf == nil {
		if len(cert.Certificate) == 0 {
			return nil
		}
		var err error
		if leaf, err = x509.ParseCertificate(cert.Certificate[0]); err != nil {
			return nil
		}
	}
	return EndPoint(leaf)
}
