package keytab

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"gssproxyd/mech/krb5/etype"
)

// A Set opens each keytab once, however many services name it, and shares it. A configuration
// reload that opens the new keytabs before closing the old ones keeps the rings of those that stay.
// The zero value is ready to use; a Set must not be copied.
type Set struct {
	Log    *slog.Logger // nil discards
	Reader Reader

	// Stores have the keys of keytabs that are entries of key stores; nil: there are no such keytabs.
	Stores Stores

	// Changed is told of every ring that takes the place of another one, of the first one of a keytab
	// as of one that takes the place of none, and of the last one, when nobody has the keytab open any
	// more, that none takes its place; nil: nobody is. The keytab's watcher waits for it.
	Changed func(former, ring *Ring)

	pace    pace // zero: the usual one
	mu      sync.Mutex
	open    map[string]*Keytab // by the names of their sources
	entries map[string]*Keytab // of key stores, by name
	notify  *notifier          // while any is open
}

// A Keytab is one watched keytab file.
type Keytab struct {
	set  *Set
	refs int // guarded by set.mu

	source  source
	entry   string      // the name of one that is an entry of a key store, which has no source and no watcher; else empty
	needed  atomic.Bool // it should be there: a file that is missing from the beginning is an error
	ring    atomic.Pointer[Ring]
	missed  missed
	err     atomic.Pointer[error]
	refresh chan chan<- struct{} // to the watcher
	notify  *notifier
	born    time.Time
	ready   chan struct{} // closed when the watcher has had its first look
	done    chan struct{} // closed when the watcher has ended
	stop    context.CancelFunc
}

// Open returns the keytab of a name that should be there now, as MIT krb5 writes them:
// "FILE:/path", "WRFILE:/path" or "/path", or "SEALED:/path" for one that the set's Reader has to
// open; a relative path is taken from the working directory of this moment. A file that is missing or broken is not an error here: the ring is empty, Err says
// why, and the file is used as soon as it is good. So it is with a file on a file system that has
// not answered five seconds after its first Open. Every Open needs one Close.
func (s *Set) Open(name string) (*Keytab, error) { return s.openAs(name, true) }

// OpenOptional is Open for a keytab that may come later, or never: as long as it has not been
// there, or may not be read, that is no error in the log, unless another Open has the same one.
func (s *Set) OpenOptional(name string) (*Keytab, error) { return s.openAs(name, false) }

func (s *Set) openAs(name string, needed bool) (*Keytab, error) {
	if InStore(name) {
		return s.openEntry(name)
	}
	source, err := parseName(name)
	if err == nil && source.nameType == &sealed && s.Reader.Unseal == nil {
		err = fmt.Errorf("keytab %q: %w", name, errNoSealed)
	}
	if err != nil {
		return nil, err
	}
	k := s.get(source, needed)
	if !ended(k.ready, k.born) && s.Log != nil {
		s.Log.Warn("keytab not read yet", "keytab", source.path, "error", k.Err())
	}
	return k, nil
}

// maxWait is how long Open and Close wait for a look at the file, which a network file system may
// hold up for ever.
const maxWait = 5 * time.Second

// ended reports whether c is closed before maxWait from then on is over.
func ended(c <-chan struct{}, then time.Time) bool {
	select {
	case <-c:
		return true // however late it is
	default:
	}
	select {
	case <-c:
		return true
	case <-time.After(time.Until(then.Add(maxWait))):
		return false
	}
}

// CheckName returns the error that Open has for a name whatever there is, nil if it has none.
func CheckName(name string) error {
	if InStore(name) {
		_, _, err := cutEntry(name)
		return err
	}
	_, err := parseName(name)
	return err
}

// look reads the file of a keytab once, for no more than a look. The entries' keys are in b, which
// the caller clears, also after an error.
func (r *Reader) look(s source) (entries []Entry, b etype.Secret, err error) {
	content, _, err := s.read(r, s.path)
	if err == nil {
		b, err = r.open(s, content)
	}
	if err != nil {
		clear(content)
		return nil, nil, err
	}
	entries, err = Parse(b)
	return entries, b, err
}

// CheckFile returns what is wrong with the file of a keytab at this moment: that there is none
// (fs.ErrNotExist), that it cannot be read, or has no usable key; nil if it can be used. It does
// not repeat the name.
func (r *Reader) CheckFile(name string) error {
	if InStore(name) {
		return nil // the running daemon knows
	}
	s, err := parseName(name)
	if err != nil {
		return err
	}
	entries, b, err := r.look(s)
	defer b.Zero()
	if err != nil {
		return err
	}
	for i := range entries {
		if key, why := prepare(&entries[i]); why == "" {
			key.Destroy()
			return nil
		} else if i == len(entries)-1 {
			return fmt.Errorf("it has no usable key: %s", why)
		}
	}
	return errors.New("it has no entries")
}

