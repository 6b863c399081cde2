package samba

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"gssproxyd/interposer"
	"gssproxyd/mech"
	"gssproxyd/mech/reason"
	"gssproxyd/tests/lab"
)

// service is a section of the daemon's configuration with a socket of its own, for every uid unless
// the lines say otherwise.
type service struct {
	name  string
	lines []string
}

// served is a running daemon.
type served struct{ dir string }

// socket is that of a service.
func (s served) socket(service string) string { return filepath.Join(s.dir, "sock-"+service) }

// trace is what the daemon did with its KDC.
func (s served) trace() string {
	b, _ := os.ReadFile(filepath.Join(s.dir, "trace"))
	return string(b)
}

// start starts a daemon with the services.
func (d *domain) start(t *testing.T, kind, krb5Conf string, services ...service) served {
	t.Helper()
	dir := d.Path("daemon-" + kind)
	running := served{dir}
	var b strings.Builder
	b.WriteString("[gssproxy]\n  debug_level = 1\n")
	for _, s := range services {
		fmt.Fprintf(&b, "\n[service/%s]\n  mechs = krb5\n  euid = 0\n  socket = %s\n", s.name, running.socket(s.name))
		for _, l := range s.lines {
			fmt.Fprintf(&b, "  %s\n", l)
		}
	}
	// Somebody must be served on the first socket.
	fmt.Fprintf(&b, "\n[service/lab]\n  mechs = krb5\n  euid = 0\n  cred_store = keytab:%s/none\n", dir)
	daemon, err := d.Daemon(kind, lab.Options{Dir: dir, Config: b.String(), Krb5Conf: krb5Conf, Keytab: dir + "/none",
		RCache: "none:", Env: []string{"KRB5_TRACE=" + filepath.Join(dir, "trace")}})
	check(t, err)
	t.Cleanup(func() {
		if err := daemon.Stop(); err != nil {
			t.Errorf("the daemon ended badly: %v", err)
		}
		if t.Failed() {
			t.Logf("log of the %s daemon:\n%s\ntrace:\n%s", kind, tail(daemon.Output(), 8<<10), tail(running.trace(), 8<<10))
		}
	})
	return running
}

// acceptor serves everybody with a keytab; initiator is for the daemon's own uid and both usages.
func acceptor(name, keytab string) service {
	return service{name, []string{"allow_any_uid = yes", "cred_store = keytab:" + keytab}}
}

func initiator(name, keytab string, lines ...string) service {
	return service{name, append(lines, "cred_store = keytab:"+keytab, "cred_store = client_keytab:"+keytab)}
}

// plugin is a gsstool in front of the daemon.
func (d *domain) plugin(t *testing.T, u lab.User, socket string) *lab.Tool {
	t.Helper()
	return d.tool(t, u, append(d.PluginEnv(socket), "KRB5CCNAME=MEMORY:plugin")...)
}

// refused checks that err is of the plugin and has the words.
func refused(t *testing.T, err error, words ...string) {
	t.Helper()
	var e *lab.GSSError
	if !errors.As(err, &e) {
		t.Errorf("got %v, want a refusal", err)
		return
	}
	for _, w := range words {
		if !strings.Contains(e.Text, w) {
			t.Errorf("%q says nothing of %q", e.Text, w)
		}
	}
}

// acquire gets a credential to initiate with for an account, and with it, if there is one, for a
// user. Beside the plugin, which knows no texts of such refusals.
func acquire(t *testing.T, socket, account, user string) (name string, err error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), lab.Patience)
	defer cancel()
	c := interposer.New(socket, interposer.Options{})
	defer c.Close()
	cred, err := c.AcquireCred(ctx, interposer.AcquireRequest{
		Usage: interposer.Initiate, Name: interposer.Principal(account + "@AD.TEST"),
	})
	if err == nil && user != "" {
		cred, err = c.AcquireCred(ctx, interposer.AcquireRequest{
			Usage: interposer.Initiate, Name: interposer.Principal(user + "@AD.TEST"), Input: cred, Impersonate: true,
		})
	}
	if err != nil {
		return "", err
	}
	return cred.Name().Display, nil
}

