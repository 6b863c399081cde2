package rotate

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"gssproxyd/audit"
	"gssproxyd/keystore"
	"gssproxyd/mech"
	"gssproxyd/mech/krb5/etype"
	"gssproxyd/mech/reason"
)

// inBubble gives f a world in which time goes by only while all wait, with the hosts alive, and a
// context that ends with f.
func inBubble(t *testing.T, hosts int, f func(ctx context.Context, w *world)) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		w := newWorld(t, hosts)
		var wg sync.WaitGroup
		wg.Go(func() { w.live(ctx) })
		f(ctx, w)
		cancel()
		wg.Wait()
	})
}

// rotated fails the test unless the entry is settled with this version, which the KDC has too.
func (w *world) rotated(kvno uint32) {
	w.Helper()
	n := w.get(principal)
	if n.Rotation != nil {
		w.Errorf("the rotation goes on: %s, alarm %q", n.Rotation.Step, n.Alarm)
	}
	if k := newest(n, keystore.Current); k == nil || k.KVNO != kvno || w.kdc.kvno() != kvno {
		w.Errorf("the entry has %s, the KDC kvno %d; want %d", describe(n.Keys), w.kdc.kvno(), kvno)
	}
	if k := newest(n, keystore.Pending); k != nil {
		w.Errorf("there are pending keys still: %s", describe(n.Keys))
	}
}

// settles waits until no rotation goes on.
func (w *world) settles() {
	w.Helper()
	for range 3600 {
		if w.get(principal).Rotation == nil {
			return
		}
		time.Sleep(time.Second)
	}
	w.Errorf("the rotation does not end: %+v", w.get(principal).Rotation)
}

func (w *world) history() string {
	var b strings.Builder
	for _, c := range w.get(principal).History {
		fmt.Fprintf(&b, "%s: %s\n", c.By, c.What)
	}
	return b.String()
}

func TestRotate(t *testing.T) {
	inBubble(t, 3, func(ctx context.Context, w *world) {
		e, _ := w.engine()
		old := w.kdc.ticket()
		if err := e.Rotate(ctx, principal, "uid 0", false); err != nil {
			t.Fatal(err)
		}
		w.rotated(8)
		w.opens(old, w.kdc.ticket())
		n := w.get(principal)
		prev := newest(n, keystore.Previous)
		if want := 55 * time.Minute; prev == nil || prev.Until.Sub(prev.Since) != want {
			t.Errorf("the previous key is kept as %+v, want for %v", prev, want)
		}
		for _, want := range []string{
			"uid 0: rotation begun: kvno 8 is pending\n", "rotation: acknowledged by 3 hosts\n", "rotation: rotated: kvno 8 is current",
		} {
			if !strings.Contains(w.history(), want) {
				t.Errorf("the history lacks %q:\n%s", want, w.history())
			}
		}
		if w.kdc.asked != 1 || w.kdc.refused != 0 {
			t.Errorf("the KDC was asked %d times, and refused %d logins", w.kdc.asked, w.kdc.refused)
		}
		if err := e.Rotate(ctx, principal, "uid 0", false); err != nil {
			t.Fatal(err)
		}
		w.rotated(9)
		w.opens(old, w.kdc.ticket())
	})
}

// Keys are of the types that the KDC has, or that are named, or else of those that there are and of
// tickets.
func TestEnctypes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, test := range []struct {
			name    string
			named   []etype.ID
			kpasswd bool
			want    []etype.ID
		}{
			{"the KDC's", nil, false, []etype.ID{etype.AES256SHA1, etype.RC4}},
			{"named", []etype.ID{etype.AES128SHA1}, false, []etype.ID{etype.AES128SHA1}},
			{"those there are", nil, true, []etype.ID{etype.AES256SHA1, etype.RC4, etype.AES128SHA1}},
		} {
			w := newWorld(t, 0, etype.AES256SHA1, etype.RC4)
			w.realm.Enctypes, w.kdc.kpasswd = test.named, test.kpasswd
			if test.kpasswd {
				w.kdc.record.Ticket = etype.AES128SHA1
			}
			e, _ := w.engine()
			if err := e.Rotate(t.Context(), principal, "uid 0", false); err != nil {
				t.Fatal(test.name, err)
			}
			var got []etype.ID
			for _, k := range w.get(principal).Keys {
				if k.State == keystore.Current {
					got = append(got, k.Enctype)
				}
			}
			if !slices.Equal(got, test.want) {
				t.Errorf("%s: %v, want %v", test.name, got, test.want)
			}
		}
	})
}

