package negotiate

// This file has how one request is authenticated: it is sent until the server does not ask any more,
// or cannot be helped, with a token of one context each time.

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/cookiejar"
	"net/url"
	"slices"

	"gssproxyd/interposer"
	"gssproxyd/mech"
	"gssproxyd/mech/reason"
)

// exchange is one request with the context that authenticates it.
type exchange struct {
	t       *Transport
	req     *http.Request
	body    requestBody
	cookies cookies

	pool     *http.Transport
	target   interposer.Name
	may      bool // authenticate to the target
	insecure bool // and would, but for plain http

	sec   *interposer.SecContext // nil: not begun
	bound *interposer.ChannelBindings
	asked bool  // by the server, in this exchange
	early error // why there was no token before it asked

	proxy   *url.URL // gets the request itself, and may have a token; nil: there is none
	proxied bool     // the last leg had a token for the proxy
}

func newExchange(t *Transport, req *http.Request) *exchange {
	e := &exchange{t: t, req: req, body: newRequestBody(req), pool: t.pools.without}
	target, ok := t.target(req)
	switch {
	case ok && t.safe(req.URL):
		e.target, e.may, e.pool = target, true, t.pools.with
	case ok:
		e.insecure = true
	}
	if t.Proxy && req.Header.Get("Proxy-Authorization") == "" {
		e.proxy = proxyFor(e.pool, req)
	}
	return e
}

// end ends what is left of the exchange.
func (e *exchange) end() {
	e.drop()
	e.body.end()
}

// drop ends the context.
func (e *exchange) drop() {
	if e.sec != nil {
		e.sec.Close()
		e.sec = nil
	}
}

// legs is how many times a request is sent again before giving up. Kerberos needs one, and three
// when another mechanism is offered before it; a proxy may ask too.
const legs = 5

func (e *exchange) run() (*http.Response, error) {
	token, early := e.first()
	for n := 0; ; n++ {
		resp, err := e.send(token)
		switch {
		case errors.Is(err, errProxyAsks) && n < legs && e.body.again():
			continue
		case err != nil:
			return nil, err
		case resp.StatusCode == http.StatusProxyAuthRequired:
			if !e.proxyAsks(resp) || n == legs || !e.body.again() {
				return resp, nil
			}
			drain(resp.Body)
			continue
		case resp.StatusCode == http.StatusForbidden && early && e.unbound(resp) && e.body.again():
			early, e.asked = false, true
			if token, err = e.begin(resp); err != nil {
				return nil, err
			}
			continue
		case resp.StatusCode != http.StatusUnauthorized:
			return resp, nil
		}
		answer, offered := credentials(resp.Header.Values("WWW-Authenticate"))
		if offered && e.insecure {
			drain(resp.Body)
			return nil, fmt.Errorf("negotiate: %s wants authentication, but gets no token by plain http, where others can take it: use https, or put %q in Transport.Plain", e.req.URL.Host, e.req.URL.Hostname())
		}
		if !offered || !e.may {
			return resp, nil
		}
		e.asked = true
		if e.early != nil {
			drain(resp.Body)
			return nil, e.early
		}
		begun := e.sec != nil
		if begun && answer == nil && !early {
			return resp, nil // refused
		}
		if n == legs || !e.body.again() {
			return resp, nil
		}
		token = nil
		if begun && answer != nil {
			if token, err = e.step(answer); err != nil && !early {
				drain(resp.Body)
				return nil, err
			}
		}
		if !begun || answer == nil || err != nil { // begin, or once more for this channel
			if token, err = e.begin(resp); err != nil {
				return nil, err
			}
			early = false
			continue
		}
		early = false
		if len(token) == 0 {
			return resp, nil // it has what we can say
		}
		e.leave(resp)
	}
}

// begin begins anew, bound to the channel that an answer has come by, and returns the first token.
func (e *exchange) begin(resp *http.Response) ([]byte, error) {
	e.leave(resp)
	e.drop()
	e.bound = e.present(resp)
	return e.step(nil)
}

// leave is done with an answer that the program does not see.
func (e *exchange) leave(resp *http.Response) {
	e.cookies.note(e.req.URL, resp)
	drain(resp.Body)
}

// unbound reports whether a token was not bound to the channel and could be: a server may demand
// that.
func (e *exchange) unbound(resp *http.Response) bool {
	return e.sec != nil && e.bound == nil && e.present(resp) != nil
}

// first returns a token for a server that need not be waited for until it asks; nil if there is
// none, and why not is said when it asks.
func (e *exchange) first() (token []byte, early bool) {
	if !e.may {
		return nil, false
	}
	server, asked := e.t.asked.get(place(e.req.URL))
	if !e.t.Preemptive && (!asked || e.cookied() && !server.despite) {
		return nil, false // with a session it costs the server nothing to know who asks
	}
	if !e.t.IgnoreBindings {
		e.bound = server.bound
	}
	token, e.early = e.step(nil)
	return token, e.early == nil
}

// cookied reports whether the program has cookies for the server.
func (e *exchange) cookied() bool { return e.req.Header.Get("Cookie") != "" }

