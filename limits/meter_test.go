package limits

import (
	"testing"
	"time"
)

// A burst, then one each interval, and the next one that is written says how many were not.
func TestMeter(t *testing.T) {
	const root, user = 0, 4_000_000_000
	for _, test := range []struct {
		uid  uint32
		r    Rate
		want Rate // what comes of it
	}{
		{root, UsualRate, UsualRate},
		{root, Rate{5, 5 * time.Second}, Rate{5, 5 * time.Second}},
		{user, UsualRate, Rate{5, time.Second}},
	} {
		m := NewMeter()
		now := time.Unix(1000, 0)
		written := 0
		for range 500 {
			if _, ok := m.Take(test.uid, "a", test.r, now); ok {
				written++
			}
		}
		if written != test.want.Burst {
			t.Errorf("uid %d: %d lines written, want %d", test.uid, written, test.want.Burst)
		}
		if _, ok := m.Take(test.uid, "b", test.r, now); ok != (test.uid == root) {
			t.Errorf("uid %d: a line about something else is written: %v", test.uid, ok)
		}
		now = now.Add(test.want.Every)
		if suppressed, ok := m.Take(test.uid, "a", test.r, now); !ok || suppressed != 500-test.want.Burst {
			t.Errorf("uid %d: %v, %d suppressed, want %d", test.uid, ok, suppressed, 500-test.want.Burst)
		}
		if suppressed, ok := m.Take(test.uid, "a", Rate{20, time.Second}, now.Add(time.Hour)); !ok || suppressed != 0 {
			t.Errorf("uid %d: later %v, %d suppressed", test.uid, ok, suppressed)
		}
	}
}

// Twenty users who write all they can leave less than 200 lines in any second, and nobody else
// loses one: neither who has a reserve nor who has none.
func TestMeterFlood(t *testing.T) {
	const service, quiet = 33, 4_000_000_000
	m := NewMeter()
	m.Reserve(service)
	start := time.Unix(1000, 0)
	var written []time.Time // those without a reserve
	count := func(uid uint32, subject string, now time.Time) bool {
		_, ok := m.Take(uid, subject, UsualRate, now)
		if ok && uid != 0 && uid != service {
			written = append(written, now)
		}
		return ok
	}
	const step = 20 * time.Millisecond
	subjects := []string{"a", "b", "c", "d", "e", "f", "g"}
	for i := range 20 * time.Second / step {
		now := start.Add(i * step)
		for j := range uint32(20) {
			if i > 10*time.Second/step && i < 15*time.Second/step {
				break // to come back rested
			}
			for k := range 5 {
				count(quiet+1+j, subjects[(int(i)+k)%len(subjects)], now)
			}
		}
		if i%(time.Second/step) != 0 {
			continue
		}
		for _, uid := range []uint32{0, service, quiet} {
			if !count(uid, "replay", now) {
				t.Errorf("after %v a line of uid %d is lost", now.Sub(start), uid)
			}
		}
	}
	for i, j := 0, 0; i < len(written); i++ {
		for written[i].Sub(written[j]) >= time.Second {
			j++
		}
		if n := i - j + 1; n >= 200 {
			t.Fatalf("%d lines in a second", n)
		}
	}
}

// With as many uids as subordinate uids give, the log stays as short, memory is bounded, and who
// has a reserve loses nothing.
func TestMeterManyUsers(t *testing.T) {
	const service, first = 33, 4_000_000_000
	m := NewMeter()
	m.Reserve(service)
	subjects := []string{"a", "b", "c"}
	now := time.Unix(1000, 0)
	for second := range 3 {
		written := 0
		for i := range uint32(65_536) {
			if _, ok := m.Take(first+i, subjects[i%3], UsualRate, now); ok {
				written++
			}
		}
		if written >= 200 {
			t.Errorf("second %d: %d lines", second, written)
		}
		for _, uid := range []uint32{0, service} {
			if _, ok := m.Take(uid, "replay", UsualRate, now); !ok {
				t.Errorf("second %d: a line of uid %d is lost", second, uid)
			}
		}
		if len(m.lines) > maxMeter+2 || len(m.users) > maxMeter {
			t.Errorf("second %d: %d lines and %d users are remembered", second, len(m.lines), len(m.users))
		}
		now = now.Add(time.Second)
	}
}

// When there is no room, only what has refilled is forgotten: a user who is being held back is not
// let go by others.
func TestMeterForgets(t *testing.T) {
	const user = 4_000_000_000
	m := NewMeter()
	now := time.Unix(1000, 0)
	for range 100 {
		m.Take(user, "a", UsualRate, now)
	}
	for i := range uint32(2 * maxMeter) {
		m.Take(user+1+i, "a", UsualRate, now.Add(time.Duration(i)*time.Microsecond))
	}
	if suppressed, ok := m.Take(user, "a", UsualRate, now.Add(time.Second)); !ok || suppressed != 95 {
		t.Errorf("%v, %d suppressed, want 95", ok, suppressed)
	}
}
