// Package gss is a client of ONC RPC over TCP with RPCSEC_GSS (RFC 2203), the service being privacy
// and the mechanism Kerberos.
//
// A call is the record
//
//	xid  0 (CALL)  2 (RPC version)  program  version  procedure
//	cred: 6 (RPCSEC_GSS), {1 (version) 0 (DATA) number 3 (privacy) handle}
//	verf: 6, MIC over all of this so far
//	wrap token of {number, arguments}
//
// and its reply
//
//	xid  1 (REPLY)  0 (accepted)  verf: 6, MIC over the number  0 (SUCCESS)
//	wrap token of {number, results}
//
// Only results prove themselves: whoever sits on the way can turn a SUCCESS, with its verifier, into
// another status, or into a denial. So every other answer tells as little as none.
package gss

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"time"

	"gssproxyd/mech"
	"gssproxyd/mech/krb5"
	"gssproxyd/rpc"
	"gssproxyd/xdr"
)

// Client is a connection to a server, and a security context with it. It carries one call at a time,
// so it must not be used by two goroutines at once.
type Client struct {
	nc      net.Conn
	in      *bufio.Reader
	program *rpc.Program
	context krb5.Initiated
	handle  []byte
	xid     uint32
	seq     uint32 // of the last call
	err     error  // why there can be no more calls
}

// New creates a context with the server at the other end of nc, for calls of a program. by has the
// ticket for it; its Flags do not count. nc is the Client's from now on, also after an error. The
// server has proven by then that it has the service's key.
func New(ctx context.Context, nc net.Conn, program *rpc.Program, by krb5.Initiator) (*Client, error) {
	c := &Client{nc: nc, in: bufio.NewReader(nc), program: program, xid: rand.Uint32()}
	by.Flags = mech.FlagMutual // the order of calls is what their numbers are for (RFC 2203 section 5.2.2)
	if err := c.init(ctx, &by); err != nil {
		c.nc.Close()
		c.context.Reset()
		return nil, fmt.Errorf("RPCSEC_GSS: %w", err)
	}
	return c, nil
}

// init creates the context (RFC 2203 section 5.2): one call, and its reply.
func (c *Client) init(ctx context.Context, by *krb5.Initiator) error {
	if err := by.Init(&c.context); err != nil {
		return err
	}
	args := (&xdr.GSSInit{Token: c.context.Token}).Append(nil)
	reply, body, err := c.exchange(ctx, 0, &xdr.GSSCred{Procedure: xdr.GSSProcInit}, args)
	if err != nil {
		return err
	}
	var result xdr.GSSInitResult
	d := xdr.NewDecoder(body)
	if result.Decode(d); d.Err() != nil {
		return fmt.Errorf("the answer to the first token: %w", d.Err())
	}
	if result.Major != 0 {
		return fmt.Errorf("the server does not accept the context: major status %#x, minor status %#x", result.Major, result.Minor)
	}
	if err := by.Continue(&c.context, c.context.Partial, result.Token); err != nil {
		return err
	}
	if err := c.verify(reply, result.Window); err != nil {
		return err
	}
	c.handle = append([]byte(nil), result.Handle...)
	return nil
}

// verify checks that the verifier of a reply is a MIC of n.
func (c *Client) verify(reply *xdr.Reply, n uint32) error {
	verf := reply.Accepted.Verf
	if verf.Flavor != xdr.AuthRpcsecGSS {
		return fmt.Errorf("the verifier of the reply is of the flavor %v", verf.Flavor)
	}
	if _, err := c.context.Context.VerifyMIC(xdr.AppendUint32(nil, n), verf.Body); err != nil {
		return fmt.Errorf("the verifier of the reply: %w", err)
	}
	return nil
}

