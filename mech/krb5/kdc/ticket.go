package kdc

import (
	"bytes"
	"cmp"
	"context"
	"encoding/binary"
	"slices"
	"strings"

	"gssproxyd/mech"
	"gssproxyd/mech/krb5"
	"gssproxyd/mech/krb5/etype"
	"gssproxyd/mech/krb5/wire"
	"gssproxyd/mech/reason"
)

// TicketOptions are what may be asked of a service ticket.
type TicketOptions struct {
	// Enctypes limits the session key further than permitted_enctypes.
	Enctypes []etype.ID
	// Till is when the ticket is to end, in Unix seconds; 0 is with the TGT. One from the store
	// must not end before, one that is asked for does not end later.
	Till uint32
	// StartRealm is the realm of the first TGT in the store, where that is not the client's own
	// ("start_realm" in a cache's configuration).
	StartRealm string
	// Primary has the primary KDCs asked where they are known: others may not have heard of a change
	// of the server's key yet.
	Primary bool
}

// Ticket returns a ticket of the client for the server, from the store or else from the KDCs.
//
// A server without a realm is asked for in the client's realm, whose KDC may refer to another one
// (RFC 6806 section 8). The ticket then comes back, and is stored, under the name that was asked
// for. To get to a realm that is not the client's the way of [capaths] is taken, or a direct one;
// where the KDC of a realm does not know the next one, those before it on the way are asked for.
func (c *Client) Ticket(ctx context.Context, tickets TicketStore, client, server krb5.Principal, opt TicketOptions) (*krb5.Credential, error) {
	w, err := c.newWalk(ctx, tickets, client, server, opt)
	if err != nil {
		return nil, err
	}
	return w.obtain("ticket", client, server, nil, func() (*krb5.Credential, *mech.Error) { return w.service(server) })
}

// obtain returns the ticket of client for server that the store has, or that ask gets, and ends the
// walk. second is the evidence ticket that it is for, nil for none.
func (w *walk) obtain(kind string, client, server krb5.Principal, second []byte, ask func() (*krb5.Credential, *mech.Error)) (*krb5.Credential, error) {
	cred := w.find(func(cred *krb5.Credential) bool {
		return w.current(cred) && cred.Client.Equal(client) && cred.Server.Equal(server) && slices.Contains(w.etypes, cred.KeyType) &&
			bytes.Equal(cred.SecondTicket, second) && cred.EndTime >= w.opt.Till &&
			(second != nil || !cred.IsSKey && len(cred.AuthData) == 0)
	})
	defer func() { w.forget(cred) }()
	if cred != nil {
		w.trace("Found the %v in the cache", cred)
		return cred, nil
	}
	got, err := w.asking(w.ctx, w.key(kind, server, second), ask)
	if err != nil {
		return nil, err
	}
	cred = got
	cred.Server, cred.SecondTicket = server, second
	w.keep(cred)
	return cred, nil
}

// walk is the search for one ticket.
type walk struct {
	*Client
	ctx     context.Context
	tickets TicketStore
	have    []*krb5.Credential // what the store had at the start for the server and for ticket-granting services
	got     []*krb5.Credential // and what the KDCs gave since
	client  krb5.Principal
	opt     TicketOptions
	etypes  []etype.ID
	start   string
}

func (c *Client) newWalk(ctx context.Context, tickets TicketStore, client, server krb5.Principal, opt TicketOptions) (*walk, *mech.Error) {
	w := &walk{Client: c, ctx: ctx, tickets: tickets, client: client, opt: opt, etypes: c.tgsEnctypes(opt.Enctypes), start: cmp.Or(opt.StartRealm, client.Realm)}
	var err error
	useful := func(cred *krb5.Credential) bool { return isTGS(cred.Server) || cred.Server.Equal(server) }
	if w.have, err = tickets.Find(ctx, useful); err != nil && len(w.have) == 0 {
		if e, ok := err.(*mech.Error); ok {
			return nil, e
		}
		return nil, mech.Errorf(mech.Failure, wire.MinorNoCredential, reason.NoCredential, ": %s", wire.Shown(err.Error()))
	}
	if opt.Till != 0 {
		if tgt, err := w.localTGT(); err == nil {
			w.opt.Till = min(opt.Till, tgt.EndTime) // no KDC gives more, however often it is asked
		}
	}
	return w, nil
}

// key is what a refusal of a ticket for the server depends on.
func (w *walk) key(kind string, server krb5.Principal, evidence []byte) failureKey {
	parts := [][]byte{[]byte(kind), []byte(w.start), w.client.AppendString(nil), server.AppendString(nil), []byte(server.Realm), evidence, nil}
	for _, id := range w.etypes {
		parts = append(parts, binary.BigEndian.AppendUint32(nil, uint32(id)))
	}
	if tgt, err := w.localTGT(); err == nil {
		parts = append(parts, tgt.Ticket)
	}
	return keyOf(parts...)
}

