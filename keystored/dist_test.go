package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"gssproxyd/tests/lab"
)

// The configuration that is shipped says what its comments do.
func TestShippedConfiguration(t *testing.T) {
	c, err := load("../dist/keystored/keystored.conf")
	if err != nil || len(c.warnings) > 0 || len(c.admins) != 1 {
		t.Error(err, c.warnings)
	}
}

// The unit that is shipped is understood by systemd, to the last line, and makes the directories that
// are the defaults here.
func TestShippedUnit(t *testing.T) {
	analyze, err := exec.LookPath("systemd-analyze")
	if err != nil {
		lab.Lacking(t, "systemd-analyze", err)
	}
	b, err := os.ReadFile("../dist/keystored.service")
	if err != nil {
		t.Fatal(err)
	}
	unit := string(b)
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "keystored.service"), []byte(strings.ReplaceAll(unit, "/usr/sbin/keystored", "/bin/true")), 0o644); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(analyze, "verify", "--man=no", "keystored.service")
	cmd.Env = append(os.Environ(), "SYSTEMD_UNIT_PATH="+dir+":", "XDG_RUNTIME_DIR="+dir)
	if out, err := cmd.CombinedOutput(); err != nil || len(out) > 0 {
		t.Errorf("%v\n%s", err, out)
	}
	for _, line := range []string{
		"ExecStart=/usr/sbin/keystored serve", "StateDirectory=" + filepath.Base(defaultStateDir), "RuntimeDirectory=" + filepath.Base(filepath.Dir(defaultSocket)),
		"RestartPreventExitStatus=2", "LimitCORE=0",
	} {
		if !strings.Contains(unit, "\n"+line+"\n") {
			t.Errorf("the unit lacks %s", line)
		}
	}
}
