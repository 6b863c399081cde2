package keytab

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"slices"
	"time"

	"gssproxyd/openat"
)

// When a file is looked at.
//
// The kernel tells of changes in the directories on the way to the file, those of symbolic links
// included, so that a swap of Kubernetes' "..data" link is seen; a slow poll catches what it cannot
// tell: network file systems, a watch that could not be had. All file access is the watcher
// goroutine's: a request only loads a pointer.

// pace is the timing of a watcher.
type pace struct {
	debounce  time.Duration // between a change and the look at it
	unchanged time.Duration // how long a file that lacks keys of the ring must stay the same before it is believed
	retry     time.Duration // between looks at a bad file until that is an error
	alarm     time.Duration // how long a file may be bad or missing without an error
	grace     time.Duration // how long the keys of a missing file stay in use
	poll      time.Duration // between looks without any event
	blind     time.Duration // the same where the kernel tells of no events
}

func usualPace() pace {
	return pace{
		debounce:  10 * time.Millisecond,
		unchanged: 300 * time.Millisecond,
		retry:     100 * time.Millisecond,
		alarm:     time.Second,
		grace:     30 * time.Second,
		poll:      10 * time.Second,
		blind:     2 * time.Second,
	}
}

// watcher follows the file of one Keytab. Its fields belong to the goroutine that runs it.
type watcher struct {
	k    *Keytab
	log  *slog.Logger
	pace pace

	notify  *notifier
	names   []string      // what notify follows for this watcher; guarded by it
	changed chan struct{} // there was an event; holds one
	blind   bool          // some directory is not watched

	timer *time.Timer
	due   time.Time // when timer fires

	stamp    stamp     // of the file last read
	read     time.Time // when that was
	state    state
	reported string // trouble that has been logged
	warned   string // what has been said of the file's mode
}

func newWatcher(k *Keytab, n *notifier, log *slog.Logger, pace pace) *watcher {
	return &watcher{
		k:       k,
		log:     log.With("keytab", k.source.path),
		pace:    pace,
		notify:  n,
		changed: make(chan struct{}, 1),
		timer:   time.NewTimer(time.Hour),
		state:   state{ring: k.Ring()},
	}
}

// wake tells the watcher of an event; it never waits.
func (w *watcher) wake() {
	select {
	case w.changed <- struct{}{}:
	default:
	}
}

// run looks at the file whenever there is reason to, until ctx ends.
func (w *watcher) run(ctx context.Context) {
	defer close(w.k.done)
	defer w.notify.follow(w, nil)
	defer w.timer.Stop()
	w.look()
	close(w.k.ready)
	dirty := false // there was an event since the last look
	for {
		select {
		case <-ctx.Done():
			w.k.set.changed(w.state.ring, Compile(w.state.ring.name, nil))
			return
		case <-w.timer.C:
			w.look()
			dirty = false
		case <-w.changed:
			dirty = true
			w.soon(w.pace.debounce)
		case looked := <-w.k.refresh:
			if dirty || len(w.changed) > 0 || w.outdated() {
				w.look()
				dirty = false
			}
			looked <- struct{}{}
		}
	}
}

// soon has the file looked at within d.
func (w *watcher) soon(d time.Duration) {
	if due := time.Now().Add(d); w.due.After(due) {
		w.due = due
		w.timer.Reset(d)
	}
}

// outdated reports whether a look may find something new. While the file is in trouble a look means
// reading it; requests must not make that frequent.
func (w *watcher) outdated() bool {
	if !w.state.since.IsZero() {
		return time.Since(w.read) > w.pace.debounce
	}
	s, err := statFile(w.k.source.path)
	return err != nil || s != w.stamp || !openat.ChangesShow(s.ctime, w.read)
}

// look brings the ring up to date with the file, and sets the timer for the next look.
func (w *watcher) look() {
	now := time.Now()
	w.arm() // before reading, so that no later change is missed
	content, stamp, err := w.k.source.read(&w.k.set.Reader, w.k.source.path)
	w.read, w.stamp = now, stamp
	if err == nil && w.k.source.open == nil {
		w.warnMode(stamp)
	}
	former := w.state
	next := w.pace.poll
	if w.blind {
		next = w.pace.blind
	}
	var soonest time.Duration
	if w.state, soonest = former.judge(w.pace, now, content, w.k.compile, err); soonest > 0 {
		next = min(next, soonest)
	}
	clear(content)
	if w.state.ring != former.ring {
		w.state.ring.follow(former.ring, now.Unix())
	}
	w.k.ring.Store(w.state.ring)
	w.report(former)
	if w.state.ring != former.ring {
		w.k.set.changed(former.ring, w.state.ring)
	}
	err = w.state.err
	w.k.err.Store(&err)
	w.due = now.Add(next)
	w.timer.Reset(next)
}

// report logs what is new in the state.
func (w *watcher) report(former state) {
	ring, err := w.state.ring, w.state.err
	if ring != former.ring && w.state.loaded {
		for _, s := range ring.skipped {
			w.log.Info("keytab entry not usable", "principal", s.Principal, "kvno", s.KVNO, "offset", s.Offset, "reason", s.Reason)
		}
		w.log.Info("keytab loaded", "keys", ring.Len(), "principals", ring.Principals(), "skipped", len(ring.skipped))
	}
	if err == nil {
		if w.reported != "" {
			w.log.Info("keytab is well again", "after", time.Since(former.since).Round(time.Millisecond))
			w.reported = ""
		}
		return
	}
	level, what := slog.LevelError, "keytab cannot be used as it is"
	if !w.state.seen && !w.k.needed.Load() && (errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission)) {
		level, what = slog.LevelInfo, "no such keytab for now"
	}
	if text := level.String() + err.Error() + w.state.hint; text != w.reported {
		w.reported = text
		w.log.Log(context.Background(), level, what, "error", err, "hint", w.state.hint)
	}
}

// warnMode warns of a keytab that any local user can read or write.
func (w *watcher) warnMode(s stamp) {
	warning := ""
	if s.mode&0o006 != 0 {
		warning = fmt.Sprintf("mode %04o lets every local user read or write the keys; chmod 0600 %s, and change the keys", s.mode&0o7777, w.k.source.path)
		if warning != w.warned {
			w.log.Warn("keytab is not protected", "warning", warning)
		}
	}
	w.warned = warning
}

// maxChanges is how often the way to the file may change while it is being followed.
const maxChanges = 40

// arm watches the directories on the present way to the file, and those only.
func (w *watcher) arm() {
	var names []string
	var err error
	for range maxChanges {
		former := names
		if names = trail(w.k.source.path); slices.Equal(names, former) {
			break
		}
		err = w.notify.follow(w, names) // what was made before it was watched had no event: so again
	}
	if err != nil && !w.blind && !errors.Is(err, fs.ErrNotExist) {
		w.log.Warn("no change notification for the keytab, looking every few seconds instead", "error", err)
	}
	w.blind = err != nil || w.notify.fs == nil
}