// A killer kills an instance at a named point.
func killer(s *instance, e *Engine, at string) {
	e.step = func(name string) error {
		if name == at {
			s.kill()
			return errKilled
		}
		return nil
	}
}

// points returns where a whole rotation, up to the end of the previous keys, comes by.
func points(t *testing.T) (names []string) {
	inBubble(t, 1, func(ctx context.Context, w *world) {
		ctx, cancel := context.WithCancel(ctx)
		e, _ := w.engine()
		var mu sync.Mutex
		e.step = func(name string) error {
			mu.Lock()
			defer mu.Unlock()
			if !slices.Contains(names, name) {
				names = append(names, name)
			}
			return nil
		}
		if err := e.Rotate(ctx, principal, "uid 0", false); err != nil {
			t.Fatal(err)
		}
		var wg sync.WaitGroup
		wg.Go(func() { e.Run(ctx) })
		time.Sleep(time.Hour)
		cancel()
		wg.Wait()
	})
	for _, want := range []string{"store", "acknowledged", "sent", "change", "probe", "commit", "purge", "forget"} {
		for _, when := range []string{"before ", "after "} {
			if !slices.Contains(names, when+want) {
				t.Fatalf("a rotation does not come by %q: %q", when+want, names)
			}
		}
	}
	return names
}

// Whoever is killed where, the next one finishes, and the one after it if that is killed too.
func TestKilled(t *testing.T) {
	all := points(t)
	for _, first := range all {
		for _, second := range []string{"", "before login", "after acknowledged", "after sent", "after change", "before commit", "after commit"} {
			inBubble(t, 2, func(ctx context.Context, w *world) {
				before := w.kdc.ticket()
				a, sa := w.engine()
				killer(sa, a, first)
				b, sb := w.engine()
				killer(sb, b, second)
				c, _ := w.engine()
				var during []fakeTicket
				var wg sync.WaitGroup
				ctx, cancel := context.WithCancel(ctx)
				for i, e := range []*Engine{a, b, c} {
					// One after the other: the next comes when the one before is dead, or done.
					one, stop := context.WithCancel(ctx)
					wg.Go(func() { e.Run(one) })
					if err := e.Rotate(one, principal, "uid 0", false); err == nil {
						time.Sleep(time.Hour) // and the previous keys end, by Run
					} else if !errors.Is(err, errKilled) {
						t.Errorf("%q, %q: engine %d: %v", first, second, i, err)
					}
					stop()
					wg.Wait()
					during = append(during, w.kdc.ticket())
					w.opens(append(during, before)...)
					if w.kdc.changes > 0 && w.get(principal).Rotation == nil {
						break
					}
				}
				cancel()
				last, stop := context.WithCancel(context.Background())
				e, _ := w.engine()
				wg.Go(func() { e.Run(last) })
				time.Sleep(time.Hour)
				stop()
				wg.Wait()
				w.opens(w.kdc.ticket())
				w.rotated(8)
				if n := w.get(principal); newest(n, keystore.Previous) != nil || len(w.kdc.versions) != 1 {
					t.Errorf("%q, %q: %s are kept, at the KDC %d versions", first, second, describe(n.Keys), len(w.kdc.versions))
				}
				if t.Failed() {
					t.Fatalf("killed at %q and %q:\n%s", first, second, w.history())
				}
			})
		}
	}
}

