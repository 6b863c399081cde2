package proc

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"

	"gssproxyd/limits"
	"gssproxyd/mech/krb5"
	"gssproxyd/mech/krb5/ccache"
	"gssproxyd/mech/krb5/kdc"
)

// snapshot is what a credential cache held when it was read. The hot path of an initiator is a ticket that is there
// already: with a snapshot it costs a stat of the cache's file instead of reading it.
type snapshot struct {
	stamp  ccache.Stamp
	client krb5.Principal     // the cache's principal
	asked  krb5.Principal     // by which name it was asked for, where the KDC has that one for it
	creds  []*krb5.Credential // read only

	tgt     *krb5.Credential
	service krb5.Principal // whose evidence tickets these are, if they are
	start   string         // the realm whose ticket-granting ticket it is, where that is not the client's ("start_realm")
	expires int64          // of the ticket-granting ticket, else of the ticket that lives longest; 0 without tickets
	renewAt int64          // when a new one is to be got
}

// snapshots are the snapshots of caches that can tell whether they have changed, by name and by the uid on whose behalf
// they were read: who may read a cache is looked at when it is read. The memory is charged to the caller who had it read.
type snapshots struct {
	budget *limits.Budget

	mu      sync.Mutex
	kept    map[snapshotKey]kept
	reading map[snapshotKey]chan struct{} // those that are being read; closed when they are
	tidied  int64                         // when what has expired was forgotten, in Unix seconds
}

// snapshotKey is a cache (service.cacheName) and the uid on whose behalf it was read.
type snapshotKey struct {
	uid   uint32
	cache string
}

// kept is a snapshot that is remembered.
type kept struct {
	*snapshot
	payer uint32
	bytes int
}

const (
	tidyEvery    = 600  // seconds; keys of expired tickets must not stay
	snapshotCost = 1024 // bytes that a snapshot takes besides its tickets
)

// get returns the snapshot with a stamp if it is remembered. Else it is nil, and the caller is the only one who reads the
// cache until it calls read: a second call at the same time waits for what the first one reads.
func (all *snapshots) get(ctx context.Context, key snapshotKey, stamp ccache.Stamp) (s *snapshot, read func(), err error) {
	for {
		all.mu.Lock()
		if s := all.kept[key].snapshot; s != nil && s.stamp == stamp {
			all.mu.Unlock()
			return s, nil, nil
		}
		other := all.reading[key]
		if other == nil {
			break
		}
		all.mu.Unlock()
		select {
		case <-other:
		case <-ctx.Done():
			return nil, nil, context.Cause(ctx)
		}
	}
	defer all.mu.Unlock()
	if all.reading == nil {
		all.reading = make(map[snapshotKey]chan struct{})
	}
	mine := make(chan struct{})
	all.reading[key] = mine
	return nil, func() {
		all.mu.Lock()
		defer all.mu.Unlock()
		delete(all.reading, key)
		close(mine)
	}, nil
}

// add remembers a snapshot whose tickets take so many bytes, if the payer can have them: what is remembered at its cost
// makes room.
func (all *snapshots) add(key snapshotKey, s *snapshot, payer uint32, bytes int, now int64) {
	bytes += snapshotCost
	all.mu.Lock()
	defer all.mu.Unlock()
	if now-all.tidied >= tidyEvery {
		all.forget(func(old kept) bool { return old.expires <= now })
		all.tidied = now
	}
	all.drop(key)
	if all.budget.Take(payer, bytes) != nil {
		all.forget(func(old kept) bool { return old.payer == payer })
		if all.budget.Take(payer, bytes) != nil {
			return
		}
	}
	if all.kept == nil {
		all.kept = make(map[snapshotKey]kept)
	}
	all.kept[key] = kept{s, payer, bytes}
}

// drop forgets the snapshot of a cache; all.mu is held. Its keys go with it.
func (all *snapshots) drop(key snapshotKey) {
	if old, ok := all.kept[key]; ok {
		all.budget.Give(old.payer, old.bytes)
		delete(all.kept, key)
	}
}

