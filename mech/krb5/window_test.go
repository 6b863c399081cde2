package krb5

import (
	"testing"

	"pgregory.net/rapid"

	"gssproxyd/mech"
)

// naiveWindow remembers every number, and says what RFC 2743 section 1.2.3 and MIT's window of 64
// make of the next.
type naiveWindow struct {
	replay, sequence bool
	seen             map[uint64]bool
	next             uint64
}

func (w *naiveWindow) check(rel uint64) mech.Major {
	if !w.replay && !w.sequence {
		return mech.Complete
	}
	known, old := w.seen[rel], w.next
	switch {
	case rel >= old:
		w.seen[rel], w.next = true, rel+1
		if rel > old && w.sequence {
			return mech.GapToken
		}
		return mech.Complete
	case rel+64 < old:
		if w.sequence {
			return mech.UnseqToken
		}
		return mech.OldToken
	case known && w.replay:
		return mech.DuplicateToken
	}
	w.seen[rel] = true
	if w.sequence {
		return mech.UnseqToken
	}
	return mech.Complete
}

func TestWindowAgainstNaive(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var flags uint32
		naive := naiveWindow{seen: map[uint64]bool{}}
		if naive.replay = rapid.Bool().Draw(t, "replay"); naive.replay {
			flags |= mech.FlagReplay
		}
		if naive.sequence = rapid.Bool().Draw(t, "sequence"); naive.sequence {
			flags |= mech.FlagSequence
		}
		wide := rapid.Bool().Draw(t, "wide")
		base := rapid.SampledFrom([]uint64{0, 1, 1 << 30, 1<<32 - 3, 1<<64 - 3}).Draw(t, "base")
		if !wide {
			base = uint64(uint32(base))
		}
		w := newWindow(base, flags, wide)
		at := uint64(0)
		for range rapid.IntRange(1, 200).Draw(t, "messages") {
			step := rapid.SampledFrom([]int{0, 1, 1, 1, 2, 3, 62, 63, 64, 65, 66, 200, -1, -2, -63, -64, -65, -66, -130}).Draw(t, "step")
			if step < 0 && uint64(-step) > at {
				continue
			}
			at += uint64(step)
			n := base + at
			if !wide {
				n = uint64(uint32(n))
			}
			if got, want := w.Check(n), naive.check(at); got != want {
				t.Fatalf("number %d (%+d): %v, want %v", at, step, got, want)
			}
		}
	})
}

func TestWindowZeroDetectsNothing(t *testing.T) {
	var w Window
	for _, n := range []uint64{5, 5, 1 << 40, 0} {
		if got := w.Check(n); got != mech.Complete {
			t.Errorf("%d: %v", n, got)
		}
	}
}
