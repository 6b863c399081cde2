package keytab

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"gssproxyd/tests/lab"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// quick is the usual pace in small.
var quick = pace{
	debounce: time.Millisecond,
	settle:   40 * time.Millisecond,
	retry:    5 * time.Millisecond,
	alarm:    30 * time.Millisecond,
	grace:    200 * time.Millisecond,
	poll:     time.Hour, // events alone must do
	blind:    10 * time.Millisecond,
}

// patience bounds every wait of these tests; it is reached only when something is broken.
const patience = time.Minute

func within(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not within %v: %s", patience, what)
		}
	}
}

func newSet(p pace) (*Set, *lab.LogBuffer) {
	log := &lab.LogBuffer{}
	return &Set{Log: slog.New(slog.NewTextHandler(log, nil)), pace: p}, log
}

func mustOpen(t testing.TB, s *Set, name string) *Keytab {
	t.Helper()
	k, err := s.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { k.Close() })
	return k
}

func write(t testing.TB, path string, content []byte) {
	t.Helper()
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
}

// replace puts a file in place by rename.
func replace(t testing.TB, path string, content []byte) {
	t.Helper()
	write(t, path+".new", content)
	rename(t, path+".new", path)
}

func rename(t testing.TB, from, to string) {
	t.Helper()
	if err := os.Rename(from, to); err != nil {
		t.Fatal(err)
	}
}

func symlink(t testing.TB, target, path string) {
	t.Helper()
	if err := os.Symlink(target, path); err != nil {
		t.Fatal(err)
	}
}

func mkdir(t testing.TB, path string) {
	t.Helper()
	if err := os.Mkdir(path, 0o700); err != nil {
		t.Fatal(err)
	}
}

// versions returns the versions of serviceName's keys.
func versions(r *Ring) string {
	var out []string
	for _, k := range r.ByPrincipal([]byte(serviceName)) {
		out = append(out, fmt.Sprint(k.KVNO))
	}
	return strings.Join(out, " ")
}

func becomes(t testing.TB, k *Keytab, want string) {
	t.Helper()
	within(t, fmt.Sprintf("versions %q, they are %q, health %+v", want, versions(k.Ring()), k.Health()),
		func() bool { return versions(k.Ring()) == want })
}

func TestOpenNames(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "a.keytab")
	write(t, path, encode(service(1)))
	t.Chdir(dir)
	var s Set
	first := mustOpen(t, &s, path)
	for _, name := range []string{"FILE:" + path, "WRFILE:" + path, dir + "/./a.keytab", "a.keytab", "FILE:a.keytab"} {
		k, err := s.Open(name)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if k != first {
			t.Errorf("%s: opened a second time", name)
		}
		k.Close()
	}
	if got := first.Ring().Name(); got != "FILE:"+path {
		t.Errorf("name %q", got)
	}
	if len(s.open) != 1 {
		t.Errorf("%d keytabs open, want 1", len(s.open))
	}
	colon := mustOpen(t, &s, dir+"/x:y")
	if got := colon.Ring().Name(); got != "FILE:"+dir+"/x:y" {
		t.Errorf("name %q", got)
	}
	for name, text := range map[string]string{
		"":                      "no path",
		"FILE:":                 "no path",
		"MEMORY:x":              "cannot be shared",
		"KEYRING:session:x":     "FILE:/path",
		"file:/etc/krb5.keytab": `unknown type "file"`,
	} {
		if _, err := s.Open(name); err == nil || !strings.Contains(err.Error(), text) {
			t.Errorf("%q: error %v, want %q", name, err, text)
		}
	}
}

// A reload opens the new before it closes the old: what stays is not read again.
func TestSetShares(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a.keytab")
	write(t, path, encode(service(1)))
	s, log := newSet(quick)
	old := mustOpen(t, s, path)
	ring := old.Ring()
	again, err := s.OpenOptional(path)
	if err != nil {
		t.Fatal(err)
	}
	if again.Close(); again != old || old.Ring() != ring {
		t.Error("opening again made another ring")
	}
	replace(t, path, encode(service(1), service(2)))
	becomes(t, old, "1 2") // still watched
	if n := strings.Count(log.String(), "keytab loaded"); n != 2 {
		t.Errorf("loaded %d times, want 2:\n%s", n, log)
	}
}

