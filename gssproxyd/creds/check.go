package creds

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"gssproxyd/conf"
	"gssproxyd/keytab"
	"gssproxyd/mech/krb5/ccache"
	"gssproxyd/mech/krb5/etype"
	"gssproxyd/mech/krb5/krb5conf"
	"gssproxyd/mech/krb5/localname"
	"gssproxyd/mech/krb5/rcache"
)

// Check looks for what Load cannot use of a configuration with a krb5.conf, before anything is
// opened: names of keytabs and caches, and principals. The problems have their lines. The warnings,
// of krb5.conf, are what Load says to the log.
func Check(c *conf.Config, k *krb5conf.Config) (warnings []string, problems []conf.Problem) {
	for _, err := range localname.New(k).Check() {
		warnings = append(warnings, "krb5.conf: a rule for local names does not apply: "+err.Error())
	}
	bad := func(p conf.Problem) { problems = append(problems, p) }
	for _, wrong := range checkEnctypes(c.Ceiling.Enctypes) {
		bad(c.Problem("enctypes", wrong.what, wrong.expected, wrong.do))
	}
	for _, s := range c.Services {
		for _, wrong := range checkEnctypes(s.Enctypes) {
			bad(s.Problem("enctypes", 0, wrong.what, wrong.expected, wrong.do))
		}
		// Substituted for no one in particular: what kind of a name it is does not depend on that.
		elements, err := s.Store(s.EUID, conf.FixedUsers{"user": s.EUID})
		if err != nil {
			continue // with compat only, and said already
		}
		names := storeNames(s, k, elements)
		for i, e := range elements {
			if err := checkName(e.Key, e.Value); err != nil {
				bad(s.Problem("cred_store", i, fmt.Sprintf("cred_store = %v cannot be used", s.CredStore[i]), err.Error(), ""))
			}
			delete(names, e.Key)
		}
		for _, key := range []string{"keytab", "client_keytab", "ccache", "rcache"} {
			if err := checkName(key, names[key]); err != nil {
				bad(s.Problem("", 0, fmt.Sprintf("[service/%s] has no %s in its cred_store, and the default cannot be used", s.Name, key), err.Error(), "correct the environment or krb5.conf"))
			}
		}
		for i := range s.PrincipalMap {
			if _, err := compilePrincipalMap(s.PrincipalMap[i : i+1]); err != nil {
				bad(s.Problem("principal_map", i, err.Error(), "PRINCIPAL@REALM:USER is expected", "write the principal as klist does"))
			}
		}
	}
	return warnings, problems
}

// CheckFiles warns of files that the services name for all their users, and that cannot be used
// now. A service without a keytab that accepts needs the default one. The daemon says the same when
// it opens them. keytabs reads keytabs as the daemon does.
func CheckFiles(c *conf.Config, k *krb5conf.Config, keytabs *keytab.Reader) (warnings []string) {
	said := make(map[string]bool)
	warn := func(s *conf.Service, key string, n int, setting, name, what, do string) {
		if what != "" && !said[name] {
			said[name] = true
			warnings = append(warnings, s.Problem(key, n, setting+": "+what, "", do).String())
		}
	}
	for _, s := range c.Services {
		if s.Program != "" {
			if _, err := os.Stat(s.Program); errors.Is(err, fs.ErrNotExist) && !strings.Contains(s.Program, " ") {
				warn(s, "program", 0, "program = "+s.Program, s.Program, "there is no such file, so no peer matches", "correct the path, or install the program")
			}
		}
		named := false
		for i, e := range s.CredStore {
			named = named || e.Key == "keytab"
			if e.Varies() {
				continue
			}
			name := strings.ReplaceAll(e.Value, "%%", "%")
			what, do := checkFile(e.Key, name, keytabs)
			warn(s, "cred_store", i, "cred_store = "+e.String(), name, what, do)
		}
		if !named && s.CredUsage == conf.UsageAccept {
			name := storeNames(s, k, s.CredStore)["keytab"]
			what, do := checkFile("keytab", name, keytabs)
			warn(s, "", 0, "[service/"+s.Name+"] has no keytab in its cred_store, and the default is "+name, name, what, do)
		}
	}
	return warnings
}

// checkFile returns what is wrong with the file that an element of cred_store names by an absolute
// path, and what to do.
func checkFile(key, name string, keytabs *keytab.Reader) (what, do string) {
	kind, path, ok := strings.Cut(name, ":")
	if !ok || strings.HasPrefix(name, "/") {
		kind, path = "FILE", name
	}
	if !strings.HasPrefix(path, "/") || strings.ContainsAny(path, "$`\"'") {
		return "", "" // said already
	}
	switch key {
	case "keytab", "client_keytab":
		switch err := keytabs.CheckFile(name); {
		case err == nil, errors.Is(err, fs.ErrPermission) && os.Geteuid() != 0: // another user than the daemon's
		case errors.Is(err, fs.ErrNotExist):
			return "there is no such file", "put the keytab there, or correct the path"
		case kind == "SEALED":
			return "the sealed keytab cannot be used: " + err.Error(), "correct that (gssproxyd keytab list " + name + " says whether it is), or correct the path"
		default:
			return "the keytab cannot be used: " + err.Error(), "put a good keytab there (klist -k lists its keys), or correct the path"
		}
	case "ccache", "rcache":
		if kind != "FILE" && kind != "file2" {
			return "", ""
		}
		if st, err := os.Stat(filepath.Dir(path)); errors.Is(err, fs.ErrNotExist) || err == nil && !st.IsDir() {
			return "there is no directory " + filepath.Dir(path), "make it, for the daemon's user, or correct the path"
		}
		if st, err := os.Stat(path); err == nil && !st.Mode().IsRegular() {
			return "it is not a regular file", "remove it, or correct the path"
		}
	}
	return "", ""
}

