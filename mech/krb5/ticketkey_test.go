package krb5

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"gssproxyd/keytab"
	"gssproxyd/mech"
	"gssproxyd/mech/krb5/etype"
	"gssproxyd/mech/krb5/krb5conf"
	"gssproxyd/mech/krb5/wire"
	"gssproxyd/mech/reason"
)

// keyBench is a bench with more principals:
//
//	HTTP/www.example.test@EXAMPLE.TEST   3  all types
//	HTTP/alias.example.test@EXAMPLE.TEST 5, 7 aes256
//	HTTP/www.example.test@OTHER.TEST     1  aes256
//	nfs/www.example.test@EXAMPLE.TEST    2  aes128
//	HTTP/a/b@EXAMPLE.TEST                1  aes256
//	odd\/service/h@EXAMPLE.TEST          1  aes256
func keyBench(t testing.TB) (*bench, map[string]*etype.Key) {
	keys := make(map[string]*etype.Key)
	var more []keytab.Entry
	for _, e := range []struct {
		principal string
		kvno      uint32
		et        etype.ID
	}{
		{"HTTP/alias.example.test@EXAMPLE.TEST", 5, 18}, {"HTTP/alias.example.test@EXAMPLE.TEST", 7, 18},
		{"HTTP/www.example.test@OTHER.TEST", 1, 18}, {"nfs/www.example.test@EXAMPLE.TEST", 2, 17},
		{"HTTP/a/b@EXAMPLE.TEST", 1, 18}, {`odd\/service/h@EXAMPLE.TEST`, 1, 18},
	} {
		entry, k := entry(t, e.principal, e.kvno, e.et)
		keys[e.principal] = k
		more = append(more, entry)
	}
	b := newBench(t, more...)
	keys[testService] = b.keys[18]
	return b, keys
}

// keyCase is a ticket for server and kvno, encrypted with the key of another principal, towards an
// acceptor of a name ("" any, "service" or "service@host" host-based, "principal:…" that
// principal).
type keyCase struct {
	test, acceptor, server string
	kvno                   int64
	key                    string // principal whose key it is; "" a key of nobody
	et                     etype.ID
	here                   string // on success
	minor                  uint32
	reason                 reason.ID
	text                   string
}

