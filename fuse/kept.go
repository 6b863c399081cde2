package fuse

import (
	"context"
	"crypto/rand"
	"errors"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fs"

	"gssproxyd/interposer"
	"gssproxyd/limits"
	"gssproxyd/mech/reason"
	"gssproxyd/rpc/peer"
)

// kept is an execution or a context: a directory that is somebody's until it is removed, has not been
// used for long, or the session ends in which it was made.
type kept struct {
	id      string
	owner   owner
	home    *dir
	used    atomic.Int64           // Unix seconds
	context *interposer.SecContext // of a context
	steps   *execution             // of an execution

	held  *limits.Budget // which it is counted in, until it is dropped and the kernel has forgotten it
	users atomic.Int32   // those of the two that are still to come
}

const (
	// idle is after how long what is not used is dropped.
	idle = 10 * time.Minute

	// look is how often it is looked whose time is over, and whose session.
	look = 5 * time.Second

	// idLen is the length of a context's id: 50 bits that nobody can guess.
	idLen = 10
)

// table is what is kept below one directory. Look-ups wait for whoever holds the lock, and everybody's other requests
// for these: nothing is done there for each of what is kept, but to copy a user's own.
type table struct {
	mu      sync.RWMutex
	byID    map[string]*kept
	byOwner map[owner]map[*kept]struct{} // none is empty
}

// errTaken says that there is something by a name.
var errTaken = errors.New("there is something by that name")

// put adds what is kept to a table, and counts it. The error is a [*limits.Error] or errTaken. k.home is
// there.
func (s *Server) put(t *table, k *kept) error {
	k.use(s.o.Now())
	k.held = s.o.Limits.Kept
	k.users.Store(2)
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.byID == nil {
		t.byID, t.byOwner = make(map[string]*kept), make(map[owner]map[*kept]struct{})
	}
	if t.byID[k.id] != nil {
		return errTaken
	}
	if err := k.held.Take(k.owner.uid, 1); err != nil {
		return err
	}
	t.byID[k.id] = k
	if t.byOwner[k.owner] == nil {
		t.byOwner[k.owner] = make(map[*kept]struct{})
	}
	t.byOwner[k.owner][k] = struct{}{}
	s.open.add(k)
	return nil
}

// unused notes that one of the two is over. A directory that is open, or somebody's working directory,
// is there until the kernel has forgotten it, and is paid for.
func (s *Server) unused(k *kept) {
	if k.users.Add(-1) == 0 && s.open.remove(k) {
		k.release()
	}
}

func (k *kept) release() { k.held.Give(k.owner.uid, 1) }

// find returns what a user has by a name, nil if there is nothing. Others find nothing: who could open the
// directory (O_PATH) would keep it there, at its owner's cost.
func (t *table) find(uid uint32, id string) *kept {
	t.mu.RLock()
	defer t.mu.RUnlock()
	if k := t.byID[id]; k != nil && k.owner.uid == uid {
		return k
	}
	return nil
}

// dir is find for a directory.
func (t *table) dir(uid uint32, id string) *dir {
	if k := t.find(uid, id); k != nil {
		return k.home
	}
	return nil
}

// names lists what somebody has, in order.
func (t *table) names(_ context.Context, who *peer.Opener) (names []string, _ syscall.Errno) {
	for _, k := range t.of(ownerOf(who)) {
		names = append(names, k.id)
	}
	slices.Sort(names)
	return names, 0
}

// of returns what somebody has.
func (t *table) of(who owner) []*kept {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return slices.Collect(maps.Keys(t.byOwner[who]))
}

// owners returns who has something.
func (t *table) owners() []owner {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return slices.Collect(maps.Keys(t.byOwner))
}

// remove removes what is kept, and reports whether it was there.
func (t *table) remove(k *kept) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.byID[k.id] != k {
		return false
	}
	delete(t.byID, k.id)
	if delete(t.byOwner[k.owner], k); len(t.byOwner[k.owner]) == 0 {
		delete(t.byOwner, k.owner)
	}
	return true
}

// where returns what a condition is true of.
func (t *table) where(cond func(*kept) bool) (list []*kept) {
	for _, who := range t.owners() {
		for _, k := range t.of(who) {
			if cond(k) {
				list = append(list, k)
			}
		}
	}
	return list
}

// keep keeps a context that is established.
func (s *Server) keep(of owner, c *interposer.SecContext) (*kept, error) {
	k := &kept{id: rand.Text()[:idLen], owner: of, context: c}
	k.home = s.contextDir(k)
	if err := s.put(&s.contexts, k); err != nil { // nobody has its id
		return nil, over(err, reason.TooManyExecutions)
	}
	return k, nil
}

func (k *kept) use(now time.Time) { k.used.Store(now.Unix()) }

// directories are some of them. The zero value has none.
type directories struct {
	mu  sync.Mutex
	set map[*dir]struct{}
}

func (l *directories) add(d *dir) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.set == nil {
		l.set = make(map[*dir]struct{})
	}
	l.set[d] = struct{}{}
}

func (l *directories) remove(d *dir) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.set, d)
}

// take returns all, and none are left.
func (l *directories) take() map[*dir]struct{} {
	l.mu.Lock()
	defer l.mu.Unlock()
	set := l.set
	l.set = nil
	return set
}

// drop drops what is kept, and returns the directory above, nil if the kernel does not know of it. Who is
// still at it finds it gone.
func (s *Server) drop(t *table, k *kept) *fs.Inode {
	if !t.remove(k) {
		return nil
	}
	if k.context != nil {
		k.context.Close()
	}
	if k.steps != nil {
		k.steps.end()
	}
	above, unborn := k.home.forget()
	if unborn {
		s.unused(k)
	} else {
		s.leaving.add(k.home)
	}
	s.unused(k)
	return above
}

// lapse drops what nobody is removing with rmdir(2), and has the kernel forget it. While it is being
// removed the kernel would not listen.
func (s *Server) lapse(t *table, k *kept) {
	if above := s.drop(t, k); above != nil && s.ctx.Err() == nil {
		s.notices.add(k.owner.uid, func() { above.NotifyEntry(k.id) })
	}
}

// tables are all that there are.
func (s *Server) tables() []*table {
	list := []*table{&s.contexts}
	for i := range s.executions {
		list = append(list, &s.executions[i])
	}
	return list
}

// expire drops what nobody uses any more, until the server ends, and then all.
func (s *Server) expire() {
	ticker := time.NewTicker(look)
	defer ticker.Stop()
	for {
		select {
		case <-s.ctx.Done():
			s.lapseWhere(func(*kept) bool { return true })
			return
		case <-ticker.C:
			s.sweep()
		}
	}
}

// sweep drops what nobody uses any more.
func (s *Server) sweep() {
	now, ended := s.o.Now(), make(map[peer.Session]bool)
	s.lapseWhere(func(k *kept) bool {
		session := k.owner.session
		if _, asked := ended[session]; !asked {
			ended[session] = session.Over()
		}
		return ended[session] || now.Sub(time.Unix(k.used.Load(), 0)) > idle
	})
	for d := range s.leaving.take() {
		s.notices.add(d.uid, d.leave)
	}
}

func (s *Server) lapseWhere(cond func(*kept) bool) {
	for _, t := range s.tables() {
		for _, k := range t.where(cond) {
			s.lapse(t, k)
		}
	}
}
