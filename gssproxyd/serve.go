package main

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"log/syslog"
	"maps"
	"net"
	"os"
	"os/signal"
	"runtime/debug"
	"slices"
	"strconv"
	"syscall"
	"time"

	sd "github.com/coreos/go-systemd/v22/daemon"
	"golang.org/x/sys/unix"

	"gssproxyd/audit"
	"gssproxyd/command"
	"gssproxyd/conf"
	"gssproxyd/gssproxyd/knfsd"
	"gssproxyd/gssproxyd/logs"
	"gssproxyd/gssproxyd/nss"
	"gssproxyd/gssproxyd/pods"
	"gssproxyd/gssproxyd/proc"
	"gssproxyd/keytab/seal"
	"gssproxyd/limits"
	"gssproxyd/openat"
	"gssproxyd/rpc"
)

// shutdownTimeout bounds how long calls in flight may take to finish when the daemon stops. Tests
// have a shorter one.
var shutdownTimeout = 10 * time.Second

// sealRotation is the age at which the key for client-held handles gets a successor. Handles under
// the old key go on opening for a month. When that fails it is tried again after a day.
const (
	sealRotation = 90 * 24 * time.Hour
	sealRetry    = 24 * time.Hour
)

// How long the kernel's NFS server may take for a registration before the daemon goes on.
const (
	nfsdBeforeReady = 3 * time.Second
	nfsdBeforeDrop  = 12 * time.Second // of the right to register
)

// serve runs the daemon until a signal ends it.
func (o *options) serve(ctx context.Context, stderr io.Writer) error {
	if err := command.InheritOnce(); err != nil {
		return err
	}
	ready := readyPipe()
	if !o.interactive && !o.userproxy && ready == nil {
		return daemonize(stderr)
	}
	if ready != nil {
		if err := errors.Join(o.absolute(), os.Chdir("/")); err != nil {
			return err
		}
	}
	// Keys must not end up in a core file, nor be read by another process of the same user.
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return fmt.Errorf("cannot forbid core dumps: %w", err)
	}

	// A crash ends with SIGABRT. Otherwise the Go runtime would end it with the exit status 2, which says
	// of a configuration with errors that starting again does not help.
	debug.SetTraceback("crash")

	// Signals are caught from here on, so that none is lost while starting.
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, syscall.SIGHUP, syscall.SIGINT, syscall.SIGTERM, syscall.SIGQUIT)
	defer signal.Stop(signals)

	d := &daemon{
		o: o, level: new(slog.LevelVar), users: nss.NewDirect(), limits: limits.ForProcess(),
		listeners: make(map[string]*net.UnixListener), access: make(map[string]rpc.Access), lost: make(chan *net.UnixListener), asked: make(chan func()), started: time.Now(), stopping: make(chan struct{}),
	}
	if os.Getenv("GOMEMLIMIT") == "" {
		debug.SetMemoryLimit(d.limits.Memory())
	}
	d.output.Store(&stderr)
	handler, err := logs.New(o.logFormatInForce(ready == nil), &d.output, d.level)
	if err != nil {
		return err
	}
	d.log = slog.New(handler)
	if err := d.start(ctx); err != nil {
		d.stop()
		return err
	}
	d.awaitStores()
	if ready != nil {
		if err := d.detach(ready); err != nil {
			d.stop()
			return err
		}
	}
	d.shown.notify(sd.SdNotifyReady, "Serving")
	d.log.Info("Initialization complete.")
	d.happened(ctx, audit.Started, "version "+version)
	d.serves = true
	return d.wait(ctx, signals)
}

