package main

import (
	"errors"
	"fmt"
	"io"
	"math"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"gssproxyd/command"
	"gssproxyd/conf"
	"gssproxyd/gssproxyd/nss"
	"gssproxyd/mech/reason"
	"gssproxyd/rpc/peer"
	"gssproxyd/xdr"
)

// explainCommand is gssproxyd explain: which service would such a caller get, and why. It asks the
// very function that the daemon asks. With a reason it says what that reason means. Of a process, of
// a principal and of what it has refused it has the running daemon say it.
func explainCommand(o *options) *cobra.Command {
	var uid, program, selinux, appArmor, socket, target, principal string
	var groups, operations []string
	var place peer.Place
	var pod string
	var trusted, last, asJSON bool
	var pid int32
	cmd := &cobra.Command{
		Use:   "explain {--pid PID | --last | --principal PRINCIPAL [SERVICE] | --uid USER | REASON}",
		Short: "Say which service a caller gets, and why; what was refused last; or what the reason of a refusal means",
		Args: func(cmd *cobra.Command, args []string) error {
			asked := 0
			for _, name := range []string{"uid", "pid", "last", "principal"} {
				if cmd.Flags().Changed(name) {
					asked++
				}
			}
			switch {
			case asked > 1:
				return errors.New("explain: only one of --uid, --pid, --last and --principal")
			case len(args) > 1 && principal != "":
				return errors.New("explain: --principal PRINCIPAL and one service at most are expected")
			case len(args) > 0 && asked > 0 && principal == "":
				return errors.New("explain: either a reason, or --uid, --pid or --last, not both")
			case len(args) == 0 && asked == 0:
				return errors.New("explain: --uid USER is expected, such as --uid www-data, --pid PID of a process, or the reason of a refusal, such as kvno-mismatch")
			}
			return nil
		},
		ValidArgsFunction: func(cmd *cobra.Command, args []string, word string) ([]string, cobra.ShellCompDirective) {
			switch {
			case principal != "":
				return completeService(o)(cmd, args, word)
			case uid != "" || last || cmd.Flags().Changed("pid"):
				return nil, cobra.ShellCompDirectiveNoFileComp
			}
			return completeReasons(cmd, args, word)
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			switch {
			case last:
				var res xdr.AdminResDenials
				if err := o.ask(cmd.Context(), xdr.AdminProcDenials, &xdr.AdminArgDenials{Last: 1}, &res, &res.Error); err != nil {
					return err
				}
				return command.Answer(cmd, asJSON, &res, printDenials)
			case principal != "":
				var res xdr.AdminResPrincipal
				if err := o.ask(cmd.Context(), xdr.AdminProcExplainPrincipal, &xdr.AdminArgPrincipal{Principal: principal, Service: strings.Join(args, "")}, &res, &res.Error); err != nil {
					return err
				}
				return command.Answer(cmd, asJSON, &res, printUsers, usersStatus)
			case cmd.Flags().Changed("pid"):
				var res xdr.AdminResExplain
				ask := xdr.AdminArgExplain{PID: pid, Socket: socket, Operations: operations, Target: target}
				if err := o.ask(cmd.Context(), xdr.AdminProcExplain, &ask, &res, &res.Error); err != nil {
					return err
				}
				return command.Answer(cmd, asJSON, &res, func(w io.Writer, res *xdr.AdminResExplain) error {
					caller := slices.Insert(callerPairs(&res.Caller), 1, [2]string{"gid", strconv.FormatUint(uint64(res.GID.V), 10)})
					fmt.Fprintf(w, "caller: %s\n", listed(append(caller, [2]string{"socket", res.Socket})))
					return printExplained(w, res)
				}, explainedStatus)
			case len(args) > 0:
				return explainReason(cmd, strings.Join(args, " "), asJSON)
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
			res := xdr.AdminResExplain{Caller: shownPeer(&info), Socket: socket}
			if len(groups) > 0 {
				res.GID = xdr.Some(info.GID)
			}
			d := cfg.conf.Decide(&info, socket)
			decided(&res, &d)
			if ask := unsaid[d.Reason]; ask.option != "" && !cmd.Flags().Changed(ask.option) {
				res.Hint = ask.hint
			}
			return command.Answer(cmd, asJSON, &res, func(out io.Writer, res *xdr.AdminResExplain) error {
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
				return printExplained(out, res)
			}, explainedStatus)
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
	f.Int32Var(&pid, "pid", 0, "`number` of a process: what the running daemon sees of it, and what it would get")
	f.StringSliceVar(&operations, "operation", nil, "with --pid: `what` it would do: accept, initiate, impersonate, delegate or names; if not given, what its service is for")
	f.StringVar(&target, "target", "", "with --pid: `whom` it would initiate a context with, or with --operation impersonate get the credential of")
	f.BoolVar(&last, "last", false, "what the running daemon has refused last")
	f.StringVar(&principal, "principal", "", "which user of this host a `principal` is, to each service or one, and by which rule")
	f.BoolVar(&asJSON, "json", false, "print one JSON object")
	cmd.RegisterFlagCompletionFunc("uid", completeCallers(o))
	cmd.RegisterFlagCompletionFunc("connected-to", completeSockets(o))
	cmd.RegisterFlagCompletionFunc("operation", cobra.FixedCompletions(knownOperations(), cobra.ShellCompDirectiveNoFileComp))
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

// meaning is what is known of a reason.
type meaning struct {
	Reason string `json:"reason"`
	Text   string `json:"text"`
	Hint   string `json:"hint"`
}

// explainReason prints what is known of a reason id.
func explainReason(cmd *cobra.Command, id string, asJSON bool) error {
	if m := copied.FindStringSubmatch(id); m != nil {
		id = m[1] + m[2]
	}
	var known []string
	for _, r := range reason.All {
		if known = append(known, string(r.ID)); string(r.ID) == id {
			return command.Answer(cmd, asJSON, &meaning{string(r.ID), r.Text, r.Hint}, func(w io.Writer, m *meaning) error {
				_, err := fmt.Fprintf(w, "%s: %s\nhint: %s\n", m.Reason, m.Text, m.Hint)
				return err
			})
		}
	}
	fmt.Fprintf(cmd.ErrOrStderr(), "gssproxyd: there is no reason %q: %s\n", id, conf.DidYouMean(id, known))
	return command.Config
}

// parseID reads a number, or a name that look says the number of.
func parseID(s string, look func(string) (uint32, error)) (uint32, error) {
	if n, err := strconv.ParseUint(s, 10, 32); err == nil {
		return uint32(n), nil
	}
	return look(s)
}
