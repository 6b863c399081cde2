package admin

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"syscall"

	"gssproxyd/rpc"
	"gssproxyd/xdr"
)

// Ask makes one call to the daemon whose admin socket is at path, and fills res. The error says what
// to do where no daemon answers; what the daemon says of an error is in res.
func Ask(ctx context.Context, path string, proc xdr.AdminProc, args, res xdr.Message) error {
	return AskWith(ctx, path, proc, args, nil, res)
}

// AskWith is [Ask] with an open file that goes with the call. It stays the caller's; nil is none.
func AskWith(ctx context.Context, path string, proc xdr.AdminProc, args xdr.Message, file *os.File, res xdr.Message) error {
	c, err := rpc.DialProgram(ctx, path, &rpc.Admin) // root is believed, and who asks
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ECONNREFUSED):
		return fmt.Errorf("no daemon answers on %s: start it (systemctl start gssproxyd), or name its configuration (-c) or socket (-s): %w", path, err)
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("%s is root's: ask as root: %w", path, err)
	case err != nil:
		return err
	}
	defer c.Close()
	results, err := c.CallWith(ctx, uint32(proc), args.Append(nil), file)
	if errors.Is(err, rpc.ErrNoAnswer) {
		return fmt.Errorf("%s: the daemon closed the connection: root may ask it, or who has started it with -u: %w", path, err)
	} else if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	d := xdr.NewDecoder(results)
	if res.Decode(d); d.Err() != nil {
		return fmt.Errorf("%s: the daemon is of another version than this command: %w", path, d.Err())
	}
	return nil
}
