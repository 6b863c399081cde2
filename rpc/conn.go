package rpc

import (
	"context"
	"crypto/rand"
	"errors"
	"io"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"gssproxyd/limits"
	"gssproxyd/mech/reason"
	"gssproxyd/rpc/peer"
)

// conn is one connection and the state that its calls reuse.
type conn struct {
	Conn
	*stream
	call  Call
	since time.Time

	// What is written by the connection's goroutines, and read by who lists connections.
	calls   atomic.Uint64 // how many there were
	running atomic.Int32  // of them, now
	last    atomic.Uint64 // the one that began last, see began

	// Calls that are executed in parallel.
	parallel sync.WaitGroup
	slots    chan struct{} // holds one element for each of them
	writing  sync.Mutex
}

// idLen is the length of a connection's id: 50 bits that nobody can guess.
const idLen = 10

// admit returns a connection, or nil if it is refused: it is not known whose it is, or he may have
// no more. That costs one system call.
func (s *Server) admit(ctx context.Context, nc *net.UnixConn, socket string, conns *connections) *conn {
	p, err := peer.FromConn(nc)
	var raw syscall.RawConn
	if err == nil {
		raw, err = nc.SyscallConn()
	}
	if err != nil {
		s.refuse(ctx, &conns.running, &Conn{Peer: &peer.Info{UID: unknownUID}, Socket: socket}, &Fault{reason.CallerUnknown, err.Error()})
		return nil
	}
	if s.Registered != nil {
		p.Registered = s.Registered(socket)
	}
	c, fault := s.open(p, socket, newStream(nc, raw, &s.pool, &s.longer, s.Limits.Buffers, p.UID, s.timeout))
	if s.Files {
		c.readOnce = c.tryReceive
	}
	if fault != nil {
		s.refuse(ctx, &conns.running, &c.Conn, fault)
		return nil
	}
	return c
}

// open returns a connection. With a fault p may have no more of them, and the connection is one to
// tell of only.
func (s *Server) open(p *peer.Info, socket string, stream *stream) (*conn, *Fault) {
	if err := s.Limits.Conns.Take(p.UID, 1); err != nil {
		made := &peer.Info{UID: p.UID, GID: p.GID, PID: p.PID} // of which nothing is asked that costs more
		return &conn{Conn: Conn{Peer: made, Socket: socket}}, &Fault{reason.TooManyConnections, err.Error()}
	}
	return &conn{Conn: Conn{Peer: p, Socket: socket, ID: rand.Text()[:idLen]}, since: time.Now(), stream: stream}, nil
}

// refuse says that a connection is refused. Who accepts connections does not wait for who is told.
func (s *Server) refuse(ctx context.Context, telling *sync.WaitGroup, c *Conn, f *Fault) {
	s.complain(slog.LevelWarn, c.Peer.UID, "", f, "connection refused", "socket", c.Socket, "pid", c.Peer.PID)
	if s.Denied != nil {
		c.ID = rand.Text()[:idLen]
		telling.Go(func() { s.Denied(ctx, c, f.Reason, f.Text) })
	}
}

// closes says that a connection is closed for what its peer does, or for a failure.
func (s *Server) closes(ctx context.Context, c *conn, err error) {
	s.complain(slog.LevelWarn, c.uid, "closed", err, "connection closed", "connection", c.ID, "socket", c.Socket, "pid", c.Peer.PID)
	if f, ok := errors.AsType[*Fault](err); ok && s.Denied != nil {
		s.Denied(ctx, &c.Conn, f.Reason, f.Text)
	}
}

func (s *Server) serveConn(ctx context.Context, c *conn, conns *connections) {
	conns.add(c)
	if s.Needs != nil {
		c.Peer.ReadNow(s.Needs(&c.Conn))
	}
	s.serveCalls(limits.WithPayer(ctx, c.uid), c, conns)
}

// serveCalls answers a connection's calls to its end. Calls make a goroutine's stack grow, and it
// stays so while the goroutine waits; most connections make a call or a few and then wait for long.
// So after the first, the second, the fourth call and so on a new goroutine waits for the next one.
func (s *Server) serveCalls(ctx context.Context, c *conn, conns *connections) {
	handedOver := false
	defer func() {
		if v := recover(); v != nil {
			s.complain(slog.LevelError, c.uid, "panic", nil, "panic between calls, connection closed", "socket", c.Socket, "panic", Describe(v), "stack", Stack())
		}
		if !handedOver {
			c.parallel.Wait()
			c.release()
			c.dropFile()
			s.Limits.Conns.Give(c.uid, 1)
			conns.remove(c)
			c.nc.Close()
		}
	}()
	for {
		record, err := c.record()
		if err == nil {
			calls := c.calls.Add(1)
			c.returnIdle = calls&(calls-1) == 0
			err = s.answer(ctx, c, record)
			clear(record) // contexts that clients keep come with their keys, here and in replies
			c.dropFile()
		}
		switch {
		case err == nil:
			continue
		case err == errIdle:
			handedOver, c.returnIdle = true, false
			conns.running.Go(func() { s.serveCalls(ctx, c, conns) })
		case err == io.EOF, err == errNoService, ctx.Err() != nil,
			errors.Is(err, syscall.EPIPE), errors.Is(err, syscall.ECONNRESET):
			s.Log.Debug("connection closed", "connection", c.ID, "error", err)
		default:
			s.closes(ctx, c, err)
		}
		return
	}
}
