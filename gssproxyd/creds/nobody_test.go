package creds_test

import (
	"os"
	"strings"
	"testing"

	"gssproxyd/gssproxyd/creds"
	"gssproxyd/tests/lab"
	"gssproxyd/xdr"
)

// TestNamesNobody: who a request that names nobody initiates as, with a keytab that begins with a
// service. krb5_principal says it for every service, in whichever keytab it is, and what that one
// lacks nobody else takes the place of.
func TestNamesNobody(t *testing.T) {
	r, svcs, alices := realm(t)
	both, err := r.Keytab("both.keytab", "svc/"+lab.Host, "alice")
	must(t, err)
	env, err := r.Kinit("alice", "alice")
	must(t, err)
	cache := strings.TrimPrefix(env[0], "KRB5CCNAME=")
	must(t, os.Chmod(strings.TrimPrefix(cache, "FILE:"), 0o600))
	const asAlice = "\nkrb5_principal = alice"
	store := func(lines ...string) string { return "cred_store = " + strings.Join(lines, "\ncred_store = ") }
	for _, test := range []struct {
		what, lines string
		uid         uint32
		want        string // or what the refusal says
	}{
		{"the first entry", store("client_keytab:" + both), 0, "svc/" + lab.Host},
		{"named", store("client_keytab:"+both) + asAlice, 0, "alice"},
		{"named, in the service's keytab", store("keytab:"+both) + asAlice, 0, "alice"},
		{"named, in the client keytab of two", store("keytab:"+svcs, "client_keytab:"+alices) + asAlice, 0, "alice"},
		{"named, in the service's of two", store("keytab:"+alices, "client_keytab:"+svcs) + asAlice, 0, "alice"},
		{"trusted", store("keytab:"+both) + asAlice + "\ntrusted = yes", 0, "alice"},
		{"trusted, in the client keytab of two", store("keytab:"+svcs, "client_keytab:"+alices) + asAlice + "\ntrusted = yes", 0, "alice"},
		{"a user of the service's", store("client_keytab:"+both) + asAlice + "\nallow_any_uid = yes\neuid = 33", 1000, "alice"},
		{"a user whose keytab lacks it", store("client_keytab:"+svcs) + asAlice + "\nallow_any_uid = yes\neuid = 33", 1000, "svc/" + lab.Host},
		{"a keytab that lacks it", store("client_keytab:"+svcs) + asAlice, 0, "alice@" + lab.Name},
		{"a cache of it", store("ccache:"+cache) + asAlice, 0, "alice"},
		{"a cache of another's", store("ccache:"+cache, "client_keytab:"+both) + "\nkrb5_principal = svc/" + lab.Host, 0, "is of alice@" + lab.Name + ", not of svc/" + lab.Host},
	} {
		d := newDirect(t, r.Conf, map[string]string{"web": test.lines}).as(test.uid)
		cred, err := d.acquire("web", xdr.ArgAcquireCred{CredUsage: xdr.CredInitiate})
		switch got := string(cred.DesiredName.DisplayName); {
		case err != nil && !strings.Contains(err.Error(), test.want):
			t.Errorf("%s: %v, want %s", test.what, err, test.want)
		case err == nil && got != test.want+"@"+lab.Name:
			t.Errorf("%s: a credential of %s, want %s", test.what, got, test.want)
		case err == nil:
			_, err = d.init("web", nil, svc)
			must(t, err)
		}
	}

	// Accepting goes on with every key, unless the service is trusted.
	d := newDirect(t, r.Conf, map[string]string{"web": store("keytab:"+both) + asAlice})
	cred, err := d.acquire("web", xdr.ArgAcquireCred{CredUsage: xdr.CredBoth})
	must(t, err)
	if cr := d.caller("web").Open(cred.CredHandleReference); creds.WantedOf(cr) != "" {
		t.Errorf("it accepts for %s only", creds.WantedOf(cr))
	}
}