// KeytabUses returns which keytabs the services have, the defaults of those that name none too. Of a
// service for any user those that differ from user to user are left out.
func KeytabUses(c *conf.Config, k *krb5conf.Config, users conf.Users) (uses []keytab.Use) {
	for _, s := range c.Services {
		who := users
		if s.AllowAnyUID {
			who = conf.FixedUsers{"user": s.EUID} // what depends on it is left out
		}
		elements, err := s.Store(s.EUID, who)
		if err != nil {
			continue // nobody can use it
		}
		names := storeNames(s, k, elements)
		named, varies := make(map[string]bool), make(map[string]bool)
		for _, e := range s.CredStore {
			named[e.Key], varies[e.Key] = true, s.AllowAnyUID && e.Varies()
		}
		for _, key := range []string{"keytab", "client_keytab"} {
			if names[key] != "" && !varies[key] {
				uses = append(uses, keytab.Use{Keytab: names[key], Service: s.Name, EUID: s.EUID, Initiate: key == "client_keytab", Optional: !named[key]})
			}
		}
	}
	return uses
}

// wrongEnctype is what is wrong with one name in a list of encryption types.
type wrongEnctype struct{ what, expected, do string }

// checkEnctypes returns what is wrong with a list of encryption types. Contexts are compared with the
// one name that each has: what stands for several in krb5.conf may stand for others tomorrow.
func checkEnctypes(names []string) (wrong []wrongEnctype) {
	supported := strings.Join(namesOf(etype.AllSupported()), ", ")
	for _, name := range names {
		ids, known := etype.Parse(name)
		ids = slices.DeleteFunc(ids, func(id etype.ID) bool { return !id.Supported() })
		stands := namesOf(ids)
		w := wrongEnctype{fmt.Sprintf("enctypes has %q in it", name), "one of " + supported + " is expected", conf.DidYouMean(name, namesOf(etype.AllSupported()))}
		switch {
		case len(stands) == 1 && stands[0] == name:
			continue
		case len(stands) > 0:
			w.do = "write " + strings.Join(stands, " ")
		case known:
			w.what, w.do = w.what+", which is not supported", "remove it"
		}
		wrong = append(wrong, w)
	}
	return wrong
}

// namesOf are the names of encryption types.
func namesOf(ids []etype.ID) (names []string) {
	for _, id := range ids {
		names = append(names, id.String())
	}
	return names
}

// checkName returns what is wrong with a value of cred_store. An empty one is there with compat
// only, and counts as none.
func checkName(key, name string) (err error) {
	switch {
	case name == "":
	case key == "keytab", key == "client_keytab":
		err = keytab.CheckName(name)
	case key == "ccache":
		err = ccache.CheckName(name)
	case key == "rcache":
		_, err = rcache.Open(name, os.Getenv) // which opens no file
	}
	return err
}

// CheckClients warns of services that initiate as a principal that Active Directory does not know
// as a client: the first one of a keytab that begins with a service's name, and has the account's
// further down. Elsewhere services are clients like any, and their keytabs have no account with a
// $.
func CheckClients(c *conf.Config, keytabs *keytab.Reader) (warnings []string) {
	for _, s := range c.Services {
		if s.CredUsage == conf.UsageAccept || s.Krb5Principal != "" {
			continue
		}
		at := initiatesWith(s)
		if at < 0 || s.CredStore[at].Varies() {
			continue
		}
		element := s.CredStore[at]
		principals, err := keytabs.Principals(strings.ReplaceAll(element.Value, "%%", "%"))
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

// initiatesWith returns which element of cred_store names the keytab that a request without a name
// is served with, -1 if none does.
func initiatesWith(s *conf.Service) int {
	last := map[string]int{"keytab": -1, "client_keytab": -1}
	for i, e := range s.CredStore {
		last[e.Key] = i
	}
	if at := last["keytab"]; at >= 0 && (s.Trusted || s.Impersonate) {
		return at
	}
	return last["client_keytab"]
}

// isAccount reports whether a principal looks like a computer's account in Active Directory:
// WEB1$@REALM.
func isAccount(principal string) bool {
	name, _, _ := strings.Cut(principal, "@")
	return strings.HasSuffix(name, "$") && !strings.Contains(name, "/") && printable(principal)
}

// printable reports whether a terminal shows s as what it is.
func printable(s string) bool {
	return utf8.ValidString(s) && !strings.ContainsFunc(s, func(r rune) bool { return !unicode.IsPrint(r) })
}
