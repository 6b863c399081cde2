package e2e

import (
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"gssproxyd/audit"
	"gssproxyd/interposer"
	"gssproxyd/mech"
	"gssproxyd/mech/reason"
	"gssproxyd/tests/lab"
	"gssproxyd/xdr"
)

// permits is a daemon whose services differ in what their callers may do.
type permits struct {
	*lab.Daemon
	realm *lab.Realm
	dir   string
	euid  uint32
	keys  []string            // lines that every service has
	rules map[string][]string // of each
}

func newPermits(r *lab.Realm, euid uint32, keys ...string) *permits {
	return &permits{realm: r, dir: r.Path("permits"), euid: euid, keys: keys, rules: map[string][]string{}}
}

// add makes a service. It has its own socket.
func (p *permits) add(name string, lines ...string) { p.rules[name] = lines }

func (p *permits) socket(service string) string { return filepath.Join(p.dir, "sock-"+service) }

func (p *permits) config(ceiling ...string) string {
	services := []svc{{"lab", 0, p.keys}}
	for name, lines := range p.rules {
		services = append(services, svc{name, p.euid, append(append([]string{"socket = " + p.socket(name)}, p.keys...), lines...)})
	}
	ceiling = append(ceiling, "audit = "+p.audit(), "audit_failure = refuse", "") // so that a line is there before the answer
	return strings.Replace(config(services...), "[gssproxy]\n", "[gssproxy]\n"+strings.Join(ceiling, "\n"), 1)
}

func (p *permits) audit() string { return filepath.Join(p.dir, "state", "audit.log") }

// serve starts the daemon, with more lines for [gssproxy].
func (p *permits) serve(t *testing.T, o lab.Options, ceiling ...string) {
	t.Helper()
	o.Dir, o.Config, o.RCache = p.dir, p.config(ceiling...), "none:"
	d, err := p.realm.Ours(o)
	check(t, err)
	p.Daemon = d
	t.Cleanup(func() {
		if err := d.Stop(); err != nil {
			t.Errorf("the daemon ended badly: %v", err)
		}
		if _, err := audit.Verify([]string{p.audit()}); err != nil {
			t.Errorf("the audit log: %v", err)
		}
		if t.Failed() {
			t.Logf("log of the daemon:\n%s", tail(d.Output(), 8<<10))
		}
	})
}

// program starts an unmodified program that uses a service through the plugin.
func (p *permits) program(t *testing.T, service string) *lab.Tool {
	t.Helper()
	u := lab.Root
	if p.euid == lab.Nobody.UID {
		u = lab.Nobody
	}
	g, err := p.realm.Tool(u, append(p.realm.PluginEnv(p.socket(service)), "KRB5CCNAME=MEMORY:"+service)...)
	check(t, err)
	t.Cleanup(func() { g.Close() })
	return g
}

// acceptor is a program with a credential to accept with.
func (p *permits) acceptor(t *testing.T, service string) *lab.Tool {
	t.Helper()
	g := p.program(t, service)
	check(t, g.Acquire(""))
	return g
}

// wire connects to a service as who it is for.
func (p *permits) wire(t *testing.T, service string) *lab.Wire {
	t.Helper()
	w, err := p.WireAs(lab.User{UID: p.euid, GID: p.euid}, p.socket(service))
	check(t, err)
	t.Cleanup(func() { w.Close() })
	return w
}

// logged reports whether the log has a line about a service with the reason and words.
func (p *permits) logged(service string, id reason.ID, words string) bool {
	about := regexp.MustCompile(`\bservice=` + regexp.QuoteMeta(service) + `( |$)`)
	for line := range strings.Lines(p.Output()) {
		line = strings.TrimSpace(line)
		if about.MatchString(line) && strings.Contains(line, "reason="+string(id)) && strings.Contains(line, words) {
			return true
		}
	}
	return false
}

// audited reports whether the audit log has an event of a service, with a reason if there is one.
func (p *permits) audited(t *testing.T, kind audit.Kind, service string, id reason.ID) bool {
	t.Helper()
	b, err := os.ReadFile(p.audit())
	check(t, err)
	for line := range strings.Lines(string(b)) {
		var e struct {
			Kind    audit.Kind
			Service string
			Reason  reason.ID
		}
		check(t, json.Unmarshal([]byte(line), &e))
		if e.Kind == kind && e.Service == service && e.Reason == id {
			return true
		}
	}
	return false
}

// refused asserts that a call to a service has failed for a reason, with words in the text that the
// client has and in the log.
func (p *permits) refused(t *testing.T, service string, err error, id reason.ID, words string) {
	t.Helper()
	switch {
	case err == nil:
		t.Errorf("%s: served, want %s", service, id)
	case !strings.Contains(err.Error(), "["+string(id)+"]") || !strings.Contains(err.Error(), words):
		t.Errorf("%s: %v; want %s: %s", service, err, id, words)
	case !p.logged(service, id, words):
		t.Errorf("%s: the log does not say %s: %s", service, id, words)
	case !p.audited(t, audit.CallDenied, service, id):
		t.Errorf("%s: the audit log has no refusal for %s", service, id)
	}
}

