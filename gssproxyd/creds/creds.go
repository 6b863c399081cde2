// Package creds is the credentials that calls use: whom a call acts for, with which keys and
// tickets, and what of them is kept where or goes to the client sealed. It knows neither the
// protocol nor its procedures: a call is a [Caller] here.
//
// A [Holder] has what lasts, and the [Generation] in force: one reading of the configuration with
// the keytabs and caches that it names. A client's request leads to a target (whom the call acts
// for), which leads to a [Credential] to initiate with or an [Acceptor]. What the client gets of
// either is a [Handle]: the daemon keeps nothing for its clients.
//
// A failure never becomes another identity: a credential is replaced, renewed or continued only by
// one of the same principal that was obtained in the same way. That rule is why the package is as
// large as it is: acquiring, renewing, handles and S4U decide by the same unexported facts (whose
// store, which way, whose successor), which no other package is to see or to make up. Files are in
// one order, and use those below only:
//
//	keytabs.go                                   how the keytabs are that are open
//	creds.go, check.go                           a configuration: loaded, and looked through
//	acquire.go, initiate.go, accept.go           what procedures ask for
//	continue.go, s4u.go, find.go, refresh.go     how a credential is got, in that order
//	credential.go, handle.go                     what there is then, and what the client keeps of it
//	caller.go                                    who calls, and whom the call acts for
//	keys.go                                      keys: logging in with them, and what becomes of them
//	service.go                                   what a service has open
//	exchanges.go, logins.go, room.go, snapshots.go, log.go, errors.go: KDCs, memory, the log
package creds

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync/atomic"

	"gssproxyd/audit"
	"gssproxyd/conf"
	"gssproxyd/keytab"
	"gssproxyd/keytab/seal"
	"gssproxyd/limits"
	"gssproxyd/mech/krb5/ccache"
	"gssproxyd/mech/krb5/etype"
	"gssproxyd/mech/krb5/kdc"
	"gssproxyd/mech/krb5/krb5conf"
	"gssproxyd/mech/krb5/localname"
	"gssproxyd/mech/krb5/rcache"
	"gssproxyd/phase"
)

// Holder holds credentials. It is safe for concurrent use; Load replaces the configuration under
// running calls, which finish with the one they began with.
type Holder struct {
	shared
	gate    *limits.Gate // to KDCs
	current atomic.Pointer[Generation]
}

// Options is what a Holder is made of.
type Options struct {
	Box    *seal.Box      // seals handles
	Limits *limits.Limits // who pays for what a call takes

	// Users is the system's user database as callers ask it. With a method For, as *nss.Client has
	// one, each call asks what that returns for its context.
	Users conf.Users

	// Record is told of calls that are only observed to be beyond what is permitted; nil: nobody is.
	Record func(context.Context, *audit.Event) error

	// Stores are the key stores that configurations name; nil: there are none.
	Stores Stores

	Phases *phase.Clock // times the phases of calls; nil: nobody wants to know

	Unseal func(content []byte) (etype.Secret, error) // opens sealed keytabs, see [keytab.Reader]; nil: there are none

	Log *Log
}

// Stores are the key stores, as services see them.
type Stores interface {
	keytab.Stores

	// Permission returns who says what the callers of services that have the keys of an entry may do,
	// as it is whenever that is asked.
	Permission(store, principal string) func() *conf.Permission

	// Await waits until it is known whether there are keys of an entry of which nothing has come yet, no
	// longer than ctx, nor than a call may wait, nor where there is no hope of that.
	Await(ctx context.Context, store, principal string)
}

// New returns a Holder without a configuration.
func New(o Options) *Holder {
	if o.Record == nil {
		o.Record = func(context.Context, *audit.Event) error { return nil }
	}
	h := &Holder{shared: shared{
		record: o.Record, phases: o.Phases, box: o.Box, users: o.Users, limits: o.Limits, log: o.Log, rcaches: rcaches{byName: make(map[string]*rcache.Cache)},
		keytabs: keytab.Set{Log: o.Log.Logger, Reader: keytab.Reader{Unseal: o.Unseal}}, keyrings: ccache.NewKeyrings(), logins: newLogins(),
	}}
	h.keytabs.Changed, h.stores = h.keysChanged, o.Stores
	if o.Stores != nil {
		h.keytabs.Stores = o.Stores
	}
	h.room.budget, h.room.snapshots.budget, h.room.turns, h.room.dropOldest = o.Limits.Cache, o.Limits.Cache, o.Limits.Turns, h.dropOldest
	h.gate = limits.NewGate(o.Limits.Exchanges, requestsAtOnce, requestEvery, requestWait)
	return h
}

