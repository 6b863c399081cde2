package krb5conf

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// ineffective are files with something that looks as if it gave the relation at path a value. says
// is what is warned of it, with its line first; empty where it has that effect, and there is
// nothing to say.
var ineffective = []struct{ name, text, path, says string }{
	{"plain", "[realms]\nR = {\nkdc = k\n}\n", "realms/R/kdc", ""},
	{"blanks in brackets", "[ realms ]\nR = {\nkdc = k\n}\n", "realms/R/kdc", "1: [ realms ] has no effect"},
	{"no-break space in brackets", "[libdefaults\u00a0]\ndefault_realm = X\n", "libdefaults/default_realm", "1: [libdefaults\u00a0] has no effect"},
	{"case in brackets", "[Realms]\nR = {\nkdc = k\n}\n", "realms/R/kdc", "1: [Realms] has no effect"},
	{"section of a program", "[My App]\na = b\n", "My App/a", ""},
	{"braces in one line", "[realms]\nR = { kdc = k }\n", "realms/R/kdc", `2: R = "{ kdc = k }" is a value`},
	{"empty braces in one line", "[realms]\nR = {}\n", "realms/R/kdc", `2: R = "{}" is a value`},
	{"word in braces", "[myapp]\na = {b}\n", "myapp/a", ""},
	{"word behind a brace", "[myapp]\na = {b\n", "myapp/a", ""},
	{"quoted braces", "[myapp]\na = \"{ b = c }\"\n", "myapp/a", ""},
	{"comment behind {", "[realms]\nR = { # mine\nkdc = k\n", "realms/R/kdc", `2: R = "{ # mine" is a value`},
	{"relation behind {", "[realms]\nR = { kdc = k\n", "realms/R/kdc", `2: R = "{ kdc = k" is a value`},
	{"no-break space behind {", "[realms]\nR = {\u00a0\nkdc = k\n", "realms/R/kdc", `2: R = "{\u00a0" is a value`},
	{"no-break space before {", "[realms]\nR =\u00a0{\nkdc = k\n", "realms/R/kdc", `2: R = "\u00a0{" is a value`},
	{"{ on the next line", "[realms]\nR =\n{\nkdc = k\n}\n", "realms/R/kdc", ""},
	{"comment behind { on the next line", "[realms]\nR =\n{ # mine\nkdc = k\n}\n", "realms/R/kdc", ""},
	{"relation behind { on the next line", "[realms]\nR =\n{ kdc = k\n}\n", "realms/R/kdc", `3: "kdc = k" behind { has no effect`},
	{"comment behind }", "[realms]\nR = {\nkdc = k\n} # of R\n", "realms/R/kdc", ""},
	{"relation behind }", "[realms]\nR = {\nx = y\n} kdc = k\n", "realms/R/kdc", `4: "kdc = k" behind } has no effect`},
	{"indented include", " include DIR/inc\n[s]\n", "libdefaults/default_realm", "1: include has no effect"},
	{"indented includedir", "# c\n\tincludedir DIR/inc.d\n[s]\n", "libdefaults/default_realm", "2: includedir has no effect"},
	{"include", "include DIR/inc\n[s]\n", "libdefaults/default_realm", ""},
	{"includedir", "includedir DIR/inc.d\n[s]\n", "libdefaults/default_realm", ""},
	{"no-break space before an include", "\u00a0include DIR/inc\n[s]\n", "libdefaults/default_realm", "1: include has no effect"},
	{"no-break space before a key", "[libdefaults]\n\u00a0default_realm = X\n", "libdefaults/default_realm", `2: "\u00a0default_realm" has no effect: it has the character U+00A0`},
	{"no-break space behind a key", "[libdefaults]\ndefault_realm\u00a0= X\n", "libdefaults/default_realm", `2: "default_realm\u00a0" has no effect`},
	{"no-break space before a section", "\u00a0[libdefaults]\ndefault_realm = X\n", "libdefaults/default_realm", `1: "\u00a0[libdefaults]" has no effect`},
	{"byte order mark", "\ufeff[libdefaults]\ndefault_realm = X\n", "libdefaults/default_realm", `1: "\ufeff[libdefaults]" has no effect`},
	{"indented first section", "  [libdefaults]\ndefault_realm = X\n", "libdefaults/default_realm", `1: "  [libdefaults]" has no effect`},
	{"before the first section", "Comment\n# a = b\ndefault_realm = X\nclockskew = 1\n[s]\n", "libdefaults/default_realm", `3: "default_realm = X" has no effect`},
	{"indented second section", "[s]\n  [libdefaults]\ndefault_realm = X\n", "libdefaults/default_realm", ""},
	{"indented key", "[libdefaults]\n \tdefault_realm = X\n", "libdefaults/default_realm", ""},
}