// observed asserts that what a service would have refused but for its mode is in the log.
func (p *permits) observed(t *testing.T, service string, err error, id reason.ID) {
	t.Helper()
	if err != nil {
		t.Errorf("%s: %v", service, err)
	}
	if !p.logged(service, id, "only observed") {
		t.Errorf("%s: the log does not say that %s is only observed", service, id)
	}
	if !p.audited(t, audit.CallObserved, service, id) || !p.audited(t, audit.CallAllowed, service, "") {
		t.Errorf("%s: the audit log does not have that %s is observed, and the call allowed", service, id)
	}
}

// accept has a service accept what an initiator begins.
func (p *permits) accept(t *testing.T, service string, initiator *lab.Tool, target string, flags uint32, theirs, ours []byte) (lab.Accepted, *lab.Tool, error) {
	t.Helper()
	acceptor := p.acceptor(t, service)
	_, token, err := initiator.Init(target, flags, theirs)
	check(t, err)
	a, err := acceptor.Accept(token, ours)
	return a, acceptor, err
}

// TestPermissionsToAccept: what a service may accept, by an unmodified program.
func TestPermissionsToAccept(t *testing.T) {
	needOurs(t)
	r := realm(t)
	made(t, r.RandKey("nopac/"+lab.Host))
	check(t, r.Attribute("nopac/"+lab.Host, "+no_auth_data_required"))
	made(t, r.AddPrincipal("carol", "carol"))
	keys := keytab(t)
	check(t, r.Ktadd(keys, "nopac/"+lab.Host))
	client := alice(t, "-f")
	carolEnv, err := r.Kinit("carol", "carol")
	check(t, err)
	carol := tool(t, lab.Nobody, carolEnv...)
	alices, err := r.Keytab("alice.keytab", "alice")
	check(t, err)

	p := newPermits(r, lab.Nobody.UID, "cred_store = keytab:"+keys, "cred_store = client_keytab:"+alices)
	observe := "mode = observe"
	p.add("free")
	p.add("acceptonly", "operations = accept")
	p.add("initiateonly", "operations = initiate, names, delegate, impersonate")
	p.add("nonames", "operations = accept, initiate, impersonate, delegate")
	p.add("nodelegate", "operations = accept, initiate, impersonate, names")
	p.add("nodelegateseen", "operations = accept, initiate, impersonate, names", observe)
	p.add("alices", "client_principals = ali*@"+lab.Name, "client_realms = EXAMPLE.*")
	p.add("alicesseen", "client_principals = alice@"+lab.Name, observe)
	p.add("elsewhere", "client_realms = *.OTHER.TEST")
	p.add("sha384", "enctypes = aes256-cts-hmac-sha384-192")
	p.add("sha384seen", "enctypes = aes256-cts-hmac-sha384-192", observe)
	p.add("sha1", "enctypes = aes128-cts-hmac-sha1-96, aes256-cts-hmac-sha1-96")
	p.add("bound", "require_channel_bindings = yes")
	p.add("boundseen", "require_channel_bindings = yes", observe)
	p.add("pac", "require_pac = yes")
	p.add("pacseen", "require_pac = yes", observe)
	p.add("short", "max_lifetime = 3600")
	p.add("shortest", "max_lifetime = 60", observe)
	p.serve(t, lab.Options{Keytab: keys})
	const mutual = lab.Usual | lab.Mutual
	serves := func(service string, err error) {
		t.Helper()
		if err != nil {
			t.Errorf("%s: %v", service, err)
		}
	}
	do := func(service string, initiator *lab.Tool, target string, theirs, ours []byte) error {
		t.Helper()
		_, _, err := p.accept(t, service, initiator, target, mutual, theirs, ours)
		return err
	}

	// Which operations: both usages become the one that there is, as with cred_usage.
	for service, want := range map[string]struct {
		usage            int
		accept, initiate bool
	}{"free": {0, true, true}, "acceptonly": {2, true, false}, "initiateonly": {1, false, true}} {
		c, err := p.program(t, service).Credential("", "-", 0)
		if err != nil || c.Usage != want.usage {
			t.Errorf("%s: a credential for %d, want %d: %v", service, c.Usage, want.usage, err)
		}
		g := p.program(t, service)
		if err := g.Acquire(""); want.accept {
			serves(service, err)
			serves(service, do(service, client, "svc@"+lab.Host, nil, nil))
		} else {
			p.refused(t, service, err, reason.OperationNotAllowed, "does not have accept")
		}
		_, err = g.Credential("", "-", 1)
		_, _, err2 := p.program(t, service).Init("svc@"+lab.Host, lab.Usual, nil)
		if want.initiate {
			serves(service, errors.Join(err, err2))
		} else {
			p.refused(t, service, err, reason.OperationNotAllowed, "does not have initiate")
			p.refused(t, service, err2, reason.OperationNotAllowed, "does not have initiate")
		}
	}

	// Names. A context is accepted and initiated without.
	serves("nonames", do("nonames", client, "svc@"+lab.Host, nil, nil))
	program, err := r.BuildTool("calls")
	check(t, err)
	for _, service := range []string{"free", "nonames"} {
		c := startCalls(t, r.Command(lab.Nobody, r.PluginEnv(p.socket(service)), program))
		_, err := c.call("import_name 1 user " + hex.EncodeToString([]byte("alice")))
		check(t, err)
		user, err := c.call("localname 1 krb5") // libgssapi keeps the text of a failure to itself
		check(t, err)
		if served := user.major == "0"; served != (service == "free") || served == p.logged(service, reason.OperationNotAllowed, "does not have names") {
			t.Errorf("%s: localname: %v", service, user)
		}
		check(t, c.end())
		var res xdr.ResImportAndCanonName
		check(t, p.wire(t, service).Call(xdr.ProcImportAndCanonName, &xdr.ArgImportAndCanonName{InputName: name("alice", mech.NTUserName), Mech: []byte(mech.KRB5)}, &res))
		if err := lab.StatusError(res.Status); service == "free" {
			serves(service, err)
		} else {
			p.refused(t, service, err, reason.OperationNotAllowed, "does not have names")
		}
	}

	// What an initiator forwards.
	for service, passed := range map[string]bool{"free": true, "nodelegate": false, "nodelegateseen": true} {
		a, _, err := p.accept(t, service, client, "svc@"+lab.Host, mutual|lab.Deleg, nil, nil)
		serves(service, err)
		if a.Delegated != passed || a.Flags&lab.Deleg != 0 != passed {
			t.Errorf("%s: delegated %v, flags %#x; want %v", service, a.Delegated, a.Flags, passed)
		}
	}
	p.observed(t, "nodelegateseen", nil, reason.OperationNotAllowed)

	// Who.
	serves("alices", do("alices", client, "svc@"+lab.Host, nil, nil))
	p.refused(t, "alices", do("alices", carol, "svc@"+lab.Host, nil, nil), reason.ClientNotAllowed, "client_principals does not have carol@"+lab.Name)
	p.observed(t, "alicesseen", do("alicesseen", carol, "svc@"+lab.Host, nil, nil), reason.ClientNotAllowed)
	p.refused(t, "elsewhere", do("elsewhere", client, "svc@"+lab.Host, nil, nil), reason.ClientNotAllowed, "client_realms does not have the realm of alice@"+lab.Name)

	// Encryption types: of the ticket, of its session key, and of the key that messages have. The
	// initiator offers better ones than that of the ticket; the service does not want them.
	both := alice(t)
	a, acceptor, err := p.accept(t, "sha384", both, serviceOf(20), mutual, nil, nil)
	if serves("sha384", err); err == nil {
		if n, _, err := acceptor.Key(a.ID); err != nil || n != 20 {
			t.Errorf("a key of type %d for messages: %v", n, err)
		}
	}
	check(t, both.Enctypes(17))
	p.refused(t, "sha384", do("sha384", both, "svc@"+lab.Host, nil, nil), reason.EnctypeNotAllowed, "enctypes does not have aes128-cts-hmac-sha1-96")
	p.observed(t, "sha384seen", do("sha384seen", both, "svc@"+lab.Host, nil, nil), reason.EnctypeNotAllowed)
	p.refused(t, "sha1", do("sha1", both, "svc@"+lab.Host, nil, nil), reason.EnctypeNotAllowed, "enctypes does not have aes256-cts-hmac-sha384-192")
	serves("sha1", do("sha1", both, serviceOf(17), nil, nil))

	// Channel bindings, of both sides.
	bindings := []byte("tls-server-end-point:lab")
	serves("bound", do("bound", client, "svc@"+lab.Host, bindings, bindings))
	for _, b := range [][2][]byte{{nil, nil}, {bindings, nil}, {nil, bindings}} {
		p.refused(t, "bound", do("bound", client, "svc@"+lab.Host, b[0], b[1]), reason.BindingsRequired, "require_channel_bindings")
	}
	p.observed(t, "boundseen", do("boundseen", client, "svc@"+lab.Host, nil, nil), reason.BindingsRequired)

	serves("pac", do("pac", client, "svc@"+lab.Host, nil, nil))
	p.refused(t, "pac", do("pac", client, "nopac@"+lab.Host, nil, nil), reason.PACRequired, "require_pac")
	p.observed(t, "pacseen", do("pacseen", client, "nopac@"+lab.Host, nil, nil), reason.PACRequired)

	// How long, in either mode: the clock skew, which programs add, is counted.
	for service, most := range map[string]uint32{"short": 3600, "shortest": 60} {
		a, acceptor, err := p.accept(t, service, client, "svc@"+lab.Host, mutual, nil, nil)
		if serves(service, err); err != nil {
			continue
		}
		q, err := acceptor.Inquire(a.ID)
		check(t, err)
		if q.Lifetime > most || most == 3600 && q.Lifetime == 0 {
			t.Errorf("%s: the context lives for %d s", service, q.Lifetime)
		}
		initiator := p.program(t, service)
		id, _, err := initiator.Init("svc@"+lab.Host, lab.Usual, nil)
		check(t, err)
		q, err = initiator.Inquire(id)
		check(t, err)
		if q.Lifetime > most || most == 3600 && q.Lifetime == 0 {
			t.Errorf("%s: the initiator's context lives for %d s", service, q.Lifetime)
		}
	}
	_, token, err := client.Init("svc@"+lab.Host, lab.Usual, nil)
	check(t, err)
	res, err := p.wire(t, "short").Accept(token, nil)
	check(t, err)
	if x := res.ContextHandle.V; lab.StatusError(res.Status) != nil || x.Lifetime == 0 || x.Lifetime > 3600 {
		t.Errorf("a lifetime of %d s: %v", x.Lifetime, lab.StatusError(res.Status))
	}
}

