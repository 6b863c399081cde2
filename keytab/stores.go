package keytab

import (
	"errors"
	"fmt"
	"strings"
	"time"
)

// Keytabs without a file: the keys of entries of key stores, which are put here by who gets them.

// Stores have the keys of entries of key stores, whose keytabs are named STORE:NAME:PRINCIPAL.
type Stores interface {
	// Follow calls put with the keys of an entry, or why there are none, before it returns, and
	// whenever that changes until stop has returned: one call at a time. put copies what it keeps.
	Follow(store, principal string, put func(keys []Entry, err error)) (stop func())
}

// storePrefix is what the names of such keytabs begin with.
const storePrefix = "STORE:"

// InStore reports whether the name of a keytab is that of an entry of a key store.
func InStore(name string) bool { return strings.HasPrefix(name, storePrefix) }

// errInStore is for who wants the file of such a keytab.
var errInStore = errors.New("its keys are in a key store, and no file has them: gssproxyd keytabs shows those that the running daemon has")

// cutEntry takes the name of an entry's keytab apart.
func cutEntry(name string) (store, principal string, err error) {
	store, principal, ok := strings.Cut(strings.TrimPrefix(name, storePrefix), ":")
	if !ok || store == "" || principal == "" {
		return "", "", fmt.Errorf("keytab %q: expected STORE:NAME:PRINCIPAL@REALM", name)
	}
	return store, principal, nil
}

// openEntry is Open for the keytab of an entry.
func (s *Set) openEntry(name string) (*Keytab, error) {
	store, principal, err := cutEntry(name)
	if err == nil && s.Stores == nil {
		err = fmt.Errorf("keytab %q: there are no key stores here; use FILE:/path", name)
	}
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	k := s.entries[name]
	if k != nil {
		k.refs++
		s.mu.Unlock()
		<-k.ready
		return k, nil
	}
	k = &Keytab{set: s, refs: 1, entry: name, ready: make(chan struct{})}
	k.needed.Store(true)
	k.ring.Store(Compile(name, nil))
	if s.entries == nil {
		s.entries = make(map[string]*Keytab)
	}
	s.entries[name] = k
	s.mu.Unlock()
	k.stop = s.Stores.Follow(store, principal, k.put)
	close(k.ready)
	return k, nil
}

// put has other keys in use at once, or none.
func (k *Keytab) put(entries []Entry, err error) {
	former, ring := k.Ring(), Compile(k.entry, entries)
	ring.follow(former, time.Now().Unix())
	k.ring.Store(ring)
	k.err.Store(&err)
	k.set.changed(former, ring)
}

// closeEntry is Close for the keytab of an entry.
func (k *Keytab) closeEntry() {
	s := k.set
	s.mu.Lock()
	k.refs--
	last := k.refs == 0
	if last {
		delete(s.entries, k.entry)
	}
	s.mu.Unlock()
	if last {
		k.stop()
		s.changed(k.Ring(), Compile(k.entry, nil))
	}
}
