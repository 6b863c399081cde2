package proc

import (
	"context"

	"gssproxyd/mech"
	"gssproxyd/mech/reason"
	"gssproxyd/xdr"
)

// Procedures that would hand credentials out of the daemon or take them in. They are refused: the
// holder of keys does operations and never hands keys out, and a client keeps the handles it has
// wherever it likes. The C daemon answers them with a result of zeros, which reads as success with
// nothing in it; a client can tell from ours that nothing was done.

// refused is EXPORT_CRED (procedure 4), IMPORT_CRED (procedure 5) and STORE_CRED (procedure 7).
func refused[A, R any](_ context.Context, _ *Procedures, c *call, _ *A, _ *R) error {
	return mech.Errorf(mech.Unavailable, 0, reason.CredsStay, "%s would move credentials in or out of the daemon, which no service may", xdr.Proc(c.rpc.Proc))
}
