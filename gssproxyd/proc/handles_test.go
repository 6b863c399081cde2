package proc

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"gssproxyd/conf"
	"gssproxyd/keytab/seal"
	"gssproxyd/mech"
	"gssproxyd/mech/krb5"
	"gssproxyd/mech/krb5/ccache"
	"gssproxyd/mech/reason"
	"gssproxyd/tests/lab"
	"gssproxyd/xdr"
)

// TestWhoOpens: a handle opens for the service and uid that it was made for. One that carries tickets opens for another
// service with the same keytab too, where each is the service itself; it then opens no cache that it names.
func TestWhoOpens(t *testing.T) {
	dir := t.TempDir()
	keytab := func(name string) string { return "cred_store = keytab:" + dir + "/" + name + "\n" }
	store := "cred_store = client_keytab:" + dir + "/clients\n"
	d := newDirect(t, filepath.Join(dir, "none"), map[string]string{
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
	tickets := &cred{usage: xdr.CredInitiate, name: "alice@X", way: wayDelegated, cache: "MEMORY:x", tickets: []byte("tickets")}
	cache := &cred{usage: xdr.CredInitiate, name: "alice@X", way: wayCache, cache: "FILE:" + dir + "/cc"}
	acceptor := &cred{usage: xdr.CredAccept, name: "http/x@X", wanted: "http/x@X"}
	const no, yes, lent = "no", "yes", "lent"
	for _, test := range []struct {
		made, sent caller
		what       *cred
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
		sealed := made.seal(test.what)
		got := no
		cr := d.as(test.sent.uid).asked(test.sent.service).unseal(sealed)
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
			t.Errorf("%v's of way %d for usage %d, sent by %v: %s, want %s", test.made, test.what.way, test.what.usage, test.sent, got, test.want)
		}
	}

	// A lent handle's cache is the call's own, whatever it is named.
	c := d.as(34).asked("api")
	content := newContent(t, "alice@X")
	made := d.as(33).asked("httpd")
	cr := c.unseal(made.seal(&cred{usage: xdr.CredInitiate, name: "alice@X", way: wayCache, cache: "FILE:" + dir + "/cc", tickets: content}))
	i, err := c.initiator(t.Context(), cr)
	must(t, err)
	defer i.drop(t.Context())
	if name := i.cache.Name(); !strings.HasPrefix(name, "MEMORY:lent ") || !i.temporary {
		t.Errorf("the tickets of a lent handle are in %s", name)
	}
	if _, err := os.Stat(dir + "/cc"); err == nil {
		t.Error("a lent handle has made a file")
	}
}

// TestForOthersAtUse: a handle of another uid's store is for a trusted service only, and for the one that got it there: who
// is lent it has its own.
func TestForOthersAtUse(t *testing.T) {
	dir := t.TempDir()
	store := "cred_store = keytab:" + dir + "/http\neuid = "
	services := func(trusted string) map[string]string {
		return map[string]string{"web": store + "33\ntrusted = " + trusted, "api": store + "34"}
	}
	d := newDirect(t, filepath.Join(dir, "none"), services("yes"))
	web := d.as(33)
	for _, what := range []*cred{
		{usage: xdr.CredInitiate, name: "alice@X", uid: 1000, way: wayCache, cache: "FILE:" + dir + "/cc"},
		{usage: xdr.CredAccept, name: "http/x@X", uid: 1000},
		{usage: xdr.CredBoth, name: "http/x@X", uid: 1000, way: wayKeytab, cache: "MEMORY:x", tickets: []byte("tickets")},
	} {
		d.load(filepath.Join(dir, "none"), services("yes"))
		sealed := web.asked("web").seal(what)
		if web.asked("web").unseal(sealed) == nil {
			t.Error("a trusted service does not open its handle of a user's store")
		}
		if cr := d.as(34).asked("api").unseal(sealed); cr != nil && cr.uid != 34 {
			t.Errorf("a lent handle is of the store of uid %d", cr.uid)
		}
		d.load(filepath.Join(dir, "none"), services("no"))
		if web.asked("web").unseal(sealed) != nil {
			t.Errorf("a service that is not trusted any more opens a handle of a user's store, for usage %d", what.usage)
		}
	}
}

// TestNameOfHandle: where a handle names whom to accept for, neither the configuration nor that it does not open makes it
// another one.
func TestNameOfHandle(t *testing.T) {
	r, _, _ := realm(t)
	must(t, r.RandKey("http/"+lab.Host))
	both, err := r.Keytab("both.keytab", "http/"+lab.Host, "svc/"+lab.Host)
	must(t, err)
	d := newDirect(t, r.Conf, map[string]string{"web": "trusted = yes\nkrb5_principal = http/" + lab.Host + "\ncred_store = keytab:" + both})
	client, err := r.Tool(lab.Nobody, mustKinit(t, r, "alice")...)
	must(t, err)
	defer client.Close()

	opens, err := d.acquire("web", xdr.ArgAcquireCred{CredUsage: xdr.CredAccept, DesiredName: xdr.Some(named(svc, mech.NTHostbased))})
	must(t, err)
	lost := opens
	lost.CredHandleReference = seal.New().Seal(nil, []byte("the same"), "", seal.KindNamedCred)
	for what, h := range map[string]xdr.Cred{"opens": opens, "does not open": lost} {
		for target, accepts := range map[string]bool{svc: true, "http@" + lab.Host: false} {
			_, token, err := client.Init(target, lab.Usual, nil)
			must(t, err)
			arg, res := lab.AcceptArg(token, nil), new(xdr.ResAcceptSecContext)
			arg.CredHandle = xdr.Some(h)
			if err := d.call("web", xdr.ProcAcceptSecContext, arg, res, &res.Status); (err == nil) != accepts {
				t.Errorf("a handle for %s that %s, a token for %s: %v", svc, what, target, err)
			}
		}
		for _, usage := range []xdr.CredUsage{xdr.CredAccept, xdr.CredBoth} {
			again, err := d.acquire("web", xdr.ArgAcquireCred{InputCredHandle: xdr.Some(h), CredUsage: usage})
			if err != nil && usage == xdr.CredBoth {
				continue // it would initiate as somebody else
			}
			must(t, err)
			if cr := d.asked("web").unseal(again.CredHandleReference); cr.wanted == "" || !strings.HasPrefix(cr.wanted, "svc") {
				t.Errorf("a handle for %s that %s, acquired again for usage %d: for %q", svc, what, usage, cr.wanted)
			}
		}
	}
}

// TestMemoryOfUsers: a cache in memory that cred_store names is one for each user, like those without a name.
func TestMemoryOfUsers(t *testing.T) {
	r, _, _ := realm(t)
	users := map[uint32]string{1000: "alice", 1001: "bob"}
	must(t, r.AddPrincipal("bob", "bob"))
	dir := t.TempDir()
	for uid, who := range users {
		path, err := r.Keytab(who+".keytab", who)
		must(t, err)
		must(t, os.Rename(path, filepath.Join(dir, fmt.Sprint(uid))))
	}
	for _, name := range []string{"MEMORY:", "MEMORY:cc"} {
		d := newDirect(t, r.Conf, map[string]string{"web": "allow_any_uid = yes\neuid = 33\ncred_store = client_keytab:" + dir + "/%U\ncred_store = ccache:" + name})
		for range 2 {
			for uid, who := range users {
				got, err := d.as(uid).acquire("web", xdr.ArgAcquireCred{CredUsage: xdr.CredInitiate})
				must(t, err)
				if is, _, _ := strings.Cut(string(got.DesiredName.DisplayName), "@"); is != who {
					t.Errorf("ccache:%s: uid %d is %s", name, uid, is)
				}
				_, err = d.as(uid).init("web", &got, svc)
				must(t, err)
			}
		}
		if n, _ := d.of("web").memory.Len(); n != len(users) {
			t.Errorf("ccache:%s: %d caches for %d users", name, n, len(users))
		}
	}
}

// TestKeytabNamed: of several lines the last counts, for whether a keytab is the service's own too.
func TestKeytabNamed(t *testing.T) {
	dir := t.TempDir()
	d := newDirect(t, filepath.Join(dir, "none"), map[string]string{"web": "cred_store = client_keytab:" + dir + "/clients"})
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
			c.svc = &service{Service: &s, p: d.Procedures, krb5: d.of("web").krb5}
			st, err := c.svc.open(0, d.users)
			must(t, err)
			c.svc.fixed = st
			got := strings.TrimPrefix(c.made().keytab, "FILE:"+dir+"/")
			if got != test.want {
				t.Errorf("%v, %q: %q, want %q", usage, test.lines, got, test.want)
			}
			st.close()
		}
	}
}

