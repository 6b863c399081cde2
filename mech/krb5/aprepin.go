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

// encAPRepPart is an EncAPRepPart (RFC 4120 section 5.5.2). It aliases the plaintext.
type encAPRepPart struct {
	etype.Redacted
	ctime  uint32
	cusec  int32
	subkey wireKey
	seq    uint32 // 0 when absent
}

// parse reads the plaintext b.
func (p *encAPRepPart) parse(b []byte) *mech.Error {
	*p = encAPRepPart{}
	r := der.NewReader(b)
	app := r.Enter(der.Application(27))
	seq := r.Enter(der.Sequence)
	f := r.Field(0)
	p.ctime = r.Time()
	r.Leave(f)
	f = r.Field(1)
	p.cusec = r.Int32()
	r.Leave(f)
	if r.Has(2) {
		f = r.Field(2)
		readKey(&r, &p.subkey)
		r.Leave(f)
	}
	if r.Has(3) {
		f = r.Field(3)
		p.seq = r.Uint32()
		r.Leave(f)
	}
	r.LeaveOpen(seq)
	r.Leave(app)
	return malformed("AP-REP (its encrypted part)", &r, true)
}

// readAPRep decrypts the AP-REP b with the session key into p. The plaintext, to which p points, replaces
// what dst has.
func readAPRep(dst, b []byte, session *etype.Key, p *encAPRepPart) ([]byte, *mech.Error) {
	if len(b) == 0 || b[0] != byte(der.Application(15)) {
		return dst, mech.Errorf(mech.Failure, wire.MinorMsgType, reason.DefectiveToken, ": expected an AP-REP")
	}
	r := der.NewReader(b)
	app := r.Enter(der.Application(15))
	seq := r.Enter(der.Sequence)
	ok := readVersion(&r, 0)
	f := r.Field(1)
	r.Int32()
	r.Leave(f)
	f = r.Field(2)
	var enc encrypted
	readEncrypted(&r, &enc)
	r.Leave(f)
	r.LeaveOpen(seq)
	r.Leave(app)
	if err := malformed("AP-REP", &r, ok); err != nil {
		return dst, err
	}
	if enc.etype != session.Enctype() {
		return dst, mech.Errorf(mech.Failure, wire.MinorBadEnctype, reason.MutualFailed, ": the AP-REP is encrypted with %v, the session key is of %v", enc.etype, session.Enctype())
	}
	plain, err := session.Decrypt(dst[:0], wire.UsageAPRep, enc.cipher)
	switch {
	case errors.Is(err, etype.ErrShort):
		return dst, mech.Errorf(mech.Failure, wire.MinorBadMsgSize, reason.DefectiveToken, ": the AP-REP is too short to be encrypted with %v", enc.etype)
	case err != nil:
		return dst, mech.Errorf(mech.Failure, wire.MinorBadIntegrity, reason.MutualFailed, ": the AP-REP does not decrypt with the ticket's session key")
	}
	return plain, p.parse(plain)
}

// openReply takes the message out of the acceptor's token for the context c. It returns the token id; DCE
// RPC has its messages bare.
func (c *Context) openReply(token []byte) (id uint16, message []byte, err *mech.Error) {
	dce := c.Flags&mech.FlagDCEStyle != 0
	switch {
	case len(token) == 0:
		return 0, nil, mech.Errorf(mech.DefectiveToken, 0, reason.DefectiveToken, ": the acceptor's token is missing")
	case dce && token[0] == byte(der.Application(30)):
		return tokKRBError, token, nil
	case dce && token[0] != byte(der.Application(0)):
		return tokAPRep, token, nil
	}
	r := der.NewReader(token)
	outer := r.Enter(der.Application(0))
	oid := r.Value(der.ObjectID)
	rest := r.Rest()
	r.Leave(outer)
	switch {
	case r.Fault() != 0 || r.More():
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

// takeAPRep verifies the AP-REP that answers the authenticator made at that time, and makes the context in
// out an established one.
func (i *Initiator) takeAPRep(out *Initiated, message []byte, at authenticatorTime) *mech.Error {
	c := &out.Context
	var p encAPRepPart
	var err *mech.Error
	if out.scratch, err = readAPRep(out.scratch, message, &out.session, &p); err != nil {
		return err
	}
	if p.ctime != at.ctime || p.cusec != at.cusec {
		return mech.Errorf(mech.Failure, wire.MinorMutualFailed, reason.MutualFailed, ": the AP-REP answers another request")
	}
	c.RecvSeq = uint64(p.seq)
	c.Window = NewWindow(c.RecvSeq, c.Flags, c.Subkey.Enctype().CFX())
	// An acceptor of the old per-message formats repeats the initiator's subkey.
	if p.subkey.value != nil && (c.cfx() || c.Flags&mech.FlagDCEStyle != 0 || p.subkey.etype != c.Subkey.Enctype()) {
		if !slices.Contains(permittedEnctypes(i.Conf), p.subkey.etype) {
			return notPermitted(p.subkey.etype, "the acceptor's subkey")
		}
		if err := initKey(&out.reply, p.subkey, "the acceptor's subkey"); err != nil {
			return err
		}
		c.AcceptorSubkey = &out.reply
	}
	return nil
}
