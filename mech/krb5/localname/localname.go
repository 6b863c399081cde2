// Package localname makes names of local users of Kerberos principals, by the auth_to_local rules
// of krb5.conf and the POSIX regular expressions in them.
package localname

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"gssproxyd/mech"
	"gssproxyd/mech/krb5/krb5conf"
	"gssproxyd/mech/krb5/wire"
	"gssproxyd/mech/reason"
)

// Rules map principals to names of local users by the rules of the default realm's part of
// krb5.conf: auth_to_local_names, then auth_to_local (RULE and DEFAULT), as krb5_aname_to_localname
// does, with [plugins] localauth deciding which of these count and in which order. Unlike there a
// name with a NUL octet has no local name, nor has one of more than maxLocalInput octets. They are
// immutable and safe for concurrent use; their expressions are compiled once.
type Rules struct {
	realm   string
	modules []string // of [plugins] localauth
	names   map[string]string
	rules   []localRule
}

// maxLocalInput bounds the octets of a name, realm included, to which rules are applied: a remote
// user's KDC chooses them, and expressions may look at the rest of a name again for each of its
// octets. Two host names of the DNS and a realm fit; a login name has at most 256 on Linux.
const maxLocalInput = 1024

// localRule is one value of auth_to_local: DEFAULT, or
//
//	RULE:[n:format](match)s/pattern/text/g s/pattern/text/...
//
// whose parts are all optional. A value with a mistake stops the search where it stands, for the
// rules behind it may be laxer.
type localRule struct {
	value   string
	err     error // what is wrong with the value from its start
	def     bool  // DEFAULT
	comps   int   // number of components, -1 for any
	formErr error // what is wrong with the format; counts when comps fits
	format  []formatPart
	match   *posixRegexp // nil: anything
	noMatch error        // why the expression cannot be compiled, and nothing matches
	subst   []substitution
	tailErr error // what is wrong behind the match; counts when that matched
}

// formatPart is literal text, then a component: 0 is the realm, -1 none.
type formatPart struct {
	literal string
	comp    int
}

type substitution struct {
	pattern *posixRegexp
	noMatch error // why the pattern cannot be compiled, and the rule does not apply
	text    string
	global  bool
}

// New compiles the rules. What is wrong with them is told by Check, and by Map where it matters.
func New(cfg *krb5conf.Config) *Rules {
	l := &Rules{realm: cfg.DefaultRealm}
	if l.realm == "" {
		return l
	}
	l.modules = cfg.LocalAuth()
	l.names = cfg.AuthToLocalNames(l.realm)
	values := cfg.AuthToLocal(l.realm)
	if values == nil { // DEFAULT, also where its module is not to run: a value is what asks for that
		l.rules = []localRule{{value: "DEFAULT", def: true}}
	}
	for _, v := range values {
		r := parseLocalRule(v)
		if module := r.module(); !slices.Contains(l.modules, module) && r.err == nil {
			r.err = fmt.Errorf("[plugins] localauth leaves out the module %s, which it needs", module)
		}
		l.rules = append(l.rules, r)
	}
	return l
}

// Check returns one error for each value of auth_to_local that is wrong, and one if no principal
// can have a local name.
func (l *Rules) Check() (errs []error) {
	if l.realm == "" {
		return nil
	}
	if !slices.Contains(l.modules, "names") && !slices.Contains(l.modules, "auth_to_local") {
		return []error{errors.New("[plugins] localauth leaves out both names and auth_to_local: no principal has a local name")}
	}
	for i := range l.rules {
		r := &l.rules[i]
		wrong := []error{r.err, r.formErr, r.noMatch, r.tailErr}
		for _, s := range r.subst {
			wrong = append(wrong, s.noMatch)
		}
		for _, err := range wrong {
			if err != nil {
				errs = append(errs, fmt.Errorf("auth_to_local %q: %w", r.value, err))
			}
		}
	}
	return errs
}

