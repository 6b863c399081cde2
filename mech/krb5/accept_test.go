package krb5

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"gssproxyd/mech"
	"gssproxyd/mech/krb5/der"
	"gssproxyd/mech/krb5/etype"
	"gssproxyd/mech/krb5/krb5conf"
	"gssproxyd/mech/krb5/rcache"
	"gssproxyd/mech/krb5/wire"
	"gssproxyd/mech/reason"
)

// memoryReplay is a replay cache for tests.
type memoryReplay struct {
	mu   sync.Mutex
	seen map[string]bool
}

func (m *memoryReplay) Store(tag []byte, now time.Time, skew time.Duration) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.seen[string(tag)] {
		return rcache.ErrReplay
	}
	if m.seen == nil {
		m.seen = make(map[string]bool)
	}
	m.seen[string(tag)] = true
	return nil
}

func TestAcceptMutual(t *testing.T) {
	b := newBench(t)
	var out Accepted // reused, as a server does
	for _, et := range testEtypes {
		for _, session := range testEtypes {
			t.Run(fmt.Sprintf("%v/%v", et, session), func(t *testing.T) {
				q := newRequest(t, b.keys[et], session)
				q.renew = testNow.Add(24 * time.Hour)
				if err := b.Accept(&out, q.token(t), nil); err != nil {
					t.Fatal(err)
				}
				c := &out.Context
				want := &Context{
					Flags: 0x1be, Mech: mech.KRB5, Here: testService, There: testClient,
					AuthTime: uint32(q.auth.Unix()), StartTime: uint32(q.start.Unix()), EndTime: uint32(q.end.Unix()), RenewTill: uint32(q.renew.Unix()),
					TicketFlags: q.flags, RecvSeq: 0x12345678,
				}
				got := &Context{
					Flags: c.Flags, Mech: c.Mech, Here: c.Here, There: c.There,
					AuthTime: c.AuthTime, StartTime: c.StartTime, EndTime: c.EndTime, RenewTill: c.RenewTill,
					TicketFlags: c.TicketFlags, RecvSeq: c.RecvSeq, PACVerified: c.PACVerified, Initiator: c.Initiator,
				}
				if d := cmp.Diff(want, got, cmp.AllowUnexported(Context{})); d != "" {
					t.Error(d)
				}
				if !bytes.Equal(c.SessionKey.Secret(), q.session.Secret()) || !bytes.Equal(c.Subkey.Secret(), q.subkey.Secret()) {
					t.Error("keys differ")
				}
				rep := q.openAPRep(t, out.Token)
				if rep.Ctime != uint32(q.ctime.Unix()) || rep.Cusec != 123456 {
					t.Errorf("AP-REP of %d.%d", rep.Ctime, rep.Cusec)
				}
				if uint64(rep.Seq) != c.SendSeq || rep.Seq == 0 || rep.Seq >= 1<<30 {
					t.Errorf("sequence number %#x, context has %#x", rep.Seq, c.SendSeq)
				}
				if session.CFX() {
					if c.AcceptorSubkey == nil || rep.Subkey.Value == nil || c.AcceptorSubkey.Enctype() != session ||
						!bytes.Equal(rep.Subkey.Value, c.AcceptorSubkey.Secret()) {
						t.Error("acceptor subkey differs")
					}
				} else if c.AcceptorSubkey != nil || !bytes.Equal(rep.Subkey.Value, q.subkey.Secret()) {
					t.Error("RC4: the initiator's subkey must be echoed")
				}
				if w := newWindow(0x12345678, 0x1be, session.CFX()); c.Window != w {
					t.Errorf("window %+v, want %+v", c.Window, w)
				}
				if !bytes.HasPrefix(out.Ticket, []byte{0x61}) {
					t.Error("no ticket")
				}
			})
		}
	}
}