func TestCloseEndsTheWatch(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a.keytab")
	write(t, path, encode(service(1)))
	s, _ := newSet(quick)
	k, err := s.OpenOptional(path)
	if err != nil {
		t.Fatal(err)
	}
	ring := k.Ring()
	k.Close()
	goleak.VerifyNone(t)
	replace(t, path, encode(service(1), service(2)))
	if r, changed := k.Refresh(context.Background(), ring); changed || r != ring || versions(k.Ring()) != "1" {
		t.Error("a closed keytab changed")
	}
	k2 := mustOpen(t, s, path)
	if k2 == k || versions(k2.Ring()) != "1 2" {
		t.Error("opened after close: not read afresh")
	}
}

func TestFileComesLater(t *testing.T) {
	for _, test := range []struct {
		name string
		path string // in a temp dir
		make func(t *testing.T, path string)
	}{
		{"file", "a.keytab", func(t *testing.T, path string) { write(t, path, encode(service(1))) }},
		{"by rename", "a.keytab", func(t *testing.T, path string) { replace(t, path, encode(service(1))) }},
		{"directories too", "d/e/a.keytab", func(t *testing.T, path string) {
			mkdir(t, filepath.Dir(filepath.Dir(path)))
			mkdir(t, filepath.Dir(path))
			write(t, path, encode(service(1)))
		}},
		{"dangling link", "a.keytab", func(t *testing.T, path string) {
			symlink(t, "b/c.keytab", path)
			mkdir(t, filepath.Dir(path)+"/b")
			write(t, filepath.Dir(path)+"/b/c.keytab", encode(service(1)))
		}},
		{"record by record", "a.keytab", func(t *testing.T, path string) {
			file := encode(service(1))
			write(t, path, file[:2])
			f, err := os.OpenFile(path, os.O_APPEND|os.O_WRONLY, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			for i := 2; i < len(file); i += 16 {
				f.Write(file[i:min(i+16, len(file))])
			}
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), test.path)
			s, log := newSet(quick)
			k := mustOpen(t, s, path)
			h := k.Health()
			if k.Ring().Len() != 0 || h.Err == nil || h.Since.IsZero() || !h.Loaded.IsZero() || h.Name != "FILE:"+path {
				t.Fatalf("missing file: %+v", h)
			}
			if !strings.Contains(log.String(), "level=ERROR") || !strings.Contains(log.String(), "no such file") {
				t.Errorf("no alarm:\n%s", log)
			}
			test.make(t, path)
			becomes(t, k, "1")
			within(t, "good health", func() bool {
				h = k.Health()
				return h.Err == nil && h.Keys == 1 && !h.Loaded.IsZero() && h.Since.IsZero()
			})
		})
	}
}

