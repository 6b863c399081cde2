package creds

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"time"

	"gssproxyd/conf"
	"gssproxyd/limits"
	"gssproxyd/mech"
	"gssproxyd/mech/krb5"
	"gssproxyd/mech/krb5/ccache"
	"gssproxyd/mech/krb5/kdc"
	"gssproxyd/mech/reason"
)

// Credential is a credential to initiate with: whose tickets, and where they are. Drop ends its
// use.
type Credential struct {
	Client krb5.Principal

	asked   krb5.Principal // by which name a keytab has keys of Client; the zero value if that is the KDC's name, too
	service krb5.Principal // the service that has evidence tickets of Client's; the zero value if they are Client's own
	cache   ccache.Cache
	uid     uint32 // whose store it is from
	way     way
	seen    *snapshot // what the cache holds; nil if that is not known
	expires uint32    // of the ticket everything else is got with

	// What a new ticket-granting ticket must be of: Client itself where it is a handle's, what a
	// lost one was, or nil.
	ofHandle  bool
	successor *successor

	// temporary says that the cache was made for this call, in memory of its own. What is to last
	// goes into a handle, tickets and all.
	temporary bool
}

// newTemporary makes a credential of client for this call, with a cache whose name begins with
// kind.
func (c *Caller) newTemporary(ctx context.Context, kind string, way way, client krb5.Principal, tickets ...*krb5.Credential) (*Credential, error) {
	m := &ccache.Memory{Now: c.Service.log.Now}
	cr := &Credential{Client: client, uid: c.Peer.UID, way: way, cache: m.Open(kind + " " + rand.Text()), temporary: true}
	if err := cr.cache.Initialize(ctx, client, tickets...); err != nil {
		return nil, cacheError(err)
	}
	return cr, nil
}

// open opens the credential of a handle to initiate with. Tickets that came with the handle are put
// where they were, unless the daemon still has them there, perhaps refreshed since. Without any
// left, it has seen nothing.
func (c *Caller) open(ctx context.Context, h *Handle) (*Credential, error) {
	if err := c.permitHandle(h); err != nil {
		return nil, err
	}
	cr := &Credential{uid: h.uid, way: h.way}
	if h.asked != "" {
		cr.asked = parseAsked(h.asked)
	}
	var err error
	if cr.Client, err = krb5.ParsePrincipal(h.Name, ""); err != nil {
		return nil, badCredential(err)
	}
	if h.service != "" {
		if cr.service, err = krb5.ParsePrincipal(h.service, ""); err != nil {
			return nil, badCredential(err)
		}
	}
	if h.lent {
		m := &ccache.Memory{Now: c.Service.log.Now}
		cr.cache, cr.temporary = m.Open("lent "+rand.Text()), true // a handle made of it names the cache, and no other's
	} else {
		if cr.cache, err = c.resolver(h.uid).Open(ctx, h.cache); err != nil {
			return nil, badCredential(err)
		}
		if cr.seen, err = c.look(ctx, cr.cache, h.uid); err != nil {
			return nil, err
		}
	}
	if cr.seen == nil && len(h.tickets) > 0 {
		// The daemon has restarted since, or there was room for others only.
		_, tickets, err := ccache.ParseContent(h.tickets)
		if err != nil {
			return nil, badCredential(err)
		}
		if err := cr.cache.Initialize(ctx, cr.Client, tickets...); err != nil {
			for _, ticket := range tickets {
				ticket.Destroy()
			}
			return nil, cacheError(err)
		}
		if cr.seen, err = newSnapshot(cr.Client, tickets, c.Service.Krb5.DefaultRealm); err != nil {
			return nil, err
		}
	}
	if cr.seen != nil {
		if !cr.seen.client.Equal(cr.Client) {
			return nil, gone(cr) // and not to be written over either
		}
		cr.expires = uint32(cr.seen.expires)
	}
	cr.ofHandle = true
	return cr, nil
}

