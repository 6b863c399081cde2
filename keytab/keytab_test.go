package keytab

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
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
	debounce:  time.Millisecond,
	unchanged: 40 * time.Millisecond,
	retry:     5 * time.Millisecond,
	alarm:     30 * time.Millisecond,
	grace:     200 * time.Millisecond,
	poll:      time.Hour, // events alone must do
	blind:     10 * time.Millisecond,
}

// limit bounds every wait of these tests; it is reached only when something is broken.
const limit = time.Minute

func within(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(limit); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not within %v: %s", limit, what)
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
	within(t, fmt.Sprintf("versions %q, they are %q; %v", want, versions(k.Ring()), k.Err()),
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
		if err := k.Err(); err == nil || !strings.Contains(err.Error(), text) || strings.Contains(err.Error(), path) {
			t.Errorf("%s: %v, want %q", path, err, text)
		}
	}
}

// The kernel's events may come late or never: who misses a key may ask for a look.
func TestRefresh(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a.keytab")
	write(t, path, encode(service(1)))
	p := quick
	p.debounce, p.unchanged = time.Hour, time.Hour // left alone, the watcher would not look
	s, _ := newSet(p)
	k := mustOpen(t, s, path)
	ctx, cancel := context.WithTimeout(context.Background(), limit)
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
	within(t, "alarm", func() bool { return k.Err() != nil })
	for _, out := range []string{log.String(), fmt.Sprintf("%+v %#v", k.Err(), k.Err())} {
		if strings.Contains(out, "SECRET") || strings.Contains(out, fmt.Sprintf("%x", "SECRET")) {
			t.Errorf("key bytes shown:\n%s", out)
		}
	}
}

// A file system that does not answer holds up neither Open nor Close for ever, and Err says so.
func TestHungFileSystem(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, log := newSet(quick)
		// What get makes of a new path, with a watcher that gets no answer.
		_, stop := context.WithCancel(t.Context())
		k := &Keytab{set: s, source: source{&plain, "/hung/keytab"}, born: time.Now(), ready: make(chan struct{}), done: make(chan struct{}), stop: stop}
		k.ring.Store(Compile(k.source.String(), nil))
		k.err.Store(&errNoLook)
		s.open = map[string]*Keytab{k.source.String(): k, "FILE:/other": nil}

		start := time.Now()
		for range 2 { // the second need not wait again
			got, err := s.Open("FILE:/hung/keytab")
			if err != nil || got != k || got.Ring().Len() != 0 {
				t.Fatalf("%v, %v", got, err)
			}
		}
		if err := k.Err(); err == nil || !strings.Contains(err.Error(), "not looked at yet") || !strings.Contains(log.String(), `keytab=/hung/keytab error="not looked at yet`) {
			t.Errorf("it says %v, the log %q", err, log.String())
		}
		k.Close()
		k.Close()
		if waited := time.Since(start); waited != 2*maxWait {
			t.Errorf("waited %v, expected %v", waited, 2*maxWait)
		}
	})
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
	time.Sleep(100 * time.Millisecond) // a younger file is read, not only looked at
	k := mustOpen(b, &Set{}, path)
	ring := k.Ring()
	b.ReportAllocs()
	for b.Loop() {
		if _, changed := k.Refresh(context.Background(), ring); changed {
			b.Fatal("changed")
		}
	}
}
