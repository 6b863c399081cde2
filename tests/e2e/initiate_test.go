package e2e

import (
	"fmt"
	"strings"
	"testing"

	"gssproxyd/tests/lab"
)

// svc is one section of a configuration.
type svc struct {
	name  string
	euid  uint32
	lines []string
}

// config writes gssproxy.conf.
func config(services ...svc) string {
	var b strings.Builder
	b.WriteString("[gssproxy]\n  debug_level = 1\n")
	for _, s := range services {
		fmt.Fprintf(&b, "\n[service/%s]\n  mechs = krb5\n  euid = %d\n", s.name, s.euid)
		for _, l := range s.lines {
			fmt.Fprintf(&b, "  %s\n", l)
		}
	}
	return b.String()
}

// unreadable asserts that a program of user u cannot read the file.
func unreadable(t testing.TB, u lab.User, path string) {
	t.Helper()
	if out, err := realm(t).Run(u, nil, "/bin/cat", path); err == nil || !strings.Contains(out, "Permission denied") {
		t.Errorf("uid %d can read %s: %v", u.UID, path, err)
	}
}

// made is check for making a principal that another test may have made.
func made(t testing.TB, err error) {
	t.Helper()
	if err != nil && !strings.Contains(err.Error(), "already exists") {
		t.Fatal(err)
	}
}