// Two that rotate at the same time make one new version, wherever either of them is slow.
func TestRace(t *testing.T) {
	for _, slow := range points(t) {
		for _, d := range []time.Duration{time.Second, 20 * time.Second} {
			inBubble(t, 2, func(ctx context.Context, w *world) {
				before := w.kdc.ticket()
				var wg sync.WaitGroup
				for i := range 2 {
					e, _ := w.engine()
					once := sync.OnceFunc(func() { time.Sleep(d * time.Duration(i+1)) })
					e.step = func(name string) error {
						if name == slow {
							once()
						}
						return nil
					}
					wg.Go(func() {
						if err := e.Rotate(ctx, principal, "uid 0", false); err != nil {
							t.Errorf("slow %s: %v", slow, err)
						}
					})
				}
				wg.Wait()
				w.rotated(8)
				w.opens(before, w.kdc.ticket())
			})
		}
	}
}

// Whatever becomes of the request or its answer, the next look at the KDC settles it.
func TestLost(t *testing.T) {
	for _, test := range []struct {
		name   string
		faults []fault
		asked  int
	}{
		{"executed, the answer lost", []fault{{lost: true}}, 1},
		{"never there", []fault{{never: true}}, 2},
		{"never there, twice", []fault{{never: true}, {never: true}}, 3},
		{"never there, then executed and the answer lost", []fault{{never: true}, {lost: true}}, 2},
		{"executed late", []fault{{delayed: 15 * time.Second}}, 1},
		{"executed as late as can be", []fault{{delayed: changeWithin + executedWithin}}, 1},
		{"executed late, of the second", []fault{{never: true}, {delayed: executedWithin}}, 2},
	} {
		for _, lag := range []time.Duration{0, 5 * time.Minute} {
			inBubble(t, 2, func(ctx context.Context, w *world) {
				w.replicas(lag)
				w.kdc.faults = test.faults
				before := w.kdc.ticket()
				e, _ := w.engine()
				if err := e.Rotate(ctx, principal, "uid 0", false); err != nil {
					t.Errorf("%s: %v", test.name, err)
				}
				w.rotated(8)
				w.opens(before, w.kdc.ticket())
				if w.kdc.asked != test.asked {
					t.Errorf("%s: asked %d times, want %d", test.name, w.kdc.asked, test.asked)
				}
			})
		}
	}
}

// Who is killed after the KDC has executed the change, and whose successor asks replicas that do not
// know of it, has it not sent again.
func TestReplicas(t *testing.T) {
	for _, at := range []string{"after change", "before commit"} {
		for seed := range 20 {
			inBubble(t, 2, func(ctx context.Context, w *world) {
				w.replicas(10 * time.Minute)
				w.kdc.far = seed%2 == 0
				for range seed {
					w.kdc.rand.IntN(2)
				}
				before := w.kdc.ticket()
				a, s := w.engine()
				killer(s, a, at)
				if err := a.Rotate(ctx, principal, "uid 0", false); !errors.Is(err, errKilled) {
					t.Fatal(err)
				}
				b, _ := w.engine()
				if err := b.Rotate(ctx, principal, "uid 0", false); err != nil {
					t.Fatal(err)
				}
				w.rotated(8)
				for range 100 {
					w.opens(before, w.kdc.ticket())
				}
			})
		}
	}
}

