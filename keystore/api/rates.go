package api

import (
	"sync"
	"time"

	"gssproxyd/limits"
)

// rates says how often each of those who call may do something. Those who come when too many are
// remembered have the rate of one together. It is safe for concurrent use.
type rates struct {
	rate limits.Rate

	mu    sync.Mutex
	of    map[string]*left
	crowd *left
	swept time.Time
}

// left is what is left of a rate.
type left struct {
	n       int
	filled  time.Time
	refused int // since the last time that one was not
}

// maxRates bounds how many are remembered.
const maxRates = 16384

func newRates(r limits.Rate) *rates {
	return &rates{rate: r, of: make(map[string]*left), crowd: &left{n: r.Burst}}
}

// take reports whether who may do it once more, and how often he could not since the last time.
func (r *rates) take(who string, now time.Time) (refused int, ok bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	l := r.of[who]
	if l == nil {
		if l = r.crowd; r.room(now) {
			l = &left{n: r.rate.Burst, filled: now}
			r.of[who] = l
		}
	}
	if l.fill(r.rate, now); l.n == 0 {
		l.refused++
		return 0, false
	}
	l.n--
	refused, l.refused = l.refused, 0
	return refused, true
}

// fill adds what has come since the last time.
func (l *left) fill(r limits.Rate, now time.Time) {
	if l.filled.IsZero() {
		l.filled = now
	}
	n := int(now.Sub(l.filled) / r.Every)
	if n <= 0 {
		return
	}
	l.n, l.filled = min(r.Burst, l.n+n), l.filled.Add(time.Duration(n)*r.Every)
}

// room reports whether one more can be remembered. Those who are as if they had never called are
// forgotten when there is no room, once a second at most.
func (r *rates) room(now time.Time) bool {
	if len(r.of) < maxRates {
		return true
	}
	if now.Sub(r.swept) < time.Second {
		return false
	}
	r.swept = now
	for who, l := range r.of {
		if l.fill(r.rate, now); l.n == r.rate.Burst {
			delete(r.of, who)
		}
	}
	return len(r.of) < maxRates
}

// shares counts what is held at a time: by all together, and by each.
type shares struct {
	all, each int

	mu   sync.Mutex
	held int
	by   map[string]int
}

func newShares(all, each int) *shares { return &shares{all: all, each: each, by: make(map[string]int)} }

// take takes one, and reports whether there was one. Who has got it gives it back.
func (s *shares) take(who string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.held >= s.all || s.by[who] >= s.each {
		return false
	}
	s.held++
	s.by[who]++
	return true
}

func (s *shares) give(who string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.held--
	if s.by[who]--; s.by[who] == 0 {
		delete(s.by, who)
	}
}