// forget forgets those snapshots that which is true for; all.mu is held.
func (all *snapshots) forget(which func(kept) bool) {
	for key, old := range all.kept {
		if which(old) {
			all.drop(key)
		}
	}
}

// remove forgets the snapshot of a cache.
func (all *snapshots) remove(key snapshotKey) {
	all.mu.Lock()
	defer all.mu.Unlock()
	all.drop(key)
}

// clear forgets all snapshots, or those that a payer pays for.
func (all *snapshots) clear(payers ...uint32) {
	all.mu.Lock()
	defer all.mu.Unlock()
	all.forget(func(old kept) bool { return len(payers) == 0 || slices.Contains(payers, old.payer) })
}

// makeRoom forgets the snapshots of all who hold more than is kept for them: reading a cache comes before remembering it.
func (all *snapshots) makeRoom() {
	all.mu.Lock()
	defer all.mu.Unlock()
	all.forget(func(old kept) bool { return all.budget.Held(old.payer) > all.budget.Part(old.payer) })
}

// reader is who pays for the memory and the time that are taken to read credential caches, a ccache.Payer.
type reader struct {
	p   *Procedures
	uid uint32
}

// Take implements ccache.Payer.
func (r reader) Take(n int) error { return r.p.takeCache(r.uid, n) }

// Give implements ccache.Payer.
func (r reader) Give(n int) { r.p.limits.Cache.Give(r.uid, n) }

// largeCache is the size in bytes from which on reading a cache's file takes so long that it waits for its turn. Users
// have a tenth of that in theirs.
const largeCache = 64 << 10

// Turn implements ccache.Payer.
func (r reader) Turn(ctx context.Context, size int64) (end func(), err error) {
	if size <= largeCache {
		return func() {}, nil
	}
	turn, err := r.p.limits.Turns.Take(ctx, r.uid)
	return turn.End, err
}

// settle gives back what the call has read of caches.
func (c *call) settle() {
	if c.charged > 0 {
		c.svc.p.limits.Cache.Give(c.Conn.Peer.UID, c.charged)
	}
}

// look returns what a cache holds, nil if it does not exist. It and the KDCs after it may have the call wait, which then no
// longer has others wait for their turns.
func (c *call) look(ctx context.Context, cache ccache.Cache, uid uint32) (*snapshot, error) {
	limits.EndTurn(ctx)
	all := &c.svc.p.snapshots
	key := snapshotKey{uid, c.svc.cacheName(cache)}
	if stamp, ok := ccache.StampOf(cache); ok {
		s, read, err := all.get(ctx, key, stamp)
		if err != nil {
			return nil, cacheError(fmt.Errorf("%s: another call reads it: %w", cache.Name(), err))
		}
		if s != nil {
			return s, nil
		}
		defer read()
	}
	got, err := c.read(ctx, cache, uid)
	if errors.Is(err, ccache.ErrNoCache) {
		all.remove(key)
		return nil, nil
	}
	if err != nil && (got == nil || len(got.Credentials) == 0) {
		return nil, cacheError(err)
	}
	s, err := c.snapshot(got.Client, got.Credentials)
	if err != nil {
		return nil, err
	}
	if s.stamp = got.Stamp; s.stamp != (ccache.Stamp{}) {
		all.add(key, s, c.Conn.Peer.UID, got.Charged, c.now.Unix())
	}
	return s, nil
}

// read reads a cache.
func (c *call) read(ctx context.Context, cache ccache.Cache, uid uint32) (*ccache.Reading, error) {
	got, err := c.resolver(uid).Read(ctx, cache)
	if got != nil {
		c.charged += got.Charged
	}
	return got, err
}

