package audit

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
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
)

func mustOpen(t *testing.T, path string, o Options) *Log {
	t.Helper()
	l, err := Open(path, o)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// record records n events with numbered calls.
func record(t *testing.T, l *Log, n int) {
	t.Helper()
	for i := range n {
		must(t, l.Record(t.Context(), &Event{Kind: CallAllowed, Connection: "c", Call: uint64(i + 1)}))
	}
}

// kinds are those of a file's lines, for short; a line that is not whole is "?".
func kinds(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	must(t, err)
	var all []string
	for l := range bytes.Lines(b) {
		var e struct{ Kind string }
		if json.Unmarshal(l, &e) != nil {
			e.Kind = "?"
		}
		all = append(all, e.Kind)
	}
	return strings.ReplaceAll(strings.Join(all, " "), string(CallAllowed), "call")
}

func wantKinds(t *testing.T, path, want string) {
	t.Helper()
	if got := kinds(t, path); got != want {
		t.Errorf("%s has %q, want %q", filepath.Base(path), got, want)
	}
}

// TestLog: a log goes on where it ended, through new files and restarts, and begins nothing anew.
func TestLog(t *testing.T) {
	defer goleak.VerifyNone(t)
	path := filepath.Join(t.TempDir(), "audit.log")
	var said bytes.Buffer
	o := Options{Refuse: true, Log: slog.New(slog.NewTextHandler(&said, nil))}
	l := mustOpen(t, path, o)
	record(t, l, 2)
	must(t, l.Reopen()) // of the same file
	must(t, os.Rename(path, path+".1"))
	record(t, l, 1)
	must(t, l.Reopen())
	record(t, l, 1)
	must(t, l.Close())
	must(t, l.Close())
	if err := l.Record(t.Context(), &Event{Kind: Stopped}); !errors.Is(err, ErrClosed) {
		t.Error(err)
	}
	if err := l.Reopen(); !errors.Is(err, ErrClosed) {
		t.Error(err)
	}
	l = mustOpen(t, path, o)
	record(t, l, 1)
	must(t, l.Close())
	must(t, os.Rename(path, path+"-20261129")) // while nothing runs
	l = mustOpen(t, path, o)
	record(t, l, 1)
	must(t, l.Close())

	wantKinds(t, path+".1", "begun call call call")
	wantKinds(t, path+"-20261129", "continued call call")
	wantKinds(t, path, "continued call")
	r, err := Verify([]string{path + ".1", path + "-20261129", path})
	if err != nil || r.Lines != 9 || r.Lost != 0 {
		t.Errorf("%+v, %v", r, err)
	}
	if !strings.Contains(said.String(), `msg="head of the audit log" file=`+path+" head="+r.Head.String()) {
		t.Errorf("%s\nhead %v", &said, r.Head)
	}
	if st, err := os.Stat(path); err != nil || st.Mode() != 0o600 {
		t.Error(st.Mode(), err)
	}
}

// TestOpenRefused: what is no file of one's own is not written to, nor what another writes to.
func TestOpenRefused(t *testing.T) {
	dir := t.TempDir()
	path := func(name string) string { return filepath.Join(dir, name) }
	l := mustOpen(t, path("used"), Options{})
	defer l.Close()
	must(t, os.Rename(path("used"), path("used.1")))
	l2 := mustOpen(t, path("open"), Options{})
	defer l2.Close()
	l3 := mustOpen(t, path("new.other"), Options{}) // another log, and no former file of "new"
	defer l3.Close()
	l4 := mustOpen(t, path("new"), Options{})
	must(t, l4.Close())
	wantKinds(t, path("new"), "begun")
	must(t, os.WriteFile(path("target"), nil, 0o600))
	must(t, os.Symlink("target", path("link")))
	must(t, os.WriteFile(path("two"), nil, 0o600))
	must(t, os.Link(path("two"), path("names")))
	must(t, os.WriteFile(path("wide"), nil, 0o600))
	must(t, os.Chmod(path("wide"), 0o620))
	must(t, os.WriteFile(path("text"), []byte("hello\n"), 0o600))
	must(t, unix.Mkfifo(path("fifo"), 0o600))
	must(t, os.Mkdir(path("open to all"), 0o700))
	must(t, os.Chmod(path("open to all"), 0o777))
	tests := []struct{ name, want string }{
		{"open", "another process writes to it"},
		{"used", "used.1: another process writes to it"},
		{"link", "too many levels of symbolic links"},
		{"two", "another name"},
		{"wide", "others can write to it, with mode 0620"},
		{"text", "does not end like an audit log"},
		{"fifo", "no regular file"},
		{"open to all/x", "chmod go-w"},
		{"none/x", "no such file"},
	}
	if os.Geteuid() == 0 {
		must(t, os.WriteFile(path("alien"), nil, 0o600))
		must(t, os.Chown(path("alien"), 4242, -1))
		tests = append(tests, struct{ name, want string }{"alien", "belongs to uid 4242"})
	}
	for _, test := range tests {
		got, err := Open(path(test.name), Options{})
		if err == nil {
			got.Close()
		}
		if err == nil || !strings.Contains(err.Error(), test.want) || !strings.Contains(err.Error(), path(test.name)) {
			t.Errorf("%s: %v", test.name, err)
		}
	}
}

// TestReopenRefused: a new file that will not do leaves the former one in use.
func TestReopenRefused(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit.log")
	l := mustOpen(t, path, Options{Refuse: true})
	must(t, os.Rename(path, path+".1"))
	must(t, os.WriteFile(path, []byte("x"), 0o600))
	if err := l.Reopen(); err == nil || !strings.Contains(err.Error(), "bytes in the new file already") {
		t.Error(err)
	}
	record(t, l, 1)
	must(t, os.Remove(path))
	must(t, os.WriteFile(path, nil, 0o600)) // as logrotate's create makes it
	must(t, l.Reopen())
	must(t, l.Close())
	wantKinds(t, path+".1", "begun call")
	wantKinds(t, path, "continued")
}

// TestTorn: wherever in its writing a line was torn off, the log goes on, and exactly that line is
// named. So it is in a file that was renamed then.
func TestTorn(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "audit.log")
	l := mustOpen(t, path, Options{Refuse: true})
	record(t, l, 2)
	must(t, l.Close())
	whole, err := os.ReadFile(path)
	must(t, err)
	lines := bytes.SplitAfter(whole, []byte{'\n'})
	for size := range whole {
		for _, renamed := range []bool{false, true} {
			must(t, os.RemoveAll(path+".1"))
			must(t, os.WriteFile(path, whole[:size], 0o600))
			files := []string{path}
			if renamed {
				files = []string{path + ".1", path}
				must(t, os.Rename(path, path+".1"))
			}
			l := mustOpen(t, path, Options{Refuse: true})
			record(t, l, 1)
			must(t, l.Close())
			l = mustOpen(t, path, Options{Refuse: true}) // there is nothing to mend any more
			must(t, l.Close())
			left := 0
			at := int64(1)
			for _, line := range lines {
				if left+len(line) > size+1 { // a newline may be what is missing
					break
				}
				left += len(line)
				at++
			}
			torn := left < size
			if renamed && at == 1 { // nothing of a chain is in that file
				continue
			}
			r, err := Verify(files)
			if err != nil || torn != (r.TornLines == 1) || torn && r.Torn[0] != (Place{files[0], at}) {
				b, _ := os.ReadFile(path)
				t.Fatalf("cut to %d, renamed %v: %+v, %v\n%s", size, renamed, r, err, b)
			}
			if torn { // and that it is torn is no excuse for changing it
				b, _ := os.ReadFile(files[0])
				b[left] ^= 1
				must(t, os.WriteFile(files[0], b, 0o600))
				if _, err := Verify(files); err == nil || !strings.HasPrefix(err.Error(), r.Torn[0].String()) {
					t.Fatalf("cut to %d, renamed %v, and changed: %v", size, renamed, err)
				}
			}
		}
	}
}

