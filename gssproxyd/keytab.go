package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"gssproxyd/command"
	"gssproxyd/conf"
	"gssproxyd/gssproxyd/creds"
	"gssproxyd/gssproxyd/nss"
	"gssproxyd/keytab"
)

// unitUser is the user that the unit which is shipped has the daemon become.
const unitUser = "gssproxyd"

// keytabCommand is gssproxyd keytab: what is done with keytab files, without a daemon.
func keytabCommand(o *options) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "keytab",
		Short: "Look at keytab files, seal them to this host and open them",
		RunE: func(cmd *cobra.Command, args []string) error {
			var known []string
			for _, c := range cmd.Commands() {
				known = append(known, c.Name())
			}
			if len(args) > 0 {
				return fmt.Errorf("keytab: unknown command %q: %s", args[0], conf.DidYouMean(args[0], known))
			}
			return fmt.Errorf("keytab: a command is expected: %s", strings.Join(known, ", "))
		},
	}
	cmd.PersistentFlags().StringVar(&o.stateDir, "state-dir", stateDirFromEnv(), "`directory` with the identity of this host (default "+defaultStateDir+"/state if there is one, else "+defaultStateDir+")")
	cmd.AddCommand(lintCommand(o), keytabListCommand(o), keytabOpenCommand(o), keytabRecipientCommand(o), keytabSealCommand(o))
	return cmd
}

// lintCommand is gssproxyd keytab lint: what is unwise about keytab files.
func lintCommand(o *options) *cobra.Command {
	var olderThan int
	var service string
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "lint [FILE...]",
		Short: "Say what is unwise about keytab files; without one, about those of the configuration",
		Args: func(_ *cobra.Command, args []string) error {
			switch {
			case olderThan < 1 || olderThan > 36500:
				return errors.New("keytab lint: --older-than: a number of days is expected, from 1 to 36500")
			case len(args) > 0 && service != "":
				return errors.New("keytab lint: either files, or --service, not both")
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			users := nss.NewDirect()
			c, uses, confErr := o.keytabUses(users)
			switch {
			case confErr == nil:
			case len(args) == 0:
				return confErr
			case o.config != "" || !absent(conf.MainFile):
				fmt.Fprintf(cmd.ErrOrStderr(), "warning: without the configuration, which cannot be read: %v\n", confErr)
			}
			names, keytabs := args, o.keytabs(c, users)
			if len(args) == 0 {
				var err error
				if names, err = named(c, uses, service, keytabs); err != nil {
					return err
				}
			}
			lo := keytab.LintOptions{Now: time.Now(), OlderThan: time.Duration(olderThan) * 24 * time.Hour, Uses: uses, Reader: *keytabs}
			reports := keytab.Lint(names, lo)
			if asJSON {
				if err := command.PrintJSON(cmd.OutOrStdout(), struct {
					Files []keytab.Report `json:"files"`
				}{reports}); err != nil {
					return err
				}
			} else {
				for _, r := range reports {
					printReport(cmd, r)
				}
			}
			if slices.ContainsFunc(reports, unwell) {
				return command.Unwell
			}
			return nil
		},
	}
	f := cmd.Flags()
	f.IntVar(&olderThan, "older-than", 365, "say of keys that are older than so many `days`")
	f.StringVar(&service, "service", "", "of the configuration's keytabs, those of this `service`")
	f.BoolVar(&asJSON, "json", false, "print one JSON object")
	cmd.RegisterFlagCompletionFunc("service", completeServices(o))
	return cmd
}

// absent reports whether there is no file of that name.
func absent(name string) bool {
	_, err := os.Stat(name)
	return errors.Is(err, fs.ErrNotExist)
}

// keytabUses reads the configuration for which keytabs its services have.
func (o *options) keytabUses(users conf.Users) (*conf.Config, []keytab.Use, error) {
	cfg, err := o.load(users)
	if err != nil {
		return nil, nil, err
	}
	return cfg.conf, creds.KeytabUses(cfg.conf, cfg.krb5, users), nil
}

// daemonUser is the configuration's, if there is one.
func daemonUser(c *conf.Config) string {
	if c == nil {
		return ""
	}
	return c.RunAsUser
}

// named returns the configuration's keytabs, each once, those of one service if it is named. A default
// one that is not there is left out.
func named(c *conf.Config, uses []keytab.Use, service string, keytabs *keytab.Reader) (names []string, err error) {
	if service != "" && !slices.Contains(serviceNames(c), service) {
		return nil, fmt.Errorf("--service: there is no service %q in the configuration: %s", service, conf.DidYouMean(service, serviceNames(c)))
	}
	for _, u := range uses {
		if service != "" && u.Service != service || slices.Contains(names, u.Keytab) || keytab.InStore(u.Keytab) {
			continue
		}
		if u.Optional && errors.Is(keytabs.CheckFile(u.Keytab), fs.ErrNotExist) {
			continue
		}
		names = append(names, u.Keytab)
	}
	return names, nil
}

// unwell reports whether there is more to a file than notes.
func unwell(r keytab.Report) bool {
	return slices.ContainsFunc(r.Findings, func(f keytab.Finding) bool { return f.Severity != keytab.Note })
}

func printReport(cmd *cobra.Command, r keytab.Report) {
	out := cmd.OutOrStdout()
	for _, f := range r.Findings {
		about := ""
		if f.Principal != "" {
			about = fmt.Sprintf("%s, version %d: ", f.Principal, f.KVNO)
		}
		fmt.Fprintf(out, "%s: %s: %s%s; %s [%s]\n", command.Shown(r.File), f.Severity, about, command.Shown(f.Text), f.Hint, f.ID)
	}
	if len(r.Findings) == 0 {
		keys := 0
		for _, p := range r.Principals {
			for _, v := range p.Versions {
				keys += len(v.Enctypes)
			}
		}
		fmt.Fprintf(out, "%s: nothing to say (keys: %d, principals: %d)\n", command.Shown(r.File), keys, len(r.Principals))
	}
}