// notAcquired checks that err is a refusal with the reason, if there is one, and the words.
func notAcquired(t *testing.T, err error, reason reason.ID, words ...string) {
	t.Helper()
	var e *mech.Error
	if !errors.As(err, &e) || reason != "" && e.Reason != reason {
		t.Errorf("got %v, want a refusal %q", err, reason)
		return
	}
	for _, w := range words {
		if !strings.Contains(e.Text, w) {
			t.Errorf("%q says nothing of %q", e.Text, w)
		}
	}
}

// meet has a client and an acceptor establish a context with mutual authentication, and messages go
// both ways.
func meet(t *testing.T, client, acceptor *lab.Tool, target string, flags uint32, want string) lab.Accepted {
	t.Helper()
	id, token, err := client.Init(target, flags|lab.Usual|lab.Mutual, nil)
	check(t, err)
	a, err := acceptor.Accept(token, nil)
	check(t, err)
	if a.Client != want {
		t.Errorf("%s hears %s, want %s", target, a.Client, want)
	}
	_, _, err = client.Step(id, a.Token)
	check(t, err)
	check(t, lab.Messages(lab.End{Tool: client, ID: id}, lab.End{Tool: acceptor, ID: a.ID}))
	return a
}

// TestActiveDirectory is one domain's life. The tests in it are in the order of what they change.
func TestActiveDirectory(t *testing.T) {
	if !*adFlag {
		t.Skip("not run: it provisions a domain controller; make test-samba runs it")
	}
	kinds := lab.Kinds
	if s := os.Getenv("LAB_DAEMONS"); s != "" {
		kinds = strings.Split(s, ",")
	}
	d := up(t)
	for _, kind := range kinds {
		t.Run("accept/"+kind, func(t *testing.T) { testAccept(t, d, kind) })
	}
	if !slices.Contains(kinds, "ours") {
		return
	}
	t.Run("S4U", func(t *testing.T) { testS4U(t, d) })
	t.Run("impersonate", func(t *testing.T) { testImpersonate(t, d) })
	t.Run("RC4", func(t *testing.T) { testRC4(t, d) })
	t.Run("disabled service", func(t *testing.T) { testDisabled(t, d) })
	t.Run("canonicalize", func(t *testing.T) { testCanonicalize(t, d) })
	t.Run("forwardable without krb5.conf", func(t *testing.T) { testForwardable(t, d) })
	t.Run("KDC by DNS", func(t *testing.T) { testDNS(t, d) })
	for _, kind := range kinds {
		t.Run("rotation/"+kind, func(t *testing.T) { testRotation(t, d, kind) })
	}
	t.Run("kpasswd", func(t *testing.T) { testKpasswd(t, d) })
	t.Run("keystored", func(t *testing.T) { testKeystored(t, d) })
}

