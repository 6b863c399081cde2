package rotate

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"gssproxyd/keystore"
	"gssproxyd/mech"
	"gssproxyd/mech/krb5/etype"
	"gssproxyd/mech/reason"
)

// run has engines go on for a time.
func (w *world) run(ctx context.Context, d time.Duration, engines ...*Engine) {
	ctx, stop := context.WithCancel(ctx)
	var wg sync.WaitGroup
	for _, e := range engines {
		wg.Go(func() { e.Run(ctx) })
	}
	time.Sleep(d)
	stop()
	wg.Wait()
}

// change is somebody else's, at the KDC.
func (k *fakeKDC) change(password string, kvno uint32) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.put(etype.Secret(password), []etype.ID{etype.RC4}, kvno)
}

// Whenever somebody else changes the key: three instances log in so seldom that no
// account is locked which is after three refused logins. The alarm says what to do, nothing is sent,
// and with the new keys in the store all is well.
func TestElsewhere(t *testing.T) {
	when := []string{""} // before any rotation
	for _, at := range points(t) {
		if !strings.Contains(at, "commit") && !strings.Contains(at, "purge") && !strings.Contains(at, "forget") {
			when = append(when, at)
		}
	}
	for _, at := range when {
		for _, lag := range []time.Duration{0, 5 * time.Minute} {
			inBubble(t, 1, func(ctx context.Context, w *world) {
				w.replicas(lag)
				w.edit(principal, func(n *keystore.Entry) { n.Interval = 4 * time.Hour })
				if at != "" {
					e, s := w.engine()
					killer(s, e, at)
					if err := e.Rotate(ctx, principal, "uid 0", false); !errors.Is(err, errKilled) {
						t.Fatalf("%s: %v", at, err)
					}
				}
				w.kdc.lag = 0 // it is about logins: each KDC counts its own
				w.kdc.change("elsewhere", w.kdc.kvno()+1)
				asked := w.kdc.asked
				var engines []*Engine
				for range 3 {
					e, _ := w.engine()
					engines = append(engines, e)
				}
				w.kdc.locks = 3
				d := 3 * time.Hour // what fails is tried every hour at least
				if at == "" {
					d = 26 * time.Hour
				}
				w.run(ctx, d, engines...)
				n := w.get(principal)
				if !strings.HasPrefix(n.Alarm, "[key-changed-elsewhere] ") || !strings.Contains(n.Alarm, "kvno 7") || !strings.Contains(n.Alarm, "import the new keytab") || w.kdc.asked != asked {
					t.Errorf("killed %q: alarm %q, asked %d times", at, n.Alarm, w.kdc.asked-asked)
				}
				if n.Rotation != nil && n.Rotation.Step == keystore.Sent {
					t.Errorf("killed %q: it is not settled what became of the request", at)
				}
				if w.kdc.refused < 1 || w.kdc.refused > 2 {
					t.Errorf("killed %q, lag %v: %d logins were refused", at, lag, w.kdc.refused)
				}
				// Who asks for it is told.
				if err := engines[0].Rotate(ctx, principal, "uid 0", false); !errors.Is(err, reason.KeyChangedElsewhere) && !errors.Is(err, reason.ClientRevoked) {
					t.Errorf("killed %q: %v", at, err)
				}
				w.kdc.failures = 0 // who has the key has logged in

				key := w.kdc.versions[len(w.kdc.versions)-1]
				w.edit(principal, func(n *keystore.Entry) { // as an import does
					if n.Rotation != nil {
						n.EndRotation(false, key.kvno, time.Now())
					}
					for i := range n.Keys {
						n.Keys[i].State = keystore.Previous
					}
					n.Keys = append(n.Keys, keystore.Key{State: keystore.Current, KVNO: key.kvno, Enctype: etype.RC4, Secret: slices.Clone(key.keys[0].Secret()), Since: time.Now()})
					n.Alarm = ""
				})
				before := w.kdc.kvno()
				w.run(ctx, 5*time.Hour, engines...)
				if got := w.kdc.kvno(); got == before {
					t.Errorf("killed %q: it is not rotated after the import: %s\n%s", at, w.get(principal).Alarm, w.history())
				}
				w.opens(w.kdc.ticket())
			})
		}
	}
}

