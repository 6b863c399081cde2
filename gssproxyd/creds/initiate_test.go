package creds_test

import (
	"bytes"
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"gssproxyd/gssproxyd/creds"
	"gssproxyd/mech"
	"gssproxyd/mech/krb5"
	"gssproxyd/mech/krb5/ccache"
	"gssproxyd/mech/krb5/kdc"
	"gssproxyd/tests/lab"
	"gssproxyd/xdr"
)

// TestMemoryOfServices: handles that carry tickets come and go at one service, more than there is
// room for. Every one works, the oldest too, and another service's tickets are not touched, nor by
// a reload that keeps the service.
func TestMemoryOfServices(t *testing.T) {
	r, svcs, alices := realm(t)
	services := map[string]string{
		"web":  "allow_protocol_transition = yes\ncred_store = keytab:" + svcs + "\ncred_store = client_keytab:" + svcs,
		"mail": "cred_store = client_keytab:" + alices,
	}
	d := newDirect(t, r.Conf, services)
	const room, users = 3, 10
	web, mail := creds.MemoryOf(d.of("web").Service), creds.MemoryOf(d.of("mail").Service)
	web.MaxCaches = room

	_, err := d.init("mail", nil, svc)
	must(t, err)
	own, err := d.acquire("web", xdr.ArgAcquireCred{CredUsage: xdr.CredInitiate})
	must(t, err)
	var handles []xdr.Cred
	for range users {
		h, err := d.acquire("web", xdr.ArgAcquireCred{
			InputCredHandle: xdr.Some(own), CredUsage: xdr.CredInitiate, DesiredName: xdr.Some(named("alice", mech.NTUserName)),
			Options: []xdr.Option{{Option: []byte("acquire_type\x00"), Value: []byte("impersonate_name\x00")}},
		})
		must(t, err)
		_, err = d.init("web", &h, svc)
		must(t, err)
		handles = append(handles, h)
	}
	if n, _ := web.Len(); n != room {
		t.Errorf("%d caches of the service, want %d", n, room)
	}
	_, err = d.init("web", &handles[0], svc)
	must(t, err)
	if n, _ := mail.Len(); n != 1 {
		t.Errorf("%d caches of the other service, want 1", n)
	}
	var running sync.WaitGroup
	for i := range handles {
		running.Go(func() {
			for range 20 {
				if _, err := d.init("web", &handles[i], svc); err != nil {
					t.Error(err)
				}
			}
		})
	}
	running.Wait()

	// A cache that makes room in the middle of a call.
	c := d.caller("web")
	for _, h := range []xdr.Cred{handles[0], own} {
		opened := c.Open(h.CredHandleReference)
		if opened == nil {
			t.Fatal("a handle does not open")
		}
		cr, err := c.OpenCredential(t.Context(), opened)
		must(t, err)
		web.Clear()
		target, err := krb5.ParsePrincipal("svc/"+lab.Host+"@"+lab.Name, "")
		must(t, err)
		_, err = c.Ticket(t.Context(), cr, target, kdc.TicketOptions{})
		must(t, err)
	}

	_, err = d.init("web", &handles[0], svc)
	must(t, err)
	delete(services, "web")
	d.load(r.Conf, services)
	if n, _ := web.Len(); n != 0 {
		t.Errorf("%d caches of a service that is gone", n)
	}
	if creds.MemoryOf(d.of("mail").Service) != mail {
		t.Error("a reload has lost the tickets of a service")
	}
}

