package creds

import (
	"context"

	"gssproxyd/limits"
)

// room is the memory that credential caches take: those that are read, the snapshots of them, and
// the tickets that services keep in memory, each cache at the cost of the uid whose store it is in.
// It is a ccache.Payers.
type room struct {
	budget    *limits.Budget
	turns     *limits.Turns // to read large caches
	snapshots snapshots

	// dropOldest drops a cache of a payer that whose accepts, of those in a service's memory the
	// one that was not used for the longest time, and reports whether there was one.
	dropOldest func(whose func(payer uint32) bool) bool
}

// Take charges a uid for memory that caches take. What can be had again makes room: snapshots,
// first those that the uid pays for, then those that others have beyond their reserve; then tickets
// in memory, those of whoever has more than the uid would have, or of anybody beyond the reserve
// while that is little, and last the uid's own.
func (r *room) Take(uid uint32, n int) error {
	err := r.budget.Take(uid, n)
	if err != nil {
		r.snapshots.clear(func(s kept) bool { return s.payer == uid })
		err = r.budget.Take(uid, n)
	}
	if err != nil {
		// Reading a cache comes before remembering it.
		r.snapshots.clear(func(s kept) bool { return r.budget.Held(s.payer) > r.budget.Part(s.payer) })
		err = r.budget.Take(uid, n)
	}
	others := func(payer uint32) bool {
		held, would := r.budget.Held(payer), r.budget.Held(uid)+n
		return payer != uid && held > r.budget.Part(payer) && (held > would || would <= little)
	}
	for err != nil && r.dropOldest(others) {
		err = r.budget.Take(uid, n)
	}
	own := func(payer uint32) bool { return payer == uid }
	for err != nil && r.dropOldest(own) {
		err = r.budget.Take(uid, n)
	}
	return err
}

// little is what a uid may have and still have others' tickets make room for it, in bytes.
const little = 512 << 10

// Give implements ccache.Payers.
func (r *room) Give(uid uint32, n int) { r.budget.Give(uid, n) }

// dropAny makes room in a map: it removes an arbitrary element and returns it.
func dropAny[K comparable, V any](m map[K]V) (gone V) {
	for key, v := range m {
		delete(m, key)
		return v
	}
	return gone
}

// reader is who pays for the memory and the time that are taken to read credential caches, a
// ccache.Payer.
type reader struct {
	room *room
	uid  uint32
}

// Take implements ccache.Payer.
func (r reader) Take(n int) error { return r.room.Take(r.uid, n) }

// Give implements ccache.Payer.
func (r reader) Give(n int) { r.room.Give(r.uid, n) }

// largeCache is the size in bytes from which on reading a cache's file takes so long that it waits
// for its turn. Users have a tenth of that in theirs.
const largeCache = 64 << 10

// Turn implements ccache.Payer.
func (r reader) Turn(ctx context.Context, size int64) (end func(), err error) {
	if size <= largeCache {
		return func() {}, nil
	}
	turn, err := r.room.turns.Take(ctx, r.uid)
	return turn.End, err
}
