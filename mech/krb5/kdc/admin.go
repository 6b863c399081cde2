package kdc

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"syscall"
	"time"

	"gssproxyd/mech"
	"gssproxyd/mech/krb5/wire"
	"gssproxyd/mech/reason"
)

// AdminService is a service of a realm that changes keys, on hosts of its own.
type AdminService struct {
	lines []string // of a realm in [realms] that name its servers; the first that there are count
	port  string
	srv   string // in DNS
	udp   bool   // some servers of it have UDP alone
}

// The services there are. Where a realm has no lines for them, and no kdc lines either, DNS is asked
// for SRV records, unless dns_lookup_kdc is off. Hosts that another service's lines name are taken
// without their ports.
var (
	KadminService  = AdminService{[]string{"admin_server"}, "749", "kerberos-adm", false}
	KpasswdService = AdminService{[]string{"kpasswd_server", "admin_server", "kdc"}, "464", "kpasswd", true}
)

// Connect connects over TCP to a server of a realm, the first in order that can be reached, in as
// much time as an exchange with a KDC may take. If none can, and some of the service have UDP alone,
// it is the first that has refused, over UDP: whether anybody is there shows when it is asked. The
// connection is closed when ctx ends, at the latest by done. A *mech.Error says why there is none.
func (c *Client) Connect(ctx context.Context, realm string, service AdminService) (conn net.Conn, done func(), err error) {
	servers, why, refused := c.adminServers(ctx, realm, service)
	if refused != nil {
		return nil, nil, refused
	}
	deadline := time.Now().Add(c.limit())
	var udp []server // hosts that are there, without anybody at the TCP port
	for i, s := range servers {
		share := time.Until(deadline) / time.Duration(len(servers)-i)
		conn, done, err := c.connect(ctx, share, target{"tcp", s.host, s.port})
		if err == nil {
			return conn, done, nil
		}
		if not := (notAdmitted{}); errors.As(err, &not) {
			return nil, nil, not.refused
		}
		why = append(why, err.Error())
		if ctx.Err() != nil {
			break
		}
		if service.udp && errors.Is(err, syscall.ECONNREFUSED) {
			udp = append(udp, s)
		}
	}
	if len(udp) > 0 && ctx.Err() == nil {
		conn, done, err := c.dial(ctx, target{"udp", udp[0].host, udp[0].port})
		if err == nil {
			return conn, done, nil
		}
		why = append(why, err.Error())
	}
	return nil, nil, mech.Errorf(mech.Failure, wire.MinorUnreachable, reason.AdminServerUnreachable, "Cannot contact any server of realm '%s' that changes keys (%s): %s", wire.Shown(realm), service.srv, wire.Shown(strings.Join(why, "; ")))
}

// connect is dial, with a time of its own to succeed.
func (c *Client) connect(ctx context.Context, within time.Duration, t target) (net.Conn, func(), error) {
	lasting, cancel := context.WithCancel(ctx)
	timer := time.AfterFunc(within, cancel)
	conn, done, err := c.dial(lasting, t)
	if !timer.Stop() && err == nil {
		done()
		err = errors.New("no connection in time")
	}
	if err != nil {
		cancel()
		return nil, nil, fmt.Errorf("%v: %w", t, err)
	}
	return conn, func() { done(); cancel() }, nil
}

// adminServers returns the servers of a service, or why there are none.
func (c *Client) adminServers(ctx context.Context, realm string, service AdminService) (list []server, why []string, refused *mech.Error) {
	for i, key := range service.lines {
		for _, line := range c.lines(realm, key) {
			s, unfit := parseServer(key, line, service.port)
			switch {
			case unfit != "":
				why = append(why, unfit)
				continue
			case i > 0:
				s.port = service.port
			}
			if len(list) < maxServers {
				list = append(list, s)
			}
		}
		if len(list) > 0 {
			return list, nil, nil
		}
	}
	if len(c.lines(realm, "kdc")) > 0 || !c.dnsLookupKDC() {
		return nil, append(why, fmt.Sprintf("[realms] has no %s line for it", service.lines[0])), nil
	}
	f, refused := c.find(ctx, realm, service.srv)
	if refused != nil {
		return nil, nil, refused
	}
	for _, s := range f.list {
		if s.only == "tcp" {
			list = append(list, s)
		}
	}
	if len(list) == 0 {
		why = append(why, f.why)
	}
	return list, why, nil
}