// TestRefreshWithoutKDC: past half of its life a ticket serves on while the KDC does not answer or
// refuses, which is not asked at each call (TestLogins has how long a call waits). Once the ticket
// has expired it is asked again at once.
func TestRefreshWithoutKDC(t *testing.T) {
	r, _, alices := realm(t)
	relay, err := r.Relay()
	must(t, err)
	defer relay.Close()
	d := newDirect(t, relay.Conf, map[string]string{
		"silent":   "cred_store = client_keytab:" + alices,
		"refusing": "cred_store = client_keytab:" + alices,
	})
	handles := make(map[string]*xdr.Cred)
	for _, service := range []string{"silent", "refusing"} {
		h, err := d.acquire(service, xdr.ArgAcquireCred{CredUsage: xdr.CredInitiate})
		must(t, err)
		_, err = d.init(service, &h, svc)
		must(t, err)
		handles[service] = &h
	}

	d.ahead.Store(int64(6 * time.Hour)) // of ten
	var asked atomic.Int32
	fault := func(f lab.Fault) {
		asked.Store(0)
		relay.Set(func(ctx context.Context, answer func() []byte) []byte {
			asked.Add(1)
			return f(ctx, answer)
		})
	}
	serves := func(service string) {
		t.Helper()
		for i := range 10 {
			h := handles[service]
			if i%2 == 0 {
				h = nil
			}
			if _, err := d.init(service, h, svc); err != nil {
				t.Fatalf("%s: %v", service, err)
			}
			res, err := d.acquire(service, xdr.ArgAcquireCred{CredUsage: xdr.CredInitiate, InputCredHandle: xdr.Some(*handles[service])})
			must(t, err)
			if !lab.SameCred(res, *handles[service]) {
				t.Errorf("%s: the handle is not the same any more", service)
			}
		}
	}
	fault(lab.HangUp)
	serves("refusing")
	d.settled()
	once := asked.Load()
	serves("refusing")
	if n := asked.Load(); once == 0 || n != once {
		t.Errorf("the KDC was asked %d times, and then %d times", once, n-once)
	}
	fault(lab.Hold(time.Hour))
	serves("silent")

	d.ahead.Store(int64(11 * time.Hour))
	relay.Set(nil)
	if _, err = d.init("refusing", handles["refusing"], svc); err != nil {
		t.Errorf("expired, and the KDC back: %v", err)
	}
}

// TestRefreshInPlace: what a handle names is refreshed by whoever uses the handle, and the handle
// stays the same.
func TestRefreshInPlace(t *testing.T) {
	r, _, alices := realm(t)
	d := newDirect(t, r.Conf, map[string]string{"mail": "cred_store = client_keytab:" + alices})
	h, err := d.acquire("mail", xdr.ArgAcquireCred{CredUsage: xdr.CredInitiate})
	must(t, err)
	cache := "acquired mail 0 FILE:" + alices + " alice@" + lab.Name
	for _, use := range []func() error{
		func() error {
			_, err := d.init("mail", &h, svc)
			return err
		},
		func() error {
			again, err := d.acquire("mail", xdr.ArgAcquireCred{CredUsage: xdr.CredInitiate, InputCredHandle: xdr.Some(h)})
			if err == nil && !lab.SameCred(again, h) {
				err = errors.New("the handle is not the same any more")
			}
			return err
		},
	} {
		old := d.tgt("mail", cache)
		must(t, use())
		if !bytes.Equal(d.tgt("mail", cache), old) {
			t.Error("refreshed before half of the ticket's life")
		}
		d.ahead.Add(int64(6 * time.Hour))
		must(t, use())
		d.settled()
		if bytes.Equal(d.tgt("mail", cache), old) {
			t.Error("not refreshed")
		}
	}
	// Tickets that came with the handle, all of them over.
	creds.MemoryOf(d.of("mail").Service).Clear()
	d.ahead.Add(int64(6 * time.Hour))
	_, err = d.init("mail", &h, svc)
	must(t, err)
}

