package creds

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"gssproxyd/conf"
	"gssproxyd/mech"
	"gssproxyd/mech/krb5"
	"gssproxyd/tests/lab"
)

// TestWhoOpens: a handle opens for the service and uid that it was made for. One that carries
// tickets opens for another service with the same keytab too, where each is the service itself; it
// then opens no cache that it names.
func TestWhoOpens(t *testing.T) {
	dir := t.TempDir()
	keytab := func(name string) string { return "cred_store = keytab:" + dir + "/" + name + "\n" }
	store := "cred_store = client_keytab:" + dir + "/clients\n"
	d := newInside(t, filepath.Join(dir, "none"), map[string]string{
		"httpd":   keytab("http") + store + "euid = 33",
		"api":     "cred_store = keytab:FILE:" + dir + "/x/../http\n" + store + "euid = 34",
		"second":  keytab("http") + store + "euid = 33",
		"users":   keytab("http") + store + "euid = 35\nallow_any_uid = yes\ntrusted = yes",
		"mail":    keytab("mail") + store + "euid = 33",
		"default": store + "euid = 33",
	})
	type caller struct {
		service string
		uid     uint32
	}
	tickets := &Handle{Usage: conf.UsageInitiate, Name: "alice@X", way: wayDelegated, cache: "MEMORY:x", tickets: []byte("tickets")}
	cache := &Handle{Usage: conf.UsageInitiate, Name: "alice@X", way: wayCache, cache: "FILE:" + dir + "/cc"}
	acceptor := &Handle{Usage: conf.UsageAccept, Name: "http/x@X", wanted: "http/x@X"}
	const no, yes, lent = "no", "yes", "lent"
	for _, test := range []struct {
		made, sent caller
		what       *Handle
		want       string
	}{
		{caller{"httpd", 33}, caller{"httpd", 33}, tickets, yes},
		{caller{"httpd", 33}, caller{"httpd", 33}, cache, yes},
		{caller{"httpd", 33}, caller{"httpd", 33}, acceptor, yes},
		{caller{"users", 1000}, caller{"users", 1000}, tickets, yes},
		{caller{"users", 1000}, caller{"users", 1000}, cache, yes},

		{caller{"httpd", 33}, caller{"api", 34}, tickets, lent},
		{caller{"httpd", 33}, caller{"api", 34}, cache, no},
		{caller{"httpd", 33}, caller{"api", 34}, acceptor, no},
		{caller{"httpd", 33}, caller{"second", 33}, tickets, lent},
		{caller{"httpd", 33}, caller{"users", 35}, tickets, lent},
		{caller{"users", 35}, caller{"httpd", 33}, tickets, lent},

		{caller{"users", 1000}, caller{"users", 1001}, tickets, no},
		{caller{"users", 1000}, caller{"users", 35}, tickets, no},
		{caller{"users", 35}, caller{"users", 1000}, tickets, no},
		{caller{"users", 1000}, caller{"httpd", 33}, tickets, no},
		{caller{"httpd", 33}, caller{"users", 33}, tickets, no},
		{caller{"httpd", 33}, caller{"mail", 33}, tickets, no},
		{caller{"default", 33}, caller{"httpd", 33}, tickets, no},
		{caller{"default", 33}, caller{"default", 33}, tickets, yes},
	} {
		made := d.as(test.made.uid).asked(test.made.service)
		test.what.uid = test.made.uid
		sealed := made.Seal(nil, test.what)
		got := no
		cr := d.as(test.sent.uid).asked(test.sent.service).Open(sealed)
		switch {
		case cr != nil && cr.lent:
			got = lent
			if cr.uid != test.sent.uid {
				t.Errorf("%v's, sent by %v: of the store of uid %d", test.made, test.sent, cr.uid)
			}
		case cr != nil:
			got = yes
		}
		if got != test.want {
			t.Errorf("%v's of way %d for usage %d, sent by %v: %s, want %s", test.made, test.what.way, test.what.Usage, test.sent, got, test.want)
		}
	}

	// A lent handle's cache is the call's own, whatever it is named.
	c := d.as(34).asked("api")
	content := NewContent(t, "alice@X")
	made := d.as(33).asked("httpd")
	cr := c.Open(made.Seal(nil, &Handle{Usage: conf.UsageInitiate, Name: "alice@X", way: wayCache, cache: "FILE:" + dir + "/cc", tickets: content}))
	i, err := c.open(t.Context(), cr)
	Must(t, err)
	defer i.Drop(t.Context())
	if name := i.cache.Name(); !strings.HasPrefix(name, "MEMORY:lent ") || !i.temporary {
		t.Errorf("the tickets of a lent handle are in %s", name)
	}
	if _, err := os.Stat(dir + "/cc"); err == nil {
		t.Error("a lent handle has made a file")
	}
}