// When a ticket was made is when it begins, unless it says nothing of that, or was to begin later.
func TestOpened(t *testing.T) {
	b := newBench(t)
	for name, test := range map[string]struct {
		set    func(q *request)
		issued bool
	}{
		"usual":                {func(q *request) {}, true},
		"without a start":      {func(q *request) { q.start = time.Time{} }, false},
		"postdated":            {func(q *request) { q.flags |= wire.FlagPostdated }, false},
		"not validated":        {func(q *request) { q.flags |= wire.FlagInvalid }, false},
		"refused for its time": {func(q *request) { q.end = testNow.Add(-time.Hour) }, true},
	} {
		q := newRequest(t, b.keys[etype.AES256SHA1], etype.AES256SHA1)
		test.set(q)
		var out Accepted
		b.Accept(&out, q.token(t), nil)
		key, start, end, issued := out.Opened()
		want := q.start
		if want.IsZero() {
			want = q.auth
		}
		if key == nil || start != uint32(want.Unix()) || end != uint32(q.end.Unix()) || issued != test.issued {
			t.Errorf("%s: %d to %d, %t", name, start, end, issued)
		}
	}
}

func TestAcceptOneWay(t *testing.T) {
	b := newBench(t)
	q := newRequest(t, b.keys[etype.AES256SHA1], etype.AES256SHA1)
	q.sum, q.options, q.subkey, q.start = gssSum(nil, 0x13c, nil), 0, nil, time.Time{}
	var out Accepted
	if err := b.Accept(&out, q.token(t), nil); err != nil {
		t.Fatal(err)
	}
	c := &out.Context
	if len(out.Token) != 0 || c.Flags != 0x13c || c.AcceptorSubkey != nil || c.SendSeq != c.RecvSeq || c.StartTime != 0 {
		t.Errorf("token %x, flags %#x, seq %d %d, start %d", out.Token, c.Flags, c.SendSeq, c.RecvSeq, c.StartTime)
	}
	if c.Subkey != c.SessionKey {
		t.Error("without a subkey the session key takes its place")
	}
}

func TestFraming(t *testing.T) {
	b := newBench(t)
	q := newRequest(t, b.keys[etype.AES256SHA1], etype.AES256SHA1)
	var out Accepted
	for _, oid := range []mech.OID{mech.KRB5, mech.KRB5Old, mech.KRB5Wrong, mech.IAKERB} {
		q.oid = oid
		if err := b.Accept(&out, q.token(t), nil); err != nil {
			t.Fatalf("%v: %v", oid, err)
		}
		if out.Context.Mech != oid {
			t.Errorf("%v: context of %v", oid, out.Context.Mech)
		}
		q.openAPRep(t, out.Token)
	}
	q.oid = mech.KRB5
	good := q.token(t)
	dce := newRequest(t, b.keys[etype.AES256SHA1], etype.AES256SHA1)
	dce.sum, dce.raw = gssSum(nil, 0x13e|mech.FlagDCEStyle, nil), true
	dceFramed := *dce
	dceFramed.raw = false
	for _, c := range []struct {
		name   string
		token  []byte
		major  mech.Major
		minor  uint32
		reason reason.ID
	}{
		{"empty", nil, mech.DefectiveToken, minorBadHeader, reason.DefectiveToken},
		{"garbage", []byte("GET / HTTP/1.1"), mech.DefectiveToken, minorBadHeader, reason.DefectiveToken},
		{"ntlm", []byte("NTLMSSP\x00\x01\x00\x00\x00"), mech.BadMech, minorWrongMech, reason.WrongMech},
		{"spnego", unhexString(t, "601006062b0601050502a0063004a0023000"), mech.NoCred, minorWrongMech, reason.WrongMech},
		{"other mechanism", frame("\x2a\x03", tokAPReq, q.apReq(t)), mech.BadMech, minorWrongMech, reason.WrongMech},
		{"AP-REP", frame(mech.KRB5, tokAPRep, q.apReq(t)), mech.DefectiveToken, wire.MinorMsgType, reason.DefectiveToken},
		{"KRB-ERROR", frame(mech.KRB5, tokKRBError, q.apReq(t)), mech.DefectiveToken, wire.MinorMsgType, reason.DefectiveToken},
		{"no token id", frame(mech.KRB5, 0, nil)[:13], mech.Failure, der.Overrun.Minor(), reason.DefectiveToken},
		{"truncated", good[:len(good)-1], mech.Failure, der.Overrun.Minor(), reason.DefectiveToken},
		{"trailing", append(bytes.Clone(good), 0), mech.Failure, der.BadLength.Minor(), reason.DefectiveToken},
		{"not an AP-REQ", frame(mech.KRB5, tokAPReq, []byte{0x30, 0}), mech.Failure, der.BadID.Minor(), reason.DefectiveToken},
		{"raw without DCE", q.apReq(t), mech.DefectiveToken, 0, reason.DefectiveToken},
		{"DCE", dce.token(t), mech.Unavailable, 0, reason.DCEStyle},
		{"DCE framed", dceFramed.token(t), mech.DefectiveToken, 0, reason.DefectiveToken},
	} {
		t.Run(c.name, func(t *testing.T) {
			wantErr(t, b.Accept(&out, c.token, nil), c.major, c.minor, c.reason)
			if out.Context.There != "" || out.Token != nil {
				t.Error("a failed Accept left a context")
			}
		})
	}
}

