package creds_test

import (
	"os"
	"strings"
	"testing"

	"gssproxyd/mech/krb5/kdc"
)

// TestForwardableForDelegation: a service that may act for users towards others has a forwardable
// ticket for it, which it takes: krb5.conf need not ask for all tickets to be.
func TestForwardableForDelegation(t *testing.T) {
	r, _, alices := realm(t)
	b, err := os.ReadFile(r.Conf)
	must(t, err)
	plain := r.Path("plain.conf")
	must(t, os.WriteFile(plain, []byte(strings.Replace(string(b), "forwardable = true", "", 1)), 0o644))
	for lines, want := range map[string]bool{"": false, "allow_constrained_delegation = yes": true} {
		d := newDirect(t, plain, map[string]string{"web": "cred_store = client_keytab:" + alices + "\n" + lines})
		if got := d.granted("web").Flags&kdc.OptForwardable != 0; got != want {
			t.Errorf("%q: forwardable %v, want %v", lines, got, want)
		}
	}
}
