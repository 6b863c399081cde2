package krb5

import (
	"strings"
	"testing"
	"time"

	"gssproxyd/mech"
	"gssproxyd/mech/krb5/der"
	"gssproxyd/mech/krb5/etype"
	"gssproxyd/mech/krb5/wire"
	"gssproxyd/mech/reason"
)

func TestInitRefusals(t *testing.T) {
	b := newBench(t)
	for _, c := range []struct {
		name   string
		change func(*Initiator)
		minor  uint32
		reason reason.ID
		text   string
	}{
		{"nothing", func(i *Initiator) { i.Ticket = nil }, wire.MinorNoTicket, reason.NoCredential, ""},
		{"no ticket", func(i *Initiator) { i.Ticket.Ticket = nil }, wire.MinorNoTicket, reason.NoCredential, ""},
		{"ended", func(i *Initiator) { i.Ticket.EndTime = uint32(testNow.Unix()) - 1 }, wire.MinorExpired, reason.TicketExpired, testService},
		{"starts later", func(i *Initiator) { i.Ticket.StartTime = uint32(testNow.Unix()) + 301 }, wire.MinorNotYetValid, reason.TicketNotYetValid, testClient},
		{"issued later", func(i *Initiator) { i.Ticket.StartTime, i.Ticket.AuthTime = 0, uint32(testNow.Unix())+301 }, wire.MinorNotYetValid, reason.TicketNotYetValid, ""},
		{"type of key", func(i *Initiator) {
			conf := *i.Conf
			conf.PermittedEnctypes = []etype.ID{17}
			i.Conf = &conf
		}, wire.MinorConfigEtype, reason.EnctypeNotPermitted, "aes256"},
		{"unknown type of key", func(i *Initiator) { i.Ticket.KeyType = 99 }, wire.MinorConfigEtype, reason.EnctypeNotPermitted, "99"},
		{"size of key", func(i *Initiator) { i.Ticket.Key = i.Ticket.Key[:31] }, wire.MinorBadKeySize, reason.DefectiveToken, "31"},
		{"ticket cut", func(i *Initiator) { i.Ticket.Ticket = i.Ticket.Ticket[:20] }, der.Overrun.Minor(), reason.DefectiveToken, ""},
		{"no ticket at all", func(i *Initiator) { i.Ticket.Ticket = []byte{0x30, 0} }, der.BadID.Minor(), reason.DefectiveToken, ""},
		{"large delegation", func(i *Initiator) {
			i.Flags |= mech.FlagDeleg
			i.Delegate = forwardedTGT(t)
			i.Delegate.Ticket = append(i.Delegate.Ticket, make([]byte, 66000)...)
		}, wire.MinorTooLong, reason.BadDelegation, testClient},
	} {
		t.Run(c.name, func(t *testing.T) {
			i := newInitiator(t, b, 18, 18, mech.FlagMutual)
			c.change(i)
			var out Initiated
			e := wantErr(t, i.Init(&out), mech.Failure, c.minor, c.reason)
			if !strings.Contains(e.Text, c.text) {
				t.Error(e.Text)
			}
			if out.Context.Here != "" || out.Token != nil || out.Partial != nil {
				t.Error("a failed leg left a result")
			}
		})
	}
	if (&Initiator{Flags: mech.FlagDelegPolicy}).Delegates() {
		t.Error("delegation without a ticket")
	}
	// Within the clock skew, and to its last second, a ticket is good.
	i := newInitiator(t, b, 18, 18, 0)
	i.Ticket.StartTime, i.Ticket.EndTime = uint32(testNow.Unix())+300, uint32(testNow.Unix())
	if err := i.Init(new(Initiated)); err != nil {
		t.Error(err)
	}
}

// apReply is an AP-REP to be.
type apReply struct {
	session *etype.Key
	ctime   time.Time
	cusec   int64
	subkey  *etype.Key
	seq     *int64
	usage   uint32
	mutate  func([]byte) []byte // of the plaintext
}

