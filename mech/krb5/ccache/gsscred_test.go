package ccache

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"gssproxyd/mech"
	"gssproxyd/mech/krb5"
	"gssproxyd/mech/krb5/etype"
)

// sameBytes compares keys, which print redacted.
var sameBytes = cmp.Comparer(func(a, b etype.Secret) bool { return bytes.Equal(a, b) })

func golden(t testing.TB, base string) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("testdata", base))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// What MIT's gss_export_cred wrote comes out again byte for byte.
func TestGSSCredGolden(t *testing.T) {
	for _, test := range []struct {
		file  string
		check func(*GSSCred) bool
	}{
		{"deleg.cred", func(c *GSSCred) bool {
			return c.Usage == 1 && c.Impersonator == nil && len(c.Content.Credentials) == 1 &&
				c.Content.Credentials[0].Server.String() == "krbtgt/EXAMPLE.TEST@EXAMPLE.TEST" &&
				c.Content.Credentials[0].Flags == 1619591168 && c.Content.Credentials[0].EndTime == 1795344466 &&
				len(c.Content.Credentials[0].Key) == 32 && c.Content.Credentials[0].KeyType == etype.AES256SHA1 && c.Expire == 1795344466
		}},
		{"s4u.cred", func(c *GSSCred) bool {
			conf := c.Content.Credentials[3]
			return c.Impersonator.String() == "svc/aes256-cts-hmac-sha1-96@EXAMPLE.TEST" &&
				c.Name.Principal.String() == "alice@EXAMPLE.TEST" && c.Content.Principal.String() == "alice@EXAMPLE.TEST" &&
				len(c.Content.Credentials) == 5 && IsConfig(conf.Server) && conf.Server.Components[1] == ProxyImpersonator &&
				string(conf.Ticket) == c.Impersonator.String()
		}},
		{"self.cred", func(c *GSSCred) bool {
			return c.Usage == 0 && c.Keytab == "FILE:/etc/krb5.v1/svc.keytab" && c.ClientKeytab == c.Keytab && c.Rcache == "dfl:" &&
				c.HaveTGT && c.Content.Credentials[0].Server.Components[2] == "krbtgt/EXAMPLE.TEST@EXAMPLE.TEST"
		}},
	} {
		t.Run(test.file, func(t *testing.T) {
			token := golden(t, test.file)
			c, err := ParseGSSCred(token)
			if err != nil {
				t.Fatal(err)
			}
			if !test.check(c) {
				t.Errorf("read as %+v", c)
			}
			// The token of an acceptor's credential may be followed by one of another mechanism.
			n := 8 + len(mech.KRB5) + int(binary.BigEndian.Uint32(token[4+len(mech.KRB5):]))
			if got := c.Append(nil); !bytes.Equal(got, token[:n]) {
				t.Errorf("written again:\n%q\nexpected\n%q", got, token[:n])
			}
		})
	}
}

// Every field and every kind of string, there and back.
func TestGSSCredRoundTrip(t *testing.T) {
	alice := krb5.Principal{Realm: "EX\xffAMPLE", Components: []string{"al\\i\"c/e", "\x01\t\n\x1f@"}, Type: krb5.NTPrincipal}
	for i, c := range []*GSSCred{
		{},
		{Usage: 2, Name: &GSSName{Service: "host", Host: "lab"}, DefaultIdentity: true, IAKERB: true, CCache: "KEYRING:persistent:0:0"},
		{Name: &GSSName{Principal: &alice}, Impersonator: &alice, Expire: -1, RefreshTime: 1 << 40, Enctypes: []etype.ID{18, -138},
			Password: etype.Secret("p\"\\\x02ä"), Content: &Content{Principal: alice, Credentials: []*krb5.Credential{
				testCred("alice", "krbtgt/EXAMPLE.TEST", 18, 1<<32-1), {}}}},
		{Enctypes: []etype.ID{}, Password: etype.Secret{}, Content: &Content{Principal: alice, Credentials: []*krb5.Credential{
			{Client: alice, Server: alice, IsSKey: true, Flags: 1<<32 - 1, Addresses: []krb5.Address{}, AuthData: []krb5.AuthData{}},
			{Client: alice, Server: alice, Addresses: []krb5.Address{{Type: -1, Data: []byte{1}}, {Type: 2}}, AuthData: []krb5.AuthData{{Type: 128, Data: []byte("x")}, {Type: 1}},
				SecondTicket: []byte{0, 1, 2}}}}},
	} {
		got, err := ParseGSSCred(c.Append(nil))
		if err != nil {
			t.Errorf("%d: %v", i, err)
		} else if d := cmp.Diff(c, got, sameBytes); d != "" {
			t.Errorf("%d: %s", i, d)
		}
	}
}

