package spnego

import (
	"bytes"
	"context"

	"gssproxyd/mech"
	"gssproxyd/mech/reason"
)

// Acceptor is the accepting end of one negotiation, a [Context] around that of one of Mechs: set
// Mechs, and call Step with each token until it says that the context is established.
type Acceptor struct {
	// Mechs are what is accepted; the initiator's order counts. mech.KRB5 stands for the other
	// identifiers of Kerberos too.
	Mechs []Mech

	state
	offer  *Mech // the one of Mechs that was chosen
	raw    bool  // the initiator does without SPNEGO, and so do the replies
	hinted bool  // NegHints were sent
}

var _ Context = (*Acceptor)(nil)

// Step takes the initiator's token and returns the answer, if there is one, which goes to the
// initiator even when the context is established.
//
// An empty first token asks what is on offer and is answered with NegHints. A first token of one of
// Mechs without a negotiation around it is accepted like mechglue would, and answered likewise.
//
// A failure of the negotiation is a *[mech.Error], whose Token tells the initiator; other errors
// are the Context's. Both are final.
func (a *Acceptor) Step(ctx context.Context, token []byte) (reply []byte, done bool, err error) {
	switch {
	case a.over:
		return nil, false, errOver()
	case a.raw:
		return a.stepRaw(ctx, token)
	case a.negotiated:
		return a.proceed(ctx, token)
	case len(token) == 0 && !a.hinted:
		return a.hint()
	}
	if m := tokenMech(token); m != "" && m != mech.SPNEGO {
		return a.beginRaw(ctx, m, token)
	}
	return a.begin(ctx, token)
}

// hint answers an initiator that wants the acceptor to begin; its own first token is still to come.
func (a *Acceptor) hint() ([]byte, bool, error) {
	a.hinted = true
	t := NegTokenInit{MechTypes: appendMechTypes(nil, a.Mechs), Hints: hints}
	return t.Append(nil), false, nil
}

// beginRaw begins without a negotiation.
func (a *Acceptor) beginRaw(ctx context.Context, m mech.OID, token []byte) ([]byte, bool, error) {
	for n := range a.Mechs {
		if same(a.Mechs[n].OID, m) {
			a.raw, a.inner = true, a.Mechs[n].New()
			return a.stepRaw(ctx, token)
		}
	}
	return nil, false, a.fail(mech.Errorf(mech.BadMech, 0, reason.WrongMech, "SPNEGO: the token is of %s, accepted is %s", mechName(m), mechNames(appendMechTypes(nil, a.Mechs))).Of(mech.SPNEGO), false)
}

func (a *Acceptor) stepRaw(ctx context.Context, token []byte) ([]byte, bool, error) {
	out, done, err := a.inner.Step(ctx, token)
	a.established, a.over = done, done || err != nil
	if err != nil {
		return nil, false, err
	}
	return out, done, nil
}

// begin chooses the mechanism, and hands it the first token if that is for it.
func (a *Acceptor) begin(ctx context.Context, token []byte) ([]byte, bool, error) {
	t, err := ParseInit(token)
	if err == nil {
		err = a.choose(t.MechTypes)
	}
	if err != nil {
		return nil, false, a.fail(err, true)
	}
	next := NegTokenResp{State: AcceptIncomplete, SupportedMech: []byte(a.mech)}
	if a.micRequired {
		next.State = RequestMIC // and the token, of another mechanism, is of no use
		return next.Append(nil), false, nil
	}
	return a.leg(ctx, t.MechToken, t.MechListMIC, &next)
}

// choose takes the first of the initiator's mechanisms that is accepted here. Kerberos by its old
// number is not taken from a list, as MIT krb5 does not.
func (a *Acceptor) choose(types []byte) error {
	list := mechTypes(types)
	for preferred, m := true, list.next(); m != ""; preferred, m = false, list.next() {
		for n := range a.Mechs {
			offer := &a.Mechs[n]
			if offer.OID != m && (m != mech.KRB5Wrong || offer.OID != mech.KRB5) {
				continue
			}
			a.offer, a.types = offer, bytes.Clone(types)
			a.negotiated, a.micRequired = true, !preferred
			a.mech = m // if it is Microsoft's number, Windows wants to read what it wrote
			return nil
		}
	}
	return mech.Errorf(mech.BadMech, 0, reason.WrongMech, "SPNEGO: the initiator offers %s, accepted is %s", mechNames(types), mechNames(appendMechTypes(nil, a.Mechs))).Of(mech.SPNEGO)
}

