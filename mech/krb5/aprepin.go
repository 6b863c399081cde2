package krb5

import (
	"encoding/binary"
	"errors"
	"slices"

	"gssproxyd/mech"
	"gssproxyd/mech/krb5/der"
	"gssproxyd/mech/krb5/etype"
	"gssproxyd/mech/krb5/wire"
	"gssproxyd/mech/reason"
)

// readAPRep decrypts the AP-REP b with the session key into p. The plaintext, to which p points,
// replaces what dst has.
func readAPRep(dst, b []byte, session *etype.Key, p *wire.EncAPRep) ([]byte, *mech.Error) {
	if len(b) == 0 || b[0] != byte(der.Application(wire.MsgAPRep)) {
		return dst, mech.Errorf(mech.Failure, wire.MinorMsgType, reason.DefectiveToken, ": expected an AP-REP")
	}
	var rep wire.APRep
	if err := malformed("AP-REP", rep.Parse(b)); err != nil {
		return dst, err
	}
	enc := &rep.Enc
	if enc.Etype != session.Enctype() {
		return dst, mech.Errorf(mech.Failure, wire.MinorBadEnctype, reason.MutualFailed, ": the AP-REP is encrypted with %v, the session key is of %v", enc.Etype, session.Enctype())
	}
	plain, err := session.Decrypt(dst[:0], wire.UsageAPRep, enc.Cipher)
	switch {
	case errors.Is(err, etype.ErrShort):
		return dst, mech.Errorf(mech.Failure, wire.MinorBadMsgSize, reason.DefectiveToken, ": the AP-REP is too short to be encrypted with %v", enc.Etype)
	case err != nil:
		return dst, mech.Errorf(mech.Failure, wire.MinorBadIntegrity, reason.MutualFailed, ": the AP-REP does not decrypt with the ticket's session key")
	}
	return plain, malformed("AP-REP (its encrypted part)", p.Parse(plain))
}

// openReply takes the message out of the acceptor's token for the context c. It returns the token
// id; DCE RPC has its messages bare.
func (c *Context) openReply(token []byte) (id uint16, message []byte, err *mech.Error) {
	dce := c.Flags&mech.FlagDCEStyle != 0
	switch {
	case len(token) == 0:
		return 0, nil, mech.Errorf(mech.DefectiveToken, 0, reason.DefectiveToken, ": the acceptor's token is missing")
	case dce && token[0] == byte(der.Application(wire.MsgError)):
		return tokKRBError, token, nil
	case dce && token[0] != byte(der.Application(0)):
		return tokAPRep, token, nil
	}
	r, oid, rest := readFrame(token)
	switch {
	case r.Fault() != 0:
		return 0, nil, mech.Errorf(mech.DefectiveToken, 0, reason.DefectiveToken, ": the acceptor's token has no GSS-API framing around all of it")
	case string(oid) != string(c.mech()):
		return 0, nil, mech.Errorf(mech.DefectiveToken, 0, reason.DefectiveToken, ": the acceptor's token is for mechanism %v, the context is of %v", mech.OID(oid[:min(len(oid), 32)]), c.mech())
	case len(rest) >= 2:
		id = binary.BigEndian.Uint16(rest)
	}
	if id != tokKRBError && (id != tokAPRep || dce) {
		return 0, nil, mech.Errorf(mech.DefectiveToken, 0, reason.DefectiveToken, ": expected the acceptor's AP-REP, got %s", tokenName(rest))
	}
	return id, rest[2:], nil
}

// takeAPRep verifies the AP-REP that answers the authenticator made at that time, and makes the
// context in out an established one.
func (i *Initiator) takeAPRep(out *Initiated, message []byte, at authenticatorTime) *mech.Error {
	c := &out.Context
	var p wire.EncAPRep
	var err *mech.Error
	if out.scratch, err = readAPRep(out.scratch, message, &out.session, &p); err != nil {
		return err
	}
	if p.Ctime != at.ctime || p.Cusec != at.cusec {
		return mech.Errorf(mech.Failure, wire.MinorMutualFailed, reason.MutualFailed, ": the AP-REP answers another request")
	}
	c.RecvSeq = uint64(p.Seq)
	c.Window = newWindow(c.RecvSeq, c.Flags, c.Subkey.Enctype().CFX())
	// An acceptor of the old per-message formats repeats the initiator's subkey.
	if p.Subkey.Value != nil && (c.cfx() || c.Flags&mech.FlagDCEStyle != 0 || p.Subkey.Etype != c.Subkey.Enctype()) {
		if !slices.Contains(permittedEnctypes(i.Conf), p.Subkey.Etype) {
			return notPermitted(p.Subkey.Etype, "the acceptor's subkey")
		}
		if err := initKey(&out.reply, p.Subkey, "the acceptor's subkey"); err != nil {
			return err
		}
		c.AcceptorSubkey = &out.reply
	}
	return nil
}
