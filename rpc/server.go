package rpc

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"gssproxyd/limits"
	"gssproxyd/mech/reason"
	"gssproxyd/rpc/peer"
	"gssproxyd/xdr"
)

// Conn is a connection, as its calls see it.
type Conn struct {
	Peer   *peer.Info // who connected
	Socket string     // the name given to Serve
	ID     uint64     // counts the connections of a Server from 1

	// Left is what the handler of a call leaves for later calls of the connection, always of one type.
	Left atomic.Value
}

// Call is one call, valid until the handler returns.
type Call struct {
	Conn    *Conn
	Service any    // what Match returned
	XID     uint32 // chosen by the client
	Proc    uint32 // 1 to 15
	Args    []byte // the arguments and whatever follows them; aliases the record
}

// Server answers calls. Set the fields, then call Serve for each listener.
type Server struct {
	// Match decides which service a call belongs to. It is asked for every
	// call, the NULL procedure included and before anything is answered, so
	// that a changed configuration holds for connections that exist. With
	// false the connection is closed without an answer; the reason is Match's
	// to log. proc may have any value.
	Match func(ctx context.Context, c *Conn, proc uint32) (service any, ok bool)

	// Handle appends the results of a call to reply and returns that. Room
	// for the headers is in reply already. With any status but Success what
	// was appended is dropped. A panic becomes SystemErr. The context ends
	// when the connection is cut by this side, not when the peer goes away,
	// and names the caller as who pays ([limits.Payer]).
	Handle func(ctx context.Context, c *Call, reply []byte) ([]byte, AcceptStat)

	// Parallel is how many calls of one connection to a service may be executed
	// at once. Answers then go out as they become ready, which a client has to
	// be prepared for: the kernel is, and has one connection for everybody. nil,
	// or less than two, is one after the other.
	Parallel func(service any) int

	// Lost is told as soon as accept(2) on a listener fails for good: nobody can
	// connect there any more, and connections that exist are served to their own
	// end. Serve returns the same error then, after the last of them. May be nil.
	Lost func(l *net.UnixListener, socket string, err error)

	// Log gets what the peers do wrong and the stacks of panics, never bytes
	// of a message. nil is silent.
	Log *slog.Logger

	// RecordTimeout is how long a record may take once its first byte has
	// arrived, and a reply once the socket is full; 30 s if 0. An idle
	// connection may stay for ever.
	RecordTimeout time.Duration

	// Limits says how many connections, bytes for unfinished records and unread
	// replies, large calls at a time and lines in the log there are for whom;
	// nil is what the limit of open files permits. See [limits.ForProcess].
	Limits *limits.Limits

	once     sync.Once
	patience time.Duration // RecordTimeout
	pool     sync.Pool     // of *buffers
	longer   longer
	ids      atomic.Uint64

	drain, cut           context.Context // end when Shutdown begins, and when it has waited enough
	startDrain, startCut context.CancelFunc

	mu        sync.Mutex
	shut      bool // no more Serve
	listeners map[*net.UnixListener]bool
	serving   sync.WaitGroup // calls of Serve
}

func (s *Server) init() {
	s.once.Do(func() {
		if s.Log == nil {
			s.Log = slog.New(slog.DiscardHandler)
		}
		s.patience = s.RecordTimeout
		if s.patience == 0 {
			s.patience = 30 * time.Second
		}
		if s.Limits == nil {
			s.Limits = limits.ForProcess()
		}
		s.pool.New = newBuffers
		s.listeners = make(map[*net.UnixListener]bool)
		s.drain, s.startDrain = context.WithCancel(context.Background())
		s.cut, s.startCut = context.WithCancel(context.Background())
	})
}

