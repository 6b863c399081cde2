package main

import (
	"cmp"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/spf13/cobra"

	"gssproxyd/command"
	"gssproxyd/conf"
	"gssproxyd/gssproxyd/creds"
	"gssproxyd/gssproxyd/nss"
	"gssproxyd/gssproxyd/stores"
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
	for _, s := range c.KeyStores {
		warn := func(key, what, do string) {
			warnings = append(warnings, s.Problem(key, what, do).String())
		}
		ca, err := os.ReadFile(s.CA)
		if err != nil {
			warn("ca", "ca: "+err.Error(), "put the certificates of the store's authority there, or correct the path")
		} else if !x509.NewCertPool().AppendCertsFromPEM(ca) {
			warn("ca", "ca = "+s.CA+" has no certificate in it", "put the certificates of the store's authority there, in PEM")
		}
		pair, err := tls.LoadX509KeyPair(s.Cert, s.Key)
		switch {
		case err != nil:
			warn("cert", "cert and key: "+err.Error(), "put this host's certificate and its key there, in PEM, for the daemon's user to read")
		case time.Now().After(pair.Leaf.NotAfter):
			warn("cert", fmt.Sprintf("cert = %s has ended at %s", s.Cert, pair.Leaf.NotAfter.UTC().Format(time.RFC3339)), "get a new one; the keys that are here stay in use, and no new ones come")
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