// TestRenew: a renewable ticket is renewed when its refresh_time has come, once.
func TestRenew(t *testing.T) {
	r, _, _ := realm(t)
	env, err := r.Kinit("alice", "alice", "-l", "1h", "-r", "10h")
	must(t, err)
	path := strings.TrimPrefix(env[0], "KRB5CCNAME=FILE:")
	must(t, os.Chmod(path, 0o600))
	var resolver ccache.Resolver
	cache, err := resolver.Open(t.Context(), path)
	must(t, err)
	client, err := cache.Principal(t.Context())
	must(t, err)
	relay, err := r.Relay()
	must(t, err)
	defer relay.Close()
	var asked atomic.Int32
	relay.Set(func(_ context.Context, answer func() []byte) []byte {
		asked.Add(1)
		return answer()
	})
	d := newDirect(t, relay.Conf, map[string]string{"mail": "cred_store = ccache:FILE:" + path})
	for _, test := range []struct {
		what    string
		refresh time.Duration
		asks    int32
	}{
		{"before", time.Minute, 1}, // for the service's ticket
		{"at the time", 0, 1},
		{"after", -1, 0},
	} {
		if test.refresh >= 0 {
			at := strconv.AppendInt(nil, time.Now().Add(test.refresh).Unix(), 10)
			isConfig := func(cred *krb5.Credential) bool { return ccache.IsConfig(cred.Server) }
			must(t, cache.Update(t.Context(), isConfig, ccache.ConfigEntry(client, ccache.RefreshTime, nil, at)))
		}
		asked.Store(0)
		_, err = d.init("mail", nil, svc)
		must(t, err)
		d.settled()
		if n := asked.Load(); n != test.asks {
			t.Errorf("%s: the KDC was asked %d times, want %d", test.what, n, test.asks)
		}
	}
}

// TestTimeReq: a ticket lives for as long as a context is wanted, and one that is there serves if
// it lives as long.
func TestTimeReq(t *testing.T) {
	r, _, alices := realm(t)
	d := newDirect(t, r.Conf, map[string]string{"mail": "cred_store = client_keytab:" + alices})
	for _, test := range []struct{ req, want uint64 }{
		{600, 600}, {0, 600}, {300, 600}, {3600, 3600}, {100 * 3600, 10 * 3600}, {0xffffffff, 10 * 3600},
	} {
		lifetime, err := d.init("mail", nil, svc, func(a *xdr.ArgInitSecContext) { a.TimeReq = test.req })
		must(t, err)
		if lifetime > test.want || lifetime < test.want-60 {
			t.Errorf("time_req %d: the context lives for %d seconds, want %d", test.req, lifetime, test.want)
		}
	}
}

