package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"gssproxyd/gssproxyd/knfsd"
	"gssproxyd/rpc"
	"gssproxyd/rpc/peer"
	"gssproxyd/xdr"
)

// exitUnwell is the exit status of gssproxyd status when something is not well.
const exitUnwell = 3

// statusTimeout is how long a daemon may take to answer gssproxyd status.
const statusTimeout = 3 * time.Second

// statusCommand is gssproxyd status: whether each socket of the configuration is answered, and by
// whom, and what the kernel's NFS server does if a service is for it.
func statusCommand(o *options) *cobra.Command {
	return &cobra.Command{
		Use:   "status",
		Short: "Say who answers on the sockets of the configuration, and what the kernel's NFS server does",
		Args:  configured,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := o.load(nil)
			if err != nil {
				return err
			}
			c := cfg.conf
			well, absent := true, true
			say := func(about, text string, good bool) {
				fmt.Fprintf(cmd.OutOrStdout(), "%s: %s\n", about, text)
				well = well && good
			}
			for _, path := range c.Sockets() {
				who, err := askSocket(cmd.Context(), path)
				if err != nil {
					absent = absent && (errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ECONNREFUSED))
					say(path, "NOT ANSWERED: "+cause(err).Error(), false)
				} else {
					say(path, "answered by "+who, true)
					absent = false
				}
			}
			if kernelNFSD(c) {
				text, good := knfsd.Describe()
				say("kernel NFS server", text, good)
			}
			if absent {
				fmt.Fprintf(cmd.OutOrStdout(), "hint: %s\n", startIt)
			}
			if !well {
				return &exitStatus{exitUnwell}
			}
			return nil
		},
	}
}

// askSocket returns who listens on a socket, if that process answers, be it that it does not know
// the question.
func askSocket(ctx context.Context, path string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, statusTimeout)
	defer cancel()
	nc, err := new(net.Dialer).DialContext(ctx, "unix", path)
	if err != nil {
		return "", err
	}
	defer nc.Close()
	p, err := peer.FromConn(nc.(*net.UnixConn))
	if err != nil {
		return "", err
	}
	p.ReadNow(peer.EvidenceProgram)
	who := fmt.Sprintf("process %d", p.PID)
	if program, ok := p.Program.Get(); ok {
		who += " (" + shown(program) + ")"
	}
	who += fmt.Sprintf(", socket opened by uid %d", p.UID) // with run_as_user it is another user by now
	c, err := rpc.Dial(ctx, path, p.UID)
	if err != nil {
		return "", err
	}
	defer c.Close()
	_, err = c.Call(ctx, uint32(xdr.ProcNull), nil)
	if _, ok := errors.AsType[*rpc.Error](err); ok {
		return who, nil // the C daemon's: it has no NULL procedure
	}
	switch {
	case errors.Is(err, rpc.ErrNoAnswer):
		return who + fmt.Sprintf(", which has no service for uid %d here and closes the connection", os.Geteuid()), nil
	case err != nil:
		return "", fmt.Errorf("%s listens: %w", who, err)
	}
	return who, nil
}
