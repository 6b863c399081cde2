package e2e

import (
	"path/filepath"
	"testing"

	"gssproxyd/tests/lab"
)

// initiatorOf is a program of nobody's behind the plugin, for which the daemon has alice's keys,
// and MIT's acceptor.
func initiatorOf(t *testing.T, kind string) (initiator, acceptor *lab.Tool) {
	t.Helper()
	alices, err := realm(t).Keytab("alice.keytab", "alice")
	check(t, err)
	d := daemon(t, kind, lab.Options{Config: config(
		svc{"alice", lab.Nobody.UID, []string{"cred_store = client_keytab:" + alices, "cred_usage = initiate"}},
		svc{"lab", 0, nil},
	)})
	acceptor = tool(t, lab.Root, "KRB5_KTNAME="+d.Options.Keytab)
	check(t, acceptor.Acquire(""))
	return tool(t, lab.Nobody, d.PluginEnv()...), acceptor
}

// TestAllowedEnctypes: gss_krb5_set_allowable_enctypes on a credential that the daemon has.
func TestAllowedEnctypes(t *testing.T) {
	overDaemons(t, func(t *testing.T, kind string) {
		g, mit := initiatorOf(t, kind)
		for _, n := range enctypes {
			check(t, g.Enctypes(n))
			_, token, err := g.Init(service, lab.Usual, nil)
			check(t, err)
			a, err := mit.Accept(token, nil)
			check(t, err)
			if got, _, err := mit.Key(a.ID); err != nil || got != n {
				t.Errorf("enctype %d, want %d (%v)", got, n, err)
			}
		}
		// Of several the KDC takes the first it has.
		check(t, g.Enctypes(19, 17))
		_, token, err := g.Init("HTTP@"+lab.Host, lab.Usual, nil)
		check(t, err)
		a, err := mit.Accept(token, nil)
		check(t, err)
		if got, _, err := mit.Key(a.ID); err != nil || got != 19 {
			t.Errorf("enctype %d, want 19 (%v)", got, err)
		}
		// The service has keys for tickets of one enctype only.
		check(t, g.Enctypes(20))
		if _, _, err := g.Init(serviceOf(17), lab.Usual, nil); err == nil {
			t.Error("a context of an enctype that was not allowed")
		}
	})
}

// TestAllowedEnctypesToAccept: the same of one to accept with, which takes no other session key.
func TestAllowedEnctypesToAccept(t *testing.T) {
	overDaemons(t, func(t *testing.T, kind string) {
		d := daemon(t, kind, lab.Options{})
		for _, test := range []struct{ session, allowed int }{{17, 17}, {17, 18}, {20, 20}, {20, 17}} {
			initiator, acceptor := alice(t), tool(t, lab.Nobody, d.PluginEnv()...)
			check(t, initiator.Enctypes(test.session))
			_, token, err := initiator.Init(serviceOf(test.session), lab.Usual, nil)
			check(t, err)
			check(t, acceptor.Acquire(""))
			check(t, acceptor.Allow(test.allowed))
			if _, err := acceptor.Accept(token, nil); (err == nil) != (test.session == test.allowed) {
				t.Errorf("a session of enctype %d, %d allowed: %v", test.session, test.allowed, err)
			}
		}
	})
}

// TestInitiateAsHost: a host-based name that krb5.conf knows no realm of is one to initiate with,
// by the keytab and into the cache that are configured, for every program that asks again.
func TestInitiateAsHost(t *testing.T) {
	r := realm(t)
	check(t, r.RandKey("HTTP/localhost"))
	overDaemons(t, func(t *testing.T, kind string) {
		keys, err := r.Keytab("localhost-"+kind+".keytab", "HTTP/localhost")
		check(t, err)
		d := daemon(t, kind, lab.Options{Config: config(
			svc{"web", lab.Nobody.UID, []string{"cred_store = keytab:" + keys, "cred_store = ccache:FILE:" + r.Path("localhost-"+kind+".cc")}},
			svc{"lab", 0, nil},
		)})
		mit := tool(t, lab.Root, "KRB5_KTNAME="+d.Options.Keytab)
		check(t, mit.Acquire(""))
		cache := filepath.Join(nobodyDir(t), "cc")
		for i := range 2 {
			if i > 0 && kind == "C" {
				break // with its own handle it refuses
			}
			g := tool(t, lab.Nobody, append(d.PluginEnv(), "KRB5CCNAME=FILE:"+cache)...)
			c, err := g.Credential("HTTP@localhost", "hostbased", 1)
			check(t, err)
			if c.Name != "HTTP/localhost@"+lab.Name {
				t.Errorf("the credential is of %q", c.Name)
			}
			_, token, err := g.Init(service, lab.Usual, nil)
			check(t, err)
			if a, err := mit.Accept(token, nil); err != nil || a.Client != "HTTP/localhost@"+lab.Name {
				t.Errorf("client %q, %v", a.Client, err)
			}
		}
	})
}

// TestNoCIFlags: GSS_KRB5_CRED_NO_CI_FLAGS_X on a credential that the daemon has.
func TestNoCIFlags(t *testing.T) {
	overDaemons(t, func(t *testing.T, kind string) {
		g, mit := initiatorOf(t, kind)
		for _, c := range []struct {
			without     bool
			asked, want uint32
		}{
			{false, 0, lab.Conf | lab.Integ},
			{true, 0, 0},
			{true, lab.Integ, lab.Integ},
			{true, lab.Conf | lab.Integ, lab.Conf | lab.Integ},
		} {
			_, err := g.Credential("", "-", 1)
			check(t, err)
			if c.without {
				check(t, g.NoCIFlags())
			}
			_, token, err := g.Init(service, c.asked, nil)
			check(t, err)
			a, err := mit.Accept(token, nil)
			check(t, err)
			if got := a.Flags & lab.Usual; got != c.want {
				t.Errorf("without %v, asked for %#x: flags %#x, want %#x", c.without, c.asked, got, c.want)
			}
		}
	})
}
