package rotate

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"gssproxyd/mech"
	"gssproxyd/mech/reason"
)

// What can happen to two instances, three hosts and a KDC.
var happenings = []string{
	"time goes by", "rotate", "force", "kill", "kill later", "pause later",
	"answer lost", "request lost", "executed late", "refused",
	"host dies", "host is slow", "host is well",
}

type happening struct {
	what  string
	who   int           // which instance or host
	after time.Duration // it happens
	n     int           // at the n-th point, where that applies; of "executed late" so many seconds
}

func drawHappening(t *rapid.T) happening {
	return happening{
		what:  rapid.SampledFrom(happenings).Draw(t, "what"),
		who:   rapid.IntRange(0, 2).Draw(t, "who"),
		after: time.Duration(rapid.SampledFrom([]int{0, 1, 5, 30, 100, 700, 3000}).Draw(t, "after")) * time.Second,
		n:     rapid.IntRange(0, int((changeWithin+executedWithin)/time.Second)).Draw(t, "n"),
	}
}

// story is a world in which things happen.
type story struct {
	*world
	ctx       context.Context
	wg        sync.WaitGroup
	instances [2]*actor
	mode      [3]string // of each host: "", "slow" or "dead"
	forcing   atomic.Int32

	mu      sync.Mutex
	good    [3]bool // has not been dead, or passed over by force, since it had the entry in force last
	tickets []fakeTicket
	failure string // the first one
}

// actor is an instance with its engine, and what is to become of it.
type actor struct {
	*instance
	*Engine
	cancel context.CancelFunc
	mu     sync.Mutex
	killAt int // points from now; 0: it is not
	loseAt int
}

func (s *story) fail(format string, args ...any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.failure == "" {
		s.failure = fmt.Sprintf(format, args...)
	}
}

// start puts an instance in the place of one.
func (s *story) start(i int) {
	e, inst := s.engine()
	a := &actor{instance: inst, Engine: e}
	e.step = func(name string) error {
		s.look(name)
		a.mu.Lock()
		a.killAt--
		a.loseAt--
		kill, lose := a.killAt == 0, a.loseAt == 0
		a.mu.Unlock()
		if lose {
			inst.lose()
			time.Sleep(40 * time.Second)
		}
		if kill {
			inst.kill()
		}
		if inst.isDead() {
			return errKilled
		}
		return nil
	}
	ctx, cancel := context.WithCancel(s.ctx)
	a.cancel = cancel
	s.instances[i] = a
	s.wg.Go(func() { e.Run(ctx) })
}

func (s *instance) isDead() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.dead
}

// look has a client get a ticket, and every host that should open all that are good.
func (s *story) look(when string) {
	t := s.kdc.ticket()
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	kept := s.tickets[:0]
	seen := map[uint32]int{}
	for _, t := range append(s.tickets, t) {
		// Of those of one version the last one is enough.
		if !now.Before(t.good) {
			continue
		}
		if i, ok := seen[t.kvno]; ok {
			kept[i] = t
			continue
		}
		seen[t.kvno] = len(kept)
		kept = append(kept, t)
	}
	s.tickets = kept
	for i, h := range s.hosts {
		for _, t := range s.tickets {
			if err := h.open(t); err != nil && s.good[i] && s.failure == "" {
				s.failure = fmt.Sprintf("%v, %s: %v", now.Sub(s.begun()), when, err)
			}
		}
	}
}

func (s *story) begun() time.Time { return time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC) }

// run is what hosts and clients do all the time.
func (s *story) run() {
	for sleep(s.ctx, 7*time.Second) == nil {
		for i, h := range s.hosts {
			s.mu.Lock()
			mode := s.mode[i]
			s.mu.Unlock()
			switch mode {
			case "":
				h.load()
				s.mu.Lock()
				s.good[i] = s.mode[i] == ""
				s.mu.Unlock()
			case "slow":
				h.beat()
			}
		}
		s.look("a client")
	}
}

