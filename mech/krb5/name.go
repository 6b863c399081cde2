package krb5

import (
	"fmt"
	"slices"
	"strings"

	"gssproxyd/mech"
)

// Principal name types (RFC 4120 section 6.2, RFC 6111).
const (
	NTUnknown    int32 = 0
	NTPrincipal  int32 = 1
	NTSrvInst    int32 = 2
	NTSrvHst     int32 = 3
	NTX500       int32 = 6
	NTEnterprise int32 = 10
	NTWellknown  int32 = 11
)

// Principal is a Kerberos principal name. Realm and components hold the octets
// as they are on the wire, unquoted. The zero value is no principal.
type Principal struct {
	Realm      string
	Components []string
	Type       int32
}

// MaxComponents bounds a name. MIT krb5 does not; nobody has seen a name of more
// than five, and a component takes many times the memory that its slash does.
const MaxComponents = 32

// Anonymous is the well-known principal of RFC 8062.
func Anonymous() Principal {
	return Principal{Realm: "WELLKNOWN:ANONYMOUS", Components: []string{"WELLKNOWN", "ANONYMOUS"}, Type: NTWellknown}
}

// ParsePrincipal reads the text form "comp/comp@REALM" as krb5_parse_name does:
// a backslash quotes the next octet, with \n, \t, \b and \0 standing for newline,
// tab, backspace and NUL. A name without a realm gets defaultRealm; "name@" has
// the empty realm, which asks for referrals. A name of more than MaxComponents is
// malformed, and so is one with a NUL octet, quoted or not: krb5_parse_name takes
// quoted ones, but nobody has such a name honestly (see hasNUL).
func ParsePrincipal(s, defaultRealm string) (Principal, error) {
	return parsePrincipal(s, defaultRealm, false)
}

// ParseEnterprise reads an enterprise name (RFC 6806): one component that keeps
// its slashes and its first @, as in "user@mail.example@REALM".
func ParseEnterprise(s, defaultRealm string) (Principal, error) {
	return parsePrincipal(s, defaultRealm, true)
}

func parsePrincipal(s, defaultRealm string, enterprise bool) (Principal, error) {
	malformed := func(why string) (Principal, error) {
		return Principal{}, fmt.Errorf("malformed principal name %.200q: %s", s, why)
	}
	var p Principal
	var field strings.Builder
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
			p.Components = append(p.Components, field.String())
			field.Reset()
		case c == '@' && !at:
			if inRealm {
				return malformed("second @; quote it with a backslash")
			}
			p.Components = append(p.Components, field.String())
			field.Reset()
			inRealm = true
		case c == '\\':
			i++
			if i == len(s) {
				return malformed("backslash at the end")
			}
			c = s[i]
			switch c {
			case 0, '0':
				return malformed("NUL octet")
			case 'n':
				c = '\n'
			case 't':
				c = '\t'
			case 'b':
				c = '\b'
			}
			field.WriteByte(c)
		default:
			if c == '@' {
				at = false
			}
			field.WriteByte(c)
		}
	}
	if inRealm {
		p.Realm = field.String()
	} else {
		p.Components = append(p.Components, field.String())
		p.Realm = defaultRealm
	}
	p.Type = NTEnterprise
	if !enterprise {
		p.Type = inferType(p.Components)
	}
	return p, nil
}

// inferType tells the name types that follow from the name itself (RFC 4120
// section 7.3, RFC 6111 section 3.1).
func inferType(comps []string) int32 {
	switch {
	case len(comps) == 2 && comps[0] == "krbtgt":
		return NTSrvInst
	case len(comps) >= 2 && comps[0] == "WELLKNOWN":
		return NTWellknown
	}
	return NTPrincipal
}

// String returns the text form with realm, quoted as krb5_unparse_name quotes it.
// ParsePrincipal gives the same name back if it is one that it takes.
func (p Principal) String() string { return string(p.AppendString(nil)) }

// AppendString appends what String returns.
func (p Principal) AppendString(dst []byte) []byte {
	for i, c := range p.Components {
		if i > 0 {
			dst = append(dst, '/')
		}
		dst = appendQuoted(dst, c, true)
	}
	dst = append(dst, '@')
	return appendQuoted(dst, p.Realm, true)
}

// Local returns the text form without the realm, in which @ needs no quoting:
// KRB5_PRINCIPAL_UNPARSE_NO_REALM.
func (p Principal) Local() string {
	var dst []byte
	for i, c := range p.Components {
		if i > 0 {
			dst = append(dst, '/')
		}
		dst = appendQuoted(dst, c, false)
	}
	return string(dst)
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

// Equal reports the same realm and components; the name type is a hint and does
// not count (RFC 4120 section 6.2).
func (p Principal) Equal(q Principal) bool {
	return p.Realm == q.Realm && slices.Equal(p.Components, q.Components)
}

// Display returns the display name and the name type gss_display_name reports
// for a Kerberos mechanism name.
func (p Principal) Display() (string, mech.OID) {
	if p.Type == NTWellknown && p.Equal(Anonymous()) {
		return p.String(), mech.NTAnonymous
	}
	return p.String(), mech.NTKrb5Principal
}

// AppendExported appends the exported name token (RFC 2743 section 3.2).
func (p Principal) AppendExported(dst []byte) []byte {
	return mech.AppendExportedName(dst, mech.KRB5, p.String())
}

// AppendComposite appends the composite name token; attrs is the authdata
// context's body, empty when the name carries none.
func (p Principal) AppendComposite(dst, attrs []byte) []byte {
	return mech.AppendCompositeName(dst, mech.KRB5, p.String(), attrs)
}
