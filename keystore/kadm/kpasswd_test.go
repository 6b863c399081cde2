package kadm

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"strings"
	"testing"
	"time"

	"gssproxyd/mech/krb5"
	"gssproxyd/mech/krb5/etype"
	"gssproxyd/mech/krb5/wire"
)

// request is one that went out.
func newTestExchange(t testing.TB) *exchange {
	t.Helper()
	key, err := etype.GenerateKey(etype.AES256SHA1)
	check(t, err)
	x, err := newExchange(&krb5.Credential{KeyType: key.Enctype(), Key: bytes.Clone(key.Secret())}, time.Now())
	check(t, err)
	return x
}

// answer is what a reply is made of.
type answer struct {
	session, subkey *etype.Key
	ctime           uint32
	cusec           int32
	repSeq, seq     uint32
	data            string
	// bytes changes the message, whose AP-REP has n octets.
	bytes func(b []byte, n int) []byte
}

func (x *exchange) answer() *answer {
	return &answer{session: x.session, subkey: x.subkey, ctime: x.ctime, cusec: x.cusec, repSeq: 77, seq: 77, data: "\x00\x00"}
}

func (a *answer) message(t testing.TB) []byte {
	t.Helper()
	rep, err := wire.AppendAPRep(nil, a.session, wire.AppendEncAPRep(nil, a.ctime, a.cusec, nil, a.repSeq))
	check(t, err)
	part := wire.EncPriv{Data: []byte(a.data), Seq: a.seq, Sender: wire.HostAddress{Type: wire.AddrINET, Data: []byte{127, 0, 0, 1}}}
	priv, err := wire.AppendPriv(nil, a.subkey, part.Append(nil))
	check(t, err)
	b := message(rep, priv)
	if a.bytes != nil {
		b = a.bytes(b, len(rep))
	}
	return b
}

func message(rep, priv []byte) []byte {
	b := binary.BigEndian.AppendUint16(nil, uint16(kpasswdHeader+len(rep)+len(priv)))
	b = binary.BigEndian.AppendUint16(b, kpasswdVersion)
	b = binary.BigEndian.AppendUint16(b, uint16(len(rep)))
	return append(append(b, rep...), priv...)
}

