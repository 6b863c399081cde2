package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	sd "github.com/coreos/go-systemd/v22/daemon"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"gssproxyd/audit"
	"gssproxyd/command"
	"gssproxyd/conf"
	"gssproxyd/xdr"
)

// reloadTimeout is how long reading the configuration may take: a name service may be slow over each
// name in it.
const reloadTimeout = 2 * time.Minute

// reloadCommand is gssproxyd reload: what SIGHUP does, and what has come of it.
func reloadCommand(o *options) *cobra.Command {
	var dry bool
	cmd := &cobra.Command{
		Use:               "reload",
		Short:             "Have the running daemon read its configuration again, and say what has changed",
		Args:              configured,
		ValidArgsFunction: cobra.NoFileCompletions,
	}
	cmd.Flags().BoolVar(&dry, "dry-run", false, "only say what would change, and what is wrong")
	return command.Answers(cmd, func(ctx context.Context, res *xdr.AdminResReload) error {
		ctx, cancel := context.WithTimeout(ctx, reloadTimeout)
		defer cancel()
		return o.ask(ctx, xdr.AdminProcReload, &xdr.AdminArgReload{DryRun: dry}, res, &res.Error)
	}, func(w io.Writer, res *xdr.AdminResReload) error {
		for _, warning := range res.Warnings {
			fmt.Fprintf(cmd.ErrOrStderr(), "warning: %s\n", warning)
		}
		for _, err := range res.Errors {
			fmt.Fprintln(cmd.ErrOrStderr(), err)
		}
		for _, change := range res.Changes {
			fmt.Fprintln(w, change)
		}
		switch same := len(res.Changes) == 0; {
		case res.Loaded && same:
			fmt.Fprintln(w, "loaded: nothing has changed")
		case res.Loaded:
			fmt.Fprintln(w, "loaded")
		case len(res.Errors) > 0:
			fmt.Fprintln(cmd.ErrOrStderr(), "not loaded: what was in force stays")
		case same:
			fmt.Fprintln(w, "nothing would change")
		}
		return nil
	}, func(res *xdr.AdminResReload) command.Status {
		switch {
		case res.BadConfiguration:
			return command.Config
		case len(res.Errors) > 0:
			return command.Failure
		}
		return 0
	})
}

// adminReload is procedure RELOAD.
func (d *daemon) adminReload(ctx context.Context, args *xdr.AdminArgReload, res *xdr.AdminResReload) error {
	if d.o.userproxy {
		return errors.New("a daemon with -u has no configuration to read")
	}
	done := make(chan *xdr.AdminResReload, 1)
	err := d.inLoop(ctx, func() {
		if !args.DryRun {
			d.reread(done)
			return
		}
		former, krb5 := d.conf, d.krb5Files
		d.reading.Go(func() {
			r := d.readNow()
			done <- r.outcome(former, krb5)
		})
	})
	if err != nil {
		return err
	}
	select {
	case outcome := <-done:
		*res = *outcome
		return nil
	case <-d.stopping:
		return errors.New("the daemon stops")
	case <-ctx.Done():
		return ctx.Err()
	}
}

// reloads are the main loop's: at most one reading of the configuration is under way.
type reloads struct {
	pending <-chan reading // nil while none is
	again   bool           // as soon as that has ended

	// Administrators who wait for what comes of the one under way, and of the next one: what was
	// read before somebody asked may be what was there before. Each has room.
	asked, later []chan<- *xdr.AdminResReload
}

// reread has the configuration read again. done, if there is one, is told what has come of it.
func (d *daemon) reread(done chan<- *xdr.AdminResReload) {
	r := &d.reloads
	if done != nil {
		r.later = append(r.later, done)
	}
	if r.again = true; r.pending == nil {
		r.begin(d)
	}
}

func (r *reloads) begin(d *daemon) {
	r.asked, r.later, r.again = r.later, nil, false
	r.pending = d.read()
}

// end ends the reading under way.
func (r *reloads) end(d *daemon, outcome *xdr.AdminResReload) {
	for _, done := range r.asked {
		done <- outcome
	}
	if r.asked, r.pending = nil, nil; r.again {
		r.begin(d)
	}
}

// reading is what reading the configuration has come to.
type reading struct {
	*configuration
	err error
}

