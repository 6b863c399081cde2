package proc

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"

	"gssproxyd/conf"
	"gssproxyd/keytab"
	"gssproxyd/mech/krb5"
	"gssproxyd/mech/krb5/ccache"
	"gssproxyd/mech/krb5/kdc"
	"gssproxyd/mech/krb5/krb5conf"
)

// generation is one reading of the configuration: what a reload replaces as a whole. Calls in flight keep the one
// they were matched with.
type generation struct {
	conf     *conf.Config
	krb5     *krb5conf.Config
	services map[*conf.Service]*service
}

// service is a configured service with what its cred_store names, opened.
type service struct {
	*conf.Service
	p          *Procedures
	krb5       *krb5conf.Config
	kdc        *kdc.Client
	localNames *krb5.LocalNames
	fixed      *store // the store, where it is the same for every caller

	principalMap map[string]string // users by principal, as principal_map has them

	mu     sync.Mutex
	stores map[uint32]*store // by uid, where cred_store has substitutions
	closed bool
}

// store is one opened credential store: cred_store for one target uid, or without one what libkrb5 would use in this
// process's environment.
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

func (p *Procedures) newGeneration(c *conf.Config, k *krb5conf.Config) (*generation, error) {
	g := &generation{conf: c, krb5: k, services: make(map[*conf.Service]*service, len(c.Services))}
	localNames, client := krb5.NewLocalNames(k), &kdc.Client{Conf: k, Now: p.now, Log: p.log, Timeout: kdcTimeout}
	for _, err := range localNames.Check() {
		p.log.Warn("krb5.conf: a rule for local names does not apply", "error", err)
	}
	var errs []error
	for _, cs := range c.Services {
		s := &service{Service: cs, p: p, krb5: k, kdc: client, localNames: localNames}
		g.services[cs] = s
		var err error
		if s.principalMap, err = compilePrincipalMap(cs.PrincipalMap); err != nil {
			errs = append(errs, fmt.Errorf("service %q: %w", cs.Name, err))
			continue
		}
		if perUID(cs.CredStore) {
			continue // opened when the first caller comes
		}
		if s.fixed, err = s.open(cs.EUID); err != nil {
			errs = append(errs, fmt.Errorf("service %q: %w", cs.Name, err))
		}
	}
	if len(errs) > 0 {
		g.close()
		return nil, errors.Join(errs...)
	}
	return g, nil
}

func (g *generation) close() {
	for _, s := range g.services {
		s.mu.Lock()
		s.closed = true
		for uid, st := range s.stores {
			st.close()
			delete(s.stores, uid)
		}
		s.mu.Unlock()
		if s.fixed != nil {
			s.fixed.close()
		}
	}
}

// maxStores bounds the stores a service keeps open for distinct uids; beyond it an arbitrary one makes room.
const maxStores = 1024

// store returns the credential store for a target uid. It opens files only for the first caller with that uid, and no
// other caller waits for that.
func (s *service) store(uid uint32) (*store, error) {
	if s.fixed != nil {
		return s.fixed, nil
	}
	s.mu.Lock()
	st := s.stores[uid]
	s.mu.Unlock()
	if st != nil {
		return st, nil
	}
	st, err := s.open(uid)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if first := s.stores[uid]; first != nil {
		st.close()
		return first, nil
	}
	if s.closed {
		// The configuration was replaced while this call ran: serve it, keep nothing. What was read stays readable
		// after Close; only the watching ends.
		st.close()
		return st, nil
	}
	if len(s.stores) >= maxStores {
		for other, old := range s.stores {
			old.close()
			delete(s.stores, other)
			break
		}
	}
	if s.stores == nil {
		s.stores = make(map[uint32]*store)
	}
	s.stores[uid] = st
	return st, nil
}

// perUID tells whether the store differs from caller to caller.
func perUID(elements []conf.KeyValue) bool {
	for _, e := range elements {
		if strings.Contains(e.Value, "%U") || strings.Contains(e.Value, "%u") {
			return true
		}
	}
	return false
}

// open opens what cred_store names for a target uid, or the defaults: those that libkrb5 would take in this process's
// environment.
func (s *service) open(uid uint32) (*store, error) {
	elements, err := s.Store(uid, s.p.users)
	if err != nil {
		return nil, err
	}
	named := make(map[string]string, len(elements))
	for _, e := range elements {
		named[e.Key] = e.Value // the last one counts
	}
	st := &store{ccache: named["ccache"], keytabNamed: named["keytab"] != ""}
	if st.ccache == "" && len(elements) == 0 {
		st.ccache = ccache.DefaultName(os.Getenv, s.krb5.DefaultCCacheName)
	}
	if st.replay, err = s.p.rcaches.open(named["rcache"], s.krb5); err != nil {
		return nil, err
	}
	accepts, initiates := s.CredUsage != conf.UsageInitiate, s.CredUsage != conf.UsageAccept
	if named["keytab"] != "" || accepts {
		if st.keytab, err = s.p.keytabs.Open(cmp.Or(named["keytab"], os.Getenv("KRB5_KTNAME"), s.krb5.DefaultKeytabName)); err != nil {
			return nil, err
		}
	}
	if named["client_keytab"] != "" || initiates && len(elements) == 0 {
		if st.clientKeytab, err = s.p.keytabs.Open(cmp.Or(named["client_keytab"], os.Getenv("KRB5_CLIENT_KTNAME"), s.krb5.DefaultClientKeytabName)); err != nil {
			st.close()
			return nil, err
		}
	}
	return st, nil
}
