package proc

import (
	"strings"
	"testing"

	"gssproxyd/mech"
	"gssproxyd/tests/lab"
	"gssproxyd/xdr"
)

// TestKeytabLacksName: who asks for a name that the keytab has no key of is told so, and of no cache that he has not named.
func TestKeytabLacksName(t *testing.T) {
	r, svcs, alices := realm(t)
	cc := r.Path("cc")
	d := newDirect(t, r.Conf, map[string]string{
		"keytab": "cred_store = keytab:" + svcs,
		"client": "cred_store = client_keytab:" + alices + "\ncred_store = ccache:FILE:" + cc,
	})
	for service, want := range map[string]string{
		"keytab": "FILE:" + svcs + " has no key of bob@" + lab.Name,
		"client": "FILE:" + alices + " has no key of bob@" + lab.Name,
	} {
		_, err := d.acquire(service, xdr.ArgAcquireCred{CredUsage: xdr.CredInitiate, DesiredName: xdr.Some(named("bob", mech.NTUserName))})
		if err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "MEMORY:") {
			t.Errorf("%s: %v\nwant %q", service, err, want)
		}
	}
}
