package rpc

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime"
	"strings"
	"time"

	"gssproxyd/limits"
	"gssproxyd/mech/reason"
	"gssproxyd/phase"
	"gssproxyd/xdr"
)

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
	if err := c.Peer.Err(); err != nil { // a rule that was not met might have been
		return &fault{reason.CallerUnknown, err.Error()}
	}
	if !ok {
		return errNoService
	}
	if n := service.Parallel(); n > 1 {
		return s.answerParallel(ctx, c, &h, service, record[d.Offset():], n)
	}
	c.parallel.Wait()
	ctx, turn, err := s.turn(ctx, c.uid, len(record))
	if err != nil {
		return err
	}
	c.began(h.Procedure)
	reply := s.execute(ctx, service, &c.call, &h, Call{Conn: &c.Conn, N: c.calls.Load(), Args: record[d.Offset():]}, c.buf.reply())
	c.running.Add(-1)
	turn.End()
	c.buf.out = reply[:0]
	err = c.write(reply)
	clear(reply)
	return err
}

// largeCall is the length in bytes of a record from which on the call waits for its turn.
const largeCall = 16 << 10

// turn waits for a call's turn if its record of n bytes is long: what a call costs grows with what
// it brings. A message to wrap costs as much as a few accepts at this length and some milliseconds
// at the most, a ticket that has to be tried with many keys so much for each. Then a call of any
// length waits for a processor. A handler that waits for something ends both turns with
// [limits.EndTurn].
func (s *Server) turn(ctx context.Context, uid uint32, n int) (context.Context, *limits.Turn, error) {
	defer s.Phases.Begin().End(phase.Queue)
	var large *limits.Turn
	if n >= largeCall {
		turn, err := s.Limits.Turns.Take(ctx, uid)
		if _, ok := errors.AsType[*limits.Error](err); ok {
			return nil, nil, &fault{reason.TooManyLargeCalls, err.Error()}
		} else if err != nil {
			return nil, nil, err
		}
		large, ctx = turn, turn.Context(ctx)
	}
	turn, err := s.Limits.Processors.Take(ctx, uid)
	if err != nil {
		large.End()
		return nil, nil, err
	}
	if turn == nil {
		return ctx, large, nil
	}
	return turn.Context(ctx), turn, nil
}

// answerParallel executes one call in a goroutine of its own, once there are fewer than n of them.
// args alias the record, which the next one overwrites.
func (s *Server) answerParallel(ctx context.Context, c *conn, h *xdr.CallHeader, service Service, args []byte, n int) error {
	number := c.calls.Load()
	if c.slots == nil {
		c.slots = make(chan struct{}, n)
	}
	select {
	case c.slots <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	}
	if err := s.Limits.Buffers.Take(c.uid, len(args)); err != nil {
		return &fault{reason.TooMuchBuffered, err.Error()}
	}
	header, own := *h, bytes.Clone(args)
	c.parallel.Go(func() {
		defer func() {
			clear(own)
			s.Limits.Buffers.Give(c.uid, len(own))
			<-c.slots
		}()
		work, turn, err := s.turn(ctx, c.uid, len(own))
		if err != nil {
			if ctx.Err() == nil {
				s.closes(ctx, c, err)
			}
			c.nc.Close() // which ends the connection's goroutine
			return
		}
		b := s.pool.Get().(*buffers)
		c.began(header.Procedure)
		reply := s.execute(work, service, new(Call), &header, Call{Conn: &c.Conn, N: number, Args: own}, b.reply())
		c.running.Add(-1)
		turn.End()
		c.writing.Lock()
		defer c.writing.Unlock()
		c.nc.SetWriteDeadline(time.Now().Add(s.timeout))
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

// execute answers one call: reply has the whole record, in out's memory if that is enough. call,
// filled with what is known of it, is lent to Handle.
func (s *Server) execute(ctx context.Context, service Service, call *Call, h *xdr.CallHeader, known Call, out []byte) []byte {
	reply := out[:markLen+replyLen]
	head := xdr.ReplyHeader{XID: h.XID, MsgType: xdr.MsgReply}
	accept, deny := &head.Reply.Accepted.Outcome, &head.Reply.Denied
	switch {
	case h.RPCVersion != xdr.RPCVersion:
		head.Reply.Stat = xdr.ReplyDenied
		deny.Stat, deny.Mismatch = xdr.RejectRPCMismatch, xdr.Mismatch{Low: xdr.RPCVersion, High: xdr.RPCVersion}
	case h.Program != s.Program.Number:
		accept.Stat = ProgUnavail
	case h.Version != s.Program.Version:
		accept.Stat = ProgMismatch
	case h.Procedure > s.Program.Last:
		accept.Stat = ProcUnavail
	case h.Cred.Flavor != xdr.AuthNone:
		head.Reply.Stat = xdr.ReplyDenied
		deny.Stat, deny.AuthStat = xdr.RejectAuthError, xdr.AuthStatFailed
	case h.Procedure != uint32(xdr.ProcNull):
		known.XID, known.Proc = h.XID, h.Procedure
		*call = known
		reply, accept.Stat = s.handle(ctx, service, call, reply)
		*call = Call{}
	}
	if accept.Stat == ProgMismatch {
		accept.Mismatch = xdr.Mismatch{Low: s.Program.Version, High: s.Program.Version}
	}
	results := reply[markLen+replyLen:]
	reply = head.Append(reply[:markLen])
	if head.Reply.Stat == xdr.ReplyAccepted && accept.Stat == Success {
		reply = reply[:len(reply)+len(results)] // where Append has left them
	}
	xdr.AppendUint32(reply[:0], lastFragment|uint32(len(reply)-markLen))
	return reply
}

// handle has the service handle a call. What it returns begins with room for the headers, and is no
// longer than a record.
func (s *Server) handle(ctx context.Context, service Service, call *Call, room []byte) (reply []byte, stat AcceptStat) {
	defer func() {
		if v := recover(); v != nil {
			s.complain(slog.LevelError, call.Conn.Peer.UID, "panic", nil, "panic in a call", "connection", call.Conn.ID, "procedure", s.Program.Name(call.Proc), "panic", Describe(v), "stack", Stack())
			reply, stat = room, SystemErr
		}
	}()
	reply, stat = service.Handle(ctx, call, room)
	if stat == Success && (len(reply) < len(room) || len(reply) > markLen+MaxRecord) {
		s.complain(slog.LevelError, call.Conn.Peer.UID, "reply", nil, "no reply of a possible length", "connection", call.Conn.ID, "procedure", s.Program.Name(call.Proc), "bytes", len(reply))
		stat = SystemErr
	}
	if stat != Success {
		reply = room
	}
	return reply, stat
}

// Describe says what was panicked with, for a log. The text of a run-time error is made of types and
// numbers; any other value may hold what must not be logged.
func Describe(v any) string {
	if err, ok := v.(runtime.Error); ok {
		return err.Error()
	}
	return fmt.Sprintf("%T", v)
}

// Stack lists the functions that led to the panic whose deferred function calls it. Unlike debug.Stack it has no arguments, which
// may be bytes of a key.
func Stack() string {
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