// read reads the configuration again, beside the main loop: the name service may take its time over
// each name. stop has it end.
func (d *daemon) read() <-chan reading {
	var now unix.Timespec
	unix.ClockGettime(unix.CLOCK_MONOTONIC, &now)
	d.shown.notify(fmt.Sprintf("%s\nMONOTONIC_USEC=%d", sd.SdNotifyReloading, now.Nano()/1000), "Reloading configuration")
	done := make(chan reading, 1)
	d.reading.Go(func() {
		r := d.readNow()
		if r.err == nil {
			r.err = d.prepareStores(r.configuration)
		}
		done <- r
	})
	return done
}

func (d *daemon) readNow() (r reading) {
	d.nss.Forget() // somebody may have mended what was asked for before
	d.lookUp.Forget()
	r.configuration, r.err = d.o.load(d.users)
	return r
}

// outcome is what a reading has come to, beside what is in force.
func (r *reading) outcome(former *conf.Config, krb5 fingerprint) *xdr.AdminResReload {
	res := &xdr.AdminResReload{Warnings: slices.Concat(r.conf.Warnings, r.warnings)}
	if r.err != nil {
		fail(res, r.err)
		return res
	}
	res.Changes = r.conf.Changes(former)
	if krb5.changed() {
		res.Changes = append(res.Changes, "krb5.conf: a file of it has changed: "+strings.Join(krb5.files, ", "))
	}
	return res
}

// fail notes an error, of which nothing was put in force.
func fail(res *xdr.AdminResReload, err error) {
	res.Loaded, res.Changes = false, nil
	res.Errors = strings.Split(err.Error(), "\n")
	res.BadConfiguration = badConfiguration(err)
}

// reload puts what was read in force. When it has errors, what is in force stays; calls in flight
// and connections are never cut.
func (d *daemon) reload(ctx context.Context, r reading) *xdr.AdminResReload {
	status := "Serving"
	c, err := r.conf, r.err
	res := r.outcome(d.conf, d.krb5Files)
	if err == nil {
		d.warn(c.Warnings)
		if err = d.apply(r.configuration); err != nil {
			fail(res, err)
		}
	}
	d.configured(ctx, c, "reload", err)
	d.lastReading.failed.Store(err != nil)
	if err != nil {
		d.log.Error("the configuration was not loaded: keeping the former one", "error", err)
		status = "Serving (failed to re-read config)"
	} else {
		res.Loaded = true
		opened, err := d.listen(c)
		d.serveOn(ctx, opened)
		err = errors.Join(err, d.listenAdmin(c))
		d.serveAdmin(ctx)
		if err != nil {
			res.Errors = strings.Split(err.Error(), "\n")
			d.log.Error("not all sockets could be opened", "error", err)
			status = "Serving (failed to open all sockets)"
		}
		if err := d.pods.Configure(ctx, c.PodSocket); err != nil {
			res.Errors = append(res.Errors, strings.Split(err.Error(), "\n")...)
			d.log.Error("pods cannot be registered", "error", err)
			status = "Serving (failed to open all sockets)"
		}
		d.reloadMetrics(ctx, c)
		d.nfsd.Want(kernelNFSD(c))
		d.log.Info("New config loaded successfully.")
	}
	d.shown.notify(sd.SdNotifyReady, status)
	return res
}

// configured records that a configuration was put in force or, with an error, that it was not; that
// of krb5.conf if c is nil.
func (d *daemon) configured(ctx context.Context, c *conf.Config, when string, err error) {
	e := audit.Event{Kind: audit.ConfigurationRead, Time: time.Now(), Text: when}
	if c == nil {
		e.Source = strings.Join(d.krb5Files.files, ", ")
	} else if e.Source = strings.Join(c.Files, ", "); err == nil {
		sum := sha256.New()
		c.Print(sum, false)
		e.Digest = hex.EncodeToString(sum.Sum(nil))
	}
	if err != nil {
		const most = 2048
		e.Kind = audit.ConfigurationBad
		e.Text += ": " + strings.ReplaceAll(err.Error(), "\n", "; ")
		e.Text = strings.ToValidUTF8(e.Text[:min(len(e.Text), most)], "")
	}
	d.record(ctx, &e)
}

// happened records something of the daemon itself.
func (d *daemon) happened(ctx context.Context, kind audit.Kind, text string) {
	d.record(ctx, &audit.Event{Kind: kind, Time: time.Now(), Text: text})
}
