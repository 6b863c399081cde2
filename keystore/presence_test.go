package keystore_test

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"gssproxyd/audit"
	"gssproxyd/keystore"
	"gssproxyd/mech/reason"
)

// dead is how long after it was heard of a host is taken for dead: package rotate says so.
const dead = 120 * time.Second

// bubble calls f with a fleet whose clock is the bubble's.
func bubble(t *testing.T, f func(t *testing.T, f *fleet, m *memory)) {
	synctest.Test(t, func(t *testing.T) {
		m := newMemory()
		fl := newFleet(t, m)
		fl.first.Now = time.Now
		f(t, fl, m)
	})
}

// joined opens another instance over a backend.
func (f *fleet) joined(t *testing.T, by *keystore.Store, b keystore.Backend, name string) (*keystore.Store, keystore.Options) {
	t.Helper()
	o := f.options(t, name)
	o.Now = time.Now
	must(t, by.Grant(t.Context(), name, o.Identity.Recipient(), "test"))
	return open(t, b, o), o
}

// silence is for how long a host was not heard of, as an instance knows.
func silence(t *testing.T, s *keystore.Store, host string) time.Duration {
	t.Helper()
	h, err := s.Known(host)
	must(t, err)
	return time.Since(h.Seen)
}

// broken is a backend of which the network can be lost.
type broken struct {
	*memory
	commits, watches atomic.Bool
}

func (b *broken) Commit(ctx context.Context, lock keystore.Lock, changes ...keystore.Record) (uint64, error) {
	if b.commits.Load() {
		return 0, errors.New("it does not answer")
	}
	return b.memory.Commit(ctx, lock, changes...)
}

func (b *broken) Watch(ctx context.Context, prefix string, after uint64) iter.Seq2[keystore.Committed, error] {
	return func(yield func(keystore.Committed, error) bool) {
		for c, err := range b.memory.Watch(ctx, prefix, after) {
			if b.watches.Load() {
				<-ctx.Done()
			} else if !yield(c, err) {
				return
			}
		}
	}
}

// TestPresence: a host that asks one instance each minute is never dead to another; when it does no
// more, it is, two minutes later; and when its instance is lost, at most two minutes after that.
func TestPresence(t *testing.T) {
	bubble(t, func(t *testing.T, f *fleet, m *memory) {
		a, ctx := open(t, m, f.first), t.Context()
		away := &broken{memory: m}
		b, _ := f.joined(t, a, away, "b")
		for _, host := range []string{"web1", "web2"} {
			_, err := a.AddHost(ctx, host, newIdentity(t).Recipient(), "")
			must(t, err)
		}
		for range 60 {
			b.Seen("web1")
			b.Seen("web2")
			time.Sleep(25 * time.Second) // a beat
			for range 35 {
				if d := silence(t, a, "web1"); d > dead-30*time.Second {
					t.Fatalf("a live host was not heard of for %v", d)
				}
				time.Sleep(time.Second)
			}
		}
		last := time.Now()
		b.Seen("web1")
		for silence(t, a, "web1") <= dead {
			time.Sleep(time.Second)
			b.Seen("web2")
		}
		if d := time.Since(last); d < dead || d > dead+2*time.Second {
			t.Errorf("a host is dead after %v", d)
		}
		away.commits.Store(true)
		lost := time.Now()
		for silence(t, a, "web2") <= dead {
			time.Sleep(time.Second)
		}
		if d := time.Since(lost); d < dead-20*time.Second || d > dead+time.Second {
			t.Errorf("a host of an instance that was lost is dead after %v", d)
		}
		// What is told at the end, and by the next run, is when each was heard of.
		away.commits.Store(false)
		time.Sleep(25 * time.Second) // a beat: one who is new takes what is old of an instance for a clock that is slow
		must(t, a.Close())
		c, o := f.joined(t, b, m, "c")
		for host, want := range map[string]time.Time{"web1": last, "web2": lost} {
			for range 2 {
				h, err := c.Known(host)
				if must(t, err); h.Seen.Sub(want).Abs() > 20*time.Second {
					t.Errorf("%s was seen at %v, want %v", host, h.Seen, want)
				}
				must(t, c.Close())
				c = open(t, m, o)
			}
		}
		d := open(t, m, f.first)
		if got := silence(t, d, "web1"); (got - time.Since(last)).Abs() > 20*time.Second {
			t.Errorf("after a restart web1 was seen %v ago", got)
		}
	})
}

