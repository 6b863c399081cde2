package api

import (
	"sync"

	"gssproxyd/keystore"
)

// index is what is known of all entries and hosts without asking the backend, and who waits for a
// change of which: one watch of the store serves all.
type index struct {
	mu      sync.Mutex
	entries map[string]known // by principal
	hosts   map[string]*keystore.Host
	waits   map[string]map[*waiter]bool // by principal, or by host with a NUL before it
	users   map[use]bool                // that the store knows of
}

// use is that a host has use for an entry.
type use struct{ host, principal string }

// known is what is known of an entry.
type known struct {
	mark   keystore.Mark
	policy keystore.Policy
}

// waiter is one who waits.
type waiter struct {
	woken chan struct{} // has one when something of what it waits for has changed
	keys  []string
}

func newIndex() *index {
	return &index{entries: make(map[string]known), hosts: make(map[string]*keystore.Host), waits: make(map[string]map[*waiter]bool), users: make(map[use]bool)}
}

// use notes that a host has use for an entry, and reports whether that is new.
func (x *index) use(host, principal string) bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	u := use{host, principal}
	if x.users[u] {
		return false
	}
	x.users[u] = true
	return true
}

func (x *index) unuse(host, principal string) {
	x.mu.Lock()
	defer x.mu.Unlock()
	delete(x.users, use{host, principal})
}

// put notes a change, and wakes who waits for it.
func (x *index) put(c keystore.Changed) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if e := c.Entry; e != nil {
		x.entries[e.Principal] = known{e.Mark, e.Policy}
		x.wake(e.Principal)
	}
	if h := c.Host; h != nil {
		if x.hosts[h.Name] = h; !h.Removed.IsZero() {
			delete(x.hosts, h.Name)
		}
		x.wake(hostKey(h.Name))
	}
}

func (x *index) wake(key string) {
	for w := range x.waits[key] {
		select {
		case w.woken <- struct{}{}:
		default:
		}
	}
}

// hostKey is no principal.
func hostKey(name string) string { return "\x00" + name }

// host returns a host that is enrolled, or nil.
func (x *index) host(name string) *keystore.Host {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.hosts[name]
}

// entry returns what is known of an entry.
func (x *index) entry(principal string) (k known, there bool) {
	x.mu.Lock()
	defer x.mu.Unlock()
	k, there = x.entries[principal]
	return k, there
}

// permitted returns the principals of entries that a host may have, with their marks.
func (x *index) permitted(host string) (list []Have) {
	x.mu.Lock()
	defer x.mu.Unlock()
	for p, k := range x.entries {
		if k.policy.Permits(host) {
			list = append(list, Have{p, k.mark})
		}
	}
	return list
}

// wait has changes of principals, and of a host, wake who is returned, until leave.
func (x *index) wait(host string, principals []Have) *waiter {
	w := &waiter{woken: make(chan struct{}, 1), keys: []string{hostKey(host)}}
	for _, p := range principals {
		w.keys = append(w.keys, p.Principal)
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	for _, key := range w.keys {
		if x.waits[key] == nil {
			x.waits[key] = make(map[*waiter]bool)
		}
		x.waits[key][w] = true
	}
	return w
}

func (x *index) leave(w *waiter) {
	x.mu.Lock()
	defer x.mu.Unlock()
	for _, key := range w.keys {
		if delete(x.waits[key], w); len(x.waits[key]) == 0 {
			delete(x.waits, key)
		}
	}
}
