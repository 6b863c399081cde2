package e2e

import (
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	"gssproxyd/interposer"
	"gssproxyd/mech"
	"gssproxyd/tests/lab"
	"gssproxyd/xdr"
)

// s4u is a realm whose KDC enforces its lists, with a daemon that acts for others in it. front and
// weak may act for others towards back and towards nothing else, weak only for who has
// authenticated with Kerberos.
type s4u struct {
	realm  *lab.LDAPRealm
	mit    *lab.Tool // MIT's acceptor, which has everybody's keys
	kind   string
	dir    string
	daemon *lab.Daemon
}

// newS4U starts the realm, and returns the keytabs of front and weak.
func newS4U(t *testing.T) (s *s4u, fronts, weaks string) {
	lab.Require(t)
	lab.NeedPrograms(t, "/usr/sbin/slapd", "/usr/lib/x86_64-linux-gnu/krb5/plugins/kdb/kldap.so")
	r, err := lab.UpLDAP()
	check(t, err)
	t.Cleanup(func() { r.Close() })
	for _, s := range []string{"front", "back", "other", "weak"} {
		check(t, r.RandKey(s+"/"+lab.Host))
	}
	check(t, r.AddPrincipal("bob", "bob"))
	check(t, r.AddPrincipal("secret", "secret"))
	check(t, r.Attribute("secret", "-allow_forwardable"))
	check(t, r.AddPrincipal("nobody", "nobody"))
	for _, s := range []string{"front", "weak"} {
		check(t, r.AllowDelegation(s+"/"+lab.Host, "back/"+lab.Host))
	}
	check(t, r.Attribute("front/"+lab.Host, "+ok_to_auth_as_delegate"))
	fronts, err = r.Keytab("front.keytab", "front/"+lab.Host)
	check(t, err)
	weaks, err = r.Keytab("weak.keytab", "weak/"+lab.Host)
	check(t, err)
	all, err := r.Keytab("all.keytab", "front/"+lab.Host, "back/"+lab.Host, "other/"+lab.Host, "weak/"+lab.Host)
	check(t, err)
	s = &s4u{realm: r}
	s.mit = s.start(t, lab.Root, "KRB5_KTNAME="+all, "KRB5RCACHENAME=none:")
	check(t, s.mit.Acquire(""))
	return s, fronts, weaks
}

// start starts a gsstool that ends with the test.
func (s *s4u) start(t *testing.T, u lab.User, env ...string) *lab.Tool {
	t.Helper()
	g, err := s.realm.Tool(u, env...)
	check(t, err)
	t.Cleanup(func() { g.Close() })
	return g
}

func (s *s4u) socket(name string) string { return filepath.Join(s.dir, "sock-"+name) }

// plugin is the environment of a program that uses a service through the plugin.
func (s *s4u) plugin(service string) []string {
	return append(s.realm.PluginEnv(s.socket(service)), "KRB5CCNAME=MEMORY:"+service)
}

// serve starts a daemon with a service for each set of switches.
func (s s4u) serve(t *testing.T, kind, fronts, weaks string) *s4u {
	s.kind, s.dir = kind, s.realm.Path("s4u-"+kind)
	var services []svc
	add := func(name, keytab string, lines ...string) {
		services = append(services, svc{name, 0, append(lines, "cred_store = keytab:"+keytab, "cred_store = client_keytab:"+keytab, "socket = "+s.socket(name))})
	}
	add("none", fronts)
	add("transition", fronts, "allow_protocol_transition = yes")
	add("delegation", fronts, "allow_constrained_delegation = yes")
	add("each", fronts, "allow_protocol_transition = yes", "allow_constrained_delegation = yes")
	add("trusted", fronts, "trusted = yes")
	add("weak", weaks, "allow_protocol_transition = yes", "allow_constrained_delegation = yes")
	add("self", fronts, "impersonate = yes", "allow_any_uid = yes", "krb5_principal = front/"+lab.Host)
	services = append(services, svc{"lab", 0, []string{"cred_store = keytab:" + fronts}})
	d, err := s.realm.Daemon(kind, lab.Options{Dir: s.dir, Keytab: fronts, Config: config(services...), RCache: "none:"})
	check(t, err)
	t.Cleanup(func() {
		if err := d.Stop(); err != nil {
			t.Errorf("the daemon ended badly: %v", err)
		}
		if t.Failed() {
			t.Logf("log of the %s daemon:\n%s\nof the KDC:\n%s", kind, tail(d.Output(), 4<<10), tail(s.realm.KDCLog(), 4<<10))
		}
	})
	s.daemon = d
	return &s
}

