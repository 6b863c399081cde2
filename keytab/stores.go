package keytab

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

// Keytabs without a file: the keys of entries of key stores, which are put here by who gets them.

// Stores have the keys of entries of key stores, whose keytabs are named STORE:NAME:PRINCIPAL.
type Stores interface {
	// Follow calls put with the keys of an entry, or why there are none, before it returns, and
	// whenever that changes until stop has returned: one call at a time. put copies what it keeps.
	// previous returns the use of those of the keys that are previous ones, at any time.
	Follow(store, principal string, put func(keys []Entry, err error), previous func() []Previous) (stop func())
}

// Previous is the use of the keys of a version that a key store keeps for tickets from before.
type Previous struct {
	KVNO  uint32
	Since time.Time // it is a previous one
	Until time.Time // the store takes it away; zero: not known
	Used  time.Time // it has opened a ticket last; zero: it has not
}

// Ending returns when a key is taken away that is still in use, if that is soon: within a quarter of
// the time for which it is kept, or a day.
func (p *Previous) Ending(now time.Time) (at time.Time, soon bool) {
	near := min(p.Until.Sub(p.Since)/4, 24*time.Hour)
	return p.Until, !p.Until.IsZero() && now.After(p.Until.Add(-near)) && p.Used.After(now.Add(-near))
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
	k.stop = s.Stores.Follow(store, principal, k.put, k.previous)
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

// previous returns the use of previous keys, by version.
func (k *Keytab) previous() (list []Previous) { return k.Ring().previous() }

func (r *Ring) previous() (list []Previous) {
	for i := range r.keys {
		k := &r.keys[i]
		if !k.Previous {
			continue
		}
		n := slices.IndexFunc(list, func(p Previous) bool { return p.KVNO == k.KVNO })
		if n < 0 {
			n, list = len(list), append(list, Previous{KVNO: k.KVNO, Since: moment(int64(k.Timestamp)), Until: moment(k.Until)})
		}
		if at := moment(k.Use.LastAccepted()); at.After(list[n].Used) {
			list[n].Used = at
		}
	}
	return list
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
