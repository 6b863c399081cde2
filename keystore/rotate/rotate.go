// Package rotate changes the keys of entries, in the order in which no ticket is ever refused:
// acceptors first, the KDC after them.
//
//  1. Lock the principal and read its entry.
//  2. Store the keys of a new random password as pending ([keystore.Stored]).
//  3. Wait until the hosts that have the entry accept with them ([keystore.Acknowledged]).
//  4. Write that the KDC is asked ([keystore.Sent]), and give it the password.
//  5. See by a ticket that the KDC has it, and make the pending keys current, the current previous.
//  6. When no ticket made with the previous keys can be good any more, forget them.
//
// After each step what is stored is enough for any instance to go on. The same password sent twice
// is accepted by a KDC twice, and is two versions of the key. So nobody sends it before a ticket has
// shown that the KDC does not have it, nor while a request of somebody else can still arrive. The
// request is the one thing that a lock cannot fence: it is sent only within seconds of Sent, and is
// not sent again before some more have gone by.
package rotate

import (
	"context"
	"errors"
	"iter"
	"log/slog"
	"sync"
	"time"

	"gssproxyd/audit"
	"gssproxyd/keystore"
	"gssproxyd/keystore/kadm"
	"gssproxyd/mech/krb5"
	"gssproxyd/mech/krb5/etype"
	"gssproxyd/mech/krb5/kdc"
)

// A Store is what a rotation takes of a [keystore.Store].
type Store interface {
	Entry(ctx context.Context, principal string) (*keystore.Entry, error)
	Change(ctx context.Context, lock keystore.Lock, principal, by, what string, f func(*keystore.Entry) error) (*keystore.Entry, error)
	Lock(ctx context.Context, principal string) (keystore.Lock, error)
	Watch(ctx context.Context) iter.Seq2[*keystore.Entry, error]
	Known(host string) (*keystore.Host, error)
	Acknowledged(ctx context.Context, principal string) (map[string]keystore.Mark, error)
	Uses(ctx context.Context, principal string) ([]keystore.Use, error)
	InTouch() time.Time
}

// A Prober tells which key a KDC has: see [kadm.Prober].
type Prober interface {
	Login(ctx context.Context, keys ...kdc.KeySource) error
	Probe(ctx context.Context, candidates []*etype.Key) (i int, kvno uint32, err error)
	Ahead() time.Duration
	Close()
}

// A Realm is how keys are changed in one realm.
type Realm struct {
	KDC    kadm.KDC
	Prober func(krb5.Principal) Prober

	// Enctypes are those of new keys. None: those that the KDC says the principal has, or if it does
	// not say, those of the keys there are and of the tickets.
	Enctypes []etype.ID

	// Lag is how long a change takes to reach all KDCs of the realm.
	Lag time.Duration

	// MaxLife and MaxRenewable are of tickets, for a KDC that does not say; Skew is what clocks may
	// be off.
	MaxLife, MaxRenewable, Skew time.Duration
}

// Options are those of an [Engine]. All are needed but Audit, Log and Now.
type Options struct {
	Store Store
	Realm func(name string) (*Realm, error) // the error says why no keys are changed in that realm
	Audit func(context.Context, *audit.Event)
	Log   *slog.Logger
	Now   func() time.Time
}

// An Engine rotates keys of a store. Any number of them may do so, in one process or several. It is
// safe for concurrent use.
type Engine struct {
	o       Options
	started time.Time // before, hosts had perhaps nobody to talk to

	mu      sync.Mutex
	seen    map[string]sighting  // by principal
	checked map[string]checkTime // likewise

	// step, if it is not nil, is told before and after each step. Its error ends what goes on.
	step func(name string) error
}

// New returns an engine. It does nothing of itself.
func New(o Options) *Engine {
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Audit == nil {
		o.Audit = func(context.Context, *audit.Event) {}
	}
	return &Engine{o: o, started: o.Now(), seen: make(map[string]sighting), checked: make(map[string]checkTime)}
}

// sighting is when this engine first saw a rotation, and that the KDC is asked, both as of times by
// the clock of whoever wrote them: clocks of instances differ.
type sighting struct {
	begun, seenBegun time.Time // the rotation was
	sent, seenSent   time.Time // the KDC was asked last
	times            int       // it was asked in this rotation
}

// sight notes what there is to see of a rotation now.
func (e *Engine) sight(n *keystore.Entry) sighting {
	e.mu.Lock()
	defer e.mu.Unlock()
	s, r := e.seen[n.Principal], n.Rotation
	if !s.begun.Equal(r.Begun) {
		s = sighting{begun: r.Begun, seenBegun: e.o.Now()}
	}
	if r.Step == keystore.Sent && !s.sent.Equal(r.Since) {
		s.sent, s.seenSent, s.times = r.Since, e.o.Now(), s.times+1
	}
	e.seen[n.Principal] = s
	return s
}

