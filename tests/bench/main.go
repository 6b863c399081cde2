// Bench compares gssproxyd with the Debian gssproxy, side by side in one run: the same keytab and
// configuration, the same tokens (each daemon has its own replay cache), a closed loop with one
// call outstanding a connection.
//
// The figure that counts is the CPU time a daemon's threads spend on an accept
// (/proc/PID/task/*/schedstat): it is its own, while throughput and latency share the machine's
// cores with the client that measures. Runs of the two daemons alternate, each run has a new daemon
// with an empty replay cache, and the table has medians over the rounds. With 3 rounds, differences
// below a quarter mean nothing.
//
// A second table has what accepting costs a program: one in C with libgssapi and the keytab, and Go
// programs with our daemon, each a process of its own.
//
// With -rate the loop is not closed: so many calls come in a second. A daemon that has little to do sleeps between
// them, and what it costs to wake up is in the figures.
//
// Below the tables are the goals, each met or missed; with one missed the exit status is 1. With
// -out the figures of 1 and 16 connections are written to a page with a picture as well:
// docs/performance.md is one.
//
// With -former the other daemon is a former build of ours, to see what a change costs; or it is the same
// build, to see with -with what an option costs. Both run at
// the same time and have their calls in blocks by turns, a few milliseconds each, so that what else
// the machine does falls on both: the table has the CPU time of each case, and the median over the
// rounds of the ratio of the two.
package main

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	"gssproxyd/mech"
	"gssproxyd/tests/lab"
	"gssproxyd/xdr"
)

func main() {
	if len(os.Args) == 4 && os.Args[1] == childArg {
		if err := serveProgram(os.Args[2], os.Args[3]); err != nil {
			fmt.Fprintf(os.Stderr, "bench: the measured program: %v\n", err)
			os.Exit(1)
		}
		return
	}
	rounds := flag.Int("rounds", 3, "runs of each case and daemon")
	n := flag.Int("n", 20000, "accepts of a run")
	rate := flag.Int("rate", 0, "calls a second, over all connections; 0: each connection has one outstanding")
	conns := flag.String("conns", "1,16,64", "connections")
	rcaches := flag.String("rcache", "none,disk,tmpfs", "replay caches")
	binary := flag.String("gssproxyd", "bin/gssproxyd", "our daemon")
	cases := flag.String("cases", "", "only these cases, such as accept,init")
	former := flag.String("former", "", "compare with this build of our daemon, and not with the C daemon")
	with := flag.String("with", "", "with -former: lines of [gssproxy] for the present build, separated by semicolons; DIR is a directory of the run's")
	out := flag.String("out", "", "directory to write performance.md and performance.svg to, not with -former")
	enctype := flag.Int("enctype", 18, "session key's enctype")
	keys := flag.Int("keys", 1, "services in the keytab; the one measured is next to last")
	flag.Parse()
	path, err := filepath.Abs(*binary)
	if err == nil {
		_, err = os.Stat(path)
	}
	if err == nil {
		b := &bench{rounds: *rounds, n: *n, enctype: *enctype, keys: *keys, binary: path, former: *former, with: *with, out: *out, rcaches: strings.Split(*rcaches, ",")}
		if *rate > 0 {
			b.every = time.Second / time.Duration(*rate)
		}
		if *cases != "" {
			b.cases = strings.Split(*cases, ",")
		}
		for c := range strings.SplitSeq(*conns, ",") {
			k, err := strconv.Atoi(c)
			if err != nil || k < 1 {
				fmt.Fprintf(os.Stderr, "bench: -conns %s: a list of numbers, such as 1,16,64\n", *conns)
				os.Exit(2)
			}
			b.conns = append(b.conns, k)
		}
		err = b.run()
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "bench: %v\n", err)
		os.Exit(1)
	}
}

type bench struct {
	rounds, n, enctype, keys int
	conns                    []int
	rcaches, cases           []string // all cases if there are none
	binary, former, with     string
	out                      string
	every                    time.Duration // from one call to the next; 0: as soon as there is an answer

	realm        *lab.Realm
	keytab       string
	clientKeytab string
	hanging      *lab.Relay // to a KDC that does not answer
	tools        []*lab.Tool
	results      map[string][]result // by key
	costs        map[row][]cost      // of programs
}

