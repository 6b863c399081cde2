package spnego

import (
	"bytes"
	"context"

	"gssproxyd/mech"
	"gssproxyd/mech/reason"
)

// Acceptor is the accepting end of one negotiation. Set Mechs, call Step with each token until it says that the context
// is established, and then use Inner. An Acceptor is used by one goroutine at a time.
type Acceptor struct {
	// Mechs are what is accepted; the initiator's order counts. mech.KRB5 stands for the other identifiers of
	// Kerberos too.
	Mechs []Mech

	// State and Inner are zero at the beginning. To go on with a negotiation that was put aside between two legs,
	// restore both; Inner, nil if it was, is the context of the mechanism State names.
	State State
	Inner Context
}

var _ Context = (*Acceptor)(nil)

// Flags returns the flags of the mechanism's context, 0 if there is none.
func (a *Acceptor) Flags() uint32 { return flags(a.Inner) }

// GetMIC is the mechanism's.
func (a *Acceptor) GetMIC(dst, msg []byte) ([]byte, error) { return getMIC(a.Inner, dst, msg) }

// VerifyMIC is the mechanism's.
func (a *Acceptor) VerifyMIC(msg, mic []byte) (mech.Major, error) {
	return verifyMIC(a.Inner, msg, mic)
}

// Step takes the initiator's token and returns the answer, if there is one, which goes to the initiator even when the
// context is established.
//
// An empty first token asks what is on offer and is answered with NegHints. A first token of one of Mechs without a
// negotiation around it is accepted like mechglue would, and answered likewise: see [State.Raw].
//
// A failure of the negotiation is a *[mech.Error], whose Token tells the initiator; other errors are the Context's.
// Both are final.
func (a *Acceptor) Step(ctx context.Context, token []byte) (reply []byte, done bool, err error) {
	s := &a.State
	switch {
	case s.has(over):
		return nil, false, errOver()
	case s.has(initiating):
		return nil, false, s.fail(errUnfit(), false)
	case s.has(raw):
		return a.stepRaw(ctx, token)
	case !s.has(negotiated) && len(token) == 0 && !s.has(hinted):
		return a.hint()
	case !s.has(negotiated):
		if m := tokenMech(token); m != "" && m != mech.SPNEGO {
			return a.beginRaw(ctx, m, token)
		}
	}

	var in, mic []byte
	next := NegTokenResp{State: AcceptIncomplete}
	if first := !s.has(negotiated); first {
		init, e := parseInit(token)
		if e == nil {
			e = a.choose(&init)
		}
		if e != nil {
			return nil, false, s.fail(e, true)
		}
		next.SupportedMech = []byte(s.mech)
		if s.has(micRequired) {
			next.State = RequestMIC // and the token, of another mechanism, is of no use
		} else {
			in, mic = init.MechToken, init.MechListMIC
		}
	} else {
		resp, e := parseResp(token)
		if e == nil {
			e = a.check(&resp)
		}
		if e != nil {
			return nil, false, s.fail(e, resp.State != Reject)
		}
		in, mic = resp.ResponseToken, resp.MechListMIC
	}

	var out []byte
	if len(in) > 0 {
		if e := a.start(in); e != nil {
			return nil, false, s.fail(e, true)
		}
		var complete bool
		if out, complete, err = a.Inner.Step(ctx, in); err != nil {
			return nil, false, s.fail(err, true)
		}
		if complete {
			s.bits |= established
		}
		if len(out) > 0 {
			next.ResponseToken = out
		}
	}
	if s.has(established) {
		var e *mech.Error
		if next.MechListMIC, done, e = s.exchangeMICs(a.Inner, mic, len(out) > 0); e != nil {
			return nil, false, s.fail(e, true)
		}
	}
	if done {
		s.bits |= over
		next.State = AcceptCompleted
		if s.has(micReceived) && next.MechListMIC == nil {
			return nil, true, nil // the initiator has ours and is done
		}
	}
	return next.Append(nil), done, nil
}

// choose takes the first of the initiator's mechanisms that is on offer here.
func (a *Acceptor) choose(init *NegTokenInit) *mech.Error {
	list := mechTypes(init.MechTypes)
	for n, m := 0, list.next(); m != ""; n, m = n+1, list.next() {
		offer := a.offer(m)
		if offer == nil {
			continue
		}
		a.State = State{bits: negotiated, mech: offer.OID, types: bytes.Clone(init.MechTypes)}
		if m == mech.KRB5Wrong {
			a.State.mech = m // Windows wants to read what it wrote
		}
		if n > 0 {
			a.State.bits |= micRequired
		}
		return nil
	}
	return mech.Errorf(mech.BadMech, 0, reason.WrongMech, "SPNEGO: the initiator offers %s, accepted is %s", mechNames(init.MechTypes), mechNames(appendMechTypes(nil, a.Mechs))).Of(mech.SPNEGO)
}

