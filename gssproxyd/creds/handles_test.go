package creds_test

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"gssproxyd/gssproxyd/creds"
	"gssproxyd/keytab/seal"
	"gssproxyd/mech"
	"gssproxyd/mech/reason"
	"gssproxyd/tests/lab"
	"gssproxyd/xdr"
)

// TestNameOfHandle: where a handle names whom to accept for, neither the configuration nor that it
// does not open makes it another one.
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
			if wanted := creds.WantedOf(d.caller("web").Open(again.CredHandleReference)); !strings.HasPrefix(wanted, "svc") {
				t.Errorf("a handle for %s that %s, acquired again for usage %d: for %q", svc, what, usage, wanted)
			}
		}
	}
}

// TestTimeLeft: a handle that still serves comes back as it was, with the time that is left now.
func TestTimeLeft(t *testing.T) {
	r, svcs, alices := realm(t)
	d := newDirect(t, r.Conf, map[string]string{"web": "cred_store = keytab:" + svcs + "\ncred_store = client_keytab:" + alices})
	for _, usage := range []xdr.CredUsage{xdr.CredInitiate, xdr.CredBoth, xdr.CredAccept} {
		first, err := d.acquire("web", xdr.ArgAcquireCred{CredUsage: usage})
		must(t, err)
		first.Elements[0].Options = []xdr.Option{{Option: []byte("of the client's\x00"), Value: []byte("value")}}
		const later = 600
		d.ahead.Add(int64(later * time.Second))
		again, err := d.acquire("web", xdr.ArgAcquireCred{InputCredHandle: xdr.Some(first), CredUsage: usage})
		must(t, err)
		had, has := &first.Elements[0].InitiatorTimeRec, &again.Elements[0].InitiatorTimeRec
		if usage != xdr.CredAccept && (*has+later > *had || *has == 0) {
			t.Errorf("usage %d: %d s are left, %d s after %d s were", usage, *has, later, *had)
		}
		if !lab.SameCred(again, first) {
			t.Errorf("usage %d: more has changed than the time: %v, want %v", usage, again, first)
		}
	}
}

// refuseStale is the option refuse_stale_handle.
func refuseStale(value string) []xdr.Option {
	return []xdr.Option{{Option: []byte("refuse_stale_handle\x00"), Value: []byte(value + "\x00")}}
}

