package limits

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"
)

// Gate is the way to something that is scarce and slow, and that users wait for rather than be
// refused: each begins as often as a rate of its own allows, and together they hold as much as a
// [Budget] has. Root and the daemon have no rate; others with a reserve have one that is
// [reservedFaster] times as high. It is safe for concurrent use.
type Gate struct {
	budget  *Budget
	burst   int           // how many a user may begin at once,
	every   time.Duration // and then one of them each so often
	maxWait time.Duration // how long it waits, at most

	mu      sync.Mutex
	waiting queue
	paid    map[uint32]time.Time // by uid: when what it has begun is paid for, in the future
	crowd   time.Time            // the same of those there is no room to remember
	swept   time.Time
}

const (
	reservedFaster = 8
	maxPaces       = 8192 // users whose rate is remembered
)

// NewGate returns a gate to what a budget divides, which users may begin to use in a burst and then
// once every so often. Who would have to wait longer than maxWait is refused.
func NewGate(b *Budget, burst int, every, maxWait time.Duration) *Gate {
	return &Gate{budget: b, burst: burst, every: every, maxWait: maxWait, paid: make(map[uint32]time.Time)}
}

// Begin waits until uid may begin something by its rate, or returns a [*RateError] if that takes
// too long.
func (g *Gate) Begin(ctx context.Context, uid uint32) error {
	wait, err := g.pace(uid)
	if err != nil || wait <= 0 {
		return err
	}
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// pace returns how long uid is to wait, and notes what it begins then.
func (g *Gate) pace(uid uint32) (time.Duration, error) {
	if uid == 0 || uid == uint32(os.Geteuid()) {
		return 0, nil
	}
	burst, every, reserved := g.burst, g.every, g.budget.hasReserve(uid)
	if reserved {
		burst, every = burst*reservedFaster, every/reservedFaster
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	// After the wait for the lock: what others have begun meanwhile is not to be waited for.
	now := time.Now()
	paid, known := g.paid[uid]
	remembered := known || reserved || g.room(now)
	if !remembered {
		paid = g.crowd
	}
	if paid.Before(now) {
		paid = now
	}
	paid = paid.Add(every)
	wait := paid.Sub(now) - time.Duration(burst)*every
	if wait > g.maxWait {
		return 0, &RateError{What: g.budget.what, UID: uid, Burst: burst, Every: every}
	}
	if remembered {
		g.paid[uid] = paid
	} else {
		g.crowd = paid
	}
	return wait, nil
}

// room reports whether one more user can be remembered. Those who have paid for everything are
// forgotten when there is no room, once a second at most. g.mu is held.
func (g *Gate) room(now time.Time) bool {
	if len(g.paid) < maxPaces {
		return true
	}
	if now.Sub(g.swept) < time.Second {
		return false
	}
	g.swept = now
	for uid, paid := range g.paid {
		if paid.Before(now) {
			delete(g.paid, uid)
		}
	}
	return len(g.paid) < maxPaces
}

// Hold takes one of the budget for uid, waiting in turn by uid for others to give theirs back, or
// returns the budget's [*Error]. release gives it back and is called once.
func (g *Gate) Hold(ctx context.Context, uid uint32) (release func(), err error) {
	release = func() { g.give(uid) }
	if err = g.budget.Take(uid, 1); err == nil {
		return release, nil
	}
	one := newWaiter(uid)
	g.mu.Lock()
	g.waiting.add(&one)
	g.call() // what was given back in between
	g.mu.Unlock()
	timer := time.NewTimer(g.maxWait)
	defer timer.Stop()
	select {
	case <-one.called:
		return release, nil
	case <-timer.C:
	case <-ctx.Done():
	}
	g.mu.Lock()
	waits := g.waiting.remove(&one)
	g.mu.Unlock()
	if !waits { // it has just been called
		return release, nil
	}
	return nil, err
}

// call gives what there is to those who wait and may have it. g.mu is held.
func (g *Gate) call() {
	for {
		one := g.waiting.takeWhich(func(uid uint32) bool { return g.budget.Take(uid, 1) == nil })
		if one == nil {
			return
		}
		close(one.called)
	}
}

func (g *Gate) give(uid uint32) {
	g.budget.Give(uid, 1)
	g.mu.Lock()
	defer g.mu.Unlock()
	g.call()
}

// hasReserve reports whether something is kept for uid.
func (b *Budget) hasReserve(uid uint32) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.reserved[uid]
}

// Refused reports whether an error is, or wraps, a refusal of this package: the same may be had
// later.
func Refused(err error) bool {
	_, budget := errors.AsType[*Error](err)
	_, rate := errors.AsType[*RateError](err)
	return budget || rate
}

// RateError is the refusal of a [Gate] for a user who has begun too much.
type RateError struct {
	What  string // of which there is not enough
	UID   uint32
	Burst int           // so many at once,
	Every time.Duration // and then one each so often
}

// Error says who did too much of what.
func (e *RateError) Error() string {
	return fmt.Sprintf("too many %s: uid %d may begin %d at once, and then one every %v", e.What, e.UID, e.Burst, e.Every)
}
