package kdc

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"
	"time"

	"gssproxyd/mech"
	"gssproxyd/mech/krb5/wire"
	"gssproxyd/mech/reason"
)

// target is one place a request can go to: a KDC as configured, over one transport.
type target struct {
	network string // "udp" or "tcp"
	host    string // name or address
	port    string
}

func (t target) String() string { return t.network + " " + net.JoinHostPort(t.host, t.port) }

// server is a KDC as configured or found.
type server struct {
	host, port string
	only       string // the one network it is reached by, empty for both
}

// maxServers bounds the KDCs of a realm that are looked at, of those that DNS names for each
// network.
const maxServers = 16

// locate returns the KDCs of a realm: those of the kdc lines of [realms], or with primary those of
// primary_kdc, or its older name master_kdc. Only when the realm has no kdc lines, and
// dns_lookup_kdc is not off, DNS is asked for SRV records (RFC 4120 section 7.2.3.2).
func (c *Client) locate(ctx context.Context, realm string, primary bool) (list []server, err error) {
	lines := c.lines(realm, "kdc")
	dns := len(lines) == 0 && c.dnsLookupKDC()
	service := "kerberos"
	if primary {
		service = "kerberos-master"
		if lines = c.lines(realm, "primary_kdc"); len(lines) == 0 {
			lines = c.lines(realm, "master_kdc")
		}
	}
	var why []string
	for _, l := range lines {
		if len(list) == maxServers {
			break
		}
		s, refused := parseServer("kdc", l, "88")
		if refused != "" {
			why = append(why, refused)
			continue
		}
		list = append(list, s)
	}
	if len(lines) == 0 && dns {
		f, refused := c.find(ctx, realm, service)
		if refused != nil {
			return nil, refused
		}
		if list = f.list; len(list) == 0 {
			why = append(why, f.why)
		}
	}
	if len(list) == 0 {
		detail := ""
		if len(why) > 0 {
			detail = ": " + strings.Join(why, "; ")
		}
		return nil, mech.Errorf(mech.Failure, wire.MinorRealmUnknown, reason.KDCUnreachable, `Cannot find KDC for realm "%s"%s`, wire.Shown(realm), detail)
	}
	return list, nil
}

// lines returns the values of a setting of a realm.
func (c *Client) lines(realm, key string) []string { return c.Conf.All("realms", realm, key) }

// dnsLookupKDC is dns_lookup_kdc, or its older name dns_fallback: on unless they say otherwise.
func (c *Client) dnsLookupKDC() bool {
	for _, key := range []string{"dns_lookup_kdc", "dns_fallback"} {
		if v, ok := c.setting(key); ok {
			return isTrue(v)
		}
	}
	return true
}

// found is what DNS said of the KDCs of a realm.
type found struct {
	list  []server
	why   string // there are none
	until time.Time
}

// foundKey is what DNS was asked.
type foundKey struct{ realm, service string }

// foundFor is how long it counts: a request to a KDC is no question to DNS each time.
const foundFor = 30 * time.Second

// find asks DNS, unless it has answered lately.
func (c *Client) find(ctx context.Context, realm, service string) (found, *mech.Error) {
	now := c.clock()
	c.mu.Lock()
	f := c.found[foundKey{realm, service}]
	c.mu.Unlock()
	if left := f.until.Sub(now); 0 < left && left <= foundFor { // the clock may have been set
		return f, nil
	}
	closed, err := c.socket(ctx)
	if not := (notAdmitted{}); errors.As(err, &not) {
		return found{}, not.refused
	}
	f, known := c.lookup(ctx, realm, service)
	closed()
	if known {
		f.until = now.Add(foundFor)
		c.mu.Lock()
		if len(c.found) >= maxRealms {
			for other := range c.found {
				delete(c.found, other) // it is asked again
				break
			}
		}
		if c.found == nil {
			c.found = make(map[foundKey]found)
		}
		c.found[foundKey{realm, service}] = f
		c.mu.Unlock()
	}
	return f, nil
}

// lookup asks DNS. The order of the answers is that of RFC 2782. The realm is a whole name: with
// the dot at its end it is not looked up in the domains of resolv.conf's search list, whose owners
// have no say in who its KDCs are. known reports whether that is what DNS says; otherwise it has
// not answered.
func (c *Client) lookup(ctx context.Context, realm, service string) (f found, known bool) {
	domain := strings.TrimSuffix(realm, ".") + "."
	for _, network := range []string{"udp", "tcp"} {
		_, records, err := c.resolver().LookupSRV(ctx, service, network, domain)
		if e := (*net.DNSError)(nil); err != nil && len(records) == 0 && !(errors.As(err, &e) && e.IsNotFound) {
			if len(f.list) == 0 {
				f.why = "asking DNS: " + wire.Shown(err.Error())
			}
			return f, false // the other one would come to the same, and take as long
		}
		for _, r := range records[:min(len(records), maxServers)] {
			if host := strings.TrimSuffix(r.Target, "."); host != "" {
				f.list = append(f.list, server{host, strconv.Itoa(int(r.Port)), network})
			}
		}
	}
	if len(f.list) == 0 {
		f.why = "[realms] has no kdc line for it, and DNS no SRV record _" + service + "._udp." + wire.Shown(domain) + " or _tcp"
	}
	return f, true
}

func (c *Client) resolver() *net.Resolver { return cmp.Or(c.Resolver, net.DefaultResolver) }

// parseServer reads "host", "host:port", "[v6]:port" or a bare address, the value of a key of a
// realm. port is that of servers without one. why says why a line is of no use.
func parseServer(key, line, port string) (s server, why string) {
	s.port = port
	line, _, _ = strings.Cut(line, " ")
	switch {
	case strings.HasPrefix(line, "https://"):
		return s, fmt.Sprintf("%q is a KDC proxy, which is not supported", line)
	case strings.HasPrefix(line, "/"):
		return s, fmt.Sprintf("%q is a socket in the file system, which is not supported", line)
	case net.ParseIP(line) != nil:
		s.host = line
		return s, ""
	}
	s.host = line
	if inner, ok := strings.CutPrefix(line, "["); ok {
		host, rest, closed := strings.Cut(inner, "]")
		if !closed || rest != "" && rest[0] != ':' {
			return s, fmt.Sprintf("%s = %q; expected host, host:port or [address]:port", key, line)
		}
		s.host = host
		if rest != "" {
			s.port = rest[1:]
		}
	} else if host, port, ok := strings.Cut(line, ":"); ok {
		s.host, s.port = host, port
	}
	if n, err := strconv.ParseUint(s.port, 10, 16); err != nil || n == 0 || s.host == "" {
		return s, fmt.Sprintf("%s = %q; expected host, host:port or [address]:port", key, line)
	}
	return s, ""
}
