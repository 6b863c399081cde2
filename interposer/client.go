// Package interposer gives a Go program the Kerberos contexts of a gssproxy daemon without giving
// it any keys. The program hands the daemon the tokens it receives; the daemon, which has the
// keytab, answers with the peer's token and the established context; messages are then wrapped and
// unwrapped here.
//
// A program makes one [Client] for the daemon, and contexts with it: [Client.AcceptSecContext] and
// [Client.InitSecContext] begin one, [SecContext.Step] takes the peer's next token, and
// [SecContext.Peer] says who it is once the context is established. As whom a context is initiated
// is always said: [ServiceCred] is the program's own credential, and another [Cred] that of a user,
// who has delegated it or whom the program may act for. For HTTP, SSH and PostgreSQL there are
// packages negotiate, sshgss and pggss beside this one.
//
// The daemon decides by the caller's uid, program and socket which credentials it uses; see
// gssproxyd.conf(5). The C daemon speaks the same protocol.
//
// # Errors
//
// What the daemon refuses comes back as a *[mech.Error] with the daemon's texts. [mech.ReasonOf]
// returns its reason, which stays the same from release to release, and errors.Is compares an error
// with one:
//
//	if errors.Is(err, reason.Replay) { ... }
//
// A mistake of the program's own is one too: a token for a context that takes none is
// mech.NoContext, a credential that is none has the reason bad-credential.
//
// Every other error is about reaching the daemon. It wraps what the system said, or net.ErrClosed
// after [Client.Close]. [Options].WaitForDaemon has calls wait while a daemon is exchanged for
// another one; contexts that are established need none.
//
// # Flags
//
// What was asked for and what a context has are two things: a daemon's configuration may take flags
// away (filter_flags, by default that for delegation), and so may the KDC. [Peer.Flags] says what
// was granted, and [Flags.Has] whether that is enough.
//
// # Acting as a user
//
// A server that is to act as its client asks for that with [AcceptRequest].Delegate and initiates
// with [Peer.Delegated]. That is nil for a client that has delegated nothing, and nil is never the
// program itself: InitSecContext refuses it. A server whose clients cannot delegate may be allowed
// to act for them by the KDC, with [AcquireRequest].Impersonate.
//
// # Secrets
//
// Handles, keys and what a PAC says of a user print as names, in a log, with fmt and in JSON. What
// is to be kept of a [Cred] is kept with [Cred.MarshalBinary]; a context's keys are overwritten by
// [SecContext.Close].
package interposer

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"syscall"
	"time"

	"gssproxyd/rpc"
	"gssproxyd/xdr"
)

// DefaultSocket is where packages of gssproxy have their socket for programs. New uses it where no
// other one is named.
const DefaultSocket = "/var/lib/gssproxy/default.sock"

// Options of a Client. The zero value will do.
type Options struct {
	// ServerUID lists the users, besides root, whose daemon may be given tokens. If it is empty our
	// own effective uid is trusted too; and in a user namespace to which root does not belong, as a
	// container may have, the uid that root is shown with there (65534), if the socket was named, by
	// GSSPROXY_SOCKET or to New.
	ServerUID []uint32

	// MaxConns is how many calls are made at once, each on a connection of its own; more wait. 8 if
	// 0.
	MaxConns int

	// WaitForDaemon is how long a call waits for a daemon that is not there, since it is being
	// started or exchanged for another one. A call whose daemon ended before it answered is made
	// again in that time, unless it has brought a token to be accepted: that may have been done, and
	// a token counts once. With 0 such a call fails, and so does one that finds no daemon.
	WaitForDaemon time.Duration

	// Dial makes a connection that is none of a socket, as the daemon itself can have one; ServerUID
	// and the name of a socket mean nothing then. nil connects to the socket.
	Dial func(ctx context.Context) (Caller, error)
}

// Caller carries one call at a time, with the errors that an [rpc.Client] has.
type Caller interface {
	Call(ctx context.Context, proc uint32, args []byte) (results []byte, err error)
	Close() error
}

