package main

import (
	"os"

	"github.com/spf13/cobra"

	"gssproxyd/gssproxyd/nss"
	"gssproxyd/gssproxyd/proc"
)

// startNSS starts the helper that asks the name service, while the daemon has neither keys nor sockets. From then on the
// daemon itself starts no program.
func (d *daemon) startNSS() {
	var err error
	if d.nss, err = nss.Start(nss.Options{Log: d.log}); err != nil {
		d.log.Error("users cannot be looked up", "error", err)
	}
	d.users = d.nss
}

// accounts is who says who initiators are.
func (d *daemon) accounts() proc.Accounts {
	if d.nss == nil {
		return nil
	}
	return d.nss
}

// helperCommand is what the daemon starts itself as to ask the name service.
func helperCommand() *cobra.Command {
	return &cobra.Command{
		Use:    nss.HelperArg,
		Hidden: true,
		Args:   cobra.NoArgs,
		RunE:   func(*cobra.Command, []string) error { return nss.Help(os.Stdin, os.Stdout) },
	}
}