func keyCases() []keyCase {
	const (
		www, alias = testService, "HTTP/alias.example.test@EXAMPLE.TEST"
		other, nfs = "HTTP/www.example.test@OTHER.TEST", "nfs/www.example.test@EXAMPLE.TEST"
		three, odd = "HTTP/a/b@EXAMPLE.TEST", `odd\/service/h@EXAMPLE.TEST`
		unknown    = "HTTP/unknown.example.test@EXAMPLE.TEST"
	)
	integrity, kvno, notUs, noKey := wire.MinorBadIntegrity, wire.MinorBadKeyVer, wire.MinorNotUs, wire.MinorNoKey
	return []keyCase{
		{"any", "", www, 3, www, 18, www, 0, "", ""},
		{"any, unknown server, key there", "", unknown, 9, www, 18, www, 0, "", ""},
		{"any, key of another principal", "", www, 3, nfs, 17, nfs, 0, "", ""},
		{"any, other version there", "", alias, 6, alias, 18, alias, 0, "", ""},
		{"any, unknown server", "", unknown, 3, "", 18, "", notUs, reason.NoKey, "Request ticket server HTTP/unknown.example.test@EXAMPLE.TEST not found in keytab (ticket kvno 3, enctype aes256-cts-hmac-sha1-96); the keytab has HTTP/www.example.test@EXAMPLE.TEST kvno 3, "},
		{"any, newer version", "", www, 4, "", 18, "", kvno, reason.KVNOMismatch, "kvno 4 not found in keytab; keytab is likely out of date"},
		{"any, older version", "", www, 2, "", 18, "", kvno, reason.KVNOMismatch, "kvno 2 not found in keytab; ticket is likely out of date"},
		{"any, type not in keytab", "", nfs, 2, "", 18, "", kvno, reason.NoKey, "kvno 2 found in keytab but not with enctype aes256-cts-hmac-sha1-96"},
		{"any, wrong key", "", www, 3, "", 18, "", integrity, reason.BadIntegrity, "kvno 3 enctype aes256-cts-hmac-sha1-96 found in keytab but cannot decrypt ticket"},
		{"host", "HTTP@www.example.test", www, 3, www, 18, www, 0, "", ""},
		{"host, other realm", "HTTP@www.example.test", other, 1, other, 18, other, 0, "", ""},
		{"host, other host", "HTTP@www.example.test", alias, 7, alias, 18, "", notUs, reason.WrongPrincipal, "found in keytab but does not match server principal HTTP/www.example.test@"},
		{"host, none", "HTTP@nowhere.example.test", www, 3, www, 18, "", noKey, reason.NoKey, "Server principal HTTP/nowhere.example.test@ does not match any keys in keytab"},
		{"host, key of another", "HTTP@www.example.test", www, 3, nfs, 17, "", integrity, reason.BadIntegrity, ""},
		{"service", "HTTP", alias, 7, alias, 18, alias, 0, "", ""},
		{"service, other service", "HTTP", nfs, 2, nfs, 17, "", notUs, reason.WrongPrincipal, "nfs/www.example.test@EXAMPLE.TEST found in keytab but does not match server principal HTTP/*@"},
		{"service, three components", "HTTP", three, 1, three, 18, "", notUs, reason.WrongPrincipal, ""},
		{"service, unknown server", "HTTP", unknown, 3, "", 18, "", notUs, reason.NoKey, "not found in keytab"},
		{"service with a slash", "odd/service", odd, 1, odd, 18, odd, 0, "", ""},
		{"principal", "principal:" + www, www, 3, www, 18, www, 0, "", ""},
		{"principal, default realm", "principal:HTTP/www.example.test", www, 3, www, 18, www, 0, "", ""},
		{"principal, alias in the ticket", "principal:" + www, unknown, 3, www, 18, www, 0, "", ""},
		{"principal, wrong key", "principal:" + www, www, 3, "", 18, "", integrity, reason.BadIntegrity, "Cannot decrypt ticket for " + www + " using keytab key for " + www},
		{"principal, ticket for another", "principal:" + www, alias, 3, "", 18, "", notUs, reason.WrongPrincipal, "Cannot decrypt ticket for " + alias + " using keytab key for " + www},
		{"principal, version", "principal:" + www, www, 4, "", 18, "", kvno, reason.KVNOMismatch, "Cannot find key for " + www + " kvno 4 in keytab"},
		{"principal, version, ticket for another", "principal:" + www, alias, 4, "", 18, "", notUs, reason.WrongPrincipal, "(request ticket server " + alias + ")"},
		{"principal, no such type", "principal:" + alias, alias, 7, "", 17, "", noKey, reason.NoKey, "No key table entry found for " + alias},
		{"principal, not in keytab", "principal:" + unknown, www, 3, www, 18, "", noKey, reason.NoKey, "No key table entry found for " + unknown},
		{"principal, short version", "principal:" + www, www, 0x103, www, 18, www, 0, "", ""},
		{"principal, no version", "principal:" + alias, alias, 0, alias, 18, alias, 0, "", ""},
	}
}

func (c keyCase) request(t testing.TB, keys map[string]*etype.Key) *request {
	t.Helper()
	key := keys[c.key]
	if key == nil {
		key = mustKey(t, c.et)
	}
	if key.Enctype() != c.et {
		t.Fatalf("%s: key of %v", c.test, key.Enctype())
	}
	q := newRequest(t, key, 18)
	q.server, q.kvno = mustPrincipal(t, c.server), c.kvno
	return q
}

func (c keyCase) name(t testing.TB) *Principal {
	t.Helper()
	if c.acceptor == "" {
		return nil
	}
	if s, ok := strings.CutPrefix(c.acceptor, "principal:"); ok {
		p, err := ParsePrincipal(s, "")
		if err != nil {
			t.Fatal(err)
		}
		return &p
	}
	service, host, _ := strings.Cut(c.acceptor, "@")
	return &Principal{Components: []string{service, host}, Type: NTSrvHst}
}

