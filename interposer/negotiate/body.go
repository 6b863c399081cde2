package negotiate

// This file has bodies that may have to be sent more than once, and those that are thrown away.

import (
	"errors"
	"io"
	"net/http"
	"sync"
	"time"
)

// requestBody is the body of a request, for one leg after the other.
type requestBody struct {
	req  *http.Request
	once *onceBody // nil: there is none, or it can be had again
	sent bool
}

func newRequestBody(req *http.Request) requestBody {
	b := requestBody{req: req}
	if req.Body != nil && req.Body != http.NoBody && req.GetBody == nil {
		b.once = &onceBody{body: req.Body, free: true}
	}
	return b
}

// again reports whether there can be another leg. The one before can then read no more.
func (b *requestBody) again() bool {
	return b.once == nil || b.once.take()
}

// next returns the body for the next leg.
func (b *requestBody) next() (io.ReadCloser, error) {
	first := !b.sent
	b.sent = true
	switch {
	case b.once != nil:
		return b.once.lend(), nil
	case first || b.req.GetBody == nil:
		return b.req.Body, nil
	}
	return b.req.GetBody()
}

// end says that there are no more legs.
func (b *requestBody) end() {
	switch {
	case b.once != nil:
		b.once.settle()
	case !b.sent && b.req.Body != nil:
		b.req.Body.Close()
	}
}

// onceBody is a body that can be read once. As long as nothing was read it is there for another
// leg: the server has answered without it.
type onceBody struct {
	body io.ReadCloser

	mu      sync.Mutex
	leg     int  // whose turn it is
	read    bool // begun to be
	free    bool // no leg has it, or the one that had it has closed it unread
	settled bool // no leg follows
}

// turn is the body of one leg.
type turn struct {
	*onceBody
	leg int
}

func (o *onceBody) lend() *turn {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.free = false
	return &turn{o, o.leg}
}

// take takes the body from its leg, if it is whole.
func (o *onceBody) take() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.read {
		return false
	}
	o.leg++
	o.free = true
	return true
}

// settle closes the body that was kept for another leg; one that a leg still has that leg will.
func (o *onceBody) settle() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.settled = true
	if o.free {
		o.body.Close()
	}
}

var errAnswered = errors.New("negotiate: the server has answered without the body")

func (t *turn) Read(p []byte) (int, error) {
	t.mu.Lock()
	if t.leg != t.onceBody.leg || t.free {
		t.mu.Unlock()
		return 0, errAnswered
	}
	t.read = true
	t.mu.Unlock()
	return t.body.Read(p)
}

func (t *turn) Close() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	switch {
	case t.leg != t.onceBody.leg || t.free:
		return nil
	case !t.read && !t.settled:
		t.free = true
		return nil
	}
	return t.body.Close()
}

// How much of an answer is read that nobody wants, and for how long. What is read to its end leaves
// the connection for the next request.
const (
	drainSize = 64 << 10
	drainTime = time.Second
)

func drain(body io.ReadCloser) {
	late := time.AfterFunc(drainTime, func() { body.Close() })
	defer late.Stop()
	io.CopyN(io.Discard, body, drainSize)
	body.Close()
}