// A writer that has lost its lock between having it and writing changes nothing, and does no harm
// at the KDC.
func TestStale(t *testing.T) {
	for _, at := range points(t) {
		if strings.Contains(at, "purge") || strings.Contains(at, "forget") || at == "after commit" {
			continue // it is over
		}
		inBubble(t, 2, func(ctx context.Context, w *world) {
			before := w.kdc.ticket()
			a, s := w.engine()
			paused, resume := make(chan struct{}), make(chan struct{})
			once := sync.OnceFunc(func() {
				s.lose()
				close(paused)
				<-resume
				time.Sleep(sendWithin + time.Second)
			})
			a.step = func(name string) error {
				if name == at {
					once()
				}
				return nil
			}
			var wg sync.WaitGroup
			wg.Go(func() {
				if err := a.Rotate(ctx, principal, "uid 0", false); err != nil {
					t.Errorf("paused %s: %v", at, err)
				}
			})
			<-paused
			b, _ := w.engine()
			if err := b.Rotate(ctx, principal, "uid 0", false); err != nil {
				t.Errorf("paused %s: the other: %v", at, err)
			}
			w.rotated(8)
			close(resume)
			wg.Wait()
			w.rotated(8)
			w.opens(before, w.kdc.ticket())
		})
	}
}

// One that was stopped before it asks the KDC, and goes on when it has no lock any more, does not ask:
// what it sends could be executed when the other has sent the same.
func TestLate(t *testing.T) {
	inBubble(t, 2, func(ctx context.Context, w *world) {
		a, s := w.engine()
		paused := make(chan struct{})
		once := sync.OnceFunc(func() {
			s.lose()
			close(paused)
			time.Sleep(w.realm.settled() - 5*time.Second)
			w.kdc.mu.Lock()
			defer w.kdc.mu.Unlock()
			w.kdc.faults = []fault{{delayed: 30 * time.Second}} // of a's request
		})
		a.step = func(name string) error {
			if name == "before change" {
				once()
			}
			return nil
		}
		var wg sync.WaitGroup
		wg.Go(func() { a.Rotate(ctx, principal, "uid 0", false) })
		<-paused
		b, _ := w.engine()
		if err := b.Rotate(ctx, principal, "uid 0", false); err != nil {
			t.Error(err)
		}
		wg.Wait()
		time.Sleep(time.Minute)
		w.rotated(8)
		w.opens(w.kdc.ticket())
	})
}

func TestPassword(t *testing.T) {
	seen := map[string]bool{}
	for range 200 {
		p := string(newPassword())
		if seen[p] || len(p) != 43 {
			t.Fatalf("one of %d characters, seen before: %v", len(p), seen[p])
		}
		for _, class := range []string{lower, upper, "0123456789", "-_"} {
			if !strings.ContainsAny(p, class) {
				t.Fatalf("one has none of %q", class)
			}
		}
		seen[p] = true
	}
}

// Live hosts are waited for; after ten minutes the alarm names them; when they acknowledge it goes on.
func TestUnacknowledged(t *testing.T) {
	inBubble(t, 1, func(ctx context.Context, w *world) {
		slow := w.host("web9")
		slow.load()
		var wg sync.WaitGroup
		wg.Go(func() {
			for sleep(ctx, 30*time.Second) == nil {
				slow.beat()
			}
		})
		e, _ := w.engine()
		begun := time.Now()
		err := e.Rotate(ctx, principal, "uid 0", false)
		if !errors.Is(err, reason.RotationUnacknowledged) || !strings.Contains(err.Error(), ": web9") || strings.Contains(err.Error(), "web1") {
			t.Fatalf("got %v", err)
		}
		if d := time.Since(begun); d < patience || d > patience+5*time.Second {
			t.Errorf("it has waited %v", d)
		}
		n := w.get(principal)
		if n.Rotation == nil || n.Rotation.Step != keystore.Stored || n.Alarm != err.Error() || w.kdc.asked != 0 {
			t.Errorf("it is left as %+v; the KDC was asked %d times", n.Rotation, w.kdc.asked)
		}
		if !strings.Contains(w.history(), "stops: [rotation-unacknowledged] ") {
			t.Errorf("the history does not say so:\n%s", w.history())
		}
		if len(w.events) != 1 || w.events[0].Kind != audit.RotationStopped || w.events[0].Reason != "rotation-unacknowledged" || !strings.Contains(w.events[0].Text, "web9") {
			t.Errorf("audited was %+v", w.events)
		}
		// The same again says nothing new.
		if err := e.Rotate(ctx, principal, "uid 0", false); !errors.Is(err, reason.RotationUnacknowledged) {
			t.Errorf("again: %v", err)
		}
		if len(w.events) != 1 {
			t.Errorf("audited again: %+v", w.events)
		}
		running, stop := context.WithCancel(ctx)
		wg.Go(func() { e.Run(running) })
		time.Sleep(time.Hour)
		if w.kdc.asked != 0 || len(w.events) != 1 {
			t.Errorf("Run has asked the KDC %d times; audited %d", w.kdc.asked, len(w.events))
		}
		slow.load()
		w.settles()
		w.rotated(8)
		if err := slow.open(w.kdc.ticket()); err != nil {
			t.Error(err)
		}
		stop()

	})
}