// TestHandleWays: a handle whose tickets have ended is continued in the way they were got, and in no other.
func TestHandleWays(t *testing.T) {
	r, svcs, alices := realm(t)
	must(t, r.AddPrincipal("bob", "bob"))
	bobs, err := r.Keytab("bob.keytab", "bob")
	must(t, err)
	cc := r.Path("cc")
	d := newDirect(t, r.Conf, map[string]string{
		"web":   "cred_store = keytab:" + svcs + "\ncred_store = client_keytab:" + alices + "\nmin_lifetime = 600", // whose keys would do for what is delegated
		"mail":  "cred_store = client_keytab:" + bobs,
		"cache": "cred_store = ccache:FILE:" + cc + "\nmin_lifetime = 600",
	})
	const life = "30m"
	kinit := func(who string, options ...string) []string {
		t.Helper()
		env, err := r.Kinit(who, who, options...)
		must(t, err)
		return env
	}
	put := func(who string, options ...string) {
		t.Helper()
		must(t, os.Rename(strings.TrimPrefix(kinit(who, options...)[0], "KRB5CCNAME=FILE:"), cc))
	}
	client, err := r.Tool(lab.Nobody, kinit("alice", "-f", "-l", life)...)
	must(t, err)
	defer client.Close()
	_, token, err := client.Init(svc, lab.Usual|lab.Deleg, nil)
	must(t, err)
	arg, res := lab.AcceptArg(token, nil), new(xdr.ResAcceptSecContext)
	arg.RetDelegCred = true
	must(t, d.call("web", xdr.ProcAcceptSecContext, arg, res, &res.Status))
	delegated := res.DelegatedCredHandle.V
	acquire := func(service string, input *xdr.Cred, usage xdr.CredUsage) (xdr.Cred, error) {
		t.Helper()
		arg := xdr.ArgAcquireCred{CredUsage: usage}
		if input != nil {
			arg.InputCredHandle = xdr.Some(*input)
		}
		return d.acquire(service, arg)
	}
	bob, err := acquire("mail", nil, xdr.CredInitiate)
	must(t, err)
	put("alice", "-l", life)
	cached, err := acquire("cache", nil, xdr.CredInitiate)
	must(t, err)
	is := func(what string, err error, want mech.Major) {
		t.Helper()
		if want == 0 && err == nil || want != 0 && err != nil && strings.HasPrefix(err.Error(), majorPrefix(want)) {
			return
		}
		t.Errorf("%s: %v, want %s", what, err, want.Text())
	}
	both := func(what, service string, h *xdr.Cred, want mech.Major) {
		t.Helper()
		again, err := acquire(service, h, xdr.CredInitiate)
		is(what+", acquired again", err, want)
		if err == nil && string(again.DesiredName.DisplayName) != string(h.DesiredName.DisplayName) {
			t.Errorf("%s: acquired again it is of %s", what, again.DesiredName.DisplayName)
		}
		_, err = d.init(service, h, svc)
		is(what+", used", err, want)
	}
	both("delegated", "web", &delegated, 0)
	both("keytab", "mail", &bob, 0)
	both("cache", "cache", &cached, 0)
	_, err = acquire("web", &delegated, xdr.CredBoth)
	is("delegated, for both usages: not the service's own", err, mech.CredUnavail)

	d.ahead.Store(int64(25 * time.Minute)) // less than min_lifetime before the end
	for service, h := range map[string]*xdr.Cred{"web": &delegated, "cache": &cached} {
		_, err = acquire(service, h, xdr.CredInitiate)
		is("about to end, acquired again", err, mech.CredentialsExpired)
		_, err = d.init(service, h, svc)
		is("about to end, used", err, 0)
	}

	d.ahead.Store(int64(time.Hour))
	both("delegated, ended", "web", &delegated, mech.CredentialsExpired)
	put("bob")
	both("cache, ended and another user's now", "cache", &cached, mech.CredentialsExpired)
	put("alice")
	both("cache, ended and filled again", "cache", &cached, 0)
	must(t, os.Remove(cc))
	both("cache, gone", "cache", &cached, mech.CredentialsExpired)
	if _, err := os.Stat(cc); err == nil {
		t.Error("a refused handle has filled a cache")
	}
	d.ahead.Store(int64(11 * time.Hour))
	both("keytab, ended", "mail", &bob, 0)
}

