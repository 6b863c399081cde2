package keytab

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"gssproxyd/mech/krb5/etype"
	"gssproxyd/mech/krb5/wire"
)

// How a keytab is: its keys, when they were used, which of them can go, and which tickets came that
// none has opened.

// UsualLife is the ticket life that is assumed where none longer was seen: that which a KDC of MIT's
// gives out at most unless it is told to. Active Directory's is ten hours.
const UsualLife = 24 * time.Hour

// State is how a keytab is. It has no keys in it.
type State struct {
	Source  string // as FILE:/etc/krb5.keytab
	Needed  bool   // it should be there
	Err     error  // why the file as it now is cannot be used
	Keys    []KeyState
	Skipped int           // entries that have no usable key
	Life    time.Duration // the longest ticket life assumed: the longest seen, and UsualLife at least
	Newest  time.Time     // when the newest entry was written; zero if there is none

	Missed []Missed // tickets that no key has opened, those that came last first; none of them older than Life
	Times  uint64   // how many there were of those since the keytab was opened
	Others uint64   // and of those for principals that the keytab does not have
}

// KeyState is how a key is. Times are zero where there is none.
type KeyState struct {
	Principal string // fit to be shown
	KVNO      uint32
	Enctype   etype.ID
	Written   time.Time // as the entry says
	Here      time.Time // since when it is in use here
	Accepted  time.Time // when it has opened a ticket last
	Until     time.Time // the latest end of a ticket that it has opened
	Initiated time.Time // when it has got a ticket last
	Pending   bool      // the KDC may not have it yet
	Prune     Verdict
	Why       string // of a Verdict other than Newest
}

// Verdict says whether a key can be taken out of its keytab.
type Verdict string

// The verdicts. PruneUnknown is given where the daemon has not seen what it takes to know.
const (
	PruneNewest  Verdict = "newest"  // it is of the newest version, or pending
	PruneNo      Verdict = "no"      // there may be tickets that it is needed for
	PruneUnknown Verdict = "unknown" // ask again, or see for yourself
	PruneSafe    Verdict = "safe"
)

// State returns how the keytab is. skew is by how much clocks may differ.
func (k *Keytab) State(now time.Time, skew time.Duration) State {
	ring := k.Ring()
	s := State{Source: ring.name, Needed: k.needed.Load(), Err: k.Err(), Skipped: len(ring.skipped), Life: ring.life()}
	for i := range ring.keys {
		if at := moment(int64(ring.keys[i].Timestamp)); at.After(s.Newest) {
			s.Newest = at
		}
	}
	s.Keys = ring.state(now, s.Life, skew)
	m := &k.missed
	m.mu.Lock()
	defer m.mu.Unlock()
	m.drop(ring, now.Add(-s.Life-skew))
	s.Times, s.Others = m.times, m.others
	for what, one := range m.kinds {
		shown := *one
		shown.Held = ring.Lookup([]byte(what.principal), what.kvno, what.enctype) != nil
		if versions := ring.versions(what.principal); len(versions) > 0 {
			shown.Newest = versions[len(versions)-1].kvno
			shown.Version = slices.ContainsFunc(versions, func(v generation) bool { return v.kvno == what.kvno })
		}
		s.Missed = append(s.Missed, shown)
	}
	slices.SortFunc(s.Missed, func(a, b Missed) int {
		return cmp.Or(b.Last.Compare(a.Last), strings.Compare(a.Principal, b.Principal), cmp.Compare(a.KVNO, b.KVNO), cmp.Compare(a.Enctype, b.Enctype))
	})
	return s
}

// Missed notes that no key of a ring has opened a ticket that says it is for a server, and encrypted
// with a key of that version and type.
func (k *Keytab) Missed(r *Ring, server []byte, kvno uint32, et etype.ID, now time.Time) {
	k.missed.note(r, server, kvno, et, now)
}

// life is the longest ticket life to assume.
func (r *Ring) life() time.Duration {
	life := UsualLife
	for i := range r.keys {
		life = max(life, time.Duration(r.keys[i].Use.Longest())*time.Second)
	}
	return life
}

// generation is what there is to say of the keys of one version of a principal.
type generation struct {
	kvno      uint32
	timestamp uint32 // of the one written last
	pending   bool
	enctypes  []etype.ID
	here      int64 // the latest of them
	since     int64 // the earliest time at which the KDC is known to have had it
	initiated int64
}

// versions returns those of a principal, the newest last.
func (r *Ring) versions(principal string) (list []generation) {
	p := r.byName[principal]
	if p == nil {
		return nil
	}
	at := make(map[uint32]int)
	for i := range p.slots {
		s := &p.slots[i]
		n, ok := at[s.kvno]
		if !ok {
			n = len(list)
			at[s.kvno], list = n, append(list, generation{kvno: s.kvno, pending: s.pending})
		}
		v := &list[n]
		v.timestamp, v.here = max(v.timestamp, s.timestamp), max(v.here, s.key.Use.Here)
		v.initiated = max(v.initiated, s.key.Use.LastInitiated())
		if since := s.key.Use.Since(); since != 0 && (v.since == 0 || since < v.since) {
			v.since = since
		}
		if !slices.Contains(v.enctypes, s.enctype) {
			v.enctypes = append(v.enctypes, s.enctype)
		}
	}
	slices.SortStableFunc(list, func(a, b generation) int {
		second := slot{kvno: b.kvno, timestamp: b.timestamp}
		if second.newer(&slot{kvno: a.kvno, timestamp: a.timestamp}) {
			return -1
		}
		return 1
	})
	return list
}