// Map returns the local name of a principal. Where no rule gives one the error is a *mech.Error
// with the reason "no-local-name". The name is not looked up: it may be no user of this host, and
// it may be empty.
func (l *Rules) Map(p wire.Principal) (string, error) {
	name, _, err := l.Which(p)
	return name, err
}

// Names is what [Rules.Which] calls auth_to_local_names.
const Names = "auth_to_local_names"

// Which is Map, and says by which rule: a value of auth_to_local, or [Names].
func (l *Rules) Which(p wire.Principal) (name, rule string, err error) {
	switch {
	case l.realm == "":
		return "", "", noLocalName(p, "krb5.conf names no default realm, whose rules would apply")
	case hasNUL(p):
		return "", "", noLocalName(p, "there is a NUL octet in it")
	case size(p) > maxLocalInput:
		return "", "", noLocalName(p, fmt.Sprintf("it has %d octets, rules are applied to %d at most", size(p), maxLocalInput))
	}
	for _, module := range l.modules {
		switch module {
		case "names":
			if name, ok := l.names[p.Local()]; ok {
				return name, Names, nil
			}
		case "auth_to_local":
			if name, rule, err := l.applyRules(p); rule != "" || err != nil {
				return name, rule, err
			}
		}
	}
	return "", "", noLocalName(p, "")
}

// applyRules returns what the first rule that applies makes of p, and that rule; none if none does.
func (l *Rules) applyRules(p wire.Principal) (name, rule string, err error) {
	for i := range l.rules {
		name, ok, err := l.rules[i].apply(p, l.realm)
		if err != nil {
			return "", "", noLocalName(p, fmt.Sprintf("auth_to_local %q: %v", l.rules[i].value, err))
		}
		if ok {
			return name, l.rules[i].value, nil
		}
	}
	return "", "", nil
}

// hasNUL reports whether there is a NUL octet in the realm or a component. Whoever takes such a
// name for a C string (MIT's library does, before it applies the expressions of auth_to_local) sees
// the part before the NUL, which the KDC of any realm can make the name of anybody.
func hasNUL(p wire.Principal) bool {
	return strings.IndexByte(p.Realm, 0) >= 0 || slices.ContainsFunc(p.Components, func(c string) bool { return strings.IndexByte(c, 0) >= 0 })
}

// size is the number of octets of the realm and the components.
func size(p wire.Principal) int {
	n := len(p.Realm)
	for _, c := range p.Components {
		n += len(c)
	}
	return n
}

// noLocalName has the status gss_localname of MIT's library comes back with.
func noLocalName(p wire.Principal, detail string) error {
	text := "No local name found for principal " + p.Shown()
	if detail != "" {
		text += ": " + detail
	}
	return mech.Errorf(mech.Unavailable, uint32(syscall.ENOENT), reason.NoLocalName, "%s", text)
}

// apply returns the name and whether the rule applies.
func (r *localRule) apply(p wire.Principal, realm string) (name string, ok bool, err error) {
	switch {
	case r.err != nil:
		return "", false, r.err
	case r.def:
		return defaultLocal(p, realm)
	case r.comps >= 0 && r.comps != len(p.Components):
		return "", false, nil
	case r.formErr != nil:
		return "", false, r.formErr
	}
	s := r.selection(p)
	if r.noMatch != nil || r.match != nil && !r.match.matchAll(s) {
		return "", false, nil
	}
	for _, sub := range r.subst {
		if sub.noMatch != nil {
			return "", false, nil
		}
		if s, err = sub.pattern.replace(s, sub.text, sub.global); err != nil {
			return "", false, err
		}
	}
	if r.tailErr != nil {
		return "", false, r.tailErr
	}
	return s, true, nil
}

