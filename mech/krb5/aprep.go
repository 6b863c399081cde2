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

// appendEncAPRepPart appends an EncAPRepPart (RFC 4120 section 5.5.2): the authenticator's time, the
// subkey if there is one, and the acceptor's first sequence number.
func appendEncAPRepPart(dst []byte, ctime uint32, cusec int32, subkey *etype.Key, seq uint32) []byte {
	dst, app := der.Begin(dst, der.Application(27))
	dst, list := der.Begin(dst, der.Sequence)
	dst = appendTimeField(dst, 0, ctime)
	dst = appendIntField(dst, 1, int64(cusec))
	if subkey != nil {
		dst = appendKeyField(dst, 2, subkey)
	}
	dst = appendIntField(dst, 3, int64(seq))
	dst = der.End(dst, list)
	return der.End(dst, app)
}

// appendAPRep appends the AP-REP (RFC 4120 section 5.5.2) with plain encrypted in the session key: framed,
// or without an oid bare.
func appendAPRep(dst []byte, oid mech.OID, session *etype.Key, plain []byte) ([]byte, error) {
	frame := -1
	if oid != "" {
		dst, frame = beginFrame(dst, oid, tokAPRep)
	}
	dst, app := der.Begin(dst, der.Application(15))
	dst, seq := der.Begin(dst, der.Sequence)
	dst = appendIntField(dst, 0, 5)
	dst = appendIntField(dst, 1, 15)
	dst, err := appendEncrypted(dst, 2, session, wire.UsageAPRep, plain)
	if err != nil {
		return nil, err
	}
	dst = der.End(der.End(dst, seq), app)
	if frame >= 0 {
		dst = der.End(dst, frame)
	}
	return dst, nil
}

// appendIntField appends the field [n] with an INTEGER.
func appendIntField(dst []byte, n int, v int64) []byte {
	dst, f := der.Begin(dst, der.Context(n))
	return der.End(der.AppendInt(dst, v), f)
}

// appendTimeField appends the field [n] with a KerberosTime.
func appendTimeField(dst []byte, n int, unix uint32) []byte {
	dst, f := der.Begin(dst, der.Context(n))
	return der.End(der.AppendTime(dst, unix), f)
}

// appendKeyField appends the field [n] with an EncryptionKey.
func appendKeyField(dst []byte, n int, k *etype.Key) []byte {
	dst, f := der.Begin(dst, der.Context(n))
	dst, seq := der.Begin(dst, der.Sequence)
	dst = appendIntField(dst, 0, int64(k.Enctype()))
	dst, g := der.Begin(dst, der.Context(1))
	dst = der.End(der.AppendOctets(dst, k.Secret()), g)
	return der.End(der.End(dst, seq), f)
}
