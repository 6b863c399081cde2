package limits

import (
	"context"
	"errors"
	"os"
	"testing"
	"testing/synctest"
	"time"
)

// A user begins a burst at once and the rest at its rate, whatever others do; who would wait too
// long is refused.
func TestGateRate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := NewBudget("questions", 64)
		b.Reserve(33)
		g := NewGate(b, 10, 100*time.Millisecond, time.Second)
		begun := func(uid uint32) (n int) {
			for start := time.Now(); time.Since(start) == 0 && n < 1000; n++ {
				if err := g.Begin(t.Context(), uid); err != nil {
					t.Fatal(err)
				}
			}
			return n - 1 // the last one waited
		}
		for _, want := range []struct {
			uid uint32
			n   int
		}{{1000, 10}, {1001, 10}, {33, 80}, {0, 999}, {uint32(os.Geteuid()), 999}} {
			if n := begun(want.uid); n != want.n {
				t.Errorf("uid %d began %d at once, want %d", want.uid, n, want.n)
			}
		}
		begun(1002)
		start := time.Now()
		for range 10 {
			if err := g.Begin(t.Context(), 1002); err != nil {
				t.Fatal(err)
			}
		}
		if took := time.Since(start); took != time.Second {
			t.Errorf("ten took %v", took)
		}

		gone, leave := context.WithCancel(t.Context())
		leave()
		refused := 0
		for range 20 {
			var e *RateError
			if err := g.Begin(gone, 1003); errors.As(err, &e) && e.UID == 1003 {
				refused++
			}
		}
		if refused != 0 {
			t.Errorf("%d were refused with a second's patience", refused)
		}
		var e *RateError
		if err := g.Begin(gone, 1003); !errors.As(err, &e) {
			t.Errorf("beyond a second's patience: %v", err)
		}
	})
}

// However many users there are, few of them are remembered, and those who are not still have a
// rate.
func TestGateForgets(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := NewGate(NewBudget("questions", 64), 1, time.Minute, 0)
		refused := 0
		for uid := range uint32(20_000) {
			if g.Begin(t.Context(), 100_000+uid) != nil {
				refused++
			}
		}
		if len(g.paid) > maxPaces || refused != 20_000-maxPaces-1 {
			t.Errorf("%d are remembered, %d were refused", len(g.paid), refused)
		}
		time.Sleep(time.Hour)
		if err := g.Begin(t.Context(), 1); err != nil || len(g.paid) != 1 {
			t.Errorf("an hour later: %v, %d are remembered", err, len(g.paid))
		}
	})
}

// However many users there are, who has a reserve has a rate of its own.
func TestGateRemembersReserved(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := NewBudget("questions", 64)
		b.Reserve(33)
		g := NewGate(b, 1, time.Minute, 0)
		refused := 0
		for uid := range uint32(20_000) {
			if g.Begin(t.Context(), 100_000+uid) != nil {
				refused++
			}
		}
		if refused == 0 {
			t.Error("there is room for everybody")
		}
		if err := g.Begin(t.Context(), 33); err != nil {
			t.Error(err)
		}
	})
}

// Who finds nothing free waits for what is given back, and is refused when that takes too long.
func TestGateHold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := NewBudget("questions", 8)
		g := NewGate(b, 10, 1, time.Second)
		var held []func()
		for {
			release, err := g.Hold(t.Context(), 1000)
			if err != nil {
				var e *Error
				if !errors.As(err, &e) || e.UID != 1000 || e.Held != len(held) {
					t.Errorf("refused with %v", err)
				}
				break
			}
			held = append(held, release)
		}
		got := make(chan func())
		go func() {
			release, err := g.Hold(t.Context(), 1000)
			if err != nil {
				t.Error(err)
			}
			got <- release
		}()
		synctest.Wait()
		held[0]()
		held[0] = <-got
		for _, release := range held {
			release()
		}
		if n := b.Held(1000); n != 0 || len(g.waiting.order) != 0 {
			t.Errorf("%d are held still, %d wait", n, len(g.waiting.order))
		}
	})
}

// Of those who wait each uid is called in turn, and one who holds so much that it may have no more
// does not keep others waiting.
func TestGateInTurn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := NewBudget("questions", 8)
		b.Reserve(33)
		g := NewGate(b, 10, 1, time.Minute)
		hold := func(uid uint32) func() {
			release, err := g.Hold(t.Context(), uid)
			if err != nil {
				t.Error(err)
			}
			return release
		}
		var first []func()
		for b.Take(1000, 1) == nil {
			first = append(first, func() { g.give(1000) })
		}
		type called struct {
			uid     uint32
			release func()
		}
		got := make(chan called)
		wait := func(uid uint32) {
			go func() { got <- called{uid, hold(uid)} }()
			synctest.Wait()
		}
		for b.Take(1001, 1) == nil { // what is left that another may have
			first = append(first, func() { g.give(1001) })
		}
		for range 2 {
			wait(1000)
		}
		wait(1002)
		first[len(first)-1]()
		next := <-got
		if next.uid != 1002 {
			t.Errorf("uid %d was called, who has the most", next.uid)
		}
		synctest.Wait()
		select {
		case one := <-got:
			t.Errorf("uid %d was called, for whom nothing is free", one.uid)
		default:
		}
		next.release()
		for _, release := range first[:len(first)-1] {
			release()
		}
		for range 2 {
			if one := <-got; one.uid != 1000 {
				t.Errorf("uid %d was called", one.uid)
			}
		}
	})
}

func TestPayer(t *testing.T) {
	if got := Payer(t.Context()); got != uint32(os.Geteuid()) {
		t.Errorf("nobody was named: %d pays", got)
	}
	type other struct{}
	ctx, cancel := context.WithCancel(WithPayer(context.WithValue(t.Context(), other{}, "kept"), 7))
	defer cancel()
	if got := Payer(ctx); got != 7 || ctx.Value(other{}) != "kept" {
		t.Errorf("7 was named: %d pays; the context has lost %v", got, ctx.Value(other{}))
	}
	if got := Payer(WithPayer(ctx, 8)); got != 8 {
		t.Errorf("8 was named last: %d pays", got)
	}
}
