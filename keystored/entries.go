package main

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"gssproxyd/command"
	"gssproxyd/keystore/api"
)

// asked makes a command that asks with what its arguments say, and shows the answer.
func asked[A, R any](o *options, cmd *cobra.Command, procedure string, args func(cmd *cobra.Command, args []string) (*A, error), show func(io.Writer, *R) error, ends ...func(*R) command.Status) *cobra.Command {
	asJSON := cmd.Flags().Bool("json", false, "print one JSON object")
	cmd.RunE = func(cmd *cobra.Command, given []string) error {
		a, err := args(cmd, given)
		if err != nil {
			return fmt.Errorf("%s: %w", cmd.Name(), err)
		}
		var res R
		if err := o.ask(cmd, procedure, a, &res); err != nil {
			return err
		}
		return command.Answer(cmd, *asJSON, &res, show, ends...)
	}
	return cmd
}

// principal is what a command is about that is about an entry and nothing else.
func principal(_ *cobra.Command, args []string) (*api.Named, error) {
	return &api.Named{Principal: args[0]}, nil
}

// changed shows what was done with an entry.
func changed(what string) func(io.Writer, *api.Marked) error {
	return func(w io.Writer, m *api.Marked) error {
		_, err := fmt.Fprintf(w, "%s: %s (revision %d)\n", command.Shown(m.Principal), what, m.Revision)
		return err
	}
}

// entryCommands are those about entries.
func entryCommands(o *options) []*cobra.Command {
	list := &cobra.Command{Use: "list", Short: "List the entries", Args: cobra.NoArgs}
	show := &cobra.Command{Use: "show PRINCIPAL", Short: "Show an entry: its keys without what is secret, its policy, who has it", Args: named("PRINCIPAL")}
	history := &cobra.Command{Use: "history PRINCIPAL", Short: "Show what was done with an entry", Args: named("PRINCIPAL")}
	enable := &cobra.Command{Use: "enable PRINCIPAL", Short: "Let hosts use the keys of an entry again", Args: named("PRINCIPAL")}
	disable := &cobra.Command{Use: "disable PRINCIPAL --why TEXT", Short: "Have no host use the keys of an entry", Args: named("PRINCIPAL")}
	why := disable.Flags().String("why", "", "the `reason`, which hosts show")
	remove := &cobra.Command{Use: "delete PRINCIPAL", Short: "Delete the keys of an entry; hosts are told to do so too", Args: named("PRINCIPAL")}
	yes := remove.Flags().Bool("yes", false, "do so: a backup is what brings keys back")
	rotate := &cobra.Command{Use: "rotate PRINCIPAL", Short: "Rotate the key of an entry, and say each step", Args: named("PRINCIPAL")}
	force := rotate.Flags().Bool("force", false, "go on without hosts that do not acknowledge the new keys: they refuse tickets until they have them")
	return []*cobra.Command{
		asked(o, list, "list", func(*cobra.Command, []string) (*api.Nothing, error) { return new(api.Nothing), nil }, printEntries, func(res *api.EntriesShown) command.Status { return listed(res.Refused) }),
		asked(o, show, "show", principal, printEntry),
		asked(o, history, "history", principal, printHistory),
		aliasCommand(o),
		policyCommand(o),
		asked(o, rotate, "rotate", func(_ *cobra.Command, args []string) (*api.RotateRequest, error) {
			return &api.RotateRequest{Principal: args[0], Force: *force}, nil
		}, func(w io.Writer, n *api.Named) error {
			_, err := fmt.Fprintf(w, "%s: rotated\n", command.Shown(n.Principal))
			return err
		}),
		asked(o, disable, "disable", func(_ *cobra.Command, args []string) (*api.DisableRequest, error) {
			if *why == "" {
				return nil, errors.New("--why TEXT is expected: hosts, and whoever asks, are told so")
			}
			return &api.DisableRequest{Principal: args[0], Why: *why}, nil
		}, changed("disabled")),
		asked(o, enable, "enable", principal, changed("enabled")),
		asked(o, remove, "delete", func(cmd *cobra.Command, args []string) (*api.Named, error) {
			if !*yes {
				return nil, errors.New("it deletes the keys, here and on all hosts; write --yes to do so, or keystored disable to stop their use only")
			}
			return principal(cmd, args)
		}, changed("deleted")),
	}
}

// aliasCommand is keystored alias.
func aliasCommand(o *options) *cobra.Command {
	cmd := &cobra.Command{Use: "alias PRINCIPAL", Short: "Give an entry other names of its account, or take some away", Args: named("PRINCIPAL")}
	add := cmd.Flags().StringArray("add", nil, "`name` of the account, as a service name that it has got in Active Directory; more may follow")
	drop := cmd.Flags().StringArray("drop", nil, "`name` that is no longer one of the account; more may follow")
	return asked(o, cmd, "alias", func(_ *cobra.Command, args []string) (*api.AliasRequest, error) {
		if len(*add)+len(*drop) == 0 {
			return nil, errors.New("--add or --drop is expected; keystored show shows the aliases that there are")
		}
		return &api.AliasRequest{Principal: args[0], Add: *add, Drop: *drop}, nil
	}, changed("aliases changed"))
}

