package conf

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"gssproxyd/mech/reason"
)

// Permission says what the callers of a service may do; the zero Permission permits everything. The
// one in [gssproxy] is a ceiling for all services: what either forbids is forbidden.
type Permission struct {
	Operations       Operations // none of them: all
	Targets          []Pattern  // principals that contexts are initiated with
	ProxyTargets     []Pattern  // those that a credential acting for a user is used towards
	ImpersonateUsers []Pattern  // whom credentials are got for that are not there
	ClientRealms     []Pattern  // of initiators that are accepted; without a component
	ClientPrincipals []Pattern  // initiators that are accepted
	Enctypes         []string   // of tickets, session keys and subkeys

	RequireChannelBindings bool
	RequirePAC             bool

	MaxLifetime time.Duration // of a context, which ends by then; 0 is no limit

	CallsPerSecond int // of each uid, for each service; 0 is no limit
	CallsBurst     int // that may come at once; 0 is as many as in a second

	Observe bool // what would be refused is said, and done

	// Withheld is why there are no keys of the entry of a key store that this is of: all is refused
	// for that but what takes no key. nil: there are.
	Withheld *Refusal
}

// Operations is a set of operations.
type Operations uint8

// What calls do for their callers.
const (
	OpAccept      Operations = 1 << iota
	OpInitiate               // contexts, and credentials for that
	OpImpersonate            // get the credential of a user who is not there
	OpDelegate               // hand on the credential of an initiator, or one's own to an acceptor
	OpNames                  // say what a name is in the mechanism, and on this host
)

var operationNames = []string{"accept", "initiate", "impersonate", "delegate", "names"}

// String returns the words of the configuration, separated by commas.
func (o Operations) String() string {
	var names []string
	for i, name := range operationNames {
		if o&(1<<i) != 0 {
			names = append(names, name)
		}
	}
	return strings.Join(names, ", ")
}

// Principal is the name of a Kerberos principal, taken apart and without quotes.
type Principal struct {
	Components []string
	Realm      string
}

// String returns the name as it is written, with the characters quoted that mean something there.
func (p Principal) String() string {
	var b strings.Builder
	for i, c := range p.Components {
		if i > 0 {
			b.WriteByte('/')
		}
		b.WriteString(quoter.Replace(c))
	}
	b.WriteByte('@')
	b.WriteString(quoter.Replace(p.Realm))
	return b.String()
}

// shown returns the name for messages: it may be anything that somebody else's KDC says.
func (p Principal) shown() string {
	const most = 200
	s := p.String()
	if len(s) > most {
		s = strings.ToValidUTF8(s[:most], "") + "..."
	}
	return plain(s)
}

