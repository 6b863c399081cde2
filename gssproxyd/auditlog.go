package main

import (
	"context"
	"maps"
	"slices"
	"sync"
	"time"

	"gssproxyd/audit"
	"gssproxyd/limits"
)

const (
	// leftFor is how long a refusal may be without a line that counts it.
	leftFor = time.Minute

	// maxLeft bounds how many kinds of refusals by uid are remembered that have no line so far.
	maxLeft = 1024

	// settleTimeout is how long writing these may take: a disk may hang.
	settleTimeout = 2 * time.Second
)

// refusalRate is how often refusals of one uid for one reason have lines of their own. No service that
// is set up well is refused as often.
var refusalRate = limits.Rate{Burst: 200, Every: time.Second / 20}

// auditLog is an audit log that nobody fills by being refused: such lines are charged to who causes
// them. Those over the limits are counted in the next line of their like, or in one of their own when
// none has come for a while.
type auditLog struct {
	*audit.Log
	meter *limits.Meter

	settling sync.Mutex // held while what is left is written

	mu     sync.Mutex
	left   map[like]*leftOut
	since  time.Time // when left was empty last
	closed bool
}

// like is what refusals have in common that are counted together. Without a caller they are of all
// that there is no room to remember by uid.
type like struct {
	known  bool
	uid    uint32
	kind   audit.Kind
	reason string
}

// leftOut are refusals without a line.
type leftOut struct {
	n    uint64
	last *audit.Event
}

func newAuditLog(l *audit.Log, meter *limits.Meter) *auditLog {
	return &auditLog{Log: l, meter: meter, left: make(map[like]*leftOut)}
}

// Record writes an event, as [audit.Log.Record] does, or counts a refusal. It sets e.Repeated.
func (l *auditLog) Record(ctx context.Context, e *audit.Event) error {
	switch e.Kind {
	case audit.CallDenied, audit.ConnectionDenied, audit.RegistrationDenied:
		if written, err := l.count(ctx, e); !written {
			return err
		}
	}
	return l.Log.Record(ctx, e)
}

// count reports whether a refusal is to have a line, which then says how many had none before it.
func (l *auditLog) count(ctx context.Context, e *audit.Event) (written bool, err error) {
	key, payer := like{kind: e.Kind, reason: e.Reason}, limits.Payer(ctx)
	if e.Caller != nil {
		key.known, key.uid, payer = true, e.Caller.UID, e.Caller.UID
	}
	now := time.Now()
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return false, audit.ErrClosed
	}
	if _, written = l.meter.Take(payer, e.Reason, refusalRate, now); written {
		if x := l.left[key]; x != nil {
			e.Repeated += x.n
			delete(l.left, key)
		}
		return true, nil
	}
	if len(l.left) == 0 {
		l.since = now
	}
	x := l.left[key]
	if x == nil && key.known && len(l.left) >= maxLeft {
		key.known, key.uid = false, 0
		x = l.left[key]
	}
	if x == nil {
		x = new(leftOut)
		l.left[key] = x
	}
	x.n += 1 + e.Repeated // which is not 0 if another log was closed just then
	if key.known || e.Caller == nil {
		x.last = copyOf(e)
		x.last.Trace = nil // which holds on to more
	} else {
		x.last = &audit.Event{Kind: e.Kind, Reason: e.Reason, Text: "callers of too many uids to have a line each"}
	}
	if x.last.Time.IsZero() {
		x.last.Time = now
	}
	return false, nil
}

// settle writes what is left if it has been for long enough.
func (l *auditLog) settle(now time.Time) {
	l.mu.Lock()
	due := len(l.left) > 0 && now.Sub(l.since) >= leftFor
	l.mu.Unlock()
	if due {
		l.settleAll(false)
	}
}

// settleAll writes what is left. With over there is no more from then on.
func (l *auditLog) settleAll(over bool) {
	l.settling.Lock()
	defer l.settling.Unlock()
	l.mu.Lock()
	left := l.left
	l.left, l.closed = make(map[like]*leftOut), l.closed || over
	l.mu.Unlock()
	ctx, cancel := context.WithTimeout(context.Background(), settleTimeout)
	defer cancel()
	for _, x := range slices.SortedFunc(maps.Values(left), func(a, b *leftOut) int { return a.last.Time.Compare(b.last.Time) }) {
		x.last.Repeated = x.n - 1
		l.Log.Record(ctx, x.last) // what cannot be written is counted there
	}
}

// Reopen is that of [audit.Log]: what was refused so far is in the former file.
func (l *auditLog) Reopen() error {
	l.settleAll(false)
	return l.Log.Reopen()
}

// Close is that of [audit.Log].
func (l *auditLog) Close() error {
	l.settleAll(true)
	return l.Log.Close()
}
