package fuse

import (
	"context"
	"encoding/json"
	"sync"
	"syscall"

	gofuse "github.com/hanwen/go-fuse/v2/fuse"

	"gssproxyd/limits"
	"gssproxyd/mech/reason"
)

// charge is how many bytes somebody has the daemon hold.
type charge struct {
	buffers *limits.Budget
	uid     uint32
	n       int
}

func (s *Server) charge(uid uint32) charge { return charge{buffers: s.o.Limits.Buffers, uid: uid} }

// more notes n bytes more, or refuses them.
func (c *charge) more(n int) error {
	if err := c.buffers.Take(c.uid, n); err != nil {
		return over(err, reason.TooMuchBuffered)
	}
	c.n += n
	return nil
}

// none gives all back.
func (c *charge) none() {
	if c.n > 0 {
		c.buffers.Give(c.uid, c.n)
	}
	c.n = 0
}

// marshal makes JSON of what cannot fail to be.
func marshal(v any) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return b
}

// openSize and entrySize are what an open file, and an entry of an open directory, has the daemon hold,
// about, in bytes.
const (
	openSize  = 512
	entrySize = 64
)

// paid is something open that somebody pays for until it is closed.
type paid struct {
	server *Server
	charge
}

// pays has who makes a request pay for something open with so many bytes in it.
func (s *Server) pays(ctx context.Context, n int) (*paid, syscall.Errno) {
	from, ok := gofuse.FromContext(ctx)
	if !ok {
		return nil, syscall.EACCES
	}
	p := &paid{s, s.charge(from.Uid)}
	if err := p.more(openSize + n); err != nil {
		return nil, errnoOf(err)
	}
	s.open.add(p)
	return p, 0
}

func (p *paid) release() { p.none() }

func (p *paid) closed() {
	if p.server.open.remove(p) {
		p.release()
	}
}

// releases are what the kernel is going to say the end of. When a mount ends it does not of what was
// closed last.
type releases struct {
	mu   sync.Mutex
	open map[releaser]struct{}
}

type releaser interface{ release() }

func (r *releases) add(one releaser) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.open == nil {
		r.open = make(map[releaser]struct{})
	}
	r.open[one] = struct{}{}
}

// remove reports whether it was there.
func (r *releases) remove(one releaser) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	_, ok := r.open[one]
	delete(r.open, one)
	return ok
}

// release ends all that is left.
func (r *releases) release() {
	r.mu.Lock()
	left := r.open
	r.open = nil
	r.mu.Unlock()
	for one := range left {
		one.release()
	}
}
