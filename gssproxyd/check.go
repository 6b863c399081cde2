package main

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"

	"github.com/spf13/cobra"

	"gssproxyd/conf"
	"gssproxyd/gssproxyd/creds"
	"gssproxyd/gssproxyd/nss"
	"gssproxyd/rpc"
)

// checkCommand is gssproxyd check: read the configuration, and krb5.conf, as the daemon would and
// print what is in force.
func checkCommand(o *options) *cobra.Command {
	var all bool
	cmd := &cobra.Command{
		Use:               "check",
		Short:             "Read the configuration, report every error, print what is set",
		Args:              configured,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := o.load(nil)
			var files, clients []string
			keytabs := o.keytabs(cfg.conf, nss.NewDirect())
			if cfg.krb5Err == nil { // it may name other files
				files = creds.CheckFiles(cfg.conf, cfg.krb5, keytabs)
			}
			if err == nil {
				clients = creds.CheckClients(cfg.conf, keytabs)
			}
			for _, w := range slices.Concat(cfg.conf.Warnings, o.checkSockets(cfg.conf), checkStores(cfg.conf), files, cfg.warnings, clients) {
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

// checkSockets warns of sockets that the daemon could not make where the configuration has them: it
// would not start. The state directory it makes itself.
func (o *options) checkSockets(c *conf.Config) (warnings []string) {
	made := cmp.Or(o.stateDir, defaultStateDir)
	for _, path := range c.Sockets() {
		err := rpc.CheckPlace(path, socketAccess(c.AccessOf(path)))
		if err == nil || errors.Is(err, fs.ErrPermission) && os.Geteuid() != 0 { // another user than the daemon's
			continue
		}
		what, do := err.Error(), "correct that, or name a path elsewhere"
		if missing, ok := errors.AsType[*fs.PathError](err); ok && errors.Is(err, fs.ErrNotExist) {
			if missing.Path == made {
				continue
			}
			what, do = "there is no directory "+missing.Path, "make it, for root and writable by no one else (below /run, the unit can: RuntimeDirectory=), or name a path elsewhere"
		}
		warning := "socket " + path + ": " + what + "; " + do
		for _, s := range c.Services {
			if s.Socket == path {
				warning = s.Problem("socket", 0, "socket = "+path+": "+what, "", do).String()
				break
			}
		}
		warnings = append(warnings, warning)
	}
	return warnings
}

// configured refuses arguments of a command about the configuration, which options name.
func configured(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	return fmt.Errorf("%s takes no arguments; use -c FILE for another configuration file: gssproxyd %[1]s -c %s", cmd.Name(), args[0])
}