// Client makes calls to one daemon. It may be used by any number of goroutines. Connections are
// kept and are replaced when they fail or when the program has changed its user since, because the
// daemon knows us by who we were when we connected. So a daemon may be restarted between two calls.
type Client struct {
	socket string
	named  bool // and not DefaultSocket for want of a name
	o      Options
	slots  chan struct{} // one element for each call in flight

	mu     sync.Mutex
	idle   []*conn // the last was used last
	closed bool
}

// conn is a connection, and the memory that its calls reuse.
type conn struct {
	Caller
	uid, gid int // ours, at connect(2)
	args     []byte
	results  xdr.Decoder
}

// maxKept is the longest buffer that is kept for the next call, in bytes.
const maxKept = 16 << 10

// New returns a client of the daemon at socket. If that is empty it is the value of
// GSSPROXY_SOCKET, or else DefaultSocket. Nothing is connected before the first call: Ping tells
// whether there is a daemon.
func New(socket string, o Options) *Client {
	if socket == "" {
		socket = os.Getenv("GSSPROXY_SOCKET")
	}
	named := socket != ""
	if !named {
		socket = DefaultSocket
	}
	if o.MaxConns <= 0 {
		o.MaxConns = 8
	}
	return &Client{socket: socket, named: named, o: o, slots: make(chan struct{}, o.MaxConns)}
}

// Close closes the connections. Calls in flight end as they would have; later ones fail with
// net.ErrClosed. Established contexts go on without it.
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

// Ping makes a NULL call, for health checks and for programs that do not want to start without: the
// daemon is there and serves us. The C daemon has no such procedure and answers with an error that
// wraps *[rpc.Error], which proves as much.
func (c *Client) Ping(ctx context.Context) error {
	return c.exchange(ctx, xdr.ProcNull, nil, nil)
}

func (c *Client) dial(ctx context.Context) (*conn, error) {
	uid, gid := os.Geteuid(), os.Getegid()
	if c.o.Dial != nil {
		caller, err := c.o.Dial(ctx)
		if err != nil {
			return nil, err
		}
		return &conn{Caller: caller, uid: uid, gid: gid}, nil
	}
	trusted := c.o.ServerUID
	if root, hidden := rpc.HiddenRoot(); hidden && c.named && len(trusted) == 0 {
		trusted = []uint32{uint32(uid), root}
	}
	rc, err := rpc.Dial(ctx, c.socket, trusted...)
	if absent(err) {
		err = fmt.Errorf("%w; is gssproxyd running, and is that its socket?", err)
	}
	if err != nil {
		return nil, err
	}
	return &conn{Caller: rc, uid: uid, gid: gid}, nil
}

// take returns an idle connection that is as we are now, nil if there is none.
func (c *Client) take() (*conn, error) {
	uid, gid := os.Geteuid(), os.Getegid()
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return nil, net.ErrClosed
	}
	for n := len(c.idle); n > 0; n = len(c.idle) {
		last := c.idle[n-1]
		c.idle[n-1] = nil
		c.idle = c.idle[:n-1]
		if last.uid == uid && last.gid == gid {
			return last, nil
		}
		last.Close()
	}
	return nil, nil
}

func (c *Client) put(used *conn) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		used.Close()
		return
	}
	c.idle = append(c.idle, used)
}

