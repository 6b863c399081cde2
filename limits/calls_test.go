package limits

import (
	"testing"
	"time"

	"pgregory.net/rapid"
)

// In no window there are more calls than the burst and what the rate gives in that time, whoever else
// calls; and who never calls more often than the rate is never early.
func TestCallsRate(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		rates := [Rates]Rate{}
		for i := range rates {
			rates[i] = Rate{rapid.IntRange(i, 5).Draw(t, "burst"), time.Duration(rapid.IntRange(1, 50).Draw(t, "every"))}
		}
		c := NewCalls()
		start := time.Unix(1000, 0)
		now := start
		var made []time.Time
		for range rapid.IntRange(1, 200).Draw(t, "calls") {
			now = now.Add(time.Duration(rapid.IntRange(0, 20).Draw(t, "pause")))
			if uid := rapid.Uint32Range(1000, 1002).Draw(t, "uid"); uid != 1000 {
				c.Take(uid, "web", rates, now, func([Rates]time.Duration) bool { return true })
				continue
			}
			c.Take(1000, "web", rates, now, func(early [Rates]time.Duration) bool {
				for i, by := range early {
					if by < 0 || by > rates[i].Every {
						t.Fatalf("%v early", early)
					}
				}
				if early != [Rates]time.Duration{} {
					return false
				}
				made = append(made, now)
				return true
			})
		}
		for _, r := range rates {
			for i := range made {
				for j := i; j < len(made) && r.Burst > 0; j++ {
					if n, most := j-i+1, r.Burst+int(made[j].Sub(made[i])/r.Every)+1; n > most {
						t.Fatalf("%d calls in %v, where a burst of %d and one each %v are allowed", n, made[j].Sub(made[i]), r.Burst, r.Every)
					}
				}
			}
		}
		slowest := max(rates[0].Every, rates[1].Every, rates[2].Every, rates[3].Every)
		for range 10 {
			now = now.Add(slowest)
			c.Take(1000, "web", rates, now, func(early [Rates]time.Duration) bool {
				if early != [Rates]time.Duration{} {
					t.Fatalf("%v early, after %v without a call", early, slowest)
				}
				return true
			})
		}
	})
}

// taken takes as often as it may at one time, n times at most.
func taken(c *Calls, uid uint32, service string, r Rate, now time.Time, n int) (calls int) {
	for range n {
		c.Take(uid, service, [Rates]Rate{{}, r}, now, func(early [Rates]time.Duration) bool {
			if early[1] == 0 {
				calls++
			}
			return early[1] == 0
		})
	}
	return calls
}

// A burst, and no call more, until one is due; services and users are apart, and a call that is not
// made counts for nothing.
func TestCalls(t *testing.T) {
	c := NewCalls()
	now := time.Unix(1000, 0)
	r := Rate{3, time.Second / 2}
	for _, one := range []struct {
		uid     uint32
		service string
	}{{1000, "web"}, {1001, "web"}, {1000, "mail"}, {0, "web"}} {
		if n := taken(c, one.uid, one.service, r, now, 10); n != 3 {
			t.Errorf("uid %d, %s: %d calls", one.uid, one.service, n)
		}
	}
	for i := range time.Duration(10) {
		due := now.Add((i + 1) * time.Second / 2)
		if n := taken(c, 1000, "web", r, due.Add(-1), 10); n != 0 {
			t.Errorf("%d: %d calls before one is due", i, n)
		}
		if n := taken(c, 1000, "web", r, due, 10); n != 1 {
			t.Errorf("%d: %d calls when one is due", i, n)
		}
	}
	if n := taken(c, 1000, "web", r, now.Add(time.Hour), 10); n != 3 {
		t.Errorf("%d calls after an hour", n)
	}
}

// Of two rates the one that refuses takes nothing of the other; one that is only watched refuses
// nothing, and says so of the same calls as if it did.
func TestCallsTwoRates(t *testing.T) {
	c := NewCalls()
	now := time.Unix(1000, 0)
	rates := [Rates]Rate{{1, time.Second}, {3, time.Hour}}
	strict := func(early [Rates]time.Duration) bool { return early == [Rates]time.Duration{} }
	for range 10 {
		c.Take(1000, "web", rates, now, strict)
	}
	for i, want := range []bool{true, true, false} {
		now = now.Add(time.Second)
		c.Take(1000, "web", rates, now, func(early [Rates]time.Duration) bool {
			if strict(early) != want {
				t.Errorf("call %d after a second: %v early", i, early)
			}
			return strict(early)
		})
	}
	c = NewCalls()
	over := 0
	for range 10 {
		c.Take(1000, "web", [Rates]Rate{{3, time.Second}, {5, time.Second}}, now, func(early [Rates]time.Duration) bool {
			if early[0] > 0 {
				over++
			}
			return early[1] == 0
		})
	}
	if over != 7 {
		t.Errorf("%d of 10 calls are over a rate of three that is watched", over)
	}
	if n := taken(c, 1000, "web", Rate{5, time.Second}, now, 10); n != 0 {
		t.Errorf("%d calls more", n)
	}
}

// Another configuration lets nobody go who is held back.
func TestCallsReload(t *testing.T) {
	c := NewCalls()
	now := time.Unix(1000, 0)
	taken(c, 1000, "web", Rate{3, time.Hour}, now, 3)
	for _, test := range []struct {
		rate Rate
		want int
	}{{Rate{2, time.Hour}, 0}, {Rate{5, time.Hour}, 3}, {Rate{5, time.Minute}, 0}} {
		if n := taken(c, 1000, "web", test.rate, now, 10); n != test.want {
			t.Errorf("%v: %d calls, want %d", test.rate, n, test.want)
		}
	}
}

// With as many uids as subordinate uids give memory is bounded, and those who do not fit in call as
// often as one does; root and the service's own user are not among them, and who is held back is
// not let go by others.
func TestCallsManyUsers(t *testing.T) {
	const own, first = 33, 4_000_000_000
	c := NewCalls()
	c.Reserve(own)
	now := time.Unix(1000, 0)
	r := Rate{2, time.Minute}
	calls := 0
	for i := range uint32(65_536) {
		calls += taken(c, first+i, "web", r, now, 1)
	}
	if calls != maxCallers+2 || len(c.callers) != maxCallers || len(c.crowds) != 1 {
		t.Errorf("%d calls; %d callers and %d crowds are remembered", calls, len(c.callers), len(c.crowds))
	}
	for _, uid := range []uint32{0, own} {
		if n := taken(c, uid, "web", r, now, 10); n != 2 {
			t.Errorf("uid %d: %d calls", uid, n)
		}
	}
	taken(c, first, "web", r, now.Add(time.Second), 1)
	if n := taken(c, first+100_000, "web", r, now.Add(2*time.Second), 10); n != 0 {
		t.Errorf("a new user makes %d calls", n)
	}
	later := now.Add(time.Minute) // all have rested but the first, who has called twice
	if n := taken(c, first+100_000, "web", r, later, 10); n != 2 {
		t.Errorf("a new user makes %d calls when others are forgotten", n)
	}
	if n := taken(c, first, "web", r, later, 10); n != 1 {
		t.Errorf("who was held back makes %d calls", n)
	}
	if len(c.callers) > 4 || len(c.crowds) != 1 {
		t.Errorf("%d callers, %d crowds are remembered of those who have rested", len(c.callers), len(c.crowds))
	}
}
