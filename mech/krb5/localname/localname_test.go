package localname

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"gssproxyd/mech"
	"gssproxyd/mech/krb5/krb5conf"
	"gssproxyd/mech/krb5/wire"
	"gssproxyd/mech/reason"
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

// localConf is a configuration with these lines in the default realm's part.
func localConf(lines ...string) string {
	return "[libdefaults]\n\tdefault_realm = R\n[realms]\n\tR = {\n" + strings.Join(lines, "\n") + "\n\t}\n" +
		"\tS = {\n\tauth_to_local = RULE:[1:wrong]\n\t}\n"
}

func rules(rules ...string) string {
	for i, r := range rules {
		rules[i] = "auth_to_local = " + r
	}
	return localConf(rules...)
}

// plugins is what [plugins] says of localauth.
func plugins(lines ...string) string {
	return "[plugins]\n\tlocalauth = {\n" + strings.Join(lines, "\n") + "\n\t}\n"
}

// localNames makes "name" of alice, and "rule" of anybody else.
var localNames = localConf("auth_to_local_names = {", "alice = name", "}", "auth_to_local = RULE:[1:rule]")

var localTests = []struct {
	conf    string
	princ   string
	want    string // the name, or "!" for none
	differs bool   // MIT's library is not asked, or says something else
}{
	{localConf(), "alice@R", "alice", false},
	{localConf(), "alice@S", "!", false},
	{localConf(), "alice/R@R", "alice", false},
	{localConf(), "alice/admin@R", "!", false},
	{localConf(), "alice/R/x@R", "!", false},
	{localConf(), "@R", "", false},
	{"[libdefaults]\n", "alice@R", "!", false},

	{localConf("auth_to_local_names = {", "alice = al", "host/x = box", "}"), "alice@R", "al", false},
	{localConf("auth_to_local_names = {", "alice = al", "}"), "alice@S", "al", false}, // the realm does not count, as MIT warns
	{localConf("auth_to_local_names = {", "host/x = box", "}"), "host/x@R", "box", false},
	{localConf("auth_to_local_names = {", "host/x = box", "}"), "bob@R", "bob", false},
	{localConf("auth_to_local_names = {", "bob = b1", "bob = b2", "}"), "bob@R", "b2", false},
	{localConf("auth_to_local_names = {", "bob = b1", "}", "auth_to_local = RULE:[1:rule]"), "bob@R", "b1", false},

	{rules("DEFAULT"), "alice@R", "alice", false},
	{rules("RULE:[1:$1]"), "alice@S", "alice", false},
	{rules("RULE:[1:$1]"), "alice/x@R", "!", false},
	{rules("RULE:[2:$1]"), "alice/x@R", "alice", false},
	{rules("RULE:[1:$1@$0](.*@R)s/@.*//"), "alice@R", "alice", false},
	{rules("RULE:[1:$1@$0](.*@R)s/@.*//"), "alice@S", "!", false},
	{rules("RULE:[1:$1@$0](@R)s/@.*//"), "alice@R", "!", false}, // the whole must match
	{rules("RULE:[2:$2-$1](host-.*|.*-nfs)s/-/_/g", "DEFAULT"), "nfs/a-b@R", "a_b_nfs", false},
	{rules("RULE:[2:$1;$2](^.*;admin$)s/;admin$//", "DEFAULT"), "alice/admin@R", "alice", false},
	{rules("RULE:[2:$1;$2](^.*;admin$)s/;admin$//", "DEFAULT"), "alice@R", "alice", false},
	{rules("RULE:s/a/b/"), "aa/aa@S", "ba/aa", false},
	{rules("RULE:s/a/b/g"), "aa/aa@S", "bb/bb", false},
	{rules("RULE:"), "a/b@S", "a/b", false},
	{rules("RULE:s/^a//g"), "aaab@R", "b", false}, // ^ matches again after each
	{rules("RULE:s/a/b/s/b/c/ s/c/d/g"), "aab@R", "dab", false},
	{rules("RULE:[1:$1]s/^(a|ab)(c|bcd)$/X/"), "abcd@R", "X", false},
	{rules("RULE:[1:$1]s/a|ab|abc/X/"), "abcd@R", "Xd", false}, // the longest, not the first
	{rules(`RULE:[1:$1](a\.b)`), "a.b@R", "a.b", false},
	{rules(`RULE:[1:$1](a\.b)`), "axb@R", "!", false},
	{rules(`RULE:[1:$1]([[:alpha:]]+[^[:alpha:]])`), "ab1@R", "ab1", false},
	{rules(`RULE:[1:$1]s/[]-]/x/g`), "a]b-c@R", "axbxc", false},
	{rules(`RULE:[1:$1]s/[\]/x/`), `a\\b@R`, "axb", false}, // a backslash in brackets is itself
	{rules(`RULE:[1:$1](a{2,3})`), "aaa@R", "aaa", false},
	{rules(`RULE:[1:$1](a{2,3})`), "aaaa@R", "!", false},
	{rules(`RULE:[1:$1](.)`), `\n@R`, "\n", false},
	{rules(`RULE:[1:$1](..)`), "ä@R", "ä", false}, // octets, not characters
	{rules(`RULE:[1:$1]s/\xa4/x/`), "ä@R", "\xc3\xa4", false},
	{rules("RULE:[1:$1]s/\xa4/x/"), "äb@R", "\xc3xb", false},
	{rules("RULE:[0:x]", "DEFAULT"), "a@R", "a", false},
	{rules("RULE:[1:$]"), "a@R", "R", false},
	{rules("RULE:[1:$x]"), "a@R", "Rx", false},
	{rules("RULE:[1:$1]s/$/x/"), "a@R", "ax", false},

	// A rule that does not apply for a bad expression; the next one does.
	{rules("RULE:[1:$1]((a)", "RULE:[1:next]"), "a@R", "next", false},
	{rules("RULE:[1:$1](*a)", "RULE:[1:next]"), "a@R", "next", false},
	{rules("RULE:[1:$1]s/a**/x/", "RULE:[1:next]"), "aab@R", "xb", false},
	{rules("RULE:[1:$1]s/[z-a]/x/", "RULE:[1:next]"), "a@R", "next", false},
	{rules("RULE:[1:$1]s/a{3,2}/x/", "RULE:[1:next]"), "a@R", "next", false},
	// A mistake in the value stops the search.
	{rules("RULE", "RULE:[1:next]"), "a@R", "!", false},
	{rules("RULE:[1:$2]", "RULE:[1:next]"), "a@R", "!", false},
	{rules("RULE:[2:$3]", "RULE:[1:next]"), "a@R", "next", false}, // but not of a rule for other names
	{rules("RULE:[1:$1", "RULE:[1:next]"), "a@R", "!", false},
	{rules("RULE:[x:$1]", "RULE:[1:next]"), "a@R", "!", false},
	{rules("RULE:[1:$1](a", "RULE:[1:next]"), "a@R", "!", false},
	{rules("RULE:[1:$1]x", "RULE:[1:next]"), "a@R", "!", false},
	{rules("RULE:[1:$1]s/a/b", "RULE:[1:next]"), "a@R", "!", false},
	{rules("RULE:[1:$1](b)x", "RULE:[1:next]"), "a@R", "next", false},
	{rules("NONE", "RULE:[1:next]"), "a@R", "!", false},
	{rules("DB:/x", "RULE:[1:next]"), "a@R", "!", false},

	// [plugins] localauth decides which of the modules are asked, and in which order.
	{plugins("disable = names") + localNames, "alice@R", "rule", false},
	{plugins("disable = auth_to_local") + localNames, "alice@R", "name", false},
	{plugins("disable = auth_to_local") + localNames, "bob@R", "!", false},
	{plugins("disable = names", "disable = auth_to_local") + localNames, "alice@R", "!", false},
	{plugins("disable = names auth_to_local") + localNames, "alice@R", "name", false}, // one value, which is no name
	{plugins("disable = Names") + localNames, "alice@R", "name", false},
	{plugins("disable = rule") + localNames, "bob@R", "!", false},
	{plugins("disable = rule") + rules("DEFAULT", "RULE:[1:rule]"), "bob@R", "bob", false},
	{plugins("disable = rule") + rules("RULE:[1:rule]", "DEFAULT"), "bob@R", "!", false},
	{plugins("disable = default") + rules("DEFAULT", "RULE:[1:rule]"), "bob@R", "!", false},
	{plugins("disable = default") + rules("RULE:[2:rule]", "DEFAULT"), "bob@R", "!", false},
	{plugins("disable = default") + localConf(), "bob@R", "bob", false}, // nothing asks for the module
	{plugins("disable = an2ln", "disable = k5login") + localNames, "alice@R", "name", false},
	{plugins("enable_only = names") + localNames, "alice@R", "name", false},
	{plugins("enable_only = names") + localNames, "bob@R", "!", false},
	{plugins("enable_only = auth_to_local") + localNames, "alice@R", "!", false}, // which needs rule
	{plugins("enable_only = auth_to_local", "enable_only = rule") + localNames, "alice@R", "rule", false},
	{plugins("enable_only = auth_to_local", "enable_only = names", "enable_only = rule") + localNames, "alice@R", "rule", false},
	{plugins("enable_only = names", "enable_only = names", "enable_only = auth_to_local", "enable_only = rule") + localNames, "bob@R", "rule", false},
	{plugins("enable_only = names", "enable_only = auth_to_local", "disable = names") + localConf("auth_to_local_names = {", "alice = name", "}"), "alice@R", "alice", false},
	{plugins(`enable_only = ""`) + localNames, "alice@R", "!", false},
	{plugins("enable_only = k5login") + localNames, "alice@R", "!", false},
	{plugins("enable_only = sssd") + localNames, "alice@R", "!", false},
	{plugins("enable_only = {", "}") + localNames, "alice@R", "name", false},
	{plugins("enable_only* = names", "enable_only = auth_to_local", "enable_only = rule") + localNames, "bob@R", "!", true}, // final: MIT's since 1.22
	{"[plugins]\ndisable = names\n" + localNames, "alice@R", "name", false},
	{"[plugins]\npwqual = {\ndisable = names\n}\n" + localNames, "alice@R", "name", false},
	// What a library does that nobody loads is not known. These do not exist.
	{plugins("module = sssd:/nonexistent.so") + localNames, "alice@R", "name", false},
	{plugins("module = sssd:/nonexistent.so", "enable_only = sssd") + localNames, "alice@R", "!", false},
	{plugins("module = names:/nonexistent.so") + localNames, "alice@R", "rule", false}, // in the place of the module
	{plugins("module = rule:/nonexistent.so") + localNames, "bob@R", "!", false},
	{plugins("module = auth_to_local:/nonexistent.so") + localNames, "bob@R", "!", false},
	{plugins("module = sssd") + localNames, "alice@R", "!", false},

	// Where MIT's library would never come back.
	{rules("RULE:[1:$1]s/x*//g", "RULE:[1:next]"), "a@R", "!", true},
	{rules("RULE:[1:$1]s/$/x/g", "RULE:[1:next]"), "a@R", "!", true},
	// What Go's engine does not have never applies.
	{rules(`RULE:[1:$1](\<a)`, "RULE:[1:next]"), "a@R", "next", true},
	{rules(`RULE:[1:$1]s/(a)\1/x/`, "RULE:[1:next]"), "aa@R", "next", true},
}

