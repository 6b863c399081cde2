package krb5

import (
	"encoding/binary"
	"math"
	"slices"

	"gssproxyd/mech"
	"gssproxyd/mech/krb5/der"
	"gssproxyd/mech/krb5/etype"
	"gssproxyd/mech/krb5/wire"
	"gssproxyd/mech/reason"
)

// What an initiator writes. Every message goes straight into its buffer, from the outside in.

// appendEncrypted appends the field [n] with an EncryptedData (RFC 4120 section 5.2.9) in a key that has
// no version.
func appendEncrypted(dst []byte, n int, k *etype.Key, usage uint32, plain []byte) ([]byte, error) {
	dst, f := der.Begin(dst, der.Context(n))
	dst, enc := der.Begin(dst, der.Sequence)
	dst = appendIntField(dst, 0, int64(k.Enctype()))
	dst, g := der.Begin(dst, der.Context(2))
	dst = der.AppendHeader(dst, der.OctetString, len(plain)+k.Enctype().Overhead())
	dst, err := k.Encrypt(dst, usage, plain)
	if err != nil {
		return nil, err
	}
	return der.End(der.End(der.End(dst, g), enc), f), nil
}

// appendFlagsField appends the field [n] with a KerberosFlags.
func appendFlagsField(dst []byte, n int, flags uint32) []byte {
	dst, f := der.Begin(dst, der.Context(n))
	return der.End(der.AppendFlags(dst, flags), f)
}

// appendNameFields appends the fields [n] realm and [n+1] name of p.
func appendNameFields(dst []byte, n int, p *Principal) []byte {
	dst, f := der.Begin(dst, der.Context(n))
	dst = der.End(der.AppendString(dst, p.Realm), f)
	dst, f = der.Begin(dst, der.Context(n+1))
	dst, seq := der.Begin(dst, der.Sequence)
	dst = appendIntField(dst, 0, int64(p.Type))
	dst, g := der.Begin(dst, der.Context(1))
	dst, list := der.Begin(dst, der.Sequence)
	for _, c := range p.Components {
		dst = der.AppendString(dst, c)
	}
	return der.End(der.End(der.End(der.End(dst, list), g), seq), f)
}

// appendTypedValue appends the shape readTyped reads.
func appendTypedValue(dst []byte, kind int32, data []byte) []byte {
	dst, seq := der.Begin(dst, der.Sequence)
	dst = appendIntField(dst, 0, int64(kind))
	dst, f := der.Begin(dst, der.Context(1))
	return der.End(der.End(der.AppendOctets(dst, data), f), seq)
}

// appendAPReq appends an AP-REQ (RFC 4120 section 5.5.1) with the encoded authenticator auth encrypted in
// the session key.
func appendAPReq(dst []byte, options uint32, ticket []byte, session *etype.Key, auth []byte) ([]byte, error) {
	dst, app := der.Begin(dst, der.Application(14))
	dst, seq := der.Begin(dst, der.Sequence)
	dst = appendIntField(dst, 0, 5)
	dst = appendIntField(dst, 1, 14)
	dst = appendFlagsField(dst, 2, options)
	dst, f := der.Begin(dst, der.Context(3))
	dst = der.End(append(dst, ticket...), f)
	dst, err := appendEncrypted(dst, 4, session, wire.UsageAPReq, auth)
	if err != nil {
		return nil, err
	}
	return der.End(der.End(dst, seq), app), nil
}

