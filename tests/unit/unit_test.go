package unit

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"gssproxyd/tests/lab"
	"gssproxyd/xdr"
)

const (
	service   = "host@" + lab.Host
	principal = "alice@" + lab.Name
)

// Which process has which rights, and no more.
func TestRights(t *testing.T) {
	start(t, nil)
	if state := property(t, "ActiveState"); state != "active" {
		t.Errorf("the unit is %s", state)
	}
	if text := property(t, "StatusText"); text != "Serving" {
		t.Errorf("the unit's status is %q", text)
	}
	user := account(t, "gssproxyd")
	capabilities := func(p process, name string) uint64 {
		n, err := strconv.ParseUint(p.status[name], 16, 64)
		check(t, err)
		return n
	}
	set := func(capabilities ...int) (n uint64) {
		for _, c := range capabilities {
			n |= 1 << c
		}
		return n
	}
	bound := set(unix.CAP_SYS_PTRACE, unix.CAP_DAC_READ_SEARCH, unix.CAP_SETUID, unix.CAP_SETGID, unix.CAP_KILL)
	expect := func(p process, uid int, has, mayInherit uint64) {
		t.Helper()
		if got := p.uid(t); got != uid {
			t.Errorf("%q is uid %d, not %d", p.args, got, uid)
		}
		for name, want := range map[string]uint64{"CapPrm": has, "CapEff": has, "CapInh": mayInherit, "CapAmb": 0} {
			if got := capabilities(p, name); got != want {
				t.Errorf("%q: %s is %#x, not %#x", p.args, name, got, want)
			}
		}
		if got := capabilities(p, "CapBnd"); got&^bound != 0 {
			t.Errorf("%q: CapBnd is %#x, more than %#x", p.args, got, bound)
		}
		if p.status["NoNewPrivs"] != "1" || p.status["Seccomp"] != "2" {
			t.Errorf("%q: no_new_privs %s, seccomp %s", p.args, p.status["NoNewPrivs"], p.status["Seccomp"])
		}
		if i, err := os.Stat(fmt.Sprintf("/proc/%d/mem", p.pid)); err != nil || i.Sys().(*syscall.Stat_t).Uid != 0 {
			t.Errorf("%q: its memory may be read by its user: %v", p.args, err)
		}
	}
	d := one(t, "")
	expect(d, user, set(unix.CAP_SYS_PTRACE, unix.CAP_DAC_READ_SEARCH), 0)
	if strconv.Itoa(d.pid) != property(t, "MainPID") {
		t.Errorf("the daemon is %d, the unit's main process %s", d.pid, property(t, "MainPID"))
	}
	expect(one(t, "starter"), 0, set(unix.CAP_SETUID, unix.CAP_SETGID, unix.CAP_KILL), 0)
	helpers := 0
	for _, p := range processes(t) {
		if !p.is("nss-helper") {
			continue
		}
		helpers++
		expect(p, p.uid(t), 0, 0)
		nobodys(t, p)
	}
	if helpers == 0 {
		t.Error("no process asks the name service")
	}
}

// nobodys sees that a process runs as a user that nobody else is.
func nobodys(t *testing.T, p process) {
	t.Helper()
	if uid := p.uid(t); uid == 0 || passwd(strconv.Itoa(uid)) != nil {
		t.Errorf("%q is uid %d, who is %q", p.args, uid, passwd(strconv.Itoa(uid)))
	}
}

// Whoever installs the packages has a daemon with which root accepts for host/.
func TestRootAccepts(t *testing.T) {
	r := start(t, nil)
	accepts(t, program(t, r, lab.Root, defaultSocket), alice(t, r), service, principal)
	if err := program(t, r, lab.Nobody, defaultSocket).Acquire(service); err == nil {
		t.Error("somebody else accepts for host/")
	}
	for command, want := range map[string]string{"check": "", "status": defaultSocket + ": answered by process " + property(t, "MainPID") + " (/usr/sbin/gssproxyd), socket opened by uid 0"} {
		out, err := exec.Command("/usr/sbin/gssproxyd", command).CombinedOutput()
		if err != nil || !strings.Contains(string(out), want) || strings.Contains(string(out), "warning") {
			t.Errorf("gssproxyd %s: %v\n%s", command, err, out)
		}
	}
	if out, err := exec.Command("runuser", "-u", "nobody", "--", "/usr/sbin/gssproxyd", "status").CombinedOutput(); err != nil {
		t.Errorf("gssproxyd status, as nobody: %v\n%s", err, out)
	}
}

