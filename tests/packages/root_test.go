package packages

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"gssproxyd/tests/lab"
)

// root is a root of Debian's with a realm. What is done to it is gone with the test.
type root struct {
	t     *testing.T
	dir   string
	realm *lab.Realm
	alice []string // variables of a program with her ticket
}

const install = "apt-get -qq install "

func newRoot(t *testing.T) *root {
	if *rootFlag == "" {
		t.Skip("not run: it installs packages into a root of Debian's; make test-packages runs it")
	}
	lab.Require(t)
	realm, err := lab.UpWithoutTools(context.Background())
	check(t, err)
	t.Cleanup(func() { realm.Close() })

	// The cached root is below, what changes is in memory. No other process sees the mounts, and the
	// last one of this ends them.
	mem := t.TempDir()
	r := &root{t: t, dir: filepath.Join(mem, "root"), realm: realm}
	mount := func(source, target, kind string, flags uintptr, data string) {
		t.Helper()
		if err := unix.Mount(source, target, kind, flags, data); err != nil {
			lab.Lacking(t, "mount(2)", err)
		}
		t.Cleanup(func() { check(t, unix.Unmount(target, unix.MNT_DETACH)) })
	}
	mount("none", mem, "tmpfs", 0, "mode=755")
	upper, work := filepath.Join(mem, "upper"), filepath.Join(mem, "work")
	check(t, errors.Join(os.Mkdir(r.dir, 0o755), os.Mkdir(upper, 0o755), os.Mkdir(work, 0o755)))
	mount("overlay", r.dir, "overlay", 0, fmt.Sprintf("lowerdir=%s,upperdir=%s,workdir=%s", *rootFlag, upper, work))
	mount("proc", r.path("/proc"), "proc", 0, "")
	mount("/dev", r.path("/dev"), "", unix.MS_BIND|unix.MS_REC, "")
	for _, dir := range []string{realm.Dir, "/packages"} {
		check(t, os.MkdirAll(r.path(dir), 0o755))
	}
	mount(realm.Dir, r.path(realm.Dir), "", unix.MS_BIND, "")
	mount(built, r.path("/packages"), "", unix.MS_BIND, "")

	r.write("/etc/apt/apt.conf.d/test", "APT::Get::Assume-Yes true;\nAPT::Sandbox::User root;\n")
	r.write("/etc/hosts", "127.0.0.1 localhost "+lab.Host+"\n")
	conf, err := os.ReadFile(realm.Conf)
	check(t, err)
	r.write("/etc/krb5.conf", string(conf))
	check(t, realm.RandKey("host/"+lab.Host))
	check(t, realm.RandKey("HTTP/"+lab.Host))
	check(t, realm.Ktadd(realm.Dir+"/host.keytab", "host/"+lab.Host))
	check(t, realm.Ktadd(realm.Dir+"/http.keytab", "HTTP/"+lab.Host))
	r.sh("install -m 600 " + realm.Dir + "/host.keytab /etc/krb5.keytab")
	r.alice, err = realm.Kinit("alice", "alice")
	check(t, err)
	return r
}

func (r *root) path(name string) string { return filepath.Join(r.dir, name) }

func (r *root) write(name, text string) {
	r.t.Helper()
	check(r.t, os.WriteFile(r.path(name), []byte(text), 0o644))
}

// command is a program of the root's.
func (r *root) command(u lab.User, env []string, path string, args ...string) *exec.Cmd {
	env = append([]string{"DEBIAN_FRONTEND=noninteractive", "SYSTEMD_OFFLINE=1", "KRB5_CONFIG=/etc/krb5.conf", "HOME=/root"}, env...)
	cmd := r.realm.Command(u, env, path, args...)
	cmd.SysProcAttr.Chroot = r.dir
	return cmd
}

// try runs lines of a shell in the root, as root, and returns what they say.
func (r *root) try(script string, env ...string) (string, error) {
	out, err := r.command(lab.Root, env, "/bin/sh", "-euc", script).CombinedOutput()
	return string(out), err
}

// sh is try for what must succeed.
func (r *root) sh(script string, env ...string) string {
	r.t.Helper()
	out, err := r.try(script, env...)
	if err != nil {
		r.t.Fatalf("%s\n%v\n%s", script, err, out)
	}
	return out
}