func TestRotation(t *testing.T) {
	v1, v12, v2 := encode(service(1)), encode(service(1), service(2)), encode(service(2))
	for _, test := range []struct {
		name   string
		setup  func(t *testing.T, path string)
		change func(t *testing.T, path string)
		want   string
	}{
		{"rename into place", nil, func(t *testing.T, path string) { replace(t, path, v12) }, "1 2"},
		{"rename into place, old version gone", nil, func(t *testing.T, path string) { replace(t, path, v2) }, "2"},
		{"rewrite in place", nil, func(t *testing.T, path string) { write(t, path, v12) }, "1 2"},
		{"rewrite in place, same size", nil, func(t *testing.T, path string) { write(t, path, v2) }, "2"},
		{"append", nil, func(t *testing.T, path string) {
			f, err := os.OpenFile(path, os.O_APPEND|os.O_WRONLY, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			f.Write(v2[2:])
		}, "1 2"},
		{"append as MIT does", nil, func(t *testing.T, path string) {
			f, err := os.OpenFile(path, os.O_WRONLY, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			f.WriteAt(append(make([]byte, 4), v2[6:]...), int64(len(v1))) // length 0: not there yet
			time.Sleep(5 * time.Millisecond)
			f.WriteAt(v2[2:6], int64(len(v1)))
		}, "1 2"},
		{"unlink and create", nil, func(t *testing.T, path string) {
			os.Remove(path)
			time.Sleep(10 * time.Millisecond)
			write(t, path, v12)
		}, "1 2"},
		{"renamed away and back", nil, func(t *testing.T, path string) {
			rename(t, path, path+".old")
			rename(t, path+".old", path)
			replace(t, path, v12)
		}, "1 2"},
		{"hard link over it", nil, func(t *testing.T, path string) {
			write(t, path+".x", v12)
			os.Remove(path)
			if err := os.Link(path+".x", path); err != nil {
				t.Fatal(err)
			}
		}, "1 2"},
		{"link to a file, target rewritten", func(t *testing.T, path string) {
			mkdir(t, path+".d")
			write(t, path+".d/target", v1)
			symlink(t, path+".d/target", path)
		}, func(t *testing.T, path string) { write(t, path+".d/target", v12) }, "1 2"},
		{"link turned to another file", func(t *testing.T, path string) {
			mkdir(t, path+".d")
			write(t, path+".d/one", v1)
			write(t, path+".d/two", v12)
			symlink(t, path+".d/one", path)
		}, func(t *testing.T, path string) {
			symlink(t, path+".d/two", path+".link")
			rename(t, path+".link", path)
		}, "1 2"},
		{"..data swapped", func(t *testing.T, path string) {
			dir := filepath.Dir(path)
			mkdir(t, dir+"/..2026_1")
			write(t, dir+"/..2026_1/"+filepath.Base(path), v1)
			symlink(t, "..2026_1", dir+"/..data")
			symlink(t, "..data/"+filepath.Base(path), path)
		}, func(t *testing.T, path string) {
			dir := filepath.Dir(path)
			for n, content := range [][]byte{2: v1, 3: v12} {
				if content == nil {
					continue
				}
				d := fmt.Sprintf("..2026_%d", n)
				mkdir(t, dir+"/"+d)
				write(t, dir+"/"+d+"/"+filepath.Base(path), content)
				symlink(t, d, dir+"/..data_tmp")
				rename(t, dir+"/..data_tmp", dir+"/..data")
				os.RemoveAll(fmt.Sprintf("%s/..2026_%d", dir, n-1))
			}
		}, "1 2"},
		{"linked directory turned", func(t *testing.T, path string) {
			// path = <dir>/a.keytab where <dir> becomes a link
			dir := filepath.Dir(path)
			rename(t, dir, dir+".1")
			write(t, dir+".1/"+filepath.Base(path), v1)
			symlink(t, dir+".1", dir)
		}, func(t *testing.T, path string) {
			dir := filepath.Dir(path)
			mkdir(t, dir+".2")
			write(t, dir+".2/"+filepath.Base(path), v12)
			symlink(t, dir+".2", dir+".new")
			rename(t, dir+".new", dir)
		}, "1 2"},
		{"directory replaced", nil, func(t *testing.T, path string) {
			dir := filepath.Dir(path)
			mkdir(t, dir+".new")
			write(t, dir+".new/"+filepath.Base(path), v12)
			rename(t, dir, dir+".old")
			rename(t, dir+".new", dir)
		}, "1 2"},
		{"directory removed and made again", nil, func(t *testing.T, path string) {
			dir := filepath.Dir(path)
			os.RemoveAll(dir)
			mkdir(t, dir)
			write(t, path, v12)
		}, "1 2"},
		{"twice within one clock tick", nil, func(t *testing.T, path string) {
			write(t, path, encode(service(9)))
			write(t, path, v2)
		}, "2"},
	} {
		t.Run(test.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "keys", "a.keytab")
			mkdir(t, filepath.Dir(path))
			if test.setup != nil {
				test.setup(t, path)
			} else {
				write(t, path, v1)
			}
			p := quick
			p.alarm = patience // a busy machine may stop the change halfway
			s, log := newSet(p)
			k := mustOpen(t, s, path)
			if got := versions(k.Ring()); got != "1" {
				t.Fatalf("at first %q", got)
			}
			test.change(t, path)
			becomes(t, k, test.want)
			replace(t, path, encode(service(1), service(2), service(3))) // and the watch goes on
			becomes(t, k, "1 2 3")
			within(t, "good health", func() bool {
				h := k.Health()
				return h.Err == nil && h.Keys == 3 && !h.Polling
			})
			if strings.Contains(log.String(), "level=ERROR") {
				t.Errorf("alarm:\n%s", log)
			}
		})
	}
}

