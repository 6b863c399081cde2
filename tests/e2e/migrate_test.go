package e2e

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"gssproxyd/tests/lab"
	"gssproxyd/xdr"
)

// pidFile is where the C daemon writes it, and nowhere else.
const pidFile = "/run/gssproxy.pid"

// TestMigrate takes the C daemon's place and gives it back, with clients that are connected, and
// others that connect and call all the time: none is refused.
func TestMigrate(t *testing.T) {
	r := realm(t)
	d, second := replaced(t)
	dir := d.Options.Dir
	migrate := func(args ...string) (string, error) { return migrate(d, nil, args...) }
	// want runs it and looks for the exit status and the words.
	want := func(status int, words []string, args ...string) {
		t.Helper()
		out, err := migrate(args...)
		if err == nil != (status == 0) || err != nil && !strings.Contains(err.Error(), fmt.Sprintf("exit status %d", status)) {
			t.Fatalf("migrate %v: %v, expected exit status %d\n%s", args, err, status, out)
		}
		for _, w := range words {
			if !strings.Contains(out, w) {
				t.Errorf("migrate %v: no %q in\n%s", args, w, out)
			}
		}
	}
	served := func(by int, paths ...string) {
		t.Helper()
		for _, path := range paths {
			if pid, err := listens(path); err != nil || pid != by {
				t.Errorf("%s: process %d, %v; expected %d", path, pid, err, by)
			}
		}
	}
	both := []string{d.Socket, second}

	client := alice(t)
	open := wire(t, d)
	check(t, lab.AcceptOne(client, service, open))
	server, err := r.GSSServer(lab.Nobody, d.PluginEnvOf(lab.Debians), service) // has acquired its credential
	check(t, err)
	calm := hammer(t, both...)

	want(1, []string{
		dir + "/gssproxy.conf:4: [service/lab] on " + d.Socket,
		"gssproxy.conf:8: keytab " + d.Options.Keytab + ", mode 0600, uid 0",
		fmt.Sprintf("process %d (/usr/bin/gss-server) holds 1 connection, with ", server.PID()), "proxymech.so of gssproxy 0.9.1", "SIGPIPE kills it",
		fmt.Sprintf("process %d (", os.Getpid()),
		fmt.Sprintf("process %d (/usr/bin/gss-server) was started with GSS_USE_PROXY=yes", server.PID()),
		"1. write down in " + dir + "/state/migrate.json", "as well, so that its place can be taken", "start gssproxyd",
		fmt.Sprintf("end gssproxy, process %d, when it has no connections; it has ", d.PID()),
	})
	served(d.PID(), both...)
	if _, err := os.Stat(dir + "/state/migrate.json"); err == nil {
		t.Error("it was done without --apply")
	}

	// New connections come to ours; those that are open go on.
	still := fmt.Sprintf("process %d goes on until these programs are restarted", d.PID())
	want(1, []string{still, "SIGPIPE kills it"}, "--apply")
	ours, err := listens(d.Socket)
	check(t, err)
	if ours == d.PID() {
		t.Fatal("the C daemon still has the socket")
	}
	served(ours, both...)
	served(d.PID(), d.Socket+".aside", second+".aside")
	check(t, lab.AcceptOne(client, service, open))
	onOurs := wire(t, d)
	check(t, lab.AcceptOne(client, service, onOurs))
	if b, err := os.ReadFile(pidFile); err != nil || strings.TrimSpace(string(b)) != strconv.Itoa(d.PID()) {
		t.Errorf("%s: %s, %v: a unit of the C daemon's would take ours for its own", pidFile, b, err)
	}

	// Back while the C daemon runs: the names are exchanged. And there again.
	want(1, []string{"exchange " + d.Socket, fmt.Sprintf("process %d goes on", ours)}, "--back")
	served(d.PID(), both...)
	check(t, lab.AcceptOne(client, service, onOurs))
	want(1, []string{"exchange " + second, still}, "--apply")
	served(ours, both...)
	check(t, lab.AcceptOne(client, service, open))

	// It ends with its last connection.
	done := make(chan error, 1)
	go func() {
		out, err := migrate("--apply", "--wait", "40s")
		if err != nil {
			err = fmt.Errorf("%w\n%s", err, out)
		}
		done <- err
	}()
	check(t, lab.AcceptOne(client, service, open))
	server.Kill()
	open.Close()
	check(t, <-done)
	<-d.Done()
	calm() // from the C daemon's start on it may be that somebody is refused
	served(ours, both...)
	for _, path := range both {
		if _, err := os.Lstat(path + ".aside"); err == nil {
			t.Errorf("%s.aside is still there", path)
		}
	}
	check(t, lab.AcceptOne(client, service, onOurs))
	want(0, []string{"nothing"}, "--apply")

	// Back when it has ended: it is started as it was.
	onOurs.Close()
	want(0, []string{"start gssproxy"}, "--back", "--wait", "40s")
	again, err := listens(d.Socket)
	check(t, err)
	if program, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", ours)); err == nil { // a process that nobody has waited for has none
		t.Errorf("ours, process %d (%s), has not ended", ours, program)
	}
	served(again, both...)
	check(t, lab.AcceptOne(client, service, wire(t, d)))
	want(1, []string{"there is nothing to undo"}, "--back")
}

