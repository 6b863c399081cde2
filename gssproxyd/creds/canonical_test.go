package creds_test

import (
	"bytes"
	"os"
	"strings"
	"testing"
	"time"

	"gssproxyd/gssproxyd/creds"
	"gssproxyd/mech"
	"gssproxyd/tests/lab"
	"gssproxyd/xdr"
)

// TestCanonicalName: with canonicalize = true the KDC gives a ticket of WEB1$ to who asks for
// web1$. That is who the credential is of, and it is known again by both names: with its handle and
// without, past half of its life, and by a daemon that finds the cache.
func TestCanonicalName(t *testing.T) {
	lab.Require(t)
	r, err := lab.UpLDAP()
	must(t, err)
	t.Cleanup(func() { r.Close() })
	must(t, r.AddPrincipal("WEB1$", "web1"))
	must(t, r.Alias("WEB1$", "web1$"))
	must(t, r.RandKey("svc/"+lab.Host))
	keytab, err := r.Keytab("web1.keytab", "WEB1$")
	must(t, err)
	keys, err := os.ReadFile(keytab)
	must(t, err)
	must(t, os.WriteFile(keytab, bytes.ReplaceAll(keys, []byte("WEB1$"), []byte("web1$")), 0o600))
	krb5Conf, err := r.Krb5Conf("canonicalize.conf", "canonicalize = true")
	must(t, err)
	const asked, is = "web1$@" + lab.Name, "WEB1$@" + lab.Name
	services := map[string]string{
		"memory": "cred_store = client_keytab:" + keytab,
		"file":   "cred_store = client_keytab:" + keytab + "\ncred_store = ccache:FILE:" + r.Path("cc"),
		"named":  "cred_store = client_keytab:" + keytab + "\ncred_store = ccache:MEMORY:tickets",
	}
	get := func(d *direct, service, name string, handle *xdr.Cred) (xdr.Cred, error) {
		arg := xdr.ArgAcquireCred{CredUsage: xdr.CredInitiate}
		if name != "" {
			arg.DesiredName = xdr.Some(named(name, mech.NTKrb5Principal))
		}
		if handle != nil {
			arg.InputCredHandle = xdr.Some(*handle)
		}
		cred, err := d.acquire(service, arg)
		if got := string(bytes.TrimRight(cred.DesiredName.DisplayName, "\x00")); err == nil && got != is {
			t.Errorf("%s: asked for %q, and got a credential of %q", service, name, got)
		}
		return cred, err
	}
	for service := range services {
		for _, name := range []string{"", asked} {
			os.Remove(r.Path("cc"))
			d := newDirect(t, krb5Conf, services)
			h, err := get(d, service, name, nil)
			must(t, err)
			_, err = d.init(service, &h, svc)
			must(t, err)
			_, err = d.init(service, nil, svc)
			must(t, err)
			for _, again := range []string{"", asked, is} {
				same, err := get(d, service, again, &h)
				must(t, err)
				if !lab.SameCred(same, h) {
					t.Errorf("%s: asked for as %q and %q, the handle is not the same any more", service, name, again)
				}
			}
			if _, err := get(d, service, "alice@"+lab.Name, &h); err == nil {
				t.Errorf("%s: the handle is alice's, too", service)
			}
			before := string(d.granted(service).Ticket)
			d.ahead.Store(int64(6 * time.Hour)) // of ten
			_, err = d.init(service, &h, svc)
			must(t, err)
			d.settled()
			if after := string(d.granted(service).Ticket); after == before {
				t.Errorf("%s: not renewed past half of its life", service)
			}
			_, err = get(d, service, asked, nil)
			must(t, err)
		}
	}

	// Another daemon finds the file, and nothing in memory.
	os.Remove(r.Path("cc"))
	first := string(newDirect(t, krb5Conf, services).granted("file").Ticket)
	other := newDirect(t, krb5Conf, services)
	_, err = get(other, "file", asked, nil)
	must(t, err)
	if string(other.granted("file").Ticket) != first {
		t.Error("the cache in the file is not used again")
	}
	_, err = get(other, "file", "", nil)
	must(t, err)
	// A handle that does not open goes on as whom it names, if that is what the KDC calls the
	// keytab's principal.
	lost := func(name string) *xdr.Cred {
		return &xdr.Cred{DesiredName: named(name, mech.NTKrb5Principal), CredHandleReference: []byte("another's")}
	}
	if _, err := get(other, "memory", "", lost("alice@"+lab.Name)); err == nil || !strings.Contains(err.Error(), "[bad-credential]") {
		t.Errorf("a lost handle of alice's: %v", err)
	}
	if n, _ := creds.MemoryOf(other.of("memory").Service).Len(); n != 0 {
		t.Errorf("%d caches of who was refused", n)
	}
	_, err = get(other, "memory", "", lost(is))
	must(t, err)

	// Without canonicalize the KDC gives a ticket of the name asked for, or none.
	cred, err := newDirect(t, r.Conf, services).acquire("memory", xdr.ArgAcquireCred{CredUsage: xdr.CredInitiate})
	if got := string(cred.DesiredName.DisplayName); err == nil && got != asked {
		t.Errorf("without canonicalize: a credential of %q", got)
	}
}
