// Package programs tests the plugin in programs that accept contexts and know nothing of it: a mail
// server, a helper of a proxy, a Java program and a web server whose processes are forked after the
// credential was acquired. Each is run with Debian's plugin, too. It is for make nightly: -programs
// has it run.
package programs

import (
	"cmp"
	"errors"
	"flag"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"gssproxyd/tests/lab"
)

var programsFlag = flag.Bool("programs", false, "test the programs that tests/programs/install-deps installs (root only)")

func TestMain(m *testing.M) {
	flag.Parse()
	unix.Umask(0o022)
	os.Exit(m.Run())
}

// program is one that is tested.
type program struct {
	name    string
	user    string // the one of its processes that accepts is this user's
	service string // on the lab's host
	start   func(t *testing.T, r *lab.Realm, u lab.User, service string, env []string) server

	// debians is what is different with Debian's plugin: what the program says when the daemon refuses,
	// and with "" what it says instead of serving alice.
	debians map[string]string
}

// server is a running program. It has alice ask once, or once each of its processes, and returns what it
// says if it refuses her.
type server func(alice *lab.Tool) error

// The ways in which a program's service is not allowed to it.
const (
	onlyInitiate = "service to initiate"
	notAllowed   = "service of another user"
)

// step is one in a program's life: what becomes of the daemon before alice asks, and what the program must
// say if it has to refuse her.
type step struct {
	name    string
	before  func(*lab.Daemon) error
	refused string
}

// TestPrograms has each of the programs serve alice while its daemon changes.
func TestPrograms(t *testing.T) {
	if !*programsFlag {
		t.Skip("not run: it needs packages of its own; make test-programs runs it")
	}
	r := lab.New(t)
	for _, p := range programs {
		check(t, r.RandKey(p.service+"/"+lab.Host))
		keytab, err := r.Keytab(p.name+".keytab", p.service+"/"+lab.Host)
		check(t, err)
		u, err := lab.LookupUser(p.user)
		check(t, err)
		if out, err := r.Run(u, nil, "/bin/cat", keytab); err == nil || !strings.Contains(out, "Permission denied") {
			t.Fatalf("%s can read %s: %v", p.user, keytab, err)
		}
		for _, plugin := range []lab.Plugin{lab.Ours, lab.Debians} {
			t.Run(p.name+"/"+string(plugin), func(t *testing.T) { live(t, r, p, u, keytab, plugin) })
		}
	}
}

// live is a program's life.
func live(t *testing.T, r *lab.Realm, p program, u lab.User, keytab string, plugin lab.Plugin) {
	config := func(uid uint32, usage string) string {
		const text = "[gssproxy]\n  debug_level = 1\n\n[service/root]\n  mechs = krb5\n  euid = 0\n  cred_store = keytab:/nonexistent\n\n" +
			"[service/program]\n  mechs = krb5\n  euid = %d\n  cred_store = keytab:%s\n  cred_usage = %s\n"
		return fmt.Sprintf(text, uid, keytab, usage)
	}
	reconfigured := func(uid uint32, usage string) func(*lab.Daemon) error {
		return func(d *lab.Daemon) error { return errors.Join(d.Configure(config(uid, usage)), d.Reload()) }
	}
	d, err := r.Ours(lab.Options{Config: config(u.UID, "accept"), Keytab: "/nonexistent"})
	check(t, err)
	t.Cleanup(func() {
		check(t, d.Stop())
		if t.Failed() {
			t.Logf("the daemon's log:\n%s", d.Output())
		}
	})
	env := append(d.PluginEnvOf(plugin), "KRB5_KTNAME="+keytab)
	tickets, err := r.Kinit("alice", "alice")
	check(t, err)
	alice, err := r.Tool(lab.Nobody, tickets...)
	check(t, err)
	t.Cleanup(func() { alice.Close() })

	ask := p.start(t, r, u, p.service+"@"+lab.Host, env)
	for _, s := range []step{
		{"first", func(*lab.Daemon) error { return nil }, ""},
		{"daemon restarted", (*lab.Daemon).Restart, ""},
		{"daemon killed", (*lab.Daemon).Crash, ""},
		{onlyInitiate, reconfigured(u.UID, "initiate"), "[usage-not-allowed]"},
		{notAllowed, reconfigured(u.UID+1, "accept"), "gssproxyd at " + d.Socket + ": it "},
		{"service again", reconfigured(u.UID, "accept"), ""},
	} {
		check(t, s.before(d))
		want := s.refused
		if plugin == lab.Debians {
			key := s.name
			if want == "" {
				key = ""
			}
			want = cmp.Or(p.debians[key], want)
		}
		err := ask(alice)
		if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("%s: %v, want %q", s.name, err, want)
		}
	}
}

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// await waits until something is so.
func await(t *testing.T, p *lab.Process, what string, ready func() bool) {
	t.Helper()
	for deadline := time.Now().Add(lab.Patience); !ready(); time.Sleep(2 * time.Millisecond) {
		select {
		case <-p.Done():
			t.Fatalf("it ended before it did %s:\n%s", what, p.Output())
		default:
		}
		if time.Now().After(deadline) {
			t.Fatalf("it did not %s:\n%s", what, p.Output())
		}
	}
}