// start does everything up to serving: configuration, sockets, dropped privileges, keys.
func (d *daemon) start(ctx context.Context) error {
	if !d.o.userproxy {
		d.startNSS()
	}
	cfg, err := d.o.load(d.users)
	if err != nil {
		return err
	}
	c := cfg.conf
	d.warn(c.Warnings)
	d.nfsd = knfsd.New(d.log, d.shown.nfsdChanged)
	d.shown.nfsd = d.nfsd.Status
	opened, err := d.listen(c)
	if err == nil && !d.o.userproxy {
		d.writePIDFile()
	}
	if err == nil {
		err = d.listenAdmin(c)
	}
	var scraped *os.File
	if err == nil {
		scraped = d.listenMetrics(c)
	}
	if err == nil {
		err = d.takeIdentity()
	}
	if user := d.runsAs(c); err == nil && user != "" {
		if err = d.become(ctx, user, c); err == nil {
			err = cfg.readKrb5()
		}
	}
	// From here on as the user that goes on: keys and a replay cache belong to who made them.
	if err == nil {
		err = d.openBox()
	}
	if err == nil {
		d.renewSeal(time.Now())
		d.procs = proc.New(proc.Options{Box: d.box, Stores: d.openStores(), Users: d.callersUsers(), Accounts: d.accounts(), Limits: d.limits, Record: d.record, Evidence: d.evidence, Phases: &d.exported.phases, Skewed: d.skewed, Unseal: d.unsealer(), Log: d.log, Debug: d.o.debugLevelInForce()})
		d.rpc = &rpc.Server{Match: d.match, Needs: d.procs.Needs, Denied: d.procs.Denied, Lost: d.lose, Lent: d.lent, Limits: d.limits, Phases: &d.exported.phases, Log: d.log}
		d.nfsd.Tell(d.procs.SetKernelEnctypes)
		if !d.o.userproxy {
			d.pods = pods.New(pods.Options{Open: d.openPod, Remove: d.removePod, Serve: d.rpc.Serve, Cut: d.rpc.Cut, Record: d.record, Limits: d.limits, Log: d.log})
			d.rpc.Registered = d.pods.Registered
		}
		if err = d.apply(cfg); err == nil {
			d.configured(ctx, c, "start", nil)
		}
	}
	if err == nil && d.pods != nil {
		err = d.pods.Configure(ctx, c.PodSocket)
	}
	if err != nil {
		for _, l := range opened {
			l.Close()
		}
		if d.adminListener != nil {
			d.adminListener.Close()
		}
		scraped.Close() // nil if there is none, which is an error and nothing else
		return err
	}
	d.serveAdmin(ctx)
	d.idleFrom()
	d.exportMetrics(ctx, c, scraped)
	d.serveOn(ctx, opened)
	d.nfsd.Want(kernelNFSD(c))
	d.nfsd.Await(nfsdBeforeReady)
	return nil
}

// runsAs is the user to become, empty to stay who we are.
func (d *daemon) runsAs(c *conf.Config) string {
	if d.o.userproxy {
		return ""
	}
	return cmp.Or(c.RunAsUser, d.o.runAsUser)
}

// become does what takes root, leaves the starter to do what will take root again, and goes on as
// the user, with every group that the name service says it has. With run_as_user = root it stays
// what it is, as the C daemon does: that is how a configuration overrules a unit.
func (d *daemon) become(ctx context.Context, user string, c *conf.Config) error {
	a, err := d.nss.Account(ctx, user)
	if err != nil {
		return fmt.Errorf("run_as_user = %s: %w", user, err)
	}
	if a.UID == 0 && os.Geteuid() == 0 {
		return nil
	}
	d.nfsd.Want(kernelNFSD(c)) // before anything is served: the kernel's connection waits for that
	d.nfsd.Await(nfsdBeforeDrop)
	if err := d.startStarter(); err != nil {
		return err
	}
	return dropPrivileges(a)
}

// warn logs what is odd in a configuration.
func (d *daemon) warn(warnings []string) {
	for _, w := range warnings {
		d.log.Warn(w)
	}
}

// openBox opens the key for client-held handles. It is in memory where nobody has named a directory
// and the default is not this user's to write: another user than root, or a user's own proxy
// without a runtime directory.
func (d *daemon) openBox() (err error) {
	dir := cmp.Or(d.o.stateDir, defaultStateDir)
	if d.o.stateDir == "" && d.o.userproxy {
		dir, err = userDir()
	}
	if err == nil {
		d.box, err = seal.Open(dir)
	}
	switch {
	case err == nil:
		return nil
	case d.o.stateDir != "", os.Geteuid() == 0 && !d.o.userproxy:
		return fmt.Errorf("the key for client-held handles: %w", err)
	}
	d.box = seal.New()
	d.log.Warn("the key for client-held handles is in memory only: credentials that programs keep, delegated ones too, are of no use once this daemon has ended; "+
		"to keep it name a directory that only this user can write to, with --state-dir or GSSPROXYD_STATE_DIR", "error", err)
	return nil
}

