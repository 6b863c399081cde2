package kdc

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/jcmturner/gokrb5/v8/iana/errorcode"

	"gssproxyd/mech/krb5"
	"gssproxyd/mech/krb5/wire"
	"gssproxyd/mech/reason"

	"go.uber.org/goleak"
)

// peer is something that listens where a KDC should, on one port over UDP and TCP.
type peer struct {
	port     int
	udp, tcp atomic.Int32 // how often it was asked
	// answer makes the reply over a network; nil gives none, and leaves a connection open.
	answer func(network string, req []byte) []byte
	// raw takes over TCP connections.
	raw func(net.Conn)
}

func newPeer(t testing.TB, answer func(network string, req []byte) []byte, raw ...func(net.Conn)) *peer {
	t.Helper()
	p := &peer{answer: answer}
	if len(raw) > 0 {
		p.raw = raw[0]
	}
	var l net.Listener
	var u net.PacketConn
	for range 20 {
		var err error
		l, err = net.Listen("tcp4", "127.0.0.1:0")
		check(t, err)
		p.port = l.Addr().(*net.TCPAddr).Port
		if u, err = net.ListenPacket("udp4", l.Addr().String()); err == nil {
			break
		}
		l.Close()
	}
	if u == nil {
		t.Fatal("no port is free over both UDP and TCP")
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		buf := make([]byte, maxUDP)
		for {
			n, from, err := u.ReadFrom(buf)
			if err != nil {
				return
			}
			p.udp.Add(1)
			if reply := p.answer("udp", bytes.Clone(buf[:n])); reply != nil {
				u.WriteTo(reply, from)
			}
		}
	})
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			p.tcp.Add(1)
			wg.Go(func() {
				defer c.Close()
				if p.raw != nil {
					p.raw(c)
					return
				}
				var head [4]byte
				if _, err := io.ReadFull(c, head[:]); err != nil {
					return
				}
				req := make([]byte, binary.BigEndian.Uint32(head[:]))
				if _, err := io.ReadFull(c, req); err != nil {
					return
				}
				if reply := p.answer("tcp", req); reply != nil {
					c.Write(append(binary.BigEndian.AppendUint32(nil, uint32(len(reply))), reply...))
					return
				}
				io.Copy(io.Discard, c) // until the other side has enough
			})
		}
	})
	t.Cleanup(func() {
		l.Close()
		u.Close()
		wg.Wait()
	})
	return p
}

func (p *peer) line() string { return fmt.Sprintf("127.0.0.1:%d", p.port) }

// closedPort is one nobody listens on, and that no listener is given who does not ask for it.
const closedPort = "127.0.0.1:1"

// clientOf is a client of the KDCs in that order; extra are lines of [libdefaults] or of the realm.
func clientOf(t testing.TB, kdcs []string, libdefaults string, realm ...string) *Client {
	t.Helper()
	text := "[libdefaults]\n" + libdefaults + "\ndns_lookup_kdc = false\n[realms]\n A.TEST = {\n" // the first one counts
	for _, k := range kdcs {
		text += "  kdc = " + k + "\n"
	}
	return &Client{Conf: config(t, text+strings.Join(realm, "\n")+"\n }\n")}
}

func silent(string, []byte) []byte { return nil }

var (
	hello = wire.AppendKDCReq(nil, wire.MsgASReq, nil, sequence())
	good  = errorMessage(refusal{code: errorcode.KDC_ERR_POLICY}, "A.TEST", krb5.Principal{}, 1)
)

func says(reply []byte) func(string, []byte) []byte {
	return func(string, []byte) []byte { return reply }
}

