package keytab

import (
	"crypto/subtle"
	"fmt"
	"runtime"
	"slices"
	"time"

	"gssproxyd/mech/krb5/etype"
)

// Key usage numbers whose keys are derived when a ring is compiled, so that accepting a context
// derives nothing: the ticket's encrypted part (RFC 4120 section 7.5.1), the PAC's server signature
// (MS-PAC section 2.8.1) and the service verifier of a CAMMAC (RFC 7751 section 3).
var preparedUsages = []uint32{2, 17, 64}

// retireAfter is how long the keys of a ring live on after the garbage collector has found it
// unreachable. It covers code that keeps only a *etype.Key across the end of the ring; that is a
// matter of microseconds.
const retireAfter = 10 * time.Second

// A Ring is the compiled, immutable content of a keytab: safe for any number of readers, and the
// same answer to the same question for as long as it is held. The zero Ring is not useful; Compile
// with no entries makes an empty one.
//
// Its keys are zeroed some time after the ring, and every *etype.ServiceKey obtained from it, has
// become unreachable.
type Ring struct {
	name      string
	keys      []etype.ServiceKey // in file order; everything below points into it
	byName    map[string]*principal
	byEnctype map[etype.ID][]*etype.ServiceKey
	skipped   []Skipped
}

// principal holds the keys of one principal, in file order.
type principal struct {
	slots []slot
	keys  []*etype.ServiceKey
}

// slot repeats what Lookup compares, to keep it within one cache line or two.
type slot struct {
	enctype         etype.ID
	kvno, timestamp uint32
	pending         bool
	key             *etype.ServiceKey
}

// Skipped describes an entry of the keytab that has no usable key. It exists for messages: "found
// in keytab, but not usable" is another trouble than "not in keytab".
type Skipped struct {
	Principal string
	KVNO      uint32
	Enctype   etype.ID
	Offset    int    // of the record in the file
	Reason    string // why it is not usable
}

// Compile builds a ring of the entries, deriving their keys. It copies the key bytes, so the caller
// may (and should) clear the entries' own afterwards. name is what Ring.Name returns. Entries with
// an unsupported encryption type, or a key of the wrong length, are left out and listed by Skipped.
func Compile(name string, entries []Entry) *Ring { return compile(name, entries, destroySoon) }

// compile calls retire with all keys once nothing of the ring is reachable.
func compile(name string, entries []Entry, retire func([]*etype.Key)) *Ring {
	r := &Ring{
		name:      name,
		keys:      make([]etype.ServiceKey, 0, len(entries)), // never grows: pointers into it are kept
		byName:    make(map[string]*principal),
		byEnctype: make(map[etype.ID][]*etype.ServiceKey),
	}
	uses := make([]etype.KeyUse, len(entries))
	for i := range entries {
		e := &entries[i]
		key, why := prepare(e)
		if why != "" {
			r.skipped = append(r.skipped, Skipped{e.Principal, e.KVNO, e.Enctype, e.Offset, why})
			continue
		}
		r.keys = append(r.keys, etype.ServiceKey{Principal: e.Principal, KVNO: e.KVNO, Timestamp: e.Timestamp, Pending: e.Pending, Previous: e.Previous, Until: e.Until, Key: key, Use: &uses[i]})
		r.index(e, &r.keys[len(r.keys)-1])
	}
	if len(r.keys) > 0 {
		// Hung on the array and not on the Ring: a request that holds one ServiceKey holds them
		// all, with or without the Ring. The argument keeps the key bytes in memory until they have
		// been zeroed.
		keys := make([]*etype.Key, len(r.keys))
		for i := range r.keys {
			keys[i] = r.keys[i].Key
		}
		runtime.AddCleanup(&r.keys[0], retire, keys)
	}
	return r
}

func destroySoon(keys []*etype.Key) { time.AfterFunc(retireAfter, func() { destroy(keys) }) }

func destroy(keys []*etype.Key) {
	for _, k := range keys {
		k.Destroy()
	}
}

// prepare derives the keys of an entry, or says why that cannot be done.
func prepare(e *Entry) (key *etype.Key, why string) {
	if !e.Enctype.Supported() {
		return nil, fmt.Sprintf("encryption type %v is not supported", e.Enctype)
	}
	if want := e.Enctype.KeySize(); len(e.Key) != want {
		return nil, fmt.Sprintf("the key has %d bytes, %v needs %d", len(e.Key), e.Enctype, want)
	}
	key, err := etype.NewKey(e.Enctype, e.Key)
	if err != nil {
		return nil, err.Error()
	}
	return key.Prepare(preparedUsages...), ""
}

