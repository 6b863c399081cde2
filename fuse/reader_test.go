package fuse

import (
	"encoding/binary"
	"log/slog"
	"testing"
	"testing/synctest"
	"time"

	gofuse "github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"gssproxyd/limits"
	"gssproxyd/tests/lab"
)

// A kernel is the other end of a device: what is written to it is answered at once, without a file system.
type kernel int

// deviceOf returns a device, and its kernel.
func deviceOf(t *testing.T) (kernel, *device) {
	t.Helper()
	ends, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(ends[1]) })
	d, err := newDevice(ends[0], limits.ForProcess(), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	return kernel(ends[1]), d
}

// sends sends a request, with so many bytes behind the header.
func (k kernel) sends(t *testing.T, op uint32, number uint64, more int) {
	t.Helper()
	request := make([]byte, inHeader+more)
	binary.NativeEndian.PutUint32(request, uint32(len(request)))
	binary.NativeEndian.PutUint32(request[4:], op)
	binary.NativeEndian.PutUint64(request[8:], number)
	lab.Await(t, "room for a request", func() bool {
		_, err := unix.Write(int(k), request)
		if err != nil && err != unix.EAGAIN {
			t.Fatal(err)
		}
		return err == nil
	})
}

// asks sends a request, which who reads refuses.
func (k kernel) asks(t *testing.T, number uint64) {
	t.Helper()
	k.sends(t, opInterrupt, number, 0)
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

// TestSlowOpens: what took longer than others should wait for is handled by others for a while, fifty times as long.
func TestSlowOpens(t *testing.T) {
	for took, want := range map[time.Duration]time.Duration{brief: 0, 600 * time.Microsecond: 30 * time.Millisecond, patience - 1: 50*patience - 50} {
		synctest.Test(t, func(t *testing.T) {
			r := new(reader)
			if !r.here(func(bool) { time.Sleep(took) }) {
				t.Errorf("%v: another goroutine reads", took)
			}
			if got := max(time.Until(r.apartUntil), 0); got != want {
				t.Errorf("after %v others handle all for %v, want %v", took, got, want)
			}
			time.Sleep(2 * patience) // look has been called
		})
	}
}

// slowForgets is a file system that forgets nothing before it may.
type slowForgets struct {
	gofuse.RawFileSystem
	free      <-chan struct{}
	forgotten int
}

func (f *slowForgets) Forget(uint64, uint64) {
	<-f.free
	f.forgotten++
}

// TestForgetsTakeLong: however long it takes to forget inodes, and however many there are, other requests are answered.
func TestForgetsTakeLong(t *testing.T) {
	k, d := deviceOf(t)
	free := make(chan struct{})
	files := &slowForgets{RawFileSystem: gofuse.NewDefaultRawFileSystem(), free: free}
	d.protocol = gofuse.NewProtocolServer(files, &gofuse.MountOptions{})
	served := make(chan error)
	go func() { served <- d.serve() }()
	const many = 1000
	for range many {
		k.sends(t, opForget, 0, 16)
	}
	k.asks(t, 1)
	k.answered(t, 1)
	close(free)
	d.close()
	<-served
	if files.forgotten != many {
		t.Errorf("%d of %d are forgotten", files.forgotten, many)
	}
}

// TestReadsOn: while the goroutine that reads handles something another one reads on, one at a time, and that one alone goes on
// reading. Meanwhile, and for a while after, others handle what may take long.
func TestReadsOn(t *testing.T) {
	k, d := deviceOf(t)
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
	if r.apartUntil.Before(begun.Add(apart * 2 * patience)) {
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
