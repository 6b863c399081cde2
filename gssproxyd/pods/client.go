package pods

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"

	"golang.org/x/sys/unix"

	"gssproxyd/openat"
	"gssproxyd/rpc"
	"gssproxyd/xdr"
)

// Client registers pods with a daemon.
type Client struct {
	Socket string // of registration
}

// Register has the daemon make a socket for a pod. One that it has made already is no error.
func (c *Client) Register(ctx context.Context, r *Registration) error {
	if err := r.Check(); err != nil {
		return err
	}
	m := toWire(r)
	return c.ask(ctx, xdr.PodsRegister, &m)
}

// Unregister has it take one away. One that is not there is no error.
func (c *Client) Unregister(ctx context.Context, podUID, handle string) error {
	return c.ask(ctx, xdr.PodsUnregister, &xdr.PodsVolume{Pod: podUID, Handle: handle})
}

// List returns what is registered.
func (c *Client) List(ctx context.Context) (all []Registration, err error) {
	var m xdr.PodsRegistrations
	if err := c.call(ctx, xdr.PodsList, nil, &m); err != nil {
		return nil, err
	}
	for i := range m.All {
		all = append(all, fromWire(&m.All[i]))
	}
	return all, nil
}

func (c *Client) ask(ctx context.Context, proc xdr.PodsProc, m xdr.Message) error {
	var answer xdr.PodsAnswer
	if err := c.call(ctx, proc, m.Append(nil), &answer); err != nil {
		return err
	}
	if len(answer.Error) > 0 {
		return errors.New(answer.Error)
	}
	return nil
}

// call makes one call, on a connection of its own: calls are rare, and the daemon may be another one
// by the next.
func (c *Client) call(ctx context.Context, proc xdr.PodsProc, args []byte, result xdr.Message) error {
	owner, err := c.owner()
	if err != nil {
		return fmt.Errorf("the daemon's socket of registration: %w", err)
	}
	conn, err := rpc.DialProgram(ctx, c.Socket, &rpc.Pods, owner)
	if err != nil {
		return fmt.Errorf("the daemon, which has to run and to have pod_socket = %s: %w", c.Socket, err)
	}
	defer conn.Close()
	b, err := conn.Call(ctx, uint32(proc), args)
	if err != nil {
		return err
	}
	d := xdr.NewDecoder(b)
	result.Decode(d)
	return d.Err()
}

// owner is the user whose the directory of the socket is: root has made that directory for the user
// that the daemon is, and the way to it is root's.
func (c *Client) owner() (uint32, error) {
	parent, name, err := openat.Parent(filepath.Dir(c.Socket))
	if err != nil {
		return 0, err
	}
	defer parent.Close()
	if !parent.Closed() {
		return 0, fmt.Errorf("%s: others than root can replace it", filepath.Dir(c.Socket))
	}
	return ownerOf(parent, name)
}

// ownerOf returns whose a directory is that nobody else may enter.
func ownerOf(parent *openat.Dir, name string) (uint32, error) {
	f, err := parent.Open(name, unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return 0, err
	}
	if st.Mode&0o077 != 0 {
		return 0, fmt.Errorf("%s has mode %04o; 0700 is expected", f.Name(), st.Mode&0o7777)
	}
	return st.Uid, nil
}
