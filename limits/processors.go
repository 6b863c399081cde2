package limits

import (
	"context"
	"runtime"
	"sync"
	"sync/atomic"
	"time"
)

// Processors has users without a reserve take turns to compute: no more calls of theirs do at a time
// than there are processors, and one less while users with a reserve are served. All calls that are
// ready to run are in one queue of Go's runtime, which knows no users, and the runtime does not look
// for what has arrived since before that queue is empty: so it has to be short. It is safe for
// concurrent use.
type Processors struct {
	reserved atomic.Pointer[map[uint32]bool]
	served   atomic.Int64 // when somebody with a reserve was served last, in Unix nanoseconds

	mu      sync.Mutex
	most    int
	running int
	waiting queue
}

const (
	// spared is for how long a processor is left to users with a reserve after each of their calls.
	spared = time.Second
	// patience is the longest wait: turns are for order. What holds one up for longer than this is
	// not computing, and must not hold up others.
	patience = 250 * time.Millisecond
)

// NewProcessors returns what is to be had of n processors.
func NewProcessors(n int) *Processors {
	p := &Processors{most: n}
	p.Reserve()
	return p
}

// Reserve has root, the daemon and the uids given need no turns, and nobody else from now on.
func (p *Processors) Reserve(uids ...uint32) {
	reserved := favoured(uids)
	p.reserved.Store(&reserved)
}

// Take waits for a turn of uid's. It is nil for who needs none, and for who has waited for too long.
// The error is that of ctx when it ends first.
func (p *Processors) Take(ctx context.Context, uid uint32) (*Turn, error) {
	if (*p.reserved.Load())[uid] {
		p.served.Store(time.Now().UnixNano())
		return nil, nil
	}
	turn := &Turn{end: p.end}
	p.mu.Lock()
	if p.free() && len(p.waiting.order) == 0 {
		p.running++
		p.mu.Unlock()
		return turn, nil
	}
	one := newWaiter(uid)
	p.waiting.add(&one)
	p.mu.Unlock()
	timer := time.NewTimer(patience)
	defer timer.Stop()
	select {
	case <-one.called:
		runtime.Gosched() // who ended the turn before is followed by us at once, and nobody else's turn comes
		return turn, nil
	case <-timer.C:
	case <-ctx.Done():
	}
	p.mu.Lock()
	waits := p.waiting.remove(&one)
	p.mu.Unlock()
	switch {
	case !waits: // it has just begun
		return turn, nil
	case ctx.Err() != nil:
		return nil, ctx.Err()
	}
	return nil, nil
}

// free reports whether one more may compute; p.mu is held.
func (p *Processors) free() bool {
	if p.running < p.most-1 || p.running == 0 {
		return true
	}
	return p.running < p.most && time.Now().UnixNano()-p.served.Load() > int64(spared)
}

// end ends one's turn.
func (p *Processors) end() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.running--
	for p.free() {
		one := p.waiting.take()
		if one == nil {
			return
		}
		p.running++
		close(one.called)
	}
}