// Load puts a configuration and a krb5.conf in force, opening what the services' cred_store lines
// name. On an error nothing changes. Keytabs that the former configuration used too stay open and
// keep their keys, services that it had too keep their tickets.
func (h *Holder) Load(c *conf.Config, k *krb5conf.Config) error {
	g, err := h.newGeneration(c, k)
	if err != nil {
		return err
	}
	old := h.current.Swap(g)
	if old != nil {
		old.close(g)
	}
	return nil
}

// Close releases keytabs and caches, and ends an exchange with a KDC that a call has left behind.
// No call may be in flight.
func (h *Holder) Close() {
	h.closing.Store(true)
	h.logins.close()
	if g := h.current.Swap(nil); g != nil {
		g.close(nil)
	}
	h.rcaches.close()
	h.keyrings.Close()
}

// Current returns the configuration in force, nil until Load has succeeded.
func (h *Holder) Current() *Generation { return h.current.Load() }

// dropOldest is that of the room for caches.
func (h *Holder) dropOldest(whose func(payer uint32) bool) bool {
	if g := h.Current(); g != nil {
		for _, s := range g.Services {
			if s.memory.DropOldest(whose) {
				return true
			}
		}
	}
	return false
}

// Generation is one reading of the configuration: what a reload replaces as a whole. Calls in
// flight keep the one they were matched with.
type Generation struct {
	Services map[*conf.Service]*Service
}

func (h *Holder) newGeneration(c *conf.Config, k *krb5conf.Config) (*Generation, error) {
	g := &Generation{Services: make(map[*conf.Service]*Service, len(c.Services))}
	localNames, client := localname.New(k), &kdc.Client{
		Conf: k, Now: h.log.Now, Log: slog.New(metered{h.log.Handler(), h.log.Lines}), Timeout: kdcTimeout, Trace: h.log.Trace,
		Admission: newExchanges(h.gate, h.log.Now, h.phases),
	}
	kcmSocket, _ := k.Get("libdefaults", "kcm_socket")
	for _, err := range localNames.Check() {
		h.log.Warn("krb5.conf: a rule for local names does not apply", "error", err)
	}
	var errs []error
	for _, cs := range c.Services {
		s := &Service{Service: cs, config: c, restricted: c.Restricts(cs), enctypes: enctypes(c.Enforced(cs)), Krb5: k, LocalNames: localNames, shared: &h.shared, kdc: client, kcmSocket: kcmSocket, stores: make(map[uint32]*store)}
		s.rates, s.counted = callRates(c, cs)
		for _, e := range cs.CredStore {
			if store, principal, ok := e.Entry(); ok && h.stores != nil {
				s.entries = append(s.entries, h.stores.Permission(store, principal))
				s.restricted, s.counted = true, true
			}
		}
		if former := h.Current().named(cs.Name); former != nil {
			s.memory = former.memory
		} else {
			s.memory = &ccache.Memory{Now: h.log.Now, Payers: &h.room}
		}
		g.Services[cs] = s
		var err error
		if s.PrincipalMap, err = compilePrincipalMap(cs.PrincipalMap); err == nil && !slices.ContainsFunc(cs.CredStore, conf.KeyValue.Varies) {
			s.fixed, err = s.open(cs.EUID, h.users) // else opened when the first caller comes
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("service %q: %w", cs.Name, err))
		}
	}
	if len(errs) > 0 {
		for _, s := range g.Services {
			s.close()
		}
		return nil, errors.Join(errs...)
	}
	return g, nil
}

// named returns the service of a name, nil if there is none.
func (g *Generation) named(name string) *Service {
	if g != nil {
		for _, s := range g.Services {
			if s.Name == name {
				return s
			}
		}
	}
	return nil
}

// close closes what the services have open, and drops the tickets in memory of those that the next
// generation has no more, and the snapshots.
func (g *Generation) close(next *Generation) {
	for _, s := range g.Services {
		s.close()
		if next.named(s.Name) == nil {
			s.memory.Close()
			s.room.snapshots.clear(func(kept) bool { return true })
		}
	}
}
