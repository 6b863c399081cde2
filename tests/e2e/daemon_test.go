package e2e

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"gssproxyd/tests/lab"
)

// TestReloadUnderLoad: SIGHUP after SIGHUP while clients accept on connections that stay open. Not one call fails and
// no connection is cut.
func TestReloadUnderLoad(t *testing.T) {
	needOurs(t)
	const clients, reloads = 4, 25
	d := daemon(t, "ours", lab.Options{RCache: "none:"})
	ctx, stop := context.WithCancelCause(context.Background())
	done := errors.New("done")
	var running sync.WaitGroup
	defer running.Wait()
	defer stop(done)
	var accepts atomic.Int64
	for range clients {
		initiator, w := alice(t), wire(t, d)
		running.Go(func() {
			for ctx.Err() == nil {
				if err := acceptOne(initiator, service, w); err != nil {
					stop(err)
				}
				accepts.Add(1)
			}
		})
	}
	for range reloads {
		before := accepts.Load()
		check(t, d.Reload())
		for accepts.Load() < before+20 && ctx.Err() == nil {
			time.Sleep(time.Millisecond)
		}
	}
	stop(done)
	running.Wait()
	if err := context.Cause(ctx); err != done {
		t.Fatal(err)
	}
}

// TestReload: what a reload puts in force, for connections that are open as well, and what it leaves alone.
func TestReload(t *testing.T) {
	needOurs(t)
	d := daemon(t, "ours", lab.Options{})
	initiator, w := alice(t), wire(t, d)
	check(t, acceptOne(initiator, service, w))

	// A configuration with an error changes nothing, and the log names the line.
	check(t, d.Configure(d.Options.Config+"\n[service/broken]\nmechs = krb5\neuid = nobody\ntrustd = yes\n"))
	check(t, d.Cmd.Process.Signal(syscall.SIGHUP))
	check(t, d.WaitOutput("keeping the former one", 10*time.Second))
	if out := d.Output(); !strings.Contains(out, "gssproxy.conf:14: ") || !strings.Contains(out, "trustd") {
		t.Error("the log does not name the line with the error")
	}
	check(t, acceptOne(initiator, service, w))

	// A socket goes with its service, and a connection to it is served no more.
	extra := *d
	extra.Socket = filepath.Join(d.Options.Dir, "extra.sock")
	check(t, d.Configure(d.Options.Config+fmt.Sprintf("\n[service/extra]\nmechs = krb5\neuid = root\nsocket = %s\ncred_store = keytab:%s\n", extra.Socket, d.Options.Keytab)))
	check(t, d.Reload())
	we := wire(t, &extra)
	check(t, acceptOne(initiator, service, we))
	check(t, d.Configure(d.Options.Config))
	check(t, d.Reload())
	if c, err := net.Dial("unix", extra.Socket); err == nil {
		c.Close()
		t.Error("the socket of a service that is gone still takes connections")
	}
	if err := acceptOne(initiator, service, we); err == nil {
		t.Error("a connection to a service that is gone is still served")
	}
	check(t, acceptOne(initiator, service, w))
}

// TestKrb5ConfFollowed: krb5.conf is read again when it changes, without a signal.
func TestKrb5ConfFollowed(t *testing.T) {
	needOurs(t)
	r := realm(t)
	path, err := r.Krb5Conf("krb5-followed.conf")
	check(t, err)
	d := daemon(t, "ours", lab.Options{Krb5Conf: path})
	initiator, w := alice(t), wire(t, d)
	check(t, acceptOne(initiator, serviceOf(18), w))

	narrow, err := r.Krb5Conf("krb5-narrow.conf", "permitted_enctypes = aes128-cts-hmac-sha1-96")
	check(t, err)
	check(t, os.Rename(narrow, path))
	for deadline := time.Now().Add(20 * time.Second); err == nil && time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
		err = acceptOne(initiator, serviceOf(18), w)
	}
	if err == nil || !strings.Contains(err.Error(), "[enctype-not-permitted]") {
		t.Fatalf("after permitted_enctypes was narrowed: %v, want a refusal with [enctype-not-permitted]", err)
	}
	check(t, acceptOne(initiator, serviceOf(17), w))
}

