package spnego

import (
	"encoding/binary"
	"errors"

	"gssproxyd/mech"
	"gssproxyd/mech/reason"
)

// State is how far one end of a negotiation has come, the mechanism's own context aside. The zero State is the
// beginning. It holds nothing secret, but whoever can change one can undo the protection of the negotiation: a State
// that a peer keeps has to be sealed.
type State struct {
	bits  uint16
	mech  mech.OID // in use, by the identifier that the peers know it by
	types []byte   // the MechTypeList as it was sent
}

const (
	initiating  uint16 = 1 << iota // the State is an initiator's
	negotiated                     // both ends know the mechanism
	established                    // its context is
	micRequired                    // a mechListMIC is due from both ends
	micSent
	micReceived
	raw     // the initiator does without SPNEGO
	hinted  // NegHints were sent
	over    // nothing more is expected, or allowed
	allBits = over<<1 - 1
)

func (s *State) has(bit uint16) bool { return s.bits&bit != 0 }

// Mech returns the mechanism that was chosen, or that an initiator hopes for; empty if there is none yet. It is the
// identifier used in the negotiation, which may be mech.KRB5Wrong.
func (s *State) Mech() mech.OID { return s.mech }

// Raw reports that the initiator sent a mechanism's token without a negotiation around it. The replies are then the
// mechanism's own, too.
func (s *State) Raw() bool { return s.has(raw) }

// Established reports whether the mechanism's context is established. The negotiation may nevertheless not be over.
func (s *State) Established() bool { return s.has(established) }

const stateVersion = 1

// Append appends a form of the State to dst that [ParseState] reads: version, bits (big-endian 16), length of the
// mechanism's identifier and the identifier, and the MechTypeList.
func (s *State) Append(dst []byte) []byte {
	dst = append(dst, stateVersion)
	dst = binary.BigEndian.AppendUint16(dst, s.bits)
	dst = append(append(dst, byte(len(s.mech))), s.mech...)
	return append(dst, s.types...)
}

var errState = errors.New("spnego: this is not the state of a negotiation")

// ParseState reads what [State.Append] has written. The State does not alias b.
func ParseState(b []byte) (State, error) {
	if len(b) < 4 || b[0] != stateVersion || len(b)-4 < int(b[3]) {
		return State{}, errState
	}
	s := State{bits: binary.BigEndian.Uint16(b[1:]), mech: known(b[4 : 4+int(b[3])])}
	types := b[4+int(b[3]):]
	if s.bits > allBits || len(types) > maxMechTypes {
		return State{}, errState
	}
	if len(types) > 0 {
		if r := checkMechTypes(types); r.Fault() != 0 {
			return State{}, errState
		}
		s.types = append([]byte(nil), types...)
	}
	return s, nil
}

// fail ends the negotiation. A *mech.Error gets a Token that tells the peer; its own, if it has one, goes inside.
func (s *State) fail(err error, tell bool) error {
	s.bits |= over
	e, ok := err.(*mech.Error)
	if !ok {
		return err
	}
	told := *e
	if told.Token = nil; tell {
		t := NegTokenResp{State: Reject}
		if len(e.Token) > 0 {
			t.ResponseToken = e.Token
		}
		told.Token = t.Append(nil)
	}
	return &told
}

// exchangeMICs verifies the peer's mechListMIC and makes ours, as far as each is due now that the mechanism's context
// is established (RFC 4178 section 5). oursLast says that the mechanism's last token is from this end: otherwise it is
// the peer's, and the MIC had to be with it. protected is whether nothing is left to do.
func (s *State) exchangeMICs(c Context, theirs []byte, oursLast bool) (ours []byte, protected bool, _ *mech.Error) {
	switch {
	case c.Flags()&mech.FlagInteg == 0:
		return nil, true, nil
	case theirs != nil && s.has(micReceived):
		return nil, false, mech.Errorf(mech.DefectiveToken, 0, reason.DefectiveToken, "SPNEGO: a second mechListMIC").Of(mech.SPNEGO)
	case theirs == nil && s.has(micRequired) && !oursLast:
		return nil, false, mech.Errorf(mech.DefectiveToken, 0, reason.DefectiveToken, "SPNEGO: the mechListMIC is missing, without which the choice of the mechanism is not to be trusted").Of(mech.SPNEGO)
	}
	if theirs != nil {
		switch order, err := c.VerifyMIC(s.types, theirs); {
		case err != nil:
			e := mech.Errorf(mech.BadMIC, 0, reason.BadMIC, "SPNEGO: the mechListMIC does not verify; somebody in between may have changed the list of mechanisms (%v)", err).Of(mech.SPNEGO)
			if m, ok := err.(*mech.Error); ok {
				e.Major, e.Minor = m.Major, m.Minor
			}
			return nil, false, e
		case order != mech.Complete:
			return nil, false, mech.Errorf(mech.BadMIC, 0, reason.BadMIC, "SPNEGO: the mechListMIC is not the peer's first message (%s)", order.Text()).Of(mech.SPNEGO)
		}
		s.bits |= micReceived | micRequired
	}
	if s.has(micRequired) && !s.has(micSent) {
		mic, err := c.GetMIC(nil, s.types)
		if err != nil {
			e := mech.Errorf(mech.Failure, 0, reason.Internal, "SPNEGO: no mechListMIC: %v", err).Of(mech.SPNEGO)
			if m, ok := err.(*mech.Error); ok {
				e.Major, e.Minor, e.Reason = m.Major, m.Minor, m.Reason
			}
			return nil, false, e
		}
		ours = mic
		s.bits |= micSent
	}
	return ours, !s.has(micRequired) || s.has(micSent) && s.has(micReceived), nil
}
