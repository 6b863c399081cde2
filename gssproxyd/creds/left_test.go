package creds_test

import (
	"strings"
	"testing"

	"gssproxyd/conf"
	"gssproxyd/limits"
	"gssproxyd/mech"
	"gssproxyd/rpc"
	"gssproxyd/tests/lab"
	"gssproxyd/xdr"
)

// TestLeft: the plugin starts a context without a handle after the one that it found was refused.
// That refusal holds for the context too, until the caller has got a credential without a handle.
func TestLeft(t *testing.T) {
	r, svcs, alices := realm(t)
	d := newDirect(t, r.Conf, map[string]string{"mail": "cred_store = keytab:" + svcs + "\ncred_store = client_keytab:" + alices})
	conn := d.asked("mail").Conn
	call := func(conn *rpc.Conn, p xdr.Proc, arg, res xdr.Message, status *xdr.Status) mech.Major {
		t.Helper()
		reply, stat := d.of("mail").Handle(limits.WithPayer(t.Context(), conn.Peer.UID), &rpc.Call{Conn: conn, Proc: uint32(p), Args: arg.Append(nil)}, nil)
		if stat != rpc.Success {
			t.Fatal(stat)
		}
		res.Decode(xdr.NewDecoder(reply))
		return mech.Major(status.MajorStatus)
	}
	acquire := func(of string, usage xdr.CredUsage) mech.Major {
		t.Helper()
		arg := xdr.ArgAcquireCred{CredUsage: usage}
		if of != "" {
			arg.InputCredHandle = xdr.Some(xdr.Cred{DesiredName: named(of, mech.NTUserName), CredHandleReference: []byte("somebody else's")})
		}
		var res xdr.ResAcquireCred
		return call(conn, xdr.ProcAcquireCred, &arg, &res, &res.Status)
	}
	start := func(conn *rpc.Conn) mech.Major {
		t.Helper()
		arg := xdr.ArgInitSecContext{TargetName: xdr.Some(named(svc, mech.NTHostbased)), MechType: []byte(mech.KRB5), ReqFlags: lab.Usual}
		var res xdr.ResInitSecContext
		return call(conn, xdr.ProcInitSecContext, &arg, &res, &res.Status)
	}
	is := func(what string, got, want mech.Major) {
		t.Helper()
		if got != want {
			t.Errorf("%s: %#x, want %#x", what, uint64(got), uint64(want))
		}
	}
	is("a context", start(conn), mech.Complete)
	is("bob's handle", acquire("bob", xdr.CredInitiate), mech.DefectiveCredential)
	is("a context after it", start(conn), mech.DefectiveCredential)
	is("another connection's", start(d.asked("mail").Conn), mech.Complete)
	is("to accept", acquire("", xdr.CredAccept), mech.Complete)
	is("a context still", start(conn), mech.DefectiveCredential)
	is("alice's handle", acquire("alice", xdr.CredInitiate), mech.Complete) // the same is got without it
	is("a context still, of bob's program", start(conn), mech.DefectiveCredential)
	is("no handle", acquire("", xdr.CredInitiate), mech.Complete)
	is("a context then", start(conn), mech.Complete)
	is("bob's handle, once more", acquire("bob", xdr.CredInitiate), mech.DefectiveCredential)
	ctx := xdr.ArgInitSecContext{TargetName: xdr.Some(named(svc, mech.NTHostbased)), MechType: []byte(mech.KRB5), ReqFlags: lab.Usual,
		CredHandle: xdr.Some(xdr.Cred{CredHandleReference: []byte("to accept"), Elements: []xdr.CredElement{{CredUsage: xdr.CredAccept}}})}
	var res xdr.ResInitSecContext
	is("a context after it, with one to accept that does not open", call(conn, xdr.ProcInitSecContext, &ctx, &res, &res.Status), mech.DefectiveCredential)
	is("a handle without a name", acquire(strings.Repeat("/", 3), xdr.CredInitiate), mech.DefectiveCredential)
	is("a context after that", start(conn), mech.DefectiveCredential)

	// A Go client shares its connections among users, and says whom a call is for.
	other, err := d.acquire("mail", xdr.ArgAcquireCred{CredUsage: xdr.CredInitiate, DesiredName: xdr.Some(named(svc, mech.NTHostbased))})
	must(t, err)
	another := xdr.ArgAcquireCred{CredUsage: xdr.CredInitiate, InputCredHandle: xdr.Some(other), DesiredName: xdr.Some(named("bob", mech.NTUserName))}
	for _, strict := range []bool{false, true} {
		conn, want := d.asked("mail").Conn, mech.CredUnavail
		if another.Options = nil; strict {
			another.Options, want = refuseStale("yes"), mech.Complete
		}
		var res xdr.ResAcquireCred
		is("a handle of svc's for bob", call(conn, xdr.ProcAcquireCred, &another, &res, &res.Status), mech.CredUnavail)
		is("a context of the service after it", start(conn), want)
	}
}

