package spnego

import (
	"context"

	"gssproxyd/mech"
	"gssproxyd/mech/reason"
)

// Initiator is the initiating end of one negotiation. Set Mechs, call Step until it says that the context is
// established, and then use Inner. An Initiator is used by one goroutine at a time.
type Initiator struct {
	// Mechs are what is on offer, the preferred one first. Its first token goes out together with the offer; when
	// it fails to make one it is left out, and the next one is tried.
	Mechs []Mech

	// State and Inner are zero at the beginning. To go on with a negotiation that was put aside between two legs,
	// restore both; Inner is the context of the mechanism State names, and Mechs must be what they were.
	State State
	Inner Context
}

var _ Context = (*Initiator)(nil)

// Flags returns the flags of the mechanism's context, 0 if there is none.
func (i *Initiator) Flags() uint32 { return flags(i.Inner) }

// GetMIC is the mechanism's.
func (i *Initiator) GetMIC(dst, msg []byte) ([]byte, error) { return getMIC(i.Inner, dst, msg) }

// VerifyMIC is the mechanism's.
func (i *Initiator) VerifyMIC(msg, mic []byte) (mech.Major, error) {
	return verifyMIC(i.Inner, msg, mic)
}

// Step takes the acceptor's token and returns the next one for it, if there is one, which may be so even when the
// context is established. What is given at the beginning, such as NegHints, is passed over.
//
// A failure of the negotiation is a *[mech.Error], whose Token tells the acceptor; other errors are the Context's. Both
// are final.
func (i *Initiator) Step(ctx context.Context, token []byte) (reply []byte, done bool, err error) {
	s := &i.State
	switch {
	case s.has(over):
		return nil, false, errOver()
	case s.bits == 0:
		return i.begin(ctx)
	case !s.has(initiating) || i.Inner == nil:
		return nil, false, s.fail(errUnfit(), false)
	}
	resp, e := parseResp(token)
	if e != nil {
		return nil, false, s.fail(e, true)
	}
	first := !s.has(negotiated)
	s.bits |= negotiated
	if resp.State == Reject && (len(resp.ResponseToken) == 0 || s.has(established)) {
		// A mechanism that waits for a token is given the one that came with the rejection and says what is wrong.
		if first {
			return nil, false, s.fail(mech.Errorf(mech.BadMech, MinorNegotiationFailed, reason.WrongMech, ": the acceptor rejects what is offered: %s", mechNames(s.types)).Of(mech.SPNEGO), false)
		}
		return nil, false, s.fail(mech.Errorf(mech.Failure, 0, reason.PeerError, "SPNEGO: the acceptor rejects the context").Of(mech.SPNEGO), false)
	}
	in, oursLast := resp.ResponseToken, false
	switch chosen := known(resp.SupportedMech); {
	case chosen != "" && !same(chosen, s.mech):
		if e := i.reselect(chosen, &resp, first); e != nil {
			return nil, false, s.fail(e, true)
		}
		in = nil
	case len(in) > 0 && s.has(established):
		return nil, false, s.fail(mech.Errorf(mech.DefectiveToken, 0, reason.DefectiveToken, "SPNEGO: a token for %s, whose context is established", mechName(s.mech)).Of(mech.SPNEGO), true)
	case in == nil && !s.has(established):
		return nil, false, s.fail(mech.Errorf(mech.DefectiveToken, MinorNoToken, reason.DefectiveToken, ": the token for %s is missing", mechName(s.mech)).Of(mech.SPNEGO), true)
	case first && resp.State == RequestMIC:
		// The acceptor takes the mechanism and wants the choice confirmed, which MIT krb5 overlooks.
		s.bits |= micRequired
		oursLast = s.has(established)
	}

	var out []byte
	if !s.has(established) {
		var complete bool
		if out, complete, err = i.Inner.Step(ctx, in); err != nil {
			return nil, false, s.fail(err, resp.State != Reject)
		}
		if resp.State == Reject {
			return nil, false, s.fail(mech.Errorf(mech.DefectiveToken, 0, reason.PeerError, "SPNEGO: the acceptor rejects the context, with a token in which %s sees no error", mechName(s.mech)).Of(mech.SPNEGO), false)
		}
		if complete {
			s.bits |= established
			oursLast = len(out) > 0
		}
	}
	next := NegTokenResp{State: AcceptIncomplete}
	if len(out) > 0 {
		next.ResponseToken = out
	}
	switch {
	case !s.has(established):
		if resp.State == AcceptCompleted {
			return nil, false, s.fail(mech.Errorf(mech.DefectiveToken, 0, reason.DefectiveToken, "SPNEGO: the acceptor is done, but %s is not", mechName(s.mech)).Of(mech.SPNEGO), true)
		}
	default:
		protected := false
		if next.MechListMIC, protected, e = s.exchangeMICs(i.Inner, resp.MechListMIC, oursLast); e != nil {
			return nil, false, s.fail(e, true)
		}
		// A last token without a MIC is answered, be it with nothing: Windows counts tokens in pairs.
		done = protected && (len(out) == 0 || s.has(micReceived))
	}
	if done {
		s.bits |= over
		next.State = AcceptCompleted
		if next.ResponseToken == nil && next.MechListMIC == nil {
			return nil, true, nil
		}
	}
	return next.Append(nil), done, nil
}

