package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"

	"gssproxyd/command"
	"gssproxyd/keystore"
)

// backedUp is what keystored backup prints, and restored what keystored restore does.
type (
	backedUp struct {
		File  string `json:"file"`
		Bytes int64  `json:"bytes"`
	}
	restored struct {
		File    string `json:"file"`
		Records int    `json:"records"` // entries and hosts
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
	var file string
	cmd := &cobra.Command{Use: "restore FILE", Short: "Fill an empty backend with a backup, and begin a new epoch; no instance may run", Args: fileNamed(&file)}
	return command.Answers(cmd, func(ctx context.Context, res *restored) error {
		c, err := load(o.config)
		if err != nil {
			return err
		}
		f, err := os.Open(file)
		if err != nil {
			return err
		}
		defer f.Close()
		b, err := c.openBackend(ctx)
		if err != nil {
			return err
		}
		defer b.Close()
		so, err := c.storeOptions(nil, nil)
		if err != nil {
			return err
		}
		n, err := keystore.Restore(ctx, b, so, f)
		*res = restored{file, n}
		return err
	}, func(w io.Writer, res *restored) error {
		_, err := fmt.Fprintf(w, "%s: %d entries and hosts were restored. What was changed since the backup is lost: keys that were rotated since are older here than at the KDC, whose tickets nobody can open then. "+
			"Compare versions (keystored list, kvno PRINCIPAL), and import what hosts still have\n", command.Shown(res.File), res.Records)
		return err
	})
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
