package fuse

import (
	"encoding/binary"
	"maps"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"

	"gssproxyd/limits"
)

// oneEach is a budget of which a user who is not root has one.
func oneEach() *limits.Budget { return limits.NewBudget("requests", 4) }

// TestTurnInTime: what waits for its turn for too long is refused when that time is over, and not when its turn comes; what
// has come later goes on waiting.
func TestTurnInTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := queue{running: oneEach(), within: turnWithin}
		start, free := time.Now(), make(chan struct{})
		type end struct {
			late  bool
			after time.Duration
		}
		var mu sync.Mutex
		ended := map[string]end{}
		add := func(name string) {
			q.add(1000, func(late bool) {
				mu.Lock()
				defer mu.Unlock()
				ended[name] = end{late, time.Since(start)}
			})
		}
		ends := func() map[string]end {
			synctest.Wait()
			mu.Lock()
			defer mu.Unlock()
			return maps.Clone(ended)
		}
		q.add(1000, func(bool) { <-free })
		add("first")
		add("second")
		time.Sleep(turnWithin / 2)
		add("third")
		if early := ends(); len(early) > 0 {
			t.Fatalf("too early: %v", early)
		}
		time.Sleep(turnWithin / 2)
		for _, name := range []string{"first", "second"} {
			if e, ok := ends()[name]; !ok || !e.late || e.after < turnWithin/2 || e.after > turnWithin {
				t.Errorf("%s: %v", name, e)
			}
		}
		if e, ok := ends()["third"]; ok {
			t.Errorf("third: %v", e)
		}
		close(free)
		if e, ok := ends()["third"]; !ok || e.late {
			t.Errorf("third: %v, %v", e, ok)
		}
		q.end()
		if n := q.running.Held(1000); n != 0 {
			t.Errorf("%d are under way", n)
		}
	})
}

// TestTurnAfterOtherMount: what waits for a user's requests on another mount has its turn when they are done, though
// nothing else is asked on its own.
func TestTurnAfterOtherMount(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		running := oneEach()
		one, other := queue{running: running, within: turnWithin}, queue{running: running, within: turnWithin}
		free := make(chan struct{})
		var done atomic.Bool
		other.add(1000, func(bool) { <-free })
		one.add(1000, func(late bool) { done.Store(!late) })
		time.Sleep(2 * lookEvery)
		synctest.Wait()
		if done.Load() {
			t.Fatal("there are two of one user")
		}
		close(free)
		time.Sleep(lookEvery)
		synctest.Wait()
		if !done.Load() {
			t.Error("its turn does not come")
		}
	})
}

// TestTurnAtOnce: it is a user's turn at once while there is a share left of what may be under way, and nothing of that
// user's waits, which would be overtaken. When it ends, what waits has its turn.
func TestTurnAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := queue{running: oneEach(), within: turnWithin}
		if !q.begins(1000) {
			t.Fatal("it is nobody's turn")
		}
		if q.begins(1000) {
			t.Error("there are two of one user")
		}
		if !q.begins(1001) {
			t.Error("another user has no turn")
		}
		free, begun := make(chan struct{}), 0
		for range 2 {
			q.add(1000, func(bool) { begun++; <-free })
		}
		synctest.Wait()
		if begun != 0 {
			t.Fatal("there are two of one user")
		}
		q.running.Give(1000, 1) // as by another mount, so that it would be the user's turn
		if q.begins(1000) {
			t.Error("what waits is overtaken")
		}
		q.ends(1001)
		synctest.Wait()
		if begun != 1 {
			t.Errorf("%d have begun", begun)
		}
		close(free)
		q.end()
		if n := q.running.Held(1000) + q.running.Held(1001); n != 0 {
			t.Errorf("%d are under way", n)
		}
	})
}

// TestQueueEnd: what still waits when a mount ends is refused.
func TestQueueEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		running := oneEach()
		if err := running.Take(1000, 1); err != nil {
			t.Fatal(err)
		}
		q, refused := queue{running: running, within: turnWithin}, false
		q.add(1000, func(late bool) { refused = late })
		q.end()
		if !refused {
			t.Error("nobody hears of it")
		}
	})
}

// TestLate: a request that is late is answered with ETIMEDOUT, is cleared, and is not paid for any more.
func TestLate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k, d := deviceOf(t)
		defer d.close()
		l := d.limits
		for l.Requests.Take(1000, 1) == nil {
		}
		r := &reader{device: d, in: new(buffer)}
		var long *buffer
		for i, n := range []int{shortRequest, shortRequest + 1} {
			request := r.in[:n]
			binary.NativeEndian.PutUint32(request[4:], opWrite)
			binary.NativeEndian.PutUint64(request[8:], uint64(i+1)) // unique
			binary.NativeEndian.PutUint32(request[24:], 1000)       // uid
			request[n-1] = 's'                                      // a secret
			long = r.in
			r.charged(request)
		}
		if long == r.in || l.Buffers.Held(1000) == 0 {
			t.Fatal("they do not wait")
		}
		time.Sleep(turnWithin)
		synctest.Wait()
		for i := range 2 {
			var answer [shortAnswer]byte
			n, err := unix.Read(int(k), answer[:])
			if err != nil || n != outHeader || unique(answer[:]) != uint64(i+1) || errorIn(answer[:]) != unix.ETIMEDOUT {
				t.Errorf("%d: %v: % x", i+1, err, answer[:max(0, n)])
			}
		}
		if *r.in != (buffer{}) || *long != (buffer{}) {
			t.Error("what was asked is still there")
		}
		if n := l.Buffers.Held(1000); n != 0 {
			t.Errorf("%d bytes are paid for", n)
		}
	})
}
