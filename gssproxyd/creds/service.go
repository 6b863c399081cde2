package creds

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"sync/atomic"

	"gssproxyd/audit"
	"gssproxyd/conf"
	"gssproxyd/keytab"
	"gssproxyd/keytab/seal"
	"gssproxyd/limits"
	"gssproxyd/mech/krb5"
	"gssproxyd/mech/krb5/ccache"
	"gssproxyd/mech/krb5/etype"
	"gssproxyd/mech/krb5/kdc"
	"gssproxyd/mech/krb5/krb5conf"
	"gssproxyd/mech/krb5/localname"
	"gssproxyd/mech/krb5/rcache"
	"gssproxyd/phase"
)

// shared is what services have in common, whatever configuration is in force.
type shared struct {
	box      *seal.Box
	users    conf.Users
	limits   *limits.Limits
	log      *Log
	record   func(context.Context, *audit.Event) error
	phases   *phase.Clock
	keytabs  keytab.Set
	stores   Stores
	keyrings *ccache.Keyrings
	rcaches  rcaches
	logins   *logins
	room     room
	closing  atomic.Bool
}

// Service is a configured service with what its cred_store names, opened.
type Service struct {
	*conf.Service
	Krb5         *krb5conf.Config
	LocalNames   *localname.Rules
	PrincipalMap map[string]string // users by principal, as principal_map has them

	config     *conf.Config
	restricted bool // there may be something that its callers may not do
	counted    bool // their calls count for these
	rates      [limits.Rates]limits.Rate
	enctypes   []etype.ID                // that contexts may have; nil if they may have any
	entries    []func() *conf.Permission // what the entries of key stores say that it has keys of: then the four above are without that

	*shared
	kdc       *kdc.Client
	memory    *ccache.Memory // tickets that have no cache elsewhere; its own, so that no other service's can push them out
	kcmSocket string         // as krb5.conf has it
	fixed     *store         // the store, where it is the same for every caller

	mu     sync.Mutex
	stores map[uint32]*store // by uid, where cred_store has substitutions
	closed bool
}

// store is one opened credential store: cred_store for one target uid, or without one what libkrb5
// would use in this process's environment.
type store struct {
	keytab       *keytab.Keytab // to accept with, and the service's own; nil if a service that only initiates names none
	keytabNamed  bool           // cred_store names the keytab
	clientKeytab *keytab.Keytab // to initiate with; nil if there is none
	ccache       string         // name of the cache to initiate with; empty keeps tickets in memory
	replay       krb5.ReplayCache
}

func (s *store) close() {
	for _, k := range []*keytab.Keytab{s.keytab, s.clientKeytab} {
		if k != nil {
			k.Close()
		}
	}
}

// maxStores bounds the stores a service keeps open for distinct uids; beyond it an arbitrary one
// makes room.
const maxStores = 1024

// store returns the credential store for a target uid. It opens files only for the first caller
// with that uid, and no other caller waits for that. users says what the uid's name is, where
// cred_store has it.
func (s *Service) store(uid uint32, users conf.Users) (*store, error) {
	s.mu.Lock()
	st := s.stores[uid]
	s.mu.Unlock()
	if st != nil {
		return st, nil
	}
	st, err := s.open(uid, users)
	if err != nil {
		return nil, err
	}
	kept, gone := s.keep(uid, st)
	if gone != nil {
		gone.close()
	}
	return kept, nil
}

// keep remembers a store for a uid, unless there is one by now. It returns the one to use, and the
// one to close.
func (s *Service) keep(uid uint32, st *store) (use, gone *store) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if first := s.stores[uid]; first != nil {
		return first, st
	}
	if s.closed {
		// The configuration was replaced while this call ran: serve it, keep nothing. What was read
		// stays readable after Close; only the watching ends.
		return st, st
	}
	if len(s.stores) >= maxStores {
		gone = dropAny(s.stores)
	}
	s.stores[uid] = st
	return st, gone
}