// testAccept: a keytab with one name of the account, and tickets for all of its names.
func testAccept(t *testing.T, d *domain, kind string) {
	running := d.start(t, kind, d.Conf, acceptor("web", d.keytab(t, "WEB1$")))
	alice := d.client(t, "alice")
	for _, target := range []string{
		"HTTP@web1.ad.test", "host@web1.ad.test",
		"http@web1.ad.test", "HOST@web1.ad.test", // case is all the same
		"cifs@web1.ad.test", // what sPNMappings has for host
	} {
		t.Run(target, func(t *testing.T) {
			web := d.plugin(t, lab.Nobody, running.socket("web"))
			check(t, web.Acquire(""))
			meet(t, alice, web, target, 0, "alice@AD.TEST")
		})
	}
	t.Run("account named", func(t *testing.T) {
		web := d.plugin(t, lab.Nobody, running.socket("web"))
		_, err := web.Credential("WEB1$@AD.TEST", "principal", 2)
		check(t, err)
		meet(t, alice, web, "HTTP@web1.ad.test", 0, "alice@AD.TEST")
	})
	// The PAC makes tickets that no UDP datagram from the KDC has room for, and the plugin more
	// than one page.
	t.Run("many groups", func(t *testing.T) {
		web := d.plugin(t, lab.Nobody, running.socket("web"))
		check(t, web.Acquire(""))
		many := d.client(t, "many")
		_, token, err := many.Init("HTTP@web1.ad.test", lab.Usual, nil)
		check(t, err)
		if len(token) < 1500 {
			t.Errorf("the token has %d bytes: are there no groups in its PAC?", len(token))
		}
		meet(t, many, web, "HTTP@web1.ad.test", 0, "many@AD.TEST")
	})
	// What a program in Go reads in the PAC is what the directory has, whichever daemon verified it:
	// many is in 300 groups, and by one of them in another that is of this domain alone.
	t.Run("groups", func(t *testing.T) {
		c := interposer.New(running.socket("web"), interposer.Options{})
		defer c.Close()
		for user, least := range map[string]int{"alice": 1, "many": 302} {
			_, token, err := d.client(t, user).Init("HTTP@web1.ad.test", lab.Usual, nil)
			check(t, err)
			s, _, err := c.AcceptSecContext(t.Context(), interposer.AcceptRequest{Token: token})
			check(t, err)
			defer s.Close()
			p, err := s.Peer()
			check(t, err)
			got, err := p.GroupSIDs()
			check(t, err)
			got = slices.DeleteFunc(got, func(sid string) bool { return !strings.HasPrefix(sid, "S-1-5-21-") })
			slices.Sort(got)
			if want := d.groups[user]; len(want) < least || !slices.Equal(got, want) {
				t.Errorf("%s is in %d groups:\n%v\nwant %d, at least %d:\n%v", p, len(got), got, len(want), least, want)
			}
		}
	})
	t.Run("delegation", func(t *testing.T) {
		web := d.plugin(t, lab.Nobody, running.socket("web"))
		check(t, web.Acquire(""))
		a := meet(t, d.client(t, "alice", "-f"), web, "HTTP@web1.ad.test", lab.Deleg, "alice@AD.TEST")
		if !a.Delegated {
			t.Fatal("nothing was delegated")
		}
		who, token, err := web.UseDelegated(a.ID, "host@files.ad.test")
		check(t, err)
		if who != "alice@AD.TEST" {
			t.Errorf("a credential of %s", who)
		}
		d.files(t, token, "alice@AD.TEST")
	})
}

// files accepts a token as the file server, with MIT's library alone.
func (d *domain) files(t *testing.T, token []byte, want string) {
	t.Helper()
	files := d.tool(t, lab.Root, "KRB5_KTNAME="+d.keytab(t, "FILES$"), "KRB5RCACHENAME=none:")
	check(t, files.Acquire(""))
	a, err := files.Accept(token, nil)
	check(t, err)
	if a.Client != want {
		t.Errorf("the file server hears %s, want %s", a.Client, want)
	}
}