// fakeFile is a file in memory that can fail.
type fakeFile struct {
	mu      sync.Mutex
	b       []byte
	room    int           // bytes until the disk is full; -1 for none
	stuck   bool          // Truncate fails
	blocked chan struct{} // if not nil, a write waits for it
	writes  int
	closed  bool
	foreign bool // somebody else empties it at the next failure
}

func (f *fakeFile) Write(b []byte) (int, error) {
	f.mu.Lock()
	blocked := f.blocked
	f.mu.Unlock()
	if blocked != nil {
		<-blocked
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.writes++
	n := len(b)
	if f.room >= 0 {
		n = min(n, f.room)
		f.room -= n
	}
	f.b = append(f.b, b[:n]...)
	if n < len(b) {
		if f.foreign {
			f.b = nil
		}
		return n, unix.ENOSPC
	}
	return n, nil
}

func (f *fakeFile) ReadAt(b []byte, at int64) (int, error) { return bytes.NewReader(f.b).ReadAt(b, at) }

func (f *fakeFile) Truncate(size int64) error {
	if f.stuck {
		return unix.EIO
	}
	f.b = f.b[:size]
	return nil
}

func (f *fakeFile) Size() (int64, error)     { return int64(len(f.b)), nil }
func (f *fakeFile) Is(os.FileInfo) bool      { return true }
func (f *fakeFile) Close() error             { f.closed = true; return nil }
func (f *fakeFile) set(change func())        { f.mu.Lock(); change(); f.mu.Unlock() }
func (f *fakeFile) verify() (*Report, error) { return verifyBytes([][]byte{f.b}) }

// inBubble calls test, in a bubble, with a log on a fake file, and closes it.
func inBubble(t *testing.T, o Options, test func(t *testing.T, l *Log, f *fakeFile)) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakeFile{room: -1}
		l := newLog(f, o)
		l.flush()
		go l.run()
		defer l.Close()
		synctest.Wait()
		test(t, l, f)
	})
}