// A socket that a reload adds is root's, since the programs in front of it believe no other.
func TestReload(t *testing.T) {
	r := start(t, nil)
	const socket = "/run/added/sock"
	check(t, os.MkdirAll("/run/added", 0o755))
	before := one(t, "").pid
	write(t, "/etc/gssproxy/10-added.conf", "[service/added]\n  mechs = krb5\n  cred_store = keytab:/etc/krb5.keytab\n  cred_usage = accept\n  euid = nobody\n  socket = "+socket+"\n")
	t.Cleanup(func() { os.Remove("/etc/gssproxy/10-added.conf") })
	for _, p := range processes(t) {
		if p.is("nss-helper") { // who is nobody is asked at the reload
			check(t, unix.Kill(p.pid, unix.SIGKILL))
		}
	}
	lab.Await(t, socket, func() bool {
		systemctl(t, "reload", "gssproxyd") // again, when it was asked before the daemon knew of the helper's end
		c, err := net.Dial("unix", socket)
		if err != nil {
			return false
		}
		c.Close()
		return true
	})
	c, err := net.Dial("unix", socket)
	check(t, err)
	defer c.Close()
	f, err := c.(*net.UnixConn).File()
	check(t, err)
	defer f.Close()
	cred, err := unix.GetsockoptUcred(int(f.Fd()), unix.SOL_SOCKET, unix.SO_PEERCRED)
	check(t, err)
	if cred.Uid != 0 || int(cred.Pid) != one(t, "starter").pid {
		t.Errorf("%s is listened on by uid %d, process %d", socket, cred.Uid, cred.Pid)
	}
	accepts(t, program(t, r, lab.Nobody, socket), alice(t, r), service, principal)
	accepts(t, program(t, r, lab.Root, defaultSocket), alice(t, r), service, principal)
	helpers := 0
	for _, p := range processes(t) {
		if p.is("nss-helper") {
			helpers++
			nobodys(t, p)
		}
	}
	if helpers == 0 {
		t.Error("no helper has taken the place of those that were killed")
	}
	if one(t, "").pid != before {
		t.Error("the daemon is another one after the reload")
	}
	lab.Await(t, "ready again", func() bool { return property(t, "StatusText") == "Serving" })
	os.Remove("/etc/gssproxy/10-added.conf")
	systemctl(t, "reload", "gssproxyd")
	lab.Await(t, "a socket that nobody names any more", func() bool {
		_, err := net.Dial("unix", socket)
		return err != nil
	})
}

// Keytabs that only their owner may read are read.
func TestKeytabOfAnother(t *testing.T) {
	r := host(t)
	keytab := r.Path("another.keytab")
	check(t, r.Ktadd(keytab, "svc/"+lab.Host))
	check(t, os.Chown(keytab, account(t, "www-data"), 0))
	dir := r.Path("closed")
	check(t, os.Mkdir(dir, 0o700))
	check(t, os.Rename(keytab, filepath.Join(dir, "keytab")))
	start(t, map[string]string{"/etc/gssproxy/10-svc.conf": "[service/svc]\n  mechs = krb5\n  cred_store = keytab:" + dir + "/keytab\n  cred_usage = accept\n  euid = nobody\n"})
	accepts(t, program(t, r, lab.Nobody, defaultSocket), alice(t, r), "svc@"+lab.Host, principal)
}

