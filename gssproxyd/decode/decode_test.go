package decode

import (
	"bytes"
	"crypto/rand"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"gssproxyd/keytab/seal"
	"gssproxyd/mech"
	"gssproxyd/mech/krb5/der"
	"gssproxyd/mech/krb5/etype"
	"gssproxyd/mech/krb5/wire"
	"gssproxyd/mech/reason"
	"gssproxyd/mech/spnego"
	"gssproxyd/xdr"
)

// text is what Fprint prints of a token.
func text(b []byte) string {
	var out strings.Builder
	p := Token(b)
	Fprint(&out, &p)
	return out.String()
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// frame puts GSS-API framing and a token identifier around a message.
func frame(oid mech.OID, id string, message []byte) []byte {
	b, outer := der.Begin(nil, der.Application(0))
	b = der.AppendValue(b, der.ObjectID, []byte(oid))
	return der.End(append(append(b, id...), message...), outer)
}

// made are tokens of each kind.
var made = func() map[string][]byte {
	key := must(etype.NewKey(etype.AES256SHA1, bytes.Repeat([]byte{7}, 32)))
	server := wire.Principal{Realm: "EXAMPLE.COM", Components: []string{"HTTP", "www.example.com"}, Type: wire.NTSrvHst}
	encrypted := func(plain string, kvno int64) []byte {
		b := must(wire.AppendEncrypted(nil, key, wire.UsageTicket, []byte(plain)))
		if kvno == 0 {
			return b
		}
		r := der.NewReader(b)
		r.Enter(der.Sequence)
		kind, cipher := r.Raw(), r.Raw()
		out, seq := der.Begin(nil, der.Sequence)
		out = append(out, kind...)
		out = der.AppendValue(out, der.Context(1), der.AppendInt(nil, kvno))
		return der.End(append(out, cipher...), seq)
	}
	ticket, app := der.Begin(nil, der.Application(1))
	ticket, seq := der.Begin(ticket, der.Sequence)
	ticket = der.AppendValue(ticket, der.Context(0), der.AppendInt(nil, 5))
	ticket = der.AppendValue(ticket, der.Context(1), der.AppendString(nil, server.Realm))
	name, sname := der.Begin(nil, der.Sequence)
	name = der.AppendValue(name, der.Context(0), der.AppendInt(nil, int64(server.Type)))
	name = der.AppendValue(name, der.Context(1), der.AppendValue(nil, der.Sequence, slices.Concat(der.AppendString(nil, "HTTP"), der.AppendString(nil, "www.example.com"))))
	ticket = der.AppendValue(ticket, der.Context(2), der.End(name, sname))
	ticket = der.AppendValue(ticket, der.Context(3), encrypted("the ticket's part", 3))
	ticket = der.End(der.End(ticket, seq), app)

	apReq := must(wire.AppendAPReq(nil, wire.APMutualRequired|1, ticket, key, wire.UsageAPReq, []byte("the authenticator")))
	framed := frame(mech.KRB5, "\x01\x00", apReq)
	mechs := der.AppendValue(nil, der.Sequence, slices.Concat(der.AppendValue(nil, der.ObjectID, []byte(mech.KRB5)), der.AppendValue(nil, der.ObjectID, []byte(spnego.NTLM))))
	ntlm := "NTLMSSP\x00\x01\x00\x00\x00\x07\x82\x08\xa2"
	serverName := func() wire.Name {
		var t wire.Ticket
		if err := t.Parse(ticket); err != nil {
			panic(err)
		}
		return t.Server
	}()
	krbError := wire.AppendKRBError(nil, wire.MinorSkew, time.Unix(1_700_000_000, 0), serverName)
	// As a KDC answers: with the client's name, and its clock in an error.
	client := slices.Concat(der.AppendValue(nil, der.Context(3), der.AppendString(nil, server.Realm)), der.AppendValue(nil, der.Context(4), der.AppendValue(nil, der.Sequence,
		slices.Concat(der.AppendValue(nil, der.Context(0), der.AppendInt(nil, 1)), der.AppendValue(nil, der.Context(1), der.AppendValue(nil, der.Sequence, der.AppendString(nil, "alice")))))))
	kdcRep := func(kind int) []byte {
		b, app := der.Begin(nil, der.Application(kind))
		b, seq := der.Begin(b, der.Sequence)
		b = der.AppendValue(b, der.Context(0), der.AppendInt(nil, 5))
		b = der.AppendValue(b, der.Context(1), der.AppendInt(nil, int64(kind)))
		b = append(b, client...)
		b = der.AppendValue(b, der.Context(5), ticket)
		return der.End(der.End(der.AppendValue(b, der.Context(6), encrypted("the client's part", 0)), seq), app)
	}
	withClock := func(e []byte) []byte {
		r := der.NewReader(e)
		r.Enter(der.Application(wire.MsgError))
		r.Enter(der.Sequence)
		b, app := der.Begin(nil, der.Application(wire.MsgError))
		b, seq := der.Begin(b, der.Sequence)
		b = append(append(b, r.Raw()...), r.Raw()...)
		b = der.AppendValue(b, der.Context(2), der.AppendTime(nil, 1_700_000_900))
		b = append(b, r.Rest()...)
		b = der.AppendValue(b, der.Context(11), der.AppendString(nil, "no\x1b[31m"))
		return der.End(der.End(der.AppendValue(b, der.Context(12), der.AppendOctets(nil, []byte("data"))), seq), app)
	}
	box := seal.New()
	sealed := box.Seal(nil, []byte("a credential"), "", seal.KindNamedCred)
	cred := xdr.Cred{DesiredName: xdr.Name{DisplayName: []byte("alice@EXAMPLE.COM")}, CredHandleReference: sealed}
	token := func(id uint16, flags byte, rest string) []byte {
		b := append(binary.BigEndian.AppendUint16(nil, id), flags)
		return append(b, rest...)
	}
	return map[string][]byte{
		"ticket":         ticket,
		"ap-req":         apReq,
		"framed":         framed,
		"spnego":         (&spnego.NegTokenInit{MechTypes: mechs, MechToken: framed}).Append(nil),
		"spnego-ntlm":    (&spnego.NegTokenInit{MechTypes: der.AppendValue(nil, der.Sequence, der.AppendValue(nil, der.ObjectID, []byte(spnego.NTLM))), MechToken: []byte(ntlm)}).Append(nil),
		"spnego-resp":    (&spnego.NegTokenResp{State: spnego.AcceptCompleted, SupportedMech: []byte(mech.KRB5), ResponseToken: frame(mech.KRB5, "\x02\x00", must(wire.AppendAPRep(nil, key, []byte("the answer")))), MechListMIC: []byte("0123")}).Append(nil),
		"spnego-reject":  (&spnego.NegTokenResp{State: spnego.Reject}).Append(nil),
		"ntlm":           []byte(ntlm),
		"krb-error":      frame(mech.KRB5, "\x03\x00", krbError),
		"krb-error+":     withClock(krbError),
		"as-rep":         kdcRep(wire.MsgASRep),
		"tgs-rep":        kdcRep(wire.MsgTGSRep),
		"krb-cred":       must(wire.AppendCred(nil, ticket, key, []byte("the keys"))),
		"mic":            token(0x0404, 1, "\xff\xff\xff\xff\xff\x00\x00\x00\x00\x00\x00\x00\x2a0123456789ab"),
		"wrap":           token(0x0504, 6, "\xff\x00\x10\x00\x1c\x00\x00\x00\x00\x00\x00\x00\x05and a message"),
		"rfc1964":        frame(mech.KRB5, "\x02\x01", []byte("\x11\x00\x10\x00\xff\xff")),
		"exported-name":  mech.AppendExportedName(nil, mech.KRB5, "alice@EXAMPLE.COM"),
		"context":        []byte("\x00\x00\x00\x09" + string(mech.KRB5) + "\x02\x5e\xa1\x08 and keys"),
		"sealed":         sealed,
		"credential":     cred.Append(nil),
		"keytab":         []byte("\x05\x02\x00\x00\x00\x01"),
		"ccache":         []byte("\x05\x04\x00\x0c\x00\x01\x00\x08\xff\xff\xff\xff\x00\x00\x00\x00"),
		"as-req":         []byte("\x6a\x02\x30\x00"),
		"unknown":        []byte("hello"),
		"other mech":     frame("\x2a\x03", "", []byte("x")),
		"cut short":      framed[:len(framed)-9],
		"spnego cut":     (&spnego.NegTokenInit{MechTypes: mechs, MechToken: framed}).Append(nil)[:100],
		"no id":          frame(mech.KRB5, "\x01", nil),
		"wrong id":       frame(mech.KRB5, "\x09\x09", nil),
		"mechToken only": der.AppendValue(nil, der.Context(0), nil),
	}
}()

func TestText(t *testing.T) {
	for name, want := range map[string]string{
		"spnego": `SPNEGO NegTokenInit, the first token of a negotiation, 277 octets
  mechanisms: krb5 (1.2.840.113554.1.2.2), NTLM (1.3.6.1.4.1.311.2.2.10)
  token with the framing of GSS-API, 224 octets
    mechanism: krb5 (1.2.840.113554.1.2.2)
    Kerberos AP-REQ, the client's proof of who it is, 208 octets
      options: mutual-required, 00000001
      Kerberos ticket, 123 octets
        server: HTTP/www.example.com@EXAMPLE.COM
        enctype: aes256-cts-hmac-sha1-96
        kvno: 3
        ciphertext octets: 45
      Kerberos authenticator, 45 octets
        enctype: aes256-cts-hmac-sha1-96
        ciphertext octets: 45
      hint: the service needs the server's key of type aes256-cts-hmac-sha1-96 and version 3; gssproxyd keytabs says which versions the daemon has. Who the client is, only that key shows
`,
		"spnego-resp": `SPNEGO NegTokenResp, a later token of a negotiation, 114 octets
  state: accept-completed
  mechanism: krb5 (1.2.840.113554.1.2.2)
  checksum octets: 4
  token with the framing of GSS-API, 80 octets
    mechanism: krb5 (1.2.840.113554.1.2.2)
    Kerberos AP-REP, the service's proof of who it is, 65 octets
      enctype: aes256-cts-hmac-sha1-96
      ciphertext octets: 38
`,
		"krb-error": `token with the framing of GSS-API, 109 octets
  mechanism: krb5 (1.2.840.113554.1.2.2)
  Kerberos KRB-ERROR, 94 octets
    code: 37
    code name: KRB_AP_ERR_SKEW
    code text: Clock skew too great
    server time: 2023-11-14T22:13:20Z
    server: HTTP/www.example.com@EXAMPLE.COM
    hint: nobody has signed it: it is to be believed no further than the connection is that it came through. ` + reason.ClockSkew.Doc().Hint + ` (gssproxyd explain clock-skew)
`,
		"krb-error+": `Kerberos KRB-ERROR, 134 octets
  code: 37
  code name: KRB_AP_ERR_SKEW
  code text: Clock skew too great
  server time: 2023-11-14T22:13:20Z
  client time: 2023-11-14T22:28:20Z
  server: HTTP/www.example.com@EXAMPLE.COM
  error text: no?[31m
  error data octets: 4
  hint: nobody has signed it: it is to be believed no further than the connection is that it came through. ` + reason.ClockSkew.Doc().Hint + ` (gssproxyd explain clock-skew)
`,
		"tgs-rep": `Kerberos TGS-REP, a KDC's answer with a ticket for a service, 234 octets
  client: alice@EXAMPLE.COM
  enctype: aes256-cts-hmac-sha1-96
  ciphertext octets: 45
  Kerberos ticket, 123 octets
    server: HTTP/www.example.com@EXAMPLE.COM
    enctype: aes256-cts-hmac-sha1-96
    kvno: 3
    ciphertext octets: 45
`,
		"mic": `MIC token: a checksum of a message of an established context (RFC 4121), 28 octets
  flags: sent by the acceptor
  sequence number: 42
  checksum octets: 12
  hint: it is of a context that is established already, and says nothing of who that is between
`,
		"wrap": `wrap token: a message of an established context (RFC 4121), 29 octets
  flags: sealed, with the acceptor's subkey
  extra count: 16
  right rotation count: 28
  sequence number: 5
  payload octets: 13
  hint: it is of a context that is established already, and says nothing of who that is between
`,
		"credential": `credential as gssproxy's protocol has it (gssx_cred), 124 octets
  name: alice@EXAMPLE.COM
  object that gssproxyd has sealed for a client to keep, 65 octets
    version: 2
    holds: credential of a name that was asked for
    hint: only the daemon that sealed it can open it, with its handle.key
`,
		"spnego cut": `token with the framing of GSS-API, 100 octets
  mechanism: SPNEGO (1.3.6.1.5.5.2)
  problem: value runs beyond its enclosing value at offset 0
  hint: its end is missing, it seems: logs and terminals cut long lines
`,
		"exported-name": `exported name (RFC 2743), 36 octets
  mechanism: krb5 (1.2.840.113554.1.2.2)
  name: alice@EXAMPLE.COM
`,
	} {
		if diff := cmp.Diff(want, text(made[name])); diff != "" {
			t.Errorf("%s:\n%s", name, diff)
		}
	}
}

func TestKinds(t *testing.T) {
	for name, want := range map[string]struct {
		kind    Kind
		whole   bool
		problem string
		hint    string
	}{
		"ticket":         {Ticket, true, "", ""},
		"ap-req":         {APReq, true, "", "version 3"},
		"framed":         {GSSToken, true, "", ""},
		"spnego-ntlm":    {NegTokenInit, true, "", "does not offer Kerberos"},
		"spnego-reject":  {NegTokenResp, true, "", "refuses all"},
		"ntlm":           {NTLM, true, "", "NTLM instead of Kerberos"},
		"krb-cred":       {KRBCred, true, "", ""},
		"rfc1964":        {OldMessage, true, "", ""},
		"context":        {ExportedContext, true, "", "keys in it"},
		"sealed":         {Sealed, true, "", "handle.key"},
		"keytab":         {Keytab, true, "", "gssproxyd keytab lint"},
		"ccache":         {CCache, true, "", "klist"},
		"as-req":         {OtherMessage, true, "", ""},
		"unknown":        {Unknown, false, "", "begins with 68"},
		"other mech":     {GSSToken, true, "", "does not know this mechanism"},
		"cut short":      {GSSToken, false, "beyond", "its end is missing"},
		"spnego cut":     {GSSToken, false, "beyond", "its end is missing"},
		"no id":          {GSSToken, false, "ends behind its mechanism", ""},
		"wrong id":       {GSSToken, false, "0909", ""},
		"mechToken only": {NegTokenInit, false, "framing", ""},
	} {
		p := Token(made[name])
		if p.Kind != want.kind || p.Whole() != want.whole || !strings.Contains(p.Problem, want.problem) || (p.Problem == "") != (want.problem == "") {
			t.Errorf("%s: %+v", name, p)
		}
		if !strings.Contains(p.Hint, want.hint) || want.hint == "" && p.Hint != "" {
			t.Errorf("%s: hint %q", name, p.Hint)
		}
	}
	if p := Token(nil); p.Kind != Unknown {
		t.Errorf("%+v", p)
	}
}

// A token of MIT's library, as its plugin sent it.
func TestMITToken(t *testing.T) {
	calls, err := os.ReadFile("../../testdata/captures/plugin-calls.jsonl")
	if err != nil {
		t.Fatal(err)
	}
	found := 0
	for _, m := range regexp.MustCompile(`"call": "([0-9a-f]*)"`).FindAllSubmatch(calls, -1) {
		call := must(hex.DecodeString(string(m[1])))
		at := bytes.Index(call, []byte("\x06\x09"+string(mech.KRB5)+"\x01\x00\x6e\x82"))
		if at < 4 {
			continue
		}
		call = call[at-4:]
		if n := 4 + int(binary.BigEndian.Uint16(call[2:])); call[0] == 0x60 && n <= len(call) {
			found++
			p := Token(call[:n])
			if said := text(call[:n]); !p.Whole() || !regexp.MustCompile(`(?s)Kerberos AP-REQ.*server: host/.*enctype: aes.*kvno: \d.*Kerberos authenticator`).MatchString(said) {
				t.Errorf("%s", said)
			}
		}
	}
	if found == 0 {
		t.Error("no token among the captures")
	}
}

// Tokens are found in what people copy.
func TestTokens(t *testing.T) {
	token := made["framed"]
	in64, inHex := base64.StdEncoding.EncodeToString(token), hex.EncodeToString(token)
	for name, input := range map[string]string{
		"octets":        string(token),
		"base64":        in64,
		"unpadded":      strings.TrimRight(in64, "="),
		"URL's":         base64.URLEncoding.EncodeToString(token),
		"wrapped":       in64[:76] + "\r\n" + in64[76:] + "\n",
		"hexadecimal":   inHex,
		"0x":            "0x" + strings.ToUpper(inHex) + "\n",
		"with colons":   regexp.MustCompile("..").ReplaceAllString(inHex, "$0:"),
		"with blanks":   regexp.MustCompile("....").ReplaceAllString(inHex, "$0 "),
		"scheme":        "Negotiate " + in64,
		"header":        "Authorization: Negotiate " + in64 + "\r\n",
		"curl's":        "> GET / HTTP/1.1\n> Authorization: Negotiate " + in64 + "\n> Accept: */*\n< HTTP/1.1 200 OK\n< WWW-Authenticate: Negotiate\n",
		"accept's":      "token: " + in64 + "\n",
		"SASL":          "AUTH GSSAPI " + in64,
		"command":       `curl -H "Authorization: Negotiate ` + in64 + `" http://www.example.com/`,
		"a page behind": "< WWW-Authenticate: Negotiate " + in64 + "\n\nGr\xc3\xbc\xc3\x9fe\x00",
		"another case":  "authorization: negotiate " + in64,
		"proxy's":       "Proxy-Authorization: Negotiate " + in64,
		"with a header": "Host: x\nWWW-Authenticate: negotiate   " + in64 + ", Basic realm=\"x\"",
	} {
		got, err := Tokens([]byte(input))
		if err != nil || len(got) != 1 || !bytes.Equal(got[0], token) {
			t.Errorf("%s: %d tokens, %v", name, len(got), err)
		}
	}
	two, err := Tokens([]byte("> Authorization: Negotiate " + in64 + "\n< WWW-Authenticate: Negotiate " + base64.StdEncoding.EncodeToString(made["spnego-resp"]) + "\n"))
	if err != nil || len(two) != 2 || !bytes.Equal(two[1], made["spnego-resp"]) {
		t.Errorf("%d tokens, %v", len(two), err)
	}
	for input, want := range map[string]string{
		"":                                "there is no token",
		" \n":                             "there is no token",
		"what is this?":                   "not base64",
		"abc":                             "hexadecimal",
		in64[:len(in64)-len(in64)%4-3]:    "a part of it is missing",
		"WWW-Authenticate: Negotiate\r\n": "the header has no token",
	} {
		if got, err := Tokens([]byte(input)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %x, %v; want %q", input, got, err, want)
		}
	}
	if got, err := Base64("  Negotiate " + in64 + "\n"); err != nil || !bytes.Equal(got, token) {
		t.Error(err)
	}
	if got, err := Base64("deadbeef"); err != nil || hex.EncodeToString(got) != "75e69d6de79f" {
		t.Errorf("%x, %v: a line of base64 is base64", got, err)
	}
}

// What is said of a token has nothing of a ciphertext, a checksum, or what is sealed.
func TestKeepsSecrets(t *testing.T) {
	secret := make([]byte, 64)
	rand.Read(secret)
	var ticket wire.Ticket
	if err := ticket.Parse(made["ticket"]); err != nil {
		t.Fatal(err)
	}
	replaced := func(name string) []byte { // of the same form, with the secret in it
		b := bytes.Clone(made[name])
		copy(b[len(b)-20:], secret)
		return b
	}
	for _, name := range []string{"ticket", "framed", "spnego", "krb-cred", "mic", "wrap", "sealed", "spnego-resp", "ntlm", "context"} {
		var b []byte
		switch name {
		case "mic", "wrap":
			b = append(bytes.Clone(made[name][:16]), secret...)
		case "ntlm", "context":
			b = append(bytes.Clone(made[name]), secret...)
		default:
			b = replaced(name)
		}
		p := Token(b)
		said := text(b) + string(must(json.Marshal(&p)))
		for i := 0; i+6 <= 20; i++ {
			part := secret[i : i+6]
			for _, form := range []string{string(part), hex.EncodeToString(part), base64.StdEncoding.EncodeToString(part)} {
				if strings.Contains(said, form) {
					t.Errorf("%s: %q is in\n%s", name, form, said)
				}
			}
		}
	}
}

// What is documented is what there is.
func TestDocs(t *testing.T) {
	source := string(must(os.ReadFile("decode.go")))
	if n := strings.Count(source, "Kind = \""); n != len(Kinds) {
		t.Errorf("%d kinds, %d documented", n, len(Kinds))
	}
	if n := strings.Count(source, "Field = \""); n != len(Fields) {
		t.Errorf("%d fields, %d documented", n, len(Fields))
	}
	documented, used := map[Field]bool{}, map[Field]bool{}
	for _, d := range Fields {
		documented[d.Field] = true
	}
	var look func(p *Part)
	kinds := map[Kind]bool{}
	look = func(p *Part) {
		kinds[p.Kind] = true
		for _, v := range p.values {
			used[v.field] = true
		}
		for i := range p.Parts {
			look(&p.Parts[i])
		}
	}
	for _, b := range made {
		p := Token(b)
		look(&p)
	}
	for _, d := range Kinds {
		if !kinds[d.Kind] {
			t.Errorf("no test has %s", d.Kind)
		}
	}
	for f := range used {
		if !documented[f] {
			t.Errorf("%s is not documented", f)
		}
	}
	for f := range documented {
		if !used[f] {
			t.Errorf("no test has %s", f)
		}
	}
}

func FuzzDecode(f *testing.F) {
	for _, b := range made {
		f.Add(b)
		f.Add([]byte("Negotiate " + base64.StdEncoding.EncodeToString(b)))
	}
	files, err := filepath.Glob("../../testdata/crashers/*.hex")
	if err != nil || len(files) == 0 {
		f.Fatal("no crashers", err)
	}
	for _, name := range files {
		file := must(os.ReadFile(name))
		f.Add(file)
		if b, err := hex.DecodeString(strings.TrimSpace(string(file))); err == nil {
			f.Add(b)
		}
	}
	f.Fuzz(func(t *testing.T, input []byte) {
		before := bytes.Clone(input)
		tokens, err := Tokens(input)
		if err != nil {
			return
		}
		for _, b := range tokens {
			p := Token(b)
			if p.Octets != len(b) && p.Kind != Ticket {
				t.Errorf("%d octets of %d", p.Octets, len(b))
			}
			said := text(b)
			if !isText([]byte(strings.Map(func(r rune) rune {
				if r >= 0xa0 {
					return 'x'
				}
				return r
			}, said))) {
				t.Errorf("%q is not fit for a terminal", said)
			}
			if _, err := json.Marshal(&p); err != nil {
				t.Error(err)
			}
		}
		if !bytes.Equal(before, input) {
			t.Error("the input was written to")
		}
	})
}
