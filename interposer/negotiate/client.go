package negotiate

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"sync"

	"gssproxyd/interposer"
	"gssproxyd/mech"
	"gssproxyd/mech/reason"
)

// Transport is an http.RoundTripper that authenticates to servers that ask for it, and has them
// prove who they are. It may be used by any number of goroutines.
//
// A request that a redirect leads to another server gets no token: who is asked is for the program
// to say, not for a server. What counts as the same server is the same scheme, host and port, or
// the same host by https instead of http.
//
// What a server answers without proof is an error, unless the answer is one itself (a status of 400
// and above). ServerFrom(resp) is the server that has proven itself, nil if none
// has.
//
// A request that carries an Authorization header is sent as it is.
type Transport struct {
	Daemon *interposer.Client
	Cred   *interposer.Cred // as whom: interposer.ServiceCred, or a user's; required

	// Base has the settings of the connections: proxies, TLS, limits. nil: those of
	// http.DefaultTransport. Its own connections are not used, nor are ours by others.
	Base *http.Transport

	// Target names the service that is at a URL, and whether to authenticate to it. nil: HTTP@host,
	// everywhere.
	Target func(u *url.URL) (service interposer.Name, ok bool)

	// Plain lists the hosts, and with a leading dot the domains, that get tokens by plain http.
	Plain []string

	// Preemptive sends a token with the first request and not when the server has asked. It is not
	// bound to the channel, which does not exist yet; when it is refused one more is sent that is.
	//
	// Without it a request with a body is sent twice, which takes Request.GetBody; the server's 401
	// is returned if that is missing.
	Preemptive bool

	Flags          interposer.Flags // mech.Flag bits to ask for besides mech.FlagMutual, such as mech.FlagDeleg
	OneWay         bool             // the server need not prove who it is
	IgnoreBindings bool             // for a server behind a proxy that ends TLS

	once sync.Once
	pool *http.Transport
}

// CloseIdleConnections closes those of Base, as http.Client has it.
func (t *Transport) CloseIdleConnections() {
	t.base().CloseIdleConnections()
}

func (t *Transport) base() *http.Transport {
	t.once.Do(func() {
		if t.Base == nil {
			t.pool = http.DefaultTransport.(*http.Transport).Clone()
		} else {
			t.pool = t.Base.Clone()
		}
	})
	return t.pool
}

// RoundTrip implements http.RoundTripper. What the daemon or the server refuses is a *[mech.Error],
// and only where the server does not say why its 401 is returned.
func (t *Transport) RoundTrip(req *http.Request) (*http.Response, error) {
	target, ok := t.target(req)
	if !ok {
		return t.base().RoundTrip(req)
	}
	e := exchange{t: t, req: req, target: target}
	defer func() {
		if e.sec != nil {
			e.sec.Close()
		}
	}()
	resp, err := e.run()
	if err != nil {
		return nil, err
	}
	p, err := e.verify(resp)
	if err != nil {
		resp.Body.Close()
		return nil, err
	}
	resp.Request = req
	if p != nil {
		resp.Request = req.WithContext(context.WithValue(req.Context(), serverKey{}, p))
	}
	return resp, nil
}

