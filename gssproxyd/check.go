package main

import (
	"errors"
	"fmt"
	"slices"

	"github.com/spf13/cobra"

	"gssproxyd/conf"
	"gssproxyd/gssproxyd/creds"
)

// checkCommand is gssproxyd check: read the configuration, and krb5.conf, as the daemon would and print what is in force.
func checkCommand(o *options) *cobra.Command {
	var all bool
	cmd := &cobra.Command{
		Use:   "check",
		Short: "Read the configuration, report every error, print what is set",
		Args:  configured,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, warnings, err := o.load(nil)
			if bad := (*conf.Errors)(nil); errors.As(err, &bad) {
				warnings = slices.Concat(bad.Warnings, fileWarnings(bad.Read), warnings)
			} else if err == nil {
				warnings = slices.Concat(c.Warnings, fileWarnings(c), warnings, creds.CheckClients(c))
			}
			for _, w := range warnings {
				fmt.Fprintf(cmd.ErrOrStderr(), "warning: %s\n", w)
			}
			if err != nil {
				return err
			}
			return c.Print(cmd.OutOrStdout(), all)
		},
	}
	cmd.Flags().BoolVar(&all, "all", false, "print every value in force and where it comes from, the defaults too")
	return cmd
}

// configured refuses arguments of a command about the configuration, which options name.
func configured(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	return fmt.Errorf("%s takes no arguments; use -c FILE for another configuration file: gssproxyd %[1]s -c %s", cmd.Name(), args[0])
}