// TestPermissionsToInitiate: whom a service may initiate contexts with, and how, by an unmodified
// program.
func TestPermissionsToInitiate(t *testing.T) {
	needOurs(t)
	r := realm(t)
	made(t, r.RandKey("trusted/"+lab.Host))
	check(t, r.Attribute("trusted/"+lab.Host, "+ok_as_delegate"))
	keys := keytab(t)
	check(t, r.Ktadd(keys, "trusted/"+lab.Host))
	alices, err := r.Keytab("alice.keytab", "alice")
	check(t, err)
	mit := tool(t, lab.Root, "KRB5_KTNAME="+keys, "KRB5RCACHENAME=none:")
	check(t, mit.Acquire(""))
	p := newPermits(r, lab.Nobody.UID, "cred_store = client_keytab:"+alices, "cred_usage = initiate", "filter_flags = -DELEGATE")
	p.add("free")
	p.add("web", "targets = HTTP/*."+lab.Domain+"@"+lab.Name)
	p.add("webseen", "targets = HTTP/*."+lab.Domain+"@"+lab.Name, "mode = observe")
	p.add("nodelegate", "operations = initiate, names")
	p.add("sha384", "enctypes = aes256-cts-hmac-sha384-192")
	p.add("sha384seen", "enctypes = aes256-cts-hmac-sha384-192", "mode = observe")
	p.serve(t, lab.Options{Keytab: keys})
	initiate := func(service, target string, flags uint32) (a lab.Accepted, err error) {
		t.Helper()
		g := p.program(t, service)
		id, token, err := g.Init(target, flags, nil)
		if err != nil {
			return a, err
		}
		a, err = mit.Accept(token, nil)
		check(t, err)
		if flags&lab.Mutual != 0 {
			if _, _, err = g.Step(id, a.Token); err == nil {
				err = lab.Converse(lab.End{Tool: g, ID: id}, lab.End{Tool: mit, ID: a.ID})
			}
		}
		return a, err
	}

	_, err = initiate("web", "HTTP@"+lab.Host, lab.Usual|lab.Mutual)
	check(t, err)
	_, err = initiate("web", service, lab.Usual)
	p.refused(t, "web", err, reason.TargetNotAllowed, "targets does not have svc/"+lab.Host+"@"+lab.Name)
	_, err = initiate("webseen", service, lab.Usual)
	p.observed(t, "webseen", err, reason.TargetNotAllowed)
	if n := strings.Count(p.Output(), "only observed"); n != 1 {
		t.Errorf("the log says %d times of one context what is only observed", n)
	}

	for service, passed := range map[string]bool{"free": true, "nodelegate": false} {
		for target, flags := range map[string]uint32{"svc": lab.Deleg, "trusted": mech.FlagDelegPolicy} {
			a, err := initiate(service, target+"@"+lab.Host, lab.Usual|flags)
			check(t, err)
			if a.Delegated != passed || a.Flags&lab.Deleg != 0 != passed {
				t.Errorf("%s, flags %#x: delegated %v, flags %#x; want %v", service, flags, a.Delegated, a.Flags, passed)
			}
		}
	}

	a, err := initiate("sha384", serviceOf(20), lab.Usual|lab.Mutual)
	check(t, err)
	if n, _, err := mit.Key(a.ID); err != nil || n != 20 {
		t.Errorf("a key of type %d for messages: %v", n, err)
	}
	_, err = initiate("sha384", serviceOf(17), lab.Usual)
	p.refused(t, "sha384", err, reason.EnctypeNotAllowed, "enctypes does not have aes128-cts-hmac-sha1-96")
	_, err = initiate("sha384seen", serviceOf(17), lab.Usual)
	p.observed(t, "sha384seen", err, reason.EnctypeNotAllowed)
}

