package conf

import (
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"
)

func TestEntryRules(t *testing.T) {
	p, err := EntryRules(map[string][]string{
		"operations": {"accept, names"}, "client_realms": {"A", "B"}, "max_lifetime": {"60"}, "calls_per_second": {"5"}, "mode": {"observe"}, "require_pac": {"yes"},
	}, isAES256)
	if err != nil || p.Operations != OpAccept|OpNames || len(p.ClientRealms) != 2 || p.MaxLifetime != time.Minute || p.CallsPerSecond != 5 || !p.Observe || !p.RequirePAC {
		t.Errorf("%+v, %v", p, err)
	}
	if p, err := EntryRules(nil, nil); err != nil || p.restricts() || p.MaxLifetime != 0 || p.CallsPerSecond != 0 || p.Observe {
		t.Errorf("of no rules: %+v, %v", p, err)
	}
	wrong := make(map[string]bool)
	for _, test := range []struct {
		key    string
		values []string
		want   string
	}{
		{"operation", []string{"accept"}, `unknown key "operation"; did you mean operations?`},
		{"euid", []string{"0"}, `unknown key "euid"`},
		{"Operations", []string{"accept"}, `unknown key "Operations"`},
		{"operations", nil, "operations has no value"},
		{"operations", []string{"accept", "initiate"}, "operations has 2 values; one is expected"},
		{"operations", []string{"acept"}, `operations = "acept" has "acept" in it`},
		{"targets", []string{"HTTP/www"}, "has no realm in it"},
		{"targets", []string{"a@B", "a@B"}, "repeats a line"},
		{"targets", []string{"a@B\ntargets = *@B"}, "has a blank"},
		{"targets", []string{" a@B"}, "has a blank"},
		{"targets", []string{"a@B # all"}, "has a blank or a comment"},
		{"proxy_targets", []string{"HTTP/www"}, "has no realm in it"},
		{"impersonate_users", []string{"alice"}, "has no realm in it"},
		{"client_realms", []string{"A/B"}, "client_realms"},
		{"client_principals", []string{"a@B@C"}, "has two @ in it"},
		{"enctypes", []string{"aes256"}, `enctypes has "aes256" in it, which is the name of no encryption type that is supported`},
		{"enctypes", []string{""}, "enctypes"},
		{"require_pac", []string{"maybe"}, "require_pac"},
		{"require_channel_bindings", []string{"1x"}, "require_channel_bindings"},
		{"max_lifetime", []string{"-1"}, "max_lifetime"},
		{"calls_per_second", []string{"many"}, "calls_per_second"},
		{"calls_burst", []string{"-5"}, "calls_burst"},
		{"mode", []string{"look"}, "mode"},
		{"calls_burst", []string{"5"}, "calls_burst limits nothing without calls_per_second"},
	} {
		if p, err := EntryRules(map[string][]string{test.key: test.values}, isAES256); p != nil || err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s = %q: %v, %v; want %s", test.key, test.values, p, err, test.want)
		}
		wrong[test.key] = true
	}
	for _, o := range permissionOptions(ServiceSection) {
		if !wrong[o.Key] {
			t.Errorf("%s is not tried with a wrong value", o.Key)
		}
	}
}

// isAES256 stands for package etype, of which this one knows nothing.
func isAES256(name string) bool { return name == "aes256-cts-hmac-sha1-96" }

// Rules mean what the same lines mean in a section of a service.
func TestEntryRulesAreAService(t *testing.T) {
	lines := map[string][]string{
		"operations": {"accept", "initiate, names"}, "targets": {"HTTP/*@A", `a\*@A`}, "proxy_targets": {"*@*"}, "impersonate_users": {"bob@A"}, "client_realms": {"A", "*.B"},
		"client_principals": {"*/admin@A"}, "enctypes": {"aes256-cts-hmac-sha1-96"}, "require_channel_bindings": {"yes", "no"}, "require_pac": {"yes"}, "max_lifetime": {"0", "90"},
		"calls_per_second": {"3"}, "mode": {"observe", "enforce"},
	}
	rapid.Check(t, func(t *rapid.T) {
		rules := make(map[string][]string)
		text := "[service/a]\nmechs = krb5\neuid = 1\n"
		for key, values := range lines {
			if rapid.Bool().Draw(t, key) {
				v := rapid.SampledFrom(values).Draw(t, "value")
				rules[key] = []string{v}
				text += key + " = " + v + "\n"
			}
		}
		p, err := EntryRules(rules, isAES256)
		if err != nil {
			t.Fatal(err)
		}
		c, r := interpret(text)
		if len(r.errors) > 0 {
			t.Fatal(r.errors)
		}
		s := c.Services[0]
		for _, o := range permissionOptions(ServiceSection) {
			if got, want := strings.Join(o.get(target{svc: &Service{Permission: *p}}), "|"), strings.Join(o.get(target{svc: s}), "|"); got != want {
				t.Errorf("%s: %q, in a section %q", o.Key, got, want)
			}
		}
	})
}

// interpret reads a configuration of one file.
func interpret(text string) (*Config, *reader) {
	r := newReader(Source{Users: testUsers})
	r.interpret([]file{{"main.conf", parse("main.conf", 0, []byte(text), &r.report, knownSections)}})
	return r.cfg, r
}
