// Command gssproxyd holds Kerberos keys and does GSS-API work for programs that must never see them. See
// gssproxyd(8), and gssproxyd.conf(5) for its configuration.
package main

import (
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

	"gssproxyd/conf"
)

// version is set when a release is built.
var version = "0.1.0-dev"

// Exit statuses.
const (
	exitFailure = 1 // the daemon could not start or run; also an unknown option, as the C daemon has it
	exitConfig  = 2 // the configuration has errors: starting again will not help
)

// Where things are, as distributions build the C daemon.
const (
	defaultStateDir = "/var/lib/gssproxy"
	defaultPIDFile  = "/var/run/gssproxy.pid"
)

func main() {
	// SIGPIPE would end the daemon when a client goes away while it is being answered.
	signal.Ignore(syscall.SIGPIPE)
	os.Exit(run(os.Args[1:], os.Stdout, os.Stderr))
}

// options are the command line's, under the names the C daemon gives them.
type options struct {
	daemon, interactive bool
	config, configDir   string
	socket, stateDir    string
	userproxy           bool
	idleTimeout         int
	debug               bool
	debugLevel          int
	syslogStatus        bool
	compat              bool
	usage               bool
}

// run executes one command line and returns the exit status.
func run(args []string, stdout, stderr io.Writer) int {
	var o options
	root := command(&o)
	root.SetArgs(args)
	root.SetOut(stdout)
	root.SetErr(stderr)
	err := root.ExecuteContext(context.Background())
	var status *exitStatus
	var configErrors *conf.Errors
	switch {
	case err == nil:
		return 0
	case errors.As(err, &status):
		return status.code
	case errors.As(err, &configErrors):
		fmt.Fprintf(stderr, "%v\n", err)
		return exitConfig
	}
	fmt.Fprintf(stderr, "gssproxyd: %v\n", err)
	return exitFailure
}

// exitStatus ends the program when all that is to be said has been said.
type exitStatus struct{ code int }

func (e *exitStatus) Error() string { return fmt.Sprintf("exit status %d", e.code) }

func command(o *options) *cobra.Command {
	root := &cobra.Command{
		Use:           "gssproxyd",
		Short:         "Hold Kerberos keys and do GSS-API work for programs that must never see them",
		Version:       version,
		Args:          cobra.NoArgs,
		SilenceUsage:  true,
		SilenceErrors: true,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if o.usage || o.daemon && o.interactive {
				fmt.Fprint(cmd.ErrOrStderr(), cmd.UsageString()) // and exit status 0, as the C daemon does
				return nil
			}
			return o.serve(cmd.Context(), cmd.ErrOrStderr())
		},
	}
	root.SetVersionTemplate("{{.Version}}\n")
	root.CompletionOptions.DisableDefaultCmd = true
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		fmt.Fprintf(cmd.ErrOrStderr(), "gssproxyd: %v\n%s", err, cmd.UsageString())
		return &exitStatus{exitFailure}
	})

	// The C daemon's options.
	f := root.Flags()
	f.BoolVarP(&o.daemon, "daemon", "D", false, "become a daemon (default)")
	f.BoolVarP(&o.interactive, "interactive", "i", false, "stay in the foreground, log to standard error")
	f.StringVarP(&o.socket, "socket", "s", "", "path of the default socket")
	f.BoolVarP(&o.userproxy, "userproxy", "u", false, "serve this user only, without configuration files")
	f.IntVar(&o.idleTimeout, "idle-timeout", 1000, "with --userproxy and socket activation: exit after this many idle seconds")
	f.BoolVarP(&o.debug, "debug", "d", false, "log each call (level 1)")
	f.IntVar(&o.debugLevel, "debug-level", 0, "0 off, 1 calls, 2 arguments and results (never secrets)")
	f.BoolVar(&o.syslogStatus, "syslog-status", false, "accepted for compatibility: refusals are always logged")
	f.BoolVar(&o.usage, "usage", false, "print a short usage text")
	f.BoolP("help", "?", false, "print this text")
	f.StringVar(&o.stateDir, "state-dir", stateDirFromEnv(), "where the key for client-held handles is kept")

	// What says which configuration is meant goes for the subcommands too.
	p := root.PersistentFlags()
	p.StringVarP(&o.config, "config", "c", "", "configuration file (default "+conf.MainFile+")")
	p.StringVarP(&o.configDir, "configdir", "C", "", "directory of drop-in files (default "+conf.DropInDir+" unless -c is given)")
	p.BoolVar(&o.compat, "compat", false, "turn configuration errors that the C daemon overlooks into warnings")

	// Names with dashes and names with underscores are the same option.
	root.SetGlobalNormalizationFunc(func(_ *pflag.FlagSet, name string) pflag.NormalizedName {
		return pflag.NormalizedName(strings.ReplaceAll(name, "_", "-"))
	})
	root.AddCommand(checkCommand(o), explainCommand(o), helperCommand(), initCommand(o), acceptCommand(o))
	return root
}

// stateDirFromEnv is GSSPROXYD_STATE_DIR, then the directory a service manager made for us, then the usual one.
func stateDirFromEnv() string {
	if dir := os.Getenv("GSSPROXYD_STATE_DIR"); dir != "" {
		return dir
	}
	// systemd's StateDirectory= may name several, separated by colons; the first is the daemon's own.
	if dir, _, _ := strings.Cut(os.Getenv("STATE_DIRECTORY"), ":"); dir != "" {
		return dir
	}
	return defaultStateDir
}

// source says which configuration files are meant; what is not given is package conf's to know.
func (o *options) source() conf.Source {
	return conf.Source{File: o.config, Dir: o.configDir, DefaultSocket: o.socket, Compat: o.compat, Users: conf.NewNSS()}
}
