package main

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"gssproxyd/conf"
)

// checkCommand is gssproxyd check: read the configuration as the daemon would and print what is in force.
func checkCommand(o *options) *cobra.Command {
	return &cobra.Command{
		Use:   "check",
		Short: "Read the configuration, report every error, print what is in force",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := conf.Load(o.source())
			var warnings []string
			var bad *conf.Errors
			switch {
			case err == nil:
				warnings = c.Warnings
			case errors.As(err, &bad):
				warnings = bad.Warnings
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
