package e2e

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"gssproxyd/tests/lab"
	"gssproxyd/xdr"
)

// TestReloadUnderLoad: SIGHUP after SIGHUP while clients accept on connections that stay open. Not
// one call fails and no connection is cut.
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
				if err := lab.AcceptOne(initiator, service, w); err != nil {
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

// TestReload: what a reload puts in force, for connections that are open as well, and what it
// leaves alone.
func TestReload(t *testing.T) {
	needOurs(t)
	d := daemon(t, "ours", lab.Options{})
	initiator, w := alice(t), wire(t, d)
	check(t, lab.AcceptOne(initiator, service, w))

	// A configuration with an error changes nothing, and the log names the line.
	check(t, d.Configure(d.Options.Config+"\n[service/broken]\nmechs = krb5\neuid = nobody\ntrustd = yes\n"))
	check(t, d.Cmd.Process.Signal(syscall.SIGHUP))
	check(t, d.WaitOutput("keeping the former one", lab.Patience))
	if out := d.Output(); !strings.Contains(out, "gssproxy.conf:14: ") || !strings.Contains(out, "trustd") {
		t.Error("the log does not name the line with the error")
	}
	check(t, lab.AcceptOne(initiator, service, w))

	// A socket goes with its service, and a connection to it is served no more.
	extra := *d
	extra.Socket = filepath.Join(d.Options.Dir, "extra.sock")
	check(t, d.Configure(d.Options.Config+fmt.Sprintf("\n[service/extra]\nmechs = krb5\neuid = root\nsocket = %s\ncred_store = keytab:%s\n", extra.Socket, d.Options.Keytab)))
	check(t, d.Reload())
	we := wire(t, &extra)
	check(t, lab.AcceptOne(initiator, service, we))
	check(t, d.Configure(d.Options.Config))
	check(t, d.Reload())
	if c, err := net.Dial("unix", extra.Socket); err == nil {
		c.Close()
		t.Error("the socket of a service that is gone still takes connections")
	}
	if err := lab.AcceptOne(initiator, service, we); err == nil {
		t.Error("a connection to a service that is gone is still served")
	}
	check(t, lab.AcceptOne(initiator, service, w))
}

// TestKrb5ConfFollowed: krb5.conf is read again when it changes, without a signal.
func TestKrb5ConfFollowed(t *testing.T) {
	needOurs(t)
	r := realm(t)
	path, err := r.Krb5Conf("krb5-followed.conf")
	check(t, err)
	d := daemon(t, "ours", lab.Options{Krb5Conf: path})
	initiator, w := alice(t), wire(t, d)
	check(t, lab.AcceptOne(initiator, serviceOf(18), w))

	narrow, err := r.Krb5Conf("krb5-narrow.conf", "permitted_enctypes = aes128-cts-hmac-sha1-96")
	check(t, err)
	check(t, os.Rename(narrow, path))
	for deadline := time.Now().Add(lab.Patience); err == nil && time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
		err = lab.AcceptOne(initiator, serviceOf(18), w)
	}
	if err == nil || !strings.Contains(err.Error(), "[enctype-not-permitted]") {
		t.Fatalf("after permitted_enctypes was narrowed: %v, want a refusal with [enctype-not-permitted]", err)
	}
	check(t, lab.AcceptOne(initiator, serviceOf(17), w))
}

// inBackground runs the daemon's command in dir. It returns what the command wrote, and a function
// for the process in the pid file, which fails when there is none.
func inBackground(t *testing.T, binary, dir string, env []string, args ...string) (out string, pid func() (int, error), err error) {
	t.Helper()
	r := realm(t)
	file := filepath.Join(dir, "pid")
	cmd := r.Command(lab.Root, append(env, "GSSPROXYD_PID_FILE="+file), binary, args...)
	cmd.Dir = dir
	p, err := r.Start(cmd, r.Path("background.log"))
	check(t, err)
	select {
	case <-p.Done():
	case <-time.After(lab.Patience):
		t.Fatalf("the command does not return: %s", p.Output())
	}
	pid = func() (int, error) {
		b, err := os.ReadFile(file)
		if err != nil {
			return 0, err
		}
		return strconv.Atoi(strings.TrimSpace(string(b)))
	}
	return p.Output(), pid, p.Stop()
}

