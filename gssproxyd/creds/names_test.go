package creds_test

import (
	"bytes"
	"os"
	"strings"
	"testing"

	"gssproxyd/conf"
	"gssproxyd/gssproxyd/creds"
	"gssproxyd/mech"
	"gssproxyd/tests/lab"
	"gssproxyd/xdr"
)

// TestInitiateAsHost: a host's name without a realm is of the default realm, or of the one that the
// keytab has it in, to initiate as to accept.
func TestInitiateAsHost(t *testing.T) {
	r, _, _ := realm(t)
	must(t, r.RandKey("HTTP/localhost")) // in no [domain_realm]
	keys, err := r.Keytab("http.keytab", "svc/"+lab.Host, "HTTP/localhost")
	must(t, err)
	text, err := os.ReadFile(r.Conf)
	must(t, err)
	elsewhere := r.Path("elsewhere.conf")
	must(t, os.WriteFile(elsewhere, bytes.Replace(text, []byte("default_realm = "+lab.Name), []byte("default_realm = ELSEWHERE.TEST"), 1), 0o600))
	name := named("HTTP@localhost", mech.NTHostbased)
	for what, conf := range map[string]string{"the default realm": r.Conf, "the keytab's": elsewhere} {
		d := newDirect(t, conf, map[string]string{
			"memory": "cred_store = keytab:" + keys,
			"file":   "cred_store = keytab:" + keys + "\ncred_store = ccache:FILE:" + r.Path("cc "+what),
			"other":  "allow_protocol_transition = yes\ncred_store = client_keytab:" + keys,
			"user":   "impersonate = yes\nkrb5_principal = HTTP/localhost@" + lab.Name + "\ncred_store = keytab:" + keys,
		})
		for _, service := range []string{"memory", "file", "user"} {
			for _, usage := range []xdr.CredUsage{xdr.CredInitiate, xdr.CredBoth} {
				h, err := d.acquire(service, xdr.ArgAcquireCred{CredUsage: usage, DesiredName: xdr.Some(name)})
				if err != nil {
					t.Errorf("%s, %s, usage %d: %v", what, service, usage, err)
					continue
				}
				if is := string(h.DesiredName.DisplayName); is != "HTTP/localhost@"+lab.Name {
					t.Errorf("%s, %s: it is of %s", what, service, is)
				}
				if _, err := d.init(service, &h, svc); err != nil {
					t.Errorf("%s, %s: a context: %v", what, service, err)
				}
				again, err := d.acquire(service, xdr.ArgAcquireCred{CredUsage: usage, DesiredName: xdr.Some(name), InputCredHandle: xdr.Some(h)})
				if err != nil || !lab.SameCred(again, h) {
					t.Errorf("%s, %s, usage %d: sent again it is another one, %v", what, service, usage, err)
				}
			}
		}
		// As a user too.
		own, err := d.acquire("other", xdr.ArgAcquireCred{CredUsage: xdr.CredInitiate})
		must(t, err)
		if _, err := d.acquire("other", xdr.ArgAcquireCred{
			InputCredHandle: xdr.Some(own), CredUsage: xdr.CredInitiate, DesiredName: xdr.Some(name),
			Options: []xdr.Option{{Option: []byte("acquire_type\x00"), Value: []byte("impersonate_name\x00")}},
		}); (err == nil) != (conf == r.Conf) { // no user is in the keytab: he is of the default realm
			t.Errorf("%s: impersonated: %v", what, err)
		}
		// One of each usage makes one of both.
		accepts, err := d.acquire("memory", xdr.ArgAcquireCred{CredUsage: xdr.CredAccept, DesiredName: xdr.Some(name)})
		must(t, err)
		if _, err := d.acquire("memory", xdr.ArgAcquireCred{
			InputCredHandle: xdr.Some(accepts), AddCredToInputHandle: true, CredUsage: xdr.CredInitiate, DesiredName: xdr.Some(name),
		}); err != nil {
			t.Errorf("%s: added to one that accepts: %v", what, err)
		}
	}
}

