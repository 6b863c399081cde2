package main

import (
	"errors"
	"fmt"
	"slices"
	"strconv"

	"github.com/spf13/cobra"

	"gssproxyd/conf"
	"gssproxyd/gssproxyd/proc"
	"gssproxyd/mech"
	"gssproxyd/rpc"
	"gssproxyd/rpc/peer"
	"gssproxyd/xdr"
)

// explainCommand is gssproxyd explain: which service would such a caller get, and why. It asks the very function that
// the daemon asks. With a reason it says what that reason means.
func explainCommand(o *options) *cobra.Command {
	var uid, program, context, socket string
	cmd := &cobra.Command{
		Use:   "explain --uid USER [--program PATH] [--selinux CONTEXT] [--connected-to SOCKET]\n  gssproxyd explain REASON",
		Short: "Say which service a caller would match, and why; or what the reason of a refusal means",
		Args:  cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			switch {
			case len(args) == 1 && uid != "":
				return errors.New("either a reason is explained, or what --uid would get")
			case len(args) == 1:
				return explainReason(cmd, args[0])
			case uid == "":
				return errors.New("--uid USER is expected, or the reason of a refusal")
			}
			users := conf.NewNSS()
			c, _, err := o.load(users)
			if err != nil {
				return err
			}
			info := peer.Info{Program: peer.Maybe[string]{V: program, OK: program != ""}, SELinux: peer.Maybe[string]{V: context, OK: context != ""}}
			if info.UID, err = parseUser(uid, users); err != nil {
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
	return cmd
}

// explainReason prints what is known of a reason id.
func explainReason(cmd *cobra.Command, id string) error {
	var known []string
	for _, r := range reasons() {
		if known = append(known, string(r.ID)); string(r.ID) == id {
			fmt.Fprintf(cmd.OutOrStdout(), "%s: %s\nhint: %s\n", r.ID, r.Text, r.Hint)
			return nil
		}
	}
	fmt.Fprintf(cmd.ErrOrStderr(), "gssproxyd: there is no reason %q: %s\n", id, conf.DidYouMean(id, known))
	return &exitStatus{exitConfig}
}

// reasons is every reason of a refusal that there is.
func reasons() []mech.ReasonDoc {
	all := slices.Concat(mech.Reasons, proc.Reasons)
	for _, r := range conf.Reasons {
		all = append(all, mech.ReasonDoc{ID: mech.Reason(r.ID), Text: r.Text, Hint: r.Hint})
	}
	for _, r := range rpc.Reasons {
		all = append(all, mech.ReasonDoc{ID: mech.Reason(r.ID), Text: r.Text, Hint: r.Hint})
	}
	return all
}

// parseUser reads a user's number or name.
func parseUser(s string, users conf.Users) (uint32, error) {
	if n, err := strconv.ParseUint(s, 10, 32); err == nil {
		return uint32(n), nil
	}
	return users.UID(s)
}
