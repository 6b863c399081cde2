package command

import (
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"gssproxyd/audit"
	"gssproxyd/conf"
)

// Audit returns the command audit of a program, which reads what package audit has written.
func Audit(program string) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "audit",
		Short: "Read audit logs",
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				return fmt.Errorf("audit: unknown command %q: %s", args[0], conf.DidYouMean(args[0], []string{"verify"}))
			}
			return errors.New("audit: a command is expected, as in " + program + " audit verify audit.log")
		},
	}
	cmd.AddCommand(auditVerify(program))
	return cmd
}

// Verified is what was found in the files of an audit log.
type Verified struct {
	OK bool `json:"ok"`
	*audit.Report
	Broken *audit.Broken `json:"broken,omitzero"`
}

// auditVerify is audit verify: whether the lines of an audit log are those that
// were written.
func auditVerify(program string) *cobra.Command {
	var given []string
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "verify FILE...",
		Short: "Say whether the lines of an audit log are those that were written",
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) == 0 {
				return errors.New("audit verify: the files of the log are expected, the oldest first: " + program + " audit verify audit.log.1 audit.log")
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, files []string) error {
			heads := make([]audit.Head, len(given))
			for i, s := range given {
				var err error
				if heads[i], err = audit.ParseHead(s); err != nil {
					return fmt.Errorf("--head: %w", err)
				}
			}
			report, err := audit.Verify(files, heads...)
			broken, isBroken := errors.AsType[*audit.Broken](err)
			if err != nil && !isBroken {
				return err
			}
			out := cmd.OutOrStdout()
			if asJSON {
				if err := PrintJSON(out, &Verified{!isBroken, report, broken}); err != nil {
					return err
				}
			} else {
				printAudit(out, report, len(heads))
			}
			if isBroken {
				if !asJSON {
					fmt.Fprintf(cmd.ErrOrStderr(), "BROKEN: %v\n", broken)
				}
				return Unwell
			}
			return nil
		},
	}
	f := cmd.Flags()
	f.StringArrayVar(&given, "head", nil, "`SEQ:HASH` that the program has logged, and which the chain has to have; more may follow")
	f.BoolVar(&asJSON, "json", false, "print one JSON object")
	return cmd
}

// printAudit prints what was found in lines that are as they were written.
func printAudit(out io.Writer, r *audit.Report, heads int) {
	if r.Lines == 0 {
		return
	}
	stamp := func(t time.Time) string { return t.UTC().Format(time.RFC3339) }
	fmt.Fprintf(out, "lines: %d, seq %d to %d, from %s to %s\n", r.Lines, r.First, r.Head.Seq, stamp(r.From), stamp(r.To))
	if !r.Begun {
		fmt.Fprintf(out, "note: the chain does not begin here; older files go up to seq %d\n", r.First-1)
	}
	for _, p := range r.Torn {
		fmt.Fprintf(out, "note: %v: torn: it was not written to its end, as the log itself says\n", p)
	}
	if more := r.TornLines - uint64(len(r.Torn)); more > 0 {
		fmt.Fprintf(out, "note: %d more lines are torn\n", more)
	}
	if r.Lost > 0 {
		fmt.Fprintf(out, "note: %d events could not be written, as the log itself says\n", r.Lost)
	}
	if r.Writing != nil {
		fmt.Fprintf(out, "note: %v: is being written\n", *r.Writing)
	}
	fmt.Fprintf(out, "head: %v\n", r.Head)
	if heads == 0 {
		fmt.Fprintln(out, "hint: lines cut off the end do not show here; compare a head of the program's log: --head SEQ:HASH")
	}
}