// warm calls come before the measured ones: threads are up, files are open, caches are filled.
const warm = 500

func key(kind, op, rcache string, conns int) string {
	return fmt.Sprint(op, "/", rcache, "/", conns, "/", kind)
}

func (b *bench) run() error {
	var err error
	if b.realm, err = lab.Up(context.Background()); err != nil {
		return err
	}
	defer b.realm.Close()
	defer func() {
		if b.hanging != nil {
			b.hanging.Close()
		}
	}()
	if err := b.prepare(); err != nil {
		return err
	}
	b.results, b.costs = make(map[string][]result), make(map[row][]cost)
	for round := range b.rounds {
		for _, conns := range b.conns {
			var records [][]byte
			if b.runs(accept) || b.runs(kdcHangs) {
				var err error
				if records, err = b.accepts(); err != nil {
					return err
				}
			}
			for _, rcache := range b.rcaches {
				if err := b.both(round, accept, rcache, conns, same(records), checkAccept); err != nil {
					return err
				}
			}
			if err := b.both(round, kdcHangs, "none", conns, same(records), checkAccept); err != nil {
				return err
			}
			for _, op := range initiating {
				if err := b.both(round, op, "none", conns, b.initiate(op), checkOf[op]); err != nil {
					return err
				}
			}
			empty := repeat(b.n+warm, xdr.ProcGetCallContext, &xdr.ArgGetCallContext{})
			if err := b.both(round, emptyCall, "none", conns, same(empty), checkAny); err != nil {
				return err
			}
		}
		// Every call asks the KDC twice. Calls that wait at the same time would share an exchange
		// with us: one waits.
		if err := b.both(round, freshTickets, "none", 1, b.initiate(freshTickets), checkInit); err != nil {
			return err
		}
		if b.former == "" {
			if err := b.runPrograms(round); err != nil {
				return err
			}
		}
	}
	if b.former == "" {
		if err := b.runPlugins(); err != nil {
			return err
		}
	}
	b.step("")
	if b.former != "" {
		b.compare()
		return nil
	}
	b.print()
	if b.out != "" {
		if err := b.report(b.out); err != nil {
			return err
		}
	}
	return b.judge()
}

// prepare makes the service, its keytab, and two initiators with tickets for it.
func (b *bench) prepare() error {
	name := "bench/" + lab.Host
	names := []string{}
	for i := range b.keys {
		s := fmt.Sprintf("other%d/%s", i, lab.Host)
		if i == max(b.keys-2, 0) {
			s = name
		}
		if err := b.realm.RandKey(s, lab.EnctypeName(b.enctype)); err != nil {
			return err
		}
		names = append(names, s)
	}
	var err error
	if b.keytab, err = b.realm.Keytab("keytab", names...); err != nil {
		return err
	}
	if err = b.realm.RandKey("client"); err != nil {
		return err
	}
	if b.clientKeytab, err = b.realm.Keytab("client-keytab", "client"); err != nil {
		return err
	}
	if b.hanging, err = b.realm.Relay(); err != nil {
		return err
	}
	b.hanging.Set(lab.Hold(time.Hour))
	for range 2 {
		env, err := b.realm.Kinit("alice", "alice")
		if err != nil {
			return err
		}
		g, err := b.realm.Tool(lab.Nobody, env...)
		if err != nil {
			return err
		}
		b.tools = append(b.tools, g)
		if err := g.Enctypes(b.enctype); err != nil {
			return err
		}
	}
	return nil
}

// accepts are ACCEPT_SEC_CONTEXT calls with fresh tokens.
func (b *bench) accepts() ([][]byte, error) {
	records, err := b.tokens()
	for i, token := range records {
		records[i] = lab.Record(uint32(i), xdr.ProcAcceptSecContext, lab.AcceptArg(token, nil))
	}
	return records, err
}

