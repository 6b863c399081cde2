package creds_test

import (
	"os"
	"strings"
	"testing"
	"time"

	"gssproxyd/mech/krb5"
	"gssproxyd/mech/krb5/ccache"
	"gssproxyd/tests/lab"
	"gssproxyd/xdr"
)

// TestAskedPlanted: who may write a cache may also write into it by which name its tickets were
// asked for. When they have come to their end, nobody goes on as the one whom that name is of: not
// with a handle, not without, and not in the cache.
func TestAskedPlanted(t *testing.T) {
	r, _, alices := realm(t)
	must(t, r.AddPrincipal("bob", "bob"))
	env, err := r.Kinit("bob", "bob")
	must(t, err)
	bobs := strings.TrimPrefix(env[0], "KRB5CCNAME=FILE:")
	must(t, os.Chmod(bobs, 0o600))
	cc, err := new(ccache.Resolver).Open(t.Context(), "FILE:"+bobs)
	must(t, err)
	bob := krb5.Principal{Components: []string{"bob"}, Realm: lab.Name}
	must(t, cc.Update(t.Context(), func(*krb5.Credential) bool { return false },
		ccache.ConfigEntry(bob, ccache.RecordAsked, nil, []byte("alice@"+lab.Name))))

	canonicalizes, err := r.Krb5Conf("canonicalize.conf", "canonicalize = true")
	must(t, err)
	asIs, err := os.ReadFile(bobs)
	must(t, err)
	for what, krb5Conf := range map[string]string{"as it is": r.Conf, "canonicalize": canonicalizes} {
		must(t, os.WriteFile(bobs, asIs, 0o600))
		d := newDirect(t, krb5Conf, map[string]string{"web": "cred_store = client_keytab:" + alices + "\ncred_store = ccache:FILE:" + bobs})
		h, err := d.acquire("web", xdr.ArgAcquireCred{CredUsage: xdr.CredInitiate})
		must(t, err)
		if is := string(h.DesiredName.DisplayName); is != "bob@"+lab.Name {
			t.Fatalf("%s: a credential of %s", what, is)
		}
		d.ahead.Store(int64(48 * time.Hour))
		for _, handle := range []*xdr.Cred{&h, nil} {
			arg := xdr.ArgAcquireCred{CredUsage: xdr.CredInitiate}
			if handle != nil {
				arg.InputCredHandle = xdr.Some(*handle)
			}
			// Once the KDC has told its time bob's tickets live again.
			again, err := d.acquire("web", arg)
			if is := string(again.DesiredName.DisplayName); err == nil && is != "bob@"+lab.Name {
				t.Errorf("%s: a credential of %s, with a handle of bob's: %t", what, is, handle != nil)
			}
		}
		got, err := d.caller("web").Read(t.Context(), cc, 0)
		must(t, err)
		if !got.Client.Equal(bob) {
			t.Errorf("%s: the cache has become one of %s", what, got.Client)
		}
	}
}
