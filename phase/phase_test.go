package phase

import (
	"testing"
	"testing/synctest"
	"time"
)

// Who is told hears of the phases that begin from then on, and of how long each took.
func TestClock(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var c Clock
		var heard [Count]time.Duration
		early := c.Begin()
		c.Tell(func(p Phase, d time.Duration) { heard[p] += d })
		span := c.Begin()
		time.Sleep(time.Second)
		early.End(Match)
		span.End(Queue)
		span = c.Begin()
		time.Sleep(3 * time.Second)
		span.EndBut(Crypto, Replay, time.Second)
		if early.Timed() || !span.Timed() || heard != [Count]time.Duration{Queue: time.Second, Crypto: 2 * time.Second, Replay: time.Second} {
			t.Errorf("%v", heard)
		}
		c.Tell(nil)
		if c.Begin().Timed() || (*Clock)(nil).Begin().Timed() {
			t.Error("a phase is timed that nobody wants to know of")
		}
		for p := range Count {
			if p.String() == "" {
				t.Errorf("phase %d has no name", p)
			}
		}
	})
}

// What nobody wants to know costs next to nothing.
func BenchmarkNobody(b *testing.B) {
	var c Clock
	for b.Loop() {
		c.Begin().End(Queue)
	}
}
