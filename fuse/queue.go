package fuse

import (
	"slices"
	"sync"
	"time"

	"gssproxyd/limits"
)

// queue has work done at the same time, so much of it and no more, and users take turns. Of each user's, which is done
// in the order in which it came, only a share is under way, however long it takes; other users' goes on. Work whose turn
// does not come in time is refused.
type queue struct {
	running  *limits.Budget // of work under way, on all mounts
	within   time.Duration  // how long work waits at most
	handlers sync.WaitGroup

	mu      sync.Mutex
	waiting map[uint32][]work // by user; none is empty
	order   []uint32          // of its keys
	looks   bool              // whether look is going to be called, as it is while something waits
}

// work is a request. One that is late, which it is told, is not to be handled any more.
type work struct {
	do   func(late bool)
	late time.Time // from when on
}

const (
	// turnWithin is how long a request waits for its turn at most: its caller cannot be killed meanwhile. It is as long as
	// a step, so that who waits behind steps that take as long as they may waits for one round of them and no more.
	turnWithin = stepWithin

	// lookEvery is how often it is looked what is late, and whether another mount, which has the same budget, has given
	// something back.
	lookEvery = time.Second
)

// add has some work of a user's done. It does not wait.
func (q *queue) add(uid uint32, do func(late bool)) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.waiting == nil {
		q.waiting = make(map[uint32][]work)
	}
	list, waits := q.waiting[uid]
	q.waiting[uid] = append(list, work{do, time.Now().Add(q.within - lookEvery)}) // which is seen so much later at most
	if !waits {
		q.order = append(q.order, uid)
	}
	q.begin()
	q.lookLater()
}

// begins reports whether it is a user's turn now: nothing of that user's waits. Others' may, for what has just been given back;
// they are next. Then the calling goroutine does some work of that user's, and calls ends.
func (q *queue) begins(uid uint32) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	_, waits := q.waiting[uid]
	return !waits && q.running.Take(uid, 1) == nil
}

func (q *queue) ends(uid uint32) {
	q.running.Give(uid, 1)
	q.mu.Lock()
	defer q.mu.Unlock()
	q.begin()
}

// begin begins the work whose turn it is, and reports whether there is some; q.mu is held.
func (q *queue) begin() bool {
	uid, do := q.next()
	if do == nil {
		return false
	}
	q.handlers.Go(func() { q.run(uid, do) })
	return true
}

// run does a user's work, and then others'.
func (q *queue) run(uid uint32, do func(late bool)) {
	for do != nil {
		do(false)
		q.running.Give(uid, 1)
		q.mu.Lock()
		uid, do = q.next()
		q.mu.Unlock()
	}
}

// maxTried is how many users are tried who may have no more under way. The next ones are tried when something is done,
// and by look.
const maxTried = 64

// next removes and returns the work whose turn it is, nil if there is none; q.mu is held. It is under way from now on.
func (q *queue) next() (uint32, func(late bool)) {
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
		return uid, list[0].do
	}
	return 0, nil
}

// lookLater has look be called while something waits; q.mu is held.
func (q *queue) lookLater() {
	if len(q.order) > 0 && !q.looks {
		q.looks = true
		time.AfterFunc(lookEvery, q.look)
	}
}

// look refuses what is late, and begins what another mount leaves room for.
func (q *queue) look() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.looks = false
	var late []work
	now := time.Now()
	q.order = slices.DeleteFunc(q.order, func(uid uint32) bool {
		list := q.waiting[uid]
		n := 0
		for n < len(list) && !now.Before(list[n].late) {
			n++
		}
		late = append(late, list[:n]...)
		if n == len(list) {
			delete(q.waiting, uid)
			return true
		}
		q.waiting[uid] = list[n:]
		return false
	})
	if len(late) > 0 {
		q.handlers.Go(func() { refuse(late) })
	}
	for q.begin() {
	}
	q.lookLater()
}

// end refuses what waits, and waits for what is under way. Nothing is added any more.
func (q *queue) end() {
	q.mu.Lock()
	waiting := q.waiting
	q.waiting, q.order = nil, nil
	q.mu.Unlock()
	for _, list := range waiting {
		refuse(list)
	}
	q.handlers.Wait()
}

func refuse(list []work) {
	for _, w := range list {
		w.do(true)
	}
}
