package lab

import (
	"bytes"
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"syscall"
	"time"

	"gssproxyd/xdr"
)

// Record is a whole call as it goes over the wire: one fragment with its mark.
func Record(xid uint32, proc xdr.Proc, arg xdr.Message) []byte {
	h := xdr.CallHeader{XID: xid, MsgType: xdr.MsgCall, RPCVersion: 2, Program: xdr.Program, Version: xdr.Version, Procedure: uint32(proc)}
	b := h.Append(make([]byte, 4, 4096))
	if arg != nil {
		b = arg.Append(b)
	}
	binary.BigEndian.PutUint32(b, 1<<31|uint32(len(b)-4))
	return b
}

// Wire is a connection to a daemon, byte by byte: for what no proper client would send, and without
// the code under test on this side of the socket.
type Wire struct {
	*net.UnixConn
	Patience time.Duration // to wait for an answer; 0 is WireTimeout
	xid      uint32
	secrets  *secrets // no reply has one; nil where that is not ours to say
}

// WireTimeout is how long a Wire waits for an answer unless it has another patience.
const WireTimeout = Patience

// Wire connects to the daemon. Where its queue of connections is full, it tries again for a while.
func (d *Daemon) Wire() (*Wire, error) {
	for range 200 {
		c, err := d.Dial(context.Background())
		if err == nil {
			return d.newWire(c), nil
		}
		if !errors.Is(err, syscall.EAGAIN) {
			return nil, err
		}
		time.Sleep(5 * time.Millisecond)
	}
	return nil, syscall.EAGAIN
}

func (d *Daemon) newWire(c *net.UnixConn) *Wire {
	w := &Wire{UnixConn: c}
	if d.Kind == "ours" {
		w.secrets = &d.realm.secrets
	}
	return w
}

// Receive reads one record and returns what is behind its mark. io.EOF: the daemon has closed the
// connection.
func (w *Wire) Receive() ([]byte, error) {
	w.SetReadDeadline(time.Now().Add(cmp.Or(w.Patience, WireTimeout)))
	var mark [4]byte
	if _, err := io.ReadFull(w, mark[:]); err != nil {
		return nil, err
	}
	n := binary.BigEndian.Uint32(mark[:])
	if n&(1<<31) == 0 || n&^(1<<31) > 1<<20 {
		return nil, fmt.Errorf("the reply's record mark is %#x", n)
	}
	b := make([]byte, n&^(1<<31))
	_, err := io.ReadFull(w, b)
	if err == nil && w.secrets != nil {
		err = w.secrets.scan("a reply", b)
	}
	return b, err
}

// Call makes one call and decodes its results into res. The results must be decoded to their last
// byte.
func (w *Wire) Call(proc xdr.Proc, arg, res xdr.Message) error {
	r, err := w.Exchange(proc, arg, res)
	if err == nil && !Success(r) {
		err = fmt.Errorf("%v: the daemon answered %+v", proc, r)
	}
	return err
}

// Success says whether results follow a reply's header.
func Success(r xdr.Reply) bool {
	return r.Stat == xdr.ReplyAccepted && r.Accepted.Outcome.Stat == xdr.AcceptSuccess
}

// Exchange is Call for answers of every kind: the reply's header tells which it is.
func (w *Wire) Exchange(proc xdr.Proc, arg, res xdr.Message) (xdr.Reply, error) {
	w.xid++
	w.SetWriteDeadline(time.Now().Add(WireTimeout))
	if _, err := w.Write(Record(w.xid, proc, arg)); err != nil {
		return xdr.Reply{}, err
	}
	return w.answer(w.xid, proc, res)
}

func (w *Wire) answer(xid uint32, proc xdr.Proc, res xdr.Message) (xdr.Reply, error) {
	b, err := w.Receive()
	if err != nil {
		return xdr.Reply{}, err
	}
	d := xdr.NewDecoder(b)
	var h xdr.ReplyHeader
	h.Decode(d)
	if d.Err() != nil {
		return xdr.Reply{}, fmt.Errorf("%v: the reply's header: %w", proc, d.Err())
	}
	if h.XID != xid || h.MsgType != xdr.MsgReply {
		return xdr.Reply{}, fmt.Errorf("%v: reply to %d (type %v), want %d", proc, h.XID, h.MsgType, xid)
	}
	verf := h.Reply.Accepted.Verf
	if len(verf.Body) != 0 || verf.Flavor != xdr.AuthNone {
		return xdr.Reply{}, fmt.Errorf("%v: a verifier in the reply", proc)
	}
	if !Success(h.Reply) || res == nil {
		return h.Reply, nil
	}
	res.Decode(d)
	if d.Err() != nil {
		return h.Reply, fmt.Errorf("%v: the results: %w", proc, d.Err())
	}
	if d.Remaining() != 0 {
		return h.Reply, fmt.Errorf("%v: %d bytes after the results", proc, d.Remaining())
	}
	return h.Reply, nil
}

// Accept makes an ACCEPT_SEC_CONTEXT call without a credential handle. bindings are the application
// data of channel bindings, nil for none.
func (w *Wire) Accept(token, bindings []byte) (*xdr.ResAcceptSecContext, error) {
	var res xdr.ResAcceptSecContext
	return &res, w.Call(xdr.ProcAcceptSecContext, AcceptArg(token, bindings), &res)
}

// AcceptArg are the arguments of Accept.
func AcceptArg(token, bindings []byte) *xdr.ArgAcceptSecContext {
	arg := &xdr.ArgAcceptSecContext{InputToken: token}
	if bindings != nil {
		arg.InputCB = xdr.Some(xdr.CB{ApplicationData: bindings})
	}
	return arg
}

// SameCred reports whether two credentials are the same but for the time that is left.
func SameCred(a, b xdr.Cred) bool {
	encoded := func(c xdr.Cred) []byte {
		c.Elements = slices.Clone(c.Elements)
		for i := range c.Elements {
			c.Elements[i].InitiatorTimeRec = 0
		}
		return c.Append(nil)
	}
	return bytes.Equal(encoded(a), encoded(b))
}
