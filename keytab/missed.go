package keytab

import (
	"sync"
	"time"

	"gssproxyd/mech/krb5/etype"
	"gssproxyd/mech/krb5/wire"
)

// Tickets that no key has opened. What they say of themselves is what somebody wrote: it may come
// from a KDC whose keys are others by now, or from anybody. So no more is kept than there is room
// for, and only for principals that the keytab has.

// maxMissed is how many different ones are kept of a keytab.
const maxMissed = 64

// Missed is tickets of one kind that no key has opened.
type Missed struct {
	Principal   string // which the keytab has, fit to be shown
	KVNO        uint32
	Enctype     etype.ID
	Held        bool // there is such a key, and it is another one
	Version     bool // there are keys of that version
	Newest      uint32
	Times       uint64
	First, Last time.Time
}

// missed are those of a keytab.
type missed struct {
	mu     sync.Mutex
	kinds  map[kind]*Missed
	times  uint64 // altogether, of principals that the keytab has
	others uint64 // of others
}

// kind is what tells them apart.
type kind struct {
	principal string
	kvno      uint32
	enctype   etype.ID
	held      bool
}

// note is [Keytab.Missed].
func (m *missed) note(r *Ring, server []byte, kvno uint32, et etype.ID, now time.Time) {
	m.mu.Lock()
	defer m.mu.Unlock()
	keys := r.ByPrincipal(server)
	if len(keys) == 0 {
		m.others++
		return
	}
	m.times++
	what := kind{keys[0].Principal, kvno, et, r.Lookup(server, kvno, et) != nil}
	one := m.kinds[what]
	if one == nil {
		if m.kinds == nil {
			m.kinds = make(map[kind]*Missed)
		}
		if len(m.kinds) >= maxMissed {
			m.dropRarest()
		}
		one = &Missed{Principal: wire.Shown(what.principal), KVNO: kvno, Enctype: et, Held: what.held, First: now}
		m.kinds[what] = one
	}
	one.Times++
	one.Last = now
}

// dropRarest makes room: who makes many up pushes out others of theirs, and not what comes again and
// again.
func (m *missed) dropRarest() {
	var rarest kind
	var least *Missed
	for what, one := range m.kinds {
		if least == nil || one.Times < least.Times || one.Times == least.Times && one.Last.Before(least.Last) {
			rarest, least = what, one
		}
	}
	delete(m.kinds, rarest)
}

// drop forgets those that a ring has an answer to: it has such a key now, or has opened a ticket
// with it since, and those that are older than since.
func (m *missed) drop(r *Ring, since time.Time) {
	for what, one := range m.kinds {
		if one.Last.Before(since) || r.answers(what, one.Last) {
			delete(m.kinds, what)
		}
	}
}

// answers reports whether a ticket of a kind that came at a time would be opened now, as far as
// that can be known without it.
func (r *Ring) answers(what kind, at time.Time) bool {
	key := r.Lookup([]byte(what.principal), what.kvno, what.enctype)
	return key != nil && (!what.held || max(key.Use.Here, key.Use.LastAccepted()) > at.Unix())
}