// start runs a program, until the test's end if it is not stopped before.
func (r *root) start(script string, env ...string) *lab.Process {
	r.t.Helper()
	p, err := r.realm.Start(r.command(lab.Root, env, "/bin/sh", "-euc", script), r.realm.Path("log"))
	check(r.t, err)
	r.t.Cleanup(func() {
		p.Stop()
		if r.t.Failed() {
			r.t.Logf("%s:\n%s", script, p.Output())
		}
	})
	return p
}

// await waits until something is so.
func (r *root) await(what string, p *lab.Process, so func() bool) {
	r.t.Helper()
	for deadline := time.Now().Add(lab.Patience); !so(); time.Sleep(10 * time.Millisecond) {
		if p.Err() != nil || time.Now().After(deadline) {
			r.t.Fatalf("%s: waited in vain: %v\n%s", what, p.Err(), p.Output())
		}
	}
}

// unit returns the values that a unit has for a key, line by line.
func (r *root) unit(name, key string) (all []string) {
	r.t.Helper()
	text, err := os.ReadFile(r.path("/usr/lib/systemd/system/" + name))
	check(r.t, err)
	for _, m := range regexp.MustCompile(`(?m)^`+key+`=(.*)`).FindAllStringSubmatch(string(text), -1) {
		all = append(all, m[1])
	}
	return all
}

// unitScript is what a unit has a shell run for a key, outside of the unit's sandbox.
func (r *root) unitScript(name, key string) string {
	var script strings.Builder
	for _, line := range r.unit(name, key) {
		script.WriteString(strings.ReplaceAll(strings.TrimPrefix(line, "+"), "$$", "$") + "\n")
	}
	return script.String()
}

// daemon runs the daemon of a unit as the unit does, with its capabilities, and waits until it
// answers.
func (r *root) daemon(unit string) *lab.Process {
	r.t.Helper()
	script := "umask 077\n"
	mode := append(r.unit(unit, "StateDirectoryMode"), "0755")[0]
	for _, dir := range r.unit(unit, "StateDirectory") {
		script += "install -d -m " + mode + " /var/lib/" + dir + "\n"
	}
	script += r.unitScript(unit, "ExecStartPre") + "exec "
	set := func(key string) string { // as setpriv(1) has it
		names := strings.Fields(strings.Join(r.unit(unit, key), " "))
		return strings.ToLower(strings.ReplaceAll(strings.Join(append([]string{"-all"}, names...), ","), "CAP_", "+"))
	}
	if len(r.unit(unit, "CapabilityBoundingSet")) > 0 {
		ambient := set("AmbientCapabilities")
		script += "setpriv --no-new-privs --bounding-set " + set("CapabilityBoundingSet") + " --inh-caps " + ambient + " --ambient-caps " + ambient + " "
	}
	script += strings.Replace(r.unit(unit, "ExecStart")[0], " -D", " -i", 1) // the C daemon's unit has it fork
	p := r.start(script, r.unit(unit, "Environment")...)
	r.await(unit, p, func() bool {
		c, err := net.Dial("unix", r.path("/var/lib/gssproxy/default.sock"))
		if err == nil {
			c.Close()
		}
		return err == nil
	})
	return p
}

// stop ends a daemon as its unit does.
func (r *root) stop(p *lab.Process, unit string) {
	r.t.Helper()
	check(r.t, p.Stop())
	r.sh(r.unitScript(unit, "ExecStopPost"))
}

// apache runs Apache with the environment of its unit's drop-in, and waits until it listens.
func (r *root) apache() *lab.Process {
	r.t.Helper()
	p := r.start(`set +u; . /etc/apache2/envvars; mkdir -p $APACHE_RUN_DIR $APACHE_LOCK_DIR
env=$(sed -n s/^Environment=//p /etc/systemd/system/apache2.service.d/gssproxyd.conf)
exec env $env /usr/sbin/apache2 -DFOREGROUND`)
	r.await("Apache", p, func() bool { return lab.Listening(80) })
	return p
}

