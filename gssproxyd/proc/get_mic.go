package proc

import (
	"context"

	"gssproxyd/phase"
	"gssproxyd/xdr"
)

// GET_MIC (procedure 11)
//
//	struct gssx_arg_get_mic { gssx_call_ctx call_ctx; gssx_ctx context_handle; gssx_qop qop_req; gssx_buffer message_buffer; };
//	struct gssx_res_get_mic { gssx_status status; gssx_ctx *context_handle; gssx_buffer token_buffer; gssx_qop *qop_state; };
//
// The per-message procedures take the context with the call and give it back with its sequence
// numbers moved on. libgssapi clients do this work themselves, with the context they import.
func getMIC(_ context.Context, p *Procedures, c *call, args *xdr.ArgGetMic, res *xdr.ResGetMic) error {
	defer p.phases.Begin().End(phase.Crypto)
	ctx, err := openContext(&args.ContextHandle)
	if err != nil {
		return err
	}
	defer ctx.Destroy()
	if err := defaultQOP(args.QopReq); err != nil {
		return err
	}
	if res.TokenBuffer, err = ctx.GetMIC(nil, args.MessageBuffer); err != nil {
		return err
	}
	c.fillContext(&res.ContextHandle, ctx)
	res.QopState = xdr.Some(args.QopReq)
	return nil
}