// tokens are fresh ones, mutual authentication asked for.
func (b *bench) tokens() ([][]byte, error) {
	b.step("tokens")
	total := b.n + warm
	all := make([][]byte, total)
	errs := make(chan error, len(b.tools))
	for i, g := range b.tools {
		go func() {
			from, to := total*i/len(b.tools), total*(i+1)/len(b.tools)
			tokens, err := g.Tokens(to-from, "bench@"+lab.Host, lab.Usual|lab.Mutual, nil)
			copy(all[from:to], tokens)
			errs <- err
		}()
	}
	var err error
	for range b.tools {
		err = errors.Join(err, <-errs)
	}
	return all, err
}

// The cases of the acceptor: with nothing else to do, and while callers wait for a KDC that does
// not answer. The C daemon, whose workers they take, is not measured then.
const (
	accept   = "accept"
	kdcHangs = "KDC hangs"
)

// emptyCall is the case of a call that does nothing: what is around the others.
const emptyCall = "empty call"

// The cases of the initiator: a context with the ticket in a file's cache, the same with the
// credential's handle, and asking for that credential again with the handle; and a context for
// which nothing is there yet.
const (
	initCached   = "init"
	initHandle   = "init handle"
	acquireGood  = "acquire"
	freshTickets = "init fresh"
)

var initiating = []string{initCached, initHandle, acquireGood}

var checkOf = map[string]func([]byte) error{initCached: checkInit, initHandle: checkInit, acquireGood: checkAcquire}

var target = xdr.Name{DisplayName: []byte("bench@" + lab.Host), NameType: []byte(mech.NTHostbased)}

// same are records that do not depend on the daemon.
func same(records [][]byte) func(*lab.Daemon) ([][]byte, error) {
	return func(*lab.Daemon) ([][]byte, error) { return records, nil }
}

func repeat(n int, proc xdr.Proc, arg xdr.Message) [][]byte {
	records := make([][]byte, n)
	for i := range records {
		records[i] = lab.Record(uint32(i), proc, arg)
	}
	return records
}

// initiate makes the calls of a case of the initiator, with a handle that the daemon has given
// where it takes one.
func (b *bench) initiate(op string) func(*lab.Daemon) ([][]byte, error) {
	return func(d *lab.Daemon) ([][]byte, error) {
		acquire := &xdr.ArgAcquireCred{CredUsage: xdr.CredInitiate, DesiredMechs: [][]byte{[]byte(mech.KRB5)}}
		init := &xdr.ArgInitSecContext{
			TargetName: xdr.Some(target), MechType: []byte(mech.KRB5), ReqFlags: lab.Usual | lab.Mutual,
		}
		n := b.n/4 + warm
		switch op {
		case freshTickets:
			return repeat(b.n/40+warm, xdr.ProcInitSecContext, init), nil
		case initCached:
			return repeat(n, xdr.ProcInitSecContext, init), nil
		}
		w, err := d.Wire()
		if err != nil {
			return nil, err
		}
		defer w.Close()
		var res xdr.ResAcquireCred
		if err := w.Call(xdr.ProcAcquireCred, acquire, &res); err != nil {
			return nil, err
		}
		if res.Status.MajorStatus != 0 {
			return nil, fmt.Errorf("no credential: %s %s", res.Status.MajorStatusString, res.Status.MinorStatusString)
		}
		if op == acquireGood {
			acquire.InputCredHandle = res.OutputCredHandle
			return repeat(n, xdr.ProcAcquireCred, acquire), nil
		}
		init.CredHandle = res.OutputCredHandle
		return repeat(n, xdr.ProcInitSecContext, init), nil
	}
}

// config is a daemon's configuration for a case; empty is the usual acceptor's.
func (b *bench) config(op, dir string) string {
	store := "  cred_store = client_keytab:" + b.clientKeytab + "\n"
	switch op {
	case kdcHangs:
		return lab.DefaultConfig(b.keytab) + "\n[service/waiting]\n  mechs = krb5\n  euid = 0\n  socket = " + dir + "/waiting\n" + store
	case initCached, initHandle, acquireGood:
		store += "  cred_store = ccache:FILE:" + dir + "/cc\n"
	case freshTickets:
		// Nothing lives long enough to be used twice.
		store += "  min_lifetime = 1000000\n"
	default:
		return ""
	}
	return "[gssproxy]\n[service/init]\n  mechs = krb5\n  euid = 0\n  cred_usage = initiate\n" + store
}

