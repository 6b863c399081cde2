package main

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"runtime"
	"runtime/debug"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"gssproxyd/tests/lab"
	"gssproxyd/xdr"
)

// result is one run.
type result struct {
	rate, cpu      float64 // calls a second; µs of the daemon's CPU a call
	p50, p99, p999 float64 // µs
	rss            float64 // MiB, peak
}

func (r result) String() string {
	return fmt.Sprintf("%6.0f %6.1f %5.0f %6.0f %5.1f", r.rate, r.cpu, r.p50, r.p99, r.p999/1000)
}

// median is the median of each figure by itself.
func median(runs []result) result {
	if len(runs) == 0 {
		return result{}
	}
	of := func(f func(result) float64) float64 { return middle(runs, f) }
	return result{
		of(func(r result) float64 { return r.rate }), of(func(r result) float64 { return r.cpu }),
		of(func(r result) float64 { return r.p50 }), of(func(r result) float64 { return r.p99 }), of(func(r result) float64 { return r.p999 }),
		of(func(r result) float64 { return r.rss }),
	}
}

// middle is the median of a figure of runs, of which there is at least one.
func middle[R any](runs []R, figure func(R) float64) float64 {
	v := make([]float64, len(runs))
	for i, r := range runs {
		v[i] = figure(r)
	}
	slices.Sort(v)
	return (v[(len(v)-1)/2] + v[len(v)/2]) / 2
}

// run is a case on one daemon.
type run struct {
	daemon      *lab.Daemon
	dir         string // for sockets and caches of the case
	wires       []*lab.Wire
	warm, calls [][]byte
	check       func([]byte) error
	every       time.Duration // from one call to the next; 0: as soon as there is an answer
	ends        []func()

	cpu, elapsed time.Duration
	took         []time.Duration
}

func (r *run) atEnd(f func()) { r.ends = append(r.ends, f) }

func (r *run) end() {
	for _, f := range slices.Backward(r.ends) {
		f()
	}
}

// turn is how many calls of each connection a run makes before the next run has its turn.
const turn = 20

// load makes the calls of runs over their connections, each taking the next call when it has the
// answer to its last one, and the runs by turns if there are several.
func load(runs []*run) ([]result, error) {
	for _, r := range runs {
		if err := loop(r.wires, r.warm, make([]time.Duration, len(r.warm)), r.check, 0); err != nil {
			return nil, err
		}
		r.took = make([]time.Duration, len(r.calls))
	}
	// The collector must not run among the measured calls.
	runtime.GC()
	defer debug.SetGCPercent(debug.SetGCPercent(-1))
	calls := len(runs[0].calls) // as many as all have
	block := calls
	if len(runs) > 1 {
		block = turn * len(runs[0].wires)
	}
	for from := 0; from < calls; from += block {
		for _, r := range runs {
			if err := r.some(from, min(from+block, calls)); err != nil {
				return nil, err
			}
		}
	}
	var results []result
	for _, r := range runs {
		one, err := r.result()
		if err != nil {
			return nil, err
		}
		results = append(results, one)
	}
	return results, nil
}

// some makes some of the calls.
func (r *run) some(from, to int) error {
	before, err := r.daemon.CPU()
	if err != nil {
		return err
	}
	start := time.Now()
	if err := loop(r.wires, r.calls[from:to], r.took[from:to], r.check, r.every); err != nil {
		return err
	}
	r.elapsed += time.Since(start)
	after, err := r.daemon.CPU()
	r.cpu += after - before
	return err
}

func (r *run) result() (result, error) {
	_, peak, err := r.daemon.RSS()
	if err != nil {
		return result{}, err
	}
	slices.Sort(r.took)
	at := func(q float64) float64 {
		return float64(r.took[int(q*float64(len(r.took)-1))].Nanoseconds()) / 1e3
	}
	n := float64(len(r.calls))
	return result{
		rate: n / r.elapsed.Seconds(), cpu: float64(r.cpu.Nanoseconds()) / 1e3 / n,
		p50: at(.5), p99: at(.99), p999: at(.999), rss: float64(peak) / (1 << 20),
	}, nil
}

func loop(wires []*lab.Wire, calls [][]byte, took []time.Duration, check func([]byte) error, every time.Duration) error {
	var next atomic.Int64
	begin := time.Now()
	var wg sync.WaitGroup
	errs := make([]error, len(wires))
	for i, w := range wires {
		wg.Go(func() {
			w.SetDeadline(time.Now().Add(5 * time.Minute))
			buf := make([]byte, 16<<10)
			for {
				k := next.Add(1) - 1
				if k >= int64(len(calls)) {
					return
				}
				if every > 0 {
					time.Sleep(time.Until(begin.Add(time.Duration(k) * every)))
				}
				start := time.Now()
				reply, err := exchange(w, calls[k], buf)
				took[k] = time.Since(start)
				if err == nil {
					err = check(reply)
				}
				if err != nil {
					errs[i] = fmt.Errorf("call %d: %w", k, err)
					return
				}
			}
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

// exchange sends a call and reads the reply: mostly two system calls.
func exchange(w io.ReadWriter, call, buf []byte) ([]byte, error) {
	if _, err := w.Write(call); err != nil {
		return nil, err
	}
	n, err := w.Read(buf)
	for err == nil && (n < 4 || n < 4+int(binary.BigEndian.Uint32(buf)&(1<<31-1))) {
		var m int
		m, err = w.Read(buf[n:])
		n += m
	}
	return buf[4:max(n, 4)], err
}

// header is what a successful reply has after its xid.
var header = []byte{0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}

func checkAny(reply []byte) error {
	if len(reply) < 24 || !bytes.Equal(reply[4:24], header) {
		return fmt.Errorf("reply %x", reply[:min(len(reply), 32)])
	}
	return nil
}

// checkAccept: GSS_S_COMPLETE for alice, with an exported context.
func checkAccept(reply []byte) error {
	if err := checkAny(reply); err != nil {
		return err
	}
	if len(reply) < 800 || binary.BigEndian.Uint64(reply[24:]) != 0 || !bytes.Contains(reply, []byte("alice@"+lab.Name)) {
		return fmt.Errorf("not accepted: %q", reply)
	}
	return nil
}

// checkInit: GSS_S_CONTINUE_NEEDED, as mutual authentication was asked for, with a context and a
// token.
func checkInit(reply []byte) error {
	var res xdr.ResInitSecContext
	if err := decode(reply, &res); err != nil {
		return err
	}
	if res.Status.MajorStatus != 1 || !res.ContextHandle.Set || len(res.OutputToken.V) == 0 {
		return fmt.Errorf("not initiated: major %#x: %s; a token of %d bytes", res.Status.MajorStatus, res.Status.MinorStatusString, len(res.OutputToken.V))
	}
	return nil
}

// checkAcquire: GSS_S_COMPLETE and a handle.
func checkAcquire(reply []byte) error {
	var res xdr.ResAcquireCred
	if err := decode(reply, &res); err != nil {
		return err
	}
	if res.Status.MajorStatus != 0 || len(res.OutputCredHandle.V.CredHandleReference) == 0 {
		return fmt.Errorf("not acquired: major %#x: %s", res.Status.MajorStatus, res.Status.MinorStatusString)
	}
	return nil
}

func decode(reply []byte, res xdr.Message) error {
	if err := checkAny(reply); err != nil {
		return err
	}
	d := xdr.NewDecoder(reply[24:])
	res.Decode(d)
	return d.Err()
}
