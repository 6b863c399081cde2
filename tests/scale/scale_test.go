// Package scale measures one keystored over one etcd that has a fleet: how long a change takes to be in
// force on a host, on some and on all, how long all are not served when keystored starts again, and what
// both programs cost meanwhile. Hosts are connections of the test's, each with a certificate, a recipient
// and an address of its own, which ask, open and acknowledge as gssproxyd does.
//
// By itself a fleet is small, and shows that all of that works. With -scale it is 5,000 hosts that have
// 20,000 entries, what the docs promise is held against it, and with -out docs/keystore-performance.md is
// written.
package scale

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"gssproxyd/keystore/api"
	"gssproxyd/tests/lab"
)

var (
	full    = flag.Bool("scale", false, "measure a large fleet, on a machine that does nothing else")
	hostsOf = flag.Int("hosts", 5000, "with -scale: hosts")
	entryOf = flag.Int("entries", 20000, "with -scale: entries of single hosts")
	out     = flag.String("out", "", "with -scale: directory to write keystore-performance.md to")
)

// goals are what is promised of 5,000 hosts and 20,000 entries on two cores.
const (
	goalOne    = time.Second
	goalAll    = 30 * time.Second
	goalMemory = 512 << 20
)

// measured is a row of the table.
type measured struct{ what, value, goal string }

func TestScale(t *testing.T) {
	hosts, entries, idle, repeat := 24, 96, 3*time.Second, 1
	if *full {
		hosts, entries, idle, repeat = *hostsOf, *entryOf, 2*time.Minute, 5
	}
	load, err := os.ReadFile("/proc/loadavg") // of what else the machine does
	if err != nil {
		t.Fatal(err)
	}
	f := newFleet(t, hosts, entries)
	var table []measured
	row := func(what, goal, format string, args ...any) {
		table = append(table, measured{what, fmt.Sprintf(format, args...), goal})
		t.Logf("%s: %s", what, table[len(table)-1].value)
	}
	judge := func(what string, ok bool) {
		if *full && !ok {
			t.Errorf("%s is missed", what)
		}
	}

	f.start()
	f.enrol()
	f.fill()
	begun := time.Now()
	f.connect()
	f.awaitServed(begun)
	row("first delivery of all entries to all hosts", "", "%s", seconds(time.Since(begun)))

	// A change.
	for _, of := range []struct {
		what, principal string
		hosts           int
		goal            time.Duration
	}{
		{"one host", f.own(hosts/2, 0), 1, goalOne}, {"50 hosts", groupPrincipal, f.group(), 0}, {fmt.Sprintf("all %s hosts", count(hosts)), fleetPrincipal, hosts, goalAll},
	} {
		var took []time.Duration
		store, etcd := f.keystored.cpu(t), f.etcd.cpu(t)
		for range repeat {
			took = append(took, f.change(of.principal, of.hosts))
		}
		slices.Sort(took)
		goal := ""
		if of.goal > 0 {
			goal = fmt.Sprintf("under %.0f s", of.goal.Seconds())
			judge("put to last acknowledgement of "+of.what, took[len(took)-1] < of.goal)
		}
		row("put to last acknowledgement, entry of "+of.what, goal, "%s (at most %s)", seconds(took[len(took)/2]), seconds(took[len(took)-1]))
		row("CPU of that, keystored and etcd, each time", "", "%s and %s", seconds((f.keystored.cpu(t)-store)/time.Duration(repeat)), seconds((f.etcd.cpu(t)-etcd)/time.Duration(repeat)))
	}

	// Nothing changes.
	time.Sleep(idle / 4)
	store, etcd, written := f.keystored.cpu(t), f.etcd.cpu(t), f.etcd.written(t)
	begun = time.Now()
	time.Sleep(idle)
	over := time.Since(begun)
	hourly := func(d time.Duration) time.Duration {
		return time.Duration(float64(d) * float64(time.Hour) / float64(over))
	}
	row("CPU in an hour without a change, keystored", "", "%s", seconds(hourly(f.keystored.cpu(t)-store)))
	row("CPU in an hour without a change, etcd", "", "%s", seconds(hourly(f.etcd.cpu(t)-etcd)))
	row("etcd writes in a day without a change", "", "%s", mib(int64(float64(f.etcd.written(t)-written)*float64(24*time.Hour)/float64(over))))
	now, peak := f.keystored.memory(t)
	row("memory of keystored (and at most)", "under "+mib(goalMemory), "%s (%s)", mib(now), mib(peak))
	judge("memory", peak < goalMemory)

	// All are cut off, and come again.
	begun = f.restart()
	f.awaitServed(begun)
	row("start of keystored until all hosts are served", "", "%s", seconds(time.Since(begun)))
	row("CPU of that, keystored", "", "%s", seconds(f.keystored.cpu(t)))
	_, peak = f.keystored.memory(t)
	row("memory of keystored at most, meanwhile", "under "+mib(goalMemory), "%s", mib(peak))
	judge("memory", peak < goalMemory)
	now, peak = f.etcd.memory(t)
	row("memory of etcd (and at most)", "", "%s (%s)", mib(now), mib(peak))
	row("etcd's database", "", "%s", mib(f.database()))
	if got := f.change(f.own(0, 0), 1); got > lab.Patience {
		t.Errorf("a change takes %v after a restart", got)
	}
	if *full && *out != "" {
		if err := os.WriteFile(filepath.Join(*out, "keystore-performance.md"), page(table, hosts, entries, strings.Fields(string(load))[0]), 0o644); err != nil {
			t.Error(err)
		}
	}
}