// TestPermissionCeiling: what [gssproxy] forbids no service permits, not by its keys and not by its
// mode; where [gssproxy] only observes, what a service forbids is forbidden.
func TestPermissionCeiling(t *testing.T) {
	needOurs(t)
	r := realm(t)
	keys := keytab(t)
	p := newPermits(r, lab.Nobody.UID, "cred_store = keytab:"+keys, "cred_usage = accept")
	p.add("wide", "client_principals = *@*", "mode = observe")
	p.add("narrow", "client_realms = OTHER.TEST")
	ceiling := []string{"client_principals = carol@" + lab.Name, "operations = accept", "max_lifetime = 60"}
	p.serve(t, lab.Options{Keytab: keys}, ceiling...)
	client := alice(t)
	_, _, err := p.accept(t, "wide", client, service, lab.Usual, nil, nil)
	p.refused(t, "wide", err, reason.ClientNotAllowed, "client_principals does not have alice")
	check(t, p.Configure(p.config(append(ceiling, "mode = observe")...)))
	check(t, p.Reload())
	a, acceptor, err := p.accept(t, "wide", client, service, lab.Usual, nil, nil)
	p.observed(t, "wide", err, reason.ClientNotAllowed)
	q, err := acceptor.Inquire(a.ID)
	check(t, err)
	if q.Lifetime > 60 {
		t.Errorf("the context lives for %d s", q.Lifetime)
	}
	_, _, err = p.accept(t, "narrow", client, service, lab.Usual, nil, nil)
	p.refused(t, "narrow", err, reason.ClientNotAllowed, "client_realms does not have the realm of alice")
}

