package krb5

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"gssproxyd/mech"
	"gssproxyd/mech/krb5/krb5conf"
	"gssproxyd/mech/krb5/localname"
	"gssproxyd/tests/lab"
)

// conf loads a configuration here and, unless o is nil, there.
func conf(t testing.TB, o *lab.NameOracle, text string) *krb5conf.Config {
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
		o.Ask(t, "conf", file)
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
		if s, h := splitHostbased(in); s != want[0] || h != want[1] {
			t.Errorf("%q splits into %q and %q", in, s, h)
		}
	}
	if _, err := ImportName([]byte{0, 0, 0, 0}, mech.NTMachineUID, cfg, nil); err == nil {
		t.Error("a uid has a name without a user database")
	}
}

func TestImportNameMIT(t *testing.T) {
	o := lab.MITNames(t)
	cfg := conf(t, o, nameConf)
	local := localname.New(cfg)
	for _, tt := range importTests {
		if !tt.mit {
			continue
		}
		got := tt.want
		if p, err := ImportName([]byte(tt.name), tt.typ, cfg, users{0: "root"}); err == nil {
			display, typ := p.Display()
			got = fmt.Sprintf("0:0 %x %x %x %x", display, string(typ), mech.AppendExportedName(nil, mech.KRB5, p.String()), mech.AppendCompositeName(nil, mech.KRB5, p.String(), nil))
			if name, err := local.Map(p); err == nil {
				got += fmt.Sprintf(" %x", name)
			} else {
				var e *mech.Error
				errors.As(err, &e)
				got += fmt.Sprintf(" !%d:%d", e.Major, e.Minor)
			}
		}
		if answer := o.Ask(t, "import", string(tt.typ), tt.name); !strings.HasSuffix(answer, got) {
			t.Errorf("%v %q:\n     %s\nMIT: %s", tt.typ, tt.name, got, answer)
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
	local := localname.New(cfg)
	f.Fuzz(func(t *testing.T, name []byte, typ string) {
		p, err := ImportName(name, mech.OID(typ), cfg, users{0: "root"})
		if err != nil {
			var e *mech.Error
			if !errors.As(err, &e) || !e.Major.Failed() {
				t.Fatalf("error %#v", err)
			}
			return
		}
		oid, s, err := mech.ParseExportedName(mech.AppendExportedName(nil, mech.KRB5, p.String()))
		if again, err2 := ParsePrincipal(s, ""); err != nil || err2 != nil || oid != mech.KRB5 || !again.Equal(p) {
			t.Fatalf("%#v is exported as %q: %v, %v", p, s, err, err2)
		}
		local.Map(p)
	})
}
