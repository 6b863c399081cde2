package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"gssproxyd/conf"
	"gssproxyd/keystore/api"
	"gssproxyd/mech/reason"
)

// client returns a client of the instance that the command line means. What else is wrong with the
// configuration is nothing here.
func (o *options) client() *api.Client {
	path := o.socket
	if path == "" {
		c, _ := load(o.config)
		path = cmp.Or(c.socket, defaultSocket)
	}
	return api.NewClient(path)
}

// ask asks a running instance.
func (o *options) ask(cmd *cobra.Command, procedure string, args, res any) error {
	c := o.client()
	defer c.Close()
	return askWith(cmd.Context(), c, procedure, args, res, func(text string) { fmt.Fprintln(cmd.ErrOrStderr(), text) })
}

func askWith(ctx context.Context, c *api.Client, procedure string, args, res any, progress func(string)) error {
	err := c.Call(ctx, procedure, args, res, progress)
	for errors.Is(err, reason.StoreRate) {
		select {
		case <-time.After(time.Second):
			err = c.Call(ctx, procedure, args, res, progress)
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return unreachable(err)
}

// unreachable adds to an error of connecting what to do.
func unreachable(err error) error {
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ECONNREFUSED):
		return fmt.Errorf("%w; no keystored runs there: start it (systemctl start keystored), or name its socket with --socket", err)
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("%w; root may connect, and whom a section [admin/NAME] with uid names", err)
	}
	return err
}

// group is a command that has only others.
func group(name, short string, commands ...*cobra.Command) *cobra.Command {
	cmd := &cobra.Command{Use: name, Short: short, RunE: func(_ *cobra.Command, args []string) error {
		var known []string
		for _, c := range commands {
			known = append(known, c.Name())
		}
		if len(args) == 0 {
			return fmt.Errorf("%s: a command is expected, as in keystored %[1]s %s", name, known[0])
		}
		return fmt.Errorf("%s: unknown command %q: %s", name, args[0], conf.DidYouMean(args[0], known))
	}}
	cmd.AddCommand(commands...)
	return cmd
}

// named refuses another number of arguments than what is named.
func named(what ...string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) == len(what) {
			return nil
		}
		text := ""
		for _, w := range what {
			text += " " + w
		}
		return fmt.Errorf("%s: keystored %s%s is expected", cmd.Name(), cmd.CommandPath()[len("keystored "):], text)
	}
}