// Serve answers calls on connections to l until ctx ends, Shutdown is called,
// or l is closed or fails. socket names the listener in Conn. The end of ctx
// cuts the connections and ends their calls' contexts; when l is closed by
// somebody else, connections that exist are served to their own end. Serve
// closes l and returns after the last connection: nil in all these cases but
// the failure, which Lost is told first; ErrShutdown if Shutdown was called
// before.
func (s *Server) Serve(ctx context.Context, l *net.UnixListener, socket string) error {
	defer l.Close()
	s.init()
	s.mu.Lock()
	if s.shut {
		s.mu.Unlock()
		return ErrShutdown
	}
	s.serving.Add(1)
	s.listeners[l] = true
	s.mu.Unlock()
	defer s.serving.Done()
	defer func() {
		s.mu.Lock()
		delete(s.listeners, l)
		s.mu.Unlock()
	}()

	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(s.cut, cancel)()
	closed := make(chan struct{})
	closing := context.AfterFunc(ctx, func() { l.Close(); close(closed) })
	defer func() {
		if !closing() {
			<-closed // a second Close does not wait for the first, and until that has ended somebody may connect
		}
	}()

	// One look-out for all connections: an idle one is to cost little.
	conns := connections{open: make(map[*net.UnixConn]struct{})}
	defer context.AfterFunc(ctx, conns.cut)()
	defer context.AfterFunc(s.drain, conns.drain)()
	defer conns.running.Wait()
	var pause time.Duration
	draining := false
	for {
		if draining {
			l.SetDeadline(time.Now().Add(lull))
		}
		nc, err := l.AcceptUnix()
		switch {
		case err == nil:
			pause = 0
			// Here, since it costs little: who may have no more connections and comes again and again must not
			// have others wait long behind him.
			who, ok := s.charge(nc, socket)
			if !ok {
				nc.Close()
				continue
			}
			conns.running.Go(func() { s.serveConn(ctx, nc, who, socket, &conns) })
		case errors.Is(err, net.ErrClosed), errors.Is(err, os.ErrDeadlineExceeded) && draining:
			return nil
		case errors.Is(err, os.ErrDeadlineExceeded): // Shutdown: accept those who wait already
			draining = true
		case isShortage(err):
			// The connection stays in the backlog; somebody must close
			// something first.
			pause = min(max(2*pause, 5*time.Millisecond), time.Second)
			if suppressed, ok := s.Limits.Lines.Take(uint32(os.Geteuid()), "accept", shortageRate, time.Now()); ok {
				s.Log.Warn("cannot accept a connection", "socket", socket, "error", err, "retry_in", pause, "suppressed", suppressed)
			}
			wait(ctx, pause)
		case errors.Is(err, syscall.ECONNABORTED), errors.Is(err, syscall.EINTR):
		default:
			l.Close() // who waits in the backlog would wait for the last connection's end
			err = fmt.Errorf("rpc: accept on %s: %w", socket, err)
			if s.Lost != nil {
				s.Lost(l, socket, err)
			}
			return err
		}
	}
}

// lull is how long no connection must come out of a backlog that nothing goes
// into any more until it is taken to be empty. None is delayed in there.
const lull = 10 * time.Millisecond

// shortageRate is how often it is said that there are no open files or no memory for a connection.
var shortageRate = limits.Rate{Burst: 1, Every: time.Second}

func isShortage(err error) bool {
	var errno syscall.Errno
	if !errors.As(err, &errno) {
		return false
	}
	switch errno {
	case syscall.EMFILE, syscall.ENFILE, syscall.ENOBUFS, syscall.ENOMEM:
		return true
	}
	return false
}

func wait(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}

// Shutdown ends the service: nobody can connect any more, and every call that a
// client has sent by now, be it on a connection that is not accepted yet, is
// executed and answered before its connection closes. A client that sends a call
// later finds the connection closed before the first byte, and knows that it may
// send it elsewhere. If that is not done when ctx ends, the connections are cut,
// their calls' contexts end, and Shutdown returns ctx's error.
//
// A listener that another process opened, a service manager say, is only closed:
// whoever waits there waits for our successor.
func (s *Server) Shutdown(ctx context.Context) error {
	s.init()
	s.mu.Lock()
	s.shut = true
	for l := range s.listeners { // before the connections, whose clients may come back
		stopListening(l)
	}
	s.mu.Unlock()
	s.startDrain()
	done := make(chan struct{})
	go func() {
		s.serving.Wait()
		close(done)
	}()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		s.startCut()
		return ctx.Err()
	}
}

