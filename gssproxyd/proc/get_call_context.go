package proc

import (
	"context"

	"gssproxyd/xdr"
)

// GET_CALL_CONTEXT (procedure 2)
//
//	struct gssx_arg_get_call_context { gssx_call_ctx call_ctx; gssx_option options<>; };
//	struct gssx_res_get_call_context { gssx_status status; octet_string server_call_ctx; gssx_option options<>; };
//
// Gives a client what it would put into server_ctx of later calls. Nothing is kept between calls,
// so that is empty; the answer tells a client that it talks to a service that takes it, and which
// one. The C daemon answers with nothing.
func getCallContext(_ context.Context, _ *Procedures, c *call, _ *xdr.ArgGetCallContext, res *xdr.ResGetCallContext) error {
	res.Options = []xdr.Option{{Option: optService, Value: append([]byte(c.Service.Name), 0)}}
	return nil
}