// TestDaemonMode: without -i the command returns when clients can connect, with exit status 0; with
// a broken configuration it returns 2 and the error is on its standard error. Paths are relative to
// where it was started, for a reload too.
func TestDaemonMode(t *testing.T) {
	needOurs(t)
	r := realm(t)
	d := daemon(t, "ours", lab.Options{})
	path := keytab(t)
	for _, user := range []string{"", "nobody"} {
		t.Run("run_as_user="+user, func(t *testing.T) {
			dir := r.Path("daemon-mode")
			state := filepath.Join(dir, "state")
			check(t, os.MkdirAll(state, 0o700))
			check(t, os.Chmod(dir, 0o755))
			config, there := filepath.Join(dir, "gssproxy.conf"), *d
			there.Socket = filepath.Join(dir, "sock")
			env := []string{"KRB5_CONFIG=" + r.Conf, "KRB5RCACHENAME=none:", "GORACE=atexit_sleep_ms=0"}
			start := func() (string, func() (int, error), error) {
				return inBackground(t, d.Cmd.Path, dir, env, "-D", "-c", "gssproxy.conf", "-C", "conf.d", "-s", "sock", "--state-dir", "state")
			}

			check(t, os.WriteFile(config, []byte("[service/x]\nmechs = krb5\n"), 0o644))
			out, _, err := start()
			if err == nil || err.Error() != "exit status 2" || !strings.Contains(out, config+":1: ") {
				t.Fatalf("broken configuration: %v, %s; want exit status 2 and the line", err, out)
			}

			text := lab.DefaultConfig(path)
			if user != "" {
				text = strings.Replace(text, "[gssproxy]", "[gssproxy]\n  run_as_user = "+user, 1)
				check(t, errors.Join(os.Chown(path, 65534, 65534), os.RemoveAll(state), os.Mkdir(state, 0o700), os.Chown(state, 65534, 65534)))
			}
			check(t, os.WriteFile(config, []byte(text), 0o644))
			out, pid, err := start()
			if err != nil {
				t.Fatalf("%v: %s", err, out)
			}
			n, err := pid()
			check(t, err)
			ended := false
			defer func() {
				if !ended {
					syscall.Kill(n, syscall.SIGKILL)
				}
			}()
			check(t, lab.AcceptOne(alice(t), service, wire(t, &there))) // it serves now, not soon
			if cwd, err := os.Readlink(fmt.Sprintf("/proc/%d/cwd", n)); err != nil || cwd != "/" {
				t.Errorf("its working directory is %s, %v", cwd, err)
			}

			// What a reload opens. The log goes to syslog: what it does must be seen.
			more := there
			more.Socket = filepath.Join(dir, "more")
			check(t, os.Mkdir(filepath.Join(dir, "conf.d"), 0o755))
			check(t, os.WriteFile(filepath.Join(dir, "conf.d", "10-more.conf"), []byte(strings.Replace(config1(path), "SOCKET", more.Socket, 1)), 0o644))
			check(t, syscall.Kill(n, syscall.SIGHUP))
			for deadline := time.Now().Add(lab.Patience); ; time.Sleep(10 * time.Millisecond) {
				if _, err := os.Stat(more.Socket); err == nil {
					break
				}
				if time.Now().After(deadline) {
					t.Fatal("a drop-in in a relative directory is not read by a reload")
				}
			}
			check(t, lab.AcceptOne(alice(t), service, wire(t, &more)))

			check(t, syscall.Kill(n, syscall.SIGTERM))
			for deadline := time.Now().Add(lab.Patience); running(n); time.Sleep(10 * time.Millisecond) {
				if time.Now().After(deadline) {
					t.Fatal("the daemon does not end on SIGTERM")
				}
			}
			ended = true
			if _, err := pid(); user == "" && !errors.Is(err, os.ErrNotExist) {
				t.Errorf("the pid file is still there: %v", err)
			}
		})
	}
}

// config1 is one more service for everybody, on SOCKET.
func config1(keytab string) string {
	return strings.Replace(lab.DefaultConfig(keytab)[strings.Index(lab.DefaultConfig(keytab), "[service"):], "[service/lab]", "[service/more]\n  socket = SOCKET", 1)
}

