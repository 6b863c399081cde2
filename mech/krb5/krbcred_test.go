package krb5

import (
	"bytes"
	"fmt"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"gssproxyd/mech"
	"gssproxyd/mech/krb5/der"
	"gssproxyd/mech/krb5/etype"
	"gssproxyd/mech/krb5/wire"
	"gssproxyd/mech/reason"
)

// forwarded is a KRB-CRED to be.
type forwarded struct {
	key     *etype.Key // nil: not encrypted
	tickets int
	infos   [][]byte
	session *etype.Key
}

func (f *forwarded) info(t testing.TB) []byte { return f.infoOf(t, testClient) }

// infoOf describes a ticket of a client; without one it does not say whose it is.
func (f *forwarded) infoOf(t testing.TB, client string) []byte {
	var of []byte
	if client != "" {
		p := mustPrincipal(t, client)
		of = append(field(1, kstring(p.Realm)), field(2, name(p))...)
	}
	return seqOf(field(0, keyDER(f.session)), of,
		field(3, bits(0x60a10000)), field(5, ktime(testNow)), field(6, ktime(testNow.Add(time.Hour))), field(7, ktime(testNow.Add(2*time.Hour))),
		field(8, kstring(testRealm)), field(9, name(mustPrincipal(t, "krbtgt/EXAMPLE.TEST@EXAMPLE.TEST"))),
		field(10, seqOf(typed(2, []byte{192, 0, 2, 1}))))
}

func testTicket(i int) []byte {
	return app(1, seqOf(field(0, integer(5)), field(1, kstring(testRealm)), field(2, name(Principal{Components: []string{"krbtgt", testRealm}, Type: 2})),
		field(3, seqOf(field(0, integer(18)), field(1, integer(1)), field(2, octets([]byte(fmt.Sprint("ticket", i))))))))
}

func (f *forwarded) encode(t testing.TB) []byte {
	t.Helper()
	var tickets []byte
	for i := range f.tickets {
		tickets = append(tickets, testTicket(i)...)
	}
	part := app(29, seqOf(field(0, seqOf(f.infos...)), field(1, integer(7)), field(2, ktime(testNow)), field(3, integer(1))))
	enc := seqOf(field(0, integer(0)), field(2, octets(part)))
	if f.key != nil {
		enc = encryptedDER(t, f.key, 0, wire.UsageKRBCred, part)
	}
	return app(22, seqOf(field(0, integer(5)), field(1, integer(22)), field(2, tlv(der.Sequence, tickets)), field(3, enc)))
}

func TestDelegation(t *testing.T) {
	b := newBench(t)
	q := newRequest(t, b.keys[18], 18)
	tgt := mustKey(t, etype.AES256SHA1)
	for _, c := range []struct {
		name string
		key  *etype.Key
	}{{"session key", q.session}, {"subkey", q.subkey}, {"not encrypted", nil}} {
		t.Run(c.name, func(t *testing.T) {
			f := &forwarded{key: c.key, tickets: 1, session: tgt}
			f.infos = [][]byte{f.info(t)}
			q.sum = gssSum(nil, 0x13f, f.encode(t))
			var out Accepted
			if err := b.Accept(&out, q.token(t), nil); err != nil {
				t.Fatal(err)
			}
			if out.Context.Flags != 0x1bf {
				t.Errorf("flags %#x", out.Context.Flags)
			}
			want := &Credential{
				Client: Principal{Realm: testRealm, Components: []string{"alice"}, Type: 1}, Server: Principal{Realm: testRealm, Components: []string{"krbtgt", testRealm}, Type: 2},
				KeyType: 18, Key: tgt.Secret(), StartTime: uint32(testNow.Unix()), EndTime: uint32(testNow.Unix() + 3600), RenewTill: uint32(testNow.Unix() + 7200),
				Flags: 0x60a10000, Addresses: []Address{{Type: 2, Data: []byte{192, 0, 2, 1}}}, Ticket: testTicket(0),
			}
			if d := cmp.Diff(want, out.Delegated, cmp.Comparer(func(a, b etype.Secret) bool { return bytes.Equal(a, b) })); d != "" {
				t.Error(d)
			}
			if s := fmt.Sprintf("%v %+v %#v", out.Delegated, out.Delegated, out.Delegated); bytes.Contains([]byte(s), []byte("ticket0")) {
				t.Error("the ticket prints")
			}
			// Somebody who does not want it is not bothered.
			deaf := b.Acceptor
			deaf.IgnoreDelegated = true
			if err := deaf.Accept(&out, q.token(t), nil); err != nil || out.Delegated != nil || out.Context.Flags != 0x1bf {
				t.Errorf("%v, flags %#x", err, out.Context.Flags)
			}
		})
	}
	good := &forwarded{session: tgt}
	info := good.info(t)
	nameless := seqOf(field(0, keyDER(tgt)))
	for _, c := range []struct {
		name  string
		f     forwarded
		minor uint32
		none  bool
	}{
		{"two tickets", forwarded{tickets: 2, infos: [][]byte{info, info}}, 0, false},
		{"more descriptions than tickets", forwarded{tickets: 1, infos: [][]byte{info, nameless}}, 0, false},
		{"fewer descriptions than tickets", forwarded{tickets: 2, infos: [][]byte{info}}, wire.MinorModified, false},
		{"nameless", forwarded{tickets: 1, infos: [][]byte{nameless}}, wire.MinorModified, false},
		{"of nobody in particular", forwarded{tickets: 1, infos: [][]byte{good.infoOf(t, "")}}, 0, false},
		{"of the service", forwarded{tickets: 1, infos: [][]byte{good.infoOf(t, testService)}}, wire.MinorModified, false},
		{"of the same name elsewhere", forwarded{tickets: 1, infos: [][]byte{good.infoOf(t, "alice@OTHER.TEST")}}, wire.MinorModified, false},
		{"the second of the service", forwarded{tickets: 2, infos: [][]byte{info, good.infoOf(t, testService)}}, wire.MinorModified, false},
		{"no tickets", forwarded{}, 0, true},
		{"other key", forwarded{key: mustKey(t, 18), tickets: 1, infos: [][]byte{info}}, 1, false},
		{"malformed description", forwarded{tickets: 1, infos: [][]byte{{0x30, 0}}}, der.Missing.Minor(), false},
	} {
		t.Run(c.name, func(t *testing.T) {
			q.sum = gssSum(nil, 0x13f, c.f.encode(t))
			var out Accepted
			err := b.Accept(&out, q.token(t), nil)
			if c.minor == 0 {
				if err != nil || (out.Delegated == nil) != c.none || out.Delegated != nil && out.Delegated.Client.String() != testClient || (out.Context.Flags&mech.FlagDeleg == 0) != c.none {
					t.Errorf("%v, %v, flags %#x", err, out.Delegated, out.Context.Flags)
				}
				return
			}
			e, ok := err.(*mech.Error)
			if !ok || e.Reason != reason.BadDelegation || c.minor != 1 && e.Minor != c.minor {
				t.Errorf("%v", err)
			}
		})
	}
}
