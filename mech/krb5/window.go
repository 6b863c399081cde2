package krb5

import "gssproxyd/mech"

// Window is the state of replay and sequence detection for the messages of one peer. It remembers
// which of the last 64 numbers have arrived. The zero value detects nothing.
type Window struct {
	Replay   bool   // report numbers seen before
	Sequence bool   // report gaps and numbers out of order
	Mask     uint64 // all ones of the number's width: 64 bits (RFC 4121) or 32 (RFC 1964)
	Base     uint64 // the initial number
	Next     uint64 // relative to Base: one more than the highest number seen
	Seen     uint64 // bit i-1 set: Next-i was seen
}

// newWindow returns the window of a new context: base is the peer's initial number, flags are the
// context's, wide is false for the 32-bit numbers of RFC 1964.
func newWindow(base uint64, flags uint32, wide bool) Window {
	w := Window{Replay: flags&mech.FlagReplay != 0, Sequence: flags&mech.FlagSequence != 0, Mask: 1<<32 - 1, Base: base}
	if wide {
		w.Mask = 1<<64 - 1
	}
	return w
}

// Check records the arrival of number n and returns mech.Complete or the supplementary code for
// what is wrong with its order. Call it for authentic messages only.
func (w *Window) Check(n uint64) mech.Major {
	if !w.Replay && !w.Sequence {
		return mech.Complete
	}
	rel := (n - w.Base) & w.Mask
	if rel >= w.Next {
		skipped := rel - w.Next
		w.Seen = w.Seen<<(skipped+1) | 1
		if skipped >= 63 {
			w.Seen = 1
		}
		w.Next = (rel + 1) & w.Mask
		if skipped > 0 && w.Sequence {
			return mech.GapToken
		}
		return mech.Complete
	}
	behind := w.Next - rel
	if behind > 64 {
		if w.Sequence {
			return mech.UnseqToken
		}
		return mech.OldToken
	}
	bit := uint64(1) << (behind - 1)
	if w.Replay && w.Seen&bit != 0 {
		return mech.DuplicateToken
	}
	w.Seen |= bit
	if w.Sequence {
		return mech.UnseqToken
	}
	return mech.Complete
}
