package fuse

import (
	"sync"

	"gssproxyd/limits"
)

// queue has work done at the same time, so much of it and no more, and users take turns. Of each user's, which is done
// in the order in which it came, only a share is under way, however long it takes; other users' goes on.
type queue struct {
	running  *limits.Budget // of work under way
	handlers sync.WaitGroup

	mu      sync.Mutex
	waiting map[uint32][]func() // by user; none is empty
	order   []uint32            // of its keys
}

// add has some work of a user's done. It does not wait.
func (q *queue) add(uid uint32, work func()) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.waiting == nil {
		q.waiting = make(map[uint32][]func())
	}
	list, waits := q.waiting[uid]
	q.waiting[uid] = append(list, work)
	if !waits {
		q.order = append(q.order, uid)
	}
	if who, next := q.next(); next != nil {
		q.handlers.Go(func() { q.run(who, next) })
	}
}

// run does a user's work, and then others'.
func (q *queue) run(uid uint32, work func()) {
	for work != nil {
		work()
		q.running.Give(uid, 1)
		q.mu.Lock()
		uid, work = q.next()
		q.mu.Unlock()
	}
}

// maxTried is how many users are tried who may have no more under way. Then something is under way, and the next ones are
// tried when it is done.
const maxTried = 64

// next removes and returns the work whose turn it is, nil if there is none; q.mu is held. It is under way from now on.
func (q *queue) next() (uint32, func()) {
	for range min(len(q.order), maxTried) {
		uid := q.order[0]
		q.order = q.order[1:]
		if q.running.Take(uid, 1) != nil {
			q.order = append(q.order, uid)
			continue
		}
		list := q.waiting[uid]
		if len(list) == 1 {
			delete(q.waiting, uid)
		} else {
			q.waiting[uid] = list[1:]
			q.order = append(q.order, uid)
		}
		return uid, list[0]
	}
	return 0, nil
}
