package fuse

import "sync"

// notices tell the kernel what has gone, which waits while somebody else holds the directory, and be it
// for ever: who reads it into memory that does not arrive. So each user's have a goroutine of their own,
// and only so many users' at a time, since each that waits is a thread. It ends when they are given, or
// when whom it waits for lets go.
type notices struct {
	mu      sync.Mutex
	waiting map[uint32][]func() // by user; of each the goroutine is there
	slots   chan struct{}
}

// maxNoticed is how many users' notices are given at a time.
const maxNoticed = 64

// add has a notice be given of something of a user's.
func (n *notices) add(uid uint32, give func()) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.waiting == nil {
		n.waiting, n.slots = make(map[uint32][]func()), make(chan struct{}, maxNoticed)
	}
	list, given := n.waiting[uid]
	n.waiting[uid] = append(list, give)
	if !given {
		go n.give(uid)
	}
}

func (n *notices) give(uid uint32) {
	n.slots <- struct{}{}
	defer func() { <-n.slots }()
	for {
		n.mu.Lock()
		list := n.waiting[uid]
		if len(list) == 0 {
			delete(n.waiting, uid)
			n.mu.Unlock()
			return
		}
		n.waiting[uid] = list[1:]
		n.mu.Unlock()
		list[0]()
	}
}