// appendAuthenticator appends the Authenticator (RFC 4120 section 5.5.1) of the context in out, with the
// GSS-API's own data in place of a checksum.
func (i *Initiator) appendAuthenticator(dst []byte, out *Initiated, flags uint32, at authenticatorTime, seq uint32) ([]byte, *mech.Error) {
	dst, app := der.Begin(dst, der.Application(2))
	dst, list := der.Begin(dst, der.Sequence)
	dst = appendIntField(dst, 0, 5)
	dst = appendNameFields(dst, 1, &i.Ticket.Client)

	dst, f := der.Begin(dst, der.Context(3))
	dst, sum := der.Begin(dst, der.Sequence)
	dst = appendIntField(dst, 0, int64(wire.SumGSSAPI))
	dst, g := der.Begin(dst, der.Context(1))
	dst, octets := der.Begin(dst, der.OctetString)
	dst, err := i.appendChecksum(dst, out, flags, at, seq)
	if err != nil {
		return dst, err
	}
	dst = der.End(der.End(der.End(der.End(dst, octets), g), sum), f)

	dst = appendIntField(dst, 4, int64(at.cusec))
	dst = appendTimeField(dst, 5, at.ctime)
	dst = appendKeyField(dst, 6, &out.subkey)
	dst = appendIntField(dst, 7, int64(seq))
	dst = i.appendAuthDataField(dst, flags)
	return der.End(der.End(dst, list), app), nil
}

// appendChecksum appends what checksum8003.go describes.
func (i *Initiator) appendChecksum(dst []byte, out *Initiated, flags uint32, at authenticatorTime, seq uint32) ([]byte, *mech.Error) {
	var bnd [16]byte
	if i.Bindings != nil {
		bnd = i.Bindings.sum()
	}
	dst = binary.LittleEndian.AppendUint32(dst, uint32(len(bnd)))
	dst = append(dst, bnd[:]...)
	dst = binary.LittleEndian.AppendUint32(dst, flags)
	if flags&mech.FlagDeleg == 0 {
		return dst, nil
	}
	dst = binary.LittleEndian.AppendUint16(dst, gssDelegOption)
	length := len(dst)
	dst = append(dst, 0, 0)
	out.plain = appendEncKRBCredPart(out.plain[:0], i.Delegate, seq, at)
	dst, err := appendKRBCred(dst, i.Delegate.Ticket, &out.session, out.plain)
	if err != nil {
		return dst, mech.Errorf(mech.Failure, 0, reason.Internal, ": %v", err)
	}
	n := len(dst) - length - 2
	if n+28 > math.MaxUint16 {
		return dst, mech.Errorf(mech.Failure, wire.MinorTooLong, reason.BadDelegation, ": the credential of %s is too large to be delegated", shown(i.Delegate.Client.String()))
	}
	binary.LittleEndian.PutUint16(dst[length:], uint16(n))
	return dst, nil
}

// appendAuthDataField appends the authenticator's field [8] unless it is empty: in one AD-IF-RELEVANT the
// encryption types that this side prefers to the session key's (RFC 4537), which only a mutual context can
// make use of, and the wish that the acceptor enforce channel bindings (MS-KILE); then what the ticket was
// restricted with.
func (i *Initiator) appendAuthDataField(dst []byte, flags uint32) []byte {
	session, permitted := i.Ticket.KeyType, permittedEnctypes(i.Conf)
	upgrade := flags&mech.FlagMutual != 0 && permitted[0] != session
	cbt := i.Flags&mech.FlagChannelBound != 0 || i.Conf != nil && i.Conf.ClientAwareBindings
	if !upgrade && !cbt && len(i.Ticket.AuthData) == 0 {
		return dst
	}
	dst, f := der.Begin(dst, der.Context(8))
	dst, list := der.Begin(dst, der.Sequence)
	if upgrade || cbt {
		var room [3][128]byte
		elements := room[0][:0]
		if upgrade {
			types, seq := der.Begin(room[1][:0], der.Sequence)
			for _, et := range permitted[:slices.Index(permitted, session)+1] {
				types = der.AppendInt(types, int64(et))
			}
			elements = appendTypedValue(elements, wire.ADEtypeNegotiation, der.End(types, seq))
		}
		if cbt {
			elements = appendTypedValue(elements, wire.ADAPOptions, []byte{apOptionsCBT & 0xff, apOptionsCBT >> 8, 0, 0})
		}
		dst = appendTypedValue(dst, wire.ADIfRelevant, der.AppendValue(room[2][:0], der.Sequence, elements))
	}
	for _, a := range i.Ticket.AuthData {
		dst = appendTypedValue(dst, a.Type, a.Data)
	}
	return der.End(der.End(dst, list), f)
}