// TestPermissionsOfHandles: what a client has been given before the configuration forbids it is of
// no use after that: handles of credentials, and contexts that are not established yet.
func TestPermissionsOfHandles(t *testing.T) {
	needOurs(t)
	r := realm(t)
	keys := keytab(t)
	alices, err := r.Keytab("alice.keytab", "alice")
	check(t, err)
	p := newPermits(r, 0, "cred_store = keytab:"+keys, "cred_store = client_keytab:"+alices)
	p.add("web")
	p.serve(t, lab.Options{Keytab: keys})
	client, mit := alice(t, "-f"), tool(t, lab.Root, "KRB5_KTNAME="+keys, "KRB5RCACHENAME=none:")
	check(t, mit.Acquire(""))
	w := p.wire(t, "web")
	narrow := func(lines ...string) {
		t.Helper()
		p.add("web", lines...)
		check(t, p.Configure(p.config()))
		check(t, p.Reload())
		w = p.wire(t, "web")
	}
	acquire := func(usage xdr.CredUsage) xdr.Cred {
		t.Helper()
		var res xdr.ResAcquireCred
		check(t, w.Call(xdr.ProcAcquireCred, &xdr.ArgAcquireCred{CredUsage: usage}, &res))
		check(t, lab.StatusError(res.Status))
		return res.OutputCredHandle.V
	}
	accept := func(change func(*xdr.ArgAcceptSecContext), flags uint32) (*xdr.ResAcceptSecContext, error) {
		t.Helper()
		_, token, err := client.Init(service, flags, nil)
		check(t, err)
		arg := lab.AcceptArg(token, nil)
		change(arg)
		var res xdr.ResAcceptSecContext
		check(t, w.Call(xdr.ProcAcceptSecContext, arg, &res))
		return &res, lab.StatusError(res.Status)
	}
	with := func(cred xdr.Cred) func(*xdr.ArgAcceptSecContext) {
		return func(arg *xdr.ArgAcceptSecContext) { arg.CredHandle = xdr.Some(cred) }
	}
	initiate := func(cred *xdr.Cred) error {
		t.Helper()
		return lab.StatusError(initContext(t, w, cred, service, lab.Usual, nil).Status)
	}

	own, initiates := acquire(xdr.CredBoth), acquire(xdr.CredInitiate)
	given, err := accept(func(arg *xdr.ArgAcceptSecContext) { arg.RetDelegCred = true }, lab.Usual|lab.Deleg)
	check(t, err)
	forwarded := given.DelegatedCredHandle.V
	check(t, initiate(&forwarded))
	acting, err := accept(func(arg *xdr.ArgAcceptSecContext) { with(own)(arg); arg.RetDelegCred = true }, lab.Usual)
	check(t, err)
	evidence := acting.DelegatedCredHandle.V
	if err := initiate(&evidence); err == nil || strings.Contains(err.Error(), string(reason.OperationNotAllowed)) {
		t.Errorf("the KDC lets svc act for alice: %v", err)
	}
	id, token, err := client.Init(service, lab.Usual|lab.Mutual|mech.FlagDCEStyle, nil)
	check(t, err)
	dce, err := w.Accept(token, nil)
	check(t, err)
	_, answer, err := client.Step(id, dce.OutputToken.V)
	check(t, err)
	continued := func() error {
		t.Helper()
		arg := lab.AcceptArg(answer, nil)
		arg.ContextHandle = dce.ContextHandle
		var res xdr.ResAcceptSecContext
		check(t, w.Call(xdr.ProcAcceptSecContext, arg, &res))
		return lab.StatusError(res.Status)
	}
	check(t, continued())
	begun := initContext(t, w, nil, service, lab.Usual|lab.Mutual, nil)
	heard, err := mit.Accept(begun.OutputToken.V, nil)
	check(t, err)
	stepped := func() error {
		t.Helper()
		var res xdr.ResInitSecContext
		check(t, w.Call(xdr.ProcInitSecContext, &xdr.ArgInitSecContext{
			ContextHandle: begun.ContextHandle, TargetName: xdr.Some(name(service, mech.NTHostbased)), MechType: []byte(mech.KRB5),
			ReqFlags: lab.Usual | lab.Mutual, InputToken: xdr.Some(heard.Token),
		}, &res))
		return lab.StatusError(res.Status)
	}
	check(t, stepped())

	narrow("operations = accept, names")
	for _, cred := range []xdr.Cred{own, initiates, forwarded} {
		p.refused(t, "web", initiate(&cred), reason.OperationNotAllowed, "does not have initiate")
	}
	p.refused(t, "web", initiate(nil), reason.OperationNotAllowed, "does not have initiate")
	p.refused(t, "web", stepped(), reason.OperationNotAllowed, "does not have initiate")
	_, err = accept(with(own), lab.Usual)
	check(t, err)
	// Neither what is forwarded, nor what the ticket itself is good for.
	for _, flags := range []uint32{lab.Usual, lab.Usual | lab.Deleg} {
		res, err := accept(func(arg *xdr.ArgAcceptSecContext) { with(own)(arg); arg.RetDelegCred = true }, flags)
		check(t, err)
		if res.DelegatedCredHandle.Set || res.ContextHandle.V.CtxFlags&lab.Deleg != 0 {
			t.Errorf("without delegate: a credential %v, flags %#x", res.DelegatedCredHandle.Set, res.ContextHandle.V.CtxFlags)
		}
	}

	narrow("operations = initiate, accept")
	check(t, initiate(&own))
	for _, cred := range []xdr.Cred{forwarded, evidence} {
		p.refused(t, "web", initiate(&cred), reason.OperationNotAllowed, "does not have delegate")
	}

	narrow("operations = initiate", "targets = HTTP/*@*")
	for _, change := range []func(*xdr.ArgAcceptSecContext){with(own), with(initiates), func(*xdr.ArgAcceptSecContext) {}} {
		_, err := accept(change, lab.Usual)
		p.refused(t, "web", err, reason.OperationNotAllowed, "does not have accept")
	}
	p.refused(t, "web", continued(), reason.OperationNotAllowed, "does not have accept")
	p.refused(t, "web", stepped(), reason.TargetNotAllowed, "targets does not have svc/")
	p.refused(t, "web", initiate(&own), reason.TargetNotAllowed, "targets does not have svc/")

	narrow("client_principals = carol@*")
	p.refused(t, "web", continued(), reason.ClientNotAllowed, "client_principals does not have alice@")
	_, err = accept(with(own), lab.Usual|lab.Mutual|mech.FlagDCEStyle)
	p.refused(t, "web", err, reason.ClientNotAllowed, "client_principals does not have alice@")
}