// target returns whom to authenticate to; ok is false if nobody.
func (t *Transport) target(req *http.Request) (n interposer.Name, ok bool) {
	if req.Header.Get("Authorization") != "" || !sameServer(req) {
		return n, false
	}
	if t.Target != nil {
		return t.Target(req.URL)
	}
	host := req.URL.Hostname()
	return interposer.HostbasedName("HTTP", host), host != ""
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

// exchange is one request with the context that authenticates it.
type exchange struct {
	t      *Transport
	req    *http.Request
	target interposer.Name
	sec    *interposer.SecContext // nil: not begun
	bound  *interposer.ChannelBindings
	sent   bool // the request, and so its body
}

// legs is how many tokens are sent before giving up: Kerberos needs one, and three when another
// mechanism is offered before it.
const legs = 5

// run sends the request until the server does not answer 401, or cannot be helped.
func (e *exchange) run() (*http.Response, error) {
	var token []byte
	var err error
	early := e.t.Preemptive
	if early {
		if token, err = e.step(nil); err != nil {
			if e.req.Body != nil {
				e.req.Body.Close()
			}
			return nil, err
		}
	}
	for n := 0; ; n++ {
		resp, err := e.send(token)
		if err != nil || resp.StatusCode != http.StatusUnauthorized {
			return resp, err
		}
		answer, offered := credentials(resp.Header.Values("WWW-Authenticate"))
		if !offered || n == legs || !e.again() {
			return resp, nil
		}
		if e.sec != nil && answer == nil {
			if !early {
				return resp, nil // refused
			}
			e.sec.Close()
			e.sec = nil
		}
		early = false
		if e.sec == nil {
			answer = nil
			if !e.t.IgnoreBindings && resp.TLS != nil && len(resp.TLS.PeerCertificates) > 0 {
				e.bound = EndPoint(resp.TLS.PeerCertificates[0])
			}
		}
		if token, err = e.step(answer); err != nil {
			resp.Body.Close()
			return nil, err
		}
		if len(token) == 0 {
			return resp, nil // it has what we can say
		}
		// What is read to its end leaves the connection for the next request.
		io.CopyN(io.Discard, resp.Body, 64<<10)
		resp.Body.Close()
	}
}

// again reports whether the request can be sent once more.
func (e *exchange) again() bool {
	return e.req.Body == nil || e.req.Body == http.NoBody || e.req.GetBody != nil
}

// send sends the request with a token, if there is one.
func (e *exchange) send(token []byte) (*http.Response, error) {
	req := e.req
	if token != nil {
		req = req.Clone(req.Context())
		req.Header.Set("Authorization", say(token))
	}
	if e.sent && e.req.GetBody != nil {
		body, err := e.req.GetBody()
		if err != nil {
			return nil, err
		}
		req.Body = body
	}
	e.sent = true
	return e.t.base().RoundTrip(req)
}

// step takes the server's token, nil to begin, and returns the next one.
func (e *exchange) step(answer []byte) ([]byte, error) {
	ctx, cancel := context.WithTimeout(e.req.Context(), callTimeout)
	defer cancel()
	var token []byte
	var err error
	if e.sec != nil {
		token, err = e.sec.Step(ctx, answer)
	} else {
		r := interposer.InitRequest{Target: e.target, Mech: mech.SPNEGO, Flags: e.t.Flags, Cred: e.t.Cred, Bindings: e.bound}
		if !e.t.OneWay {
			r.Flags |= mech.FlagMutual
		}
		e.sec, token, err = e.t.Daemon.InitSecContext(ctx, r)
	}
	if err != nil {
		return nil, e.fail(err)
	}
	return token, nil
}

func (e *exchange) fail(err error) error { return fmt.Errorf("negotiate: %s: %w", e.req.URL.Host, err) }

// verify checks what the server has sent with its answer, and returns who it is if it has proven
// that.
func (e *exchange) verify(resp *http.Response) (*interposer.Peer, error) {
	if e.sec == nil || resp.StatusCode == http.StatusUnauthorized {
		return nil, nil
	}
	if answer, _ := credentials(resp.Header.Values("WWW-Authenticate")); answer != nil && !e.sec.Established() {
		if _, err := e.step(answer); err != nil {
			return nil, err
		}
	}
	if e.sec.Established() && e.sec.Flags().Has(mech.FlagMutual) {
		return e.sec.Peer()
	}
	if e.t.OneWay || resp.StatusCode >= http.StatusBadRequest {
		return nil, nil
	}
	return nil, e.fail(mech.Errorf(mech.Failure, 0, reason.MutualFailed, "the server has not proven who it is").Of(""))
}