// reply makes a good answer to an initiator's token.
func reply(t testing.TB, i *Initiator, out *Initiated) *apReply {
	t.Helper()
	_, auth, _, _ := sent(t, i, out.Token)
	session, err := etype.NewKey(i.Ticket.KeyType, i.Ticket.Key)
	if err != nil {
		t.Fatal(err)
	}
	seq := int64(77)
	return &apReply{session: session, ctime: time.Unix(int64(auth.Ctime), 0).UTC(), cusec: int64(auth.Cusec),
		subkey: mustKey(t, etype.AES256SHA1), seq: &seq, usage: wire.UsageAPRep}
}

func (a *apReply) part() []byte {
	parts := [][]byte{field(0, ktime(a.ctime)), field(1, integer(a.cusec))}
	if a.subkey != nil {
		parts = append(parts, field(2, keyDER(a.subkey)))
	}
	if a.seq != nil {
		parts = append(parts, field(3, integer(*a.seq)))
	}
	return app(27, seqOf(parts...))
}

func (a *apReply) encode(t testing.TB) []byte {
	plain := a.part()
	if a.mutate != nil {
		plain = a.mutate(plain)
	}
	return app(15, seqOf(field(0, integer(5)), field(1, integer(15)), field(2, encryptedDER(t, a.session, 0, a.usage, plain))))
}

func errorDER(t testing.TB, code int64, stime time.Time, text string) []byte {
	p := mustPrincipal(t, testService)
	parts := [][]byte{field(0, integer(5)), field(1, integer(30)), field(4, ktime(stime)), field(5, integer(0)), field(6, integer(code))}
	if text != "" {
		parts = append(parts, field(7, kstring(testRealm)), field(8, name(mustPrincipal(t, testClient))))
	}
	parts = append(parts, field(9, kstring(p.Realm)), field(10, name(p)))
	if text != "" {
		parts = append(parts, field(11, kstring(text)), field(12, octets([]byte("data"))))
	}
	return app(30, seqOf(parts...))
}

// TestContinue has answers that differ from the usual and are good all the same.
func TestContinue(t *testing.T) {
	b := newBench(t)
	for _, c := range []struct {
		name   string
		change func(*apReply)
		seq    uint64
		subkey etype.ID
	}{
		{"usual", func(*apReply) {}, 77, 18},
		{"no subkey", func(a *apReply) { a.subkey = nil }, 77, 0},
		{"other type of subkey", func(a *apReply) { a.subkey = mustKey(t, 20) }, 77, 20},
		{"no number", func(a *apReply) { a.seq = nil }, 0, 18},
		{"negative number", func(a *apReply) { *a.seq = -5 }, 1<<32 - 5, 18},
		{"large number", func(a *apReply) { *a.seq = 1<<32 - 1 }, 1<<32 - 1, 18},
	} {
		t.Run(c.name, func(t *testing.T) {
			i := newInitiator(t, b, 18, 18, mech.FlagMutual|mech.FlagReplay)
			var out Initiated
			if err := i.Init(&out); err != nil {
				t.Fatal(err)
			}
			a := reply(t, i, &out)
			c.change(a)
			if err := i.Continue(&out, out.Partial, frame(mech.KRB5, tokAPRep, a.encode(t))); err != nil {
				t.Fatal(err)
			}
			x := &out.Context
			if x.RecvSeq != c.seq || x.AcceptorSubkey.Enctype() != c.subkey || x.Window.Base != c.seq || !x.Window.Replay || x.Window.Sequence {
				t.Errorf("number %d, subkey %v, window %+v", x.RecvSeq, x.AcceptorSubkey, x.Window)
			}
		})
	}
}

