package spnego

import (
	"context"

	"gssproxyd/mech"
	"gssproxyd/mech/reason"
)

// Initiator is the initiating end of one negotiation, a [Context] around those of Mechs: set Mechs,
// and call Step until it says that the context is established.
type Initiator struct {
	// Mechs are what is on offer, the preferred one first. Its first token goes out together with
	// the offer; when it fails to make one it is left out, and the next one is tried.
	Mechs []Mech

	state
}

var _ Context = (*Initiator)(nil)

// Step takes the acceptor's token and returns the next one for it, if there is one, which may be so
// even when the context is established. What is given at the beginning, such as NegHints, is passed
// over.
//
// A failure of the negotiation is a *[mech.Error], whose Token tells the acceptor; other errors are
// the Context's. Both are final.
func (i *Initiator) Step(ctx context.Context, token []byte) (reply []byte, done bool, err error) {
	switch {
	case i.over:
		return nil, false, errOver()
	case i.inner == nil:
		return i.begin(ctx)
	}
	resp, err := ParseResp(token)
	if err != nil {
		return nil, false, i.fail(err, true)
	}
	first := !i.negotiated
	i.negotiated = true
	switch chosen := known(resp.SupportedMech); {
	case resp.State == Reject && (len(resp.ResponseToken) == 0 || i.established):
		return nil, false, i.fail(i.rejected(first), false)
	case chosen != "" && !same(chosen, i.mech):
		return i.reselect(ctx, chosen, &resp, first)
	case i.established:
		return i.confirm(&resp, first)
	}
	return i.proceed(ctx, &resp, first)
}

// begin makes the NegTokenInit with the first token of the first mechanism that has one.
func (i *Initiator) begin(ctx context.Context) ([]byte, bool, error) {
	var failure error
	for n, m := range i.Mechs {
		inner := m.New()
		token, complete, err := inner.Step(ctx, nil)
		if err != nil {
			if failure == nil {
				failure = err
			}
			if ctx.Err() != nil {
				break
			}
			continue
		}
		i.inner, i.mech, i.established = inner, m.OID, complete
		i.types = appendMechTypes(nil, i.Mechs[n:])
		t := NegTokenInit{MechTypes: i.types, MechToken: present(token)}
		return t.Append(nil), false, nil
	}
	if failure == nil {
		failure = mech.Errorf(mech.Failure, MinorNoMechs, reason.WrongMech, ": there is no mechanism to offer").Of(mech.SPNEGO)
	}
	return nil, false, i.fail(failure, false)
}

// rejected returns what a rejection means for which the mechanism has no token that would say more.
func (i *Initiator) rejected(first bool) *mech.Error {
	if first {
		return mech.Errorf(mech.BadMech, MinorNegotiationFailed, reason.WrongMech, ": the acceptor rejects what is offered: %s", mechNames(i.types)).Of(mech.SPNEGO)
	}
	return mech.Errorf(mech.Failure, 0, reason.PeerError, "SPNEGO: the acceptor rejects the context").Of(mech.SPNEGO)
}

// reselect starts again with the mechanism that the acceptor prefers to the first one.
func (i *Initiator) reselect(ctx context.Context, chosen mech.OID, resp *NegTokenResp, first bool) ([]byte, bool, error) {
	if !first {
		return nil, false, i.fail(mech.Errorf(mech.DefectiveToken, 0, reason.DefectiveToken, "SPNEGO: the acceptor changes its choice to %s", mechName(chosen)).Of(mech.SPNEGO), true)
	}
	// RFC 4178 wants request-mic; Windows before 2008 does not know it, and falls back to NTLM.
	if resp.State != RequestMIC && (resp.State != AcceptIncomplete || chosen != NTLM) {
		return nil, false, i.fail(mech.Errorf(mech.DefectiveToken, 0, reason.DefectiveToken, "SPNEGO: the acceptor prefers %s and does not ask for a MIC (%v)", mechName(chosen), resp.State).Of(mech.SPNEGO), true)
	}
	offer := i.offered(chosen)
	if offer == nil {
		return nil, false, i.fail(mech.Errorf(mech.DefectiveToken, MinorNegotiationFailed, reason.WrongMech, ": the acceptor chooses %s; on offer was %s", mechName(chosen), mechNames(i.types)).Of(mech.SPNEGO), true)
	}
	i.inner, i.mech, i.established = offer.New(), offer.OID, false
	i.micRequired = resp.State == RequestMIC
	return i.leg(ctx, nil, resp)
}