func mapped(l *Rules, p wire.Principal) string {
	name, err := l.Map(p)
	if err != nil {
		return "!"
	}
	return name
}

func TestLocalName(t *testing.T) {
	for _, tt := range localTests {
		l := New(conf(t, nil, tt.conf))
		p, err := wire.ParsePrincipal(tt.princ, "")
		if err != nil {
			t.Fatal(err)
		}
		if got := mapped(l, p); got != tt.want {
			t.Errorf("%s\n%s: %q, want %q", tt.conf, tt.princ, got, tt.want)
		}
	}
	_, err := New(conf(t, nil, localConf())).Map(wire.Principal{Realm: "S", Components: []string{"a"}})
	var e *mech.Error
	if !errors.As(err, &e) || e.Reason != reason.NoLocalName || e.Major != mech.Unavailable || !strings.Contains(e.Text, "a@S") {
		t.Errorf("error %#v", err)
	}
}

// A KDC of another realm gives out what clients' names it likes. With MIT's library, whose rules
// see C strings, the first of them is root under the first rules.
func TestLocalNameNUL(t *testing.T) {
	for _, text := range []string{
		rules("RULE:[1:$1@$0](.*@EXAMPLE.TEST)s/@.*//"),
		rules("RULE:[1:$1]", "DEFAULT"),
		rules("RULE:"),
		localConf(),
		localConf("auth_to_local_names = {", "root = root", `root@EXAMPLE.TEST\\0 = root`, `root\\0 = root`, "}", "auth_to_local = RULE:"),
	} {
		l := New(conf(t, nil, text))
		for _, p := range []wire.Principal{
			{Realm: "EVIL.TEST", Components: []string{"root@EXAMPLE.TEST\x00"}},
			{Realm: "EXAMPLE.TEST\x00.EVIL.TEST", Components: []string{"root"}},
			{Realm: "R\x00", Components: []string{"root"}},
			{Realm: "R", Components: []string{"root\x00x"}},
			{Realm: "R", Components: []string{"root\x00"}},
			{Realm: "R", Components: []string{"\x00root"}},
			{Realm: "R", Components: []string{"root", "R\x00"}},
			{Realm: "R", Components: []string{"root", "\x00R"}},
		} {
			name, err := l.Map(p)
			var e *mech.Error
			if !errors.As(err, &e) || e.Reason != reason.NoLocalName || name != "" || !strings.Contains(e.Text, "NUL") {
				t.Errorf("%s\n%s is %q, %v", text, p, name, err)
			}
		}
	}
}