// The daemon has a mount namespace of its own, in which the program that a caller runs is the same file.
func TestProgram(t *testing.T) {
	r := host(t)
	keytab := r.Path("program.keytab")
	check(t, r.Ktadd(keytab, "svc/"+lab.Host))
	start(t, map[string]string{"/etc/gssproxy/10-svc.conf": "[service/svc]\n  mechs = krb5\n  cred_store = keytab:" + keytab + "\n  cred_usage = accept\n  euid = nobody\n  program = " +
		filepath.Join(r.Dir, "gsstool") + "\n  program_trusted = yes\n"})
	accepts(t, program(t, r, lab.Nobody, defaultSocket), alice(t, r), "svc@"+lab.Host, principal)
}

// clients is a configuration with which nobody initiates with a keytab in the daemon's directory, as
// those do for whom 99-network-fs-clients.conf is.
var clients = map[string]string{"/etc/gssproxy/10-clients.conf": `[service/clients]
  mechs = krb5
  cred_store = client_keytab:/var/lib/gssproxy/clients/%U.keytab
  cred_store = ccache:FILE:/var/lib/gssproxy/clients/krb5cc_%U
  cred_usage = initiate
  euid = nobody
`}

const (
	clientKeytab = "/var/lib/gssproxy/clients/65534.keytab"
	clientCache  = "/var/lib/gssproxy/clients/krb5cc_65534"
)

// giveKeytab gives nobody a keytab in the daemon's directory.
func giveKeytab(t *testing.T, r *lab.Realm) {
	t.Helper()
	if err := r.RandKey("nobody"); err != nil && !strings.Contains(err.Error(), "already exists") {
		t.Fatal(err)
	}
	os.Remove(clientKeytab)
	check(t, r.Ktadd(clientKeytab, "nobody"))
	t.Cleanup(func() {
		os.Remove(clientKeytab)
		os.Remove(clientCache)
	})
}

func TestInitiate(t *testing.T) {
	r := start(t, clients)
	giveKeytab(t, r)
	acceptor, err := r.Tool(lab.Root, "KRB5_KTNAME=FILE:/etc/krb5.keytab", "KRB5RCACHENAME=none:")
	check(t, err)
	defer acceptor.Close()
	accepts(t, acceptor, program(t, r, lab.Nobody, defaultSocket), service, "nobody@"+lab.Name)
	owned(t, clientCache, 0o600)
}

// dropIn is a drop-in of the unit's as it is shipped.
func dropIn(t *testing.T, name string) map[string]string {
	t.Helper()
	text, err := os.ReadFile("../../dist/gssproxyd.service.d/" + name)
	check(t, err)
	return map[string]string{"/etc/systemd/system/gssproxyd.service.d/" + name: string(text)}
}

// Without the network root accepts, and who initiates is told what is missing.
func TestAcceptOnly(t *testing.T) {
	files := dropIn(t, "accept-only.conf")
	maps.Copy(files, clients)
	r := start(t, files)
	giveKeytab(t, r)
	accepts(t, program(t, r, lab.Root, defaultSocket), alice(t, r), service, principal)
	_, _, err := program(t, r, lab.Nobody, defaultSocket).Init(service, lab.Usual, nil)
	if err == nil || !strings.Contains(err.Error(), "kdc-unreachable") {
		t.Errorf("without the network: %v", err)
	}
}

// A cache that is a file of a user's is read. It is written to with the drop-in for that, and is the
// user's still.
func TestUsersCaches(t *testing.T) {
	r := host(t)
	for _, with := range []bool{false, true} {
		t.Run(fmt.Sprintf("drop-in %v", with), func(t *testing.T) {
			env, err := r.Kinit("alice", "alice")
			check(t, err)
			cache := strings.TrimPrefix(env[len(env)-1], "KRB5CCNAME=FILE:")
			dir, err := r.MkdirFor(lab.Root, "sticky")
			check(t, err)
			check(t, os.Chmod(dir, 0o777|fs.ModeSticky))
			check(t, os.Rename(cache, filepath.Join(dir, "cache")))
			cache = filepath.Join(dir, "cache")
			check(t, os.Chmod(cache, 0o600))
			check(t, os.Chown(cache, int(lab.Nobody.UID), int(lab.Nobody.GID)))
			files := map[string]string{"/etc/gssproxy/10-users.conf": "[service/users]\n  mechs = krb5\n  cred_store = ccache:FILE:" + cache + "\n  cred_usage = initiate\n  euid = nobody\n"}
			if with {
				maps.Copy(files, dropIn(t, "users-caches.conf"))
			}
			start(t, files)
			_, _, err = program(t, r, lab.Nobody, defaultSocket).Init(service, lab.Usual, nil)
			check(t, err)
			tickets, err := r.Run(lab.Nobody, nil, "/usr/bin/klist", cache)
			check(t, err)
			if written := strings.Contains(tickets, "host/"+lab.Host); written != with {
				t.Errorf("the ticket for the service is in the cache: %v\n%s", written, tickets)
			}
			if i, err := os.Stat(cache); err != nil || i.Sys().(*syscall.Stat_t).Uid != lab.Nobody.UID || i.Mode() != 0o600 {
				t.Errorf("the cache: %v, %v", i, err)
			}
		})
	}
}