func TestContinueRefusals(t *testing.T) {
	b := newBench(t)
	framed := func(id uint16, msg []byte) []byte { return frame(mech.KRB5, id, msg) }
	rep := func(change func(*apReply)) func(*apReply) []byte {
		return func(a *apReply) []byte {
			change(a)
			return framed(tokAPRep, a.encode(t))
		}
	}
	for _, c := range []struct {
		name   string
		token  func(*apReply) []byte
		major  mech.Major
		minor  uint32
		reason reason.ID
		text   string
	}{
		{"no token", func(*apReply) []byte { return nil }, mech.DefectiveToken, 0, reason.DefectiveToken, "missing"},
		{"garbage", func(*apReply) []byte { return []byte("HTTP/1.1 200 OK") }, mech.DefectiveToken, 0, reason.DefectiveToken, ""},
		{"bare", func(a *apReply) []byte { return a.encode(t) }, mech.DefectiveToken, 0, reason.DefectiveToken, ""},
		{"other mechanism", func(a *apReply) []byte { return frame(mech.KRB5Wrong, tokAPRep, a.encode(t)) }, mech.DefectiveToken, 0, reason.DefectiveToken, mech.KRB5Wrong.String()},
		{"trailing", func(a *apReply) []byte { return append(framed(tokAPRep, a.encode(t)), 0) }, mech.DefectiveToken, 0, reason.DefectiveToken, ""},
		{"no id", func(a *apReply) []byte { return app(0, tlv(der.ObjectID, []byte(mech.KRB5))) }, mech.DefectiveToken, 0, reason.DefectiveToken, ""},
		{"AP-REQ", func(a *apReply) []byte { return framed(tokAPReq, a.encode(t)) }, mech.DefectiveToken, 0, reason.DefectiveToken, ""},
		{"message token", func(a *apReply) []byte { return framed(0x0201, a.encode(t)) }, mech.DefectiveToken, 0, reason.DefectiveToken, "per-message"},
		{"empty AP-REP", func(a *apReply) []byte { return framed(tokAPRep, nil) }, mech.Failure, wire.MinorMsgType, reason.DefectiveToken, ""},
		{"error called AP-REP", func(a *apReply) []byte { return framed(tokAPRep, errorDER(t, 34, testNow, "")) }, mech.Failure, wire.MinorMsgType, reason.DefectiveToken, ""},
		{"AP-REP called error", func(a *apReply) []byte { return framed(tokKRBError, a.encode(t)) }, mech.Failure, wire.MinorMsgType, reason.DefectiveToken, ""},
		{"cut", func(a *apReply) []byte { m := a.encode(t); return framed(tokAPRep, m[:len(m)-1]) }, mech.Failure, der.Overrun.Minor(), reason.DefectiveToken, ""},
		{"other key", rep(func(a *apReply) { a.session = mustKey(t, 18) }), mech.Failure, wire.MinorBadIntegrity, reason.MutualFailed, ""},
		{"other usage", rep(func(a *apReply) { a.usage = wire.UsageAPReq }), mech.Failure, wire.MinorBadIntegrity, reason.MutualFailed, ""},
		{"other type of key", rep(func(a *apReply) { a.session = mustKey(t, 17) }), mech.Failure, wire.MinorBadEnctype, reason.MutualFailed, "aes128"},
		{"short ciphertext", func(a *apReply) []byte {
			return framed(tokAPRep, app(15, seqOf(field(0, integer(5)), field(1, integer(15)), field(2, seqOf(field(0, integer(18)), field(2, octets(make([]byte, 5))))))))
		}, mech.Failure, wire.MinorBadMsgSize, reason.DefectiveToken, ""},
		{"version", func(a *apReply) []byte {
			return framed(tokAPRep, app(15, seqOf(field(0, integer(4)), field(1, integer(15)), field(2, encryptedDER(t, a.session, 0, wire.UsageAPRep, a.part())))))
		}, mech.Failure, wire.MinorBadPVNO, reason.DefectiveToken, ""},
		{"other second", rep(func(a *apReply) { a.ctime = a.ctime.Add(time.Second) }), mech.Failure, wire.MinorMutualFailed, reason.MutualFailed, ""},
		{"other microsecond", rep(func(a *apReply) { a.cusec++ }), mech.Failure, wire.MinorMutualFailed, reason.MutualFailed, ""},
		{"plaintext", rep(func(a *apReply) { a.mutate = func(p []byte) []byte { return p[:len(p)-1] } }), mech.Failure, der.Overrun.Minor(), reason.DefectiveToken, ""},
		{"subkey not permitted", rep(func(a *apReply) { a.subkey = mustKey(t, 23) }), mech.Failure, wire.MinorConfigEtype, reason.EnctypeNotPermitted, "arcfour"},
		{"unknown subkey", rep(func(a *apReply) {
			a.mutate = func([]byte) []byte {
				return app(27, seqOf(field(0, ktime(a.ctime)), field(1, integer(a.cusec)), field(2, typed(99, make([]byte, 16)))))
			}
		}), mech.Failure, wire.MinorConfigEtype, reason.EnctypeNotPermitted, ""},
		{"size of subkey", rep(func(a *apReply) {
			a.mutate = func([]byte) []byte {
				return app(27, seqOf(field(0, ktime(a.ctime)), field(1, integer(a.cusec)), field(2, typed(18, make([]byte, 16)))))
			}
		}), mech.Failure, wire.MinorBadKeySize, reason.DefectiveToken, "16"},
		{"replay", func(*apReply) []byte { return framed(tokKRBError, errorDER(t, 34, testNow, "")) }, mech.Failure, wire.MinorReplay, reason.PeerError, testService},
		{"skew, behind", func(*apReply) []byte { return framed(tokKRBError, errorDER(t, 37, testNow.Add(-10*time.Minute), "")) }, mech.Failure, wire.MinorSkew, reason.ClockSkew, "600s behind"},
		{"skew, ahead", func(*apReply) []byte {
			return framed(tokKRBError, errorDER(t, 37, testNow.Add(time.Hour), "clocks!"))
		}, mech.Failure, wire.MinorSkew, reason.ClockSkew, "clocks!, whose clock is 3600s ahead"},
		{"generic", func(*apReply) []byte { return framed(tokKRBError, errorDER(t, 60, testNow, "a\x1b[31mtext\n")) }, mech.Failure, wire.MinorGeneric, reason.PeerError, "a?[31mtext?"},
		{"unknown code", func(*apReply) []byte { return framed(tokKRBError, errorDER(t, 100000, testNow, "")) }, mech.Failure, mech.MinorKRB5 + 100000, reason.PeerError, "Unknown code"},
		{"no code", func(*apReply) []byte { return framed(tokKRBError, errorDER(t, 0, testNow, "why")) }, mech.Failure, 0, reason.PeerError, "why"},
		{"error cut", func(*apReply) []byte { return framed(tokKRBError, errorDER(t, 34, testNow, "")[:20]) }, mech.Failure, der.Overrun.Minor(), reason.DefectiveToken, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			i := newInitiator(t, b, 18, 18, mech.FlagMutual)
			conf := *i.Conf
			conf.PermittedEnctypes = conf.PermittedEnctypes[:4]
			i.Conf, i.Now = &conf, func() time.Time { return testNow }
			var out Initiated
			if err := i.Init(&out); err != nil {
				t.Fatal(err)
			}
			a := reply(t, i, &out)
			e := wantErr(t, i.Continue(&out, out.Partial, c.token(a)), c.major, c.minor, c.reason)
			if !strings.Contains(e.Text, c.text) {
				t.Error(e.Text)
			}
			if out.Context.Here != "" || out.Token != nil || out.Partial != nil || e.Token != nil {
				t.Error("a failed leg left a result")
			}
		})
	}
}

