package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"gssproxyd/command"
	"gssproxyd/conf"
	"gssproxyd/gssproxyd/creds"
	"gssproxyd/mech"
	"gssproxyd/mech/krb5/localname"
	"gssproxyd/mech/reason"
	"gssproxyd/rpc/peer"
	"gssproxyd/xdr"
)

// What gssproxyd explain has a running daemon say, and how it is shown.

// printExplained prints what a caller gets, and would.
func printExplained(w io.Writer, res *xdr.AdminResExplain) error {
	for _, line := range res.Trace {
		fmt.Fprintln(w, command.Shown(line))
	}
	if res.Reason != "" {
		fmt.Fprintf(w, "refused, %s: %s\nhint: %s\n", res.Reason, command.Shown(res.Text), res.Hint)
	}
	for _, a := range res.Operations {
		if a.Permitted {
			fmt.Fprintf(w, "%s: would be done\n", a.Operation)
		} else {
			fmt.Fprintf(w, "%s: refused, %s: %s\n  hint: %s\n", a.Operation, a.Reason, command.Shown(a.Text), a.Hint)
		}
		for _, line := range a.Observed {
			fmt.Fprintf(w, "  observed, would be refused: %s\n", command.Shown(line))
		}
		for _, line := range a.Acts {
			fmt.Fprintf(w, "  %s\n", command.Shown(line))
		}
	}
	return nil
}

// explainedStatus is the exit status: success where there is a service, and one of the operations
// would be done.
func explainedStatus(res *xdr.AdminResExplain) command.Status {
	if res.Service == "" || len(res.Operations) > 0 && !slices.ContainsFunc(res.Operations, func(a xdr.AdminAct) bool { return a.Permitted }) {
		return command.Failure
	}
	return 0
}

// decided fills in what was decided about a caller.
func decided(res *xdr.AdminResExplain, d *conf.Decision) {
	res.Trace = d.Trace()
	if d.Service != nil {
		res.Service = d.Service.Name
	} else {
		res.Reason, res.Text, res.Hint = string(d.Reason), d.Conclusion(), d.Reason.Doc().Hint
	}
}

// adminExplain is procedure EXPLAIN.
func (d *daemon) adminExplain(ctx context.Context, args *xdr.AdminArgExplain, res *xdr.AdminResExplain) error {
	var operations []conf.Operations
	for _, word := range args.Operations {
		op, err := operationNamed(word)
		if err != nil {
			return err
		}
		operations = append(operations, op)
	}
	var name *creds.Name
	if args.Target != "" {
		name = &creds.Name{Text: []byte(args.Target), Type: mech.NTHostbased}
		if strings.Contains(args.Target, "/") || slices.Contains(operations, conf.OpImpersonate) {
			name.Type = mech.NTKrb5Principal
		}
	}
	info, err := peer.FromPID(args.PID)
	if err != nil {
		return err
	}
	if d.pods != nil {
		info.Registered = d.pods.Registered(args.Socket)
	}
	decision, list := d.procs.Explain(ctx, info, args.Socket, operations, name)
	res.Caller, res.GID, res.Socket = shownPeer(info), xdr.Some(info.GID), decision.Socket()
	decided(res, &decision)
	for _, e := range list {
		res.Operations = append(res.Operations, act(&e))
	}
	return nil
}

// act is what would become of an operation, as the admin program has it.
func act(e *creds.Explanation) xdr.AdminAct {
	a := xdr.AdminAct{Operation: e.Operation.String(), Permitted: e.Refused == nil, Acts: e.Acts}
	for _, r := range e.Observed {
		a.Observed = append(a.Observed, string(r.Reason)+": "+r.Text)
	}
	if e.Refused != nil {
		id, text := reason.Internal, e.Refused.Error()
		if refusal, ok := errors.AsType[*mech.Error](e.Refused); ok {
			id, text = refusal.Reason, refusal.Text
		}
		a.Reason, a.Text, a.Hint = string(id), text, id.Doc().Hint
	}
	return a
}

func operationNamed(word string) (conf.Operations, error) {
	for op := conf.OpAccept; op <= conf.OpNames; op <<= 1 {
		if op.String() == word {
			return op, nil
		}
	}
	return 0, fmt.Errorf("there is no operation %q: %s", word, conf.DidYouMean(word, knownOperations()))
}

func knownOperations() (known []string) {
	for op := conf.OpAccept; op <= conf.OpNames; op <<= 1 {
		known = append(known, op.String())
	}
	return known
}

// printUsers prints who a principal is.
func printUsers(w io.Writer, res *xdr.AdminResPrincipal) error {
	for _, u := range res.Users {
		fmt.Fprintf(w, "service/%s: ", u.Service)
		switch {
		case u.Exists:
			fmt.Fprintf(w, "user %s (uid %d), by %s\n", command.Word(command.Shown(u.User)), u.UID.V, command.Shown(u.Rule))
		case u.User != "":
			fmt.Fprintf(w, "user %s, by %s, who is not known here: %s\n", command.Word(command.Shown(u.User)), command.Shown(u.Rule), command.Shown(u.Text))
		case u.Rule != "":
			fmt.Fprintf(w, "no user, by %s: %s\n", command.Shown(u.Rule), command.Shown(u.Text))
		default:
			fmt.Fprintf(w, "no user: %s\n", command.Shown(u.Text))
		}
	}
	return nil
}

func usersStatus(res *xdr.AdminResPrincipal) command.Status {
	if !slices.ContainsFunc(res.Users, func(u xdr.AdminUser) bool { return u.Exists }) {
		return command.Failure
	}
	return 0
}

// adminPrincipal is procedure EXPLAIN_PRINCIPAL.
func (d *daemon) adminPrincipal(ctx context.Context, args *xdr.AdminArgPrincipal, res *xdr.AdminResPrincipal) error {
	var names []string
	if err := d.inLoop(ctx, func() { names = serviceNames(d.conf) }); err != nil {
		return err
	}
	service := strings.TrimPrefix(args.Service, "service/")
	if service != "" && !slices.Contains(names, service) {
		return noService(service, names)
	}
	users, err := d.procs.UsersOf(ctx, args.Principal, service)
	if err != nil {
		return fmt.Errorf("%q is no principal: %w", args.Principal, err)
	}
	for _, u := range users {
		user := xdr.AdminUser{Service: u.Service, User: u.Name, Exists: u.Wrong == nil, Rule: u.Rule}
		if user.Exists {
			user.UID = xdr.Some(u.Account.UID)
		} else {
			user.Text = textOf(u.Wrong)
		}
		switch {
		case u.Rule == "unmapped_user":
			if user.Rule += " = " + u.Name; u.Name == conf.NobodyUser || u.Name == conf.RefuseUser {
				user.User = ""
			}
		case u.Rule != "" && u.Rule != "principal_map" && u.Rule != localname.Names:
			user.Rule = "auth_to_local = " + u.Rule
		}
		res.Users = append(res.Users, user)
	}
	return nil
}

func noService(name string, known []string) error {
	return fmt.Errorf("there is no service %q: %s", name, conf.DidYouMean(name, known))
}

// textOf is the text of an error, without the status of GSS.
func textOf(err error) string {
	if refusal, ok := errors.AsType[*mech.Error](err); ok {
		return refusal.Text
	}
	return err.Error()
}
