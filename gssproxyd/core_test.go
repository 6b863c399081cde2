package main

import (
	"net"
	"os"
	"syscall"
	"testing"

	"gssproxyd/tests/lab"
)

// However the daemon ends, its memory is in no core file, and no other process of its user reads it.
func TestNoCore(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("not run: it takes root to become another user")
	}
	dir := t.TempDir()
	program := lab.Executable(t, dir, "gssproxyd")
	config := "[gssproxy]\n[service/any]\n  mechs = krb5\n  euid = 0\n  cred_store = keytab:" + dir + "/none\n  cred_usage = accept\n"
	if err := os.WriteFile(dir+"/gssproxy.conf", []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{dir, dir + "/gssproxy.conf", program} {
		if err := os.Chown(name, int(lab.Nobody.UID), int(lab.Nobody.GID)); err != nil {
			t.Fatal(err)
		}
	}
	ready := func() bool {
		c, err := net.Dial("unix", dir+"/socket")
		if err != nil {
			return false
		}
		return c.Close() == nil
	}
	t.Setenv("GSSPROXYD_STATE_DIR", dir)
	t.Setenv("KRB5_CONFIG", "/dev/null")
	lab.NoCore(t, dir, lab.Nobody, []syscall.Signal{syscall.SIGABRT}, ready, program, "-i", "-c", dir+"/gssproxy.conf", "-C", dir, "-s", dir+"/socket")
}
