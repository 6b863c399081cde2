// Package interposer gives a Go program the Kerberos contexts of a gssproxy daemon without giving
// it any keys. The program hands the daemon the tokens it receives; the daemon, which has the
// keytab, answers with the peer's token and the established context; messages are then wrapped and
// unwrapped here.
//
// The daemon decides by the caller's uid, program and socket which credentials it uses; see
// gssproxyd.conf(5). The C daemon speaks the same protocol.
//
// What the daemon refuses comes back as a *[mech.Error] with the daemon's texts. Every other error
// is about reaching the daemon.
package interposer

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"

	"gssproxyd/rpc"
	"gssproxyd/xdr"
)

// DefaultSocket is where packages of gssproxy have their socket for programs.
const DefaultSocket = "/var/lib/gssproxy/default.sock"

// Options of a Client. The zero value will do.
type Options struct {
	// ServerUID lists the users, besides root, whose daemon may be given tokens. If it is empty our
	// own effective uid is trusted too.
	ServerUID []uint32

	// MaxConns is how many calls are made at once, each on a connection of its own; more wait. 8 if
	// 0.
	MaxConns int
}

// Client makes calls to one daemon. It may be used by any number of goroutines. Connections are
// kept and are replaced when they fail or when the program has changed its user since, because the
// daemon knows us by who we were when we connected. So a daemon may be restarted between two calls;
// a call that was sent to a daemon that ended before it answered fails.
type Client struct {
	socket string
	uids   []uint32
	slots  chan struct{} // one element for each call in flight

	mu     sync.Mutex
	idle   []conn // the last was used last
	closed bool
}

type conn struct {
	*rpc.Client
	uid, gid int // ours, at connect(2)
}

// Dial connects to the daemon at socket. If that is empty it is the value of GSSPROXY_SOCKET, or
// else DefaultSocket. The error says so if there is no daemon, or if it runs as a user that is not
// trusted.
func Dial(ctx context.Context, socket string, o Options) (*Client, error) {
	if socket == "" {
		socket = os.Getenv("GSSPROXY_SOCKET")
	}
	if socket == "" {
		socket = DefaultSocket
	}
	if o.MaxConns <= 0 {
		o.MaxConns = 8
	}
	c := &Client{socket: socket, uids: o.ServerUID, slots: make(chan struct{}, o.MaxConns)}
	first, err := c.dial(ctx)
	if err != nil {
		return nil, fmt.Errorf("gssproxy: %w", err)
	}
	c.idle = []conn{first}
	return c, nil
}

// Close closes the connections. Calls in flight end as they would have; later ones fail.
func (c *Client) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.closed = true
	for _, conn := range c.idle {
		conn.Close()
	}
	c.idle = nil
	return nil
}

// Ping makes a NULL call: the daemon is there and serves us. The C daemon has no such procedure and
// answers with an error that wraps *[rpc.Error], which proves as much.
func (c *Client) Ping(ctx context.Context) error {
	_, err := c.exchange(ctx, xdr.ProcNull, nil)
	return err
}

func (c *Client) dial(ctx context.Context) (conn, error) {
	uid, gid := os.Geteuid(), os.Getegid()
	rc, err := rpc.Dial(ctx, c.socket, c.uids...)
	return conn{rc, uid, gid}, err
}

// take returns an idle connection that is as we are now.
func (c *Client) take() (conn, bool, error) {
	uid, gid := os.Geteuid(), os.Getegid()
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return conn{}, false, errors.New("gssproxy: the client is closed")
	}
	for n := len(c.idle); n > 0; n = len(c.idle) {
		last := c.idle[n-1]
		c.idle = c.idle[:n-1]
		if last.uid == uid && last.gid == gid {
			return last, true, nil
		}
		last.Close()
	}
	return conn{}, false, nil
}

func (c *Client) put(used conn) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		used.Close()
		return
	}
	c.idle = append(c.idle, used)
}

// exchange makes one call. A connection that the daemon has closed meanwhile is replaced, once,
// because then the daemon has seen nothing of the call.
func (c *Client) exchange(ctx context.Context, proc xdr.Proc, args []byte) ([]byte, error) {
	select {
	case c.slots <- struct{}{}:
		defer func() { <-c.slots }()
	case <-ctx.Done():
		return nil, fmt.Errorf("gssproxy: %v: waiting for a connection: %w", proc, ctx.Err())
	}
	used, kept, err := c.take()
	if err != nil {
		return nil, err
	}
	for {
		if !kept {
			if used, err = c.dial(ctx); err != nil {
				return nil, fmt.Errorf("gssproxy: %w", err)
			}
		}
		results, err := used.Call(ctx, uint32(proc), args)
		if _, answered := errors.AsType[*rpc.Error](err); answered || err == nil {
			c.put(used)
		} else {
			used.Close()
		}
		if kept && errors.Is(err, rpc.ErrNotSent) {
			kept = false
			continue
		}
		if errors.Is(err, rpc.ErrNoAnswer) {
			err = fmt.Errorf("%w; does its configuration have a service for uid %d and this program on %s?", err, used.uid, c.socket)
		}
		if err != nil {
			err = fmt.Errorf("gssproxy: %w", err)
		}
		return results, err
	}
}

// call makes one call and decodes its results, which belong to res alone. What the daemon refuses
// by their status is an error, with their token for the peer where there can be one.
func (c *Client) call(ctx context.Context, proc xdr.Proc, arg, res xdr.Message, status *xdr.Status, token *[]byte) error {
	results, err := c.exchange(ctx, proc, arg.Append(nil))
	if err != nil {
		return err
	}
	d := xdr.NewDecoder(results)
	if res.Decode(d); d.Err() != nil {
		return fmt.Errorf("gssproxy: %v: the results: %w", proc, d.Err())
	}
	return failure(status, token)
}
