package proc

import (
	"context"

	"gssproxyd/mech"
	"gssproxyd/mech/reason"
	"gssproxyd/xdr"
)

// RELEASE_HANDLE (procedure 10)
//
//	union gssx_handle switch (gssx_handle_type handle_type) {
//	case GSSX_C_HANDLE_SEC_CTX: gssx_ctx sec_ctx_info;
//	case GSSX_C_HANDLE_CRED:    gssx_cred cred_info;
//	default:                    octet_string extensions; };
//	struct gssx_arg_release_handle { gssx_call_ctx call_ctx; gssx_handle cred_handle; };
//	struct gssx_res_release_handle { gssx_status status; };
//
// Nothing is kept between calls, so there is nothing to release: every handle goes out with
// needs_release false, and a call for one is answered UNAVAILABLE as the C daemon does. A handle of
// another type is a malformed call.
func releaseHandle(_ context.Context, _ *Procedures, _ *call, args *xdr.ArgReleaseHandle, _ *xdr.ResReleaseHandle) error {
	switch args.CredHandle.HandleType {
	case xdr.HandleSecCtx, xdr.HandleCred:
		return mech.Errorf(mech.Unavailable, 0, reason.NotImplemented, "this handle needs no release").Of("")
	default:
		return mech.Errorf(mech.CallBadStructure, 0, reason.BadArgument, "handle of unknown type").Of("")
	}
}