// policyCommand is keystored policy: what is not given stays.
func policyCommand(o *options) *cobra.Command {
	cmd := &cobra.Command{Use: "policy PRINCIPAL", Short: "Change who may have an entry, what callers may do with it, and how often it is rotated", Args: named("PRINCIPAL")}
	f := cmd.Flags()
	hosts := f.StringArray("hosts", nil, "`pattern` of names of hosts that may have the keys, in which a * stands for anything but a dot or a slash; more may follow, and all that there were go. Empty: no host")
	rules := f.StringArray("rule", nil, "`KEY=VALUE` of what callers on hosts may do, as in a service's section of gssproxy.conf; more may follow, and all that there were go. Empty: none")
	interval := f.Duration("interval", 0, "`time` between rotations, as in 720h; 0: none by itself")
	return asked(o, cmd, "policy", func(cmd *cobra.Command, args []string) (*api.PolicyRequest, error) {
		p := &api.PolicyRequest{Principal: args[0]}
		given := cmd.Flags().Changed
		if !given("hosts") && !given("rule") && !given("interval") {
			return nil, errors.New("--hosts, --rule or --interval is expected; keystored show shows what is set")
		}
		if given("hosts") {
			p.Hosts = new(slices.DeleteFunc(append([]string{}, *hosts...), func(s string) bool { return s == "" }))
		}
		if given("rule") {
			set := make(map[string][]string)
			for _, r := range *rules {
				if r == "" {
					continue
				}
				key, value, ok := strings.Cut(r, "=")
				if !ok {
					return nil, fmt.Errorf("--rule %q: KEY=VALUE is expected", r)
				}
				key = strings.TrimSpace(key)
				set[key] = append(set[key], strings.TrimSpace(value))
			}
			p.Rules = &set
		}
		if given("interval") {
			if *interval%time.Second != 0 {
				return nil, errors.New("--interval: whole seconds are expected")
			}
			p.Interval = new(int64(*interval / time.Second))
		}
		return p, nil
	}, changed("policy changed"))
}

func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339) }

// state says in words what is special about an entry.
func state(s *api.Summary) string {
	var words []string
	if s.Deleted != nil {
		words = append(words, "deleted "+stamp(*s.Deleted))
	}
	if s.Disabled != "" {
		words = append(words, "disabled: "+s.Disabled)
	}
	if s.Rotation != "" {
		words = append(words, "rotation: "+s.Rotation)
	}
	if s.Alarm != "" {
		words = append(words, "ALARM: "+s.Alarm)
	}
	return command.Shown(strings.Join(words, "; "))
}

func printEntries(w io.Writer, res *api.EntriesShown) error {
	for i := range res.Entries {
		e := &res.Entries[i]
		fmt.Fprintf(w, "%s\tkvno %d", command.Shown(e.Principal), e.KVNO)
		if e.Since != nil {
			fmt.Fprintf(w, " since %s", stamp(*e.Since))
		}
		if s := state(e); s != "" {
			fmt.Fprintf(w, "\t%s", s)
		}
		fmt.Fprintln(w)
	}
	printRefused(w, res.Refused)
	return nil
}

// printRefused prints which records are not believed.
func printRefused(w io.Writer, refused []string) {
	for _, r := range refused {
		fmt.Fprintf(w, "REFUSED: %s\n", command.Shown(r))
	}
}

// listed is the exit status of a list.
func listed(refused []string) command.Status {
	if len(refused) > 0 {
		return command.Unwell
	}
	return 0
}

func printEntry(w io.Writer, e *api.Shown) error {
	fmt.Fprintf(w, "%s: epoch %d, revision %d\n", command.Shown(e.Principal), e.Epoch, e.Revision)
	if s := state(&e.Summary); s != "" {
		fmt.Fprintln(w, s)
	}
	for _, a := range e.Aliases {
		fmt.Fprintf(w, "alias: %s\n", command.Shown(a))
	}
	for _, k := range e.Keys {
		fmt.Fprintf(w, "key: %s, kvno %d, %s, since %s\n", k.State, k.KVNO, k.Enctype, stamp(k.Since))
	}
	hosts := "none"
	if len(e.Policy.Hosts) > 0 {
		hosts = strings.Join(e.Policy.Hosts, ", ")
	}
	fmt.Fprintf(w, "hosts: %s\n", command.Shown(hosts))
	for _, key := range slices.Sorted(maps.Keys(e.Policy.Rules)) {
		for _, v := range e.Policy.Rules[key] {
			fmt.Fprintf(w, "rule: %s\n", command.Shown(key+" = "+v))
		}
	}
	if e.Interval > 0 {
		fmt.Fprintf(w, "interval: %v\n", time.Duration(e.Interval)*time.Second)
	}
	for _, h := range slices.Sorted(maps.Keys(e.Acknowledged)) {
		is := "in force"
		if e.Acknowledged[h].Compare(e.Mark) < 0 {
			is = "behind"
		}
		fmt.Fprintf(w, "host %s: revision %d, %s\n", command.Shown(h), e.Acknowledged[h].Revision, is)
	}
	return nil
}

func printHistory(w io.Writer, h *api.HistoryShown) error {
	for _, c := range h.History {
		fmt.Fprintf(w, "%s revision %d: %s: %s\n", stamp(c.Time), c.Revision, command.Shown(c.By), command.Shown(c.What))
	}
	return nil
}