func (r *Ring) index(e *Entry, k *etype.ServiceKey) {
	p := r.byName[e.Principal]
	if p == nil {
		p = &principal{}
		r.byName[e.Principal] = p
	}
	p.slots = append(p.slots, slot{e.Enctype, e.KVNO, e.Timestamp, e.Pending, k})
	p.keys = append(p.keys, k)
	r.byEnctype[e.Enctype] = append(r.byEnctype[e.Enctype], k)
}

// Lookup returns the key that MIT krb5 would take for a ticket of this server, key version and
// encryption type, or nil. server is the unparsed principal with its realm. The version must be
// equal; failing that, the first entry whose version is the low 8 bits of the wanted one is taken,
// because older writers stored no more. kvno 0 (a ticket that names no version) asks for the newest
// key, and an entry of version 0 takes part in every search.
//
// A pending key is not the newest. Its version is a guess, so it is also the answer for a version
// that is higher than all there are.
func (r *Ring) Lookup(server []byte, kvno uint32, et etype.ID) *etype.ServiceKey {
	p := r.byName[string(server)]
	if p == nil {
		return nil
	}
	var best, pending *slot
	highest := uint32(0)
	for i := range p.slots {
		s := &p.slots[i]
		highest = max(highest, s.kvno)
		switch {
		case s.enctype != et:
		case s.pending && (kvno == 0 || s.kvno != kvno):
			pending = s
		case kvno == 0 || s.kvno == 0:
			if best == nil || s.newer(best) {
				best = s
			}
		case s.kvno == kvno:
			return s.key
		case s.kvno == kvno&0xff && best == nil:
			best = s
		}
	}
	if best == nil && pending != nil && kvno > highest {
		best = pending
	}
	if best == nil {
		return nil
	}
	return best.key
}

// newer reports whether s supersedes t. Version numbers that were stored in 8 or 16 bits wrap: a
// small one written no earlier than a large one is the newer.
func (s *slot) newer(t *slot) bool {
	const small, large = 128, 240
	switch {
	case s.kvno < small && t.kvno > large && s.timestamp >= t.timestamp:
		return true
	case s.kvno > large && t.kvno < small && s.timestamp <= t.timestamp:
		return false
	}
	return s.kvno > t.kvno
}

// ByEnctype returns every key of an encryption type in file order, for tickets whose server is an
// alias. The slice is the ring's own and must not be written to.
func (r *Ring) ByEnctype(et etype.ID) []*etype.ServiceKey { return r.byEnctype[et] }

// ByPrincipal returns every key of a principal (unparsed, with its realm) in file order. The slice
// is the ring's own and must not be written to.
func (r *Ring) ByPrincipal(server []byte) []*etype.ServiceKey {
	if p := r.byName[string(server)]; p != nil {
		return p.keys
	}
	return nil
}

// All returns every usable key in file order. The slice is the ring's own and must not be written
// to.
func (r *Ring) All() []etype.ServiceKey { return r.keys }

// Skipped returns the entries that have no usable key, in file order. The slice is the ring's own.
func (r *Ring) Skipped() []Skipped { return r.skipped }

// Len returns the number of usable keys.
func (r *Ring) Len() int { return len(r.keys) }

// Principals returns the number of principals that have a usable key.
func (r *Ring) Principals() int { return len(r.byName) }

// Name returns the keytab's name for messages: "FILE:/etc/krb5.keytab".
func (r *Ring) Name() string { return r.name }

// covers reports whether every key of old is in r too, so that no ticket which old opens is refused
// by r.
func (r *Ring) covers(old *Ring) bool {
	for i := range old.keys {
		want := &old.keys[i]
		if !slices.ContainsFunc(r.ByPrincipal([]byte(want.Principal)), func(k *etype.ServiceKey) bool { return same(k, want) }) {
			return false
		}
	}
	return true
}

// same reports whether two keys of one principal are the same.
func same(a, b *etype.ServiceKey) bool {
	return a.KVNO == b.KVNO && a.Key.Enctype() == b.Key.Enctype() && subtle.ConstantTimeCompare(a.Key.Secret(), b.Key.Secret()) == 1
}

// follow has the keys that a ring shares with the one before it keep what is known of their use, and
// notes of the others that they are here from now on. It is called before anybody else has the ring.
func (r *Ring) follow(former *Ring, now int64) {
	for i := range r.keys {
		k := &r.keys[i]
		k.Use.Here = now
		for _, keys := range [][]*etype.ServiceKey{former.ByPrincipal([]byte(k.Principal)), r.ByPrincipal([]byte(k.Principal))} {
			if n := slices.IndexFunc(keys, func(other *etype.ServiceKey) bool { return same(k, other) }); n >= 0 {
				k.Use = keys[n].Use // of several entries with one key the first is used
				break
			}
		}
	}
}