// Principals returns the principals of a keytab's entries in their order, each once, with or
// without a key that can be used. name is what Open takes.
func (r *Reader) Principals(name string) (list []string, err error) {
	s, err := parseName(name)
	if err != nil {
		return nil, err
	}
	entries, b, err := r.look(s)
	defer b.Zero()
	seen := make(map[string]bool)
	for _, e := range entries {
		if !seen[e.Principal] {
			seen[e.Principal] = true
			list = append(list, e.Principal)
		}
	}
	return list, err
}

// get returns the keytab of a source, and starts its watcher if it is new.
func (s *Set) get(source source, needed bool) *Keytab {
	s.mu.Lock()
	defer s.mu.Unlock()
	if k := s.open[source.String()]; k != nil {
		k.refs++
		if needed {
			k.needed.Store(true)
		}
		return k
	}
	log := s.Log
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	if s.notify == nil {
		s.open, s.notify = make(map[string]*Keytab), newNotifier(log)
	}
	ctx, stop := context.WithCancel(context.Background())
	k := &Keytab{
		set:     s,
		refs:    1,
		source:  source,
		refresh: make(chan chan<- struct{}),
		notify:  s.notify,
		born:    time.Now(),
		ready:   make(chan struct{}),
		done:    make(chan struct{}),
		stop:    stop,
	}
	k.needed.Store(needed)
	k.ring.Store(Compile(source.String(), nil))
	k.err.Store(&errNoLook)
	s.open[source.String()] = k
	go newWatcher(k, s.notify, log, cmp.Or(s.pace, usualPace())).run(ctx)
	return k
}

// errNoLook is what is wrong with a keytab until the first look at its file.
var errNoLook = errors.New("not looked at yet: its file system does not answer")

func (s *Set) changed(former, ring *Ring) {
	if s.Changed != nil {
		s.Changed(former, ring)
	}
}

// compile makes the ring of what the file has.
func (k *Keytab) compile(content []byte) (*Ring, error) {
	b, err := k.set.Reader.open(k.source, content)
	if err != nil {
		return nil, err
	}
	if k.source.open != nil {
		defer b.Zero()
	}
	entries, err := Parse(b)
	if err != nil {
		return nil, err
	}
	return Compile(k.source.String(), entries), nil
}

// Ring returns the present ring: one atomic load, never nil. Take it once per request.
func (k *Keytab) Ring() *Ring { return k.ring.Load() }

// Refresh is for a caller that has just failed to find a key in old. The KDC may issue tickets
// under a new key moments before the watcher gets round to the file, so Refresh has the file looked
// at now and returns the ring that results, and whether it is another than old. An unchanged file
// costs one stat, by the watcher. Refresh waits for that no longer than ctx, and never longer than
// a second (a network file system may hang); it never publishes a ring that lacks a key of the
// present one.
func (k *Keytab) Refresh(ctx context.Context, old *Ring) (*Ring, bool) {
	if r := k.Ring(); r != old || k.entry != "" {
		return r, r != old
	}
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	looked := make(chan struct{}, 1)
	select {
	case k.refresh <- looked:
		select {
		case <-looked:
		case <-k.done:
		case <-ctx.Done():
		}
	case <-k.done:
	case <-ctx.Done():
	}
	r := k.Ring()
	return r, r != old
}

// Err returns why the file as it now is cannot be used, without its name; nil if the ring is the
// file's content.
func (k *Keytab) Err() error { return *k.err.Load() }

// Close gives the keytab back. The last Close of its openings ends the watcher; the ring stays
// readable for requests in flight. A watcher that waits for a file system ends when that answers.
// It always returns nil.
func (k *Keytab) Close() error {
	if k.entry != "" {
		k.closeEntry()
		return nil
	}
	s := k.set
	s.mu.Lock()
	k.refs--
	last, end := k.refs == 0, false
	if last {
		delete(s.open, k.source.String())
		if end = len(s.open) == 0; end {
			s.notify = nil
		}
	}
	s.mu.Unlock()
	if last {
		k.stop()
		ended(k.done, time.Now())
	}
	if end {
		k.notify.close()
	}
	return nil
}