// TestPermissionsToAct: for whom a service may act, and towards whom.
func TestPermissionsToAct(t *testing.T) {
	needOurs(t)
	s, fronts, _ := newS4U(t)
	check(t, s.realm.AllowDelegation("front/"+lab.Host, "back/"+lab.Host, "other/"+lab.Host))
	p := newPermits(s.realm.Realm, 0, "cred_store = keytab:"+fronts, "cred_store = client_keytab:"+fronts, "trusted = yes")
	p.add("free")
	p.add("bobs", "impersonate_users = b*@"+lab.Name, "proxy_targets = back/*@"+lab.Name)
	p.add("bobsseen", "impersonate_users = b*@"+lab.Name, "proxy_targets = back/*@"+lab.Name, "mode = observe")
	p.add("both", "targets = other/*@*", "proxy_targets = back/*@*")
	p.add("noimpersonate", "operations = accept, initiate, delegate, names")
	p.add("self", "impersonate = yes", "allow_any_uid = yes", "krb5_principal = front/"+lab.Host, "impersonate_users = nobody@*")
	p.add("selfless", "impersonate = yes", "allow_any_uid = yes", "krb5_principal = front/"+lab.Host, "impersonate_users = bob@*")
	p.serve(t, lab.Options{Keytab: fronts})
	acting := func(service, user string) (*lab.Tool, error) {
		t.Helper()
		g := p.program(t, service)
		_, err := g.Credential("front@"+lab.Host, "hostbased", 0)
		check(t, err)
		_, err = g.Impersonate(user, "user")
		return g, err
	}
	reach := func(service, target string) error {
		t.Helper()
		g, err := acting(service, "bob")
		check(t, err)
		_, token, err := g.Init(target+"@"+lab.Host, lab.Usual, nil)
		if err != nil {
			return err
		}
		heard, err := s.mit.Accept(token, nil)
		if err == nil && heard.Client != "bob@"+lab.Name {
			err = fmt.Errorf("%s hears %s", target, heard.Client)
		}
		return err
	}
	for _, target := range []string{"back", "other"} {
		check(t, reach("free", target))
	}
	check(t, reach("bobs", "back"))
	p.refused(t, "bobs", reach("bobs", "other"), reason.TargetNotAllowed, "proxy_targets does not have other/"+lab.Host)
	p.observed(t, "bobsseen", reach("bobsseen", "other"), reason.TargetNotAllowed)
	_, err := acting("bobs", "secret")
	p.refused(t, "bobs", err, reason.UserNotAllowed, "impersonate_users does not have secret@"+lab.Name)
	_, err = acting("bobsseen", "secret")
	p.observed(t, "bobsseen", err, reason.UserNotAllowed)
	p.refused(t, "both", reach("both", "back"), reason.TargetNotAllowed, "targets does not have back/"+lab.Host)
	p.refused(t, "both", reach("both", "other"), reason.TargetNotAllowed, "proxy_targets does not have other/"+lab.Host)
	_, _, err = p.program(t, "both").Init("other@"+lab.Host, lab.Usual, nil)
	check(t, err) // as itself
	_, err = acting("noimpersonate", "bob")
	p.refused(t, "noimpersonate", err, reason.OperationNotAllowed, "does not have impersonate")

	// The option impersonate.
	for service, served := range map[string]bool{"self": true, "selfless": false} {
		g := s.start(t, lab.Nobody, append(s.realm.PluginEnv(p.socket(service)), "KRB5CCNAME=MEMORY:"+service)...)
		c, err := g.Credential("", "-", 1)
		if served {
			if err != nil || c.Name != "nobody@"+lab.Name {
				t.Errorf("%s: nobody has a credential of %s: %v", service, c.Name, err)
			}
			continue
		}
		p.refused(t, service, err, reason.UserNotAllowed, "impersonate_users does not have nobody@")
	}

	// The credential of a user that was got before.
	w := p.wire(t, "free")
	var own, user xdr.ResAcquireCred
	check(t, w.Call(xdr.ProcAcquireCred, &xdr.ArgAcquireCred{CredUsage: xdr.CredBoth, DesiredName: xdr.Some(name("front@"+lab.Host, mech.NTHostbased))}, &own))
	check(t, lab.StatusError(own.Status))
	check(t, w.Call(xdr.ProcAcquireCred, &xdr.ArgAcquireCred{
		InputCredHandle: own.OutputCredHandle, CredUsage: xdr.CredInitiate, DesiredName: xdr.Some(name("bob", mech.NTUserName)), Options: impersonateName,
	}, &user))
	check(t, lab.StatusError(user.Status))
	check(t, lab.StatusError(initContext(t, w, &user.OutputCredHandle.V, "back@"+lab.Host, lab.Usual, nil).Status))
	for _, test := range []struct {
		lines string
		id    reason.ID
		words string
	}{
		{"impersonate_users = alice@*", reason.UserNotAllowed, "impersonate_users does not have bob@"},
		{"operations = accept, initiate, delegate, names", reason.OperationNotAllowed, "does not have impersonate"},
		{"proxy_targets = other/*@*", reason.TargetNotAllowed, "proxy_targets does not have back/"},
	} {
		p.add("free", test.lines)
		check(t, p.Configure(p.config()))
		check(t, p.Reload())
		p.refused(t, "free", lab.StatusError(initContext(t, p.wire(t, "free"), &user.OutputCredHandle.V, "back@"+lab.Host, lab.Usual, nil).Status), test.id, test.words)
	}
}

