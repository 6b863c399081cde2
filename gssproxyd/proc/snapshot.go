package proc

import (
	"context"
	"errors"
	"maps"
	"runtime"
	"slices"
	"strconv"
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
	creds  []*krb5.Credential // read only

	tgt     *krb5.Credential
	service krb5.Principal // whose evidence tickets these are, if they are
	start   string         // the realm whose ticket-granting ticket it is, where that is not the client's ("start_realm")
	expires int64          // of the ticket-granting ticket, else of the ticket that lives longest; 0 without tickets
	renewAt int64          // when a new one is to be got
}

// snapshots are the snapshots of caches that can tell whether they have changed, by name and by the uid on whose behalf
// they were read: who may read a cache is looked at when it is read.
type snapshots struct {
	mu     sync.Mutex
	byName map[string]*snapshot
	tidied int64 // when what has expired was forgotten, in Unix seconds
}

const (
	maxSnapshots = 4096 // beyond this all are forgotten
	tidyEvery    = 600  // seconds; keys of expired tickets must not stay
)

// add remembers a snapshot.
func (all *snapshots) add(name string, s *snapshot, now int64) {
	all.mu.Lock()
	defer all.mu.Unlock()
	if all.byName == nil || len(all.byName) >= maxSnapshots {
		all.byName = make(map[string]*snapshot)
	}
	if now-all.tidied >= tidyEvery {
		maps.DeleteFunc(all.byName, func(_ string, old *snapshot) bool { return old.expires <= now })
		all.tidied = now
	}
	all.byName[name] = s
}

// clear forgets all snapshots.
func (all *snapshots) clear() {
	all.mu.Lock()
	defer all.mu.Unlock()
	clear(all.byName)
}

// look returns what a cache holds, nil if it does not exist. It and the KDCs after it may have the call wait, which then no
// longer has others wait for their turns.
func (c *call) look(ctx context.Context, cache ccache.Cache, uid uint32) (*snapshot, error) {
	limits.EndTurn(ctx)
	all := &c.svc.p.snapshots
	name := strconv.FormatUint(uint64(uid), 10) + " " + c.svc.cacheName(cache)
	stamp, stable := ccache.StampOf(cache)
	if stable {
		all.mu.Lock()
		s := all.byName[name]
		all.mu.Unlock()
		if s != nil && s.stamp == stamp {
			return s, nil
		}
	}
	s, err := c.read(ctx, cache, uid)
	if err == nil && s == nil {
		all.mu.Lock()
		delete(all.byName, name) // its keys go with it
		all.mu.Unlock()
	}
	if err == nil && s != nil && s.stamp != (ccache.Stamp{}) {
		all.add(name, s, c.now.Unix())
	}
	return s, err
}

// read reads a cache on behalf of a uid, nil if it does not exist.
func (c *call) read(ctx context.Context, cache ccache.Cache, uid uint32) (*snapshot, error) {
	got, err := c.svc.resolver(uid).Read(ctx, cache)
	if errors.Is(err, ccache.ErrNoCache) {
		return nil, nil
	}
	if err != nil && (got == nil || len(got.Credentials) == 0) {
		return nil, cacheError(err)
	}
	s, err := c.snapshot(got.Client, got.Credentials)
	if err == nil {
		s.stamp = got.Stamp
	}
	return s, err
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
	for _, cred := range i.seen.creds {
		if int64(cred.EndTime) > now && cred.EndTime >= till && cred.Flags&kdc.FlagInvalid == 0 && len(cred.Ticket) > 0 &&
			!cred.IsSKey && len(cred.SecondTicket) == 0 && len(cred.AuthData) == 0 &&
			cred.Server.Equal(target) && cred.Client.Equal(i.client) &&
			slices.Contains(c.svc.krb5.PermittedEnctypes, cred.KeyType) && (opt.Enctypes == nil || slices.Contains(opt.Enctypes, cred.KeyType)) {
			return cred
		}
	}
	return nil
}