// TestUsageAtUse: what a service may do is looked at when a handle is used, not only when it was made.
func TestUsageAtUse(t *testing.T) {
	r, svcs, _ := realm(t)
	store := "cred_store = keytab:" + svcs + "\ncred_store = client_keytab:" + svcs + "\n"
	d := newDirect(t, r.Conf, map[string]string{"web": store})
	h, err := d.acquire("web", xdr.ArgAcquireCred{CredUsage: xdr.CredBoth})
	must(t, err)
	client, err := r.Tool(lab.Nobody, mustKinit(t, r, "alice")...)
	must(t, err)
	defer client.Close()
	accept := func() error {
		_, token, err := client.Init(svc, lab.Usual, nil)
		must(t, err)
		arg, res := lab.AcceptArg(token, nil), new(xdr.ResAcceptSecContext)
		arg.CredHandle = xdr.Some(h)
		return d.call("web", xdr.ProcAcceptSecContext, arg, res, &res.Status)
	}
	for _, test := range []struct {
		usage              string
		accepts, initiates bool
	}{{"both", true, true}, {"accept", true, false}, {"initiate", false, true}} {
		d.load(r.Conf, map[string]string{"web": store + "cred_usage = " + test.usage})
		_, err := d.init("web", &h, svc)
		for what, r := range map[string]struct {
			err error
			may bool
		}{"initiate": {err, test.initiates}, "accept": {accept(), test.accepts}} {
			if (r.err == nil) != r.may || r.err != nil && !strings.Contains(r.err.Error(), "[usage-not-allowed]") {
				t.Errorf("cred_usage = %s, to %s: %v", test.usage, what, r.err)
			}
		}
	}
}

