package rpc

import "testing"

func TestShares(t *testing.T) {
	s := shares{limit: 100, favoured: [2]uint32{0, 33}}
	take := func(uid uint32, n int, want bool) {
		t.Helper()
		if got := s.take(uid, n); got != want {
			t.Errorf("take(%d, %d) = %v with %d used of %d, %v", uid, n, got, s.used, s.limit, s.held)
		}
	}
	take(1, 51, true) // nobody else has any
	take(1, 0, false) // 51 held, 49 free
	s.give(1, 11)
	take(1, 20, true)
	take(1, 1, false) // 60 held
	take(2, 40, true)
	take(2, 1, false)
	s.give(1, 60)
	take(2, 20, true)
	take(2, 1, false) // 60 held, 40 free
	take(0, 40, true) // root may take the rest
	take(33, 1, false)
	s.give(0, 40)
	take(33, 40, true)
	s.give(33, 40)
	s.give(2, 60)
	if s.used != 0 || len(s.held) != 0 {
		t.Errorf("%d used, %v", s.used, s.held)
	}
}