// mostSent is how many times a password is sent at the most before it is said that the KDC does not
// take it.
const mostSent = 3

// sentOften reports whether the KDC was asked often enough.
func (e *Engine) sentOften(n *keystore.Entry) bool { return e.sight(n).times >= mostSent }

// How long is waited.
const (
	// alive is how long a host counts as live that was not heard of: 90 s, and the 30 s to which
	// [keystore.Host] tells.
	alive = 120 * time.Second

	// patience is how long a live host may take to acknowledge; forced is how long if there is force:
	// who is well needs a second or two.
	patience = 10 * time.Minute
	forced   = 30 * time.Second

	// sendWithin is how long after Sent the request may go out, changeWithin how long the KDC may
	// take for it, and executedWithin how long after all that it can still execute what it has of
	// it. Until then, and until all KDCs know, it is not sent again.
	sendWithin     = 10 * time.Second
	changeWithin   = 30 * time.Second
	executedWithin = 20 * time.Second

	// poll is how long until it is looked again at what others do.
	poll = time.Second

	unlockWithin = 5 * time.Second
)

// settled returns how long after Sent it is certain what became of the request.
func (r *Realm) settled() time.Duration {
	return sendWithin + changeWithin + executedWithin + r.Lag
}

// errMoved says that somebody else goes on with a rotation.
var errMoved = errors.New("another instance has gone on with the rotation")

// Rotate changes the keys of a principal, or goes on with a change that has begun, and returns when
// the new keys are current; when it does not go on, which the error says and the alarm of the
// entry's rotation; or when ctx ends, which leaves the rotation for [Engine.Run]. When another
// instance has finished a rotation meanwhile, that is the one that was asked for. by is who asks.
//
// With force it goes on without the hosts that do not acknowledge within half a minute. They may
// refuse tickets until they have the new keys.
func (e *Engine) Rotate(ctx context.Context, principal, by string, force bool) error {
	seen, err := e.o.Store.Entry(ctx, principal)
	if err != nil {
		return err
	}
	defer seen.Zero()
	if err := usable(seen); err != nil {
		return err
	}
	if err := e.awaitKDCs(ctx, seen); err != nil {
		return err
	}
	for {
		err := e.locked(ctx, principal, func(ctx context.Context, h *held) error {
			switch {
			case h.entry.Rotation == nil && sameKeys(seen, h.entry):
				return h.begin(ctx, by, force)
			case h.entry.Rotation != nil && force && !h.entry.Rotation.Force:
				return h.change(ctx, "force", by, "rotation forced on without hosts that do not acknowledge", func(n *keystore.Entry) {
					n.Rotation.Force, n.Rotation.Refused, n.Alarm = true, false, ""
				})
			case h.entry.Rotation != nil && outOfStep(h.entry):
				return h.change(ctx, "again", by, "the KDC is asked again which key it has", func(n *keystore.Entry) {
					n.Rotation.Refused, n.Alarm = false, ""
				})
			}
			return nil
		})
		switch {
		case err == nil:
			return e.finish(ctx, principal)
		case !overtaken(err):
			return err
		}
		if err := sleep(ctx, poll); err != nil {
			return err
		}
	}
}

// awaitKDCs waits until all KDCs have the current keys of an entry. One that has not would refuse them,
// as if somebody else had changed them.
func (e *Engine) awaitKDCs(ctx context.Context, n *keystore.Entry) error {
	_, realm, err := e.realm(n)
	if err != nil {
		return err
	}
	now := e.o.Now()
	if wait := realm.known(n, now).Sub(now); n.Rotation == nil && wait > 0 {
		return sleep(ctx, wait)
	}
	return nil
}

// known returns when all KDCs have the current keys of an entry.
func (r *Realm) known(n *keystore.Entry, now time.Time) time.Time {
	since := newest(n, keystore.Current).Since
	if since.After(now) { // by another clock, or that of who has made a keytab
		since = now
	}
	return since.Add(r.Lag)
}

// finish goes on with a rotation until there is none, or it does not go on.
func (e *Engine) finish(ctx context.Context, principal string) error {
	for {
		wait, err := e.advance(ctx, principal)
		if overtaken(err) {
			wait, err = poll, nil
		}
		if err != nil || wait == 0 {
			return err
		}
		if err := sleep(ctx, wait); err != nil {
			return err
		}
	}
}

// overtaken reports whether an error is that another instance is at it, so that one looks again.
func overtaken(err error) bool {
	return errors.Is(err, errMoved) || errors.Is(err, keystore.ErrLockLost) || errors.Is(err, keystore.ErrConflict)
}

