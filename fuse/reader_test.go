package fuse

import (
	"encoding/binary"
	"log/slog"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"gssproxyd/limits"
	"gssproxyd/tests/lab"
)

// A kernel is the other end of a device: what is written to it is answered at once, without a file system.
type kernel int

// asks sends a request, which who reads refuses.
func (k kernel) asks(t *testing.T, number uint64) {
	t.Helper()
	request := make([]byte, inHeader)
	binary.NativeEndian.PutUint32(request[4:], opInterrupt)
	binary.NativeEndian.PutUint64(request[8:], number)
	if _, err := unix.Write(int(k), request); err != nil {
		t.Fatal(err)
	}
}

// answered waits for the answer to a request.
func (k kernel) answered(t *testing.T, number uint64) {
	t.Helper()
	answer := make([]byte, shortAnswer)
	lab.Await(t, "an answer", func() bool {
		n, err := unix.Read(int(k), answer)
		return err == nil && n == outHeader
	})
	if unique(answer) != number {
		t.Errorf("an answer to %d, want %d", unique(answer), number)
	}
}

// TestReadsOn: while the goroutine that reads handles something another one reads on, one at a time, and that one alone goes on
// reading. Meanwhile, and for a while after, others handle what may take long.
func TestReadsOn(t *testing.T) {
	ends, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(ends[1])
	k := kernel(ends[1])
	d, err := newDevice(ends[0], limits.ForProcess(), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	r := &reader{device: d, in: new(buffer), out: new(buffer), ended: make(chan error, 1)}
	if !r.alone() {
		t.Error("others handle what may take long, before anything has")
	}
	r.watched = true // so that it takes no time
	if !r.here(func(bool) {}) {
		t.Error("another goroutine reads, and nothing takes long")
	}
	r.watched = false
	free, reads, begun := make(chan struct{}), make(chan bool), time.Now()
	go func() { reads <- r.here(func(bool) { <-free }) }()
	k.asks(t, 1)
	k.answered(t, 1)
	// The one that reads now handles something too, while the first one ends.
	r.mu.Lock()
	if r.apartUntil.Before(begun.Add(apart)) {
		t.Error("who reads now handles what may take long, as the last one did")
	}
	r.apartUntil = begun.Add(time.Hour)
	r.last++
	r.now = r.last
	r.mu.Unlock()
	close(free)
	if <-reads {
		t.Error("two goroutines read")
	}
	if r.alone() {
		t.Error("nobody else handles what may take long")
	}
	r.mu.Lock()
	r.now = 0
	r.apartUntil = time.Now()
	r.mu.Unlock()
	if !r.alone() {
		t.Error("others handle what may take long, for ever")
	}
	k.asks(t, 2)
	k.answered(t, 2)
	d.close()
	<-r.ended
	d.queue.end()
}
