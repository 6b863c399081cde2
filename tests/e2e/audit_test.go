package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"gssproxyd/audit"
	"gssproxyd/mech/reason"
	"gssproxyd/tests/lab"
)

// TestAuditFull: with audit_failure = refuse nothing is done that is not written, and what was kept is
// whole; with room again calls are served again.
func TestAuditFull(t *testing.T) {
	needOurs(t)
	r := realm(t)
	dir := r.Path("audit-full")
	check(t, os.MkdirAll(dir, 0o755))
	check(t, syscall.Mount("tmpfs", dir, "tmpfs", 0, "mode=0755,size=64k"))
	t.Cleanup(func() { check(t, syscall.Unmount(dir, 0)) })
	u, err := lab.OursRunsAs()
	check(t, err)
	check(t, os.Chown(dir, int(u.UID), int(u.GID)))
	file, ballast := filepath.Join(dir, "audit.log"), filepath.Join(dir, "ballast")
	d := daemon(t, "ours", lab.Options{Config: strings.Replace(config(svc{"web", 0, []string{"cred_store = keytab:" + keytab(t)}}),
		"[gssproxy]\n", "[gssproxy]\naudit = "+file+"\naudit_failure = refuse\n", 1)})
	w := wire(t, d)
	accept := func() error {
		tokens, err := alice(t).Tokens(1, service, lab.Usual, nil)
		check(t, err)
		res, err := w.Accept(tokens[0], nil)
		check(t, err)
		return lab.StatusError(res.Status)
	}
	check(t, accept())
	if err := os.WriteFile(ballast, make([]byte, 1<<20), 0o600); err == nil {
		t.Fatal("the file system is not full")
	}
	// What is left of the last page of the file may take some lines.
	for n := 0; ; n++ {
		err := accept()
		if err == nil && n < 100 {
			continue
		}
		if err == nil || !strings.Contains(err.Error(), "["+string(reason.AuditFailed)+"]") {
			t.Errorf("with a full disk: %v, want %s", err, reason.AuditFailed)
		}
		break
	}
	check(t, os.Remove(ballast))
	check(t, accept())
	check(t, d.Stop())
	report, err := audit.Verify([]string{file})
	check(t, err)
	if report.Lost == 0 {
		t.Errorf("%+v: no line says what was lost", report)
	}
}