// TestPermissionsAcrossRealms: the server is the one that the KDC gives a ticket for, whatever was
// asked for and under which name a cache has the ticket; and initiators come from realms.
func TestPermissionsAcrossRealms(t *testing.T) {
	needOurs(t)
	const a, b, host = "A.TEST", "B.TEST", "www.b.test"
	f := lab.NewForest(t, a, b)
	f.Gssproxyd = realm(t).Gssproxyd
	check(t, f.Trust(a, b))
	for _, m := range f.Members {
		check(t, m.Restart())
	}
	check(t, f.Member(a).AddPrincipal("user", "pw"))
	users, err := f.Member(a).Keytab("user.keytab", "user")
	check(t, err)
	check(t, f.Member(b).RandKey("HTTP/"+host))
	services, err := f.Member(b).Keytab("http.keytab", "HTTP/"+host)
	check(t, err)
	// A client that does not know which realm a host is in: its own KDC refers it.
	text, err := os.ReadFile(f.Conf)
	check(t, err)
	before, _, _ := strings.Cut(string(text), "[domain_realm]")
	conf := f.Path("no-domains.conf")
	check(t, os.WriteFile(conf, []byte(before), 0o644))
	cache := "FILE:" + f.Path("cache")
	env := []string{"KRB5_CONFIG=" + conf, "KRB5CCNAME=" + cache}
	_, err = f.Run(lab.Root, env, "/usr/bin/kinit", "-k", "-t", users, "user")
	check(t, err)
	_, err = f.Run(lab.Root, env, "/usr/bin/kvno", "-S", "HTTP", host)
	check(t, err)
	if out, err := f.Run(lab.Root, env, "/usr/bin/klist"); err != nil || !strings.Contains(out, "HTTP/"+host+"@\n") || !strings.Contains(out, "Ticket server: HTTP/"+host+"@"+b) {
		t.Fatalf("the cache does not have the ticket under the name that was asked for: %v\n%s", err, out)
	}

	p := newPermits(f.Realm, 0)
	for kind, store := range map[string]string{"fresh": "cred_store = client_keytab:" + users, "cached": "cred_store = ccache:" + cache} {
		p.add(kind+"-any", store)
		p.add(kind+"-theirs", store, "targets = HTTP/*@"+b)
		p.add(kind+"-ours", store, "targets = HTTP/*@"+a)
	}
	p.add("accept", "cred_store = keytab:"+services)
	p.add("accept-a", "cred_store = keytab:"+services, "client_realms = "+a)
	p.add("accept-b", "cred_store = keytab:"+services, "client_realms = "+b, "client_realms = *."+a)
	p.serve(t, lab.Options{Keytab: services, Krb5Conf: conf})
	ctx := limited(t)
	dial := func(service string) *interposer.Client {
		c := interposer.New(p.socket(service), interposer.Options{})
		t.Cleanup(func() { c.Close() })
		return c
	}
	initiate := func(service string) ([]byte, error) {
		s, token, err := dial(service).InitSecContext(ctx, interposer.InitRequest{Target: interposer.HostbasedName("HTTP", host), Cred: interposer.ServiceCred, Flags: lab.Usual})
		if err == nil {
			s.Close()
		}
		return token, err
	}
	for _, kind := range []string{"fresh", "cached"} {
		for _, service := range []string{kind + "-any", kind + "-theirs"} {
			_, err := initiate(service)
			check(t, err)
		}
		_, err := initiate(kind + "-ours")
		p.refused(t, kind+"-ours", err, reason.TargetNotAllowed, "targets does not have HTTP/"+host+"@"+b)
	}
	for _, service := range []string{"accept", "accept-a", "accept-b"} {
		token, err := initiate("fresh-any")
		check(t, err)
		s, _, err := dial(service).AcceptSecContext(ctx, interposer.AcceptRequest{Token: token})
		if service == "accept-b" {
			p.refused(t, service, err, reason.ClientNotAllowed, "client_realms does not have the realm of user@"+a)
			continue
		}
		check(t, err)
		s.Close()
	}
}