// defaultLocal is DEFAULT: the first component of name@REALM or name/REALM@REALM, where REALM is
// the default realm.
func defaultLocal(p wire.Principal, realm string) (string, bool, error) {
	if p.Realm != realm || len(p.Components) == 0 || len(p.Components) > 2 ||
		len(p.Components) == 2 && p.Components[1] != realm {
		return "", false, nil
	}
	return p.Components[0], true, nil
}

// selection is the string the rule looks at.
func (r *localRule) selection(p wire.Principal) string {
	if r.comps < 0 {
		return p.Local()
	}
	var b strings.Builder
	for _, f := range r.format {
		b.WriteString(f.literal)
		switch {
		case f.comp == 0:
			b.WriteString(p.Realm)
		case f.comp > 0:
			b.WriteString(p.Components[f.comp-1])
		}
	}
	return b.String()
}

// module is the module of [plugins] localauth that has to run for the rule.
func (r *localRule) module() string {
	if r.def {
		return "default"
	}
	return "rule"
}

func parseLocalRule(value string) localRule {
	r := localRule{value: value, comps: -1}
	kind, s, hasArg := strings.Cut(value, ":")
	switch {
	case kind == "DEFAULT":
		r.def = true
		return r
	case kind != "RULE":
		r.err = fmt.Errorf("unknown type %q; expected DEFAULT or RULE:[n:format]", kind)
		return r
	case !hasArg:
		r.err = fmt.Errorf("RULE without a rule; expected RULE:[n:format](match)s/pattern/text/")
		return r
	}
	if rest, ok := strings.CutPrefix(s, "["); ok {
		if s, ok = r.parseFormat(rest); !ok {
			return r
		}
	}
	if rest, ok := strings.CutPrefix(s, "("); ok {
		expr, after, ok := strings.Cut(rest, ")")
		if !ok {
			r.tailErr = errors.New("( without )")
			return r
		}
		r.match, r.noMatch = compilePOSIX(expr)
		s = after
	}
	r.subst, r.tailErr = parseSubstitutions(s)
	return r
}

// parseFormat reads "n:format]" and returns what follows. A $ without a number is the realm, as $0.
func (r *localRule) parseFormat(s string) (rest string, ok bool) {
	num, s, ok := strings.Cut(s, ":")
	n, err := strconv.ParseUint(num, 10, 31)
	if !ok || err != nil {
		r.err = fmt.Errorf("%q is no number of components; expected [n:format]", num)
		return "", false
	}
	r.comps = int(n)
	for {
		i := strings.IndexAny(s, "$]")
		if i < 0 {
			r.formErr = errors.New("[ without ]")
			return "", false
		}
		part := formatPart{literal: s[:i], comp: -1}
		if s[i] == ']' {
			r.format = append(r.format, part)
			return s[i+1:], true
		}
		s = s[i+1:]
		digits := s[:len(s)-len(strings.TrimLeft(s, "0123456789"))]
		c, err := strconv.ParseUint("0"+digits, 10, 31)
		if err != nil || c > n {
			r.formErr = fmt.Errorf("$%s names no component; expected $0 (the realm) to $%d", digits, n)
			return "", false
		}
		part.comp = int(c)
		r.format = append(r.format, part)
		s = s[len(digits):]
	}
}

func parseSubstitutions(s string) (subs []substitution, err error) {
	for {
		if s = strings.TrimLeft(s, " \t\n\v\f\r"); s == "" {
			return subs, nil
		}
		rest, ok := strings.CutPrefix(s, "s/")
		expr, rest, ok1 := strings.Cut(rest, "/")
		text, rest, ok2 := strings.Cut(rest, "/")
		if !ok || !ok1 || !ok2 {
			return subs, fmt.Errorf("%q is no substitution; expected s/pattern/text/ or s/pattern/text/g", s)
		}
		sub := substitution{text: text}
		s, sub.global = strings.CutPrefix(rest, "g")
		sub.pattern, sub.noMatch = compilePOSIX(expr)
		subs = append(subs, sub)
	}
}
