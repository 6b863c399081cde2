package keytab

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"time"
)

// How a file is followed.
//
// The kernel tells of changes in the directories on the way to the file, those of symbolic links included, so that a
// swap of Kubernetes' "..data" link is seen; a slow poll catches what it cannot tell: network file systems, a watch
// that could not be had. All file access is the watcher goroutine's: a request only loads a pointer.
//
// A good file that has all the keys of the present ring is published at once, since it cannot make things worse. One
// that lacks some may still be under its writer's hands, and is published after a quiet time. A bad file is read
// again for a while before the alarm, and the old ring stays. A missing file leaves the old ring for a grace time
// (unlink and create again is a rotation too); then the ring is empty, because who removes a keytab wants its keys
// gone.

// pace is the timing of a watcher.
type pace struct {
	debounce time.Duration // between a change and the look at it
	settle   time.Duration // how long a file that lacks keys of the ring must rest before it is believed
	retry    time.Duration // between looks at a bad file until the alarm
	alarm    time.Duration // how long a file may be bad or missing in silence
	grace    time.Duration // how long the keys of a missing file stay in use
	poll     time.Duration // between looks without any event
	blind    time.Duration // the same where the kernel tells of no events
}

func usualPace() pace {
	return pace{
		debounce: 10 * time.Millisecond,
		settle:   300 * time.Millisecond,
		retry:    100 * time.Millisecond,
		alarm:    time.Second,
		grace:    30 * time.Second,
		poll:     10 * time.Second,
		blind:    2 * time.Second,
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
	dirty bool      // an event since the last look

	seen      bool              // there has been a good file
	loaded    bool              // and its keys are in use
	digest    [sha256.Size]byte // of the file that the ring was made of
	stamp     stamp             // of the file last read
	read      time.Time         // when that was
	candidate *Ring             // a good ring that lacks keys of the present one, waiting for a quiet time
	proposed  [sha256.Size]byte // digest of the candidate's file
	since     time.Time         // when the present trouble, or the candidate, was first seen; zero when all is well
	gone      time.Time         // when the file was first found missing; zero when it is not
	reported  string            // trouble that has been logged
	health    Health
}

func newWatcher(k *Keytab, n *notifier, log *slog.Logger, pace pace) *watcher {
	return &watcher{
		k:       k,
		log:     log.With("keytab", k.path),
		pace:    pace,
		notify:  n,
		changed: make(chan struct{}, 1),
		timer:   time.NewTimer(time.Hour),
		health:  Health{Name: k.name()},
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
	for {
		select {
		case <-ctx.Done():
			return
		case <-w.timer.C:
			w.look()
		case <-w.changed:
			w.dirty = true
			w.soon(w.pace.debounce)
		case looked := <-w.k.refresh:
			// While the file is in trouble a look means reading it; requests must not make that frequent.
			w.dirty = w.dirty || len(w.changed) > 0
			if w.dirty || w.since.IsZero() || time.Since(w.read) > w.pace.debounce {
				w.look()
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

// look brings the ring up to date with the file, and sets the timer for the next look.
func (w *watcher) look() {
	now := time.Now()
	if w.dirty || !now.Before(w.due) {
		w.arm() // before reading, so that no later change is missed
	}
	dirty := w.dirty
	w.dirty = false
	next := w.pace.poll
	if w.blind {
		next = w.pace.blind
	}
	if dirty || !w.since.IsZero() || !w.unchanged() {
		content, stamp, err := readFile(w.k.path)
		w.read, w.stamp = now, stamp
		if wait := w.judge(now, content, err); wait > 0 {
			next = min(next, wait)
		}
		clear(content)
	}
	w.due = now.Add(next)
	w.timer.Reset(next)
	w.health.Polling = w.blind
	w.k.health.Store(new(w.health))
}

// unchanged says whether the file is certainly the one last read. Times of files have the kernel's clock tick as
// their grain, so a file written shortly before it was read may have been written again within the same tick.
func (w *watcher) unchanged() bool {
	const grain = 2 * time.Second
	s, err := statFile(w.k.path)
	return err == nil && s == w.stamp && w.read.Sub(s.changed()) > grain
}

// judge decides what the file means for the ring, and returns how soon it must be looked at again, 0 for any time.
func (w *watcher) judge(now time.Time, content []byte, err error) time.Duration {
	if err != nil {
		return w.trouble(now, err)
	}
	digest := sha256.Sum256(content)
	w.warnMode(w.stamp)
	if w.loaded && digest == w.digest {
		w.candidate = nil
		w.well()
		return 0
	}
	ring := w.candidate
	if ring == nil || digest != w.proposed {
		entries, err := Parse(content)
		if err != nil {
			return w.trouble(now, err)
		}
		ring = Compile(w.k.name(), entries)
	}
	if !ring.covers(w.k.Ring()) {
		if w.candidate == nil || digest != w.proposed {
			w.candidate, w.proposed, w.since = ring, digest, now
		}
		if left := w.pace.settle - now.Sub(w.since); left > 0 {
			return left
		}
	}
	w.publish(now, ring, digest)
	return 0
}

// publish makes ring the keytab's.
func (w *watcher) publish(now time.Time, ring *Ring, digest [sha256.Size]byte) {
	w.seen, w.loaded, w.digest, w.candidate = true, true, digest, nil
	w.k.ring.Store(ring)
	w.health.Loaded, w.health.Keys, w.health.Skipped = now, ring.Len(), len(ring.skipped)
	for _, s := range ring.skipped {
		w.log.Info("keytab entry not usable", "principal", s.Principal, "kvno", s.KVNO, "offset", s.Offset, "reason", s.Reason)
	}
	w.log.Info("keytab loaded", "keys", ring.Len(), "principals", ring.Principals(), "skipped", len(ring.skipped))
	w.well()
}

// well ends a trouble.
func (w *watcher) well() {
	if w.reported != "" {
		w.log.Info("keytab is well again", "after", time.Since(w.since).Round(time.Millisecond))
	}
	w.since, w.gone, w.reported = time.Time{}, time.Time{}, ""
	w.health.Err, w.health.Hint, w.health.Since = nil, "", time.Time{}
}

// trouble keeps the ring, raises the alarm when the trouble lasts, and gives up the keys of a file that stays away.
func (w *watcher) trouble(now time.Time, err error) time.Duration {
	if w.candidate != nil {
		w.candidate, w.since = nil, time.Time{}
	}
	if w.since.IsZero() {
		w.since = now
	}
	missing := errors.Is(err, fs.ErrNotExist)
	switch {
	case !missing:
		w.gone = time.Time{}
	case w.gone.IsZero():
		w.gone = now
	}
	if w.loaded && now.Sub(w.since) < w.pace.alarm {
		return w.pace.retry
	}
	level, what := slog.LevelError, "keytab cannot be used as it is"
	hint := "the keys loaded before stay in use; put a good keytab in its place, best by rename"
	var wait time.Duration
	switch {
	case !w.seen:
		hint = "there are no keys to use; a good keytab put there is used at once"
		if (missing || errors.Is(err, fs.ErrPermission)) && !w.k.needed.Load() {
			level, what = slog.LevelInfo, "no such keytab for now"
		}
	case !w.loaded:
		hint = goneHint
	case missing && now.Sub(w.gone) < w.pace.grace:
		hint = fmt.Sprintf("the keys loaded before stay in use for %v after it went, in case it is being replaced", w.pace.grace)
		wait = w.pace.grace - now.Sub(w.gone)
	case missing:
		hint = goneHint
		w.loaded = false
		w.k.ring.Store(Compile(w.k.name(), nil))
		w.health = Health{Name: w.health.Name}
	}
	w.health.Err, w.health.Hint, w.health.Since = err, hint, w.since
	if text := level.String() + err.Error() + hint; text != w.reported {
		w.reported = text
		w.log.Log(context.Background(), level, what, "error", err, "hint", hint)
	}
	return wait
}

const goneHint = "its keys are no longer used; a good keytab put there is used at once"

// warnMode warns of a keytab that any local user can read or write.
func (w *watcher) warnMode(s stamp) {
	warning := ""
	if s.mode&0o006 != 0 {
		warning = fmt.Sprintf("mode %04o lets every local user read or write the keys; chmod 0600 %s, and change the keys", s.mode&0o7777, w.k.path)
		if warning != w.health.Warning {
			w.log.Warn("keytab is not protected", "warning", warning)
		}
	}
	w.health.Warning = warning
}

// arm watches the directories on the present way to the file, and those only.
func (w *watcher) arm() {
	err := w.notify.follow(w, trail(w.k.path))
	if err != nil && !w.blind && !errors.Is(err, fs.ErrNotExist) {
		w.log.Warn("no change notification for the keytab, looking every few seconds instead", "error", err)
	}
	w.blind = err != nil || w.notify.fs == nil
}