// TestForOthersAtUse: a handle of another uid's store is for a trusted service only, and for the
// one that got it there: who is lent it has its own.
func TestForOthersAtUse(t *testing.T) {
	dir := t.TempDir()
	store := "cred_store = keytab:" + dir + "/http\neuid = "
	services := func(trusted string) map[string]string {
		return map[string]string{"web": store + "33\ntrusted = " + trusted, "api": store + "34"}
	}
	d := newInside(t, filepath.Join(dir, "none"), services("yes"))
	web := d.as(33)
	for _, what := range []*Handle{
		{Usage: conf.UsageInitiate, Name: "alice@X", uid: 1000, way: wayCache, cache: "FILE:" + dir + "/cc"},
		{Usage: conf.UsageAccept, Name: "http/x@X", uid: 1000},
		{Usage: conf.UsageBoth, Name: "http/x@X", uid: 1000, way: wayKeytab, cache: "MEMORY:x", tickets: []byte("tickets")},
	} {
		d.load(filepath.Join(dir, "none"), services("yes"))
		sealed := web.asked("web").Seal(nil, what)
		if web.asked("web").Open(sealed) == nil {
			t.Error("a trusted service does not open its handle of a user's store")
		}
		if cr := d.as(34).asked("api").Open(sealed); cr != nil && cr.uid != 34 {
			t.Errorf("a lent handle is of the store of uid %d", cr.uid)
		}
		d.load(filepath.Join(dir, "none"), services("no"))
		if web.asked("web").Open(sealed) != nil {
			t.Errorf("a service that is not trusted any more opens a handle of a user's store, for usage %d", what.Usage)
		}
	}
}

// TestKeytabNamed: of several lines the last counts, for whether a keytab is the service's own too.
func TestKeytabNamed(t *testing.T) {
	dir := t.TempDir()
	d := newInside(t, filepath.Join(dir, "none"), map[string]string{"web": "cred_store = client_keytab:" + dir + "/clients"})
	t.Setenv("KRB5_KTNAME", dir+"/default")
	c := d.asked("web")
	for _, usage := range []conf.Usage{conf.UsageBoth, conf.UsageInitiate} {
		for _, test := range []struct {
			lines []string
			want  string
		}{{nil, ""}, {[]string{"http"}, "http"}, {[]string{"http", "mail"}, "mail"}, {[]string{"http", ""}, ""}, {[]string{"", "http"}, "http"}} {
			s := conf.Service{Name: "web", CredUsage: usage}
			for _, name := range test.lines {
				if name != "" {
					name = dir + "/" + name
				}
				s.CredStore = append(s.CredStore, conf.KeyValue{Key: "keytab", Value: name})
			}
			c.Service = &Service{Service: &s, shared: &d.shared, Krb5: d.of("web").Krb5}
			st, err := c.Service.open(0, d.users)
			Must(t, err)
			c.Service.fixed = st
			got := strings.TrimPrefix(c.made().keytab, "FILE:"+dir+"/")
			if got != test.want {
				t.Errorf("%v, %q: %q, want %q", usage, test.lines, got, test.want)
			}
			st.close()
		}
	}
}

// TestForItselfOnly: trusted, allow_protocol_transition and allow_constrained_delegation count for
// the service's euid. A user that a service lets in acts with impersonate in the user's own name.
func TestForItselfOnly(t *testing.T) {
	dir := t.TempDir()
	d := newInside(t, filepath.Join(dir, "none"), map[string]string{
		"trusted":     "trusted = yes\nallow_any_uid = yes\neuid = 33",
		"transition":  "allow_protocol_transition = yes\nallow_any_uid = yes\neuid = 33",
		"delegation":  "allow_constrained_delegation = yes\nallow_any_uid = yes\neuid = 33",
		"impersonate": "impersonate = yes\nallow_any_uid = yes\neuid = 33\ncred_store = keytab:" + dir + "/keytab",
		"none":        "allow_any_uid = yes\neuid = 33",
	})
	d.users = conf.FixedUsers{"www-data": 33, "alice": 1000}
	d.of("trusted").Krb5.DefaultRealm = "X"
	principal := func(s string) krb5.Principal {
		p, err := krb5.ParsePrincipal(s, "")
		Must(t, err)
		return p
	}
	for _, test := range []struct {
		service      string
		uid          uint32
		transition   bool // to act for a user who is not there
		reach        bool // another service as bob
		reachAsAlice bool
	}{
		{"trusted", 33, true, true, true},
		{"trusted", 1000, false, false, false},
		{"transition", 33, true, false, false},
		{"transition", 1000, false, false, false},
		{"delegation", 33, false, true, true},
		{"delegation", 1000, false, false, false},
		{"impersonate", 33, false, true, true},
		{"impersonate", 1000, false, false, true}, // who is alice
		{"none", 33, false, false, false},
	} {
		c := d.as(test.uid).asked(test.service)
		_, err := c.impersonate(t.Context(), nil, nil)
		if refused := strings.Contains(err.Error(), "act for users") || strings.Contains(err.Error(), "allow_protocol_transition"); refused == test.transition {
			t.Errorf("%+v: S4U2Self: %v", test, err)
		}
		for user, may := range map[string]bool{"bob@X": test.reach, "alice@X": test.reachAsAlice} {
			i := &Credential{Client: principal(user), service: principal("http/x@X")}
			if err := c.MayReach(i, principal("ldap/x@X")); (err == nil) != may {
				t.Errorf("%+v: as %s: %v", test, user, err)
			}
			if err := c.MayReach(i, i.service); err != nil {
				t.Errorf("%+v: to itself as %s: %v", test, user, err)
			}
			if err := c.MayReach(&Credential{Client: principal(user)}, principal("ldap/x@X")); err != nil {
				t.Errorf("%+v: with own tickets of %s: %v", test, user, err)
			}
		}
	}
}