// TestAcceptAfterTickets: to accept, a credential for both usages needs no tickets.
func TestAcceptAfterTickets(t *testing.T) {
	r, svcs, _ := realm(t)
	store := "cred_store = keytab:" + svcs + "\ncred_store = client_keytab:" + svcs + "\ncred_usage = "
	d := newDirect(t, r.Conf, map[string]string{"web": store + "both"})
	h, err := d.acquire("web", xdr.ArgAcquireCred{CredUsage: xdr.CredBoth})
	must(t, err)
	d.load(r.Conf, map[string]string{"web": store + "accept"})
	d.ahead.Store(int64(11 * time.Hour))
	for _, usage := range []xdr.CredUsage{xdr.CredAccept, xdr.CredBoth} {
		again, err := d.acquire("web", xdr.ArgAcquireCred{InputCredHandle: xdr.Some(h), CredUsage: usage})
		if err != nil || string(again.CredHandleReference) != string(h.CredHandleReference) {
			t.Errorf("asked for usage %d: %v", usage, err)
		}
	}
}

// TestNamedByUser: a user for whom a trusted service acts does not become one of the client keytab's principals by having
// written a cache of that name.
func TestNamedByUser(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("not run: needs root to give files away")
	}
	r, _, _ := realm(t)
	must(t, r.AddPrincipal("bob", "bob"))
	clients, err := r.Keytab("clients.keytab", "bob", "alice")
	must(t, err)
	dir := t.TempDir()
	d := newDirect(t, r.Conf, map[string]string{"nfs": "trusted = yes\neuid = 33\ncred_store = client_keytab:" + clients + "\ncred_store = ccache:FILE:" + dir + "/%U"})
	for uid, test := range map[uint32]struct{ writes, is string }{1000: {"", "bob"}, 1001: {"bob", "bob"}, 1002: {"alice", ""}} {
		path := fmt.Sprintf("%s/%d", dir, uid)
		if test.writes != "" {
			must(t, os.WriteFile(path, newContent(t, test.writes+"@"+lab.Name), 0o600))
			must(t, os.Chown(path, int(uid), int(uid)))
		}
		got, err := d.as(33).acquire("nfs", xdr.ArgAcquireCred{CredUsage: xdr.CredInitiate, DesiredName: xdr.Some(named(fmt.Sprint(uid), mech.NTStringUID))})
		if is, _, _ := strings.Cut(string(got.DesiredName.DisplayName), "@"); is != test.is || (err == nil) != (is != "") {
			t.Errorf("uid %d, whose cache says %q: %q, %v; want %q", uid, test.writes, is, err, test.is)
		}
	}
}

