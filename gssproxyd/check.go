package main

import (
	"fmt"
	"slices"

	"github.com/spf13/cobra"

	"gssproxyd/gssproxyd/creds"
)

// checkCommand is gssproxyd check: read the configuration, and krb5.conf, as the daemon would and
// print what is in force.
func checkCommand(o *options) *cobra.Command {
	var all bool
	cmd := &cobra.Command{
		Use:   "check",
		Short: "Read the configuration, report every error, print what is set",
		Args:  configured,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := o.load(nil)
			var files, clients []string
			if cfg.krb5Err == nil { // it may name other files
				files = creds.CheckFiles(cfg.conf, cfg.krb5)
			}
			if err == nil {
				clients = creds.CheckClients(cfg.conf)
			}
			for _, w := range slices.Concat(cfg.conf.Warnings, files, cfg.warnings, clients) {
				fmt.Fprintf(cmd.ErrOrStderr(), "warning: %s\n", w)
			}
			if err != nil {
				return err
			}
			return cfg.conf.Print(cmd.OutOrStdout(), all)
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
