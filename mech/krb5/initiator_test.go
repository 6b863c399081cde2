package krb5

import (
	"bytes"
	"crypto/rand"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"strings"
	"testing"
	"time"

	"gssproxyd/keytab"
	"gssproxyd/mech"
	"gssproxyd/mech/krb5/der"
	"gssproxyd/mech/krb5/etype"
	"gssproxyd/mech/krb5/krb5conf"
	"gssproxyd/mech/krb5/wire"
	"gssproxyd/mech/reason"
)

// The request of these tests: it issues its own ticket and can get everything wrong that a client
// or a KDC can, which an Initiator cannot.

const (
	testRealm   = "EXAMPLE.TEST"
	testService = "HTTP/www.example.test@EXAMPLE.TEST"
	testClient  = "alice@EXAMPLE.TEST"
)

// testNow is what the clock of the tests shows. It is the real time, so that other implementations
// can be given the same tokens.
var testNow = time.Now().UTC().Truncate(time.Second)

func mustKey(t testing.TB, id etype.ID) *etype.Key {
	t.Helper()
	k, err := etype.GenerateKey(id)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func mustPrincipal(t testing.TB, s string) Principal {
	t.Helper()
	p, err := ParsePrincipal(s, testRealm)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// request is an AP-REQ to be. newRequest makes a good one.
type request struct {
	server     Principal
	kvno       int64
	ticketKey  *etype.Key
	session    *etype.Key
	client     Principal
	authClient Principal
	flags      uint32
	auth       time.Time
	start      time.Time // zero: absent
	end        time.Time
	renew      time.Time // zero: absent
	transType  int32
	transited  string
	addresses  []Address // nil: absent
	ticketAD   []AuthData
	subkey     *etype.Key
	ctime      time.Time
	cusec      int64
	seq        *int64
	authAD     []AuthData
	options    uint32
	noChecksum bool
	sumType    int32
	sum        []byte
	oid        mech.OID
	raw        bool
	id         uint16

	// Applied to the plaintexts before encryption.
	mutateTicket, mutateAuth func([]byte) []byte
}

func newRequest(t testing.TB, ticketKey *etype.Key, session etype.ID) *request {
	t.Helper()
	seq := int64(0x12345678)
	return &request{
		server: mustPrincipal(t, testService), kvno: 3, ticketKey: ticketKey, session: mustKey(t, session),
		client: mustPrincipal(t, testClient), authClient: mustPrincipal(t, testClient),
		flags: 0x40a90000, auth: testNow.Add(-time.Hour), start: testNow.Add(-time.Minute), end: testNow.Add(9 * time.Hour),
		transType: 1, subkey: mustKey(t, session), ctime: testNow, cusec: 123456, seq: &seq,
		options: wire.APMutualRequired, sumType: wire.SumGSSAPI, sum: gssSum(nil, 0x13e, nil),
		oid: mech.KRB5, id: tokAPReq,
	}
}

// setClient makes the ticket and the authenticator those of a client.
func (q *request) setClient(realm string, comps ...string) {
	q.client = Principal{Realm: realm, Components: comps, Type: NTPrincipal}
	q.authClient = q.client
}

// gssSum makes the value of a checksum of type 0x8003.
func gssSum(cb *ChannelBindings, flags uint32, cred []byte) []byte {
	b := binary.LittleEndian.AppendUint32(nil, 16)
	if cb == nil {
		b = append(b, make([]byte, 16)...)
	} else {
		sum := cb.sum()
		b = append(b, sum[:]...)
	}
	b = binary.LittleEndian.AppendUint32(b, flags)
	if cred != nil {
		b = append(b, 1, 0, byte(len(cred)), byte(len(cred)>>8))
		b = append(b, cred...)
	}
	return b
}

// A tiny tree writer: tests want readable messages, not speed.

func tlv(tag der.Tag, parts ...[]byte) []byte {
	var b []byte
	for _, p := range parts {
		b = append(b, p...)
	}
	return der.AppendValue(nil, tag, b)
}

func field(n int, b []byte) []byte   { return tlv(der.Context(n), b) }
func seqOf(parts ...[]byte) []byte   { return tlv(der.Sequence, parts...) }
func integer(v int64) []byte         { return der.AppendInt(nil, v) }
func octets(b []byte) []byte         { return der.AppendOctets(nil, b) }
func kstring(s string) []byte        { return der.AppendString(nil, s) }
func ktime(t time.Time) []byte       { return der.AppendTime(nil, uint32(t.Unix())) }
func bits(f uint32) []byte           { return der.AppendFlags(nil, f) }
func app(n int, b []byte) []byte     { return tlv(der.Application(n), b) }
func typed(k int32, b []byte) []byte { return seqOf(field(0, integer(int64(k))), field(1, octets(b))) }

func name(p Principal) []byte {
	var comps []byte
	for _, c := range p.Components {
		comps = append(comps, kstring(c)...)
	}
	return seqOf(field(0, integer(int64(p.Type))), field(1, tlv(der.Sequence, comps)))
}

func keyDER(k *etype.Key) []byte { return typed(int32(k.Enctype()), k.Secret()) }

func adDER(list []AuthData) []byte {
	var b []byte
	for _, a := range list {
		b = append(b, typed(a.Type, a.Data)...)
	}
	return tlv(der.Sequence, b)
}

func ifRelevant(list ...AuthData) AuthData { return AuthData{wire.ADIfRelevant, adDER(list)} }

func encryptedDER(t testing.TB, k *etype.Key, kvno int64, usage uint32, plain []byte) []byte {
	t.Helper()
	c, err := k.Encrypt(nil, usage, plain)
	if err != nil {
		t.Fatal(err)
	}
	parts := [][]byte{field(0, integer(int64(k.Enctype())))}
	if kvno != 0 {
		parts = append(parts, field(1, integer(kvno)))
	}
	return seqOf(append(parts, field(2, octets(c)))...)
}

func (q *request) encTicketPart() []byte {
	parts := [][]byte{
		field(0, bits(q.flags)), field(1, keyDER(q.session)), field(2, kstring(q.client.Realm)), field(3, name(q.client)),
		field(4, typed(q.transType, []byte(q.transited))), field(5, ktime(q.auth)),
	}
	if !q.start.IsZero() {
		parts = append(parts, field(6, ktime(q.start)))
	}
	parts = append(parts, field(7, ktime(q.end)))
	if !q.renew.IsZero() {
		parts = append(parts, field(8, ktime(q.renew)))
	}
	if q.addresses != nil {
		var list []byte
		for _, a := range q.addresses {
			list = append(list, typed(a.Type, a.Data)...)
		}
		parts = append(parts, field(9, tlv(der.Sequence, list)))
	}
	if q.ticketAD != nil {
		parts = append(parts, field(10, adDER(q.ticketAD)))
	}
	return app(3, seqOf(parts...))
}

func (q *request) authenticator() []byte {
	parts := [][]byte{field(0, integer(5)), field(1, kstring(q.authClient.Realm)), field(2, name(q.authClient))}
	if !q.noChecksum {
		parts = append(parts, field(3, typed(q.sumType, q.sum)))
	}
	parts = append(parts, field(4, integer(q.cusec)), field(5, ktime(q.ctime)))
	if q.subkey != nil {
		parts = append(parts, field(6, keyDER(q.subkey)))
	}
	if q.seq != nil {
		parts = append(parts, field(7, integer(*q.seq)))
	}
	if q.authAD != nil {
		parts = append(parts, field(8, adDER(q.authAD)))
	}
	return app(2, seqOf(parts...))
}

func (q *request) apReq(t testing.TB) []byte {
	t.Helper()
	plain, auth := q.encTicketPart(), q.authenticator()
	if q.mutateTicket != nil {
		plain = q.mutateTicket(plain)
	}
	if q.mutateAuth != nil {
		auth = q.mutateAuth(auth)
	}
	return app(14, seqOf(field(0, integer(5)), field(1, integer(14)), field(2, bits(q.options)), field(3, q.ticket(t, plain)),
		field(4, encryptedDER(t, q.session, 0, wire.UsageAPReq, auth))))
}

// ticket makes the ticket with the encrypted part plain.
func (q *request) ticket(t testing.TB, plain []byte) []byte {
	t.Helper()
	return app(1, seqOf(field(0, integer(5)), field(1, kstring(q.server.Realm)), field(2, name(q.server)),
		field(3, encryptedDER(t, q.ticketKey, q.kvno, wire.UsageTicket, plain))))
}

// credential is what the request's client has of its KDC.
func (q *request) credential(t testing.TB) *Credential {
	t.Helper()
	c := &Credential{
		Client: q.client, Server: q.server, KeyType: q.session.Enctype(), Key: bytes.Clone(q.session.Secret()), Flags: q.flags,
		AuthTime: uint32(q.auth.Unix()), EndTime: uint32(q.end.Unix()), Ticket: q.ticket(t, q.encTicketPart()),
	}
	if !q.start.IsZero() {
		c.StartTime = uint32(q.start.Unix())
	}
	if !q.renew.IsZero() {
		c.RenewTill = uint32(q.renew.Unix())
	}
	return c
}

func frame(oid mech.OID, id uint16, b []byte) []byte {
	return app(0, append(append(tlv(der.ObjectID, []byte(oid)), byte(id>>8), byte(id)), b...))
}

func (q *request) token(t testing.TB) []byte {
	t.Helper()
	b := q.apReq(t)
	if q.raw {
		return b
	}
	return frame(q.oid, q.id, b)
}

// openAPRep decrypts the acceptor's answer and checks its frame.
func (q *request) openAPRep(t testing.TB, token []byte) (p wire.EncAPRep) {
	t.Helper()
	id, message, err := (&Context{Mech: q.oid}).openReply(token)
	if err != nil || id != tokAPRep {
		t.Fatalf("AP-REP framing: id %04x, %v", id, err)
	}
	if _, err := readAPRep(nil, message, q.session, &p); err != nil {
		t.Fatal(err)
	}
	return p
}

// errorCode reads the code and the server of a framed KRB-ERROR.
func errorCode(t testing.TB, token []byte) (code int32, server string) {
	t.Helper()
	id, message, err := (&Context{}).openReply(token)
	if err != nil || id != tokKRBError {
		t.Fatalf("KRB-ERROR framing: id %04x, %v", id, err)
	}
	var e wire.KRBError
	if err := e.Parse(message); err != nil {
		t.Fatal(err)
	}
	return e.Code, e.Server.Principal().String()
}

// bench is an acceptor with its keytab.
type bench struct {
	Acceptor
	keys map[etype.ID]*etype.Key // of testService, version 3
	ring *keytab.Ring
}

var testEtypes = []etype.ID{etype.AES128SHA1, etype.AES256SHA1, etype.AES128SHA256, etype.AES256SHA384, etype.RC4}

// newBench makes an acceptor of testService with one key of each type; more adds keytab entries.
func newBench(t testing.TB, more ...keytab.Entry) *bench {
	t.Helper()
	b := &bench{keys: make(map[etype.ID]*etype.Key)}
	var entries []keytab.Entry
	for _, et := range testEtypes {
		k := mustKey(t, et).Prepare(wire.UsageTicket) // tests share it among goroutines
		b.keys[et] = k
		entries = append(entries, keytab.Entry{Principal: testService, NameType: 1, KVNO: 3, Enctype: et, Key: etype.Secret(append([]byte(nil), k.Secret()...))})
	}
	b.ring = keytab.Compile("FILE:/test/krb5.keytab", append(entries, more...))
	b.Acceptor = Acceptor{Keys: b.ring, Conf: testConf(), Now: func() time.Time { return testNow }}
	return b
}

// testConf permits every supported type, AES first.
func testConf() *krb5conf.Config {
	return &krb5conf.Config{
		DefaultRealm: testRealm, Clockskew: 5 * time.Minute,
		PermittedEnctypes: []etype.ID{etype.AES256SHA1, etype.AES128SHA1, etype.AES256SHA384, etype.AES128SHA256, etype.RC4},
	}
}

// entry makes a keytab entry of a new key, which it returns too.
func entry(t testing.TB, principal string, kvno uint32, et etype.ID) (keytab.Entry, *etype.Key) {
	t.Helper()
	k := mustKey(t, et)
	return keytab.Entry{Principal: principal, NameType: 1, KVNO: kvno, Enctype: et, Key: etype.Secret(append([]byte(nil), k.Secret()...))}, k
}

func randomBytes(n int) []byte {
	b := make([]byte, n)
	io.ReadFull(rand.Reader, b)
	return b
}

// wantErr checks an error's codes and reason, and that its text is fit for a line of a log.
func wantErr(t testing.TB, err error, major mech.Major, minor uint32, reason reason.ID) *mech.Error {
	t.Helper()
	e, ok := err.(*mech.Error)
	if !ok {
		t.Fatalf("got %v, want a *mech.Error", err)
	}
	if e.Major != major || e.Minor != minor || e.Reason != reason {
		t.Fatalf("got major %#x minor %#x reason %q (%s), want %#x %#x %q", e.Major, e.Minor, e.Reason, e.Text, major, minor, reason)
	}
	if e.Text == "" {
		t.Error("no text")
	}
	for _, r := range e.Text {
		if r < ' ' || r == 0x7f {
			t.Errorf("control character in %q", e.Text)
		}
	}
	return e
}

func (q *request) String() string { return fmt.Sprintf("%v for %v", q.client, q.server) }

func writeFile(t testing.TB, name, text string) {
	t.Helper()
	if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func unhexString(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(strings.TrimSpace(s))
	if err != nil {
		t.Fatal(err)
	}
	return b
}
