package krb5

import (
	"crypto/subtle"
	"encoding/binary"

	"gssproxyd/mech"
	"gssproxyd/mech/krb5/etype"
	"gssproxyd/mech/krb5/wire"
	"gssproxyd/mech/reason"
)

// The authenticator's checksum field carries the GSS-API's own data (RFC 4121 section 4.1.1) under
// the type 0x8003, little-endian:
//
//	 0   4  length of Bnd, 16
//	 4  16  Bnd: hash of the channel bindings, or zeros
//	20   4  flags
//	24   2  1, if a credential follows     (only with the delegation flag)
//	26   2  its length n
//	28   n  KRB-CRED
//	     …  extensions: type and length in 32 bits big-endian, data
//
// Some initiators send no checksum, which Windows accepts and MIT krb5 after it: no flags, no
// bindings. Others, Samba among them, send an ordinary checksum over nothing.

const (
	gssChecksumMin    = 24
	gssDelegOption    = 1
	extensionFinished = 2 // IAKERB's, which needs a conversation that this acceptor does not hold

	// initiatorFlags are the flags taken over from the initiator.
	initiatorFlags = mech.FlagMutual | mech.FlagReplay | mech.FlagSequence | mech.FlagConf |
		mech.FlagInteg | mech.FlagDCEStyle | mech.FlagIdentify | mech.FlagExtendedError
)

// gssChecksum is what the checksum says.
type gssChecksum struct {
	etype.Redacted
	flags uint32 // context flags
	bound bool   // the initiator's channel bindings are the acceptor's
	cred  []byte // KRB-CRED, nil if there is none
}

// read interprets the authenticator's checksum. cb may be nil.
func (c *gssChecksum) read(auth *wire.Authenticator, apOptions uint32, session *etype.Key, cb *ChannelBindings) *mech.Error {
	*c = gssChecksum{}
	switch {
	case !auth.HasChecksum:
		return nil
	case auth.ChecksumType != wire.SumGSSAPI:
		// That it verifies shows that the authenticator was not taken from an exchange of another
		// protocol.
		if !session.VerifyChecksumType(auth.ChecksumType, wire.UsageAPReqChecksum, auth.Checksum) {
			return mech.Errorf(mech.BadSig, 0, reason.BadChecksum, ": the authenticator's checksum is neither of type 0x8003 nor valid over an empty message")
		}
		c.flags = mech.FlagReplay | mech.FlagSequence
		if apOptions&wire.APMutualRequired != 0 {
			c.flags |= mech.FlagMutual
		}
		return nil
	}
	b := auth.Checksum
	if len(b) < gssChecksumMin {
		return mech.Errorf(mech.BadBindings, 0, reason.BadBindings, ": the authenticator's checksum is too short to hold channel bindings and flags")
	}
	if binary.LittleEndian.Uint32(b) != 16 {
		return mech.Errorf(mech.Failure, minorBadLength, reason.DefectiveToken, ": channel bindings in the authenticator's checksum are not 16 octets long")
	}
	if cb != nil {
		want, bnd := cb.sum(), b[4:20]
		c.bound = subtle.ConstantTimeCompare(bnd, want[:]) == 1
		if !c.bound && [16]byte(bnd) != [16]byte{} {
			return mech.Errorf(mech.BadBindings, 0, reason.BadBindings, ": the client's channel bindings differ from the application's")
		}
	}
	asked := binary.LittleEndian.Uint32(b[20:])
	c.flags = asked & initiatorFlags
	if c.bound {
		c.flags |= mech.FlagChannelBound
	}
	b = b[24:]
	if asked&mech.FlagDeleg != 0 && len(b) >= 4 {
		n := int(binary.LittleEndian.Uint16(b[2:]))
		if n > len(b)-4 {
			return mech.Errorf(mech.Failure, minorBadLength, reason.DefectiveToken, ": delegated credential runs beyond the authenticator's checksum")
		}
		if binary.LittleEndian.Uint16(b) != gssDelegOption {
			return mech.Errorf(mech.Failure, 0, reason.BadDelegation, ": unknown delegation option in the authenticator's checksum")
		}
		c.cred, b = b[4:4+n], b[4+n:]
		c.flags |= mech.FlagDeleg
	}
	for len(b) > 0 {
		if len(b) < 8 || uint64(binary.BigEndian.Uint32(b[4:])) > uint64(len(b)-8) {
			return mech.Errorf(mech.Failure, minorBadLength, reason.DefectiveToken, ": extension runs beyond the authenticator's checksum")
		}
		if binary.BigEndian.Uint32(b) == extensionFinished {
			return mech.Errorf(mech.Failure, wire.MinorMsgType, reason.DefectiveToken, ": IAKERB conversation hash without an IAKERB conversation")
		}
		b = b[8+int(binary.BigEndian.Uint32(b[4:])):]
	}
	return nil
}