// Forced, it goes on without them: at once, by whoever waits for them.
func TestForce(t *testing.T) {
	inBubble(t, 1, func(ctx context.Context, w *world) {
		slow := w.host("web9")
		slow.load()
		a, _ := w.engine()
		var wg sync.WaitGroup
		begun := time.Now()
		wg.Go(func() {
			if err := a.Rotate(ctx, principal, "rotation", false); err != nil {
				t.Error(err)
			}
		})
		time.Sleep(30 * time.Second)
		b, _ := w.engine()
		if err := b.Rotate(ctx, principal, "uid 0", true); err != nil {
			t.Error(err)
		}
		wg.Wait()
		if d := time.Since(begun); d > time.Minute {
			t.Errorf("it has taken %v", d)
		}
		w.rotated(8)
		if !strings.Contains(w.history(), "forced on without web9") {
			t.Errorf("the history does not say so:\n%s", w.history())
		}
	})
}

// Dead hosts are named and not waited for. That a host is dead nobody can say before it had time to
// be heard of.
func TestDead(t *testing.T) {
	inBubble(t, 1, func(ctx context.Context, w *world) {
		w.host("web8").load()
		w.host("web9") // was never heard of, and is none that has the keys
		w.edit(principal, func(n *keystore.Entry) { n.Policy.Hosts = append(n.Policy.Hosts, "web7") })
		w.host("web7") // was never heard of, and is named
		time.Sleep(time.Hour)
		e, _ := w.engine() // none ran before
		begun := time.Now()
		if err := e.Rotate(ctx, principal, "uid 0", false); err != nil {
			t.Fatal(err)
		}
		if d := time.Since(begun); d < alive || d > alive+5*time.Second {
			t.Errorf("it has waited %v", d)
		}
		w.rotated(8)
		for _, want := range []string{"acknowledged by 1 host; not waited for", "web7 (never), web8 (since 2000-01-01T00:00:00Z)\n"} {
			if !strings.Contains(w.history(), want) {
				t.Errorf("the history lacks %q:\n%s", want, w.history())
			}
		}
		begun = time.Now()
		if err := e.Rotate(ctx, principal, "uid 0", false); err != nil {
			t.Fatal(err)
		}
		if d := time.Since(begun); d > 10*time.Second {
			t.Errorf("the second one has waited %v", d)
		}
	})
}