// find returns the first credential the store had that match accepts, nil if there is none.
func (w *walk) find(match func(*krb5.Credential) bool) *krb5.Credential {
	for _, cred := range w.have {
		if match(cred) {
			return cred
		}
	}
	return nil
}

// exchange is the Client's.
func (w *walk) exchange(ctx context.Context, q tgsRequest) (*tgsReply, *mech.Error) {
	q.primary = w.opt.Primary
	r, err := w.Client.exchange(ctx, q)
	if err == nil {
		w.got = append(w.got, r.cred)
	}
	return r, err
}

// forget destroys what the KDCs gave and the copies of what the store had, but for one.
func (w *walk) forget(but *krb5.Credential) {
	for _, cred := range slices.Concat(w.have, w.got) {
		if cred != but {
			cred.Destroy()
		}
	}
}

// keep stores a ticket for the next time.
func (w *walk) keep(cred *krb5.Credential) {
	w.trace("Storing the %v in the cache", cred)
	_ = w.tickets.Update(w.ctx, nil, cred) // it is good even if the store is full
}

// current reports that a credential can be used.
func (w *walk) current(cred *krb5.Credential) bool {
	return cred.EndTime > unix(w.now(w.start)) && cred.Flags&wire.FlagInvalid == 0 && len(cred.Ticket) > 0
}

// cachedTGT returns a TGT for a realm, from whatever realm, nil if there is none.
func (w *walk) cachedTGT(realm string) *krb5.Credential {
	return w.find(func(cred *krb5.Credential) bool {
		return w.current(cred) && cred.Client.Equal(w.client) && sameName(cred.Server, TGS(realm, "")) && cred.KeyType.Supported()
	})
}

// localTGT returns the TGT everything starts with.
func (w *walk) localTGT() (*krb5.Credential, *mech.Error) {
	name := TGS(w.start, w.start)
	expired := false
	cred := w.find(func(cred *krb5.Credential) bool {
		if !cred.Server.Equal(name) || !cred.Client.Equal(w.client) || !cred.KeyType.Supported() {
			return false
		}
		ok := w.current(cred)
		expired = expired || !ok
		return ok
	})
	switch {
	case cred != nil:
		return cred, nil
	case expired:
		return nil, mech.Errorf(mech.Failure, wire.MinorExpired, reason.TicketExpired, ": the ticket-granting ticket of %s", w.client.Shown())
	}
	return nil, mech.Errorf(mech.Failure, wire.MinorNoCredential, reason.NoCredential, ": no ticket-granting ticket of %s", w.client.Shown())
}

// service gets the ticket from the KDCs.
func (w *walk) service(server krb5.Principal) (*krb5.Credential, *mech.Error) {
	referral := server.Realm == ""
	if referral {
		server.Realm = w.start
	}
	tgt, err := w.tgtFor(server.Realm)
	if err != nil {
		return nil, err
	}
	cred, _, hops, err := w.referrals(tgt, server)
	if err == nil || hops > 0 || w.ctx.Err() != nil || err.Reason == reason.KDCUnreachable {
		return cred, err
	}
	// The first KDC refused. It may not like to be asked for referrals; or the realm is to be
	// guessed.
	again := err.Reason == reason.KDCRefused
	if referral {
		if len(server.Components) < 2 {
			return nil, mech.Errorf(mech.Failure, wire.MinorHostRealm, reason.ServerUnknown, ": %s", server.Shown())
		}
		_, domain, _ := strings.Cut(server.Components[1], ".")
		guess := strings.ToUpper(domain)
		if guess == "" {
			return nil, err
		}
		if guess != server.Realm {
			other, fault := w.tgtFor(guess)
			if fault != nil {
				return nil, err // what the realm said that was asked says more than a failed guess
			}
			tgt, server.Realm, again = other, guess, true
		}
	}
	if !again {
		return nil, err
	}
	r, err := w.exchange(w.ctx, w.request(tgt, server, 0))
	if err != nil {
		return nil, err
	}
	return r.cred, nil
}

// request is for a service ticket.
func (w *walk) request(tgt *krb5.Credential, server krb5.Principal, options uint32) tgsRequest {
	return tgsRequest{tgt: tgt, server: server, till: w.opt.Till, etypes: w.etypes, options: options | tgt.Flags&inherited}
}

// referrals asks for the ticket and follows where the KDCs point. hops counts how often they did,
// last is the TGT the ticket was got with.
func (w *walk) referrals(tgt *krb5.Credential, server krb5.Principal) (cred, last *krb5.Credential, hops int, err *mech.Error) {
	seen := []string{server.Realm}
	for ; hops < maxHops; hops++ {
		r, err := w.exchange(w.ctx, w.request(tgt, server, wire.OptCanonicalize))
		if err != nil {
			return nil, nil, hops, err
		}
		got := r.cred.Server
		if sameName(got, server) {
			return r.cred, tgt, hops, nil
		}
		if !isTGS(got) || got.Components[1] == server.Realm {
			// Old versions of Active Directory rewrite the name, or refer to themselves.
			r, err = w.exchange(w.ctx, w.request(tgt, server, 0))
			if err != nil {
				return nil, nil, hops, err
			}
			return r.cred, tgt, hops, nil
		}
		next := got.Components[1]
		if slices.Contains(seen, next) {
			return nil, nil, hops + 1, loop(seen, next)
		}
		seen = append(seen, next)
		tgt, server.Realm = r.cred, next
	}
	return nil, nil, hops, mech.Errorf(mech.Failure, wire.MinorUnreachable, reason.KDCReply, ": referred through more than %d realms", maxHops)
}

