// Command gssproxyd holds Kerberos keys and does GSS-API work for programs that must never see
// them. See gssproxyd(8), and gssproxyd.conf(5) for its configuration.
//
// It has more lines than other packages: it is all commands, a file for each, and the daemon's
// start, reload and end.
package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"gssproxyd/command"
	"gssproxyd/conf"
)

// version is set when a release is built.
var version = "0.1.0-dev"

func main() {
	// SIGPIPE would end the daemon when a client goes away while it is being answered.
	signal.Ignore(syscall.SIGPIPE)
	os.Exit(run(os.Args[1:], os.Stdout, os.Stderr))
}

// run executes one command line and returns the exit status.
func run(args []string, stdout, stderr io.Writer) int {
	var o options
	root := rootCommand(&o)
	root.SetArgs(args)
	root.SetOut(command.Plain{Writer: stdout})
	root.SetErr(stderr)
	err := root.ExecuteContext(context.Background())
	if err == nil {
		return 0
	}
	stderr = command.Plain{Writer: stderr}
	if status, ok := errors.AsType[command.Status](err); ok {
		return int(status)
	}
	if badConfiguration(err) {
		fmt.Fprintf(stderr, "%v\n", err)
		return int(command.Config)
	}
	fmt.Fprintf(stderr, "gssproxyd: %v\n", err)
	return int(command.Failure)
}

// badConfiguration reports whether an error is one of the files, so that trying again does not help.
func badConfiguration(err error) bool {
	errs, inConf := errors.AsType[*conf.Errors](err)
	_, inKrb5 := errors.AsType[*krb5Error](err)
	return inKrb5 || inConf && !errs.Temporary()
}

func rootCommand(o *options) *cobra.Command {
	root := &cobra.Command{
		Use:           "gssproxyd",
		Short:         "Hold Kerberos keys and do GSS-API work for programs that must never see them",
		Version:       version,
		Args:          command.IsCommand,
		SilenceUsage:  true,
		SilenceErrors: true,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if o.usage || o.daemon && o.interactive {
				fmt.Fprint(cmd.ErrOrStderr(), cmd.UsageString()) // and exit status 0, as the C daemon does
				return nil
			}
			if o.extractCCache != "" || o.intoCCache != "" {
				return errors.New("--extract-ccache is not for this daemon: what its clients keep is sealed with a key that stays here, and is not taken out. " +
					"Ask the daemon for credentials (GSS_USE_PROXY=yes), or have a service keep its tickets where they can be read (cred_store = ccache:...)")
			}
			return o.serve(cmd.Context(), cmd.ErrOrStderr())
		},
	}
	root.SetVersionTemplate("{{.Version}}\n")
	root.CompletionOptions.HiddenDefaultCmd = true // gssproxyd completion bash: packages ship what it prints
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		if errors.Is(err, pflag.ErrHelp) { // -h, beside the -? of the C daemon
			return err
		}
		fmt.Fprintf(cmd.ErrOrStderr(), "gssproxyd: %v\n%s", err, cmd.UsageString())
		return command.Failure
	})

	// The C daemon's options.
	f := root.Flags()
	f.BoolVarP(&o.daemon, "daemon", "D", false, "become a daemon (default)")
	f.BoolVarP(&o.interactive, "interactive", "i", false, "stay in the foreground, log to standard error")
	f.BoolVarP(&o.userproxy, "userproxy", "u", false, "serve this user only, without configuration files")
	f.IntVar(&o.idleTimeout, "idle-timeout", 1000, "with --userproxy and socket activation: exit after this many idle `seconds`")
	f.BoolVarP(&o.debug, "debug", "d", false, "log each call (level 1)")
	f.IntVar(&o.debugLevel, "debug-level", 0, "`level`: 0 off, 1 calls, 2 or more arguments and results (never secrets)")
	f.BoolVar(&o.syslogStatus, "syslog-status", false, "accepted for compatibility: refusals are always logged")
	f.StringVar(&o.logFormat, "log-format", "", "`format` of the log: text, json or journal (default journal if that is where standard error leads, else text)")
	root.RegisterFlagCompletionFunc("log-format", cobra.FixedCompletions([]string{"text", "json", "journal"}, cobra.ShellCompDirectiveNoFileComp))
	f.BoolVar(&o.usage, "usage", false, "print a short usage text")
	f.BoolP("version", "v", false, "print the version")
	f.StringVar(&o.stateDir, "state-dir", stateDirFromEnv(), "`directory` where the key for client-held handles is kept (default "+defaultStateDir+")")
	f.StringVar(&o.runAsUser, "run-as-user", "", "become this `user` once the sockets exist, where the configuration has no run_as_user")
	o.pidFile = cmp.Or(os.Getenv("GSSPROXYD_PID_FILE"), defaultPIDFile)
	f.StringVar(&o.extractCCache, "extract-ccache", "", "refused")
	f.StringVar(&o.intoCCache, "into-ccache", "", "refused")
	f.MarkHidden("extract-ccache")
	f.MarkHidden("into-ccache")

	// What says which configuration is meant goes for the subcommands too.
	p := root.PersistentFlags()
	p.StringVarP(&o.config, "config", "c", "", "configuration `file` (default "+conf.MainFile+")")
	p.StringVarP(&o.configDir, "configdir", "C", "", "`directory` of drop-in files (default "+conf.DropInDir+" unless -c is given)")
	p.StringVarP(&o.socket, "socket", "s", "", "`path` of the default socket (default "+conf.SocketPath+")")
	p.BoolP("help", "?", false, "print this text; so does -h")
	p.BoolVar(&o.compat, "compat", false, "turn configuration errors that the C daemon overlooks into warnings")

	// Names with dashes and names with underscores are the same option.
	root.SetGlobalNormalizationFunc(func(_ *pflag.FlagSet, name string) pflag.NormalizedName {
		return pflag.NormalizedName(strings.ReplaceAll(name, "_", "-"))
	})
	root.AddCommand(starterCommand(o), checkCommand(o), explainCommand(o), statusCommand(o), clientsCommand(o), reloadCommand(o), debugCommand(o), selftestCommand(o), denialsCommand(o), mountCommand(o), umountCommand(), keytabsCommand(o), migrateCommand(o), command.Audit("gssproxyd"), helperCommand(), scrapeCommand(), storeHelperCommand(), initCommand(o), acceptCommand(o), keytabCommand(o), decodeCommand())
	return root
}
