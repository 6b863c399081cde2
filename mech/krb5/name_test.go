package krb5

import (
	"bufio"
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"gssproxyd/mech"
	"gssproxyd/mech/krb5/der"
	"gssproxyd/mech/krb5/krb5conf"
	"gssproxyd/tests/lab"
)

// nameOracle is MIT's library, asked through testdata/names.c.
type nameOracle struct {
	in  io.Writer
	out *bufio.Scanner
}

// mitNames builds and starts the oracle, or skips the test.
func mitNames(t *testing.T) *nameOracle {
	t.Helper()
	cmd := exec.Command(lab.BuildC(t, "testdata/names.c"))
	cmd.Env = []string{"LC_ALL=C"}
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { in.Close(); cmd.Wait() })
	return &nameOracle{in, bufio.NewScanner(out)}
}

func (o *nameOracle) ask(t rapid.TB, cmd string, args ...string) string {
	for _, a := range args {
		if cmd += " " + hex.EncodeToString([]byte(a)); a == "" {
			cmd += "-"
		}
	}
	if _, err := fmt.Fprintln(o.in, cmd); err != nil {
		t.Fatal(err)
	}
	if !o.out.Scan() {
		t.Fatalf("MIT's library ended at %q: %v", cmd, o.out.Err())
	}
	return o.out.Text()
}

// conf loads a configuration here and, unless o is nil, there.
func conf(t testing.TB, o *nameOracle, text string) *krb5conf.Config {
	t.Helper()
	file := filepath.Join(t.TempDir(), "krb5.conf")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	cfg, err := krb5conf.Load([]string{file})
	if err != nil {
		t.Fatal(err)
	}
	if o != nil {
		o.ask(t, "conf", file)
	}
	return cfg
}

const nameConf = `[libdefaults]
	default_realm = EXAMPLE.TEST
	dns_canonicalize_hostname = false
	qualify_shortname = example.test
[domain_realm]
	.example.test = EXAMPLE.TEST
	db.example.test = DB.TEST
	other = OTHER.TEST
`