// TestDelegation: S4U2Self and S4U2Proxy, each of the daemon's switches on and off, on the wire and
// by every client.
func TestDelegation(t *testing.T) {
	realm, fronts, weaks := newS4U(t)
	overDaemons(t, func(t *testing.T, kind string) {
		s := realm.serve(t, kind, fronts, weaks)
		for _, c := range s4uCases {
			t.Run("wire/"+strings.ReplaceAll(c.what, " ", "-"), func(t *testing.T) { s.wire(t, c) })
		}
		t.Run("plugin", s.impersonates)
		t.Run("interposer", s.impersonatesInGo)
		t.Run("acceptor", s.delegates)
		t.Run("self", s.impersonatesCaller)
	})
}

type s4uCase struct {
	what, service string
	user          string
	target        string
	self, proxy   bool // what must succeed
	denied        bool // by the daemon
}

var s4uCases = []s4uCase{
	{"front to back", "each", "bob", "back", true, true, false},
	{"front to back, trusted", "trusted", "bob", "back", true, true, false},
	{"front to itself", "transition", "bob", "front", true, true, false},
	{"front to itself, each switch", "each", "bob", "front", true, true, false},
	{"not on the list", "each", "bob", "other", true, false, false},
	{"may not delegate", "transition", "bob", "back", true, false, true},
	{"may not impersonate", "none", "bob", "back", false, false, false},
	{"may delegate but not impersonate", "delegation", "bob", "back", false, false, false},
	{"user not to be delegated", "each", "secret", "back", true, false, false},
	{"user not to be delegated, to oneself", "each", "secret", "front", true, true, false},
	{"not trusted to authenticate others", "weak", "bob", "back", true, false, false},
	{"unknown user", "each", "absent", "back", false, false, false},
}

// wire makes the calls of a web server for one case.
func (s *s4u) wire(t *testing.T, c s4uCase) {
	w, err := s.daemon.WireAs(lab.Root, s.socket(c.service))
	check(t, err)
	defer w.Close()
	front := strings.Replace(c.service, "weak", "weak/", 1)
	if c.service != "weak" {
		front = "front/"
	}
	var own, user xdr.ResAcquireCred
	n := name(front+lab.Host, mech.NTKrb5Principal)
	check(t, w.Call(xdr.ProcAcquireCred, &xdr.ArgAcquireCred{CredUsage: xdr.CredBoth, DesiredName: xdr.Some(n)}, &own))
	check(t, lab.StatusError(own.Status))
	arg := &xdr.ArgAcquireCred{
		InputCredHandle: own.OutputCredHandle, CredUsage: xdr.CredInitiate,
		DesiredName: xdr.Some(name(c.user, mech.NTUserName)), Options: impersonateName,
	}
	h, err := w.Exchange(xdr.ProcAcquireCred, arg, &user)
	check(t, err)
	err = lab.StatusError(user.Status)
	if !lab.Success(h) {
		err = fmt.Errorf("%+v", h)
	}
	if (err == nil) != c.self {
		t.Fatalf("S4U2Self: %v, want success %v", err, c.self)
	}
	if c.user == "absent" && s.kind == "ours" {
		for _, words := range []string{"[impersonated-user-unknown]", "knows no user 'absent@" + lab.Name + "' to act for"} {
			if !strings.Contains(err.Error(), words) {
				t.Errorf("%q says nothing of %q", err, words)
			}
		}
	}
	if !c.self {
		return
	}
	if got := string(user.OutputCredHandle.V.DesiredName.DisplayName); got != c.user+"@"+lab.Name {
		t.Errorf("S4U2Self: a credential of %s", got)
	}
	out := initContext(t, w, &user.OutputCredHandle.V, c.target+"@"+lab.Host, lab.Usual, nil)
	if !c.proxy {
		if out.Status.MajorStatus == 0 || out.ContextHandle.Set || c.denied != (mech.Major(out.Status.MajorStatus) == mech.Unauthorized) {
			t.Errorf("S4U2Proxy: %v, a context %v; want UNAUTHORIZED %v", lab.StatusError(out.Status), out.ContextHandle.Set, c.denied)
		}
		if err := lab.StatusError(out.Status); c.denied && s.kind == "ours" && !strings.Contains(err.Error(), "[constrained-delegation-not-allowed]") {
			t.Errorf("S4U2Proxy: %v does not say why", err)
		}
		return
	}
	check(t, lab.StatusError(out.Status))
	heard, err := s.mit.Accept(out.OutputToken.V, nil)
	check(t, err)
	if heard.Client != c.user+"@"+lab.Name {
		t.Errorf("%s hears %s", c.target, heard.Client)
	}
}

