package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"gssproxyd/conf"
	"gssproxyd/gssproxyd/creds"
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
		for _, w := range creds.CheckFiles(c, k) {
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
	for _, name := range []string{"gssproxyd.service", "gssproxyd-user.service"} {
		write(name, strings.ReplaceAll(shippedUnit(t, name), "/usr/sbin/gssproxyd", anything))
	}
	write("nfs-server.service", "[Service]\nExecStart="+anything+"\n")
	write("rpc-gssd.service", "[Service]\nExecStart="+anything+"\n")
	for _, units := range [][]string{
		{"gssproxyd.service", "nfs-server.service", "rpc-gssd.service"},
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
		"CAP_DAC_OVERRIDE": "keytabs and credential caches belong to other users",
		"CAP_FOWNER":       "a credential cache takes the place of a user's in a sticky directory",
		"CAP_SYS_PTRACE":   "/proc/PID/exe of other users' processes is read",
		"CAP_SETUID":       "the name service helper, and run_as_user",
		"CAP_SETGID":       "the same",
		"CAP_KILL":         "the helper, which is another user, is killed when it hangs",
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
		"StateDirectory": "gssproxy",
		"LimitCORE":      "0",
		"LimitNICE":      "-10",  // nss.urgentNice
		"UMask":          "0077", // the daemon makes directories too
	} {
		if got := strings.Join(set[key], " "); got != want {
			t.Errorf("%s=%s, want %s", key, got, want)
		}
	}
	// The default socket is in the state directory: all users reach it, and no other can write
	// there.
	mode, err := strconv.ParseUint(strings.Join(set["StateDirectoryMode"], ""), 8, 32)
	if err != nil || mode&0o111 != 0o111 || mode&0o022 != 0 {
		t.Errorf("StateDirectoryMode=%o, %v", mode, err)
	}
	if socket := conf.SocketPath; filepath.Dir(socket) != "/var/lib/gssproxy" {
		t.Errorf("the default socket is %s", socket)
	}
	if pre := strings.Join(set["ExecStartPre"], " "); !strings.Contains(pre, " -m 0700 ") || !strings.Contains(pre, "/var/lib/gssproxy/rcache") ||
		!slices.Contains(set["Environment"], "KRB5RCACHEDIR=/var/lib/gssproxy/rcache") {
		t.Errorf("nobody makes the directory of replay caches: %s", pre)
	}
	if !slices.Contains(set["After"], "nss-user-lookup.target") {
		t.Error("the daemon starts before users can be looked up")
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
