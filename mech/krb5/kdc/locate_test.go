package kdc

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"gssproxyd/mech/krb5/wire"
	"gssproxyd/mech/reason"
)

// nameServer is a DNS server on the loopback interface (RFC 1035, RFC 2782). It knows SRV records
// by name; every other name that ends in kdcs has the address 127.0.0.1.
type nameServer struct {
	resolver *net.Resolver // asks it, and nobody else
	zone     map[string][]net.SRV

	mu    sync.Mutex
	asked []string // for SRV records
}

const (
	typeA, typeSRV = 1, 33
	kdcs           = ".kdcs.test."
)

func newNameServer(t *testing.T, zone map[string][]net.SRV) *nameServer {
	t.Helper()
	l, err := net.ListenPacket("udp4", "127.0.0.1:0")
	check(t, err)
	s := &nameServer{zone: zone, resolver: &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "udp4", l.LocalAddr().String())
	}}}
	var wg sync.WaitGroup
	wg.Go(func() {
		buf := make([]byte, 2000)
		for {
			n, from, err := l.ReadFrom(buf)
			if err != nil {
				return
			}
			l.WriteTo(s.answer(buf[:n]), from)
		}
	})
	t.Cleanup(func() {
		l.Close()
		wg.Wait()
	})
	return s
}

func (s *nameServer) answer(query []byte) []byte {
	name, end := "", 12
	for query[end] != 0 {
		n := int(query[end])
		name += string(query[end+1:end+1+n]) + "."
		end += 1 + n
	}
	end++
	kind := binary.BigEndian.Uint16(query[end:])
	var answers [][]byte
	known := false
	switch {
	case kind == typeSRV:
		s.mu.Lock()
		s.asked = append(s.asked, name)
		s.mu.Unlock()
		var records []net.SRV
		records, known = s.zone[name]
		for _, r := range records {
			data := binary.BigEndian.AppendUint16(nil, r.Priority)
			data = binary.BigEndian.AppendUint16(data, r.Weight)
			data = binary.BigEndian.AppendUint16(data, r.Port)
			for label := range strings.SplitSeq(strings.Trim(r.Target, "."), ".") {
				if label != "" {
					data = append(append(data, byte(len(label))), label...)
				}
			}
			answers = append(answers, append(data, 0))
		}
	case strings.HasSuffix(name, kdcs):
		if known = true; kind == typeA {
			answers = [][]byte{{127, 0, 0, 1}}
		}
	}
	b := append([]byte{}, query[:2]...)
	b = append(b, 0x81, 0x80, 0, 1, 0, byte(len(answers)), 0, 0, 0, 0)
	if !known {
		b[3] |= 3 // NXDOMAIN
	}
	b = append(b, query[12:end+4]...)
	for _, data := range answers {
		b = append(b, 0xc0, 12) // the name of the question
		b = binary.BigEndian.AppendUint16(b, kind)
		b = append(b, 0, 1, 0, 0, 0, 60)
		b = binary.BigEndian.AppendUint16(b, uint16(len(data)))
		b = append(b, data...)
	}
	return b
}

