package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"gssproxyd/command"
	"gssproxyd/gssproxyd/creds"
	"gssproxyd/xdr"
)

// selftestTimeout is more than the daemon takes at most.
const selftestTimeout = 45 * time.Second

// selftestCommand is gssproxyd selftest: whether a service could do what it is for.
func selftestCommand(o *options) *cobra.Command {
	var service string
	cmd := &cobra.Command{
		Use:   "selftest SERVICE",
		Short: "Have the running daemon try the keys of a service with the KDC, and say what works",
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) != 1 {
				return errors.New("selftest: one service is expected, such as selftest http; gssproxyd status names them")
			}
			service = strings.TrimPrefix(args[0], "service/")
			return nil
		},
		ValidArgsFunction: completeService(o),
	}
	return command.Answers(cmd, func(ctx context.Context, res *xdr.AdminResSelftest) error {
		ctx, cancel := context.WithTimeout(ctx, selftestTimeout)
		defer cancel()
		return o.ask(ctx, xdr.AdminProcSelftest, &xdr.AdminArgSelftest{Service: service}, res, &res.Error)
	}, func(w io.Writer, res *xdr.AdminResSelftest) error {
		for _, s := range res.Steps {
			fmt.Fprintf(w, "%s: %s", s.Step, s.Outcome)
			if s.Reason != "" {
				fmt.Fprintf(w, ", %s", s.Reason)
			}
			fmt.Fprintf(w, ": %s\n", command.Shown(s.Text))
			if s.Hint != "" {
				fmt.Fprintf(w, "  hint: %s\n", s.Hint)
			}
		}
		return nil
	}, func(res *xdr.AdminResSelftest) command.Status {
		if !res.Well {
			return command.Unwell
		}
		return 0
	})
}

// adminSelftest is procedure SELFTEST.
func (d *daemon) adminSelftest(ctx context.Context, args *xdr.AdminArgSelftest, res *xdr.AdminResSelftest) error {
	var names []string
	if err := d.inLoop(ctx, func() { names = serviceNames(d.conf) }); err != nil {
		return err
	}
	steps, ok := d.procs.SelfTest(ctx, args.Service)
	if !ok {
		return noService(args.Service, names)
	}
	res.Service, res.Well = args.Service, true
	for _, s := range steps {
		res.Well = res.Well && s.Outcome != creds.Failed
		step := xdr.AdminStep{Step: s.Name, Outcome: string(s.Outcome), Text: s.Text, Reason: string(s.Reason)}
		if s.Reason != "" {
			step.Hint = s.Reason.Doc().Hint
		}
		res.Steps = append(res.Steps, step)
	}
	return nil
}