// The file is rewritten up to every length, and rests there: the old ring stays, with an alarm, until it is whole.
func TestHalfWritten(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a.keytab")
	old, whole := encode(service(1)), encode(service(1), service(2))
	write(t, path, old)
	p := quick
	p.alarm, p.retry = 4*time.Millisecond, time.Millisecond
	s, log := newSet(p)
	k := mustOpen(t, s, path)
	for n := range whole {
		if n == 2 || n == len(old) {
			continue // ends between two records: a whole, smaller file
		}
		write(t, path, whole[:n])
		within(t, fmt.Sprintf("alarm at %d bytes", n), func() bool { return k.Health().Err != nil })
		if got := versions(k.Ring()); got != "1" {
			t.Fatalf("%d bytes: ring %q", n, got)
		}
		h := k.Health()
		if h.Since.IsZero() || !strings.Contains(h.Err.Error(), "byte ") || !strings.Contains(h.Hint, "stay in use") {
			t.Errorf("%d bytes: health %v since %v", n, h.Err, h.Since)
		}
		write(t, path, old)
		within(t, "good health", func() bool { return k.Health().Err == nil })
	}
	text := log.String()
	for _, want := range []string{"level=ERROR", "keytab=" + path, "byte 2: record of", "hint=", "well again"} {
		if !strings.Contains(text, want) {
			t.Errorf("log lacks %q:\n%.2000s", want, text)
		}
	}
	write(t, path, whole)
	becomes(t, k, "1 2")
}