func TestFailover(t *testing.T) {
	ok := newPeer(t, says(good))
	dead := newPeer(t, silent)
	busy := newPeer(t, says(errorMessage(refusal{code: errorcode.KDC_ERR_SVC_UNAVAILABLE}, "A.TEST", krb5.Principal{}, 1)))
	garbage := newPeer(t, says([]byte("HTTP/1.0 400 Bad Request\r\n")))
	big := newPeer(t, func(network string, req []byte) []byte {
		if network == "udp" {
			return errorMessage(refusal{code: errorcode.KRB_ERR_RESPONSE_TOO_BIG}, "A.TEST", krb5.Principal{}, 1)
		}
		return good
	})
	oversize := newPeer(t, silent, func(c net.Conn) { c.Write([]byte{0xff, 0xff, 0xff, 0xff}); io.Copy(io.Discard, c) })
	cut := newPeer(t, silent, func(c net.Conn) { c.Write([]byte{0, 0, 1, 0, 0x7e}) })
	for _, f := range []struct {
		name string
		kdcs []string
		size int
		at   *peer
	}{
		{"one", []string{ok.line()}, 100, ok},
		{"one, big request", []string{ok.line()}, 5000, ok},
		{"refused first", []string{closedPort, ok.line()}, 100, ok},
		{"dead first", []string{dead.line(), ok.line()}, 100, ok},
		{"dead first, big request", []string{dead.line(), ok.line()}, 5000, ok},
		{"unavailable first", []string{busy.line(), ok.line()}, 100, ok},
		{"garbage first", []string{garbage.line(), ok.line()}, 100, ok},
		{"garbage first, big request", []string{garbage.line(), ok.line()}, 5000, ok},
		{"too big for UDP", []string{big.line()}, 100, big},
		{"oversize first", []string{oversize.line(), ok.line()}, 5000, ok},
		{"cut first", []string{cut.line(), ok.line()}, 5000, ok},
	} {
		t.Run(f.name, func(t *testing.T) {
			c := clientOf(t, f.kdcs, "")
			req := append(bytes.Clone(hello), make([]byte, f.size-len(hello))...)
			a, err := c.send(t.Context(), "A.TEST", req, false)
			check(t, err)
			if a.server.port != strconv.Itoa(f.at.port) || !bytes.Equal(a.reply, good) {
				t.Errorf("answer %x from %v", a.reply, a.server)
			}
			// The one that answered goes first the next time.
			servers, err := c.locate(t.Context(), "A.TEST", false)
			check(t, err)
			if next := c.order("A.TEST", servers, f.size)[0]; next.port != strconv.Itoa(f.at.port) {
				t.Errorf("%v is asked first the next time", next)
			}
		})
	}
	if big.tcp.Load() == 0 {
		t.Error("not asked over TCP")
	}
}

// pipes are a network in a bubble: who is behind each address.
type pipes map[string]func(network string, c net.Conn)

func (p pipes) dial(_ context.Context, network, address string) (net.Conn, error) {
	peer := p[address]
	if peer == nil {
		return nil, syscall.ECONNREFUSED
	}
	ours, theirs := net.Pipe()
	go func() {
		defer theirs.Close()
		peer(network, theirs)
	}()
	return ours, nil
}

// answersAfter answers one request so late.
func answersAfter(d time.Duration) func(string, net.Conn) {
	return func(network string, c net.Conn) {
		if network == "tcp" {
			return
		}
		c.Read(make([]byte, maxUDP))
		time.Sleep(d)
		go io.Copy(io.Discard, c) // the request again
		c.Write(good)
	}
}