// TestPIDFile: in the foreground there is one too, it is the last daemon's, and one that stops
// leaves that of another alone.
func TestPIDFile(t *testing.T) {
	needOurs(t)
	r := realm(t)
	binary := daemon(t, "ours", lab.Options{}).Cmd.Path
	dir := r.Path("pid-file")
	check(t, os.MkdirAll(filepath.Join(dir, "state"), 0o700))
	check(t, os.WriteFile(filepath.Join(dir, "gssproxy.conf"), []byte(lab.DefaultConfig(keytab(t))), 0o600))
	script := `cd "$0"
begin() { "$1" -i -c gssproxy.conf -s "$2" --state-dir state 2>"$2.log" & until grep -qs complete. "$2.log"; do sleep 0.1; done; }
begin "$1" one; one=$!; grep -qx $one pid && echo one is there
begin "$1" two; two=$!; kill $one; wait $one; echo one ended with $?; grep -qx $two pid && echo two is there
kill $two; wait $two; echo two ended with $?; ls pid 2>/dev/null || echo none is there`
	out, err := r.Run(lab.Root, []string{"KRB5RCACHENAME=none:", "GORACE=atexit_sleep_ms=0", "GSSPROXYD_PID_FILE=" + filepath.Join(dir, "pid")}, "/bin/sh", "-c", script, dir, binary)
	check(t, err)
	if want := "one is there\none ended with 0\ntwo is there\ntwo ended with 0\nnone is there\n"; out != want {
		t.Errorf("%s, want %s", out, want)
	}
}

// running tells whether a process is there and has not ended; one that has may stay a zombie where
// no init reaps it.
func running(pid int) bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	return err == nil && !strings.Contains(string(stat), ") Z ")
}

