package negotiate

// This file has what a program sees of the client's end: Transport, and which requests are to be
// authenticated. exchange.go has how that goes, pool.go the connections, proxy.go the proxies.

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"

	"gssproxyd/interposer"
)

// Transport is an http.RoundTripper that authenticates to servers that ask for it, and has them
// prove who they are. It is for one credential, may be used by any number of goroutines, and is to
// be kept: it has connections, and knows which servers ask. Its fields are not to be changed once it
// is used.
//
// Tokens go to servers that ask, by https, and by plain http to those in Plain only: who reads or
// changes what is sent by plain http can use the token in the client's place. A server that has
// asked, and proven itself, gets a token with the first request from then on, but for requests with
// cookies, which may be a session's: with those it is only asked again where it has asked for a
// token nonetheless, and set no cookie.
//
// A request that a redirect leads to another server gets no token: who is asked is for the program
// to say, not for a server. What counts as the same server is the same scheme, host and port, or
// the same host by https instead of http. A request that carries an Authorization header is sent as
// it is, as one without authentication of ours.
//
// What a server that has asked answers without proof is an error, unless the answer is one itself
// (a status of 400 and above). [ServerFrom] is the server that has proven itself, with the flags
// that were granted; nil if none has, which is so wherever no authentication was asked for. A
// program that must know who has answered looks at it.
//
// Some servers take whatever comes by a connection as sent by the user who has authenticated on it
// (RFC 4559, section 6: IIS does, and Apache with GssapiConnectionBound). So the connections of a
// Transport are its own, and those that may carry its authentication are never used for requests
// without.
//
// A request with a body may have to be sent twice, which takes Request.GetBody, or that the body was
// not sent when the server asked: see to that with the header "Expect: 100-continue". The server's
// 401 is returned otherwise.
type Transport struct {
	Daemon *interposer.Client // required
	Cred   *interposer.Cred   // as whom: interposer.ServiceCred, or a user's (see As); required

	// Base has the settings of the connections: proxies, TLS, limits. nil: those of
	// http.DefaultTransport. Its own connections are not used, nor are ours by others. Where it sets
	// no IdleConnTimeout there is one of 90 seconds, and no ExpectContinueTimeout one of a second.
	Base *http.Transport

	// Plain lists the hosts that get tokens by plain http: "intranet.example.com" is one host,
	// ".example.com" are all whose names end so. By https all do that ask.
	Plain []string

	// Target names the service that is at a URL, and whether to authenticate to it. nil: HTTP@host,
	// everywhere.
	Target func(u *url.URL) (service interposer.Name, ok bool)

	// Preemptive sends a token with the first request to a server, and not when it has asked. It is
	// not bound to the channel, which does not exist yet; when it is refused, or not enough (401 or
	// 403), one more is sent that is. Where no token can be had the request goes without, and fails
	// if the server asks.
	Preemptive bool

	// Flags are mech.Flag bits to ask for besides mech.FlagMutual. To let servers act for the user
	// mech.FlagDelegPolicy is recommended: it delegates to those that the KDC trusts to
	// (ok-as-delegate), where mech.FlagDeleg does to every server that gets a token. What was granted
	// is in ServerFrom(resp).Flags.
	Flags interposer.Flags

	OneWay         bool // the server need not prove who it is
	IgnoreBindings bool // for a server behind a proxy that ends TLS

	// Proxy authenticates to the proxies in Base that ask for it, as HTTP@proxy. They need not prove
	// who they are, and nothing is delegated to them.
	Proxy bool

	once    sync.Once
	made    *interposer.Cred // Cred when the connections were made
	renewed atomic.Pointer[interposer.Cred]
	pools   *pools
	asked   *memory
}

// ErrNotDelegated is what As returns for a client that has delegated no credential.
var ErrNotDelegated = errors.New("negotiate: the client has delegated no credential")

