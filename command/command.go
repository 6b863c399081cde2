// Package command is what the project's programs have in common on their command lines: exit
// statuses, answers as text or as JSON, and the commands about audit logs.
package command

import (
	"context"
	"encoding/json"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"gssproxyd/conf"
)

// Status is an exit status of a program. As an error it ends the program when all that is to be said
// has been said.
type Status int

// Exit statuses.
const (
	Failure Status = 1 // the program could not start or do its work; also an unknown option
	Config  Status = 2 // the configuration has errors: starting again will not help
	Unwell  Status = 3 // something that was asked about is not well
)

// Error returns "exit status N".
func (s Status) Error() string { return fmt.Sprintf("exit status %d", int(s)) }

// IsCommand refuses a word that is none of the commands.
func IsCommand(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	var known []string
	for _, c := range cmd.Commands() {
		if !c.Hidden {
			known = append(known, c.Name())
		}
	}
	return fmt.Errorf("unknown command %q: %s", args[0], conf.DidYouMean(args[0], known))
}

// PrintJSON prints one object, of a schema that is documented.
func PrintJSON(w io.Writer, v any) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	e.SetEscapeHTML(false)
	return e.Encode(v)
}

// Answers makes cmd run get, and show what that returns: with show, or with the option --json, which
// it gets, as one JSON object. What ends returns of it is the exit status.
func Answers[R any](cmd *cobra.Command, get func(context.Context, *R) error, show func(io.Writer, *R) error, ends ...func(*R) Status) *cobra.Command {
	asJSON := cmd.Flags().Bool("json", false, "print one JSON object")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		var res R
		if err := get(cmd.Context(), &res); err != nil {
			return err
		}
		return Answer(cmd, *asJSON, &res, show, ends...)
	}
	return cmd
}

// Answer shows what a command has found out, as [Answers] does.
func Answer[R any](cmd *cobra.Command, asJSON bool, res *R, show func(io.Writer, *R) error, ends ...func(*R) Status) error {
	if asJSON {
		show = func(w io.Writer, res *R) error { return PrintJSON(w, res) }
	}
	if err := show(cmd.OutOrStdout(), res); err != nil {
		return err
	}
	for _, status := range ends {
		if code := status(res); code != 0 {
			return code
		}
	}
	return nil
}
