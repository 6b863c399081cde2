// Package unit tests the unit as it is shipped: files of "make install", the user and the
// configuration of the packages, and a real systemd that starts the daemon.
package unit

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"gssproxyd/tests/booted"
	"gssproxyd/tests/lab"
)

// shared is the one realm of the package, on whose host the daemon is installed.
var shared lab.Shared

func TestMain(m *testing.M) {
	os.Exit(booted.Run(true, func() int { return shared.Run(m) }))
}

// defaultSocket is where clients look for a daemon.
const defaultSocket = "/var/lib/gssproxy/default.sock"

// installed is the tree of what make install takes.
var installed string

// host is the host of a realm with the daemon as "make install" and the packages' scripts have it:
// installed, not started. Its keytab has keys of host/ and svc/.
func host(t *testing.T) *lab.Realm {
	t.Helper()
	return shared.Raise(t, install)
}

func install(r *lab.Realm) error {
	for _, s := range []string{"host", "svc"} {
		if err := r.RandKey(s + "/" + lab.Host); err != nil {
			return err
		}
	}
	if err := r.Ktadd("/etc/krb5.keytab", "host/"+lab.Host); err != nil {
		return err
	}
	conf, err := os.ReadFile(r.Conf)
	if err != nil {
		return err
	}
	root, err := os.ReadFile("../../dist/packages/99-root.conf")
	if err != nil {
		return err
	}
	if err := os.RemoveAll("/etc/gssproxy"); err != nil { // the C daemon's package may have examples in it
		return err
	}
	if err := os.Mkdir("/etc/gssproxy", 0o755); err != nil {
		return err
	}
	for name, text := range map[string]string{
		"/etc/krb5.conf":              string(conf),
		"/etc/gssproxy/gssproxy.conf": "[gssproxy]\n",
		"/etc/gssproxy/99-root.conf":  string(root),
	} {
		if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
			return err
		}
	}
	// make install takes what it finds below bin, which in the checkout may be an old one.
	tree := r.Path("tree")
	installed = tree
	if err := os.MkdirAll(filepath.Join(tree, "bin"), 0o755); err != nil {
		return err
	}
	if err := lab.Build(filepath.Join(tree, "bin/gssproxyd"), false); err != nil {
		return err
	}
	for _, name := range []string{"Makefile", "README.md", "CHANGELOG.md", "LICENSE", "dist", "docs"} {
		from, err := filepath.Abs(filepath.Join("../..", name))
		if err != nil {
			return err
		}
		if err := os.Symlink(from, filepath.Join(tree, name)); err != nil {
			return err
		}
	}
	for _, command := range [][]string{
		{"make", "-s", "-C", tree, "install", "PREFIX=/usr"},
		{"systemd-sysusers", "gssproxyd.conf"},
		{"systemctl", "daemon-reload"},
	} {
		cmd := exec.Command(command[0], command[1:]...)
		cmd.Env = append(os.Environ(), "MAKEFLAGS=")
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("%s: %w\n%s", strings.Join(command, " "), err, out)
		}
	}
	return nil
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// systemctl runs systemctl, which must succeed, and returns what it says.
func systemctl(t *testing.T, args ...string) string {
	t.Helper()
	out, err := exec.Command("systemctl", args...).CombinedOutput()
	if err != nil {
		t.Fatalf("systemctl %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return strings.TrimSpace(string(out))
}

// property is a property of our unit.
func property(t *testing.T, name string) string {
	t.Helper()
	return systemctl(t, "show", "--value", "--property="+name, "gssproxyd")
}

// start starts the unit, with files besides those of the packages until the test's end. What the unit
// has said is shown when the test fails.
func start(t *testing.T, files map[string]string) *lab.Realm {
	t.Helper()
	r := host(t)
	since := strconv.FormatFloat(float64(time.Now().UnixMicro())/1e6, 'f', 6, 64)
	t.Cleanup(func() {
		systemctl(t, "stop", "gssproxyd")
		for name := range files {
			os.Remove(name)
		}
		systemctl(t, "daemon-reload")
		if t.Failed() {
			exec.Command("journalctl", "--sync").Run()
			out, _ := exec.Command("journalctl", "--no-pager", "--output=cat", "--unit=gssproxyd", "--unit=gssproxy", "--since=@"+since).CombinedOutput()
			t.Logf("the journal of the unit, and of the C daemon's:\n%s", out)
		}
	})
	for name, text := range files {
		write(t, name, text)
	}
	systemctl(t, "daemon-reload")
	exec.Command("systemctl", "reset-failed", "gssproxyd").Run() // how often it was started, if systemd still knows
	if out, err := exec.Command("systemctl", "start", "gssproxyd").CombinedOutput(); err != nil {
		t.Fatalf("the unit does not start: %v\n%s", err, out)
	}
	return r
}

func write(t *testing.T, name, text string) {
	t.Helper()
	check(t, os.MkdirAll(filepath.Dir(name), 0o755))
	check(t, os.WriteFile(name, []byte(text), 0o644))
}

// process is what /proc says of a process.
type process struct {
	pid    int
	args   []string
	status map[string]string // by the names of /proc/PID/status
}

// is reports whether it was started with an argument of the daemon's own, "" if with none of them.
func (p process) is(arg string) bool {
	if arg == "" {
		return !slices.Contains(p.args, "starter") && !slices.Contains(p.args, "nss-helper")
	}
	return slices.Contains(p.args, arg)
}

// uid is the user, of all four kinds.
func (p process) uid(t *testing.T) int {
	t.Helper()
	ids := strings.Fields(p.status["Uid"])
	if len(ids) != 4 || slices.ContainsFunc(ids, func(id string) bool { return id != ids[0] }) {
		t.Errorf("process %d (%q): uids %q", p.pid, p.args, ids)
	}
	n, err := strconv.Atoi(ids[0])
	check(t, err)
	return n
}

// processes are those of the unit. One that ends meanwhile is none.
func processes(t *testing.T) (all []process) {
	t.Helper()
	group := property(t, "ControlGroup")
	b, err := os.ReadFile("/sys/fs/cgroup" + group + "/cgroup.procs")
	if err != nil {
		return nil
	}
	for _, field := range strings.Fields(string(b)) {
		pid, err := strconv.Atoi(field)
		check(t, err)
		args, err1 := os.ReadFile("/proc/" + field + "/cmdline")
		text, err2 := os.ReadFile("/proc/" + field + "/status")
		if err1 != nil || err2 != nil {
			continue
		}
		p := process{pid: pid, args: strings.Split(strings.TrimRight(string(args), "\x00"), "\x00"), status: map[string]string{}}
		for line := range strings.Lines(string(text)) {
			name, value, _ := strings.Cut(line, ":")
			p.status[name] = strings.TrimSpace(value)
		}
		all = append(all, p)
	}
	return all
}

// one is the unit's process with an argument, "" for the daemon itself.
func one(t *testing.T, arg string) process {
	t.Helper()
	var found []process
	for _, p := range processes(t) {
		if p.is(arg) {
			found = append(found, p)
		}
	}
	if len(found) != 1 {
		t.Fatalf("%d processes %q: %v", len(found), arg, found)
	}
	return found[0]
}

// passwd is a user's entry, by name or number, in the user database: nil if there is none.
func passwd(name string) []string {
	out, err := exec.Command("getent", "passwd", name).Output()
	if err != nil {
		return nil
	}
	return strings.Split(string(out), ":")
}

// account is the uid of a user that there must be.
func account(t *testing.T, name string) int {
	t.Helper()
	entry := passwd(name)
	if entry == nil {
		t.Fatalf("no user %s", name)
	}
	n, err := strconv.Atoi(entry[2])
	check(t, err)
	return n
}

// wire is a connection of root's to the unit's daemon.
func wire(t *testing.T) *lab.Wire {
	t.Helper()
	w, err := (&lab.Daemon{Socket: defaultSocket}).Wire()
	check(t, err)
	t.Cleanup(func() { w.Close() })
	return w
}

// program is a program of a user's that has nothing but the daemon at a socket: no keytab, no tickets.
func program(t *testing.T, r *lab.Realm, u lab.User, socket string) *lab.Tool {
	t.Helper()
	g, err := r.Tool(u, append(r.PluginEnvOf(lab.Ours, socket), "KRB5_KTNAME=/nonexistent", "KRB5CCNAME=MEMORY:x")...)
	check(t, err)
	t.Cleanup(func() { g.Close() })
	return g
}

// alice is a client that has a ticket and no daemon.
func alice(t *testing.T, r *lab.Realm) *lab.Tool {
	t.Helper()
	env, err := r.Kinit("alice", "alice")
	check(t, err)
	g, err := r.Tool(lab.Nobody, env...)
	check(t, err)
	t.Cleanup(func() { g.Close() })
	return g
}

// accepts sees that a program establishes a context with a client, as the service, and that messages
// go both ways.
func accepts(t *testing.T, acceptor, client *lab.Tool, service, principal string) {
	t.Helper()
	id, token, err := client.Init(service, lab.Usual|lab.Mutual, nil)
	check(t, err)
	check(t, acceptor.Acquire(service))
	a, err := acceptor.Accept(token, nil)
	check(t, err)
	if a.Client != principal {
		t.Errorf("the client is %q, not %q", a.Client, principal)
	}
	if complete, _, err := client.Step(id, a.Token); err != nil || !complete {
		t.Fatalf("the client's last step: %v, complete: %v", err, complete)
	}
	check(t, lab.Converse(lab.End{Tool: client, ID: id}, lab.End{Tool: acceptor, ID: a.ID}))
}
