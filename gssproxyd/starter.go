package main

import (
	"errors"
	"os"

	"github.com/spf13/cobra"

	"gssproxyd/conf"
	"gssproxyd/gssproxyd/starter"
)

// startStarter starts the process that stays root, and has it start the helpers from then on. This
// one could not end those that it has started itself.
func (d *daemon) startStarter() error {
	var args []string
	for flag, value := range map[string]string{"--config": d.o.config, "--configdir": d.o.configDir, "--socket": d.o.socket} {
		if value != "" {
			args = append(args, flag+"="+value)
		}
	}
	if d.o.compat {
		args = append(args, "--compat")
	}
	s, err := starter.Start(args, d.log)
	if err != nil {
		return err
	}
	d.starter = s
	if err := errors.Join(d.nss.StartBy(s.Helper), d.lookUp.StartBy(s.Helper)); err != nil {
		d.log.Error("users cannot be looked up", "error", err)
	}
	return nil
}

// starterCommand is what the daemon starts itself as to open sockets and start helpers as root.
func starterCommand(o *options) *cobra.Command {
	return &cobra.Command{
		Use:    starter.Arg,
		Hidden: true,
		Args:   cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			return starter.Serve(os.Stdin, func() ([]string, error) {
				// Which users and groups there are changes nothing about sockets, and root does not ask for it.
				c, err := conf.Load(o.source(everyName{}))
				if err != nil {
					return nil, err
				}
				return c.Sockets(), nil
			})
		},
	}
}

// everyName is a name service that knows everybody.
type everyName struct{}

func (everyName) UID(string) (uint32, error)  { return 0, nil }
func (everyName) Name(uint32) (string, error) { return "root", nil }
func (everyName) GID(string) (uint32, error)  { return 0, nil }