// renewSeal gives the key for client-held handles a successor when it is old.
func (d *daemon) renewSeal(now time.Time) {
	if now.Sub(d.box.Newest()) <= sealRotation || now.Sub(d.sealTried) < sealRetry {
		return
	}
	if err := d.box.Rotate(); err != nil {
		d.sealTried = now
		d.log.Error("the key for client-held handles is old and could not be replaced; the daemon's user must be able to write to the state directory", "error", err)
	}
}

// writePIDFile notes which process to signal, as the C daemon does: in a new file, whatever has the
// name. Only the C daemon's stays while that runs, beside this one: its unit would take this process
// for its own.
func (d *daemon) writePIDFile() {
	dir, name, err := openat.Parent(d.o.pidFile)
	if err == nil {
		defer dir.Close()
		if comm, e := os.ReadFile("/proc/" + string(bytes.TrimSpace(readPIDFile(dir, name))) + "/comm"); e == nil && string(comm) == "gssproxy\n" {
			err = errors.New("it is the C daemon's, which runs")
		} else {
			err = dir.Write(name, pidLine(), func(f *os.File) error { return f.Chmod(0o644) }, dir.Rename)
		}
	}
	if err != nil {
		d.log.Warn("no pid file", "error", err)
	}
}

// removePIDFile removes it if it is still ours.
func (d *daemon) removePIDFile() {
	dir, name, err := openat.Parent(d.o.pidFile)
	if err != nil {
		return
	}
	defer dir.Close()
	if bytes.Equal(readPIDFile(dir, name), pidLine()) {
		dir.Remove(name) // not with run_as_user, which gives up the right to
	}
}

func readPIDFile(dir *openat.Dir, name string) []byte {
	b, _ := dir.ReadFile(name, 32)
	return b
}

func pidLine() []byte { return []byte(strconv.Itoa(os.Getpid()) + "\n") }

// apply puts a configuration in force.
func (d *daemon) apply(cfg *configuration) error {
	d.warn(cfg.krb5.Warnings)
	c := cfg.conf
	log, err := d.openAudit(c) // first, since keys that come are events
	if err == nil {
		if err = d.configureStores(c); err == nil {
			err = d.procs.Load(c, cfg.krb5)
		}
		if err != nil {
			log.drop(d)
		}
	}
	if err != nil && d.conf != nil {
		d.configureStores(d.conf) // which it has taken before
	}
	if err == nil || c == d.conf { // with another configuration these files are still to be tried with the one in force
		d.krb5Files = cfg.krb5Files
	}
	if err != nil {
		return err
	}
	log.use(d, c)
	d.conf, d.readAt = c, time.Now()
	d.lastReading.read.Store(d.readAt.UnixNano())
	var services []uint32
	for _, s := range c.Services {
		services = append(services, s.EUID)
	}
	d.limits.Reserve(services...)
	level := slog.LevelInfo
	if max(d.o.debugLevelInForce(), c.Debug) > 0 {
		level = slog.LevelDebug
	}
	d.level.Set(level)
	return nil
}

// applyKrb5 puts krb5.conf as it is now in force. One with an error is tried again when it has
// changed.
func (d *daemon) applyKrb5() error {
	cfg := &configuration{conf: d.conf}
	if err := cfg.readKrb5(); err != nil {
		d.krb5Files = cfg.krb5Files
		return err
	}
	return d.apply(cfg)
}

// kernelNFSD reports whether a service is for the kernel's NFS server.
func kernelNFSD(c *conf.Config) bool {
	return slices.ContainsFunc(c.Services, func(s *conf.Service) bool { return s.KernelNFSD })
}

// idleFrom has the daemon end when nobody calls for long enough from now on, if that is a reason to
// end.
func (d *daemon) idleFrom() {
	if d.o.userproxy && d.o.idleTimeout > 0 {
		d.idle = time.NewTimer(d.idleTimeout())
	}
}

