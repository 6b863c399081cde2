package proc

import (
	"bytes"
	"context"
	"fmt"
	"strings"

	"gssproxyd/gssproxyd/creds"
	"gssproxyd/mech"
	"gssproxyd/mech/reason"
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
// A handle that is sent along and still serves comes back byte for byte, and so do name and elements,
// but for the time that its tickets have left, which is what it is now; the C daemon sends the former
// one. The client compares name, number of elements and handle to decide whether to rewrite the copy
// it keeps. The times asked for are not looked at, as in the C daemon.
//
// With add_cred_to_input_handle the answer is what the handle has and an element more
// (GSS_Add_cred, RFC 2743 section 2.1.4); the C daemon refuses, or sends the handle back. Who
// impersonates has nothing to add to.
//
// With the option "acquire_type" the handle is an initiator's that the credential of another user
// is got with (S4U2Self), which the service must allow; the C daemon then goes on as if the option
// were not there, and fails for another reason.
func acquireCred(ctx context.Context, _ *Procedures, c *call, args *xdr.ArgAcquireCred, res *xdr.ResAcquireCred) error {
	if err := wantsKRB5(args.DesiredMechs); err != nil {
		return err
	}
	in, err := c.input(&args.InputCredHandle, args.Options)
	if err != nil {
		return err
	}
	r := creds.Request{Input: in, Usage: usageOf(args.CredUsage), Add: args.AddCredToInputHandle}
	if args.DesiredName.Set {
		name := nameOf(&args.DesiredName.V)
		r.Name = &name
	}
	if v, ok := option(args.Options, optAcquireType); ok && args.InputCredHandle.Set {
		r.Type = creds.AcquireUnknown
		if bytes.Equal(v, valImpersonateName) {
			r.Type = creds.AcquireImpersonated
		}
	}
	h, err := c.Acquire(ctx, &r)
	if err != nil {
		return err
	}
	res.Status.Mech = oidKRB5
	if h == nil {
		res.OutputCredHandle = args.InputCredHandle
		res.OutputCredHandle.V.Elements = c.still(args.InputCredHandle.V.Elements, in.Handle.Expires)
		return nil
	}
	defer h.Destroy()
	res.OutputCredHandle = xdr.Some(c.wireCred(h))
	return nil
}

// wantsKRB5 refuses a set of mechanisms without krb5; only its right OID counts, and the empty set
// is krb5. For each negotiation libgssapi tries all mechanisms that it knows, one by one, and does
// without those it does not get.
func wantsKRB5(mechs [][]byte) error {
	var others []string
	tried := true
	for _, m := range mechs {
		m := mech.OID(m)
		if m == mech.KRB5 {
			return nil
		}
		if len(others) < 4 {
			others = append(others, m.Mechanism())
		}
		tried = tried && (m == mech.IAKERB || m == mech.KRB5Old || m == mech.KRB5Wrong)
	}
	if len(mechs) == 0 {
		return nil
	}
	if n := len(mechs) - len(others); n > 0 {
		others = append(others, fmt.Sprintf("%d more", n))
	}
	err := mech.Errorf(mech.NoCred, 0, reason.MechNotAllowed, "krb5 is served, and not %s", strings.Join(others, ", "))
	if tried {
		return probe{err}
	}
	return err
}