func TestTicketKeys(t *testing.T) {
	b, keys := keyBench(t)
	var out Accepted
	for _, c := range keyCases() {
		t.Run(c.test, func(t *testing.T) {
			b.Name = c.name(t)
			err := b.Accept(&out, c.request(t, keys).token(t), nil)
			if c.minor == 0 {
				if err != nil {
					t.Fatal(err)
				}
				if out.Context.Here != c.here {
					t.Errorf("here is %s, want %s", out.Context.Here, c.here)
				}
				return
			}
			e := wantErr(t, err, mech.Failure, c.minor, c.reason)
			if !strings.Contains(e.Text, c.text) || !strings.Contains(e.Text, "[keytab FILE:/test/krb5.keytab]") {
				t.Errorf("text %q lacks %q", e.Text, c.text)
			}
		})
	}
	t.Run("ignore_acceptor_hostname", func(t *testing.T) {
		b.Name = &Principal{Components: []string{"HTTP", "nowhere"}, Type: NTSrvHst, Realm: "ANY"}
		b.Conf = testConf()
		b.Conf.IgnoreAcceptorHostname = true
		if err := b.Accept(&out, newRequest(t, keys[testService], 18).token(t), nil); err != nil {
			t.Error(err)
		}
	})
	t.Run("not permitted", func(t *testing.T) {
		b.Conf = &krb5conf.Config{PermittedEnctypes: []etype.ID{17}}
		p := mustPrincipal(t, testService)
		b.Name = &p
		e := wantErr(t, b.Accept(&out, newRequest(t, keys[testService], 18).token(t), nil), mech.Failure, wire.MinorConfigEtype, reason.EnctypeNotPermitted)
		if !strings.Contains(e.Text, "Encryption type aes256-cts-hmac-sha1-96 not permitted") {
			t.Error(e.Text)
		}
	})
	t.Run("empty keytab", func(t *testing.T) {
		b := newBench(t)
		b.Keys = keytab.Compile("FILE:/none", nil)
		for _, name := range []*Principal{nil, {Components: []string{"HTTP", ""}, Type: NTSrvHst}, {Components: []string{"x"}, Realm: "Y"}} {
			b.Name = name
			e, ok := b.Accept(&out, newRequest(t, keys[testService], 18).token(t), nil).(*mech.Error)
			if !ok || e.Minor != wire.MinorNoKey || !strings.Contains(e.Text, "[keytab FILE:/none]") {
				t.Errorf("%v: %v", name, e)
			}
		}
	})
}

func TestAcceptorName(t *testing.T) {
	conf := confFrom(t, "[libdefaults]\n default_realm = EXAMPLE.TEST\n qualify_shortname = \"\"\n")
	for _, c := range []struct {
		display  string
		nameType mech.OID
		want     Principal
	}{
		{"HTTP", mech.NTHostbased, Principal{Components: []string{"HTTP", ""}, Type: NTSrvHst}},
		{"HTTP\x00", mech.NTHostbasedX, Principal{Components: []string{"HTTP", ""}, Type: NTSrvHst}},
		{"HTTP@", mech.NTHostbased, Principal{Components: []string{"HTTP", ""}, Type: NTSrvHst}},
		{"HTTP@WWW.example.test", mech.NTHostbased, Principal{Components: []string{"HTTP", "www.example.test"}, Type: NTSrvHst}},
		{testService, mech.NTKrb5Principal, Principal{Realm: testRealm, Components: []string{"HTTP", "www.example.test"}, Type: 1}},
	} {
		got, err := AcceptorName([]byte(c.display), c.nameType, conf, nil)
		if d := cmp.Diff(c.want, got); err != nil || d != "" {
			t.Errorf("%q: %v %s", c.display, err, d)
		}
	}
}

