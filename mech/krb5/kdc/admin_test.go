package kdc

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"gssproxyd/mech/krb5/wire"
	"gssproxyd/mech/reason"
)

func TestAdminServers(t *testing.T) {
	dns := newNameServer(t, map[string][]net.SRV{
		"_kerberos-adm._tcp.DNS.TEST.": {{Target: "adm.test.", Port: 7490}},
		"_kpasswd._udp.DNS.TEST.":      {{Target: "only-udp.test.", Port: 464}},
		"_kpasswd._tcp.DNS.TEST.":      {{Target: "passwd.test.", Port: 464}},
	})
	c := &Client{Resolver: dns.resolver, Conf: config(t, `[realms]
 ALL.TEST = {
  kdc = kdc.test:8800
  admin_server = one.test
  admin_server = [2001:db8::1]:750
  kpasswd_server = passwd.test:4640
 }
 ADMIN.TEST = {
  kdc = kdc.test
  admin_server = admin.test:750
 }
 KDC.TEST = {
  kdc = kdc.test:8800
 }
 BAD.TEST = {
  admin_server = https://admin.test
 }
`)}
	for _, test := range []struct{ realm, kadmin, kpasswd string }{
		{"ALL.TEST", "one.test:749 2001:db8::1:750", "passwd.test:4640"},
		{"ADMIN.TEST", "admin.test:750", "admin.test:464"},
		{"KDC.TEST", "[realms] has no admin_server line for it", "kdc.test:464"},
		{"BAD.TEST", "which is not supported", "which is not supported"},
		{"DNS.TEST", "adm.test:7490", "passwd.test:464"},
		{"NONE.TEST", "_kerberos-adm._udp.NONE.TEST. or _tcp", "_kpasswd._udp.NONE.TEST. or _tcp"},
	} {
		for service, want := range map[*AdminService]string{&KadminService: test.kadmin, &KpasswdService: test.kpasswd} {
			list, why, refused := c.adminServers(t.Context(), test.realm, *service)
			var got []string
			for _, s := range list {
				got = append(got, s.host+":"+s.port)
			}
			if all := strings.Join(append(got, why...), " "); refused != nil || !strings.Contains(all, want) || len(got) > 0 && all != want {
				t.Errorf("%s, %s: %v, %q, %v; want %s", test.realm, service.srv, got, why, refused, want)
			}
		}
	}
}

// The first server that can be reached counts, and one that does not answer leaves time for others.
func TestConnect(t *testing.T) {
	conf := config(t, "[realms]\n A.TEST = {\n  admin_server = refuses\n  admin_server = silent\n  admin_server = answers\n  admin_server = never\n }\n")
	synctest.Test(t, func(t *testing.T) {
		var asked []string
		var closed bool
		c := &Client{Conf: conf, Dial: func(ctx context.Context, network, address string) (net.Conn, error) {
			asked = append(asked, network+" "+address)
			switch address {
			case "refuses:749":
				return nil, errors.New("refused")
			case "silent:749":
				<-ctx.Done()
				return nil, ctx.Err()
			case "answers:749":
				return &closing{closed: &closed}, nil
			}
			return nil, errors.New("too many")
		}}
		ctx, cancel := context.WithCancel(t.Context())
		conn, done, err := c.Connect(ctx, "A.TEST", KadminService)
		check(t, err)
		if want := []string{"tcp refuses:749", "tcp silent:749", "tcp answers:749"}; conn == nil || !slices.Equal(asked, want) {
			t.Errorf("asked %q, want %q", asked, want)
		}
		time.Sleep(time.Hour) // it lasts longer than it takes to connect
		if closed {
			t.Error("the connection was closed")
		}
		cancel()
		synctest.Wait()
		if !closed {
			t.Error("the connection outlives its context")
		}
		done()

		asked = nil
		ctx, cancel = context.WithCancel(t.Context())
		cancel()
		_, _, err = c.Connect(ctx, "A.TEST", KadminService)
		wantErr(t, err, wire.MinorUnreachable, reason.AdminServerUnreachable)
		c.Dial = func(context.Context, string, string) (net.Conn, error) { return nil, fmt.Errorf("nobody is there") }
		_, _, err = c.Connect(t.Context(), "A.TEST", KadminService)
		wantErr(t, err, wire.MinorUnreachable, reason.AdminServerUnreachable)
		if !strings.Contains(err.Error(), "tcp never:749: nobody is there") {
			t.Errorf("error %v", err)
		}
	})
}

// Where nobody listens at the TCP port of a password server, it is asked over UDP; where nobody answers
// it is not, nor a server of another service.
func TestConnectUDP(t *testing.T) {
	conf := config(t, "[realms]\n A.TEST = {\n  kpasswd_server = silent\n  kpasswd_server = refuses\n  admin_server = refuses\n }\n")
	c := &Client{Conf: conf, Dial: func(ctx context.Context, network, address string) (net.Conn, error) {
		switch {
		case network == "udp" && address == "refuses:464":
			return &closing{closed: new(bool)}, nil
		case strings.HasPrefix(address, "refuses:"):
			return nil, fmt.Errorf("connect: %w", syscall.ECONNREFUSED)
		}
		return nil, errors.New("silent")
	}}
	conn, done, err := c.Connect(t.Context(), "A.TEST", KpasswdService)
	if err != nil || conn == nil {
		t.Fatal(err)
	}
	done()
	_, _, err = c.Connect(t.Context(), "A.TEST", KadminService)
	wantErr(t, err, wire.MinorUnreachable, reason.AdminServerUnreachable)
}

// closing is a connection that notes its end.
type closing struct {
	net.Conn
	closed *bool
}

func (c *closing) Close() error {
	*c.closed = true
	return nil
}

// Who wants to know what the KDC has by now asks a primary one.
func TestPrimaryTicket(t *testing.T) {
	for _, known := range []bool{true, false} {
		w := newWorld(t, "A.TEST")
		settings := "kdc = a.test\n"
		if known {
			settings += "  primary_kdc = primary.test\n"
		}
		w.kdcs["PRIMARY.TEST"] = w.kdcs["A.TEST"]
		var hosts []string
		c := &Client{Conf: config(t, "[libdefaults]\n dns_lookup_kdc = false\n[realms]\n A.TEST = {\n  "+settings+" }\n"), Dial: func(ctx context.Context, network, address string) (net.Conn, error) {
			host, _, err := net.SplitHostPort(address)
			hosts = append(hosts, host)
			if err != nil {
				return nil, err
			}
			return w.dial(ctx, network, address)
		}}
		user, service := principal(t, "user@A.TEST"), principal(t, "HTTP/www.a.test@A.TEST")
		s := w.login(c, "user@A.TEST")
		for _, primary := range []bool{false, true} {
			hosts = nil
			_, err := c.Ticket(t.Context(), s.copy(), user, service, TicketOptions{Primary: primary})
			check(t, err)
			want := "a.test"
			if primary && known {
				want = "primary.test"
			}
			if !slices.Equal(hosts, []string{want}) {
				t.Errorf("with primary KDCs known %t, asked for %t: %q", known, primary, hosts)
			}
		}
	}
}
