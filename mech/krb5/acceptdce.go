package krb5

import (
	"gssproxyd/mech"
	"gssproxyd/mech/krb5/wire"
	"gssproxyd/mech/reason"
)

// Continue takes the initiator's answer to the AP-REP that came with partial, and establishes the
// context: the third message of DCE style. Of a nothing counts. A failure is a *mech.Error, and out
// is empty.
func (a *Acceptor) Continue(out *Accepted, partial, token []byte) error {
	out.plain = append(out.plain[:0], partial...) // which may be out's own
	out.Context, out.Token, out.Delegated, out.Ticket, out.Partial = Context{}, nil, nil, nil, nil
	if err := out.finish(token); err != nil {
		out.Context = Context{}
		return err
	}
	return nil
}

// finish verifies the initiator's AP-REP: it has the number this end chose, and no key.
func (out *Accepted) finish(token []byte) *mech.Error {
	c := &out.Context
	if _, err := c.readPartial(out.plain, false, &out.session, &out.subkey, &out.reply); err != nil {
		return err
	}
	var p wire.EncAPRep
	var err *mech.Error
	if out.scratch, err = readAPRep(out.scratch, token, &out.session, &p); err != nil {
		return err
	}
	if uint64(p.Seq) != c.SendSeq || p.Subkey.Value != nil {
		return mech.Errorf(mech.Failure, wire.MinorMutualFailed, reason.MutualFailed, ": the initiator's AP-REP answers another token")
	}
	c.Window = newWindow(c.RecvSeq, c.Flags, c.Subkey.Enctype().CFX())
	return nil
}