// page is what is known of the cost, for people.
func page(table []measured, hosts, entries int, load string) []byte {
	var b bytes.Buffer
	fmt.Fprintf(&b, "<!-- Written by tests/scale from what it measured: do not edit. -->\n# Performance of the key store\n\n"+
		"One keystored over an etcd of one member, on the same machine as the hosts that ask it: %s hosts, each with a certificate,\n"+
		"a recipient and a connection of its own, and %s entries of single hosts, one of 50 hosts and one of all. Every host watches\n"+
		"all entries that it has; what is delivered it verifies, opens and acknowledges, as gssproxyd does.\n\n", count(hosts), count(entries))
	fmt.Fprintf(&b, "| | measured | goal |\n|---|--:|--:|\n")
	for _, m := range table {
		fmt.Fprintf(&b, "| %s | %s | %s |\n", m.what, m.value, m.goal)
	}
	var u unix.Utsname
	unix.Uname(&u)
	fmt.Fprintf(&b, "\n- Times are medians, with the longest in parentheses: from when an administrator asks for the change until the last host's\n"+
		"  acknowledgement is answered. The work of the hosts, which takes more of the processors than that of the two programs, is on\n"+
		"  the same cores, and so in the times.\n"+
		"- What etcd writes is what its process has the kernel write, with its log and the pages of its database. When nothing changes\n"+
		"  keystored writes that it lives, each 20 s: 1.6 MB a day, whatever the number of hosts.\n"+
		"- At the start all hosts connect again within a second and a half after they find keystored gone, which is the worst case.\n\n")
	kernel, _, _ := strings.Cut(unix.ByteSliceToString(u.Release[:]), "-")
	fmt.Fprintf(&b, "Measured on %s on a machine with %d cores, Linux %s and Go %s. Other programs had put a load of %s on it when it\n"+
		"began: they are in the times, and not in what these took of the processors.\n\n"+
		"`go test ./tests/scale -scale -timeout 60m -out $PWD/docs` measures, compares with the goals and writes this page again.\n",
		time.Now().UTC().Format(time.DateOnly), runtime.NumCPU(), kernel, strings.TrimPrefix(runtime.Version(), "go"), load)
	return b.Bytes()
}

func seconds(d time.Duration) string {
	switch {
	case d < time.Second:
		return fmt.Sprintf("%d ms", d.Milliseconds())
	case d < 10*time.Second:
		return fmt.Sprintf("%.1f s", d.Seconds())
	}
	return fmt.Sprintf("%.0f s", d.Seconds())
}

func mib(n int64) string { return fmt.Sprintf("%d MiB", (n+1<<19)>>20) }

func count(n int) string {
	if n < 1000 {
		return strconv.Itoa(n)
	}
	return fmt.Sprintf("%d,%03d", n/1000, n%1000)
}

// program is one that is measured.
type program struct{ pid int }

// cpu is what it has used of the processors.
func (p program) cpu(t *testing.T) time.Duration {
	t.Helper()
	_, rest, _ := strings.Cut(p.read(t, "stat"), ") ")
	fields := strings.Fields(rest) // from the third one on
	user, err1 := strconv.Atoi(fields[11])
	system, err2 := strconv.Atoi(fields[12])
	if err1 != nil || err2 != nil {
		t.Fatal(rest)
	}
	return time.Duration(user+system) * 10 * time.Millisecond // USER_HZ
}

// memory is what is resident, and was at most.
func (p program) memory(t *testing.T) (now, peak int64) {
	t.Helper()
	text := p.read(t, "status")
	return number(t, text, "VmRSS:") << 10, number(t, text, "VmHWM:") << 10
}

// written is what the kernel was made to write to a disk.
func (p program) written(t *testing.T) int64 {
	t.Helper()
	return number(t, p.read(t, "io"), "write_bytes:")
}

func (p program) read(t *testing.T, name string) string {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/%s", p.pid, name))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func number(t *testing.T, text, key string) int64 {
	t.Helper()
	_, rest, _ := strings.Cut(text, key)
	n, err := strconv.ParseInt(strings.Fields(rest)[0], 10, 64)
	if err != nil {
		t.Fatalf("%s: %v", key, err)
	}
	return n
}

// ask has an administrator ask, as root over the socket.
func (f *fleet) ask(name string, args any) error {
	ctx, cancel := context.WithTimeout(f.t.Context(), lab.Patience)
	defer cancel()
	c := <-f.admins
	defer func() { f.admins <- c }()
	var res map[string]any
	if err := c.Call(ctx, name, args, &res, func(string) {}); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return nil
}

// change makes a change that each host of an entry gets, and returns how long that takes to the last one.
func (f *fleet) change(principal string, hosts int) time.Duration {
	f.t.Helper()
	f.interval++
	begun := time.Now()
	last := f.acks.expect(principal, hosts)
	if err := f.ask("policy", &api.PolicyRequest{Principal: principal, Interval: &f.interval}); err != nil {
		f.t.Fatal(err)
	}
	select {
	case at := <-last:
		return at.Sub(begun)
	case <-time.After(lab.Patience + 5*time.Minute):
		f.t.Fatalf("%s: %d hosts have not acknowledged", principal, f.acks.missing())
		return 0
	}
}