// Call executes procedure proc of the program with the encoded arguments, and returns the encoded
// results, which are the caller's. An error that wraps [rpc.ErrNotSent] says that the call did not
// leave whole, and so cannot be executed. After any other error, the end of ctx included, the call
// may have been executed. The connection is closed after all of them.
func (c *Client) Call(ctx context.Context, proc uint32, args []byte) ([]byte, error) {
	name := c.program.Name(proc)
	if err := cmp.Or(c.err, ctx.Err()); err != nil {
		return nil, fmt.Errorf("%s: %w: %w", name, rpc.ErrNotSent, err)
	}
	results, err := c.call(ctx, proc, args)
	if err != nil {
		c.err = err
		c.nc.Close()
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return results, nil
}

func (c *Client) call(ctx context.Context, proc uint32, args []byte) ([]byte, error) {
	cred, body, err := c.protect(xdr.GSSProcData, args)
	if err != nil {
		return nil, err
	}
	reply, body, err := c.exchange(ctx, proc, cred, body)
	if err != nil {
		return nil, err
	}
	if err := c.verify(reply, cred.Seq); err != nil {
		return nil, err
	}
	var results xdr.GSSPrivate
	d := xdr.NewDecoder(body)
	if results.Decode(d); d.Err() != nil {
		return nil, fmt.Errorf("the results: %w", d.Err())
	}
	plain, conf, _, err := c.context.Context.Unwrap(nil, results.Token)
	if err != nil {
		return nil, fmt.Errorf("the results: %w", err)
	}
	d.Reset(plain)
	switch seq := d.Uint32(); {
	case !conf:
		return nil, errors.New("the results are not encrypted")
	case d.Err() != nil:
		return nil, fmt.Errorf("the results: %w", d.Err())
	case seq != cred.Seq:
		return nil, fmt.Errorf("the results are those of call number %d, not of %d", seq, cred.Seq)
	}
	return plain[d.Offset():], nil
}

// protect makes the credential of the next call in the context, and what goes in the place of its
// arguments.
func (c *Client) protect(do xdr.GSSProc, args []byte) (*xdr.GSSCred, []byte, error) {
	if c.seq+1 == xdr.GSSMaxSeq {
		return nil, nil, fmt.Errorf("%w: the context has no more numbers", rpc.ErrNotSent)
	}
	c.seq++
	numbered := append(xdr.AppendUint32(nil, c.seq), args...)
	token, err := c.context.Context.Wrap(nil, numbered, true)
	clear(numbered)
	if err != nil {
		return nil, nil, fmt.Errorf("%w: %w", rpc.ErrNotSent, err)
	}
	return &xdr.GSSCred{Procedure: do, Seq: c.seq}, (&xdr.GSSPrivate{Token: token}).Append(nil), nil
}

// exchange sends a call and returns the reply, which says SUCCESS, and what follows it. The verifier
// is still to be verified.
func (c *Client) exchange(ctx context.Context, proc uint32, cred *xdr.GSSCred, body []byte) (*xdr.Reply, []byte, error) {
	defer context.AfterFunc(ctx, func() { c.nc.Close() })()
	fail := func(err error) (*xdr.Reply, []byte, error) {
		if ctx.Err() != nil && !errors.Is(err, ctx.Err()) {
			err = fmt.Errorf("%w (%w)", err, ctx.Err())
		}
		return nil, nil, err
	}
	if err := c.send(proc, cred, body); err != nil {
		return fail(err)
	}
	record, err := rpc.ReadRecord(c.in)
	if err != nil {
		return fail(err)
	}
	reply, results, err := rpc.ParseReply(record, c.xid)
	if err != nil {
		return nil, nil, err
	}
	if reply.Stat != xdr.ReplyAccepted || reply.Accepted.Outcome.Stat != rpc.Success {
		return nil, nil, &rpc.Error{Reply: *reply}
	}
	return reply, results, nil
}

// send sends a call. The error wraps [rpc.ErrNotSent].
func (c *Client) send(proc uint32, cred *xdr.GSSCred, body []byte) error {
	c.xid++
	cred.Version, cred.Service, cred.Handle = xdr.GSSVersion, xdr.GSSServicePrivacy, c.handle
	header := xdr.CallHeader{XID: c.xid, RPCVersion: xdr.RPCVersion, Program: c.program.Number, Version: c.program.Version, Procedure: proc,
		Cred: xdr.OpaqueAuth{Flavor: xdr.AuthRpcsecGSS, Body: cred.Append(nil)}}
	call := header.Append(nil)
	if cred.Procedure != xdr.GSSProcInit {
		signed := call[:len(call)-len((&xdr.OpaqueAuth{}).Append(nil))]
		mic, err := c.context.Context.GetMIC(nil, signed)
		if err != nil {
			return fmt.Errorf("%w: %w", rpc.ErrNotSent, err)
		}
		call = (&xdr.OpaqueAuth{Flavor: xdr.AuthRpcsecGSS, Body: mic}).Append(signed)
	}
	if n := len(call) + len(body); n > rpc.MaxRecord {
		return fmt.Errorf("%w: the call is %d bytes long, at most %d are possible", rpc.ErrNotSent, n, rpc.MaxRecord)
	}
	out := append(append(rpc.AppendMark(nil, len(call)+len(body)), call...), body...)
	if n, err := c.nc.Write(out); n < len(out) {
		return fmt.Errorf("%w: %w", rpc.ErrNotSent, err)
	}
	return nil
}

// lastWords bounds the wait for room in the socket's buffer at the end: there is room, for all that
// was sent has been answered.
const lastWords = time.Second

// Close destroys the context, at the server by a message without waiting for an answer (RFC 2203
// section 5.4), and closes the connection.
func (c *Client) Close() error {
	if c.err == nil {
		c.nc.SetWriteDeadline(time.Now().Add(lastWords))
		if cred, body, err := c.protect(xdr.GSSProcDestroy, nil); err == nil {
			c.send(0, cred, body)
		}
	}
	c.context.Reset()
	c.err = net.ErrClosed
	return c.nc.Close()
}
