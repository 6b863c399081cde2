package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"gssproxyd/command"
	"gssproxyd/xdr"
)

// For how long a service's level is set, and for how long at most: it is forgotten easily.
const (
	usualDebug = 5 * time.Minute
	maxDebug   = 24 * time.Hour
)

// debugArgs reads a service and its level, as they are written.
func debugArgs(service, level string, long time.Duration) (xdr.AdminArgDebug, error) {
	n, err := strconv.ParseUint(level, 10, 31)
	if err != nil && level != "off" {
		return xdr.AdminArgDebug{}, fmt.Errorf("debug: level %q: off, 1 (calls) or 2 (arguments and results too, never secrets) is expected", level)
	}
	return xdr.AdminArgDebug{Service: strings.TrimPrefix(service, "service/"), Level: int32(n), Seconds: uint32((long + time.Second - 1) / time.Second)}, nil
}

// debugCommand is gssproxyd debug: log calls of one service, for some time, or say what is set.
func debugCommand(o *options) *cobra.Command {
	var set xdr.AdminArgDebug
	var long time.Duration
	cmd := &cobra.Command{
		Use:   "debug [SERVICE {LEVEL | off}]",
		Short: "Have the running daemon log the calls of one service for some time, or say what is set",
		Args: func(_ *cobra.Command, args []string) error {
			switch len(args) {
			case 0:
				return nil
			case 2:
			default:
				return errors.New("debug: a service and a level are expected, such as debug http 1, or nothing to see what is set")
			}
			if long <= 0 || long > maxDebug {
				return fmt.Errorf("debug: --for %v: at least a second and at most %v are expected", long, maxDebug)
			}
			var err error
			set, err = debugArgs(args[0], args[1], long)
			return err
		},
		ValidArgsFunction: func(cmd *cobra.Command, args []string, word string) ([]string, cobra.ShellCompDirective) {
			if len(args) == 1 {
				return []string{"off", "1\tcalls", "2\targuments and results too"}, cobra.ShellCompDirectiveNoFileComp
			}
			return completeService(o)(cmd, args, word)
		},
	}
	cmd.Flags().DurationVar(&long, "for", usualDebug, "for this `duration`, such as 1h30m")
	return command.Answers(cmd, func(ctx context.Context, res *xdr.AdminResDebug) error {
		return o.ask(ctx, xdr.AdminProcDebug, &set, res, &res.Error)
	}, func(w io.Writer, res *xdr.AdminResDebug) error {
		fmt.Fprintf(w, "all services: debug level %d\n", res.Level)
		for _, s := range res.Services {
			fmt.Fprintf(w, "service/%s: debug level %d until %s\n", s.Service, s.Level, s.Until)
		}
		return nil
	})
}

// debugging is how much is logged of single services; it is the main loop's.
type debugging struct {
	services map[string]setting // by name
	ends     <-chan time.Time   // when the first of them ends
	timer    *time.Timer
}

// setting is how much is logged of a service, and how long.
type setting struct {
	level int
	until time.Time
}

// adminDebug is procedure DEBUG.
func (d *daemon) adminDebug(ctx context.Context, args *xdr.AdminArgDebug, res *xdr.AdminResDebug) error {
	var failed error
	err := d.inLoop(ctx, func() { failed = d.debugService(args, res) })
	return errors.Join(err, failed)
}

// debugService sets what was asked for, and says what is set.
func (d *daemon) debugService(args *xdr.AdminArgDebug, res *xdr.AdminResDebug) error {
	now := time.Now()
	if name := args.Service; name != "" {
		if names := serviceNames(d.conf); !slices.Contains(names, name) {
			return noService(name, names)
		}
		long := min(time.Duration(args.Seconds)*time.Second, maxDebug)
		if d.debugging.services == nil {
			d.debugging.services = make(map[string]setting)
		}
		d.debugging.services[name] = setting{int(args.Level), now.Add(long)}
		if args.Level <= 0 {
			delete(d.debugging.services, name)
			d.log.Info("debug level of a service: it is off", "service", name)
		} else {
			d.log.Info("debug level of a service", "service", name, "level", args.Level, "for", long)
		}
		d.debugFrom(now)
	}
	res.Level = int32(max(d.o.debugLevelInForce(), d.conf.Debug))
	for _, name := range slices.Sorted(maps.Keys(d.debugging.services)) {
		s := d.debugging.services[name]
		res.Services = append(res.Services, xdr.AdminDebug{Service: name, Level: int32(s.level), Until: s.until.UTC().Format(time.RFC3339)})
	}
	return nil
}

// debugFrom puts in force what is set from now on, and looks again when something of it ends.
func (d *daemon) debugFrom(now time.Time) {
	b := &d.debugging
	if b.timer != nil {
		b.timer.Stop()
		b.timer, b.ends = nil, nil
	}
	levels := make(map[string]int, len(b.services))
	var first time.Time
	for name, s := range b.services {
		if !s.until.After(now) {
			d.log.Info("debug level of a service: its time is over", "service", name)
			delete(b.services, name)
			continue
		}
		levels[name] = s.level
		if first.IsZero() || s.until.Before(first) {
			first = s.until
		}
	}
	d.procs.Debug(levels)
	if !first.IsZero() {
		b.timer = time.NewTimer(first.Sub(now))
		b.ends = b.timer.C
	}
}
