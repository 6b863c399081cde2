package krb5

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"gssproxyd/mech"
	"gssproxyd/mech/krb5/der"
	"gssproxyd/mech/krb5/etype"
	"gssproxyd/mech/krb5/wire"
	"gssproxyd/mech/reason"
)

// newInitiator makes an initiator with a ticket for b's service.
func newInitiator(t testing.TB, b *bench, ticket, session etype.ID, flags uint32) *Initiator {
	t.Helper()
	return &Initiator{
		Ticket: newRequest(t, b.keys[ticket], session).credential(t), Flags: flags, Conf: b.Conf,
		Now: func() time.Time { return testNow.Add(987654 * time.Microsecond) },
	}
}

// shake takes both ends through every message there is.
func shake(t testing.TB, i *Initiator, a *Acceptor, cb *ChannelBindings) (*Initiated, *Accepted) {
	t.Helper()
	ours, theirs := new(Initiated), new(Accepted)
	if err := i.Init(ours); err != nil {
		t.Fatal(err)
	}
	if err := a.Accept(theirs, ours.Token, cb); err != nil {
		t.Fatal(err)
	}
	if ours.Partial == nil {
		if len(theirs.Token) > 0 || theirs.Partial != nil {
			t.Fatal("the acceptor answers a context that is established")
		}
		return ours, theirs
	}
	// The second leg is another process's.
	next := new(Initiated)
	if err := (&Initiator{Target: i.Target, Conf: i.Conf, Now: i.Now}).Continue(next, ours.Partial, theirs.Token); err != nil {
		t.Fatal(err)
	}
	if next.Partial != nil || (len(next.Token) > 0) != (theirs.Partial != nil) {
		t.Fatalf("partial %v, token of %d octets", next.Partial, len(next.Token))
	}
	if theirs.Partial != nil {
		last := new(Accepted)
		if err := new(Acceptor).Continue(last, theirs.Partial, next.Token); err != nil {
			t.Fatal(err)
		}
		if last.Partial != nil || len(last.Token) > 0 {
			t.Fatal("the acceptor is not done")
		}
		theirs = last
	}
	return next, theirs
}

// talk sends messages both ways, and checks that both ends derive the same from their keys.
func talk(t testing.TB, a, b *Context) {
	t.Helper()
	for n, size := range []int{0, 1, 100, 5000} {
		msg := bytes.Repeat([]byte{byte(n)}, size)
		for _, way := range [][2]*Context{{a, b}, {b, a}} {
			for _, conf := range []bool{false, true} {
				token, err := way[0].Wrap(nil, msg, conf)
				if err != nil {
					t.Fatal(err)
				}
				got, sealed, major, err := way[1].Unwrap(nil, token)
				if err != nil || major != 0 || sealed != conf || !bytes.Equal(got, msg) {
					t.Fatalf("%v: %#x, %v", conf, major, err)
				}
			}
			mic, err := way[0].GetMIC(nil, msg)
			if err != nil {
				t.Fatal(err)
			}
			if major, err := way[1].VerifyMIC(msg, mic); err != nil || major != 0 {
				t.Fatalf("%#x, %v", major, err)
			}
		}
	}
	for _, partial := range []bool{false, true} {
		x, err := a.PseudoRandom(partial, []byte("in"), 40)
		if err != nil {
			t.Fatal(err)
		}
		if y, err := b.PseudoRandom(partial, []byte("in"), 40); err != nil || !bytes.Equal(x, y) {
			t.Fatalf("pseudo-random octets differ (%v)", err)
		}
	}
}

func sameKey(a, b *etype.Key) bool {
	return a.Enctype() == b.Enctype() && bytes.Equal(a.Secret(), b.Secret())
}

const usualFlags = mech.FlagTrans | mech.FlagConf | mech.FlagInteg

