package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"gssproxyd/keystore/api"
)

// site is a machine on which commands are run as docs/keystore.md has them.
type site struct {
	*program
	here   *strings.Replacer
	server *exec.Cmd
	log    *bytes.Buffer
}

// newSite is a machine with a store that a recovery identity opens too, made by the first procedure.
func newSite(t *testing.T) *site {
	t.Helper()
	p := &program{t: t, dir: t.TempDir()}
	p.path = filepath.Join(p.dir, "keystored")
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(self, p.path); err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{"lib", "lib2", "log", "run", "safe", "etc", "bin"} {
		if err := os.Mkdir(filepath.Join(p.dir, dir), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	// There are no other users and no service manager here, and no KDC that rotates.
	for name, script := range map[string]string{
		"keystored": fmt.Sprintf(`case "$1" in rotate) echo "$2" >>%[1]s/rotated; exit;; esac; exec %[2]s "$@" -c %[1]s/etc/keystored.conf`, p.dir, p.path),
		"runuser":   `shift 3; exec "$@"`,
		"install":   `shift 2; exec /usr/bin/install "$@"`,
		"systemctl": fmt.Sprintf(`echo "$1" >>%s/systemctl`, p.dir),
		"gssproxyd": fmt.Sprintf(`test "$1" = reload; grep -h "^signer = " %s/etc/90-store.conf >>%[1]s/reloaded; echo >>%[1]s/reloaded`, p.dir),
	} {
		if err := os.WriteFile(filepath.Join(p.dir, "bin", name), []byte("#!/bin/sh\n"+script+"\n"), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	s := &site{program: p, here: strings.NewReplacer("/etc/gssproxy", p.dir+"/etc", "/mnt/safe", p.dir+"/safe", "/run/", p.dir+"/run/")}
	s.configure("one", "store.db", "lib")
	recipient := strings.TrimSpace(s.procedure("Make a recovery identity"))
	signer := s.run("keystored init --recovery " + recipient + ` | sed -n "s/^  signer = /signer = /p"`)
	s.write("signer", signer)
	s.write("etc/90-store.conf", "[store/main]\n"+signer)
	s.configure("one", "store.db", "lib")
	t.Cleanup(s.stop)
	return s
}

// configure writes the configuration of an instance.
func (s *site) configure(name, backend, state string) {
	s.t.Helper()
	signer, _ := os.ReadFile(filepath.Join(s.dir, "signer"))
	s.write("etc/keystored.conf", fmt.Sprintf("[keystored]\nbackend = bolt:%[1]s/%[2]s\nstate_dir = %[1]s/%[3]s\nsocket = %[1]s/run/socket\naudit = %[1]s/log/%[4]s.log\nname = %[4]s\n%[5]s", s.dir, backend, state, name, signer))
}

// run runs a script, and then does what it has asked of systemctl.
func (s *site) run(script string) string {
	s.t.Helper()
	cmd := exec.Command("/bin/sh", "-e", "-c", s.here.Replace(script))
	cmd.Dir = s.dir
	cmd.Env = append(os.Environ(), "PATH="+s.dir+"/bin:/usr/bin:/bin")
	var out, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &stderr
	if err := cmd.Run(); err != nil {
		s.t.Fatalf("%v\n%s\n%s%s", err, script, &out, &stderr)
	}
	asked, err := os.ReadFile(filepath.Join(s.dir, "systemctl"))
	if errors.Is(err, fs.ErrNotExist) {
		return out.String()
	}
	os.Remove(filepath.Join(s.dir, "systemctl"))
	if string(asked) != "start\n" && string(asked) != "restart\n" {
		s.t.Fatalf("systemctl %s", asked)
	}
	s.stop()
	s.start()
	return out.String()
}

func (s *site) start() {
	s.t.Helper()
	s.server = exec.Command(s.path, "serve", "-c", filepath.Join(s.dir, "etc/keystored.conf"))
	s.log = new(bytes.Buffer)
	s.server.Stdout, s.server.Stderr = s.log, s.log
	if err := s.server.Start(); err != nil {
		s.t.Fatal(err)
	}
	s.list()
}

func (s *site) stop() {
	if s.server == nil {
		return
	}
	s.server.Process.Signal(syscall.SIGTERM)
	if err := s.server.Wait(); err != nil {
		s.t.Errorf("%v\n%s", err, s.log)
	}
	s.server = nil
}

// list returns the entries, once the instance serves.
func (s *site) list() []api.Summary {
	s.t.Helper()
	c := api.NewClient(filepath.Join(s.dir, "run/socket"))
	defer c.Close()
	var err error
	for end := time.Now().Add(time.Minute); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		var list api.EntriesShown
		ctx, cancel := context.WithTimeout(s.t.Context(), 10*time.Second)
		err = c.Call(ctx, "list", &api.Nothing{}, &list, nil)
		cancel()
		if err == nil {
			return list.Entries
		}
	}
	s.t.Fatalf("it does not serve: %v", err)
	return nil
}

var codeBlock = regexp.MustCompile(`(?m)(?:^    .*\n)+`)

// procedure runs the blocks of commands of a section of docs/keystore.md as they are written; with
// numbers, only these, from 0. It returns what they print.
func (s *site) procedure(section string, only ...int) string {
	s.t.Helper()
	page, err := os.ReadFile("../docs/keystore.md")
	if err != nil {
		s.t.Fatal(err)
	}
	_, text, found := strings.Cut(string(page), "\n### "+section+"\n")
	if !found {
		s.t.Fatalf("docs/keystore.md has no section %s", section)
	}
	text, _, _ = strings.Cut(text, "\n#")
	blocks := codeBlock.FindAllString(text, -1)
	if len(only) == 0 {
		for i := range blocks {
			only = append(only, i)
		}
	}
	out := ""
	for _, i := range only {
		out += s.run(strings.ReplaceAll("\n"+blocks[i], "\n    ", "\n"))
	}
	return out
}

func (s *site) read(name string) string {
	s.t.Helper()
	b, err := os.ReadFile(filepath.Join(s.dir, name))
	if err != nil {
		s.t.Fatal(err)
	}
	return string(b)
}

// All instances are lost, with the backend or without: a recovery identity brings the store back on a
// machine that was no member.
func TestAllInstancesLost(t *testing.T) {
	s := newSite(t)
	info, err := os.Stat(filepath.Join(s.dir, "safe/recovery.age"))
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Fatalf("%v, %v", info, err)
	}
	s.write("a.keytab", string(append([]byte{5, 2}, keytabEntry("HTTP/a@A", 3, 18, 1)...)))
	s.start()
	s.run("keystored master show | grep '^member: one' && keystored import --write a.keytab && keystored backup /mnt/safe/store.backup")
	s.run("sed -i 's/name = one/name = keys1/' /etc/gssproxy/keystored.conf; R=$(keystored recipient); keystored master revoke recovery; keystored master show | grep recovery && exit 1; keystored master grant keys1 --recipient $R 2>&1 | grep store-exists")
	s.run("keystored master grant recovery --recipient $(sed -n 's/^# public key: //p' /mnt/safe/recovery.age)")
	s.stop()

	is := func(how string) {
		t.Helper()
		if list := s.list(); len(list) != 1 || list[0].Principal != "HTTP/a@A" || list[0].KVNO != 3 {
			t.Errorf("%s: %+v\n%s", how, list, s.log)
		}
		shown := s.run("keystored master show")
		if !strings.Contains(shown, "member: two, ") || strings.Contains(shown, "member: one, ") {
			t.Errorf("%s:\n%s", how, shown)
		}
		if left, _ := filepath.Glob(s.dir + "/run/*.age"); len(left) > 0 {
			t.Error(left)
		}
		s.stop()
	}
	lost := func(state, backend string) {
		t.Helper()
		if err := os.RemoveAll(filepath.Join(s.dir, "lib")); err != nil {
			t.Fatal(err)
		}
		if err := os.MkdirAll(filepath.Join(s.dir, state), 0o700); err != nil {
			t.Fatal(err)
		}
		os.Remove(filepath.Join(s.dir, "log/two.log"))
		s.configure("two", backend, state)
	}
	// What docs revoke is the instance that was lost, which has another name here.
	s.here = strings.NewReplacer("/etc/gssproxy", s.dir+"/etc", "/mnt/safe", s.dir+"/safe", "/run/", s.dir+"/run/", "revoke keys1", "revoke one")

	// Of the same name it is not let in beside the one that is lost.
	lost("lib3", "store.db")
	s.configure("one", "store.db", "lib3")
	if out := s.run("keystored recovery grant /mnt/safe/recovery.age 2>&1 || true"); !strings.Contains(out, "give this instance another name") {
		t.Error(out)
	}
	lost("lib2", "store.db")
	if out := s.procedure("All instances lost", 0, 2); !strings.Contains(out, "two, age1") {
		t.Error(out)
	}
	if log := s.read("log/two.log"); !strings.Contains(log, "granted to two, age1") || !strings.Contains(log, `"uid":`) {
		t.Error(log)
	}
	is("with the backend")

	lost("lib4", "new.db")
	if out := s.procedure("All instances lost", 1, 2); strings.Count(out, "member: one, ") != 2 || !strings.Contains(out, "1 entries and hosts would be restored") {
		t.Error(out)
	}
	is("with a backup")
}

// An identity for recovery goes where it is told, and not where it would be lost or overwrite another.
func TestRecoveryNew(t *testing.T) {
	s := newSite(t)
	before := s.read("safe/recovery.age")
	if err := os.Symlink(s.dir+"/lib", s.dir+"/alias"); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(s.dir+"/lib/below", 0o700); err != nil {
		t.Fatal(err)
	}
	for file, want := range map[string]string{
		"/mnt/safe/recovery.age": "file exists", "lib/recovery.age": "is in the state directory", "alias/recovery.age": "is in the state directory", "lib/below/x": "is in the state directory",
		"nothere/x": "no such file", "": "",
	} {
		out := s.run(`keystored recovery new "` + file + `" 2>&1 && echo DONE || true`)
		if strings.Contains(out, "DONE") || !strings.Contains(out, want) {
			t.Errorf("%s: %s", file, out)
		}
	}
	if s.read("safe/recovery.age") != before {
		t.Error("it was overwritten")
	}
	s.run("chmod 644 /mnt/safe/recovery.age")
	out := s.run("keystored recovery grant /mnt/safe/recovery.age 2>&1 || true")
	if !strings.Contains(out, "recovery.age: it has mode 0644, expected 0600: others may know the identity\n") {
		t.Error(out)
	}
}

// The procedure of docs/keystore.md leaves nothing that the revoked instance could sign or open.
func TestRevokeAnInstance(t *testing.T) {
	s := newSite(t)
	s.configure("keys2", "store.db", "lib2")
	other := strings.TrimSpace(s.run("keystored recipient"))
	s.configure("one", "store.db", "lib")
	s.write("a.keytab", string(append([]byte{5, 2}, keytabEntry("HTTP/a@A", 3, 18, 1)...)))
	s.start()
	s.run("keystored master grant keys2 --recipient " + other + "; keystored import --write a.keytab --hosts web1")
	former := s.read("signer")
	s.procedure("Revoke an instance")
	now := s.run(`keystored master show`)
	for _, gone := range []string{"member: keys2", strings.TrimSpace(former), "master key: 1,"} {
		if strings.Contains(now, gone) {
			t.Errorf("%s is there still:\n%s", gone, now)
		}
	}
	next := s.read("next")
	if !strings.Contains(now, next) || next == former {
		t.Errorf("next %q, now\n%s", next, now)
	}
	// Hosts had both, and then the new one alone; so had the instance.
	if got, want := s.read("reloaded"), former+next+"\n"+next+"\n"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
	if conf := s.read("etc/keystored.conf"); !strings.Contains(conf, next) || strings.Contains(conf, former) {
		t.Error(conf)
	}
	if got := s.read("rotated"); got != "HTTP/a@A\n" {
		t.Errorf("rotated: %q", got)
	}
	if list := s.list(); len(list) != 1 || list[0].Revision != 2 {
		t.Errorf("%+v", list)
	}
	log := s.read("log/one.log")
	for _, want := range []string{"the next signer is ed25519:", " does not any more", "nothing is left that hosts need of signer ed25519:", "revoked of keys2"} {
		if !strings.Contains(log, want) {
			t.Errorf("no %q in the audit log", want)
		}
	}
}