func TestParsePrincipal(t *testing.T) {
	for _, tt := range []struct {
		in    string
		realm string
		comps []string
		typ   int32
		out   string // empty: as in
	}{
		{"alice@R", "R", []string{"alice"}, NTPrincipal, ""},
		{"alice", "EXAMPLE.TEST", []string{"alice"}, NTPrincipal, "alice@EXAMPLE.TEST"},
		{"alice@", "", []string{"alice"}, NTPrincipal, ""},
		{"host/a.b@R", "R", []string{"host", "a.b"}, NTPrincipal, ""},
		{"krbtgt/A@B", "B", []string{"krbtgt", "A"}, NTSrvInst, ""},
		{"WELLKNOWN/x/y@R", "R", []string{"WELLKNOWN", "x", "y"}, NTWellknown, ""},
		{"", "EXAMPLE.TEST", []string{""}, NTPrincipal, "@EXAMPLE.TEST"},
		{"//@R", "R", []string{"", "", ""}, NTPrincipal, ""},
		{`a\/b\@c\\d\te\nf\bg@R\@S`, "R@S", []string{"a/b@c\\d\te\nf\bg"}, NTPrincipal, ""},
		{`\a@R`, "R", []string{"a"}, NTPrincipal, "a@R"},
		{"a b@R S", "R S", []string{"a b"}, NTPrincipal, ""},
	} {
		p, err := ParsePrincipal(tt.in, "EXAMPLE.TEST")
		if err != nil {
			t.Errorf("%q: %v", tt.in, err)
			continue
		}
		if !p.Equal(Principal{Realm: tt.realm, Components: tt.comps}) || p.Type != tt.typ {
			t.Errorf("%q: %#v", tt.in, p)
		}
		want := tt.out
		if want == "" {
			want = tt.in
		}
		if got := p.String(); got != want {
			t.Errorf("%q comes back as %q, want %q", tt.in, got, want)
		}
	}
	for _, bad := range []string{"a@b@c", "a@b/c", `a\`, `a@b\`, "a\x00b@R", "a\\\x00b@R", `a\0b@R`, `a@R\0`, `\0@R`} {
		if p, err := ParsePrincipal(bad, "R"); err == nil {
			t.Errorf("%q gives %v, want an error", bad, p)
		}
	}
	most := strings.Repeat("/", MaxComponents-1) + "@R"
	if p, err := ParsePrincipal(most, ""); err != nil || len(p.Components) != MaxComponents {
		t.Errorf("%d components: %v", MaxComponents, err)
	}
	long := strings.Repeat("/", 1<<20)
	if n := testing.AllocsPerRun(1, func() {
		if _, err := ParsePrincipal(long, ""); err == nil || len(err.Error()) > 400 || !strings.Contains(err.Error(), "components") {
			t.Errorf("a megabyte of slashes: error of %d octets", len(fmt.Sprint(err)))
		}
	}); n > 100 {
		t.Errorf("a megabyte of slashes: %v allocations", n)
	}
	if _, err := ParsePrincipal(long[:MaxComponents]+"@R", ""); err == nil {
		t.Errorf("%d components parse", MaxComponents+1)
	}
	p, err := ParseEnterprise("a/x@b.c@R", "D")
	if err != nil || p.Type != NTEnterprise || p.String() != `a\/x\@b.c@R` {
		t.Errorf("enterprise name: %v (type %d), %v", p, p.Type, err)
	}
	if p, err := ParseEnterprise("a@b", "D"); err != nil || p.String() != `a\@b@D` {
		t.Errorf("enterprise name without realm: %v, %v", p, err)
	}
	if _, err := ParseEnterprise("a@b@c@d", "D"); err == nil {
		t.Error("enterprise name with three @ parses")
	}
	if got := (Principal{Realm: "R", Components: []string{"a@b", "c/d"}}).Local(); got != `a@b/c\/d` {
		t.Errorf("without realm: %q", got)
	}
}

func TestParsePrincipalMIT(t *testing.T) {
	o := mitNames(t)
	conf(t, o, nameConf)
	rapid.Check(t, func(t *rapid.T) {
		s := rapid.StringMatching(`[a-c/@\\ntb0 \t\n\x08\xc3\xa4#]{0,16}`).Draw(t, "name")
		got := "!-1765328250" // KRB5_PARSE_MALFORMED
		if p, err := ParsePrincipal(s, "EXAMPLE.TEST"); err == nil {
			got = fmt.Sprintf(" %x %d", p.String(), p.Type)
			again, err := ParsePrincipal(p.String(), "elsewhere")
			if err != nil || !again.Equal(p) {
				t.Fatalf("%q parses to %#v, and its text to %#v (%v)", s, p, again, err)
			}
		} else if strings.Contains(err.Error(), "NUL") {
			return // which MIT's library takes
		}
		if want := o.ask(t, "parse", s); got != want {
			t.Fatalf("%q: %q, MIT %q", s, got, want)
		}
	})
}

type users map[uint32]string

func (u users) Name(uid uint32) (string, error) {
	if n, ok := u[uid]; ok {
		return n, nil
	}
	return "", errors.New("no such user")
}

func exported(s string) string { return string(mech.AppendExportedName(nil, mech.KRB5, s)) }

