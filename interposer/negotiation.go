package interposer

import (
	"context"

	"gssproxyd/mech"
	"gssproxyd/mech/krb5/der"
	"gssproxyd/mech/reason"
	"gssproxyd/mech/spnego"
)

// negotiation is what a SecContext has instead of a state of the daemon's while the mechanism is
// being agreed upon (RFC 4178). It takes place in this process: the daemon makes and takes the
// tokens of Kerberos inside, and knows nothing of what is around them.
type negotiation struct {
	spnego.Context // an Initiator or an Acceptor, whose one mechanism is leg
	leg            *leg
	delegated      *Cred // to an acceptor, when the context is established
}

// leg is the Kerberos context inside a negotiation.
type leg struct {
	sec  *SecContext // nil before the first step
	call func(ctx context.Context, half *SecContext, token []byte) (s *SecContext, reply []byte, err error)
}

// Step makes a call to the daemon.
func (l *leg) Step(ctx context.Context, token []byte) ([]byte, bool, error) {
	s, reply, err := l.call(ctx, l.sec, token)
	if err != nil {
		return nil, false, err
	}
	l.sec = s
	return reply, s.Open(), nil
}

func (l *leg) Flags() uint32 { return l.sec.flags }

func (l *leg) GetMIC(dst, msg []byte) ([]byte, error) { return l.sec.GetMIC(dst, msg) }

func (l *leg) VerifyMIC(msg, mic []byte) (mech.Major, error) { return l.sec.VerifyMIC(msg, mic) }

// negotiating starts a negotiation with Kerberos on offer.
func negotiating(initiator bool) *SecContext {
	l := new(leg)
	mechs := []spnego.Mech{{OID: mech.KRB5, New: func() spnego.Context { return l }}}
	s := &SecContext{mech: mech.SPNEGO, initiator: initiator, nego: &negotiation{leg: l}}
	if initiator {
		s.nego.Context = &spnego.Initiator{Mechs: mechs}
	} else {
		s.nego.Context = &spnego.Acceptor{Mechs: mechs}
	}
	return s
}

// negotiates reports whether the context began as a negotiation. That it is over makes it another
// SecContext.
func (s *SecContext) negotiates() bool { return s != nil && s.mech == mech.SPNEGO }

// negotiate goes on with a negotiation, in which the daemon is called with call, and returns the
// Kerberos context when it is over and the negotiation until then.
func (s *SecContext) negotiate(ctx context.Context, token []byte, call func(context.Context, *SecContext, []byte) (*SecContext, []byte, error)) (*SecContext, []byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.nego == nil {
		return nil, nil, mech.Errorf(mech.NoContext, 0, reason.BadContext, "the negotiation is over").Of(mech.SPNEGO)
	}
	s.nego.leg.call = call
	reply, done, err := s.nego.Step(ctx, token)
	s.nego.leg.call = nil // it holds the caller's request
	if err != nil {
		s.close()
		return nil, nil, err
	}
	if !done {
		return s, reply, nil
	}
	inner := s.nego.leg.sec
	s.nego = nil
	return inner, reply, nil
}

// tokenMech returns the mechanism that a first token names (RFC 2743 section 3.1), empty if it
// names none.
func tokenMech(token []byte) mech.OID {
	r := der.NewReader(token)
	r.Enter(der.Application(0))
	return mech.OID(r.Value(der.ObjectID))
}
