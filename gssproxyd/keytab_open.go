package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"gssproxyd/gssproxyd/nss"
	"gssproxyd/keytab"
	"gssproxyd/openat"
)

// keytabOpenCommand is gssproxyd keytab open: a sealed keytab in the clear.
func keytabOpenCommand(o *options) *cobra.Command {
	return &cobra.Command{
		Use:   "open FILE [OUT]",
		Short: "Write a keytab that is sealed to this host in the clear, to a new file or to standard output",
		Args:  cobra.RangeArgs(1, 2),
		RunE: func(cmd *cobra.Command, args []string) error {
			if _, err := unix.IoctlGetTermios(int(os.Stdout.Fd()), unix.TCGETS); err == nil && len(args) == 1 {
				return errors.New("keytab open: keys are not written to a terminal; name a file to write, or a pipe")
			}
			f, err := os.OpenFile(args[0], os.O_RDONLY|unix.O_NONBLOCK, 0)
			if err != nil {
				return err
			}
			defer f.Close()
			content, err := keytab.Read(f)
			if err != nil {
				return fmt.Errorf("%s: %w", args[0], err)
			}
			clear, err := o.keytabs(nil, nss.NewDirect()).Unseal(content)
			defer clear.Zero()
			if err == nil {
				_, err = keytab.Parse(clear)
			}
			if err != nil {
				return fmt.Errorf("%s: %w", args[0], err)
			}
			if len(args) == 1 {
				_, err := os.Stdout.Write(clear) // as it is: nothing is escaped
				return err
			}
			dir, name, err := openat.Parent(args[1])
			if err != nil {
				return err
			}
			defer dir.Close()
			if err := dir.Write(name, clear, (*os.File).Sync, dir.Link); errors.Is(err, fs.ErrExist) {
				return fmt.Errorf("%s is there already, and is not overwritten; name another file", args[1])
			} else if err != nil {
				return err
			}
			fmt.Fprintf(cmd.OutOrStdout(), "%s has the keys in the clear, for its owner alone; remove it when it has served\n", args[1])
			return dir.Sync()
		},
	}
}