// TestPresenceCost: what an instance writes does not depend on how many hosts there are, but on how
// many come and go.
func TestPresenceCost(t *testing.T) {
	bubble(t, func(t *testing.T, f *fleet, m *memory) {
		const hosts = 20000
		a := open(t, m, f.first)
		written, bytes, longest := 0, 0, 0
		m.before(func(changes []keystore.Record) (bool, error) {
			for _, c := range changes {
				if !c.Keep {
					written++
					bytes += len(c.Name) + len(c.Value)
					longest = max(longest, len(c.Value))
				}
			}
			return false, nil
		})
		minutes := func(n, gone int) {
			for range n {
				for i := gone; i < hosts; i++ {
					a.Seen(fmt.Sprintf("web%d.example.com", i))
				}
				time.Sleep(time.Minute)
			}
			synctest.Wait()
		}
		minutes(1, 0)
		if written > 1024+3 || longest > 2048 {
			t.Errorf("%d records, %d bytes, the longest %d", written, bytes, longest)
		}
		t.Logf("%d hosts come: %d records, %d bytes, the longest %d", hosts, written, bytes, longest)
		written, bytes = 0, 0
		minutes(5, 0)
		if written != 15 || bytes > 15*600 {
			t.Errorf("in five minutes without a change: %d records, %d bytes", written, bytes)
		}
		t.Logf("a day without a change: %d bytes", bytes*12*24)
		written, bytes = 0, 0
		minutes(3, 1)
		if written != 9+1 || bytes > 10*600+1500 {
			t.Errorf("in three minutes in which one goes: %d records, %d bytes", written, bytes)
		}
	})
}

// TestPresencePutBack: what somebody puts in the place of what an instance has said of hosts, or takes
// away, is said again.
func TestPresencePutBack(t *testing.T) {
	bubble(t, func(t *testing.T, f *fleet, m *memory) {
		a, ctx := open(t, m, f.first), t.Context()
		b, _ := f.joined(t, a, m, "b")
		_, err := a.AddHost(ctx, "web1", newIdentity(t).Recipient(), "")
		must(t, err)
		shard := func() keystore.Record {
			t.Helper()
			records, _, err := m.List(ctx, "live/instance/")
			must(t, err)
			for _, r := range records {
				if strings.Count(r.Name, "/") == 3 {
					return r
				}
			}
			return keystore.Record{}
		}
		for range 3 {
			b.Seen("web1")
			time.Sleep(time.Minute)
		}
		live := shard()
		time.Sleep(3 * time.Minute)
		gone := shard()
		for range 3 {
			b.Seen("web1")
			time.Sleep(time.Minute)
		}
		commit(t, m, put(live.Name, string(gone.Value), shard().Version))
		time.Sleep(25 * time.Second)
		if d := silence(t, a, "web1"); d > dead {
			t.Errorf("a live host was not heard of for %v after an old record was put there", d)
		}
		_, err = m.Commit(ctx, nil, keystore.Record{Name: live.Name, Version: shard().Version})
		must(t, err)
		time.Sleep(25 * time.Second)
		if d := silence(t, a, "web1"); d > dead || shard().Version == 0 {
			t.Errorf("a live host was not heard of for %v after its record was taken away", d)
		}
	})
}

// TestInTouchByWatch: an instance that can write and is told nothing is not in touch.
func TestInTouchByWatch(t *testing.T) {
	bubble(t, func(t *testing.T, f *fleet, m *memory) {
		deaf := &broken{memory: m}
		a := open(t, deaf, f.first)
		began := a.InTouch()
		time.Sleep(10 * time.Minute)
		if got := a.InTouch(); began.IsZero() || !got.Equal(began) {
			t.Errorf("in touch since %v, and since %v", began, got)
		}
		deaf.watches.Store(true)
		time.Sleep(72 * time.Second)
		if got := a.InTouch(); !got.IsZero() {
			t.Errorf("in touch since %v", got)
		}
	})
}

