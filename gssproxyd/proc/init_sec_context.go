package proc

import (
	"bytes"
	"context"
	"log/slog"
	"math"
	"slices"
	"sync"
	"time"

	"gssproxyd/conf"
	"gssproxyd/gssproxyd/creds"
	"gssproxyd/mech"
	"gssproxyd/mech/krb5"
	"gssproxyd/mech/krb5/etype"
	"gssproxyd/mech/krb5/kdc"
	"gssproxyd/mech/reason"
	"gssproxyd/phase"
	"gssproxyd/xdr"
)

// INIT_SEC_CONTEXT (procedure 8)
//
//	struct gssx_arg_init_sec_context {
//		gssx_call_ctx call_ctx; gssx_ctx *context_handle; gssx_cred *cred_handle; gssx_name *target_name;
//		gssx_OID mech_type; gssx_uint64 req_flags; gssx_time time_req; gssx_cb *input_cb;
//		gssx_buffer *input_token; gssx_option options<>; };
//	struct gssx_res_init_sec_context {
//		gssx_status status; gssx_ctx *context_handle; gssx_buffer *output_token; gssx_option options<>; };
//
// The first leg gets the ticket, from the credential's cache or from the KDCs, and makes the token.
// With mutual authentication the answer is CONTINUE_NEEDED: the context so far goes to the client,
// sealed, and comes back with the acceptor's token; any instance of the daemon can go on with it.
// The C daemon sends it in clear.
//
// The flags asked for are (req_flags | enforce_flags) & ~filter_flags of the service. A ticket is
// asked for that lives for time_req, and one that is there already must live as long, as far as the
// ticket-granting ticket allows. target_name is optional in the XDR only.
func initSecContext(ctx context.Context, p *Procedures, c *call, args *xdr.ArgInitSecContext, res *xdr.ResInitSecContext) error {
	f, err := requestedFormat(args.CallCtx.Options)
	if err != nil {
		return err
	}
	m := mech.OID(args.MechType)
	switch m {
	case mech.KRB5, mech.KRB5Old, mech.KRB5Wrong:
	case "":
		return mech.Errorf(mech.NoCred, 0, reason.MechNotAllowed, "no mechanism was sent").Of("")
	default:
		return mech.Errorf(mech.NoCred, 0, reason.MechNotAllowed, "mechanism %s is not served", m.Mechanism()).Of(m)
	}
	if _, err := c.Usage(conf.UsageInitiate); err != nil {
		return err
	}
	if !args.TargetName.Set {
		return mech.Errorf(mech.BadName|mech.CallInaccessibleRead, 0, reason.BadArgument, "no target name was sent").Of(m)
	}
	target, err := c.Principal(nameOf(&args.TargetName.V))
	if err != nil {
		return creds.AsBadName(err)
	}

	c.Event.Target = target.String()

	in := initPool.Get().(*initiating)
	defer in.release()
	flags := c.Service.Effective(uint32(args.ReqFlags))
	if flags&(mech.FlagDeleg|mech.FlagDelegPolicy) != 0 && !c.MayDelegate() {
		flags &^= mech.FlagDeleg | mech.FlagDelegPolicy
	}
	in.initiator = krb5.Initiator{
		Target: c.Event.Target, Flags: flags, Bindings: in.bind(&args.InputCB),
		Preferred: c.Service.Enctypes(), Mech: m, Conf: c.Service.Krb5, Now: p.log.Now,
	}
	if args.ContextHandle.Set {
		partial, ok := c.partial(&args.ContextHandle)
		if !ok {
			return mech.Errorf(mech.NoContext, 0, reason.BadContext, "the context that was sent is none that this service has begun").Of(m)
		}
		span := p.phases.Begin()
		err := in.initiator.Continue(&in.out, partial, args.InputToken.V)
		span.End(phase.Crypto)
		if err != nil {
			return err
		}
		if err := c.PermitInitiated(&in.out.Context); err != nil {
			return err
		}
	} else {
		ctx, cancel := context.WithTimeout(ctx, creds.CallTimeout)
		defer cancel()
		sent, err := c.input(&args.CredHandle, args.Options)
		if err != nil {
			return err
		}
		cr, err := c.Credential(ctx, &sent)
		if err != nil {
			return err
		}
		defer cr.Drop(ctx)
		c.Event.Principal = cr.Client.String()
		if err := c.MayReach(cr, target); err != nil {
			return err
		}
		in.credential = cr
		before := 0
		if sent.Handle != nil && c.syncs(args) {
			before = cr.Count(ctx)
		}
		if err := c.begin(ctx, &in.initiator, cr, args, target); err != nil {
			return err
		}
		span := p.phases.Begin()
		err = in.initiator.Init(&in.out)
		span.End(phase.Crypto)
		if err != nil {
			return err
		}
		if p.log.Trace != nil {
			p.log.Trace("Made an AP-REQ of %s for %s, session key %v", cr.Client, target, in.initiator.Ticket.KeyType)
		}
		if c.syncs(args) {
			c.sync(ctx, res, cr, before)
		}
	}

	c.about(&in.out.Context)
	res.Status.Mech = args.MechType
	in.out.Context.EndTime = c.Ends(in.out.Context.EndTime, 0)
	x := &res.ContextHandle
	if in.out.Partial != nil {
		res.Status.MajorStatus = uint64(mech.ContinueNeeded)
		res.Status.MajorStatusString = continueText
		*x = c.partialContext(in.out.Partial, &in.out.Context)
		x.V.Mech = args.MechType
	} else {
		if p.log.Trace != nil {
			p.traceContext(&in.out.Context)
		}
		c.fillContext(x, &in.out.Context)
		if f.lucid {
			if err := c.fillLucid(&x.V, &in.out.Context); err != nil {
				*res = xdr.ResInitSecContext{}
				return err
			}
		}
	}
	if len(in.out.Token) > 0 {
		res.OutputToken = xdr.Some(c.keep(func(b []byte) []byte { return append(b, in.out.Token...) }))
	}
	return nil
}