// A socket gets a group with what the unit gives the daemon, at the start and by the starter. Another
// owner takes the drop-in for that, and comes back after a restart.
func TestSocketAccess(t *testing.T) {
	const socket = "/run/access/sock"
	for _, with := range []bool{false, true} {
		t.Run(fmt.Sprintf("drop-in %v", with), func(t *testing.T) {
			check(t, os.MkdirAll("/run/access", 0o755))
			t.Cleanup(func() { os.Remove(socket) })
			const file = "/etc/gssproxy/10-access.conf"
			text := func(lines string) string {
				return "[service/access]\n  mechs = krb5\n  cred_store = keytab:/etc/krb5.keytab\n  cred_usage = accept\n  euid = nobody\n  socket = " + socket + "\n" + lines
			}
			files := map[string]string{file: text("socket_group = nogroup\nsocket_mode = 0660\n")}
			if with {
				maps.Copy(files, dropIn(t, "socket-owner.conf"))
			}
			r := start(t, files)
			is := func(mode fs.FileMode, uid, gid uint32) bool {
				i, err := os.Stat(socket)
				check(t, err)
				sys := i.Sys().(*syscall.Stat_t)
				return i.Mode().Perm() == mode && sys.Uid == uid && sys.Gid == gid
			}
			reload := func(lines, what string, done func() bool) {
				t.Helper()
				write(t, file, text(lines))
				systemctl(t, "reload", "gssproxyd")
				lab.Await(t, what, done)
			}
			if !is(0o660, 0, lab.Nobody.GID) {
				t.Error("the socket does not have its group")
			}
			accepts(t, program(t, r, lab.Nobody, socket), alice(t, r), service, principal)
			if err := program(t, r, lab.User{UID: 4714, GID: 4714}, socket).Acquire(service); err == nil {
				t.Error("somebody else is served")
			}
			reload("socket_group = daemon\nsocket_mode = 0606\n", "the group is not changed", func() bool { return is(0o606, 0, 1) })
			accepts(t, program(t, r, lab.Nobody, socket), alice(t, r), service, principal)
			const theirs = "socket_owner = nobody\nsocket_mode = 0600\n"
			if !with {
				reload(theirs, "nobody says what is lacking", func() bool { return property(t, "StatusText") == "Serving (failed to open all sockets)" })
				if is(0o600, lab.Nobody.UID, 0) {
					t.Error("the socket has another owner without CAP_CHOWN")
				}
				return
			}
			owned := func() bool { return is(0o600, lab.Nobody.UID, 0) }
			reload(theirs, "the owner is not changed", owned)
			accepts(t, program(t, r, lab.Nobody, socket), alice(t, r), service, principal)
			systemctl(t, "restart", "gssproxyd")
			if !owned() {
				t.Error("after a restart the owner is another one")
			}
			accepts(t, program(t, r, lab.Nobody, socket), alice(t, r), service, principal)
		})
	}
}

// owned sees that a file is the daemon's user's.
func owned(t *testing.T, name string, mode fs.FileMode) {
	t.Helper()
	i, err := os.Stat(name)
	check(t, err)
	if uid := int(i.Sys().(*syscall.Stat_t).Uid); uid != account(t, "gssproxyd") || i.Mode().Perm() != mode {
		t.Errorf("%s is uid %d's, mode %v", name, uid, i.Mode())
	}
}

