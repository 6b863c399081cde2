package lab

import (
	"errors"
	"os"
	"slices"
	"strings"
	"testing"
	"time"
)

// tool starts a gsstool that ends with the test.
func tool(t *testing.T, r *Realm, u User, env ...string) *Tool {
	t.Helper()
	g, err := r.Tool(u, env...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { g.Close() })
	return g
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// TestRealm establishes contexts between two of MIT's libraries, so that what the other tests find
// is the daemon's doing.
func TestRealm(t *testing.T) {
	r := New(t)
	for n := 17; n <= 20; n++ {
		check(t, r.RandKey("svc"+EnctypeName(n)+"/"+Host, EnctypeName(n)))
	}
	var principals []string
	for n := 17; n <= 20; n++ {
		principals = append(principals, "svc"+EnctypeName(n)+"/"+Host)
	}
	keytab, err := r.Keytab("keytab", principals...)
	check(t, err)
	env, err := r.Kinit("alice", "alice", "-f")
	check(t, err)
	client := tool(t, r, Nobody, env...)
	server := tool(t, r, Root, "KRB5_KTNAME="+keytab, "KRB5RCACHENAME=file2:"+r.Path("rcache"))
	for n := 17; n <= 20; n++ {
		service := "svc" + EnctypeName(n) + "@" + Host
		check(t, client.Enctypes(n))
		for _, flags := range []uint32{Usual, Usual | Mutual, Usual | Mutual | Deleg} {
			id, token, err := client.Init(service, flags, []byte("bindings"))
			check(t, err)
			a, err := server.Accept(token, []byte("bindings"))
			check(t, err)
			if a.Client != "alice@"+Name || a.Major != 0 || a.Delegated != (flags&Deleg != 0) || a.Flags&ChannelBound == 0 {
				t.Errorf("%s: accepted %+v", service, a)
			}
			if flags&Mutual != 0 {
				complete, _, err := client.Step(id, a.Token)
				check(t, err)
				if !complete {
					t.Errorf("%s: context not complete", service)
				}
			}
			if a.Delegated {
				who, next, err := server.UseDelegated(a.ID, service)
				check(t, err)
				if who != "alice@"+Name || len(next) == 0 {
					t.Errorf("%s: delegated credential of %q, token of %d bytes", service, who, len(next))
				}
			}
			check(t, Converse(End{client, id}, End{server, a.ID}))
			if enctype, _, err := server.Key(a.ID); err != nil || enctype != n {
				t.Errorf("%s: enctype %d, want %d (%v)", service, enctype, n, err)
			}
			exported, err := server.Export(a.ID)
			check(t, err)
			if a.ID, err = client.Import(exported); err != nil {
				t.Fatal(err)
			}
			attrs, err := client.Attributes(a.ID)
			check(t, err)
			if !slices.ContainsFunc(attrs, func(a Attribute) bool { return a.Name == "urn:mspac:" && a.Authenticated }) {
				t.Errorf("%s: no PAC in %d attributes", service, len(attrs))
			}
			_, err = server.Accept(token, []byte("bindings"))
			var refused *GSSError
			if !errors.As(err, &refused) || !strings.Contains(refused.Text, "replay") {
				t.Errorf("%s: second time: %v, want a replay", service, err)
			}
		}
	}
}

// TestShifted checks the tickets and tokens of other times.
func TestShifted(t *testing.T) {
	r := New(t)
	check(t, r.RandKey("svc/"+Host))
	keytab, err := r.Keytab("keytab", "svc/"+Host)
	check(t, err)
	server := tool(t, r, Root, "KRB5_KTNAME="+keytab, "KRB5RCACHENAME=none:")
	yesterday, err := r.Shifted(-24*time.Hour, "alice", "alice", "10h", "svc/"+Host)
	check(t, err)
	tomorrow, err := r.Shifted(24*time.Hour, "alice", "alice", "10h", "svc/"+Host)
	check(t, err)
	late, err := r.Shifted(-time.Hour, "alice", "alice", "10h", "svc/"+Host)
	check(t, err)
	today, err := r.Kinit("alice", "alice")
	check(t, err)
	_, err = r.Run(Root, today, "/usr/bin/kvno", "svc/"+Host)
	check(t, err)
	for _, c := range []struct {
		name string
		env  []string
		want string
	}{
		{"expired", yesterday, "Ticket expired"},
		{"not yet valid", tomorrow, "Ticket not yet valid"},
		{"slow clock", late, "Clock skew too great"},
		{"fast clock", append(r.ShiftEnv(time.Hour), today...), "Clock skew too great"},
		{"now", today, ""},
	} {
		_, token, err := tool(t, r, Nobody, c.env...).Init("svc@"+Host, Usual, nil)
		check(t, err)
		_, err = server.Accept(token, nil)
		if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%s: %v, want %q", c.name, err, c.want)
		}
	}
}