// TestAddCred: add_cred_to_input_handle makes one credential of two usages.
func TestAddCred(t *testing.T) {
	r, svcs, alices := realm(t)
	d := newDirect(t, r.Conf, map[string]string{
		"web":       "cred_store = keytab:" + svcs + "\ncred_store = client_keytab:" + alices,
		"other":     "cred_store = keytab:" + svcs,
		"initiator": "cred_store = client_keytab:" + svcs + "\ncred_usage = initiate",
	})
	env, err := r.Kinit("alice", "alice")
	must(t, err)
	client, err := r.Tool(lab.Nobody, env...)
	must(t, err)
	defer client.Close()
	name := xdr.Some(named(svc, mech.NTHostbased))
	first := func(service string, usage xdr.CredUsage, name xdr.Opt[xdr.Name]) xdr.Cred {
		t.Helper()
		h, err := d.acquire(service, xdr.ArgAcquireCred{CredUsage: usage, DesiredName: name})
		must(t, err)
		return h
	}
	initiator, acceptor, any := first("web", xdr.CredInitiate, name), first("web", xdr.CredAccept, name), first("web", xdr.CredAccept, xdr.Opt[xdr.Name]{})
	for _, test := range []struct {
		what   string
		input  xdr.Cred
		usage  xdr.CredUsage
		name   xdr.Opt[xdr.Name]
		want   xdr.CredUsage
		reason string
	}{
		{what: "accept to initiate", input: initiator, usage: xdr.CredAccept, want: xdr.CredBoth},
		{what: "accept to initiate, named", input: initiator, usage: xdr.CredAccept, name: name, want: xdr.CredBoth},
		{what: "initiate to accept", input: acceptor, usage: xdr.CredInitiate, want: xdr.CredBoth},
		{what: "initiate to accept as anybody", input: any, usage: xdr.CredInitiate, want: xdr.CredBoth},
		{what: "initiate to initiate", input: initiator, usage: xdr.CredInitiate, reason: "duplicate-element"},
		{what: "accept to accept", input: acceptor, usage: xdr.CredAccept, reason: "duplicate-element"},
		{what: "both to accept", input: acceptor, usage: xdr.CredBoth, reason: "duplicate-element"},
		{what: "initiate to both", input: first("web", xdr.CredBoth, name), usage: xdr.CredInitiate, reason: "duplicate-element"},
		{what: "another name", input: initiator, usage: xdr.CredAccept, name: xdr.Some(named("alice", mech.NTUserName)), reason: "credential-mismatch"},
		{what: "no keys to accept with", input: first("web", xdr.CredInitiate, xdr.Opt[xdr.Name]{}), usage: xdr.CredAccept, reason: "no-key"},
		{what: "a handle that does not open", input: first("other", xdr.CredAccept, name), usage: xdr.CredInitiate, want: xdr.CredInitiate},
		{what: "no handle", usage: xdr.CredInitiate, want: xdr.CredInitiate},
		{what: "usage not allowed", input: first("initiator", xdr.CredInitiate, xdr.Opt[xdr.Name]{}), usage: xdr.CredAccept, reason: "usage-not-allowed"},
	} {
		arg := xdr.ArgAcquireCred{CredUsage: test.usage, DesiredName: test.name, AddCredToInputHandle: true}
		if test.input.CredHandleReference != nil {
			arg.InputCredHandle = xdr.Some(test.input)
		}
		service := "web"
		if test.reason == "usage-not-allowed" {
			service = "initiator"
		}
		got, err := d.acquire(service, arg)
		if test.reason != "" {
			if err == nil || !strings.Contains(err.Error(), "["+test.reason+"]") {
				t.Errorf("%s: %v, want [%s]", test.what, err, test.reason)
			}
			continue
		}
		if err != nil || len(got.Elements) != 1 || got.Elements[0].CredUsage != test.want {
			t.Errorf("%s: %v, elements %+v", test.what, err, got.Elements)
			continue
		}
		if _, err := d.init("web", &got, svc); err != nil {
			t.Errorf("%s: initiating with it: %v", test.what, err)
		}
		if test.want != xdr.CredBoth {
			continue
		}
		if shown := string(got.DesiredName.DisplayName); shown != "svc/"+lab.Host+"@"+lab.Name {
			t.Errorf("%s: of %s", test.what, shown)
		}
		_, token, err := client.Init(svc, lab.Usual, nil)
		must(t, err)
		accept, res := lab.AcceptArg(token, nil), new(xdr.ResAcceptSecContext)
		accept.CredHandle = xdr.Some(got)
		if err := d.call("web", xdr.ProcAcceptSecContext, accept, res, &res.Status); err != nil {
			t.Errorf("%s: accepting with it: %v", test.what, err)
		}
	}
}

// TestStartRealm: a cache of a client of one realm begins with the ticket-granting ticket of
// another.
func TestStartRealm(t *testing.T) {
	const a, b, host = "A.TEST", "B.TEST", "www.example.org" // of no realm in particular
	f := lab.NewForest(t, a, b)
	must(t, f.Trust(a, b))
	must(t, f.Member(a).AddPrincipal("alice", "alice"))
	must(t, f.Member(b).RandKey("svc/"+host))
	env, err := f.Kinit("alice@"+a, "alice", "-f")
	must(t, err)
	_, err = f.Run(lab.Root, env, "/usr/bin/kvno", "krbtgt/"+b+"@"+b)
	must(t, err)
	path := strings.TrimPrefix(env[0], "KRB5CCNAME=FILE:")
	must(t, os.Chmod(path, 0o600))
	var r ccache.Resolver
	cache, err := r.Open(t.Context(), path)
	must(t, err)
	client, err := cache.Principal(t.Context())
	must(t, err)
	creds, err := cache.Credentials(t.Context())
	must(t, err)
	var tgt *krb5.Credential
	for _, cred := range creds {
		if cred.Server.String() == "krbtgt/"+b+"@"+b {
			tgt = cred
		}
	}
	if tgt == nil {
		t.Fatalf("no krbtgt/%s@%s among %v", b, b, creds)
	}
	f.Member(a).StopKDC()
	for _, start := range []string{"", b} {
		var config []*krb5.Credential
		if start != "" {
			config = append(config, ccache.ConfigEntry(client, ccache.StartRealm, nil, []byte(start)))
		}
		must(t, cache.Initialize(t.Context(), client, append(config, tgt)...))
		d := newDirect(t, f.Conf, map[string]string{"mail": "cred_store = ccache:FILE:" + path})
		_, err = d.init("mail", nil, "svc@"+host)
		if (err == nil) != (start != "") {
			t.Errorf("start_realm %q: %v", start, err)
		}
	}
}