// connections are those of one listener. Their calls' context is the listener's.
type connections struct {
	running sync.WaitGroup

	mu       sync.Mutex
	open     map[*net.UnixConn]struct{}
	draining bool
	over     bool
}

func (c *connections) add(nc *net.UnixConn) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.open[nc] = struct{}{}
	if c.draining {
		nc.CloseRead()
	}
	if c.over {
		nc.Close()
	}
}

func (c *connections) remove(nc *net.UnixConn) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.open, nc)
}

// drain has the peers send no more; we read what they have sent up to the end.
func (c *connections) drain() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.draining = true
	for nc := range c.open {
		nc.CloseRead()
	}
}

// cut closes them.
func (c *connections) cut() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.over = true
	for nc := range c.open {
		nc.Close()
	}
}

// conn is one connection and the state that its calls reuse.
type conn struct {
	Conn
	*stream
	call  Call
	calls uint64 // how many there were

	// Calls that are executed beside the connection's goroutine.
	beside  sync.WaitGroup
	free    chan struct{} // holds one element for each of them
	writing sync.Mutex
}

func (s *Server) serveConn(ctx context.Context, nc *net.UnixConn, who peer.Info, socket string, conns *connections) {
	conns.add(nc)
	var c *conn
	if ctx.Err() == nil {
		c = s.admit(nc, who, socket)
	}
	if c == nil {
		s.Limits.Conns.Give(who.UID, 1)
		conns.remove(nc)
		nc.Close()
		return
	}
	s.serveCalls(limits.WithPayer(ctx, who.UID), c, conns)
}

// charge finds out whose a connection is, and reports whether he may have one more. That costs one system call.
func (s *Server) charge(nc *net.UnixConn, socket string) (who peer.Info, ok bool) {
	who, err := peer.Credentials(nc)
	if err != nil {
		s.complain(slog.LevelWarn, unknownUID, "", &fault{reason.CallerUnknown, err.Error()}, "connection refused", "socket", socket)
		return who, false
	}
	if err := s.Limits.Conns.Take(who.UID, 1); err != nil {
		s.complain(slog.LevelWarn, who.UID, "", &fault{reason.TooManyConnections, err.Error()}, "connection refused", "socket", socket, "pid", who.PID)
		return who, false
	}
	return who, true
}

// admit finds out who exactly has connected, which takes fifteen system calls and a look at files of the peer's choice. It
// returns nil if that fails.
func (s *Server) admit(nc *net.UnixConn, who peer.Info, socket string) *conn {
	p, err := peer.FromConn(nc)
	if err == nil {
		var stream *stream
		if stream, err = newStream(nc, &s.pool, &s.longer, s.Limits.Buffers, p.UID, s.patience); err == nil {
			return &conn{Conn: Conn{Peer: p, Socket: socket, ID: s.ids.Add(1)}, stream: stream}
		}
	}
	s.complain(slog.LevelWarn, who.UID, "", &fault{reason.CallerUnknown, err.Error()}, "connection refused", "socket", socket, "pid", who.PID)
	return nil
}

// serveCalls answers a connection's calls to its end. Calls make a goroutine's stack grow, and it stays so while the
// goroutine waits; most connections make a call or a few and then wait for long. So after the first, the second, the
// fourth call and so on a new goroutine waits for the next one.
func (s *Server) serveCalls(ctx context.Context, c *conn, conns *connections) {
	aside := false
	defer func() {
		if v := recover(); v != nil {
			s.complain(slog.LevelError, c.uid, "panic", nil, "panic between calls, connection closed", "socket", c.Socket, "panic", describe(v), "stack", stack())
		}
		if !aside {
			c.beside.Wait()
			c.release()
			s.Limits.Conns.Give(c.uid, 1)
			conns.remove(c.nc)
			c.nc.Close()
		}
	}()
	for {
		record, err := c.record()
		if err == nil {
			c.calls++
			c.aside = c.calls&(c.calls-1) == 0
			err = s.answer(ctx, c, record)
			clear(record) // contexts that clients keep come with their keys, here and in replies
		}
		switch {
		case err == nil:
			continue
		case err == errAside:
			aside, c.aside = true, false
			conns.running.Go(func() { s.serveCalls(ctx, c, conns) })
		case err == io.EOF, err == errNoService, ctx.Err() != nil,
			errors.Is(err, syscall.EPIPE), errors.Is(err, syscall.ECONNRESET):
			s.Log.Debug("connection closed", "connection", c.ID, "error", err)
		default:
			s.complain(slog.LevelWarn, c.uid, "closed", err, "connection closed", "connection", c.ID, "socket", c.Socket, "pid", c.Peer.PID)
		}
		return
	}
}

