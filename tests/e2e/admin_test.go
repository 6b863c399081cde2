package e2e

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"gssproxyd/tests/lab"
	"gssproxyd/xdr"
)

// administer runs a command that asks a daemon of ours, as a user, and returns what it prints on
// both.
func administer(t *testing.T, d *lab.Daemon, u lab.User, args ...string) (string, error) {
	t.Helper()
	o := d.Options
	env := []string{"KRB5_CONFIG=" + o.Krb5Conf, "GSSPROXYD_STATE_DIR=" + filepath.Join(o.Dir, "state")}
	args = append(args, "-c", filepath.Join(o.Dir, "gssproxy.conf"), "-C", filepath.Join(o.Dir, "conf.d"), "-s", d.Socket)
	return realm(t).Run(u, env, realm(t).Gssproxyd, args...)
}

// asJSON is what a command prints with --json.
func asJSON(t *testing.T, d *lab.Daemon, res any, args ...string) {
	t.Helper()
	out, err := administer(t, d, lab.Root, append(args, "--json")...)
	check(t, err)
	if err := json.Unmarshal([]byte(out), res); err != nil {
		t.Fatalf("%v: %v\n%s", args, err, out)
	}
}

// Who is connected, as which service, and what became of the calls.
func TestClients(t *testing.T) {
	d := daemon(t, "ours", lab.Options{})
	for _, u := range []lab.User{lab.Root, lab.Nobody} {
		w, err := d.WireAs(u, "")
		check(t, err)
		defer w.Close()
		check(t, w.Call(xdr.ProcIndicateMechs, &xdr.ArgIndicateMechs{}, new(xdr.ResIndicateMechs)))
		if u == lab.Nobody { // the service accepts, and does nothing else
			_, err := tryInit(w)
			check(t, tells("ours", err, "usage-not-allowed"))
		}
	}
	silent, err := d.WireAs(lab.Nobody, "")
	check(t, err)
	defer silent.Close()

	var res xdr.AdminResClients
	lab.Await(t, "both connections", func() bool { // what the lab asked has been closed, and may still be there
		res = xdr.AdminResClients{}
		asJSON(t, d, &res, "clients")
		return len(res.Clients) == 3
	})
	for _, c := range res.Clients {
		own := c.Caller.PID == int32(os.Getpid()) && c.Socket == d.Socket && c.InProgress == 0
		switch {
		case !own:
			t.Errorf("%+v", c)
		case c.Calls == 0:
			if c.Caller.UID != lab.Nobody.UID || c.Service != "" || !strings.Contains(c.Text, "not decided") {
				t.Errorf("who has said nothing: %+v", c)
			}
		case c.Caller.UID == 0 && (c.Calls != 1 || c.Refused != 0), c.Caller.UID != 0 && (c.Calls != 2 || c.Refused != 1), c.Service != "lab", c.Caller.Program == "":
			t.Errorf("%+v", c)
		}
	}
	out, err := administer(t, d, lab.Root, "clients", "-n", "1")
	check(t, err)
	if !strings.Contains(out, "  service: lab\n  calls: 1, refused 0\nand 2 more\n") {
		t.Errorf("%s", out)
	}

	// After a reload it is another service, for who is connected too.
	check(t, d.Configure(strings.ReplaceAll(d.Options.Config, "allow_any_uid = yes", "")))
	check(t, d.Reload())
	out, err = administer(t, d, lab.Root, "clients")
	check(t, err)
	if !strings.Contains(out, "  no service, no-service-for-uid: ") {
		t.Errorf("%s", out)
	}
}

// What is the administrator's is nobody else's, and nobody else is told that it failed.
func TestAdminIsRoots(t *testing.T) {
	d := daemon(t, "ours", lab.Options{})
	out, err := administer(t, d, lab.Nobody, "status")
	if err == nil || !strings.Contains(out, "gssproxy.conf") { // the configuration of the lab is root's
		t.Errorf("%v: %s", err, out)
	}
	conf := filepath.Join(d.Options.Dir, "gssproxy.conf")
	check(t, os.Chmod(conf, 0o644))
	out, err = administer(t, d, lab.Nobody, "status")
	check(t, err)
	if !strings.Contains(out, "answered by process") || !strings.Contains(out, "-admin: what else the daemon says of itself is for root\n") {
		t.Errorf("%s", out)
	}
	out, err = administer(t, d, lab.Nobody, "clients")
	if err == nil || !strings.Contains(out, "is root's: ask as root") {
		t.Errorf("%v: %s", err, out)
	}
}
