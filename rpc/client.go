package rpc

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"slices"
	"syscall"
	"time"

	"gssproxyd/rpc/peer"
	"gssproxyd/xdr"
)

// Client is a connection to a server. It carries one call at a time, so it must not be used by two
// goroutines at once.
type Client struct {
	nc       *net.UnixConn
	program  *Program
	in       *bufio.Reader
	out      []byte
	xid      uint32
	deadline time.Time // in force
	err      error     // why the connection cannot be used any more
}

// Dial connects to the server at path. It waits while the server's backlog is full, until ctx ends
// or ten seconds have passed. The server must have been started by root or by one of serverUID, or
// if there is none by our own effective uid: anybody else's is an error, since it would be given
// tokens. Where our own is that of several users, of all who do not belong to our user namespace,
// it counts only if it is among serverUID; see [HiddenRoot].
func Dial(ctx context.Context, path string, serverUID ...uint32) (*Client, error) {
	return DialProgram(ctx, path, &GSSProxy, serverUID...)
}

// DialProgram is [Dial] for calls of another program.
func DialProgram(ctx context.Context, path string, program *Program, serverUID ...uint32) (*Client, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	var dialer net.Dialer
	for pause := time.Millisecond; ; pause = min(2*pause, 50*time.Millisecond) {
		c, err := dialer.DialContext(ctx, "unix", path)
		if err == nil {
			client, err := newClient(c.(*net.UnixConn), path, serverUID)
			if err == nil {
				client.program = program
			}
			return client, err
		}
		if !errors.Is(err, syscall.EAGAIN) {
			return nil, fmt.Errorf("rpc: %w", err)
		}
		wait(ctx, pause)
		if ctx.Err() != nil {
			return nil, fmt.Errorf("rpc: %w: %w", err, ctx.Err())
		}
	}
}

func newClient(nc *net.UnixConn, path string, serverUID []uint32) (*Client, error) {
	info, err := peer.Credentials(nc)
	if err != nil {
		nc.Close()
		return nil, err
	}
	if own := uint32(os.Geteuid()); len(serverUID) == 0 && !ambiguous(own) {
		serverUID = []uint32{own}
	}
	if info.UID != 0 && !slices.Contains(serverUID, info.UID) {
		nc.Close()
		as := fmt.Sprint("uid ", info.UID)
		if ambiguous(info.UID) {
			as += ", like everybody who does not belong to this user namespace"
		}
		return nil, fmt.Errorf("rpc: the server at %s runs as %s; only root and %v are trusted", path, as, serverUID)
	}
	return &Client{nc: nc, in: bufio.NewReader(nc), xid: rand.Uint32()}, nil
}

// Close closes the connection. It may be called from any goroutine; a call that waits fails.
func (c *Client) Close() error { return c.nc.Close() }

// Call executes procedure proc of the program with the encoded arguments and returns the encoded
// results, which are the caller's. An *Error is the server's answer and leaves the connection good.
// After any other error, the end of ctx included, the connection is closed; making a new one is up
// to the caller, and so is repeating the call if the error is ErrNotSent.
func (c *Client) Call(ctx context.Context, proc uint32, args []byte) ([]byte, error) {
	return c.CallWith(ctx, proc, args, nil)
}

// CallWith is [Client.Call] with an open file that goes with the call, to a server that takes
// [Server.Files]. f stays the caller's; nil is none.
func (c *Client) CallWith(ctx context.Context, proc uint32, args []byte, f *os.File) ([]byte, error) {
	name := c.program.Name(proc)
	if err := tooLong(name, args); err != nil {
		return nil, err
	}
	if err := cmp.Or(c.err, ctx.Err()); err != nil {
		return nil, fmt.Errorf("rpc: %v: %w", name, err)
	}
	results, err := c.call(ctx, proc, args, f)
	if err == nil {
		return results, nil
	}
	if _, ok := errors.AsType[*Error](err); !ok {
		switch {
		case ctx.Err() != nil:
			err = ctx.Err()
		case errors.Is(err, os.ErrDeadlineExceeded):
			err = context.DeadlineExceeded
		}
		c.err = fmt.Errorf("%w (an earlier call failed: %v)", ErrNotSent, err)
		c.nc.Close()
	}
	return nil, fmt.Errorf("rpc: %v: %w", name, err)
}

// tooLong returns an error if a call with the arguments is no record.
func tooLong(name string, args []byte) error {
	if n := callLen + len(args); n > MaxRecord {
		return fmt.Errorf("rpc: %v: the call is %d bytes long, at most %d are possible", name, n, MaxRecord)
	}
	return nil
}

func (c *Client) call(ctx context.Context, proc uint32, args []byte, f *os.File) ([]byte, error) {
	if t, _ := ctx.Deadline(); !t.Equal(c.deadline) {
		c.deadline = t
		if err := c.nc.SetDeadline(t); err != nil {
			return nil, err
		}
	}
	if ctx.Done() != nil {
		defer context.AfterFunc(ctx, func() { c.nc.Close() })()
	}

	c.xid++
	h := xdr.CallHeader{XID: c.xid, RPCVersion: xdr.RPCVersion, Program: c.program.Number, Version: c.program.Version, Procedure: proc}
	c.out = AppendMark(c.out[:0], callLen+len(args))
	c.out = append(h.Append(c.out), args...)
	n, err := c.send(f)
	clear(c.out) // tokens and handles
	if err != nil {
		if n < len(c.out) && (errors.Is(err, syscall.EPIPE) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, net.ErrClosed)) {
			return nil, ErrNotSent
		}
		return nil, err
	}
	if cap(c.out) > keepLen {
		c.out = nil
	}

	record, err := ReadRecord(c.in)
	if err != nil {
		return nil, err
	}
	return results(record, c.xid)
}

// send writes the call, with its file.
func (c *Client) send(f *os.File) (n int, err error) {
	if f != nil {
		if n, err = sendWith(c.nc, c.out, f); err != nil || n == len(c.out) {
			return n, err
		}
	}
	more, err := c.nc.Write(c.out[n:])
	return n + more, err
}

// results returns the results in a reply to call xid, which alias the record, or an *Error.
func results(record []byte, xid uint32) ([]byte, error) {
	reply, results, err := ParseReply(record, xid)
	if err != nil {
		return nil, err
	}
	if reply.Stat != xdr.ReplyAccepted || reply.Accepted.Outcome.Stat != Success {
		return nil, &Error{Reply: *reply}
	}
	return results, nil
}
