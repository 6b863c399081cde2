package main

import (
	"errors"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"gssproxyd/command"
	"gssproxyd/keystore/api"
)

func nothing(*cobra.Command, []string) (*api.Nothing, error) { return new(api.Nothing), nil }

// hostCommand is keystored host: which hosts are enrolled.
func hostCommand(o *options) *cobra.Command {
	add := &cobra.Command{Use: "add NAME --recipient R", Short: "Enrol a host by the name in its certificate", Args: named("NAME")}
	recipient := add.Flags().String("recipient", "", "`recipient` of the host, which gssproxyd keytab recipient prints there")
	remove := &cobra.Command{Use: "remove NAME", Short: "Remove a host: it gets nothing any more, and keeps what it has", Args: named("NAME")}
	list := &cobra.Command{Use: "list", Short: "List the hosts that are enrolled", Args: cobra.NoArgs}
	return group("host", "Enrol, remove and list hosts",
		asked(o, add, "host-add", func(_ *cobra.Command, args []string) (*api.HostRequest, error) {
			if *recipient == "" {
				return nil, errors.New("--recipient is expected: gssproxyd keytab recipient prints it on the host")
			}
			return &api.HostRequest{Name: args[0], Recipient: *recipient}, nil
		}, func(w io.Writer, h *api.HostShown) error {
			_, err := fmt.Fprintf(w, "%s: enrolled\n", command.Shown(h.Name))
			return err
		}),
		asked(o, remove, "host-remove", func(_ *cobra.Command, args []string) (*api.HostNamed, error) {
			return &api.HostNamed{Name: args[0]}, nil
		}, func(w io.Writer, h *api.HostNamed) error {
			_, err := fmt.Fprintf(w, "%s: removed. The keys that it has it has: rotate those that it must not have any more\n", command.Shown(h.Name))
			return err
		}),
		asked(o, list, "host-list", nothing, func(w io.Writer, res *api.HostsShown) error {
			for _, h := range res.Hosts {
				seen := "never heard of"
				if h.Seen != nil {
					seen = "heard of " + stamp(*h.Seen)
				}
				fmt.Fprintf(w, "%s\t%s\t%s\n", command.Shown(h.Name), h.Recipient, seen)
			}
			printRefused(w, res.Refused)
			return nil
		}, func(res *api.HostsShown) command.Status { return listed(res.Refused) }),
	)
}

// masterCommand is keystored master: who can open the keyring, and the master key.
func masterCommand(o *options) *cobra.Command {
	grant := &cobra.Command{Use: "grant NAME --recipient R", Short: "Let an instance open the store, or with the name recovery an identity that is kept offline", Args: named("NAME")}
	recipient := grant.Flags().String("recipient", "", "`recipient` of the instance, which keystored recipient prints there")
	revoke := &cobra.Command{Use: "revoke NAME", Short: "Have an instance open the store no more; rotate the master key then", Args: named("NAME")}
	rotate := &cobra.Command{Use: "rotate", Short: "Make a new master key and seal everything anew", Args: cobra.NoArgs}
	force := rotate.Flags().Bool("force", false, "without instances that are not heard of: they have to be started again")
	show := &cobra.Command{Use: "show", Short: "Show who can open the store, and its signer", Args: cobra.NoArgs}
	return group("master", "Say who can open the store, and rotate its master key",
		asked(o, grant, "master-grant", func(_ *cobra.Command, args []string) (*api.MemberRequest, error) {
			if *recipient == "" {
				return nil, errors.New("--recipient is expected: keystored recipient prints it where the instance is to run")
			}
			return &api.MemberRequest{Name: args[0], Recipient: *recipient}, nil
		}, printKeyring),
		asked(o, revoke, "master-revoke", func(_ *cobra.Command, args []string) (*api.HostNamed, error) {
			return &api.HostNamed{Name: args[0]}, nil
		}, printKeyring),
		asked(o, rotate, "master-rotate", func(*cobra.Command, []string) (*api.ForceRequest, error) {
			return &api.ForceRequest{Force: *force}, nil
		}, printKeyring),
		asked(o, show, "master-show", nothing, printKeyring),
		signerCommand(o),
	)
}

// signerCommand is keystored master signer: the change of the key that signs.
func signerCommand(o *options) *cobra.Command {
	made := &cobra.Command{Use: "new", Short: "Make the next signer, which signs nothing yet, and print the line for configurations", Args: cobra.NoArgs}
	become := &cobra.Command{Use: "switch", Short: "Have the next signer sign from now on, and all that hosts have signed anew", Args: cobra.NoArgs}
	force := become.Flags().Bool("force", false, "without instances that do not have it in their configuration: they change nothing any more")
	show := &cobra.Command{Use: "show", Short: "Show who signs and who is to, and which hosts do not have in force what the store has", Args: cobra.NoArgs}
	return group("signer", "Change the key that signs for the store",
		asked(o, made, "signer-new", nothing, printSigner),
		asked(o, become, "signer-switch", func(*cobra.Command, []string) (*api.ForceRequest, error) {
			return &api.ForceRequest{Force: *force}, nil
		}, printSigner),
		asked(o, show, "signer-show", nothing, printSigner),
	)
}

func printSigner(w io.Writer, s *api.SignerShown) error {
	fmt.Fprintf(w, "signer = %s\n", s.Signer)
	switch {
	case s.Next != "":
		fmt.Fprintf(w, "The next one, which signs nothing yet. Add this line to [keystored] of each instance and start it again, and to [store/NAME] of each host and reload it; then keystored master signer switch:\n\n  signer = %s\n\n", s.Next)
	case s.Former != "":
		fmt.Fprintf(w, "the former one: %s. Entries are not all signed anew: keystored master signer switch goes on\n", s.Former)
	}
	for _, h := range s.Behind {
		seen := "never heard of"
		if h.Seen != nil {
			seen = "heard of " + stamp(*h.Seen)
		}
		fmt.Fprintf(w, "host %s, %s: does not have %s in force, as the store has it\n", command.Shown(h.Name), seen, command.Shown(someOf(h.Principals)))
	}
	return nil
}

// someOf names the first of a list.
func someOf(list []string) string {
	if len(list) == 1 {
		return list[0]
	}
	return fmt.Sprintf("%s and %d others", list[0], len(list)-1)
}

func printKeyring(w io.Writer, k *api.KeyringShown) error {
	fmt.Fprintf(w, "signer = %s\nepoch %d, generation %d\n", k.Signer, k.Epoch, k.Generation)
	for _, m := range k.Members {
		fmt.Fprintf(w, "member: %s, %s, added %s by %s\n", command.Shown(m.Name), m.Recipient, stamp(m.Added), command.Shown(m.By))
	}
	for _, m := range k.Masters {
		fmt.Fprintf(w, "master key: %d, made %s\n", m.ID, stamp(m.Made))
	}
	return nil
}