// runs reports whether a case is to be run.
func (b *bench) runs(op string) bool { return len(b.cases) == 0 || slices.Contains(b.cases, op) }

// both runs one case on both daemons, the one first that was not last time: one after the other, or
// for a comparison with a former build by turns.
func (b *bench) both(round int, op, rcache string, conns int, records func(*lab.Daemon) ([][]byte, error), check func([]byte) error) error {
	if !b.runs(op) {
		return nil
	}
	kinds := slices.Clone(lab.Kinds)
	switch {
	case b.former != "":
		kinds = []string{former, "ours"}
	case op == kdcHangs:
		kinds = []string{"ours"}
	}
	if round%2 == 1 {
		slices.Reverse(kinds)
	}
	atOnce := 1
	if b.former != "" {
		atOnce = 2
	}
	for group := range slices.Chunk(kinds, atOnce) {
		who := strings.Join(group, " and ")
		b.step(fmt.Sprintf("round %d of %d: %s, %d connections, rcache %s, %s", round+1, b.rounds, op, conns, rcache, who))
		if err := b.measure(group, op, rcache, conns, records, check); err != nil {
			return fmt.Errorf("%s daemon, %s, %d connections, rcache %s: %w", who, op, conns, rcache, err)
		}
	}
	return nil
}

// measure runs one case on daemons of some kinds, by turns.
func (b *bench) measure(kinds []string, op, rcache string, conns int, records func(*lab.Daemon) ([][]byte, error), check func([]byte) error) error {
	var runs []*run
	for _, kind := range kinds {
		r := &run{check: check, every: b.every}
		defer r.end()
		if err := b.begin(r, kind, op, rcache, conns, records); err != nil {
			return err
		}
		runs = append(runs, r)
	}
	results, err := load(runs)
	for i, kind := range kinds[:len(results)] {
		k := key(kind, op, rcache, conns)
		b.results[k] = append(b.results[k], results[i])
	}
	return err
}

// rcacheName makes a new replay cache for a run: what KRB5RCACHENAME is to be.
func rcacheName(r *run, rcache string) (string, error) {
	parent := ""
	switch rcache {
	case "none":
		return "none:", nil
	case "disk":
	case "tmpfs":
		parent = "/dev/shm"
	default:
		return "", fmt.Errorf("no replay cache %q: none, disk or tmpfs", rcache)
	}
	dir, err := os.MkdirTemp(parent, "gssbench-")
	if err != nil {
		return "", err
	}
	r.atEnd(func() { os.RemoveAll(dir) })
	return "file2:" + filepath.Join(dir, "rcache2"), nil
}

// start starts a daemon for a case; it ends with the run.
func (b *bench) start(r *run, kind, op, rcache string) error {
	dir, err := os.MkdirTemp("", "gssbench-")
	if err != nil {
		return err
	}
	r.atEnd(func() { os.RemoveAll(dir) })
	o := lab.Options{Config: b.config(op, dir), Keytab: b.keytab, Quiet: true, Binary: b.binary}
	if o.RCache, err = rcacheName(r, rcache); err != nil {
		return err
	}
	if op == kdcHangs {
		o.Krb5Conf = b.hanging.Conf
	}
	switch {
	case kind == former:
		kind, o.Binary = "ours", b.former
	case b.with != "":
		lines := strings.NewReplacer("DIR", dir, ";", "\n").Replace(b.with)
		o.Config = "[gssproxy]\n" + lines + "\n" + cmp.Or(o.Config, lab.DefaultConfig(o.Keytab))
	}
	d, err := b.realm.Daemon(kind, o)
	if err != nil {
		return err
	}
	r.daemon, r.dir = d, dir
	r.atEnd(func() { d.Stop(); os.RemoveAll(d.Options.Dir) })
	return nil
}

