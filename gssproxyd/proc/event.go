package proc

import (
	"context"
	"syscall"

	"gssproxyd/audit"
	"gssproxyd/conf"
	"gssproxyd/mech"
	"gssproxyd/mech/krb5"
	"gssproxyd/mech/reason"
	"gssproxyd/rpc"
	"gssproxyd/rpc/peer"
	"gssproxyd/xdr"
)

// Every call is an event, in one piece with the call: what there is to say of it is filled in as it
// becomes known, and nothing is allocated.

// describe says what is known of a call before it is executed.
func (c *call) describe() {
	conn := c.rpc.Conn
	c.from = CallerOf(conn.Peer)
	c.Event = audit.Event{
		Kind: audit.CallAllowed, Time: c.Now, Connection: conn.ID, Call: c.rpc.N, Caller: &c.from,
		Socket: conn.Socket, Service: c.Service.Name, Procedure: xdr.Proc(c.rpc.Proc).String(),
	}
}

// about says which context a call is about.
func (c *call) about(ctx *krb5.Context) {
	c.Event.Principal, c.Event.Target = ctx.There, ctx.Here
	if ctx.Initiator {
		c.Event.Principal, c.Event.Target = ctx.Here, ctx.There
	}
	if ctx.SessionKey != nil {
		c.Event.Enctype = ctx.SessionKey.Enctype().String()
	}
}

// conclude records a call as it was decided. An error has a call refused that was not.
func (c *call) conclude(ctx context.Context) error {
	c.Event.Took = c.p.log.Now().Sub(c.Now)
	if err := c.p.record(ctx, &c.Event); err != nil {
		return mech.Errorf(mech.Failure, uint32(syscall.EIO), reason.AuditFailed, "%v", err)
	}
	return nil
}

// deny records a connection that no service is for.
func (p *Procedures) deny(ctx context.Context, conn *rpc.Conn, procedure uint32, d *conf.Decision) {
	from := CallerOf(conn.Peer)
	p.record(ctx, &audit.Event{ // whatever becomes of that, the connection is closed
		Kind: audit.ConnectionDenied, Time: p.log.Now(), Connection: conn.ID, Caller: &from, Socket: conn.Socket,
		Procedure: xdr.Proc(procedure).String(), Routine: procedure == uint32(xdr.ProcNull), Reason: string(d.Reason), Text: d.Conclusion(), Trace: d.Trace,
	})
}

// CallerOf is a caller as events have it.
func CallerOf(p *peer.Info) audit.Caller {
	c := audit.Caller{UID: p.UID, PID: p.PID}
	c.Program, _ = p.Program.Get()
	if place, ok := p.Place.Get(); ok {
		c.Unit, c.Pod, c.Container = place.Unit, place.Pod, place.Container
	}
	if label, ok := p.SELinux.Get(); ok {
		c.Label = label
	} else if label, ok := p.AppArmor.Get(); ok {
		c.Label = label
	}
	return c
}