// answer executes one call. An error closes the connection.
func (s *Server) answer(ctx context.Context, c *conn, record []byte) error {
	var d xdr.Decoder
	d.Reset(record)
	var h xdr.CallHeader
	h.Decode(&d)
	if d.Err() != nil || h.MsgType != xdr.MsgCall {
		return errNoCall
	}
	service, ok := s.Match(ctx, &c.Conn, h.Procedure)
	if !ok {
		return errNoService
	}
	if s.Parallel != nil {
		if n := s.Parallel(service); n > 1 {
			return s.answerBeside(ctx, c, &h, service, record[d.Offset():], n)
		}
	}
	c.beside.Wait()
	ctx, turn, err := s.turn(ctx, c.uid, len(record))
	if err != nil {
		return err
	}
	reply := s.execute(ctx, &c.call, &h, Call{Conn: &c.Conn, Service: service, Args: record[d.Offset():]}, c.buf.out)
	turn.End()
	c.buf.out = reply[:0]
	err = c.write(reply)
	clear(reply)
	return err
}

// largeCall is the length in bytes of a record from which on the call waits for its turn.
const largeCall = 16 << 10

// turn waits for a call's turn if its record of n bytes is long: what a call costs grows with what it brings. A message to
// wrap costs as much as a few accepts at this length and some milliseconds at the most, a ticket that has to be tried with
// many keys so much for each. Other calls have and need no turn. A handler that waits for something ends the turn with
// [limits.EndTurn].
func (s *Server) turn(ctx context.Context, uid uint32, n int) (context.Context, *limits.Turn, error) {
	if n < largeCall {
		return ctx, nil, nil
	}
	turn, err := s.Limits.Turns.Take(ctx, uid)
	if e := (*limits.Error)(nil); errors.As(err, &e) {
		return nil, nil, &fault{reason.TooManyLargeCalls, err.Error()}
	} else if err != nil {
		return nil, nil, err
	}
	return turn.Context(ctx), turn, nil
}

// answerBeside executes one call in a goroutine of its own, once there are fewer
// than n of them. args alias the record, which the next one overwrites.
func (s *Server) answerBeside(ctx context.Context, c *conn, h *xdr.CallHeader, service any, args []byte, n int) error {
	if c.free == nil {
		c.free = make(chan struct{}, n)
	}
	select {
	case c.free <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	}
	if err := s.Limits.Buffers.Take(c.uid, len(args)); err != nil {
		return &fault{reason.TooMuchBuffered, err.Error()}
	}
	header, own := *h, bytes.Clone(args)
	c.beside.Go(func() {
		defer func() {
			clear(own)
			s.Limits.Buffers.Give(c.uid, len(own))
			<-c.free
		}()
		work, turn, err := s.turn(ctx, c.uid, len(own))
		if err != nil {
			if ctx.Err() == nil {
				s.complain(slog.LevelWarn, c.uid, "closed", err, "connection closed", "connection", c.ID, "socket", c.Socket, "pid", c.Peer.PID)
			}
			c.nc.Close() // which ends the connection's goroutine
			return
		}
		b := s.pool.Get().(*buffers)
		reply := s.execute(work, new(Call), &header, Call{Conn: &c.Conn, Service: service, Args: own}, b.out)
		turn.End()
		c.writing.Lock()
		defer c.writing.Unlock()
		c.nc.SetWriteDeadline(time.Now().Add(s.patience))
		if _, err := c.nc.Write(reply); err != nil {
			c.nc.Close() // which ends the connection's goroutine
		}
		c.nc.SetWriteDeadline(time.Time{})
		clear(reply)
		if cap(reply) <= keepLen {
			b.out = reply[:0]
			s.pool.Put(b)
		}
	})
	return nil
}