// present returns the bindings of the connection that the server's answer has come by. By plain
// http there are none: the certificate, if there is one, is a proxy's.
func (e *exchange) present(resp *http.Response) *interposer.ChannelBindings {
	if e.t.IgnoreBindings || e.req.URL.Scheme != "https" {
		return nil
	}
	return bindingsOf(resp)
}

// send sends the request with a token, if there is one, and with one for the proxy if that has
// asked.
func (e *exchange) send(token []byte) (*http.Response, error) {
	req := e.req.WithContext(e.req.Context()) // with its Trailer, which may be set while the body is read
	if req.Header = e.req.Header.Clone(); req.Header == nil {
		req.Header = make(http.Header)
	}
	if token != nil {
		req.Header.Set("Authorization", say(token))
	}
	e.cookies.add(req)
	e.proxied = false
	if e.proxy != nil {
		if _, asked := e.t.asked.get(proxyPlace(e.proxy)); asked {
			value, err := e.t.proxyToken(req.Context(), e.proxy)
			if err != nil {
				return nil, err
			}
			req.Header.Set("Proxy-Authorization", value)
			e.proxied = true
		}
		req = req.WithContext(context.WithValue(req.Context(), proxyKey{}, e.proxy))
	}
	var err error
	if req.Body, err = e.body.next(); err != nil {
		return nil, err
	}
	return e.pool.RoundTrip(req)
}

// proxyAsks reports whether a token would help that the proxy has not got.
func (e *exchange) proxyAsks(resp *http.Response) bool {
	_, offered := credentials(resp.Header.Values("Proxy-Authenticate"))
	if e.proxy == nil || !offered || e.proxied {
		return false
	}
	e.t.asked.add(proxyPlace(e.proxy), known{})
	return true
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
		r := interposer.InitRequest{Target: e.target, Mech: mech.SPNEGO, Flags: e.t.Flags, Cred: e.t.cred(), Bindings: e.bound}
		if !e.t.OneWay {
			r.Flags |= mech.FlagMutual
		}
		e.sec, token, err = e.t.Daemon.InitSecContext(ctx, r)
	}
	if err != nil {
		return nil, e.fail(err)
	}
	e.t.renewed.Store(e.sec.Cred())
	return token, nil
}

func (e *exchange) fail(err error) error { return fmt.Errorf("negotiate: %s: %w", e.req.URL.Host, err) }

// verify checks what the server has sent with its answer, and returns who it is if it has proven
// that. A server that has asked, and then done what is wanted of it, is remembered: one that proves
// nothing is asked for proof each time, and not once.
func (e *exchange) verify(resp *http.Response) (*interposer.Peer, error) {
	if e.sec == nil || resp.StatusCode == http.StatusUnauthorized {
		return nil, nil
	}
	answer, _ := credentials(resp.Header.Values("WWW-Authenticate"))
	if answer != nil && !e.sec.Established() {
		if _, err := e.step(answer); err != nil {
			return nil, err
		}
	}
	proven := e.sec.Established() && e.sec.Flags().Has(mech.FlagMutual)
	if e.asked && (proven || e.t.OneWay) {
		renews := len(e.cookies.set) > 0 || resp.Header.Get("Set-Cookie") != ""
		e.t.asked.add(place(e.req.URL), known{e.bound, e.cookied() && !renews})
	}
	if proven {
		return e.sec.Peer()
	}
	if e.t.OneWay || resp.StatusCode >= http.StatusBadRequest || !e.asked && answer == nil {
		return nil, nil
	}
	return nil, e.fail(mech.Errorf(mech.Failure, 0, reason.MutualFailed, "the server has not proven who it is").Of(""))
}

// cred returns the credential for the next context: Cred, or what the daemon has last put in its
// place, with more tickets.
func (t *Transport) cred() *interposer.Cred {
	if c := t.renewed.Load(); c != nil {
		return c
	}
	return t.Cred
}

// cookies are those that came with answers that the program does not see.
type cookies struct {
	jar *cookiejar.Jar // nil: there are none
	set []string       // values of Set-Cookie
}

func (c *cookies) note(u *url.URL, resp *http.Response) {
	set := resp.Header["Set-Cookie"]
	if len(set) == 0 {
		return
	}
	if c.jar == nil {
		c.jar, _ = cookiejar.New(nil) // has no errors
	}
	c.jar.SetCookies(u, resp.Cookies())
	c.set = append(c.set, set...)
}

// add adds them to the next leg, where they take the place of those that the request has under the
// same names.
func (c *cookies) add(req *http.Request) {
	if c.jar == nil {
		return
	}
	fresh := c.jar.Cookies(req.URL)
	old := req.Cookies()
	req.Header.Del("Cookie")
	for _, o := range old {
		if !slices.ContainsFunc(fresh, func(f *http.Cookie) bool { return f.Name == o.Name }) {
			req.AddCookie(o)
		}
	}
	for _, f := range fresh {
		req.AddCookie(f)
	}
}

// hand adds them to the answer that the program sees, before its own: that is for its cookie jar.
func (c *cookies) hand(resp *http.Response) {
	if len(c.set) > 0 {
		resp.Header["Set-Cookie"] = slices.Concat(c.set, resp.Header["Set-Cookie"])
	}
}
