package rotate

import (
	"context"
	"testing"
	"time"
)

// TestClocksDiffer: an instance whose clock is two minutes ahead does not take a request that was just
// sent for settled, and sends no other.
func TestClocksDiffer(t *testing.T) {
	inBubble(t, 1, func(ctx context.Context, w *world) {
		a, _ := w.engine()
		b, _ := w.engine()
		b.o.Now = func() time.Time { return time.Now().Add(2 * time.Minute) }
		time.Sleep(2 * alive)
		before := w.kdc.kvno()
		w.kdc.mu.Lock()
		w.kdc.faults = []fault{{delayed: 15 * time.Second}}
		w.kdc.mu.Unlock()
		killed, kill := context.WithCancel(ctx)
		a.step = func(name string) error {
			if name == "before change" {
				time.AfterFunc(time.Second, kill)
			}
			return nil
		}
		a.Rotate(killed, principal, "uid 0", false)
		if err := b.Rotate(ctx, principal, "uid 0", false); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute) // whatever is under way has arrived
		if got := w.kdc.kvno(); got != before+1 {
			t.Errorf("the KDC has kvno %d, want %d", got, before+1)
		}
		if err := w.hosts[0].open(w.kdc.ticket()); err != nil {
			t.Error(err)
		}
	})
}