// TestInitiate has every pair of key types, all that changes the exchange, and the fields of the
// contexts at its end.
func TestInitiate(t *testing.T) {
	b := newBench(t)
	b.DCEStyle = true
	cb := &ChannelBindings{AppData: []byte("tls-server-end-point:xyz")}
	for _, ticket := range testEtypes {
		for _, session := range testEtypes {
			for _, flags := range []uint32{0, mech.FlagSequence, mech.FlagMutual, mech.FlagMutual | mech.FlagSequence | mech.FlagReplay,
				mech.FlagMutual | mech.FlagDeleg | mech.FlagIdentify, mech.FlagDeleg | mech.FlagExtendedError,
				mech.FlagDCEStyle, mech.FlagDCEStyle | mech.FlagReplay | mech.FlagDeleg} {
				t.Run(fmt.Sprintf("%v/%v/%#x", ticket, session, flags), func(t *testing.T) {
					i := newInitiator(t, b, ticket, session, flags)
					var bindings *ChannelBindings
					if flags&mech.FlagSequence != 0 {
						bindings, i.Bindings = cb, cb
					}
					i.Delegate = forwardedTGT(t)
					ours, theirs := shake(t, i, &b.Acceptor, bindings)
					x, y := &ours.Context, &theirs.Context

					dce, mutual := flags&mech.FlagDCEStyle != 0, flags&(mech.FlagDCEStyle|mech.FlagMutual) != 0
					want, wantTheirs := flags|usualFlags, flags&^mech.FlagDeleg|usualFlags
					switch {
					case dce:
						want, wantTheirs = want|mech.FlagMutual, wantTheirs|mech.FlagMutual
					case mutual:
						wantTheirs |= mech.FlagProtReady
					default:
						want |= mech.FlagProtReady
					}
					if flags&mech.FlagDeleg != 0 && !dce {
						wantTheirs |= mech.FlagDeleg
						if theirs.Delegated == nil {
							t.Error("nothing was delegated")
						} else if d := cmp.Diff(i.Delegate, theirs.Delegated); d != "" || !bytes.Equal(i.Delegate.Key, theirs.Delegated.Key) {
							t.Error(d)
						}
					} else if theirs.Delegated != nil {
						t.Error("something was delegated")
					}
					if bindings != nil {
						wantTheirs |= mech.FlagChannelBound
					}
					if x.Flags != want || y.Flags != wantTheirs {
						t.Errorf("flags %#x and %#x, want %#x and %#x", x.Flags, y.Flags, want, wantTheirs)
					}
					if !x.Initiator || y.Initiator || x.Here != testClient || x.There != testService || y.There != testClient || y.Here != testService {
						t.Errorf("%v with %v", x, y)
					}
					if x.AuthTime != y.AuthTime || x.StartTime != y.StartTime || x.EndTime != y.EndTime || x.RenewTill != y.RenewTill || x.TicketFlags != y.TicketFlags {
						t.Error("times or flags of the ticket differ")
					}
					if x.SendSeq != y.RecvSeq || x.RecvSeq != y.SendSeq || x.SendSeq == 0 || x.SendSeq >= 1<<30 || mutual == (x.SendSeq == x.RecvSeq) {
						t.Errorf("numbers %d %d and %d %d", x.SendSeq, x.RecvSeq, y.SendSeq, y.RecvSeq)
					}
					if x.Window != newWindow(x.RecvSeq, flags, session.CFX()) || y.Window != newWindow(y.RecvSeq, flags, session.CFX()) {
						t.Errorf("windows %+v and %+v", x.Window, y.Window)
					}
					if !sameKey(x.SessionKey, y.SessionKey) || !sameKey(x.Subkey, y.Subkey) || x.Subkey.Enctype() != session || sameKey(x.Subkey, x.SessionKey) {
						t.Error("keys differ, or do not where they should")
					}
					// RFC 4537: both like AES-256 best.
					best := etype.AES256SHA1
					switch {
					case !mutual:
						if x.AcceptorSubkey != nil || y.AcceptorSubkey != nil {
							t.Error("acceptor subkey without mutual authentication")
						}
					case !sameKey(x.AcceptorSubkey, y.AcceptorSubkey) || x.AcceptorSubkey.Enctype() != best:
						t.Errorf("acceptor subkeys %v and %v", x.AcceptorSubkey, y.AcceptorSubkey)
					}
					for _, c := range []*Context{x, y} {
						again, err := ImportContext(c.AppendExport(nil))
						if err != nil {
							t.Fatal(err)
						}
						if again.Flags != c.Flags || again.Window != c.Window || again.String() != c.String() {
							t.Errorf("exported %v, imported %v", c, again)
						}
					}
					talk(t, x, y)
				})
			}
		}
	}
}

