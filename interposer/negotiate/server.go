package negotiate

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"sync"

	"gssproxyd/interposer"
	"gssproxyd/mech"
	"gssproxyd/mech/reason"
)

// Authenticator lets those through to a handler who prove who they are. A request without proof is answered
// 401 Unauthorized, one whose sender is not allowed 403 Forbidden, and while the daemon cannot help
// 503 Service Unavailable. Refusals are logged with the daemon's reason.
//
// The fields are not to be changed once requests are served.
type Authenticator struct {
	Daemon *interposer.Client

	// Require has the mech.Flag bits without which a request counts as one without proof.
	// mech.FlagChannelBound demands channel bindings; otherwise they are checked when the client
	// sends some.
	Require interposer.Flags

	// Allow decides whether the authenticated peer may make the request; the error is logged. nil:
	// everybody the daemon accepts.
	Allow func(r *http.Request, p *interposer.Peer) error

	// Delegate takes the credential that a client delegates: Peer.Delegated.
	Delegate bool

	// IgnoreBindings leaves the channel unchecked, for a server behind a proxy that ends the
	// clients' TLS and speaks TLS itself.
	IgnoreBindings bool

	Cred *interposer.Cred // nil: the one that the daemon's configuration says
	Log  *slog.Logger     // nil: slog.Default()
}

// Principals is for Authenticator.Allow: it lets only these through, such as "alice@EXAMPLE.COM".
func Principals(names ...string) func(*http.Request, *interposer.Peer) error {
	return func(_ *http.Request, p *interposer.Peer) error {
		if !slices.Contains(names, p.Name.Display) {
			return errors.New("not among the principals allowed")
		}
		return nil
	}
}

// Wrap returns a handler in front of next, which finds the client with ClientFrom.
func (h *Authenticator) Wrap(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { h.serve(w, r, next) })
}

func (h *Authenticator) serve(w http.ResponseWriter, r *http.Request, next http.Handler) {
	token, offered := credentials(r.Header.Values("Authorization"))
	if !offered {
		challenge(w, nil)
		return
	}
	sec, answer, err := h.accept(r, token)
	refusal, refused := errors.AsType[*mech.Error](err)
	switch {
	case refused && !serverFault(refusal):
		h.log(r, "refused", "reason", refusal.Reason, "error", err)
		challenge(w, refusal.Token)
		return
	case err != nil:
		h.log(r, "cannot authenticate", "error", err)
		http.Error(w, "authentication is not available", http.StatusServiceUnavailable)
		return
	case !sec.Established():
		challenge(w, answer)
		return
	}
	defer sec.Close()
	p, err := sec.Peer()
	if err != nil {
		h.log(r, "cannot authenticate", "error", err)
		http.Error(w, "authentication is not available", http.StatusServiceUnavailable)
		return
	}
	if missing := h.Require &^ p.Flags; missing != 0 {
		h.log(r, "refused", "principal", p.Name.Display, "error", "the context lacks: "+missing.String())
		challenge(w, nil)
		return
	}
	if len(answer) > 0 {
		w.Header().Set("WWW-Authenticate", say(answer))
	}
	if h.Allow != nil {
		if err := h.Allow(r, p); err != nil {
			h.log(r, "not allowed", "principal", p.Name.Display, "error", err)
			http.Error(w, "not allowed", http.StatusForbidden)
			return
		}
	}
	next.ServeHTTP(w, r.WithContext(NewContext(r.Context(), p)))
}

func challenge(w http.ResponseWriter, token []byte) {
	w.Header().Set("WWW-Authenticate", say(token))
	http.Error(w, "authentication is required", http.StatusUnauthorized)
}

// serverFault reports whether what is refused is this server and not its client.
func serverFault(e *mech.Error) bool {
	switch e.Major.Routine() {
	case mech.NoCred, mech.DefectiveCredential, mech.Unavailable:
		return true
	}
	return e.Reason == reason.ReplayCache || e.Reason == reason.NoKeytab
}

func (h *Authenticator) log(r *http.Request, msg string, args ...any) {
	log := h.Log
	if log == nil {
		log = slog.Default()
	}
	log.WarnContext(r.Context(), "negotiate: "+msg, append([]any{"client", r.RemoteAddr, "path", r.URL.Path}, args...)...)
}

// accept takes one token.
func (h *Authenticator) accept(r *http.Request, token []byte) (sec *interposer.SecContext, answer []byte, err error) {
	if token == nil {
		return nil, nil, defective("there is no token, or it is not base64")
	}
	req := interposer.AcceptRequest{Token: token, Cred: h.Cred, Delegate: h.Delegate}
	c, several := r.Context().Value(connKey{}).(*conn)
	if !several {
		c = new(conn)
	}
	if r.ProtoMajor > 1 { // requests come in any order, several at a time
		c, several = &conn{bindings: c.endPoint()}, false
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	half := c.half
	c.half = nil
	if !h.IgnoreBindings {
		req.Bindings = c.bindings
	}
	if token[0] == negTokenResp {
		if half == nil {
			return nil, nil, defective("the token continues what was not begun on this connection")
		}
		sec = half
	} else if half != nil {
		half.Close()
	}
	ctx, cancel := context.WithTimeout(r.Context(), callTimeout)
	defer cancel()
	if sec != nil {
		answer, err = sec.Step(ctx, token)
	} else {
		sec, answer, err = h.Daemon.AcceptSecContext(ctx, req)
	}
	if err != nil || sec.Established() {
		return sec, answer, err
	}
	if !several {
		sec.Close()
		return nil, nil, defective("the client wants to negotiate in several requests, which takes HTTP/1 and a server that was given to Bind")
	}
	c.half = sec
	return sec, answer, nil
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
