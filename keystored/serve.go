package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"runtime/debug"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	sd "github.com/coreos/go-systemd/v22/daemon"
	"github.com/spf13/cobra"

	"gssproxyd/audit"
	"gssproxyd/gssproxyd/logs"
	"gssproxyd/keystore"
	"gssproxyd/keystore/api"
	"gssproxyd/keystore/etcd"
	"gssproxyd/mech"
	"gssproxyd/rpc"
)

// serveCommand is keystored serve.
func serveCommand(o *options) *cobra.Command {
	var format string
	cmd := &cobra.Command{
		Use: "serve", Short: "Serve hosts and administrators, until a signal ends it", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return o.serve(cmd.Context(), cmd.ErrOrStderr(), format)
		},
	}
	cmd.Flags().StringVar(&format, "log-format", "", "`format` of the log: text, json or journal (default journal if that is where standard error leads, else text)")
	cmd.RegisterFlagCompletionFunc("log-format", cobra.FixedCompletions([]string{"text", "json", "journal"}, cobra.ShellCompDirectiveNoFileComp))
	return cmd
}

// instance is the running program.
type instance struct {
	o      *options
	log    *slog.Logger
	conf   *config
	audit  atomic.Pointer[audit.Log] // nil: there is none
	server *api.Server
}

// serve runs an instance until a signal ends it.
func (o *options) serve(ctx context.Context, stderr io.Writer, format string) error {
	// A crash ends with SIGABRT, and not with the exit status of a configuration with errors.
	debug.SetTraceback("crash")
	// Most of the memory is what a connection takes, of thousands that wait: garbage beside it is to be less.
	debug.SetGCPercent(50)
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, syscall.SIGHUP, syscall.SIGINT, syscall.SIGTERM)
	defer signal.Stop(signals)

	handler, err := logs.New(cmp.Or(format, logs.OfStderr()), stderr, slog.LevelInfo)
	if err != nil {
		return err
	}
	in := &instance{o: o, log: slog.New(handler)}
	if in.conf, err = load(o.config); err != nil {
		return err
	}
	if len(in.conf.signers) == 0 {
		return errors.New("there is no signer in " + o.config + ": keystored init makes a store and prints the line")
	}
	in.warn()
	if in.conf.audit != "" {
		l, err := in.conf.openAudit(in.log)
		if err != nil {
			return err
		}
		in.audit.Store(l)
		defer l.Close()
	}
	return in.run(ctx, signals)
}

func (in *instance) warn() {
	for _, w := range in.conf.warnings {
		in.log.Warn(w)
	}
}

// record writes an event to the audit log, if there is one.
func (in *instance) record(ctx context.Context, e *audit.Event) {
	if e.Time.IsZero() {
		e.Time = time.Now()
	}
	if l := in.audit.Load(); l != nil {
		l.Record(ctx, e) // what cannot be written is counted, and logged there
	}
}