// forwardedTGT makes a credential to delegate.
func forwardedTGT(t testing.TB) *Credential {
	t.Helper()
	return &Credential{
		Client: mustPrincipal(t, testClient), Server: mustPrincipal(t, "krbtgt/EXAMPLE.TEST@EXAMPLE.TEST"),
		KeyType: etype.AES256SHA384, Key: randomBytes(32), Flags: 0x60a10000,
		AuthTime: uint32(testNow.Unix()) - 100, EndTime: uint32(testNow.Unix()) + 1000, RenewTill: uint32(testNow.Unix()) + 5000,
		Addresses: []Address{{Type: 2, Data: []byte{192, 0, 2, 1}}}, Ticket: testTicket(1),
	}
}

// TestInitiatorOldKeys is a context of RC4 at both ends, where the acceptor has no better type to
// offer.
func TestInitiatorOldKeys(t *testing.T) {
	b := newBench(t)
	b.DCEStyle = true
	b.Conf.PermittedEnctypes = []etype.ID{etype.RC4}
	for _, dce := range []uint32{0, mech.FlagDCEStyle} {
		i := newInitiator(t, b, etype.RC4, etype.RC4, mech.FlagMutual|mech.FlagSequence|dce)
		ours, theirs := shake(t, i, &b.Acceptor, nil)
		// The subkey that an acceptor repeats is none of its own; DCE style always has one.
		if (ours.Context.AcceptorSubkey != nil) != (dce != 0) || (theirs.Context.AcceptorSubkey != nil) != (dce != 0) {
			t.Errorf("acceptor subkeys %v and %v", ours.Context.AcceptorSubkey, theirs.Context.AcceptorSubkey)
		}
		talk(t, &ours.Context, &theirs.Context)
	}
}

// sent reads what an initiator sent.
func sent(t testing.TB, i *Initiator, token []byte) (q wire.APReq, auth wire.Authenticator, wireFlags uint32, bnd [16]byte) {
	t.Helper()
	_, message, _, err := unframe(token)
	if err == nil {
		err = malformed("AP-REQ", q.Parse(message))
	}
	if err != nil {
		t.Fatal(err)
	}
	session, e := etype.NewKey(i.Ticket.KeyType, i.Ticket.Key)
	if e != nil {
		t.Fatal(e)
	}
	plain, e := session.Decrypt(nil, wire.UsageAPReq, q.Auth.Cipher)
	if e != nil {
		t.Fatal(e)
	}
	if err := auth.Parse(plain); err != nil {
		t.Fatal(err)
	}
	if auth.ChecksumType != wire.SumGSSAPI || len(auth.Checksum) < 24 || binary.LittleEndian.Uint32(auth.Checksum) != 16 {
		t.Fatalf("checksum of type %#x, %d octets", auth.ChecksumType, len(auth.Checksum))
	}
	copy(bnd[:], auth.Checksum[4:])
	return q, auth, binary.LittleEndian.Uint32(auth.Checksum[20:]), bnd
}

