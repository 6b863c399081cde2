package main

import (
	"errors"
	"fmt"
	"math"
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
	var uid, program, selinux, appArmor, socket string
	var groups []string
	var place peer.Place
	var pod string
	var trusted bool
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
		ValidArgsFunction: completeReasons,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				return explainReason(cmd, strings.Join(args, " "))
			}
			users := nss.NewDirect()
			cfg, err := o.load(users)
			if err != nil {
				return err
			}
			info := peer.Info{GID: math.MaxUint32} // no group's
			if program != "" {
				info.Program = peer.Known(program)
			}
			if selinux != "" {
				info.SELinux = peer.Known(selinux)
			}
			if appArmor != "" {
				info.AppArmor = peer.Known(appArmor + peer.Enforced)
			}
			if pod != "" {
				names := strings.Split(pod, "/")
				if len(names) != 3 {
					return fmt.Errorf("--pod: NAMESPACE/SERVICEACCOUNT/POD is expected, not %q", pod)
				}
				// As if it had come through its own socket.
				is := peer.Pod{UID: somePod, Namespace: names[0], ServiceAccount: names[1], Name: names[2]}
				place.Pod, info.Registered = is.UID, peer.Known(is)
			}
			if place != (peer.Place{}) {
				info.Place = peer.Known(place)
			}
			if cmd.Flags().Changed("program-trusted") {
				info.Trusted = peer.Known(trusted)
			}
			if info.UID, err = parseID(uid, users.UID); err != nil {
				return fmt.Errorf("--uid: %w", err)
			}
			if len(groups) > 0 {
				gids := make([]uint32, len(groups))
				for i, g := range groups {
					if gids[i], err = parseID(g, users.GID); err != nil {
						return fmt.Errorf("--group: %w", err)
					}
				}
				info.GID, info.Groups = gids[0], peer.Known(gids)
			}
			if socket == "" {
				socket = cfg.conf.DefaultSocket
			}
			if pod != "" {
				socket = "that of the pod"
			}
			out := cmd.OutOrStdout()
			fmt.Fprintf(out, "caller: uid %d", info.UID)
			if uid != strconv.FormatUint(uint64(info.UID), 10) {
				fmt.Fprintf(out, " (%s)", uid)
			}
			for _, more := range [][2]string{
				{"group", strings.Join(groups, " ")}, {"unit", place.Unit}, {"pod", pod}, {"container", place.Container},
				{"program", program}, {"AppArmor label", appArmor}, {"SELinux context", selinux}, {"socket", socket},
			} {
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
			if ask := unsaid[d.Reason]; ask.option != "" && !cmd.Flags().Changed(ask.option) {
				hint = ask.hint
			}
			fmt.Fprintf(out, "refused, %s: %s\nhint: %s\n", d.Reason, d.Conclusion(), hint)
			return &exitStatus{exitFailure}
		},
	}
	f := cmd.Flags()
	f.StringVar(&uid, "uid", "", "`user` of the caller, by name or number")
	f.StringVar(&program, "program", "", "`path` of the caller's program")
	f.BoolVar(&trusted, "program-trusted", false, "whether that is a file of root's that nobody else may write to")
	f.StringArrayVar(&groups, "group", nil, "`group` of the caller, by name or number; more may follow")
	f.StringVar(&place.Unit, "unit", "", "`unit` of systemd that the caller is in")
	f.StringVar(&pod, "pod", "", "`NAMESPACE/SERVICEACCOUNT/POD` that the caller is in, and whose socket it uses")
	f.StringVar(&place.Container, "container", "", "`id` of the container that the caller is in")
	f.StringVar(&appArmor, "apparmor", "", "AppArmor `profile` that the caller is held to")
	f.StringVar(&selinux, "selinux", "", "SELinux `context` of the caller")
	f.StringVar(&socket, "connected-to", "", "`socket` the caller connects to, if not the default socket")
	cmd.RegisterFlagCompletionFunc("uid", completeCallers(o))
	cmd.RegisterFlagCompletionFunc("connected-to", completeSockets(o))
	return cmd
}

// somePod is the UID of a pod that is made up.
const somePod = "00000000-0000-0000-0000-000000000000"

// unsaid is what to say of a caller so that it is not refused for want of it.
var unsaid = map[reason.ID]struct{ option, hint string }{
	reason.ProgramUnknown:    {"program", "say which program the caller runs: --program PATH"},
	reason.ProgramUntrusted:  {"program-trusted", "say whether the program is one that only root can write to: --program-trusted"},
	reason.GroupMismatch:     {"group", "say which groups the caller is in: --group GROUP, for each"},
	reason.UnitMismatch:      {"unit", "say which unit the caller is in: --unit NAME"},
	reason.PodMismatch:       {"pod", "say which pod the caller is in: --pod NAMESPACE/SERVICEACCOUNT/POD"},
	reason.ContainerMismatch: {"container", "say which container the caller is in: --container ID"},
	reason.AppArmorMismatch:  {"apparmor", "say which profile AppArmor holds the caller to: --apparmor PROFILE"},
	reason.SELinuxMismatch:   {"selinux", "say which SELinux context the caller has: --selinux CONTEXT"},
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

// parseID reads a number, or a name that look says the number of.
func parseID(s string, look func(string) (uint32, error)) (uint32, error) {
	if n, err := strconv.ParseUint(s, 10, 32); err == nil {
		return uint32(n), nil
	}
	return look(s)
}