var quoter = strings.NewReplacer(`\`, `\\`, "/", `\/`, "@", `\@`)

// Pattern matches principals component by component: `*` stands for any characters of one component,
// or of the realm.
type Pattern struct {
	text  string
	parts [][]string // of each component, then of the realm: the texts between the stars
}

// String returns the pattern as it is written.
func (p Pattern) String() string { return p.text }

// Matches reports whether the principal is one of those.
func (p Pattern) Matches(name Principal) bool {
	if len(p.parts) != len(name.Components)+1 {
		return false
	}
	for i, c := range name.Components {
		if !starred(p.parts[i], c) {
			return false
		}
	}
	return starred(p.parts[len(name.Components)], name.Realm)
}

// starred reports whether s is the parts in their order, with anything between two of them.
func starred(parts []string, s string) bool {
	first, last := parts[0], parts[len(parts)-1]
	if len(parts) == 1 {
		return s == first
	}
	if len(s) < len(first)+len(last) || !strings.HasPrefix(s, first) || !strings.HasSuffix(s, last) {
		return false
	}
	s = s[len(first) : len(s)-len(last)]
	for _, part := range parts[1 : len(parts)-1] {
		i := strings.Index(s, part)
		if i < 0 {
			return false
		}
		s = s[i+len(part):]
	}
	return true
}

// parsePattern reads a principal with stars in it; the error is what is wrong with it. A backslash
// takes its meaning from the character behind it.
func parsePattern(text string) (p Pattern, wrong string) {
	p.text = text
	part, component := "", []string(nil)
	endPart := func() { component, part = append(component, part), "" }
	endComponent := func() { endPart(); p.parts, component = append(p.parts, component), nil }
	realm := false
	for i := 0; i < len(text); i++ {
		switch c := text[i]; {
		case c == '\\' && i+1 == len(text):
			return p, `ends in a \`
		case c == '\\':
			i++
			part += text[i : i+1]
		case c == 0:
			return p, "has a NUL in it"
		case c == '*':
			endPart()
		case c == '/' && realm:
			return p, `has a / in the realm`
		case c == '@' && realm:
			return p, `has two @ in it`
		case c == '/':
			endComponent()
		case c == '@':
			endComponent()
			realm = true
		default:
			part += text[i : i+1]
		}
	}
	if !realm {
		return p, "has no realm in it"
	}
	endComponent()
	if last := p.parts[len(p.parts)-1]; len(last) == 1 && last[0] == "" {
		return p, "has an empty realm"
	}
	return p, ""
}

// parseRealm reads a realm with stars in it, as a pattern of the realm alone. Nothing is quoted.
func parseRealm(text string) (p Pattern, wrong string) {
	if i := strings.IndexAny(text, "@/ ,"); i >= 0 {
		return p, fmt.Sprintf("has a %q in it", text[i])
	}
	return Pattern{text, [][]string{strings.Split(text, "*")}}, ""
}

// Act is what a call is about to do for a caller, as far as it is known. What is not about it is
// left out.
type Act struct {
	Operation Operations  // one of them
	Client    *Principal  // accept: the initiator
	Targets   []Principal // initiate: the server that was asked for, and the one that the ticket is for
	Proxy     bool        // initiate: for a user, with the service's own credential as evidence
	User      *Principal  // impersonate: whose credential
	Enctypes  []string    // of the ticket, of the session key and of the subkeys
	Bindings  bool        // accept: both sides have channel bindings, and they are the same
	PAC       bool        // accept: the ticket has one whose signature is good
	Enquiry   bool        // nothing but the operation is known yet

	Call bool // nothing is known but that there is a call, and
	// for how long it is too early by calls_per_second of each [Layers].
	Early [Layers]time.Duration
}

// Refusal is why an act is not permitted.
type Refusal struct {
	Reason reason.ID
	Text   string
}

// Verdict is the answer of [Config.Permit].
type Verdict struct {
	Refused  *Refusal  // nil: it is permitted
	Observed []Refusal // what would have refused it but for mode = observe
}

// Layers is how many permissions may hold for a service: the ceiling, its own, and those of two
// entries of key stores, that of its keytab and that of its client keytab.
const Layers = 4

// Permit decides whether a service's caller may have an act done. What entries of key stores say that
// the service has keys of narrows what the configuration permits. It looks at nothing but its
// arguments, and does not allocate for a service that nothing is forbidden.
func (c *Config) Permit(s *Service, a *Act, entries ...*Permission) (v Verdict) {
	for i, p := range c.permissions(s, entries) {
		if p == nil {
			continue
		}
		r := p.refuse(a, a.Early[i])
		switch {
		case r == nil:
		case p.Observe && p.Withheld == nil:
			v.Observed = append(v.Observed, *r)
		default:
			if v.Refused == nil {
				v.Refused = r
			}
		}
	}
	return v
}

// permissions are what holds for a service, in the order of [Act].Early; nil where nothing does.
func (c *Config) permissions(s *Service, entries []*Permission) [Layers]*Permission {
	all := [Layers]*Permission{&c.Ceiling, &s.Permission}
	if copy(all[2:], entries) < len(entries) {
		panic("a service has keys of more than two entries")
	}
	return all
}

// Restricts reports whether there is anything that Permit may refuse to a service's callers, but for
// how often they call and for what an entry of a key store says.
func (c *Config) Restricts(s *Service) bool { return c.Ceiling.restricts() || s.Permission.restricts() }

func (p *Permission) restricts() bool {
	return p.Operations != 0 || len(p.Targets)+len(p.ProxyTargets)+len(p.ImpersonateUsers)+len(p.ClientRealms)+len(p.ClientPrincipals)+len(p.Enctypes) > 0 ||
		p.RequireChannelBindings || p.RequirePAC
}

// Lifetime returns for how long a context of a service may live, 0 for as long as its ticket. entries
// are as for Permit.
func (c *Config) Lifetime(s *Service, entries ...*Permission) (most time.Duration) {
	for _, p := range c.permissions(s, entries) {
		if p != nil && p.MaxLifetime != 0 && (most == 0 || p.MaxLifetime < most) {
			most = p.MaxLifetime
		}
	}
	return most
}

// CallRate is how many calls may come at once, and then each second; the zero CallRate is no limit.
type CallRate struct{ Burst, PerSecond int }

// CallRates returns how often each uid may call a service, in the order of [Act].Early. entries are as
// for Permit.
func (c *Config) CallRates(s *Service, entries ...*Permission) (rates [Layers]CallRate) {
	for i, p := range c.permissions(s, entries) {
		if p != nil && p.CallsPerSecond > 0 {
			rates[i] = CallRate{cmp.Or(p.CallsBurst, p.CallsPerSecond), p.CallsPerSecond}
		}
	}
	return rates
}

// Enforced returns the encryption types that tickets and keys of a service may have; nil if they may
// have any, or it is only observed what they have. entries are as for Permit.
func (c *Config) Enforced(s *Service, entries ...*Permission) (names []string) {
	for _, p := range c.permissions(s, entries) {
		switch {
		case p == nil || p.Observe || len(p.Enctypes) == 0:
		case names == nil:
			names = slices.Clone(p.Enctypes)
		default:
			names = slices.DeleteFunc(names, func(name string) bool { return !slices.Contains(p.Enctypes, name) })
		}
	}
	return names
}

// refuse returns why the act is not permitted, nil if it is; early is for how long it is too early.
func (p *Permission) refuse(a *Act, early time.Duration) *Refusal {
	not := func(id reason.ID, format string, args ...any) *Refusal {
		return &Refusal{id, fmt.Sprintf(format, args...)}
	}
	switch {
	case a.Call && early > 0:
		return not(reason.RateLimited, "calls_per_second = %d; the user has made more calls than that and may make the next one in %v", p.CallsPerSecond, (early + time.Millisecond - 1).Truncate(time.Millisecond))
	case a.Call:
		return nil
	case p.Withheld != nil && a.Operation != OpNames:
		return p.Withheld
	}
	if p.Operations != 0 && p.Operations&a.Operation == 0 {
		return not(reason.OperationNotAllowed, "operations = %v does not have %v", p.Operations, a.Operation)
	}
	if a.Enquiry {
		return nil
	}
	if a.Client != nil {
		if !among(p.ClientRealms, Principal{Realm: a.Client.Realm}) {
			return not(reason.ClientNotAllowed, "client_realms does not have the realm of %s", a.Client.shown())
		}
		if !among(p.ClientPrincipals, *a.Client) {
			return not(reason.ClientNotAllowed, "client_principals does not have %s", a.Client.shown())
		}
	}
	for _, target := range a.Targets {
		if !among(p.Targets, target) {
			return not(reason.TargetNotAllowed, "targets does not have %s", target.shown())
		}
		if a.Proxy && !among(p.ProxyTargets, target) {
			return not(reason.TargetNotAllowed, "proxy_targets does not have %s", target.shown())
		}
	}
	if a.User != nil && !among(p.ImpersonateUsers, *a.User) {
		return not(reason.UserNotAllowed, "impersonate_users does not have %s", a.User.shown())
	}
	if len(p.Enctypes) > 0 {
		for _, e := range a.Enctypes {
			if !slices.Contains(p.Enctypes, e) {
				return not(reason.EnctypeNotAllowed, "enctypes does not have %s", e)
			}
		}
	}
	if a.Operation == OpAccept {
		if p.RequireChannelBindings && !a.Bindings {
			return not(reason.BindingsRequired, "require_channel_bindings is set, and the initiator, or the caller, has sent none")
		}
		if p.RequirePAC && !a.PAC {
			return not(reason.PACRequired, "require_pac is set, and the ticket has no PAC with a good signature")
		}
	}
	return nil
}

// among reports whether a pattern matches; none of them match everybody.
func among(patterns []Pattern, name Principal) bool {
	return len(patterns) == 0 || slices.ContainsFunc(patterns, func(p Pattern) bool { return p.Matches(name) })
}
