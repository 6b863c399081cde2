package kadm

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"gssproxyd/keytab"
	"gssproxyd/mech/krb5"
	"gssproxyd/mech/krb5/etype"
	"gssproxyd/mech/krb5/kdc"
	"gssproxyd/mech/reason"
	"gssproxyd/tests/lab"
)

// A service of a realm of Heimdal's changes its key by kpasswd, which listens at UDP there. The keys
// that are made of the record are the KDC's.
func TestHeimdal(t *testing.T) {
	if _, err := os.Stat(filepath.Join(lab.HeimdalDir, "lib", "heimdal-servers")); err != nil && os.Getenv("CI") != "true" {
		t.Skipf("%v: run tests/install-deps", err)
	}
	h, err := lab.New(t).Heimdal()
	check(t, err)
	const name = "HTTP/www.heimdal.test"
	check(t, h.Kadmin("add", "--random-key", "--use-defaults", name))
	path, err := h.Keytab(name)
	check(t, err)
	b, err := os.ReadFile(path)
	check(t, err)
	entries, err := keytab.Parse(b)
	check(t, err)
	p, err := krb5.ParsePrincipal(name, lab.HeimdalName)
	check(t, err)
	self := Self{p, kdc.Keytab(keytab.Compile("FILE:"+path, entries))}
	c := client(t, h.Conf)
	way := &Kpasswd{Client: c}
	was, err := way.Record(t.Context(), self)
	check(t, err)
	if was.Salt != kdc.Salt(p) || was.KVNO != 1 {
		t.Errorf("%+v", was)
	}
	prober := &Prober{Client: c, Principal: p}
	defer prober.Close()
	check(t, prober.Login(t.Context(), self.Keys))

	password := etype.Secret("vIuVfxzCOuSSc8qn3aEWC9ib2cJNBLrTZVpTJjhVmcE")
	check(t, way.Change(t.Context(), self, password, nil))
	keys, err := Keys(password, was.Salt, was.Params, []etype.ID{etype.AES256SHA1, was.Ticket})
	check(t, err)
	if i, kvno, err := prober.Probe(t.Context(), keys); err != nil || kvno != was.KVNO+1 {
		t.Errorf("key %d, version %d after %d, %v", i, kvno, was.KVNO, err)
	}
	if err := prober.Login(t.Context(), self.Keys); !errors.Is(err, reason.PreauthFailed) {
		t.Errorf("with the old key: %v", err)
	}
	check(t, prober.Login(t.Context(), kdc.Password(password)))
}