// run opens the store and serves.
func (in *instance) run(ctx context.Context, signals <-chan os.Signal) (err error) {
	ctx, cancel := context.WithCancel(ctx)
	var serving sync.WaitGroup
	defer serving.Wait()
	defer cancel()
	c := in.conf
	b, err := c.openBackend(ctx)
	if err != nil {
		return err
	}
	defer b.Close()
	so, err := c.storeOptions(in.record, in.log)
	if err != nil {
		return err
	}
	if c.auditFailure == auditRefuse {
		so.Intend = func(ctx context.Context, e *audit.Event) error { return in.audit.Load().Record(ctx, e) }
	}
	store, err := keystore.Open(ctx, b, so)
	if err != nil {
		return err
	}
	defer func() {
		cancel()
		serving.Wait() // whatever asks the store
		if e := store.Close(); err == nil {
			err = e
		}
	}()

	if e, ok := b.(*etcd.Backend); ok {
		serving.Go(func() { in.followRoom(ctx, e) })
	}
	var certificates *api.Certificates
	var hosts net.Listener
	if c.listen != "" {
		if certificates, err = api.OpenCertificates(c.tls, in.log); err != nil {
			return err
		}
		if hosts, err = net.Listen("tcp", c.listen); err != nil {
			return fmt.Errorf("listen = %s: %w", c.listen, err)
		}
		defer hosts.Close()
		serving.Go(func() { certificates.Follow(ctx) })
	}
	if c.socket == defaultSocket {
		os.Mkdir(filepath.Dir(c.socket), 0o755) // what is in the way is found by Listen
	}
	path := cmp.Or(in.o.socket, c.socket)
	socket, err := rpc.Listen(path, socketMode(c))
	if err != nil {
		return err
	}
	defer socket.Close()

	o := api.Options{Store: store, Certificates: certificates, Audit: in.record, Log: in.log}
	failed := make(chan error, 3)
	if len(c.realms) > 0 {
		engine, err := in.engine(store)
		if err != nil {
			return err
		}
		o.Rotate = func(ctx context.Context, principal, by string, force bool) error {
			err := engine.Rotate(ctx, principal, by, force)
			if m, ok := errors.AsType[*mech.Error](err); ok && m.Reason != "" {
				return &keystore.Refusal{Reason: m.Reason, Text: m.Text}
			}
			return err
		}
		serving.Go(func() {
			if err := engine.Run(ctx); ctx.Err() == nil {
				failed <- err
			}
		})
	}
	in.server = api.New(o, c.admins)
	synced := make(chan struct{})
	serving.Go(func() { in.server.Follow(ctx, func() { close(synced) }) })
	for waiting := true; waiting; {
		select {
		case <-synced:
			waiting = false
		case s := <-signals:
			if s != syscall.SIGHUP {
				return nil
			}
		}
	}
	serving.Go(func() { failed <- in.server.ServeSocket(ctx, socket) })
	if hosts != nil {
		serving.Go(func() { failed <- in.server.ServeTLS(ctx, hosts) })
		in.log.Info("serving", "listen", hosts.Addr().String(), "socket", path)
	} else {
		in.log.Info("serving", "socket", path)
	}
	sd.SdNotify(false, sd.SdNotifyReady+"\nSTATUS=Serving")
	in.record(ctx, &audit.Event{Kind: audit.Started, Text: "keystored, version " + version})
	defer func() { in.record(context.WithoutCancel(ctx), &audit.Event{Kind: audit.Stopped}) }()
	return in.wait(signals, failed)
}

// lookForRoom is how often etcd is asked for the room that it has.
const lookForRoom = 10 * time.Minute

// followRoom warns, until ctx ends, when etcd has no room left, or soon will have none: at the first look
// and when something else is wrong than before.
func (in *instance) followRoom(ctx context.Context, b *etcd.Backend) {
	tick := time.NewTicker(lookForRoom)
	defer tick.Stop()
	var before []string
	for {
		wrong := b.Room(ctx)
		for _, w := range wrong {
			if !slices.Contains(before, w) {
				in.log.Warn(w)
			}
		}
		before = wrong
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// socketMode is who may connect: where the configuration has uids, everybody, since who may do what is
// decided by who the kernel says the caller is.
func socketMode(c *config) os.FileMode {
	if slices.ContainsFunc(c.admins, func(a api.Admin) bool { return a.UID != nil }) {
		return rpc.ForEverybody
	}
	return 0o600
}

// wait serves until a signal ends it.
func (in *instance) wait(signals <-chan os.Signal, failed <-chan error) error {
	period := 5 * time.Second
	if limit, err := sd.SdWatchdogEnabled(false); err == nil && limit > 0 {
		period = min(period, limit/3)
	}
	tick := time.NewTicker(period)
	defer tick.Stop()
	for {
		select {
		case s := <-signals:
			if s != syscall.SIGHUP {
				in.log.Info("stopping", "signal", s.String())
				sd.SdNotify(false, sd.SdNotifyStopping)
				return nil
			}
			in.reload()
		case err := <-failed:
			return err
		case <-tick.C:
			sd.SdNotify(false, sd.SdNotifyWatchdog)
		}
	}
}

// reload reads the configuration again, for administrators, and goes on in a new file of the audit log
// if the former one was renamed.
func (in *instance) reload() {
	if l := in.audit.Load(); l != nil {
		if err := l.Reopen(); err != nil {
			in.log.Error("the audit log is not opened again", "error", err)
		}
	}
	c, err := load(in.o.config)
	if err != nil {
		in.log.Error("the configuration is not read again: what was read before stays in force", "error", err)
		in.record(context.Background(), &audit.Event{Kind: audit.ConfigurationBad, Source: in.o.config, Text: err.Error()})
		return
	}
	if socketMode(c) != socketMode(in.conf) {
		in.log.Warn("who may connect to the socket changes with a restart")
	}
	in.server.SetAdmins(c.admins)
	in.log.Info("the configuration was read again: administrators are in force, all else takes a restart")
	in.record(context.Background(), &audit.Event{Kind: audit.ConfigurationRead, Source: in.o.config, Text: "reload"})
}
