package creds_test

import (
	"cmp"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"gssproxyd/gssproxyd/creds"
	"gssproxyd/keytab"
	"gssproxyd/mech/krb5/etype"
	"gssproxyd/tests/lab"
	"gssproxyd/xdr"
)

// TestKeytabs is the life of a key, as who looks at the keytabs sees it: it is used, the KDC has
// another one, the keytab too, and in the end it can go.
func TestKeytabs(t *testing.T) {
	r := lab.New(t)
	must(t, r.RandKey("svc/"+lab.Host, "aes256-cts-hmac-sha1-96"))
	path, err := r.Keytab("svc.keytab", "svc/"+lab.Host)
	must(t, err)
	d := newDirect(t, r.Conf, map[string]string{
		"web":   "cred_store = keytab:" + path + "\ncred_store = client_keytab:" + path,
		"other": "cred_store = keytab:" + path + "\ncred_store = client_keytab:" + path + ".none",
	})
	accept := func() error {
		client, err := r.Tool(lab.Nobody, mustKinit(t, r, "alice")...)
		must(t, err)
		defer client.Close()
		_, token, err := client.Init(svc, lab.Usual, nil)
		must(t, err)
		var res xdr.ResAcceptSecContext
		return d.call("web", xdr.ProcAcceptSecContext, lab.AcceptArg(token, nil), &res, &res.Status)
	}
	byVersion := func(a, b keytab.KeyState) int { return cmp.Compare(a.KVNO, b.KVNO) }
	look := func() creds.KeytabState {
		t.Helper()
		list := d.Keytabs()
		if len(list) != 2 || list[0].Source != "FILE:"+path || list[1].Source != "FILE:"+path+".none" {
			t.Fatalf("%v", list)
		}
		slices.SortFunc(list[0].Keys, byVersion)
		return list[0]
	}
	// shown is each key with its version from the first on, whether it has accepted and initiated, and
	// can go.
	shown := func(s creds.KeytabState) string {
		var list []string
		for _, k := range s.Keys {
			list = append(list, fmt.Sprintf("%d accepted %v initiated %v %s", k.KVNO-s.Keys[0].KVNO, !k.Accepted.IsZero(), !k.Initiated.IsZero(), k.Prune))
		}
		return strings.Join(list, ", ")
	}
	want := func(keys string) creds.KeytabState {
		t.Helper()
		s := look()
		if got := shown(s); got != keys {
			t.Errorf("%s, want %s; %+v", got, keys, s)
		}
		return s
	}

	s := want("0 accepted false initiated false newest")
	if got := fmt.Sprint(s.Uses); got != "[{other keytab} {web keytab} {web client_keytab}]" {
		t.Errorf("used by %s", got)
	}
	if d.Keytabs()[1].Err == nil {
		t.Error("nothing is wrong with a keytab that is not there")
	}
	must(t, accept())
	s = want("0 accepted true initiated false newest")
	if k := s.Keys[0]; !k.Until.After(k.Accepted) || k.Principal != "svc/"+lab.Host+"@"+"EXAMPLE.TEST" || k.Enctype != etype.AES256SHA1 || s.Newest.IsZero() {
		t.Errorf("%+v", s)
	}
	_, err = d.acquire("web", xdr.ArgAcquireCred{CredUsage: xdr.CredInitiate})
	must(t, err)
	want("0 accepted true initiated true newest")

	// The KDC has another key.
	must(t, r.Rotate("svc/"+lab.Host, "aes256-cts-hmac-sha1-96"))
	for range 2 {
		if err := accept(); err == nil || !strings.Contains(err.Error(), "kvno-mismatch") {
			t.Errorf("%v", err)
		}
	}
	s = want("0 accepted true initiated true newest")
	if len(s.Missed) != 1 || s.Missed[0].KVNO != s.Keys[0].KVNO+1 || s.Missed[0].Newest != s.Keys[0].KVNO || s.Missed[0].Times != 2 || s.Missed[0].Held || s.Times != 2 || s.Others != 0 {
		t.Errorf("%+v", s)
	}

	// And the keytab, which keeps the former one.
	next, err := r.Keytab("next.keytab", "svc/"+lab.Host)
	must(t, err)
	must(t, os.Rename(next, path))
	must(t, accept())
	s = want("0 accepted true initiated true no, 1 accepted true initiated false newest")
	if why := s.Keys[0].Why; !strings.Contains(why, "it has opened a ticket that is valid until ") {
		t.Error(why)
	}
	if len(s.Missed) != 0 || s.Times != 2 {
		t.Errorf("%+v", s)
	}
	d.ahead.Add(int64(keytab.UsualLife + 10*time.Minute))
	s = want("0 accepted true initiated true safe, 1 accepted true initiated false newest")

	// A daemon that has just started has not seen that.
	d.start(func() time.Time { return time.Now().Add(time.Duration(d.ahead.Load())) })
	d.load(r.Conf, map[string]string{"web": "cred_store = keytab:" + path})
	list := d.Keytabs()
	slices.SortFunc(list[0].Keys, byVersion)
	if got := shown(list[0]); len(list) != 1 || got != "0 accepted false initiated false unknown, 1 accepted false initiated false newest" {
		t.Errorf("%d: %s", len(list), got)
	}
}

// TestUsersKeytabs: those of users are there once they have called.
func TestUsersKeytabs(t *testing.T) {
	good, err := os.ReadFile("../../testdata/kernel/keys/server.keytab")
	must(t, err)
	dir := t.TempDir()
	must(t, os.WriteFile(filepath.Join(dir, "0.keytab"), good, 0o600))
	d := newDirect(t, filepath.Join(dir, "no-krb5.conf"), map[string]string{"users": "allow_any_uid = yes\ncred_store = keytab:" + dir + "/%U.keytab"})
	if list := d.Keytabs(); len(list) != 0 {
		t.Errorf("%v", list)
	}
	d.acquire("users", xdr.ArgAcquireCred{CredUsage: xdr.CredAccept})
	d.as(7).acquire("users", xdr.ArgAcquireCred{CredUsage: xdr.CredAccept})
	var got []string
	for _, s := range d.Keytabs() {
		got = append(got, fmt.Sprintf("%s %v %v %v", filepath.Base(s.Source), len(s.Keys) > 0, s.Needed, s.Uses))
	}
	if want := []string{"0.keytab true false [{users keytab}]", "7.keytab false false [{users keytab}]"}; !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
}