// As returns a Transport with the same settings that acts as a client of this program's: with the
// credential that p has delegated. The error is ErrNotDelegated if there is none: the client did not
// delegate, Authenticator.Delegate is not set, or the daemon's configuration filters delegation out.
//
// It has connections of its own, so the first request to each server costs a connection and a TLS
// handshake; which servers ask it knows from t. Keep it as long as there are requests to be made for
// the client, the incoming request or the session, but not beyond p.Expires, and call
// CloseIdleConnections then: what is not closed ends by itself, after IdleConnTimeout.
func (t *Transport) As(p *interposer.Peer) (*Transport, error) {
	if p == nil {
		return nil, fmt.Errorf("%w: nobody has authenticated", ErrNotDelegated)
	}
	if p.Delegated == nil {
		return nil, fmt.Errorf("%w (%s)", ErrNotDelegated, p)
	}
	t.init()
	return &Transport{
		Daemon: t.Daemon, Cred: p.Delegated, Base: t.Base, Plain: t.Plain, Target: t.Target, Preemptive: t.Preemptive,
		Flags: t.Flags, OneWay: t.OneWay, IgnoreBindings: t.IgnoreBindings, Proxy: t.Proxy,
		asked: t.asked,
	}, nil
}

// init makes what belongs to a Transport. As has set what it shares.
func (t *Transport) init() {
	t.once.Do(func() {
		t.made = t.Cred
		if t.asked == nil {
			t.asked = new(memory)
		}
		t.pools = newPools(t)
	})
}

// usable says what is missing, or wrong.
func (t *Transport) usable() error {
	switch {
	case t.Daemon == nil:
		return errors.New("negotiate: Transport.Daemon is nil: set it to what interposer.New returns")
	case t.Cred == nil:
		return errors.New("negotiate: Transport.Cred is nil: set it to interposer.ServiceCred to act as the program itself; As is for acting as a user")
	}
	if t.init(); t.made != t.Cred {
		return errors.New("negotiate: Transport.Cred was changed after the Transport was used, and its connections may carry the former one: make a Transport for each credential")
	}
	return nil
}

// CloseIdleConnections closes the connections that are not used now; those of Base are not touched.
func (t *Transport) CloseIdleConnections() {
	t.init()
	t.pools.closeIdle()
}

// RoundTrip implements http.RoundTripper. What the daemon or the server refuses is a *[mech.Error],
// and only where the server does not say why its 401 is returned.
func (t *Transport) RoundTrip(req *http.Request) (*http.Response, error) {
	if err := t.usable(); err != nil {
		if req.Body != nil {
			req.Body.Close()
		}
		return nil, err
	}
	e := newExchange(t, req)
	defer e.end()
	resp, err := e.run()
	if err != nil {
		return nil, err
	}
	p, err := e.verify(resp)
	if err != nil {
		resp.Body.Close()
		return nil, err
	}
	e.cookies.hand(resp)
	resp.Request = req
	// The request's context may be of another response, and have its server.
	if p != nil || req.Context().Value(serverKey{}) != nil {
		resp.Request = req.WithContext(context.WithValue(req.Context(), serverKey{}, p))
	}
	return resp, nil
}

// target returns whom to authenticate to; ok is false if nobody.
func (t *Transport) target(req *http.Request) (n interposer.Name, ok bool) {
	if req.URL == nil || req.Header.Get("Authorization") != "" || !sameServer(req) {
		return n, false
	}
	if t.Target != nil {
		return t.Target(req.URL)
	}
	host := req.URL.Hostname()
	return interposer.HostbasedName("HTTP", host), host != ""
}

// safe reports whether tokens may be sent to where the URL is.
func (t *Transport) safe(u *url.URL) bool {
	if u.Scheme != "http" || u.Host == "" {
		return u.Scheme == "https"
	}
	host := strings.ToLower(u.Hostname())
	for _, allowed := range t.Plain {
		allowed = strings.ToLower(allowed)
		if host == allowed || strings.HasPrefix(allowed, ".") && strings.HasSuffix(host, allowed) {
			return true
		}
	}
	return false
}

// sameServer reports whether a request goes to the server that the program named: that of the first
// request, if there were redirects.
func sameServer(req *http.Request) bool {
	first := req
	for first.Response != nil {
		if first = first.Response.Request; first == nil {
			return false // who sent us here is not known
		}
	}
	from, to := first.URL, req.URL
	if !strings.EqualFold(from.Hostname(), to.Hostname()) {
		return false
	}
	if from.Scheme == "http" && to.Scheme == "https" {
		return true
	}
	return from.Scheme == to.Scheme && port(from) == port(to)
}

func port(u *url.URL) string {
	if p := u.Port(); p != "" {
		return p
	}
	return map[string]string{"http": "80", "https": "443"}[u.Scheme]
}
