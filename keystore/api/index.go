package api

import (
	"slices"
	"sync"

	"gssproxyd/keystore"
)

// index is what is known of all entries without asking the backend, and who waits for a change of
// which: one watch of the store serves all.
type index struct {
	mu      sync.Mutex
	entries map[string]known            // by principal
	aliases map[string]string           // the principal of an entry, by each alias
	waits   map[string]map[*waiter]bool // by principal or alias
}

// known is what is known of an entry.
type known struct {
	principal string
	aliases   []string
	mark      keystore.Mark
	policy    keystore.Policy
}

// waiter is one who waits.
type waiter struct {
	woken chan struct{} // has one when something of what it waits for has changed
	of    []Have
}

func newIndex() *index {
	return &index{entries: make(map[string]known), aliases: make(map[string]string), waits: make(map[string]map[*waiter]bool)}
}

// put notes a change, and wakes who waits for it.
func (x *index) put(e *keystore.Entry) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.rename(e)
	x.entries[e.Principal] = known{e.Principal, e.Aliases, e.Mark, e.Policy}
	x.wake(e.Principal)
}

// rename notes the aliases of an entry, and wakes who waits for one. Of two entries that have a name,
// as a list that is read anew can show for a moment, the one that was changed later has it.
func (x *index) rename(e *keystore.Entry) {
	for _, a := range x.entries[e.Principal].aliases {
		if x.aliases[a] == e.Principal && !slices.Contains(e.Aliases, a) {
			delete(x.aliases, a)
			x.wake(a)
		}
	}
	for _, a := range e.Aliases {
		if of := x.aliases[a]; of == "" || of == e.Principal || x.entries[of].mark.Compare(e.Mark) < 0 {
			x.aliases[a] = e.Principal
			x.wake(a)
		}
	}
}

func (x *index) wake(name string) {
	for w := range x.waits[name] {
		select {
		case w.woken <- struct{}{}:
		default:
		}
	}
}

// entry returns what is known of an entry, by its principal or an alias.
func (x *index) entry(name string) (k known, there bool) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if of := x.aliases[name]; of != "" {
		name = of
	}
	k, there = x.entries[name]
	return k, there
}

// permitted returns the principals of entries that a host may have, with their marks.
func (x *index) permitted(host string) (list []Marked) {
	x.mu.Lock()
	defer x.mu.Unlock()
	for p, k := range x.entries {
		if k.policy.Permits(host) {
			list = append(list, Marked{p, k.mark})
		}
	}
	return list
}

// wait has changes of principals wake who is returned, until leave.
func (x *index) wait(principals ...Have) *waiter {
	w := &waiter{make(chan struct{}, 1), principals}
	x.mu.Lock()
	defer x.mu.Unlock()
	for _, p := range principals {
		if x.waits[p.Principal] == nil {
			x.waits[p.Principal] = make(map[*waiter]bool)
		}
		x.waits[p.Principal][w] = true
	}
	return w
}

func (x *index) leave(w *waiter) {
	x.mu.Lock()
	defer x.mu.Unlock()
	for _, p := range w.of {
		if delete(x.waits[p.Principal], w); len(x.waits[p.Principal]) == 0 {
			delete(x.waits, p.Principal)
		}
	}
}
