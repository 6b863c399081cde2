package negotiate

// This file has the connections of a Transport, and what it remembers of those it has them to.

import (
	"crypto/x509"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"gssproxyd/interposer"
)

// pools are the connections of one Transport. A server may take a request for a user's because the
// connection is (RFC 4559, section 6), so those that may carry authentication are apart.
type pools struct {
	with    *http.Transport // requests that are authenticated to servers that ask
	without *http.Transport // requests that are not
}

func newPools(t *Transport) *pools {
	return &pools{with: newPool(t), without: newPool(t)}
}

func (p *pools) closeIdle() {
	p.with.CloseIdleConnections()
	p.without.CloseIdleConnections()
}

// newPool returns a pool with the settings of t.Base, and nothing else of it.
func newPool(t *Transport) *http.Transport {
	base := t.Base
	if base == nil {
		base, _ = http.DefaultTransport.(*http.Transport)
	}
	if base == nil { // the program has put something else there
		base = &http.Transport{Proxy: http.ProxyFromEnvironment, ForceAttemptHTTP2: true}
	}
	c := base.Clone()
	// After Clone this tells whether base has HTTP/2. Clone keeps a function that the program has set
	// for it, which leads to connections of others, and loses the HTTP/2 that is there by default.
	if base.TLSNextProto["h2"] != nil {
		c.ForceAttemptHTTP2, c.TLSNextProto = true, nil
	}
	if c.IdleConnTimeout == 0 {
		c.IdleConnTimeout = 90 * time.Second
	}
	if c.ExpectContinueTimeout == 0 {
		c.ExpectContinueTimeout = time.Second
	}
	if t.Proxy {
		t.connectThrough(c)
	}
	return c
}

// memory has the servers and proxies that have asked for authentication. What is known of them is
// the same for every user.
type memory struct {
	mu sync.Mutex
	m  map[string]known
}

// known is what is known of a server.
type known struct {
	bound   *interposer.ChannelBindings // of the last connection
	despite bool                        // it asks those too who bring cookies: they are no session's
}

// most is how many are remembered. Of one that is forgotten is learnt when it asks again.
const most = 1000

func (m *memory) add(key string, k known) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.m == nil {
		m.m = make(map[string]known)
	}
	if _, known := m.m[key]; !known && len(m.m) >= most {
		for any := range m.m {
			delete(m.m, any)
			break
		}
	}
	m.m[key] = k
}

func (m *memory) get(key string) (k known, asked bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	k, asked = m.m[key]
	return k, asked
}

// place is the key of a server.
func place(u *url.URL) string {
	return u.Scheme + "://" + net.JoinHostPort(strings.ToLower(u.Hostname()), port(u))
}

// bindingsOf returns those of the connection that a response has come by.
func bindingsOf(resp *http.Response) *interposer.ChannelBindings {
	var shown []*x509.Certificate
	if resp.TLS != nil {
		shown = resp.TLS.PeerCertificates
	}
	if len(shown) == 0 {
		return nil
	}
	return EndPoint(shown[0])
}
