package main

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"time"

	"gssproxyd/conf"
	"gssproxyd/gssproxyd/admin"
	"gssproxyd/rpc"
	"gssproxyd/xdr"
)

// What an administrator asks a running daemon. The daemon's side is here, and the commands, each a
// file with its procedure and its command, ask with ask.

// adminAccess is who may connect to the admin socket: who has opened it.
var adminAccess = rpc.Access{Mode: 0o600, Owner: -1, Group: -1}

// listenAdmin opens the admin socket of a configuration, if it is not open. Without one the daemon
// serves all the same, unless the configuration names it.
func (d *daemon) listenAdmin(c *conf.Config) error {
	path := d.adminPath(c)
	if d.adminListener != nil && path == d.adminAt {
		return nil
	}
	if path == conf.AdminPath {
		// Nobody else's directory: /run is root's, and what is in the way of this is found by Listen.
		os.Mkdir(filepath.Dir(filepath.Dir(path)), 0o755)
		os.Mkdir(filepath.Dir(path), 0o700)
	}
	l, err := d.open(path, adminAccess)
	if err == nil {
		if d.adminListener != nil {
			d.adminListener.Close()
		}
		d.adminListener, d.adminAt = l, path
		return nil
	}
	if c.AdminSocket != "" {
		return err
	}
	d.log.Warn("there is no admin socket: gssproxyd status and others cannot ask this daemon; name another path with admin_socket in [gssproxy]", "error", err)
	return nil
}

// adminPath is the path of the admin socket: with -u it is beside the user's own.
func (d *daemon) adminPath(c *conf.Config) string {
	if !d.o.userproxy {
		return c.Admin()
	}
	return d.userAt + "-admin"
}

// serveAdmin serves the admin socket that is open, if it is not served.
func (d *daemon) serveAdmin(ctx context.Context) {
	l := d.adminListener
	if l == nil || l == d.adminServed {
		return
	}
	d.adminServed = l
	if d.admin == nil {
		owner := uint32(0)
		if d.o.userproxy {
			owner = uint32(os.Geteuid())
		}
		d.admin = admin.Server(d.adminProcedures(), owner, d.limits, d.log)
	}
	path := d.adminAt
	d.serving.Go(func() {
		if err := d.admin.Serve(ctx, l, path); err != nil {
			d.log.Error("the admin socket is not served any more", "path", path, "error", err)
		}
	})
}

// adminProcedures are the procedures of the admin program.
func (d *daemon) adminProcedures() admin.Procedures {
	return admin.Procedures{
		xdr.AdminProcStatus:           admin.Answer(func(r *xdr.AdminResStatus) *string { return &r.Error }, d.adminStatus),
		xdr.AdminProcDenials:          admin.Answer(func(r *xdr.AdminResDenials) *string { return &r.Error }, d.adminDenials),
		xdr.AdminProcClients:          admin.Answer(func(r *xdr.AdminResClients) *string { return &r.Error }, d.adminClients),
		xdr.AdminProcReload:           admin.Answer(func(r *xdr.AdminResReload) *string { return &r.Error }, d.adminReload),
		xdr.AdminProcDebug:            admin.Answer(func(r *xdr.AdminResDebug) *string { return &r.Error }, d.adminDebug),
		xdr.AdminProcExplain:          admin.Answer(func(r *xdr.AdminResExplain) *string { return &r.Error }, d.adminExplain),
		xdr.AdminProcExplainPrincipal: admin.Answer(func(r *xdr.AdminResPrincipal) *string { return &r.Error }, d.adminPrincipal),
		xdr.AdminProcSelftest:         admin.Answer(func(r *xdr.AdminResSelftest) *string { return &r.Error }, d.adminSelftest),
		xdr.AdminProcMount:            admin.AnswerFile(func(r *xdr.AdminResMount) *string { return &r.Error }, d.adminMount),
		xdr.AdminProcKeytabs:          admin.Answer(func(r *xdr.AdminResKeytabs) *string { return &r.Error }, d.adminKeytabs),
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

// adminTimeout is how long a daemon may take to answer where nothing takes its time.
const adminTimeout = 10 * time.Second

// ask asks the daemon of the configuration that the command line means. failed is the error with
// which the result begins.
func (o *options) ask(ctx context.Context, proc xdr.AdminProc, args, res xdr.Message, failed *string) error {
	path, err := o.adminPath()
	if err != nil {
		return err
	}
	if _, longer := ctx.Deadline(); !longer {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, adminTimeout)
		defer cancel()
	}
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
	c, err := conf.Load(o.source(newEveryName()))
	if errs, bad := errors.AsType[*conf.Errors](err); bad {
		c = errs.Read
	} else if err != nil {
		return "", err
	}
	return c.Admin(), nil
}
