package main

import (
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
			if err != nil {
				return err
			}
			for _, w := range c.Warnings {
				fmt.Fprintf(cmd.ErrOrStderr(), "warning: %s\n", w)
			}
			return c.Print(cmd.OutOrStdout())
		},
	}
}
