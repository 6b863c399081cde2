package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"gssproxyd/tests/lab"
	"gssproxyd/xdr"
)

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
		check(t, d.AsJSON(&res, "clients"))
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
	out, err := d.Administer(lab.Root, "clients", "-n", "1")
	check(t, err)
	if !strings.Contains(out, "  service: lab\n  calls: 1, refused 0\nand 2 more\n") {
		t.Errorf("%s", out)
	}

	// After a reload it is another service, for who is connected too.
	check(t, d.Configure(strings.ReplaceAll(d.Options.Config, "allow_any_uid = yes", "")))
	check(t, d.Reload())
	out, err = d.Administer(lab.Root, "clients")
	check(t, err)
	if !strings.Contains(out, "  no service, no-service-for-uid: ") {
		t.Errorf("%s", out)
	}
}

// What is the administrator's is nobody else's, and nobody else is told that it failed.
func TestAdminIsRoots(t *testing.T) {
	d := daemon(t, "ours", lab.Options{})
	out, err := d.Administer(lab.Nobody, "status")
	if err == nil || !strings.Contains(out, "gssproxy.conf") { // the configuration of the lab is root's
		t.Errorf("%v: %s", err, out)
	}
	conf := filepath.Join(d.Options.Dir, "gssproxy.conf")
	check(t, os.Chmod(conf, 0o644))
	out, err = d.Administer(lab.Nobody, "status")
	check(t, err)
	if !strings.Contains(out, "answered by process") || !strings.Contains(out, "-admin: what else the daemon says of itself is for root\n") {
		t.Errorf("%s", out)
	}
	out, err = d.Administer(lab.Nobody, "clients")
	if err == nil || !strings.Contains(out, "is root's: ask as root") {
		t.Errorf("%v: %s", err, out)
	}
}

// outcomes are the steps of a self-test, one "step outcome reason" each.
func outcomes(res *xdr.AdminResSelftest) string {
	var list []string
	for _, s := range res.Steps {
		list = append(list, strings.TrimSpace(s.Step+" "+s.Outcome+" "+s.Reason))
	}
	return strings.Join(list, ", ")
}

// selftest tries a service.
func selftest(t *testing.T, d *lab.Daemon, name string) *xdr.AdminResSelftest {
	t.Helper()
	out, err := d.Administer(lab.Root, "selftest", "--json", name)
	res := new(xdr.AdminResSelftest)
	if bad := json.Unmarshal([]byte(out), res); bad != nil {
		t.Fatalf("%v, %v\n%s", err, bad, out)
	}
	if (err == nil) != res.Well || err != nil && !strings.Contains(err.Error(), "exit status 3") {
		t.Errorf("service %s: %v", name, err)
	}
	return res
}

