package unit

import (
	"os"
	"os/exec"
	"strings"
	"testing"

	"gssproxyd/tests/lab"
)

// Root's commands, which have not the unit's environment, seal to the identity that the daemon of the
// unit opens with: in its state directory, and where systemd hands one over.
func TestSealed(t *testing.T) {
	const socket, out = "/run/sealed/sock", "/etc/gssproxy/host.keytab.age"
	run := func(name string, args ...string) string {
		t.Helper()
		said, err := exec.Command(name, args...).CombinedOutput()
		if err != nil {
			t.Fatalf("%s %q: %v\n%s", name, args, err, said)
		}
		return string(said)
	}
	host(t)
	check(t, os.MkdirAll("/run/sealed", 0o755))
	t.Cleanup(func() {
		os.Remove(out)
		os.Remove("/etc/host.age")
	})
	files := map[string]string{"/etc/gssproxy/10-sealed.conf": "[service/sealed]\n  mechs = krb5\n  cred_store = keytab:SEALED:" + out + "\n  cred_usage = accept\n  euid = nobody\n  socket = " + socket + "\n"}
	sealed := func(t *testing.T, r *lab.Realm, identity string) {
		said := run("gssproxyd", "keytab", "seal", "/etc/krb5.keytab", out, "--write", "--force")
		if !strings.Contains(said, "whose identity is in "+identity+"\n") || !strings.Contains(said, "the daemon takes it there") {
			t.Errorf("%s", said)
		}
		acceptor := program(t, r, lab.Nobody, socket)
		accepts(t, acceptor, alice(t, r), service, principal)
		if said := run("gssproxyd", "check"); strings.Contains(said, "warning") {
			t.Errorf("%s", said)
		}
	}
	t.Run("in the state directory", func(t *testing.T) {
		r := start(t, files)
		const identity = "/var/lib/gssproxy/state/host.age"
		recipient := run("gssproxyd", "keytab", "recipient")
		if !strings.HasPrefix(recipient, "age1") {
			t.Error(recipient)
		}
		if got := run("stat", "-c", "%U %a", identity); got != "gssproxyd 600\n" {
			t.Errorf("the identity is %s", got)
		}
		sealed(t, r, identity)
	})
	t.Run("handed over", func(t *testing.T) {
		run("age-keygen", "-o", "/etc/host.age")
		files["/etc/systemd/system/gssproxyd.service.d/identity.conf"] = "[Service]\nLoadCredential=host.age:/etc/host.age\n"
		r := start(t, files)
		if got, want := run("gssproxyd", "keytab", "recipient"), run("age-keygen", "-y", "/etc/host.age"); got != want {
			t.Errorf("recipient %s, want %s", got, want)
		}
		sealed(t, r, "/run/credentials/gssproxyd.service/host.age")
	})
}