// initiating is what one leg works with; kept for use again.
type initiating struct {
	etype.Redacted
	initiator  krb5.Initiator
	bindings   krb5.ChannelBindings
	out        krb5.Initiated
	credential *creds.Credential // keeps the ticket's key from being overwritten
}

var initPool = sync.Pool{New: func() any { return new(initiating) }}

// release zeroes the context's keys and gives the memory back.
func (in *initiating) release() {
	in.out.Reset()
	if t := in.initiator.Ticket; t != nil && !in.credential.Shares(t) {
		t.Destroy()
	}
	if t := in.initiator.Delegate; t != nil {
		t.Destroy()
	}
	in.initiator, in.bindings, in.credential = krb5.Initiator{}, krb5.ChannelBindings{}, nil
	initPool.Put(in)
}

func (in *initiating) bind(cb *xdr.Opt[xdr.CB]) *krb5.ChannelBindings {
	if !cb.Set {
		return nil
	}
	in.bindings = bindings(&cb.V)
	return &in.bindings
}

// begin gets what the first token needs: the ticket and, when a credential is delegated, the
// forwarded one.
func (c *call) begin(ctx context.Context, in *krb5.Initiator, cr *creds.Credential, args *xdr.ArgInitSecContext, target krb5.Principal) error {
	var opt kdc.TicketOptions
	opt.Enctypes = allowedEnctypes(&args.CredHandle)
	for _, e := range args.CredHandle.V.Elements {
		if _, ok := option(e.Options, optNoCIFlags); ok {
			in.NoCIFlags = true
		}
	}
	if offset := c.Offset(cr); offset != 0 {
		p := c.p
		in.Now = func() time.Time { return p.log.Now().Add(offset) }
	}
	if args.TimeReq > 0 && args.TimeReq < indefinite {
		opt.Till = uint32(min(c.KDCTime(cr).Unix()+int64(args.TimeReq), math.MaxUint32))
	}
	var err error
	if in.Ticket, err = c.Ticket(ctx, cr, target, opt); err != nil {
		return err
	}
	if !in.Delegates() {
		return nil
	}
	in.Delegate, err = c.Forward(ctx, cr, in.Ticket.KeyType)
	if err != nil {
		c.note(slog.LevelWarn, reasonOf(err), "credential is not delegated", "principal", cr.Client.String(), "target", target.String(), "error", err)
		in.Delegate = nil
	}
	return nil
}

// syncs reports whether client and service both want changed credentials to go back to the client,
// and the tickets have no cache of their own.
func (c *call) syncs(args *xdr.ArgInitSecContext) bool {
	v, ok := option(args.Options, optSyncModifiedCreds)
	return ok && bytes.Equal(v, valDefault) && c.Service.AllowClientCcacheSync &&
		!slices.ContainsFunc(c.Service.CredStore, func(e conf.KeyValue) bool { return e.Key == "ccache" })
}

// sync gives the client a new handle when tickets have come to the credential.
func (c *call) sync(ctx context.Context, res *xdr.ResInitSecContext, cr *creds.Credential, before int) {
	if cr.Count(ctx) == before {
		return
	}
	h, err := cr.Handle(ctx, conf.UsageInitiate)
	if err != nil {
		c.note(slog.LevelWarn, reasonOf(err), "changed credential is not sent to the client", "error", err)
		return
	}
	defer h.Destroy()
	wire := c.wireCred(h)
	res.Options = append(res.Options, xdr.Option{Option: optSyncCreds, Value: wire.Append(nil)})
}