// Rules are never applied to a name that is so long that they would take long.
func TestLocalNameLong(t *testing.T) {
	l := New(conf(t, nil, localConf("auth_to_local_names = {", strings.Repeat("b", maxLocalInput)+" = bob", "}",
		"auth_to_local = RULE:[1:$1]s/\xa4/b/g", "auth_to_local = RULE:[2:$2]")))
	a := strings.Repeat("\xa4", maxLocalInput-1)
	if name, err := l.Map(wire.Principal{Realm: "R", Components: []string{a}}); err != nil || name != strings.Repeat("b", len(a)) {
		t.Errorf("a name of %d octets: %.40q, %v", maxLocalInput, name, err)
	}
	for _, p := range []wire.Principal{
		{Realm: "R", Components: []string{a + "a"}},
		{Realm: "RR", Components: []string{a}},
		{Realm: "R", Components: []string{a[:len(a)-3], "aaaa"}},
		{Realm: "R", Components: []string{strings.Repeat("b", maxLocalInput)}},
		{Realm: "R", Components: []string{strings.Repeat("b", 1<<20)}},
	} {
		name, err := l.Map(p)
		var e *mech.Error
		if !errors.As(err, &e) || e.Reason != reason.NoLocalName || len(e.Text) > 400 || !strings.Contains(e.Text, "1024 at most") {
			t.Errorf("a name of %d octets: %.40q, %.400v", size(p), name, err)
		}
	}
}