// Who acknowledged something before the pending keys were there, or may not have them, does not
// count; and a host that the policy admits meanwhile is waited for.
func TestRoll(t *testing.T) {
	inBubble(t, 0, func(ctx context.Context, w *world) {
		e, _ := w.engine()
		for _, name := range []string{"web1", "web2", "db1"} {
			w.host(name).load()
		}
		w.edit(principal, func(n *keystore.Entry) {
			n.Rotation = &keystore.Rotation{Step: keystore.Stored, After: n.Mark}
		})
		w.host("web2").load()
		n := w.get(principal)
		r, err := e.roll(ctx, n)
		if err != nil || !slices.Equal(r.ready, []string{"web2"}) || !slices.Equal(r.awaited, []string{"web1"}) || r.dead != nil {
			t.Errorf("%+v, %v", r, err)
		}
		n.Policy.Hosts = []string{"web2", "db1"}
		if r, err = e.roll(ctx, n); err != nil || !slices.Equal(r.ready, []string{"web2"}) || !slices.Equal(r.awaited, []string{"db1"}) {
			t.Errorf("with another policy: %+v, %v", r, err)
		}
		// One whose record the store refuses costs nobody else anything.
		w.bad["db1"] = true
		if r, err = e.roll(ctx, n); err != nil || !slices.Equal(r.ready, []string{"web2"}) || r.awaited != nil || !slices.Equal(r.dead, []string{"db1 (its record is refused: store-record-bad)"}) {
			t.Errorf("with a record that is refused: %+v, %v", r, err)
		}
	})
}

// Of many hosts some are named: a history has room for so many words.
func TestSome(t *testing.T) {
	var hosts []string
	for i := range maxNamed + 2 {
		hosts = append(hosts, fmt.Sprint("web", i))
	}
	if got := some(hosts); !strings.HasSuffix(got, ", web19 and 2 more") || some(hosts[:2]) != "web0, web1" {
		t.Error(got)
	}
}

// What the KDC refuses was not executed: the alarm says why, and it is tried again.
func TestRefused(t *testing.T) {
	for _, test := range []struct {
		id   reason.ID
		step keystore.Step
	}{
		{reason.KeyChangeRefused, keystore.Acknowledged}, {reason.KeyChangeTooSoon, keystore.Acknowledged}, {reason.AdminServerUnreachable, keystore.Acknowledged},
	} {
		inBubble(t, 1, func(ctx context.Context, w *world) {
			w.kdc.faults = []fault{{err: mech.Errorf(mech.Failure, 0, test.id, "no")}}
			e, _ := w.engine()
			err := e.Rotate(ctx, principal, "uid 0", false)
			n := w.get(principal)
			if r := n.Rotation; !errors.Is(err, test.id) || r == nil || r.Step != test.step || n.Alarm != err.Error() {
				t.Fatalf("got %v, %+v, alarm %s", err, r, n.Alarm)
			}
			if len(w.events) != 1 || w.events[0].Reason != string(test.id) {
				t.Errorf("audited was %+v", w.events)
			}
			running, stop := context.WithCancel(ctx)
			var wg sync.WaitGroup
			wg.Go(func() { e.Run(running) })
			w.settles()
			stop()
			wg.Wait()
			w.rotated(8)
		})
	}
}

// The KDC never makes tickets with the key that it says it has: the alarm says so, and what is known
// stays.
func TestUnverified(t *testing.T) {
	inBubble(t, 1, func(ctx context.Context, w *world) {
		before := w.kdc.ticket()
		w.replicas(time.Minute)
		e, _ := w.engine()
		e.step = func(name string) error {
			if name == "after change" {
				w.kdc.mu.Lock()
				defer w.kdc.mu.Unlock()
				w.kdc.versions = w.kdc.versions[:1] // it was restored from a backup
			}
			return nil
		}
		err := e.Rotate(ctx, principal, "uid 0", false)
		n := w.get(principal)
		if r := n.Rotation; !errors.Is(err, reason.RotationUnverified) || r == nil || r.Step != keystore.Sent || n.Alarm != err.Error() {
			t.Fatalf("got %v, %+v, alarm %s", err, r, n.Alarm)
		}
		e.step = nil
		if err := e.Rotate(ctx, principal, "uid 0", false); err != nil {
			t.Fatal(err)
		}
		w.rotated(8)
		w.opens(before, w.kdc.ticket())
	})
}

