package limits

import (
	"maps"
	"sync"
	"time"
)

// Calls counts the calls that the callers of a service make, each uid for itself, where there are
// rates for them. It is safe for concurrent use.
type Calls struct {
	mu       sync.Mutex
	reserved map[uint32]bool
	callers  map[caller]*[Rates]allowance
	crowds   map[string]*[Rates]allowance // by service: of those who are not remembered
	swept    time.Time
}

// Rates is how many rates a service has at most.
const Rates = 4

type caller struct {
	uid     uint32
	service string
}

// maxCallers bounds whom Calls remembers. Those who come when it is full share the rates of one
// caller, but for those with a reserve: root, and with it the kernel, never waits for others.
const maxCallers = 8192

// NewCalls returns a counter with a reserve for root and the daemon.
func NewCalls() *Calls {
	c := &Calls{callers: make(map[caller]*[Rates]allowance), crowds: make(map[string]*[Rates]allowance)}
	c.Reserve()
	return c
}

// Reserve has root, the daemon and the uids given counted for themselves, however many others there
// are, and nobody else from now on.
func (c *Calls) Reserve(uids ...uint32) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.reserved = favoured(uids)
}

// Take counts a call of uid to a service, for which there are rates; one without a burst is
// none. permit is told for how long the call is too early for each of them, and reports whether it
// is made all the same: one that is not made counts for nothing. It must not use c.
func (c *Calls) Take(uid uint32, service string, rates [Rates]Rate, now time.Time, permit func(early [Rates]time.Duration) bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	left := c.of(caller{uid, service}, now)
	var early [Rates]time.Duration
	for i := range left {
		if a := &left[i]; rates[i].Burst > 0 {
			a.adopt(rates[i], now)
			if !a.some(now) {
				early[i] = a.rate.Every - now.Sub(a.filled)
			}
		}
	}
	if !permit(early) {
		return
	}
	for i := range left {
		if rates[i].Burst > 0 && early[i] == 0 {
			left[i].left--
		}
	}
}

// of returns what is left to a caller.
func (c *Calls) of(who caller, now time.Time) *[Rates]allowance {
	if left := c.callers[who]; left != nil {
		return left
	}
	left := new([Rates]allowance)
	if c.reserved[who.uid] || c.room(now) {
		c.callers[who] = left
		return left
	}
	if crowd := c.crowds[who.service]; crowd != nil {
		return crowd
	}
	c.crowds[who.service] = left
	return left
}

// room reports whether one more caller can be remembered. Those who are as if they had never called
// are forgotten when there is no room, once a second at most.
func (c *Calls) room(now time.Time) bool {
	if len(c.callers) < maxCallers {
		return true
	}
	if now.Sub(c.swept) < time.Second {
		return false
	}
	c.swept = now
	rested := func(left *[Rates]allowance) bool {
		for i := range left {
			if !left[i].full(now) {
				return false
			}
		}
		return true
	}
	maps.DeleteFunc(c.callers, func(_ caller, left *[Rates]allowance) bool { return rested(left) })
	maps.DeleteFunc(c.crowds, func(_ string, left *[Rates]allowance) bool { return rested(left) })
	return len(c.callers) < maxCallers
}

// adopt has another rate hold from now on. What has been used up stays so: a configuration that is
// read again lets nobody go.
func (a *allowance) adopt(r Rate, now time.Time) {
	if a.rate == r {
		return
	}
	if a.rate.Burst == 0 {
		*a = allowance{rate: r, left: r.Burst, filled: now}
		return
	}
	a.some(now)
	used := a.rate.Burst - a.left
	a.rate, a.left = r, max(0, r.Burst-used)
}

// full reports whether nothing of a rate is used up.
func (a *allowance) full(now time.Time) bool {
	if a.rate.Burst == 0 {
		return true
	}
	a.some(now)
	return a.left == a.rate.Burst
}
