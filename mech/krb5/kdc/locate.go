package kdc

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"

	"gssproxyd/mech"
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

// maxServers bounds the KDCs of a realm that are looked at.
const maxServers = 16

// locate returns the KDCs of a realm: those of the kdc lines of [realms], or with primary those of primary_kdc, or
// its older name master_kdc. Only when there are none, and dns_lookup_kdc is on, DNS is asked for SRV records (RFC
// 4120 section 7.2.3.2).
func (c *Client) locate(ctx context.Context, realm string, primary bool) (list []server, err error) {
	var lines []string
	service := "kerberos"
	if c.Conf != nil {
		lines = c.Conf.All("realms", realm, "kdc")
	}
	if primary {
		lines, service = nil, "kerberos-master"
		if c.Conf != nil {
			if lines = c.Conf.All("realms", realm, "primary_kdc"); len(lines) == 0 {
				lines = c.Conf.All("realms", realm, "master_kdc")
			}
		}
	}
	var refused []string
	for _, l := range lines {
		if len(list) == maxServers {
			break
		}
		s, why := parseServer(l)
		if why != "" {
			refused = append(refused, why)
			continue
		}
		list = append(list, s)
	}
	if len(lines) == 0 && c.flag("dns_lookup_kdc") {
		closed, err := c.socket(ctx)
		if not := (notAdmitted{}); errors.As(err, &not) {
			return nil, not.refused
		}
		list = c.lookup(ctx, realm, service)
		closed()
	}
	if len(list) == 0 {
		detail := ""
		if len(refused) > 0 {
			detail = ": " + strings.Join(refused, "; ")
		}
		return nil, worded(codeRealmUnknown, mech.ReasonKDCUnreachable, `Cannot find KDC for realm "%s"%s`, shown(realm), detail)
	}
	return list, nil
}

// lookup asks DNS. The order of the answers is that of RFC 2782. The realm is a whole name: with the dot at its end it is
// not looked up in the domains of resolv.conf's search list, whose owners have no say in who its KDCs are.
func (c *Client) lookup(ctx context.Context, realm, service string) (list []server) {
	for _, network := range []string{"udp", "tcp"} {
		_, records, err := c.resolver().LookupSRV(ctx, service, network, strings.TrimSuffix(realm, ".")+".")
		if err != nil {
			continue
		}
		for _, r := range records {
			if host := strings.TrimSuffix(r.Target, "."); host != "" && len(list) < maxServers {
				list = append(list, server{host, strconv.Itoa(int(r.Port)), network})
			}
		}
	}
	return list
}

func (c *Client) resolver() *net.Resolver {
	if c.Resolver != nil {
		return c.Resolver
	}
	return net.DefaultResolver
}

// parseServer reads "host", "host:port", "[v6]:port" or a bare address. why says why a line is of no use.
func parseServer(line string) (s server, why string) {
	s.port = "88"
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
			return s, fmt.Sprintf("kdc = %q; expected host, host:port or [address]:port", line)
		}
		s.host = host
		if rest != "" {
			s.port = rest[1:]
		}
	} else if host, port, ok := strings.Cut(line, ":"); ok {
		s.host, s.port = host, port
	}
	if n, err := strconv.ParseUint(s.port, 10, 16); err != nil || n == 0 || s.host == "" {
		return s, fmt.Sprintf("kdc = %q; expected host, host:port or [address]:port", line)
	}
	return s, ""
}