func (d *daemon) idleTimeout() time.Duration { return time.Duration(d.o.idleTimeout) * time.Second }

// match notes that the daemon is in use and asks the procedures.
func (d *daemon) match(ctx context.Context, c *rpc.Conn, procedure uint32) (rpc.Service, bool) {
	if d.idle != nil {
		d.idle.Reset(d.idleTimeout())
	}
	return d.procs.Match(ctx, c, procedure)
}

// detach tells a waiting parent that the daemon serves, moves the log to syslog, and lets go of the
// standard error that the parent's caller may be reading to its end.
func (d *daemon) detach(ready *os.File) error {
	var log io.Writer = io.Discard
	w, err := syslog.New(syslog.LOG_AUTHPRIV|syslog.LOG_INFO, "gssproxy")
	if err != nil {
		d.log.Warn("syslog is not reachable: nothing is logged from here on; use -i to see the log", "error", err)
	} else {
		log = syslogLines{w}
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
	var idle <-chan time.Time
	if d.idle != nil {
		defer d.idle.Stop()
		idle = d.idle.C
	}
	for {
		if len(d.listeners) == 0 {
			d.stop()
			return errors.New("no socket is left to serve")
		}
		select {
		case s := <-signals:
			switch {
			case s != syscall.SIGHUP:
				d.log.Info("stopping", "signal", s.String())
				sd.SdNotify(false, sd.SdNotifyStopping)
				d.stop()
				return nil
			case !d.o.userproxy:
				d.reread(nil)
			}
		case r := <-d.reloads.pending:
			d.reloads.end(d, d.reload(ctx, r))
		case l := <-d.lost:
			maps.DeleteFunc(d.listeners, func(_ string, one *net.UnixListener) bool { return one == l })
		case <-d.debugging.ends:
			d.debugFrom(time.Now())
		case f := <-d.asked:
			f()
		case <-housekeeping.C:
			sd.SdNotify(false, sd.SdNotifyWatchdog)
			d.renewSeal(time.Now())
			if l := d.audit.Load(); l != nil {
				d.serving.Go(func() { l.settle(time.Now()) }) // a disk may hang
			}
			if d.krb5Files.changed() {
				d.log.Info("krb5.conf has changed: reading it again")
				err := d.applyKrb5()
				if err != nil {
					d.log.Error("krb5.conf cannot be used: keeping what was in force", "error", err)
				}
				d.configured(ctx, nil, "krb5.conf", err)
			}
		case <-idle:
			d.log.Info(fmt.Sprintf("Terminating, after idling for %d seconds!", d.o.idleTimeout))
			d.stop()
			return nil
		}
	}
}

// housekeepingPeriod is a second or two, and less than half of what the service manager's watchdog
// allows.
func housekeepingPeriod() time.Duration {
	period := 2 * time.Second
	if limit, err := sd.SdWatchdogEnabled(false); err == nil && limit > 0 {
		period = min(period, limit/3)
	}
	return period
}

// stop finishes calls in flight, closes everything and waits for every goroutine.
func (d *daemon) stop() {
	ctx, cancel := context.WithTimeout(context.Background(), shutdownTimeout)
	defer cancel()
	close(d.stopping)
	d.files.close()
	if d.rpc != nil {
		if err := d.rpc.Shutdown(ctx); err != nil {
			d.log.Warn("calls were cut off that were not done in time", "limit", shutdownTimeout)
		}
	}
	if d.admin != nil {
		d.admin.Shutdown(ctx)
	}
	if d.serves {
		d.happened(ctx, audit.Stopped, "")
	}
	for _, l := range d.listeners {
		l.Close()
	}
	if d.exported.stop != nil {
		d.exported.stop()
	}
	d.serving.Wait()
	if d.pods != nil {
		d.pods.Close(ctx)
	}
	if d.nfsd != nil {
		d.nfsd.Close(ctx)
	}
	if d.stores != nil {
		d.stores.Close()
	}
	d.stopNSS()
	if d.starter != nil {
		d.starter.Close()
	}
	d.reading.Wait()
	if d.procs != nil {
		d.procs.Close()
	}
	d.closeAudit(d.audit.Swap(nil))
	if !d.o.userproxy {
		d.removePIDFile()
	}
}