// A self-test proves what is right, and finds what is wrong: a keytab that is not there, one that the
// KDC has another key for, a clock.
func TestSelftest(t *testing.T) {
	r := realm(t)
	made(t, r.RandKey("self/"+lab.Host))
	made(t, r.RandKey("front/"+lab.Host))
	made(t, r.RandKey("barred/"+lab.Host))
	keys, err := r.Keytab("self.keytab", "self/"+lab.Host)
	check(t, err)
	fronts, err := r.Keytab("front.keytab", "front/"+lab.Host)
	check(t, err)
	barred, err := r.Keytab("barred.keytab", "barred/"+lab.Host)
	check(t, err)
	check(t, r.Attribute("barred/"+lab.Host, "-allow_tix"))
	config := strings.NewReplacer("KEYS", keys, "FRONTS", fronts, "BARRED", barred, "TWO", keytab(t)).Replace(`[gssproxy]
[service/accept]
  mechs = krb5
  euid = 40001
  cred_usage = accept
  cred_store = keytab:KEYS
  operations = names
[service/two]
  mechs = krb5
  euid = 40002
  cred_store = keytab:TWO
[service/front]
  mechs = krb5
  euid = 40003
  cred_store = keytab:KEYS
  cred_store = client_keytab:FRONTS
[service/initiate]
  mechs = krb5
  euid = 40004
  cred_usage = initiate
  cred_store = client_keytab:FRONTS
[service/none]
  mechs = krb5
  euid = 40005
  cred_store = keytab:/nonexistent/keytab
  cred_usage = accept
[service/barred]
  mechs = krb5
  euid = 40006
  cred_store = keytab:BARRED
[service/cache]
  mechs = krb5
  euid = 40007
  cred_usage = initiate
  cred_store = ccache:MEMORY:x
[service/open]
  mechs = krb5
  euid = 0
  allow_any_uid = yes
  cred_store = keytab:KEYS
  cred_usage = accept
`)
	d := daemon(t, "ours", lab.Options{Config: config})
	accepted := strings.Repeat(", accept ok, replay cache ok", 6)
	for name, want := range map[string]string{
		"accept":   "keytab ok, kdc ok, clock ok, accept ok, replay cache ok",
		"two":      "keytab ok, kdc ok, clock ok" + accepted,
		"front":    "keytab ok, keytab to initiate with ok, kdc ok, clock ok, accept ok, replay cache ok",
		"initiate": "keytab to initiate with ok, kdc ok, clock ok",
		"none":     "keytab failed no-keytab",
		"barred":   "keytab ok, kdc skipped",
		"cache":    "kdc skipped",
	} {
		res := selftest(t, d, name)
		if got := outcomes(res); got != want {
			t.Errorf("service %s: %s, want %s\n%+v", name, got, want, res.Steps)
		}
		for _, s := range res.Steps {
			if s.Text == "" || (s.Hint == "") != (s.Reason == "") {
				t.Errorf("service %s: %+v", name, s)
			}
		}
	}

	// The KDC has new keys, and the keytab has not: what is got with the old ones, and what is not.
	made(t, r.Rotate("self/"+lab.Host))
	for name, want := range map[string]string{
		"front":  "keytab ok, keytab to initiate with ok, kdc ok, clock ok, accept failed kvno-mismatch",
		"accept": "keytab ok, kdc failed preauth-failed",
	} {
		if res := selftest(t, d, name); outcomes(res) != want {
			t.Errorf("service %s with old keys: %s, want %s\n%+v", name, outcomes(res), want, res.Steps)
		}
	}
	check(t, r.Ktadd(keys, "self/"+lab.Host))
	lab.Await(t, "the new key", func() bool { return selftest(t, d, "front").Well })
	out, err := d.Administer(lab.Root, "selftest", "accept")
	check(t, err)
	if !strings.Contains(out, "\nclock: ok: ") || !strings.Contains(out, "accept: ok: a ticket for self/"+lab.Host+"@"+lab.Name+" was accepted") {
		t.Errorf("%s", out)
	}
	out, err = d.Administer(lab.Root, "selftest", "frnt")
	if err == nil || !strings.Contains(out, "did you mean front?") {
		t.Errorf("%v: %s", err, out)
	}

	// A KDC whose clock is another.
	for _, test := range []struct {
		offset time.Duration
		want   string
	}{
		{time.Minute, "keytab ok, kdc ok, clock ok, accept ok, replay cache ok"},
		{20 * time.Minute, "keytab ok, kdc ok, clock failed clock-skew, accept failed ticket-not-yet-valid"},
		{-20 * time.Minute, "keytab ok, kdc ok, clock failed clock-skew, accept failed clock-skew"},
	} {
		conf, kdc, err := r.ShiftedKDC(test.offset)
		check(t, err)
		late := daemon(t, "ours", lab.Options{Config: config, Krb5Conf: conf})
		res := selftest(t, late, "accept")
		if got := outcomes(res); got != test.want {
			t.Errorf("with a clock %v away: %s, want %s\n%+v", test.offset, got, test.want, res.Steps)
		}
		check(t, kdc.Stop())
	}
}

