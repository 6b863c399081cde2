package proc

import (
	"bytes"
	"context"
	"errors"

	"gssproxyd/keytab"
	"gssproxyd/mech"
	"gssproxyd/mech/krb5"
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
// Always starts a new context: context_handle is not looked at, since every accept is one leg. On success
// output_token is present even when it is empty, and status.mech is set: clients read both without looking.
//
// Unlike the C daemon, a failure's KRB-ERROR token is returned where the protocol has one, so that a caller that can
// pass it on tells the initiator why. A delegated credential is verified and not handed out yet.
func acceptSecContext(ctx context.Context, p *Procedures, c *call, args *xdr.ArgAcceptSecContext, res *xdr.ResAcceptSecContext) error {
	if err := exportFormat(args.CallCtx.Options); err != nil {
		return err
	}
	uid, wanted := c.Conn.Peer.UID, (*xdr.Name)(nil)
	opened := false
	if args.CredHandle.Set {
		if cr, ok := c.unseal(&args.CredHandle.V); ok {
			if cr.usage == xdr.CredInitiate {
				return refusal(mech.NoCred, ReasonCredMismatch, "the credential sent is for initiating only")
			}
			opened = true
			if cr.wanted != "" {
				wanted = &xdr.Name{DisplayName: []byte(cr.wanted), NameType: []byte(cr.wantedType)}
			}
		}
	}
	if !opened {
		if usage, err := c.usage(xdr.CredAccept); err != nil || usage == xdr.CredInitiate {
			return err
		}
		var err error
		if uid, wanted, err = c.target(nil); err != nil {
			return err
		}
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
			return err
		}
	}
	var cb *krb5.ChannelBindings
	if args.InputCB.Set {
		b := &args.InputCB.V
		acc.bindings = krb5.ChannelBindings{
			InitiatorAddrType: uint32(b.InitiatorAddrtype), InitiatorAddr: b.InitiatorAddress,
			AcceptorAddrType: uint32(b.AcceptorAddrtype), AcceptorAddr: b.AcceptorAddress,
			AppData: b.ApplicationData,
		}
		cb = &acc.bindings
	}
	err = acc.acceptor.Accept(&acc.accepted, args.InputToken, cb)
	var e *mech.Error
	if errors.As(err, &e) && keyMayBeNew(e.Reason) {
		// The KDC may issue tickets under a new key moments before the keytab's watcher sees the file.
		if ring, newer := st.keytab.Refresh(ctx, acc.acceptor.Keys.(*keytab.Ring)); newer {
			acc.acceptor.Keys = ring
			err = acc.acceptor.Accept(&acc.accepted, args.InputToken, cb)
		}
	}
	if err != nil {
		if errors.As(err, &e) && len(e.Token) > 0 {
			res.OutputToken = xdr.Some(e.Token)
		}
		p.trace("accept failed: %v", err)
		return err
	}
	established := &acc.accepted.Context
	p.trace("accepted %s for %s", established.There, established.Here)

	res.Status.Mech = oidKRB5
	res.ContextHandle = xdr.Opt[xdr.Ctx]{Set: true}
	c.fillContext(&res.ContextHandle.V, established)
	res.OutputToken = xdr.Some(c.keep(func(b []byte) []byte { return append(b, acc.accepted.Token...) }))
	return nil
}

// keyMayBeNew tells whether a refusal could be due to a ring that is older than the file.
func keyMayBeNew(r mech.Reason) bool {
	switch r {
	case mech.ReasonNoKeytab, mech.ReasonNoKey, mech.ReasonKVNOMismatch, mech.ReasonBadIntegrity:
		return true
	}
	return false
}

// exportFormat refuses context and credential formats that are not served.
func exportFormat(options []xdr.Option) error {
	for _, o := range [...]struct{ name, known []byte }{{optExportedContextType, valLucid}, {optExportedCredsType, valLinuxCreds}} {
		v, ok := option(options, o.name)
		switch {
		case !ok:
		case bytes.Equal(v, o.known):
			return refusal(mech.Unavailable, ReasonNotImplemented, "contexts for the kernel are not implemented")
		default:
			return failure(ReasonBadOption, string(bytes.TrimRight(o.name, "\x00"))+" has a value that is not known")
		}
	}
	return nil
}