// impersonates does the same through the plugin: gss_acquire_cred_impersonate_name.
func (s *s4u) impersonates(t *testing.T) {
	g := s.start(t, lab.Root, s.plugin("each")...)
	_, err := g.Credential("front@"+lab.Host, "hostbased", 0)
	check(t, err)
	c, err := g.Impersonate("bob", "user")
	check(t, err)
	if c.Name != "bob@"+lab.Name {
		t.Errorf("impersonated %s", c.Name)
	}
	id, token, err := g.Init("back@"+lab.Host, lab.Usual|lab.Mutual, nil)
	check(t, err)
	heard, err := s.mit.Accept(token, nil)
	check(t, err)
	if heard.Client != "bob@"+lab.Name {
		t.Errorf("back hears %s", heard.Client)
	}
	_, _, err = g.Step(id, heard.Token)
	check(t, err)
	check(t, lab.Converse(lab.End{Tool: g, ID: id}, lab.End{Tool: s.mit, ID: heard.ID}))
	if _, _, err := g.Init("other@"+lab.Host, lab.Usual, nil); err == nil {
		t.Error("front acts for bob towards other, which is not on its list")
	}
	g = s.start(t, lab.Root, s.plugin("none")...)
	_, err = g.Credential("front@"+lab.Host, "hostbased", 0)
	check(t, err)
	if _, err := g.Impersonate("bob", "user"); err == nil {
		t.Error("impersonates without leave")
	}
}

// impersonatesInGo does the same through package interposer.
func (s *s4u) impersonatesInGo(t *testing.T) {
	ctx := limited(t)
	acting := func(service string) (*interposer.Client, *interposer.Cred, error) {
		c := interposer.New(s.socket(service), interposer.Options{})
		t.Cleanup(func() { c.Close() })
		front, err := c.AcquireCred(ctx, interposer.AcquireRequest{
			Usage: interposer.Both, Name: interposer.HostbasedName("front", lab.Host),
		})
		check(t, err)
		bob, err := c.AcquireCred(ctx, interposer.AcquireRequest{
			Usage: interposer.Initiate, Name: interposer.Name{Display: "bob", Type: mech.NTUserName}, Input: front, Impersonate: true,
		})
		return c, bob, err
	}
	c, bob, err := acting("each")
	check(t, err)
	if got := bob.Name().Display; got != "bob@"+lab.Name {
		t.Errorf("impersonated %s", got)
	}
	// By the service's own credential, which need not be acquired before.
	if again, err := c.AcquireCred(ctx, interposer.AcquireRequest{Name: interposer.Principal("bob@" + lab.Name), Impersonate: true}); err != nil || again.Name().Display != "bob@"+lab.Name {
		t.Errorf("impersonated %v: %v", again, err)
	}
	speaks, token, err := c.InitSecContext(ctx, interposer.InitRequest{Cred: bob, Target: interposer.HostbasedName("back", lab.Host), Flags: lab.Usual | lab.Mutual})
	check(t, err)
	defer speaks.Close()
	heard, err := s.mit.Accept(token, nil)
	check(t, err)
	if heard.Client != "bob@"+lab.Name {
		t.Errorf("back hears %s", heard.Client)
	}
	_, err = speaks.Step(ctx, heard.Token)
	check(t, err)
	exchangeMessages(t, speaks, lab.End{Tool: s.mit, ID: heard.ID})
	if _, _, err := c.InitSecContext(ctx, interposer.InitRequest{Cred: bob, Target: interposer.HostbasedName("other", lab.Host)}); err == nil {
		t.Error("front acts for bob towards other, which is not on its list")
	}
	var refused *mech.Error
	// Without a credential named it is got by the service's own.
	alone, err := c.AcquireCred(ctx, interposer.AcquireRequest{Usage: interposer.Initiate, Name: interposer.Principal("bob"), Impersonate: true})
	check(t, err)
	if got := alone.Name().Display; got != "bob@"+lab.Name {
		t.Errorf("impersonated %s", got)
	}
	if _, _, err := acting("none"); !errors.As(err, &refused) || s.kind == "ours" && refused.Reason != "protocol-transition-not-allowed" {
		t.Errorf("without leave: %v", err)
	}
}

