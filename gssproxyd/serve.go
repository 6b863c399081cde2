package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"log/syslog"
	"net"
	"os"
	"os/signal"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	sd "github.com/coreos/go-systemd/v22/daemon"
	"golang.org/x/sys/unix"

	"gssproxyd/conf"
	"gssproxyd/gssproxyd/nss"
	"gssproxyd/gssproxyd/proc"
	"gssproxyd/keytab/seal"
	"gssproxyd/mech/krb5/krb5conf"
	"gssproxyd/rpc"
)

// shutdownTimeout bounds how long calls in flight may take to finish when the daemon stops.
const shutdownTimeout = 10 * time.Second

// sealRotation is the age at which the key for client-held handles gets a successor. Handles under the old key go on
// opening for a month.
const sealRotation = 90 * 24 * time.Hour

// daemon is the running program: what is in force now, and what a reload replaces.
type daemon struct {
	o      *options
	log    *slog.Logger
	level  *slog.LevelVar
	output output
	users  conf.Users
	procs  *proc.Procedures
	rpc    *rpc.Server
	nss    *nss.Client // nil in userproxy mode
	nfsd   nfsd

	conf      *conf.Config
	krb5Files fingerprint
	listeners map[string]*net.UnixListener
	serving   sync.WaitGroup
	activity  activity
}

// serve runs the daemon until a signal ends it.
func (o *options) serve(ctx context.Context, stderr io.Writer) error {
	ready := readyPipe()
	if !o.interactive && !o.userproxy && ready == nil {
		return daemonize(stderr)
	}
	// Keys must not end up in a core file, nor be read by another process of the same user.
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return fmt.Errorf("cannot forbid core dumps: %w", err)
	}

	// Signals are caught from here on, so that none is lost while starting.
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, syscall.SIGHUP, syscall.SIGINT, syscall.SIGTERM, syscall.SIGQUIT)
	defer signal.Stop(signals)

	d := &daemon{o: o, level: new(slog.LevelVar), users: conf.NewNSS(), listeners: make(map[string]*net.UnixListener)}
	d.output.Store(&stderr)
	d.log = slog.New(slog.NewTextHandler(&d.output, &slog.HandlerOptions{Level: d.level}))
	if err := d.start(ctx); err != nil {
		d.stop()
		return err
	}
	if ready != nil {
		if err := d.detach(ready); err != nil {
			d.stop()
			return err
		}
	}
	sd.SdNotify(false, sd.SdNotifyReady+"\nSTATUS="+d.withNFSD("Serving"))
	d.log.Info("Initialization complete.")
	return d.wait(ctx, signals)
}

// start does everything up to serving: configuration, keys, sockets, dropped privileges.
func (d *daemon) start(ctx context.Context) error {
	c, err := d.readConfig()
	if err != nil {
		return err
	}
	if !d.o.userproxy {
		d.startNSS()
	}
	stateDir := d.o.stateDir
	if d.o.userproxy {
		if stateDir, err = userDir(); err != nil {
			return err
		}
	}
	box, err := seal.Open(stateDir)
	if err != nil {
		return fmt.Errorf("the key for client-held handles: %w", err)
	}
	if time.Since(box.Newest()) > sealRotation {
		if err := box.Rotate(); err != nil {
			d.log.Error("the key for client-held handles is old and could not be replaced", "error", err)
		}
	}
	d.procs = proc.New(proc.Options{Box: box, Users: d.users, Accounts: d.accounts(), Log: d.log, Debug: d.o.debugLevelInForce()})
	d.rpc = &rpc.Server{Match: d.match, Handle: d.procs.Handle, Parallel: d.procs.Parallel, Log: d.log}
	d.nfsd = nfsd{dir: kernelRPC, log: d.log, enctypes: d.procs.SetKernelEnctypes, changed: showNFSD, write: tellKernel}
	if err := d.apply(c); err != nil {
		return err
	}
	opened, err := d.listen(c)
	if err == nil && c.RunAsUser != "" {
		d.nfsd.want(kernelNFSD(c)) // for root only, so before anything is served; the kernel's connection waits for that
		d.nfsd.settle(firstAsRoot)
	}
	if err == nil {
		err = dropPrivileges(d.users, c.RunAsUser)
	}
	if err != nil {
		for _, l := range opened {
			l.Close()
		}
		return err
	}
	d.serveOn(ctx, opened)
	d.nfsd.want(kernelNFSD(c))
	d.nfsd.settle(firstLook)
	return nil
}

// readConfig reads the configuration files and logs their warnings.
func (d *daemon) readConfig() (*conf.Config, error) {
	if d.o.userproxy {
		return conf.UserProxy(uint32(os.Geteuid())), nil
	}
	c, err := conf.Load(d.o.source())
	if err != nil {
		return nil, err
	}
	for _, w := range c.Warnings {
		d.log.Warn(w)
	}
	return c, nil
}

// apply puts a configuration in force, with krb5.conf as it is now.
func (d *daemon) apply(c *conf.Config) error {
	began := time.Now()
	k, err := krb5conf.Load(krb5conf.Files(os.Getenv))
	if err != nil {
		return err
	}
	for _, w := range k.Warnings {
		d.log.Warn(w)
	}
	if err := d.procs.Load(c, k); err != nil {
		return err
	}
	d.conf, d.krb5Files = c, takeFingerprint(k.Watch, began)
	if max(d.o.debugLevelInForce(), c.Debug) > 0 {
		d.level.Set(slog.LevelDebug)
	} else {
		d.level.Set(slog.LevelInfo)
	}
	return nil
}

