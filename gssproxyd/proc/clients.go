package proc

import (
	"fmt"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"gssproxyd/conf"
	"gssproxyd/keytab"
)

// CheckClients warns of services that initiate as a principal that Active Directory does not know as a client: the first one
// of a keytab that begins with a service's name, and has the account's further down. Elsewhere services are clients like
// any, and their keytabs have no account with a $.
func CheckClients(c *conf.Config) (warnings []string) {
	for _, s := range c.Services {
		if s.CredUsage == conf.UsageAccept || s.Krb5Principal != "" {
			continue
		}
		at := initiatesWith(s)
		if at < 0 || s.CredStore[at].Varies() {
			continue
		}
		element := s.CredStore[at]
		principals, err := keytab.Principals(strings.ReplaceAll(element.Value, "%%", "%"))
		if err != nil || len(principals) == 0 || !strings.Contains(principals[0], "/") || !printable(principals[0]) {
			continue
		}
		account := slices.IndexFunc(principals, isAccount)
		if account < 0 {
			continue
		}
		warnings = append(warnings, s.Problem("cred_store", at,
			fmt.Sprintf("cred_store = %v: the keytab begins with %s, and that is who initiates where a request names nobody; "+
				"Active Directory does not know a service's name for a client, but %s", element, principals[0], principals[account]),
			"", "write krb5_principal = "+principals[account]).String())
	}
	return warnings
}

// initiatesWith returns which element of cred_store names the keytab that a request without a name is served with, -1 if
// none does.
func initiatesWith(s *conf.Service) int {
	last := func(key string) (at int) {
		at = -1
		for i, e := range s.CredStore {
			if e.Key == key {
				at = i
			}
		}
		return at
	}
	if at := last("keytab"); at >= 0 && (s.Trusted || s.Impersonate) {
		return at
	}
	return last("client_keytab")
}

// isAccount reports whether a principal looks like a computer's account in Active Directory: WEB1$@REALM.
func isAccount(principal string) bool {
	name, _, _ := strings.Cut(principal, "@")
	return strings.HasSuffix(name, "$") && !strings.Contains(name, "/") && printable(principal)
}

// printable reports whether a terminal shows s as what it is.
func printable(s string) bool {
	return utf8.ValidString(s) && !strings.ContainsFunc(s, func(r rune) bool { return !unicode.IsPrint(r) })
}
