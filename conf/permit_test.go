package conf

import (
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"gssproxyd/mech/reason"
)

func name(realm string, components ...string) Principal { return Principal{components, realm} }

func TestPattern(t *testing.T) {
	for _, test := range []struct {
		pattern string
		matches []Principal
		not     []Principal
	}{
		{"alice@A", []Principal{name("A", "alice")}, []Principal{name("B", "alice"), name("A", "alice", ""), name("A", "alic"), name("A", "alicee"), name("")}},
		{"HTTP/*@A", []Principal{name("A", "HTTP", "a.b"), name("A", "HTTP", "")}, []Principal{name("A", "HTTP"), name("A", "HTTP", "a", "b"), name("A", "HTTP/a")}},
		{"*@A", []Principal{name("A", "x"), name("A", "x/y@z")}, []Principal{name("A", "x", "y"), name("A")}},
		{"*@*", []Principal{name("", ""), name("B", "a")}, []Principal{name("B", "a", "b")}},
		{"a*b*c@*.EXAMPLE", []Principal{name("X.EXAMPLE", "abc"), name(".EXAMPLE", "a1b2c")}, []Principal{name("EXAMPLE", "abc"), name("X.EXAMPLE", "ac"), name("X.EXAMPLE", "ab")}},
		{"a*a@A", []Principal{name("A", "aa"), name("A", "aba")}, []Principal{name("A", "a")}},
		{`a\*b@A`, []Principal{name("A", "a*b")}, []Principal{name("A", "axb")}},
		{"jür*en@RÉALM", []Principal{name("RÉALM", "jürgen")}, []Principal{name("RÉALM", "jurgen")}},
		{`a\/b\@c\\@A`, []Principal{name("A", `a/b@c\`)}, []Principal{name("A", "a", "b")}},
	} {
		p, wrong := parsePattern(test.pattern)
		if wrong != "" {
			t.Errorf("%s %s", test.pattern, wrong)
			continue
		}
		for _, n := range test.matches {
			if !p.Matches(n) {
				t.Errorf("%s does not match %q", test.pattern, n)
			}
		}
		for _, n := range test.not {
			if p.Matches(n) {
				t.Errorf("%s matches %q", test.pattern, n)
			}
		}
	}
	for text, want := range map[string]string{
		"alice": "has no realm in it", "alice@": "has an empty realm", `alice@A\`: `ends in a \`, "a@b@c": "has two @ in it", "a@b/c": "has a / in the realm", "a\x00@b": "has a NUL in it",
	} {
		if _, wrong := parsePattern(text); wrong != want {
			t.Errorf("%q: %q, want %q", text, wrong, want)
		}
	}
}

// A principal written out, as a pattern, is that principal and no other; with a star in the place of
// a part of one component it is that too, and the star never reaches beyond.
func TestPatternOfPrincipal(t *testing.T) {
	part := rapid.StringOfN(rapid.RuneFrom([]rune(`aü*/@\.`)), 0, 4, -1)
	principal := rapid.Custom(func(t *rapid.T) Principal {
		return Principal{rapid.SliceOfN(part, 1, 3).Draw(t, "components"), part.Filter(func(s string) bool { return s != "" }).Draw(t, "realm")}
	})
	quote := strings.NewReplacer(`\`, `\\`, "/", `\/`, "@", `\@`, "*", `\*`).Replace
	rapid.Check(t, func(t *rapid.T) {
		p, other := principal.Draw(t, "principal"), principal.Draw(t, "other")
		var texts []string
		for _, c := range p.Components {
			texts = append(texts, quote(c))
		}
		exact, wrong := parsePattern(strings.Join(texts, "/") + "@" + quote(p.Realm))
		if wrong != "" {
			t.Fatal(wrong)
		}
		same := strings.Join(p.Components, "\x00")+"\x01"+p.Realm == strings.Join(other.Components, "\x00")+"\x01"+other.Realm && len(p.Components) == len(other.Components)
		if !exact.Matches(p) || exact.Matches(other) != same {
			t.Fatalf("%s: itself %t, %q %t", exact, exact.Matches(p), other, exact.Matches(other))
		}
		i := rapid.IntRange(0, len(texts)-1).Draw(t, "which")
		c := p.Components[i]
		n := rapid.IntRange(0, len(c)).Draw(t, "where")
		texts[i] = quote(c[:n]) + "*" + quote(c[n:])
		starred, wrong := parsePattern(strings.Join(texts, "/") + "@" + quote(p.Realm))
		if wrong != "" {
			t.Fatal(wrong)
		}
		if !starred.Matches(p) || starred.Matches(other) && (len(other.Components) != len(p.Components) || other.Realm != p.Realm) {
			t.Fatalf("%s: itself %t, %q %t", starred, starred.Matches(p), other, starred.Matches(other))
		}
	})
}

func TestPermit(t *testing.T) {
	const service = "[service/a]\nmechs = krb5\neuid = 1\n"
	alice, bob := name("A", "alice"), name("B", "bob")
	accept := func(change func(*Act)) *Act {
		a := &Act{Operation: OpAccept, Client: &alice, Enctypes: []string{"aes256-cts-hmac-sha1-96", "aes128-cts-hmac-sha1-96"}}
		if change != nil {
			change(a)
		}
		return a
	}
	initiate := func(proxy bool, targets ...Principal) *Act {
		return &Act{Operation: OpInitiate, Targets: targets, Proxy: proxy}
	}
	web, db := name("A", "HTTP", "web"), name("A", "postgres", "db")
	for text, test := range map[string]struct {
		permitted []*Act
		reason    reason.ID
		refused   []*Act
	}{
		"": {[]*Act{accept(nil), initiate(true, web), {Operation: OpDelegate}, {Operation: OpNames}, {Operation: OpImpersonate, User: &bob}}, "", nil},
		"operations = accept, names": {[]*Act{accept(nil), {Operation: OpNames}}, reason.OperationNotAllowed,
			[]*Act{initiate(false, web), {Operation: OpDelegate}, {Operation: OpImpersonate, User: &bob}, {Operation: OpInitiate, Enquiry: true}}},
		"targets = HTTP/*@A": {[]*Act{accept(nil), initiate(false, web), initiate(true, web, web), {Operation: OpInitiate, Enquiry: true}}, reason.TargetNotAllowed,
			[]*Act{initiate(false, db), initiate(false, web, db), initiate(false, db, web)}},
		"proxy_targets = HTTP/*@A":                                       {[]*Act{initiate(false, db), initiate(true, web)}, reason.TargetNotAllowed, []*Act{initiate(true, db)}},
		"targets = HTTP/*@A\nproxy_targets = *@A\nproxy_targets = */*@A": {[]*Act{initiate(true, web)}, reason.TargetNotAllowed, []*Act{initiate(true, db)}},
		"impersonate_users = alice@A": {[]*Act{{Operation: OpImpersonate, User: &alice}, {Operation: OpImpersonate, Enquiry: true}}, reason.UserNotAllowed,
			[]*Act{{Operation: OpImpersonate, User: &bob}}},
		"client_realms = A": {[]*Act{accept(nil)}, reason.ClientNotAllowed, []*Act{accept(func(a *Act) { a.Client = &bob })}},
		"client_realms = *B\nclient_principals = bob@*": {[]*Act{accept(func(a *Act) { a.Client = &bob })}, reason.ClientNotAllowed,
			[]*Act{accept(nil), accept(func(a *Act) { a.Client = &Principal{[]string{"eve"}, "B"} })}},
		"enctypes = aes256-cts-hmac-sha1-96": {[]*Act{accept(func(a *Act) { a.Enctypes = a.Enctypes[:1] })}, reason.EnctypeNotAllowed,
			[]*Act{accept(nil), {Operation: OpInitiate, Targets: []Principal{web}, Enctypes: []string{"arcfour-hmac"}}}},
		"require_channel_bindings = yes": {[]*Act{accept(func(a *Act) { a.Bindings = true }), initiate(false, web)}, reason.BindingsRequired, []*Act{accept(nil)}},
		"require_pac = yes":              {[]*Act{accept(func(a *Act) { a.PAC = true }), initiate(false, web)}, reason.PACRequired, []*Act{accept(nil)}},
	} {
		for where, c := range map[string]*Config{
			"service":                   load(t, service+text+"\n"),
			"ceiling":                   load(t, "[gssproxy]\n"+text+"\n"+service),
			"ceiling, service observes": load(t, "[gssproxy]\n"+text+"\n"+service+"mode = observe\n"),
			"both":                      load(t, "[gssproxy]\n"+text+"\n"+service+text+"\n"),
		} {
			s := c.Services[0]
			if c.Restricts(s) != (text != "") {
				t.Errorf("%s, %q: restricts: %t", where, text, text == "")
			}
			for i, a := range test.permitted {
				if v := c.Permit(s, a); v.Refused != nil || v.Observed != nil {
					t.Errorf("%s, %q: %d: %+v", where, text, i, v)
				}
			}
			for i, a := range test.refused {
				if v := c.Permit(s, a); v.Refused == nil || v.Refused.Reason != test.reason || v.Refused.Reason.Doc().Text == "" {
					t.Errorf("%s, %q: %d: %+v", where, text, i, v)
				}
			}
		}
		for where, c := range map[string]*Config{
			"service": load(t, service+text+"\nmode = observe\n"),
			"ceiling": load(t, "[gssproxy]\nmode = observe\n"+text+"\n"+service),
		} {
			for i, a := range test.refused {
				if v := c.Permit(c.Services[0], a); v.Refused != nil || len(v.Observed) != 1 || v.Observed[0].Reason != test.reason {
					t.Errorf("%s observes, %q: %d: %+v", where, text, i, v)
				}
			}
		}
	}
}

// How often: who counts says for how long a call is too early by each of the two, and each is for the
// key of its own section. It is a limit apart from what else is refused.
func TestPermitCalls(t *testing.T) {
	const service = "[service/a]\nmechs = krb5\neuid = 1\n"
	for _, test := range []struct {
		text      string
		rates     [Layers]CallRate
		early     [Layers]time.Duration
		refused   string
		observed  int
		restricts bool
	}{
		{service, [Layers]CallRate{}, [Layers]time.Duration{}, "", 0, false},
		{service + "calls_per_second = 5\n", [Layers]CallRate{{}, {5, 5}}, [Layers]time.Duration{}, "", 0, false},
		{service + "calls_per_second = 5\ncalls_burst = 2\n", [Layers]CallRate{{}, {2, 5}}, [Layers]time.Duration{0, 150100 * time.Microsecond},
			"calls_per_second = 5; the user has made more calls than that and may make the next one in 151ms", 0, false},
		{"[gssproxy]\ncalls_per_second = 7\n" + service + "calls_per_second = 5\n", [Layers]CallRate{{7, 7}, {5, 5}}, [Layers]time.Duration{time.Second, time.Minute},
			"calls_per_second = 7; the user has made more calls than that and may make the next one in 1s", 0, false},
		{"[gssproxy]\ncalls_per_second = 7\n" + service + "calls_per_second = 5\nmode = observe\n", [Layers]CallRate{{7, 7}, {5, 5}}, [Layers]time.Duration{time.Second, time.Minute},
			"calls_per_second = 7; the user has made more calls than that and may make the next one in 1s", 1, false},
		{"[gssproxy]\ncalls_per_second = 7\n" + service + "calls_per_second = 5\nmode = observe\n", [Layers]CallRate{{7, 7}, {5, 5}}, [Layers]time.Duration{0, time.Minute}, "", 1, false},
		{"[gssproxy]\ncalls_per_second = 7\nmode = observe\n" + service + "operations = accept\n", [Layers]CallRate{{7, 7}, {}}, [Layers]time.Duration{time.Second, 0}, "", 1, true},
	} {
		c := load(t, test.text)
		s := c.Services[0]
		if got := c.CallRates(s); got != test.rates {
			t.Errorf("%q: rates %v", test.text, got)
		}
		if c.Restricts(s) != test.restricts {
			t.Errorf("%q: restricts %t", test.text, !test.restricts)
		}
		v := c.Permit(s, &Act{Call: true, Early: test.early})
		if text := ""; v.Refused != nil {
			if text = v.Refused.Text; v.Refused.Reason != reason.RateLimited || text != test.refused {
				t.Errorf("%q: refused %+v", test.text, v.Refused)
			}
		} else if test.refused != "" {
			t.Errorf("%q: not refused", test.text)
		}
		if len(v.Observed) != test.observed || test.observed > 0 && v.Observed[0].Reason != reason.RateLimited {
			t.Errorf("%q: observed %+v", test.text, v.Observed)
		}
		if !test.restricts {
			if v := c.Permit(s, &Act{Operation: OpAccept}); v.Refused != nil || v.Observed != nil {
				t.Errorf("%q: what is not about how often: %+v", test.text, v)
			}
		}
	}
}

// Whatever the two say, no service may do what the ceiling forbids, and nothing that a service says
// permits more than it permits without.
func TestPermitNarrows(t *testing.T) {
	pattern := rapid.SampledFrom([]string{"*@A", "alice@A", "HTTP/*@*", "*@*", "HTTP/web@B"})
	patterns := rapid.Custom(func(t *rapid.T) (list []Pattern) {
		for _, text := range rapid.SliceOfNDistinct(pattern, 0, 2, rapid.ID).Draw(t, "patterns") {
			p, _ := parsePattern(text)
			list = append(list, p)
		}
		return list
	})
	realm := func(text string) Pattern { p, _ := parseRealm(text); return p }
	permission := rapid.Custom(func(t *rapid.T) Permission {
		return Permission{
			Operations: Operations(rapid.IntRange(0, 31).Draw(t, "operations")), Targets: patterns.Draw(t, "targets"), ProxyTargets: patterns.Draw(t, "proxy"),
			ImpersonateUsers: patterns.Draw(t, "users"), ClientPrincipals: patterns.Draw(t, "clients"), ClientRealms: rapid.SampledFrom([][]Pattern{nil, {realm("A")}, {realm("*")}}).Draw(t, "realms"),
			Enctypes: rapid.SampledFrom([][]string{nil, {"x"}, {"x", "y"}}).Draw(t, "enctypes"), RequirePAC: rapid.Bool().Draw(t, "pac"), RequireChannelBindings: rapid.Bool().Draw(t, "bindings"),
			Observe: rapid.Bool().Draw(t, "observe"),
		}
	})
	principal := rapid.SampledFrom([]Principal{name("A", "alice"), name("B", "bob"), name("A", "HTTP", "web"), name("B", "HTTP", "web")})
	rapid.Check(t, func(t *rapid.T) {
		who := principal.Draw(t, "who")
		a := &Act{Operation: 1 << rapid.IntRange(0, 4).Draw(t, "operation"), Enctypes: rapid.SampledFrom([][]string{nil, {"x"}, {"y", "x"}, {"z"}}).Draw(t, "types")}
		switch a.Operation {
		case OpAccept:
			a.Client, a.PAC, a.Bindings = &who, rapid.Bool().Draw(t, "has pac"), rapid.Bool().Draw(t, "has bindings")
		case OpInitiate:
			a.Targets, a.Proxy = []Principal{who, principal.Draw(t, "target")}, rapid.Bool().Draw(t, "for a user")
		case OpImpersonate:
			a.User = &who
		}
		c, s := &Config{Ceiling: permission.Draw(t, "ceiling")}, &Service{Permission: permission.Draw(t, "service")}
		alone := c.Permit(&Service{}, a)
		own := (&Config{}).Permit(s, a)
		both := c.Permit(s, a)
		if (both.Refused != nil) != (alone.Refused != nil || own.Refused != nil) {
			t.Fatalf("together %+v, the ceiling %+v, the service %+v", both, alone, own)
		}
		if len(both.Observed) != len(alone.Observed)+len(own.Observed) {
			t.Fatalf("observed: together %d, the ceiling %d, the service %d", len(both.Observed), len(alone.Observed), len(own.Observed))
		}
		if !c.Restricts(s) && (both.Refused != nil || both.Observed != nil) {
			t.Fatalf("nothing is restricted, and yet %+v", both)
		}

		// What an entry of a key store says forbids what it forbids alone, also to a service with mode =
		// observe, and permits nothing.
		entry := permission.Draw(t, "entry")
		if rapid.Bool().Draw(t, "withheld") {
			entry.Withheld = &Refusal{reason.NoKeytab, "it was withdrawn"}
		}
		its := (&Config{}).Permit(&Service{}, a, &entry)
		all := c.Permit(s, a, &entry)
		if (all.Refused != nil) != (both.Refused != nil || its.Refused != nil) || len(all.Observed) != len(both.Observed)+len(its.Observed) {
			t.Fatalf("with the entry %+v, without %+v, the entry alone %+v", all, both, its)
		}
		if entry.Withheld != nil && a.Operation != OpNames && its.Refused != entry.Withheld {
			t.Fatalf("of an entry without keys: %+v", its)
		}
	})
}

func TestEnforced(t *testing.T) {
	for text, want := range map[string][]string{
		"[gssproxy]\n[service/a]\nmechs = krb5\neuid = 1\n":                                             nil,
		"[gssproxy]\nenctypes = x y\n[service/a]\nmechs = krb5\neuid = 1\n":                             {"x", "y"},
		"[gssproxy]\nenctypes = x y\n[service/a]\nmechs = krb5\neuid = 1\nenctypes = z y\n":             {"y"},
		"[gssproxy]\nenctypes = x\n[service/a]\nmechs = krb5\neuid = 1\nenctypes = y\n":                 {},
		"[gssproxy]\nenctypes = x\nmode = observe\n[service/a]\nmechs = krb5\neuid = 1\nenctypes = y\n": {"y"},
		"[gssproxy]\nenctypes = x\n[service/a]\nmechs = krb5\neuid = 1\nenctypes = y\nmode = observe\n": {"x"},
		"[gssproxy]\n[service/a]\nmechs = krb5\neuid = 1\nenctypes = y\nmode = observe\n":               nil,
	} {
		c := load(t, text)
		if got := c.Enforced(c.Services[0]); !slices.Equal(got, want) || (got == nil) != (want == nil) {
			t.Errorf("%q: %q, want %q", text, got, want)
		}
	}
}

// What a name may be is nothing that a log, or whoever reads an answer, has to stand.
func TestRefusalShowsName(t *testing.T) {
	c := load(t, "[service/a]\nmechs = krb5\neuid = 1\nclient_realms = A\n")
	p := name("B", "a\nb", strings.Repeat("c", 1000))
	text := c.Permit(c.Services[0], &Act{Operation: OpAccept, Client: &p}).Refused.Text
	if strings.Contains(text, "\n") || len(text) > 300 || !strings.Contains(text, `"a\nb/ccc`) {
		t.Error(text)
	}
}

func TestLifetime(t *testing.T) {
	for text, want := range map[string]time.Duration{
		"[gssproxy]\n[service/a]\nmechs = krb5\neuid = 1\n":                                       0,
		"[gssproxy]\nmax_lifetime = 60\n[service/a]\nmechs = krb5\neuid = 1\n":                    time.Minute,
		"[gssproxy]\nmax_lifetime = 60\n[service/a]\nmechs = krb5\neuid = 1\nmax_lifetime = 30\n": 30 * time.Second,
		"[gssproxy]\nmax_lifetime = 60\n[service/a]\nmechs = krb5\neuid = 1\nmax_lifetime = 90\n": time.Minute,
		"[gssproxy]\nmode = observe\n[service/a]\nmechs = krb5\neuid = 1\nmax_lifetime = 90\n":    90 * time.Second,
	} {
		c := load(t, text)
		if got := c.Lifetime(c.Services[0]); got != want {
			t.Errorf("%q: %v, want %v", text, got, want)
		}
	}
}

func TestPermitDoesNotAllocate(t *testing.T) {
	c := load(t, "[service/a]\nmechs = krb5\neuid = 1\ntargets = HTTP/*@A\nclient_realms = A\n")
	alice := name("A", "alice")
	acts := []*Act{{Operation: OpAccept, Client: &alice}, {Operation: OpInitiate, Targets: []Principal{name("A", "HTTP", "web")}}}
	if n := testing.AllocsPerRun(100, func() {
		for _, a := range acts {
			if c.Permit(c.Services[0], a).Refused != nil {
				t.Fatal("refused")
			}
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
