package krb5

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"syscall"

	"gssproxyd/mech"
	"gssproxyd/mech/krb5/krb5conf"
)

// LocalNames maps principals to names of local users by the rules of the default
// realm's part of krb5.conf: auth_to_local_names, then auth_to_local (RULE and
// DEFAULT), as krb5_aname_to_localname does. It is immutable and safe for
// concurrent use; the rules' expressions are compiled once.
type LocalNames struct {
	realm string
	names map[string]string
	rules []localRule
}

// localRule is one value of auth_to_local: DEFAULT, or
//
//	RULE:[n:format](match)s/pattern/text/g s/pattern/text/...
//
// whose parts are all optional. A value with a mistake stops the search where it
// stands, for the rules behind it may be laxer.
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

// NewLocalNames compiles the rules. What is wrong with them is told by Check, and
// by Map where it matters.
func NewLocalNames(cfg *krb5conf.Config) *LocalNames {
	l := &LocalNames{realm: cfg.DefaultRealm}
	if l.realm == "" {
		return l
	}
	l.names = cfg.AuthToLocalNames(l.realm)
	values := cfg.AuthToLocal(l.realm)
	if values == nil {
		values = []string{"DEFAULT"}
	}
	for _, v := range values {
		l.rules = append(l.rules, parseLocalRule(v))
	}
	return l
}

// Check returns one error for each value of auth_to_local that is wrong.
func (l *LocalNames) Check() (errs []error) {
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

// Map returns the local name of a principal. Where no rule gives one the error is
// a *mech.Error with the reason "no-local-name". The name is not looked up: it may
// be no user of this host, and it may be empty.
func (l *LocalNames) Map(p Principal) (string, error) {
	if l.realm == "" {
		return "", noLocalName(p, "krb5.conf names no default realm, whose rules would apply")
	}
	if name, ok := l.names[p.Local()]; ok {
		return name, nil
	}
	for i := range l.rules {
		name, ok, err := l.rules[i].apply(p, l.realm)
		if err != nil {
			return "", noLocalName(p, fmt.Sprintf("auth_to_local %q: %v", l.rules[i].value, err))
		}
		if ok {
			return name, nil
		}
	}
	return "", noLocalName(p, "")
}

// noLocalName has the status gss_localname of MIT's library comes back with.
func noLocalName(p Principal, detail string) error {
	text := "No local name found for principal " + p.String()
	if detail != "" {
		text += ": " + detail
	}
	return &mech.Error{Major: mech.Unavailable, Minor: uint32(syscall.ENOENT), Mech: mech.KRB5, Text: text, Reason: mech.ReasonNoLocalName}
}

// apply returns the name and whether the rule applies.
func (r *localRule) apply(p Principal, realm string) (name string, ok bool, err error) {
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
		if s, err = sub.apply(s); err != nil {
			return "", false, err
		}
	}
	if r.tailErr != nil {
		return "", false, r.tailErr
	}
	return s, true, nil
}

// defaultLocal is DEFAULT: the first component of name@REALM or name/REALM@REALM,
// where REALM is the default realm.
func defaultLocal(p Principal, realm string) (string, bool, error) {
	if p.Realm != realm || len(p.Components) == 0 || len(p.Components) > 2 ||
		len(p.Components) == 2 && p.Components[1] != realm {
		return "", false, nil
	}
	return cString(p.Components[0]), true, nil
}

// selection is the string the rule looks at. It ends at a NUL octet, as a C
// string does, so that no name hides one behind it.
func (r *localRule) selection(p Principal) string {
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
	return cString(b.String())
}

func cString(s string) string {
	s, _, _ = strings.Cut(s, "\x00")
	return s
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

// parseFormat reads "n:format]" and returns what follows. A $ without a number is
// the realm, as $0.
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

// apply replaces the first match, or with "g" one after the other; "^" matches
// again after each. An empty match would repeat for ever and is an error.
func (sub *substitution) apply(s string) (string, error) {
	var b strings.Builder
	for {
		from, to, ok := sub.pattern.find(s)
		if !ok {
			break
		}
		if sub.global && to == 0 {
			return "", errors.New("s///g matches the empty string, without end")
		}
		b.WriteString(s[:from])
		b.WriteString(sub.text)
		s = s[to:]
		if !sub.global {
			break
		}
	}
	b.WriteString(s)
	return b.String(), nil
}