// state returns how the keys are, in file order.
func (r *Ring) state(now time.Time, life, skew time.Duration) []KeyState {
	list := make([]KeyState, len(r.keys))
	byName := make(map[string][]generation, len(r.byName))
	for i := range r.keys {
		k := &r.keys[i]
		versions, ok := byName[k.Principal]
		if !ok {
			versions = r.versions(k.Principal)
			byName[k.Principal] = versions
		}
		s := &list[i]
		*s = KeyState{
			Principal: wire.Shown(k.Principal), KVNO: k.KVNO, Enctype: k.Key.Enctype(), Written: moment(int64(k.Timestamp)), Here: moment(k.Use.Here),
			Accepted: moment(k.Use.LastAccepted()), Until: moment(k.Use.Until()), Initiated: moment(k.Use.LastInitiated()), Pending: k.Pending,
		}
		if k.Pending {
			s.Prune = PruneNewest
			continue
		}
		if k.Previous {
			s.Prune, s.Why = r.kept(k, now)
			continue
		}
		versions = slices.DeleteFunc(slices.Clone(versions), func(v generation) bool { return v.pending })
		own := slices.IndexFunc(versions, func(v generation) bool { return v.kvno == k.KVNO })
		s.Prune, s.Why = prune(k, versions[own:], now, life, skew)
	}
	return list
}

// kept says until when a key store keeps a previous key, which nobody else prunes.
func (r *Ring) kept(k *etype.ServiceKey, now time.Time) (Verdict, string) {
	if k.Until == 0 {
		return PruneNo, "the store keeps it for tickets from before"
	}
	for _, p := range r.previous() {
		if _, soon := p.Ending(now); soon && p.KVNO == k.KVNO {
			return PruneNo, fmt.Sprintf("STILL IN USE, and the store takes it away at %s", shown(k.Until))
		}
	}
	return PruneNo, fmt.Sprintf("the store keeps it until %s", shown(k.Until))
}

// prune says whether a key can be taken out of its keytab: whether there may still be tickets that
// only it opens. versions are the principal's from the key's own on.
//
// A KDC that has a newer version gives out no more tickets for this one. So when the daemon knows
// since when the KDC has had a newer one, and no ticket lives for as long as that is ago, all
// tickets of this version have come to their end, be it that they were never here. When a key came
// into the keytab does not say that by itself, since it may come there before the KDC has it.
func prune(k *etype.ServiceKey, versions []generation, now time.Time, life, skew time.Duration) (Verdict, string) {
	own, newer := &versions[0], versions[1:]
	switch {
	case len(newer) == 0:
		return PruneNewest, ""
	case own.kvno == 0:
		return PruneUnknown, "an entry of version 0 serves tickets of every version"
	}
	next, newest := &newer[0], &newer[len(newer)-1]
	for _, et := range own.enctypes {
		if !slices.Contains(newest.enctypes, et) {
			return PruneNo, fmt.Sprintf("kvno %d is not here for %v: have it written for every type that the KDC has it for", newest.kvno, et)
		}
	}
	var since int64 // the KDC has had a newer one
	var initiated int64
	for i := range newer {
		if at := newer[i].since; at != 0 && (since == 0 || at < since) {
			since = at
		}
		initiated = max(initiated, newer[i].initiated)
	}
	if last := k.Use.LastInitiated(); last > next.here && last > initiated {
		return PruneNo, fmt.Sprintf("the KDC took it from this host at %s, when kvno %d was here", shown(last), next.kvno)
	}
	if until := k.Use.Until(); !now.After(moment(until).Add(skew)) {
		return PruneNo, fmt.Sprintf("it has opened a ticket that is valid until %s", shown(until))
	}
	written := cmp.Or(int64(next.timestamp), next.here)
	if end := moment(written).Add(life + skew); !now.After(end) {
		return PruneNo, fmt.Sprintf("kvno %d was written at %s only: a ticket from before that may be valid until %s, %s", next.kvno, shown(written), end.UTC().Format(time.RFC3339), assumed(life, skew))
	}
	if since == 0 {
		return PruneUnknown, fmt.Sprintf("no newer one has been used here since %s, so this daemon cannot know whether the KDC has it", shown(next.here))
	}
	if end := moment(since).Add(life + skew); !now.After(end) {
		return PruneUnknown, fmt.Sprintf("that the KDC has a newer one this daemon knows for the time from %s on: ask again after %s, %s", shown(since), end.UTC().Format(time.RFC3339), assumed(life, skew))
	}
	return PruneSafe, fmt.Sprintf("the KDC has had a newer one since %s at least, and every ticket from before that has ended, %s", shown(since), assumed(life, skew))
}

// assumed says on what a verdict rests.
func assumed(life, skew time.Duration) string {
	if life > UsualLife {
		return fmt.Sprintf("if no ticket lives longer than the %v of the longest one seen here, and clocks differ by %v at most", life, skew)
	}
	return fmt.Sprintf("if no ticket lives longer than %v, which is assumed, and clocks differ by %v at most", life, skew)
}

// moment is a time in Unix seconds, of which 0 is none.
func moment(seconds int64) time.Time {
	if seconds == 0 {
		return time.Time{}
	}
	return time.Unix(seconds, 0)
}

// shown writes a time in Unix seconds.
func shown(seconds int64) string { return moment(seconds).UTC().Format(time.RFC3339) }
