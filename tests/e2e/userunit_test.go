package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"gssproxyd/tests/lab"
)

// TestUserUnits: the user's own proxy as its units have it. A service manager holds the socket, the
// first caller starts the daemon, and it ends when nobody has called for a while.
func TestUserUnits(t *testing.T) {
	needOurs(t)
	lab.NeedPrograms(t, "/usr/bin/systemd-socket-activate")
	r := realm(t)
	binary := daemon(t, "ours", lab.Options{}).Cmd.Path
	path := keytab(t)
	check(t, os.Chown(path, int(lab.Nobody.UID), int(lab.Nobody.GID)))
	runtime := nobodyDir(t)
	check(t, os.Mkdir(filepath.Join(runtime, "gssproxy"), 0o700)) // as DirectoryMode has it
	check(t, os.Chown(filepath.Join(runtime, "gssproxy"), int(lab.Nobody.UID), int(lab.Nobody.GID)))

	socket := strings.Replace(setting(t, "gssproxyd-user.socket", "ListenStream"), "%t", runtime, 1)
	command := strings.Fields(setting(t, "gssproxyd-user.service", "ExecStart"))
	args := []string{"-l", socket}
	for _, v := range []string{"KRB5_CONFIG=" + r.Conf, "KRB5_KTNAME=" + path, "KRB5RCACHENAME=none:", "XDG_RUNTIME_DIR=" + runtime} {
		args = append(args, "-E", v)
	}
	args = append(append(args, binary, "--idle-timeout=10"), command[1:]...)
	p, err := r.Start(r.Command(lab.Nobody, nil, "/usr/bin/systemd-socket-activate", args...), r.Path("userunits.log"))
	check(t, err)
	defer p.Stop()
	check(t, p.WaitOutput("Listening on "+socket, lab.Patience))

	acceptor := tool(t, lab.Nobody, append(r.PluginEnv(socket), "KRB5CCNAME=MEMORY:x")...)
	_, token, err := alice(t).Init(service, lab.Usual|lab.Mutual, nil)
	check(t, err)
	check(t, acceptor.Acquire(service))
	a, err := acceptor.Accept(token, nil)
	check(t, err)
	if a.Client != "alice@"+lab.Name {
		t.Errorf("client %q", a.Client)
	}
	check(t, p.WaitOutput("Terminating, after idling", lab.Patience))
	select {
	case <-p.Done():
	case <-time.After(lab.Patience):
		t.Error("it does not end")
	}
}

// setting is the value of a key in one of the unit files that are shipped.
func setting(t *testing.T, unit, key string) string {
	t.Helper()
	b, err := os.ReadFile("../../dist/" + unit)
	check(t, err)
	for line := range strings.Lines(string(b)) {
		if value, ok := strings.CutPrefix(line, key+"="); ok {
			return strings.TrimSpace(value)
		}
	}
	t.Fatalf("%s has no %s", unit, key)
	return ""
}