// settle waits until the writer has what was recorded, and waits for more or for the file.
func settle() {
	time.Sleep(gatherFor)
	synctest.Wait()
}

// TestFull: a full disk, wherever in a write it comes, leaves a chain, and a line that says what is
// missing.
func TestFull(t *testing.T) {
	for _, refuse := range []bool{false, true} {
		for room := range 1000 {
			inBubble(t, Options{Refuse: refuse}, func(t *testing.T, l *Log, f *fakeFile) {
				f.set(func() { f.blocked = make(chan struct{}) })
				var all sync.WaitGroup
				var mu sync.Mutex
				failed := uint64(0)
				send := func(n int) {
					for range n {
						all.Go(func() {
							if err := l.Record(t.Context(), &Event{Kind: CallAllowed, Connection: "c", Call: 1}); err != nil {
								mu.Lock()
								failed++
								mu.Unlock()
							}
						})
						settle()
					}
				}
				send(5) // one in a write, four that wait
				f.set(func() { f.room = room; close(f.blocked); f.blocked = nil })
				all.Wait()
				settle()
				r, err := f.verify()
				if err != nil || r.Lines+l.Lost() != 6 || refuse && failed != l.Lost() || !refuse && failed != 0 {
					t.Fatalf("room %d: %+v, %v; lost %d, failed %d\n%s", room, r, err, l.Lost(), failed, f.b)
				}
				f.set(func() { f.room = -1 })
				lost := l.Lost()
				send(1)
				all.Wait()
				settle()
				if r, err := f.verify(); err != nil || r.Lost != lost || l.Lost() != lost {
					t.Fatalf("room %d: %+v, %v; lost %d, %d\n%s", room, r, err, lost, l.Lost(), f.b)
				}
			})
		}
	}
}

// TestFullAndStuck: where the file cannot even be cut, the torn line stays, and is named.
func TestFullAndStuck(t *testing.T) {
	for room := range 500 {
		inBubble(t, Options{}, func(t *testing.T, l *Log, f *fakeFile) {
			f.set(func() { f.room, f.stuck = room, true })
			record(t, l, 1)
			settle()
			record(t, l, 1)
			settle()
			f.set(func() { f.room = -1 })
			record(t, l, 1)
			settle()
			r, err := f.verify()
			if err != nil || r.Lost != l.Lost() || r.Lost > 0 && len(r.Torn) > 1 {
				t.Fatalf("room %d: %+v, %v\n%s", room, r, err, f.b)
			}
		})
	}
}

// TestEmptied: a file that somebody else has emptied is not filled with zeros.
func TestEmptied(t *testing.T) {
	inBubble(t, Options{}, func(t *testing.T, l *Log, f *fakeFile) {
		f.set(func() { f.room, f.foreign = 10, true })
		record(t, l, 1)
		settle()
		f.set(func() { f.room = -1 })
		record(t, l, 1)
		settle()
		if r, err := f.verify(); err != nil || r.Lines != 3 || r.Begun {
			t.Errorf("%+v, %v\n%s", r, err, f.b)
		}
	})
}