// TestMigrateUnits: where systemd runs, the units are told. It does not run here: a program in its
// place writes down what it is told, and starts ours, the first time one that fails as late as it
// can.
func TestMigrateUnits(t *testing.T) {
	r := realm(t)
	d, second := replaced(t)
	bin := r.Path("bin")
	check(t, os.Mkdir(bin, 0o755))
	ours := strings.Join(append([]string{r.Gssproxyd}, where(d)...), " ")
	check(t, os.WriteFile(bin+"/systemctl", []byte(`#!/bin/sh
told=`+bin+`/told
case "$*" in
is-system-running) echo degraded; exit 1;;
"is-enabled gssproxy.service") grep -qx 'mask gssproxy.service' $told && echo masked || echo enabled; exit;;
"is-enabled gssproxyd.service") grep -qx 'enable gssproxyd.service' $told && echo enabled || echo disabled; exit;;
esac
echo "$*" >>$told
case "$*" in
start*gssproxyd.service)
	[ -e `+bin+`/works ] && exec `+ours+` -D
	`+ours+` -i & # takes the sockets, and then fails
	while [ `+second+` -ef `+second+`.aside ]; do sleep 0.05; done
	kill -9 $!
	exit 1;;
esac
`), 0o755))
	check(t, os.WriteFile(bin+"/told", nil, 0o600))
	told := func(want string, args ...string) {
		t.Helper()
		out, err := migrate(d, []string{"PATH=" + bin + ":/usr/bin:/bin"}, append(args, "--wait", "40s")...)
		if fails := strings.HasSuffix(want, "stop gssproxyd.service\n"); (err != nil) != fails {
			t.Fatalf("%v\n%s", err, out)
		}
		b, err := os.ReadFile(bin + "/told")
		check(t, err)
		if string(b) != want {
			t.Errorf("systemctl was told\n%s\nexpected\n%s\n%s", b, want, out)
		}
	}
	const start = "start --job-mode=ignore-dependencies gssproxyd.service\n"
	there := "enable gssproxyd.service\nmask gssproxy.service\n" + start + "stop gssproxyd.service\n"
	told(there, "--apply")
	for _, path := range []string{d.Socket, second} { // as if nothing had been done
		if pid, err := listens(path); err != nil || pid != d.PID() {
			t.Errorf("%s: process %d listens, %v", path, pid, err)
		}
	}
	check(t, os.WriteFile(bin+"/works", nil, 0o600))
	there += start
	told(there, "--apply")
	<-d.Done()
	if pid, err := listens(second); err != nil || pid == d.PID() {
		t.Errorf("process %d listens, %v", pid, err)
	}
	told(there, "--apply")
	told(there+"unmask gssproxy.service\ndisable gssproxyd.service\n", "--back") // the C daemon here is of no unit
}

// replaced is a C daemon with two sockets, the second of which is returned, that is to be replaced.
func replaced(t *testing.T) (d *lab.Daemon, second string) {
	t.Helper()
	needOurs(t)
	r := realm(t)
	daemon(t, "ours", lab.Options{}) // has it built
	keys := keytab(t)
	second = filepath.Join(r.Path("second"), "sock")
	check(t, os.Mkdir(filepath.Dir(second), 0o755))
	config := lab.DefaultConfig(keys)
	_, service, _ := strings.Cut(config, "\n\n")
	d = daemon(t, "C", lab.Options{Keytab: keys, Quiet: true, Dir: r.Path("replaced"),
		Config: config + strings.ReplaceAll(service, "/lab]", "/more]") + "  socket = " + second + "\n"})
	t.Cleanup(func() { // what the command has started
		for _, path := range []string{d.Socket, d.Socket + ".aside"} {
			if pid, err := listens(path); err == nil && pid != d.PID() {
				syscall.Kill(pid, syscall.SIGKILL)
			}
		}
	})
	return d, second
}

// where are the options that say where the daemon's files are.
func where(d *lab.Daemon) []string {
	dir := d.Options.Dir
	return []string{"-c", dir + "/gssproxy.conf", "-C", dir + "/conf.d", "-s", d.Socket, "--state-dir", dir + "/state"}
}

// migrate runs gssproxyd migrate for the daemon's files.
func migrate(d *lab.Daemon, env []string, args ...string) (string, error) {
	r := shared.Realm
	return r.Run(lab.Root, append(env, "GSSPROXYD_PID_FILE="+pidFile, "GORACE=atexit_sleep_ms=0"), r.Gssproxyd, append(append([]string{"migrate"}, where(d)...), args...)...)
}

// listens returns which process listens on a socket.
func listens(path string) (pid int, err error) {
	c, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return 0, err
	}
	defer c.Close()
	raw, err := c.SyscallConn()
	if err != nil {
		return 0, err
	}
	var cred *unix.Ucred
	if err2 := raw.Control(func(fd uintptr) { cred, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) }); err2 != nil || err != nil {
		return 0, fmt.Errorf("%v, %v", err2, err)
	}
	return int(cred.Pid), nil
}

// hammer connects and calls all the time, until the function returned is called, and a call that is
// not answered fails the test.
func hammer(t *testing.T, sockets ...string) (end func()) {
	enough := make(chan struct{})
	var all sync.WaitGroup
	calls := make([]int, len(sockets))
	for i, path := range sockets {
		all.Go(func() {
			for ; ; calls[i]++ {
				select {
				case <-enough:
					return
				default:
				}
				c, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: path, Net: "unix"})
				if err != nil {
					t.Errorf("call %d: %v", calls[i], err)
					return
				}
				var res xdr.ResIndicateMechs
				err = (&lab.Wire{UnixConn: c}).Call(xdr.ProcIndicateMechs, &xdr.ArgIndicateMechs{}, &res)
				c.Close()
				if err != nil {
					t.Errorf("call %d: %v", calls[i], err)
					return
				}
			}
		})
	}
	end = sync.OnceFunc(func() {
		close(enough)
		all.Wait()
		t.Logf("%v calls", calls)
	})
	t.Cleanup(end)
	return end
}