// TestPace: when which KDC is asked, and asked again, on a made clock.
func TestPace(t *testing.T) {
	var sent []time.Duration // to the dead one over UDP
	const dead, dead2, ok, slow, late = "10.0.0.1:88", "10.0.0.2:88", "10.0.0.3:88", "10.0.0.4:88", "10.0.0.5:88"
	for _, f := range []struct {
		name   string
		kdcs   []string
		config string
		cancel time.Duration
		took   time.Duration
		at     string          // who answers; or
		words  string          // what the error says
		sent   []time.Duration // nil: not looked at
	}{
		{name: "one", kdcs: []string{ok}, at: ok},
		{name: "refused first", kdcs: []string{"10.0.0.9:88", ok}, at: ok},
		{name: "dead first", kdcs: []string{dead, ok}, at: ok, took: stagger, sent: []time.Duration{0}},
		{name: "two dead first", kdcs: []string{dead, dead2, ok}, at: ok, took: 2 * stagger},
		{name: "slow, and another asked meanwhile", kdcs: []string{slow, dead}, at: slow, took: 800 * time.Millisecond, sent: []time.Duration{stagger}},
		{name: "late", kdcs: []string{dead, late}, at: late, took: stagger + 5*time.Second, sent: []time.Duration{0, time.Second, 3 * time.Second}},
		{name: "dead", kdcs: []string{dead}, words: "no answer within 10s", took: defaultTimeout, sent: []time.Duration{0, time.Second, 3 * time.Second, 7 * time.Second}},
		{name: "dead, and less patience", kdcs: []string{dead}, config: "request_timeout = 2", words: "no answer within 2s", took: 2 * time.Second, sent: []time.Duration{0, time.Second}},
		{name: "cancelled", kdcs: []string{dead}, cancel: 700 * time.Millisecond, words: "the caller's time is over", took: 700 * time.Millisecond, sent: []time.Duration{0}},
	} {
		t.Run(f.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				start := time.Now()
				sent = nil
				silent := func(network string, c net.Conn) {
					for buf := make([]byte, maxUDP); ; {
						if _, err := c.Read(buf); err != nil {
							return
						}
						if network == "udp" {
							sent = append(sent, time.Since(start))
						}
					}
				}
				c := clientOf(t, f.kdcs, f.config)
				c.Dial = pipes{
					dead: silent, dead2: func(_ string, c net.Conn) { io.Copy(io.Discard, c) },
					ok: answersAfter(0), slow: answersAfter(800 * time.Millisecond), late: answersAfter(5 * time.Second),
				}.dial
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				if f.cancel > 0 {
					time.AfterFunc(f.cancel, cancel)
				}
				a, err := c.send(ctx, "A.TEST", hello, false)
				if took := time.Since(start); took != f.took {
					t.Errorf("took %v, want %v", took, f.took)
				}
				if f.words != "" {
					wantErr(t, err, wire.MinorUnreachable, reason.KDCUnreachable, f.words)
				} else if check(t, err); net.JoinHostPort(a.server.host, a.server.port) != f.at {
					t.Errorf("answer of %v", a.server)
				}
				synctest.Wait()
				if f.sent != nil && !slices.Equal(sent, f.sent) {
					t.Errorf("the dead one was asked after %v, want %v", sent, f.sent)
				}
			})
		})
	}
}

func TestNobody(t *testing.T) {
	busy := newPeer(t, says(errorMessage(refusal{code: errorcode.KDC_ERR_SVC_UNAVAILABLE}, "A.TEST", krb5.Principal{}, 1)))
	oversize := newPeer(t, silent, func(c net.Conn) { c.Write([]byte{0x7f, 0xff, 0xff, 0xff}); io.Copy(io.Discard, c) })
	for _, f := range []struct {
		name   string
		kdcs   []string
		config string
		minor  uint32
		words  string
	}{
		{"refused", []string{closedPort}, "", wire.MinorUnreachable, "connection refused"},
		{"unavailable", []string{busy.line()}, "", wire.MinorUnavailable, "A service is not available"},
		{"oversize", []string{oversize.line()}, "udp_preference_limit = 0\nrequest_timeout = 2", wire.MinorUnreachable, "no answer within 2s"},
		{"none", nil, "", wire.MinorRealmUnknown, `Cannot find KDC for realm "A.TEST"`},
		{"proxy", []string{"https://kdc.test/KdcProxy"}, "", wire.MinorRealmUnknown, "KDC proxy"},
		{"nonsense", []string{"host:port", "[::1", "a:0", ":88", "a:99999"}, "", wire.MinorRealmUnknown, "expected host, host:port or [address]:port"},
	} {
		t.Run(f.name, func(t *testing.T) {
			c := clientOf(t, f.kdcs, f.config)
			_, err := c.send(t.Context(), "A.TEST", hello, false)
			wantErr(t, err, f.minor, reason.KDCUnreachable, f.words)
		})
	}
}