func (s *story) happen(h happening) {
	time.Sleep(h.after)
	a := s.instances[h.who%2]
	next := func(f fault) {
		s.kdc.mu.Lock()
		defer s.kdc.mu.Unlock()
		s.kdc.faults = append(s.kdc.faults, f)
	}
	switch h.what {
	case "rotate", "force":
		if h.what == "force" {
			s.mu.Lock()
			for i := range s.mode {
				s.good[i] = s.good[i] && s.mode[i] == ""
			}
			s.mu.Unlock()
			for i, host := range s.hosts {
				if s.mode[i] == "" {
					host.load()
				}
			}
		}
		force := h.what == "force"
		if force {
			s.forcing.Add(1)
		}
		s.wg.Go(func() {
			a.Rotate(s.ctx, principal, "uid 0", force)
			if force {
				s.forcing.Add(-1)
			}
		})
	case "kill":
		a.kill()
		a.cancel()
		s.start(h.who % 2)
	case "kill later", "pause later":
		a.mu.Lock()
		defer a.mu.Unlock()
		if h.what == "kill later" {
			a.killAt = h.n
		} else {
			a.loseAt = h.n
		}
	case "answer lost":
		next(fault{lost: true})
	case "request lost":
		next(fault{never: true})
	case "executed late":
		next(fault{delayed: time.Duration(h.n) * time.Second})
	case "refused":
		next(refusal)
	case "host dies", "host is slow", "host is well":
		r := s.get(principal).Rotation
		passed := s.forcing.Load() > 0 || r != nil && r.Force // over, if it does not acknowledge
		s.mu.Lock()
		defer s.mu.Unlock()
		s.mode[h.who] = map[string]string{"host dies": "dead", "host is slow": "slow"}[h.what]
		if s.mode[h.who] == "dead" || s.mode[h.who] == "slow" && passed {
			s.good[h.who] = false
		}
	}
}

var refusal = fault{err: mech.Errorf(mech.Failure, 0, reason.KeyChangeRefused, "no")}

// tell lets all of it happen, and then all be well, and returns what was wrong.
func tell(t *testing.T, lag time.Duration, all []happening) (failure string) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		s := &story{world: newWorld(t, 3), ctx: ctx, good: [3]bool{true, true, true}}
		s.replicas(lag)
		s.start(0)
		s.start(1)
		s.wg.Go(s.run)
		for _, h := range all {
			s.happen(h)
			s.look(h.what)
		}
		s.mu.Lock()
		s.mode = [3]string{}
		s.mu.Unlock()
		s.kdc.mu.Lock()
		s.kdc.faults = nil
		s.kdc.mu.Unlock()
		for i, a := range s.instances {
			a.kill()
			a.cancel()
			s.start(i)
		}
		for range 6 * 60 {
			time.Sleep(time.Minute)
			if s.get(principal).Rotation == nil {
				break
			}
		}
		time.Sleep(2 * time.Hour)
		s.look("at the end")
		n := s.get(principal)
		rotated := uint32(strings.Count(s.history(), "rotation: rotated: kvno"))
		switch cur := newest(n, "current"); {
		case n.Rotation != nil:
			s.fail("the rotation does not end: %s, %s", n.Rotation.Step, n.Alarm)
		case cur == nil || cur.KVNO != 7+rotated || s.kdc.kvno() != 7+rotated:
			s.fail("after %d rotations the entry has %s, the KDC kvno %d", rotated, describe(n.Keys), s.kdc.kvno())
		case len(n.Keys) != 1 || len(s.kdc.versions) != 1:
			s.fail("kept are %s, at the KDC %d versions", describe(n.Keys), len(s.kdc.versions))
		}
		cancel()
		s.wg.Wait()
		if s.failure != "" {
			failure = s.failure + "\n" + s.history()
		}
	})
	return failure
}

// Whatever happens in whatever order: a host that is live, or has acknowledged and is not forgotten,
// opens every ticket that a KDC gives out, as long as the ticket is good; and the KDC makes one
// version of the key with each rotation.
func TestProperty(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		lag := time.Duration(rapid.SampledFrom([]int{0, 90}).Draw(rt, "lag")) * time.Second
		all := rapid.SliceOfN(rapid.Custom(drawHappening), 1, 40).Draw(rt, "happenings")
		if failure := tell(t, lag, all); failure != "" {
			rt.Fatal(failure)
		}
	})
}
