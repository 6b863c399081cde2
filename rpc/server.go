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

	"gssproxyd/rpc/peer"
	"gssproxyd/xdr"
)

// Conn is a connection, as its calls see it.
type Conn struct {
	Peer   *peer.Peer // who connected; closed with the connection
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
	// when the connection is cut by this side, not when the peer goes away.
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

	// MaxConns limits the connections; if 0 it is what the limit of open
	// files permits, two for each connection, at most 32768.
	MaxConns int

	// MaxHeld limits the bytes held for unfinished records and unread replies
	// beyond the first 8 KiB of each connection; 64 MiB if 0.
	MaxHeld int

	once     sync.Once
	patience time.Duration // RecordTimeout
	pool     sync.Pool     // of *buffers
	conns    shares
	memory   shares
	ids      atomic.Uint64
	noise    damper

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
		favoured := [2]uint32{0, uint32(os.Geteuid())}
		s.conns = shares{limit: s.MaxConns, favoured: favoured}
		if s.conns.limit == 0 {
			s.conns.limit = connLimit()
		}
		s.memory = shares{limit: s.MaxHeld, favoured: favoured}
		if s.memory.limit == 0 {
			s.memory.limit = 64 << 20
		}
		s.pool.New = newBuffers
		s.listeners = make(map[*net.UnixListener]bool)
		s.drain, s.startDrain = context.WithCancel(context.Background())
		s.cut, s.startCut = context.WithCancel(context.Background())
	})
}

// connLimit leaves some files for everything else.
func connLimit() int {
	const most, least, others = 32768, 16, 64
	var files syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &files); err != nil {
		return 512
	}
	return int(max(least, min(most, (int64(min(files.Cur, 1<<30))-others)/2)))
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

	var conns sync.WaitGroup
	defer conns.Wait()
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
			conns.Go(func() { s.serveConn(ctx, nc, socket) })
		case errors.Is(err, net.ErrClosed), errors.Is(err, os.ErrDeadlineExceeded) && draining:
			return nil
		case errors.Is(err, os.ErrDeadlineExceeded): // Shutdown: accept those who wait already
			draining = true
		case isShortage(err):
			// The connection stays in the backlog; somebody must close
			// something first.
			pause = min(max(2*pause, 5*time.Millisecond), time.Second)
			s.noise.log(s.Log, "cannot accept a connection", "socket", socket, "error", err, "retry_in", pause)
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

// conn is one connection and the state that its calls reuse.
type conn struct {
	Conn
	*stream
	call Call

	// Calls that are executed beside the connection's goroutine.
	beside  sync.WaitGroup
	free    chan struct{} // holds one element for each of them
	writing sync.Mutex
}

func (s *Server) serveConn(ctx context.Context, nc *net.UnixConn, socket string) {
	defer nc.Close()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(ctx, func() { nc.Close() })()
	// The peer can send no more, and we read what it has sent up to the end.
	defer context.AfterFunc(s.drain, func() { nc.CloseRead() })()

	// Whose it is costs one system call; who exactly, twenty and a look at files of the peer's choice.
	who, err := peer.Credentials(nc)
	if err == nil {
		if !s.conns.take(who.UID, 1) {
			s.noise.log(s.Log, "connection refused: too many connections", "socket", socket, "uid", who.UID, "pid", who.PID)
			return
		}
		defer s.conns.give(who.UID, 1)
	}
	p, err := peer.FromConn(nc)
	if err != nil {
		s.noise.log(s.Log, "connection refused: cannot tell who is calling", "socket", socket, "error", err)
		return
	}
	defer p.Close()
	stream, err := newStream(nc, &s.pool, &s.memory, p.UID, s.patience)
	if err != nil {
		return // closed already
	}
	defer stream.release()
	defer func() {
		if v := recover(); v != nil {
			s.Log.Error("panic between calls, connection closed", "socket", socket, "panic", describe(v), "stack", stack())
		}
	}()

	c := &conn{Conn: Conn{Peer: p, Socket: socket, ID: s.ids.Add(1)}, stream: stream}
	defer c.beside.Wait()
	for {
		record, err := c.record()
		if err == nil {
			err = s.answer(ctx, c, record)
			clear(record) // contexts that clients keep come with their keys, here and in replies
		}
		switch {
		case err == nil:
			continue
		case err == io.EOF, err == errNoService, ctx.Err() != nil,
			errors.Is(err, syscall.EPIPE), errors.Is(err, syscall.ECONNRESET):
			s.Log.Debug("connection closed", "conn", c.ID, "reason", err)
		default:
			s.noise.log(s.Log, "connection closed", "conn", c.ID, "socket", socket, "uid", p.UID, "pid", p.PID, "reason", err)
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
	reply := s.execute(ctx, &c.call, &h, Call{Conn: &c.Conn, Service: service, Args: record[d.Offset():]}, c.buf.out)
	c.buf.out = reply[:0]
	err := c.write(reply)
	clear(reply)
	return err
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
	if !s.memory.take(c.uid, len(args)) {
		return errMemory
	}
	header, own := *h, bytes.Clone(args)
	c.beside.Go(func() {
		defer func() {
			clear(own)
			s.memory.give(c.uid, len(own))
			<-c.free
		}()
		b := s.pool.Get().(*buffers)
		reply := s.execute(ctx, new(Call), &header, Call{Conn: &c.Conn, Service: service, Args: own}, b.out)
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
			s.Log.Error("panic in a call", "conn", call.Conn.ID, "proc", xdr.Proc(call.Proc), "panic", describe(v), "stack", stack())
			reply, stat = room, SystemErr
		}
	}()
	reply, stat = s.Handle(ctx, call, room)
	if stat == Success && (len(reply) < len(room) || len(reply) > markLen+MaxRecord) {
		s.noise.log(s.Log, "no reply of a possible length", "conn", call.Conn.ID, "proc", xdr.Proc(call.Proc), "bytes", len(reply))
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

// damper lets one line a second through and counts the others, so that nobody
// can fill the disk with complaints about himself.
type damper struct {
	mu    sync.Mutex
	next  time.Time
	muted int
}

func (d *damper) log(l *slog.Logger, msg string, args ...any) {
	now := time.Now()
	d.mu.Lock()
	if now.Before(d.next) {
		d.muted++
		d.mu.Unlock()
		return
	}
	muted := d.muted
	d.next, d.muted = now.Add(time.Second), 0
	d.mu.Unlock()
	if muted > 0 {
		args = append(args, "similar", muted)
	}
	l.Warn(msg, args...)
}