// snapshot makes one of what a cache of client's holds. The keys are overwritten when the snapshot is not used any more:
// who uses a ticket of it holds on to it.
func (c *call) snapshot(client krb5.Principal, creds []*krb5.Credential) (s *snapshot, err error) {
	s = &snapshot{client: client, creds: creds}
	runtime.AddCleanup(s, func(creds []*krb5.Credential) {
		for _, cred := range creds {
			cred.Destroy()
		}
	}, s.creds)

	longest := int64(0)
	for _, cred := range s.creds {
		switch {
		case ccache.IsConfig(cred.Server):
			if len(cred.Server.Components) < 2 {
				continue
			}
			switch cred.Server.Components[1] {
			case ccache.RefreshTime:
				s.renewAt, _ = strconv.ParseInt(string(cred.Ticket), 10, 64)
			case ccache.StartRealm:
				s.start = string(cred.Ticket)
			case ccache.RecordAsked:
				s.asked = parseAsked(string(cred.Ticket))
			case ccache.ProxyImpersonator:
				if s.service, err = krb5.ParsePrincipal(string(cred.Ticket), c.svc.krb5.DefaultRealm); err != nil {
					return nil, cacheError(err)
				}
			}
		case !cred.Client.Equal(client):
		case isTGT(cred):
			if s.tgt == nil || cred.EndTime > s.tgt.EndTime {
				s.tgt = cred
			}
		default:
			longest = max(longest, int64(cred.EndTime))
		}
	}
	if s.expires = longest; s.tgt != nil && len(s.service.Components) == 0 {
		s.expires = int64(s.tgt.EndTime)
		if s.renewAt == 0 {
			s.renewAt = halfLife(s.tgt)
		}
	}
	if s.renewAt == 0 {
		s.renewAt = s.expires
	}
	return s, nil
}

// is reports whether a cache is of a client: under the KDC's name for it, or that by which it was asked for.
func (s *snapshot) is(client krb5.Principal) bool {
	return s.client.Equal(client) || s.asked.Equal(client)
}

// parseAsked reads a name that tickets were asked for by, the zero value if it is none. One component with an @ in it is an
// enterprise name.
func parseAsked(name string) krb5.Principal {
	p, err := krb5.ParsePrincipal(name, "")
	if err != nil {
		return krb5.Principal{}
	}
	if len(p.Components) == 1 && strings.Contains(p.Components[0], "@") {
		p.Type = krb5.NTEnterprise
	}
	return p
}

func isTGT(cred *krb5.Credential) bool {
	return len(cred.Server.Components) == 2 && cred.Server.Components[0] == "krbtgt"
}

// saw reports whether a ticket is of the snapshot, and not one's own.
func (i *initiator) saw(t *krb5.Credential) bool {
	return i.seen != nil && slices.Contains(i.seen.creds, t)
}

// seenTicket returns the ticket for a target if the snapshot has it. Whatever is not plain is left to the KDC client,
// which looks into the cache itself.
func (c *call) seenTicket(i *initiator, target krb5.Principal, opt kdc.TicketOptions) *krb5.Credential {
	if i.seen == nil || i.proxy() {
		return nil
	}
	now, till := c.kdcTime(i).Unix(), opt.Till
	if i.seen.tgt != nil {
		till = min(till, i.seen.tgt.EndTime)
	}
	permitted := c.svc.krb5.TGSEnctypes
	if opt.Enctypes != nil {
		permitted = c.svc.krb5.PermittedEnctypes
	}
	for _, cred := range i.seen.creds {
		if int64(cred.EndTime) > now && cred.EndTime >= till && cred.Flags&kdc.FlagInvalid == 0 && len(cred.Ticket) > 0 &&
			!cred.IsSKey && len(cred.SecondTicket) == 0 && len(cred.AuthData) == 0 &&
			cred.Server.Equal(target) && cred.Client.Equal(i.client) &&
			slices.Contains(permitted, cred.KeyType) && (opt.Enctypes == nil || slices.Contains(opt.Enctypes, cred.KeyType)) {
			return cred
		}
	}
	return nil
}
