package kdc

import (
	"context"
	"os"
	"strings"
	"testing"
	"time"

	"gssproxyd/keytab"
	"gssproxyd/mech"
	"gssproxyd/mech/krb5"
	"gssproxyd/mech/krb5/etype"
	"gssproxyd/mech/krb5/krb5conf"
	"gssproxyd/mech/reason"
	"gssproxyd/tests/lab"

	"go.uber.org/goleak"
)

// The tests in this file talk to MIT's krb5kdc.

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func principal(t testing.TB, s string) krb5.Principal {
	t.Helper()
	p, err := krb5.ParsePrincipal(s, lab.Name)
	check(t, err)
	return p
}

func load(t testing.TB, path string) *krb5conf.Config {
	t.Helper()
	conf, err := krb5conf.Load([]string{path})
	check(t, err)
	return conf
}

// config loads the text of a krb5.conf.
func config(t testing.TB, text string) *krb5conf.Config {
	t.Helper()
	path := t.TempDir() + "/krb5.conf"
	check(t, os.WriteFile(path, []byte(text), 0o600))
	return load(t, path)
}

func readKeytab(t testing.TB, path string) KeySource {
	t.Helper()
	b, err := os.ReadFile(path)
	check(t, err)
	entries, err := keytab.Parse(b)
	check(t, err)
	return Keytab(keytab.Compile("FILE:"+path, entries))
}

// store is a TicketStore in memory.
type store struct{ creds []*krb5.Credential }

func (s *store) Find(_ context.Context, match func(*krb5.Credential) bool) (list []*krb5.Credential, err error) {
	for _, c := range s.creds {
		if match(c) {
			list = append(list, c.Clone())
		}
	}
	return list, nil
}

func (s *store) Update(_ context.Context, _ func(*krb5.Credential) bool, add ...*krb5.Credential) error {
	for _, c := range add {
		s.creds = append(s.creds, c.Clone())
	}
	return nil
}

// servers lists what the store has tickets for.
func (s *store) servers() string {
	var list []string
	for _, c := range s.creds {
		list = append(list, c.Server.String())
	}
	return strings.Join(list, " ")
}

// wantErr checks an error's code and reason, and that its text has the words.
func wantErr(t testing.TB, err error, codeWanted int, reason reason.ID, words ...string) {
	t.Helper()
	e, ok := err.(*mech.Error)
	if !ok || e == nil {
		t.Fatalf("got %v, want a *mech.Error", err)
	}
	if code(err) != codeWanted || e.Reason != reason || e.Major != mech.Failure || e.Mech != mech.KRB5 {
		t.Fatalf("got major %#x, code %d, reason %q (%s), want code %d, %q", e.Major, code(err), e.Reason, e.Text, codeWanted, reason)
	}
	for _, w := range words {
		if !strings.Contains(e.Text, w) {
			t.Errorf("%q says nothing of %q", e.Text, w)
		}
	}
	if strings.ContainsFunc(e.Text, func(r rune) bool { return r < ' ' || r == 0x7f }) {
		t.Errorf("control character in %q", e.Text)
	}
}

func checkCred(t testing.TB, cred *krb5.Credential, client, server string, keyType etype.ID) {
	t.Helper()
	now := time.Now().Unix()
	switch {
	case cred.Client.String() != client || cred.Server.String() != server:
		t.Errorf("got %v, want one of %s for %s", cred, client, server)
	case keyType != 0 && cred.KeyType != keyType, len(cred.Key) != cred.KeyType.KeySize():
		t.Errorf("%v: key of type %v, %d octets, want %v", cred, cred.KeyType, len(cred.Key), keyType)
	case int64(cred.StartTime) > now+5 || int64(cred.EndTime) < now || len(cred.Ticket) < 100:
		t.Errorf("%v: from %d to %d, %d octets", cred, cred.StartTime, cred.EndTime, len(cred.Ticket))
	}
}

const (
	tgs  = "krbtgt/" + lab.Name + "@" + lab.Name
	http = "HTTP/" + lab.Host + "@" + lab.Name
)