// advance does what can be done of a rotation, and returns how long to wait until there is more to
// do; 0 if there is not.
func (e *Engine) advance(ctx context.Context, principal string) (wait time.Duration, err error) {
	n, err := e.o.Store.Entry(ctx, principal)
	if err != nil {
		return 0, err
	}
	defer n.Zero()
	if n.Rotation == nil {
		return 0, nil
	}
	if stands(n) {
		if outOfStep(n) {
			return 0, alarm(n)
		}
		return 0, usable(n)
	}
	if n.Rotation.Step == keystore.Stored {
		// Without the lock: it may take long, and somebody may want to force it.
		r, err := e.roll(ctx, n)
		if err != nil {
			return 0, err
		}
		if len(r.awaited) > 0 && !e.late(n) {
			return poll, nil
		}
	}
	err = e.locked(ctx, principal, func(ctx context.Context, h *held) error {
		if r := h.entry.Rotation; r != nil && r.Step == keystore.Stored {
			if err := h.acknowledge(ctx); err != nil {
				return err
			}
		}
		if h.entry.Rotation == nil || stands(h.entry) {
			return nil
		}
		wait, err = h.send(ctx)
		return err
	})
	return wait, err
}

// held is an entry while this instance has the lock of its principal.
type held struct {
	*Engine
	lock  keystore.Lock
	entry *keystore.Entry
}

// locked calls f with a principal's lock held and its entry read under it. What f gets ends when the
// lock is lost. An error of f that has a reason becomes the alarm of the rotation.
func (e *Engine) locked(ctx context.Context, principal string, f func(context.Context, *held) error) error {
	lock, err := e.o.Store.Lock(ctx, principal)
	if err != nil {
		return err
	}
	defer func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), unlockWithin)
		defer cancel()
		if err := lock.Unlock(ctx); err != nil {
			e.o.Log.Warn("cannot unlock; it ends by itself", "principal", principal, "err", err)
		}
	}()
	var wg sync.WaitGroup
	defer wg.Wait()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	wg.Go(func() {
		select {
		case <-lock.Lost():
			cancel(keystore.ErrLockLost)
		case <-ctx.Done():
		}
	})
	h := &held{Engine: e, lock: lock}
	if h.entry, err = e.o.Store.Entry(ctx, principal); err != nil {
		return err
	}
	defer func() { h.entry.Zero() }()
	switch err = f(ctx, h); {
	case err == nil:
	case isLost(lock):
		return keystore.ErrLockLost
	case ctx.Err() == nil:
		err = h.stop(ctx, err)
	}
	return err
}

// change stores what f makes of the entry, unless somebody else has gone on with the rotation.
func (h *held) change(ctx context.Context, name, by, what string, f func(*keystore.Entry)) error {
	return h.do(name, func() error {
		n, err := h.o.Store.Change(ctx, h.lock, h.entry.Principal, by, what, func(n *keystore.Entry) error {
			if !sameStep(n.Rotation, h.entry.Rotation) || n.Rotation == nil && !sameKeys(n, h.entry) {
				return errMoved
			}
			f(n)
			return nil
		})
		if err != nil {
			return err
		}
		h.entry.Zero()
		h.entry = n
		return nil
	})
}

// do runs one step.
func (e *Engine) do(name string, f func() error) error {
	if err := e.reach("before " + name); err != nil {
		return err
	}
	if err := f(); err != nil {
		return err
	}
	return e.reach("after " + name)
}

func (e *Engine) reach(name string) error {
	if e.step == nil {
		return nil
	}
	return e.step(name)
}

// stands reports whether a rotation stands still, because no host has keys of the entry or because the
// KDC has others. What the KDC was asked is settled all the same.
func stands(n *keystore.Entry) bool {
	return (n.Disabled != "" || outOfStep(n)) && n.Rotation.Step != keystore.Sent
}

func sameStep(a, b *keystore.Rotation) bool {
	if a == nil || b == nil {
		return a == b
	}
	return a.Begun.Equal(b.Begun) && a.Step == b.Step && a.Since.Equal(b.Since)
}

// sameKeys reports whether the current keys of two entries are of one version.
func sameKeys(a, b *keystore.Entry) bool {
	x, y := newest(a, keystore.Current), newest(b, keystore.Current)
	return x != nil && y != nil && x.KVNO == y.KVNO && x.Since.Equal(y.Since)
}

// newest returns a key of the highest version among those in a state, nil if there is none.
func newest(n *keystore.Entry, state keystore.KeyState) (k *keystore.Key) {
	for i := range n.Keys {
		if n.Keys[i].State == state && (k == nil || n.Keys[i].KVNO > k.KVNO) {
			k = &n.Keys[i]
		}
	}
	return k
}

func sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
