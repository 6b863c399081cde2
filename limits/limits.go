// Package limits says who pays: what callers take of something scarce is charged to their uid, in one place, and what
// each may take is bounded. It imports nothing of the daemon and does no I/O.
//
// A [Budget] is of what is held and given back: connections, bytes, exchanges under way. A [Meter] is of what happens:
// so often a second. [Turns] is of work that takes long: so much at a time, in turn by user. Root, the daemon and every
// configured service's own uid have a reserve in each ([Limits.Reserve]), which nobody else can take: the rest may be
// taken by as many uids as a hostile user has, 65,536 where it was given subordinate uids, and then new uids get nothing.
package limits

import (
	"fmt"
	"os"
	"slices"
)

// Limits is what there is for all callers of a daemon.
type Limits struct {
	Conns     *Budget // connections
	Buffers   *Budget // bytes of unfinished records and unread replies, beyond what each connection has
	Cache     *Budget // bytes of credential caches being read and held for calls
	Exchanges *Budget // exchanges with KDCs under way, each with a socket or two
	Lookups   *Budget // questions to the name service under way
}

// New returns limits for so many connections, and as many as are usual of the rest.
func New(conns int) *Limits {
	l := &Limits{
		Conns:     NewBudget("connections", conns),
		Buffers:   NewBudget("bytes of buffers", 64<<20),
		Cache:     NewBudget("bytes of credential caches", 32<<20),
		Exchanges: NewBudget("exchanges with KDCs", 256),
		Lookups:   NewBudget("questions to the name service", 64),
	}
	l.Reserve()
	return l
}

// Reserve keeps something of everything for root, the daemon and the uids given, and for nobody else from now on.
func (l *Limits) Reserve(uids ...uint32) {
	for _, b := range []*Budget{l.Conns, l.Buffers, l.Cache, l.Exchanges, l.Lookups} {
		b.Reserve(uids...)
	}
}

// Error is the refusal of a [Budget].
type Error struct {
	What       string // of which there is not enough
	UID        uint32
	Held, More int // what the uid had, and wanted more
	Free       int // what was left that it could have had a share of
}

// Error says who wanted how much and what there was.
func (e *Error) Error() string {
	return fmt.Sprintf("too many %s: uid %d has %d, and %d more would be over its share of the %d that are free", e.What, e.UID, e.Held, e.More, e.Free)
}

// favoured returns the uids that have a reserve, without repetitions, root's and the daemon's first.
func favoured(uids []uint32) []uint32 {
	list := []uint32{0}
	for _, uid := range append([]uint32{uint32(os.Geteuid())}, uids...) {
		if !slices.Contains(list, uid) {
			list = append(list, uid)
		}
	}
	return list
}