func TestGSSCredRefused(t *testing.T) {
	wrap := func(json string) []byte {
		b := binary.BigEndian.AppendUint32(nil, 9)
		b = append(b, mech.KRB5...)
		b = binary.BigEndian.AppendUint32(b, uint32(len(json)))
		return append(b, json...)
	}
	const tail = `null,false,false,null,null,null,null,false,0,0,null,null]]`
	for _, test := range []struct{ token, want string }{
		{"", "none of the mechanism 1.2.840.113554.1.2.2"},
		{"\x00", "cut short"},
		{"\xff\xff\xff\xffx", "mechanism of 4294967295 bytes, but 1 are left"},
		{"\x00\x00\x00\x01x\x00\x00\x00\x00", "none of the mechanism"},
		{string(wrap(``)), "byte 0: expected ["},
		{string(wrap(`["K5C2",[`)), `expected "K5C1"`},
		{string(wrap(`["K5C1",[3,null,` + tail)), "integer from 0 to 2"},
		{string(wrap(`["K5C1",[1,null,` + tail + `x`)), "expected the end"},
		{string(wrap(`["K5C1",[1,[null,null],` + tail)), "expected ,"},
		{string(wrap(`["K5C1",[1,["a\\",null,null],` + tail)), "malformed principal"},
		{string(wrap(`["K5C1",[1,[null,"\u0100",null],` + tail)), `expected one of`},
		{string(wrap(`["K5C1",[1,[null,"\u00`)), `expected one of`},
		{string(wrap(`["K5C1",[1,[null,"\`)), `string without end`},
		{string(wrap(`["K5C1",[1,[null,"` + "\x00" + `",null],` + tail)), `NUL`},
		{string(wrap(`["K5C1",[1,null,null,false,false,null,null,[],null,false,0,0,null,null]]`)), "principal"},
		{string(wrap(`["K5C1",[1,null,null,false,false,null,null,["a",["b"`)), "expected ,"},
		{string(wrap(`["K5C1",[1,null,null,false,false,null,null,["a",[null,null,[18,"?"]`)), "expected base64"},
		{string(wrap(`["K5C1",[1,null,null,false,false,null,null,null,null,false,9223372036854775808,0,null,null]]`)), "integer"},
	} {
		c, err := ParseGSSCred([]byte(test.token))
		if err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%q: %v, %v; expected %q", test.token, c, err, test.want)
		}
	}
}

func TestGSSCredPrintsNoKeys(t *testing.T) {
	c, err := ParseGSSCred(golden(t, "deleg.cred"))
	if err != nil {
		t.Fatal(err)
	}
	c.Password = etype.Secret("opensesame")
	cred := c.Content.Credentials[0]
	key := string(cred.Key)
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%x", "%q"} {
		for _, v := range []any{c, *c, c.Content, *c.Content, cred, *cred} {
			s := fmt.Sprintf(verb, v)
			if strings.Contains(s, key) || strings.Contains(s, fmt.Sprintf("%x", key[:8])) || strings.Contains(s, "opensesame") {
				t.Errorf("%s of a %T prints a key: %s", verb, v, s)
			}
		}
	}
	c.Destroy()
	if !bytes.Equal(cred.Key, make([]byte, 32)) || !bytes.Equal(c.Password, make([]byte, 10)) {
		t.Error("Destroy leaves keys")
	}
}

func FuzzParseGSSCred(f *testing.F) {
	for _, base := range []string{"deleg.cred", "s4u.cred", "self.cred"} {
		f.Add(golden(f, base))
	}
	f.Add((&GSSCred{Enctypes: []etype.ID{17}, Password: etype.Secret("\x01")}).Append(nil))
	f.Fuzz(func(t *testing.T, b []byte) {
		c, err := ParseGSSCred(b)
		if err != nil {
			return
		}
		again, err := ParseGSSCred(c.Append(nil))
		if err != nil {
			t.Fatalf("%v, of our own %q", err, c.Append(nil))
		}
		if !bytes.Equal(again.Append(nil), c.Append(nil)) {
			t.Fatalf("%q becomes %q", c.Append(nil), again.Append(nil))
		}
	})
}