// TestRefusals checks what is said of a request with one fault: to the caller, and to the
// initiator, when it asked for mutual authentication.
func TestRefusals(t *testing.T) {
	b := newBench(t)
	aes := b.keys[etype.AES256SHA1]
	for _, c := range badRequests(t) {
		t.Run(c.name, func(t *testing.T) {
			q := newRequest(t, aes, etype.AES256SHA1)
			c.change(q)
			var out Accepted
			e := wantErr(t, b.Accept(&out, q.token(t), nil), c.major, c.minor, c.reason)
			if !strings.Contains(e.Text, c.text) {
				t.Errorf("text %q lacks %q", e.Text, c.text)
			}
			if len(e.Text) > 1000 {
				t.Errorf("text of %d octets", len(e.Text))
			}
			code, server := errorCode(t, e.Token)
			if code != c.code || server != testService {
				t.Errorf("KRB-ERROR %d from %s, want %d", code, server, c.code)
			}
			// Without mutual authentication the initiator waits for nothing.
			q = newRequest(t, aes, etype.AES256SHA1)
			q.options = 0
			q.sum = gssSum(nil, 0x13c, nil)
			c.change(q)
			if e := b.Accept(&out, q.token(t), nil).(*mech.Error); len(q.sum) == 24 && binary.LittleEndian.Uint32(q.sum[20:])&mech.FlagMutual == 0 && e.Token != nil {
				t.Error("KRB-ERROR without mutual authentication")
			}
			// The next call is not affected.
			if err := b.Accept(&out, newRequest(t, aes, etype.AES256SHA1).token(t), nil); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestTolerated(t *testing.T) {
	b := newBench(t)
	aes := b.keys[etype.AES256SHA1]
	for _, c := range oddRequests() {
		t.Run(c.name, func(t *testing.T) {
			q := newRequest(t, aes, etype.AES256SHA1)
			c.change(q)
			var out Accepted
			if err := b.Accept(&out, q.token(t), nil); err != nil {
				t.Fatal(err)
			}
			if c.check != nil {
				c.check(t, &out)
			}
		})
	}
}

// TestClockEdges looks at the last good and the first bad second.
func TestClockEdges(t *testing.T) {
	b := newBench(t)
	for name, set := range map[string]func(*request, time.Time){
		"ctime":     func(q *request, at time.Time) { q.ctime = at },
		"starttime": func(q *request, at time.Time) { q.start = at },
		"endtime":   func(q *request, at time.Time) { q.end = at },
	} {
		for _, s := range []int{-301, -300, 300, 301} {
			q := newRequest(t, b.keys[18], 18)
			set(q, testNow.Add(time.Duration(s)*time.Second))
			want := s >= -300 && s <= 300 || name == "starttime" && s < 0 || name == "endtime" && s > 0
			var out Accepted
			if err := b.Accept(&out, q.token(t), nil); (err == nil) != want {
				t.Errorf("%s %+d: %v", name, s, err)
			}
			// What is said of the clock is said of one that is refused, too.
			if name == "ctime" && (!out.SkewKnown || out.Skew.Round(time.Second) != time.Duration(s)*time.Second) {
				t.Errorf("%+d: the clock is %v ahead, known %t", s, out.Skew, out.SkewKnown)
			}
		}
	}
}

func TestChannelBindings(t *testing.T) {
	b := newBench(t)
	cb := &ChannelBindings{AppData: []byte("tls-server-end-point:abc")}
	other := &ChannelBindings{AppData: []byte("tls-server-end-point:abd")}
	cbt := []AuthData{ifRelevant(AuthData{wire.ADAPOptions, []byte{0, 0x40, 0, 0}})}
	for _, c := range []struct {
		name         string
		client, here *ChannelBindings
		ad           []AuthData
		ok, bound    bool
	}{
		{"equal", cb, cb, nil, true, true},
		{"equal with CBT", cb, cb, cbt, true, true},
		{"different", cb, other, nil, false, false},
		{"client alone", cb, nil, nil, true, false},
		{"acceptor alone", nil, cb, nil, true, false},
		{"acceptor alone with CBT", nil, cb, cbt, false, false},
		{"nobody with CBT", nil, nil, cbt, true, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			q := newRequest(t, b.keys[etype.AES256SHA1], etype.AES256SHA1)
			q.sum, q.authAD = gssSum(c.client, 0x13e, nil), c.ad
			var out Accepted
			err := b.Accept(&out, q.token(t), c.here)
			if !c.ok {
				wantErr(t, err, mech.BadBindings, 0, reason.BadBindings)
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if bound := out.Context.Flags&mech.FlagChannelBound != 0; bound != c.bound {
				t.Errorf("bound %v", bound)
			}
		})
	}
	// The hash covers every field.
	full := ChannelBindings{2, []byte{1, 2, 3, 4}, 2, []byte{5, 6, 7, 8}, []byte("x")}
	for i, change := range []func(*ChannelBindings){
		func(c *ChannelBindings) { c.InitiatorAddrType = 0 }, func(c *ChannelBindings) { c.InitiatorAddr = nil },
		func(c *ChannelBindings) { c.AcceptorAddrType = 0 }, func(c *ChannelBindings) { c.AcceptorAddr = nil },
		func(c *ChannelBindings) { c.AppData = nil },
	} {
		c := full
		if change(&c); c.sum() == full.sum() {
			t.Errorf("change %d does not show", i)
		}
	}
}

func TestAddresses(t *testing.T) {
	b := newBench(t)
	here := &ChannelBindings{InitiatorAddrType: 2, InitiatorAddr: []byte{192, 0, 2, 1}}
	for _, c := range []struct {
		name string
		list []Address
		cb   *ChannelBindings
		ok   bool
	}{
		{"no list", nil, here, true},
		{"listed", []Address{{Type: 24, Data: make([]byte, 16)}, {Type: 2, Data: []byte{192, 0, 2, 1}}}, here, true},
		{"not listed", []Address{{Type: 2, Data: []byte{192, 0, 2, 2}}}, here, false},
		{"empty list", []Address{}, here, false},
		{"NetBIOS alone", []Address{{Type: 20, Data: []byte("HOST            ")}}, here, true},
		{"NetBIOS and another", []Address{{Type: 20, Data: []byte("HOST            ")}, {Type: 2, Data: []byte{192, 0, 2, 2}}}, here, false},
		{"no bindings", []Address{{Type: 2, Data: []byte{192, 0, 2, 2}}}, nil, true},
		{"address of another kind", []Address{{Type: 2, Data: []byte{192, 0, 2, 2}}}, &ChannelBindings{InitiatorAddrType: 24}, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			q := newRequest(t, b.keys[etype.AES256SHA1], etype.AES256SHA1)
			q.addresses = c.list
			var out Accepted
			err := b.Accept(&out, q.token(t), c.cb)
			if c.ok && err != nil {
				t.Fatal(err)
			}
			if !c.ok {
				wantErr(t, err, mech.Failure, wire.MinorBadAddress, reason.BadAddress)
			}
		})
	}
}

func TestTransitedPolicy(t *testing.T) {
	b := newBench(t)
	conf := confFrom(t, "[libdefaults]\n default_realm = EXAMPLE.TEST\n[capaths]\n FAR.AWAY = {\n  EXAMPLE.TEST = MIDDLE.ORG\n }\n DIRECT.ORG = {\n  EXAMPLE.TEST = .\n }\n")
	b.Conf = conf
	for _, c := range []struct {
		name, client, transited string
		kind                    int32
		flags                   uint32
		minor                   uint32
	}{
		{"hierarchy", "a@X.Y.EXAMPLE.TEST", "Y.EXAMPLE.TEST", 1, 0, 0},
		{"hierarchy, compressed", "a@X.Y.EXAMPLE.TEST", ",", 1, 0, 0},
		{"off the hierarchy", "a@X.Y.EXAMPLE.TEST", "EVIL.TEST", 1, 0, wire.MinorIllegalCross},
		{"checked by the KDC", "a@X.Y.EXAMPLE.TEST", "EVIL.TEST", 1, wire.FlagPolicyChecked, 0},
		{"capath", "a@FAR.AWAY", "MIDDLE.ORG", 1, 0, 0},
		{"off the capath", "a@FAR.AWAY", "MIDDLE.ORG,OTHER.ORG", 1, 0, wire.MinorIllegalCross},
		{"direct", "a@DIRECT.ORG", "ORG", 1, 0, wire.MinorIllegalCross},
		{"nothing transited", "a@ANY.WHERE", "", 0, 0, 0},
		{"NUL only", "a@ANY.WHERE", "\x00", 1, 0, 0},
		{"unknown encoding", "a@X.Y.EXAMPLE.TEST", "Y.EXAMPLE.TEST", 2, 0, wire.MinorIllegalCross},
		{"same realm", "a@EXAMPLE.TEST", "OTHER.ORG", 1, 0, wire.MinorNoRealmTicket},
		{"malformed", "a@FAR.AWAY", strings.Repeat("A", 513), 1, 0, wire.MinorIllegalCross},
	} {
		t.Run(c.name, func(t *testing.T) {
			q := newRequest(t, b.keys[etype.AES256SHA1], etype.AES256SHA1)
			q.client = mustPrincipal(t, c.client)
			q.authClient, q.flags = q.client, 0x40a10000|c.flags
			q.transited, q.transType = c.transited, c.kind
			var out Accepted
			err := b.Accept(&out, q.token(t), nil)
			if c.minor == 0 {
				if err != nil {
					t.Fatal(err)
				}
				if out.Context.There != c.client {
					t.Errorf("there is %s", out.Context.There)
				}
				return
			}
			wantErr(t, err, mech.Failure, c.minor, reason.Transited)
		})
	}
}

func TestReplay(t *testing.T) {
	b := newBench(t)
	b.Replay = &memoryReplay{}
	for _, et := range testEtypes {
		q := newRequest(t, b.keys[et], et)
		token := q.token(t)
		var out Accepted
		if err := b.Accept(&out, token, nil); err != nil {
			t.Fatal(err)
		}
		e := wantErr(t, b.Accept(&out, token, nil), mech.Failure, wire.MinorReplay, reason.Replay)
		if out.SkewKnown {
			t.Error("a replay says what the initiator's clock is")
		}
		if code, _ := errorCode(t, e.Token); code != 34 {
			t.Errorf("KRB-ERROR %d", code)
		}
		// The same authenticator in another frame, or beside another name, is still the same.
		q.oid = mech.KRB5Wrong
		copied := bytes.Replace(token, []byte(mech.KRB5), []byte(mech.KRB5Wrong), 1)
		wantErr(t, b.Accept(&out, copied, nil), mech.Failure, wire.MinorReplay, reason.Replay)
		if err := b.Accept(&out, q.token(t), nil); err != nil {
			t.Errorf("a new authenticator was refused: %v", err)
		}
	}
	// An authenticator is known before its time is checked.
	q := newRequest(t, b.keys[etype.AES256SHA1], etype.AES256SHA1)
	q.ctime = testNow.Add(time.Hour)
	token := q.token(t)
	var out Accepted
	wantErr(t, b.Accept(&out, token, nil), mech.Failure, wire.MinorSkew, reason.ClockSkew)
	wantErr(t, b.Accept(&out, token, nil), mech.Failure, wire.MinorReplay, reason.Replay)

	b.Replay = brokenReplay{}
	e := wantErr(t, b.Accept(&out, q.token(t), nil), mech.Failure, wire.MinorRcacheIO, reason.ReplayCache)
	if !strings.Contains(e.Text, "disk on fire") {
		t.Error(e.Text)
	}
}

type brokenReplay struct{}

func (brokenReplay) Store([]byte, time.Time, time.Duration) error { return errors.New("disk on fire") }

func TestReplayCacheFile(t *testing.T) {
	b := newBench(t)
	cache, err := rcache.Open("file2:"+t.TempDir()+"/rc", func(string) string { return "" })
	if err != nil {
		t.Fatal(err)
	}
	defer cache.Close()
	b.Replay = cache
	b.Now = nil // the cache looks at the file's times too
	q := newRequest(t, b.keys[etype.AES256SHA1], etype.AES256SHA1)
	q.ctime = time.Now()
	q.auth, q.start, q.end = q.ctime, q.ctime, q.ctime.Add(time.Hour)
	token := q.token(t)
	var wg sync.WaitGroup
	var mu sync.Mutex
	accepted := 0
	for range 8 {
		wg.Go(func() {
			var out Accepted
			if b.Accept(&out, token, nil) == nil {
				mu.Lock()
				accepted++
				mu.Unlock()
			}
		})
	}
	if wg.Wait(); accepted != 1 {
		t.Errorf("accepted %d times", accepted)
	}
}

func TestEnctypes(t *testing.T) {
	b := newBench(t)
	list := func(ids ...int64) []AuthData {
		var items []byte
		for _, id := range ids {
			items = append(items, integer(id)...)
		}
		return []AuthData{ifRelevant(AuthData{wire.ADEtypeNegotiation, tlv(der.Sequence, items)})}
	}
	for _, c := range []struct {
		name            string
		permitted       []etype.ID
		ticket, session etype.ID
		offer           []AuthData
		minor           uint32
		reason          reason.ID
		want            etype.ID // of the acceptor's subkey; 0: none
	}{
		{"first permitted is offered", []etype.ID{20, 18}, 18, 18, list(20, 18), 0, "", 20},
		{"offered at the top level", []etype.ID{20, 18}, 18, 18, []AuthData{{wire.ADEtypeNegotiation, seqOf(integer(20))}}, 0, "", 20},
		{"own order counts", []etype.ID{18, 20}, 18, 20, list(20, 18, 17), 0, "", 18},
		{"not offered", []etype.ID{20, 18}, 18, 18, nil, 0, "", 18},
		{"unknown types offered", []etype.ID{20, 18}, 18, 18, list(-128, 99, 1<<31-1), 0, "", 18},
		{"from RC4 to AES", []etype.ID{18, 23}, 23, 23, list(18, 23), 0, "", 18},
		{"RC4 stays", []etype.ID{23, 18}, 23, 23, list(18, 23), 0, "", 0},
		{"session not permitted", []etype.ID{18}, 18, 23, nil, wire.MinorConfigEtype, reason.EnctypeNotPermitted, 0},
		{"ticket not permitted", []etype.ID{18}, 23, 18, nil, wire.MinorBadIntegrity, reason.EnctypeNotPermitted, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			b.Conf = testConf()
			b.Conf.PermittedEnctypes = c.permitted
			q := newRequest(t, b.keys[c.ticket], c.session)
			q.authAD = c.offer
			var out Accepted
			err := b.Accept(&out, q.token(t), nil)
			if c.minor != 0 {
				wantErr(t, err, mech.Failure, c.minor, c.reason)
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			rep := q.openAPRep(t, out.Token)
			if got := out.Context.AcceptorSubkey; c.want == 0 && got != nil || c.want != 0 && (got.Enctype() != c.want || rep.Subkey.Etype != c.want) {
				t.Errorf("acceptor subkey %v, AP-REP %v, want %v", got, rep.Subkey.Etype, c.want)
			}
		})
	}
	// A subkey of a type that is not permitted, and session keys nobody can use.
	b.Conf = testConf()
	b.Conf.PermittedEnctypes = []etype.ID{18}
	q := newRequest(t, b.keys[18], 18)
	q.subkey = mustKey(t, 17)
	var out Accepted
	e := wantErr(t, b.Accept(&out, q.token(t), nil), mech.Failure, wire.MinorConfigEtype, reason.EnctypeNotPermitted)
	if !strings.Contains(e.Text, "aes128-cts-hmac-sha1-96") {
		t.Error(e.Text)
	}
	b.Conf = nil // the defaults
	q = newRequest(t, b.keys[18], 18)
	if err := b.Accept(&out, q.token(t), nil); err != nil {
		t.Error(err)
	}
	q.mutateTicket = func(p []byte) []byte {
		return bytes.Replace(p, keyDER(q.session), typed(99, q.session.Secret()), 1)
	}
	wantErr(t, b.Accept(&out, q.token(t), nil), mech.Failure, wire.MinorConfigEtype, reason.EnctypeNotPermitted)
	q.mutateTicket = func(p []byte) []byte {
		k := append(bytes.Clone(q.session.Secret()), 0)
		old, long := keyDER(q.session), typed(18, k)
		return regrow(t, p, old, long)
	}
	wantErr(t, b.Accept(&out, q.token(t), nil), mech.Failure, wire.MinorBadKeySize, reason.DefectiveToken)
	q.mutateTicket = func(p []byte) []byte { return bytes.Replace(p, keyDER(q.session), typed(20, q.session.Secret()), 1) }
	wantErr(t, b.Accept(&out, q.token(t), nil), mech.Failure, wire.MinorBadEnctype, reason.DefectiveToken)
}

// regrow replaces a value somewhere in nested DER, setting the lengths around it anew.
func regrow(t testing.TB, b, old, new []byte) []byte {
	t.Helper()
	if bytes.Equal(b, old) {
		return new
	}
	if !bytes.Contains(b, old) {
		return b
	}
	r := der.NewReader(b)
	tag := r.Peek()
	o := r.Enter(tag)
	var parts []byte
	for r.More() {
		parts = append(parts, regrow(t, r.Raw(), old, new)...)
	}
	r.Leave(o)
	if r.Err() != nil {
		t.Fatal(r.Err())
	}
	return tlv(tag, parts)
}

func TestBigTickets(t *testing.T) {
	b := newBench(t)
	var out Accepted
	for _, n := range []int{1 << 10, 64 << 10, 200_000, 700_000} {
		q := newRequest(t, b.keys[etype.AES256SHA1], etype.AES256SHA1)
		q.ticketAD = []AuthData{ifRelevant(AuthData{1000, randomBytes(n)})}
		if err := b.Accept(&out, q.token(t), nil); err != nil {
			t.Fatalf("%d: %v", n, err)
		}
		if ad := out.Context.AuthData; len(ad) != 1 || ad[0].Type != wire.ADIfRelevant || len(ad[0].Data) < n {
			t.Errorf("%d: authorization data %d", n, len(ad))
		}
	}
	out.Reset()
	if cap(out.plain) > keepAtMost || out.Context.There != "" {
		t.Error("Reset keeps what it should not")
	}
}

// TestConcurrent has many goroutines use one acceptor; run it with -race.
func TestConcurrent(t *testing.T) {
	b := newBench(t)
	b.Replay = &memoryReplay{}
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			var out Accepted
			for j := range 20 {
				et := testEtypes[(i+j)%len(testEtypes)]
				q := newRequest(t, b.keys[et], et)
				if err := b.Accept(&out, q.token(t), nil); err != nil {
					t.Error(err)
				}
				out.Reset()
			}
		})
	}
	wg.Wait()
}