// The record that the KDC was asked is lost, as in a backend that was put back: the pending keys are
// tried once the KDC has refused the current ones.
func TestSentUnrecorded(t *testing.T) {
	for _, step := range []keystore.Step{keystore.Stored, keystore.Acknowledged} {
		inBubble(t, 1, func(ctx context.Context, w *world) {
			w.kdc.locks = 2
			e, s := w.engine()
			killer(s, e, "after change")
			if err := e.Rotate(ctx, principal, "uid 0", false); !errors.Is(err, errKilled) {
				t.Fatal(err)
			}
			w.edit(principal, func(n *keystore.Entry) { n.Rotation.Step = step })
			e, _ = w.engine()
			if err := e.Rotate(ctx, principal, "uid 0", false); err != nil {
				t.Fatal(err)
			}
			w.rotated(8)
			if w.kdc.asked != 1 || w.kdc.refused != 1 {
				t.Errorf("asked %d times, %d logins refused", w.kdc.asked, w.kdc.refused)
			}
		})
	}
}

// As above, and for a while no KDC answers who tries the pending keys: that the current ones were refused
// is known still, and they are not tried again.
func TestRefusedOnce(t *testing.T) {
	inBubble(t, 1, func(ctx context.Context, w *world) {
		w.kdc.locks = 3
		e, s := w.engine()
		killer(s, e, "after change")
		if err := e.Rotate(ctx, principal, "uid 0", false); !errors.Is(err, errKilled) {
			t.Fatal(err)
		}
		w.edit(principal, func(n *keystore.Entry) { n.Rotation.Step = keystore.Acknowledged })
		e, _ = w.engine()
		healthy := time.Now().Add(3 * time.Hour)
		e.step = func(name string) error {
			if name == "before login" && w.kdc.failures > 0 && time.Now().Before(healthy) {
				return mech.Errorf(mech.Failure, 0, reason.KDCUnreachable, "nobody answers")
			}
			return nil
		}
		w.run(ctx, 5*time.Hour, e)
		w.rotated(8)
		if w.kdc.refused != 1 || w.kdc.asked != 1 {
			t.Errorf("%d logins refused, asked %d times", w.kdc.refused, w.kdc.asked)
		}
	})
}

// As above, and one KDC has the pending keys while another one that has not makes the tickets: nothing is
// sent, which would make another version.
func TestSentUnrecordedReplicas(t *testing.T) {
	inBubble(t, 1, func(ctx context.Context, w *world) {
		e, s := w.engine()
		killer(s, e, "after change")
		if err := e.Rotate(ctx, principal, "uid 0", false); !errors.Is(err, errKilled) {
			t.Fatal(err)
		}
		w.edit(principal, func(n *keystore.Entry) { n.Rotation.Step = keystore.Acknowledged })
		e, _ = w.engine()
		e.step = func(name string) error {
			w.kdc.mu.Lock()
			defer w.kdc.mu.Unlock()
			switch name {
			case "before login":
				w.kdc.lag = 0
			case "after login":
				w.kdc.lag, w.kdc.far = time.Hour, true
			}
			return nil
		}
		if err := e.Rotate(ctx, principal, "uid 0", false); !errors.Is(err, reason.RotationUnverified) {
			t.Error(err)
		}
		e.step, w.kdc.lag = nil, 0
		if err := e.Rotate(ctx, principal, "uid 0", false); err != nil {
			t.Error(err)
		}
		w.rotated(8)
		if w.kdc.asked != 1 {
			t.Errorf("the KDC was asked %d times", w.kdc.asked)
		}
	})
}

// Somebody changes the key at the moment at which the KDC is asked: that counts for one of the two
// logins, too.
func TestElsewhereMeanwhile(t *testing.T) {
	inBubble(t, 1, func(ctx context.Context, w *world) {
		w.kdc.locks = 3
		e, _ := w.engine()
		once := sync.OnceFunc(func() { w.kdc.change("elsewhere", 8) })
		e.step = func(name string) error {
			if name == "before change" {
				once()
			}
			return nil
		}
		if err := e.Rotate(ctx, principal, "uid 0", false); !errors.Is(err, reason.PreauthFailed) {
			t.Error(err)
		}
		w.run(ctx, 24*time.Hour, e)
		if n := w.get(principal); !outOfStep(n) || w.kdc.refused != 2 || w.kdc.asked != 1 {
			t.Errorf("alarm %q, %d logins refused, asked %d times", n.Alarm, w.kdc.refused, w.kdc.asked)
		}
	})
}