func mustKinit(t testing.TB, r *lab.Realm, who string) []string {
	t.Helper()
	env, err := r.Kinit(who, who)
	must(t, err)
	return env
}

// TestForItselfOnly: trusted, allow_protocol_transition and allow_constrained_delegation count for the service's euid. A
// user that a service lets in acts with impersonate in the user's own name.
func TestForItselfOnly(t *testing.T) {
	dir := t.TempDir()
	d := newDirect(t, filepath.Join(dir, "none"), map[string]string{
		"trusted":     "trusted = yes\nallow_any_uid = yes\neuid = 33",
		"transition":  "allow_protocol_transition = yes\nallow_any_uid = yes\neuid = 33",
		"delegation":  "allow_constrained_delegation = yes\nallow_any_uid = yes\neuid = 33",
		"impersonate": "impersonate = yes\nallow_any_uid = yes\neuid = 33\ncred_store = keytab:" + dir + "/keytab",
		"none":        "allow_any_uid = yes\neuid = 33",
	})
	d.users = conf.FixedUsers{"www-data": 33, "alice": 1000}
	d.current.Load().krb5.DefaultRealm = "X"
	principal := func(s string) krb5.Principal {
		p, err := krb5.ParsePrincipal(s, "")
		must(t, err)
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
			i := &initiator{client: principal(user), service: principal("http/x@X")}
			if err := c.allowed(i, principal("ldap/x@X")); (err == nil) != may {
				t.Errorf("%+v: as %s: %v", test, user, err)
			}
			if err := c.allowed(i, i.service); err != nil {
				t.Errorf("%+v: to itself as %s: %v", test, user, err)
			}
			if err := c.allowed(&initiator{client: principal(user)}, principal("ldap/x@X")); err != nil {
				t.Errorf("%+v: with own tickets of %s: %v", test, user, err)
			}
		}
	}
}

// TestOthersContext: a context that is not established yet goes on for the caller who has begun it only.
func TestOthersContext(t *testing.T) {
	r, _, alices := realm(t)
	d := newDirect(t, r.Conf, map[string]string{"mail": "cred_store = client_keytab:" + alices + "\nallow_any_uid = yes"})
	arg := xdr.ArgInitSecContext{TargetName: xdr.Some(named(svc, mech.NTHostbased)), MechType: []byte(mech.KRB5), ReqFlags: lab.Usual | lab.Mutual}
	var res xdr.ResInitSecContext
	must(t, ignoreContinue(d.call("mail", xdr.ProcInitSecContext, &arg, &res, &res.Status)))
	arg.ContextHandle, arg.InputToken = res.ContextHandle, xdr.Some([]byte("no token"))
	for uid, want := range map[uint32]reason.ID{0: reason.DefectiveToken, 1000: reason.BadContext} {
		var res xdr.ResInitSecContext
		err := d.as(uid).call("mail", xdr.ProcInitSecContext, &arg, &res, &res.Status)
		if err == nil || !strings.Contains(err.Error(), "["+string(want)+"]") {
			t.Errorf("uid %d: %v, want [%s]", uid, err, want)
		}
	}
}

func majorPrefix(m mech.Major) string { return fmt.Sprintf("major %#x:", uint64(m)) }

func ignoreContinue(err error) error {
	if err != nil && strings.HasPrefix(err.Error(), majorPrefix(mech.ContinueNeeded)) {
		return nil
	}
	return err
}

// newContent is the content of a cache of a client without tickets.
func newContent(t testing.TB, client string) []byte {
	t.Helper()
	p, err := krb5.ParsePrincipal(client, "")
	must(t, err)
	return ccache.AppendContent(nil, p, nil)
}