// TestRefuseStaleHandle: who sends a handle with the option gets what the handle stands for, or
// nothing.
func TestRefuseStaleHandle(t *testing.T) {
	r, svcs, alices := realm(t)
	d := newDirect(t, r.Conf, map[string]string{
		"web":  "cred_store = keytab:" + svcs + "\ncred_store = client_keytab:" + alices + "\nallow_any_uid = yes",
		"mail": "cred_store = client_keytab:" + alices,
	})
	client, err := r.Tool(lab.Nobody, mustKinit(t, r, "alice")...)
	must(t, err)
	defer client.Close()

	// call makes all calls that take a handle.
	call := func(h xdr.Cred, options []xdr.Option) map[string]error {
		t.Helper()
		_, initiate := d.init("web", &h, svc, func(arg *xdr.ArgInitSecContext) { arg.Options = options })
		_, token, err := client.Init(svc, lab.Usual, nil)
		must(t, err)
		arg, res := lab.AcceptArg(token, nil), new(xdr.ResAcceptSecContext)
		arg.CredHandle, arg.Options = xdr.Some(h), options
		accept := d.call("web", xdr.ProcAcceptSecContext, arg, res, &res.Status)
		_, acquire := d.acquire("web", xdr.ArgAcquireCred{CredUsage: xdr.CredBoth, InputCredHandle: xdr.Some(h), Options: options})
		return map[string]error{"ACQUIRE": acquire, "INIT": initiate, "ACCEPT": accept}
	}
	is := func(what string, got map[string]error, want ...string) {
		t.Helper()
		for name, err := range got {
			if (err == nil) != (len(want) == 0) {
				t.Errorf("%s, %s: %v", what, name, err)
				continue
			}
			for _, words := range want {
				if !strings.Contains(err.Error(), words) {
					t.Errorf("%s, %s: %v, want %s", what, name, err, words)
				}
			}
		}
	}
	made := func(d *direct, service string, usage xdr.CredUsage) xdr.Cred {
		t.Helper()
		h, err := d.acquire(service, xdr.ArgAcquireCred{CredUsage: usage})
		must(t, err)
		return h
	}
	good := made(d, "web", xdr.CredBoth)
	is("a good handle", call(good, refuseStale("yes")))
	is("an unknown value", call(good, refuseStale("no")), "[bad-option]", `known is "yes`)
	is("an unknown value, and no handle", call(xdr.Cred{}, refuseStale("")), "[bad-option]")

	damaged := bytes.Clone(good.CredHandleReference)
	damaged[len(damaged)-1]++
	stale := map[string][]byte{
		"damaged":           damaged,
		"of a lost key":     seal.New().Seal(nil, []byte("the same"), "", seal.KindCred),
		"another service's": made(d, "mail", xdr.CredInitiate).CredHandleReference,
		"another uid's":     made(d.as(1000), "web", xdr.CredAccept).CredHandleReference,
		"of a former build": d.caller("web").SealFormer(),
		"foreign":           []byte("the C daemon's"),
		"empty":             nil,
	}
	for what, sealed := range stale {
		h := good // what a handle says of itself in clear is as good as ever
		h.CredHandleReference = sealed
		is(what+", without the option", call(h, nil))
		is(what, call(h, refuseStale("yes")), majorPrefix(mech.DefectiveCredential), "[bad-credential]")
	}

	// Of a handle that opens the tickets may have ended all the same.
	env, err := r.Kinit("alice", "alice", "-f", "-l", "30m")
	must(t, err)
	delegating, err := r.Tool(lab.Nobody, env...)
	must(t, err)
	defer delegating.Close()
	_, token, err := delegating.Init(svc, lab.Usual|lab.Deleg, nil)
	must(t, err)
	arg, res := lab.AcceptArg(token, nil), new(xdr.ResAcceptSecContext)
	arg.RetDelegCred = true
	must(t, d.call("web", xdr.ProcAcceptSecContext, arg, res, &res.Status))
	d.ahead.Store(int64(time.Hour))
	_, err = d.init("web", &res.DelegatedCredHandle.V, svc, func(arg *xdr.ArgInitSecContext) { arg.Options = refuseStale("yes") })
	is("ended", map[string]error{"INIT": err}, majorPrefix(mech.CredentialsExpired), "[ticket-expired]")
}

// TestMemoryOfUsers: a cache in memory that cred_store names is one for each user, like those
// without a name.
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
		if n, _ := creds.MemoryOf(d.of("web").Service).Len(); n != len(users) {
			t.Errorf("ccache:%s: %d caches for %d users", name, n, len(users))
		}
	}
}

// TestHandleWays: a handle whose tickets have ended is continued in the way they were got, and in
// no other.
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