// TestDaemonMode: without -i the command returns when clients can connect, with exit status 0; with a broken
// configuration it returns 2 and the error is on its standard error.
func TestDaemonMode(t *testing.T) {
	needOurs(t)
	r := realm(t)
	d := daemon(t, "ours", lab.Options{})
	dir := r.Path("daemon-mode")
	check(t, os.MkdirAll(filepath.Join(dir, "state"), 0o700))
	config, there := filepath.Join(dir, "gssproxy.conf"), *d
	there.Socket = filepath.Join(dir, "sock")
	env := []string{"KRB5_CONFIG=" + r.Conf, "GSSPROXYD_STATE_DIR=" + filepath.Join(dir, "state"), "KRB5RCACHENAME=none:"}
	start := func() (string, error) {
		return r.Run(lab.Root, env, d.Cmd.Path, "-c", config, "-s", there.Socket)
	}

	check(t, os.WriteFile(config, []byte("[service/x]\nmechs = krb5\n"), 0o600))
	out, err := start()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != 2 || !strings.Contains(out+err.Error(), "gssproxy.conf:1: ") {
		t.Fatalf("broken configuration: %v, %s; want exit status 2 and the line", err, out)
	}

	check(t, os.WriteFile(config, []byte(lab.DefaultConfig(d.Options.Keytab)), 0o600))
	out, err = start()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	const pidFile = "/var/run/gssproxy.pid"
	pid, err := os.ReadFile(pidFile)
	check(t, err)
	n, err := strconv.Atoi(strings.TrimSpace(string(pid)))
	check(t, err)
	defer os.Remove(pidFile)
	defer syscall.Kill(n, syscall.SIGKILL)
	check(t, acceptOne(alice(t), service, wire(t, &there))) // it serves now, not soon
	check(t, syscall.Kill(n, syscall.SIGTERM))
	for deadline := time.Now().Add(10 * time.Second); running(n); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the daemon does not end on SIGTERM")
		}
	}
}

// running tells whether a process is there and has not ended; one that has may stay a zombie where no init reaps it.
func running(pid int) bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	return err == nil && !strings.Contains(string(stat), ") Z ")
}

// TestRunAsUser: the daemon serves as another user, and no thread has a capability but the one for reading /proc.
func TestRunAsUser(t *testing.T) {
	needOurs(t)
	path := keytab(t)
	check(t, os.Chown(path, 65534, 65534))
	d := daemon(t, "ours", lab.Options{
		Keytab: path, RCache: "none:",
		Config: strings.Replace(lab.DefaultConfig(path), "[gssproxy]", "[gssproxy]\n  run_as_user = nobody", 1),
	})
	check(t, acceptOne(alice(t), service, wire(t, d)))
	tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", d.PID()))
	check(t, err)
	if len(tasks) < 2 {
		t.Fatalf("%d threads seen", len(tasks))
	}
	const ptrace = "0000000000080000"
	for _, task := range tasks {
		status, err := os.ReadFile(task)
		check(t, err)
		for _, want := range []string{"Uid:\t65534\t65534\t65534\t65534\n", "CapPrm:\t" + ptrace + "\n", "CapEff:\t" + ptrace + "\n"} {
			if !strings.Contains(string(status), want) {
				t.Errorf("%s: %q expected in\n%s", task, want, status)
			}
		}
	}
}

// TestUserProxy: one user's own proxy, without configuration files.
func TestUserProxy(t *testing.T) {
	needOurs(t)
	r := realm(t)
	d := daemon(t, "ours", lab.Options{})
	path := keytab(t)
	check(t, os.Chown(path, 65534, 65534))
	runtime := nobodyDir(t)
	env := []string{"KRB5_CONFIG=" + r.Conf, "KRB5_KTNAME=" + path, "KRB5RCACHENAME=none:", "XDG_RUNTIME_DIR=" + runtime}
	p, err := r.Start(r.Command(lab.Nobody, env, d.Cmd.Path, "-u"), r.Path("userproxy.log"))
	check(t, err)
	defer p.Stop()
	check(t, p.WaitOutput("Initialization complete.", 10*time.Second))

	// The user is served, anybody else is not.
	own := *d
	own.Socket = filepath.Join(runtime, "gssproxy", "default.sock")
	acceptor := tool(t, lab.Nobody, append(own.PluginEnv(), "KRB5CCNAME=MEMORY:x")...)
	check(t, acceptor.Acquire(service))
	_, token, err := alice(t).Init(service, lab.Usual|lab.Mutual, nil)
	check(t, err)
	a, err := acceptor.Accept(token, nil)
	check(t, err)
	if a.Client != "alice@"+lab.Name {
		t.Errorf("client %q", a.Client)
	}
	if err := acceptOne(alice(t), service, wire(t, &own)); err == nil {
		t.Error("root is served by the proxy of nobody")
	}
}

// TestNotify: the service manager is told when the daemon serves, reloads and stops.
func TestNotify(t *testing.T) {
	needOurs(t)
	path := realm(t).Path("notify")
	manager, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	check(t, err)
	defer manager.Close()
	d := daemon(t, "ours", lab.Options{Env: []string{"NOTIFY_SOCKET=" + path}})
	expect := func(want string) {
		t.Helper()
		buf := make([]byte, 4096)
		manager.SetReadDeadline(time.Now().Add(10 * time.Second))
		for {
			n, err := manager.Read(buf)
			if err != nil {
				t.Fatalf("%s was not said: %v", want, err)
			}
			if strings.Contains("\n"+string(buf[:n])+"\n", "\n"+want+"\n") {
				return
			}
		}
	}
	expect("READY=1")
	check(t, d.Reload())
	expect("RELOADING=1")
	expect("READY=1")
	check(t, d.Stop())
	expect("STOPPING=1")
	check(t, d.Start())
}