// begin starts a daemon for a case and makes its calls.
func (b *bench) begin(r *run, kind, op, rcache string, conns int, records func(*lab.Daemon) ([][]byte, error)) error {
	if err := b.start(r, kind, op, rcache); err != nil {
		return err
	}
	d := r.daemon
	if op == kdcHangs {
		for range 16 {
			w, err := d.WireAs(lab.Root, r.dir+"/waiting")
			if err != nil {
				return err
			}
			r.atEnd(func() { w.Close() })
			init := &xdr.ArgInitSecContext{TargetName: xdr.Some(target), MechType: []byte(mech.KRB5)}
			if _, err := w.Write(lab.Record(1, xdr.ProcInitSecContext, init)); err != nil {
				return err
			}
		}
	}
	calls, err := records(d)
	if err != nil {
		return err
	}
	r.warm, r.calls = calls[:warm], calls[warm:]
	for range conns {
		w, err := d.Wire()
		if err != nil {
			return err
		}
		r.atEnd(func() { w.Close() })
		r.wires = append(r.wires, w)
	}
	return nil
}

// step says what is going on: on a terminal in one line that is written over, elsewhere not in so
// much detail.
func (b *bench) step(what string) {
	if info, err := os.Stderr.Stat(); err == nil && info.Mode()&os.ModeCharDevice != 0 {
		fmt.Fprintf(os.Stderr, "\r\x1b[K%s", what)
	}
}

func (b *bench) print() {
	fmt.Printf("%d accepts a run, medians of %d runs, enctype %d, mutual, %d keys in the keytab; %d CPUs, %s\n",
		b.n, b.rounds, b.enctype, b.keys, runtime.NumCPU(), time.Now().Format(time.DateOnly))
	fmt.Printf("%-11s %-6s %5s | %31s | %31s | %9s\n", "", "", "", "C daemon", "gssproxyd", "C / ours")
	fmt.Printf("%-11s %-6s %5s | %6s %6s %5s %6s %5s | %6s %6s %5s %6s %5s | %4s %4s\n",
		"", "rcache", "conns", "ops/s", "CPU µs", "p50", "p99", "p99.9", "ops/s", "CPU µs", "p50", "p99", "p99.9", "CPU", "ops")
	fmt.Printf("%-11s %-6s %5s | %6s %6s %5s %6s %5s | %6s %6s %5s %6s %5s |\n", "", "", "", "", "", "µs", "µs", "ms", "", "", "µs", "µs", "ms")
	for _, r := range b.rows() {
		c, ours := b.of("C", r), b.of("ours", r)
		if r.op == kdcHangs {
			fmt.Printf("%-11s %-6s %5d | %31s | %s |\n", r.op, r.rcache, r.conns, "", ours)
			continue
		}
		fmt.Printf("%-11s %-6s %5d | %s | %s | %4.1f %4.1f\n", r.op, r.rcache, r.conns, c, ours, c.cpu/ours.cpu, ours.rate/c.rate)
	}
	c, ours := b.peak("C"), b.peak("ours")
	fmt.Printf("resident memory, the most of any run: C %.1f MiB, gssproxyd %.1f MiB\n", c, ours)
	fmt.Printf("%-21s %-6s %7s | %10s %9s | %7s %6s\n", "program", "rcache", "at once", "program µs", "daemon µs", "time µs", "allocs")
	for _, p := range measured() {
		if len(b.costs[p]) > 0 {
			c := b.costOf(p)
			fmt.Printf("%-21s %-6s %7d | %10.1f %9.1f | %7.1f %6.1f\n", p.op, p.rcache, p.conns, c.program, c.daemon, c.time, c.allocs)
		}
	}
}

// goals are what a call may cost in parts of what it costs the C daemon: in CPU time, or in the
// time that its caller waits where the KDC's part is most of it.
var goals = []struct {
	op    string
	conns int
	most  float64
	unit  string
	cost  func(result) float64
}{
	{accept, 16, 1. / 6, "CPU", cpuTime}, {initCached, 16, 1. / 4, "CPU", cpuTime}, {acquireGood, 16, 1. / 4, "CPU", cpuTime},
	{freshTickets, 1, 1, "p50", func(r result) float64 { return r.p50 }},
}

func cpuTime(r result) float64 { return r.cpu }

