package keytab

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"gssproxyd/tests/lab"
)

// timed calls test, in a bubble, with a keytab of version 1 that is followed at the usual pace, and
// without the kernel's events: so it is looked at every two seconds of the bubble's clock, which
// says exactly when what happens.
func timed(t *testing.T, test func(t *testing.T, path string, k *Keytab, log *lab.LogBuffer)) {
	path := filepath.Join(t.TempDir(), "a.keytab")
	write(t, path, encode(service(1)))
	synctest.Test(t, func(t *testing.T) {
		s, log := newSet(usualPace())
		eventless(s)
		test(t, path, mustOpen(t, s, path), log)
	})
}

// eventless makes s one that the kernel has granted no events.
func eventless(s *Set) {
	none := &notifier{done: make(chan struct{})}
	close(none.done)
	s.open, s.notify = make(map[string]*Keytab), none
}

// takes returns how long it takes in a bubble until ok, to a hundredth of a second.
func takes(t *testing.T, what string, ok func() bool) time.Duration {
	t.Helper()
	for began := time.Now(); ; time.Sleep(10 * time.Millisecond) {
		synctest.Wait()
		took := time.Since(began)
		if ok() {
			return took
		}
		if took > time.Hour {
			t.Fatalf("not within an hour: %s", what)
		}
	}
}

// That a keytab is missing which may come later is no error in the log, until somebody needs it,
// and unless it has been there.
func TestOptional(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "a.keytab")
		s, log := newSet(usualPace())
		eventless(s)
		k, err := s.OpenOptional(path)
		if err != nil {
			t.Fatal(err)
		}
		defer k.Close()
		count := func(level string) int { return strings.Count(log.String(), "level="+level) }
		time.Sleep(time.Hour)
		if count("ERROR") != 0 || strings.Count(log.String(), "no such file") != 1 || k.Err() == nil {
			t.Errorf("missing for an hour, %v:\n%s", k.Err(), log)
		}
		mustOpen(t, s, path)
		time.Sleep(time.Hour)
		if count("ERROR") != 1 {
			t.Errorf("needed and missing for an hour:\n%s", log)
		}
	})
	synctest.Test(t, func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "a.keytab")
		s, log := newSet(usualPace())
		eventless(s)
		k, err := s.OpenOptional(path)
		if err != nil {
			t.Fatal(err)
		}
		defer k.Close()
		write(t, path, []byte("garbage"))
		takes(t, "alarm", func() bool { return strings.Contains(log.String(), "level=ERROR") })
		write(t, path, encode(service(1)))
		takes(t, "version 1", func() bool { return versions(k.Ring()) == "1" })
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
		takes(t, "empty ring", func() bool { return k.Ring().Len() == 0 })
		if n := strings.Count(log.String(), "level=ERROR"); n != 3 {
			t.Errorf("%d alarms, want 3 (garbage, gone, dropped):\n%s", n, log)
		}
	})
}

// The alarm is raised once for one trouble, not at each look.
func TestAlarmOnce(t *testing.T) {
	timed(t, func(t *testing.T, path string, k *Keytab, log *lab.LogBuffer) {
		write(t, path, []byte("garbage"))
		takes(t, "alarm", func() bool { return k.Err() != nil })
		time.Sleep(time.Hour)
		if n := strings.Count(log.String(), "level=ERROR"); n != 1 {
			t.Errorf("%d alarms, want 1:\n%s", n, log)
		}
	})
}

func TestDeleted(t *testing.T) {
	timed(t, func(t *testing.T, path string, k *Keytab, log *lab.LogBuffer) {
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
		p := usualPace()
		if d := takes(t, "alarm", func() bool { return k.Err() != nil }); d != p.blind+p.alarm {
			t.Errorf("alarm after %v, want %v from the first look on", d, p.alarm)
		}
		if d := takes(t, "empty ring", func() bool { return k.Ring().Len() == 0 }); d != p.grace-p.alarm {
			t.Errorf("keys dropped %v after the alarm, want the grace of %v from the first look on", d, p.grace)
		}
		if err := k.Err(); err == nil || !strings.Contains(log.String(), "no longer used") {
			t.Errorf("%v:\n%s", err, log)
		}
		time.Sleep(time.Hour) // and nothing more is said
		if n := strings.Count(log.String(), "level=ERROR"); n != 2 {
			t.Errorf("%d alarms, want 2 (gone, dropped):\n%s", n, log)
		}
		write(t, path, encode(service(1)))
		takes(t, "version 1", func() bool { return versions(k.Ring()) == "1" })
		if err := k.Err(); err != nil {
			t.Error(err)
		}
	})
}

// The grace begins with the file's end, whatever trouble there was before.
func TestDeletedAfterTrouble(t *testing.T) {
	timed(t, func(t *testing.T, path string, k *Keytab, log *lab.LogBuffer) {
		write(t, path, []byte("garbage"))
		takes(t, "alarm", func() bool { return k.Err() != nil })
		time.Sleep(time.Hour)
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
		p := usualPace()
		if d := takes(t, "empty ring", func() bool { return k.Ring().Len() == 0 }); d < p.grace || d > p.grace+p.blind {
			t.Errorf("keys dropped after %v, want the grace of %v", d, p.grace)
		}
	})
}

// A file without a key is an administrator's word like any other, but only if it stays.
func TestEmptied(t *testing.T) {
	timed(t, func(t *testing.T, path string, k *Keytab, log *lab.LogBuffer) {
		replace(t, path, encode())
		p := usualPace()
		if d := takes(t, "empty ring", func() bool { return k.Ring().Len() == 0 }); d != p.blind+p.unchanged {
			t.Errorf("believed after %v, want %v unchanged from the first look on", d, p.unchanged)
		}
		if err := k.Err(); err != nil {
			t.Error(err)
		}
	})
}
