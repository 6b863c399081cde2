package limits

import (
	"context"
	"slices"
	"testing"
	"testing/synctest"
	"time"
)

// Users without a reserve compute in turn by user, on all processors but the one that is left to
// the others while those are served.
func TestProcessors(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const service, a, b = 33, 4_000_000_001, 4_000_000_002
		p := NewProcessors(3)
		p.Reserve(service)
		take := func(uid uint32) *Turn {
			one, err := p.Take(t.Context(), uid)
			if err != nil {
				t.Fatal(err)
			}
			return one
		}
		for _, uid := range []uint32{service, 0} {
			if take(uid) != nil {
				t.Errorf("uid %d waits for a turn", uid)
			}
		}
		first, second := take(a), take(a)
		var order []uint32
		ask := func(ctx context.Context, uid uint32) {
			go func() {
				one, err := p.Take(ctx, uid)
				if err != nil {
					return
				}
				order = append(order, uid)
				one.End()
			}()
			synctest.Wait()
		}
		ctx, cancel := context.WithCancel(t.Context())
		ask(t.Context(), a)
		ask(t.Context(), a)
		ask(ctx, b)
		ask(t.Context(), b)
		cancel()
		synctest.Wait()
		if len(order) > 0 {
			t.Errorf("%v have not waited", order)
		}
		second.End()
		synctest.Wait()
		if want := []uint32{a, b, a}; !slices.Equal(order, want) {
			t.Errorf("turns in the order %v, want %v", order, want)
		}
		second = take(a)
		time.Sleep(spared + 1)
		third := take(a)
		if third == nil {
			t.Error("the last processor is not to be had while nobody with a reserve is served")
		}

		// Who has waited for long goes on.
		began := time.Now()
		if take(b) != nil || time.Since(began) != patience {
			t.Errorf("without a turn after %v, want none after %v", time.Since(began), patience)
		}
		for _, one := range []*Turn{first, second, third} {
			one.End()
			one.End()
		}
		if p.running != 0 || len(p.waiting.waiting) != 0 {
			t.Errorf("in the end %d compute and %v wait", p.running, p.waiting)
		}
	})
}

// One processor is nobody's alone.
func TestOneProcessor(t *testing.T) {
	const user = 4_000_000_000
	p := NewProcessors(1)
	p.Take(t.Context(), 0)
	one, err := p.Take(t.Context(), user)
	if one == nil || err != nil {
		t.Errorf("turn %v, %v", one, err)
	}
	one.End()
}

// A call may have two turns, and ends both.
func TestTurnInTurn(t *testing.T) {
	const user = 4_000_000_000
	turns, p := NewTurns("things", 1, 10), NewProcessors(1)
	large, err := turns.Take(t.Context(), user)
	if err != nil {
		t.Fatal(err)
	}
	ctx := large.Context(t.Context())
	small, err := p.Take(ctx, user)
	if err != nil {
		t.Fatal(err)
	}
	EndTurn(small.Context(ctx))
	if turns.free != 1 || p.running != 0 {
		t.Errorf("%d large ones may begin, %d compute", turns.free, p.running)
	}
}
