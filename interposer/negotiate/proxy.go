package negotiate

// This file authenticates to proxies (RFC 9110, section 11.7). A request for plain http carries a
// token itself; for https there is a CONNECT before, which http.Transport makes and which has hooks.
// A proxy that has asked gets a token with everything that follows.

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"

	"gssproxyd/interposer"
	"gssproxyd/mech"
)

// errProxyAsks is what a CONNECT fails with that a token would have helped.
var errProxyAsks = errors.New("negotiate: the proxy asks for authentication")

// proxyPlace is the key of a proxy, which is no server's.
func proxyPlace(u *url.URL) string { return "proxy " + place(u) }

// proxyFor returns the proxy that gets the request itself, nil if there is none.
func proxyFor(pool *http.Transport, req *http.Request) *url.URL {
	if pool.Proxy == nil || req.URL == nil || req.URL.Scheme != "http" {
		return nil
	}
	u, err := pool.Proxy(req)
	if err != nil || u == nil || u.User != nil || u.Scheme != "http" && u.Scheme != "https" {
		return nil
	}
	return u
}

// proxyToken returns a value of Proxy-Authorization, which can be used once.
func (t *Transport) proxyToken(ctx context.Context, proxy *url.URL) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	sec, token, err := t.Daemon.InitSecContext(ctx, interposer.InitRequest{
		Target: interposer.HostbasedName("HTTP", proxy.Hostname()), Mech: mech.SPNEGO, Cred: t.cred(),
	})
	if err != nil {
		return "", fmt.Errorf("negotiate: proxy %s: %w", proxy.Host, err)
	}
	sec.Close()
	return say(token), nil
}

// proxyKey is the key of a leg's context for the proxy that its token is for.
type proxyKey struct{}

// connectThrough has a pool send each leg to the proxy that was chosen for it, since Base may
// choose another one whenever it is asked, and authenticate its CONNECTs. What the program does
// with them comes first.
func (t *Transport) connectThrough(pool *http.Transport) {
	if choose := pool.Proxy; choose != nil {
		pool.Proxy = func(req *http.Request) (*url.URL, error) {
			if chosen, ok := req.Context().Value(proxyKey{}).(*url.URL); ok {
				return chosen, nil
			}
			return choose(req)
		}
	}
	get, fixed, on := pool.GetProxyConnectHeader, pool.ProxyConnectHeader, pool.OnProxyConnectResponse
	pool.GetProxyConnectHeader = func(ctx context.Context, proxy *url.URL, target string) (http.Header, error) {
		h := fixed
		if get != nil {
			var err error
			if h, err = get(ctx, proxy, target); err != nil {
				return nil, err
			}
		}
		if _, asked := t.asked.get(proxyPlace(proxy)); !asked || proxy.User != nil || h.Get("Proxy-Authorization") != "" {
			return h, nil
		}
		value, err := t.proxyToken(ctx, proxy)
		if err != nil {
			return nil, err
		}
		if h = h.Clone(); h == nil {
			h = make(http.Header)
		}
		h.Set("Proxy-Authorization", value)
		return h, nil
	}
	pool.OnProxyConnectResponse = func(ctx context.Context, proxy *url.URL, req *http.Request, resp *http.Response) error {
		if on != nil {
			if err := on(ctx, proxy, req, resp); err != nil {
				return err
			}
		}
		if resp.StatusCode != http.StatusProxyAuthRequired {
			return nil
		}
		if _, offered := credentials(resp.Header.Values("Proxy-Authenticate")); offered && req.Header.Get("Proxy-Authorization") == "" {
			t.asked.add(proxyPlace(proxy), known{})
			return errProxyAsks
		}
		return fmt.Errorf("negotiate: the proxy %s lets nobody through with what was sent: %s", proxy.Host, resp.Status)
	}
}