// offer returns the entry of Mechs for an initiator's mechanism, nil if there is none. Kerberos by its old number is
// not taken from a list, as MIT krb5 does not.
func (a *Acceptor) offer(m mech.OID) *Mech {
	for n := range a.Mechs {
		if o := &a.Mechs[n]; o.OID == m || m == mech.KRB5Wrong && o.OID == mech.KRB5 {
			return o
		}
	}
	return nil
}

// check refuses a later token of the initiator that has not what it needs or has what it must not have.
func (a *Acceptor) check(resp *NegTokenResp) *mech.Error {
	s := &a.State
	switch {
	case resp.State == Reject:
		return mech.Errorf(mech.Failure, 0, reason.PeerError, "SPNEGO: the initiator rejects the context").Of(mech.SPNEGO)
	case resp.SupportedMech != nil:
		return mech.Errorf(mech.DefectiveToken, 0, reason.DefectiveToken, "SPNEGO: the initiator answers with a choice of mechanism, which is the acceptor's to make").Of(mech.SPNEGO)
	case len(resp.ResponseToken) > 0 && s.has(established):
		return mech.Errorf(mech.DefectiveToken, 0, reason.DefectiveToken, "SPNEGO: a token for %s, whose context is established", mechName(s.mech)).Of(mech.SPNEGO)
	case len(resp.ResponseToken) == 0 && !s.has(established):
		return mech.Errorf(mech.DefectiveToken, 0, reason.DefectiveToken, "SPNEGO: the initiator's token for %s is missing", mechName(s.mech)).Of(mech.SPNEGO)
	case len(resp.ResponseToken) == 0 && resp.MechListMIC == nil:
		return mech.Errorf(mech.DefectiveToken, 0, reason.DefectiveToken, "SPNEGO: there is neither a token nor a MIC").Of(mech.SPNEGO)
	}
	return nil
}

// start begins the mechanism's context with the initiator's first token for it, which names its mechanism itself.
func (a *Acceptor) start(token []byte) *mech.Error {
	if a.Inner != nil {
		return nil
	}
	s := &a.State
	switch m := tokenMech(token); {
	case m == "":
		return mech.Errorf(mech.DefectiveToken, 0, reason.DefectiveToken, "SPNEGO: the token inside the negotiation is not of GSS-API").Of(mech.SPNEGO)
	case !same(m, s.mech):
		return mech.Errorf(mech.BadMech, MinorNegotiationFailed, reason.WrongMech, ": negotiated is %s, but the token is of %s", mechName(s.mech), mechName(m)).Of(mech.SPNEGO)
	}
	for n := range a.Mechs {
		if same(a.Mechs[n].OID, s.mech) {
			a.Inner = a.Mechs[n].New()
			return nil
		}
	}
	return errUnfit()
}

// hint answers an initiator that wants the acceptor to begin; its own first token is still to come.
func (a *Acceptor) hint() ([]byte, bool, error) {
	a.State.bits |= hinted
	t := NegTokenInit{MechTypes: appendMechTypes(nil, a.Mechs), Hints: hints}
	return t.Append(nil), false, nil
}

// beginRaw begins without a negotiation.
func (a *Acceptor) beginRaw(ctx context.Context, m mech.OID, token []byte) ([]byte, bool, error) {
	s := &a.State
	for n := range a.Mechs {
		if same(a.Mechs[n].OID, m) {
			s.bits, s.mech = raw|negotiated, m
			a.Inner = a.Mechs[n].New()
			return a.stepRaw(ctx, token)
		}
	}
	return nil, false, s.fail(mech.Errorf(mech.BadMech, 0, reason.WrongMech, "SPNEGO: the token is of %s, accepted is %s", mechName(m), mechNames(appendMechTypes(nil, a.Mechs))).Of(mech.SPNEGO), false)
}

func (a *Acceptor) stepRaw(ctx context.Context, token []byte) ([]byte, bool, error) {
	s := &a.State
	if a.Inner == nil {
		return nil, false, s.fail(errUnfit(), false)
	}
	out, done, err := a.Inner.Step(ctx, token)
	if err != nil {
		s.bits |= over
		return nil, false, err
	}
	if done {
		s.bits |= established | over
	}
	return out, done, nil
}
