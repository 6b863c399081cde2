package rotate

import (
	"context"
	"hash/fnv"
	"strconv"
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
		for c, err := range e.o.Store.Watch(ctx) {
			switch {
			case err != nil:
				cancel(err)
			case c.Entry != nil:
				s.set(c.Entry.Principal, e.when(c.Entry))
				c.Entry.Zero()
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
				err := e.attend(ctx, principal)
				if err != nil && ctx.Err() == nil {
					e.o.Log.Warn("keys are not rotated; it is tried again", "principal", principal, "err", err)
				}
				s.done(principal, e.o.Now(), err)
			})
		}
	}
	return context.Cause(ctx)
}

// attend does what there is to do for a principal now.
func (e *Engine) attend(ctx context.Context, principal string) error {
	n, err := e.o.Store.Entry(ctx, principal)
	if err != nil {
		return err
	}
	defer n.Zero()
	now := e.o.Now()
	switch {
	case !n.Deleted.IsZero():
		return nil
	case n.Rotation != nil:
		return e.finish(ctx, principal)
	case rotates(n) && !now.Before(e.dueAt(n)):
		return e.Rotate(ctx, principal, byRotation, false)
	case outlived(n, now):
		return e.locked(ctx, principal, func(ctx context.Context, h *held) error {
			if h.entry.Rotation != nil || !outlived(h.entry, h.o.Now()) {
				return nil // somebody else has done it
			}
			return h.forget(ctx)
		})
	}
	return nil
}

// when returns when there is something to do for an entry, the zero time if never.
func (e *Engine) when(n *keystore.Entry) (at time.Time) {
	if !n.Deleted.IsZero() {
		return at
	}
	if n.Rotation != nil {
		if stands(n) {
			return at
		}
		return n.Rotation.Begun
	}
	sooner := func(t time.Time) {
		if at.IsZero() || t.Before(at) {
			at = t
		}
	}
	if rotates(n) {
		sooner(e.dueAt(n))
	}
	for _, k := range n.Keys {
		if k.State == keystore.Previous && !k.Until.IsZero() {
			sooner(k.Until)
		}
	}
	return at
}

// outlived reports whether an entry has keys that can go.
func outlived(n *keystore.Entry, now time.Time) bool {
	for _, k := range n.Keys {
		if over(&k, now) {
			return true
		}
	}
	return false
}

// rotates reports whether an entry is rotated by itself.
func rotates(n *keystore.Entry) bool { return n.Interval > 0 && usable(n) == nil }

// dueAt is dueAt, but not before hosts have had the time to tell this engine which entries they use.
func (e *Engine) dueAt(n *keystore.Entry) time.Time {
	at, heard := dueAt(n), e.started.Add(alive)
	if at.Before(heard) {
		return heard
	}
	return at
}

// dueAt returns when the current keys are to be replaced: before they are as old as the interval, by
// up to a quarter of it. How much is the principal's own, so that all instances say the same, and
// those of a fleet that were imported together are spread.
func dueAt(n *keystore.Entry) time.Time {
	h := fnv.New64a()
	h.Write([]byte(n.Principal + "\x00" + strconv.FormatInt(int64(n.Interval), 10)))
	early := time.Duration(float64(n.Interval/4) * (float64(h.Sum64()>>11) / (1 << 53)))
	return newest(n, keystore.Current).Since.Add(n.Interval - early)
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

// done says that a principal is in hand no more. Without an error there is nothing to do until the
// entry is changed.
func (s *schedule) done(principal string, now time.Time, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err == nil {
		delete(s.failed, principal)
		if !s.busy[principal] {
			delete(s.next, principal)
		}
	} else {
		d := min(max(2*s.failed[principal].delay, retry), maxRetry)
		s.failed[principal] = failure{now.Add(d), d}
	}
	delete(s.busy, principal)
}
