package limits

import (
	"context"
	"sync"
)

// Turns has work that takes long wait for its turn: so much of it at a time, in turn by user, and
// users with a reserve before all others. How many wait is a [Budget]. It is safe for concurrent
// use.
type Turns struct {
	calls *Budget // those that have a turn or wait for one

	mu            sync.Mutex
	free          int
	reserved      map[uint32]bool
	first, others queue // who waits: those with a reserve, and all others
}

// NewTurns returns turns for so much work at a time, and so much that has its turn or waits for it.
// what is the work's name in refusals, a plural.
func NewTurns(what string, atOnce, waiting int) *Turns {
	t := &Turns{calls: NewBudget(what, waiting), free: atOnce}
	t.Reserve()
	return t
}

// Reserve has root, the daemon and the uids given come before others, and nobody else from now on.
// Who waits keeps its place.
func (t *Turns) Reserve(uids ...uint32) {
	t.calls.Reserve(uids...)
	t.mu.Lock()
	defer t.mu.Unlock()
	t.reserved = favoured(uids)
}

// Turn is the right to work. Who has got it ends it.
type Turn struct {
	end   func()
	once  sync.Once
	outer *Turn // the one that the work had already
}

// Take waits for a turn. The error is an [*Error] if too many wait already, or that of ctx when it
// ends first.
func (t *Turns) Take(ctx context.Context, uid uint32) (*Turn, error) {
	if err := t.calls.Take(uid, 1); err != nil {
		return nil, err
	}
	one := newWaiter(uid)
	turn := &Turn{end: func() { t.end(uid) }}
	t.mu.Lock()
	q := &t.others
	if t.reserved[uid] {
		q = &t.first
	}
	q.add(&one)
	t.next()
	t.mu.Unlock()
	select {
	case <-one.called:
		return turn, nil
	case <-ctx.Done():
	}
	t.mu.Lock()
	waits := q.remove(&one)
	t.mu.Unlock()
	if !waits { // it has just begun
		turn.End()
	} else {
		t.calls.Give(uid, 1)
	}
	return nil, ctx.Err()
}

// Use returns how many have a turn or wait for one, of how many, and of what.
func (t *Turns) Use() (what string, used, limit int) { return t.calls.Use() }

// next begins turns while that is possible. t.mu is held.
func (t *Turns) next() {
	for t.free > 0 {
		one := t.first.take()
		if one == nil {
			one = t.others.take()
		}
		if one == nil {
			return
		}
		t.free--
		close(one.called)
	}
}

// end ends one's turn.
func (t *Turns) end(uid uint32) {
	t.calls.Give(uid, 1)
	t.mu.Lock()
	defer t.mu.Unlock()
	t.free++
	t.next()
}

// End ends the turn, and those that the work had before. Only the first time counts; of nil it does
// nothing.
func (one *Turn) End() {
	for ; one != nil; one = one.outer {
		one.once.Do(one.end)
	}
}

type turnKey struct{}

// Context returns a context for the work of a turn, for [EndTurn].
func (one *Turn) Context(ctx context.Context) context.Context {
	one.outer, _ = ctx.Value(turnKey{}).(*Turn)
	return context.WithValue(ctx, turnKey{}, one)
}

// EndTurn ends the turns that the work of ctx has, if it has any. Who is about to wait for something
// calls it: what comes after that is little.
func EndTurn(ctx context.Context) {
	one, _ := ctx.Value(turnKey{}).(*Turn)
	one.End()
}