// That a keytab is missing which may come later is no error in the log, until somebody needs it, and unless it has been there.
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
		if count("ERROR") != 0 || strings.Count(log.String(), "no such file") != 1 || k.Health().Err == nil {
			t.Errorf("missing for an hour, health %+v:\n%s", k.Health(), log)
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

// timed calls test, in a bubble, with a keytab of version 1 that is followed at the usual pace, and without the kernel's
// events: so it is looked at every two seconds of the bubble's clock, which says exactly when what happens.
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

// The alarm is raised once for one trouble, not at each look.
func TestAlarmOnce(t *testing.T) {
	timed(t, func(t *testing.T, path string, k *Keytab, log *lab.LogBuffer) {
		write(t, path, []byte("garbage"))
		takes(t, "alarm", func() bool { return k.Health().Err != nil })
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
		if d := takes(t, "alarm", func() bool { return k.Health().Err != nil }); d != p.blind+p.alarm {
			t.Errorf("alarm after %v, want %v from the first look on", d, p.alarm)
		}
		if d := takes(t, "empty ring", func() bool { return k.Ring().Len() == 0 }); d != p.grace-p.alarm {
			t.Errorf("keys dropped %v after the alarm, want the grace of %v from the first look on", d, p.grace)
		}
		if h := k.Health(); h.Err == nil || !strings.Contains(h.Hint, "no longer used") || h.Keys != 0 {
			t.Errorf("health %+v", h)
		}
		time.Sleep(time.Hour) // and nothing more is said
		if n := strings.Count(log.String(), "level=ERROR"); n != 2 {
			t.Errorf("%d alarms, want 2 (gone, dropped):\n%s", n, log)
		}
		write(t, path, encode(service(1)))
		takes(t, "version 1", func() bool { return versions(k.Ring()) == "1" })
		if h := k.Health(); h.Err != nil {
			t.Errorf("health %+v", h)
		}
	})
}

// The grace begins with the file's end, whatever trouble there was before.
func TestDeletedAfterTrouble(t *testing.T) {
	timed(t, func(t *testing.T, path string, k *Keytab, log *lab.LogBuffer) {
		write(t, path, []byte("garbage"))
		takes(t, "alarm", func() bool { return k.Health().Err != nil })
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

// A file without a key is an administrator's word like any other, but needs the quiet time.
func TestEmptied(t *testing.T) {
	timed(t, func(t *testing.T, path string, k *Keytab, log *lab.LogBuffer) {
		replace(t, path, encode())
		p := usualPace()
		if d := takes(t, "empty ring", func() bool { return k.Ring().Len() == 0 }); d != p.blind+p.settle {
			t.Errorf("believed after %v, want %v of quiet from the first look on", d, p.settle)
		}
		if h := k.Health(); h.Err != nil || h.Keys != 0 {
			t.Errorf("health %+v", h)
		}
	})
}

func TestNotAFile(t *testing.T) {
	dir := t.TempDir()
	fifo := filepath.Join(dir, "fifo")
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	big := filepath.Join(dir, "big")
	write(t, big, nil)
	if err := os.Truncate(big, maxSize+1); err != nil {
		t.Fatal(err)
	}
	loop := filepath.Join(dir, "loop")
	symlink(t, loop, loop)
	for path, text := range map[string]string{
		dir:  "a directory",
		fifo: "not a regular file",
		big:  "at most",
		loop: "too many levels of symbolic links",
	} {
		s, _ := newSet(quick)
		k := mustOpen(t, s, path)
		if h := k.Health(); h.Err == nil || !strings.Contains(h.Err.Error(), text) || strings.Contains(h.Err.Error(), path) {
			t.Errorf("%s: %v, want %q", path, h.Err, text)
		}
	}
}

func TestUnprotected(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a.keytab")
	write(t, path, encode(service(1)))
	if err := os.Chmod(path, 0o644); err != nil {
		t.Fatal(err)
	}
	s, log := newSet(quick)
	k := mustOpen(t, s, path)
	if h := k.Health(); !strings.Contains(h.Warning, "mode 0644") || !strings.Contains(log.String(), "level=WARN") {
		t.Errorf("no warning: %+v\n%s", h, log)
	}
	if err := os.Chmod(path, 0o640); err != nil {
		t.Fatal(err)
	}
	within(t, "no warning", func() bool { return k.Health().Warning == "" })
}

func TestPolling(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a.keytab")
	write(t, path, encode(service(1)))
	s, _ := newSet(quick)
	eventless(s)
	k := mustOpen(t, s, path)
	if h := k.Health(); !h.Polling || h.Err != nil || h.Keys != 1 {
		t.Errorf("health %+v", h)
	}
	replace(t, path, encode(service(1), service(2)))
	becomes(t, k, "1 2")
	write(t, path, encode(service(2)))
	becomes(t, k, "2")
}

// More keytabs than a user may have inotify instances, opened, rotated and closed at the same time.
func TestManyKeytabs(t *testing.T) {
	const n = 300
	dir := t.TempDir()
	p := quick
	p.alarm = patience // a busy machine may stop a writer halfway
	s, log := newSet(p)
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() {
			path := fmt.Sprintf("%s/%d.keytab", dir, i)
			write(t, path, encode(service(1)))
			k, err := s.OpenOptional(path)
			if err != nil {
				t.Error(err)
				return
			}
			defer k.Close()
			write(t, path, encode(service(1), service(2)))
			for deadline := time.Now().Add(patience); versions(k.Ring()) != "1 2"; time.Sleep(time.Millisecond) {
				if time.Now().After(deadline) {
					t.Errorf("%s: %+v", path, k.Health())
					return
				}
			}
			if k.Health().Polling {
				t.Errorf("%s is polled", path)
			}
		})
	}
	wg.Wait()
	if len(s.open) != 0 || s.notify != nil {
		t.Errorf("%d open after all were closed", len(s.open))
	}
	for line := range strings.Lines(log.String()) {
		if !strings.Contains(line, "level=INFO") {
			t.Error(line)
		}
	}
}

// The kernel's events may come late or never: who misses a key may ask for a look.
func TestRefresh(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a.keytab")
	write(t, path, encode(service(1)))
	p := quick
	p.debounce, p.settle = time.Hour, time.Hour // left alone, the watcher would not look
	s, _ := newSet(p)
	k := mustOpen(t, s, path)
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	ring := k.Ring()
	if r, changed := k.Refresh(ctx, ring); changed || r != ring {
		t.Error("an unchanged file made another ring")
	}
	replace(t, path, encode(service(1), service(2)))
	r, changed := k.Refresh(ctx, ring)
	if !changed || r == ring || versions(r) != "1 2" {
		t.Errorf("changed %v, versions %q", changed, versions(r))
	}
	if again, changed := k.Refresh(ctx, ring); !changed || again != r {
		t.Error("a newer ring was there already and was not returned")
	}
	replace(t, path, encode(service(3)))
	if _, changed := k.Refresh(ctx, r); changed {
		t.Error("a ring that lacks keys was published at a request's wish")
	}
	done, cancelDone := context.WithCancel(context.Background())
	cancelDone()
	if _, changed := k.Refresh(done, r); changed {
		t.Error("changed after the context had ended")
	}
}

// A reader that never stops sees, through every way of rotation, always a ring with the key of the moment: version 1,
// which stays, and the newest, from the moment that Refresh was asked.
func TestRotationUnderReaders(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a.keytab")
	write(t, path, encode(service(1)))
	p := quick
	p.settle, p.alarm = patience, patience // the writer below may be stopped halfway on a busy machine
	s, log := newSet(p)
	k := mustOpen(t, s, path)
	var stop atomic.Bool
	var reads atomic.Int64
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			// Ticks, since readers that spin would starve the writer.
			tick := time.NewTicker(100 * time.Microsecond)
			defer tick.Stop()
			newest := uint32(0)
			for ; !stop.Load(); <-tick.C {
				r := k.Ring()
				one, last := r.Lookup([]byte(serviceName), 1, 18), r.Lookup([]byte(serviceName), 0, 18)
				if one == nil || last == nil {
					t.Errorf("a ring of %d keys without version 1", r.Len())
					return
				}
				if !bytes.Equal(last.Key.Secret(), testKey(18, byte(last.KVNO))) {
					t.Error("a key's bytes are wrong")
					return
				}
				if last.KVNO < newest {
					t.Errorf("version %d after %d", last.KVNO, newest)
					return
				}
				newest = last.KVNO
				reads.Add(1)
			}
		})
	}
	records := []written{service(1)}
	for kvno := uint32(2); kvno < 120 && !t.Failed(); kvno++ {
		records = append(records, service(kvno))
		file := encode(records...)
		switch kvno % 5 {
		case 0:
			replace(t, path, file)
		case 1:
			write(t, path, file)
		case 2:
			os.Remove(path)
			write(t, path, file)
		case 3: // half of it, and the rest later
			write(t, path, file[:len(file)-7])
			time.Sleep(3 * time.Millisecond)
			write(t, path, file)
		case 4: // in many small writes
			f, err := os.Create(path)
			if err != nil {
				t.Fatal(err)
			}
			for b := file; len(b) > 0; b = b[min(50, len(b)):] {
				f.Write(b[:min(50, len(b))])
			}
			f.Close()
		}
		want := kvno
		within(t, fmt.Sprintf("version %d; health %+v", want, k.Health()), func() bool {
			return k.Ring().Lookup([]byte(serviceName), want, 18) != nil
		})
	}
	stop.Store(true)
	wg.Wait()
	if reads.Load() == 0 {
		t.Error("nothing was read")
	}
	if strings.Contains(log.String(), "level=ERROR") {
		t.Errorf("alarm:\n%s", log)
	}
}

