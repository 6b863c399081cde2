package e2e

import (
	"bytes"
	"cmp"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"gssproxyd/mech"
	"gssproxyd/mech/reason"
	"gssproxyd/tests/lab"
	"gssproxyd/xdr"
)

// tree is the realm of the decision tree: who has keys where says which store a credential came
// from.
type tree struct {
	dir      string
	services []svc
}

// The services' keytab has svc, HTTP and nothing else; the client keytab of uid 0 has alice's keys,
// of nobody bob's, of uid 12 carol's; the ccache has dave's tickets; the environment's client
// keytab has erin's.
func newTree(t *testing.T) *tree {
	t.Helper()
	r := realm(t)
	tr := &tree{dir: r.Path("tree")}
	check(t, os.Mkdir(tr.dir, 0o755))
	for _, user := range []string{"bob", "carol", "dave", "erin", "nobody"} {
		made(t, r.AddPrincipal(user, user))
	}
	check(t, r.Ktadd(filepath.Join(tr.dir, "keytab"), "svc/"+lab.Host, "HTTP/"+lab.Host))
	for uid, user := range map[int]string{0: "alice", 65534: "bob", 12: "carol"} {
		check(t, r.Ktadd(filepath.Join(tr.dir, fmt.Sprintf("client-%d", uid)), user))
	}
	check(t, r.Ktadd(filepath.Join(tr.dir, "env"), "erin"))
	check(t, r.Ktadd(filepath.Join(tr.dir, "client-nobody"), "carol"))
	env, err := r.Kinit("dave", "dave")
	check(t, err)
	check(t, os.Rename(strings.TrimPrefix(env[0], "KRB5CCNAME=FILE:"), filepath.Join(tr.dir, "ccache")))

	keytab, client := "cred_store = keytab:"+tr.dir+"/keytab", "cred_store = client_keytab:"+tr.dir+"/client-%U"
	add := func(name string, lines ...string) {
		tr.services = append(tr.services, svc{name, 0, append(lines, "socket = "+tr.socket(name))})
	}
	add("own", keytab, client)
	add("trusted", keytab, client, "trusted = yes")
	add("any", keytab, client, "allow_any_uid = yes", "trusted = yes")
	add("principal", keytab, client, "krb5_principal = HTTP/"+lab.Host)
	add("trusted principal", keytab, client, "trusted = yes", "krb5_principal = HTTP/"+lab.Host)
	add("initiator", keytab, client, "cred_usage = initiate")
	add("acceptor", keytab, client, "cred_usage = accept")
	add("no keytab", client, "trusted = yes")
	add("ccache", "cred_store = ccache:FILE:"+tr.dir+"/ccache")
	add("kept", client, "cred_store = ccache:FILE:"+tr.dir+"/kept-%U", "allow_any_uid = yes")
	add("nothing")
	add("renewing", client, "min_lifetime = 864000")
	add("filtering", client, "filter_flags = +MUTUAL_AUTH +DELEGATE", "enforce_flags = +SEQUENCE +MUTUAL_AUTH")
	add("users", "cred_store = client_keytab:"+tr.dir+"/client-%u", "trusted = yes")
	add("impersonate", keytab, "allow_any_uid = yes", "impersonate = yes", "krb5_principal = svc/"+lab.Host)
	add("trusted impersonate", keytab, "trusted = yes", "impersonate = yes", "krb5_principal = svc/"+lab.Host)
	add("transition", keytab, client, "allow_protocol_transition = yes")
	tr.services = append(tr.services, svc{"lab", 0, []string{keytab}})
	return tr
}

func (tr *tree) socket(service string) string {
	return filepath.Join(tr.dir, "sock-"+strings.ReplaceAll(service, " ", "-"))
}

// ask is a row: what is asked of a service by whom, and what must come of it.
type ask struct {
	what    string
	service string
	peer    lab.User
	usage   xdr.CredUsage
	name    xdr.Name // none if it has no type
	mechs   []mech.OID
	input   func(c xdr.Cred) xdr.Cred // what is made of the credential the same service gave before; nil: none is sent
	first   xdr.Name                  // of that credential
	firstAs xdr.CredUsage             // its usage; 0: to initiate
	from    string                    // the service that gave it, if another one
	options []xdr.Option

	want  string // the credential's name, without realm; "" is an acceptor's for everybody
	as    xdr.CredUsage
	echo  bool       // the input comes back as it was
	major mech.Major // of a refusal

	inC      func(a *ask) // what the C daemon's answer is instead
	oursOnly string       // why it is not asked
}