// TestNothingPrints checks that no way of formatting shows keys or plaintexts.
func TestNothingPrints(t *testing.T) {
	b := newBench(t)
	q := newRequest(t, b.keys[etype.AES256SHA1], etype.AES256SHA1)
	var out Accepted
	if err := b.Accept(&out, q.token(t), nil); err != nil {
		t.Fatal(err)
	}
	for _, format := range []string{"%v", "%+v", "%#v", "%s", "%x", "%d"} {
		for _, v := range []any{
			&out, out, out.Context.SessionKey, &out.Context, out.tkt, &out.tkt, out.tkt.Key, out.auth, &out.auth, out.auth.Subkey,
			wire.EncAPRep{Subkey: out.auth.Subkey}, Initiated{plain: out.tkt.Key.Value}, gssChecksum{cred: out.tkt.Key.Value},
			importedToken{token: out.tkt.Key.Value}, tokenReader{b: out.tkt.Key.Value}, struct{ T wire.EncTicket }{out.tkt},
		} {
			s := fmt.Sprintf(format, v)
			for _, k := range []*etype.Key{q.session, q.subkey} {
				raw := []byte(k.Secret())
				for _, shown := range []string{string(raw), fmt.Sprintf("%x", raw), fmt.Sprint(raw), fmt.Sprintf("%d", raw[:8])} {
					if strings.Contains(s, strings.Trim(shown, "[]")) {
						t.Fatalf("%s of %T shows a key", format, v)
					}
				}
			}
		}
	}
}

func confFrom(t testing.TB, text string) *krb5conf.Config {
	t.Helper()
	file := t.TempDir() + "/krb5.conf"
	writeFile(t, file, text)
	conf, err := krb5conf.Load([]string{file})
	if err != nil {
		t.Fatal(err)
	}
	return conf
}