func TestLogHasNoKeys(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a.keytab")
	w := service(1)
	w.key = []byte("SECRETSECRETSECRETSECRETSECRETSE")
	bad := w
	bad.enctype = 99
	file := encode(w, bad)
	write(t, path, file)
	s, log := newSet(quick)
	k := mustOpen(t, s, path)
	write(t, path, file[:len(file)-1])
	within(t, "alarm", func() bool { return k.Health().Err != nil })
	for _, out := range []string{log.String(), fmt.Sprintf("%+v %#v", k.Health(), k.Health())} {
		if strings.Contains(out, "SECRET") || strings.Contains(out, fmt.Sprintf("%x", "SECRET")) {
			t.Errorf("key bytes shown:\n%s", out)
		}
	}
}

func BenchmarkRing(b *testing.B) {
	path := filepath.Join(b.TempDir(), "a.keytab")
	write(b, path, encode(service(1)))
	k := mustOpen(b, &Set{}, path)
	b.ReportAllocs()
	for b.Loop() {
		if k.Ring() == nil {
			b.Fatal("nil")
		}
	}
}

func BenchmarkRefreshUnchanged(b *testing.B) {
	path := filepath.Join(b.TempDir(), "a.keytab")
	write(b, path, encode(service(1)))
	time.Sleep(2100 * time.Millisecond) // a younger file is read, not only looked at
	k := mustOpen(b, &Set{}, path)
	ring := k.Ring()
	b.ReportAllocs()
	for b.Loop() {
		if _, changed := k.Refresh(context.Background(), ring); changed {
			b.Fatal("changed")
		}
	}
}

// A file system that does not answer holds up neither Open nor Close for ever, and Health says so.
func TestHungFileSystem(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, log := newSet(quick)
		// What get makes of a new path, with a watcher that gets no answer.
		_, stop := context.WithCancel(t.Context())
		k := &Keytab{set: s, path: "/hung/keytab", born: time.Now(), ready: make(chan struct{}), done: make(chan struct{}), stop: stop}
		k.ring.Store(Compile(k.name(), nil))
		k.health.Store(k.noLook())
		s.open = map[string]*Keytab{k.path: k, "/other": nil}

		start := time.Now()
		for range 2 { // the second need not wait again
			got, err := s.Open("FILE:/hung/keytab")
			if err != nil || got != k || got.Ring().Len() != 0 {
				t.Fatalf("%v, %v", got, err)
			}
		}
		if err := k.Health().Err; err == nil || !strings.Contains(err.Error(), "not looked at yet") || !strings.Contains(log.String(), `keytab=/hung/keytab error="not looked at yet`) {
			t.Errorf("health says %v, the log %q", err, log.String())
		}
		k.Close()
		k.Close()
		if waited := time.Since(start); waited != 2*maxWait {
			t.Errorf("waited %v, expected %v", waited, 2*maxWait)
		}
	})
}