// judge prints what became of the goals there are figures for, and returns an error if any is
// missed.
func (b *bench) judge() error {
	missed := 0
	line := func(what string, conns int, most, measured float64) {
		verdict := "met"
		if !(measured <= most) {
			verdict = "missed"
			missed++
		}
		fmt.Printf("%-42s %5d | %5.2f %8.2f %s\n", what, conns, most, measured, verdict)
	}
	fmt.Printf("%-42s %5s | %5s %8s\n", "goals", "conns", "most", "measured")
	for _, g := range goals {
		rcaches := []string{"none"}
		if g.op == accept {
			rcaches = b.rcaches
		}
		for _, rcache := range rcaches {
			c, ours := b.results[key("C", g.op, rcache, g.conns)], b.results[key("ours", g.op, rcache, g.conns)]
			if len(ours) > 0 {
				line(fmt.Sprintf("%s, ours / C: %s, rcache %s", g.unit, g.op, rcache), g.conns, g.most, g.cost(median(ours))/g.cost(median(c)))
			}
		}
	}
	// One at a time: more of them wait for each other.
	if quiet, hangs := b.results[key("ours", accept, "none", 1)], b.results[key("ours", kdcHangs, "none", 1)]; len(quiet) > 0 && len(hangs) > 0 {
		line("p99 of accept while a KDC hangs / without", 1, 2, median(hangs).p99/median(quiet).p99)
	}
	if p := (row{accepting, "none", 1}); len(b.costs[p]) > 0 {
		line("allocations of an accept in a Go program", p.conns, 30, b.costOf(p).allocs)
	}
	if p, s := (row{plainHTTP, "disk", 1}), (row{sessionHTTP, "disk", 1}); len(b.costs[p]) > 0 && len(b.costs[s]) > 0 {
		line("time of a request, session / plain handler", p.conns, 2, b.costOf(s).time/b.costOf(p).time)
	}
	for _, p := range pairs {
		if p.ours.op != ourThreads || p.ours.conns != pluginsTogether || len(b.costs[p.ours]) == 0 {
			continue
		}
		line("CPU of a program, our plugin / C plugin", p.ours.conns, 1./3, b.ratio(p.ours, p.debians, func(c cost) float64 { return c.program }))
		line("time of accepts, our plugin / C plugin", p.ours.conns, 1./2, b.ratio(p.ours, p.debians, func(c cost) float64 { return c.time }))
	}
	if missed > 0 {
		return fmt.Errorf("goals missed: %d", missed)
	}
	return nil
}

// former is the kind of a daemon that is another build of ours.
const former = "former"

// compare prints what our daemon's CPU time is in parts of the former one's, and its calls a second.
func (b *bench) compare() {
	fmt.Printf("%d accepts a run, %d rounds; %d CPUs, %s\n", b.n, b.rounds, runtime.NumCPU(), time.Now().Format(time.DateOnly))
	fmt.Printf("%-11s %-6s %5s | %9s %9s | %16s | %8s %8s | %16s\n", "", "rcache", "conns", "former µs", "ours µs", "ours / former", "former/s", "ours/s", "ours / former")
	var keys []string
	for k := range b.results {
		if of, ok := strings.CutSuffix(k, "/ours"); ok {
			keys = append(keys, of)
		}
	}
	slices.Sort(keys)
	for _, of := range keys {
		was, is := b.results[of+"/"+former], b.results[of+"/ours"]
		ratio := func(of func(result) float64) string {
			var ratios []float64
			for i := range is {
				ratios = append(ratios, of(is[i])/of(was[i]))
			}
			slices.Sort(ratios)
			return fmt.Sprintf("%4.2f (%4.2f–%4.2f)", ratios[len(ratios)/2], ratios[0], ratios[len(ratios)-1])
		}
		words := strings.Split(of, "/")
		fmt.Printf("%-11s %-6s %5s | %9.2f %9.2f | %s | %8.0f %8.0f | %s\n", words[0], words[1], words[2],
			median(was).cpu, median(is).cpu, ratio(cpuTime), median(was).rate, median(is).rate, ratio(func(r result) float64 { return r.rate }))
	}
}

func (b *bench) peak(kind string) (mib float64) {
	for k, runs := range b.results {
		if strings.HasSuffix(k, "/"+kind) {
			for _, r := range runs {
				mib = max(mib, r.rss)
			}
		}
	}
	return mib
}