// TestInitiatorFlags says what comes of the flags a caller asks for.
func TestInitiatorFlags(t *testing.T) {
	const policy = mech.FlagDelegPolicy
	b := newBench(t)
	for _, c := range []struct {
		name      string
		ask       uint32
		ok        bool // the ticket has OK-AS-DELEGATE
		enforce   bool // krb5.conf says so
		none      bool // no forwarded ticket
		noCI      bool
		want      uint32 // on the wire
		delegates bool
	}{
		{"nothing", 0, false, false, false, false, usualFlags, false},
		{"no CI flags", 0, false, false, false, true, mech.FlagTrans, false},
		{"no CI flags, but one", mech.FlagInteg, false, false, false, true, mech.FlagTrans | mech.FlagInteg, false},
		{"all that are known", 0x7f | mech.FlagIdentify | mech.FlagExtendedError, false, false, false, false,
			usualFlags | 0x2f | mech.FlagIdentify | mech.FlagExtendedError, true},
		{"what is not for the wire", mech.FlagProtReady | mech.FlagAnon | mech.FlagChannelBound | 0xf0000000, false, false, false, false, usualFlags, false},
		{"DCE style", mech.FlagDCEStyle, false, false, false, false, usualFlags | mech.FlagDCEStyle | mech.FlagMutual, false},
		{"delegation", mech.FlagDeleg, false, false, false, false, usualFlags | mech.FlagDeleg, true},
		{"delegation of nothing", mech.FlagDeleg | policy, true, false, true, false, usualFlags, true},
		{"delegation by policy", policy, true, false, false, false, usualFlags | mech.FlagDeleg | policy, true},
		{"delegation against policy", policy, false, false, false, false, usualFlags, false},
		{"both", policy | mech.FlagDeleg, false, false, false, false, usualFlags | mech.FlagDeleg, true},
		{"enforced", mech.FlagDeleg, false, true, false, false, usualFlags, false},
		{"enforced and allowed", mech.FlagDeleg, true, true, false, false, usualFlags | mech.FlagDeleg | policy, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			i := newInitiator(t, b, 18, 18, c.ask)
			conf := *b.Conf
			conf.EnforceOKAsDelegate = c.enforce
			i.Conf, i.NoCIFlags = &conf, c.noCI
			if c.ok {
				i.Ticket.Flags |= wire.FlagOKAsDelegate
			}
			if !c.none {
				i.Delegate = forwardedTGT(t)
			}
			if i.Delegates() != c.delegates {
				t.Errorf("Delegates: %v", i.Delegates())
			}
			var out Initiated
			if err := i.Init(&out); err != nil {
				t.Fatal(err)
			}
			q, auth, asked, _ := sent(t, i, out.Token)
			mutual := c.want&mech.FlagMutual != 0
			if asked != c.want || out.Context.Flags&^mech.FlagProtReady != c.want || mutual == (out.Context.Flags&mech.FlagProtReady != 0) {
				t.Errorf("on the wire %#x, in the context %#x, want %#x", asked, out.Context.Flags, c.want)
			}
			if (q.Options == wire.APMutualRequired) != mutual || q.Options&^wire.APMutualRequired != 0 {
				t.Errorf("AP options %#x", q.Options)
			}
			if (len(auth.Checksum) > 24) != (c.want&mech.FlagDeleg != 0) {
				t.Errorf("checksum of %d octets", len(auth.Checksum))
			}
			if (out.Token[0] == 0x6e) != (c.want&mech.FlagDCEStyle != 0) {
				t.Errorf("token starts with %#x", out.Token[0])
			}
		})
	}
}