const (
	initiate, accept, both = xdr.CredInitiate, xdr.CredAccept, xdr.CredBoth
	svcName, httpName      = "svc/" + lab.Host, "HTTP/" + lab.Host
)

func same(c xdr.Cred) xdr.Cred { return c }

func spoilt(c xdr.Cred) xdr.Cred {
	h := bytes.Clone(c.CredHandleReference)
	h[len(h)/2] ^= 1
	c.CredHandleReference = h
	return c
}

var asks = []ask{
	// No name.
	{what: "own uid", service: "own", usage: initiate, want: "alice"},
	{what: "own uid, trusted", service: "trusted", usage: initiate, want: svcName},
	{what: "other uid", service: "any", peer: lab.Nobody, usage: initiate, want: "bob"},
	{what: "krb5_principal", service: "principal", usage: initiate, want: httpName, inC: func(a *ask) { a.want = "alice" }},
	{what: "krb5_principal, trusted", service: "trusted principal", usage: initiate, want: httpName},
	{what: "client keytab alone, trusted", service: "no keytab", usage: initiate, want: "alice"},
	{what: "ccache given", service: "ccache", usage: initiate, want: "dave"},
	{what: "ccache filled from the client keytab", service: "kept", usage: initiate, want: "alice"},
	{what: "ccache filled from the client keytab, other uid", service: "kept", peer: lab.Nobody, usage: initiate, want: "bob"},
	{what: "no store: the environment's", service: "nothing", usage: initiate, want: "erin", oursOnly: "it takes what the thread used before"},

	// Names.
	{what: "service's name", service: "own", usage: initiate, name: name(service, mech.NTHostbased), want: svcName},
	{what: "service's name with NUL", service: "own", usage: initiate, name: name(service+"\x00", mech.NTHostbased), want: svcName},
	{what: "service's name, trusted", service: "trusted", usage: initiate, name: name(httpName, mech.NTKrb5Principal), want: httpName},
	{what: "name beats krb5_principal", service: "trusted principal", usage: initiate, name: name(service, mech.NTHostbased), want: svcName},
	{what: "name not in the keytab", service: "own", usage: initiate, name: name("alice", mech.NTUserName), major: mech.NoCred},
	{what: "name without keytab", service: "ccache", usage: initiate, name: name("dave", mech.NTUserName), major: mech.CredUnavail},
	{what: "own name of another uid", service: "any", peer: lab.Nobody, usage: initiate, name: name("bob", mech.NTUserName), want: "bob"},
	{what: "another's name of another uid", service: "any", peer: lab.Nobody, usage: initiate, name: name("alice", mech.NTUserName), major: mech.NoCred},
	{what: "service's name of another uid", service: "any", peer: lab.Nobody, usage: initiate, name: name(service, mech.NTHostbased), major: mech.NoCred},
	{what: "uid", service: "own", usage: initiate, name: name("65534", mech.NTStringUID), major: mech.NoCred},
	{what: "uid, trusted", service: "trusted", usage: initiate, name: name("65534", mech.NTStringUID), want: "bob"},
	{what: "uid with NUL, trusted", service: "trusted", usage: initiate, name: name("12\x00", mech.NTStringUID), want: "carol"},
	{what: "machine uid, trusted", service: "trusted", usage: initiate, name: name("65534", mech.NTMachineUID), want: "bob"},
	{what: "uid without keys, trusted", service: "trusted", usage: initiate, name: name("4711", mech.NTStringUID), major: mech.NoCred},
	{what: "uid of another uid, trusted", service: "any", peer: lab.Nobody, usage: initiate, name: name("0", mech.NTStringUID), major: mech.NoCred},
	{what: "empty uid, trusted", service: "trusted", usage: initiate, name: name("", mech.NTStringUID), major: mech.CredUnavail, oursOnly: "it crashes"},
	{what: "no uid, trusted", service: "trusted", usage: initiate, name: name("0x", mech.NTStringUID), major: mech.CredUnavail, inC: func(a *ask) { a.major, a.want = 0, "alice" }}, // what is no number is uid 0

	{what: "user's name in the store", service: "users", usage: initiate, name: name("65534", mech.NTStringUID), want: "carol"},
	{what: "user's name in the store, of no user", service: "users", usage: initiate, name: name("4711", mech.NTStringUID), major: mech.CredUnavail},

	// Usage.
	{what: "accept", service: "own", usage: accept, want: ""},
	{what: "accept with name", service: "own", usage: accept, name: name(service, mech.NTHostbased), want: svcName},
	{what: "both with name", service: "own", usage: both, name: name(service, mech.NTHostbased), want: svcName},
	{what: "both of another uid", service: "any", peer: lab.Nobody, usage: both, want: "bob"},
	{what: "both, own uid", service: "own", usage: both, want: "alice"},
	{what: "both with krb5_principal, trusted", service: "trusted principal", usage: both, want: httpName},
	{what: "accept with krb5_principal, trusted", service: "trusted principal", usage: accept, want: httpName},
	{what: "both, trusted", service: "trusted", usage: both, want: svcName},
	{what: "initiate of initiate", service: "initiator", usage: initiate, want: "alice"},
	{what: "both of initiate", service: "initiator", usage: both, as: initiate, want: "alice"},
	{what: "accept of initiate", service: "initiator", usage: accept, major: mech.CredUnavail},
	{what: "accept of accept", service: "acceptor", usage: accept, want: ""},
	{what: "both of accept", service: "acceptor", usage: both, as: accept, want: ""},
	{what: "initiate of accept", service: "acceptor", usage: initiate, major: mech.CredUnavail},

	// Mechanisms.
	{what: "krb5", service: "own", usage: initiate, mechs: []mech.OID{mech.KRB5}, want: "alice"},
	{what: "krb5 among others", service: "own", usage: initiate, mechs: []mech.OID{mech.SPNEGO, mech.KRB5}, want: "alice"},
	{what: "SPNEGO", service: "own", usage: initiate, mechs: []mech.OID{mech.SPNEGO}, major: mech.NoCred},
	{what: "krb5's old OID", service: "own", usage: initiate, mechs: []mech.OID{mech.KRB5Old}, major: mech.NoCred},

	// Handles.
	{what: "good handle", service: "own", usage: initiate, input: same, echo: true, want: "alice"},
	{what: "good handle, its name", service: "own", usage: initiate, input: same, name: name("alice", mech.NTUserName), echo: true, want: "alice"},
	{what: "good handle, another name", service: "own", usage: initiate, input: same, name: name(service, mech.NTHostbased), major: mech.CredUnavail},
	{what: "good handle, another usage", service: "own", usage: accept, input: same, want: ""},
	{what: "good handle of a name", service: "own", usage: initiate, first: name(service, mech.NTHostbased), input: same, echo: true, want: svcName},
	{what: "handle with less than min_lifetime", service: "renewing", usage: initiate, input: same, want: "alice"},
	{what: "spoilt handle", service: "own", usage: initiate, input: spoilt, want: "alice"},
	{what: "spoilt handle, name", service: "own", usage: initiate, input: spoilt, name: name(service, mech.NTHostbased), want: svcName},
	{what: "spoilt handle, trusted", service: "trusted", usage: initiate, input: spoilt, want: svcName},
	{what: "spoilt handle of another name", service: "own", usage: initiate, first: name(service, mech.NTHostbased), input: spoilt, major: mech.DefectiveCredential, inC: func(a *ask) { a.major, a.want = 0, "alice" }}, // it becomes somebody else
	{what: "spoilt handle of another name, name", service: "own", usage: initiate, first: name(httpName, mech.NTKrb5Principal), input: spoilt, name: name(service, mech.NTHostbased), want: svcName},
	{what: "spoilt acceptor's handle", service: "own", usage: accept, firstAs: accept, input: spoilt, want: ""},
	{what: "spoilt acceptor's handle of a name", service: "own", usage: accept, firstAs: accept, first: name(httpName, mech.NTKrb5Principal), input: spoilt, want: httpName, inC: func(a *ask) { a.want = "" }},
	{what: "spoilt acceptor's handle of a name, to initiate", service: "own", usage: initiate, firstAs: accept, first: name(httpName, mech.NTKrb5Principal), input: spoilt, want: "alice"},
	{what: "another service's handle", service: "own", usage: initiate, from: "trusted", input: same, echo: true, want: svcName}, // of the same keytab
	{what: "another service's handle, trusted", service: "trusted", usage: initiate, from: "own", input: same, echo: true, want: "alice"},
	{what: "another service's handle, without its keytab", service: "no keytab", usage: initiate, from: "own", input: same, want: "alice"},
	{what: "another service's acceptor", service: "own", usage: accept, from: "trusted", firstAs: accept, first: name(httpName, mech.NTKrb5Principal), input: same, want: httpName, inC: func(a *ask) { a.echo = true }}, // it has no tickets, and counts for its name only
	{what: "both handle, to initiate", service: "own", usage: initiate, firstAs: both, input: same, echo: true, as: both, want: "alice"},
	{what: "both handle, to accept", service: "own", usage: accept, firstAs: both, input: same, echo: true, as: both, want: "alice"},
	{what: "both handle, both", service: "own", usage: both, firstAs: both, input: same, echo: true, want: "alice"},
	{what: "initiator's handle, both", service: "own", usage: both, input: same, want: "alice"},
	{what: "acceptor's handle, both", service: "own", usage: both, firstAs: accept, input: same, want: "alice"},
	{what: "acceptor's handle, to initiate", service: "own", usage: initiate, firstAs: accept, input: same, want: "alice"},
	{what: "acceptor's handle, to accept", service: "own", usage: accept, firstAs: accept, input: same, echo: true, want: ""},

	// Impersonation by the service's configuration.
	{what: "impersonate, other uid", service: "impersonate", peer: lab.Nobody, usage: initiate, want: "nobody"},
	{what: "impersonate, other uid and a name", service: "impersonate", peer: lab.Nobody, usage: initiate, name: name("alice", mech.NTUserName), want: "nobody"},
	{what: "impersonate, own uid and a name", service: "impersonate", usage: initiate, name: name("alice", mech.NTUserName), want: "alice"},
	{what: "impersonate oneself", service: "impersonate", usage: initiate, name: name(service, mech.NTHostbased), want: svcName},
	{what: "impersonate, own uid", service: "impersonate", usage: initiate, want: svcName, inC: func(a *ask) { a.major = mech.Failure }},
	{what: "impersonate, own uid, trusted", service: "trusted impersonate", usage: initiate, want: svcName},
	{what: "impersonate a uid", service: "impersonate", usage: initiate, name: name("65534", mech.NTStringUID), want: "nobody"},
	{what: "impersonate a uid, trusted", service: "trusted impersonate", usage: initiate, name: name("65534", mech.NTStringUID), want: "nobody"},
	{what: "impersonate, both", service: "impersonate", peer: lab.Nobody, usage: both, as: initiate, want: "nobody"},
	{what: "impersonate, both, own uid and a name", service: "impersonate", usage: both, name: name("alice", mech.NTUserName), as: initiate, want: "alice"},
	{what: "impersonate oneself, both", service: "impersonate", usage: both, name: name(service, mech.NTHostbased), want: svcName},
	{what: "impersonate, both, own uid", service: "impersonate", usage: both, want: svcName, inC: func(a *ask) { a.major = mech.Failure }},
	{what: "impersonate, accepting", service: "impersonate", peer: lab.Nobody, usage: accept, want: ""},

	// Impersonation by request. Without leave it is an ordinary request, for a name there are no
	// keys of.
	{what: "impersonate_name", service: "transition", usage: initiate, first: name(service, mech.NTHostbased), input: same, name: name("carol", mech.NTUserName), options: impersonateName, want: "carol"},
	{what: "impersonate_name, trusted", service: "trusted", usage: initiate, first: name(service, mech.NTHostbased), input: same, name: name("carol", mech.NTUserName), options: impersonateName, want: "carol"},
	{what: "impersonate_name, not allowed", service: "own", usage: initiate, first: name(service, mech.NTHostbased), input: same, name: name("carol", mech.NTUserName), options: impersonateName, major: mech.NoCred},
	{what: "impersonate_name without a handle", service: "transition", usage: initiate, name: name(service, mech.NTHostbased), options: impersonateName, want: svcName},
	{what: "impersonate_name with a spoilt handle", service: "transition", usage: initiate, input: spoilt, name: name("carol", mech.NTUserName), options: impersonateName, major: mech.NoCred, inC: func(a *ask) { a.major = mech.Failure }},
	{what: "impersonate_name with a spoilt handle, trusted", service: "trusted", usage: initiate, input: spoilt, name: name("carol", mech.NTUserName), options: impersonateName, major: mech.NoCred, inC: func(a *ask) { a.major = mech.Failure }},
	{what: "impersonate_name with another service's handle", service: "transition", from: "own", usage: initiate, first: name(service, mech.NTHostbased), input: same, name: name("carol", mech.NTUserName), options: impersonateName, want: "carol"},
	{what: "impersonate_name with an acceptor's handle", service: "transition", usage: initiate, firstAs: accept, first: name(service, mech.NTHostbased), input: same, name: name("carol", mech.NTUserName), options: impersonateName, major: mech.NoCred},
	{what: "impersonate_name without a name", service: "transition", usage: initiate, first: name(service, mech.NTHostbased), input: same, options: impersonateName, major: mech.BadName, inC: func(a *ask) { a.major = mech.Failure }},
	{what: "impersonate_name with a both handle", service: "transition", usage: initiate, firstAs: both, first: name(service, mech.NTHostbased), input: same, name: name("carol", mech.NTUserName), options: impersonateName, want: "carol"},
	{what: "another acquire_type", service: "transition", usage: initiate, input: same, options: []xdr.Option{{Option: []byte("acquire_type\x00"), Value: []byte("x\x00")}}, major: mech.Failure},
}