// TestAcceptorErrors has the acceptor's refusals arrive at the initiator.
func TestAcceptorErrors(t *testing.T) {
	b := newBench(t)
	b.Replay = &memoryReplay{}
	b.DCEStyle = true
	for _, dce := range []uint32{0, mech.FlagDCEStyle} {
		i := newInitiator(t, b, 18, 18, mech.FlagMutual|dce)
		i.Now = func() time.Time { return testNow }
		var out Initiated
		if err := i.Init(&out); err != nil {
			t.Fatal(err)
		}
		if err := b.Accept(new(Accepted), out.Token, nil); err != nil {
			t.Fatal(err)
		}
		said := wantErr(t, b.Accept(new(Accepted), out.Token, nil), mech.Failure, wire.MinorReplay, reason.Replay)
		wantErr(t, i.Continue(&out, out.Partial, said.Token), mech.Failure, wire.MinorReplay, reason.PeerError)

		i.Now = func() time.Time { return testNow.Add(-20 * time.Minute) }
		i.Ticket.StartTime, i.Ticket.AuthTime = 0, 1
		if err := i.Init(&out); err != nil {
			t.Fatal(err)
		}
		said = wantErr(t, b.Accept(new(Accepted), out.Token, nil), mech.Failure, wire.MinorSkew, reason.ClockSkew)
		e := wantErr(t, i.Continue(&out, out.Partial, said.Token), mech.Failure, wire.MinorSkew, reason.ClockSkew)
		if !strings.Contains(e.Text, "1200s ahead of") {
			t.Error(e.Text)
		}
	}
	// DCE RPC's other form of an error, without framing.
	i := newInitiator(t, b, 18, 18, mech.FlagDCEStyle)
	var out Initiated
	if err := i.Init(&out); err != nil {
		t.Fatal(err)
	}
	wantErr(t, i.Continue(&out, out.Partial, errorDER(t, 41, testNow, "")), mech.Failure, wire.MinorModified, reason.PeerError)
}

