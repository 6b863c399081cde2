package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"gssproxyd/audit"
	"gssproxyd/conf"
	"gssproxyd/limits"
)

// written is what the lines of an audit log say of a kind of refusals.
type written struct{ lines, repeated int }

// readAudit reads an audit log, which has to be whole, as lines by what refusals are counted by.
func readAudit(t *testing.T, path string) map[like]written {
	t.Helper()
	if r, err := audit.Verify([]string{path}); err != nil || r.Lost > 0 {
		t.Fatalf("%+v, %v", r, err)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	found := make(map[like]written)
	for line := range bytes.Lines(b) {
		var l struct {
			Kind     audit.Kind
			UID      *uint32
			Reason   string
			Repeated int
		}
		if err := json.Unmarshal(line, &l); err != nil {
			t.Fatal(err)
		}
		key := like{kind: l.Kind, reason: l.Reason}
		if l.UID != nil {
			key.known, key.uid = true, *l.UID
		}
		w := found[key]
		found[key] = written{w.lines + 1, w.repeated + l.Repeated}
	}
	return found
}

// testAudit is a daemon with an audit log.
func testAudit(t *testing.T) (d *daemon, path string) {
	path = filepath.Join(t.TempDir(), "audit.log")
	d = &daemon{log: slog.New(slog.DiscardHandler), limits: limits.ForProcess()}
	if err := d.audits(t, &conf.Config{Audit: path}); err != nil {
		t.Fatal(err)
	}
	return d, path
}

// refuse has a uid be refused.
func (d *daemon) refuse(t *testing.T, kind audit.Kind, uid uint32, reason string) {
	t.Helper()
	if err := d.record(t.Context(), &audit.Event{Kind: kind, Time: time.Now(), Caller: &audit.Caller{UID: uid}, Reason: reason}); err != nil {
		t.Error(err)
	}
}

// TestRefusalsAddUp: whoever is refused however often, in whatever order, with reloads and rotations in
// between, each refusal has a line or is counted in one of its like.
func TestRefusalsAddUp(t *testing.T) {
	for seed := range uint64(20) {
		synctest.Test(t, func(t *testing.T) {
			random := rand.New(rand.NewPCG(seed, 0))
			d, path := testAudit(t)
			events, all, lines := make(map[like]int), 0, 0
			for range 3000 {
				switch n := random.IntN(1000); {
				case n < 2:
					time.Sleep(time.Duration(random.IntN(90)) * time.Second)
					d.audit.Load().settle(time.Now())
				case n < 5:
					if err := d.audits(t, &conf.Config{Audit: path}); err != nil {
						t.Fatal(err)
					}
				case n < 20:
					time.Sleep(time.Duration(random.IntN(1000)) * time.Millisecond)
				}
				key := like{true, []uint32{0, 1000, 1001}[random.IntN(3)], audit.CallDenied, fmt.Sprint("reason", random.IntN(2))}
				if random.IntN(2) == 0 {
					key.kind = audit.ConnectionDenied
				}
				d.refuse(t, key.kind, key.uid, key.reason)
				events[key]++
				all++
			}
			d.closeAudit(d.audit.Load())
			found := readAudit(t, path)
			for key, n := range events {
				lines += found[key].lines
				if w := found[key]; w.lines+w.repeated != n {
					t.Errorf("seed %d: %+v has %+v, want %d in all", seed, key, w, n)
				}
			}
			if lines > all/2 {
				t.Errorf("seed %d: %d lines of %d events", seed, lines, all)
			}
		})
	}
}

// TestRefusalsBounded: a uid that is refused at full speed has a few lines, and nothing of another's goes;
// what was allowed has its line always.
func TestRefusalsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d, path := testAudit(t)
		const hostile, other, n = 1000, 1001, 20_000
		for i := range n {
			d.refuse(t, audit.ConnectionDenied, hostile, "a")
			if i%(n/2) == 0 {
				d.refuse(t, audit.CallDenied, other, "a")
			}
			if i%10 == 0 {
				d.refuse(t, audit.CallAllowed, hostile, "")
			}
		}
		l := d.audit.Load()
		settled := func() written {
			t.Helper()
			l.settle(time.Now())
			if err := l.Log.Reopen(); err != nil { // all that was recorded is written then
				t.Fatal(err)
			}
			return readAudit(t, path)[like{true, hostile, audit.ConnectionDenied, "a"}]
		}
		time.Sleep(leftFor - time.Second)
		if w := settled(); w.repeated > 0 || w.lines > 10 {
			t.Errorf("%+v before the time", w)
		}
		time.Sleep(time.Second)
		if w := settled(); w.lines+w.repeated != n || w.lines > 10 {
			t.Errorf("%+v, want %d in all", w, n)
		}
		d.closeAudit(l)
		found := readAudit(t, path)
		if w := found[like{true, other, audit.CallDenied, "a"}]; w != (written{2, 0}) {
			t.Errorf("of the other uid %+v", w)
		}
		if w := found[like{true, hostile, audit.CallAllowed, ""}]; w != (written{n / 10, 0}) {
			t.Errorf("allowed: %+v", w)
		}
	})
}

// TestRefusalsOfManyUIDs: with more uids than are remembered, little memory is held and few lines are
// written, and all of them are counted still. A service's own uid has its lines.
func TestRefusalsOfManyUIDs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d, path := testAudit(t)
		const service, first, n = 33, 4_000_000_000, 20_000
		d.limits.Reserve(service)
		for i := range uint32(n) {
			d.refuse(t, audit.ConnectionDenied, first+i, "a")
			if i%(n/100) == 0 {
				d.refuse(t, audit.ConnectionDenied, service, "a")
			}
		}
		l := d.audit.Load()
		if n := len(l.left); n > maxLeft+1 {
			t.Errorf("%d are remembered", n)
		}
		time.Sleep(leftFor)
		l.settle(time.Now())
		d.closeAudit(l)
		all := written{}
		for key, w := range readAudit(t, path) {
			switch {
			case key.uid == service && w != (written{100, 0}):
				t.Errorf("of the service %+v", w)
			case key.kind == audit.ConnectionDenied && key.uid != service:
				all.lines += w.lines
				all.repeated += w.repeated
			}
		}
		if all.lines+all.repeated != n || all.lines > maxLeft+1+200 {
			t.Errorf("%+v, want %d in all", all, n)
		}
	})
}

// TestRefusedWhileMoved: a refusal that comes as another file is opened, and the former one closed, is
// counted in one of them.
func TestRefusedWhileMoved(t *testing.T) {
	d, path := testAudit(t)
	other := path + ".other"
	const n = 3000
	done := make(chan struct{})
	go func() {
		defer close(done)
		for range n {
			d.refuse(t, audit.CallDenied, 1000, "a")
		}
	}()
	for i := 0; ; i++ {
		if err := d.audits(t, &conf.Config{Audit: []string{other, path}[i%2]}); err != nil {
			t.Error(err)
		}
		select {
		case <-done:
		default:
			continue
		}
		break
	}
	d.closeAudit(d.audit.Load())
	key := like{true, 1000, audit.CallDenied, "a"}
	a, b := readAudit(t, path)[key], readAudit(t, other)[key]
	if a.lines+a.repeated+b.lines+b.repeated != n {
		t.Errorf("%+v and %+v, want %d in all", a, b, n)
	}
}