// exchange makes one call, and makes it again while that is safe and the daemon may be waited for. A
// connection that the daemon has closed meanwhile is replaced, because then it has seen nothing of
// the call. The results belong to res alone. NULL has neither arg nor res.
func (c *Client) exchange(ctx context.Context, proc xdr.Proc, arg, res xdr.Message) error {
	if c == nil || c.slots == nil {
		return errors.New("gssproxy: there is no client: interposer.New makes one")
	}
	select {
	case c.slots <- struct{}{}:
		defer func() { <-c.slots }()
	case <-ctx.Done():
		return fmt.Errorf("gssproxy: %v: waiting for a connection: %w", proc, ctx.Err())
	}
	var a attempts
	for {
		kept, err := c.once(ctx, proc, arg, res)
		switch {
		case err == nil:
			return nil
		case kept && errors.Is(err, rpc.ErrNotSent):
			continue // the pool is finite, and what is in it from before a restart goes
		case a.again(ctx, c.o.WaitForDaemon, proc, err):
			continue
		}
		if end := ctx.Err(); end != nil && !errors.Is(err, end) {
			return fmt.Errorf("gssproxy: %w (%w)", err, end)
		}
		return fmt.Errorf("gssproxy: %w", err)
	}
}

// once makes one call on one connection, and says whether that was kept from before.
func (c *Client) once(ctx context.Context, proc xdr.Proc, arg, res xdr.Message) (kept bool, err error) {
	used, err := c.take()
	if kept = used != nil; err == nil && !kept {
		used, err = c.dial(ctx)
	}
	if err != nil {
		return false, fmt.Errorf("%v: %w", proc, err)
	}
	err = used.call(ctx, proc, arg, res)
	_, answered := errors.AsType[*rpc.Error](err)
	_, unreadable := errors.AsType[*xdr.Error](err)
	if err == nil || answered || unreadable {
		c.put(used)
	} else {
		used.Close()
	}
	if errors.Is(err, rpc.ErrNoAnswer) && c.o.Dial == nil {
		err = fmt.Errorf("%w; does its configuration have a service for uid %d and this program on %s?", err, used.uid, c.socket)
	}
	return kept, err
}

// call encodes the arguments, which may be secret, into memory that is overwritten afterwards.
func (c *conn) call(ctx context.Context, proc xdr.Proc, arg, res xdr.Message) error {
	if arg != nil {
		c.args = arg.Append(c.args[:0])
	}
	results, err := c.Call(ctx, uint32(proc), c.args)
	clear(c.args)
	if c.args = c.args[:0]; cap(c.args) > maxKept {
		c.args = nil
	}
	if err != nil || res == nil {
		return err
	}
	c.results.Reset(results)
	defer c.results.Reset(nil)
	if res.Decode(&c.results); c.results.Err() != nil {
		return fmt.Errorf("%v: the results: %w", proc, c.results.Err())
	}
	return nil
}

// absent reports whether there was no daemon to connect to.
func absent(err error) bool {
	return errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, syscall.ENOENT)
}

// attempts are those of one call.
type attempts struct {
	until      time.Time // when the last one is made; zero before the first failure
	pause      time.Duration
	unanswered int // in a row; a caller without a service gets no answer either
}

const (
	maxPause      = 100 * time.Millisecond
	maxUnanswered = 3
)

// again waits and reports whether a call that has failed is to be made once more.
func (a *attempts) again(ctx context.Context, patience time.Duration, proc xdr.Proc, err error) bool {
	switch {
	case absent(err):
		a.unanswered = 0
	case errors.Is(err, rpc.ErrNotSent):
	case proc != xdr.ProcAcceptSecContext && (errors.Is(err, rpc.ErrNoAnswer) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE)):
		if a.unanswered++; a.unanswered > maxUnanswered {
			return false
		}
	default:
		return false
	}
	now := time.Now()
	if a.until.IsZero() {
		a.until, a.pause = now.Add(patience), time.Millisecond
	}
	a.pause = min(2*a.pause, maxPause)
	if now.Add(a.pause).After(a.until) {
		return false
	}
	timer := time.NewTimer(a.pause)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// call makes one call. What the daemon refuses by the results' status is an error, with their token
// for the peer where there can be one.
func (c *Client) call(ctx context.Context, proc xdr.Proc, arg, res xdr.Message, status *xdr.Status, token *[]byte) error {
	if err := c.exchange(ctx, proc, arg, res); err != nil {
		return err
	}
	return failure(status, token)
}
