package kdc

import (
	"context"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"gssproxyd/keytab"
	"gssproxyd/mech"
	"gssproxyd/mech/krb5"
	"gssproxyd/mech/krb5/etype"
	"gssproxyd/mech/krb5/krb5conf"
	"gssproxyd/mech/krb5/wire"
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

// copy is a store with the same tickets, of which s does not see what is added.
func (s *store) copy() *store { return &store{slices.Clone(s.creds)} }

// servers lists what the store has tickets for.
func (s *store) servers() string {
	var list []string
	for _, c := range s.creds {
		list = append(list, c.Server.String())
	}
	return strings.Join(list, " ")
}

// wantErr checks an error's minor status, 0 for one of malformed messages, and its reason, and that
// its text has the words.
func wantErr(t testing.TB, err error, wanted uint32, reason reason.ID, words ...string) {
	t.Helper()
	e, ok := err.(*mech.Error)
	if !ok || e == nil {
		t.Fatalf("got %v, want a *mech.Error", err)
	}
	got := e.Minor
	if got&^0xff == mech.MinorASN1 {
		got = 0
	}
	if got != wanted || e.Reason != reason || e.Major != mech.Failure || e.Mech != mech.KRB5 {
		t.Fatalf("got major %#x, minor %#x, reason %q (%s), want minor %#x, %q", e.Major, e.Minor, e.Reason, e.Text, wanted, reason)
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

// live is one realm of MIT's with the principals that the tests of TestRealm share.
type live struct {
	*lab.Realm
	text string // of krb5.conf
	c    *Client
	keys KeySource
}

// TestRealm runs against one realm, since raising one takes its time.
func TestRealm(t *testing.T) {
	r := lab.New(t)
	text, err := os.ReadFile(r.Conf)
	check(t, err)
	l := &live{Realm: r, text: string(text), c: &Client{Conf: load(t, r.Conf)}}
	names := []string{"careful", "HTTP/" + lab.Host}
	check(t, r.AddPrincipal("careful", "pw")) // requires pre-authentication
	check(t, r.RandKey("HTTP/"+lab.Host))
	for n := 17; n <= 20; n++ {
		check(t, r.RandKey("user"+lab.EnctypeName(n), lab.EnctypeName(n)))
		names = append(names, "user"+lab.EnctypeName(n))
	}
	path, err := r.Keytab("kdc.keytab", names...)
	check(t, err)
	l.keys = readKeytab(t, path)

	t.Run("keytab", l.keytab)
	t.Run("pre-authentication", l.preauth)
	t.Run("password", l.password)
	t.Run("wrong key", l.wrongKey)
	t.Run("unknown", l.unknown)
	t.Run("service", l.service)
	t.Run("expired", l.expired)
	t.Run("renew", l.renew)
	t.Run("forward", l.forward)
	t.Run("S4U2Self", l.s4u2self)
	t.Run("S4U2Proxy", l.s4u2proxy)
	t.Run("clock", l.clock)
	t.Run("transports", l.transports)
	t.Run("concurrent", l.concurrent)
}

// client is one whose krb5.conf has more settings in [libdefaults].
func (l *live) client(t testing.TB, settings string) *Client {
	t.Helper()
	return &Client{Conf: config(t, strings.Replace(l.text, "[libdefaults]", "[libdefaults]\n "+settings, 1))}
}

// Every type of key will do, and what krb5.conf or the caller ask for is what comes.
func (l *live) keytab(t *testing.T) {
	for n := 17; n <= 20; n++ {
		name := "user" + lab.EnctypeName(n) + "@" + lab.Name
		cred, err := l.c.Login(t.Context(), principal(t, name), l.keys, LoginOptions{})
		check(t, err)
		checkCred(t, cred, name, tgs, 0)
		// Nothing but its own type.
		cred, err = l.client(t, "default_tkt_enctypes = "+lab.EnctypeName(n)).Login(t.Context(), principal(t, name), l.keys, LoginOptions{})
		check(t, err)
		checkCred(t, cred, name, tgs, etype.ID(n))
		s := &store{[]*krb5.Credential{cred}}
		cred, err = l.c.Ticket(t.Context(), s, cred.Client, principal(t, http), TicketOptions{Enctypes: []etype.ID{etype.ID(n)}})
		check(t, err)
		checkCred(t, cred, name, http, etype.ID(n))
	}
}

// The KDC asks for a timestamp and gets it; the ticket is what krb5.conf asks for.
func (l *live) preauth(t *testing.T) {
	c := l.client(t, "ticket_lifetime = 1h\n renew_lifetime = 2h")
	cred, err := c.Login(t.Context(), principal(t, "careful"), l.keys, LoginOptions{Options: wire.FlagForwardable})
	check(t, err)
	checkCred(t, cred, "careful@"+lab.Name, tgs, 0)
	now := time.Now().Unix()
	if cred.Flags&(wire.FlagForwardable|wire.FlagRenewable) != wire.FlagForwardable|wire.FlagRenewable || int64(cred.EndTime) > now+3605 || int64(cred.RenewTill) < now+7000 {
		t.Errorf("flags %#x, ends in %d, renewable for %d", cred.Flags, int64(cred.EndTime)-now, int64(cred.RenewTill)-now)
	}
}

// A password makes the key of whatever type the KDC has.
func (l *live) password(t *testing.T) {
	for n := 17; n <= 20; n++ {
		check(t, l.AddPrincipal("pw"+lab.EnctypeName(n), "Kennwörter", lab.EnctypeName(n)))
		cred, err := l.c.Login(t.Context(), principal(t, "pw"+lab.EnctypeName(n)), Password(etype.Secret("Kennwörter")), LoginOptions{})
		check(t, err)
		checkCred(t, cred, "pw"+lab.EnctypeName(n)+"@"+lab.Name, tgs, 0)
	}
	_, err := l.c.Login(t.Context(), principal(t, "alice"), Password(etype.Secret("wrong")), LoginOptions{})
	wantErr(t, err, wire.MinorPreauthFailed, reason.PreauthFailed, "Preauthentication failed")
}

// A refusal says whose key was used, and from where.
func (l *live) wrongKey(t *testing.T) {
	for n := 17; n <= 18; n++ {
		for name, want := range map[string]uint32{"careful": wire.MinorPreauthFailed, "user" + lab.EnctypeName(n): wire.MinorBadIntegrity} {
			wrong := keytab.Compile("FILE:/wrong", []keytab.Entry{{Principal: name + "@" + lab.Name, KVNO: 1, Enctype: etype.ID(n), Key: make(etype.Secret, etype.ID(n).KeySize())}})
			_, err := l.c.Login(t.Context(), principal(t, name), Keytab(wrong), LoginOptions{})
			wantErr(t, err, want, reason.PreauthFailed, "client "+name+"@"+lab.Name, "key of FILE:/wrong, kvno 1")
		}
	}
	_, err := l.c.Login(t.Context(), principal(t, "nobody"), l.keys, LoginOptions{})
	wantErr(t, err, wire.MinorNotInKeytab, reason.NoKey, "Keytab contains no suitable keys for nobody@"+lab.Name)
}

// Clients, servers and realms that nobody knows.
func (l *live) unknown(t *testing.T) {
	ctx := t.Context()
	_, err := l.c.Login(ctx, principal(t, "nobody"), Password(etype.Secret("x")), LoginOptions{})
	wantErr(t, err, wire.MinorClientUnknown, reason.ClientUnknown, "Client 'nobody@"+lab.Name+"' not found in Kerberos database")
	s := login1(t, l.c, l.keys, "careful")
	_, err = l.c.Ticket(ctx, s, principal(t, "careful"), principal(t, "nothing/there@"+lab.Name), TicketOptions{})
	wantErr(t, err, wire.MinorServerUnknown, reason.ServerUnknown, "Server nothing/there@"+lab.Name+" not found in Kerberos database")
	_, err = l.c.Ticket(ctx, s, principal(t, "careful"), krb5.Principal{Components: []string{"nothing", "www.nowhere.test"}}, TicketOptions{})
	wantErr(t, err, wire.MinorServerUnknown, reason.ServerUnknown, "not found in Kerberos database")
	_, err = l.c.Login(ctx, principal(t, "a@NOWHERE.TEST"), Password(etype.Secret("x")), LoginOptions{})
	wantErr(t, err, wire.MinorRealmUnknown, reason.KDCUnreachable, `Cannot find KDC for realm "NOWHERE.TEST"`)
}

// A service ticket comes once from the KDC, then from the store, under the name that was asked for.
func (l *live) service(t *testing.T) {
	ctx := t.Context()
	s := login1(t, l.c, l.keys, "careful")
	cred, err := l.c.Ticket(ctx, s, principal(t, "careful"), principal(t, http), TicketOptions{})
	check(t, err)
	checkCred(t, cred, "careful@"+lab.Name, http, 0)
	again, err := l.c.Ticket(ctx, s, principal(t, "careful"), principal(t, http), TicketOptions{})
	check(t, err)
	if string(again.Ticket) != string(cred.Ticket) {
		t.Error("another ticket than the one stored")
	}
	// By referral: what was asked for is what comes back.
	byHost := krb5.Principal{Components: []string{"HTTP", lab.Host}, Type: krb5.NTSrvHst}
	cred, err = l.c.Ticket(ctx, s, principal(t, "careful"), byHost, TicketOptions{})
	check(t, err)
	checkCred(t, cred, "careful@"+lab.Name, "HTTP/"+lab.Host+"@", 0)
	if s.servers() != tgs+" "+http+" HTTP/"+lab.Host+"@" {
		t.Errorf("the store has %s", s.servers())
	}
	_, err = l.c.Ticket(ctx, new(store), principal(t, "careful"), principal(t, http), TicketOptions{})
	wantErr(t, err, wire.MinorNoCredential, reason.NoCredential, "ticket-granting ticket of careful")
}

// A TGT that is over gets nothing; the KDC has the last word on whether it is.
func (l *live) expired(t *testing.T) {
	s := login1(t, l.c, l.keys, "careful")
	s.creds[0].EndTime = uint32(time.Now().Unix() - 1)
	_, err := l.c.Ticket(t.Context(), s, principal(t, "careful"), principal(t, http), TicketOptions{})
	wantErr(t, err, wire.MinorExpired, reason.TicketExpired, "Ticket expired")
	cred := login1(t, l.client(t, "ticket_lifetime = 1s"), l.keys, "careful").creds[0]
	cred.EndTime += 3600
	time.Sleep(1500 * time.Millisecond)
	_, err = l.c.Ticket(t.Context(), &store{[]*krb5.Credential{cred}}, cred.Client, principal(t, http), TicketOptions{})
	wantErr(t, err, wire.MinorExpired, reason.TicketExpired)
}

// A renewed ticket ends later and is otherwise the same.
func (l *live) renew(t *testing.T) {
	cred := login1(t, l.client(t, "ticket_lifetime = 1h\n renew_lifetime = 5h"), l.keys, "careful").creds[0]
	time.Sleep(1100 * time.Millisecond)
	renewed, err := l.c.Renew(t.Context(), cred)
	check(t, err)
	checkCred(t, renewed, "careful@"+lab.Name, tgs, 0)
	if renewed.EndTime <= cred.EndTime || renewed.AuthTime != cred.AuthTime || renewed.RenewTill != cred.RenewTill {
		t.Errorf("renewed from %d/%d/%d to %d/%d/%d", cred.AuthTime, cred.EndTime, cred.RenewTill, renewed.AuthTime, renewed.EndTime, renewed.RenewTill)
	}
	once := login1(t, l.c, l.keys, "careful").creds[0]
	_, err = l.c.Renew(t.Context(), once)
	wantErr(t, err, wire.MinorBadOption, reason.KDCRefused, "KDC can't fulfill requested option")
}

// A forwarded TGT has a key of its own and works where it has gone.
func (l *live) forward(t *testing.T) {
	tgt := login1(t, l.c, l.keys, "careful").creds[0]
	f, err := l.c.Forward(t.Context(), tgt, etype.AES128SHA1)
	check(t, err)
	checkCred(t, f, "careful@"+lab.Name, tgs, 0)
	if f.Flags&(wire.FlagForwarded|wire.FlagForwardable) != wire.FlagForwarded|wire.FlagForwardable || string(f.Key) == string(tgt.Key) {
		t.Errorf("forwarded ticket with flags %#x", f.Flags)
	}
	cred, err := l.c.Ticket(t.Context(), &store{[]*krb5.Credential{f}}, f.Client, principal(t, http), TicketOptions{})
	check(t, err)
	checkCred(t, cred, "careful@"+lab.Name, http, 0)
	own := login1(t, &Client{Conf: config(t, strings.Replace(l.text, "forwardable = true", "forwardable = false", 1))}, l.keys, "careful").creds[0]
	_, err = l.c.Forward(t.Context(), own, etype.AES128SHA1)
	wantErr(t, err, wire.MinorBadOption, reason.KDCRefused)
}

// The service gets a ticket for itself in the name of a user, and leaves none in its store.
func (l *live) s4u2self(t *testing.T) {
	ctx := t.Context()
	s := login1(t, l.c, l.keys, "HTTP/"+lab.Host)
	service := principal(t, http)
	cred, err := l.c.S4U2Self(ctx, s, service, principal(t, "alice"))
	check(t, err)
	checkCred(t, cred, "alice@"+lab.Name, http, 0)
	// As an enterprise name, which the KDC takes for a name of its realm.
	_, err = l.c.S4U2Self(ctx, s, service, krb5.Principal{Components: []string{"nobody@mail.test"}, Type: krb5.NTEnterprise})
	wantErr(t, err, wire.MinorClientUnknown, reason.UserUnknown, "the KDC of realm '"+lab.Name+"' knows no user 'nobody\\@mail.test@"+lab.Name+"' to act for")
	_, err = l.c.S4U2Self(ctx, s, service, principal(t, "nobody"))
	wantErr(t, err, wire.MinorClientUnknown, reason.UserUnknown, "the KDC of realm '"+lab.Name+"' knows no user 'nobody@"+lab.Name+"' to act for")
	check(t, l.AddPrincipal("locked", "locked"))
	check(t, l.Attribute("locked", "-allow_tix"))
	_, err = l.c.S4U2Self(ctx, s, service, principal(t, "locked"))
	wantErr(t, err, wire.MinorClientRevoked, reason.UserRefused, "asked to act for the user 'locked@"+lab.Name+"'")
	_, err = l.c.S4U2Self(ctx, s, service, krb5.Principal{})
	wantErr(t, err, wire.MinorWrongPrincipal, reason.BadName)
	if s.servers() != tgs {
		t.Errorf("the store has %s", s.servers())
	}
}

// This KDC's database has no rules for going on; to the service itself the ticket is evidence
// enough.
func (l *live) s4u2proxy(t *testing.T) {
	ctx := t.Context()
	s := login1(t, l.c, l.keys, "HTTP/"+lab.Host)
	service := principal(t, http)
	cred, err := l.c.S4U2Self(ctx, s, service, principal(t, "alice"))
	check(t, err)
	check(t, l.RandKey("nfs/"+lab.Host))
	_, err = l.c.S4U2Proxy(ctx, s, service, cred, principal(t, "nfs/"+lab.Host), TicketOptions{})
	wantErr(t, err, wire.MinorBadOption, reason.DelegationRefused, "asked to act for the user 'alice@"+lab.Name+"'")
	same, err := l.c.S4U2Proxy(ctx, s, service, cred, krb5.Principal{Components: service.Components}, TicketOptions{})
	check(t, err)
	if string(same.Ticket) != string(cred.Ticket) {
		t.Error("delegation to the service itself is not the evidence")
	}
}

// A host whose clock is wrong learns the KDC's time, unless kdc_timesync is off.
func (l *live) clock(t *testing.T) {
	ctx := t.Context()
	late := func() time.Time { return time.Now().Add(-20 * time.Minute) }
	off := &Client{Conf: l.c.Conf, Now: late}
	cred, err := off.Login(ctx, principal(t, "careful"), l.keys, LoginOptions{})
	check(t, err)
	if o := off.Offset(lab.Name); o < 19*time.Minute || o > 21*time.Minute {
		t.Errorf("offset %v", o)
	}
	// One that has forgotten, or comes with a ticket from elsewhere, learns from the error.
	off = &Client{Conf: l.c.Conf, Now: late}
	_, err = off.Ticket(ctx, &store{[]*krb5.Credential{cred}}, cred.Client, principal(t, http), TicketOptions{})
	check(t, err)
	if o := off.Offset(lab.Name); o < 19*time.Minute || o > 21*time.Minute {
		t.Errorf("offset %v", o)
	}
	strict := l.client(t, "kdc_timesync = 0")
	strict.Now = late
	_, err = strict.Login(ctx, principal(t, "careful"), l.keys, LoginOptions{})
	wantErr(t, err, wire.MinorSkew, reason.ClockSkew, "Clock skew too great")
	_, err = strict.Login(ctx, principal(t, "user"+lab.EnctypeName(18)), l.keys, LoginOptions{})
	wantErr(t, err, wire.MinorReplySkew, reason.ClockSkew, "Clock skew too great in KDC reply")
	_, err = strict.Ticket(ctx, &store{[]*krb5.Credential{cred}}, cred.Client, principal(t, http), TicketOptions{})
	wantErr(t, err, wire.MinorSkew, reason.ClockSkew)
}

// udp_preference_limit says which transport comes first.
func (l *live) transports(t *testing.T) {
	for _, limit := range []string{"0", "1", "40000"} {
		c := l.client(t, "udp_preference_limit = "+limit)
		login1(t, c, l.keys, "careful")
		want := "tcp"
		if limit == "40000" {
			want = "udp"
		}
		if got := c.realms[lab.Name].good.network; got != want {
			t.Errorf("limit %s: asked over %s, want %s", limit, got, want)
		}
	}
}

// One Client serves many callers at once.
func (l *live) concurrent(t *testing.T) {
	c := &Client{Conf: l.c.Conf}
	errs := make(chan error, 32)
	for range cap(errs) {
		go func() {
			cred, err := c.Login(t.Context(), principal(t, "careful"), l.keys, LoginOptions{})
			if err == nil {
				_, err = c.Ticket(t.Context(), &store{[]*krb5.Credential{cred}}, cred.Client, principal(t, http), TicketOptions{})
			}
			errs <- err
		}()
	}
	for range cap(errs) {
		check(t, <-errs)
	}
}

// login1 returns a store with the principal's TGT.
func login1(t testing.TB, c *Client, keys KeySource, name string) *store {
	t.Helper()
	cred, err := c.Login(t.Context(), principal(t, name), keys, LoginOptions{})
	check(t, err)
	return &store{[]*krb5.Credential{cred}}
}
