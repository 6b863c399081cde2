package proc

import (
	"context"

	"gssproxyd/mech"
	"gssproxyd/xdr"
)

// Procedures that are not built yet. The C daemon answers GET_CALL_CONTEXT, EXPORT_CRED, IMPORT_CRED and STORE_CRED
// with a result of zeros, which reads as success with nothing in it; a client can tell from ours that nothing was done.

func notImplemented(what string) error {
	return refusal(mech.Unavailable, ReasonNotImplemented, what+" is not implemented")
}

// getCallContext is GET_CALL_CONTEXT (procedure 2).
func getCallContext(context.Context, *Procedures, *call, *xdr.ArgGetCallContext, *xdr.ResGetCallContext) error {
	return notImplemented("GET_CALL_CONTEXT")
}

// exportCred is EXPORT_CRED (procedure 4).
func exportCred(context.Context, *Procedures, *call, *xdr.ArgExportCred, *xdr.ResExportCred) error {
	return notImplemented("EXPORT_CRED")
}

// importCred is IMPORT_CRED (procedure 5).
func importCred(context.Context, *Procedures, *call, *xdr.ArgImportCred, *xdr.ResImportCred) error {
	return notImplemented("IMPORT_CRED")
}

// storeCred is STORE_CRED (procedure 7).
func storeCred(context.Context, *Procedures, *call, *xdr.ArgStoreCred, *xdr.ResStoreCred) error {
	return notImplemented("STORE_CRED")
}

// initSecContext is INIT_SEC_CONTEXT (procedure 8).
func initSecContext(context.Context, *Procedures, *call, *xdr.ArgInitSecContext, *xdr.ResInitSecContext) error {
	return refusal(mech.Unavailable, ReasonNoInitiate, "initiating contexts is not implemented")
}