// Outside of rotations the KDC is asked once a day by each instance, which counts as no failure, and
// its version of the key is taken. What it cannot be asked is no alarm.
func TestCheck(t *testing.T) {
	inBubble(t, 1, func(ctx context.Context, w *world) {
		a, _ := w.engine()
		b, _ := w.engine()
		w.run(ctx, 3*24*time.Hour, a, b)
		if n := w.kdc.logins; n < 6 || n > 8 || w.kdc.refused > 0 {
			t.Errorf("two instances have logged in %d times in three days, %d were refused", n, w.kdc.refused)
		}
		w.kdc.versions[0].kvno = 300 // by somebody who says modprinc -kvno
		w.run(ctx, 25*time.Hour, a, b)
		if k := newest(w.get(principal), keystore.Current); k.KVNO != 300 {
			t.Errorf("kvno is %d", k.KVNO)
		}
		w.opens(w.kdc.ticket())
		w.kdc.locks, w.kdc.failures = 1, 1
		w.run(ctx, 25*time.Hour, a, b)
		if n := w.get(principal); n.Alarm != "" {
			t.Errorf("alarm %s", n.Alarm)
		}
		w.kdc.locks = 0
		w.kdc.change("elsewhere", 301)
		w.run(ctx, 25*time.Hour, a, b)
		if n := w.get(principal); !outOfStep(n) || n.Rotation != nil || w.kdc.refused != 1 {
			t.Errorf("alarm %q, %d logins refused", n.Alarm, w.kdc.refused)
		}
		if len(w.events) != 1 || w.events[0].Reason != "key-changed-elsewhere" {
			t.Errorf("audited %+v", w.events)
		}
	})
}

// What hosts use is kept until they have not used it for as long as tickets are good, and no longer
// than twice that.
func TestInUse(t *testing.T) {
	const keep = 55 * time.Minute
	for _, test := range []struct {
		name  string
		uses  func(since time.Time) []keystore.Use
		after time.Duration
		told  bool // that a host used it
	}{
		{"nobody uses it", func(time.Time) []keystore.Use { return nil }, keep, false},
		{"a while ago", func(since time.Time) []keystore.Use {
			return []keystore.Use{{Host: "web1", KVNO: 7, At: since.Add(20 * time.Minute)}}
		}, keep + 20*time.Minute, false},
		{"of two the later", func(since time.Time) []keystore.Use {
			return []keystore.Use{{Host: "web1", KVNO: 7, At: since.Add(20 * time.Minute)}, {Host: "web2", KVNO: 7, At: since.Add(30 * time.Minute)}}
		}, keep + 30*time.Minute, false},
		{"for ever", func(since time.Time) []keystore.Use {
			return []keystore.Use{{Host: "web1", KVNO: 7, At: since.Add(100 * time.Hour)}}
		}, 2 * keep, true},
		{"another key", func(since time.Time) []keystore.Use {
			return []keystore.Use{{Host: "web1", KVNO: 6, At: since.Add(20 * time.Minute)}}
		}, keep, false},
		{"who has no right", func(since time.Time) []keystore.Use {
			return []keystore.Use{{Host: "db1", KVNO: 7, At: since.Add(20 * time.Minute)}}
		}, keep, false},
	} {
		inBubble(t, 1, func(ctx context.Context, w *world) {
			e, _ := w.engine()
			if err := e.Rotate(ctx, principal, "uid 0", false); err != nil {
				t.Fatal(err)
			}
			since := newest(w.get(principal), keystore.Previous).Since
			w.uses = test.uses(since)
			time.Sleep(time.Until(since.Add(test.after - time.Minute)))
			w.run(ctx, 30*time.Second, e)
			if newest(w.get(principal), keystore.Previous) == nil {
				t.Errorf("%s: it was forgotten too early", test.name)
			}
			w.run(ctx, 90*time.Second, e)
			if newest(w.get(principal), keystore.Previous) != nil || len(w.kdc.versions) != 1 {
				t.Errorf("%s: it was not forgotten", test.name)
			}
			if got := strings.Contains(w.history(), "web1 used kvno 7 until"); got != test.told {
				t.Errorf("%s: the history has %s", test.name, w.history())
			}
		})
	}
}

