package limits

import (
	"context"
	"errors"
	"slices"
	"testing"
	"testing/synctest"
)

// Work waits for its turn, round by user, and those with a reserve are first.
func TestTurns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const service, a, b = 33, 4_000_000_001, 4_000_000_002
		turns := NewTurns("things", 1, 100)
		turns.Reserve(service)
		held, err := turns.Take(t.Context(), a)
		if err != nil {
			t.Fatal(err)
		}
		var order []uint32
		ask := func(ctx context.Context, uid uint32) {
			go func() {
				one, err := turns.Take(ctx, uid)
				if err != nil {
					return
				}
				order = append(order, uid) // one at a time: that is the subject
				one.End()
				one.End()
			}()
			synctest.Wait()
		}
		ctx, cancel := context.WithCancel(t.Context())
		for range 3 {
			ask(t.Context(), a)
		}
		ask(ctx, b)
		ask(t.Context(), b)
		ask(t.Context(), b)
		ask(t.Context(), service)
		ask(t.Context(), 0)
		ask(t.Context(), service)
		cancel()
		synctest.Wait()
		if len(order) > 0 {
			t.Fatalf("%v did not wait", order)
		}
		EndTurn(held.Context(t.Context()))
		synctest.Wait()
		if want := []uint32{service, 0, service, a, b, a, b, a}; !slices.Equal(order, want) {
			t.Errorf("turns in the order %v, want %v", order, want)
		}
		held.End() // it has ended already
		if one, err := turns.Take(ctx, a); err == nil {
			one.End()
		}
		if turns.free != 1 || turns.calls.Held(a) != 0 || turns.calls.Held(b) != 0 || len(turns.first.waiting)+len(turns.others.waiting) != 0 {
			t.Errorf("in the end: %d free, %v, %v wait", turns.free, turns.first, turns.others)
		}
	})
}

// How many wait is bounded by user.
func TestTurnsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const user = 4_000_000_000
		turns := NewTurns("things", 1, 16)
		ctx, cancel := context.WithCancel(t.Context())
		refused := 0
		for range 20 {
			go func() {
				_, err := turns.Take(ctx, user)
				if e := (*Error)(nil); errors.As(err, &e) {
					refused++
				}
			}()
			synctest.Wait()
		}
		if refused == 0 || refused == 20 {
			t.Errorf("%d of 20 were refused", refused)
		}
		if err := turns.calls.Take(0, 1); err != nil {
			t.Error(err)
		}
		cancel()
	})
}