// Handle makes the handle of a credential to initiate with. Tickets in memory go with it.
func (cr *Credential) Handle(ctx context.Context, usage conf.Usage) (*Handle, error) {
	h := &Handle{Usage: usage, Name: cr.Client.String(), Expires: cr.expires, uid: cr.uid, way: cr.way, cache: cr.cache.Name()}
	if len(cr.asked.Components) > 0 {
		h.asked = cr.asked.String()
	}
	if cr.proxy() {
		h.service = cr.service.String()
	}
	if strings.HasPrefix(h.cache, memoryPrefix) {
		tickets, err := cr.cache.Credentials(ctx)
		if err != nil {
			return nil, cacheError(err)
		}
		h.tickets = ccache.AppendContent(nil, cr.Client, tickets)
		for _, ticket := range tickets {
			ticket.Destroy()
		}
	}
	return h, nil
}

// Drop ends the use of a credential by its call.
func (cr *Credential) Drop(ctx context.Context) {
	if cr.temporary {
		_ = cr.cache.Destroy(ctx) // there is nothing to be done if it is gone already
	}
}

// Find makes a credential the [kdc.TicketStore] that its tickets are taken from: as they were seen,
// even if the cache has made room for others meanwhile.
func (cr *Credential) Find(ctx context.Context, match func(*krb5.Credential) bool) (found []*krb5.Credential, err error) {
	if cr.seen != nil {
		for _, ticket := range cr.seen.creds {
			if match(ticket) {
				found = append(found, ticket.Clone())
			}
		}
		runtime.KeepAlive(cr.seen)
		return found, nil
	}
	tickets, err := cr.cache.Credentials(ctx)
	for _, ticket := range tickets {
		if match(ticket) {
			found = append(found, ticket)
		} else {
			ticket.Destroy()
		}
	}
	return found, err
}

// Update changes the cache.
func (cr *Credential) Update(ctx context.Context, drop func(*krb5.Credential) bool, add ...*krb5.Credential) error {
	return cr.cache.Update(ctx, drop, add...)
}

// findTicket returns the first ticket that match accepts, nil if there is none.
func findTicket(ctx context.Context, cr *Credential, match func(*krb5.Credential) bool) (*krb5.Credential, error) {
	first := false
	found, err := cr.Find(ctx, func(ticket *krb5.Credential) bool {
		is := !first && !ccache.IsConfig(ticket.Server) && match(ticket)
		first = first || is
		return is
	})
	if len(found) > 0 {
		return found[0], nil
	}
	if err != nil {
		return nil, cacheError(err)
	}
	return nil, nil
}

// Count is how many tickets a credential has.
func (cr *Credential) Count(ctx context.Context) int {
	tickets, _ := cr.cache.Credentials(ctx)
	for _, ticket := range tickets {
		ticket.Destroy()
	}
	return len(tickets)
}

// Shares reports whether a ticket is of the snapshot, and not the call's own.
func (cr *Credential) Shares(ticket *krb5.Credential) bool {
	return cr.seen != nil && slices.Contains(cr.seen.creds, ticket)
}

// startRealm is the realm whose ticket-granting ticket the others are got with.
func (cr *Credential) startRealm() string {
	switch {
	case cr.seen != nil && cr.seen.start != "":
		return cr.seen.start
	case cr.proxy():
		return cr.service.Realm // the evidence may be of a user from elsewhere
	}
	return cr.Client.Realm
}

// described says whose tickets these are, and where, unless that is in memory under a name that
// nobody has given.
func (cr *Credential) described() string {
	name := cr.cache.Name()
	if strings.HasPrefix(name, memoryPrefix) {
		return cr.Client.String()
	}
	return cr.Client.String() + " in " + name
}

// login is who the tickets are asked for with a key of a keytab: by that name the keytab has it.
func (cr *Credential) login() krb5.Principal {
	if len(cr.asked.Components) > 0 {
		return cr.asked
	}
	return cr.Client
}

// proxy reports whether the tickets are evidence for constrained delegation (S4U2Proxy).
func (cr *Credential) proxy() bool { return len(cr.service.Components) > 0 }

func expired(cr *Credential) *mech.Error {
	return mech.Errorf(mech.CredentialsExpired, mech.KRB5Minor(32), reason.TicketExpired, "Ticket expired: the credentials of %s", cr.described())
}