// TestUsersCacheKept: where the cache that cred_store names is a user's, neither a handle that does
// not open nor one whose tickets have ended has the service's own credential put into it, though
// there are keys to get that with. Where there is no cache any more, none is made.
func TestUsersCacheKept(t *testing.T) {
	r, svcs, _ := realm(t)
	cc := r.Path("cc")
	store := "cred_store = client_keytab:" + svcs + "\ncred_store = ccache:FILE:" + cc
	d := newDirect(t, r.Conf, map[string]string{"web": store})
	acquire := func(h *xdr.Cred) (xdr.Cred, error) {
		t.Helper()
		arg := xdr.ArgAcquireCred{CredUsage: xdr.CredInitiate}
		if h != nil {
			arg.InputCredHandle = xdr.Some(*h)
		}
		return d.acquire("web", arg)
	}
	lost := func(h xdr.Cred) xdr.Cred {
		h.CredHandleReference = seal.New().Seal(nil, []byte("the same"), "", seal.KindCred)
		return h
	}
	own, err := acquire(nil) // got with a key, and kept in the cache
	must(t, err)
	env, err := r.Kinit("alice", "alice", "-l", "30m")
	must(t, err)
	must(t, os.Rename(strings.TrimPrefix(env[0], "KRB5CCNAME=FILE:"), cc))
	alice, err := acquire(nil)
	must(t, err)
	if svcOwn, is := string(own.DesiredName.DisplayName), string(alice.DesiredName.DisplayName); !strings.HasPrefix(svcOwn, "svc/") || is != "alice@"+lab.Name {
		t.Fatalf("credentials of %s and %s", svcOwn, is)
	}
	alices, err := os.ReadFile(cc)
	must(t, err)
	d.ahead.Store(int64(time.Hour))

	lostAlice, lostOwn := lost(alice), lost(own)
	for _, config := range []string{store, store + "\nkrb5_principal = svc/" + lab.Host} {
		d.load(r.Conf, map[string]string{"web": config})
		for _, there := range []bool{true, false} {
			for what, h := range map[string]*xdr.Cred{
				"alice's": &alice, "alice's that is lost": &lostAlice,
				"the service's": &own, "the service's that is lost": &lostOwn,
				"no handle": nil,
			} {
				if !there && (h == nil || string(h.DesiredName.DisplayName) != "alice@"+lab.Name) {
					continue // the service may have its own cache again
				}
				if there {
					must(t, os.WriteFile(cc, alices, 0o600))
				} else if err := os.Remove(cc); !os.IsNotExist(err) {
					must(t, err)
				}
				_, acquired := acquire(h)
				_, used := d.init("web", h, svc)
				if acquired == nil || used == nil {
					t.Errorf("%s\n%s, a cache is there: %t: acquired %v, used %v", config, what, there, acquired, used)
				}
				is, err := os.ReadFile(cc)
				if there && !bytes.Equal(is, alices) || !there && !os.IsNotExist(err) {
					t.Errorf("%s\n%s, a cache is there: %t: it has %d bytes now, and had %d, %v", config, what, there, len(is), len(alices), err)
				}
			}
		}
	}
}

// TestUsageAtUse: what a service may do is looked at when a handle is used, not only when it was
// made.
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

// TestS4UAtUse: that a service may reach others as a user is looked at when a handle is used. That it
// may act for users who are not there is looked at when the credential is acquired: a ticket to the
// service itself that exists stays usable.
func TestS4UAtUse(t *testing.T) {
	r, svcs, _ := realm(t)
	must(t, r.RandKey("mail/"+lab.Host))
	store := "cred_store = keytab:" + svcs + "\ncred_store = client_keytab:" + svcs + "\n"
	const transition, delegation = "allow_protocol_transition = yes\n", "allow_constrained_delegation = yes\n"
	d := newDirect(t, r.Conf, map[string]string{"web": store + transition + delegation})
	service, err := d.acquire("web", xdr.ArgAcquireCred{CredUsage: xdr.CredInitiate, DesiredName: xdr.Some(named(svc, mech.NTHostbased))})
	must(t, err)
	act := func() (xdr.Cred, error) {
		t.Helper()
		return d.acquire("web", xdr.ArgAcquireCred{
			CredUsage: xdr.CredInitiate, InputCredHandle: xdr.Some(service), DesiredName: xdr.Some(named("alice", mech.NTUserName)),
			Options: []xdr.Option{{Option: []byte("acquire_type\x00"), Value: []byte("impersonate_name\x00")}},
		})
	}
	alice, err := act()
	must(t, err)
	for _, test := range []struct {
		lines       string
		other, anew reason.ID
	}{
		{transition + delegation, reason.DelegationRefused, ""}, // by this realm's KDC, which was asked
		{transition, reason.NoDelegation, ""},
		{delegation, reason.DelegationRefused, reason.NoTransition},
		{"", reason.NoDelegation, reason.NoTransition},
	} {
		d.load(r.Conf, map[string]string{"web": store + test.lines})
		_, err := d.init("web", &alice, "mail@"+lab.Host)
		refused(t, err, test.other)
		if _, err := d.init("web", &alice, svc); err != nil {
			t.Errorf("%q: to itself: %v", test.lines, err)
		}
		if _, err := act(); test.anew != "" {
			refused(t, err, test.anew)
		} else {
			must(t, err)
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

// TestNamedByUser: a user for whom a trusted service acts does not become one of the client
// keytab's principals by having written a cache of that name.
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
			must(t, os.WriteFile(path, creds.NewContent(t, test.writes+"@"+lab.Name), 0o600))
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

func majorPrefix(m mech.Major) string { return fmt.Sprintf("major %#x:", uint64(m)) }
