package proc

import (
	"context"
	"errors"
	"slices"

	"gssproxyd/keytab"
	"gssproxyd/mech"
	"gssproxyd/mech/krb5"
	"gssproxyd/mech/reason"
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
// On success output_token is present even when it is empty, and status.mech is set: clients read both without looking.
// A context whose exchange goes on (DCE style) goes to the client, sealed, and comes back in context_handle with the
// next token; the C daemon cannot continue one. One that does not open is not looked at, as there, and a new one begins.
//
// Unlike the C daemon, a failure's KRB-ERROR token is returned where the protocol has one, so that a caller that can
// pass it on tells the initiator why.
func acceptSecContext(ctx context.Context, p *Procedures, c *call, args *xdr.ArgAcceptSecContext, res *xdr.ResAcceptSecContext) error {
	f, err := requestedFormat(args.CallCtx.Options)
	if err != nil {
		return err
	}
	if _, err := c.usage(xdr.CredAccept); err != nil {
		return err
	}
	var uid uint32
	var wanted *xdr.Name
	h := c.handle(&args.CredHandle)
	cr := h.cred
	switch {
	case cr == nil:
		env, err := c.environment(nil, xdr.CredAccept)
		if err != nil {
			return err
		}
		uid, wanted = env.uid, env.name
	case cr.usage == xdr.CredInitiate:
		return mech.Errorf(mech.NoCred, 0, reason.CredMismatch, "the credential sent is for initiating only")
	default:
		uid = cr.uid
	}
	if name := h.accepts(); name != nil {
		wanted = name
	}

	acc := acceptPool.Get().(*accepting)
	defer acc.release()
	st, err := c.acceptor(&acc.acceptor, uid, wanted)
	if err != nil {
		return err
	}
	if ring := st.keytab.Ring(); ring.Len() == 0 {
		ring, _ = st.keytab.Refresh(ctx, ring)
		acc.acceptor.Keys = ring
		if _, err := acc.acceptor.Check(ring.All()); err != nil {
			return withKeytab(err, st.keytab)
		}
	}
	var cb *krb5.ChannelBindings
	if args.InputCB.Set {
		acc.bindings = bindings(&args.InputCB.V)
		cb = &acc.bindings
	}
	if f.lucid {
		p.forKernel(&acc.acceptor)
	}
	if partial, ok := c.partial(&args.ContextHandle); ok && !f.lucid {
		err = acc.acceptor.Continue(&acc.accepted, partial, args.InputToken)
	} else {
		err = withKeytab(acc.accept(ctx, st.keytab, args.InputToken, cb), st.keytab)
	}
	if err != nil {
		var e *mech.Error
		if errors.As(err, &e) && len(e.Token) > 0 && !f.lucid {
			res.OutputToken = xdr.Some(e.Token)
		}
		return err
	}

	established := &acc.accepted.Context
	res.Status.Mech = oidKRB5
	res.ContextHandle.Set = true
	res.OutputToken = xdr.Some(c.keep(func(b []byte) []byte { return append(b, acc.accepted.Token...) }))
	if acc.accepted.Partial != nil {
		res.Status.MajorStatus = uint64(mech.ContinueNeeded)
		res.Status.MajorStatusString = continueText
		res.ContextHandle.V = c.partialContext(acc.accepted.Partial, established)
		return nil
	}
	p.traceContext(established)
	if args.RetDelegCred && !f.lucid {
		if err := c.delegated(ctx, &acc.accepted, cr, res); err != nil {
			return err
		}
	}
	c.fillContext(&res.ContextHandle.V, established)
	return c.fillForKernel(ctx, f, res, established)
}

// accept accepts a first token, a second time with newer keys where that may help: the KDC may issue tickets under a new
// key moments before the keytab's watcher sees the file.
func (a *accepting) accept(ctx context.Context, kt *keytab.Keytab, token []byte, cb *krb5.ChannelBindings) error {
	err := a.acceptor.Accept(&a.accepted, token, cb)
	var e *mech.Error
	if errors.As(err, &e) && keyMayBeNew(e.Reason) {
		if ring, newer := kt.Refresh(ctx, a.acceptor.Keys.(*keytab.Ring)); newer {
			a.acceptor.Keys = ring
			return a.acceptor.Accept(&a.accepted, token, cb)
		}
	}
	return err
}

// keyMayBeNew tells whether a refusal could be due to a ring that is older than the file.
func keyMayBeNew(r reason.ID) bool {
	switch r {
	case reason.NoKeytab, reason.NoKey, reason.KVNOMismatch, reason.BadIntegrity:
		return true
	}
	return false
}

// delegated hands out the credential that the initiator forwarded. Without one, a caller whose credential is for both
// usages gets one that acts for the initiator with the ticket just accepted as evidence (S4U2Proxy).
func (c *call) delegated(ctx context.Context, a *krb5.Accepted, cr *cred, res *xdr.ResAcceptSecContext) error {
	var i *initiator
	switch {
	case a.Delegated != nil:
		var err error
		if i, err = c.newTemporary(ctx, "delegated", wayDelegated, a.Delegated.Client, a.Delegated); err != nil {
			return err
		}
		i.expires = a.Delegated.EndTime
	case cr != nil && cr.usage == xdr.CredBoth:
		service, err := c.initiator(ctx, cr)
		if err != nil {
			return err
		}
		defer service.drop(ctx)
		if key, get := c.renewal(service, c.keysOf(cr)); get != nil {
			c.svc.p.logins.try(ctx, key, 0, get) // for the next one: accepting waits for no KDC
		}
		if service.seen == nil {
			return gone(service)
		}
		evidence, err := evidenceOf(a)
		if err != nil {
			return err
		}
		if i, err = c.withEvidence(ctx, service, evidence); err != nil {
			return err
		}
		a.Context.Flags |= mech.FlagDeleg
	default:
		return nil
	}
	defer i.drop(ctx)
	deleg, err := c.credOf(ctx, i, xdr.CredInitiate)
	if err != nil {
		return err
	}
	defer clear(deleg.tickets)
	res.DelegatedCredHandle = xdr.Some(c.wireCred(deleg, i.expires))
	return nil
}

// evidenceOf is the ticket that was accepted, as a credential.
func evidenceOf(a *krb5.Accepted) (*krb5.Credential, error) {
	ctx := &a.Context
	client, err := krb5.ParsePrincipal(ctx.There, "")
	if err != nil {
		return nil, err
	}
	server, err := krb5.ParsePrincipal(ctx.Here, "")
	if err != nil {
		return nil, err
	}
	return &krb5.Credential{
		Client: client, Server: server,
		KeyType: ctx.SessionKey.Enctype(), Key: slices.Clone(ctx.SessionKey.Secret()),
		AuthTime: ctx.AuthTime, StartTime: ctx.StartTime, EndTime: ctx.EndTime, RenewTill: ctx.RenewTill,
		Flags: ctx.TicketFlags, Ticket: slices.Clone(a.Ticket),
	}, nil
}