// debugLevelInForce is the command line's level. A configuration can raise it and cannot lower it.
func (o *options) debugLevelInForce() int {
	if o.debug {
		return max(1, o.debugLevel)
	}
	return o.debugLevel
}

// match notes that the daemon is in use and asks the procedures.
func (d *daemon) match(ctx context.Context, c *rpc.Conn, procedure uint32) (any, bool) {
	if d.o.idleTimeout > 0 && d.o.userproxy {
		d.activity.note()
	}
	return d.procs.Match(ctx, c, procedure)
}

// detach tells a waiting parent that the daemon serves, moves the log to syslog, and lets go of the standard error that
// the parent's caller may be reading to its end.
func (d *daemon) detach(ready *os.File) error {
	if err := os.WriteFile(defaultPIDFile, []byte(strconv.Itoa(os.Getpid())+"\n"), 0o644); err != nil {
		d.log.Warn("no pid file", "error", err)
	}
	var log io.Writer = io.Discard
	w, err := syslog.New(syslog.LOG_AUTHPRIV|syslog.LOG_INFO, "gssproxy")
	if err != nil {
		d.log.Warn("syslog is not reachable: nothing is logged from here on; use -i to see the log", "error", err)
	} else {
		log = w
	}
	d.output.Store(&log)
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer null.Close()
	if err := unix.Dup3(int(null.Fd()), int(os.Stderr.Fd()), 0); err != nil {
		return err
	}
	_, err = ready.Write([]byte{0})
	return errors.Join(err, ready.Close())
}

// wait serves until a signal ends it, reloading when asked to or when krb5.conf changes.
func (d *daemon) wait(ctx context.Context, signals <-chan os.Signal) error {
	housekeeping := time.NewTicker(housekeepingPeriod())
	defer housekeeping.Stop()
	for {
		select {
		case s := <-signals:
			if s == syscall.SIGHUP {
				if !d.o.userproxy {
					d.reload(ctx)
				}
				continue
			}
			d.log.Info("stopping", "signal", s.String())
			sd.SdNotify(false, sd.SdNotifyStopping)
			return d.stop()
		case <-housekeeping.C:
			sd.SdNotify(false, sd.SdNotifyWatchdog)
			if d.krb5Files.changed() {
				d.log.Info("krb5.conf has changed: reading it again")
				if err := d.apply(d.conf); err != nil {
					d.log.Error("krb5.conf cannot be used: keeping what was in force", "error", err)
					d.krb5Files = d.krb5Files.seen()
				}
			}
			if d.o.userproxy && d.o.idleTimeout > 0 && d.activity.idle() > time.Duration(d.o.idleTimeout)*time.Second {
				d.log.Info(fmt.Sprintf("Terminating, after idling for %d seconds!", d.o.idleTimeout))
				return d.stop()
			}
		}
	}
}

// housekeepingPeriod is a second or two, and less than half of what the service manager's watchdog allows.
func housekeepingPeriod() time.Duration {
	period := 2 * time.Second
	if limit, err := sd.SdWatchdogEnabled(false); err == nil && limit > 0 {
		period = min(period, limit/3)
	}
	return period
}

// reload reads the configuration again. When it has errors, what is in force stays; calls in flight and connections
// are never cut.
func (d *daemon) reload(ctx context.Context) {
	var now unix.Timespec
	unix.ClockGettime(unix.CLOCK_MONOTONIC, &now)
	sd.SdNotify(false, fmt.Sprintf("%s\nMONOTONIC_USEC=%d\nSTATUS=Reloading configuration", sd.SdNotifyReloading, now.Nano()/1000))
	status := "Serving"
	c, err := d.readConfig()
	if err == nil {
		err = d.apply(c)
	}
	if err != nil {
		d.log.Error("the configuration was not loaded: keeping the former one", "error", err)
		status = "Serving (failed to re-read config)"
	} else {
		opened, err := d.listen(c)
		d.serveOn(ctx, opened)
		if err != nil {
			d.log.Error("not all sockets could be opened", "error", err)
			status = "Serving (failed to open all sockets)"
		}
		d.nfsd.want(kernelNFSD(c))
		d.log.Info("New config loaded successfully.")
	}
	sd.SdNotify(false, sd.SdNotifyReady+"\nSTATUS="+d.withNFSD(status))
}

// stop finishes calls in flight, closes everything and waits for every goroutine.
func (d *daemon) stop() error {
	ctx, cancel := context.WithTimeout(context.Background(), shutdownTimeout)
	defer cancel()
	var err error
	if d.rpc != nil {
		err = d.rpc.Shutdown(ctx)
	}
	for _, l := range d.listeners {
		l.Close()
	}
	d.serving.Wait()
	d.nfsd.close(ctx)
	if d.nss != nil {
		d.nss.Close()
	}
	if d.procs != nil {
		d.procs.Close()
	}
	return err
}

// output is where the log goes; it can be changed while others write.
type output struct{ atomic.Pointer[io.Writer] }

func (o *output) Write(b []byte) (int, error) { return (*o.Load()).Write(b) }
