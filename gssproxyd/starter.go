package main

import (
	"errors"
	"fmt"
	"math"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"gssproxyd/conf"
	"gssproxyd/gssproxyd/nss"
	"gssproxyd/gssproxyd/pods"
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
		RunE:   func(*cobra.Command, []string) error { return starter.Serve(os.Stdin, o.named) },
	}
}

// named reads what the configuration says of a socket's path. Which users and groups there are beside
// those of /etc/passwd and /etc/group changes nothing about which are named, and root does not ask for
// it: such a one is no owner and no group of a socket here.
func (o *options) named(path string) (n starter.Named, err error) {
	names := newEveryName()
	c, err := conf.Load(o.source(names))
	switch {
	case err != nil:
		return n, err
	case path == c.Admin():
		return starter.Named{Socket: true, Access: adminAccess}, nil
	case pods.IsSocket(c.PodSocket, path):
		return starter.Named{Pod: true}, nil
	}
	access := c.AccessOf(path)
	for name, id := range names.unknown {
		for key, of := range map[string]conf.AccountID{"socket_owner": access.Owner, "socket_group": access.Group} {
			if of == (conf.AccountID{Set: true, ID: id}) {
				return n, fmt.Errorf("%s = %s is not in /etc/passwd or /etc/group, and nobody else is asked once the daemon is another user; write the number, or restart the daemon", key, strings.TrimPrefix(name, groupPrefix))
			}
		}
	}
	return starter.Named{Socket: slices.Contains(c.Sockets(), path), Access: socketAccess(access)}, nil
}

// everyName is a name service that knows everybody: a name that others do not know is a user or group
// of its own, since services of the same user on one socket are an error, and the same group twice.
type everyName struct {
	known   conf.Users
	unknown map[string]uint32
}

func newEveryName() everyName { return everyName{nss.NewFiles(), make(map[string]uint32)} }

const groupPrefix = "group "

func (e everyName) UID(name string) (uint32, error) {
	if uid, err := e.known.UID(name); err == nil {
		return uid, nil
	}
	return e.invent(name), nil
}

func (e everyName) GID(name string) (uint32, error) {
	if gid, err := e.known.GID(name); err == nil {
		return gid, nil
	}
	return e.invent(groupPrefix + name), nil
}

func (e everyName) invent(name string) uint32 {
	id, ok := e.unknown[name]
	if !ok {
		id = math.MaxUint32 - 1 - uint32(len(e.unknown)) // not among those that files have as numbers
		e.unknown[name] = id
	}
	return id
}

func (e everyName) Name(uint32) (string, error) { return "somebody", nil }