// TestCancel: when the caller gives up nothing stays behind, not even where the network takes its
// time.
func TestCancel(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	gone := make(chan struct{})
	dead := newPeer(t, silent, func(c net.Conn) {
		cancel()
		io.Copy(io.Discard, c)
		close(gone)
	})
	before := goleak.IgnoreCurrent()
	c := clientOf(t, []string{dead.line()}, "udp_preference_limit = 0\nrequest_timeout = 3600")
	_, err := c.send(ctx, "A.TEST", hello, false)
	wantErr(t, err, wire.MinorUnreachable, reason.KDCUnreachable, "Cannot contact any KDC for realm 'A.TEST'", "the caller's time is over")
	<-gone // the connection
	goleak.VerifyNone(t, before)
}

// TestDatagrams: what anybody may have sent does not count.
func TestDatagrams(t *testing.T) {
	l, err := net.ListenPacket("udp4", "127.0.0.1:0")
	check(t, err)
	done := make(chan struct{})
	go func() {
		defer close(done)
		buf := make([]byte, 2000)
		_, from, err := l.ReadFrom(buf)
		if err != nil {
			return
		}
		for _, b := range [][]byte{{}, {0x7e}, []byte("nonsense"), good[:len(good)-1], append(bytes.Clone(good), 0), good} {
			l.WriteTo(b, from)
		}
	}()
	c := clientOf(t, []string{l.LocalAddr().String()}, "")
	a, err := c.send(t.Context(), "A.TEST", hello, false)
	check(t, err)
	if !bytes.Equal(a.reply, good) {
		t.Errorf("answer %x", a.reply)
	}
	l.Close()
	<-done
}

// TestPrimary: a KDC that is not a primary one may be behind; the primary has the last word.
func TestPrimary(t *testing.T) {
	w := newWorld(t, "A.TEST")
	w.kdcs["A.TEST"].preauth = true
	user := principal(t, "user@A.TEST")
	stale := newPeer(t, says(errorMessage(refusal{code: errorcode.KDC_ERR_C_PRINCIPAL_UNKNOWN}, "A.TEST", krb5.Principal{}, unix(time.Now()))))
	primary := newPeer(t, func(_ string, req []byte) []byte { return w.kdcs["A.TEST"].answer(req) })
	for _, key := range []string{"primary_kdc", "master_kdc"} {
		c := clientOf(t, []string{stale.line()}, "permitted_enctypes = aes", key+" = "+primary.line())
		cred, err := c.Login(t.Context(), user, w, LoginOptions{})
		check(t, err)
		checkCred(t, cred, "user@A.TEST", "krbtgt/A.TEST@A.TEST", 0)
	}
	// It cannot be asked, or has been asked already.
	for name, line := range map[string]string{"closed": closedPort, "the same": stale.line()} {
		before := stale.udp.Load()
		c := clientOf(t, []string{stale.line()}, "permitted_enctypes = aes", "primary_kdc = "+line)
		_, err := c.Login(t.Context(), user, w, LoginOptions{})
		wantErr(t, err, wire.MinorClientUnknown, reason.ClientUnknown)
		if n := stale.udp.Load() - before; n != 1 {
			t.Errorf("%s: %d requests", name, n)
		}
	}
}

func TestParseServer(t *testing.T) {
	for line, want := range map[string]server{
		"kdc.test":              {"kdc.test", "88", ""},
		"kdc.test:750":          {"kdc.test", "750", ""},
		"192.0.2.1":             {"192.0.2.1", "88", ""},
		"192.0.2.1:750":         {"192.0.2.1", "750", ""},
		"[2001:db8::1]":         {"2001:db8::1", "88", ""},
		"[2001:db8::1]:750":     {"2001:db8::1", "750", ""},
		"2001:db8::1":           {"2001:db8::1", "88", ""},
		"kdc.test:750 ; remark": {"kdc.test", "750", ""},
	} {
		if got, why := parseServer("kdc", line, "88"); got != want || why != "" {
			t.Errorf("%q: %v %s, want %v", line, got, why, want)
		}
	}
}