// delegates: an acceptor that may delegate gets a credential of the client it has accepted, though
// none was forwarded.
func (s *s4u) delegates(t *testing.T) {
	env, err := s.realm.Kinit("alice", "alice", "-f")
	check(t, err)
	client := s.start(t, lab.Nobody, env...)
	for service, allowed := range map[string]bool{"each": true, "delegation": true, "trusted": true, "none": false} {
		w, err := s.daemon.WireAs(lab.Root, s.socket(service))
		check(t, err)
		defer w.Close()
		var own xdr.ResAcquireCred
		n := name("front@"+lab.Host, mech.NTHostbased)
		check(t, w.Call(xdr.ProcAcquireCred, &xdr.ArgAcquireCred{CredUsage: xdr.CredBoth, DesiredName: xdr.Some(n)}, &own))
		check(t, lab.StatusError(own.Status))
		_, token, err := client.Init("front@"+lab.Host, lab.Usual, nil)
		check(t, err)
		arg := lab.AcceptArg(token, nil)
		arg.CredHandle, arg.RetDelegCred = own.OutputCredHandle, true
		var res xdr.ResAcceptSecContext
		check(t, w.Call(xdr.ProcAcceptSecContext, arg, &res))
		check(t, lab.StatusError(res.Status))
		if !res.DelegatedCredHandle.Set {
			t.Errorf("%s: no credential of the client's", service)
			continue
		}
		if got := string(res.DelegatedCredHandle.V.DesiredName.DisplayName); got != "alice@"+lab.Name {
			t.Errorf("%s: a credential of %s", service, got)
		}
		out := initContext(t, w, &res.DelegatedCredHandle.V, "back@"+lab.Host, lab.Usual, nil)
		if !allowed {
			if mech.Major(out.Status.MajorStatus) != mech.Unauthorized {
				t.Errorf("%s: %v, want UNAUTHORIZED", service, lab.StatusError(out.Status))
			}
			continue
		}
		check(t, lab.StatusError(out.Status))
		heard, err := s.mit.Accept(out.OutputToken.V, nil)
		check(t, err)
		if heard.Client != "alice@"+lab.Name {
			t.Errorf("%s: back hears %s", service, heard.Client)
		}
	}
}

// impersonatesCaller: with the option impersonate whoever asks gets a credential of his own, made
// with the service's keys.
func (s *s4u) impersonatesCaller(t *testing.T) {
	g := s.start(t, lab.Nobody, s.plugin("self")...)
	c, err := g.Credential("", "-", 1)
	check(t, err)
	if c.Name != "nobody@"+lab.Name {
		t.Errorf("nobody has a credential of %s", c.Name)
	}
	_, token, err := g.Init("back@"+lab.Host, lab.Usual, nil)
	check(t, err)
	heard, err := s.mit.Accept(token, nil)
	check(t, err)
	if heard.Client != "nobody@"+lab.Name {
		t.Errorf("back hears %s", heard.Client)
	}
	if _, _, err := g.Init("other@"+lab.Host, lab.Usual, nil); err == nil {
		t.Error("front acts for nobody towards other, which is not on its list")
	}
}