func TestLocalNameMIT(t *testing.T) {
	o := lab.MITNames(t)
	for _, tt := range localTests {
		if tt.differs {
			continue
		}
		conf(t, o, tt.conf)
		want := fmt.Sprintf(" %x", tt.want)
		if tt.want == "" {
			want = " -"
		}
		got := o.Ask(t, "local", tt.princ)
		if tt.want == "!" {
			want, got = got[:1], "!"
		}
		if got != want {
			t.Errorf("%s\n%s: MIT says %q, we %q", tt.conf, tt.princ, got, want)
		}
	}
}

func TestLocalNameCheck(t *testing.T) {
	l := New(conf(t, nil, rules("DEFAULT", "RULE:[1:$1](.*)s/a/b/g", "NONE", "RULE:[1:$9]", `RULE:[1:$1](\<)`, "RULE:[1:$1]s/(/x/", "RULE:[1:$1]s/a/")))
	errs := l.Check()
	if len(errs) != 5 {
		t.Fatalf("%d errors, want 5: %v", len(errs), errs)
	}
	for i, text := range []string{"expected DEFAULT or RULE", "$0 (the realm) to $1", "not supported", "( without )", "expected s/pattern/text/"} {
		if !strings.Contains(errs[i].Error(), text) || !strings.Contains(errs[i].Error(), "auth_to_local") {
			t.Errorf("error %q; want one with %q", errs[i], text)
		}
	}
	for _, tt := range []struct {
		conf string
		want string
	}{
		{"[libdefaults]\n" + plugins("disable = names", "disable = auth_to_local"), ""}, // there is no default realm
		{plugins("enable_only = sssd") + localNames, "no principal has a local name"},
		{plugins("disable = rule") + localNames, "leaves out the module rule"},
		{plugins("disable = default") + rules("DEFAULT"), "leaves out the module default"},
		{plugins("disable = default") + localNames, ""},
	} {
		errs := New(conf(t, nil, tt.conf)).Check()
		if got := fmt.Sprint(errs); len(errs) > 1 || (tt.want == "") != (len(errs) == 0) || !strings.Contains(got, tt.want) {
			t.Errorf("%s\n%s; want %q", tt.conf, got, tt.want)
		}
	}
}

