// Package limits says who pays: what callers take of something scarce is charged to their uid, in
// one place, and what each may take is bounded. It knows nothing of what is counted.
//
// A [Budget] is of what is held and given back: connections, bytes, exchanges under way. A [Meter]
// is of what happens: so often a second; [Calls] is that for calls, as the configuration has it.
// [Turns] is of work that takes long: so much at a time, in turn by user. [Processors] has users take turns to compute. Root, the daemon and every configured
// service's own uid have a reserve in each ([Limits.Reserve]), which nobody else can take: the rest
// may be taken by as many uids as a hostile user has, 65,536 where it was given subordinate uids,
// and then new uids get nothing.
package limits

import (
	"context"
	"fmt"
	"os"
	"runtime"
	"syscall"
)

// Limits is what there is for all callers of a daemon.
type Limits struct {
	Conns      *Budget     // connections
	Buffers    *Budget     // bytes of unfinished records and unread replies, beyond what each connection has
	Cache      *Budget     // bytes of credential caches being read, held for calls and kept in memory
	Exchanges  *Budget     // sockets to KDCs and look-ups in the DNS under way
	Lookups    *Budget     // questions to the name service under way
	Kept       *Budget     // executions and contexts of the file system
	Steps      *Budget     // steps through files under way
	Requests   *Budget     // requests to files under way that may wait
	Lines      *Meter      // lines of the log that callers cause
	Refusals   *Meter      // lines of the audit log that callers cause by being refused
	Calls      *Calls      // calls of services that have a rate for them
	Turns      *Turns      // calls with large arguments, which take long
	Processors *Processors // computing for a call
}

// ForProcess returns limits that the open files which this process may have (RLIMIT_NOFILE) are
// enough for.
func ForProcess() *Limits {
	var files syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &files); err != nil {
		files.Cur = 1024
	}
	d := divide(files.Cur)
	return &Limits{
		Conns:      NewBudget("connections", d.conns),
		Buffers:    newBytes("bytes of buffers", bufferBytes),
		Cache:      newBytes("bytes of credential caches", cacheBytes),
		Exchanges:  NewBudget("exchanges with KDCs", d.exchanges),
		Lookups:    NewBudget("questions to the name service", d.lookups),
		Kept:       NewBudget("executions and contexts", maxKept),
		Steps:      NewBudget("steps through files at a time", maxSteps),
		Requests:   NewBudget("requests to files at a time", maxRequests),
		Lines:      NewMeter(),
		Refusals:   NewMeter(),
		Calls:      NewCalls(),
		Turns:      NewTurns("large calls", max(1, runtime.GOMAXPROCS(0)/2), 1024),
		Processors: NewProcessors(runtime.GOMAXPROCS(0)),
	}
}

// What callers may have the daemon hold at a time, besides a few kilobytes for each connection.
const (
	bufferBytes = 8 << 20
	cacheBytes  = 12 << 20
)

// What callers may have through files. A step may wait for a KDC, and others must not wait for it; nor must other
// requests, of which a step is one. What is kept is a directory, of some kilobytes.
const (
	maxKept     = 8192
	maxSteps    = 64
	maxRequests = 2 * maxSteps
)

// Memory returns how much memory, in bytes, is enough for all that these limits let callers hold at
// a time, and for the garbage of as much. It is for [runtime/debug.SetMemoryLimit], so that what is
// let go of is collected before there is more.
func (l *Limits) Memory() int64 {
	const own, conn, kept = 40 << 20, 4 << 10, 6 << 10
	const most = own + 2*(bufferBytes+cacheBytes)
	return most + conn*int64(l.Conns.limit) + kept*int64(l.Kept.limit)
}

// Open files that things need at most: a connection one, and one more while the daemon reads a
// cache for a call on it, or looks at which program is at its other end; a socket to a KDC is one,
// and a look-up in the DNS two; a question to the name service one. The others are sockets that are
// listened on, keytabs, replay caches, the log, what the runtime has.
const (
	filesConn     = 2
	filesExchange = 2
	filesLookup   = 1
	filesOthers   = 128

	maxConns     = 16384
	maxExchanges = 256
	maxLookups   = 64
)

// division is how many of what needs open files there can be.
type division struct{ conns, exchanges, lookups int }

// divide divides so many open files. Where they are few, three eighths go to all that is not a
// connection.
func divide(files uint64) (d division) {
	n := int(min(files, 1<<30))
	d.exchanges = max(4, min(maxExchanges, n/8/filesExchange))
	d.lookups = max(2, min(maxLookups, n/8/filesLookup))
	others := min(filesOthers, n/8)
	d.conns = max(8, min(maxConns, (n-d.exchanges*filesExchange-d.lookups*filesLookup-others)/filesConn))
	return d
}

// Turn waits for the turn of uid's work on n bytes, if that is long: what a call costs grows with what
// it brings. A message to wrap costs as much as a few accepts at this length and some milliseconds
// at the most, a ticket that has to be tried with many keys so much for each. Then work of any
// length waits for a processor. Who waits for something ends both turns with [EndTurn] of the context.
func (l *Limits) Turn(ctx context.Context, uid uint32, n int) (context.Context, *Turn, error) {
	var large *Turn
	if n >= largeCall {
		turn, err := l.Turns.Take(ctx, uid)
		if err != nil {
			return nil, nil, err
		}
		large, ctx = turn, turn.Context(ctx)
	}
	turn, err := l.Processors.Take(ctx, uid)
	if err != nil {
		large.End()
		return nil, nil, err
	}
	if turn == nil {
		return ctx, large, nil
	}
	return turn.Context(ctx), turn, nil
}

// largeCall is the length in bytes from which on work waits for its turn.
const largeCall = 16 << 10

// Reserve keeps something of everything for root, the daemon and the uids given, and for nobody
// else from now on.
func (l *Limits) Reserve(uids ...uint32) {
	for _, one := range []interface{ Reserve(...uint32) }{l.Conns, l.Buffers, l.Cache, l.Exchanges, l.Lookups, l.Kept, l.Steps, l.Requests, l.Lines, l.Refusals, l.Calls, l.Turns, l.Processors} {
		one.Reserve(uids...)
	}
}

// Budgets are those there are, for who shows what is in use.
func (l *Limits) Budgets() []*Budget {
	return []*Budget{l.Conns, l.Buffers, l.Cache, l.Exchanges, l.Lookups, l.Kept, l.Steps, l.Requests}
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

// favoured returns who has a reserve: root, the daemon and the uids given.
func favoured(uids []uint32) map[uint32]bool {
	all := map[uint32]bool{0: true, uint32(os.Geteuid()): true}
	for _, uid := range uids {
		all[uid] = true
	}
	return all
}
