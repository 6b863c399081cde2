package rpc

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"

	"gssproxyd/limits"
	"gssproxyd/rpc/peer"
	"gssproxyd/xdr"
)

// Local is a connection without a socket, for a peer that reaches the daemon in another way. It
// carries one call at a time, so it must not be used by two goroutines at once.
type Local struct {
	server *Server
	conn   *conn
	ctx    context.Context // ends with Close, and when Shutdown has waited enough
	end    context.CancelFunc

	mu              sync.Mutex
	calling, closed bool
}

// Local returns a connection of p's. Its calls are executed as those of a connection to the socket
// would be, and it counts as one of p.UID's until it is closed. The error is a *[Fault] if p may have
// no more of them, and ErrShutdown once Shutdown has been called.
func (s *Server) Local(p *peer.Info, socket string) (*Local, error) {
	s.setUp()
	if err := s.enter(); err != nil {
		return nil, err
	}
	defer s.serving.Done()
	c, fault := s.open(p, socket, newStream(nil, nil, &s.pool, &s.longer, s.Limits.Buffers, p.UID, s.timeout))
	if fault != nil {
		s.refuse(s.cut, &s.serving, &c.Conn, fault)
		return nil, fmt.Errorf("rpc: %w", fault)
	}
	if s.Needs != nil {
		p.ReadNow(s.Needs(&c.Conn))
	}
	l := &Local{server: s, conn: c}
	l.ctx, l.end = context.WithCancel(s.cut)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.locals[l] = struct{}{}
	return l, nil
}

// enter begins something that Shutdown waits for, if that was not called before; s.serving.Done ends
// it.
func (s *Server) enter() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.shut {
		return ErrShutdown
	}
	s.serving.Add(1)
	return nil
}

// Close gives the connection back, once a call that is being executed has ended; the context of that
// ends now. It may be called from any goroutine.
func (l *Local) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.closed {
		l.closed = true
		l.end()
		l.giveBack()
	}
	return nil
}

// giveBack gives a closed connection back that makes no call. l.mu is held.
func (l *Local) giveBack() {
	if !l.closed || l.calling {
		return
	}
	l.server.Limits.Conns.Give(l.conn.uid, 1)
	l.server.mu.Lock()
	defer l.server.mu.Unlock()
	delete(l.server.locals, l)
}

// Call does what [Client.Call] does, with the same errors, but executes the call itself: it returns
// when the handler has, whose context ends with ctx. What a connection would be closed for is a
// *[Fault].
func (l *Local) Call(ctx context.Context, proc uint32, args []byte) ([]byte, error) {
	name := l.server.Program.Name(proc)
	if err := tooLong(name, args); err != nil {
		return nil, err
	}
	err := ctx.Err()
	if err == nil {
		err = l.begin()
	}
	if err != nil {
		return nil, fmt.Errorf("rpc: %v: %w", name, err)
	}
	defer l.done()
	results, err := l.call(ctx, proc, args)
	if err == nil {
		return results, nil
	}
	if _, ok := errors.AsType[*Error](err); !ok {
		l.Close()
	}
	return nil, fmt.Errorf("rpc: %v: %w", name, err)
}

func (l *Local) begin() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case l.calling:
		return errors.New("the connection carries another call")
	case l.closed:
		return ErrNotSent
	}
	if err := l.server.enter(); err != nil {
		return fmt.Errorf("%w: %w", ErrNotSent, err)
	}
	l.calling = true
	return nil
}

func (l *Local) done() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.calling = false
	l.giveBack()
	l.server.serving.Done()
}

func (l *Local) call(ctx context.Context, proc uint32, args []byte) ([]byte, error) {
	s, c := l.server, l.conn
	work, cancel := context.WithCancel(limits.WithPayer(ctx, c.uid))
	defer cancel()
	defer context.AfterFunc(l.ctx, cancel)()
	results, err := l.execute(work, proc, args)
	_, answered := errors.AsType[*Error](err)
	_, faulty := errors.AsType[*Fault](err)
	switch {
	case work.Err() != nil:
		clear(results)
		return nil, cmp.Or(ctx.Err(), ErrNoAnswer)
	case err == nil, answered:
		return results, err
	case faulty:
		s.closes(work, c, err)
		return nil, err
	default:
		s.Log.Debug("connection closed", "connection", c.ID, "error", err)
		return nil, ErrNoAnswer
	}
}

// errPanic is for a panic that is in the log.
var errPanic = errors.New("panic between calls")

func (l *Local) execute(ctx context.Context, proc uint32, args []byte) (own []byte, err error) {
	s, c := l.server, l.conn
	defer c.release()
	defer func() {
		if v := recover(); v != nil {
			s.complain(slog.LevelError, c.uid, "panic", nil, "panic between calls, connection closed", "socket", c.Socket, "panic", Describe(v), "stack", Stack())
			own, err = nil, errPanic
		}
	}()
	h := xdr.CallHeader{XID: uint32(c.calls.Add(1)), RPCVersion: xdr.RPCVersion, Program: s.Program.Number, Version: s.Program.Version, Procedure: proc}
	if err := c.hold(args); err != nil {
		return nil, err
	}
	service, err := s.match(ctx, c, proc)
	if err != nil {
		return nil, err
	}
	record, err := s.answerHere(ctx, c, &h, service, c.buf.in[:c.end])
	if err != nil {
		return nil, err
	}
	defer clear(record)
	answer, err := results(record[markLen:], h.XID)
	return bytes.Clone(answer), err
}
