package main

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"gssproxyd/audit"
	"gssproxyd/conf"
	"gssproxyd/gssproxyd/admin"
	"gssproxyd/rpc"
	"gssproxyd/xdr"
)

// What an administrator asks a running daemon. The daemon's side is here, and the commands, each a
// file with its procedure and its command, ask with adminAsk.

// forRoot are the permissions of the admin socket.
const forRoot os.FileMode = 0o600

// listenAdmin opens the admin socket. Without one the daemon serves all the same, unless the
// configuration names it.
func (d *daemon) listenAdmin(c *conf.Config) (*net.UnixListener, error) {
	path := d.adminPath(c)
	if path == conf.AdminPath {
		// Nobody else's directory: /run is root's, and what is in the way of this is found by Listen.
		os.Mkdir(filepath.Dir(filepath.Dir(path)), 0o755)
		os.Mkdir(filepath.Dir(path), 0o700)
	}
	l, err := rpc.Listen(path, forRoot)
	if err == nil || c.AdminSocket != "" {
		return l, err
	}
	d.log.Warn("there is no admin socket: gssproxyd status and others cannot ask this daemon; name another path with admin_socket in [gssproxy]", "error", err)
	return nil, nil
}

// adminPath is the path of the admin socket: with -u it is beside the user's own.
func (d *daemon) adminPath(c *conf.Config) string {
	if !d.o.userproxy {
		return c.Admin()
	}
	for path := range d.listeners {
		return path + "-admin"
	}
	return d.o.socket + "-admin"
}

// serveAdmin serves the admin socket, if there is one, until the daemon stops.
func (d *daemon) serveAdmin(ctx context.Context, l *net.UnixListener) {
	if l == nil {
		return
	}
	owner := uint32(0)
	if d.o.userproxy {
		owner = uint32(os.Geteuid())
	}
	d.admin = admin.Server(d.adminProcedures(), owner, d.limits, d.log)
	d.serving.Go(func() {
		if err := d.admin.Serve(ctx, l, "admin"); err != nil {
			d.log.Error("the admin socket is not served any more", "error", err)
		}
	})
}

// adminProcedures are the procedures of the admin program.
func (d *daemon) adminProcedures() admin.Procedures {
	return admin.Procedures{
		xdr.AdminProcStatus:  admin.Answer(func(r *xdr.AdminResStatus) *string { return &r.Error }, d.adminStatus),
		xdr.AdminProcDenials: admin.Answer(func(r *xdr.AdminResDenials) *string { return &r.Error }, d.adminDenials),
	}
}

// inLoop has the main loop call f, and waits for that.
func (d *daemon) inLoop(ctx context.Context, f func()) error {
	done := make(chan struct{})
	select {
	case d.asked <- func() { f(); close(done) }:
	case <-d.stopping:
		return errors.New("the daemon stops")
	case <-ctx.Done():
		return ctx.Err()
	}
	<-done // the main loop does not wait for anybody
	return nil
}

// record keeps what was refused for who asks, and counts if somebody wants that.
func (d *daemon) record(_ context.Context, e *audit.Event) error {
	if m := d.exported.counted.Load(); m != nil {
		m.Record(e)
	}
	switch e.Kind {
	case audit.CallDenied, audit.CallObserved, audit.ConnectionDenied:
		if !e.Routine {
			d.denials.add(e)
		}
	}
	return nil
}

// adminStatus is procedure STATUS.
func (d *daemon) adminStatus(ctx context.Context, _ *admin.None, res *xdr.AdminResStatus) error {
	return d.inLoop(ctx, func() {
		c := d.conf
		*res = xdr.AdminResStatus{
			Version: version, PID: int32(os.Getpid()), UID: uint32(os.Geteuid()),
			Started: d.started.Format(time.RFC3339), Read: d.readAt.Format(time.RFC3339), Files: c.Files,
			KernelNFSD: d.nfsd.Status(), DebugLevel: int32(max(d.o.debugLevelInForce(), c.Debug)),
		}
		for path := range d.listeners {
			res.Sockets = append(res.Sockets, path)
		}
		slices.Sort(res.Sockets)
		for _, s := range c.Services {
			res.Services = append(res.Services, s.Name)
		}
	})
}

// adminTimeout is how long a daemon may take to answer.
const adminTimeout = 10 * time.Second

// ask asks the daemon of the configuration that the command line means. failed is the error with
// which the result begins.
func (o *options) ask(ctx context.Context, proc xdr.AdminProc, args, res xdr.Message, failed *string) error {
	path, err := o.adminPath()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, adminTimeout)
	defer cancel()
	if err := admin.Ask(ctx, path, proc, args, res); err != nil {
		return err
	}
	if *failed != "" {
		return errors.New(*failed)
	}
	return nil
}

// adminPath is where the daemon of the configuration listens. What else is wrong with that is
// nothing here: it may be what is to be found out.
func (o *options) adminPath() (string, error) {
	c, err := conf.Load(o.source(everyName{}))
	if errs, bad := errors.AsType[*conf.Errors](err); bad {
		c = errs.Read
	} else if err != nil {
		return "", err
	}
	return c.Admin(), nil
}

// answers makes cmd run get, and show what that returns: with show, or with the option --json, which
// it gets, as one JSON object.
func answers[R any](cmd *cobra.Command, get func(context.Context, *R) error, show func(io.Writer, *R) error) *cobra.Command {
	asJSON := cmd.Flags().Bool("json", false, "print one JSON object")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		var res R
		if err := get(cmd.Context(), &res); err != nil {
			return err
		}
		if !*asJSON {
			return show(cmd.OutOrStdout(), &res)
		}
		out := json.NewEncoder(cmd.OutOrStdout())
		out.SetIndent("", "  ")
		out.SetEscapeHTML(false)
		return out.Encode(&res)
	}
	return cmd
}