// TestKnown: who changes a host knows it at once, others soon; one whose record is refused is named,
// and costs the others nothing.
func TestKnown(t *testing.T) {
	bubble(t, func(t *testing.T, f *fleet, m *memory) {
		a, ctx := open(t, m, f.first), t.Context()
		b, _ := f.joined(t, a, m, "b")
		known := func(s *keystore.Store, host string, want error) {
			t.Helper()
			if h, err := s.Known(host); !errors.Is(err, want) || err == nil && h.Name != host {
				t.Errorf("%s: %+v, %v; want %v", host, h, err, want)
			}
		}
		known(a, "web1", keystore.ErrNoHost)
		for _, host := range []string{"web1", "web2"} {
			_, err := a.AddHost(ctx, host, newIdentity(t).Recipient(), "")
			must(t, err)
			known(a, host, nil)
		}
		synctest.Wait()
		known(b, "web1", nil)
		records, _, err := m.List(ctx, "kept/host/")
		must(t, err)
		f.audited("")
		edited := records[0]
		commit(t, m, put(edited.Name, "edited", edited.Version))
		synctest.Wait()
		bad, good := "web1", "web2"
		if _, err := b.Known(bad); err == nil {
			bad, good = good, bad
		}
		events := f.of(audit.RecordRefused)
		if len(events) != 2 || events[0].Target != bad || events[0].Reason != string(reason.StoreRecordBad) || events[0].Source != edited.Name {
			t.Errorf("%+v", events)
		}
		for _, s := range []*keystore.Store{a, b} {
			known(s, bad, reason.StoreRecordBad)
			known(s, good, nil)
		}
		must(t, a.RemoveHost(ctx, good, ""))
		known(a, good, keystore.ErrNoHost)
		again, err := m.Get(ctx, edited.Name)
		must(t, err)
		commit(t, m, put(edited.Name, string(edited.Value), again.Version))
		synctest.Wait()
		for _, s := range []*keystore.Store{a, b} {
			known(s, bad, nil)
			known(s, good, keystore.ErrNoHost)
		}
		// One that was taken away.
		record, err := m.Get(ctx, edited.Name)
		must(t, err)
		_, err = m.Commit(ctx, nil, keystore.Record{Name: record.Name, Version: record.Version})
		must(t, err)
		synctest.Wait()
		known(b, bad, reason.StoreRolledBack)
	})
}

// of returns the events of a kind.
func (f *fleet) of(kind audit.Kind) []*audit.Event {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(f.events), func(e *audit.Event) bool { return e.Kind != kind })
}

// counter is a backend that counts lists of acknowledgements.
type counter struct {
	*memory
	lists atomic.Int32
}

func (c *counter) List(ctx context.Context, prefix string) ([]keystore.Record, uint64, error) {
	if strings.HasPrefix(prefix, "live/ack/") {
		c.lists.Add(1)
	}
	return c.memory.List(ctx, prefix)
}

// TestAcknowledgedIsFollowed: who asks again is told what came since, without another list; when nobody
// asks any more it is forgotten.
func TestAcknowledgedIsFollowed(t *testing.T) {
	bubble(t, func(t *testing.T, f *fleet, m *memory) {
		counted := &counter{memory: m}
		a, ctx := open(t, counted, f.first), t.Context()
		b, _ := f.joined(t, a, m, "b")
		for n := range uint64(20) {
			host := fmt.Sprintf("web%d", n%2)
			mark := keystore.Mark{Epoch: 1, Revision: n + 1}
			must(t, []*keystore.Store{a, b}[n/2%2].Acknowledge(ctx, host, map[string]keystore.Mark{principal: mark}))
			if n/2%2 == 1 {
				synctest.Wait() // another instance's is followed; this one's is known at once
			}
			if marks, err := a.Acknowledged(ctx, principal); err != nil || marks[host] != mark || len(marks) != min(int(n)+1, 2) {
				t.Fatalf("%d: %v, %v", n, marks, err)
			}
		}
		if n := counted.lists.Load(); n != 1 {
			t.Errorf("%d lists", n)
		}
		time.Sleep(2 * time.Minute)
		if marks, err := a.Acknowledged(ctx, principal); err != nil || len(marks) != 2 || counted.lists.Load() != 2 {
			t.Errorf("%v, %v, %d lists", marks, err, counted.lists.Load())
		}
	})
}
