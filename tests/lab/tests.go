package lab

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"gssproxyd/xdr"
)

// Shared is the one realm of a package's tests: raised by the first that asks, taken down by Run.
type Shared struct {
	Realm *Realm // nil: none has asked

	once sync.Once
	err  error
}

// Run runs the tests of a package, and returns its exit status.
func (s *Shared) Run(m *testing.M) int {
	unix.Umask(0o022) // directories that a group can write are others' too
	code := m.Run()
	if s.Realm != nil {
		if err := s.Realm.Close(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = 1
		}
	}
	return code
}

// Raise returns the realm, which fill has filled, by [Up]. Where it cannot be raised the test is skipped.
func (s *Shared) Raise(t testing.TB, fill func(*Realm) error) *Realm {
	t.Helper()
	Require(t)
	s.once.Do(func() {
		if s.Realm, s.err = Up(context.Background()); s.err == nil {
			s.err = fill(s.Realm)
		}
	})
	if s.err != nil {
		t.Fatal(s.err)
	}
	return s.Realm
}

// NewDaemon starts a daemon of the kind that ends with the test; its log is shown when the test fails.
func (r *Realm) NewDaemon(t testing.TB, kind string, o Options) *Daemon {
	t.Helper()
	d, err := r.Daemon(kind, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.Stop(); err != nil {
			t.Errorf("the daemon ended badly: %v", err)
		}
		out := d.Output()
		if strings.Contains(out, "DATA RACE") || strings.Contains(out, "panic") {
			t.Error("the daemon's log has a data race or a panic")
		}
		if t.Failed() {
			t.Logf("log of the %s daemon:\n%s", kind, out[max(0, len(out)-8<<10):])
		}
	})
	return d
}

// Administer runs a command that asks a daemon of ours, as a user, and returns what it prints on both.
func (d *Daemon) Administer(u User, args ...string) (string, error) {
	o := d.Options
	env := []string{"KRB5_CONFIG=" + o.Krb5Conf, "GSSPROXYD_STATE_DIR=" + filepath.Join(o.Dir, "state")}
	args = append(args, "-c", filepath.Join(o.Dir, "gssproxy.conf"), "-C", filepath.Join(o.Dir, "conf.d"), "-s", d.Socket)
	return d.realm.Run(u, env, d.realm.Gssproxyd, args...)
}

// AsJSON decodes what a command of root's prints with --json.
func (d *Daemon) AsJSON(res any, args ...string) error {
	out, err := d.Administer(Root, append(args, "--json")...)
	if err != nil {
		return err
	}
	if err := json.Unmarshal([]byte(out), res); err != nil {
		return fmt.Errorf("%v: %w\n%s", args, err, out)
	}
	return nil
}

// NeedPrograms skips the test where a program is not there; with CI=true that is a failure.
func NeedPrograms(t testing.TB, paths ...string) {
	t.Helper()
	for _, p := range paths {
		if _, err := os.Stat(p); err != nil {
			if os.Getenv("CI") == "true" {
				t.Fatal(err)
			}
			t.Skipf("%v: run tests/install-deps", err)
		}
	}
}

// AcceptOne has a daemon accept one fresh token.
func AcceptOne(initiator *Tool, target string, w *Wire) error {
	id, token, err := initiator.Init(target, Usual|Mutual, nil)
	if err != nil {
		return err
	}
	res, err := w.Accept(token, nil)
	if err != nil {
		return err
	}
	if res.Status.MajorStatus != 0 {
		return StatusError(res.Status)
	}
	if _, _, err := initiator.Step(id, res.OutputToken.V); err != nil {
		return err
	}
	return initiator.Delete(id)
}

// StatusError is a call's status as an error, nil for COMPLETE.
func StatusError(s xdr.Status) error {
	if s.MajorStatus == 0 {
		return nil
	}
	text := func(b []byte) string { return strings.TrimSuffix(string(b), "\x00") }
	return fmt.Errorf("major %#x minor %d: %s: %s", s.MajorStatus, s.MinorStatus, text(s.MajorStatusString), text(s.MinorStatusString))
}