// What the daemon has to know after a restart is where it looks for it: replays, and the key of what
// clients keep.
func TestRestart(t *testing.T) {
	r := start(t, nil)
	client := alice(t, r)
	tokens, err := client.Tokens(2, service, lab.Usual, nil)
	check(t, err)
	accept := func(token []byte) error {
		t.Helper()
		res, err := wire(t).Accept(token, nil)
		check(t, err)
		if res.Status.MajorStatus != 0 {
			return errors.New(string(res.Status.MinorStatusString))
		}
		return nil
	}
	acquire := func(arg xdr.ArgAcquireCred) xdr.Cred {
		t.Helper()
		var res xdr.ResAcquireCred
		check(t, wire(t).Call(xdr.ProcAcquireCred, &arg, &res))
		if res.Status.MajorStatus != 0 {
			t.Fatalf("no credential: %s", res.Status.MinorStatusString)
		}
		return res.OutputCredHandle.V
	}
	check(t, accept(tokens[0]))
	cred := acquire(xdr.ArgAcquireCred{CredUsage: xdr.CredAccept})
	before := one(t, "").pid
	systemctl(t, "restart", "gssproxyd")
	if one(t, "").pid == before {
		t.Fatal("it was not started again")
	}
	if err := accept(tokens[0]); err == nil || !strings.Contains(err.Error(), "replay") {
		t.Errorf("a replay after the restart: %v", err)
	}
	check(t, accept(tokens[1]))
	again := acquire(xdr.ArgAcquireCred{CredUsage: xdr.CredAccept, InputCredHandle: xdr.Some(cred)})
	if !bytes.Equal(again.Append(nil), cred.Append(nil)) {
		t.Error("what a client has kept does not open after the restart")
	}
	owned(t, "/var/lib/gssproxy/state/handle.key", 0o600)
}

// pidfd follows a process, whoever has its number later.
func pidfd(t *testing.T, pid int) (ended func() bool) {
	t.Helper()
	fd, err := unix.PidfdOpen(pid, 0)
	check(t, err)
	t.Cleanup(func() { unix.Close(fd) })
	return func() bool {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0)
		return err == nil && n == 1
	}
}

func TestStop(t *testing.T) {
	start(t, nil)
	const file = "/run/gssproxy.pid"
	if b, err := os.ReadFile(file); err != nil || string(b) != property(t, "MainPID")+"\n" {
		t.Errorf("the pid file has %q: %v", b, err)
	}
	var ended []func() bool
	for _, p := range processes(t) {
		ended = append(ended, pidfd(t, p.pid))
	}
	if len(ended) < 3 {
		t.Errorf("only %d processes", len(ended))
	}
	systemctl(t, "stop", "gssproxyd")
	if slices.ContainsFunc(ended, func(ended func() bool) bool { return !ended() }) || len(processes(t)) > 0 {
		t.Error("a process has survived")
	}
	if _, err := os.Lstat(file); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the pid file: %v", err)
	}
	if got := property(t, "Result"); got != "success" {
		t.Errorf("it ended with %s", got)
	}
}

// comesBack sees that another daemon takes the place of the one there is, which end ends, and that
// nothing is left of that.
func comesBack(t *testing.T, r *lab.Realm, end func(pid int) error) {
	t.Helper()
	d, ended := one(t, ""), []func() bool{}
	for _, p := range processes(t) {
		ended = append(ended, pidfd(t, p.pid))
	}
	check(t, end(d.pid))
	lab.Await(t, "another daemon", func() bool {
		return property(t, "MainPID") != strconv.Itoa(d.pid) && property(t, "ActiveState") == "active"
	})
	for _, ended := range ended {
		lab.Await(t, "the end of all of the former daemon's processes", ended)
	}
	accepts(t, program(t, r, lab.Root, defaultSocket), alice(t, r), service, principal)
	one(t, "starter")
}

