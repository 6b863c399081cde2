package kdc

import (
	"os"
	"strings"
	"testing"
	"time"

	"gssproxyd/mech/krb5"
	"gssproxyd/mech/krb5/etype"
	"gssproxyd/mech/krb5/wire"
	"gssproxyd/mech/reason"
	"gssproxyd/tests/lab"
)

// TestForest walks from realm to realm: A trusts B, B trusts C, A and C know nothing of each other.
func TestForest(t *testing.T) {
	const a, b, c = "A.TEST", "B.TEST", "SUB.C.TEST"
	f := lab.NewForest(t, a, b, c)
	check(t, f.Trust(a, b))
	check(t, f.Trust(b, a))
	check(t, f.Trust(b, c))
	check(t, f.Trust(c, b))
	const capaths = "[capaths]\n  " + a + " = {\n    " + c + " = " + b + "\n  }\n  " + c + " = {\n    " + a + " = " + b + "\n  }\n"
	check(t, f.Configure(capaths))
	for _, m := range f.Members {
		check(t, m.Restart())
		check(t, m.AddPrincipal("user", "pw"))
		check(t, m.RandKey("HTTP/www."+strings.ToLower(m.Name)))
	}
	ctx := t.Context()
	pw := Password(etype.Secret("pw"))
	user := krb5.Principal{Realm: a, Components: []string{"user"}, Type: krb5.NTPrincipal}
	http := func(realm, in string) krb5.Principal {
		return krb5.Principal{Realm: in, Components: []string{"HTTP", "www." + strings.ToLower(realm)}, Type: krb5.NTSrvHst}
	}
	conf := load(t, f.Conf)
	client := &Client{Conf: conf}
	login := func(t *testing.T) *store {
		t.Helper()
		cred, err := client.Login(ctx, user, pw, LoginOptions{})
		check(t, err)
		return &store{[]*krb5.Credential{cred}}
	}

	t.Run("capaths", func(t *testing.T) {
		s := login(t)
		cred, err := client.Ticket(ctx, s, user, http(c, c), TicketOptions{})
		check(t, err)
		checkCred(t, cred, "user@"+a, http(c, c).String(), 0)
		for _, want := range []string{"krbtgt/" + c + "@" + b} {
			if !strings.Contains(s.servers(), want) {
				t.Errorf("the store has %s, not %s", s.servers(), want)
			}
		}
		// The next one needs no way.
		cred, err = client.Ticket(ctx, s, user, krb5.Principal{Realm: c, Components: []string{"host", "none"}}, TicketOptions{})
		wantErr(t, err, wire.MinorServerUnknown, reason.ServerUnknown)
		if cred != nil {
			t.Error("a ticket with an error")
		}
	})

	t.Run("one realm", func(t *testing.T) {
		s := login(t)
		cred, err := client.Ticket(ctx, s, user, http(b, b), TicketOptions{})
		check(t, err)
		checkCred(t, cred, "user@"+a, http(b, b).String(), 0)
		if want := "krbtgt/" + a + "@" + a + " krbtgt/" + b + "@" + a + " " + http(b, b).String(); s.servers() != want {
			t.Errorf("the store has %s, want %s", s.servers(), want)
		}
	})

	t.Run("referral", func(t *testing.T) {
		for _, realm := range []string{b, c} {
			s := login(t)
			cred, err := client.Ticket(ctx, s, user, http(realm, ""), TicketOptions{})
			check(t, err)
			checkCred(t, cred, "user@"+a, http(realm, "").String(), 0)
		}
	})

	t.Run("KDC's way", func(t *testing.T) {
		// A client that knows of no way has one with the KDCs that do.
		text, err := os.ReadFile(f.Conf)
		check(t, err)
		blind := &Client{Conf: config(t, strings.Replace(string(text), capaths, "", 1))}
		s := login(t)
		cred, err := blind.Ticket(ctx, s, user, http(c, c), TicketOptions{})
		check(t, err)
		checkCred(t, cred, "user@"+a, http(c, c).String(), 0)
	})

	t.Run("nowhere", func(t *testing.T) {
		s := login(t)
		_, err := client.Ticket(ctx, s, user, http("D.TEST", "D.TEST"), TicketOptions{})
		wantErr(t, err, wire.MinorServerUnknown, reason.ServerUnknown, "krbtgt/")
		_, err = client.Ticket(ctx, s, user, http("D.ORG", ""), TicketOptions{})
		wantErr(t, err, wire.MinorServerUnknown, reason.ServerUnknown, "HTTP/www.d.org")
	})

	t.Run("S4U2Self", func(t *testing.T) {
		service := http(a, a)
		path, err := f.Member(a).Keytab("http.keytab", "HTTP/www.a.test")
		check(t, err)
		cred, err := client.Login(ctx, service, readKeytab(t, path), LoginOptions{})
		check(t, err)
		s := &store{[]*krb5.Credential{cred}}
		cred, err = client.S4U2Self(ctx, s, service, user)
		check(t, err)
		checkCred(t, cred, user.String(), service.String(), 0)
		// A user of another realm: the database of these KDCs cannot refer an enterprise name of
		// the service back to its realm, whoever asks.
		other := krb5.Principal{Realm: b, Components: []string{"user"}, Type: krb5.NTPrincipal}
		_, err = client.S4U2Self(ctx, s, service, other)
		wantErr(t, err, wire.MinorServerUnknown, reason.ServerUnknown, `Server HTTP\/www.a.test\@A.TEST@B.TEST not found in Kerberos database`)
		env := []string{"KRB5CCNAME=FILE:" + f.Path("service")}
		_, err = f.Run(lab.Root, env, "/usr/bin/kinit", "-k", "-t", path, "HTTP/www.a.test")
		check(t, err)
		if out, err := f.Run(lab.Root, env, "/usr/bin/kvno", "-U", other.String(), service.String()); err == nil || !strings.Contains(out, "not found in Kerberos database") {
			t.Errorf("kvno says %s", out)
		}
	})

	t.Run("KDC down", func(t *testing.T) {
		f.Member(b).StopKDC()
		defer f.Member(b).Restart()
		impatient := &Client{Conf: conf, Timeout: 2 * time.Second}
		s := login(t)
		_, err := impatient.Ticket(ctx, s, user, http(b, b), TicketOptions{})
		wantErr(t, err, wire.MinorUnreachable, reason.KDCUnreachable, "Cannot contact any KDC for realm '"+b+"'")
	})
}
