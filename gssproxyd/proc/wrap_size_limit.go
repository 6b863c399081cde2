package proc

import (
	"context"

	"gssproxyd/xdr"
)

// WRAP_SIZE_LIMIT (procedure 15)
//
//	struct gssx_arg_wrap_size_limit { gssx_call_ctx call_ctx; gssx_ctx context_handle; bool conf_req; gssx_qop qop_state; uint64_t req_output_size; };
//	struct gssx_res_wrap_size_limit { gssx_status status; uint64_t max_input_size; };
func wrapSizeLimit(_ context.Context, _ *Procedures, _ *call, args *xdr.ArgWrapSizeLimit, res *xdr.ResWrapSizeLimit) error {
	ctx, err := openContext(&args.ContextHandle)
	if err != nil {
		return err
	}
	defer ctx.Destroy()
	if err := defaultQOP(args.QopState); err != nil {
		return err
	}
	res.MaxInputSize = uint64(ctx.WrapSizeLimit(args.ConfReq, uint32(min(args.ReqOutputSize, 1<<32-1))))
	return nil
}
