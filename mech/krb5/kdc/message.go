package kdc

import (
	"cmp"
	"gssproxyd/mech"
	"gssproxyd/mech/krb5"
	"gssproxyd/mech/krb5/der"
	"gssproxyd/mech/krb5/etype"
	"gssproxyd/mech/krb5/wire"
	"gssproxyd/mech/reason"
)

// malformed makes the error of what could not be read; nil if it could.
func malformed(what string, err error) *mech.Error {
	e, bad := err.(*der.Error)
	if !bad {
		return nil
	}
	return mech.Errorf(mech.Failure, e.Fault.Minor(), reason.KDCReply, "the KDC's %s is malformed: %v", what, e)
}

// parseReply reads a reply of the kind, wire.MsgASRep or wire.MsgTGSRep.
func parseReply(kind int, b []byte) (*wire.KDCRep, *mech.Error) {
	p := new(wire.KDCRep)
	if err := malformed("reply", p.Parse(kind, b)); err != nil {
		return nil, err
	}
	if p.Version != 5 {
		return nil, mech.Errorf(mech.Failure, wire.MinorReplyModified, reason.KDCReply, ": the reply is of Kerberos version %d, expected 5", p.Version)
	}
	if p.MsgType != int32(kind) {
		return nil, mech.Errorf(mech.Failure, wire.MinorMsgType, reason.KDCReply, ": the reply says it is of type %d, expected %d", p.MsgType, kind)
	}
	return p, nil
}

// encPart is the encrypted part of a reply, with its start time filled in.
type encPart struct {
	wire.EncKDCRep
	key *etype.Key
}

// parse reads the plaintext b and overwrites it.
func (p *encPart) parse(b []byte) *mech.Error {
	defer clear(b)
	if err := malformed("reply (its encrypted part)", p.Parse(b)); err != nil {
		return err
	}
	p.StartTime = cmp.Or(p.StartTime, p.AuthTime)
	var err error
	if p.key, err = etype.NewKey(p.Key.Etype, p.Key.Value); err != nil {
		return mech.Errorf(mech.Failure, wire.MinorProgEtype, reason.EnctypeNotPermitted, ": the session key the KDC chose cannot be used: %s", err)
	}
	return nil
}

// credential makes a credential of a verified reply.
func (p *encPart) credential(rep *wire.KDCRep) *krb5.Credential {
	return &krb5.Credential{
		Client: rep.Client, Server: p.Server,
		KeyType: p.key.Enctype(), Key: append(etype.Secret{}, p.key.Secret()...),
		AuthTime: p.AuthTime, StartTime: p.StartTime, EndTime: p.EndTime, RenewTill: p.RenewTill,
		Flags: p.Flags, Addresses: p.Addresses, Ticket: append([]byte{}, rep.Ticket.Raw...),
	}
}

// parseError reads a KRB-ERROR.
func parseError(b []byte) (*wire.KRBError, *mech.Error) {
	k := new(wire.KRBError)
	return k, malformed("error message", k.Parse(b))
}

// decrypt opens what is encrypted in k, if that is of the type named.
func decrypt(enc *wire.Encrypted, k *etype.Key, usage uint32) ([]byte, error) {
	if k.Enctype() != enc.Etype {
		return nil, etype.ErrIntegrity
	}
	return k.Decrypt(nil, usage, enc.Cipher)
}