var importTests = []struct {
	typ  mech.OID
	name string
	want string // display name; or "major:minor"
	mit  bool   // MIT's library says the same
}{
	{mech.NTUserName, "alice", "alice@EXAMPLE.TEST", true},
	{mech.NTUserName, "alice\x00", "alice@EXAMPLE.TEST", true},
	{mech.NTUserName, "alice@R", "alice@R", true},
	{mech.NTUserName, "a@b@c", "851968:2529639046", true},
	{mech.NTUserName, "", "131072:0", true},
	{mech.NTUserName, "alice\x00@R", "131072:0", false},             // MIT stops at the NUL
	{mech.NTKrb5Principal, `alice\0@R`, "851968:2529639046", false}, // MIT takes it
	{mech.NTExportName, exported(`alice@R\0`), "851968:2529639046", false},
	{mech.NTKrb5Enterprise, `a\0@b@c`, "851968:2529639046", false},
	{"", "bob", "bob@EXAMPLE.TEST", true},
	{mech.NTKrb5Principal, "krbtgt/A@B", "krbtgt/A@B", true},
	{mech.NTKrb5Principal, `a\@b`, `a\@b@EXAMPLE.TEST`, true},
	{mech.NTKrb5Principal, "WELLKNOWN/ANONYMOUS@WELLKNOWN:ANONYMOUS", "WELLKNOWN/ANONYMOUS@WELLKNOWN:ANONYMOUS", true},
	{mech.NTAnonymous, "", "WELLKNOWN/ANONYMOUS@WELLKNOWN:ANONYMOUS", true},
	{mech.NTAnonymous, "any", "WELLKNOWN/ANONYMOUS@WELLKNOWN:ANONYMOUS", true},
	{mech.NTKrb5Enterprise, "a@b", `a\@b@EXAMPLE.TEST`, true},
	{mech.NTKrb5Enterprise, "a@b@c", `a\@b@c`, true},
	{mech.NTHostbased, "host@KDC.Example.Test.", "host/kdc.example.test@EXAMPLE.TEST", true},
	{mech.NTHostbased, "host@kdc.elsewhere\x00", "host/kdc.elsewhere@", true},
	{mech.NTHostbased, "host@kdc", "host/kdc.example.test@EXAMPLE.TEST", true},
	{mech.NTHostbased, "host@db.example.test", "host/db.example.test@DB.TEST", true},
	{mech.NTHostbased, "host@x.other", "host/x.other@OTHER.TEST", true},
	{mech.NTHostbased, "host@127.0.0.1", "host/127.0.0.1@", true},
	{mech.NTHostbased, "a/b@x.other", `a\/b/x.other@OTHER.TEST`, true},
	{mech.NTHostbased, "host@x@y.other", `host/x\@y.other@OTHER.TEST`, true},
	{mech.NTHostbased, "MSSQLSvc@DB.Example.Test:1433", "MSSQLSvc/db.example.test:1433@DB.TEST", true},
	{mech.NTHostbased, "host@fe80::1:2", "host/fe80::1:2.example.test@", true},
	{mech.NTHostbased, "host@kdc:", "host/kdc:.example.test@", true},
	{mech.NTHostbasedX, "host@x.other", "host/x.other@OTHER.TEST", true},
	{mech.NTHostbased, "@x.other", "131072:0", false}, // MIT makes a principal of an empty service
	{mech.NTMachineUID, "\x00\x00\x00\x00", "root@EXAMPLE.TEST", true},
	{mech.NTMachineUID, "\x77\x77\x77\x77", "131072:2249944322", true},
	{mech.NTMachineUID, "\x00", "131072:2249944326", false}, // MIT reads what is behind
	{mech.NTStringUID, "0", "root@EXAMPLE.TEST", true},
	{mech.NTStringUID, "1999999999\x00", "131072:2249944322", true},
	{mech.NTStringUID, "root", "131072:2249944321", false}, // MIT takes it for 0
	{mech.NTStringUID, "-1", "131072:2249944321", false},
	{mech.NTExportName, exported("alice@R"), "alice@R", true},
	{mech.NTExportName, exported(`a\/b/c@R`), `a\/b/c@R`, true},
	{mech.NTCompositeExport, string(mech.AppendCompositeName(nil, mech.KRB5, "alice@R", nil)), "alice@R", true},
	{mech.NTExportName, exported("alice@R") + "\x00", "589824:0", false}, // MIT: 131072
	{mech.NTExportName, exported("alice@R")[:20], "589824:0", false},
	{mech.NTExportName, "\x05", "589824:0", true},
	{mech.NTExportName, string(mech.AppendExportedName(nil, mech.NTUserName, "alice@R")), "65536:0", true},
	{"\x2b\x06\x01\x05\x06\x63", "alice", "196608:0", false}, // MIT has a made-up minor
	{mech.NTKrb5PrincipalPointer, "12345678", "196608:0", false},
	{mech.NTKrb5X509, "0\x00", "196608:0", false},
}

func TestImportName(t *testing.T) {
	cfg := conf(t, nil, nameConf)
	for _, tt := range importTests {
		p, err := ImportName([]byte(tt.name), tt.typ, cfg, users{0: "root"})
		got := p.String()
		var e *mech.Error
		if errors.As(err, &e) {
			got = fmt.Sprintf("%d:%d", e.Major, e.Minor)
			if e.Reason == "" || e.MinorString() == "" {
				t.Errorf("%v %q: error without reason or text: %#v", tt.typ, tt.name, e)
			}
		}
		if got != tt.want {
			t.Errorf("%v %q: %s (%v), want %s", tt.typ, tt.name, got, err, tt.want)
		}
	}
	if p, err := ImportName([]byte("HTTP"), mech.NTHostbased, cfg, nil); err != nil || p.Components[0] != "HTTP" || p.Components[1] == "" || p.Type != NTSrvHst {
		t.Errorf("service without a host: %#v, %v", p, err)
	}
	for in, want := range map[string][2]string{"HTTP": {"HTTP", ""}, "HTTP@": {"HTTP", ""}, "HTTP@h\x00": {"HTTP", "h"}, "a@b@c": {"a", "b@c"}} {
		if s, h := SplitHostbased(in); s != want[0] || h != want[1] {
			t.Errorf("%q splits into %q and %q", in, s, h)
		}
	}
	if _, err := ImportName([]byte{0, 0, 0, 0}, mech.NTMachineUID, cfg, nil); err == nil {
		t.Error("a uid has a name without a user database")
	}
}