// TestForeignEvidence: tickets for a user of another realm are asked of the service's own KDC,
// whose database here has no say about delegation and refuses.
func TestForeignEvidence(t *testing.T) {
	const a, b, host = "A.TEST", "B.TEST", "www.b.test"
	f := lab.NewForest(t, a, b)
	must(t, f.Trust(a, b))
	must(t, f.Member(a).AddPrincipal("alice", "alice"))
	for _, s := range []string{"svc/", "mail/"} {
		must(t, f.Member(b).RandKey(s+host))
	}
	keys, err := f.Member(b).Keytab("svc.keytab", "svc/"+host)
	must(t, err)
	env, err := f.Kinit("alice@"+a, "alice", "-f")
	must(t, err)
	d := newDirect(t, f.Conf, map[string]string{
		"web":  "cred_store = keytab:" + keys + "\ncred_store = client_keytab:" + keys + "\nallow_constrained_delegation = yes",
		"user": "cred_store = ccache:" + strings.TrimPrefix(env[0], "KRB5CCNAME="),
	})
	both, err := d.acquire("web", xdr.ArgAcquireCred{CredUsage: xdr.CredBoth})
	must(t, err)
	begin, begun := xdr.ArgInitSecContext{TargetName: xdr.Some(named("svc@"+host, mech.NTHostbased)), MechType: []byte(mech.KRB5), ReqFlags: lab.Usual}, new(xdr.ResInitSecContext)
	must(t, d.call("user", xdr.ProcInitSecContext, &begin, begun, &begun.Status))
	accept, res := lab.AcceptArg(begun.OutputToken.V, nil), new(xdr.ResAcceptSecContext)
	accept.CredHandle, accept.RetDelegCred = xdr.Some(both), true
	must(t, d.call("web", xdr.ProcAcceptSecContext, accept, res, &res.Status))
	if got := string(res.DelegatedCredHandle.V.DesiredName.DisplayName); got != "alice@"+a {
		t.Errorf("the credential is of %q", got)
	}
	_, err = d.init("web", &res.DelegatedCredHandle.V, "mail@"+host)
	if err == nil || !strings.Contains(err.Error(), "[delegation-refused]") {
		t.Error(err)
	}
}

// TestKCMSocket: kcm_socket of krb5.conf says where the KCM server is.
func TestKCMSocket(t *testing.T) {
	dir, err := os.MkdirTemp("", "kcm")
	must(t, err)
	defer os.RemoveAll(dir)
	l, err := net.Listen("unix", filepath.Join(dir, "s"))
	must(t, err)
	var asked atomic.Int32
	var server sync.WaitGroup
	server.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			asked.Add(1)
			c.Close()
		}
	})
	defer server.Wait()
	defer l.Close()
	k := filepath.Join(dir, "krb5.conf")
	must(t, os.WriteFile(k, []byte("[libdefaults]\n default_realm = A.TEST\n kcm_socket = "+filepath.Join(dir, "s")+"\n"), 0o600))
	d := newDirect(t, k, map[string]string{"mail": "cred_store = ccache:KCM:"})
	if _, err := d.acquire("mail", xdr.ArgAcquireCred{CredUsage: xdr.CredInitiate}); err == nil || asked.Load() == 0 {
		t.Errorf("%v; the server was asked %d times", err, asked.Load())
	}
}
