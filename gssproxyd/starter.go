package main

import (
	"errors"
	"fmt"
	"math"
	"os"
	"slices"

	"github.com/spf13/cobra"

	"gssproxyd/conf"
	"gssproxyd/gssproxyd/starter"
	"gssproxyd/rpc"
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
		return fmt.Errorf("users cannot be looked up: %w", err)
	}
	return nil
}

// starterCommand is what the daemon starts itself as to open sockets and start helpers as root.
func starterCommand(o *options) *cobra.Command {
	return &cobra.Command{
		Use:    starter.Arg,
		Hidden: true,
		Args:   cobra.NoArgs,
		RunE:   func(*cobra.Command, []string) error { return starter.Serve(os.Stdin, o.sockets) },
	}
}

// sockets reads whether the configuration names a socket, and its permissions. Which users and groups
// there are changes nothing about that, and root does not ask for it.
func (o *options) sockets(path string) (mode os.FileMode, named bool, err error) {
	c, err := conf.Load(o.source(everyName{}))
	switch {
	case err != nil:
		return 0, false, err
	case path == c.MetricsSocket():
		return metricsMode, path != "", nil
	}
	return rpc.ForEverybody, slices.Contains(c.Sockets(), path), nil
}

// everyName is a name service that knows everybody: each name as a user or group of its own, since
// services of the same user on one socket are an error, and the same group twice.
type everyName map[string]uint32

func (e everyName) UID(name string) (uint32, error) {
	uid, ok := e[name]
	if !ok {
		uid = math.MaxUint32 - 1 - uint32(len(e)) // not among those that files have as numbers
		e[name] = uid
	}
	return uid, nil
}

func (e everyName) GID(name string) (uint32, error) { return e.UID("group " + name) }

func (e everyName) Name(uint32) (string, error) { return "somebody", nil }