// ere draws extended regular expressions, most of them valid.
var ere = rapid.Custom(func(t *rapid.T) string {
	atom := rapid.SampledFrom([]string{"a", "b", "c", ".", "[ab]", "[^a]", "[a-c]", "[]a]", "[^]]", "[b-]", "[[:alpha:]]", "[[:digit:]b]",
		"[[.-.]]", "[[=a=]]", "[\\]", `\.`, `\w`, `\W`, `\s`, `\S`, "^", "$", "(", ")", "|", "-", "1", "_", " ", `\b`, "}", "]", "[a-c-]", "[c-a]", "[", "[a"})
	op := rapid.SampledFrom([]string{"", "", "", "", "*", "+", "?", "{2}", "{1,2}", "{0,1}", "{,2}", "{1,}", "{0}", "{", "{a}", "{2,1}", "*?", "+{2}"})
	var b strings.Builder
	open := 0
	for range rapid.IntRange(1, 6).Draw(t, "atoms") {
		a := atom.Draw(t, "atom")
		switch a {
		case "(":
			open++
		case ")":
			if open > 0 {
				open--
			}
		}
		b.WriteString(a)
		if a != "(" && a != "|" {
			b.WriteString(op.Draw(t, "op"))
		}
	}
	return b.String() + strings.Repeat(")", open)
})

// Random expressions mean the same here and in regcomp.
func TestPOSIXRegexpMIT(t *testing.T) {
	o := lab.MITNames(t)
	file := 0
	rapid.Check(t, func(rt *rapid.T) {
		expr := ere.Draw(rt, "expr")
		flag := rapid.SampledFrom([]string{"", "g"}).Draw(rt, "flag")
		rule := "RULE:[1:$1]s/" + expr + "/X/" + flag
		if strings.HasSuffix(rule, " ") || strings.Contains(expr, "/") {
			rt.Skip()
		}
		if !strings.Contains(expr, ")") && rapid.Bool().Draw(rt, "match") {
			rule = "RULE:[1:$1](" + expr + ")"
		}
		file++
		cfg := conf(t, o, rules(`"`+strings.ReplaceAll(rule, `\`, `\\`)+`"`, "RULE:[1:next]"))
		l := New(cfg)
		for range 5 {
			s := rapid.StringMatching(`[abc1_.-]{0,7}`).Draw(rt, "string")
			p := wire.Principal{Realm: "R", Components: []string{s}}
			name, err := l.Map(p)
			if err != nil && strings.Contains(err.Error(), "without end") {
				continue
			}
			got := fmt.Sprintf(" %x", name)
			if name == "" {
				got = " -"
			}
			if err != nil {
				got = "!"
			}
			if want := o.Ask(rt, "local", p.String()); got != want && !(got == "!" && want[0] == '!') {
				rt.Fatalf("%s on %q: %q, MIT %q (%v)", rule, s, got, want, l.Check())
			}
		}
	})
}

func FuzzLocalRule(f *testing.F) {
	for _, tt := range localTests {
		for _, line := range strings.Split(tt.conf, "\n") {
			if v, ok := strings.CutPrefix(strings.TrimSpace(line), "auth_to_local = "); ok {
				f.Add(v, tt.princ)
			}
		}
	}
	f.Fuzz(func(t *testing.T, value, princ string) {
		p, err := wire.ParsePrincipal(princ, "R")
		if err != nil {
			return
		}
		r := parseLocalRule(value)
		name, ok, err := r.apply(p, "R")
		if err != nil && (ok || name != "") {
			t.Fatalf("%q on %q: %q, %v, %v", value, princ, name, ok, err)
		}
	})
}