// testS4U: WEB1$ may act for users who never came, towards the file server and nothing else; WEAK$
// for those only who did.
func testS4U(t *testing.T, d *domain) {
	both := []string{"allow_protocol_transition = yes", "allow_constrained_delegation = yes"}
	running := d.start(t, "ours", d.Conf, initiator("web", d.keytab(t, "WEB1$"), both...), initiator("weak", d.keytab(t, "WEAK$"), both...))
	// acting is a gsstool with the service's credential for a user.
	acting := func(t *testing.T, service, account, user string) *lab.Tool {
		t.Helper()
		g := d.plugin(t, lab.Root, running.socket(service))
		_, err := g.Credential(account+"@AD.TEST", "principal", 0)
		check(t, err)
		c, err := g.Impersonate(user+"@AD.TEST", "principal")
		check(t, err)
		if c.Name != user+"@AD.TEST" {
			t.Errorf("impersonated %s", c.Name)
		}
		return g
	}
	for _, user := range []string{"alice", "many"} {
		t.Run(user, func(t *testing.T) {
			g := acting(t, "web", "WEB1$", user)
			for _, target := range []string{"host@files.ad.test", "cifs@files.ad.test"} {
				_, token, err := g.Init(target, lab.Usual, nil)
				check(t, err)
				d.files(t, token, user+"@AD.TEST")
			}
			_, _, err := g.Init("HTTP@weak.ad.test", lab.Usual, nil)
			refused(t, err, "[delegation-refused]", "asked to act for the user '"+user+"@AD.TEST'")
		})
	}
	// The PAC of many makes a datagram too long.
	if !strings.Contains(running.trace(), "is too big for UDP") {
		t.Error("no answer came over TCP")
	}
	t.Run("may not act for who never came", func(t *testing.T) {
		g := acting(t, "weak", "WEAK$", "alice")
		_, _, err := g.Init("host@files.ad.test", lab.Usual, nil)
		refused(t, err, "[delegation-refused]", "asked to act for the user 'alice@AD.TEST'; the user's ticket is not forwardable")
	})
	for user, want := range map[string]struct {
		reason reason.ID
		words  string
	}{
		"absent":   {reason.UserUnknown, "the KDC of realm 'AD.TEST' knows no user 'absent@AD.TEST' to act for"},
		"disabled": {reason.UserRefused, "asked to act for the user 'disabled@AD.TEST'"},
		"expired":  {reason.UserRefused, "asked to act for the user 'expired@AD.TEST'"},
	} {
		t.Run(user, func(t *testing.T) {
			_, err := acquire(t, running.socket("web"), "WEB1$", user)
			notAcquired(t, err, want.reason, want.words)
		})
	}
	// The ticket that a user came with is evidence as well.
	t.Run("who came", func(t *testing.T) {
		g := d.plugin(t, lab.Root, running.socket("weak"))
		_, err := g.Credential("WEAK$@AD.TEST", "principal", 0)
		check(t, err)
		_, token, err := d.client(t, "alice", "-f").Init("HTTP@weak.ad.test", lab.Usual, nil)
		check(t, err)
		a, err := g.Accept(token, nil)
		check(t, err)
		if !a.Delegated {
			t.Fatal("no credential of the client's")
		}
		_, token, err = g.UseDelegated(a.ID, "host@files.ad.test")
		check(t, err)
		d.files(t, token, "alice@AD.TEST")
	})
}

// testImpersonate: with impersonate, who calls is who is acted for.
func testImpersonate(t *testing.T, d *domain) {
	running := d.start(t, "ours", d.Conf, initiator("web", d.keytab(t, "WEB1$"), "impersonate = yes", "allow_any_uid = yes"))
	g := d.plugin(t, lab.User{UID: 1, GID: 1}, running.socket("web"))
	_, token, err := g.Init("host@files.ad.test", lab.Usual, nil)
	check(t, err)
	d.files(t, token, "daemon@AD.TEST")
	g = d.plugin(t, lab.Nobody, running.socket("web"))
	_, _, err = g.Init("host@files.ad.test", lab.Usual, nil)
	refused(t, err, "[impersonated-user-unknown]", "realm 'AD.TEST' knows no user 'nobody@AD.TEST'")
}

// testRC4: accounts without AES, with keytabs that have all keys, under another name than the
// ticket's.
func testRC4(t *testing.T, d *domain) {
	alice := d.client(t, "alice")
	keytabs := map[string]string{"OLD$": d.keytab(t, "OLD$"), "UNSET$": d.keytab(t, "UNSET$")}
	for _, allowed := range []bool{false, true} {
		conf := d.conf(t, fmt.Sprintf("  allow_rc4 = %v\n", allowed))
		running := d.start(t, "ours", conf, acceptor("old", keytabs["OLD$"]), acceptor("unset", keytabs["UNSET$"]))
		for _, name := range []string{"old", "unset"} {
			t.Run(fmt.Sprintf("%s, allowed %v", name, allowed), func(t *testing.T) {
				g := d.plugin(t, lab.Nobody, running.socket(name))
				check(t, g.Acquire(""))
				if allowed {
					meet(t, alice, g, "HTTP@"+name+".ad.test", 0, "alice@AD.TEST")
					return
				}
				_, token, err := alice.Init("HTTP@"+name+".ad.test", lab.Usual, nil)
				check(t, err)
				_, err = g.Accept(token, nil)
				refused(t, err, "[enctype-not-permitted]", "arcfour-hmac", "the keytab has "+strings.ToUpper(name)+"$@AD.TEST kvno 2")
			})
		}
	}
}

// testDisabled: the service's own account is disabled.
func testDisabled(t *testing.T, d *domain) {
	running := d.start(t, "ours", d.Conf, initiator("off", d.keytab(t, "OFF$")))
	_, err := acquire(t, running.socket("off"), "OFF$", "")
	notAcquired(t, err, "", "Client's credentials have been revoked", "AD.TEST")
}

