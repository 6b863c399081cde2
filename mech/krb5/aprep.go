package krb5

import (
	"gssproxyd/mech"
	"gssproxyd/mech/krb5/der"
	"gssproxyd/mech/krb5/etype"
	"gssproxyd/mech/krb5/wire"
)

// Token ids (RFC 4121 section 4.1), big-endian in front of the message inside the framing.
const (
	tokAPReq    = 0x0100
	tokAPRep    = 0x0200
	tokKRBError = 0x0300
)

// beginFrame begins the framing of RFC 2743 section 3.1; der.End ends it.
func beginFrame(dst []byte, oid mech.OID, id uint16) ([]byte, int) {
	dst, mark := der.Begin(dst, der.Application(0))
	dst = append(der.AppendHeader(dst, der.ObjectID, len(oid)), oid...)
	return append(dst, byte(id>>8), byte(id)), mark
}

// readFrame reads the framing of GSS-API (RFC 2743 section 3.1), which has to be around all of the
// token; whether it is there the reader says.
func readFrame(token []byte) (r der.Reader, oid, inner []byte) {
	r = der.NewReader(token)
	outer := r.Enter(der.Application(0))
	oid, inner = r.Value(der.ObjectID), r.Rest()
	r.Leave(outer)
	if r.More() {
		r.Fail(der.BadLength)
	}
	return r, oid, inner
}

// appendAPRep appends the AP-REP with plain encrypted in the session key: framed, or without an oid
// bare.
func appendAPRep(dst []byte, oid mech.OID, session *etype.Key, plain []byte) ([]byte, error) {
	if oid == "" {
		return wire.AppendAPRep(dst, session, plain)
	}
	dst, frame := beginFrame(dst, oid, tokAPRep)
	dst, err := wire.AppendAPRep(dst, session, plain)
	if err != nil {
		return nil, err
	}
	return der.End(dst, frame), nil
}
