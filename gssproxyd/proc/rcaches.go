package proc

import (
	"os"
	"sync"

	"gssproxyd/mech/krb5"
	"gssproxyd/mech/krb5/rcache"
)

// rcaches are the replay caches in use, by name. They stay open while the daemon runs: services that share one must
// share its lock, and a reload must not lose a moment of it.
type rcaches struct {
	mu     sync.Mutex
	byName map[string]*rcache.Cache
}

// open returns the replay cache of a name.
func (r *rcaches) open(name string) (krb5.ReplayCache, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if c := r.byName[name]; c != nil {
		return c, nil
	}
	c, err := rcache.Open(name, os.Getenv)
	if err != nil {
		return nil, err
	}
	if r.byName == nil {
		r.byName = make(map[string]*rcache.Cache)
	}
	r.byName[name] = c
	return c, nil
}

func (r *rcaches) close() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, c := range r.byName {
		c.Close()
	}
	r.byName = nil
}
