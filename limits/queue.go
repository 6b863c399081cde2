package limits

import "slices"

// waiter is somebody who waits until it is called.
type waiter struct {
	uid    uint32
	called chan struct{} // closed when it is
}

func newWaiter(uid uint32) waiter { return waiter{uid, make(chan struct{})} }

// queue is who waits, in turn by uid.
type queue struct {
	waiting map[uint32][]*waiter // none is empty
	order   []uint32             // of its keys
}

func (q *queue) add(one *waiter) {
	if q.waiting == nil {
		q.waiting = make(map[uint32][]*waiter)
	}
	if len(q.waiting[one.uid]) == 0 {
		q.order = append(q.order, one.uid)
	}
	q.waiting[one.uid] = append(q.waiting[one.uid], one)
}

// take removes and returns who is next, or nil.
func (q *queue) take() *waiter {
	if len(q.order) == 0 {
		return nil
	}
	one := q.waiting[q.order[0]][0]
	if q.remove(one); len(q.waiting[one.uid]) > 0 {
		q.order = append(q.order[1:], one.uid)
	}
	return one
}

// remove reports whether one was there.
func (q *queue) remove(one *waiter) bool {
	list := q.waiting[one.uid]
	i := slices.Index(list, one)
	if i < 0 {
		return false
	}
	if list = slices.Delete(list, i, i+1); len(list) > 0 {
		q.waiting[one.uid] = list
		return true
	}
	delete(q.waiting, one.uid)
	q.order = slices.DeleteFunc(q.order, func(uid uint32) bool { return uid == one.uid })
	return true
}

// takeWhich removes and returns who is next of those whose uid is accepted, or nil.
func (q *queue) takeWhich(accepted func(uid uint32) bool) *waiter {
	for range len(q.order) {
		if accepted(q.order[0]) {
			return q.take()
		}
		q.order = append(q.order[1:], q.order[0])
	}
	return nil
}