// storeNames returns, by the keys of cred_store, the names of what a store is made of: those that
// its elements have, the last one of a key, and for the rest those that libkrb5 would take in this
// process's environment.
func storeNames(s *conf.Service, k *krb5conf.Config, elements []conf.KeyValue) map[string]string {
	names := make(map[string]string, len(elements))
	for _, e := range elements {
		names[e.Key] = e.Value
	}
	names["rcache"] = cmp.Or(names["rcache"], rcache.DefaultName(os.Getenv, k.DefaultRcacheName))
	if s.CredUsage != conf.UsageInitiate {
		names["keytab"] = cmp.Or(names["keytab"], os.Getenv("KRB5_KTNAME"), k.DefaultKeytabName)
	}
	if s.CredUsage != conf.UsageAccept && len(elements) == 0 {
		names["client_keytab"] = cmp.Or(os.Getenv("KRB5_CLIENT_KTNAME"), k.DefaultClientKeytabName)
		names["ccache"] = ccache.DefaultName(os.Getenv, k.DefaultCCacheName)
	}
	return names
}

// open opens what cred_store names for a target uid, or the defaults.
func (s *Service) open(uid uint32, users conf.Users) (*store, error) {
	elements, err := s.Store(uid, users)
	if err != nil {
		return nil, err
	}
	names := storeNames(s.Service, s.Krb5, elements)
	st := &store{ccache: names["ccache"]}
	needed := map[string]bool{}
	for i, e := range elements {
		needed[e.Key] = !s.CredStore[i].Varies() // those of users, and defaults, come when they come
		if e.Key == "keytab" {
			st.keytabNamed = e.Value != ""
		}
	}
	if st.replay, err = s.rcaches.open(names["rcache"]); err != nil {
		return nil, err
	}
	for key, kt := range map[string]**keytab.Keytab{"keytab": &st.keytab, "client_keytab": &st.clientKeytab} {
		open := s.keytabs.OpenOptional
		if needed[key] {
			open = s.keytabs.Open
		}
		if name := names[key]; name != "" {
			if *kt, err = open(name); err != nil {
				st.close()
				return nil, err
			}
		}
	}
	return st, nil
}

// close closes the stores. Calls in flight still have them.
func (s *Service) close() {
	s.mu.Lock()
	s.closed = true
	stores := s.stores
	s.stores = nil
	s.mu.Unlock()
	// Not under the lock: a keytab on a file system that hangs takes seconds to close.
	for _, st := range stores {
		st.close()
	}
	if s.fixed != nil {
		s.fixed.close()
	}
}

// cacheName is a name that no other cache has: in memory each service has caches of its own.
func (s *Service) cacheName(cache ccache.Cache) string {
	name := cache.Name()
	if strings.HasPrefix(name, memoryPrefix) {
		name = s.Name + " " + name
	}
	return name
}

const memoryPrefix = "MEMORY:"

// LocalUser returns which user of this host a principal is, by principal_map or the rules of krb5.conf,
// and which line says so. What rule is empty for is told by the error.
func (s *Service) LocalUser(principal string) (user, rule string, err error) {
	if user, ok := s.PrincipalMap[principal]; ok {
		return user, "principal_map", nil
	}
	p, err := krb5.ParsePrincipal(principal, "")
	if err != nil {
		return "", "", err
	}
	return s.LocalNames.Which(p)
}

// compilePrincipalMap makes an index of principal_map, with principals as the mechanism writes
// them.
func compilePrincipalMap(list []conf.PrincipalUser) (map[string]string, error) {
	m := make(map[string]string, len(list))
	for _, e := range list {
		p, err := krb5.ParsePrincipal(e.Principal, "")
		if err == nil && p.Realm == "" {
			err = errors.New("the principal has no realm")
		}
		if err != nil {
			return nil, fmt.Errorf("principal_map = %s:%s: %w", e.Principal, e.User, err)
		}
		m[p.String()] = e.User
	}
	return m, nil
}

// rcaches are the replay caches in use, by name. They stay open while the daemon runs: services
// that share one must share its lock, and a reload must not lose a moment of it.
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
	r.byName[name] = c
	return c, nil
}

// size returns how long their files are together.
func (r *rcaches) size() (sum int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, c := range r.byName {
		sum += c.Size()
	}
	return sum
}

func (r *rcaches) close() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, c := range r.byName {
		c.Close()
	}
	clear(r.byName)
}

// ReplayBytes returns how long the files of the replay caches are together, as far as this process has
// written to them.
func (h *Holder) ReplayBytes() int64 { return h.rcaches.size() }
