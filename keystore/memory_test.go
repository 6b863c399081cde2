package keystore_test

import (
	"context"
	"iter"
	"slices"
	"strings"
	"sync"

	"gssproxyd/keystore"
)

// memory is a backend without a disk, for tests that write much or have it fail. It is held to the
// same test as the others.
type memory struct {
	mu      sync.Mutex
	records map[string]keystore.Record
	log     []keystore.Committed
	changed chan struct{}
	locks   map[string]*memoryLock

	// commits is called before each Commit; if it fails nothing is committed, or everything is if
	// also is said, as when the answer is lost.
	commits func(changes []keystore.Record) (also bool, err error)
}

func newMemory() *memory {
	return &memory{records: map[string]keystore.Record{}, changed: make(chan struct{}), locks: map[string]*memoryLock{}}
}

func (m *memory) before(f func(changes []keystore.Record) (also bool, err error)) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.commits = f
}

func (m *memory) at() uint64 { return uint64(len(m.log)) }

func (m *memory) Close() error { return nil }

func (m *memory) Get(ctx context.Context, name string) (keystore.Record, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	r := m.records[name]
	r.Name = name
	return r, ctx.Err()
}

func (m *memory) List(ctx context.Context, prefix string) (list []keystore.Record, at uint64, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for name, r := range m.records {
		if strings.HasPrefix(name, prefix) {
			list = append(list, r)
		}
	}
	slices.SortFunc(list, func(a, b keystore.Record) int { return strings.Compare(a.Name, b.Name) })
	return list, m.at(), ctx.Err()
}

func (m *memory) Commit(ctx context.Context, lock keystore.Lock, changes ...keystore.Record) (uint64, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	var also bool
	failed := ctx.Err()
	if failed == nil && m.commits != nil {
		also, failed = m.commits(changes)
	}
	if failed != nil && !also {
		return 0, failed
	}
	if l, ok := lock.(*memoryLock); lock != nil && (!ok || m.locks[l.name] != l) {
		return 0, keystore.ErrLockLost
	}
	for _, c := range changes {
		if m.records[c.Name].Version != c.Version {
			return 0, keystore.ErrConflict
		}
	}
	made := keystore.Committed{At: m.at() + 1}
	for _, c := range changes {
		if c.Keep {
			continue
		}
		c.Value, c.Version = slices.Clone(c.Value), made.At
		if m.records[c.Name] = c; c.Value == nil {
			delete(m.records, c.Name)
		}
		made.Records = append(made.Records, c)
	}
	m.log = append(m.log, made)
	close(m.changed)
	m.changed = make(chan struct{})
	return made.At, failed
}

func (m *memory) Watch(ctx context.Context, prefix string, after uint64) iter.Seq2[keystore.Committed, error] {
	return func(yield func(keystore.Committed, error) bool) {
		for ctx.Err() == nil {
			m.mu.Lock()
			log, changed := m.log[after:], m.changed
			m.mu.Unlock()
			for _, c := range log {
				after = c.At
				c.Records = slices.DeleteFunc(slices.Clone(c.Records), func(r keystore.Record) bool { return !strings.HasPrefix(r.Name, prefix) })
				if ctx.Err() != nil || len(c.Records) > 0 && !yield(c, nil) {
					return
				}
			}
			select {
			case <-changed:
			case <-ctx.Done():
			}
		}
	}
}

type memoryLock struct {
	m    *memory
	name string
	gone chan struct{}
}

func (m *memory) Lock(ctx context.Context, name string) (keystore.Lock, error) {
	for ctx.Err() == nil {
		m.mu.Lock()
		other := m.locks[name]
		if other == nil {
			l := &memoryLock{m, name, make(chan struct{})}
			m.locks[name] = l
			m.mu.Unlock()
			return l, nil
		}
		m.mu.Unlock()
		select {
		case <-other.gone:
		case <-ctx.Done():
		}
	}
	return nil, ctx.Err()
}

func (l *memoryLock) Lost() <-chan struct{} { return l.gone }

func (l *memoryLock) Unlock(context.Context) error {
	l.m.mu.Lock()
	defer l.m.mu.Unlock()
	if l.m.locks[l.name] == l {
		delete(l.m.locks, l.name)
		close(l.gone)
	}
	return nil
}
