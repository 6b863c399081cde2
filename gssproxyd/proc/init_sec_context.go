package proc

import (
	"bytes"
	"context"
	"encoding/binary"
	"log/slog"
	"math"
	"slices"
	"sync"
	"time"

	"gssproxyd/conf"
	"gssproxyd/mech"
	"gssproxyd/mech/krb5"
	"gssproxyd/mech/krb5/etype"
	"gssproxyd/mech/krb5/kdc"
	"gssproxyd/mech/reason"
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
// The first leg gets the ticket, from the credential's cache or from the KDCs, and makes the token. With mutual
// authentication the answer is CONTINUE_NEEDED: the context so far goes to the client, sealed, and comes back with the
// acceptor's token; any instance of the daemon can go on with it. The C daemon sends it in clear.
//
// The flags asked for are (req_flags | enforce_flags) & ~filter_flags of the service. A ticket is asked for that lives for
// time_req, and one that is there already must live as long, as far as the ticket-granting ticket allows. target_name is
// optional in the XDR only.
func initSecContext(ctx context.Context, p *Procedures, c *call, args *xdr.ArgInitSecContext, res *xdr.ResInitSecContext) error {
	f, err := requestedFormat(args.CallCtx.Options)
	if err != nil {
		return err
	}
	m := mech.OID(args.MechType)
	switch m {
	case mech.KRB5, mech.KRB5Old, mech.KRB5Wrong:
	case "":
		return mech.Errorf(mech.NoCred, 0, reason.MechNotAllowed, "no mechanism was sent")
	default:
		return mech.Errorf(mech.NoCred, 0, reason.MechNotAllowed, "mechanism %s is not served", m.Mechanism()).Of(m)
	}
	if _, err := c.usage(xdr.CredInitiate); err != nil {
		return err
	}
	if !args.TargetName.Set {
		return mech.Errorf(mech.BadName|mech.CallInaccessibleRead, 0, reason.BadArgument, "no target name was sent").Of(m)
	}
	target, err := c.importName(&args.TargetName.V)
	if err != nil {
		return asBadName(err)
	}

	in := initPool.Get().(*initiating)
	defer in.release()
	in.initiator = krb5.Initiator{
		Target: target.String(), Flags: c.svc.Effective(uint32(args.ReqFlags)), Bindings: in.bind(&args.InputCB),
		Mech: m, Conf: c.svc.krb5, Now: p.now,
	}
	if args.ContextHandle.Set {
		partial, ok := c.partial(&args.ContextHandle)
		if !ok {
			return mech.Errorf(mech.NoContext, 0, reason.BadContext, "the context that was sent is none that this service has begun").Of(m)
		}
		if err := in.initiator.Continue(&in.out, partial, args.InputToken.V); err != nil {
			return err
		}
	} else {
		ctx, cancel := context.WithTimeout(ctx, callTimeout)
		defer cancel()
		i, sent, err := c.initCredential(ctx, args)
		if err != nil {
			return err
		}
		defer i.drop(ctx)
		if err := c.allowed(i, target); err != nil {
			return err
		}
		in.credential = i
		before := 0
		if sent && c.syncs(args) {
			before = c.ticketCount(ctx, i)
		}
		if err := c.begin(ctx, &in.initiator, i, args, target); err != nil {
			return err
		}
		if err := in.initiator.Init(&in.out); err != nil {
			return err
		}
		if p.trace != nil {
			p.trace("Made an AP-REQ of %s for %s, session key %v", i.client, target, in.initiator.Ticket.KeyType)
		}
		if c.syncs(args) {
			c.sync(ctx, res, i, before)
		}
	}

	res.Status.Mech = args.MechType
	x := &res.ContextHandle
	x.Set = true
	if in.out.Partial != nil {
		res.Status.MajorStatus = uint64(mech.ContinueNeeded)
		res.Status.MajorStatusString = continueText
		x.V = c.partialContext(in.out.Partial, &in.out.Context)
		x.V.Mech = args.MechType
	} else {
		p.traceContext(&in.out.Context)
		c.fillContext(&x.V, &in.out.Context)
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
	credential *initiator // keeps the ticket's key from being overwritten
}

var initPool = sync.Pool{New: func() any { return new(initiating) }}

// release zeroes the context's keys and gives the memory back.
func (in *initiating) release() {
	in.out.Reset()
	if t := in.initiator.Ticket; t != nil && !in.credential.saw(t) {
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

// bindings are channel bindings as the wire has them; they alias the record.
func bindings(b *xdr.CB) krb5.ChannelBindings {
	return krb5.ChannelBindings{
		InitiatorAddrType: uint32(b.InitiatorAddrtype), InitiatorAddr: b.InitiatorAddress,
		AcceptorAddrType: uint32(b.AcceptorAddrtype), AcceptorAddr: b.AcceptorAddress,
		AppData: b.ApplicationData,
	}
}

// initCredential is the credential of the handle that was sent, or the one the caller gets without. sent reports whether
// it is the handle's.
func (c *call) initCredential(ctx context.Context, args *xdr.ArgInitSecContext) (i *initiator, sent bool, err error) {
	h := c.handle(&args.CredHandle)
	if h.cred != nil {
		if h.usage == xdr.CredAccept {
			return nil, false, mech.Errorf(mech.NoCred, 0, reason.CredMismatch, "the credential sent is for accepting only")
		}
		i, _, err = c.continued(ctx, h.cred, 0)
		return i, true, err
	}
	env, err := c.environment(nil, xdr.CredInitiate)
	if err != nil {
		return nil, false, err
	}
	if env.successor, err = c.lostInitiator(h); err != nil {
		return nil, false, err
	}
	if env.successor == nil {
		env.successor = c.left()
	}
	i, err = c.initiate(ctx, &env)
	return i, false, err
}

// allowed refuses to use a credential towards a target that it may not be used for. One that acts for a user reaches the
// service itself. To reach others the service must be trusted, impersonate or have allow_constrained_delegation, which
// count for its own euid only; another uid of a service that impersonates acts in its own name.
func (c *call) allowed(i *initiator, target krb5.Principal) error {
	if !i.proxy() {
		return nil
	}
	if target.Realm == "" {
		target.Realm = i.service.Realm
	}
	switch {
	case target.Equal(i.service):
		return nil
	case c.own() && (c.svc.Trusted || c.svc.Impersonate || c.svc.AllowConstrainedDelegation):
		return nil
	case !c.own() && c.svc.Impersonate:
		user, err := c.ownName()
		if err != nil {
			return err
		}
		if i.client.Equal(user) {
			return nil
		}
	}
	return mech.Errorf(mech.Unauthorized, 0, reason.NoDelegation, "uid %d of service %q may not reach %s as %s", c.Conn.Peer.UID, c.svc.Name, target, i.client)
}

// begin gets what the first token needs: the ticket and, when a credential is delegated, the forwarded one.
func (c *call) begin(ctx context.Context, in *krb5.Initiator, i *initiator, args *xdr.ArgInitSecContext, target krb5.Principal) error {
	var opt kdc.TicketOptions
	for _, e := range args.CredHandle.V.Elements {
		if v, ok := option(e.Options, optAllowedEnctypes); ok {
			for ; len(v) >= 4; v = v[4:] {
				opt.Enctypes = append(opt.Enctypes, etype.ID(int32(binary.NativeEndian.Uint32(v))))
			}
		}
		if _, ok := option(e.Options, optNoCIFlags); ok {
			in.NoCIFlags = true
		}
	}
	if offset := c.svc.kdc.Offset(i.startRealm()); offset != 0 {
		in.Now = func() time.Time { return c.svc.p.now().Add(offset) }
	}
	if args.TimeReq > 0 && args.TimeReq < indefinite {
		opt.Till = uint32(min(c.kdcTime(i).Unix()+int64(args.TimeReq), math.MaxUint32))
	}
	var err error
	if in.Ticket, err = c.ticket(ctx, i, target, opt); err != nil {
		return err
	}
	if !in.Delegates() || i.proxy() {
		return nil
	}
	tgt, err := findTicket(ctx, i, func(cred *krb5.Credential) bool {
		return isTGT(cred) && cred.Server.Components[1] == i.client.Realm &&
			cred.Client.Equal(i.client) && cred.Flags&kdc.OptForwardable != 0
	})
	if err != nil || tgt == nil {
		return nil // delegation is then not done, and the context's flags say so
	}
	defer tgt.Destroy()
	in.Delegate, err = c.svc.kdc.Forward(ctx, tgt, in.Ticket.KeyType)
	if err != nil {
		c.svc.p.note(slog.LevelWarn, c, reasonOf(err), "credential is not delegated", "principal", i.client.String(), "target", target.String(), "error", err)
		in.Delegate = nil
	}
	return nil
}

// syncs tells whether client and service both want changed credentials to go back to the client, and the tickets have no
// cache of their own.
func (c *call) syncs(args *xdr.ArgInitSecContext) bool {
	v, ok := option(args.Options, optSyncModifiedCreds)
	return ok && bytes.Equal(v, valDefault) && c.svc.AllowClientCcacheSync &&
		!slices.ContainsFunc(c.svc.CredStore, func(e conf.KeyValue) bool { return e.Key == "ccache" })
}

// sync gives the client the credential anew when tickets have come to it.
func (c *call) sync(ctx context.Context, res *xdr.ResInitSecContext, i *initiator, before int) {
	if c.ticketCount(ctx, i) == before {
		return
	}
	cr, err := c.credOf(ctx, i, xdr.CredInitiate)
	if err != nil {
		c.svc.p.note(slog.LevelWarn, c, reasonOf(err), "changed credential is not sent to the client", "error", err)
		return
	}
	defer clear(cr.tickets)
	wire := c.wireCred(cr, i.expires)
	res.Options = append(res.Options, xdr.Option{Option: optSyncCreds, Value: wire.Append(nil)})
}

// ticketCount is how many tickets a credential has.
func (c *call) ticketCount(ctx context.Context, i *initiator) int {
	creds, _ := i.cache.Credentials(ctx)
	for _, cred := range creds {
		cred.Destroy()
	}
	return len(creds)
}