// TestKeysOf: new tickets for a handle are got with the keys that its caller could use without it,
// and no others.
func TestKeysOf(t *testing.T) {
	r, svcs, alices := Realm(t)
	stores := "cred_store = keytab:" + svcs + "\ncred_store = client_keytab:" + alices + "\nallow_any_uid = yes\n"
	d := newInside(t, r.Conf, map[string]string{"web": stores, "trusted": stores + "trusted = yes", "acceptor": stores + "cred_usage = accept"})
	const client, acceptor, stranger = "alice@" + lab.Name, "svc/" + lab.Host + "@" + lab.Name, "bob@" + lab.Name
	for _, w := range []way{wayCache, wayDelegated, wayS4U} {
		if k := d.asked("web").keysOf(&Handle{Name: client, way: w}); k != nil {
			t.Errorf("tickets got in way %d are got anew with %s", w, k.Ring().Name())
		}
	}
	if k := d.asked("web").keysOf(&Handle{Name: client, way: wayKeytab, lent: true}); k != nil {
		t.Errorf("a handle of another service's is renewed with %s", k.Ring().Name())
	}
	for _, test := range []struct {
		service   string
		peer, uid uint32
		name      string
		want      string
	}{
		{"web", 0, 0, client, alices},
		{"web", 0, 0, acceptor, svcs},
		{"web", 0, 0, stranger, ""},
		{"web", 33, 33, client, alices},
		{"web", 33, 33, acceptor, ""}, // tickets of the service itself that somebody has delegated
		{"web", 33, 0, client, ""},
		{"web", 0, 33, client, ""},
		{"trusted", 0, 33, client, alices},
		{"trusted", 0, 33, acceptor, ""}, // a cache that the user has made up
		{"trusted", 33, 0, client, ""},
		{"acceptor", 0, 0, client, ""},
	} {
		got := ""
		if k := d.as(test.peer).asked(test.service).keysOf(&Handle{Name: test.name, uid: test.uid, way: wayKeytab}); k != nil {
			got = strings.TrimPrefix(k.Ring().Name(), "FILE:")
		}
		if got != test.want {
			t.Errorf("%+v: %q", test, got)
		}
	}
}

// TestFormerHost: a handle for any host of a service shows itself as this host's. When the host was
// renamed it does not serve.
func TestFormerHost(t *testing.T) {
	r, _, _ := Realm(t)
	Must(t, r.RandKey("http/"+lab.Host))
	both, err := r.Keytab("both.keytab", "http/"+lab.Host, "svc/"+lab.Host)
	Must(t, err)
	c := newInside(t, r.Conf, map[string]string{"web": "cred_store = keytab:" + both}).asked("web")
	renamed := &Handle{Usage: conf.UsageAccept, Name: "http/former.example.test@", wanted: "http@", wantedType: string(mech.NTHostbased)}
	if serves, err := c.serves(renamed, &Name{[]byte("http@"), mech.NTHostbased}, conf.UsageAccept, conf.UsageAccept); serves || err != nil {
		t.Errorf("a handle of the host's former name: %t, %v", serves, err)
	}
}

// TestLostName: a refusal may be worded after the call has ended, when another one's arguments are
// where its own were.
func TestLostName(t *testing.T) {
	c := newInside(t, filepath.Join(t.TempDir(), "none"), map[string]string{"web": ""}).asked("web")
	text := []byte("alice@X")
	s, err := c.successorOfLost(&Input{Lost: true, Initiates: &Name{text, mech.NTKrb5Principal}})
	Must(t, err)
	copy(text, "secrets")
	if err := s.refuse(krb5.Principal{Realm: "X", Components: []string{"bob"}}); !strings.Contains(err.Error(), "alice@X") {
		t.Error(err)
	}
}
