package main

import (
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"gssproxyd/conf"
	"gssproxyd/gssproxyd/creds"
	"gssproxyd/gssproxyd/pods"
	"gssproxyd/keytab"
	"gssproxyd/mech/krb5/krb5conf"
	"gssproxyd/tests/lab"
)

// The configurations that are shipped load without a warning, alone and together.
func TestShippedConfigurations(t *testing.T) {
	users := conf.FixedUsers{"root": 0, "www-data": 33}
	k, err := krb5conf.Load(nil)
	if err != nil {
		t.Fatal(err)
	}
	files, err := filepath.Glob("../dist/*.conf")
	if err != nil || len(files) < 3 {
		t.Fatal(files, err)
	}
	sources := []conf.Source{{File: "../dist/gssproxy.conf", Dir: "../dist", Users: users}}
	for _, f := range files {
		if filepath.Base(f) != "gssproxy.conf" {
			sources = append(sources, conf.Source{File: f, Users: users})
		}
	}
	for _, src := range sources {
		c, err := conf.Load(src)
		if err != nil {
			t.Error(err)
			continue
		}
		for _, w := range c.Warnings {
			t.Error(w)
		}
		// What check says besides is of files that this host lacks, each once.
		seen := map[string]bool{}
		for _, w := range creds.CheckFiles(c, k, new(keytab.Reader)) {
			_, path, _ := strings.Cut(w, "keytab:")
			if !strings.Contains(w, "there is no such file") || seen[path] {
				t.Error(w)
			}
			seen[path] = true
		}
		for _, s := range c.Services {
			if s.KernelNFSD && (c.SocketOf(s) != "/run/gssproxy.sock" || s.EUID != 0) {
				t.Errorf("%s: the kernel does not find [service/%s]", src.File, s.Name)
			}
		}
	}
}