var impersonateName = []xdr.Option{{Option: []byte("acquire_type\x00"), Value: []byte("impersonate_name\x00")}}

// TestDecisionTree: which store and name a credential comes from, for every way to ask. What is for
// initiating is used to initiate, what is for accepting to accept.
func TestDecisionTree(t *testing.T) {
	tr := newTree(t)
	mit := tool(t, lab.Root, "KRB5_KTNAME="+tr.dir+"/keytab")
	check(t, mit.Acquire(""))
	token := alice(t)
	overDaemons(t, func(t *testing.T, kind string) {
		d := daemon(t, kind, lab.Options{
			DropIn: usersCaches,
			Keytab: tr.dir + "/keytab", Config: config(tr.services...),
			Env: []string{"KRB5_CLIENT_KTNAME=" + tr.dir + "/env", "KRB5_KTNAME=" + tr.dir + "/none", "KRB5CCNAME=FILE:" + tr.dir + "/env-" + kind},
		})
		for _, a := range asks {
			if kind == "C" && a.oursOnly != "" {
				continue
			}
			if kind == "C" && a.inC != nil {
				a.inC(&a)
			}
			t.Run(strings.ReplaceAll(a.what, " ", "-"), func(t *testing.T) {
				connect := func(service string) *lab.Wire {
					w, err := d.WireAs(a.peer, tr.socket(service))
					check(t, err)
					t.Cleanup(func() { w.Close() })
					return w
				}
				w := connect(a.service)
				acquire := func(w *lab.Wire, a ask, input *xdr.Cred) *xdr.ResAcquireCred {
					t.Helper()
					arg := &xdr.ArgAcquireCred{CredUsage: a.usage, Options: a.options}
					for _, m := range a.mechs {
						arg.DesiredMechs = append(arg.DesiredMechs, []byte(m))
					}
					if a.name.NameType != nil {
						arg.DesiredName = xdr.Some(a.name)
					}
					if input != nil {
						arg.InputCredHandle = xdr.Some(*input)
					}
					var res xdr.ResAcquireCred
					h, err := w.Exchange(xdr.ProcAcquireCred, arg, &res)
					check(t, err)
					if kind == "C" && h.Accepted.Outcome.Stat == xdr.AcceptSystemErr { // its way to say EACCES and EINVAL
						res.Status.MajorStatus = uint64(mech.CredUnavail)
					} else if !lab.Success(h) {
						t.Fatalf("the daemon answered %+v", h)
					}
					return &res
				}
				var input *xdr.Cred
				if a.input != nil {
					first := acquire(connect(cmp.Or(a.from, a.service)), ask{usage: cmp.Or(a.firstAs, initiate), name: a.first}, nil)
					check(t, lab.StatusError(first.Status))
					c := a.input(first.OutputCredHandle.V)
					input = &c
				}
				res := acquire(w, a, input)
				if a.major != 0 {
					if got := mech.Major(res.Status.MajorStatus); got != a.major || res.OutputCredHandle.Set {
						t.Errorf("%v, a credential %v; want %v", lab.StatusError(res.Status), res.OutputCredHandle.Set, a.major.Text())
					}
					if kind == "ours" && !reasonID.Match(bytes.TrimSuffix(res.Status.MinorStatusString, []byte{0})) {
						t.Errorf("no reason in %v", lab.StatusError(res.Status))
					}
					return
				}
				check(t, lab.StatusError(res.Status))
				c := res.OutputCredHandle.V
				if want := a.want + "@" + lab.Name; a.want != "" && string(c.DesiredName.DisplayName) != want {
					t.Errorf("%s, want %s", c.DesiredName.DisplayName, want)
				}
				as := cmp.Or(a.as, a.usage)
				if len(c.Elements) != 1 || c.Elements[0].CredUsage != as {
					t.Fatalf("elements %+v, want one with usage %d", c.Elements, as)
				}
				if input != nil && bytes.Equal(c.CredHandleReference, input.CredHandleReference) != a.echo {
					t.Errorf("the handle came back: %v, want %v", !a.echo, a.echo)
				}
				if as != accept {
					out := initContext(t, w, &c, service, lab.Usual, nil)
					check(t, lab.StatusError(out.Status))
					heard, err := mit.Accept(out.OutputToken.V, nil)
					check(t, err)
					if heard.Client != a.want+"@"+lab.Name {
						t.Errorf("the acceptor hears %s, want %s", heard.Client, a.want)
					}
				}
				if as != initiate {
					target := service // any will do where the credential is for everybody, or an initiator's as well
					if a.want == httpName {
						target = "HTTP@" + lab.Host
					}
					_, tok, err := token.Init(target, lab.Usual, nil)
					check(t, err)
					arg := lab.AcceptArg(tok, nil)
					arg.CredHandle = xdr.Some(c)
					var res xdr.ResAcceptSecContext
					check(t, w.Call(xdr.ProcAcceptSecContext, arg, &res))
					check(t, lab.StatusError(res.Status))
				}
			})
		}
	})
}

