package main

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"gssproxyd/command"
	"gssproxyd/conf"
	"gssproxyd/gssproxyd/creds"
	"gssproxyd/gssproxyd/migrate"
	"gssproxyd/gssproxyd/nss"
)

// migrateCommand is gssproxyd migrate: what it means for this host to have gssproxyd in the C
// daemon's place, and the change itself.
func migrateCommand(o *options) *cobra.Command {
	var apply, back, now bool
	var wait time.Duration
	cmd := &cobra.Command{
		Use:               "migrate",
		Short:             "Say what becomes of this host's gssproxy with gssproxyd in its place, and put it there",
		Args:              configured,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			out := cmd.OutOrStdout()
			host, err := o.host()
			if err != nil {
				return err
			}
			var steps []migrate.Step
			attend, bad := false, false
			if back {
				if cfg, _ := o.load(nil); cfg.conf != nil { // whatever is wrong with it, back is a way out
					host.Sockets = cfg.conf.Sockets()
				}
				_, err = host.Look()
				if err == nil {
					steps, err = host.Back(wait, now)
				}
			} else if attend, bad, err = o.report(out, host); err == nil {
				steps, err = host.Apply(wait, now)
			}
			if err != nil {
				return err
			}
			fmt.Fprintln(out, "To be done:")
			for i, s := range steps {
				fmt.Fprintf(out, "  %d. %s\n", i+1, s.Text)
			}
			if len(steps) == 0 {
				fmt.Fprintln(out, "  nothing")
			}
			switch {
			case bad:
				fmt.Fprintln(out, "hint: correct the configuration first, or have what the C daemon overlooks overlooked: --compat")
				return command.Config
			case !apply && !back:
				if attend {
					return command.Failure
				}
				return nil
			case os.Geteuid() != 0:
				return errors.New("root is needed for that")
			}
			for i, s := range steps {
				if err := s.Do(); err != nil {
					return hinted(fmt.Sprintf("%d. %v", i+1, err), "the same command goes on from here; gssproxyd migrate --back undoes what was done")
				}
				fmt.Fprintf(out, "%d. done\n", i+1)
			}
			return nil
		},
	}
	f := cmd.Flags()
	f.BoolVar(&apply, "apply", false, "do it")
	f.BoolVar(&back, "back", false, "undo it")
	f.DurationVar(&wait, "wait", 0, "with --apply or --back: wait this `long` (such as 10m) for open connections to end")
	f.BoolVar(&now, "now", false, "with --apply or --back: end the daemon although it has connections")
	f.StringVar(&o.stateDir, "state-dir", stateDirFromEnv(), "`directory` of the daemon's state (default "+defaultStateDir+")")
	cmd.MarkFlagsMutuallyExclusive("apply", "back")
	cmd.MarkFlagsMutuallyExclusive("wait", "now")
	return cmd
}

// host is what to migrate, by the command line.
func (o *options) host() (*migrate.Host, error) {
	if err := o.absolute(); err != nil {
		return nil, err
	}
	host := &migrate.Host{StateDir: cmp.Or(o.stateDir, defaultStateDir)}
	for _, option := range [][2]string{{"-c", o.config}, {"-C", o.configDir}, {"-s", o.socket}, {"--state-dir", o.stateDir}} {
		if option[1] != "" {
			host.Options = append(host.Options, option[0], option[1])
		}
	}
	if o.compat {
		host.Options = append(host.Options, "--compat")
	}
	return host, nil
}

// report prints what is there. It reports whether somebody should think about a line of it first,
// and whether the configuration has errors.
func (o *options) report(out io.Writer, host *migrate.Host) (attend, bad bool, err error) {
	cfg, err := o.load(nil)
	errs, bad := errors.AsType[*conf.Errors](err)
	if cfg.krb5Err != nil || err != nil && !bad {
		fmt.Fprintf(out, "%v\n", err)
		return false, false, command.Config
	}
	c := cfg.conf
	host.Sockets = c.Sockets()
	section := func(title string, lines []migrate.Line) {
		if len(lines) == 0 {
			return
		}
		fmt.Fprintf(out, "%s:\n", title)
		for _, l := range lines {
			mark := " "
			if l.Attend {
				mark, attend = "!", true
			}
			fmt.Fprintf(out, "%s %s\n", mark, l.Text)
		}
	}
	section("Kept", append(kept(c), migrate.Purged(c.Files)...))
	var changed []migrate.Line
	keytabs := o.keytabs(c, nss.NewDirect())
	warnings := slices.Concat(c.Warnings, o.checkSockets(c), creds.CheckFiles(c, cfg.krb5, keytabs), cfg.warnings)
	if !bad {
		warnings = append(warnings, creds.CheckClients(c, keytabs)...)
	}
	for _, w := range warnings {
		changed = append(changed, migrate.Line{Text: w, Attend: true})
	}
	changed = append(changed, migrate.Line{Text: "credential handles that the C daemon has given out: programs acquire theirs again by themselves"})
	section("Has another meaning here, or none", changed)
	var not []migrate.Line
	if bad {
		for _, p := range errs.Problems {
			not = append(not, migrate.Line{Text: p.String(), Attend: true})
		}
	}
	section("Not understood", not)
	section("Programs that use it", migrate.Programs())
	serving, err := host.Look()
	if host.Systemd && len(host.Options) > 0 {
		serving = append(serving, migrate.Line{Text: "the unit has to start gssproxyd with " + strings.Join(host.Options, " ") + " too: systemctl edit gssproxyd", Attend: true})
	}
	section("Who serves now", serving)
	return attend, bad, err
}

// kept is what of a configuration goes on as it is.
func kept(c *conf.Config) (lines []migrate.Line) {
	said := make(map[string]bool)
	for _, s := range c.Services {
		lines = append(lines, migrate.Line{Text: s.Where + ": [service/" + s.Name + "] on " + c.SocketOf(s)})
		for i, e := range s.CredStore {
			path, sealed := strings.CutPrefix(e.Value, "SEALED:")
			path = strings.TrimPrefix(path, "FILE:")
			if !strings.HasSuffix(e.Key, "keytab") || e.Varies() || !filepath.IsAbs(path) || said[path] {
				continue
			}
			said[path] = true
			var st unix.Stat_t
			if unix.Stat(path, &st) != nil {
				continue // the warnings have it
			}
			text := fmt.Sprintf("%s %s, mode %04o, uid %d", e.Key, path, st.Mode&0o7777, st.Uid)
			attend := st.Mode&0o077 != 0
			switch {
			case sealed:
				attend = true
				text += ": sealed, which the C daemon cannot read: with --back the service has no keys; gssproxyd keytab open writes it in the clear"
			case attend:
				text += ": others than its owner can reach it; chmod go= unless they are to have the keys too"
			}
			lines = append(lines, migrate.Line{Text: s.Problem("cred_store", i, text, "", "").String(), Attend: attend})
		}
	}
	return lines
}
