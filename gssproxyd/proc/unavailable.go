package proc

import (
	"context"

	"gssproxyd/mech"
	"gssproxyd/mech/reason"
	"gssproxyd/xdr"
)

// Procedures that would hand credentials out of the daemon or take them in. They are refused: the holder of keys does
// operations and never hands keys out, and a client keeps the handles it has wherever it likes. The C daemon answers them
// with a result of zeros, which reads as success with nothing in it; a client can tell from ours that nothing was done.

func refusedByDesign(what string) error {
	return mech.Errorf(mech.Unavailable, 0, reason.CredsStay, "%s would move credentials in or out of the daemon, which no service may", what)
}

// exportCred is EXPORT_CRED (procedure 4).
func exportCred(context.Context, *Procedures, *call, *xdr.ArgExportCred, *xdr.ResExportCred) error {
	return refusedByDesign("EXPORT_CRED")
}

// importCred is IMPORT_CRED (procedure 5).
func importCred(context.Context, *Procedures, *call, *xdr.ArgImportCred, *xdr.ResImportCred) error {
	return refusedByDesign("IMPORT_CRED")
}

// storeCred is STORE_CRED (procedure 7).
func storeCred(context.Context, *Procedures, *call, *xdr.ArgStoreCred, *xdr.ResStoreCred) error {
	return refusedByDesign("STORE_CRED")
}