// Only what the server has sealed for this very request counts.
func TestReplies(t *testing.T) {
	x, other := newTestExchange(t), newTestExchange(t)
	krbError := wire.AppendKRBError(nil, wire.MinorSkew, time.Now(), wire.Name{Realm: []byte("A.TEST")})
	for _, test := range []struct {
		name  string
		spoil func(a *answer)
		code  resultCode
		text  string // of the result
		want  string // of the error
	}{
		{"good", func(a *answer) {}, 0, "", ""},
		{"refused", func(a *answer) { a.data = "\x00\x04no:\n not yet" }, 4, "no: not yet", ""},
		{"policy", func(a *answer) {
			a.data = "\x00\x04\x00\x00" + "\x00\x00\x00\x07" + "\x00\x00\x00\x18" + "\x00\x00\x00\x01" + "\x00\x00\x22\x55\x4d\x9d\x00\x00" + "\x00\x00\x00\xc9\x2a\x69\xc0\x00"
		}, 4, "the domain's policy is a minimum length of 7, a minimum age of 24h0m0s, and that none of the last 24 comes back", ""},
		{"no result", func(a *answer) { a.data = "\x00" }, 0, "", "no result code"},
		{"another request's time", func(a *answer) { a.cusec++ }, 0, "", "answers another request"},
		{"another session", func(a *answer) { a.session = other.session }, 0, "", "AP-REP"},
		{"another subkey", func(a *answer) { a.subkey = other.subkey }, 0, "", "KRB-PRIV"},
		{"in the session key", func(a *answer) { a.subkey = a.session }, 0, "", "KRB-PRIV"},
		{"another number", func(a *answer) { a.seq++ }, 0, "", "does not have the number"},
		{"our own message", func(a *answer) { a.seq, a.data = x.seq, "password" }, 0, "", "does not have the number"},
		{"our own number", func(a *answer) { a.seq, a.repSeq = x.seq, x.seq }, 0, "", "does not have the number"},
		{"an error behind an AP-REP", func(a *answer) {
			a.bytes = func(b []byte, n int) []byte { return message(b[kpasswdHeader:kpasswdHeader+n], krbError) }
		}, 0, "", "KRB-PRIV"},
		{"an error", func(a *answer) { a.bytes = func([]byte, int) []byte { return message(nil, krbError) } }, 0, "", "proves nothing: Clock skew too great"},
		{"a bare error", func(a *answer) { a.bytes = func([]byte, int) []byte { return krbError } }, 0, "", "proves nothing: Clock skew too great"},
		{"a broken error", func(a *answer) { a.bytes = func([]byte, int) []byte { return krbError[:9] } }, 0, "", "KRB-ERROR"},
		{"a wrong length", func(a *answer) { a.bytes = func(b []byte, _ int) []byte { return append(b, 0) } }, 0, "", "no message of the protocol"},
		{"nothing", func(a *answer) { a.bytes = func([]byte, int) []byte { return nil } }, 0, "", "no message of the protocol"},
		{"an AP-REP that goes on", func(a *answer) {
			a.bytes = func(b []byte, _ int) []byte { b[4] = 0xff; return b }
		}, 0, "", "shorter than its AP-REP"},
	} {
		t.Run(test.name, func(t *testing.T) {
			a := x.answer()
			test.spoil(a)
			b := a.message(t)
			res, err := x.reply(bytes.NewReader(append(binary.BigEndian.AppendUint32(nil, uint32(len(b))), b...)))
			if res.code != test.code || res.text != test.text || (res.age > 0) != (test.name == "policy") || (err == nil) != (test.want == "") || err != nil && !strings.Contains(err.Error(), test.want) {
				t.Errorf("%v, %v; want %d %q, %q", res, err, test.code, test.text, test.want)
			}
		})
	}
	for name, sent := range map[string]string{"no answer": "", "is not complete": "\x00\x00\x00\x40half", "4294967295 octets is announced": "\xff\xff\xff\xff"} {
		if _, err := x.reply(strings.NewReader(sent)); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%q gives %v, want %s", sent, err, name)
		}
	}
	if all := fmt.Sprintf("%v %+v %#v %s", x, x, *x, x); strings.Contains(all, "0x") || !strings.Contains(all, "redacted") {
		t.Errorf("an exchange prints as %s", all)
	}
}

// FuzzReply: whatever a server sends, there is an error or a result, and no panic.
func FuzzReply(f *testing.F) {
	x := newTestExchange(f)
	f.Add(x.answer().message(f))
	f.Add(message(nil, wire.AppendKRBError(nil, wire.MinorSkew, time.Now(), wire.Name{})))
	f.Fuzz(func(t *testing.T, b []byte) {
		if res, err := x.open(b); err == nil && res.code != 0 {
			t.Errorf("a result that nobody has sealed: %v", res)
		}
	})
}

func TestKeys(t *testing.T) {
	if _, err := Keys(etype.Secret("password"), "salt", nil, []etype.ID{etype.AES256SHA1, 99}); err == nil {
		t.Error("keys of a type that there is not")
	}
	// Parameters are those of AES of RFC 3962 alone.
	types := []etype.ID{etype.AES256SHA1, etype.AES128SHA1, etype.AES256SHA384, etype.RC4}
	plain, err := Keys(etype.Secret("password"), "salt", nil, types)
	check(t, err)
	more, err := Keys(etype.Secret("password"), "salt", []byte{0, 0, 0x20, 0}, types)
	check(t, err)
	for i, id := range types {
		if same := bytes.Equal(plain[i].Secret(), more[i].Secret()); same == rfc3962(id) {
			t.Errorf("%v: with other parameters the key is the same: %v", id, same)
		}
	}
}