// TestRotate: after a rotation the KDC gives out tickets for the new key, and the keytab has both.
func TestRotate(t *testing.T) {
	r := New(t)
	check(t, r.RandKey("svc/"+Host))
	env, err := r.Kinit("alice", "alice")
	check(t, err)
	client := tool(t, r, Nobody, env...)
	_, old, err := client.Init("svc@"+Host, Usual, nil)
	check(t, err)
	check(t, r.Rotate("svc/"+Host))
	keytab, err := r.Keytab("keytab", "svc/"+Host)
	check(t, err)
	env, err = r.Kinit("alice", "alice")
	check(t, err)
	_, fresh, err := tool(t, r, Nobody, env...).Init("svc@"+Host, Usual, nil)
	check(t, err)
	server := tool(t, r, Root, "KRB5_KTNAME="+keytab, "KRB5RCACHENAME=none:")
	for _, token := range [][]byte{old, fresh} {
		_, err = server.Accept(token, nil)
		check(t, err)
	}
	out, err := r.Run(Root, nil, "/usr/bin/klist", "-k", keytab)
	check(t, err)
	if !strings.Contains(out, "   1 svc/") || !strings.Contains(out, "   2 svc/") {
		t.Errorf("not both kvnos in the keytab:\n%s", out)
	}
}

// TestCDaemon: the plugin, as nobody, through the C daemon; and that nobody can do nothing without.
func TestCDaemon(t *testing.T) {
	r := New(t)
	check(t, r.RandKey("svc/"+Host))
	keytab, err := r.Keytab("keytab", "svc/"+Host)
	check(t, err)
	if out, err := r.Run(Nobody, nil, "/bin/cat", keytab); err == nil || !strings.Contains(out, "Permission denied") {
		t.Errorf("nobody reads the keytab: %v", err)
	}
	d, err := r.CDaemon(Options{Keytab: keytab})
	check(t, err)
	env, err := r.Kinit("alice", "alice")
	check(t, err)
	client := tool(t, r, Nobody, env...)
	server := tool(t, r, Nobody, d.PluginEnv()...)
	check(t, server.Acquire("svc@"+Host))
	id, token, err := client.Init("svc@"+Host, Usual|Mutual, nil)
	check(t, err)
	a, err := server.Accept(token, nil)
	check(t, err)
	_, _, err = client.Step(id, a.Token)
	check(t, err)
	check(t, Converse(End{client, id}, End{server, a.ID}))

	check(t, d.WaitOutput("Initialization complete.", Patience))
	check(t, d.Reload())
	if cpu, err := d.CPU(); err != nil || cpu <= 0 {
		t.Errorf("CPU: %v, %v", cpu, err)
	}
	if now, peak, err := d.RSS(); err != nil || now < 1<<20 || peak < now {
		t.Errorf("RSS: %d, %d, %v", now, peak, err)
	}
	check(t, d.Restart())
	check(t, d.Crash())
	check(t, d.Stop())
	if _, err := os.Stat(d.Options.Dir); err != nil {
		t.Error(err)
	}
}
