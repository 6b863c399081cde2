package rotate

import (
	"context"
	"sync"
	"time"

	"gssproxyd/keystore"
)

const (
	// tick is how often it is looked whose time has come.
	tick = 5 * time.Second

	// parallel is how many principals an instance has at once in hand.
	parallel = 16

	// What has failed is tried again after retry, and each time after twice as long, up to maxRetry:
	// a login that is refused counts toward a lockout at the KDC.
	retry    = time.Minute
	maxRetry = time.Hour
)

// Run goes on with what any instance has left unfinished, begins rotations whose time has come, and
// forgets previous keys when theirs is over, until ctx ends, or the store is not to be used any more,
// which is the error. It returns when all that it has begun has ended.
func (e *Engine) Run(ctx context.Context) error {
	s := schedule{next: make(map[string]time.Time), failed: make(map[string]failure), busy: make(map[string]bool)}
	var wg sync.WaitGroup
	defer wg.Wait()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	wg.Go(func() {
		for n, err := range e.o.Store.Watch(ctx) {
			switch {
			case err != nil:
				cancel(err)
			case n != nil:
				s.set(n.Principal, e.when(n, time.Time{}))
				n.Zero()
			}
		}
	})
	slots := make(chan struct{}, parallel)
	for sleep(ctx, tick) == nil {
		for _, principal := range s.take(e.o.Now()) {
			select {
			case slots <- struct{}{}:
			case <-ctx.Done():
				return context.Cause(ctx)
			}
			wg.Go(func() {
				defer func() { <-slots }()
				next, err := e.attend(ctx, principal)
				if err != nil && ctx.Err() == nil {
					e.o.Log.Warn("keys are not rotated; it is tried again", "principal", principal, "err", err)
				}
				s.done(principal, e.o.Now(), next, err)
			})
		}
	}
	return context.Cause(ctx)
}

// attend does what there is to do for a principal now, and returns when there is more to do, though
// the entry is not changed; the zero time if never.
func (e *Engine) attend(ctx context.Context, principal string) (next time.Time, err error) {
	n, err := e.o.Store.Entry(ctx, principal)
	if err != nil {
		return next, err
	}
	defer n.Zero()
	now := e.o.Now()
	switch check := e.checkAt(n); {
	case !n.Deleted.IsZero():
		return next, nil
	case n.Rotation != nil:
		return next, e.finish(ctx, principal)
	case rotates(n) && !now.Before(e.dueAt(n)):
		return next, e.Rotate(ctx, principal, byRotation, false)
	case !check.IsZero() && !now.Before(check):
		err = e.locked(ctx, principal, func(ctx context.Context, h *held) error { return h.check(ctx) })
		return e.when(n, time.Time{}), err
	case outlived(n, now):
		err = e.locked(ctx, principal, func(ctx context.Context, h *held) error {
			if h.entry.Rotation != nil || !outlived(h.entry, h.o.Now()) {
				return nil // somebody else has done it
			}
			next, err = h.forget(ctx)
			return err
		})
		return e.when(n, next), err
	}
	return e.when(n, time.Time{}), nil
}

// when returns when there is something to do for an entry, the zero time if never. Previous keys are
// not looked at before inUse.
func (e *Engine) when(n *keystore.Entry, inUse time.Time) (at time.Time) {
	if !n.Deleted.IsZero() {
		return at
	}
	if n.Rotation != nil {
		if stands(n) {
			return at
		}
		return n.Rotation.Begun
	}
	at = e.checkAt(n)
	if rotates(n) {
		at = earlier(at, e.dueAt(n))
	}
	for _, k := range n.Keys {
		if k.State == keystore.Previous && !k.Until.IsZero() && !outOfStep(n) {
			at = earlier(at, later(k.Until, inUse))
		}
	}
	return at
}

// outlived reports whether an entry has keys that can go: none while the KDC has others than it.
func outlived(n *keystore.Entry, now time.Time) bool {
	if outOfStep(n) {
		return false
	}
	for _, k := range n.Keys {
		if over(&k, now) {
			return true
		}
	}
	return false
}

// earlier returns the earlier one of two times, the other one if one is zero.
func earlier(a, b time.Time) time.Time {
	if a.IsZero() || !b.IsZero() && b.Before(a) {
		return b
	}
	return a
}

// later returns the later one of two times.
func later(a, b time.Time) time.Time {
	if b.After(a) {
		return b
	}
	return a
}

// rotates reports whether an entry is rotated by itself.
func rotates(n *keystore.Entry) bool { return n.Interval > 0 && usable(n) == nil && !outOfStep(n) }

// dueAt is dueAt, but not before hosts have had the time to tell this engine which entries they use.
func (e *Engine) dueAt(n *keystore.Entry) time.Time {
	return later(dueAt(n), e.started.Add(alive))
}

// dueAt returns when the current keys are to be replaced: before they are as old as the interval, by
// up to a quarter of it. How much is the principal's own, so that all instances say the same, and
// those of a fleet that were imported together are spread. It is not before the time of the previous
// keys is over: however short the interval is, keys do not pile up.
func dueAt(n *keystore.Entry) time.Time {
	at := newest(n, keystore.Current).Since.Add(n.Interval - spread(n.Interval/4, n.Principal))
	for _, k := range n.Keys {
		if k.State == keystore.Previous {
			at = later(at, k.Until)
		}
	}
	return at
}

// A schedule is when there is something to do for which principal.
type schedule struct {
	mu     sync.Mutex
	next   map[string]time.Time
	failed map[string]failure
	busy   map[string]bool // is in hand; true if there was something else to do since
}

// failure is that of the last try.
type failure struct {
	until time.Time // nothing is tried
	delay time.Duration
}

// set says when there is something to do for a principal.
func (s *schedule) set(principal string, at time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, ok := s.busy[principal]; ok {
		s.busy[principal] = true
	}
	if at.IsZero() {
		delete(s.next, principal)
		return
	}
	s.next[principal] = at
}

// take returns whose time has come and who is not in hand, and takes them in hand.
func (s *schedule) take(now time.Time) (principals []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for p, at := range s.next {
		if _, busy := s.busy[p]; busy || now.Before(at) || now.Before(s.failed[p].until) {
			continue
		}
		s.busy[p] = false
		principals = append(principals, p)
	}
	return principals
}

// done says that a principal is in hand no more, and when there is something to do if the entry is not
// changed before; the zero time if never.
func (s *schedule) done(principal string, now, next time.Time, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err == nil {
		delete(s.failed, principal)
		if !s.busy[principal] {
			s.next[principal] = next
			if next.IsZero() {
				delete(s.next, principal)
			}
		}
	} else {
		d := min(max(2*s.failed[principal].delay, retry), maxRetry)
		s.failed[principal] = failure{now.Add(d), d}
	}
	delete(s.busy, principal)
}