// TestExpiredHandle: a handle whose tickets have come to their end is replaced where there are keys
// to get others with, and refused where there are none.
func TestExpiredHandle(t *testing.T) {
	r := realm(t)
	overDaemons(t, func(t *testing.T, kind string) {
		t.Parallel()
		brief := "brief-" + kind
		made(t, r.AddPrincipal(brief, "brief"))
		briefs, err := r.Keytab("brief.keytab", brief)
		check(t, err)
		lives := func(life time.Duration) { check(t, r.Attribute(brief, "-maxlife", life.String())) }
		dir := r.Path("expiring")
		check(t, os.Mkdir(dir, 0o755))
		names := []string{"keys", "no-keys"}
		services := []svc{{"lab", 0, nil}}
		for _, name := range names {
			path := filepath.Join(dir, name)
			services = append(services, svc{name, 0, []string{"socket = " + path, "cred_store = ccache:FILE:" + path + ".cc", "min_lifetime = 0"}})
		}
		services[1].lines = append(services[1].lines, "cred_store = client_keytab:"+briefs)
		d := daemon(t, kind, lab.Options{DropIn: usersCaches, Config: config(services...)})
		acquire := func(service string, input xdr.Opt[xdr.Cred]) *xdr.ResAcquireCred {
			t.Helper()
			w, err := d.WireAs(lab.Root, filepath.Join(dir, service))
			check(t, err)
			defer w.Close()
			var res xdr.ResAcquireCred
			check(t, w.Call(xdr.ProcAcquireCred, &xdr.ArgAcquireCred{CredUsage: initiate, InputCredHandle: input}, &res))
			return &res
		}
		// begin gets the handles, and returns when the tickets of both have come to their end. An
		// error is that they have before there is a handle.
		begin := func(life time.Duration) (handles []xdr.Opt[xdr.Cred], ended time.Time, err error) {
			lives(life)
			for _, service := range names {
				if service == "no-keys" {
					env, err := r.Kinit(brief, "brief")
					check(t, err)
					check(t, os.Rename(strings.TrimPrefix(env[0], "KRB5CCNAME=FILE:"), filepath.Join(dir, service+".cc")))
				}
				res := acquire(service, xdr.Opt[xdr.Cred]{})
				if err := lab.StatusError(res.Status); err != nil {
					return nil, ended, fmt.Errorf("%s: %w", service, err)
				}
				left := time.Duration(res.OutputCredHandle.V.Elements[0].InitiatorTimeRec) * time.Second
				if left > life {
					t.Fatalf("%s: the credential is good for %v more", service, left)
				}
				if at := time.Now().Add(left + time.Second); at.After(ended) {
					ended = at
				}
				handles = append(handles, res.OutputCredHandle)
			}
			return handles, ended, nil
		}
		const shortest = 4 * time.Second
		handles, ended, err := begin(shortest)
		for life := 2 * shortest; err != nil; life *= 2 { // until it is long enough for this machine
			if life > 5*time.Minute {
				t.Fatal(err)
			}
			if err := os.Remove(filepath.Join(dir, "keys.cc")); !os.IsNotExist(err) {
				check(t, err)
			}
			handles, ended, err = begin(life)
		}
		time.Sleep(time.Until(ended))
		lives(10 * time.Hour) // of those to come

		res := acquire(names[0], handles[0])
		check(t, lab.StatusError(res.Status))
		fresh := &res.OutputCredHandle.V
		if bytes.Equal(fresh.CredHandleReference, handles[0].V.CredHandleReference) || fresh.Elements[0].InitiatorTimeRec == 0 {
			t.Errorf("with keys: the handle came back, or one good for %d s", fresh.Elements[0].InitiatorTimeRec)
		}
		w, err := d.WireAs(lab.Root, filepath.Join(dir, names[0]))
		check(t, err)
		defer w.Close()
		check(t, lab.StatusError(initContext(t, w, fresh, service, lab.Usual, nil).Status))

		res = acquire(names[1], handles[1])
		if mech.Major(res.Status.MajorStatus) != mech.CredentialsExpired || kind == "ours" && res.OutputCredHandle.Set {
			t.Errorf("without keys: %v, a credential %v", lab.StatusError(res.Status), res.OutputCredHandle.Set)
		}
		if err := tells(kind, lab.StatusError(res.Status), reason.TicketExpired); err != nil {
			t.Error(err)
		}
	})
}

