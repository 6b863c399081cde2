package proc

import (
	"context"
	"syscall"

	"gssproxyd/audit"
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
	c.from = c.p.callerOf(conn.Peer)
	e := &c.event // zero but for this: a literal would be copied
	e.Kind, e.Time, e.Connection, e.Call, e.Caller = audit.CallAllowed, c.Now, conn.ID, c.rpc.N, &c.from
	e.Socket, e.Service, e.Procedure = conn.Socket, c.Service.Name, xdr.Proc(c.rpc.Proc).String()
	c.Event = e
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
	if err := c.p.record(ctx, c.Event); err != nil {
		return mech.Errorf(mech.Failure, uint32(syscall.EIO), reason.AuditFailed, "%v", err)
	}
	return nil
}

// fail records a call that gets no result.
func (c *call) fail(ctx context.Context, id reason.ID, text string) {
	c.Event.Kind, c.Event.Reason, c.Event.Text = audit.CallDenied, string(id), text
	c.conclude(ctx) // whatever becomes of that, there is no result
}

// deny records a connection that is closed since no service is for it, or may be.
func (p *Procedures) deny(ctx context.Context, conn *rpc.Conn, procedure uint32, id reason.ID, text string, trace func() []string) {
	from := p.callerOf(conn.Peer)
	p.record(ctx, &audit.Event{ // whatever becomes of that, the connection is closed
		Kind: audit.ConnectionDenied, Time: p.log.Now(), Connection: conn.ID, Caller: &from, Socket: conn.Socket,
		Procedure: xdr.Proc(procedure).String(), Routine: procedure == uint32(xdr.ProcNull), Reason: string(id), Text: text, Trace: trace,
	})
}

// Denied records a connection that is refused or closed whomever it is for. It is the Denied of an
// rpc.Server.
func (p *Procedures) Denied(ctx context.Context, conn *rpc.Conn, why reason.ID, text string) {
	from := p.callerOf(conn.Peer)
	p.record(ctx, &audit.Event{
		Kind: audit.ConnectionDenied, Time: p.log.Now(), Connection: conn.ID, Caller: &from, Socket: conn.Socket, Reason: string(why), Text: text,
	})
}

// callerOf is a caller as what is recorded has it.
func (p *Procedures) callerOf(i *peer.Info) audit.Caller { return CallerOf(i, p.evidence()) }

// CallerOf returns a caller as far as it was looked at, and as is wanted besides. What nobody wants to
// know is not asked for; [peer.EvidenceAppArmor] wants the label of either security module.
func CallerOf(i *peer.Info, wanted peer.Evidence) audit.Caller {
	c := audit.Caller{UID: i.UID, PID: i.PID}
	known := wanted | i.Read()
	if known&peer.EvidenceProgram != 0 {
		c.Program, _ = i.Program.Get()
	}
	if known&peer.EvidencePlace != 0 {
		place, _ := i.Place.Get()
		c.Unit, c.Pod, c.Container = place.Unit, place.Pod, place.Container
	}
	if wanted&peer.EvidenceAppArmor != 0 {
		c.Label, _ = i.SELinux.Get()
	}
	if c.Label == "" && known&peer.EvidenceAppArmor != 0 {
		c.Label, _ = i.AppArmor.Get()
	}
	return c
}