// admitted sees that Apache lets alice in with her ticket, and nobody without one; and which plugin
// it has loaded.
func (r *root) admitted(plugin string) {
	r.t.Helper()
	const curl = "curl -sS -i --max-time 60 -o /dev/null -w %{http_code} "
	url := "http://" + lab.Host + "/"
	if out := r.sh(curl + url); out != "401" {
		r.t.Errorf("without a ticket: %s", out)
	}
	for range 4 { // several, to meet several of Apache's processes
		if out := r.sh(curl+"--negotiate -u : "+url, r.alice...); out != "200" {
			r.t.Fatalf("with a ticket: %s\n%s", out, r.sh("tail -n 20 /var/log/apache2/error.log"))
		}
	}
	loaded := map[string]bool{}
	processes, err := filepath.Glob("/proc/[0-9]*")
	check(r.t, err)
	for _, p := range processes {
		if comm, _ := os.ReadFile(p + "/comm"); string(comm) != "apache2\n" {
			continue
		}
		if in, _ := os.Readlink(p + "/root"); in != r.dir {
			continue
		}
		maps, _ := os.ReadFile(p + "/maps")
		for _, name := range regexp.MustCompile(`\w+mech\.so`).FindAllString(string(maps), -1) {
			loaded[name] = true
		}
	}
	if !loaded[plugin] || len(loaded) != 1 {
		r.t.Errorf("Apache has loaded %v, not %s", loaded, plugin)
	}
}

// files are the names of all that is in the root, but for what tools keep of their own work, and what
// is in memory on a host.
func (r *root) files() map[string]bool {
	r.t.Helper()
	all := map[string]bool{}
	check(r.t, filepath.WalkDir(r.dir, func(path string, d fs.DirEntry, err error) error {
		name := strings.TrimPrefix(path, r.dir)
		switch {
		case err != nil:
			return err
		case slices.Contains([]string{"/proc", "/dev", r.realm.Dir, "/packages", "/var/lib/dpkg", "/var/lib/apt", "/var/cache", "/var/log", "/run"}, name):
			return fs.SkipDir
		}
		all[name] = true
		return nil
	}))
	return all
}

