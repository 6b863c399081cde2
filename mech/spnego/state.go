package spnego

import (
	"gssproxyd/mech"
	"gssproxyd/mech/reason"
)

// state is how far one end of a negotiation has come. The zero state is the beginning.
type state struct {
	inner Context  // of the mechanism in use; nil: not begun
	mech  mech.OID // in use, by the identifier that the peers know it by
	types []byte   // the MechTypeList as it was sent

	negotiated  bool // both ends know the mechanism
	established bool // its context is
	micRequired bool // a mechListMIC is due from both ends
	micSent     bool
	micReceived bool
	over        bool // nothing more is expected, or allowed
}

// Flags returns the flags of the mechanism's context, 0 if there is none.
func (s *state) Flags() uint32 {
	if s.inner == nil {
		return 0
	}
	return s.inner.Flags()
}

// GetMIC is the mechanism's.
func (s *state) GetMIC(dst, msg []byte) ([]byte, error) {
	if s.inner == nil {
		return dst, errNoContext()
	}
	return s.inner.GetMIC(dst, msg)
}

// VerifyMIC is the mechanism's.
func (s *state) VerifyMIC(msg, mic []byte) (mech.Major, error) {
	if s.inner == nil {
		return 0, errNoContext()
	}
	return s.inner.VerifyMIC(msg, mic)
}

func errNoContext() *mech.Error {
	return mech.Errorf(mech.NoContext, 0, reason.BadContext, "SPNEGO: no context is established").Of(mech.SPNEGO)
}

func errOver() *mech.Error {
	return mech.Errorf(mech.Failure, 0, reason.BadContext, "SPNEGO: the negotiation is over; a new one has to be begun").Of(mech.SPNEGO)
}

// fail ends the negotiation. A *mech.Error gets a Token that tells the peer; its own, if it has
// one, goes inside.
func (s *state) fail(err error, tell bool) error {
	s.over = true
	e, ok := err.(*mech.Error)
	if !ok {
		return err
	}
	refusal := *e
	if refusal.Token = nil; tell {
		t := NegTokenResp{State: Reject, ResponseToken: present(e.Token)}
		refusal.Token = t.Append(nil)
	}
	return &refusal
}

// present returns a token as an optional field: nil, for absent, if there is nothing in it.
func present(token []byte) []byte {
	if len(token) == 0 {
		return nil
	}
	return token
}

// exchangeMICs verifies the peer's mechListMIC and makes ours, as far as each is due now that the
// mechanism's context is established (RFC 4178 section 5). oursLast: the mechanism's last token is
// from this end; otherwise it is the peer's, and the MIC had to be with it. protected reports
// whether nothing is left to do.
func (s *state) exchangeMICs(theirs []byte, oursLast bool) (ours []byte, protected bool, _ error) {
	switch {
	case s.Flags()&mech.FlagInteg == 0:
		return nil, true, nil
	case theirs != nil && s.micReceived:
		return nil, false, mech.Errorf(mech.DefectiveToken, 0, reason.DefectiveToken, "SPNEGO: a second mechListMIC").Of(mech.SPNEGO)
	case theirs == nil && s.micRequired && !oursLast:
		return nil, false, mech.Errorf(mech.DefectiveToken, 0, reason.DefectiveToken, "SPNEGO: the mechListMIC is missing, without which the choice of the mechanism is not to be trusted").Of(mech.SPNEGO)
	}
	if theirs != nil {
		switch order, err := s.inner.VerifyMIC(s.types, theirs); {
		case err != nil:
			e := mech.Errorf(mech.BadMIC, 0, reason.BadMIC, "SPNEGO: the mechListMIC does not verify; somebody in between may have changed the list of mechanisms (%v)", err).Of(mech.SPNEGO)
			if m, ok := err.(*mech.Error); ok {
				e.Major, e.Minor = m.Major, m.Minor
			}
			return nil, false, e
		case order != mech.Complete:
			return nil, false, mech.Errorf(mech.BadMIC, 0, reason.BadMIC, "SPNEGO: the mechListMIC is not the peer's first message (%s)", order.Text()).Of(mech.SPNEGO)
		}
		s.micReceived, s.micRequired = true, true
	}
	if s.micRequired && !s.micSent {
		mic, err := s.inner.GetMIC(nil, s.types)
		if err != nil {
			e := mech.Errorf(mech.Failure, 0, reason.Internal, "SPNEGO: no mechListMIC: %v", err).Of(mech.SPNEGO)
			if m, ok := err.(*mech.Error); ok {
				e.Major, e.Minor, e.Reason = m.Major, m.Minor, m.Reason
			}
			return nil, false, e
		}
		ours = mic
		s.micSent = true
	}
	return ours, !s.micRequired || s.micSent && s.micReceived, nil
}
