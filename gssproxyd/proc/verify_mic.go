package proc

import (
	"context"

	"gssproxyd/phase"
	"gssproxyd/xdr"
)

// VERIFY (procedure 12)
//
//	struct gssx_arg_verify_mic { gssx_call_ctx call_ctx; gssx_ctx context_handle; gssx_buffer message_buffer; gssx_buffer token_buffer; };
//	struct gssx_res_verify_mic { gssx_status status; gssx_ctx *context_handle; gssx_qop *qop_state; };
//
// A message out of order verifies, and the status says so in its supplementary bits.
func verifyMIC(_ context.Context, p *Procedures, c *call, args *xdr.ArgVerifyMic, res *xdr.ResVerifyMic) error {
	if len(args.TokenBuffer) == 0 {
		return errNoToken
	}
	defer p.phases.Begin().End(phase.Crypto)
	ctx, err := openContext(&args.ContextHandle)
	if err != nil {
		return err
	}
	defer ctx.Destroy()
	order, err := ctx.VerifyMIC(args.MessageBuffer, args.TokenBuffer)
	if err != nil {
		return err
	}
	res.Status = supplementary(order)
	c.fillContext(&res.ContextHandle, ctx)
	res.QopState = xdr.Some(uint64(0))
	return nil
}
