package keytab

import (
	"errors"
	"log/slog"
	"path/filepath"
	"slices"
	"sync"

	"github.com/fsnotify/fsnotify"
)

// A notifier tells the watchers of a Set what the kernel says about their files. One serves them
// all, because the kernel grants a user few inotify instances (128 usually) and a service may have
// a keytab for each of its callers.
type notifier struct {
	fs   *fsnotify.Watcher // nil when the kernel granted none
	done chan struct{}     // closed when run has ended

	mu    sync.Mutex // never held while fs is called, which may wait for run
	cares map[string]map[*watcher]bool

	arming sync.Mutex // held while directories are added and removed
	dirs   map[string]int
}

func newNotifier(log *slog.Logger) *notifier {
	n := &notifier{done: make(chan struct{}), cares: make(map[string]map[*watcher]bool), dirs: make(map[string]int)}
	var err error
	if n.fs, err = fsnotify.NewWatcher(); err != nil {
		log.Warn("no change notification for keytabs, looking every few seconds instead; fs.inotify.max_user_instances may be too low", "error", err)
		close(n.done)
		return n
	}
	go n.run()
	return n
}

func (n *notifier) close() {
	if n.fs != nil {
		n.fs.Close()
	}
	<-n.done
}

func (n *notifier) run() {
	defer close(n.done)
	for {
		select {
		case ev, ok := <-n.fs.Events:
			if !ok {
				return
			}
			n.mu.Lock()
			for w := range n.cares[filepath.Clean(ev.Name)] {
				w.wake()
			}
			n.mu.Unlock()
		case _, ok := <-n.fs.Errors:
			if !ok {
				return
			}
			// Overflow most likely: which events were lost is unknown.
			n.mu.Lock()
			for _, watchers := range n.cares {
				for w := range watchers {
					w.wake()
				}
			}
			n.mu.Unlock()
		}
	}
}

// follow has w woken for changes of the given directory entries, and of no others any more. It
// returns why some directory cannot be watched.
func (n *notifier) follow(w *watcher, names []string) error {
	if n.fs == nil {
		return nil
	}
	n.arming.Lock()
	defer n.arming.Unlock()
	old := w.names
	w.names = names
	if !slices.Equal(old, names) {
		n.mu.Lock()
		n.each(old, func(path string) {
			if delete(n.cares[path], w); len(n.cares[path]) == 0 {
				delete(n.cares, path)
			}
		})
		n.each(names, func(path string) {
			if n.cares[path] == nil {
				n.cares[path] = make(map[*watcher]bool)
			}
			n.cares[path][w] = true
		})
		n.mu.Unlock()
	}
	// Adding what is watched already is no harm, and needed where another directory has taken the
	// name.
	var failed error
	for _, name := range names {
		dir := filepath.Dir(name)
		n.dirs[dir]++
		// Closed: the watcher is about to end as well.
		if err := n.fs.Add(dir); err != nil && failed == nil && !errors.Is(err, fsnotify.ErrClosed) {
			failed = err
		}
	}
	for _, name := range old {
		dir := filepath.Dir(name)
		if n.dirs[dir]--; n.dirs[dir] == 0 {
			delete(n.dirs, dir)
			n.fs.Remove(dir) // fails when the directory has gone by itself: just as well
		}
	}
	return failed
}

// each calls f with each name and its directory, whose own events matter when it is moved or
// removed.
func (n *notifier) each(names []string, f func(path string)) {
	for _, name := range names {
		f(name)
		f(filepath.Dir(name))
	}
}