// The entry takes the version that the KDC gives the key.
func TestGuess(t *testing.T) {
	inBubble(t, 2, func(ctx context.Context, w *world) {
		w.kdc.versions[0].kvno = 20 // the same key
		e, _ := w.engine()
		if err := e.Rotate(ctx, principal, "uid 0", false); err != nil {
			t.Fatal(err)
		}
		w.rotated(21)
		e.step = func(name string) error {
			if name == "after change" {
				w.kdc.mu.Lock()
				defer w.kdc.mu.Unlock()
				w.kdc.versions[len(w.kdc.versions)-1].kvno = 30
			}
			if name == "before commit" {
				w.opens(w.kdc.ticket())
			}
			return nil
		}
		if err := e.Rotate(ctx, principal, "uid 0", false); err != nil {
			t.Fatal(err)
		}
		w.rotated(30)
		time.Sleep(5 * time.Second)
		w.opens(w.kdc.ticket())
	})
}

func TestImpossible(t *testing.T) {
	inBubble(t, 0, func(ctx context.Context, w *world) {
		e, _ := w.engine()
		for name, f := range map[string]func(n *keystore.Entry){
			"deleted":        func(n *keystore.Entry) { n.Deleted = time.Now() },
			"disabled":       func(n *keystore.Entry) { n.Disabled = "stolen" },
			"no current key": func(n *keystore.Entry) { n.Keys[0].State = keystore.Previous },
		} {
			good := w.get(principal)
			w.edit(principal, f)
			if err := e.Rotate(ctx, principal, "uid 0", false); !errors.Is(err, reason.RotationImpossible) || !strings.Contains(err.Error(), name) {
				t.Errorf("%s: %v", name, err)
			}
			w.entries[principal] = good
		}
		if err := e.Rotate(ctx, "HTTP/other@EXAMPLE.TEST", "uid 0", false); !errors.Is(err, keystore.ErrNoEntry) {
			t.Errorf("of another: %v", err)
		}
		w.kdc.kpasswd, w.kdc.record.Ticket, w.realm.Enctypes = true, etype.RC4, []etype.ID{etype.AES256SHA1}
		if err := e.Rotate(ctx, principal, "uid 0", false); !errors.Is(err, reason.RotationImpossible) || !strings.Contains(err.Error(), "msDS-SupportedEncryptionTypes of the account to 24") || w.get(principal).Rotation != nil {
			t.Errorf("tickets of another type: %v", err)
		}
		w.kdc.kpasswd, w.realm.Enctypes = false, nil
		w.kdc.record.LockedDown = true
		if err := e.Rotate(ctx, principal, "uid 0", false); !errors.Is(err, reason.KeyChangeRefused) || w.get(principal).Rotation != nil {
			t.Errorf("locked down: %v", err)
		}
	})
}

// One that was disabled in the midst stands still until the KDC may have been asked, and no longer.
func TestDisabled(t *testing.T) {
	for at, stands := range map[string]bool{"after acknowledged": true, "before change": false, "after change": false} {
		inBubble(t, 1, func(ctx context.Context, w *world) {
			e, s := w.engine()
			killer(s, e, at)
			if err := e.Rotate(ctx, principal, "uid 0", false); !errors.Is(err, errKilled) {
				t.Fatal(err)
			}
			w.edit(principal, func(n *keystore.Entry) { n.Disabled = "stolen" })
			e, _ = w.engine()
			running, stop := context.WithCancel(ctx)
			var wg sync.WaitGroup
			wg.Go(func() { e.Run(running) })
			time.Sleep(time.Hour)
			if got := w.get(principal).Rotation != nil; got != stands {
				t.Errorf("killed %s, then disabled: it goes on: %v", at, got)
			}
			w.edit(principal, func(n *keystore.Entry) { n.Disabled = "" })
			w.settles()
			stop()
			wg.Wait()
			w.rotated(8)
		})
	}
}

