package proc

import (
	"log/slog"
	"strconv"
	"sync"
	"time"

	"gssproxyd/keytab/seal"
	"gssproxyd/mech"
	"gssproxyd/mech/krb5"
	"gssproxyd/mech/krb5/etype"
	"gssproxyd/mech/reason"
	"gssproxyd/xdr"
)

// accepting is what one accept works with; kept for use again, since it is large and holds scratch memory.
type accepting struct {
	etype.Redacted
	acceptor krb5.Acceptor
	bindings krb5.ChannelBindings
	accepted krb5.Accepted
}

var acceptPool = sync.Pool{New: func() any { return new(accepting) }}

// release zeroes the context's keys and gives the memory back.
func (a *accepting) release() {
	a.accepted.Reset()
	a.acceptor, a.bindings = krb5.Acceptor{}, krb5.ChannelBindings{}
	acceptPool.Put(a)
}

// fillContext makes the gssx_ctx of an established context: its exported form, which the client's library imports,
// and what a client may ask of it before.
func (c *call) fillContext(x *xdr.Ctx, ctx *krb5.Context) {
	initiator, acceptor := ctx.There, ctx.Here
	if ctx.Initiator {
		initiator, acceptor = ctx.Here, ctx.There
	}
	attrs := c.keep(ctx.AppendNameAttributes)
	x.ExportedContextToken = c.keep(func(b []byte) []byte { return ctx.AppendExport(b) })
	x.Mech = oidKRB5
	x.SrcName = c.mechName(initiator, attrs)
	x.TargName = c.mechName(acceptor, nil)
	x.Lifetime = lifetime(ctx, c.now, c.svc.krb5.Clockskew)
	x.CtxFlags = uint64(ctx.Flags)
	x.LocallyInitiated = ctx.Initiator
	x.Open = true
}

// lifetime is how many seconds a context still lives: for an acceptor up to the ticket's end and the clock skew, as
// libkrb5 computes it; 0 when it has expired.
func lifetime(ctx *krb5.Context, now time.Time, skew time.Duration) uint64 {
	end := int64(ctx.EndTime)
	if !ctx.Initiator {
		end += int64(skew / time.Second)
	}
	return uint64(max(0, end-now.Unix()))
}

// errNoToken refuses a per-message token of no bytes.
var errNoToken = mech.Errorf(mech.CallInaccessibleRead, 0, reason.BadArgument, "the token is empty")

// openContext imports the context that a per-message call sent, in the form it was exported in.
func openContext(x *xdr.Ctx) (*krb5.Context, error) {
	if len(x.ExportedContextToken) == 0 {
		return nil, mech.Errorf(mech.NoContext|mech.CallInaccessibleRead, 0, reason.BadContext, "no context was sent")
	}
	return krb5.ImportContext(x.ExportedContextToken)
}

// Contexts whose exchange goes on travel with the client, sealed.

var continueText = []byte(mech.ContinueNeeded.Text() + "\x00")

// partialContext makes the gssx_ctx of a context that is not established yet.
func (c *call) partialContext(partial etype.Secret, ctx *krb5.Context) xdr.Ctx {
	return xdr.Ctx{
		ExportedContextToken: c.keep(func(b []byte) []byte { return c.svc.p.box.Seal(b, partial, c.begunBy(), seal.KindContext) }),
		Mech:                 oidKRB5,
		CtxFlags:             uint64(ctx.Flags),
		LocallyInitiated:     ctx.Initiator,
	}
}

// begunBy is who may go on with a context: the same service and uid.
func (c *call) begunBy() string {
	return strconv.FormatUint(uint64(c.Conn.Peer.UID), 10) + " " + c.svc.Name
}

// partial opens the context that came with a call, if it is one that this caller has begun.
func (c *call) partial(x *xdr.Opt[xdr.Ctx]) (etype.Secret, bool) {
	if !x.Set || len(x.V.ExportedContextToken) == 0 {
		return nil, false
	}
	partial, err := c.svc.p.box.Unseal(c.begun[:0], x.V.ExportedContextToken, c.begunBy(), seal.KindContext)
	if err != nil {
		c.svc.p.note(slog.LevelDebug, c, reason.BadContext, "a context does not open: it counts as none")
		return nil, false
	}
	c.begun = partial // cleared when the call ends
	return partial, true
}
