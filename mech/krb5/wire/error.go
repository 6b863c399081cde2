package wire

import (
	"time"

	"gssproxyd/mech"
	"gssproxyd/mech/krb5/der"
)

// KRBError is what is read of a KRB-ERROR (RFC 4120 section 5.9.1). Nothing in it is authenticated.
type KRBError struct {
	Version int32  // not looked at here, nor by MIT's client of a KDC
	CTime   uint32 // the client's, of its request; 0 when absent
	STime   uint32
	Code    int32
	Client  Name // without realm or components where they are absent
	Server  Name
	Text    []byte // nil when absent
	Data    []byte // nil when absent
}

// IsKRBError reports whether b begins as a KRB-ERROR does.
func IsKRBError(b []byte) bool { return len(b) > 0 && der.Tag(b[0]) == der.Application(MsgError) }

// Parse reads b.
func (e *KRBError) Parse(b []byte) error {
	*e = KRBError{}
	r, m := enter(b, MsgError)
	e.Version = readInt(&r, 0)
	readInt(&r, 1)
	e.CTime = readOptionalTime(&r, 2)
	if r.Has(3) {
		readInt(&r, 3)
	}
	e.STime = readTime(&r, 4)
	readInt(&r, 5)
	e.Code = readInt(&r, 6)
	if r.Has(7) {
		e.Client.Realm = readString(&r, 7)
	}
	if r.Has(8) {
		readNameField(&r, 8, &e.Client)
	}
	readRealmAndName(&r, 9, &e.Server)
	if r.Has(11) {
		e.Text = readString(&r, 11)
	}
	if r.Has(12) {
		e.Data = readOctets(&r, 12)
	}
	return m.leave(&r)
}

// Minor returns the minor status of the code, that of KRB_ERR_GENERIC for one that is no error
// code.
func (e *KRBError) Minor() uint32 {
	if e.Code > 0 && e.Code < 128 {
		return mech.MinorKRB5 + uint32(e.Code)
	}
	return MinorGeneric
}

// AppendKRBError appends the KRB-ERROR for a failure whose minor status is minor, KRB_ERR_GENERIC
// for one that is no code of the protocol. server is the ticket's.
func AppendKRBError(dst []byte, minor uint32, now time.Time, server Name) []byte {
	code := minor - mech.MinorKRB5
	if code > 127 {
		code = MinorGeneric - mech.MinorKRB5
	}
	dst, m := beginMessage(dst, MsgError)
	dst = appendTime(dst, 4, uint32(now.Unix()))
	dst = appendInt(dst, 5, int64(now.Nanosecond()/1000))
	dst = appendInt(dst, 6, int64(code))
	dst = appendString(dst, 9, server.Realm)
	dst, f := der.Begin(dst, der.Context(10))
	dst, name := der.Begin(dst, der.Sequence)
	dst = appendInt(dst, 0, int64(server.Type))
	dst, g := der.Begin(dst, der.Context(1))
	dst = der.End(der.AppendValue(dst, der.Sequence, server.Components), g)
	return m.end(der.End(der.End(dst, name), f))
}