// By interval, with two instances: each principal once, not later than its keys are old enough, and
// not all at once.
func TestInterval(t *testing.T) {
	inBubble(t, 1, func(ctx context.Context, w *world) {
		w.edit(principal, func(n *keystore.Entry) { n.Interval = 2 * time.Hour })
		var wg sync.WaitGroup
		running, stop := context.WithCancel(ctx)
		for range 2 {
			e, _ := w.engine()
			wg.Go(func() { e.Run(running) })
		}
		tickets := []fakeTicket{w.kdc.ticket()}
		for range 120 {
			time.Sleep(10 * time.Minute)
			w.opens(tickets...)
			tickets = append(tickets, w.kdc.ticket())
		}
		stop()
		wg.Wait()
		n := w.get(principal)
		at := dueAt(n).Sub(newest(n, keystore.Current).Since)
		if at > 2*time.Hour || at < 90*time.Minute {
			t.Errorf("it is due after %v", at)
		}
		if want := 7 + uint32(20*time.Hour/at); n.Rotation != nil || w.kdc.kvno() != want {
			t.Errorf("after twenty hours kvno is %d, want %d", w.kdc.kvno(), want)
		}
		// Of the previous ones those are kept that are needed, by the KDC as well.
		if len(n.Keys) != len(w.kdc.versions) || len(n.Keys) > 2 {
			t.Errorf("kept are %s, at the KDC %d", describe(n.Keys), len(w.kdc.versions))
		}
	})
}

// What is due when an engine starts is not forgotten: it waits until hosts have told what they use.
func TestDueAtStart(t *testing.T) {
	inBubble(t, 1, func(ctx context.Context, w *world) {
		w.edit(principal, func(n *keystore.Entry) { n.Interval = time.Hour })
		time.Sleep(2 * time.Hour)
		before := w.kdc.kvno()
		e, _ := w.engine()
		running, stop := context.WithCancel(ctx)
		var wg sync.WaitGroup
		wg.Go(func() { e.Run(running) })
		time.Sleep(alive - time.Second)
		if got := w.kdc.kvno(); got != before {
			t.Errorf("kvno is %d already", got)
		}
		time.Sleep(time.Minute)
		if got := w.kdc.kvno(); got != before+1 {
			t.Errorf("kvno is %d, want %d", got, before+1)
		}
		stop()
		wg.Wait()
	})
}

func TestSpread(t *testing.T) {
	since := time.Unix(0, 0)
	var hours [6]int
	for i := range 6000 {
		n := &keystore.Entry{
			Principal: fmt.Sprintf("host/h%d@EXAMPLE.TEST", i), Interval: 24 * time.Hour,
			Keys: []keystore.Key{{State: keystore.Current, KVNO: 1, Since: since}},
		}
		at := dueAt(n)
		if at != dueAt(n) {
			t.Fatal("instances do not agree")
		}
		h := int(at.Sub(since)/time.Hour) - 18
		if h < 0 || h > 5 {
			t.Fatalf("due after %v", at.Sub(since))
		}
		hours[h]++
	}
	for _, n := range hours {
		if n < 800 || n > 1200 {
			t.Errorf("of 6000 due in each hour: %v", hours)
		}
	}
}

// What a KDC cannot purge is forgotten in the store all the same.
func TestPurgeUnsupported(t *testing.T) {
	inBubble(t, 1, func(ctx context.Context, w *world) {
		w.kdc.kpasswd = true
		e, _ := w.engine()
		running, stop := context.WithCancel(ctx)
		var wg sync.WaitGroup
		wg.Go(func() { e.Run(running) })
		if err := e.Rotate(ctx, principal, "uid 0", false); err != nil {
			t.Fatal(err)
		}
		keep := 55 * time.Minute
		time.Sleep(keep - 10*time.Second)
		if newest(w.get(principal), keystore.Previous) == nil {
			t.Error("it was forgotten too early")
		}
		time.Sleep(20 * time.Second)
		if newest(w.get(principal), keystore.Previous) != nil {
			t.Error("it was not forgotten")
		}
		stop()
		wg.Wait()
	})
}
