package creds

import (
	"context"
	"runtime"
	"strconv"
	"strings"
	"sync"

	"gssproxyd/limits"
	"gssproxyd/mech/krb5"
	"gssproxyd/mech/krb5/ccache"
)

// snapshots are the snapshots of caches that can tell whether they have changed, by name and by the
// uid on whose behalf they were read: who may read a cache is looked at when it is read. The memory
// is charged to the caller who had it read.
type snapshots struct {
	budget *limits.Budget

	mu      sync.Mutex
	kept    map[snapshotKey]kept
	reading map[readingKey]chan struct{} // those that are being read; closed when they are
	tidied  int64                        // when what has expired was forgotten, in Unix seconds
}

// snapshotKey is a cache (service.cacheName) and the uid on whose behalf it was read.
type snapshotKey struct {
	uid   uint32
	cache string
}

// readingKey is a cache and the caller who pays for reading it. Nobody waits for another's reading:
// that waits for a turn by the other's uid.
type readingKey struct {
	snapshotKey
	payer uint32
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

// get returns the snapshot with a stamp if it is remembered. Else it is nil, and the call is the
// only one of its payer that reads the cache until it calls read: a second one at the same time
// waits for what the first one reads.
func (all *snapshots) get(ctx context.Context, key snapshotKey, payer uint32, stamp ccache.Stamp) (s *snapshot, read func(), err error) {
	mine := readingKey{key, payer}
	for {
		all.mu.Lock()
		if s := all.kept[key].snapshot; s != nil && s.stamp == stamp {
			all.mu.Unlock()
			return s, nil, nil
		}
		other := all.reading[mine]
		if other == nil {
			break
		}
		all.mu.Unlock()
		limits.EndTurn(ctx)
		select {
		case <-other:
		case <-ctx.Done():
			return nil, nil, context.Cause(ctx)
		}
	}
	defer all.mu.Unlock()
	if all.reading == nil {
		all.reading = make(map[readingKey]chan struct{})
	}
	done := make(chan struct{})
	all.reading[mine] = done
	return nil, func() {
		all.mu.Lock()
		defer all.mu.Unlock()
		delete(all.reading, mine)
		close(done)
	}, nil
}

// add remembers a snapshot whose tickets take so many bytes, if the payer can have them: what is
// remembered at its cost makes room.
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

// forget is clear; all.mu is held.
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

// clear forgets those snapshots that which is true for.
func (all *snapshots) clear(which func(kept) bool) {
	all.mu.Lock()
	defer all.mu.Unlock()
	all.forget(which)
}

// snapshot is what a credential cache held when it was read. The hot path of an initiator is a
// ticket that is there already: with a snapshot it costs a stat of the cache's file instead of
// reading it.
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

// newSnapshot makes the snapshot of what a cache of client's holds. The keys are overwritten when
// the snapshot is not used any more: who uses a ticket of it holds on to it.
func newSnapshot(client krb5.Principal, creds []*krb5.Credential, defaultRealm string) (s *snapshot, err error) {
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
				if s.service, err = krb5.ParsePrincipal(string(cred.Ticket), defaultRealm); err != nil {
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

// is reports whether a cache is of a client: under the KDC's name for it, or that by which it was
// asked for.
func (s *snapshot) is(client krb5.Principal) bool {
	return s.client.Equal(client) || s.asked.Equal(client)
}

// parseAsked reads a name that tickets were asked for by, the zero value if it is none. One
// component with an @ in it is an enterprise name.
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

// halfLife is when half of a ticket's life is over, in Unix seconds.
func halfLife(cred *krb5.Credential) int64 {
	start := int64(max(cred.StartTime, cred.AuthTime))
	return start + (int64(cred.EndTime)-start)/2
}