// TestInitDecision: the same for contexts that are started without a credential, and what becomes
// of the flags.
func TestInitDecision(t *testing.T) {
	tr := newTree(t)
	mit := tool(t, lab.Root, "KRB5_KTNAME="+tr.dir+"/keytab")
	check(t, mit.Acquire(""))
	krb5Target := name(service, mech.NTHostbased)
	overDaemons(t, func(t *testing.T, kind string) {
		d := daemon(t, kind, lab.Options{Keytab: tr.dir + "/keytab", Config: config(tr.services...)})
		for _, c := range []struct {
			what, service string
			peer          lab.User
			target        xdr.Opt[xdr.Name]
			mech          mech.OID
			flags         uint64
			cred          *xdr.Cred
			want          string
			wantFlags     uint32
			major         mech.Major
			oursOnly      string // why the C daemon is not asked
		}{
			{what: "own uid", service: "own", flags: lab.Usual, want: "alice", wantFlags: lab.Usual},
			{what: "other uid", service: "any", peer: lab.Nobody, flags: lab.Usual, want: "bob", wantFlags: lab.Usual},
			{what: "trusted", service: "trusted", flags: lab.Usual, want: svcName, wantFlags: lab.Usual},
			{what: "ccache", service: "ccache", flags: lab.Usual, want: "dave", wantFlags: lab.Usual},
			{what: "impersonate", service: "impersonate", peer: lab.Nobody, flags: lab.Usual, want: "nobody", wantFlags: lab.Usual},
			{what: "acceptor", service: "acceptor", major: mech.Failure},
			{what: "filtered and enforced flags", service: "filtering", flags: lab.Mutual | lab.Deleg | lab.Conf | lab.Integ, want: "alice", wantFlags: lab.Sequence | lab.Conf | lab.Integ},
			{what: "mutual", service: "own", flags: lab.Mutual | lab.Integ | lab.Conf, want: "alice", wantFlags: lab.Mutual | lab.Integ | lab.Conf},
			{what: "delegation is filtered", service: "own", flags: lab.Deleg | lab.Integ | lab.Conf, want: "alice", wantFlags: lab.Integ | lab.Conf},
			{what: "a handle that is none", service: "own", flags: lab.Usual, cred: &xdr.Cred{DesiredName: name("alice", mech.NTUserName), CredHandleReference: bytes.Repeat([]byte("x"), 200)}, want: "alice", wantFlags: lab.Usual},
			{what: "a handle that is none, of somebody else", service: "own", flags: lab.Usual, cred: &xdr.Cred{DesiredName: name("bob", mech.NTUserName), CredHandleReference: bytes.Repeat([]byte("x"), 200)}, major: mech.DefectiveCredential, oursOnly: "it becomes somebody else"},
			{what: "a handle that is none, of nobody", service: "own", flags: lab.Usual, cred: &xdr.Cred{CredHandleReference: bytes.Repeat([]byte("x"), 200)}, major: mech.DefectiveCredential, oursOnly: "it becomes somebody"},
			{what: "SPNEGO without a credential", service: "own", mech: mech.SPNEGO, major: mech.NoCred},
			{what: "unknown mechanism", service: "own", mech: "\x2a\x03\x04", major: mech.NoCred},
			{what: "unknown target", service: "own", target: xdr.Some(name("unheard-of@"+lab.Host, mech.NTHostbased)), major: mech.Failure},
			{what: "no target", service: "own", target: xdr.Opt[xdr.Name]{}, major: mech.BadName | mech.CallInaccessibleRead, oursOnly: "it crashes"},
		} {
			if kind == "C" && c.oursOnly != "" {
				continue
			}
			t.Run(strings.ReplaceAll(c.what, " ", "-"), func(t *testing.T) {
				w, err := d.WireAs(c.peer, tr.socket(c.service))
				check(t, err)
				defer w.Close()
				arg := &xdr.ArgInitSecContext{TargetName: c.target, MechType: []byte(c.mech), ReqFlags: c.flags}
				if !c.target.Set && c.what != "no target" {
					arg.TargetName = xdr.Some(krb5Target)
				}
				if c.mech == "" {
					arg.MechType = []byte(mech.KRB5)
				}
				if c.cred != nil {
					arg.CredHandle = xdr.Some(*c.cred)
				}
				var res xdr.ResInitSecContext
				h, err := w.Exchange(xdr.ProcInitSecContext, arg, &res)
				check(t, err)
				if kind == "C" && h.Accepted.Outcome.Stat == xdr.AcceptSystemErr {
					res.Status.MajorStatus = uint64(mech.Failure)
				}
				if c.major != 0 {
					// A missing argument may be told by the calling error, the routine's or both.
					if got := mech.Major(res.Status.MajorStatus); got == 0 || got&^c.major != 0 || res.ContextHandle.Set {
						t.Errorf("%v, a context %v; want %v", lab.StatusError(res.Status), res.ContextHandle.Set, c.major.Text())
					}
					return
				}
				if m := mech.Major(res.Status.MajorStatus); m != mech.Complete && m != mech.ContinueNeeded {
					t.Fatal(lab.StatusError(res.Status))
				}
				heard, err := mit.Accept(res.OutputToken.V, nil)
				check(t, err)
				const seen = lab.Usual | lab.Mutual | lab.Deleg
				if heard.Client != c.want+"@"+lab.Name || heard.Flags&seen != c.wantFlags {
					t.Errorf("the acceptor hears %s with flags %#x, want %s with %#x", heard.Client, heard.Flags&seen, c.want, c.wantFlags)
				}
			})
		}
	})
}

// initContext makes the first call for a context to a hostbased service; without c the daemon
// chooses the credential.
func initContext(t *testing.T, w *lab.Wire, c *xdr.Cred, target string, flags uint64, options []xdr.Option) *xdr.ResInitSecContext {
	t.Helper()
	n := name(target, mech.NTHostbased)
	arg := &xdr.ArgInitSecContext{TargetName: xdr.Some(n), MechType: []byte(mech.KRB5), ReqFlags: flags, Options: options}
	if c != nil {
		arg.CredHandle = xdr.Some(*c)
	}
	var res xdr.ResInitSecContext
	check(t, w.Call(xdr.ProcInitSecContext, arg, &res))
	return &res
}