// TestInitiatorSends checks the authenticator's other parts.
func TestInitiatorSends(t *testing.T) {
	b := newBench(t)
	cb := &ChannelBindings{InitiatorAddrType: 2, InitiatorAddr: []byte{192, 0, 2, 1}, AppData: []byte("data")}
	restriction := AuthData{1, []byte{0x30, 0}}
	etypes := func(ids ...int64) AuthData {
		var list []byte
		for _, id := range ids {
			list = append(list, integer(id)...)
		}
		return AuthData{wire.ADEtypeNegotiation, tlv(der.Sequence, list)}
	}
	cbt := AuthData{wire.ADAPOptions, []byte{0, 0x40, 0, 0}}
	for _, c := range []struct {
		name    string
		session etype.ID
		flags   uint32
		change  func(i *Initiator)
		want    []AuthData
	}{
		{"preferred type", 18, mech.FlagMutual, nil, nil},
		{"second type", 17, mech.FlagMutual, nil, []AuthData{ifRelevant(etypes(18, 17))}},
		{"last type", 23, mech.FlagDCEStyle, nil, []AuthData{ifRelevant(etypes(18, 17, 20, 19, 23))}},
		{"no answer to negotiate in", 17, 0, nil, nil},
		{"bindings asked for", 18, mech.FlagChannelBound, nil, []AuthData{ifRelevant(cbt)}},
		{"bindings configured", 18, mech.FlagMutual, func(i *Initiator) {
			conf := *i.Conf
			conf.ClientAwareBindings = true
			i.Conf = &conf
		}, []AuthData{ifRelevant(cbt)}},
		{"both", 17, mech.FlagMutual | mech.FlagChannelBound, nil, []AuthData{ifRelevant(etypes(18, 17), cbt)}},
		{"restricted ticket", 18, 0, func(i *Initiator) { i.Ticket.AuthData = []AuthData{restriction} }, []AuthData{restriction}},
		{"restricted ticket and type", 17, mech.FlagMutual, func(i *Initiator) { i.Ticket.AuthData = []AuthData{restriction} },
			[]AuthData{ifRelevant(etypes(18, 17)), restriction}},
		{"defaults", 18, mech.FlagMutual, func(i *Initiator) { i.Conf, i.Now = nil, nil }, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			i := newInitiator(t, b, 18, c.session, c.flags)
			i.Bindings = cb
			if c.change != nil {
				c.change(i)
			}
			var out Initiated
			if err := i.Init(&out); err != nil {
				t.Fatal(err)
			}
			q, auth, _, bnd := sent(t, i, out.Token)
			if bnd != cb.sum() || !bytes.Equal(q.Ticket.Raw, i.Ticket.Ticket) || q.Auth.KVNO != 0 {
				t.Error("bindings, ticket or version of the session key")
			}
			if auth.Subkey.Etype != c.session || !bytes.Equal(auth.Subkey.Value, out.Context.Subkey.Secret()) || uint64(auth.Seq) != out.Context.SendSeq {
				t.Error("subkey or number")
			}
			if i.Now != nil && (auth.Ctime != uint32(testNow.Unix()) || auth.Cusec != 987654) {
				t.Errorf("made at %d.%06d", auth.Ctime, auth.Cusec)
			}
			if auth.Client.Principal().String() != testClient || auth.Client.Type != i.Ticket.Client.Type {
				t.Errorf("client %v", auth.Client.Principal())
			}
			if d := cmp.Diff(c.want, appendAuthData(nil, auth.AuthData)); d != "" {
				t.Error(d)
			}
		})
	}
}

// TestInitiatorNames has the mechanism of the framing and the name of the peer, which both legs
// must agree on.
func TestInitiatorNames(t *testing.T) {
	b := newBench(t)
	for _, oid := range []mech.OID{"", mech.KRB5, mech.KRB5Old, mech.KRB5Wrong} {
		i := newInitiator(t, b, 18, 18, mech.FlagMutual)
		i.Mech, i.Target = oid, "HTTP/www.example.test@"
		ours, theirs := shake(t, i, &b.Acceptor, nil)
		if ours.Context.mech() != theirs.Context.mech() || ours.Context.There != i.Target {
			t.Errorf("%v with %v, mechanisms %v and %v", &ours.Context, &theirs.Context, ours.Context.mech(), theirs.Context.mech())
		}
	}
	i := newInitiator(t, b, 18, 18, mech.FlagMutual)
	var ours Initiated
	var theirs Accepted
	if err := i.Init(&ours); err != nil {
		t.Fatal(err)
	}
	if err := b.Accept(&theirs, ours.Token, nil); err != nil {
		t.Fatal(err)
	}
	i.Target = "HTTP/other@EXAMPLE.TEST"
	wantErr(t, i.Continue(&ours, ours.Partial, theirs.Token), mech.BadName, 0, reason.BadName)
	if ours.Context.There != "" || ours.Token != nil || ours.Partial != nil {
		t.Error("a failed leg left a result")
	}
}

// partials are partial contexts of both ends, with all they can have.
func partials(t testing.TB) (initiator, acceptor etype.Secret) {
	t.Helper()
	b := newBench(t)
	b.DCEStyle = true
	i := newInitiator(t, b, 18, 17, mech.FlagDCEStyle|mech.FlagSequence)
	q := newRequest(t, b.keys[18], 17)
	q.renew = q.end
	q.ticketAD = []AuthData{ifRelevant(AuthData{wire.ADWin2kPAC, makePAC(q, "alice", q.auth, q.ticketKey)}), ifRelevant(cammac(q.ticketKey, indicators("otp", "pkinit")))}
	i.Ticket = q.credential(t)
	var ours Initiated
	var theirs Accepted
	if err := i.Init(&ours); err != nil {
		t.Fatal(err)
	}
	if err := b.Accept(&theirs, ours.Token, nil); err != nil {
		t.Fatal(err)
	}
	if len(theirs.Context.PAC) == 0 || len(theirs.Context.Indicators) != 2 || len(theirs.Context.AuthData) != 3 {
		t.Fatalf("acceptor's context has not all: %d %d", len(theirs.Context.PAC), len(theirs.Context.AuthData))
	}
	return ours.Partial, theirs.Partial
}