// execute answers one call: reply has the whole record, in out's memory if that
// is enough. call, filled with what is known of it, is lent to Handle.
func (s *Server) execute(ctx context.Context, call *Call, h *xdr.CallHeader, known Call, out []byte) []byte {
	reply := out[:markLen+replyLen]
	head := xdr.ReplyHeader{XID: h.XID, MsgType: xdr.MsgReply}
	accept, deny := &head.Reply.Accepted.Outcome, &head.Reply.Denied
	switch {
	case h.RPCVersion != xdr.RPCVersion:
		head.Reply.Stat = xdr.ReplyDenied
		deny.Stat, deny.Mismatch = xdr.RejectRPCMismatch, xdr.Mismatch{Low: xdr.RPCVersion, High: xdr.RPCVersion}
	case h.Program != xdr.Program:
		accept.Stat = ProgUnavail
	case h.Version != xdr.Version:
		accept.Stat = ProgMismatch
	case h.Procedure > uint32(xdr.ProcWrapSizeLimit):
		accept.Stat = ProcUnavail
	case h.Cred.Flavor != xdr.AuthNone:
		head.Reply.Stat = xdr.ReplyDenied
		deny.Stat, deny.AuthStat = xdr.RejectAuthError, xdr.AuthStatFailed
	case h.Procedure != uint32(xdr.ProcNull):
		known.XID, known.Proc = h.XID, h.Procedure
		*call = known
		reply, accept.Stat = s.handle(ctx, call, reply)
		*call = Call{}
	}
	if accept.Stat == ProgMismatch {
		accept.Mismatch = xdr.Mismatch{Low: xdr.Version, High: xdr.Version}
	}
	results := reply[markLen+replyLen:]
	reply = head.Append(reply[:markLen])
	if head.Reply.Stat == xdr.ReplyAccepted && accept.Stat == Success {
		reply = reply[:len(reply)+len(results)] // where Append has left them
	}
	xdr.AppendUint32(reply[:0], lastFragment|uint32(len(reply)-markLen))
	return reply
}

// handle calls Handle. What it returns begins with room for the headers, and is
// no longer than a record.
func (s *Server) handle(ctx context.Context, call *Call, room []byte) (reply []byte, stat AcceptStat) {
	defer func() {
		if v := recover(); v != nil {
			s.complain(slog.LevelError, call.Conn.Peer.UID, "panic", nil, "panic in a call", "connection", call.Conn.ID, "procedure", xdr.Proc(call.Proc), "panic", describe(v), "stack", stack())
			reply, stat = room, SystemErr
		}
	}()
	reply, stat = s.Handle(ctx, call, room)
	if stat == Success && (len(reply) < len(room) || len(reply) > markLen+MaxRecord) {
		s.complain(slog.LevelError, call.Conn.Peer.UID, "reply", nil, "no reply of a possible length", "connection", call.Conn.ID, "procedure", xdr.Proc(call.Proc), "bytes", len(reply))
		stat = SystemErr
	}
	if stat != Success {
		reply = room
	}
	return reply, stat
}

// describe says what was panicked with. The text of a run-time error is made of
// types and numbers; any other value may hold what must not be logged.
func describe(v any) string {
	if err, ok := v.(runtime.Error); ok {
		return err.Error()
	}
	return fmt.Sprintf("%T", v)
}

// stack lists the functions that led to the panic. Unlike debug.Stack it has no
// arguments, which may be bytes of a key.
func stack() string {
	var pcs [64]uintptr
	frames := runtime.CallersFrames(pcs[:runtime.Callers(3, pcs[:])])
	var b strings.Builder
	for {
		f, more := frames.Next()
		fmt.Fprintf(&b, "%s %s:%d\n", f.Function, f.File, f.Line)
		if !more {
			return b.String()
		}
	}
}
