package wire

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"gssproxyd/mech/krb5/der"
	"gssproxyd/tests/lab"
)

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
	o := lab.MITNames(t)
	conf := filepath.Join(t.TempDir(), "krb5.conf")
	if err := os.WriteFile(conf, []byte("[libdefaults]\n default_realm = EXAMPLE.TEST\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	o.Ask(t, "conf", conf)
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
		if want := o.Ask(t, "parse", s); got != want {
			t.Fatalf("%q: %q, MIT %q", s, got, want)
		}
	})
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
		var name Name
		readName(&r, &name)
		if fits := r.Fault() == 0; fits != (n == MaxComponents) {
			t.Errorf("%d components: %v", n, r.Fault())
		}
	}
}

// A name in a message is bounded, and what is not shown is not made.
func TestShown(t *testing.T) {
	p := Principal{Realm: "EXAMPLE.TEST", Components: []string{"a\n/b", "host"}}
	if got, want := p.Shown(), Shown(p.String()); got != want {
		t.Errorf("shown as %s, want %s", got, want)
	}
	long := Principal{Realm: strings.Repeat("R", 1<<20), Components: []string{strings.Repeat("/", 1<<20), "x"}}
	if got, want := long.Shown(), Shown(long.String()); got != want {
		t.Errorf("shown as %s, want %s", got, want)
	}
	// What a terminal obeys, and what it does not show: a name is not to look like another.
	if got, want := Shown("a\x1b[m\u009bm\u202eb\u200bc\u2028\xff\u00e4 d"), "a?[m?m?b?c??\u00e4 d"; got != want {
		t.Errorf("shown as %q, want %q", got, want)
	}
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	_ = long.Shown()
	runtime.ReadMemStats(&after)
	if n := after.TotalAlloc - before.TotalAlloc; n > 64<<10 {
		t.Errorf("%d bytes are allocated to show a name of 2 MB", n)
	}
}
