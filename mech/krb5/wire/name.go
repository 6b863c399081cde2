package wire

import (
	"bytes"
	"fmt"
	"slices"
	"strings"

	"gssproxyd/mech"
	"gssproxyd/mech/krb5/der"
)

// Principal is a Kerberos principal name. Realm and components hold the octets as they are on the
// wire, unquoted. The zero value is no principal.
type Principal struct {
	Realm      string
	Components []string
	Type       int32
}

// MaxComponents bounds a name. MIT krb5 does not; nobody has seen a name of more than five, and a
// component takes many times the memory that its slash does.
const MaxComponents = 32

// Anonymous is the well-known principal of RFC 8062.
func Anonymous() Principal {
	return Principal{Realm: "WELLKNOWN:ANONYMOUS", Components: []string{"WELLKNOWN", "ANONYMOUS"}, Type: NTWellknown}
}

// ParsePrincipal reads the text form "comp/comp@REALM" as krb5_parse_name does: a backslash quotes
// the next octet, with \n, \t, \b and \0 standing for newline, tab, backspace and NUL. A name
// without a realm gets defaultRealm; "name@" has the empty realm, which asks for referrals. A name
// of more than MaxComponents is malformed, and so is one with a NUL octet, quoted or not:
// krb5_parse_name takes quoted ones, but nobody has such a name honestly: whoever takes it for a C
// string sees the part before the NUL, which any KDC can make the name of anybody.
func ParsePrincipal(s, defaultRealm string) (Principal, error) {
	return parsePrincipal(s, defaultRealm, false)
}

// ParseEnterprise reads an enterprise name (RFC 6806): one component that keeps its slashes and its
// first @, as in "user@mail.example@REALM".
func ParseEnterprise(s, defaultRealm string) (Principal, error) {
	return parsePrincipal(s, defaultRealm, true)
}

func parsePrincipal(s, defaultRealm string, enterprise bool) (Principal, error) {
	malformed := func(why string) (Principal, error) {
		return Principal{}, fmt.Errorf("malformed principal name %.200q: %s", s, why)
	}
	var p Principal
	begin := 0 // of the component or realm
	inRealm, at := false, enterprise
	for i := 0; i < len(s); i++ {
		switch c := s[i]; {
		case c == 0:
			return malformed("NUL octet")
		case c == '/' && !enterprise:
			if inRealm {
				return malformed("/ in the realm; quote it with a backslash")
			}
			if len(p.Components)+1 == MaxComponents {
				return malformed(fmt.Sprintf("more than %d components", MaxComponents))
			}
			p.Components = append(p.Components, unquote(s[begin:i]))
			begin = i + 1
		case c == '@' && !at:
			if inRealm {
				return malformed("second @; quote it with a backslash")
			}
			p.Components = append(p.Components, unquote(s[begin:i]))
			begin = i + 1
			inRealm = true
		case c == '\\':
			i++
			if i == len(s) {
				return malformed("backslash at the end")
			}
			if s[i] == 0 || s[i] == '0' {
				return malformed("NUL octet")
			}
		case c == '@':
			at = false
		}
	}
	if inRealm {
		p.Realm = unquote(s[begin:])
	} else {
		p.Components = append(p.Components, unquote(s[begin:]))
		p.Realm = defaultRealm
	}
	p.Type = NTEnterprise
	if !enterprise {
		p.Type = inferType(p.Components)
	}
	return p, nil
}

// unquote returns what a component or a realm in the text form stands for, which does not end in the
// midst of a quoted octet.
func unquote(s string) string {
	if strings.IndexByte(s, '\\') < 0 {
		return s
	}
	b := make([]byte, 0, len(s))
	for i := 0; i < len(s); i++ {
		c := s[i]
		if c == '\\' {
			i++
			switch c = s[i]; c {
			case 'n':
				c = '\n'
			case 't':
				c = '\t'
			case 'b':
				c = '\b'
			}
		}
		b = append(b, c)
	}
	return string(b)
}

// inferType tells the name types that follow from the name itself (RFC 4120 section 7.3, RFC 6111
// section 3.1).
func inferType(comps []string) int32 {
	switch {
	case len(comps) == 2 && comps[0] == "krbtgt":
		return NTSrvInst
	case len(comps) >= 2 && comps[0] == "WELLKNOWN":
		return NTWellknown
	}
	return NTPrincipal
}

// String returns the text form with realm, quoted as krb5_unparse_name quotes it. ParsePrincipal
// gives the same name back if it is one that it takes.
func (p Principal) String() string { return string(p.AppendString(nil)) }

// AppendString appends what String returns.
func (p Principal) AppendString(dst []byte) []byte {
	return AppendQuoted(append(p.appendComponents(dst, true), '@'), p.Realm)
}

