// Package fleet tests where keys come from but a plain keytab on the host: sealed keytabs, key stores,
// and a fleet of hosts whose keys a store rotates. LAB_UNIT=1 is as in tests/e2e. With NIGHTLY=1 all of it
// has a network and mounts of its own, in which cables are cut and disks are full.
package fleet

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"gssproxyd/tests/booted"
	"gssproxyd/tests/lab"
)

// shared is the one realm of the package.
var shared lab.Shared

func TestMain(m *testing.M) {
	if os.Getenv("NIGHTLY") == "1" && os.Geteuid() == 0 && !lab.UnderUnit() {
		if os.Getenv(inside) == "" {
			os.Exit(apart())
		}
		if err := alone(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	}
	os.Exit(booted.Run(lab.UnderUnit(), func() int { return shared.Run(m) }))
}

// realm is the shared realm. Each test makes the services that it needs.
func realm(t testing.TB) *lab.Realm {
	t.Helper()
	return shared.Raise(t, func(*lab.Realm) error { return nil })
}

// daemon starts our daemon, which ends with the test.
func daemon(t testing.TB, o lab.Options) *lab.Daemon {
	t.Helper()
	return realm(t).NewDaemon(t, "ours", o)
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

// wire is a connection that ends with the test.
func wire(t testing.TB, d *lab.Daemon) *lab.Wire {
	t.Helper()
	w, err := d.Wire()
	check(t, err)
	t.Cleanup(func() { w.Close() })
	return w
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

// acceptThrough has an unmodified acceptor accept a fresh token of an unmodified initiator.
func acceptThrough(initiator, acceptor *lab.Tool, target string) error {
	i, token, err := initiator.Init(target, lab.Usual|lab.Mutual, nil)
	if err != nil {
		return fmt.Errorf("initiator: %w", err)
	}
	a, err := acceptor.Accept(token, nil)
	if err != nil {
		return fmt.Errorf("acceptor: %w", err)
	}
	if _, _, err := initiator.Step(i, a.Token); err != nil {
		return fmt.Errorf("initiator: %w", err)
	}
	return errors.Join(initiator.Delete(i), acceptor.Delete(a.ID))
}

// everyFile scans what is below a directory for keys of the realm. The key that handles are sealed
// with is where it belongs, and so is the identity of a host.
func everyFile(t *testing.T, dir string) {
	t.Helper()
	check(t, filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() || e.Name() == "handle.key" || e.Name() == "host.age" {
			return err
		}
		b, err := os.ReadFile(path)
		return errors.Join(err, realm(t).Scan(path, b))
	}))
}