func loop(seen []string, next string) *mech.Error {
	return mech.Errorf(mech.Failure, wire.MinorUnreachable, reason.KDCReply, ": referral loop through realms %s", wire.Shown(strings.Join(append(seen, next), ", ")))
}

// tgtFor returns a TGT for a realm.
func (w *walk) tgtFor(realm string) (*krb5.Credential, *mech.Error) {
	if realm != w.start {
		if tgt := w.cachedTGT(realm); tgt != nil {
			return tgt, nil
		}
	}
	tgt, err := w.localTGT()
	if err != nil || realm == w.start {
		return tgt, err
	}
	// The KDC of the realm at hand is asked for a TGT of the furthest realm on the way, then of
	// those before it. It may give one of yet another realm that is nearer.
	way := w.way(w.start, realm)
	at := 0 // where on the way tgt is good
	requests := 0
	seen := []string{w.start}
	for next := len(way) - 1; ; {
		if next < len(way)-1 || at > 0 {
			if cached := w.cachedTGT(way[next]); cached != nil {
				tgt, at, next = cached, next, len(way)-1
				if way[at] == realm {
					return tgt, nil
				}
				continue
			}
		}
		if requests++; requests > maxHops*2 {
			return nil, mech.Errorf(mech.Failure, wire.MinorUnreachable, reason.KDCReply, ": no way from realm '%s' to realm '%s' within %d requests", wire.Shown(w.start), wire.Shown(realm), requests-1)
		}
		r, err := w.exchange(w.ctx, w.tgtRequest(tgt, way[next]))
		if err != nil {
			if next--; next == at || err.Reason == reason.KDCUnreachable {
				return nil, err
			}
			continue
		}
		if !isTGS(r.cred.Server) {
			return nil, mech.Errorf(mech.Failure, wire.MinorReplyModified, reason.KDCReply, ": the ticket is for %s, expected a ticket-granting ticket", r.cred.Server.Shown())
		}
		tgt = r.cred
		got := tgt.Server.Components[1]
		if slices.Contains(seen, got) {
			return nil, loop(seen, got)
		}
		seen = append(seen, got)
		on := slices.Index(way, got)
		if on < 0 {
			return w.offWay(tgt, realm, seen)
		}
		if on == next {
			w.keep(tgt)
		}
		if got == realm {
			return tgt, nil
		}
		at, next = on, len(way)-1
	}
}

// offWay follows KDCs that know another way.
func (w *walk) offWay(tgt *krb5.Credential, realm string, seen []string) (*krb5.Credential, *mech.Error) {
	for range maxHops - 1 {
		r, err := w.exchange(w.ctx, w.tgtRequest(tgt, realm))
		if err != nil {
			return nil, err
		}
		tgt = r.cred
		if !isTGS(tgt.Server) {
			return nil, mech.Errorf(mech.Failure, wire.MinorReplyModified, reason.KDCReply, ": the ticket is for %s, expected a ticket-granting ticket", tgt.Server.Shown())
		}
		got := tgt.Server.Components[1]
		if got == realm {
			return tgt, nil
		}
		if slices.Contains(seen, got) {
			return nil, loop(seen, got)
		}
		seen = append(seen, got)
	}
	return nil, mech.Errorf(mech.Failure, wire.MinorUnreachable, reason.KDCReply, ": referred through more than %d realms on the way to '%s'", maxHops, wire.Shown(realm))
}

// tgtRequest is for a TGT of another realm.
func (w *walk) tgtRequest(tgt *krb5.Credential, realm string) tgsRequest {
	return tgsRequest{tgt: tgt, server: TGS(realm, tgt.Server.Components[1]), options: tgt.Flags & inherited, etypes: w.tgsEnctypes(nil)}
}

// way returns the realms from one to another, both included: those of [capaths] in between. Where
// it says nothing, realms with a common parent are connected through that and what is below it on
// both sides; others directly.
func (c *Client) way(from, to string) []string {
	way := []string{from}
	between := c.Conf.Capath(from, to)
	if last := strings.LastIndexByte; between == nil && from[last(from, '.')+1:] == to[last(to, '.')+1:] {
		between = krb5.Hierarchy(from, to)
	}
	for _, r := range between {
		if len(way) <= maxHops && !slices.Contains(way, r) && r != to {
			way = append(way, r)
		}
	}
	return append(way, to)
}