// TestDCERefusals has third messages that are none.
func TestDCERefusals(t *testing.T) {
	b := newBench(t)
	b.DCEStyle = true
	for _, c := range []struct {
		name   string
		change func(*apReply)
		token  []byte // in place of the reply
		minor  uint32
		reason reason.ID
	}{
		{"other number", func(a *apReply) { *a.seq++ }, nil, wire.MinorMutualFailed, reason.MutualFailed},
		{"no number", func(a *apReply) { a.seq = nil }, nil, wire.MinorMutualFailed, reason.MutualFailed},
		{"a subkey", func(a *apReply) { a.subkey = mustKey(t, 18) }, nil, wire.MinorMutualFailed, reason.MutualFailed},
		{"other key", func(a *apReply) { a.session = mustKey(t, 18) }, nil, wire.MinorBadIntegrity, reason.MutualFailed},
		{"nothing", nil, []byte{}, wire.MinorMsgType, reason.DefectiveToken},
		{"framed", nil, frame(mech.KRB5, tokAPRep, []byte{0x6f, 0}), wire.MinorMsgType, reason.DefectiveToken},
	} {
		t.Run(c.name, func(t *testing.T) {
			i := newInitiator(t, b, 18, 18, mech.FlagDCEStyle)
			var ours Initiated
			var theirs Accepted
			if err := i.Init(&ours); err != nil {
				t.Fatal(err)
			}
			if err := b.Accept(&theirs, ours.Token, nil); err != nil {
				t.Fatal(err)
			}
			token := c.token
			if c.change != nil {
				a := reply(t, i, &ours)
				a.subkey, *a.seq = nil, int64(theirs.Context.SendSeq)
				c.change(a)
				token = a.encode(t)
			}
			e := wantErr(t, b.Continue(&theirs, theirs.Partial, token), mech.Failure, c.minor, c.reason)
			if theirs.Context.Here != "" || theirs.Partial != nil || e.Token != nil {
				t.Error("a failed leg left a result")
			}
		})
	}
	// The third message needs an acceptor that began.
	wantErr(t, b.Continue(new(Accepted), nil, nil), mech.NoContext, 0, reason.BadContext)
}
