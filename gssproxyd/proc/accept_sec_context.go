package proc

import (
	"context"
	"errors"
	"sync"

	"gssproxyd/gssproxyd/creds"
	"gssproxyd/mech"
	"gssproxyd/mech/krb5"
	"gssproxyd/mech/krb5/etype"
	"gssproxyd/phase"
	"gssproxyd/xdr"
)

// ACCEPT_SEC_CONTEXT (procedure 9)
//
//	struct gssx_arg_accept_sec_context {
//		gssx_call_ctx call_ctx; gssx_ctx *context_handle; gssx_cred *cred_handle;
//		gssx_buffer input_token; gssx_cb *input_cb; bool ret_deleg_cred; gssx_option options<>; };
//	struct gssx_res_accept_sec_context {
//		gssx_status status; gssx_ctx *context_handle; gssx_buffer *output_token;
//		gssx_cred *delegated_cred_handle; gssx_option options<>; };
//
// On success output_token is present even when it is empty, and status.mech is set: clients read
// both without looking. A context whose exchange goes on (DCE style) goes to the client, sealed,
// and comes back in context_handle with the next token; the C daemon cannot continue one. One that
// does not open is not looked at, as there, and a new one begins.
//
// Unlike the C daemon, a failure's KRB-ERROR token is returned where the protocol has one, so that
// a caller that can pass it on tells the initiator why.
func acceptSecContext(ctx context.Context, p *Procedures, c *call, args *xdr.ArgAcceptSecContext, res *xdr.ResAcceptSecContext) error {
	f, err := requestedFormat(args.CallCtx.Options)
	if err != nil {
		return err
	}
	in, err := c.input(&args.CredHandle, args.Options)
	if err != nil {
		return err
	}
	acc := acceptPool.Get().(*accepting)
	defer acc.release()
	span := p.phases.Begin()
	err = c.Acceptor(ctx, &acc.acceptor, &in)
	span.End(phase.Keys)
	if err != nil {
		return err
	}
	acc.acceptor.Allowed = allowedEnctypes(&args.CredHandle)
	var cb *krb5.ChannelBindings
	if args.InputCB.Set {
		acc.bindings = bindings(&args.InputCB.V)
		cb = &acc.bindings
	}
	if f.lucid {
		p.forKernel(&acc.acceptor.Acceptor)
	}
	if partial, ok := c.partial(&args.ContextHandle); ok && !f.lucid {
		err = acc.acceptor.Continue(&acc.accepted, partial, args.InputToken)
	} else {
		err = acc.acceptor.Accept(ctx, &acc.accepted, args.InputToken, cb)
	}
	if acc.accepted.SkewKnown {
		p.skewed(acc.accepted.Skew)
	}
	if err == nil {
		c.about(&acc.accepted.Context)
		err = c.PermitAccepted(&acc.accepted)
	}
	if err != nil {
		if e, ok := errors.AsType[*mech.Error](err); ok && len(e.Token) > 0 && !f.lucid {
			res.OutputToken = xdr.Some(e.Token)
		}
		return err
	}

	established := &acc.accepted.Context
	if established.Flags&mech.FlagDeleg != 0 && !c.MayDelegate() {
		acc.accepted.DropDelegated()
	}
	res.Status.Mech = oidKRB5
	res.OutputToken = xdr.Some(c.keep(func(b []byte) []byte { return append(b, acc.accepted.Token...) }))
	if acc.accepted.Partial != nil {
		res.Status.MajorStatus = uint64(mech.ContinueNeeded)
		res.Status.MajorStatusString = continueText
		res.ContextHandle = c.partialContext(acc.accepted.Partial, established)
		return nil
	}
	if p.log.Trace != nil {
		p.traceContext(established)
	}
	if args.RetDelegCred && !f.lucid {
		h, err := c.Delegated(ctx, &acc.accepted, &in)
		if err != nil {
			return err
		}
		if h != nil {
			defer h.Destroy()
			res.DelegatedCredHandle = xdr.Some(c.wireCred(h))
		}
	}
	grace := c.Service.Krb5.Clockskew
	if f.lucid {
		grace = 0 // the kernel takes the end for what it is
	}
	established.EndTime = c.Ends(established.EndTime, grace)
	c.fillContext(&res.ContextHandle, established)
	if f == (format{}) {
		return nil
	}
	return c.fillForKernel(ctx, f, res, established)
}

// accepting is what one accept works with; kept for use again, since it is large and holds scratch
// memory.
type accepting struct {
	etype.Redacted
	acceptor creds.Acceptor
	bindings krb5.ChannelBindings
	accepted krb5.Accepted
}

var acceptPool = sync.Pool{New: func() any { return new(accepting) }}

// release zeroes the context's keys and gives the memory back.
func (a *accepting) release() {
	a.accepted.Reset()
	a.acceptor, a.bindings = creds.Acceptor{}, krb5.ChannelBindings{}
	acceptPool.Put(a)
}

// bindings are channel bindings as the wire has them; they alias the record.
func bindings(b *xdr.CB) krb5.ChannelBindings {
	return krb5.ChannelBindings{
		InitiatorAddrType: uint32(b.InitiatorAddrtype), InitiatorAddr: b.InitiatorAddress,
		AcceptorAddrType: uint32(b.AcceptorAddrtype), AcceptorAddr: b.AcceptorAddress,
		AppData: b.ApplicationData,
	}
}