// testCanonicalize: the KDC answers for WEB1$ where another case of the name is asked for.
func testCanonicalize(t *testing.T, d *domain) {
	running := d.start(t, "ours", d.conf(t, "  canonicalize = true\n"), initiator("web", d.keytab(t, "web1$")))
	name, err := acquire(t, running.socket("web"), "web1$", "")
	check(t, err)
	if name != "WEB1$@AD.TEST" {
		t.Errorf("a credential of %s", name)
	}
	g := d.plugin(t, lab.Root, running.socket("web"))
	_, err = g.Credential("web1$@AD.TEST", "principal", 1)
	check(t, err)
	for range 2 { // the second one with what was got for the first
		_, token, err := g.Init("host@files.ad.test", lab.Usual, nil)
		check(t, err)
		d.files(t, token, "WEB1$@AD.TEST")
	}
}

// testForwardable: S4U2Proxy needs a forwardable ticket-granting ticket, and krb5.conf does not ask
// for one.
func testForwardable(t *testing.T, d *domain) {
	running := d.start(t, "ours", d.conf(t, ""), initiator("web", d.keytab(t, "WEB1$"), "allow_protocol_transition = yes", "allow_constrained_delegation = yes"))
	g := d.plugin(t, lab.Root, running.socket("web"))
	_, err := g.Credential("WEB1$@AD.TEST", "principal", 0)
	check(t, err)
	_, err = g.Impersonate("alice@AD.TEST", "principal")
	check(t, err)
	_, token, err := g.Init("host@files.ad.test", lab.Usual, nil)
	check(t, err)
	d.files(t, token, "alice@AD.TEST")
}

// testDNS: krb5.conf has the default realm and nothing else; the domain controller is the name
// server.
func testDNS(t *testing.T, d *domain) {
	conf := d.Path("krb5.conf")
	check(t, os.WriteFile(conf, []byte("[libdefaults]\n  default_realm = AD.TEST\n"), 0o644))
	running := d.start(t, "ours", conf, initiator("web", d.keytab(t, "WEB1$")))
	_, err := acquire(t, running.socket("web"), "WEB1$", "")
	check(t, err)
	g := d.plugin(t, lab.Root, running.socket("web"))
	_, token, err := g.Init("host@files.ad.test", lab.Usual, nil)
	check(t, err)
	d.files(t, token, "WEB1$@AD.TEST")
}

// testRotation: the account gets a new password while clients have tickets of before.
func testRotation(t *testing.T, d *domain, kind string) {
	before := d.keytab(t, "WEB1$")
	old := d.client(t, "alice")
	const target = "HTTP@web1.ad.test"
	_, _, err := old.Init(target, lab.Usual, nil) // the ticket is in its cache
	check(t, err)
	d.directory(t, "password", "WEB1$", password+kind)
	after := d.keytab(t, "WEB1$")
	grown := d.Path("keytab-grown")
	d.run(t, "/bin/sh", "-c", `printf 'rkt %s\nrkt %s\nwkt %s\n' "$0" "$1" "$2" | ktutil && chmod 600 "$2"`, before, after, grown)
	running := d.start(t, kind, d.Conf, acceptor("before", before), acceptor("after", after), acceptor("grown", grown))
	tickets := map[string]*lab.Tool{"before": old, "after": d.client(t, "alice")}
	for _, keytab := range []string{"before", "after", "grown"} {
		for ticket, client := range tickets {
			t.Run(ticket+" meets "+keytab, func(t *testing.T) {
				g := d.plugin(t, lab.Nobody, running.socket(keytab))
				check(t, g.Acquire(""))
				if keytab == "grown" || keytab == ticket {
					meet(t, client, g, target, 0, "alice@AD.TEST")
					return
				}
				_, token, err := client.Init(target, lab.Usual, nil)
				check(t, err)
				_, err = g.Accept(token, nil)
				if kind == "C" {
					refused(t, err)
					return
				}
				refused(t, err, "[no-key]", "HTTP/web1.ad.test@AD.TEST", "; the keytab has WEB1$@AD.TEST kvno ")
			})
		}
	}
}
