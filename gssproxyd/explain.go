package main

import (
	"fmt"
	"strconv"

	"github.com/spf13/cobra"

	"gssproxyd/conf"
	"gssproxyd/rpc/peer"
	"gssproxyd/xdr"
)

// explainCommand is gssproxyd explain: which service would such a caller get, and why. It asks the very function that
// the daemon asks.
func explainCommand(o *options) *cobra.Command {
	var uid, program, context, socket string
	cmd := &cobra.Command{
		Use:   "explain --uid USER [--program PATH] [--selinux CONTEXT] [--connected-to SOCKET]",
		Short: "Say which service a caller would match, and why",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			src := o.source()
			c, err := conf.Load(src)
			if err != nil {
				return err
			}
			info := peer.Info{Program: peer.Maybe[string]{V: program, OK: program != ""}, SELinux: peer.Maybe[string]{V: context, OK: context != ""}}
			if info.UID, err = parseUser(uid, src.Users); err != nil {
				return fmt.Errorf("--uid: %w", err)
			}
			if socket == "" {
				socket = c.DefaultSocket
			}
			d := c.Decide(&info, socket, uint32(xdr.ProcAcceptSecContext))
			out := cmd.OutOrStdout()
			for _, line := range d.Trace() {
				fmt.Fprintln(out, line)
			}
			if d.Service == nil {
				return &exitStatus{exitFailure}
			}
			return nil
		},
	}
	f := cmd.Flags()
	f.StringVar(&uid, "uid", "", "user name or number of the caller")
	f.StringVar(&program, "program", "", "path of the caller's program")
	f.StringVar(&context, "selinux", "", "SELinux context of the caller")
	f.StringVar(&socket, "connected-to", "", "socket the caller connects to (default: the default socket)")
	cmd.MarkFlagRequired("uid")
	return cmd
}

// parseUser reads a user's number or name.
func parseUser(s string, users conf.Users) (uint32, error) {
	if n, err := strconv.ParseUint(s, 10, 32); err == nil {
		return uint32(n), nil
	}
	return users.UID(s)
}