func (p Principal) appendComponents(dst []byte, quoteAt bool) []byte {
	for i, c := range p.Components {
		if i > 0 {
			dst = append(dst, '/')
		}
		dst = slices.Grow(dst, len(c))
		dst = appendQuoted(dst, c, quoteAt)
	}
	return dst
}

// Shown returns the text form for messages: see the function Shown. Of a long name it makes no more
// than that.
func (p Principal) Shown() string {
	short := Principal{Realm: cut(p.Realm)}
	for _, c := range p.Components {
		short.Components = append(short.Components, cut(c))
	}
	return Shown(short.String())
}

func cut(s string) string { return s[:min(len(s), maxShown+1)] }

// Local returns the text form without the realm, in which @ needs no quoting:
// KRB5_PRINCIPAL_UNPARSE_NO_REALM.
func (p Principal) Local() string { return string(p.appendComponents(nil, false)) }

// AppendQuoted appends a component or a realm as it stands in the text form.
func AppendQuoted[S string | []byte](dst []byte, s S) []byte {
	for i := range len(s) { // most names need no quoting
		if c := s[i]; c < ' ' || c == '/' || c == '@' || c == '\\' {
			return appendQuoted(dst, string(s), true)
		}
	}
	return append(dst, s...)
}

func appendQuoted(dst []byte, s string, quoteAt bool) []byte {
	for i := 0; i < len(s); i++ {
		switch c := s[i]; c {
		case '@':
			if quoteAt {
				dst = append(dst, '\\')
			}
			dst = append(dst, c)
		case '/', '\\':
			dst = append(dst, '\\', c)
		case '\t':
			dst = append(dst, '\\', 't')
		case '\n':
			dst = append(dst, '\\', 'n')
		case '\b':
			dst = append(dst, '\\', 'b')
		case 0:
			dst = append(dst, '\\', '0')
		default:
			dst = append(dst, c)
		}
	}
	return dst
}

// Equal reports whether realm and components are the same; the name type is a hint and does not
// count (RFC 4120 section 6.2).
func (p Principal) Equal(q Principal) bool {
	return p.Realm == q.Realm && slices.Equal(p.Components, q.Components)
}

// Display returns the display name and the name type gss_display_name reports for a Kerberos
// mechanism name.
func (p Principal) Display() (string, mech.OID) {
	if p.Type == NTWellknown && p.Equal(Anonymous()) {
		return p.String(), mech.NTAnonymous
	}
	return p.String(), mech.NTKrb5Principal
}

// Name is a PrincipalName (RFC 4120 section 5.2.2) with its realm.
type Name struct {
	Realm      []byte
	Type       int32
	Components []byte // contents of the SEQUENCE OF KerberosString
}

// Same reports whether realm and components are the same; the name type is a hint (RFC 4120 section
// 6.2). Lengths being canonical, equal encodings are equal names.
func (n Name) Same(m Name) bool {
	return string(n.Realm) == string(m.Realm) && string(n.Components) == string(m.Components)
}

// AppendString appends the name as [Principal.String] has it.
func (n Name) AppendString(dst []byte) []byte {
	r := der.NewReader(n.Components)
	for i := 0; r.More(); i++ {
		if i > 0 {
			dst = append(dst, '/')
		}
		dst = AppendQuoted(dst, r.String())
	}
	return AppendQuoted(append(dst, '@'), n.Realm)
}

// AppendComponents appends the components as they are, joined by slashes.
func (n Name) AppendComponents(dst []byte) []byte {
	r := der.NewReader(n.Components)
	for i := 0; r.More(); i++ {
		if i > 0 {
			dst = append(dst, '/')
		}
		dst = append(dst, r.String()...)
	}
	return dst
}

// Fault says why nobody is to be known by this name, "" if nothing is wrong with it. These are the
// names that [ParsePrincipal] never returns, as what it reads may not be what was meant, and those
// of the empty realm, for which other programs put in the default realm. (Names of more than
// MaxComponents are not even read.)
func (n Name) Fault() string {
	if len(n.Realm) == 0 {
		return "the realm is empty"
	}
	if len(n.Components) == 0 {
		return "there is no component"
	}
	nul := bytes.IndexByte(n.Realm, 0) >= 0
	for r := der.NewReader(n.Components); r.More(); {
		nul = bytes.IndexByte(r.String(), 0) >= 0 || nul
	}
	if nul {
		return "there is a NUL octet in it"
	}
	return ""
}

// Principal returns a copy that outlives the message.
func (n Name) Principal() Principal {
	p := Principal{Realm: string(n.Realm), Type: n.Type}
	r := der.NewReader(n.Components)
	for r.More() {
		p.Components = append(p.Components, string(r.String()))
	}
	return p
}
