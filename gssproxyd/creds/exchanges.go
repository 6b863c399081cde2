package creds

import (
	"context"
	"sync"
	"time"

	"gssproxyd/limits"
	"gssproxyd/mech"
	"gssproxyd/mech/reason"
	"gssproxyd/phase"
)

// How many requests a user may send to KDCs at once and in the long run, and how long it waits for
// its turn, or for a socket. A login takes two requests, most tickets one.
const (
	requestsAtOnce = 200
	requestEvery   = time.Second / 50
	requestWait    = 5 * time.Second
)

// exchanges is who pays for exchanges with KDCs: the admission of a kdc.Client. Each socket is
// charged to the payer of the context, who sends requests at a rate of its own. A realm of which no
// KDC has answered a user is asked again by that user once a second, and its other calls fail at
// once. It is not the realm that counts as dead: there may be something about one user's requests
// that has no KDC answer them.
type exchanges struct {
	gate   *limits.Gate
	now    func() time.Time
	phases *phase.Clock

	mu   sync.Mutex
	dead map[asker]outage
}

// asker is a user who asks a realm.
type asker struct {
	uid   uint32
	realm string
}

// outage is that no KDC has answered.
type outage struct {
	err   mech.Error
	again time.Time // when the next request may be sent
}

const (
	outagePause = time.Second
	maxOutages  = 1024
)

func newExchanges(gate *limits.Gate, now func() time.Time, phases *phase.Clock) *exchanges {
	return &exchanges{gate: gate, now: now, phases: phases, dead: make(map[asker]outage)}
}

// Turn implements kdc.Admission.
func (e *exchanges) Turn(ctx context.Context, requests int) (refused *mech.Error) {
	limits.EndTurn(ctx) // KDCs have it wait, and before that its rate
	for range requests {
		if err := e.gate.Begin(ctx, limits.Payer(ctx)); err != nil {
			return notLetIn(err)
		}
	}
	return nil
}

// Request implements kdc.Admission.
func (e *exchanges) Request(ctx context.Context, realm string) (came func(*mech.Error), refused *mech.Error) {
	a := asker{limits.Payer(ctx), realm}
	if err := e.outage(a); err != nil {
		return nil, err
	}
	span := e.phases.Begin()
	return func(err *mech.Error) {
		span.End(phase.KDC)
		e.came(a, err)
	}, nil
}

// outage returns why a user's requests to a realm fail. Once a second it lets one pass to find out.
func (e *exchanges) outage(a asker) *mech.Error {
	e.mu.Lock()
	defer e.mu.Unlock()
	o, ok := e.dead[a]
	if !ok {
		return nil
	}
	now := e.now()
	if left := o.again.Sub(now); left <= 0 || left > outagePause { // the clock may have been set
		o.again = now.Add(outagePause)
		e.dead[a] = o
		return nil
	}
	err := o.err
	err.Text += "; the KDCs are asked again in " + outagePause.String()
	return &err
}

// came notes what came of a request.
func (e *exchanges) came(a asker, err *mech.Error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if err == nil {
		delete(e.dead, a)
		return
	}
	if _, ok := e.dead[a]; !ok && len(e.dead) >= maxOutages {
		dropAny(e.dead) // whoever it is finds out again
	}
	e.dead[a] = outage{*err, e.now().Add(outagePause)}
}

// Socket implements kdc.Admission.
func (e *exchanges) Socket(ctx context.Context) (closed func(), refused *mech.Error) {
	closed, err := e.gate.Hold(ctx, limits.Payer(ctx))
	if err != nil {
		return nil, notLetIn(err)
	}
	return closed, nil
}

// notLetIn is the refusal of a request: too much is under way, or the call's time was over first.
func notLetIn(err error) *mech.Error {
	if limits.Refused(err) {
		return overLimit(err)
	}
	return mech.Errorf(mech.Failure, mech.KRB5Minor(156), reason.KDCUnreachable, "the call's time is over")
}