// begin makes the NegTokenInit with the first token of the first mechanism that has one.
func (i *Initiator) begin(ctx context.Context) ([]byte, bool, error) {
	s := &i.State
	var first error
	for n, m := range i.Mechs {
		inner := m.New()
		token, complete, err := inner.Step(ctx, nil)
		if err != nil {
			if first == nil {
				first = err
			}
			if ctx.Err() != nil {
				break
			}
			continue
		}
		*s = State{bits: initiating, mech: m.OID, types: appendMechTypes(nil, i.Mechs[n:])}
		i.Inner = inner
		if complete {
			s.bits |= established
		}
		t := NegTokenInit{MechTypes: s.types}
		if len(token) > 0 {
			t.MechToken = token
		}
		return t.Append(nil), false, nil
	}
	if first == nil {
		first = mech.Errorf(mech.Failure, MinorNoMechs, reason.WrongMech, ": there is no mechanism to offer").Of(mech.SPNEGO)
	}
	return nil, false, s.fail(first, false)
}

// reselect begins anew with the mechanism that the acceptor prefers to the first one.
func (i *Initiator) reselect(chosen mech.OID, resp *NegTokenResp, first bool) *mech.Error {
	s := &i.State
	if !first {
		return mech.Errorf(mech.DefectiveToken, 0, reason.DefectiveToken, "SPNEGO: the acceptor changes its choice to %s", mechName(chosen)).Of(mech.SPNEGO)
	}
	// RFC 4178 wants request-mic; Windows before 2008 does not know it, and falls back to NTLM.
	if resp.State != RequestMIC && (resp.State != AcceptIncomplete || chosen != NTLM) {
		return mech.Errorf(mech.DefectiveToken, 0, reason.DefectiveToken, "SPNEGO: the acceptor prefers %s and does not ask for a MIC (%v)", mechName(chosen), resp.State).Of(mech.SPNEGO)
	}
	list := mechTypes(s.types)
	for m := list.next(); m != ""; m = list.next() {
		if !same(m, chosen) {
			continue
		}
		for _, offer := range i.Mechs {
			if offer.OID != m {
				continue
			}
			s.mech = m
			s.bits &^= established
			if resp.State == RequestMIC {
				s.bits |= micRequired
			}
			i.Inner = offer.New()
			return nil
		}
	}
	return mech.Errorf(mech.DefectiveToken, MinorNegotiationFailed, reason.WrongMech, ": the acceptor chooses %s; on offer was %s", mechName(chosen), mechNames(s.types)).Of(mech.SPNEGO)
}

// What both ends do when there is no context yet, or no more to do.

func flags(c Context) uint32 {
	if c == nil {
		return 0
	}
	return c.Flags()
}

func getMIC(c Context, dst, msg []byte) ([]byte, error) {
	if c == nil {
		return dst, errNoContext()
	}
	return c.GetMIC(dst, msg)
}

func verifyMIC(c Context, msg, mic []byte) (mech.Major, error) {
	if c == nil {
		return 0, errNoContext()
	}
	return c.VerifyMIC(msg, mic)
}

func errNoContext() *mech.Error {
	return mech.Errorf(mech.NoContext, 0, reason.BadContext, "SPNEGO: no context is established").Of(mech.SPNEGO)
}

func errOver() *mech.Error {
	return mech.Errorf(mech.Failure, 0, reason.BadContext, "SPNEGO: the negotiation is over; a new one has to be begun").Of(mech.SPNEGO)
}

func errUnfit() *mech.Error {
	return mech.Errorf(mech.NoContext, 0, reason.BadContext, "SPNEGO: this is the state of another negotiation").Of(mech.SPNEGO)
}