// added are the names that are there now and were not before.
func (r *root) added(before map[string]bool) (names []string) {
	for name := range r.files() {
		if !before[name] {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// passes sees that the configuration is one that gssproxyd check has nothing to say of.
func (r *root) passes() {
	r.t.Helper()
	if out := r.sh("gssproxyd check"); strings.Contains(out, "warning") {
		r.t.Errorf("gssproxyd check:\n%s", out)
	}
}

// Where there was nothing: installed, root may accept for host/ and nothing else is to be done.
// Removed and purged, nothing is left but the configuration. Then docs/install.md is followed.
func TestRootAlone(t *testing.T) {
	r := newRoot(t)
	r.sh(install + "apache2 libapache2-mod-auth-gssapi curl krb5-user systemd")
	before := r.files()

	r.sh(install + "/packages/gssproxyd*.deb")
	enabled := func() {
		t.Helper()
		for _, unit := range []string{"gssproxyd.service", "gssproxy.service"} {
			if out := r.sh("systemctl is-enabled " + unit + " || true"); out != "enabled\n" && out != "alias\n" {
				t.Errorf("%s: %s", unit, out)
			}
		}
	}
	enabled()
	r.passes()
	d := r.daemon("gssproxyd.service")
	uid := strings.TrimSpace(r.sh("id -u gssproxyd"))
	r.await("it becomes the user whom the package has made, with two capabilities", d, func() bool { // after it listens
		status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", d.Cmd.Process.Pid))
		return err == nil && strings.Contains(string(status), "Uid:\t"+uid+"\t"+uid+"\t") && strings.Contains(string(status), "CapEff:\t0000000000080004\n")
	})
	r.stop(d, "gssproxyd.service")
	// One who may initiate makes a token: that is not root.
	r.write("/etc/gssproxy/10-nobody.conf", "[service/nobody]\n  mechs = krb5\n  euid = nobody\n  cred_usage = initiate\n  cred_store = ccache:"+
		strings.TrimPrefix(r.alice[len(r.alice)-1], "KRB5CCNAME=")+"\n")
	d = r.daemon("gssproxyd.service")
	token, err := r.command(lab.Nobody, nil, "/usr/sbin/gssproxyd", "init", "host@"+lab.Host).Output()
	check(t, err)
	if out := r.sh("echo " + strings.TrimSpace(string(token)) + " | gssproxyd accept"); !strings.Contains(out, "principal: alice@"+lab.Name) {
		t.Errorf("root accepts for host/: %s", out)
	}
	r.sh("rm /etc/krb5.keytab /etc/gssproxy/10-nobody.conf")
	if out := r.sh("gssproxyd check"); !strings.Contains(out, "warning: ") || !strings.Contains(out, "keytab:/etc/krb5.keytab") {
		t.Errorf("without a keytab:\n%s", out)
	}
	r.stop(d, "gssproxyd.service")

	r.sh("apt-get -qq remove gssproxyd gssproxyd-mech; rm /etc/gssproxy/99-root.conf")
	kept := []string{"/etc/gssproxy", "/etc/gssproxy/gssproxy.conf"}
	left := r.added(before)
	for _, name := range append([]string{"/var/lib/gssproxy/state/handle.key"}, kept...) {
		if !slices.Contains(left, name) {
			t.Errorf("gone when removed: %s", name)
		}
	}
	for _, name := range []string{"/etc/gss/mech.d/zz-gssproxyd.conf", "/etc/systemd/system/gssproxy.service"} {
		if slices.Contains(left, name) {
			t.Errorf("left when removed: %s", name)
		}
	}
	r.sh(install + "/packages/gssproxyd*.deb")
	enabled()
	// An earlier daemon kept the key as root: it goes on with it. A link is nobody's key.
	const key, earlier = "/var/lib/gssproxy/state/handle.key", "/var/lib/gssproxy/handle.key"
	r.sh("printf earlier >" + earlier + "; chmod 600 " + earlier + "; rm " + key)
	r.sh(install + "--reinstall /packages/gssproxyd*.deb")
	if out := r.sh("cat " + key + "; stat -c ' %U %a' " + key + "; ls " + earlier + " 2>&1 || true"); !strings.HasPrefix(out, "earlier gssproxyd 600\n") || !strings.Contains(out, "No such file") {
		t.Errorf("the key of an earlier daemon: %s", out)
	}
	r.sh("rm " + key + "; ln -s /etc/shadow " + earlier + "; " + install + "--reinstall /packages/gssproxyd*.deb; rm " + earlier)
	if out := r.sh("ls " + key + " 2>/dev/null || true; stat -c %U /etc/shadow"); out != "root\n" {
		t.Errorf("a link in the key's place: %s", out)
	}
	r.sh("systemctl --quiet disable gssproxyd; " + install + "--reinstall /packages/gssproxyd*.deb") // as an upgrade does
	if out := r.sh("systemctl is-enabled gssproxyd || true; ls /etc/gssproxy"); out != "disabled\ngssproxy.conf\n" {
		t.Errorf("after an upgrade:\n%s", out)
	}
	r.sh("systemctl --quiet enable gssproxyd")
	r.sh("apt-get -qq purge gssproxyd gssproxyd-mech")
	if left := r.added(before); !slices.Equal(left, kept) {
		t.Errorf("left when purged: %q", left)
	}
	r.sh("rm -r /etc/gssproxy; install -m 600 " + r.realm.Dir + "/host.keytab /etc/krb5.keytab")

	page, err := os.ReadFile("../../docs/install.md")
	check(t, err)
	_, section, _ := strings.Cut(string(page), "\n## Debian\n")
	section, _, _ = strings.Cut(section, "\nA user with a ticket")
	var lines strings.Builder
	for line := range strings.Lines(section) {
		if code, ok := strings.CutPrefix(line, "    "); ok {
			lines.WriteString(strings.Replace(code, "apt install", install, 1))
		} else if line == "\n" {
			lines.WriteString(line)
		}
	}
	r.sh("mkdir -p /root/bin && ln -s /packages /root/bin/packages && cp " + r.realm.Dir + "/http.keytab /root")
	r.sh("cd /root\n" + lines.String())
	r.passes()
	r.daemon("gssproxyd.service")
	web := r.apache()
	r.admitted("gssproxyd_mech.so")
	if out, err := r.try("su -s /bin/sh www-data -c 'cat /etc/gssproxy/http.keytab'"); err == nil || !strings.Contains(out, "Permission denied") {
		t.Errorf("Apache can read the keytab: %v\n%s", err, out)
	}

	// The C project's package comes later: dpkg has nothing to ask, and its unit's name is still ours.
	conf := "sha256sum /etc/gssproxy/gssproxy.conf /etc/gssproxy/80-httpd.conf; readlink /etc/systemd/system/gssproxy.service"
	configured := r.sh(conf)
	r.sh(install + "gssproxy")
	if out := r.sh(conf); out != configured {
		t.Errorf("with the C project's package:\n%s\nbefore:\n%s", out, configured)
	}
	r.passes()
	check(t, web.Stop())
	r.apache()
	r.admitted("gssproxyd_mech.so")
}

// Where the C daemon serves a web server: it goes on, until this one takes its place.
func TestRootBesideC(t *testing.T) {
	r := newRoot(t)
	r.sh(install + "apache2 libapache2-mod-auth-gssapi curl krb5-user systemd gssproxy")
	r.sh("install -m 600 " + r.realm.Dir + "/http.keytab /etc/gssproxy/http.keytab; mkdir -p /etc/systemd/system/apache2.service.d")
	r.write("/etc/gssproxy/80-httpd.conf", "[service/HTTP]\n  mechs = krb5\n  cred_store = keytab:/etc/gssproxy/http.keytab\n  euid = www-data\n")
	// Apache asks as root when it starts, and the C project's plugin ends it by SIGPIPE if nobody serves root.
	r.write("/etc/gssproxy/90-root.conf", "[service/root]\n  mechs = krb5\n  cred_store = keytab:/etc/krb5.keytab\n  euid = 0\n")
	r.write("/etc/apache2/conf-enabled/kerberos.conf", "<Location />\nAuthType GSSAPI\nAuthName Kerberos\nRequire valid-user\n</Location>\n")
	r.write("/etc/systemd/system/apache2.service.d/gssproxyd.conf", "[Service]\nEnvironment=GSS_USE_PROXY=yes\n")
	c := r.daemon("gssproxy.service")
	web := r.apache()
	restart := func() {
		t.Helper()
		check(t, web.Stop())
		web = r.apache()
	}
	r.admitted("proxymech.so")

	const all = "cd /etc/gssproxy && sha256sum *; cat /etc/gss/mech.d/proxymech.conf; systemctl is-enabled gssproxy.service"
	before := r.sh(all)
	r.sh(install + "/packages/gssproxyd*.deb")
	if after := r.sh(all); after != before {
		t.Errorf("before:\n%s\nafter:\n%s", before, after)
	}
	if out := r.sh("systemctl is-enabled gssproxyd.service || true; ls /etc/systemd/system"); !strings.HasPrefix(out, "disabled\n") ||
		strings.Contains(out, "gssproxy.service") {
		t.Errorf("it is enabled, or has the C daemon's name: %s", out)
	}
	r.passes()
	r.admitted("proxymech.so") // the program that runs, through the connections that it has
	restart()
	r.admitted("gssproxyd_mech.so") // the plugin is ours, the daemon C's

	check(t, c.Stop())
	r.sh("systemctl disable gssproxy; systemctl enable gssproxyd")
	d := r.daemon("gssproxyd.service")
	r.admitted("gssproxyd_mech.so") // the program that runs, through new connections

	r.sh("apt-get -qq remove gssproxyd-mech")
	restart()
	r.admitted("proxymech.so") // the plugin is C's, the daemon ours
	r.sh(install + "/packages/gssproxyd-mech_*.deb")
	restart()
	r.admitted("gssproxyd_mech.so")

	check(t, d.Stop())
	r.sh("apt-get -qq purge gssproxyd")
	if out := r.sh("cd /etc/gssproxy; sha256sum *; ls -d /var/lib/gssproxy/rcache"); !strings.HasPrefix(before, strings.TrimSuffix(out, "/var/lib/gssproxy/rcache\n")) {
		t.Errorf("before:\n%s\nafter:\n%s", before, out)
	}
	c = r.daemon("gssproxy.service")
	r.admitted("gssproxyd_mech.so") // and back

	r.sh(install + "/packages/gssproxyd_*.deb; apt-get -qq remove gssproxy")
	check(t, c.Stop())
	r.passes()
	r.daemon("gssproxyd.service")
	restart()
	r.admitted("gssproxyd_mech.so")
}

// rpm's arguments to the scripts: installed, upgraded, erased. The tree and its shell are Debian's,
// rpm is this machine's, and nothing is asked of its database but these packages.
func TestRootRPM(t *testing.T) {
	r := newRoot(t)
	r.sh(install + "systemd")
	before := r.files()
	rpm := func(args ...string) string {
		t.Helper()
		return output(t, "rpm", append([]string{"--root", r.dir, "--dbpath", "/var/cache/rpm", "--nodeps"}, args...)...)
	}
	names := []string{"gssproxyd", "gssproxyd-mech", "keystored"}
	var packages []string
	for _, name := range names {
		packages = append(packages, file(t, name+"-[0-9]*.rpm"))
	}
	rpm(append([]string{"-i"}, packages...)...)
	if out := rpm(append([]string{"-V"}, names...)...); out != "" {
		t.Errorf("not as packed:\n%s", out)
	}
	state := "systemctl is-enabled gssproxyd.service; cat /etc/gssproxy/*.conf; readlink /etc/systemd/system/gssproxy.service"
	first := r.sh(state)
	if out := r.sh("systemctl is-enabled keystored.service || true"); out != "disabled\n" {
		t.Errorf("keystored.service: %s", out)
	}
	r.sh("systemctl --quiet enable keystored")
	r.sh("echo '# mine' >>/etc/gssproxy/gssproxy.conf; rm /etc/gssproxy/99-root.conf; systemctl --quiet disable gssproxyd")
	rpm(append([]string{"-U", "--force"}, packages...)...)
	if out := r.sh("systemctl is-enabled gssproxyd.service || true; ls /etc/gssproxy; tail -n 1 /etc/gssproxy/gssproxy.conf"); out != "disabled\ngssproxy.conf\n# mine\n" {
		t.Errorf("after an upgrade:\n%s\nat first:\n%s", out, first)
	}
	rpm(append([]string{"-e"}, names...)...)
	left := slices.DeleteFunc(r.added(before), func(name string) bool {
		return slices.Contains([]string{ // other packages' on a system with rpm
			"/etc/gss", "/etc/gss/mech.d", "/usr/lib64/gss", "/usr/share/fish", "/usr/share/fish/vendor_completions.d", "/usr/share/zsh/site-functions",
		}, name)
	})
	// rpm knows no purge.
	kept := []string{"/etc/gssproxy", "/etc/gssproxy/gssproxy.conf", "/var/lib/gssproxy", "/var/lib/gssproxy/clients", "/var/lib/gssproxy/state", "/var/lib/keystored"}
	if !slices.Equal(left, kept) {
		t.Errorf("left when erased: %q", left)
	}
}

// What nobody can make again outlives the package, and so do whom it is of and its audit log unless it
// is purged. Nothing is enabled, before there is a store or after.
func TestRootKeystored(t *testing.T) {
	r := newRoot(t)
	r.sh(install + "systemd")
	before := r.files()
	debs := install + "/packages/keystored_*.deb"
	r.sh(debs)
	disabled := func() {
		t.Helper()
		if out := r.sh("systemctl is-enabled keystored.service || true; ls /etc/gssproxy 2>&1 || true"); !strings.HasPrefix(out, "disabled\n") || strings.Contains(out, "keystored.conf") {
			t.Errorf("it is enabled, or configured: %s", out)
		}
	}
	disabled()
	const as = "setpriv --reuid keystored --regid keystored --clear-groups keystored "
	const conf = "/etc/keystored.conf"
	r.write(conf, "[keystored]\n  backend = bolt:/var/lib/keystored/store.db\n  audit = /var/log/keystored/audit.log\n  socket = /var/lib/keystored/socket\n")
	signer := strings.TrimSpace(r.sh(as + "init -c " + conf + " --without-recovery | grep signer"))
	recipient := r.sh(as + "recipient -c " + conf)
	state := "cd /var/lib/keystored && stat -c '%n %U %a' . host.age store.db"
	kept := r.sh(state)
	if want := ". keystored 700\nhost.age keystored 600\nstore.db keystored 600\n"; kept != want {
		t.Errorf("the state directory:\n%s, want\n%s", kept, want)
	}
	r.write(conf, r.sh("cat "+conf)+signer+"\n")
	serve := func() *lab.Process {
		t.Helper()
		p := r.start("exec " + as + "serve -c " + conf)
		r.await("keystored", p, func() bool {
			_, err := r.try(as + "list -c " + conf)
			return err == nil
		})
		return p
	}
	p := serve()
	check(t, p.Stop())

	r.sh("apt-get -qq remove keystored; " + debs)
	disabled()
	r.sh("systemctl --quiet enable keystored; apt-get -qq purge keystored")
	left := r.added(before)
	if slices.ContainsFunc(left, func(name string) bool { return strings.HasPrefix(name, "/etc/systemd") }) {
		t.Errorf("it is enabled after a purge: %q", left)
	}
	if out := r.sh(state + "; ls /var/log/keystored 2>&1 || true"); !strings.HasPrefix(out, kept) || !strings.Contains(out, "No such file") {
		t.Errorf("after a purge:\n%s", out)
	}
	r.sh(debs)
	if out := r.sh(as + "recipient -c " + conf); out != recipient {
		t.Errorf("another identity, %s, after a purge; before %s", out, recipient)
	}
	serve()

	// What has nothing in it goes.
	r.sh("rm /var/lib/keystored/*; apt-get -qq purge keystored; rm " + conf)
	if left := r.added(before); len(left) > 0 {
		t.Errorf("left when purged: %q", left)
	}
}