// TestLookup: where DNS is asked for KDCs, and for what; and where it is not.
func TestLookup(t *testing.T) {
	var many []net.SRV
	for i := range 2 * maxServers {
		many = append(many, net.SRV{Target: "k.", Port: uint16(1000 + i), Priority: uint16(i)})
	}
	zone := map[string][]net.SRV{
		"_kerberos._udp.A.TEST.": {
			{Target: "second" + kdcs, Port: 88, Priority: 2},
			{Target: "third" + kdcs, Port: 88, Priority: 3},
			{Target: "first" + kdcs, Port: 750, Priority: 1},
		},
		"_kerberos._tcp.A.TEST.":        {{Target: "first" + kdcs, Port: 751}},
		"_kerberos-master._udp.A.TEST.": {{Target: "primary" + kdcs, Port: 88}},
		"_kerberos._udp.MANY.TEST.":     many,
		"_kerberos._tcp.MANY.TEST.":     many,
		"_kerberos._udp.NOT.TEST.":      {{Target: "."}}, // RFC 2782: decidedly not available
		"_kerberos._tcp.TCP.TEST.":      {{Target: "only" + kdcs, Port: 88}},
	}
	both := func(service, realm string) []string {
		return []string{service + "._udp." + realm + ".", service + "._tcp." + realm + "."}
	}
	const on = "dns_lookup_kdc = true"
	for _, c := range []struct {
		what, config string
		kdc          []string
		realm        string
		primary      bool
		want         string // none: it is not known
		asked        []string
	}{
		{what: "as it comes", realm: "A.TEST", asked: both("_kerberos", "A.TEST"),
			want: "[{first.kdcs.test 750 udp} {second.kdcs.test 88 udp} {third.kdcs.test 88 udp} {first.kdcs.test 751 tcp}]"},
		{what: "off", config: "dns_lookup_kdc = false", realm: "A.TEST"},
		{what: "off by its old name", config: "dns_fallback = no", realm: "A.TEST"},
		{what: "the old name beaten", config: on + "\ndns_fallback = no", realm: "TCP.TEST", asked: both("_kerberos", "TCP.TEST"), want: "[{only.kdcs.test 88 tcp}]"},
		{what: "no value", config: "dns_lookup_kdc = perhaps", realm: "A.TEST"},
		{what: "on", config: on, realm: "A.TEST", asked: both("_kerberos", "A.TEST"),
			want: "[{first.kdcs.test 750 udp} {second.kdcs.test 88 udp} {third.kdcs.test 88 udp} {first.kdcs.test 751 tcp}]"},
		{what: "a line beats it", config: on, kdc: []string{"configured:99"}, realm: "A.TEST", want: "[{configured 99 }]"},
		{what: "a line that is of no use", config: on, kdc: []string{"https://kdc/KdcProxy"}, realm: "A.TEST"},
		{what: "primary", config: on, realm: "A.TEST", primary: true, asked: both("_kerberos-master", "A.TEST"), want: "[{primary.kdcs.test 88 udp}]"},
		{what: "primary, off", config: "dns_lookup_kdc = false", realm: "A.TEST", primary: true},
		{what: "primary, where lines say the others", kdc: []string{"configured:99"}, realm: "A.TEST", primary: true},
		{what: "one network", config: on, realm: "TCP.TEST", asked: both("_kerberos", "TCP.TEST"), want: "[{only.kdcs.test 88 tcp}]"},
		{what: "none there", config: on, realm: "NOT.TEST", asked: both("_kerberos", "NOT.TEST")},
		{what: "unknown", config: on, realm: "B.TEST", asked: both("_kerberos", "B.TEST")},
		{what: "no name for DNS", config: on, realm: "A B"},
	} {
		t.Run(c.what, func(t *testing.T) {
			dns := newNameServer(t, zone)
			text := "[libdefaults]\n" + c.config + "\n"
			for _, line := range c.kdc {
				text += "[realms]\n A.TEST = {\n  kdc = " + line + "\n }\n"
			}
			client := &Client{Conf: config(t, text), Resolver: dns.resolver}
			list, err := client.locate(t.Context(), c.realm, c.primary)
			if c.want == "" {
				wantErr(t, err, wire.MinorRealmUnknown, reason.KDCUnreachable, fmt.Sprintf("Cannot find KDC for realm %q", c.realm))
			} else if check(t, err); fmt.Sprint(list) != c.want {
				t.Errorf("%v, want %s", list, c.want)
			}
			dns.mu.Lock()
			defer dns.mu.Unlock()
			if !slices.Equal(dns.asked, c.asked) {
				t.Errorf("DNS was asked for %q, want %q", dns.asked, c.asked)
			}
		})
	}
	t.Run("many", func(t *testing.T) {
		client := clientOf(t, nil, on)
		client.Resolver = newNameServer(t, zone).resolver
		list, err := client.locate(t.Context(), "MANY.TEST", false)
		if check(t, err); len(list) != 2*maxServers || list[0].port != "1000" || list[maxServers-1].port != strconv.Itoa(1000+maxServers-1) {
			t.Errorf("%v", list)
		}
		// Those for one network leave room for those of the other: what is too large for UDP has
		// somewhere to go.
		if to := client.order("MANY.TEST", list, maxUDPPreference+1); len(to) != maxServers || to[0].network != "tcp" {
			t.Errorf("a large request goes to %v", to)
		}
	})
	// What DNS has said counts for a while, also that there are none; that it has said nothing does
	// not.
	t.Run("again", func(t *testing.T) {
		dns := newNameServer(t, map[string][]net.SRV{"_kerberos._udp.A.TEST.": zone["_kerberos._udp.A.TEST."]})
		now := time.Unix(1e9, 0)
		client := &Client{Conf: config(t, ""), Resolver: dns.resolver, Now: func() time.Time { return now }}
		locate := func(realm string, count int) {
			t.Helper()
			list, err := client.locate(t.Context(), realm, false)
			if realm == "A.TEST" != (len(list) == 3) || realm == "A.TEST" != (err == nil) {
				t.Errorf("%s: %v, %v", realm, list, err)
			}
			dns.mu.Lock()
			defer dns.mu.Unlock()
			if len(dns.asked) != count {
				t.Errorf("asked %q, want %d questions", dns.asked, count)
			}
		}
		locate("A.TEST", 2)
		locate("A.TEST", 2)
		locate("B.TEST", 4)
		locate("B.TEST", 4)
		now = now.Add(foundFor - time.Second)
		locate("A.TEST", 4)
		now = now.Add(time.Second)
		locate("A.TEST", 6)
		locate("B.TEST", 8)

		silent := true
		client.Resolver = &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, network, address string) (net.Conn, error) {
			if silent {
				return nil, errors.New("no route")
			}
			return dns.resolver.Dial(ctx, network, address)
		}}
		now = now.Add(foundFor)
		_, err := client.locate(t.Context(), "A.TEST", false)
		wantErr(t, err, wire.MinorRealmUnknown, reason.KDCUnreachable, "asking DNS: ", "no route")
		silent = false
		locate("A.TEST", 10)
	})
	t.Run("all the way", func(t *testing.T) {
		p := newPeer(t, says(good))
		client := &Client{Conf: config(t, "[libdefaults]\n default_realm = A.TEST\n")}
		client.Resolver = newNameServer(t, map[string][]net.SRV{
			"_kerberos._tcp.A.TEST.": {{Target: "there" + kdcs, Port: uint16(p.port)}},
		}).resolver
		a, err := client.send(t.Context(), "A.TEST", hello, false)
		check(t, err)
		if want := (target{"tcp", "there.kdcs.test", strconv.Itoa(p.port)}); a.server != want || p.tcp.Load() != 1 || p.udp.Load() != 0 {
			t.Errorf("answer of %v, want %v; asked %d times over TCP and %d over UDP", a.server, want, p.tcp.Load(), p.udp.Load())
		}
	})
}