// What a process gets is what a call of its gets.
func TestExplainPID(t *testing.T) {
	r := realm(t)
	d := daemon(t, "ours", lab.Options{Config: `[service/root]
  mechs = krb5
  euid = 0
  cred_store = keytab:` + keytab(t) + `
  cred_usage = accept
[service/others]
  mechs = krb5
  euid = 40000
  allow_any_uid = yes
  cred_store = client_keytab:` + keytab(t) + `
  cred_usage = initiate
  targets = svc/*@` + lab.Name + `
`})
	sleeper := r.Command(lab.Nobody, nil, "/usr/bin/sleep", "600")
	check(t, sleeper.Start())
	defer func() { sleeper.Process.Kill(); sleeper.Wait() }()
	lab.Await(t, "sleep to be what runs", func() bool {
		exe, _ := os.Readlink(fmt.Sprintf("/proc/%d/exe", sleeper.Process.Pid))
		return strings.HasSuffix(exe, "/sleep")
	})
	var res xdr.AdminResExplain
	check(t, d.AsJSON(&res, "explain", "--pid", strconv.Itoa(sleeper.Process.Pid), "--target", service))
	if c := res.Caller; c.UID != lab.Nobody.UID || res.GID != xdr.Some(lab.Nobody.GID) || c.PID != int32(sleeper.Process.Pid) || !strings.HasSuffix(c.Program, "/sleep") || res.Socket != d.Socket {
		t.Errorf("%+v", res)
	}
	if res.Service != "others" || len(res.Trace) != 2 || len(res.Operations) != 1 || !res.Operations[0].Permitted || len(res.Operations[0].Acts) == 0 {
		t.Errorf("%+v", res)
	}
	out, err := d.Administer(lab.Root, "explain", "--pid", strconv.Itoa(sleeper.Process.Pid), "--target", "HTTP@"+lab.Host)
	if err == nil || !strings.Contains(out, "initiate: refused, target-not-allowed: ") {
		t.Errorf("%v: %s", err, out)
	}
	// The same of calls.
	w, err := d.WireAs(lab.Nobody, "")
	check(t, err)
	defer w.Close()
	_, err = initWith(w, nil, service)
	check(t, err)
	_, err = initWith(w, nil, "HTTP@"+lab.Host)
	check(t, tells("ours", err, "target-not-allowed"))
	out, err = d.Administer(lab.Root, "explain", "--last")
	check(t, err)
	if !strings.Contains(out, "call-denied, reason target-not-allowed, ") || !strings.Contains(out, "\n  hint: ") {
		t.Errorf("%s", out)
	}
}

// A reload says what has changed, and opens and closes sockets; one with an error changes nothing,
// and clients go on.
func TestAdminReload(t *testing.T) {
	d := daemon(t, "ours", lab.Options{})
	w, err := d.WireAs(lab.Nobody, "")
	check(t, err)
	defer w.Close()
	goesOn := func() {
		t.Helper()
		check(t, w.Call(xdr.ProcIndicateMechs, &xdr.ArgIndicateMechs{}, new(xdr.ResIndicateMechs)))
	}
	goesOn()
	check(t, d.Configure(d.Options.Config+"  keytabs = x\n"))
	out, err := d.Administer(lab.Root, "reload")
	if err == nil || !strings.Contains(err.Error(), "exit status 2") || !strings.Contains(out, `gssproxy.conf:10: unknown key "keytabs"`) {
		t.Errorf("%v: %s", err, out)
	}
	goesOn()
	other := filepath.Join(d.Options.Dir, "other")
	check(t, d.Configure(d.Options.Config+"  min_lifetime = 60\n[service/other]\n  mechs = krb5\n  euid = 1\n  socket = "+other+"\n"))
	var res, dry xdr.AdminResReload
	check(t, d.AsJSON(&dry, "reload", "--dry-run"))
	if _, err := os.Lstat(other); err == nil || dry.Loaded {
		t.Errorf("a dry run has opened a socket: %+v", dry)
	}
	check(t, d.AsJSON(&res, "reload"))
	if !res.Loaded || !slices.Equal(res.Changes, dry.Changes) || len(res.Changes) != 3 || res.Changes[2] != "socket "+other+": opened" {
		t.Errorf("%+v, %+v", dry, res)
	}
	c, err := d.WireAs(lab.Root, other)
	check(t, err)
	c.Close()
	goesOn()
}
