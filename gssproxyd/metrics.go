package main

import (
	"context"
	"net"
	"os"
	"sync/atomic"
	"time"

	"github.com/spf13/cobra"

	"gssproxyd/conf"
	"gssproxyd/gssproxyd/metrics"
	"gssproxyd/gssproxyd/scrape"
	"gssproxyd/gssproxyd/starter"
	"gssproxyd/phase"
	"gssproxyd/rpc"
)

// metricsMode are the permissions of the unix socket for the metrics: whoever connects is answered.
const metricsMode os.FileMode = 0o660

// exporter is what the daemon has for its metrics.
type exporter struct {
	counted atomic.Pointer[metrics.Metrics] // nil while nobody wants them
	phases  phase.Clock

	address string // that is served, empty if none is
	stop    func() // ends serving it, and waits for that; nil if none is
}

// lastReading is what has become of reading the configuration.
type lastReading struct {
	read   atomic.Int64 // when the one in force was, in Unix nanoseconds
	failed atomic.Bool  // the last one, and the former stays
}

func (r *lastReading) last() (read time.Time, good bool) {
	return time.Unix(0, r.read.Load()), !r.failed.Load()
}

// listenMetrics opens the socket for the metrics, nil if there is to be none. That it cannot be opened
// is no reason not to serve.
func (d *daemon) listenMetrics(c *conf.Config) *os.File {
	if c.Metrics == "" {
		return nil
	}
	f, err := openMetrics(c, d.starter)
	if err != nil {
		d.log.Error("there are no metrics: their socket cannot be opened; a reload tries again", "metrics", c.Metrics, "error", err)
		return nil
	}
	return f
}

func openMetrics(c *conf.Config, root *starter.Client) (*os.File, error) {
	var l interface {
		net.Listener
		File() (*os.File, error)
	}
	var err error
	switch path := c.MetricsSocket(); {
	case path == "":
		var tcp net.Listener
		if tcp, err = net.Listen("tcp", c.Metrics); err == nil {
			l = tcp.(*net.TCPListener)
		}
	case root != nil:
		l, err = root.Listen(path)
	default:
		l, err = rpc.Listen(path, metricsMode)
	}
	if err != nil {
		return nil, err
	}
	defer l.Close() // the file has a descriptor of its own
	return l.File()
}

// exportMetrics serves the metrics on a socket that was opened for that, or counts nothing from now on
// if there is none.
func (d *daemon) exportMetrics(ctx context.Context, c *conf.Config, listener *os.File) {
	x := &d.exported
	if listener == nil {
		x.phases.Tell(nil)
		x.counted.Store(nil)
		return
	}
	m := x.counted.Load()
	if m == nil {
		m = metrics.New(metrics.Sources{
			Version: version, Limits: d.limits, Keytabs: d.procs.Keytabs, ReplayBytes: d.procs.ReplayBytes, Configuration: d.lastReading.last, AuditLost: d.auditLost, Stores: d.storeStates,
		})
		m.Services(serviceNames(c))
		x.counted.Store(m)
		x.phases.Tell(m.Phase)
	}
	start := scrape.StartChild
	if d.starter != nil {
		start = d.starter.Scrape
	}
	ctx, cancel := context.WithCancel(ctx)
	ended := make(chan struct{})
	x.address, x.stop = c.Metrics, func() { cancel(); <-ended }
	d.serving.Go(func() {
		defer close(ended)
		defer listener.Close()
		scrape.Serve(ctx, scrape.Options{Listener: listener, Start: start, Text: m.Text, Log: d.log})
	})
	d.log.Info("serving metrics", "at", c.Metrics, "path", scrape.Path)
}

// reloadMetrics serves the metrics where a configuration says. What is served there goes on.
func (d *daemon) reloadMetrics(ctx context.Context, c *conf.Config) {
	if m := d.exported.counted.Load(); m != nil {
		m.Services(serviceNames(c))
	}
	x := &d.exported
	if c.Metrics == x.address {
		return
	}
	if x.stop != nil { // first: the new address may be a part of the former one
		x.stop()
		x.address, x.stop = "", nil
	}
	d.exportMetrics(ctx, c, d.listenMetrics(c))
}

// skewed counts how far an initiator's clock is ahead of ours.
func (d *daemon) skewed(by time.Duration) {
	if m := d.exported.counted.Load(); m != nil {
		m.Skew(by)
	}
}

// scrapeCommand is what the daemon starts itself as to serve the metrics.
func scrapeCommand() *cobra.Command {
	return &cobra.Command{
		Use:    scrape.HelperArg,
		Hidden: true,
		Args:   cobra.NoArgs,
		RunE:   func(*cobra.Command, []string) error { return scrape.Help(os.Stdin, os.Stdout) },
	}
}
