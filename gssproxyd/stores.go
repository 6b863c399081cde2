package main

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"gssproxyd/command"
	"gssproxyd/conf"
	"gssproxyd/gssproxyd/creds"
	"gssproxyd/gssproxyd/nss"
	"gssproxyd/gssproxyd/stores"
	"gssproxyd/mech/reason"
	"gssproxyd/xdr"
)

// openStores makes what has the keys of key stores; nil in userproxy mode.
func (d *daemon) openStores() creds.Stores {
	if d.o.userproxy {
		return nil
	}
	host, err := os.Hostname()
	if err != nil {
		d.log.Warn("the host has no name, so each [store/NAME] needs host", "error", err)
	}
	d.stores = stores.New(stores.Options{
		Dir: cmp.Or(d.o.stateDir, defaultStateDir), Hostname: host, Open: d.unsealer(), Start: d.startStoreHelper, Record: d.record, Lines: d.limits.Lines, Log: d.log,
	})
	return d.stores
}

func (d *daemon) startStoreHelper(conversation *os.File) (nss.Process, error) {
	if d.starter != nil {
		return d.starter.Store(conversation)
	}
	return stores.StartChild(conversation)
}

// configureStores has the key stores of a configuration.
func (d *daemon) configureStores(c *conf.Config) error {
	if d.stores == nil {
		return nil
	}
	return d.stores.Configure(c)
}

// storesTimeout is how long is waited for what key stores say first: when the daemon starts, before it
// says that it is ready; when the configuration is read again, before that is in force.
const storesTimeout = 5 * time.Second

// prepareStores has the key stores of a configuration asked that is to be in force next, and waits for
// them.
func (d *daemon) prepareStores(cfg *configuration) error {
	if d.stores == nil {
		return nil
	}
	err := d.stores.Prepare(cfg.conf)
	if err == nil {
		cfg.warnings = append(cfg.warnings, d.awaitStores()...)
	}
	return err
}

// awaitStores waits until key stores have said what there is for this host, and warns if that has not
// come in time: what follows goes on without it.
func (d *daemon) awaitStores() (warnings []string) {
	if d.stores == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), storesTimeout)
	defer cancel()
	missing := d.stores.AwaitAll(ctx)
	if len(missing) == 0 {
		return nil
	}
	text := fmt.Sprintf("no keys have come within %v of %s: calls that need them are refused until they do", storesTimeout, strings.Join(missing, ", "))
	d.log.Warn(text, "reason", string(reason.NoDelivery), "hint", "gssproxyd status says whether the key stores answer, and what they say")
	return []string{text + "; gssproxyd status says whether the key stores answer, and what they say"}
}

// storeStates is how they are.
func (d *daemon) storeStates() []stores.State {
	if d.stores == nil {
		return nil
	}
	return d.stores.States()
}

// shownStores is that as the admin program has it.
func (d *daemon) shownStores() (list []xdr.AdminStore) {
	for _, s := range d.storeStates() {
		one := xdr.AdminStore{Name: s.Store, Contact: shownTime(s.Contact), Address: s.URL, Lost: s.Lost}
		for _, e := range s.Entries {
			one.Entries = append(one.Entries, xdr.AdminEntry{
				Principal: e.Principal, Epoch: e.Epoch, Revision: e.Revision, Issued: shownTime(e.Issued), Withdrawn: e.Withdrawn, Text: e.Text,
			})
		}
		list = append(list, one)
	}
	return list
}

// printStores prints it for who reads.
func printStores(w io.Writer, list []xdr.AdminStore, now time.Time) {
	for _, s := range list {
		switch {
		case s.Lost != "":
			fmt.Fprintf(w, "key store %s: NO CONTACT: %s; it has answered last: %s\n", s.Name, s.Lost, age(s.Contact, now, " ago"))
		default:
			fmt.Fprintf(w, "key store %s: answered %s at %s\n", s.Name, age(s.Contact, now, " ago"), cmp.Or(s.Address, "-"))
		}
		for _, e := range s.Entries {
			what := "no keys"
			switch {
			case e.Withdrawn != "":
				what = fmt.Sprintf("WITHDRAWN [%s], epoch %d, revision %d, of %s", command.Shown(e.Withdrawn), e.Epoch, e.Revision, age(e.Issued, now, " ago"))
			case e.Issued != "":
				what = fmt.Sprintf("epoch %d, revision %d, of %s", e.Epoch, e.Revision, age(e.Issued, now, " ago"))
			}
			if e.Text != "" {
				what += "; " + command.Shown(e.Text)
			}
			fmt.Fprintf(w, "  %s: %s\n", e.Principal, what)
		}
	}
}

// checkStores warns of files of key stores that cannot be used now.
func checkStores(c *conf.Config) (warnings []string) {
	for _, k := range c.KeyStores {
		if len(c.Entries(k.Name)) == 0 {
			continue // which is said
		}
		for _, p := range stores.CheckFiles(k, time.Now()) {
			warnings = append(warnings, k.Problem(p.Key, p.Error(), p.Hint).String())
		}
	}
	return warnings
}

// storeHelperCommand is what the daemon starts itself as to ask key stores.
func storeHelperCommand() *cobra.Command {
	return &cobra.Command{
		Use:    stores.HelperArg,
		Hidden: true,
		Args:   cobra.NoArgs,
		RunE:   func(*cobra.Command, []string) error { return stores.Help(os.Stdin) },
	}
}
