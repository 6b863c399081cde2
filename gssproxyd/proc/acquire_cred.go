package proc

import (
	"bytes"
	"context"

	"gssproxyd/mech"
	"gssproxyd/mech/krb5"
	"gssproxyd/xdr"
)

// ACQUIRE_CRED (procedure 6)
//
//	struct gssx_arg_acquire_cred {
//		gssx_call_ctx call_ctx; gssx_cred *input_cred_handle; bool add_cred_to_input_handle;
//		gssx_name *desired_name; gssx_time time_req; gssx_OID_set desired_mechs; gssx_cred_usage cred_usage;
//		gssx_time initiator_time_req; gssx_time acceptor_time_req; gssx_option options<>; };
//	struct gssx_res_acquire_cred {
//		gssx_status status; gssx_cred *output_cred_handle; gssx_option options<>; };
//
// A handle that is sent along and still serves comes back byte for byte: the client compares name, elements and
// handle to decide whether to rewrite the copy it keeps. The times asked for are not looked at, as in the C daemon.
//
// Only acceptor credentials are built so far; a call that needs an initiator is UNAVAILABLE.
func acquireCred(ctx context.Context, _ *Procedures, c *call, args *xdr.ArgAcquireCred, res *xdr.ResAcquireCred) error {
	input := &args.InputCredHandle
	if v, ok := option(args.Options, optAcquireType); ok && input.Set {
		if bytes.Equal(v, valImpersonateName) {
			return refusal(mech.Unavailable, ReasonNoInitiate, "impersonation is not implemented")
		}
		return failure(ReasonBadOption, "acquire_type has a value that is not known")
	}
	if !wantsKRB5(args.DesiredMechs) {
		return refusal(mech.NoCred, ReasonMechNotAllowed, "none of the desired mechanisms is krb5")
	}
	var desired *xdr.Name
	if args.DesiredName.Set {
		desired = &args.DesiredName.V
	}

	if input.Set {
		if cr, ok := c.unseal(&input.V); ok {
			serves, err := c.serves(&cr, desired, args.CredUsage)
			if err != nil {
				return err
			}
			if serves {
				res.Status.Mech = oidKRB5
				res.OutputCredHandle = *input
				return nil
			}
		}
	}

	usage, err := c.usage(args.CredUsage)
	if err != nil {
		return err
	}
	if usage != xdr.CredAccept {
		return refusal(mech.Unavailable, ReasonNoInitiate, "initiator credentials are not implemented")
	}
	uid, name, err := c.target(desired)
	if err != nil {
		return err
	}
	var a krb5.Acceptor
	st, err := c.acceptor(&a, uid, name)
	if err != nil {
		return err
	}
	ring := st.keytab.Ring()
	principal, err := a.Check(ring.All())
	if err != nil {
		if ring, newer := st.keytab.Refresh(ctx, ring); newer {
			principal, err = a.Check(ring.All())
		}
	}
	if err != nil {
		return err
	}
	cr := cred{usage: usage, name: principal}
	if name != nil {
		// A service without a host is shown as the one on this host, though it is accepted for any.
		p, err := c.importName(name)
		if err != nil {
			return asBadName(err)
		}
		cr.name = p.String()
		display, nameType := nameOf(name)
		cr.wanted, cr.wantedType = string(display), string(nameType)
	}
	mn := c.mechName(cr.name, nil)
	res.Status.Mech = oidKRB5
	res.OutputCredHandle = xdr.Some(xdr.Cred{
		DesiredName: mn,
		Elements: []xdr.CredElement{{
			MN: mn, Mech: oidKRB5, CredUsage: usage,
			AcceptorTimeRec: indefinite,
		}},
		CredHandleReference: c.seal(&cr),
	})
	return nil
}

// indefinite is GSS_C_INDEFINITE: keys in a keytab do not expire.
const indefinite = 0xffffffff

// wantsKRB5 tells whether krb5 is among the mechanisms desired; none desired is krb5. Only the right OID counts.
func wantsKRB5(mechs [][]byte) bool {
	for _, m := range mechs {
		if mech.OID(m) == mech.KRB5 {
			return true
		}
	}
	return len(mechs) == 0
}

// serves tells whether a credential can be used for the name and usage now asked for. One for another usage is
// replaced by a new one; one for another name is an error: the client holds on to it for something else.
func (c *call) serves(cr *cred, desired *xdr.Name, usage xdr.CredUsage) (bool, error) {
	if desired != nil {
		p, err := c.importName(desired)
		if err != nil {
			return false, asBadName(err)
		}
		if p.String() != cr.name {
			return false, refusal(mech.CredUnavail, ReasonCredMismatch, "the credential sent is for "+cr.name)
		}
	}
	return cr.usage == xdr.CredBoth || cr.usage == usage, nil
}