func TestKilled(t *testing.T) {
	r := start(t, nil)
	comesBack(t, r, func(pid int) error { return unix.Kill(pid, unix.SIGKILL) })
}

// A daemon that hangs is found out, and ends with SIGABRT, as one does that crashes: not with the exit
// status of a configuration with errors. The Go runtime takes its time over that, and the shipped
// limit is longer still.
func TestNightlyWatchdog(t *testing.T) {
	lab.Nightly(t)
	start(t, nil)
	if got := property(t, "WatchdogUSec"); got != "30s" {
		t.Errorf("the unit's limit is %s", got)
	}
	systemctl(t, "stop", "gssproxyd")
	r := start(t, map[string]string{"/etc/systemd/system/gssproxyd.service.d/watchdog.conf": "[Service]\nWatchdogSec=2s\nStartLimitBurst=1000\n"})
	first := property(t, "WatchdogTimestampMonotonic")
	lab.Await(t, "a sign of life", func() bool { return property(t, "WatchdogTimestampMonotonic") != first })
	comesBack(t, r, func(pid int) error { return unix.Kill(pid, unix.SIGSTOP) })
}

// The C daemon's unit may be started in between, as in a migration, and leaves nothing that ours
// cannot use. It waits for ours to end, which may take a while: both have the pid file.
func TestCDaemonBetween(t *testing.T) {
	files := maps.Clone(clients)
	other := filepath.Join(t.TempDir(), "other")
	files["/etc/systemd/system/gssproxyd.service.d/slow.conf"] = fmt.Sprintf(`[Service]
ExecStopPost=+/bin/sh -c 'sleep 0.5; systemctl show --property=ActiveState --value gssproxy >%s'
`, other)
	r := start(t, files)
	giveKeytab(t, r)
	initiate := func() {
		t.Helper()
		_, _, err := program(t, r, lab.Nobody, defaultSocket).Init(service, lab.Usual, nil)
		check(t, err)
	}
	initiate()
	tokens, err := alice(t, r).Tokens(1, service, lab.Usual, nil)
	check(t, err)
	systemctl(t, "start", "gssproxy")
	if got := property(t, "ActiveState"); got != "inactive" {
		t.Errorf("beside the C daemon ours is %s", got)
	}
	if got, err := os.ReadFile(other); err != nil || string(got) != "inactive\n" {
		t.Errorf("when ours ended the C daemon was %q, %v", got, err)
	}
	check(t, os.Chown("/var/lib/gssproxy/clients", 0, 0)) // some have their unit do that
	c, err := net.Dial("unix", defaultSocket)
	check(t, err)
	c.Close()
	systemctl(t, "start", "gssproxyd")
	if out, _ := exec.Command("systemctl", "is-active", "gssproxy").Output(); string(out) != "inactive\n" {
		t.Errorf("beside ours the C daemon is %s", out)
	}
	os.Remove(clientCache)
	initiate()
	owned(t, clientCache, 0o600)
	for i, want := range []string{"", "replay"} {
		res, err := wire(t).Accept(tokens[0], nil)
		check(t, err)
		if got := string(res.Status.MinorStatusString); !strings.Contains(got, want) || (res.Status.MajorStatus == 0) != (want == "") {
			t.Errorf("time %d: %q", i+1, got)
		}
	}
}

// A configuration with errors is said, and not tried again.
func TestConfigurationError(t *testing.T) {
	host(t)
	write(t, "/etc/gssproxy/10-bad.conf", "[service/bad]\n  mechs = krb6\n")
	t.Cleanup(func() {
		os.Remove("/etc/gssproxy/10-bad.conf")
		systemctl(t, "reset-failed", "gssproxyd")
	})
	if out, err := exec.Command("systemctl", "start", "gssproxyd").CombinedOutput(); err == nil {
		t.Errorf("it starts: %s", out)
	}
	lab.Await(t, "a unit that has failed", func() bool { return property(t, "ActiveState") == "failed" })
	if restarts := property(t, "NRestarts"); restarts != "0" {
		t.Errorf("%s restarts", restarts)
	}
}
