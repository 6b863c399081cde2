// Package e2e tests the daemon whole: real clients, a real KDC, the C daemon beside ours where the
// two can be compared. LAB_DAEMONS (default "C,ours") says which of them the tests that run over
// both are run over, and LAB_PLUGIN (default "ours"; or "debian") which plugin of the mechglue is in
// front of the programs that are to have one. LAB_UNIT=1 has systemd start our daemon, with the user,
// the rights and the restrictions of the unit that is shipped.
package e2e

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"gssproxyd/tests/booted"
	"gssproxyd/tests/lab"
)

// shared is the one realm of the package.
var shared lab.Shared

func TestMain(m *testing.M) {
	os.Exit(booted.Run(lab.UnderUnit(), func() int { return shared.Run(m) }))
}

// Services of the shared realm: one an enctype whose tickets, session keys and keys in the keytab
// are all of that enctype, and "svc", which has every AES enctype.
func serviceOf(enctype int) string { return fmt.Sprintf("e%d@%s", enctype, lab.Host) }

const service = "svc@" + lab.Host

var enctypes = []int{17, 18, 19, 20}

// notUnderUnit are the tests that presuppose what the shipped unit takes away, and why each is skipped
// with LAB_UNIT=1. All others pass with it.
var notUnderUnit = map[string]string{
	"TestRunAsUser":            "it says which capabilities remain where no service manager gives any; tests/unit says which the unit's daemon has",
	"TestRunAsRoot":            "it compares the daemon's capabilities with the test's",
	"TestRunAsUserOfDirectory": "the daemon is started with another user database, in a mount namespace that the unit forbids",
	"TestNameServiceHangs":     "as TestRunAsUserOfDirectory",
	"TestUserAdded":            "as TestRunAsUserOfDirectory",
	"TestKernelUsers":          "as TestRunAsUserOfDirectory",
	"TestKernelHelperGoes":     "it counts the children of a daemon that starts its helpers itself; tests/unit sees all of the unit's processes end",
	"TestMigrate":              "it takes the C daemon's place where there is no service manager to ask",
	"TestRunAsUserAmbient":     "as TestRunAsUser",
	"TestNotify":               "the service manager is one of the test's own; tests/unit has the real one",
}

// usersCaches is the drop-in for a daemon that writes to credential caches in directories of others:
// root's, where these tests have them.
const usersCaches = "users-caches.conf"

// realm is the shared realm. It has the services above and HTTP.
func realm(t testing.TB) *lab.Realm {
	t.Helper()
	test, _, _ := strings.Cut(t.Name(), "/")
	if why := notUnderUnit[test]; why != "" && lab.UnderUnit() {
		t.Skip("not run with LAB_UNIT=1: " + why)
	}
	return shared.Raise(t, func(r *lab.Realm) error {
		for _, n := range enctypes {
			if err := r.RandKey(fmt.Sprintf("e%d/%s", n, lab.Host), lab.EnctypeName(n)); err != nil {
				return err
			}
		}
		return errors.Join(r.RandKey("svc/"+lab.Host), r.RandKey("HTTP/"+lab.Host))
	})
}

// keytab is a new keytab with the keys of every service of the shared realm: root's, 0600.
func keytab(t testing.TB) string {
	t.Helper()
	names := []string{"svc/" + lab.Host, "HTTP/" + lab.Host}
	for _, n := range enctypes {
		names = append(names, fmt.Sprintf("e%d/%s", n, lab.Host))
	}
	path, err := realm(t).Keytab("keytab", names...)
	check(t, err)
	return path
}

// daemonsDir is a new directory of the user that our daemon becomes.
func daemonsDir(t testing.TB, base string) string {
	t.Helper()
	owner, err := lab.OursRunsAs()
	check(t, err)
	dir, err := realm(t).MkdirFor(owner, base)
	check(t, err)
	return dir
}

// daemon starts a daemon of the kind that ends with the test. The options' keytab is a new one unless it
// is given.
func daemon(t testing.TB, kind string, o lab.Options) *lab.Daemon {
	t.Helper()
	if o.Keytab == "" {
		o.Keytab = keytab(t)
	}
	return realm(t).NewDaemon(t, kind, o)
}

// overDaemons runs the test over both daemons.
func overDaemons(t *testing.T, test func(t *testing.T, kind string)) {
	t.Helper()
	kinds := lab.Kinds
	if s := os.Getenv("LAB_DAEMONS"); s != "" {
		kinds = strings.Split(s, ",")
	}
	for _, kind := range kinds {
		if !slices.Contains(lab.Kinds, kind) {
			t.Fatalf("LAB_DAEMONS: no daemon %q", kind)
		}
		t.Run(kind, func(t *testing.T) { test(t, kind) })
	}
}

// needOurs skips the test where LAB_DAEMONS leaves our daemon out.
func needOurs(t *testing.T) {
	t.Helper()
	if s := os.Getenv("LAB_DAEMONS"); s != "" && !slices.Contains(strings.Split(s, ","), "ours") {
		t.Skip("LAB_DAEMONS leaves our daemon out")
	}
}

// tool starts a gsstool that ends with the test.
func tool(t testing.TB, u lab.User, env ...string) *lab.Tool {
	t.Helper()
	g, err := realm(t).Tool(u, env...)
	check(t, err)
	t.Cleanup(func() { g.Close() })
	return g
}

// alice is a gsstool of a client with fresh tickets.
func alice(t testing.TB, kinit ...string) *lab.Tool {
	t.Helper()
	env, err := realm(t).Kinit("alice", "alice", kinit...)
	check(t, err)
	return tool(t, lab.Nobody, env...)
}

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func tail(s string, n int) string {
	if len(s) <= n {
		return s
	}
	return "...\n" + s[len(s)-n:]
}
