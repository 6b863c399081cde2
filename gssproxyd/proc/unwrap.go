package proc

import (
	"context"
	"syscall"

	"gssproxyd/mech"
	"gssproxyd/mech/reason"
	"gssproxyd/phase"
	"gssproxyd/xdr"
)

// UNWRAP (procedure 14)
//
//	struct gssx_arg_unwrap { gssx_call_ctx call_ctx; gssx_ctx context_handle; gssx_buffer token_buffer<>; gssx_qop qop_state; };
//	struct gssx_res_unwrap { gssx_status status; gssx_ctx *context_handle; gssx_buffer message_buffer<>; bool *conf_state; gssx_qop *qop_state; };
//
// Only the first token of the array is used; one must be there. qop_state echoes the call's, as the
// C daemon's does.
func unwrap(_ context.Context, p *Procedures, c *call, args *xdr.ArgUnwrap, res *xdr.ResUnwrap) error {
	if len(args.TokenBuffer) == 0 {
		return mech.Errorf(mech.Failure, uint32(syscall.EINVAL), reason.BadArgument, "no token was sent").Of("")
	}
	if len(args.TokenBuffer[0]) == 0 {
		return errNoToken
	}
	defer p.phases.Begin().End(phase.Crypto)
	ctx, err := openContext(&args.ContextHandle)
	if err != nil {
		return err
	}
	defer ctx.Destroy()
	message, conf, order, err := ctx.Unwrap(nil, args.TokenBuffer[0])
	if err != nil {
		return err
	}
	res.Status = supplementary(order)
	c.fillContext(&res.ContextHandle, ctx)
	res.MessageBuffer = [][]byte{message}
	res.ConfState = xdr.Some(conf)
	res.QopState = xdr.Some(args.QopState)
	return nil
}
