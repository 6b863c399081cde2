package main

import (
	"errors"
	"fmt"
	"slices"

	"github.com/spf13/cobra"

	"gssproxyd/conf"
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
				warnings = slices.Concat(bad.Warnings, fileWarnings(bad.Read), warnings)
			} else if err == nil {
				warnings = slices.Concat(c.Warnings, fileWarnings(c), warnings)
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
