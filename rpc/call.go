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
	service, err := s.match(ctx, c, h.Procedure)
	if err != nil {
		return err
	}
	if n := service.Parallel(); n > 1 {
		return s.answerParallel(ctx, c, &h, service, record[d.Offset():], n)
	}
	c.parallel.Wait()
	reply, err := s.answerHere(ctx, c, &h, service, record[d.Offset():])
	if err != nil {
		return err
	}
	err = c.write(reply)
	clear(reply)
	return err
}

// match asks which service a call belongs to.
func (s *Server) match(ctx context.Context, c *conn, proc uint32) (Service, error) {
	service, ok := s.Match(ctx, &c.Conn, proc)
	if err := c.Peer.Err(); err != nil { // a rule that was not met might have been
		return nil, &Fault{reason.CallerUnknown, err.Error()}
	}
	if !ok {
		return nil, errNoService
	}
	return service, nil
}

// answerHere executes one call in its turn and returns the record of the answer, which is the
// connection's memory and for the caller to clear.
func (s *Server) answerHere(ctx context.Context, c *conn, h *xdr.CallHeader, service Service, args []byte) ([]byte, error) {
	ctx, turn, err := s.turn(ctx, c.uid, callLen+len(args))
	if err != nil {
		return nil, err
	}
	c.began(h.Procedure)
	reply := s.execute(ctx, service, &c.call, h, Call{Conn: &c.Conn, N: c.calls.Load(), Args: args, File: c.takeFile()}, c.buf.reply())
	c.running.Add(-1)
	turn.End()
	c.buf.out = reply[:0]
	return reply, nil
}

// turn waits for a call's turn, whose record has n bytes.
func (s *Server) turn(ctx context.Context, uid uint32, n int) (context.Context, *limits.Turn, error) {
	defer s.Phases.Begin().End(phase.Queue)
	work, turn, err := s.Limits.Turn(ctx, uid, n)
	if _, ok := errors.AsType[*limits.Error](err); ok {
		err = &Fault{reason.TooManyLargeCalls, err.Error()}
	}
	return work, turn, err
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
		return &Fault{reason.TooMuchBuffered, err.Error()}
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
		known.File = call.File // unless the handler has taken it
		*call = Call{}
	}
	if known.File != nil {
		known.File.Close()
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
