package krb5

import (
	"slices"
	"strings"

	"gssproxyd/mech/krb5/krb5conf"
)

// transitedX500 is DOMAIN-X500-COMPRESS, the one encoding there is (RFC 4120 section 3.3.3.2).
const transitedX500 = 1

// maxTransitedRealm bounds a realm expanded from the compressed list, as MIT krb5 does: every
// expansion copies what came before.
const maxTransitedRealm = 512

// checkTransited reports whether every realm in a ticket's transited list is on a trusted way from
// the client's realm to the server's: the one [capaths] describes, otherwise up and down the
// hierarchy of domain names. If not, realm is the first one off the way, empty when the list is
// malformed.
func checkTransited(conf *krb5conf.Config, list, client, server string) (realm string, ok bool) {
	list = strings.TrimSuffix(list, "\x00")
	if list == "" || client == "WELLKNOWN:ANONYMOUS" {
		return "", true
	}
	way := conf.Capath(client, server)
	if way == nil {
		way = Hierarchy(client, server)
	}
	var off string
	fine := expandTransited(list, client, server, func(realm string) bool {
		if realm == client || realm == server || slices.Contains(way, realm) {
			return true
		}
		off = realm
		return false
	})
	return off, fine
}

// Hierarchy returns the realms between client and server, both included: up from the client's to
// the longest common parent, then down to the server's. Without a common parent the way leads over
// both top-level realms.
func Hierarchy(client, server string) []string {
	c, s := strings.Split(client, "."), strings.Split(server, ".")
	common := 0
	for common < min(len(c), len(s)) && c[len(c)-1-common] == s[len(s)-1-common] {
		common++
	}
	var way []string
	for i := 0; i <= len(c)-max(common, 1); i++ {
		way = append(way, strings.Join(c[i:], "."))
	}
	for i := len(s) - common - 1; i >= 0; i-- {
		way = append(way, strings.Join(s[i:], "."))
	}
	return way
}

// expandTransited calls visit for each realm a compressed list stands for, until visit returns
// false. It returns false then, and for a malformed list.
//
// Realms are separated by commas. A realm that ends in a dot is followed by the one before it, one
// that starts with a slash follows it; a space in front of a realm suspends that. A backslash
// quotes. An empty element stands for all realms between its neighbours, the client's and server's
// realms being the first and last.
func expandTransited(list, client, server string, visit func(string) bool) bool {
	last := ""
	var cur []byte
	between, quoted := false, false
	finish := func() bool {
		switch {
		case cur[0] == '/':
			cur = append([]byte(last), cur...)
		case cur[len(cur)-1] == '.':
			cur = append(cur, last...)
		}
		return len(cur) <= maxTransitedRealm && visit(string(cur)) &&
			(!between || expandBetween(string(cur), last, visit))
	}
	for i := 0; i < len(list); i++ {
		switch c := list[i]; {
		case quoted:
			cur, quoted = append(cur, c), false
		case c == '\\':
			quoted = true
		case c == ',' && len(cur) > 0:
			if !finish() {
				return false
			}
			last, cur, between = string(cur), cur[:0], false
		case c == ',':
			between = true
			if i == 0 {
				last = client
			}
		case c == ' ' && len(cur) == 0:
			last = ""
		default:
			cur = append(cur, c)
		}
		if len(cur) >= maxTransitedRealm {
			return false
		}
	}
	if len(cur) == 0 {
		return expandBetween(last, server, visit)
	}
	return finish()
}

// expandBetween visits the realms between two of which one must be a parent of the other.
func expandBetween(a, b string, visit func(string) bool) bool {
	if len(a) > len(b) {
		a, b = b, a
	}
	switch {
	case len(a) == len(b):
		return a == b
	case a == "" || (a[0] == '/') != (b[0] == '/'):
		return false
	case a[0] == '/':
		if !strings.HasPrefix(b, a) {
			return false
		}
		for i := len(a) + 1; i < len(b); i++ {
			if b[i] == '/' && !visit(b[:i]) {
				return false
			}
		}
	default:
		if !strings.HasSuffix(b, a) {
			return false
		}
		for i := len(b) - len(a) - 1; i > 0; i-- {
			if b[i-1] == '.' && !visit(b[i:]) {
				return false
			}
		}
	}
	return true
}