// TestKeysOfAnAccount: in Active Directory an account has one set of keys and many names, and a
// keytab may have them under any of these. What a refusal then says must not depend on which.
func TestKeysOfAnAccount(t *testing.T) {
	const account, alias = "WEB1$@AD.TEST", "HTTP/web1.ad.test@AD.TEST"
	b := newBench(t)
	ring := func(list ...keytab.Entry) *keytab.Ring { return keytab.Compile("FILE:/test/krb5.keytab", list) }
	entryOf := func(principal string, kvno uint32, et etype.ID) keytab.Entry {
		e, _ := entry(t, principal, kvno, et)
		return e
	}
	host := &Principal{Components: []string{"HTTP", "web1.ad.test"}, Type: NTSrvHst}
	named := func(s string) *Principal { p := mustPrincipal(t, s); return &p }
	many := func(n int) (list []keytab.Entry) {
		for _, name := range []string{"WEB1$", "host/WEB1", "host/web1", "HTTP/WEB1", "HTTP/web1", "cifs/web1", "ldap/web1"}[:n] {
			list = append(list, entryOf(name+"@AD.TEST", 2, 18), entryOf(name+"@AD.TEST", 2, 17))
		}
		return list
	}
	for _, c := range []struct {
		test   string
		keys   []keytab.Entry
		name   *Principal
		server string
		kvno   int64
		et     etype.ID
		minor  uint32
		reason reason.ID
		text   string
	}{
		{"RC4, its key under another name", []keytab.Entry{entryOf(account, 2, 23), entryOf(account, 2, 18)}, nil, alias, 2, 23,
			wire.MinorNotUs, reason.EnctypeNotPermitted,
			"Request ticket server " + alias + " not found in keytab (ticket kvno 2, enctype arcfour-hmac), and encryption type not permitted; the keytab has WEB1$@AD.TEST kvno 2 ["},
		{"RC4, no key of it", many(1), nil, alias, 2, 23, wire.MinorNotUs, reason.EnctypeNotPermitted,
			"encryption type not permitted; the keytab has WEB1$@AD.TEST kvno 2 aes128-cts-hmac-sha1-96, WEB1$@AD.TEST kvno 2 aes256-cts-hmac-sha1-96 ["},
		{"RC4, under its own name", []keytab.Entry{entryOf(alias, 2, 23)}, nil, alias, 2, 23, wire.MinorBadIntegrity, reason.EnctypeNotPermitted, "encryption type not permitted"},
		{"RC4, under its own name without RC4", []keytab.Entry{entryOf(alias, 2, 18)}, nil, alias, 2, 23, wire.MinorBadKeyVer, reason.EnctypeNotPermitted,
			"found in keytab but not with enctype arcfour-hmac, and encryption type not permitted; the keytab has " + alias + " kvno 2 aes256-cts-hmac-sha1-96 ["},
		{"RC4, account named", []keytab.Entry{entryOf(account, 2, 18)}, named(account), alias, 2, 23, wire.MinorNoKey, reason.EnctypeNotPermitted,
			"and encryption type not permitted; the keytab has " + account + " kvno 2 aes256-cts-hmac-sha1-96 ["},
		{"RC4, account named, with its key", []keytab.Entry{entryOf(account, 2, 23)}, named(account), alias, 2, 23, wire.MinorConfigEtype, reason.EnctypeNotPermitted, ""},
		{"RC4, other service's keys only", many(1), host, alias, 2, 23, wire.MinorNoKey, reason.NoKey, "does not match any keys in keytab"},
		{"kvno", many(1), nil, alias, 3, 18, wire.MinorNotUs, reason.NoKey,
			"not found in keytab (ticket kvno 3, enctype aes256-cts-hmac-sha1-96); the keytab has WEB1$@AD.TEST kvno 2 ["},
		{"kvno, rotated", []keytab.Entry{entryOf(account, 2, 18), entryOf(account, 3, 18)}, nil, alias, 4, 18, wire.MinorNotUs, reason.NoKey,
			"; the keytab has WEB1$@AD.TEST kvno 2, WEB1$@AD.TEST kvno 3 ["},
		{"kvno, many names", many(7), nil, alias, 3, 17, wire.MinorNotUs, reason.NoKey,
			"; the keytab has WEB1$@AD.TEST kvno 2, host/WEB1@AD.TEST kvno 2, host/web1@AD.TEST kvno 2, HTTP/WEB1@AD.TEST kvno 2, HTTP/web1@AD.TEST kvno 2, cifs/web1@AD.TEST kvno 2, ... ["},
		{"kvno, those the name allows", many(5), &Principal{Components: []string{"HTTP", ""}, Type: NTSrvHst}, alias, 3, 18, wire.MinorNotUs, reason.NoKey,
			"; the keytab has HTTP/WEB1@AD.TEST kvno 2, HTTP/web1@AD.TEST kvno 2 ["},
		{"kvno, account named", many(2), named(account), alias, 3, 18, wire.MinorNotUs, reason.WrongPrincipal, "; the keytab has WEB1$@AD.TEST kvno 2 ["},
		{"kvno, one name", many(1), nil, account, 3, 18, wire.MinorBadKeyVer, reason.KVNOMismatch, "(enctype aes256-cts-hmac-sha1-96); the keytab has WEB1$@AD.TEST kvno 2 ["},
	} {
		t.Run(c.test, func(t *testing.T) {
			b.Keys, b.Name, b.Conf = ring(c.keys...), c.name, nil
			q := newRequest(t, mustKey(t, c.et), 18)
			q.server, q.kvno = mustPrincipal(t, c.server), c.kvno
			var out Accepted
			e := wantErr(t, b.Accept(&out, q.token(t), nil), mech.Failure, c.minor, c.reason)
			if !strings.Contains(e.Text, c.text) {
				t.Errorf("text %q lacks %q", e.Text, c.text)
			}
		})
	}
}