func TestPartial(t *testing.T) {
	initiator, acceptor := partials(t)
	for _, c := range []struct {
		partial   etype.Secret
		initiator bool
	}{{initiator, true}, {acceptor, false}} {
		read := func(b []byte, initiator bool) (Context, authenticatorTime, *mech.Error) {
			var c Context
			at, err := c.readPartial(b, initiator, new(etype.Key), new(etype.Key), new(etype.Key))
			return c, at, err
		}
		x, at, err := read(c.partial, c.initiator)
		if err != nil {
			t.Fatal(err)
		}
		if again := x.appendPartial(nil, at); !bytes.Equal(again, c.partial) {
			t.Errorf("initiator %v: not the same again", c.initiator)
		}
		if c.initiator && len(c.partial) > 256 {
			t.Errorf("an initiator's partial context has %d octets", len(c.partial))
		}
		for n := range c.partial {
			x, _, err := read(c.partial[:n], c.initiator)
			wantErr(t, err, mech.NoContext, 0, reason.BadContext)
			if x.Here != "" || x.SessionKey != nil {
				t.Fatal("a failure left a context")
			}
		}
		_, _, err = read(append(slices.Clone(c.partial), 0), c.initiator)
		wantErr(t, err, mech.NoContext, 0, reason.BadContext)
		_, _, err = read(c.partial, !c.initiator)
		wantErr(t, err, mech.NoContext, 0, reason.BadContext)
		later := slices.Clone(c.partial)
		later[0]++
		_, _, err = read(later, c.initiator)
		wantErr(t, err, mech.NoContext, 0, reason.BadContext)
	}
}

// TestInitiatorDoesNotPrint formats what holds keys.
func TestInitiatorDoesNotPrint(t *testing.T) {
	b := newBench(t)
	b.DCEStyle = true
	i := newInitiator(t, b, 18, 18, mech.FlagDCEStyle)
	i.Delegate = forwardedTGT(t)
	var ours Initiated
	var theirs Accepted
	if err := i.Init(&ours); err != nil {
		t.Fatal(err)
	}
	if err := b.Accept(&theirs, ours.Token, nil); err != nil {
		t.Fatal(err)
	}
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%x", "%d"} {
		for _, v := range []any{i, &ours, &theirs, ours.Partial, theirs.Partial} {
			s := fmt.Sprintf(verb, v)
			for _, k := range [][]byte{i.Ticket.Key, i.Delegate.Key, ours.Context.Subkey.Secret(), theirs.Context.AcceptorSubkey.Secret()} {
				for _, form := range []string{string(k), fmt.Sprintf("%x", k), fmt.Sprint(k)[1:20]} {
					if strings.Contains(s, form) {
						t.Errorf("%s of %T shows a key", verb, v)
					}
				}
			}
		}
	}
}

// TestInitiatedReset checks that no key remains.
func TestInitiatedReset(t *testing.T) {
	b := newBench(t)
	i := newInitiator(t, b, 18, 18, mech.FlagMutual|mech.FlagDeleg)
	i.Delegate = forwardedTGT(t)
	var out Initiated
	if err := i.Init(&out); err != nil {
		t.Fatal(err)
	}
	partial, subkey := out.Partial, out.Context.Subkey.Secret()
	out.Reset()
	if out.Partial != nil || out.Context.Subkey != nil || slices.Max(partial) != 0 || slices.Max(subkey) != 0 {
		t.Error("keys are left")
	}
	for _, buf := range [][]byte{out.plain, out.scratch, out.partial} {
		if slices.Max(append(buf[:cap(buf)], 0)) != 0 {
			t.Error("a buffer is not empty")
		}
	}
	if err := i.Init(&out); err != nil {
		t.Error(err)
	}
}