// TestBlocked: a write that does not return keeps no caller beyond its bound; what had no room is
// counted, in the file too when it goes on.
func TestBlocked(t *testing.T) {
	big := &Event{Kind: CallAllowed, Text: strings.Repeat("x", 1000)}
	t.Run("count", func(t *testing.T) {
		var said bytes.Buffer
		inBubble(t, Options{Log: slog.New(slog.NewTextHandler(&said, nil))}, func(t *testing.T, l *Log, f *fakeFile) {
			f.set(func() { f.blocked = make(chan struct{}) })
			began := time.Now()
			n := 0
			for ; l.Lost() < 100; n++ {
				must(t, l.Record(t.Context(), big))
			}
			if took := time.Since(began); took != patience {
				t.Errorf("calls have waited for %v", took)
			}
			began = time.Now()
			if n > 3*maxQueue/1000 {
				t.Errorf("%d events of 1000 bytes fit", n)
			}
			if got := strings.Count(said.String(), "level=ERROR"); got != 1 || !strings.Contains(said.String(), errFull.Error()) {
				t.Errorf("%d lines: %s", got, &said)
			}
			if err := l.Reopen(); err == nil || !strings.Contains(err.Error(), "does not return") {
				t.Error(err)
			}
			if took := time.Since(began); took != endWait {
				t.Errorf("Reopen has waited for %v", took)
			}
			f.set(func() { close(f.blocked); f.blocked = nil })
			synctest.Wait()
			must(t, l.Record(t.Context(), big))
			settle()
			r, err := f.verify()
			if err != nil || r.Lost != 100 || r.Lines != uint64(1+n-100+1+1) {
				t.Errorf("%+v, %v; %d events", r, err, n)
			}
			if !strings.Contains(said.String(), `msg="the audit log is complete again, but for those events" file="" lost=100`) {
				t.Errorf("%s", &said)
			}
		})
	})
	t.Run("refuse", func(t *testing.T) {
		inBubble(t, Options{Refuse: true}, func(t *testing.T, l *Log, f *fakeFile) {
			f.set(func() { f.blocked = make(chan struct{}) })
			for _, test := range []struct{ deadline, want time.Duration }{{time.Hour, patience}, {time.Second / 10, time.Second / 10}} {
				ctx, cancel := context.WithTimeout(t.Context(), test.deadline)
				began := time.Now()
				err := l.Record(ctx, big)
				if took := time.Since(began); !errors.Is(err, errSlow) || took != test.want {
					t.Errorf("%v after %v", err, took)
				}
				cancel()
			}
			f.set(func() { close(f.blocked); f.blocked = nil })
			synctest.Wait()
			must(t, l.Record(t.Context(), big))
			// The first was in the write; the second was withdrawn from the queue.
			if r, err := f.verify(); err != nil || r.Lines != 4 || r.Lost != 1 || l.Lost() != 1 {
				t.Errorf("%+v, %v; lost %d", r, err, l.Lost())
			}
		})
	})
	t.Run("close", func(t *testing.T) {
		inBubble(t, Options{}, func(t *testing.T, l *Log, f *fakeFile) {
			f.set(func() { f.blocked = make(chan struct{}) })
			record(t, l, 1)
			if err := l.Close(); err == nil || !strings.Contains(err.Error(), "not closed") {
				t.Error(err)
			}
			f.set(func() { close(f.blocked); f.blocked = nil })
		})
	})
}

// TestShares: who has many events written waits for room himself, and loses his own where there is none;
// others neither wait nor lose any.
func TestShares(t *testing.T) {
	event := func(uid uint32) *Event {
		return &Event{Kind: ConnectionDenied, Caller: &Caller{UID: uid}, Text: strings.Repeat("x", 1000)}
	}
	for _, refuse := range []bool{false, true} {
		var waits atomic.Int32
		inBubble(t, Options{Refuse: refuse, Waits: func(context.Context) { waits.Add(1) }}, func(t *testing.T, l *Log, f *fakeFile) {
			f.set(func() { f.blocked = make(chan struct{}) })
			ctx, cancel := context.WithCancel(t.Context())
			cancel()
			if refuse { // the queue is what this is about
				l.SetRefuse(false)
			}
			must(t, l.Record(t.Context(), event(1)))
			settle() // it is in the write
			n := 0
			for ; l.Lost() == 0; n++ {
				must(t, l.Record(ctx, event(1)))
			}
			if waits.Load() != 1 || n < maxQueue/3/1000 || n > maxQueue/2/1000 {
				t.Errorf("%d events of one uid fit; it has waited %d times", n, waits.Load())
			}
			began := time.Now()
			for range 500 {
				must(t, l.Record(t.Context(), event(2)))
			}
			if took := time.Since(began); took != 0 || l.Lost() != 1 {
				t.Errorf("another uid has waited for %v; %d are lost", took, l.Lost())
			}
			l.SetRefuse(refuse)

			// The disk is slow, and not dead.
			var all sync.WaitGroup
			for range 10 {
				all.Go(func() { must(t, l.Record(t.Context(), event(1))) })
			}
			synctest.Wait()
			time.Sleep(patience / 2)
			f.set(func() { close(f.blocked); f.blocked = nil })
			all.Wait()
			synctest.Wait()
			if took := time.Since(began); took != patience/2 || l.Lost() != 1 {
				t.Errorf("after %v; %d are lost", took, l.Lost())
			}
			if r, err := f.verify(); err != nil || r.Lost != 1 {
				t.Errorf("%+v, %v", r, err)
			}
		})
	}
}

