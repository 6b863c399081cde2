package main

import (
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"gssproxyd/conf"
	"gssproxyd/gssproxyd/nss"
	"gssproxyd/mech/reason"
	"gssproxyd/rpc/peer"
)

// explainCommand is gssproxyd explain: which service would such a caller get, and why. It asks the
// very function that the daemon asks. With a reason it says what that reason means.
func explainCommand(o *options) *cobra.Command {
	var uid, program, selinux, socket string
	cmd := &cobra.Command{
		Use:   "explain {--uid USER | REASON}",
		Short: "Say which service a caller gets, and why; or what the reason of a refusal means",
		Args: func(_ *cobra.Command, args []string) error {
			switch {
			case len(args) > 0 && uid != "":
				return errors.New("explain: either a reason, or --uid, not both")
			case len(args) == 0 && uid == "":
				return errors.New("explain: --uid USER is expected, such as --uid www-data, or the reason of a refusal, such as kvno-mismatch")
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				return explainReason(cmd, strings.Join(args, " "))
			}
			users := nss.NewDirect()
			cfg, err := o.load(users)
			if err != nil {
				return err
			}
			var info peer.Info
			if program != "" {
				info.Program = peer.Known(program)
			}
			if selinux != "" {
				info.SELinux = peer.Known(selinux)
			}
			if info.UID, err = parseUser(uid, users); err != nil {
				return fmt.Errorf("--uid: %w", err)
			}
			if socket == "" {
				socket = cfg.conf.DefaultSocket
			}
			out := cmd.OutOrStdout()
			fmt.Fprintf(out, "caller: uid %d", info.UID)
			if uid != strconv.FormatUint(uint64(info.UID), 10) {
				fmt.Fprintf(out, " (%s)", uid)
			}
			for _, more := range [][2]string{{"program", program}, {"SELinux context", selinux}, {"socket", socket}} {
				if more[1] != "" {
					fmt.Fprintf(out, ", %s %s", more[0], more[1])
				}
			}
			fmt.Fprintln(out)
			d := cfg.conf.Decide(&info, socket)
			for _, line := range d.Trace() {
				fmt.Fprintln(out, line)
			}
			if d.Service != nil {
				return nil
			}
			hint := d.Reason.Doc().Hint
			switch {
			case d.Reason == reason.ProgramUnknown && program == "":
				hint = "say which program the caller runs: --program PATH"
			case d.Reason == reason.SELinuxMismatch && selinux == "":
				hint = "say which SELinux context the caller has: --selinux CONTEXT"
			}
			fmt.Fprintf(out, "refused, %s: %s\nhint: %s\n", d.Reason, d.Conclusion(), hint)
			return &exitStatus{exitFailure}
		},
	}
	f := cmd.Flags()
	f.StringVar(&uid, "uid", "", "`user` of the caller, by name or number")
	f.StringVar(&program, "program", "", "`path` of the caller's program")
	f.StringVar(&selinux, "selinux", "", "SELinux `context` of the caller")
	f.StringVar(&socket, "connected-to", "", "`socket` the caller connects to, if not the default socket")
	return cmd
}

// copied is a reason within what it was copied from: a client's error text, or a line of the log.
var copied = regexp.MustCompile(`\[([a-z0-9-]+)\]|\breason=([a-z0-9-]+)`)

// explainReason prints what is known of a reason id.
func explainReason(cmd *cobra.Command, id string) error {
	if m := copied.FindStringSubmatch(id); m != nil {
		id = m[1] + m[2]
	}
	var known []string
	for _, r := range reason.All {
		if known = append(known, string(r.ID)); string(r.ID) == id {
			fmt.Fprintf(cmd.OutOrStdout(), "%s: %s\nhint: %s\n", r.ID, r.Text, r.Hint)
			return nil
		}
	}
	fmt.Fprintf(cmd.ErrOrStderr(), "gssproxyd: there is no reason %q: %s\n", id, conf.DidYouMean(id, known))
	return &exitStatus{exitConfig}
}

// parseUser reads a user's number or name.
func parseUser(s string, users conf.Users) (uint32, error) {
	if n, err := strconv.ParseUint(s, 10, 32); err == nil {
		return uint32(n), nil
	}
	return users.UID(s)
}
