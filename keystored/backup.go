package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"gssproxyd/command"
	"gssproxyd/keystore"
	"gssproxyd/keystore/delivery"
	"gssproxyd/keytab/sealed"
)

// backedUp is what keystored backup prints, and restored what keystored restore does.
type (
	backedUp struct {
		File  string `json:"file"`
		Bytes int64  `json:"bytes"`
	}
	restored struct {
		File    string           `json:"file"`
		Records int              `json:"records"` // entries and hosts
		Written bool             `json:"written"`
		Epoch   uint64           `json:"epoch"`
		Signer  string           `json:"signer"`
		Members []restoredMember `json:"members"` // who can open the store then
		Gone    []restoredMember `json:"gone"`    // of the backup, and no members of the former store any more
		Known   bool             `json:"known"`   // whether there was a former store to compare with
		Hosts   []string         `json:"hosts"`   // that are enrolled then
		Removed []string         `json:"removed"` // enrolled in the backup, and removed in the former store: they stay so
		Refused []string         `json:"refused"` // records of the backup that are not believed, and left out
	}
	restoredMember struct {
		Name      string    `json:"name"`
		Recipient string    `json:"recipient"`
		Added     time.Time `json:"added"`
	}
)

// backupCommand is keystored backup.
func backupCommand(o *options) *cobra.Command {
	var file string
	cmd := &cobra.Command{Use: "backup FILE", Short: "Write a backup, sealed as the store is, to a new file", Args: fileNamed(&file)}
	return command.Answers(cmd, func(ctx context.Context, res *backedUp) (err error) {
		f, err := os.OpenFile(file, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
		if err != nil {
			return err
		}
		defer func() {
			if err = errors.Join(err, f.Close()); err != nil {
				os.Remove(file)
			}
		}()
		c := o.client()
		defer c.Close()
		if err := unreachable(c.Backup(ctx, f)); err != nil {
			return err
		}
		st, err := f.Stat()
		if err != nil {
			return err
		}
		*res = backedUp{file, st.Size()}
		return f.Sync()
	}, func(w io.Writer, res *backedUp) error {
		_, err := fmt.Fprintf(w, "%s: %d bytes. It is opened by this instance's identity, or a recovery one: keep that elsewhere\n", command.Shown(res.File), res.Bytes)
		return err
	})
}

// restoreCommand is keystored restore.
func restoreCommand(o *options) *cobra.Command {
	var file, former, recovery string
	var how keystore.Restore
	cmd := &cobra.Command{Use: "restore FILE", Short: "Fill an empty backend with a backup, and begin a new epoch; no instance may run", Args: fileNamed(&file)}
	f := cmd.Flags()
	f.StringVar(&former, "former", "", "`file` of a configuration whose backend is where the store was: who is a member there is one, and hosts that were removed there stay removed")
	f.BoolVar(&how.Members, "members", false, "who could open the store when the backup was written can do so again, those who were revoked since too")
	f.StringVar(&recovery, "identity", "", "`file` of a recovery identity that opens the backup; this instance becomes a member")
	f.BoolVar(&how.DryRun, "dry-run", false, "write nothing, and say what would be")
	var unended error
	return command.Answers(cmd, func(ctx context.Context, res *restored) error {
		c, err := load(o.config)
		if err != nil {
			return err
		}
		in, err := os.Open(file)
		if err != nil {
			return err
		}
		defer in.Close()
		if former != "" {
			fc, err := load(former)
			if err != nil {
				return err
			}
			if how.Former, err = fc.openBackend(ctx); err != nil {
				return fmt.Errorf("--former %s: %w", former, err)
			}
			defer how.Former.Close()
		}
		return c.change(ctx, &unended, func(b keystore.Backend, so keystore.Options) error {
			if recovery != "" {
				i, err := sealed.ReadIdentity(recovery)
				if err != nil {
					return err
				}
				how.Recipient, so.Identity = so.Identity.Recipient(), identity{i}
			}
			r, err := how.Do(ctx, b, so, in)
			if r != nil {
				*res = shownRestored(file, r)
				res.Written = err == nil && !how.DryRun
			}
			if errors.Is(err, keystore.ErrMembers) {
				printRestored(cmd.ErrOrStderr(), res)
				return fmt.Errorf("nothing was written: %w. Give --former FILE, a configuration with the backend where the store was; or, if all of these members are to open the store, --members", err)
			}
			return err
		})
	}, printRestored, unaudited[restored](cmd, &unended))
}

func shownRestored(file string, r *keystore.Restored) restored {
	members := func(list []keystore.Member) []restoredMember {
		shown := []restoredMember{}
		for _, m := range list {
			shown = append(shown, restoredMember{m.Name, m.Recipient, m.Added})
		}
		return shown
	}
	return restored{
		File: file, Records: r.Records, Epoch: r.Epoch, Signer: delivery.FormatSigner(r.Signer), Members: members(r.Members), Gone: members(r.Gone), Known: r.Known,
		Hosts: append([]string{}, r.Hosts...), Removed: append([]string{}, r.Removed...), Refused: append([]string{}, r.Refused...),
	}
}

func printRestored(w io.Writer, res *restored) error {
	were, are := "were restored", "are"
	if !res.Written {
		were, are = "would be restored", "would be"
	}
	fmt.Fprintf(w, "%s: %d entries and hosts %s, epoch %d\nsigner = %s\n", command.Shown(res.File), res.Records, were, res.Epoch, res.Signer)
	gone := func(m restoredMember) bool { return slices.Contains(res.Gone, m) }
	for _, m := range res.Members {
		note := ""
		if gone(m) {
			note = ": REVOKED since the backup"
		}
		fmt.Fprintf(w, "member: %s, %s, added %s%s\n", command.Shown(m.Name), m.Recipient, stamp(m.Added), note)
	}
	for _, m := range res.Gone {
		if !slices.Contains(res.Members, m) {
			fmt.Fprintf(w, "no member: %s, %s: revoked since the backup\n", command.Shown(m.Name), m.Recipient)
		}
	}
	for _, h := range res.Removed {
		fmt.Fprintf(w, "host %s: removed since the backup, and %s so still\n", command.Shown(h), are)
	}
	for _, r := range res.Refused {
		fmt.Fprintf(w, "left out: %s\n", command.Shown(r))
	}
	if !res.Known {
		fmt.Fprintf(w, "Members that were revoked since the backup are among these, and hosts that were removed since are enrolled again: of %d hosts (keystored host list)\n", len(res.Hosts))
	}
	_, err := fmt.Fprintln(w, "What was changed since the backup is lost: keys that were rotated since are older here than at the KDC, whose tickets nobody can open then. "+
		"Compare versions (keystored list, kvno PRINCIPAL), and import what hosts still have")
	return err
}

// fileNamed takes the one argument of a command.
func fileNamed(file *string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if err := named("FILE")(cmd, args); err != nil {
			return err
		}
		*file = args[0]
		return nil
	}
}
