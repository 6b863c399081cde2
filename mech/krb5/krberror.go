package krb5

import (
	"strings"
	"time"

	"gssproxyd/mech"
	"gssproxyd/mech/krb5/der"
	"gssproxyd/mech/krb5/wire"
	"gssproxyd/mech/reason"
)

// Minor codes of the other tables, and the two errno values MIT's PAC and authorization data code uses.
const (
	minorBadLength = mech.MinorK5G + 6   // KG_BAD_LENGTH
	minorWrongMech = mech.MinorGGSS + 11 // G_WRONG_MECH
	minorBadHeader = mech.MinorGGSS + 12 // G_BAD_TOK_HEADER
	minorEINVAL    = 22
	minorERANGE    = 34
)

// shown makes s, which the peer chose, fit for messages: printable and of bounded length.
func shown[S ~string | ~[]byte](s S) string {
	const limit = 200
	t := string(s[:min(len(s), limit)])
	t = strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f || r == '\ufffd' || 0x80 <= r && r < 0xa0 {
			return '?'
		}
		return r
	}, t)
	if len(s) > limit {
		t += "..."
	}
	return t
}

// appendKRBError appends the framed KRB-ERROR (RFC 4120 section 5.9.1, RFC 4121 section 4.1) for a
// failure whose minor status is minor. Codes outside 0..127 become KRB_ERR_GENERIC. server is the
// ticket's.
func appendKRBError(dst []byte, oid mech.OID, minor uint32, now time.Time, server wireName) []byte {
	code := minor - mech.MinorKRB5
	if code > 127 {
		code = wire.MinorGeneric - mech.MinorKRB5
	}
	dst, frame := beginFrame(dst, oid, tokKRBError)
	dst, app := der.Begin(dst, der.Application(30))
	dst, seq := der.Begin(dst, der.Sequence)
	dst = appendIntField(dst, 0, 5)
	dst = appendIntField(dst, 1, 30)
	dst = appendTimeField(dst, 4, uint32(now.Unix()))
	dst = appendIntField(dst, 5, int64(now.Nanosecond()/1000))
	dst = appendIntField(dst, 6, int64(code))
	dst, f := der.Begin(dst, der.Context(9))
	dst = der.AppendString(dst, server.realm)
	dst = der.End(dst, f)
	dst, f = der.Begin(dst, der.Context(10))
	dst, name := der.Begin(dst, der.Sequence)
	dst = appendIntField(dst, 0, int64(server.kind))
	dst, g := der.Begin(dst, der.Context(1))
	dst = der.AppendValue(dst, der.Sequence, server.comps)
	dst = der.End(dst, g)
	dst = der.End(dst, name)
	dst = der.End(dst, f)
	dst = der.End(dst, seq)
	dst = der.End(dst, app)
	return der.End(dst, frame)
}

// krbError is what is read of a KRB-ERROR (RFC 4120 section 5.9.1). Nothing in it is authenticated.
type krbError struct {
	stime  uint32
	code   int32
	server wireName
	text   []byte // nil when absent
}

// parse reads b.
func (e *krbError) parse(b []byte) *mech.Error {
	if len(b) == 0 || b[0] != byte(der.Application(30)) {
		return mech.Errorf(mech.Failure, wire.MinorMsgType, reason.DefectiveToken, ": expected a KRB-ERROR")
	}
	*e = krbError{}
	r := der.NewReader(b)
	app := r.Enter(der.Application(30))
	seq := r.Enter(der.Sequence)
	ok := readVersion(&r, 0)
	f := r.Field(1)
	r.Int32()
	r.Leave(f)
	readTime(&r, 2)
	if r.Has(3) {
		f = r.Field(3)
		r.Int32()
		r.Leave(f)
	}
	f = r.Field(4)
	e.stime = r.Time()
	r.Leave(f)
	f = r.Field(5)
	r.Int32()
	r.Leave(f)
	f = r.Field(6)
	e.code = r.Int32()
	r.Leave(f)
	var client wireName
	if r.Has(7) {
		f = r.Field(7)
		client.realm = r.String()
		r.Leave(f)
	}
	if r.Has(8) {
		f = r.Field(8)
		readName(&r, &client)
		r.Leave(f)
	}
	readRealmAndName(&r, 9, &e.server)
	if r.Has(11) {
		f = r.Field(11)
		e.text = r.String()
		r.Leave(f)
	}
	r.LeaveOpen(seq)
	r.Leave(app)
	return malformed("KRB-ERROR", &r, ok)
}

// failure returns the error that e reports.
func (e *krbError) failure(now time.Time) *mech.Error {
	said := "answer of " + shown(e.server.appendString(nil))
	if len(e.text) > 0 {
		said += ": " + shown(e.text)
	}
	minor := mech.MinorKRB5 + uint32(e.code)
	switch minor {
	case mech.MinorKRB5:
		return mech.Errorf(mech.Failure, 0, reason.PeerError, ": %s reports an error without a code", said)
	case wire.MinorSkew:
		way, by := "ahead of", int64(e.stime)-now.Unix()
		if by < 0 {
			way, by = "behind", -by
		}
		return mech.Errorf(mech.Failure, wire.MinorSkew, reason.ClockSkew, ": %s, whose clock is %ds %s this one", said, by, way)
	}
	return mech.Errorf(mech.Failure, minor, reason.PeerError, ": %s", said)
}
