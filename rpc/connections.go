package rpc

import (
	"time"
)

// Connection is a connection that there is, for who lists them.
type Connection struct {
	*Conn
	Since  time.Time
	Calls  uint64 // how many it has made
	InCall int    // how many of them are being executed, and then
	Proc   uint32 // what the last one of these is,
	For    time.Duration
}

// Connections lists the connections that there are, in no order.
func (s *Server) Connections() (list []Connection) {
	s.setUp()
	s.mu.Lock()
	all := make([]*connections, 0, len(s.listeners))
	for _, conns := range s.listeners {
		all = append(all, conns)
	}
	for l := range s.locals {
		list = append(list, l.conn.shown())
	}
	s.mu.Unlock()
	for _, conns := range all {
		conns.mu.Lock()
		for c := range conns.open {
			list = append(list, c.shown())
		}
		conns.mu.Unlock()
	}
	return list
}

// What is noted of a call is one word, so that its parts belong together: the microseconds from the
// connection's begin to the call's, 2000 years of them, and the procedure.
const procBits = 8

// began notes that a call begins. Who ends it counts it down.
func (c *conn) began(proc uint32) {
	c.running.Add(1)
	c.last.Store(uint64(time.Since(c.since).Microseconds())<<procBits | uint64(min(proc, 1<<procBits-1)))
}

func (c *conn) shown() Connection {
	shown := Connection{Conn: &c.Conn, Since: c.since, Calls: c.calls.Load(), InCall: int(c.running.Load())}
	if shown.InCall > 0 {
		last := c.last.Load()
		shown.Proc = uint32(last & (1<<procBits - 1))
		shown.For = time.Since(c.since) - time.Duration(last>>procBits)*time.Microsecond
	}
	return shown
}
