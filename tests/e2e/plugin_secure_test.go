package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"gssproxyd/tests/lab"
)

// TestPluginSecure: a program that runs with more rights than who starts it does not believe the
// environment. It is served at a socket that has its file's name, whatever it is called as.
func TestPluginSecure(t *testing.T) {
	needOurs(t)
	lab.NeedPrograms(t, "/usr/bin/unshare", "/usr/bin/setpriv", "/usr/bin/bash")
	apart := exec.Command("/bin/true")
	apart.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS}
	if err := apart.Run(); err != nil {
		lab.Lacking(t, "mount(2)", err)
	}
	r := realm(t)
	program, err := r.BuildTool("calls")
	check(t, err)
	dir := r.Path("secure")
	check(t, os.Mkdir(dir, 0o755))
	socket := filepath.Join(dir, "sock")

	// What a host has installed, in a mount namespace: a secure program reads neither GSS_MECH_CONFIG nor KRB5_CONFIG.
	mechs := r.Path("mech.d")
	check(t, os.Mkdir(mechs, 0o755))
	plugin := filepath.Join(dir, "plugin.so")
	check(t, lab.BuildPlugin(plugin, `MECH_CFLAGS=-DDEFAULT_SOCKET='"`+socket+`"'`))
	line := strings.ReplaceAll(r.MechLine(lab.Ours), r.PluginPath(lab.Ours), plugin)
	check(t, os.WriteFile(filepath.Join(mechs, "zz-gssproxyd.conf"), []byte(line), 0o644))

	served, unserved := filepath.Join(dir, "served"), filepath.Join(dir, "unserved")
	b, err := os.ReadFile(program)
	check(t, err)
	for _, path := range []string{served, unserved} {
		check(t, os.WriteFile(path, b, 0o755))
		check(t, os.Chmod(path, 0o755|os.ModeSetuid))
	}
	plain := filepath.Join(nobodyDir(t), "served")
	check(t, os.WriteFile(plain, b, 0o755))

	keys := keytab(t)
	d := daemon(t, "ours", lab.Options{Dir: dir, Keytab: keys, Config: strings.Replace(
		config(svc{"served", 0, []string{"cred_store = keytab:" + keys, "program = " + served}}, svc{"lab", 0, []string{"cred_store = keytab:" + keys}}),
		"[gssproxy]\n", "[gssproxy]\n  program_sockets = served\n", 1)})
	if d.Socket != socket {
		t.Fatalf("the daemon's socket is %s", d.Socket)
	}

	trace := filepath.Join(nobodyDir(t), "trace")
	hostile := []string{"GSS_USE_PROXY=no", "GSSPROXY_SOCKET=/nonexistent/sock", "GSSPROXY_BEHAVIOR=LOCAL_ONLY", "GSSPROXY_TRACE=" + trace}
	// run has nobody start the program, called as something else, and returns its answer.
	run := func(t *testing.T, env []string, path, called string) result {
		t.Helper()
		c := startCalls(t, r.Command(lab.Root, env, "/usr/bin/unshare", "-m", "/bin/sh", "-ec", fmt.Sprintf(`
mount --bind %s /etc/gss/mech.d
[ ! -e /etc/krb5.conf ] || mount --bind %s /etc/krb5.conf
exec setpriv --reuid %d --regid %d --clear-groups bash -c 'exec -a %s %s'
`, mechs, r.Conf, lab.Nobody.UID, lab.Nobody.GID, called, path)))
		defer func() { check(t, c.end()) }()
		_, err := c.call("import_name 1 host " + service)
		check(t, err)
		res, err := c.call("acquire 1 1 krb5 accept -")
		check(t, err)
		return res
	}
	asked := func() int { return strings.Count(d.Output(), "socket="+socket+".served") }

	before := asked()
	if res := run(t, hostile, served, "unserved"); res.major != "0" {
		t.Errorf("it is not served: %v", res)
	}
	if asked() == before {
		t.Error("it was not served at its own socket")
	}
	if _, err := os.Lstat(trace); err == nil {
		t.Error("it has written the trace that the environment asks for")
	}
	before = asked()
	willing := []string{"GSS_USE_PROXY=yes", "GSSPROXY_SOCKET=" + socket + ".served", "GSSPROXY_BEHAVIOR=REMOTE_ONLY"}
	if res := run(t, willing, unserved, "served"); res.major == "0" {
		t.Errorf("a program without a socket is served: %v", res)
	}
	if res := run(t, hostile, plain, "served"); res.major == "0" {
		t.Errorf("a program without more rights is served, whose environment says no: %v", res)
	}
	if asked() != before {
		t.Error("one of them has asked the daemon")
	}
	// The same program without more rights goes by its environment.
	if res := run(t, []string{"GSS_USE_PROXY=yes", "GSSPROXY_SOCKET=" + socket, "GSSPROXY_TRACE=" + trace}, plain, "served"); res.major == "0" {
		t.Errorf("nobody is served at root's socket: %v", res)
	}
	if _, err := os.Lstat(trace); err != nil {
		t.Errorf("the trace is not written: %v", err)
	}
}
