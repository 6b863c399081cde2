package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"time"

	"github.com/spf13/cobra"

	"gssproxyd/audit"
	"gssproxyd/command"
	"gssproxyd/keystore"
	"gssproxyd/keystore/bolt"
	"gssproxyd/keystore/delivery"
	"gssproxyd/keystore/etcd"
	"gssproxyd/keytab/sealed"
)

// identity is that of this instance, as the store takes it.
type identity struct{ *sealed.Identity }

// Recipient returns what others seal to.
func (i identity) Recipient() string { return i.Identity.Recipient().String() }

// identity returns this instance's, and makes it at the first use.
func (c *config) identity() (identity, error) {
	i, err := sealed.MakeHostIdentity(os.Getenv("CREDENTIALS_DIRECTORY"), c.stateDir)
	return identity{i}, err
}

// openBackend opens where the records are.
func (c *config) openBackend(ctx context.Context) (keystore.Backend, error) {
	if c.bolt != "" {
		return bolt.Open(c.bolt)
	}
	e, err := c.etcdConfig()
	if err != nil {
		return nil, err
	}
	return etcd.Open(ctx, e)
}

// storeOptions are those of this instance.
func (c *config) storeOptions(record func(context.Context, *audit.Event), log *slog.Logger) (keystore.Options, error) {
	i, err := c.identity()
	return keystore.Options{Identity: i, Name: c.name, Signers: c.signers, StateDir: c.stateDir, Audit: record, Log: log, Now: time.Now}, err
}

// openAudit opens the audit log.
func (c *config) openAudit(log *slog.Logger) (*audit.Log, error) {
	l, err := audit.Open(c.audit, audit.Options{Log: log, Refuse: c.auditFailure == auditRefuse})
	if err != nil {
		return nil, fmt.Errorf("%w; correct audit in [keystored], or the file", err)
	}
	return l, nil
}

// audited are the options of a command that changes the store while no instance runs here: what it does
// is in the audit log too, with who has called it. The caller ends with end.
func (c *config) audited() (so keystore.Options, end func() error, err error) {
	if c.audit == "" {
		so, err = c.storeOptions(nil, nil)
		return so, func() error { return nil }, err
	}
	l, err := c.openAudit(nil)
	if err != nil {
		return so, nil, err
	}
	intend := func(ctx context.Context, e *audit.Event) error {
		e.Caller = &audit.Caller{UID: uint32(os.Getuid()), PID: int32(os.Getpid())}
		return l.Record(ctx, e)
	}
	so, err = c.storeOptions(func(ctx context.Context, e *audit.Event) { intend(ctx, e) }, nil)
	if c.auditFailure == auditRefuse {
		so.Intend = intend
	}
	if err != nil {
		l.Close()
	}
	return so, func() error {
		err := l.Close()
		if n := l.Lost(); n > 0 {
			err = errors.Join(err, fmt.Errorf("%s: %d events could not be written", c.audit, n))
		}
		return err
	}, err
}

// change calls f with the backend and the options of such a command. What is wrong with the audit log
// when f has succeeded is in unended: what was done is to be shown first.
func (c *config) change(ctx context.Context, unended *error, f func(keystore.Backend, keystore.Options) error) error {
	b, err := c.openBackend(ctx)
	if err != nil {
		return err
	}
	defer b.Close()
	so, end, err := c.audited()
	if err != nil {
		return err
	}
	if err := f(b, so); err != nil {
		return errors.Join(err, end())
	}
	*unended = end()
	return nil
}

// unaudited is the exit status of such a command, which says what is wrong with the audit log.
func unaudited[R any](cmd *cobra.Command, unended *error) func(*R) command.Status {
	return func(*R) command.Status {
		if *unended == nil {
			return 0
		}
		fmt.Fprintf(command.Plain{Writer: cmd.ErrOrStderr()}, "keystored: it was done, and the audit log does not have all of it: %v\n", *unended)
		return command.Failure
	}
}

// created is what keystored init prints.
type created struct {
	Signer    string   `json:"signer"`
	Recipient string   `json:"recipient"` // of this instance
	Recovery  []string `json:"recovery"`
}

// initCommand is keystored init: make a new store in a backend that has nothing in it.
func initCommand(o *options) *cobra.Command {
	var recovery []string
	var without bool
	cmd := &cobra.Command{Use: "init", Short: "Make a new store in the backend, which has to be empty", Args: cobra.NoArgs}
	cmd.Flags().StringArrayVar(&recovery, "recovery", nil, "`recipient` of age whose identity is kept offline, and opens the store when all instances are lost; more may follow")
	cmd.Flags().BoolVar(&without, "without-recovery", false, "make a store that is lost with its instances")
	var unended error
	return command.Answers(cmd, func(ctx context.Context, res *created) error {
		if len(recovery) == 0 && !without {
			return errors.New("init: --recovery is expected: make an identity with keystored recovery new on another machine, keep it there, and give its recipient (age1...) here; or write --without-recovery")
		}
		c, err := load(o.config)
		if err != nil {
			return err
		}
		return c.change(ctx, &unended, func(b keystore.Backend, so keystore.Options) error {
			signer, err := keystore.Create(ctx, b, so, recovery)
			if err != nil {
				return err
			}
			*res = created{delivery.FormatSigner(signer), so.Identity.Recipient(), append([]string{}, recovery...)}
			return nil
		})
	}, func(w io.Writer, res *created) error {
		_, err := fmt.Fprintf(w, "A store was made. Write this into [keystored] of each instance, and into [store/NAME] of each host:\n\n  signer = %s\n", res.Signer)
		return err
	}, unaudited[created](cmd, &unended))
}

// recipientShown is what keystored recipient prints.
type recipientShown struct {
	Name      string `json:"name"`
	Recipient string `json:"recipient"`
}

// recipientCommand is keystored recipient: what an instance that is there seals the keyring to for this
// one.
func recipientCommand(o *options) *cobra.Command {
	cmd := &cobra.Command{Use: "recipient", Short: "Print the recipient of this instance, for keystored master grant on another one; make its identity if there is none", Args: cobra.NoArgs}
	return command.Answers(cmd, func(_ context.Context, res *recipientShown) error {
		c, err := load(o.config)
		if err != nil {
			return err
		}
		i, err := c.identity()
		if err != nil {
			return err
		}
		*res = recipientShown{c.name, i.Recipient()}
		return nil
	}, func(w io.Writer, res *recipientShown) error {
		_, err := fmt.Fprintln(w, res.Recipient)
		return err
	})
}
