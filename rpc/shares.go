package rpc

import "sync"

// shares divides something scarce among users: each may hold at most as much as
// is still free. So one user alone gets half of it, a second one half of the
// rest, and there is always something left for the next. Favoured users, root
// and the daemon itself, may have it all.
type shares struct {
	limit    int
	favoured [2]uint32

	mu   sync.Mutex
	used int
	held map[uint32]int // by uid; never 0
}

// take reports whether uid may hold n more, and notes it if so.
func (s *shares) take(uid uint32, n int) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	free := s.limit - s.used
	if n > free {
		return false
	}
	if uid != s.favoured[0] && uid != s.favoured[1] && s.held[uid]+n > free {
		return false
	}
	if s.held == nil {
		s.held = make(map[uint32]int)
	}
	s.held[uid] += n
	s.used += n
	return true
}

func (s *shares) give(uid uint32, n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.used -= n
	if s.held[uid] -= n; s.held[uid] == 0 {
		delete(s.held, uid)
	}
}
