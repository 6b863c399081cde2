package rpc

import (
	"cmp"
	"context"
	"log/slog"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"gssproxyd/limits"
	"gssproxyd/mech/reason"
	"gssproxyd/phase"
	"gssproxyd/rpc/peer"
)

// Conn is a connection, as its calls see it.
type Conn struct {
	Peer   *peer.Info // who connected
	Socket string     // the name given to Serve
	ID     string     // random, so that lines about a connection are found in a log, and nobody can tell others'

	// Refused counts the calls that their handler has refused; it is the handler's to count.
	Refused atomic.Uint64

	// Left is what the handler of a call leaves for later calls of the connection, always of one
	// type.
	Left atomic.Value
}

// Call is one call, valid until the handler returns.
type Call struct {
	Conn *Conn
	XID  uint32 // chosen by the client
	Proc uint32 // of the server's program, not 0
	N    uint64 // counts the calls of the connection from 1
	Args []byte // the arguments and whatever follows them; aliases the record

	// File is what the call has brought, if the server takes files; nil if it has brought none. A
	// handler that wants it sets this to nil, and closes it some day. It is closed after the call
	// otherwise.
	File *os.File
}

// Service answers the calls that belong to it.
type Service interface {
	// Handle appends the results of a call to reply and returns that. Room for the headers is in
	// reply already. With any status but Success what was appended is dropped. A panic becomes
	// SystemErr. The context ends when the connection is cut by this side, not when the peer goes
	// away, and names the caller as who pays ([limits.Payer]).
	Handle(ctx context.Context, c *Call, reply []byte) ([]byte, AcceptStat)

	// Parallel returns how many calls of one connection may be executed at once. Answers then go
	// out as they become ready, which a client has to be prepared for: the kernel is, and has one
	// connection for everybody. Less than two is one after the other.
	Parallel() int
}

// Server answers calls. Set the fields, then call Serve for each listener.
type Server struct {
	// Match decides which service a call belongs to. It is asked for every call, the NULL procedure
	// included and before anything is answered, so that a changed configuration holds for
	// connections that exist. With false the connection is closed without an answer; the reason is
	// Match's to log. proc may have any value.
	Match func(ctx context.Context, c *Conn, proc uint32) (service Service, ok bool)

	// Program is what calls are for; nil is [GSSProxy].
	Program *Program

	// Needs returns what Match may want to know of the process of a peer on a connection. Some
	// kernels can be asked only when it is accepted ([peer.Info.ReadNow]). nil: nothing.
	Needs func(c *Conn) peer.Evidence

	// Registered returns the pod that a socket is for, as [peer.Info] has it. nil: there is none.
	Registered func(socket string) peer.Maybe[peer.Pod]

	// Lost is told as soon as accept(2) on a listener fails for good: nobody can connect there any
	// more, and connections that exist are served to their own end. Serve returns the same error
	// then, after the last of them. May be nil.
	Lost func(l *net.UnixListener, socket string, err error)

	// Denied is told of each connection that is refused or closed for something the peer does, or has
	// too much of; why is one of [reason.Connection]. A peer that nobody knows has the uid 1<<32-1, which
	// is nobody's; one who may have no more connections has a uid and a pid alone. Nobody waits for it but
	// the connection that it is about. nil: nobody wants to know.
	Denied func(ctx context.Context, c *Conn, why reason.ID, text string)

	// Files has a call bring an open file (SCM_RIGHTS), but not one that is executed in parallel. What
	// is more than one, or has come with bytes of another call, is closed.
	Files bool

	// Lent says that the listeners are a service manager's, which goes on with them: Shutdown only
	// closes them, and whoever waits there waits for our successor.
	Lent bool

	// Log gets what the peers do wrong and the stacks of panics, never bytes of a message. nil is
	// silent.
	Log *slog.Logger

	// Phases times how long calls wait for their turns; nil: nobody wants to know.
	Phases *phase.Clock

	// Limits says how many connections, bytes for unfinished records and unread replies, large
	// calls at a time and lines in the log there are for whom; nil is what the limit of open files
	// permits. See [limits.ForProcess].
	Limits *limits.Limits

	once    sync.Once
	timeout time.Duration // of records; tests set another one than recordTimeout
	pool    sync.Pool     // of *buffers
	longer  longer

	drain, cut           context.Context // end when Shutdown begins, and when it has waited enough
	startDrain, startCut context.CancelFunc

	mu        sync.Mutex
	shut      bool // no more Serve, and no more calls of a Local
	listeners map[*net.UnixListener]*connections
	locals    map[*Local]struct{}
	serving   sync.WaitGroup // calls of Serve, and of a Local
}

// recordTimeout is how long a record may take once its first byte has arrived, and a reply once the
// socket is full. An idle connection may stay for ever.
const recordTimeout = 30 * time.Second

func (s *Server) setUp() {
	s.once.Do(func() {
		if s.Log == nil {
			s.Log = slog.New(slog.DiscardHandler)
		}
		s.timeout = cmp.Or(s.timeout, recordTimeout)
		if s.Program == nil {
			s.Program = &GSSProxy
		}
		if s.Limits == nil {
			s.Limits = limits.ForProcess()
		}
		s.pool.New = newBuffers
		s.listeners = make(map[*net.UnixListener]*connections)
		s.locals = make(map[*Local]struct{})
		s.drain, s.startDrain = context.WithCancel(context.Background())
		s.cut, s.startCut = context.WithCancel(context.Background())
	})
}
