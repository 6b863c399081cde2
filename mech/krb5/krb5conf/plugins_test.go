package krb5conf

import (
	"slices"
	"strings"
	"testing"
)

func TestLocalAuth(t *testing.T) {
	all := []string{"default", "rule", "names", "auth_to_local", "k5login", "an2ln"}
	for _, tt := range []struct {
		lines []string // in [plugins] localauth
		want  []string
		warn  []string // what each of the warnings has
	}{
		{nil, all, nil},
		{[]string{"other = names"}, all, nil},
		{[]string{"disable = names", "disable = an2ln"}, []string{"default", "rule", "auth_to_local", "k5login"}, nil},
		{[]string{"disable = names rule"}, all, []string{`:4: localauth disable = "names rule" names no module`}},
		{[]string{"disable = Names"}, all, []string{`"Names" names no module`}},
		{[]string{"enable_only = an2ln", "enable_only = names", "enable_only = an2ln"}, []string{"an2ln", "names"}, nil},
		{[]string{"enable_only = names", "disable = names"}, nil, nil},
		{[]string{`enable_only = ""`}, nil, []string{`enable_only = "" names no module`}},
		{[]string{"enable_only = sssd"}, nil, []string{`enable_only = "sssd" names no module`}},
		{[]string{"module = sssd:/usr/lib/sssd.so", "enable_only = sssd"}, nil, []string{`:4: localauth module "sssd:/usr/lib/sssd.so" is not loaded`}},
		{[]string{"module = sssd:x.so"}, all, []string{"is not loaded"}},
		{[]string{"module = rule:x.so"}, []string{"default", "names", "auth_to_local", "k5login", "an2ln"}, []string{"is not loaded"}},
		{[]string{"module = x.so"}, nil, []string{`localauth module = "x.so"; expected NAME:PATH`}},
	} {
		c := mustLoad(t, "[libdefaults]\n[plugins]\n localauth = {\n"+strings.Join(tt.lines, "\n")+"\n }\n")
		if got := c.LocalAuth(); !slices.Equal(got, tt.want) {
			t.Errorf("%q: %q, want %q", tt.lines, got, tt.want)
		}
		if len(c.Warnings) != len(tt.warn) {
			t.Errorf("%q: warnings %q", tt.lines, c.Warnings)
			continue
		}
		for i, w := range tt.warn {
			if !strings.Contains(c.Warnings[i], w) {
				t.Errorf("%q: warning %q, want %q", tt.lines, c.Warnings[i], w)
			}
		}
	}
	if got := new(Config).LocalAuth(); !slices.Equal(got, all) {
		t.Errorf("without a configuration: %q", got)
	}

	// The values of all files count together.
	dir := files(t, map[string]string{
		"a": "[plugins]\nlocalauth = {\ndisable = names\n}\n",
		"b": "[plugins]\nlocalauth = {\ndisable = k5login\ndisable = an2ln\ndisable = rule\n}\n",
	})
	c, err := Load([]string{dir + "/a", dir + "/b"})
	if err != nil {
		t.Fatal(err)
	}
	if got := c.LocalAuth(); !slices.Equal(got, []string{"default", "auth_to_local"}) {
		t.Errorf("two files: %q", got)
	}

	c = mustLoad(t, "[libdefaults]\nnoaddresses = true\n")
	if len(c.Warnings) != 0 {
		t.Errorf("limits on requests: %q", c.Warnings)
	}
	c = mustLoad(t, "[libdefaults]\nnoaddresses = no\n")
	if len(c.Warnings) != 1 || !strings.Contains(c.Warnings[0], ":2: noaddresses") {
		t.Errorf("limits on requests: %q", c.Warnings)
	}

	// Other interfaces.
	c = mustLoad(t, "[plugins]\nhostrealm = {\ndisable = profile\n}\nclpreauth = {\nenable_only = spake\nmodule = x:y\n}\npwqual = {\ndisable = dict\n}\n")
	if len(c.Warnings) != 3 || !strings.Contains(c.Warnings[0], `:3: hostrealm disable = "profile" has no effect`) {
		t.Errorf("other interfaces: %q", c.Warnings)
	}
}