// misread are files with an effect that is not the one that was meant, and the value that there is.
var misread = map[string]string{
	"[libdefaults]\ndefault_realm = \u00a0X\u200b\n": "\u00a0X\u200b",
	"[libdefaults]\ndefault_realm = X # ours\n":      "X # ours",
	"[domain_realm]\n.test = X\t; theirs\n":          "X\t; theirs",
}

func TestIneffective(t *testing.T) {
	for _, test := range ineffective {
		dir := files(t, map[string]string{"krb5.conf": test.text, "inc": "[libdefaults]\ndefault_realm = X\n", "inc.d/a": "[libdefaults]\ndefault_realm = X\n"})
		c, err := Load([]string{dir + "/krb5.conf"})
		if err != nil {
			t.Errorf("%s: %v", test.name, err)
			continue
		}
		var warnings []string
		for _, w := range c.Warnings {
			if !strings.Contains(w, "the file ends inside") {
				warnings = append(warnings, strings.TrimPrefix(w, dir+"/krb5.conf:"))
			}
		}
		_, has := c.Get(strings.Split(test.path, "/")...)
		switch {
		case has != (test.says == ""):
			t.Errorf("%s: has a value: %v", test.name, has)
		case test.says == "" && len(warnings) > 0, len(warnings) > 1,
			test.says != "" && (len(warnings) == 0 || !strings.HasPrefix(warnings[0], test.says)):
			t.Errorf("%s: warnings %q, want %q", test.name, warnings, test.says)
		}
	}
	for text, value := range misread {
		c := mustLoad(t, text)
		if c.DefaultRealm+c.DomainRealm("x.test") != value || len(c.Warnings) != 1 || !strings.Contains(c.Warnings[0], "krb5.conf:2: ") || !strings.Contains(c.Warnings[0], fmt.Sprintf("%q", value)) {
			t.Errorf("%q: %q, %q", text, c.DefaultRealm, c.Warnings)
		}
	}
	// What ends in an error names the line where it began.
	for text, says := range map[string]string{
		"[realms]\nR = { # mine\nkdc = k\n}\n": ":4: } without {; expected line 2 to end with {",
		"[s]\n include /x\n":                   ":2: include is indented; expected include at the start of the line",
	} {
		if _, err := load(t, text); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%q: %v, want %q", text, err, says)
		}
	}
	// Once, however often it is read.
	dir := files(t, map[string]string{"krb5.conf": "include DIR/a\ninclude DIR/a\n", "a": "[ realms ]\n"})
	c, err := Load([]string{dir + "/krb5.conf", dir + "/a"})
	if err != nil || len(c.Warnings) != 1 {
		t.Errorf("%q, %v", c.Warnings, err)
	}
	// All that is wrong with settings is said at once.
	if _, err := load(t, "[libdefaults]\nallow_rc4 = perhaps\ndns_canonicalize_hostname = never\n"); err == nil || strings.Count(err.Error(), "krb5.conf:") != 2 {
		t.Errorf("%v", err)
	}
}

// MIT's library agrees on what has the effect.
func TestIneffectiveMIT(t *testing.T) {
	o := mitProfile(t)
	for i, test := range ineffective {
		dir := files(t, map[string]string{"inc": "[libdefaults]\ndefault_realm = X\n", "inc.d/a": "[libdefaults]\ndefault_realm = X\n"})
		name := filepath.Join(dir, fmt.Sprint(i)) // it remembers files by name
		if err := os.WriteFile(name, []byte(strings.ReplaceAll(test.text, "DIR", dir)), 0o600); err != nil {
			t.Fatal(err)
		}
		if got := o.ask(t, name, strings.Split(test.path, "/")...); strings.HasPrefix(got, "!") || (got == "") != (test.says != "") {
			t.Errorf("%s: MIT has %q", test.name, got)
		}
	}
	for text, value := range misread {
		name := filepath.Join(t.TempDir(), "krb5.conf")
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		path := []string{"libdefaults", "default_realm"}
		if strings.Contains(text, "domain") {
			path = []string{"domain_realm", ".test"}
		}
		if got := o.ask(t, name, path...); got != fmt.Sprintf("=%x", value) {
			t.Errorf("%q: MIT has %q", text, got)
		}
	}
}