// TestOpenInTime: nobody waits for long for a disk that does not answer, and what is opened when it does is
// closed.
func TestOpenInTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakeFile{room: -1, blocked: make(chan struct{})}
		began := time.Now()
		l, err := inTime(func() (*Log, error) { return newLog(f, Options{}), nil })
		if took := time.Since(began); l != nil || err != errNotOpened || took != endWait {
			t.Errorf("%v, %v after %v", l, err, took)
		}
		close(f.blocked)
		synctest.Wait()
		if !f.closed {
			t.Error("the file stays open")
		}
		f = &fakeFile{room: -1}
		if _, err = inTime(func() (*Log, error) { return newLog(f, Options{}), nil }); err != nil || f.closed || len(f.b) == 0 {
			t.Errorf("%v, %+v", err, f)
		}
	})
}

// TestLostRepeated: with a line are lost the events that it alone counts, whether it had no room, was not
// written in time or could not be written.
func TestLostRepeated(t *testing.T) {
	event := func(repeated uint64) *Event { return &Event{Kind: ConnectionDenied, Repeated: repeated} }
	inBubble(t, Options{Refuse: true}, func(t *testing.T, l *Log, f *fakeFile) {
		f.set(func() { f.blocked = make(chan struct{}) })
		var first sync.WaitGroup
		first.Go(func() {
			if err := l.Record(t.Context(), event(0)); err == nil {
				t.Error("it is in the file after all")
			}
		})
		synctest.Wait() // it is in the write
		if err := l.Record(t.Context(), event(9)); err == nil || l.Lost() != 10 {
			t.Errorf("%v; %d are lost", err, l.Lost())
		}
		first.Wait()
		f.set(func() { close(f.blocked); f.blocked = nil })
		synctest.Wait()
		f.set(func() { f.room = 0 })
		if err := l.Record(t.Context(), event(99)); err == nil || l.Lost() != 110 {
			t.Errorf("%v; %d are lost", err, l.Lost())
		}
		f.set(func() { f.room = -1 })
		must(t, l.Record(t.Context(), event(0)))
		if r, err := f.verify(); err != nil || r.Lost != 110 {
			t.Errorf("%+v, %v", r, err)
		}
	})
}

// TestQueueMemory: the queue is no larger for short events that follow long ones.
func TestQueueMemory(t *testing.T) {
	long := &Event{Kind: CallDenied, Text: strings.Repeat("x", 2000), Principal: strings.Repeat("x", 2000), Target: strings.Repeat("x", 2000)}
	short := &Event{Kind: CallDenied, Text: strings.Repeat("x", 100)}
	inBubble(t, Options{}, func(t *testing.T, l *Log, f *fakeFile) {
		f.set(func() { f.blocked = make(chan struct{}) })
		must(t, l.Record(t.Context(), short))
		synctest.Wait()
		for range 1000 {
			must(t, l.Record(t.Context(), long))
		}
		f.set(func() { close(f.blocked); f.blocked = nil })
		synctest.Wait()
		f.set(func() { f.blocked = make(chan struct{}) })
		must(t, l.Record(t.Context(), short))
		synctest.Wait()
		for range 1000 {
			must(t, l.Record(t.Context(), short))
		}
		if took := l.queued; took > 1000*maxFree {
			t.Errorf("%d bytes for 1000 short events", took)
		}
		taken := 0
		for _, n := range l.queue {
			taken += cap(n.fields)
		}
		if taken != l.queued {
			t.Errorf("%d bytes are %d", taken, l.queued)
		}
		f.set(func() { close(f.blocked); f.blocked = nil })
	})
}