// Nothing is forgotten while the KDC does not have the current key, nor changed or forgotten by an
// instance whose clock is wrong; one whose clock is right does it.
func TestForgetSafely(t *testing.T) {
	inBubble(t, 1, func(ctx context.Context, w *world) {
		e, _ := w.engine()
		old := w.kdc.ticket()
		if err := e.Rotate(ctx, principal, "uid 0", false); err != nil {
			t.Fatal(err)
		}
		w.kdc.versions = w.kdc.versions[:1] // it was restored from a backup
		w.run(ctx, 30*time.Hour, e)
		if n := w.get(principal); newest(n, keystore.Previous) == nil || !outOfStep(n) || w.kdc.refused != 1 {
			t.Errorf("%s, alarm %q, %d logins refused", describe(n.Keys), n.Alarm, w.kdc.refused)
		}
		if err := w.hosts[0].open(old); err != nil {
			t.Error(err)
		}
	})
	inBubble(t, 1, func(ctx context.Context, w *world) {
		e, _ := w.engine()
		if err := e.Rotate(ctx, principal, "uid 0", false); err != nil {
			t.Fatal(err)
		}
		w.kdc.ahead = -7 * time.Minute
		w.run(ctx, 3*time.Hour, e)
		if newest(w.get(principal), keystore.Previous) == nil {
			t.Error("the previous key was forgotten by a wrong clock")
		}
		if err := e.Rotate(ctx, principal, "uid 0", false); !errors.Is(err, reason.ClockSkew) || !strings.Contains(err.Error(), "7m0s apart") || w.kdc.asked != 1 {
			t.Errorf("%v, asked %d times", err, w.kdc.asked)
		}
		w.kdc.ahead = 4 * time.Minute
		if err := e.Rotate(ctx, principal, "uid 0", false); err != nil {
			t.Error(err)
		}
		w.run(ctx, 3*time.Hour, e)
		w.rotated(9)
		if n := w.get(principal); newest(n, keystore.Previous) != nil || n.Alarm != "" {
			t.Errorf("%s, alarm %q", describe(n.Keys), n.Alarm)
		}
	})
}

// A forced rotation gives hosts their half minute by the clock of the instance that counts it, however
// far that is ahead of the one that began.
func TestPatienceOfFastClock(t *testing.T) {
	inBubble(t, 1, func(ctx context.Context, w *world) {
		a, s := w.engine()
		killer(s, a, "after store")
		if err := a.Rotate(ctx, principal, "uid 0", true); !errors.Is(err, errKilled) {
			t.Fatal(err)
		}
		b, _ := w.engine()
		b.o.Now = func() time.Time { return time.Now().Add(4 * time.Minute) }
		if err := b.Rotate(ctx, principal, "uid 0", false); err != nil {
			t.Fatal(err)
		}
		w.rotated(8)
		if strings.Contains(w.history(), "forced on without") {
			t.Errorf("a host was not given its time:\n%s", w.history())
		}
	})
}

// Replicas that are further behind than was configured are no reason to ask the KDC again, which
// would make another version of the key each time.
func TestLaggingReplicas(t *testing.T) {
	inBubble(t, 1, func(ctx context.Context, w *world) {
		w.kdc.lag, w.kdc.far = time.Hour, true
		e, _ := w.engine()
		if err := e.Rotate(ctx, principal, "uid 0", false); !errors.Is(err, reason.RotationUnverified) {
			t.Error(err)
		}
		w.run(ctx, 3*time.Hour, e)
		w.rotated(8)
		if w.kdc.asked != 1 {
			t.Errorf("the KDC was asked %d times", w.kdc.asked)
		}
	})
}

// However short the interval is, the next rotation waits for the end of the previous keys; and who
// rotates by hand is stopped before they pile up.
func TestPilingUp(t *testing.T) {
	inBubble(t, 1, func(ctx context.Context, w *world) {
		w.edit(principal, func(n *keystore.Entry) { n.Interval = time.Minute })
		e, _ := w.engine()
		w.run(ctx, 10*time.Hour, e)
		if got := w.kdc.kvno() - 7; got < 9 || got > 11 {
			t.Errorf("%d rotations in ten hours, with keys that are kept for 55 minutes", got)
		}
		if n := w.get(principal); len(n.Keys) > 2 {
			t.Errorf("kept are %s", describe(n.Keys))
		}
		w.edit(principal, func(n *keystore.Entry) { n.Interval = 0 })
		w.run(ctx, 2*time.Hour, e)
		var err error
		for range maxPrevious {
			if err = e.Rotate(ctx, principal, "uid 0", false); err != nil {
				t.Fatal(err)
			}
		}
		n := w.get(principal)
		again := fmt.Sprintf("after %s", n.Keys[0].Until.UTC().Format(time.RFC3339))
		if err = e.Rotate(ctx, principal, "uid 0", false); !errors.Is(err, reason.RotationImpossible) || !strings.Contains(err.Error(), again) {
			t.Errorf("%v, want %s", err, again)
		}
		w.run(ctx, time.Hour, e)
		if err = e.Rotate(ctx, principal, "uid 0", false); err != nil {
			t.Error(err)
		}
	})
}