// The unit and the drop-ins that are shipped are understood by systemd, to the last line.
func TestShippedUnits(t *testing.T) {
	analyze, err := exec.LookPath("systemd-analyze")
	if err != nil {
		lab.Lacking(t, "systemd-analyze", err)
	}
	dir := t.TempDir()
	if err := os.CopyFS(dir, os.DirFS("../dist")); err != nil {
		t.Fatal(err)
	}
	write := func(name, text string) {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	// Programs and units that are not installed here; drop-ins count only for units that are there.
	const anything = "/bin/true"
	for _, name := range []string{"gssproxyd.service", "gssproxyd-fs.service", "gssproxyd-user.service"} {
		write(name, strings.ReplaceAll(shippedUnit(t, name), "/usr/sbin/gssproxyd", anything))
	}
	write("nfs-server.service", "[Service]\nExecStart="+anything+"\n")
	write("rpc-gssd.service", "[Service]\nExecStart="+anything+"\n")
	for _, units := range [][]string{
		{"gssproxyd.service", "gssproxyd-fs.service", "nfs-server.service", "rpc-gssd.service"},
		{"--user", "gssproxyd-user.service", "gssproxyd-user.socket"},
	} {
		cmd := exec.Command(analyze, append([]string{"verify", "--man=no"}, units...)...)
		cmd.Env = append(os.Environ(), "SYSTEMD_UNIT_PATH="+dir+":", "XDG_RUNTIME_DIR="+dir)
		if out, err := cmd.CombinedOutput(); err != nil || len(out) > 0 {
			t.Errorf("%v: %v\n%s", units, err, out)
		}
	}
}

// The unit permits what the daemon does, and nothing else.
func TestShippedUnitSuffices(t *testing.T) {
	set := map[string][]string{}
	for line := range strings.Lines(shippedUnit(t, "gssproxyd.service")) {
		if key, value, ok := strings.Cut(strings.TrimSpace(line), "="); ok && key[0] != '#' {
			set[key] = append(set[key], strings.Fields(value)...)
		}
	}
	needed := map[string]string{
		"CAP_DAC_READ_SEARCH": "keytabs and credential caches belong to other users",
		"CAP_SYS_PTRACE":      "/proc/PID/exe of other users' processes is read",
		"CAP_SETUID":          "the name service helper, and --run-as-user",
		"CAP_SETGID":          "the same",
		"CAP_KILL":            "the helper, which is another user, is killed when it hangs",
	}
	for name, why := range needed {
		if !slices.Contains(set["CapabilityBoundingSet"], name) {
			t.Errorf("the unit lacks %s: %s", name, why)
		}
	}
	for _, name := range set["CapabilityBoundingSet"] {
		if needed[name] == "" {
			t.Errorf("the unit permits %s, for no known reason", name)
		}
	}
	for key, want := range map[string]string{
		"ExecStart":           "/usr/sbin/gssproxyd -i --run-as-user=gssproxyd",
		"AmbientCapabilities": "CAP_SYS_PTRACE CAP_DAC_READ_SEARCH", // what the daemon keeps when it becomes that user
		"LimitCORE":           "0",
		"LimitNICE":           "-10",  // nss.urgentNice
		"UMask":               "0077", // the daemon makes directories too
		"ProtectProc":         "",     // callers' programs are seen in /proc
		"ProcSubset":          "",     // and the kernel's NFS server
		"PrivateUsers":        "",     // callers' uids are this host's
		"PrivateTmp":          "",     // users' caches
		"ReadWritePaths":      "/run /tmp -/var/lib/gssproxy -/var/log/gssproxyd",
		"StateDirectory":      "", // systemd would give all below it to root
		// Systemd makes it root's, and with that owner leaves alone what is below.
		"RuntimeDirectory":         "gssproxyd",
		"RuntimeDirectoryPreserve": "yes", // pods have what is in it mounted
		"ExecStartPre":             "+/usr/bin/systemd-tmpfiles --create gssproxyd.conf",
	} {
		if got := strings.Join(set[key], " "); got != want {
			t.Errorf("%s=%s, want %s", key, got, want)
		}
	}
	if !slices.Contains(set["After"], "nss-user-lookup.target") {
		t.Error("the daemon starts before users can be looked up")
	}

	// The default socket is in a directory of root's: all users reach it, and no other can write there.
	// What is below is the daemon's.
	type directory struct{ mode, owner string }
	made := map[string]directory{}
	for line := range strings.Lines(shippedUnit(t, "gssproxyd.tmpfiles")) {
		if f := strings.Fields(line); f[0] == "d" {
			made[f[1]] = directory{f[2], f[3] + ":" + f[4]}
		}
	}
	private := directory{"0700", "gssproxyd:gssproxyd"}
	roots := directory{"0755", "root:root"}
	want := map[string]directory{
		filepath.Dir(conf.SocketPath): {"0711", "root:root"}, "/var/lib/gssproxy/clients": private, "/var/log/gssproxyd": private,
		"/run/gssproxyd": roots, "/run/gssproxyd/csi": private, pods.Dir("/run/gssproxyd/csi/register.sock"): roots,
	}
	for _, variable := range []string{"KRB5RCACHEDIR", "GSSPROXYD_STATE_DIR"} {
		i := slices.IndexFunc(set["Environment"], func(s string) bool { return strings.HasPrefix(s, variable+"=") })
		if i < 0 {
			t.Fatalf("the unit sets no %s", variable)
		}
		want[strings.TrimPrefix(set["Environment"][i], variable+"=")] = private
	}
	if !maps.Equal(made, want) {
		t.Errorf("%v are made, %v are needed", made, want)
	}
	if users := shippedUnit(t, "gssproxyd.sysusers"); !strings.Contains(users, "\nu gssproxyd - ") {
		t.Errorf("nobody makes the user:\n%s", users)
	}
}

func shippedUnit(t *testing.T, name string) string {
	t.Helper()
	text, err := os.ReadFile("../dist/" + name)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}
