package fuse

import (
	"errors"
	"slices"
	"sync"
	"syscall"
	"time"

	gofuse "github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// reader reads what the kernel asks, by one goroutine at a time, which also handles it, or has others do so:
//
//   - what neither waits nor has to find out who asks is answered at once;
//   - all else is paid for by the user who asks. The reader handles what is the user's turn and will hardly take
//     long, such as to open a file: to wake another goroutine would cost as much again. If it does take long, another
//     goroutine reads on;
//   - steps, what has to wait for its turn, and what comes while more is there to be read, others handle. What makes and
//     removes directories waits for no turn.
type reader struct {
	*device
	ended chan error

	// Of the goroutine that reads.
	in, out  *buffer
	failures int // one after the other

	mu         sync.Mutex
	forgets    [][]byte  // requests; where there are some, forget handles them
	last       int       // the number of the request that it began to handle last, of those that may take long
	now        int       // that of the one it is at; 0: none, or another goroutine reads meanwhile
	watched    bool      // whether look is going to be called
	apartUntil time.Time // when others stop handling all of them
}

// serve answers requests until the file system is unmounted; then the handlers have ended.
func (d *device) serve() error {
	r := &reader{device: d, ended: make(chan error, 1), in: new(buffer), out: new(buffer)}
	d.queue.handlers.Go(r.run)
	err := <-r.ended
	d.queue.end()
	return err
}

// relay is for how long a goroutine reads without having to wait for a request. Meanwhile Go's runtime does not look for what
// comes over sockets: this processor is busy, and an idle one does not look either, until a goroutine is started.
const relay = 100 * time.Microsecond

// maxFailures is how many requests may fail to be read one after the other.
const maxFailures = 10

// run reads until the file system is unmounted, or another goroutine reads on.
func (r *reader) run() {
	var begun time.Time // to read without waiting; zero: it has just waited, or begun
	for {
		if begun.IsZero() {
			begun = time.Now()
		} else if time.Since(begun) > relay {
			r.queue.handlers.Go(r.run)
			return
		}
		request, waited, err := r.read(r.in)
		if waited {
			begun = time.Time{}
		}
		switch {
		case err == nil:
			r.failures = 0
		case errors.Is(err, unix.ENOENT): // who asked does not wait any more
			continue
		case errors.Is(err, unix.ENODEV) || r.poll()&unix.POLLERR != 0: // unmounted
			r.ended <- nil
			return
		case r.failures < maxFailures: // of one request, which the kernel has answered
			r.failures++
			continue
		default:
			r.ended <- err
			return
		}
		switch op := opcode(request); {
		case op == opForget || op == opBatchForget:
			r.forgotten(slices.Clone(request))
		case mayWait(request):
			if !r.charged(request) {
				return
			}
		default:
			r.send(r.answer(request, r.out[:]))
		}
	}
}

// forgotten has another goroutine handle a request for which nobody waits. Go-fuse may collect garbage then, and what comes
// meanwhile is kept: the kernel sends no more of these than there are inodes, which users pay for until they are handled.
func (r *reader) forgotten(request []byte) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.forgets = append(r.forgets, request); len(r.forgets) == 1 {
		r.queue.handlers.Go(r.forget)
	}
}

// forget handles such requests until there are none.
func (r *reader) forget() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for len(r.forgets) > 0 {
		request := r.forgets[0]
		r.mu.Unlock()
		r.answer(request, nil)
		r.mu.Lock()
		r.forgets = r.forgets[1:]
	}
	r.forgets = nil
}

// mayWait reports whether the handler of a request may wait, or has to find out who asks.
func mayWait(request []byte) bool {
	switch opcode(request) {
	case opMkdir, opRmdir, opOpen, opWrite, opOpendir:
		return true
	case opSetattr: // a truncation: of all else the kernel may hold a directory that is everybody's
		return valid(request)&gofuse.FATTR_SIZE != 0
	}
	return false
}

// charged has a request handled that is paid for, in its user's turn, and reports whether the calling goroutine is still
// the one that reads.
func (r *reader) charged(request []byte) bool {
	long := len(request) > shortRequest
	cost, in := len(request)+requestSize, r.in
	if long {
		cost = len(in)
	}
	held := charge{buffers: r.limits.Buffers, uid: uid(request)}
	if err := held.more(cost); err != nil {
		r.send(refused(request, r.out[:], errnoOf(err)))
		clear(request)
		return true
	}
	if long {
		r.in = r.buffers.Get().(*buffer)
	} else {
		request = slices.Clone(request)
		clear(in[:len(request)])
	}
	handle := func(late bool) {
		answer := make([]byte, shortAnswer)
		if late {
			answer = refused(request, answer, syscall.ETIMEDOUT)
			clear(request)
		} else {
			answer = r.answer(request, answer)
		}
		if long {
			r.buffers.Put(in)
		}
		held.none() // before who asked can ask again
		r.send(answer)
	}
	op := opcode(request)
	here := op != opWrite && r.alone()
	if op == opMkdir || op == opRmdir {
		// They wait for no turn: meanwhile the kernel holds the directory, and with it all who look for something there. So
		// it sends one at a time of each.
		if here {
			return r.here(handle)
		}
		r.queue.handlers.Go(func() { handle(false) })
		return true
	}
	if here && r.queue.begins(held.uid) {
		defer r.queue.ends(held.uid)
		return r.here(handle)
	}
	r.queue.add(held.uid, handle)
	return true
}

// Where what the goroutine that reads handles takes longer than patience, and than twice that at most, another one reads on.
// After what took longer than brief, other goroutines handle what may take long, for apart times as long as it took: with
// that, users who have it take long have others wait for a fiftieth of the time at most.
const (
	brief    = 500 * time.Microsecond
	patience = time.Millisecond
	apart    = 50
)

// alone reports whether the goroutine that reads may handle what it has read: nobody waits for it to read on.
func (r *reader) alone() bool {
	r.mu.Lock()
	wait := time.Now().Before(r.apartUntil)
	r.mu.Unlock()
	return !wait && r.poll()&unix.POLLIN == 0
}

// here handles a request, and reports whether the calling goroutine is still the one that reads.
func (r *reader) here(handle func(late bool)) bool {
	r.mu.Lock()
	r.last++
	number := r.last
	r.now = number
	r.watch()
	r.mu.Unlock()
	begun := time.Now()
	handle(false)
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.now != number {
		return false
	}
	r.now = 0
	if took := time.Since(begun); took > brief {
		r.apartUntil = time.Now().Add(apart * took)
	}
	return true
}

// watch has look be called; r.mu is held. One timer is for all requests of a time, as each wakes a thread.
func (r *reader) watch() {
	if !r.watched {
		r.watched = true
		seen := r.last
		time.AfterFunc(patience, func() { r.look(seen) })
	}
}

// look has another goroutine read on if the request of that number, the last one when watch was called, is still handled. It
// is called again for as long as there are others.
func (r *reader) look(seen int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.watched = false
	switch {
	case r.last != seen:
		r.watch()
	case r.now == seen:
		r.now = 0
		r.apartUntil = time.Now().Add(apart * 2 * patience)
		r.queue.handlers.Go(r.run)
	}
}
