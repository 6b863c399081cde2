package main

import (
	"errors"
	"os"
	"time"

	"github.com/spf13/cobra"

	"gssproxyd/conf"
	"gssproxyd/gssproxyd/nss"
	"gssproxyd/gssproxyd/proc"
	"gssproxyd/limits"
)

// How often one of the callers' users may have the name service asked, at once and then in the long
// run, and how long it waits for its turn. What is known already is free.
const (
	lookUpsAtOnce = 100
	lookUpEvery   = time.Second / 5
	lookUpWait    = 5 * time.Second
)

// startNSS starts the helpers that ask the name service, while the daemon has neither keys nor
// sockets: one for the kernel's questions and the daemon's own, and one for callers', who pay for
// theirs and cannot keep the first one busy. From then on the daemon itself starts no program.
func (d *daemon) startNSS() {
	var err, err2 error
	d.nss, err = nss.Start(nss.Options{Log: d.log, Urgent: true, Phases: &d.exported.phases})
	gate := limits.NewGate(d.limits.Lookups, lookUpsAtOnce, lookUpEvery, lookUpWait)
	d.lookUp, err2 = nss.Start(nss.Options{Log: d.log, Gate: gate, Phases: &d.exported.phases})
	if err := errors.Join(err, err2); err != nil {
		d.log.Error("users cannot be looked up", "error", err)
	}
	d.users = d.nss
}

// stopNSS ends the helpers.
func (d *daemon) stopNSS() {
	for _, c := range []*nss.Client{d.nss, d.lookUp} {
		if c != nil {
			c.Close()
		}
	}
}

// callersUsers is whom the procedures ask for callers.
func (d *daemon) callersUsers() conf.Users {
	if d.lookUp == nil {
		return d.users
	}
	return d.lookUp
}

// accounts is who says the kernel who initiators are.
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
		RunE:   func(_ *cobra.Command, args []string) error { return nss.Help(os.Stdin, os.Stdout, args...) },
	}
}
