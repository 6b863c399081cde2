package rpc

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"sync"
	"syscall"
	"time"

	"gssproxyd/limits"
	"gssproxyd/rpc/peer"
)

// Serve answers calls on connections to l until ctx ends, Shutdown is called, or l is closed or
// fails. socket names the listener in Conn. The end of ctx cuts the connections and ends their
// calls' contexts; when l is closed by somebody else, connections that exist are served to their
// own end. Serve closes l and returns after the last connection: nil in all these cases but the
// failure, which Lost is told first; ErrShutdown if Shutdown was called before.
func (s *Server) Serve(ctx context.Context, l *net.UnixListener, socket string) error {
	defer l.Close()
	s.setUp()
	// One look-out for all connections: an idle one is to cost little.
	conns := connections{open: make(map[*conn]struct{})}
	s.mu.Lock()
	if s.shut {
		s.mu.Unlock()
		return ErrShutdown
	}
	s.serving.Add(1)
	s.listeners[l] = &conns
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

	defer context.AfterFunc(ctx, conns.cut)()
	defer context.AfterFunc(s.drain, conns.drain)()
	defer conns.running.Wait()
	var pause time.Duration
	draining := false
	for {
		if draining {
			l.SetDeadline(time.Now().Add(emptyAfter))
		}
		nc, err := l.AcceptUnix()
		switch {
		case err == nil:
			pause = 0
			// Here, since it costs little: who may have no more connections and comes again and
			// again must not have others wait long behind him.
			if c := s.admit(ctx, nc, socket, &conns); c != nil {
				conns.running.Go(func() { s.serveConn(ctx, c, &conns) })
			} else {
				nc.Close()
			}
		case errors.Is(err, net.ErrClosed), errors.Is(err, os.ErrDeadlineExceeded) && draining:
			return nil
		case errors.Is(err, os.ErrDeadlineExceeded): // Shutdown: accept those who wait already
			draining = true
		case peer.IsShortage(err):
			// The connection stays in the backlog; somebody must close something first.
			pause = min(max(2*pause, 5*time.Millisecond), time.Second)
			s.Limits.Lines.Log(s.Log, slog.LevelWarn, uint32(os.Geteuid()), "accept", shortageRate, time.Now(), "cannot accept a connection", func() []any {
				return []any{"socket", socket, "error", err, "retry_in", pause}
			})
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

// emptyAfter is how long no connection must come out of a backlog that nothing goes into any more
// until it is taken to be empty. None is delayed in there.
const emptyAfter = 10 * time.Millisecond

// shortageRate is how often it is said that there are no open files or no memory for a connection.
var shortageRate = limits.Rate{Burst: 1, Every: time.Second}

func wait(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}

// Shutdown ends the service: nobody can connect any more, and every call that a client has sent by
// now, be it on a connection that is not accepted yet, is executed and answered before its
// connection closes. A client that sends a call later finds the connection closed before the last
// byte, and knows that it may send it elsewhere. If that is not done when ctx ends, the connections
// are cut, their calls' contexts end, and Shutdown returns ctx's error. Calls of a [Local] are waited
// for and cut like those of connections.
func (s *Server) Shutdown(ctx context.Context) error {
	s.setUp()
	s.mu.Lock()
	s.shut = true
	for l := range s.listeners { // before the connections, whose clients may come back
		if s.Lent {
			l.Close()
		} else {
			stopListening(l)
		}
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

// Cut closes the connections of a listener, and those that it accepts from now on: when Cut returns
// none of them is answered any more. To end its calls' contexts is for the end of Serve's.
func (s *Server) Cut(l *net.UnixListener) {
	s.setUp()
	s.mu.Lock()
	conns := s.listeners[l]
	s.mu.Unlock()
	if conns != nil {
		conns.cut()
	}
}

// connections are those of one listener. Their calls' context is the listener's.
type connections struct {
	running sync.WaitGroup

	mu       sync.Mutex
	open     map[*conn]struct{}
	draining bool
	over     bool
}

func (c *connections) add(one *conn) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.open[one] = struct{}{}
	if c.draining {
		one.nc.CloseRead()
	}
	if c.over {
		one.nc.Close()
	}
}

func (c *connections) remove(one *conn) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.open, one)
}

// drain has the peers send no more; we read what they have sent up to the end.
func (c *connections) drain() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.draining = true
	for one := range c.open {
		one.nc.CloseRead()
	}
}

// cut closes them.
func (c *connections) cut() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.over = true
	for one := range c.open {
		one.nc.Close()
	}
}