func TestOrder(t *testing.T) {
	c := clientOf(t, nil, "udp_preference_limit = 1000")
	servers := []server{{"a", "88", ""}, {"b", "88", ""}, {"c", "1", "tcp"}}
	for size, want := range map[int]string{
		1000:  "[udp a:88 udp b:88 tcp a:88 tcp b:88 tcp c:1]",
		1001:  "[tcp a:88 tcp b:88 tcp c:1 udp a:88 udp b:88]",
		50000: "[tcp a:88 tcp b:88 tcp c:1]",
	} {
		if got := fmt.Sprint(c.order("A.TEST", servers, size)); got != want {
			t.Errorf("%d octets: %s, want %s", size, got, want)
		}
	}
	c.realm("A.TEST").good, c.realm("A.TEST").until = target{"tcp", "b", "88"}, time.Now().Add(time.Minute)
	if got := fmt.Sprint(c.order("A.TEST", servers, 10)); got != "[udp b:88 udp a:88 tcp a:88 tcp b:88 tcp c:1]" {
		t.Errorf("with a good one: %s", got)
	}
	c.realm("A.TEST").until = time.Now()
	if got := fmt.Sprint(c.order("A.TEST", servers, 10)); got != "[udp a:88 udp b:88 tcp a:88 tcp b:88 tcp c:1]" {
		t.Errorf("with one that was good: %s", got)
	}
}

// TestRealmsBounded: names of realms come from outside.
func TestRealmsBounded(t *testing.T) {
	c := new(Client)
	for i := range 10 * maxRealms {
		c.setOffset(strconv.Itoa(i), 1, time.Now())
	}
	if n := len(c.realms); n > maxRealms {
		t.Errorf("%d realms remembered", n)
	}
	// Those that are used do not make room for those that are only named.
	c.setOffset("A.TEST", unix(time.Now().Add(time.Hour)), time.Now())
	for i := range 10 * maxRealms {
		c.setOffset(strconv.Itoa(i), 1, time.Now())
		if i%(maxRealms/2) == 0 {
			c.mu.Lock()
			c.realm("A.TEST")
			c.mu.Unlock()
		}
	}
	if c.Offset("A.TEST") == 0 {
		t.Error("the realm in use is forgotten")
	}

	// Nor does the host's own, however many others there are that somebody has names and KDCs for;
	// and a realm is not remembered for being looked for.
	c = &Client{Conf: config(t, "[libdefaults]\n default_realm = A.TEST\n[realms]\n B.TEST = {\n  kdc = b\n }\n")}
	c.Resolver = newNameServer(t, nil).resolver
	for _, own := range []string{"A.TEST", "B.TEST", "C.TEST"} {
		c.setOffset(own, unix(time.Now().Add(time.Hour)), time.Now())
	}
	for i := range 2 * maxRealms {
		_, err := c.send(t.Context(), "R"+strconv.Itoa(i)+".TEST", []byte("request"), false)
		wantErr(t, err, wire.MinorRealmUnknown, reason.KDCUnreachable)
	}
	if len(c.found) > maxRealms {
		t.Errorf("%d answers of DNS remembered", len(c.found))
	}
	if c.Offset("C.TEST") == 0 {
		t.Error("forgotten for realms that nobody has answered for")
	}
	for i := range 10 * maxRealms {
		c.setOffset(strconv.Itoa(i), 1, time.Now())
	}
	if c.Offset("A.TEST") == 0 || c.Offset("B.TEST") == 0 || len(c.realms) > maxRealms {
		t.Errorf("of %d realms the host's own are forgotten", len(c.realms))
	}
}

// A panic in one run is that run's error, and the others go on.
func TestRacePanic(t *testing.T) {
	bad := func(context.Context) (int, error) { panic("secret") }
	good := func(context.Context) (int, error) { return 7, nil }
	if got, err := race(t.Context(), []func(context.Context) (int, error){bad, good}); got != 7 || err != nil {
		t.Errorf("%d, %v; expected 7", got, err)
	}
	if _, err := race(t.Context(), []func(context.Context) (int, error){bad, bad}); err == nil || !strings.Contains(err.Error(), "panic: string") {
		t.Errorf("error %v; expected one about a panic", err)
	}
}