// TestCallsPerSecond: how often a user may call a service. Who calls more often is refused and told
// when to come again, and is served then; others, and other services, are not concerned.
func TestCallsPerSecond(t *testing.T) {
	needOurs(t)
	r := realm(t)
	keys := keytab(t)
	p := newPermits(r, lab.Nobody.UID, "cred_store = keytab:"+keys, "cred_usage = accept")
	const burst = 20
	rate := []string{"calls_per_second = 1", fmt.Sprintf("calls_burst = %d", burst)}
	p.add("free")
	p.add("slow", rate...)
	p.add("slowseen", append(rate, "mode = observe")...)
	p.add("everybody", append(rate, "allow_any_uid = yes")...)
	p.serve(t, lab.Options{Keytab: keys})
	client := alice(t)

	// until calls until the service refuses one, and returns how many it has served.
	until := func(service string, most int, call func() error) (served int, err error) {
		t.Helper()
		for ; served < most; served++ {
			if err := call(); err != nil {
				return served, err
			}
		}
		return served, nil
	}
	const text = "calls_per_second = 1; the user has made more calls than that and may make the next one in "
	const far = 100 * burst // a call takes much less than a second
	slow := p.program(t, "slow")
	acquire := func() error { return slow.Acquire("") }
	served, err := until("slow", far, acquire)
	p.refused(t, "slow", err, reason.RateLimited, text)
	if served == 0 {
		t.Error("slow: the first call is refused")
	}
	if err != nil && !strings.Contains(err.Error(), mech.Unauthorized.Text()) {
		t.Errorf("slow: %v, want the status %q", err, mech.Unauthorized.Text())
	}
	p.acceptor(t, "free") // another service
	lab.Await(t, "a call that is due is refused", func() bool { return acquire() == nil })

	// A context of a program that does not come too often, and one that is too much.
	_, token, err := client.Init("svc@"+lab.Host, lab.Usual, nil)
	check(t, err)
	accepted := p.acceptor(t, "everybody")
	if _, err := accepted.Accept(token, nil); err != nil {
		t.Errorf("everybody: %v", err)
	}
	accept := func() error {
		_, token, err := client.Init("svc@"+lab.Host, lab.Usual, nil)
		check(t, err)
		_, err = accepted.Accept(token, nil)
		return err
	}
	_, err = until("everybody", far, accept)
	p.refused(t, "everybody", err, reason.RateLimited, text)
	other, err := p.WireAs(lab.User{UID: 4711, GID: 4711}, p.socket("everybody"))
	check(t, err)
	defer other.Close()
	res, err := other.Accept(token, nil)
	check(t, err)
	if err := lab.StatusError(res.Status); err != nil {
		t.Errorf("everybody, another user: %v", err)
	}

	seen := p.program(t, "slowseen")
	served, err = until("slowseen", far, func() error {
		if p.logged("slowseen", reason.RateLimited, "only observed") {
			return errSeen
		}
		return seen.Acquire("")
	})
	if !errors.Is(err, errSeen) || served <= burst {
		t.Errorf("slowseen: %d calls are served, and then: %v", served, err)
	}
}

var errSeen = errors.New("it is in the log")