// TestRunAsUser: the daemon serves as another user, and no thread has a capability but the one for
// reading /proc.
func TestRunAsUser(t *testing.T) {
	needOurs(t)
	_, d := nobodysDaemon(t)
	check(t, lab.AcceptOne(alice(t), service, wire(t, d)))
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

// TestRunAsUserAmbient: what a service manager gives for that user stays, and what is inheritable
// without that, as some container runtimes leave it, does not.
func TestRunAsUserAmbient(t *testing.T) {
	needOurs(t)
	lab.NeedPrograms(t, "/usr/bin/setpriv")
	path := keytab(t)
	check(t, os.Chown(path, 65534, 65534))
	start := filepath.Join(t.TempDir(), "start")
	const kept = "-all,+dac_read_search"
	check(t, os.WriteFile(start, []byte("#!/bin/sh\nexec setpriv --inh-caps "+kept+",+setuid,+dac_override --ambient-caps "+kept+" "+
		daemon(t, "ours", lab.Options{}).Cmd.Path+" \"$@\"\n"), 0o755))
	d := daemon(t, "ours", lab.Options{
		Binary: start, Keytab: path, RCache: "none:", Becomes: lab.Nobody,
		Config: strings.Replace(lab.DefaultConfig(path), "[gssproxy]", "[gssproxy]\n  run_as_user = nobody", 1),
	})
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", d.PID()))
	check(t, err)
	const caps = "0000000000080004" // CAP_SYS_PTRACE, CAP_DAC_READ_SEARCH
	for _, want := range []string{"CapPrm:\t" + caps + "\n", "CapEff:\t" + caps + "\n", "CapBnd:\t" + caps + "\n"} {
		if !strings.Contains(string(status), want) {
			t.Errorf("%q expected in\n%s", want, status)
		}
	}
}

// TestRunAsRoot: root stays root, with all that it had, and needs no starter.
func TestRunAsRoot(t *testing.T) {
	needOurs(t)
	path := keytab(t)
	d := daemon(t, "ours", lab.Options{
		Keytab: path, RCache: "none:",
		Config: strings.Replace(lab.DefaultConfig(path), "[gssproxy]", "[gssproxy]\n  run_as_user = root", 1),
	})
	check(t, lab.AcceptOne(alice(t), service, wire(t, d)))
	capabilities := func(pid int) string {
		status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
		check(t, err)
		return strings.Join(regexp.MustCompile(`(?m)^(Uid|CapPrm|CapEff|CapBnd):.*`).FindAllString(string(status), -1), "\n")
	}
	if had, has := capabilities(os.Getpid()), capabilities(d.PID()); has != had {
		t.Errorf("it has %q, expected %q", has, had)
	}
	lists, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", d.PID()))
	check(t, err)
	helpers := 0
	for _, list := range lists {
		pids, err := os.ReadFile(list)
		check(t, err)
		for _, pid := range strings.Fields(string(pids)) {
			args, err := os.ReadFile("/proc/" + pid + "/cmdline")
			check(t, err)
			if strings.Contains(string(args), "\x00starter\x00") {
				t.Errorf("process %s is %q", pid, args)
			}
			helpers++
		}
	}
	if helpers == 0 {
		t.Error("no child was seen")
	}
}

// TestRunAsUserOfDirectory: the shipped program, which has no C library to ask, as a user whom only
// the name service knows, with the groups that it says, and with what belongs to a user being that
// user's.
func TestRunAsUserOfDirectory(t *testing.T) {
	needOurs(t)
	r := realm(t)
	start := nameService(t, "rich:x:31000:40000::/:\n", "one:x:40001:rich\ntwo:x:40002:rich,other\nthree:x:40003:other\n")
	check(t, lab.Build(filepath.Join(filepath.Dir(start), "gssproxyd"), false))
	dir, err := r.MkdirFor(lab.User{UID: 31000, GID: 40000}, "rich")
	check(t, err)
	path := keytab(t)
	check(t, os.Rename(path, filepath.Join(dir, "keytab-31000")))
	check(t, os.Chown(filepath.Join(dir, "keytab-31000"), 31000, 40000))
	krb5, err := r.Krb5Conf("krb5-rich.conf", "default_keytab_name = FILE:"+dir+"/keytab-%{euid}")
	check(t, err)
	d := daemon(t, "ours", lab.Options{
		Binary: start, Krb5Conf: krb5, Keytab: "/nonexistent/keytab", Becomes: lab.User{UID: 31000, GID: 40000},
		Env:    []string{"KRB5_KTNAME=", "KRB5RCACHENAME=", "KRB5RCACHEDIR=" + dir},
		Config: "[gssproxy]\nrun_as_user = rich\n[service/lab]\nmechs = krb5\neuid = 0\nallow_any_uid = yes\ncred_usage = accept\n",
	})
	check(t, lab.AcceptOne(alice(t), service, wire(t, d)))
	st, err := os.Stat(filepath.Join(dir, "krb5_31000.rcache2"))
	check(t, err)
	if owner := st.Sys().(*syscall.Stat_t).Uid; owner != 31000 {
		t.Errorf("the replay cache belongs to uid %d", owner)
	}
	tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", d.PID()))
	check(t, err)
	const ptrace = "0000000000080000"
	for _, task := range tasks {
		status, err := os.ReadFile(task)
		check(t, err)
		for _, want := range []string{
			"Uid:\t31000\t31000\t31000\t31000\n", "Gid:\t40000\t40000\t40000\t40000\n", "Groups:\t40000 40001 40002 \n",
			"CapInh:\t0000000000000000\n", "CapPrm:\t" + ptrace + "\n", "CapEff:\t" + ptrace + "\n", "CapBnd:\t" + ptrace + "\n",
		} {
			if !strings.Contains(string(status), want) {
				t.Errorf("%s: %q expected in\n%s", task, want, status)
			}
		}
	}
}

// TestNameServiceHangs: a name service that says nothing delays a reload, and neither the watchdog,
// nor clients, nor a stop. At start it is a failure that may pass, and no error in the
// configuration.
func TestNameServiceHangs(t *testing.T) {
	needOurs(t)
	start := nameService(t, "", "")
	manager, said := manager(t)
	d := daemon(t, "ours", lab.Options{Binary: start, Env: []string{"NOTIFY_SOCKET=" + manager, "WATCHDOG_USEC=1500000"}})
	initiator, w := alice(t), wire(t, d)
	said(t, "READY=1")
	hanging := d.Options.Config
	for i := range 4 {
		hanging += fmt.Sprintf("[service/slow%d]\nmechs = krb5\neuid = slow%d\nprogram = /bin/%d\n", i, i, i)
	}
	check(t, d.Configure(hanging))
	check(t, d.Cmd.Process.Signal(syscall.SIGHUP))
	said(t, "RELOADING=1")
	for range 5 {
		said(t, "WATCHDOG=1")
		check(t, lab.AcceptOne(initiator, service, w))
	}
	if strings.Contains(d.Output(), "keeping the former one") {
		t.Error("nothing hangs here: the test shows nothing")
	}
	check(t, d.Stop())
	if strings.Contains(d.Output(), "keeping the former one") {
		t.Error("the stop came after the reload, not before")
	}

	check(t, d.Configure(hanging[:strings.Index(hanging, "[service/slow1]")]))
	if err := d.Start(); err == nil || !strings.Contains(err.Error(), "exit status 1") || !strings.Contains(err.Error(), "cannot be looked up") {
		t.Errorf("started with %v", err)
	}
	check(t, d.Configure(d.Options.Config))
	check(t, d.Start()) // for the end of the test
}

// TestUserAdded: a user that the name service did not know a moment ago is known to the next
// reload.
func TestUserAdded(t *testing.T) {
	needOurs(t)
	start := nameService(t, "", "")
	d := daemon(t, "ours", lab.Options{Binary: start})
	check(t, d.Configure(d.Options.Config+"\n[service/new]\nmechs = krb5\neuid = newcomer\nprogram = /bin/true\n"))
	check(t, d.Cmd.Process.Signal(syscall.SIGHUP))
	check(t, d.WaitOutput("is not a user of this system", lab.Patience))
	check(t, os.WriteFile(filepath.Join(filepath.Dir(start), "extrausers", "passwd"), []byte("newcomer:x:31001:31001::/:\n"), 0o644))
	check(t, d.Reload())
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
	check(t, p.WaitOutput("Initialization complete.", lab.Patience))

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
	if err := lab.AcceptOne(alice(t), service, wire(t, &own)); err == nil {
		t.Error("root is served by the proxy of nobody")
	}

	// With a place for each thing it needs no runtime directory.
	check(t, p.Stop())
	other := nobodyDir(t)
	p, err = r.Start(r.Command(lab.Nobody, nil, d.Cmd.Path, "-u", "-s", filepath.Join(other, "sock"), "--state-dir", filepath.Join(other, "state")), r.Path("userproxy.log"))
	check(t, err)
	defer p.Stop()
	check(t, p.WaitOutput("Initialization complete.", lab.Patience))
	if _, err := os.Stat(filepath.Join(other, "state", "handle.key")); err != nil {
		t.Error(err)
	}
}

// TestNoStateDir: a user who may not write to the default state directory, and has named no other,
// has a daemon that keeps its key in memory, and is told once what that costs. One that was named
// and cannot be used is an error.
func TestNoStateDir(t *testing.T) {
	needOurs(t)
	r := realm(t)
	d := daemon(t, "ours", lab.Options{})
	path := keytab(t)
	check(t, os.Chown(path, int(lab.Nobody.UID), int(lab.Nobody.GID)))
	dir := nobodyDir(t)
	config := filepath.Join(dir, "gssproxy.conf")
	check(t, os.WriteFile(config, []byte("[service/own]\nmechs = krb5\neuid = nobody\ncred_store = keytab:"+path+"\n"), 0o644))
	own := *d
	own.Socket = filepath.Join(dir, "sock")
	start := func(args ...string) *lab.Process {
		t.Helper()
		env := []string{"KRB5_CONFIG=" + r.Conf, "KRB5_KTNAME=" + path, "KRB5RCACHENAME=none:", "GSSPROXYD_PID_FILE=" + filepath.Join(dir, "pid")}
		p, err := r.Start(r.Command(lab.Nobody, env, d.Cmd.Path, append(args, "-s", own.Socket)...), r.Path("nostatedir.log"))
		check(t, err)
		t.Cleanup(func() { p.Stop() })
		return p
	}
	for _, args := range [][]string{{"-u"}, {"-i", "-c", config}} {
		p := start(args...)
		check(t, p.WaitOutput("Initialization complete.", lab.Patience))
		if n := strings.Count(p.Output(), "in memory only"); n != 1 || !strings.Contains(p.Output(), "--state-dir") {
			t.Errorf("%s: said %d times:\n%s", args, n, p.Output())
		}
		acceptor := tool(t, lab.Nobody, append(own.PluginEnv(), "KRB5CCNAME=MEMORY:x")...)
		check(t, acceptor.Acquire(service))
		_, token, err := alice(t).Init(service, lab.Usual|lab.Mutual, nil)
		check(t, err)
		_, err = acceptor.Accept(token, nil)
		check(t, err)
		check(t, p.Stop())

		p = start(append(args, "--state-dir", filepath.Join(dir, "is", "not", "there"))...)
		select {
		case <-p.Done():
		case <-time.After(lab.Patience):
			t.Fatalf("%s: starts with a state directory that was named and cannot be made", args)
		}
		if !strings.Contains(p.Output(), "the key for client-held handles") {
			t.Errorf("%s: %s", args, p.Output())
		}
	}
}

// TestSocketActivation: the one socket that a service manager passes is served until nobody has
// come for a while.
func TestSocketActivation(t *testing.T) {
	needOurs(t)
	r := realm(t)
	d := daemon(t, "ours", lab.Options{})
	dir := nobodyDir(t)
	path := filepath.Join(dir, "passed.sock")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	check(t, err)
	defer l.Close()
	check(t, os.Chmod(path, 0o666))
	f, err := l.File()
	check(t, err)
	defer f.Close()
	cmd := r.Command(lab.Nobody, []string{"LISTEN_FDS=1"}, "/bin/sh", "-c", `LISTEN_PID=$$ exec "$@"`, "sh",
		d.Cmd.Path, "-u", "--idle-timeout=1", "--state-dir", filepath.Join(dir, "state"))
	cmd.ExtraFiles = []*os.File{f}
	// Who is there before the daemon comes before it has been idle, however slow the machine is.
	w, err := d.WireAs(lab.Nobody, path)
	check(t, err)
	defer w.Close()
	_, err = w.Write(lab.Record(1, xdr.ProcIndicateMechs, new(xdr.ArgIndicateMechs)))
	check(t, err)
	p, err := r.Start(cmd, r.Path("activation.log"))
	check(t, err)
	defer p.Stop()
	_, err = w.Receive()
	check(t, err)
	select {
	case <-p.Done():
	case <-time.After(lab.Patience):
		t.Fatal("it does not end when idle")
	}
	if !strings.Contains(p.Output(), "Terminating, after idling for 1 seconds!") {
		t.Error(p.Output())
	}
}

// manager is a service manager that listens: the path of its socket, and a function that waits
// until something is said.
func manager(t *testing.T) (path string, said func(t *testing.T, want string)) {
	t.Helper()
	path = realm(t).Path("notify")
	l, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	check(t, err)
	t.Cleanup(func() { l.Close() })
	return path, func(t *testing.T, want string) {
		t.Helper()
		buf := make([]byte, 4096)
		l.SetReadDeadline(time.Now().Add(lab.Patience))
		for {
			n, err := l.Read(buf)
			if err != nil {
				t.Fatalf("%s was not said: %v", want, err)
			}
			if strings.Contains("\n"+string(buf[:n])+"\n", "\n"+want+"\n") {
				return
			}
		}
	}
}

// TestNotify: the service manager is told when the daemon serves, reloads and stops, and in between
// that it lives.
func TestNotify(t *testing.T) {
	needOurs(t)
	path, said := manager(t)
	d := daemon(t, "ours", lab.Options{Env: []string{"NOTIFY_SOCKET=" + path, "WATCHDOG_USEC=3000000"}})
	said(t, "READY=1")
	for range 3 {
		said(t, "WATCHDOG=1")
	}
	check(t, d.Reload())
	said(t, "RELOADING=1")
	said(t, "READY=1")
	check(t, d.Stop())
	said(t, "STOPPING=1")
	check(t, d.Start())
}
