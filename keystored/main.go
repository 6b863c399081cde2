// Command keystored keeps the Kerberos keys of a fleet of hosts in one store, and hands each host
// those that it may have. See keystored(8), and keystored.conf(5) for its configuration.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"golang.org/x/sys/unix"

	"gssproxyd/command"
	"gssproxyd/conf"
)

// version is set when a release is built.
var version = "0.1.0-dev"

func main() {
	signal.Ignore(syscall.SIGPIPE) // a client that goes away is no reason to end
	os.Exit(run(os.Args[1:], os.Stdout, os.Stderr))
}

// run executes one command line and returns the exit status.
func run(args []string, stdout, stderr io.Writer) int {
	root := rootCommand(new(options))
	root.SetArgs(args)
	root.SetOut(command.Plain{Writer: stdout})
	root.SetErr(stderr)
	err := harden()
	if err == nil {
		err = root.ExecuteContext(context.Background())
	}
	if err == nil {
		return 0
	}
	stderr = command.Plain{Writer: stderr}
	if status, ok := errors.AsType[command.Status](err); ok {
		return int(status)
	}
	if _, bad := errors.AsType[*conf.Errors](err); bad {
		fmt.Fprintf(stderr, "%v\n", err)
		return int(command.Config)
	}
	fmt.Fprintf(stderr, "keystored: %v\n", err)
	return int(command.Failure)
}

// harden keeps keys out of core files, and out of reach of other processes of the same user. It is for
// every command: import has keys too.
func harden() error {
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return fmt.Errorf("cannot forbid core dumps: %w", err)
	}
	if err := unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{}); err != nil {
		return fmt.Errorf("cannot forbid core dumps: %w", err)
	}
	unix.Umask(0o077)
	return command.InheritOnce()
}

// options are those of all commands.
type options struct {
	config string
	socket string
}

const (
	defaultConfig   = "/etc/gssproxy/keystored.conf"
	defaultSocket   = "/run/keystored/socket"
	defaultStateDir = "/var/lib/keystored"
)

func rootCommand(o *options) *cobra.Command {
	root := &cobra.Command{
		Use:           "keystored",
		Short:         "Keep the Kerberos keys of a fleet of hosts, and hand each host its own",
		Version:       version,
		SilenceUsage:  true,
		SilenceErrors: true,
		Args:          command.IsCommand,
		RunE: func(cmd *cobra.Command, _ []string) error {
			fmt.Fprint(cmd.ErrOrStderr(), cmd.UsageString())
			return command.Failure
		},
	}
	root.SetVersionTemplate("{{.Version}}\n")
	root.CompletionOptions.HiddenDefaultCmd = true
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		if errors.Is(err, pflag.ErrHelp) {
			return err
		}
		fmt.Fprintf(cmd.ErrOrStderr(), "keystored: %v\n%s", err, cmd.UsageString())
		return command.Failure
	})
	p := root.PersistentFlags()
	p.StringVarP(&o.config, "config", "c", defaultConfig, "configuration `file`")
	p.StringVar(&o.socket, "socket", "", "`path` of the socket of the running keystored (default what the configuration says, else "+defaultSocket+")")
	root.AddCommand(serveCommand(o), checkCommand(o), initCommand(o), recipientCommand(o), command.Audit("keystored"), importCommand(o), backupCommand(o), restoreCommand(o))
	root.AddCommand(entryCommands(o)...)
	root.AddCommand(hostCommand(o), masterCommand(o), recoveryCommand(o))
	return root
}