func TestRealm(t *testing.T) {
	r := lab.New(t)
	ctx := t.Context()
	conf := load(t, r.Conf)
	c := &Client{Conf: conf}
	for n := 17; n <= 20; n++ {
		check(t, r.RandKey("user"+lab.EnctypeName(n), lab.EnctypeName(n)))
	}
	check(t, r.AddPrincipal("careful", "pw")) // requires pre-authentication
	check(t, r.RandKey("HTTP/"+lab.Host))
	path, err := r.Keytab("kdc.keytab", "user"+lab.EnctypeName(17), "user"+lab.EnctypeName(18), "user"+lab.EnctypeName(19), "user"+lab.EnctypeName(20), "careful", "HTTP/"+lab.Host)
	check(t, err)
	keys := readKeytab(t, path)

	t.Run("keytab", func(t *testing.T) {
		for n := 17; n <= 20; n++ {
			name := "user" + lab.EnctypeName(n) + "@" + lab.Name
			cred, err := c.Login(ctx, principal(t, name), keys, LoginOptions{})
			check(t, err)
			checkCred(t, cred, name, tgs, 0)
			// Nothing but its own type.
			cred, err = c.Login(ctx, principal(t, name), keys, LoginOptions{Enctypes: []etype.ID{etype.ID(n)}})
			check(t, err)
			checkCred(t, cred, name, tgs, etype.ID(n))
			s := &store{[]*krb5.Credential{cred}}
			cred, err = c.Ticket(ctx, s, cred.Client, principal(t, http), TicketOptions{Enctypes: []etype.ID{etype.ID(n)}})
			check(t, err)
			checkCred(t, cred, name, http, etype.ID(n))
		}
	})

	t.Run("pre-authentication", func(t *testing.T) {
		cred, err := c.Login(ctx, principal(t, "careful"), keys, LoginOptions{Options: OptForwardable, Lifetime: time.Hour, RenewLife: 2 * time.Hour})
		check(t, err)
		checkCred(t, cred, "careful@"+lab.Name, tgs, 0)
		now := time.Now().Unix()
		if cred.Flags&(OptForwardable|OptRenewable) != OptForwardable|OptRenewable || int64(cred.EndTime) > now+3605 || int64(cred.RenewTill) < now+7000 {
			t.Errorf("flags %#x, ends in %d, renewable for %d", cred.Flags, int64(cred.EndTime)-now, int64(cred.RenewTill)-now)
		}
		yes := true
		_, err = c.Login(ctx, principal(t, "careful"), keys, LoginOptions{PAC: &yes})
		check(t, err)
	})

	t.Run("password", func(t *testing.T) {
		for n := 17; n <= 20; n++ {
			check(t, r.AddPrincipal("pw"+lab.EnctypeName(n), "Kennwörter", lab.EnctypeName(n)))
			cred, err := c.Login(ctx, principal(t, "pw"+lab.EnctypeName(n)), Password(etype.Secret("Kennwörter")), LoginOptions{})
			check(t, err)
			checkCred(t, cred, "pw"+lab.EnctypeName(n)+"@"+lab.Name, tgs, 0)
		}
		_, err := c.Login(ctx, principal(t, "alice"), Password(etype.Secret("wrong")), LoginOptions{})
		wantErr(t, err, codePreauthFailed, reason.PreauthFailed, "Preauthentication failed")
	})

	t.Run("wrong key", func(t *testing.T) {
		for n := 17; n <= 18; n++ {
			for name, want := range map[string]int{"careful": codePreauthFailed, "user" + lab.EnctypeName(n): codeBadIntegrity} {
				wrong := keytab.Compile("FILE:/wrong", []keytab.Entry{{Principal: name + "@" + lab.Name, KVNO: 1, Enctype: etype.ID(n), Key: make(etype.Secret, etype.ID(n).KeySize())}})
				_, err := c.Login(ctx, principal(t, name), Keytab(wrong), LoginOptions{})
				wantErr(t, err, want, reason.PreauthFailed, "client "+name+"@"+lab.Name, "key of FILE:/wrong, kvno 1")
			}
		}
	})

	t.Run("no key", func(t *testing.T) {
		_, err := c.Login(ctx, principal(t, "nobody"), keys, LoginOptions{})
		wantErr(t, err, codeNoKey, reason.NoKey, "Keytab contains no suitable keys for nobody@"+lab.Name)
	})

	t.Run("unknown", func(t *testing.T) {
		_, err := c.Login(ctx, principal(t, "nobody"), Password(etype.Secret("x")), LoginOptions{})
		wantErr(t, err, codeClientUnknown, reason.ClientUnknown, "Client 'nobody@"+lab.Name+"' not found in Kerberos database")
		s := login1(t, c, keys, "careful")
		_, err = c.Ticket(ctx, s, principal(t, "careful"), principal(t, "nothing/there@"+lab.Name), TicketOptions{})
		wantErr(t, err, codeServerUnknown, reason.ServerUnknown, "Server nothing/there@"+lab.Name+" not found in Kerberos database")
		_, err = c.Ticket(ctx, s, principal(t, "careful"), krb5.Principal{Components: []string{"nothing", "www.nowhere.test"}}, TicketOptions{})
		wantErr(t, err, codeServerUnknown, reason.ServerUnknown, "not found in Kerberos database")
		_, err = c.Login(ctx, principal(t, "a@NOWHERE.TEST"), Password(etype.Secret("x")), LoginOptions{})
		wantErr(t, err, codeRealmUnknown, reason.KDCUnreachable, `Cannot find KDC for realm "NOWHERE.TEST"`)
	})

	t.Run("service", func(t *testing.T) {
		s := login1(t, c, keys, "careful")
		cred, err := c.Ticket(ctx, s, principal(t, "careful"), principal(t, http), TicketOptions{})
		check(t, err)
		checkCred(t, cred, "careful@"+lab.Name, http, 0)
		again, err := c.Ticket(ctx, s, principal(t, "careful"), principal(t, http), TicketOptions{CachedOnly: true})
		check(t, err)
		if string(again.Ticket) != string(cred.Ticket) {
			t.Error("another ticket than the one stored")
		}
		// By referral: what was asked for is what comes back.
		byHost := krb5.Principal{Components: []string{"HTTP", lab.Host}, Type: krb5.NTSrvHst}
		cred, err = c.Ticket(ctx, s, principal(t, "careful"), byHost, TicketOptions{})
		check(t, err)
		checkCred(t, cred, "careful@"+lab.Name, "HTTP/"+lab.Host+"@", 0)
		if s.servers() != tgs+" "+http+" HTTP/"+lab.Host+"@" {
			t.Errorf("the store has %s", s.servers())
		}
		_, err = c.Ticket(ctx, s, principal(t, "careful"), principal(t, "other/x"), TicketOptions{CachedOnly: true})
		wantErr(t, err, codeNoCredential, reason.NoCredential)
		_, err = c.Ticket(ctx, new(store), principal(t, "careful"), principal(t, http), TicketOptions{})
		wantErr(t, err, codeNoCredential, reason.NoCredential, "ticket-granting ticket of careful")
	})

	t.Run("expired", func(t *testing.T) {
		s := login1(t, c, keys, "careful")
		s.creds[0].EndTime = uint32(time.Now().Unix() - 1)
		_, err := c.Ticket(ctx, s, principal(t, "careful"), principal(t, http), TicketOptions{})
		wantErr(t, err, codeTicketExpired, reason.TicketExpired, "Ticket expired")
		// The KDC has the last word.
		cred, err := c.Login(ctx, principal(t, "careful"), keys, LoginOptions{Lifetime: time.Second})
		check(t, err)
		cred.EndTime += 3600
		time.Sleep(1500 * time.Millisecond)
		_, err = c.Ticket(ctx, &store{[]*krb5.Credential{cred}}, cred.Client, principal(t, http), TicketOptions{})
		wantErr(t, err, codeTicketExpired, reason.TicketExpired)
	})

	t.Run("renew", func(t *testing.T) {
		cred, err := c.Login(ctx, principal(t, "careful"), keys, LoginOptions{Lifetime: time.Hour, RenewLife: 5 * time.Hour})
		check(t, err)
		time.Sleep(1100 * time.Millisecond)
		renewed, err := c.Renew(ctx, cred)
		check(t, err)
		checkCred(t, renewed, "careful@"+lab.Name, tgs, 0)
		if renewed.EndTime <= cred.EndTime || renewed.AuthTime != cred.AuthTime || renewed.RenewTill != cred.RenewTill {
			t.Errorf("renewed from %d/%d/%d to %d/%d/%d", cred.AuthTime, cred.EndTime, cred.RenewTill, renewed.AuthTime, renewed.EndTime, renewed.RenewTill)
		}
		once, err := c.Login(ctx, principal(t, "careful"), keys, LoginOptions{})
		check(t, err)
		_, err = c.Renew(ctx, once)
		wantErr(t, err, codeBadOption, reason.KDCRefused, "KDC can't fulfill requested option")
	})

	t.Run("validate", func(t *testing.T) {
		cred, err := c.Login(ctx, principal(t, "careful"), keys, LoginOptions{Start: 5 * time.Second, Lifetime: time.Hour})
		check(t, err)
		if cred.Flags&FlagInvalid == 0 {
			t.Fatalf("postdated ticket with flags %#x", cred.Flags)
		}
		var valid *krb5.Credential
		for deadline := time.Now().Add(time.Minute); ; time.Sleep(100 * time.Millisecond) {
			if valid, err = c.Validate(ctx, cred); err == nil || time.Now().After(deadline) {
				break
			}
			wantErr(t, err, codeNotYetValid, reason.TicketNotYetValid)
		}
		check(t, err)
		if valid.Flags&FlagInvalid != 0 {
			t.Errorf("validated ticket with flags %#x", valid.Flags)
		}
		checkCred(t, valid, "careful@"+lab.Name, tgs, 0)
	})

	t.Run("forward", func(t *testing.T) {
		s := login1(t, c, keys, "careful")
		f, err := c.Forward(ctx, s.creds[0], ForwardOptions{Forwardable: true, Enctype: etype.AES128SHA1})
		check(t, err)
		checkCred(t, f, "careful@"+lab.Name, tgs, 0)
		if f.Flags&(OptForwarded|OptForwardable) != OptForwarded|OptForwardable || string(f.Key) == string(s.creds[0].Key) {
			t.Errorf("forwarded ticket with flags %#x", f.Flags)
		}
		last, err := c.Forward(ctx, f, ForwardOptions{})
		check(t, err)
		if last.Flags&(OptForwarded|OptForwardable) != OptForwarded {
			t.Errorf("forwarded ticket with flags %#x", last.Flags)
		}
		// It works where it has gone.
		cred, err := c.Ticket(ctx, &store{[]*krb5.Credential{last}}, last.Client, principal(t, http), TicketOptions{})
		check(t, err)
		checkCred(t, cred, "careful@"+lab.Name, http, 0)
		_, err = c.Forward(ctx, last, ForwardOptions{})
		wantErr(t, err, codeBadOption, reason.KDCRefused)
	})

	t.Run("FAST", func(t *testing.T) {
		armor := login1(t, c, keys, "user"+lab.EnctypeName(19)).creds[0]
		for _, enctype := range []etype.ID{0, 17, 18, 19, 20} {
			opt := LoginOptions{Armor: armor, RequireFAST: true}
			if enctype != 0 {
				opt.Enctypes = []etype.ID{enctype}
			}
			for _, name := range []string{"careful", "HTTP/" + lab.Host} {
				cred, err := c.Login(ctx, principal(t, name), keys, opt)
				check(t, err)
				checkCred(t, cred, name+"@"+lab.Name, tgs, enctype)
			}
		}
		wrong := keytab.Compile("FILE:/wrong", []keytab.Entry{{Principal: "careful@" + lab.Name, KVNO: 1, Enctype: 18, Key: make(etype.Secret, 32)}})
		_, err := c.Login(ctx, principal(t, "careful"), Keytab(wrong), LoginOptions{Armor: armor, RequireFAST: true})
		wantErr(t, err, codePreauthFailed, reason.PreauthFailed)
		_, err = c.Login(ctx, principal(t, "nobody"), Password(etype.Secret("x")), LoginOptions{Armor: armor, RequireFAST: true})
		wantErr(t, err, codeClientUnknown, reason.ClientUnknown)
		other := armor.Clone()
		other.Server.Components[1] = "OTHER.TEST"
		_, err = c.Login(ctx, principal(t, "careful"), keys, LoginOptions{Armor: other, RequireFAST: true})
		wantErr(t, err, codeFASTRequired, reason.KDCRefused)
		_, err = c.Login(ctx, principal(t, "careful"), keys, LoginOptions{Armor: other})
		check(t, err)
		if log, _ := os.ReadFile(r.Dir + "/kdc/krb5kdc.log"); !strings.Contains(string(log), "preauth (encrypted_challenge) verify failure") {
			t.Error("the KDC's log has no failed challenge")
		}
	})

	t.Run("S4U2Self", func(t *testing.T) {
		s := login1(t, c, keys, "HTTP/"+lab.Host)
		service := principal(t, http)
		cred, err := c.S4U2Self(ctx, s, service, principal(t, "alice"), S4UOptions{Options: OptForwardable})
		check(t, err)
		checkCred(t, cred, "alice@"+lab.Name, http, 0)
		// As an enterprise name, which the KDC takes for a name of its realm.
		_, err = c.S4U2Self(ctx, s, service, krb5.Principal{Components: []string{"nobody@mail.test"}, Type: krb5.NTEnterprise}, S4UOptions{})
		wantErr(t, err, codeClientUnknown, reason.UserUnknown, "the KDC of realm '"+lab.Name+"' knows no user 'nobody\\@mail.test@"+lab.Name+"' to act for")
		_, err = c.S4U2Self(ctx, s, service, principal(t, "nobody"), S4UOptions{})
		wantErr(t, err, codeClientUnknown, reason.UserUnknown, "the KDC of realm '"+lab.Name+"' knows no user 'nobody@"+lab.Name+"' to act for")
		check(t, r.AddPrincipal("locked", "locked"))
		check(t, r.Attribute("locked", "-allow_tix"))
		_, err = c.S4U2Self(ctx, s, service, principal(t, "locked"), S4UOptions{})
		wantErr(t, err, codeClientRevoked, reason.UserRefused, "asked to act for the user 'locked@"+lab.Name+"'")
		_, err = c.S4U2Self(ctx, s, service, krb5.Principal{}, S4UOptions{})
		wantErr(t, err, codeWrongPrincipal, reason.BadName)
		if s.servers() != tgs {
			t.Errorf("the store has %s", s.servers())
		}
		// Onward, which this KDC's database has no rules for; to itself the ticket is evidence enough.
		check(t, r.RandKey("nfs/"+lab.Host))
		_, err = c.S4U2Proxy(ctx, s, service, cred, principal(t, "nfs/"+lab.Host), TicketOptions{})
		wantErr(t, err, codeBadOption, reason.DelegationRefused, "asked to act for the user 'alice@"+lab.Name+"'")
		same, err := c.S4U2Proxy(ctx, s, service, cred, krb5.Principal{Components: service.Components}, TicketOptions{})
		check(t, err)
		if string(same.Ticket) != string(cred.Ticket) {
			t.Error("delegation to the service itself is not the evidence")
		}
	})

	t.Run("clock", func(t *testing.T) {
		late := func() time.Time { return time.Now().Add(-20 * time.Minute) }
		off := &Client{Conf: conf, Now: late}
		cred, err := off.Login(ctx, principal(t, "careful"), keys, LoginOptions{})
		check(t, err)
		if o := off.Offset(lab.Name); o < 19*time.Minute || o > 21*time.Minute {
			t.Errorf("offset %v", o)
		}
		// One that has forgotten, or comes with a ticket from elsewhere, learns from the error.
		off = &Client{Conf: conf, Now: late}
		_, err = off.Ticket(ctx, &store{[]*krb5.Credential{cred}}, cred.Client, principal(t, http), TicketOptions{})
		check(t, err)
		if o := off.Offset(lab.Name); o < 19*time.Minute || o > 21*time.Minute {
			t.Errorf("offset %v", o)
		}
		text, err := os.ReadFile(r.Conf)
		check(t, err)
		strict := &Client{Now: late, Conf: config(t, strings.Replace(string(text), "[libdefaults]", "[libdefaults]\n kdc_timesync = 0", 1))}
		_, err = strict.Login(ctx, principal(t, "careful"), keys, LoginOptions{})
		wantErr(t, err, codeSkew, reason.ClockSkew, "Clock skew too great")
		_, err = strict.Login(ctx, principal(t, "user"+lab.EnctypeName(18)), keys, LoginOptions{})
		wantErr(t, err, codeReplySkew, reason.ClockSkew, "Clock skew too great in KDC reply")
		_, err = strict.Ticket(ctx, &store{[]*krb5.Credential{cred}}, cred.Client, principal(t, http), TicketOptions{})
		wantErr(t, err, codeSkew, reason.ClockSkew)
	})

	t.Run("transports", func(t *testing.T) {
		text, err := os.ReadFile(r.Conf)
		check(t, err)
		for _, limit := range []string{"0", "1", "40000"} {
			c := &Client{Conf: config(t, strings.Replace(string(text), "[libdefaults]", "[libdefaults]\n udp_preference_limit = "+limit, 1))}
			login1(t, c, keys, "careful")
			want := "tcp"
			if limit == "40000" {
				want = "udp"
			}
			if got := c.realms[lab.Name].good.network; got != want {
				t.Errorf("limit %s: asked over %s, want %s", limit, got, want)
			}
		}
	})

	t.Run("concurrent", func(t *testing.T) {
		c := &Client{Conf: conf}
		errs := make(chan error, 32)
		for range cap(errs) {
			go func() {
				cred, err := c.Login(ctx, principal(t, "careful"), keys, LoginOptions{})
				if err == nil {
					_, err = c.Ticket(ctx, &store{[]*krb5.Credential{cred}}, cred.Client, principal(t, http), TicketOptions{})
				}
				errs <- err
			}()
		}
		for range cap(errs) {
			check(t, <-errs)
		}
	})
}

// login1 returns a store with the principal's TGT.
func login1(t testing.TB, c *Client, keys KeySource, name string) *store {
	t.Helper()
	cred, err := c.Login(t.Context(), principal(t, name), keys, LoginOptions{})
	check(t, err)
	return &store{[]*krb5.Credential{cred}}
}
