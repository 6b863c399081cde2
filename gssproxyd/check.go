package main

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"gssproxyd/conf"
	"gssproxyd/gssproxyd/proc"
)

// checkCommand is gssproxyd check: read the configuration, and krb5.conf, as the daemon would and print what is in force.
func checkCommand(o *options) *cobra.Command {
	return &cobra.Command{
		Use:   "check",
		Short: "Read the configuration, report every error, print what is in force",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, warnings, err := o.load(nil)
			if bad := (*conf.Errors)(nil); errors.As(err, &bad) {
				warnings = append(bad.Warnings, warnings...)
			} else if err == nil {
				warnings = append(append(c.Warnings, warnings...), proc.CheckClients(c)...)
			}
			for _, w := range warnings {
				fmt.Fprintf(cmd.ErrOrStderr(), "warning: %s\n", w)
			}
			if err != nil {
				return err
			}
			return c.Print(cmd.OutOrStdout())
		},
	}
}
