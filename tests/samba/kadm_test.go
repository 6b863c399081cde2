package samba

import (
	"errors"
	"os"
	"testing"

	"gssproxyd/keystore/kadm"
	"gssproxyd/keytab"
	"gssproxyd/mech/krb5"
	"gssproxyd/mech/krb5/etype"
	"gssproxyd/mech/krb5/kdc"
	"gssproxyd/mech/krb5/krb5conf"
	"gssproxyd/mech/reason"
)

// testKpasswd: an account changes its own key. What is derived from the password with the salt of a
// computer account is what the domain has then.
func testKpasswd(t *testing.T, d *domain) {
	const account = "FILES$"
	conf, err := krb5conf.Load([]string{d.Conf})
	check(t, err)
	c := &kdc.Client{Conf: conf}
	p, err := krb5.ParsePrincipal(account, realmName)
	check(t, err)
	b, err := os.ReadFile(d.keytab(t, account))
	check(t, err)
	entries, err := keytab.Parse(b)
	check(t, err)
	self := kadm.Self{Principal: p, Keys: kdc.Keytab(keytab.Compile("FILE:"+account, entries))}

	way := &kadm.Kpasswd{Client: c}
	was, err := way.Record(t.Context(), self)
	check(t, err)
	if want := "AD.TESThostfiles.ad.test"; was.Salt != want || was.Ticket != etype.AES256SHA1 {
		t.Errorf("%+v, want the salt %s", was, want)
	}
	prober := &kadm.Prober{Client: c, Principal: p}
	defer prober.Close()
	check(t, prober.Login(t.Context(), self.Keys))

	next := etype.Secret("vIuVfxzCOuSSc8qn3aEWC9ib2cJNBLrTZVpTJjhVmcE")
	aes := []etype.ID{etype.AES256SHA1, etype.AES128SHA1}
	check(t, way.Change(t.Context(), self, next, aes))
	known, err := kadm.Keys(next, was.Salt, was.Params, aes)
	check(t, err)
	i, kvno, err := prober.Probe(t.Context(), known)
	if err != nil || kvno != was.KVNO+1 {
		t.Errorf("key %d, version %d after %d, %v", i, kvno, was.KVNO, err)
	}

	// The old key logs nobody in, the new one does.
	if err := prober.Login(t.Context(), self.Keys); !errors.Is(err, reason.PreauthFailed) {
		t.Errorf("with the old key: %v", err)
	}
	check(t, prober.Login(t.Context(), self.Keys, kdc.Password(next)))
	if i, kvno, err = prober.Probe(t.Context(), known); err != nil || kvno != was.KVNO+1 {
		t.Errorf("key %d, version %d after %d, %v", i, kvno, was.KVNO, err)
	}
}