// TestStuck: where nothing is written at all nobody waits twice.
func TestStuck(t *testing.T) {
	e := &Event{Kind: ConnectionDenied, Caller: &Caller{UID: 1}, Text: strings.Repeat("x", 1000)}
	inBubble(t, Options{}, func(t *testing.T, l *Log, f *fakeFile) {
		f.set(func() { f.blocked = make(chan struct{}) })
		began := time.Now()
		for l.Lost() < 100 {
			must(t, l.Record(t.Context(), e))
		}
		if took := time.Since(began); took != patience {
			t.Errorf("%v", took)
		}
		var closed sync.WaitGroup
		closed.Go(func() { l.Close() })
		synctest.Wait()
		if err := l.Record(t.Context(), e); err != ErrClosed {
			t.Error(err)
		}
		f.set(func() { close(f.blocked); f.blocked = nil })
		closed.Wait()
	})
}

// TestObserved: a call that is only observed does not wait for that to be written.
func TestObserved(t *testing.T) {
	inBubble(t, Options{Refuse: true}, func(t *testing.T, l *Log, f *fakeFile) {
		f.set(func() { f.blocked = make(chan struct{}) })
		began := time.Now()
		must(t, l.Record(t.Context(), &Event{Kind: CallObserved}))
		if took := time.Since(began); took != 0 {
			t.Errorf("it has waited for %v", took)
		}
		f.set(func() { close(f.blocked); f.blocked = nil })
		must(t, l.Record(t.Context(), &Event{Kind: CallAllowed}))
		if r, err := f.verify(); err != nil || r.Lines != 3 {
			t.Errorf("%+v, %v", r, err)
		}
	})
}

// TestTogether: who waits at the same time is written at once, in one write.
func TestTogether(t *testing.T) {
	inBubble(t, Options{Refuse: true}, func(t *testing.T, l *Log, f *fakeFile) {
		f.set(func() { f.blocked = make(chan struct{}) })
		var all sync.WaitGroup
		for range 100 {
			all.Go(func() {
				if err := l.Record(t.Context(), &Event{Kind: CallAllowed}); err != nil {
					t.Error(err)
				}
			})
			synctest.Wait()
		}
		f.set(func() { close(f.blocked); f.blocked = nil })
		all.Wait()
		if f.writes != 3 { // the chain's beginning, the first event, all others
			t.Errorf("%d writes", f.writes)
		}
	})
}

// TestHeads: the head is in the ordinary log every five minutes, and every ten thousand lines, if it
// is a new one.
func TestHeads(t *testing.T) {
	var said bytes.Buffer
	inBubble(t, Options{Log: slog.New(slog.NewTextHandler(&said, nil))}, func(t *testing.T, l *Log, f *fakeFile) {
		heads := func() int { return strings.Count(said.String(), " head=") }
		if heads() != 1 {
			t.Error(&said)
		}
		time.Sleep(time.Hour)
		synctest.Wait()
		if heads() != 1 {
			t.Error(&said)
		}
		record(t, l, 1)
		time.Sleep(headEvery)
		synctest.Wait()
		if heads() != 2 {
			t.Error(&said)
		}
		record(t, l, headLines)
		settle()
		if heads() != 3 {
			t.Error(&said)
		}
	})
}

// TestWriting: a line that is being written is no broken one; without a writer it is.
func TestWriting(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit.log")
	l := mustOpen(t, path, Options{Refuse: true})
	record(t, l, 1)
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND, 0)
	must(t, err)
	defer f.Close()
	io.WriteString(f, lineStart)
	r, err := Verify([]string{path})
	if err != nil || r.Lines != 2 || r.Writing == nil || *r.Writing != (Place{path, 3}) {
		t.Errorf("%+v, %v", r, err)
	}
	must(t, l.Close())
	if r, err := Verify([]string{path}); err == nil || r.Writing != nil || !strings.HasPrefix(err.Error(), fmt.Sprintf("%s:3: is no line of an audit log, or not all of one", path)) {
		t.Errorf("%+v, %v", r, err)
	}
}

func BenchmarkRecord(b *testing.B) {
	for _, refuse := range []bool{false, true} {
		b.Run(fmt.Sprintf("refuse=%v", refuse), func(b *testing.B) {
			l, err := Open(filepath.Join(b.TempDir(), "audit.log"), Options{Refuse: refuse})
			if err != nil {
				b.Fatal(err)
			}
			defer l.Close()
			e := full().Event
			b.ReportAllocs()
			b.RunParallel(func(p *testing.PB) {
				for p.Next() {
					if l.Record(context.Background(), e) != nil {
						b.Fatal("not written")
					}
				}
			})
			b.ReportMetric(float64(l.Lost())/float64(b.N), "lost/op")
		})
	}
}