// TestKeytabLacksName: who asks for a name that the keytab has no key of is told so, and of no
// cache that he has not named.
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

// TestStaleAcceptor: the plugin sends the handle that a program of the same user has left, for
// whatever name. To accept for another name it counts as none; who initiates does not become
// another one by that.
func TestStaleAcceptor(t *testing.T) {
	r, _, _ := realm(t)
	must(t, r.RandKey("http/"+lab.Host))
	both, err := r.Keytab("both.keytab", "http/"+lab.Host, "svc/"+lab.Host)
	must(t, err)
	d := newDirect(t, r.Conf, map[string]string{"web": "cred_store = keytab:" + both})
	host := func(service string) *xdr.Name {
		n := named(service, mech.NTHostbased)
		return &n
	}
	http := host("http@" + lab.Host)
	acquire := func(name *xdr.Name, usage xdr.CredUsage, sent *xdr.Cred) (xdr.Cred, error) {
		arg := xdr.ArgAcquireCred{CredUsage: usage}
		if name != nil {
			arg.DesiredName = xdr.Some(*name)
		}
		if sent != nil {
			arg.InputCredHandle = xdr.Some(*sent)
		}
		return d.acquire("web", arg)
	}
	for _, test := range []struct {
		left      *xdr.Name
		leftUsage xdr.CredUsage
		asked     *xdr.Name
		usage     xdr.CredUsage
		same      bool // the handle comes back
		refused   bool
	}{
		{left: http, leftUsage: xdr.CredAccept, asked: http, usage: xdr.CredAccept, same: true},
		{left: http, leftUsage: xdr.CredAccept, usage: xdr.CredAccept, same: true},
		{left: http, leftUsage: xdr.CredAccept, asked: host(svc), usage: xdr.CredAccept},
		{left: http, leftUsage: xdr.CredAccept, asked: host(svc), usage: xdr.CredBoth},
		{left: http, leftUsage: xdr.CredAccept, asked: host(svc), usage: xdr.CredInitiate},
		{left: host("http@"), leftUsage: xdr.CredAccept, asked: http, usage: xdr.CredAccept}, // any host is not that one
		{leftUsage: xdr.CredAccept, asked: http, usage: xdr.CredAccept},                      // any name neither
		{left: http, leftUsage: xdr.CredBoth, asked: http, usage: xdr.CredAccept, same: true},
		{left: http, leftUsage: xdr.CredBoth, asked: host(svc), usage: xdr.CredAccept},
		{left: http, leftUsage: xdr.CredInitiate, asked: host(svc), usage: xdr.CredAccept},
		{left: http, leftUsage: xdr.CredInitiate, asked: host(svc), usage: xdr.CredInitiate, refused: true},
		{left: http, leftUsage: xdr.CredInitiate, asked: host(svc), usage: xdr.CredBoth, refused: true},
		{left: http, leftUsage: xdr.CredBoth, asked: host(svc), usage: xdr.CredBoth, refused: true},
	} {
		left, err := acquire(test.left, test.leftUsage, nil)
		must(t, err)
		got, err := acquire(test.asked, test.usage, &left)
		switch {
		case test.refused:
			if err == nil || !strings.Contains(err.Error(), "[credential-mismatch]") {
				t.Errorf("%+v: %v", test, err)
			}
		case err != nil:
			t.Errorf("%+v: %v", test, err)
		case test.same != lab.SameCred(got, left):
			t.Errorf("%+v: comes back: %t", test, !test.same)
		case test.asked != nil:
			cr := d.caller("web").Open(got.CredHandleReference)
			if cr.Usage != conf.UsageInitiate && creds.WantedOf(cr) != string(test.asked.DisplayName) {
				t.Errorf("%+v: to accept for %q", test, creds.WantedOf(cr))
			}
			service, _, _ := strings.Cut(string(test.asked.DisplayName), "@")
			if !strings.HasPrefix(cr.Name, service+"/") {
				t.Errorf("%+v: of %s", test, cr.Name)
			}
		}
	}
}
