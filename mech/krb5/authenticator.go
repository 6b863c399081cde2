package krb5

import (
	"encoding/binary"
	"math"
	"slices"

	"gssproxyd/mech"
	"gssproxyd/mech/krb5/der"
	"gssproxyd/mech/krb5/wire"
	"gssproxyd/mech/reason"
)

// appendAuthenticator appends the Authenticator (RFC 4120 section 5.5.1) of the context in out,
// with the GSS-API's own data in place of a checksum. What goes into it is put together in the
// token's buffer.
func (i *Initiator) appendAuthenticator(dst []byte, out *Initiated, flags uint32, at authenticatorTime, seq uint32) ([]byte, *mech.Error) {
	parts, err := i.appendChecksum(out.token[:0], out, flags, at, seq)
	if err != nil {
		return dst, err
	}
	sum := len(parts)
	parts = i.appendAuthData(parts, flags)
	out.token = parts
	a := wire.NewAuthenticator{
		Client: &i.Ticket.Client, ChecksumType: wire.SumGSSAPI, Checksum: parts[:sum],
		Cusec: at.cusec, Ctime: at.ctime, Subkey: &out.subkey, Seq: seq, AuthData: parts[sum:],
	}
	return a.Append(dst), nil
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
	d := i.Delegate
	info := wire.CredInfo{
		Key: wire.Key{Etype: d.KeyType, Value: d.Key}, Client: d.Client, Server: d.Server, Flags: d.Flags,
		AuthTime: d.AuthTime, StartTime: d.StartTime, EndTime: d.EndTime, RenewTill: d.RenewTill, Addresses: d.Addresses,
	}
	out.plain = wire.AppendEncCred(out.plain[:0], &info, seq, at.ctime, at.cusec)
	// In the session key, not the subkey (RFC 4121 section 4.1.1).
	dst, err := wire.AppendCred(dst, d.Ticket, &out.session, out.plain)
	if err != nil {
		return dst, mech.Errorf(mech.Failure, 0, reason.Internal, ": %v", err)
	}
	n := len(dst) - length - 2
	if n+28 > math.MaxUint16 {
		return dst, mech.Errorf(mech.Failure, wire.MinorTooLong, reason.BadDelegation, ": the credential of %s is too large to be delegated", d.Client.Shown())
	}
	binary.LittleEndian.PutUint16(dst[length:], uint16(n))
	return dst, nil
}

// appendAuthData appends the elements of the authenticator's authorization data: in one
// AD-IF-RELEVANT the encryption types that this side prefers to the session key's (RFC 4537), which
// only a mutual context can make use of, and the wish that the acceptor enforce channel bindings
// (MS-KILE); then what the ticket was restricted with.
func (i *Initiator) appendAuthData(dst []byte, flags uint32) []byte {
	session, permitted := i.Ticket.KeyType, permittedEnctypes(i.Conf)
	upgrade := flags&mech.FlagMutual != 0 && permitted[0] != session
	cbt := i.Flags&mech.FlagChannelBound != 0 || i.Conf != nil && i.Conf.ClientAwareBindings
	if upgrade || cbt {
		var room [3][128]byte
		elements := room[0][:0]
		if upgrade {
			types, seq := der.Begin(room[1][:0], der.Sequence)
			for _, et := range permitted[:slices.Index(permitted, session)+1] {
				if et == session || prefers(i.Preferred, et) {
					types = der.AppendInt(types, int64(et))
				}
			}
			elements = wire.AppendTyped(elements, wire.ADEtypeNegotiation, der.End(types, seq))
		}
		if cbt {
			elements = wire.AppendTyped(elements, wire.ADAPOptions, []byte{apOptionsCBT & 0xff, apOptionsCBT >> 8, 0, 0})
		}
		dst = wire.AppendTyped(dst, wire.ADIfRelevant, der.AppendValue(room[2][:0], der.Sequence, elements))
	}
	for _, a := range i.Ticket.AuthData {
		dst = wire.AppendTyped(dst, a.Type, a.Data)
	}
	return dst
}
