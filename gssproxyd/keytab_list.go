package main

import (
	"fmt"
	"slices"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"gssproxyd/command"
	"gssproxyd/gssproxyd/nss"
	"gssproxyd/keytab"
)

// keytabList is what keytab list --json prints.
type keytabList struct {
	Files []keytab.Listing `json:"files"`
}

// keytabListCommand is gssproxyd keytab list: what keys there are, in plain and in sealed keytabs.
func keytabListCommand(o *options) *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "list FILE...",
		Short: "List the entries of keytabs, also of those that are sealed to this host, without their keys",
		Args:  cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			var list keytabList
			keytabs := o.keytabs(nil, nss.NewDirect())
			for _, name := range args {
				list.Files = append(list.Files, keytabs.List(name))
			}
			if asJSON {
				if err := command.PrintJSON(cmd.OutOrStdout(), list); err != nil {
					return err
				}
			} else {
				for _, l := range list.Files {
					printListing(cmd, l)
				}
			}
			if slices.ContainsFunc(list.Files, func(l keytab.Listing) bool { return l.Error != "" }) {
				return command.Unwell
			}
			return nil
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print one JSON object")
	return cmd
}

func printListing(cmd *cobra.Command, l keytab.Listing) {
	out, what := cmd.OutOrStdout(), "keytab"
	if l.Sealed {
		what = "sealed keytab"
	}
	if l.Error != "" {
		what += ", which cannot be read: " + command.Shown(l.Error)
	}
	fmt.Fprintf(out, "%s: %s\n", command.Shown(l.File), what)
	if len(l.Entries) == 0 {
		return
	}
	t := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "  PRINCIPAL\tKVNO\tENCTYPE\tWRITTEN")
	for _, e := range l.Entries {
		written := "-"
		if e.Written != nil {
			written = e.Written.Format(time.RFC3339)
		}
		fmt.Fprintf(t, "  %s\t%d\t%s\t%s\n", e.Principal, e.KVNO, e.Enctype, written)
	}
	t.Flush()
}