// TestLostAndNamed: a call that sends a handle that does not open, and a name, goes on as that name
// or as the handle's, and as nobody else: not as whom the configuration puts in the place of the
// name.
func TestLostAndNamed(t *testing.T) {
	r, svcs, _ := realm(t)
	must(t, r.AddPrincipal("bob", "bob"))
	bobs, err := r.Keytab("bob.keytab", "bob")
	must(t, err)
	d := newDirect(t, r.Conf, map[string]string{
		"impersonate": "impersonate = yes\nallow_any_uid = yes\neuid = 33\ncred_store = keytab:" + svcs,
		"trusted":     "trusted = yes\neuid = 33\ncred_store = client_keytab:" + bobs,
	})
	d.users.Users = conf.FixedUsers{"www-data": 33, "alice": 1000, "bob": 1001}
	for _, test := range []struct {
		service string
		uid     uint32
		handle  string
		asked   xdr.Name
		want    string // of what is got, nobody's if it is empty
	}{
		{"impersonate", 1001, "alice", named("alice", mech.NTUserName), ""}, // not bob
		{"impersonate", 1001, "bob", named("bob", mech.NTUserName), "bob"},
		{"trusted", 33, "alice", named("1001", mech.NTStringUID), ""}, // not bob
		{"trusted", 33, "bob", named("1001", mech.NTStringUID), "bob"},
		{"trusted", 33, "alice", named("bob", mech.NTUserName), "bob"}, // who was asked for
	} {
		got, err := d.as(test.uid).acquire(test.service, xdr.ArgAcquireCred{
			InputCredHandle: xdr.Some(xdr.Cred{DesiredName: named(test.handle, mech.NTUserName), CredHandleReference: []byte("somebody else's")}),
			DesiredName:     xdr.Some(test.asked), CredUsage: xdr.CredInitiate,
		})
		if who, _, _ := strings.Cut(string(got.DesiredName.DisplayName), "@"); who != test.want || test.want == "" && !strings.Contains(err.Error(), "[bad-credential]") {
			t.Errorf("%+v: got one of %q, %v", test, who, err)
		}
	}
}

// TestNamedWithoutHandle: a gssx_cred without a handle initiates as whom it names, or not at all.
func TestNamedWithoutHandle(t *testing.T) {
	r, svcs, alices := realm(t)
	d := newDirect(t, r.Conf, map[string]string{"mail": "cred_store = keytab:" + svcs + "\ncred_store = client_keytab:" + alices})
	client, err := r.Tool(lab.Nobody, mustKinit(t, r, "alice")...)
	must(t, err)
	defer client.Close()
	element := func(of string, usage xdr.CredUsage) []xdr.CredElement {
		return []xdr.CredElement{{MN: named(of, mech.NTKrb5Principal), CredUsage: usage}}
	}
	for what, test := range map[string]struct {
		cred xdr.Cred
		is   bool // alice, or nobody
	}{
		"bob":                     {xdr.Cred{DesiredName: named("bob", mech.NTUserName)}, false},
		"bob's element":           {xdr.Cred{DesiredName: named("alice", mech.NTUserName), Elements: element("bob@"+lab.Name, xdr.CredInitiate)}, false},
		"a name that is none":     {xdr.Cred{DesiredName: named("///", mech.NTUserName)}, false},
		"alice":                   {xdr.Cred{DesiredName: named("alice", mech.NTUserName)}, true},
		"alice's element":         {xdr.Cred{Elements: element("alice@"+lab.Name, xdr.CredInitiate)}, true},
		"nobody":                  {xdr.Cred{}, true},
		"nobody's element":        {xdr.Cred{Elements: []xdr.CredElement{{CredUsage: xdr.CredInitiate}}}, true},
		"bob's element to accept": {xdr.Cred{DesiredName: named("bob", mech.NTUserName), Elements: element("bob@"+lab.Name, xdr.CredAccept)}, true},
	} {
		_, err := d.init("mail", &test.cred, svc)
		got, acquired := d.acquire("mail", xdr.ArgAcquireCred{CredUsage: xdr.CredInitiate, InputCredHandle: xdr.Some(test.cred)})
		for _, err := range []error{err, acquired} {
			if (err == nil) != test.is || err != nil && !strings.Contains(err.Error(), "[bad-credential]") {
				t.Errorf("%s: %v", what, err)
			}
		}
		if acquired == nil && string(got.DesiredName.DisplayName) != "alice@"+lab.Name {
			t.Errorf("%s: a credential of %s", what, got.DesiredName.DisplayName)
		}
		// To accept, whom it initiates as is of no account.
		_, token, err := client.Init(svc, lab.Usual, nil)
		must(t, err)
		arg, res := lab.AcceptArg(token, nil), new(xdr.ResAcceptSecContext)
		arg.CredHandle = xdr.Some(test.cred)
		if err := d.call("mail", xdr.ProcAcceptSecContext, arg, res, &res.Status); err != nil {
			t.Errorf("%s, to accept: %v", what, err)
		}
	}
}
