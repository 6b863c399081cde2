package main

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"gssproxyd/tests/lab"
)

// The cases of an unmodified C program with libgssapi and a plugin of the mechglue before our
// daemon: as many threads, or as many processes of one thread, as there are contexts at a time.
const (
	ourThreads       = "our plugin"
	debiansThreads   = "C plugin"
	ourProcesses     = "our plugin, processes"
	debiansProcesses = "C plugin, processes"

	pluginRounds    = 5 // the two plugins by turns
	pluginsTogether = 16
)

// pair is one case with each plugin.
type pair struct{ debians, ours row }

// pairs are these cases: with the C project's plugin, and with ours.
var pairs = []pair{
	{row{debiansThreads, "none", 1}, row{ourThreads, "none", 1}},
	{row{debiansThreads, "none", pluginsTogether}, row{ourThreads, "none", pluginsTogether}},
	{row{debiansProcesses, "none", pluginsTogether}, row{ourProcesses, "none", pluginsTogether}},
}

// throughPlugin reports whether a case is one of these.
func throughPlugin(op string) bool {
	return slices.ContainsFunc(pairs, func(p pair) bool { return op == p.debians.op || op == p.ours.op })
}

// measured are all cases of programs, in the order of the tables.
func measured() []row {
	all := slices.Clone(programs)
	for _, p := range pairs {
		all = append(all, p.debians, p.ours)
	}
	return all
}

// ratio is the median of a figure's ratio in each round.
func (b *bench) ratio(of, to row, figure func(cost) float64) float64 {
	ratios := make([]float64, len(b.costs[of]))
	for i := range ratios {
		ratios[i] = figure(b.costs[of][i]) / figure(b.costs[to][i])
	}
	return middle(ratios, func(r float64) float64 { return r })
}

// runPlugins runs the cases of plugins.
func (b *bench) runPlugins() error {
	if len(b.cases) > 0 && !b.runs("plugin") {
		return nil
	}
	for round := range pluginRounds {
		tokens, err := b.tokens()
		if err != nil {
			return err
		}
		file := filepath.Join(b.realm.Dir, "tokens")
		if err := writeTokens(file, tokens); err != nil {
			return err
		}
		for _, p := range pairs {
			for _, c := range []row{p.debians, p.ours} {
				b.step(fmt.Sprintf("round %d of %d: %s, %d at a time", round+1, pluginRounds, c.op, c.conns))
				used, err := b.acceptThrough(c, file, len(tokens))
				if err != nil {
					return fmt.Errorf("%s, %d at a time: %w", c.op, c.conns, err)
				}
				b.costs[c] = append(b.costs[c], used)
			}
		}
	}
	return nil
}

func writeTokens(name string, tokens [][]byte) error {
	var b []byte
	for _, t := range tokens {
		b = binary.BigEndian.AppendUint32(b, uint32(len(t)))
		b = append(b, t...)
	}
	return os.WriteFile(name, b, 0o600)
}

// acceptThrough accepts the n tokens of a file once, the first of them to warm up.
func (b *bench) acceptThrough(c row, file string, n int) (cost, error) {
	r := new(run)
	defer r.end()
	if err := b.start(r, "ours", accept, c.rcache); err != nil {
		return cost{}, err
	}
	plugin := lab.Ours
	if c.op == debiansThreads || c.op == debiansProcesses {
		plugin = lab.Debians
	}
	env := b.realm.PluginEnvOf(plugin, r.daemon.Socket)
	if _, err := b.accepting(env, 1, 1, 0, warm, file); err != nil {
		return cost{}, err
	}
	processes, threads := 1, c.conns
	if c.op == ourProcesses || c.op == debiansProcesses {
		processes, threads = c.conns, 1
	}
	before, err := r.daemon.CPU()
	if err != nil {
		return cost{}, err
	}
	used, err := b.accepting(env, processes, threads, warm, n, file)
	if err != nil {
		return cost{}, err
	}
	after, err := r.daemon.CPU()
	return used.each(n-warm, after-before), err
}

// accepting runs the program that accepts: each process has its part of the tokens, and all begin at
// the same time. The time is that of the slowest, the processor time that of all.
func (b *bench) accepting(env []string, processes, threads, from, to int, file string) (sum usage, err error) {
	all := make([]acceptor, processes)
	defer func() {
		for i := range all {
			err = errors.Join(err, all[i].end())
		}
	}()
	for i := range all {
		first, last := from+(to-from)*i/processes, from+(to-from)*(i+1)/processes
		if err := all[i].start(b.realm.Command(lab.Root, env, filepath.Join(b.realm.Dir, "accepts"),
			strconv.Itoa(threads), strconv.Itoa(first), strconv.Itoa(last), file)); err != nil {
			return sum, err
		}
	}
	for i := range all {
		if _, err := io.WriteString(all[i].in, "\n"); err != nil {
			return sum, err
		}
	}
	for i := range all {
		var wall, cpu time.Duration
		if _, err := fmt.Fscan(all[i].out, &wall, &cpu); err != nil {
			return sum, err
		}
		sum.Time = max(sum.Time, wall)
		sum.CPU += cpu
	}
	return sum, nil
}

// acceptor is a running tests/lab/csrc/accepts.c.
type acceptor struct {
	cmd    *exec.Cmd
	in     io.WriteCloser
	out    io.Reader
	stderr bytes.Buffer
}

// start starts the program, which then waits for a line.
func (a *acceptor) start(cmd *exec.Cmd) error {
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if a.in, err = cmd.StdinPipe(); err != nil {
		return err
	}
	a.out, cmd.Stderr = bufio.NewReader(out), &a.stderr
	if err := cmd.Start(); err != nil {
		return err
	}
	a.cmd = cmd
	var ready string
	_, err = fmt.Fscan(a.out, &ready)
	return err
}

// end ends the program, if it was started.
func (a *acceptor) end() error {
	if a.cmd == nil {
		return nil
	}
	a.in.Close()
	if err := a.cmd.Wait(); err != nil {
		return fmt.Errorf("accepts: %w: %s", err, strings.TrimSpace(a.stderr.String()))
	}
	return nil
}
