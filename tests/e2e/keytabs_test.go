package e2e

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"gssproxyd/tests/lab"
	"gssproxyd/xdr"
)

// TestKeytabDrift: a service gets a new key at the KDC, and nobody thinks of its keytab. Who is told
// "it does not work" sees that with one command, and afterwards whether the former key can go.
func TestKeytabDrift(t *testing.T) {
	needOurs(t)
	r := realm(t)
	principal, target := "drift/"+lab.Host, "drift@"+lab.Host
	check(t, r.RandKey(principal, "aes256-cts-hmac-sha1-96"))
	path, err := r.Keytab("drift.keytab", principal)
	check(t, err)
	d := daemon(t, "ours", lab.Options{Keytab: path})
	w := wire(t, d)

	// keytabs runs the command, which is to end with a status.
	keytabs := func(status int, args ...string) string {
		t.Helper()
		dir := filepath.Dir(d.Socket)
		cmd := r.Command(lab.Root, []string{"GORACE=atexit_sleep_ms=0"}, r.Gssproxyd, append([]string{"keytabs", "-c", dir + "/gssproxy.conf", "-C", dir + "/conf.d", "-s", d.Socket}, args...)...)
		out, err := cmd.Output()
		if code := cmd.ProcessState.ExitCode(); code != status {
			stderr := ""
			if e, ok := err.(*exec.ExitError); ok {
				stderr = string(e.Stderr)
			}
			t.Fatalf("exit status %d, want %d\n%s%s", code, status, out, stderr)
		}
		return string(out)
	}
	shows := func(out, pattern string) {
		t.Helper()
		if !regexp.MustCompile("(?m)" + pattern).MatchString(out) {
			t.Errorf("%s\nhas no %s", out, pattern)
		}
	}
	const enctype = "aes256-cts-hmac-sha1-96"
	key := `^  drift/\S+ +`

	check(t, lab.AcceptOne(alice(t), target, w))
	out := keytabs(0, "lab")
	shows(out, `^FILE:`+regexp.QuoteMeta(path)+`: of lab \(keytab\)$`)
	shows(out, key+`1 +`+enctype+` +\d+[smh] +\d+s ago +- +newest$`)

	check(t, r.Rotate(principal, enctype))
	for range 3 {
		if err := lab.AcceptOne(alice(t), target, w); err == nil || !strings.Contains(err.Error(), "kvno-mismatch") {
			t.Errorf("%v", err)
		}
	}
	out = keytabs(3)
	shows(out, `^  DRIFT: 3 refused, the last \d+s ago, with tickets for drift/\S+ kvno 2 `+enctype+`: the KDC has newer keys than the keytab, where kvno 1 is the newest`)
	var res xdr.AdminResKeytabs
	check(t, json.Unmarshal([]byte(keytabs(3, "--json")), &res))
	if len(res.Keytabs) != 1 || len(res.Keytabs[0].Drift) != 1 || res.Keytabs[0].Drift[0].KVNO != 2 || res.Keytabs[0].Drift[0].Times != 3 || res.Keytabs[0].Refused != 3 || len(res.Keytabs[0].Keys) != 1 {
		t.Errorf("%+v", res)
	}

	next, err := r.Keytab("drift-next", principal)
	check(t, err)
	check(t, os.Rename(next, path))
	check(t, lab.AcceptOne(alice(t), target, w))
	out = keytabs(0)
	shows(out, key+`2 +`+enctype+` +\d+[smh] +\d+s ago +- +newest$`)
	shows(out, key+`1 +`+enctype+` +\d+[smh] +\d+[smh] ago +- +no: it has opened a ticket that is valid until \S+Z$`)
	if strings.Contains(out, "DRIFT") {
		t.Error(out)
	}
}
