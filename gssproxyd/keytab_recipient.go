package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"gssproxyd/keytab/sealed"
)

// keytabRecipientCommand is gssproxyd keytab recipient: whom to seal to, so that this host can open
// it.
func keytabRecipientCommand(o *options) *cobra.Command {
	return &cobra.Command{
		Use:   "recipient",
		Short: "Print whom to seal to for this host, for age -r; made when first asked for",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			i, err := sealed.MakeHostIdentity(o.credentials(), o.identityDir())
			if err != nil {
				return err
			}
			fmt.Fprintln(cmd.OutOrStdout(), i.Recipient())
			return nil
		},
	}
}
