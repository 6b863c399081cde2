package krb5

import (
	"slices"
	"strings"
	"testing"
)

func TestExpandTransited(t *testing.T) {
	for _, c := range []struct {
		list, client, server string
		want                 string // space-separated
		ok                   bool
	}{
		{"", "A", "B", "", true},
		// The examples of RFC 4120 section 3.3.3.2.
		{"EDU,MIT.,ATHENA.,WASHINGTON.EDU,CS.", "X", "Y", "EDU MIT.EDU ATHENA.MIT.EDU WASHINGTON.EDU CS.WASHINGTON.EDU", true},
		{"/COM,/HP,/APOLLO, /COM/DEC", "X", "Y", "/COM /COM/HP /COM/HP/APOLLO /COM/DEC", true},
		{",EDU, /COM", "ATHENA.MIT.EDU", "/COM/HP", "EDU MIT.EDU /COM", true},
		{",EDU, /COM,", "ATHENA.MIT.EDU", "/COM/HP/APOLLO", "EDU MIT.EDU /COM /COM/HP", true},
		{`A\,B,C`, "X", "Y", "A,B C", true},
		{"EX.COM,,A.B.EX.COM", "X", "Y", "EX.COM A.B.EX.COM B.EX.COM", true},
		{"EX.COM,,A.B.OTHER", "X", "Y", "EX.COM A.B.OTHER", false},
		{"EX.COM,, /COM", "X", "Y", "EX.COM /COM", false},
		{",,", "A.EX", "EX", "", true},
	} {
		var got []string
		ok := expandTransited(c.list, c.client, c.server, func(r string) bool { got = append(got, r); return true })
		if strings.Join(got, " ") != c.want && !(c.list == "" && len(got) == 0) || ok != c.ok && c.list != "" {
			t.Errorf("%q: %q %v, want %q %v", c.list, got, ok, c.want, c.ok)
		}
	}
	if expandTransited(strings.Repeat("A", 600), "X", "Y", func(string) bool { return true }) {
		t.Error("a realm of 600 octets was taken")
	}
	if expandTransited(strings.Repeat("A", 300)+","+strings.Repeat("B", 300)+".", "X", "Y", func(string) bool { return true }) {
		t.Error("an expansion of 600 octets was taken")
	}
}

func TestHierarchy(t *testing.T) {
	for _, c := range []struct{ client, server, want string }{
		{"A.B.EX.COM", "C.EX.COM", "A.B.EX.COM B.EX.COM EX.COM C.EX.COM"},
		{"EX.COM", "A.EX.COM", "EX.COM A.EX.COM"},
		{"A.EX.COM", "EX.COM", "A.EX.COM EX.COM"},
		{"ABC.EX.COM", "BC.EX.COM", "ABC.EX.COM EX.COM BC.EX.COM"},
		{"A.ORG", "B.COM", "A.ORG ORG COM B.COM"},
		{"ONE", "TWO", "ONE TWO"},
	} {
		if got := Hierarchy(c.client, c.server); !slices.Equal(got, strings.Fields(c.want)) {
			t.Errorf("%s to %s: %q, want %q", c.client, c.server, got, c.want)
		}
	}
}

func FuzzTransited(f *testing.F) {
	f.Add("EDU,MIT.,ATHENA.,WASHINGTON.EDU,CS.", "A.EDU", "B.EDU")
	f.Add(`,,\`, "", "")
	f.Fuzz(func(t *testing.T, list, client, server string) {
		if off, ok := checkTransited(nil, list, client, server); ok && off != "" {
			t.Fatalf("%q fine but %q off the way", list, off)
		}
	})
}
