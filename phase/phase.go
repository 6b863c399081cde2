// Package phase times the parts that calls have, while somebody wants to know. While nobody does, a
// part costs the look at one pointer, and no clock is read.
package phase

import (
	"sync/atomic"
	"time"
)

// Phase is a part of calls. One that a call does not have is not timed for it, and one that it has
// twice is timed twice.
type Phase int

// The phases there are.
const (
	Queue  Phase = iota // waiting for a turn, by the limits of users
	Match               // finding the service that the caller is
	Keys                // finding the keys to accept with
	Crypto              // the mechanism's own work: tokens and messages made, opened and checked
	Replay              // the replay cache
	KDC                 // a request to a realm's KDCs, until one has answered
	NSS                 // a question to the name service that the cache has no answer for
	Count               // how many there are
)

var names = [Count]string{"queue", "match", "keys", "crypto", "replay", "kdc", "nss"}

// String is the phase's name.
func (p Phase) String() string { return names[p] }

// Clock times phases for whom [Clock.Tell] names. nil is one that nobody listens to. It is safe for
// concurrent use.
type Clock struct {
	told atomic.Pointer[func(Phase, time.Duration)]
}

// Tell has f be told of every phase that begins from now on; nil: nobody is.
func (c *Clock) Tell(f func(Phase, time.Duration)) {
	if f == nil {
		c.told.Store(nil)
		return
	}
	c.told.Store(&f)
}

// Span is a phase that has begun. The zero Span is one that nobody wants to know of.
type Span struct {
	told  *func(Phase, time.Duration)
	begun time.Time
}

// Begin begins a phase.
func (c *Clock) Begin() Span {
	if c == nil {
		return Span{}
	}
	told := c.told.Load()
	if told == nil {
		return Span{}
	}
	return Span{told, time.Now()}
}

// Timed reports whether somebody wants to know.
func (s Span) Timed() bool { return s.told != nil }

// End ends the phase, and says which it was.
func (s Span) End(p Phase) {
	if s.told != nil {
		(*s.told)(p, time.Since(s.begun))
	}
}

// EndBut ends the phase but for a part of it, which was another one.
func (s Span) EndBut(p, other Phase, took time.Duration) {
	if s.told != nil {
		(*s.told)(p, time.Since(s.begun)-took)
		(*s.told)(other, took)
	}
}