// proceed takes a later token: of the mechanism, with a MIC, or both.
func (a *Acceptor) proceed(ctx context.Context, token []byte) ([]byte, bool, error) {
	resp, err := ParseResp(token)
	if err == nil {
		err = a.check(&resp)
	}
	if err != nil {
		return nil, false, a.fail(err, resp.State != Reject)
	}
	return a.leg(ctx, resp.ResponseToken, resp.MechListMIC, &NegTokenResp{State: AcceptIncomplete})
}

// check refuses a later token of the initiator that has not what it needs or has what it must not
// have.
func (a *Acceptor) check(resp *NegTokenResp) error {
	switch {
	case resp.State == Reject:
		return mech.Errorf(mech.Failure, 0, reason.PeerError, "SPNEGO: the initiator rejects the context").Of(mech.SPNEGO)
	case resp.SupportedMech != nil:
		return mech.Errorf(mech.DefectiveToken, 0, reason.DefectiveToken, "SPNEGO: the initiator answers with a choice of mechanism, which is the acceptor's to make").Of(mech.SPNEGO)
	case len(resp.ResponseToken) > 0 && a.established:
		return mech.Errorf(mech.DefectiveToken, 0, reason.DefectiveToken, "SPNEGO: a token for %s, whose context is established", mechName(a.mech)).Of(mech.SPNEGO)
	case len(resp.ResponseToken) == 0 && !a.established:
		return mech.Errorf(mech.DefectiveToken, 0, reason.DefectiveToken, "SPNEGO: the initiator's token for %s is missing", mechName(a.mech)).Of(mech.SPNEGO)
	case len(resp.ResponseToken) == 0 && resp.MechListMIC == nil:
		return mech.Errorf(mech.DefectiveToken, 0, reason.DefectiveToken, "SPNEGO: there is neither a token nor a MIC").Of(mech.SPNEGO)
	}
	return nil
}

// leg has the mechanism take the initiator's token in, if there is one, and completes the answer
// next with the mechanism's token and with our MIC.
func (a *Acceptor) leg(ctx context.Context, in, mic []byte, next *NegTokenResp) ([]byte, bool, error) {
	if len(in) > 0 {
		if err := a.start(in); err != nil {
			return nil, false, a.fail(err, true)
		}
		out, complete, err := a.inner.Step(ctx, in)
		if err != nil {
			return nil, false, a.fail(err, true)
		}
		a.established = complete
		next.ResponseToken = present(out)
	}
	if !a.established {
		return next.Append(nil), false, nil
	}
	var done bool
	var err error
	if next.MechListMIC, done, err = a.exchangeMICs(mic, next.ResponseToken != nil); err != nil {
		return nil, false, a.fail(err, true)
	}
	if done {
		a.over = true
		next.State = AcceptCompleted
		if a.micReceived && next.MechListMIC == nil {
			return nil, true, nil // the initiator has ours and is done
		}
	}
	return next.Append(nil), done, nil
}

// start begins the mechanism's context, if it has not begun, with the initiator's first token for
// it, which names its mechanism itself.
func (a *Acceptor) start(token []byte) error {
	if a.inner != nil {
		return nil
	}
	switch m := tokenMech(token); {
	case m == "":
		return mech.Errorf(mech.DefectiveToken, 0, reason.DefectiveToken, "SPNEGO: the token inside the negotiation is not of GSS-API").Of(mech.SPNEGO)
	case !same(m, a.mech):
		return mech.Errorf(mech.BadMech, MinorNegotiationFailed, reason.WrongMech, ": negotiated is %s, but the token is of %s", mechName(a.mech), mechName(m)).Of(mech.SPNEGO)
	}
	a.inner = a.offer.New()
	return nil
}