func TestImportNameMIT(t *testing.T) {
	o := mitNames(t)
	cfg := conf(t, o, nameConf)
	local := NewLocalNames(cfg)
	for _, tt := range importTests {
		if !tt.mit {
			continue
		}
		got := tt.want
		if p, err := ImportName([]byte(tt.name), tt.typ, cfg, users{0: "root"}); err == nil {
			display, typ := p.Display()
			got = fmt.Sprintf("0:0 %x %x %x %x", display, string(typ), p.AppendExported(nil), p.AppendComposite(nil, nil))
			if name, err := local.Map(p); err == nil {
				got += fmt.Sprintf(" %x", name)
			} else {
				var e *mech.Error
				errors.As(err, &e)
				got += fmt.Sprintf(" !%d:%d", e.Major, e.Minor)
			}
		}
		if answer := o.ask(t, "import", string(tt.typ), tt.name); !strings.HasSuffix(answer, got) {
			t.Errorf("%v %q:\n     %s\nMIT: %s", tt.typ, tt.name, got, answer)
		}
	}
}

func FuzzParsePrincipal(f *testing.F) {
	for _, s := range []string{"", "a@b", `a\/b/c\@d@e`, `\`, "a@b@c", "a\x00b", `\0\n\t\b@R`, "/@/"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		for _, parse := range []func(string, string) (Principal, error){ParsePrincipal, ParseEnterprise} {
			p, err := parse(s, "D")
			if err != nil {
				continue
			}
			again, err := ParsePrincipal(p.String(), "other")
			if err != nil || !again.Equal(p) {
				t.Fatalf("%q parses to %#v, its text %q to %#v (%v)", s, p, p.String(), again, err)
			}
		}
	})
}

// A name in a message has no more components than one in text.
func TestReadLongName(t *testing.T) {
	for n := MaxComponents; n <= MaxComponents+1; n++ {
		comps := bytes.Repeat([]byte{0x1b, 0}, n)
		b := append([]byte{0x30, byte(9 + len(comps)), 0xa0, 3, 2, 1, 1, 0xa1, byte(2 + len(comps)), 0x30, byte(len(comps))}, comps...)
		r := der.NewReader(b)
		var name wireName
		readName(&r, &name)
		if fits := r.Fault() == 0; fits != (n == MaxComponents) {
			t.Errorf("%d components: %v", n, r.Fault())
		}
	}
}

// What is refused for its name says why in few words, however long that is.
func TestImportLongName(t *testing.T) {
	long := strings.Repeat("\x01", 1<<20)
	for _, typ := range []mech.OID{mech.NTHostbased, mech.NTStringUID, mech.NTUserName, mech.NTKrb5Enterprise, mech.OID(long)} {
		for _, name := range []string{"@" + long, long + "\x00" + long, long + "@@a@@"} {
			if _, err := ImportName([]byte(name), typ, conf(t, nil, nameConf), nil); err != nil && len(err.Error()) > 1500 {
				t.Errorf("%.60v: error of %d octets", typ, len(err.Error()))
			}
		}
	}
}

func FuzzImportName(f *testing.F) {
	for _, tt := range importTests {
		f.Add([]byte(tt.name), string(tt.typ))
	}
	cfg := conf(f, nil, nameConf)
	local := NewLocalNames(cfg)
	f.Fuzz(func(t *testing.T, name []byte, typ string) {
		p, err := ImportName(name, mech.OID(typ), cfg, users{0: "root"})
		if err != nil {
			var e *mech.Error
			if !errors.As(err, &e) || !e.Major.Failed() {
				t.Fatalf("error %#v", err)
			}
			return
		}
		oid, s, err := mech.ParseExportedName(p.AppendExported(nil))
		if again, err2 := ParsePrincipal(s, ""); err != nil || err2 != nil || oid != mech.KRB5 || !again.Equal(p) {
			t.Fatalf("%#v is exported as %q: %v, %v", p, s, err, err2)
		}
		local.Map(p)
	})
}
