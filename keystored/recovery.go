package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"gssproxyd/command"
	"gssproxyd/keystore"
	"gssproxyd/keytab/sealed"
)

// recoveryCommand is keystored recovery: identities that are kept offline, and open the store when all
// instances are lost.
func recoveryCommand(o *options) *cobra.Command {
	return group("recovery", "Make an identity that is kept offline, and use it when all instances are lost", recoveryNewCommand(o), recoveryGrantCommand(o))
}

// recoveryMade is what keystored recovery new prints.
type recoveryMade struct {
	File      string `json:"file"`
	Recipient string `json:"recipient"`
}

func recoveryNewCommand(o *options) *cobra.Command {
	var file string
	cmd := &cobra.Command{Use: "new FILE", Short: "Make an identity in a new file, and print the recipient for init --recovery or master grant recovery", Args: fileNamed(&file)}
	return command.Answers(cmd, func(_ context.Context, res *recoveryMade) error {
		c, _ := load(o.config) // which there need not be where it is made
		if within(file, c.stateDir) {
			return fmt.Errorf("recovery new: %s is in the state directory %s, which is lost together with this instance, and in its backups: name a file on a medium that is taken away", file, c.stateDir)
		}
		r, err := sealed.NewIdentity(file)
		if err != nil {
			return err
		}
		*res = recoveryMade{file, r.String()}
		return nil
	}, func(w io.Writer, res *recoveryMade) error {
		_, err := fmt.Fprintln(w, res.Recipient)
		return err
	})
}

// within reports whether a file would be in a directory, or below it.
func within(file, dir string) bool {
	top, err := os.Stat(dir)
	if err != nil {
		return false // nothing is in what is not there
	}
	at, err := filepath.Abs(file)
	if err == nil {
		at, err = filepath.EvalSymlinks(filepath.Dir(at))
	}
	for ; err == nil; at = filepath.Dir(at) {
		if st, err := os.Stat(at); err == nil && os.SameFile(st, top) {
			return true
		}
		if at == filepath.Dir(at) {
			return false
		}
	}
	return false // and the file cannot be made
}

// recoveryGranted is what keystored recovery grant prints.
type recoveryGranted struct {
	Name      string `json:"name"`
	Recipient string `json:"recipient"`
}

func recoveryGrantCommand(o *options) *cobra.Command {
	var file string
	cmd := &cobra.Command{Use: "grant FILE", Short: "Let this instance open the store, by an identity that was kept offline", Args: fileNamed(&file)}
	var unended error
	return command.Answers(cmd, func(ctx context.Context, res *recoveryGranted) error {
		c, err := load(o.config)
		if err != nil {
			return err
		}
		i, err := sealed.ReadIdentity(file)
		if err != nil {
			return err
		}
		return c.change(ctx, &unended, func(b keystore.Backend, so keystore.Options) error {
			own := so.Identity.Recipient()
			so.Identity = identity{i}
			s, err := keystore.Open(ctx, b, so)
			if err != nil {
				return err
			}
			err = s.Grant(ctx, c.name, own, fmt.Sprintf("uid %d, recovery", os.Getuid()))
			if err = errors.Join(err, s.Close()); errors.Is(err, keystore.ErrExists) {
				return fmt.Errorf("%w: give this instance another name (name = in %s); where the other one is lost, revoke it then (keystored master revoke)", err, o.config)
			}
			*res = recoveryGranted{c.name, own}
			return err
		})
	}, func(w io.Writer, res *recoveryGranted) error {
		_, err := fmt.Fprintf(w, "%s, %s: this instance can open the store now. Take the recovery identity off this machine\n", command.Shown(res.Name), res.Recipient)
		return err
	}, unaudited[recoveryGranted](cmd, &unended))
}