// offered returns the first of Mechs that was offered and means the chosen mechanism, nil if none
// does.
func (i *Initiator) offered(chosen mech.OID) *Mech {
	list := mechTypes(i.types)
	for m := list.next(); m != ""; m = list.next() {
		if !same(m, chosen) {
			continue
		}
		for n := range i.Mechs {
			if i.Mechs[n].OID == m {
				return &i.Mechs[n]
			}
		}
	}
	return nil
}

// confirm takes an answer after the last token of the mechanism: what is left are the MICs.
func (i *Initiator) confirm(resp *NegTokenResp, first bool) ([]byte, bool, error) {
	if len(resp.ResponseToken) > 0 {
		return nil, false, i.fail(mech.Errorf(mech.DefectiveToken, 0, reason.DefectiveToken, "SPNEGO: a token for %s, whose context is established", mechName(i.mech)).Of(mech.SPNEGO), true)
	}
	// The acceptor takes the mechanism and wants the choice confirmed, which MIT krb5 overlooks.
	wanted := first && resp.State == RequestMIC
	i.micRequired = i.micRequired || wanted
	return i.answer(nil, resp, wanted)
}

// proceed hands the mechanism its next token.
func (i *Initiator) proceed(ctx context.Context, resp *NegTokenResp, first bool) ([]byte, bool, error) {
	if resp.ResponseToken == nil {
		return nil, false, i.fail(mech.Errorf(mech.DefectiveToken, MinorNoToken, reason.DefectiveToken, ": the token for %s is missing", mechName(i.mech)).Of(mech.SPNEGO), true)
	}
	i.micRequired = i.micRequired || first && resp.State == RequestMIC
	return i.leg(ctx, resp.ResponseToken, resp)
}

// leg has the mechanism take the acceptor's token in and make the next one. One that came with a
// rejection is there to say what is wrong.
func (i *Initiator) leg(ctx context.Context, in []byte, resp *NegTokenResp) ([]byte, bool, error) {
	out, complete, err := i.inner.Step(ctx, in)
	switch {
	case err != nil:
		return nil, false, i.fail(err, resp.State != Reject)
	case resp.State == Reject:
		return nil, false, i.fail(mech.Errorf(mech.DefectiveToken, 0, reason.PeerError, "SPNEGO: the acceptor rejects the context, with a token in which %s sees no error", mechName(i.mech)).Of(mech.SPNEGO), false)
	}
	i.established = complete
	return i.answer(out, resp, len(out) > 0)
}

// answer makes the next token, with out of the mechanism in it. oursLast is as exchangeMICs has it.
func (i *Initiator) answer(out []byte, resp *NegTokenResp, oursLast bool) ([]byte, bool, error) {
	next := NegTokenResp{State: AcceptIncomplete, ResponseToken: present(out)}
	if !i.established {
		if resp.State == AcceptCompleted {
			return nil, false, i.fail(mech.Errorf(mech.DefectiveToken, 0, reason.DefectiveToken, "SPNEGO: the acceptor is done, but %s is not", mechName(i.mech)).Of(mech.SPNEGO), true)
		}
		return next.Append(nil), false, nil
	}
	mic, protected, err := i.exchangeMICs(resp.MechListMIC, oursLast)
	if err != nil {
		return nil, false, i.fail(err, true)
	}
	next.MechListMIC = mic
	// A last token without a MIC is answered, be it with nothing: Windows counts tokens in pairs.
	if !protected || len(out) > 0 && !i.micReceived {
		return next.Append(nil), false, nil
	}
	i.over = true
	if len(out) == 0 && mic == nil {
		return nil, true, nil
	}
	next.State = AcceptCompleted
	return next.Append(nil), true, nil
}