// gone refuses a handle whose tickets have come to their end, or are not there any more.
func gone(cr *Credential) error {
	e := expired(cr)
	e.Text += "; they cannot be got again in the way they were got: get new ones, and a new credential"
	return e
}

// Offset is how far the clock of the KDCs of a credential's realm is ahead of ours, as far as that
// is known.
func (c *Caller) Offset(cr *Credential) time.Duration { return c.Service.kdc.Offset(cr.startRealm()) }

// KDCTime is the time now as those KDCs have it.
func (c *Caller) KDCTime(cr *Credential) time.Time { return c.Now.Add(c.Offset(cr)) }

// resolver finds credential caches on behalf of a uid; the caller pays for reading them.
func (c *Caller) resolver(uid uint32) *ccache.Resolver {
	r := &struct { // one allocation: each call to initiate needs it
		resolver ccache.Resolver
		payer    reader
		uid      uint32
	}{payer: reader{&c.Service.room, c.Peer.UID}, uid: uid}
	r.resolver = ccache.Resolver{For: &r.uid, Payer: &r.payer, Memory: c.Service.memory, Keyrings: c.Service.keyrings, KCMSocket: c.Service.kcmSocket}
	return &r.resolver
}

// look returns what a cache holds, nil if it does not exist. Where it has to be read the call may
// wait for others that have its lock, and no longer has others wait for their turns.
func (c *Caller) look(ctx context.Context, cache ccache.Cache, uid uint32) (*snapshot, error) {
	all := &c.Service.room.snapshots
	key := snapshotKey{uid, c.Service.cacheName(cache)}
	if stamp, ok := ccache.StampOf(cache); ok {
		s, read, err := all.get(ctx, key, c.Peer.UID, stamp)
		if err != nil {
			return nil, cacheError(fmt.Errorf("%s: another call reads it: %w", cache.Name(), err))
		}
		if s != nil {
			return s, nil
		}
		defer read()
	}
	limits.EndTurn(ctx)
	got, err := c.read(ctx, cache, uid)
	if errors.Is(err, ccache.ErrNoCache) {
		all.remove(key)
		return nil, nil
	}
	if err != nil && (got == nil || len(got.Credentials) == 0) {
		return nil, cacheError(err)
	}
	s, err := newSnapshot(got.Client, got.Credentials, c.Service.Krb5.DefaultRealm)
	if err != nil {
		return nil, err
	}
	if s.stamp = got.Stamp; s.stamp != (ccache.Stamp{}) {
		all.add(key, s, c.Peer.UID, got.Charged, c.Now.Unix())
	}
	return s, nil
}

// read reads a cache.
func (c *Caller) read(ctx context.Context, cache ccache.Cache, uid uint32) (*ccache.Reading, error) {
	got, err := c.resolver(uid).Read(ctx, cache)
	if got != nil {
		c.charged += got.Charged
	}
	return got, err
}

// seenTicket returns the ticket for a target if the snapshot has it. Whatever is not plain is left
// to the KDC client, which looks into the cache itself.
func (c *Caller) seenTicket(cr *Credential, target krb5.Principal, opt kdc.TicketOptions) *krb5.Credential {
	if cr.seen == nil || cr.proxy() {
		return nil
	}
	now, till := c.KDCTime(cr).Unix(), opt.Till
	if cr.seen.tgt != nil {
		till = min(till, cr.seen.tgt.EndTime)
	}
	permitted := c.Service.Krb5.TGSEnctypes
	if opt.Enctypes != nil {
		permitted = c.Service.Krb5.PermittedEnctypes
	}
	for _, ticket := range cr.seen.creds {
		if int64(ticket.EndTime) > now && ticket.EndTime >= till && ticket.Flags&kdc.FlagInvalid == 0 && len(ticket.Ticket) > 0 &&
			!ticket.IsSKey && len(ticket.SecondTicket) == 0 && len(ticket.AuthData) == 0 &&
			ticket.Server.Equal(target) && ticket.Client.Equal(cr.Client) &&
			slices.Contains(permitted, ticket.KeyType) && (opt.Enctypes == nil || slices.Contains(opt.Enctypes, ticket.KeyType)) {
			return ticket
		}
	}
	return nil
}
