package proc

import (
	"context"
	"syscall"

	"gssproxyd/mech"
	"gssproxyd/mech/krb5"
	"gssproxyd/mech/reason"
	"gssproxyd/phase"
	"gssproxyd/xdr"
)

// WRAP (procedure 13)
//
//	struct gssx_arg_wrap { gssx_call_ctx call_ctx; gssx_ctx context_handle; bool conf_req; gssx_buffer message_buffer<>; gssx_qop qop_state; };
//	struct gssx_res_wrap { gssx_status status; gssx_ctx *context_handle; gssx_buffer token_buffer<>; bool *conf_state; gssx_qop *qop_state; };
//
// Only the first message of the array is used; one must be there.
func wrap(_ context.Context, p *Procedures, c *call, args *xdr.ArgWrap, res *xdr.ResWrap) error {
	if len(args.MessageBuffer) == 0 {
		return mech.Errorf(mech.Failure, uint32(syscall.EINVAL), reason.BadArgument, "no message was sent").Of("")
	}
	defer p.phases.Begin().End(phase.Crypto)
	ctx, err := openContext(&args.ContextHandle)
	if err != nil {
		return err
	}
	defer ctx.Destroy()
	if err := defaultQOP(args.QopState); err != nil {
		return err
	}
	token, err := ctx.Wrap(nil, args.MessageBuffer[0], args.ConfReq)
	if err != nil {
		return err
	}
	c.fillContext(&res.ContextHandle, ctx)
	res.TokenBuffer = [][]byte{token}
	res.ConfState = xdr.Some(args.ConfReq)
	res.QopState = xdr.Some(args.QopState)
	return nil
}

// defaultQOP refuses a quality of protection other than the default one, the only one krb5 has.
func defaultQOP(qop uint64) error {
	if qop != 0 {
		return mech.Errorf(mech.BadQOP, 0, reason.BadQOP, "krb5 has the default quality of protection only")
	}
	return nil
}

// supplementary is the status of a message that verified, with what its order was.
func supplementary(order mech.Major) xdr.Status {
	if order == 0 {
		return xdr.Status{}
	}
	return xdr.Status{MajorStatus: uint64(order), MajorStatusString: []byte(order.Text() + "\x00")}
}

// errNoToken refuses a per-message token of no bytes.
var errNoToken = mech.Errorf(mech.CallInaccessibleRead, 0, reason.BadArgument, "the token is empty")

// openContext imports the context that a per-message call sent, in the form it was exported in.
func openContext(x *xdr.Ctx) (*krb5.Context, error) {
	if len(x.ExportedContextToken) == 0 {
		return nil, mech.Errorf(mech.NoContext|mech.CallInaccessibleRead, 0, reason.BadContext, "no context was sent").Of("")
	}
	return krb5.ImportContext(x.ExportedContextToken)
}
