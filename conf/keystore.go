package conf

import (
	"encoding/base64"
	"fmt"
	"net/url"
	"regexp"
	"slices"
	"strings"
)

// Key stores, from which the host gets keys.

// KeyStore is one [store/NAME] section.
type KeyStore struct {
	Name  string // what follows "store/"
	Where string // "file:line" of the section

	URLs          []string // any of them
	CA, Cert, Key string   // paths of PEM files
	CRL           string   // that of revocation lists; "" is none
	Signers       []string // public keys, as package delivery writes them
	Host          string   // this host's name in the store; "" is the host name

	at   position
	from origins
}

// Problem returns a problem with the value of an option of s, at the line that gives it.
func (s *KeyStore) Problem(key, what, do string) Problem {
	at := s.at
	if from := s.from[key]; len(from) > 0 {
		at = from[0]
	}
	return problem(at, what, "", do)
}

// KeyStore returns the store of a name, nil if there is none.
func (c *Config) KeyStore(name string) *KeyStore {
	i := slices.IndexFunc(c.KeyStores, func(s *KeyStore) bool { return s.Name == name })
	if i < 0 {
		return nil
	}
	return c.KeyStores[i]
}

// storeType is before the names of a store and a principal, as the type of a keytab.
const storeType = "STORE:"

// Entry returns which entry of which key store the element names, if it does.
func (kv KeyValue) Entry() (store, principal string, ok bool) {
	rest, ok := strings.CutPrefix(kv.Value, storeType)
	if !ok {
		return "", "", false
	}
	store, principal, ok = strings.Cut(rest, ":")
	return store, principal, ok
}

// Entries returns the principals whose keys services get from a store, each once.
func (c *Config) Entries(store string) (principals []string) {
	for _, s := range c.Services {
		for _, kv := range s.CredStore {
			if of, principal, ok := kv.Entry(); ok && of == store && !slices.Contains(principals, principal) {
				principals = append(principals, principal)
			}
		}
	}
	return principals
}

// checkEntryName returns what is wrong with a value that names an entry of a store.
func checkEntryName(key, value string) string {
	store, principal, ok := KeyValue{key, value}.Entry()
	p, wrong := parsePattern(principal)
	starred := slices.ContainsFunc(p.parts, func(texts []string) bool { return len(texts) > 1 })
	switch {
	case !strings.HasSuffix(key, "keytab"):
		return "has an entry of a key store in it, which has keys and nothing else"
	case !ok || store == "" || principal == "":
		return "does not name a store and a principal"
	case strings.Contains(value, "%"):
		return "has a % in it: which keys a host is to get is the same for all users"
	case wrong != "":
		return wrong
	case starred:
		return "has a * in it: one principal is expected"
	}
	return ""
}

// storeName is what a store may be called: its name is part of a path.
var storeName = regexp.MustCompile(`^[A-Za-z0-9_-][A-Za-z0-9._-]{0,63}$`)

// keyStore reads a section of a store.
func (r *reader) keyStore(s *section) {
	store := &KeyStore{Name: s.name[len(storePrefix):], Where: s.at.String(), at: s.at}
	if !storeName.MatchString(store.Name) {
		r.fail(s.at, fmt.Sprintf("%q is no name of a store", shorten(store.Name)), "up to 64 letters, digits, hyphens, underscores and full stops are expected, no full stop first", "rename it")
	}
	store.from = r.apply(target{cfg: r.cfg, store: store}, s)
	r.cfg.KeyStores = append(r.cfg.KeyStores, store)
}

// keyStores looks for stores that services name and that are not there, and the other way round.
func (r *reader) keyStores() {
	var names []string
	for _, s := range r.cfg.KeyStores {
		names = append(names, s.Name)
		if len(r.cfg.Entries(s.Name)) == 0 {
			r.warn(s.at, fmt.Sprintf("no service has keys of [%s%s]", storePrefix, s.Name), "write cred_store = keytab:"+storeType+s.Name+":PRINCIPAL@REALM in one, or remove the section")
		}
	}
	for _, s := range r.cfg.Services {
		for i, kv := range s.CredStore {
			if store, _, ok := kv.Entry(); ok && !slices.Contains(names, store) {
				r.errors = append(r.errors, s.Problem("cred_store", i, fmt.Sprintf("cred_store = %v names the key store %q, which is not configured", kv, shorten(store)),
					"a section ["+storePrefix+shorten(store)+"] is expected", DidYouMean(store, names)))
			}
		}
	}
}

var storeURLs = kind[[]string]{
	name: "URL",
	read: func(r *reader, v value, dst *[]string) {
		const expected = "https:// and the name of a host is expected, as in https://keys1.example.com:8443"
		if v.empty(r) {
			return
		}
		u, err := url.Parse(v.text)
		switch {
		case err != nil:
			v.bad(r, "is no URL", expected, "correct it")
		case u.Scheme != "https":
			v.bad(r, "does not begin with https://", expected, "keys travel sealed, but who asks for them is known by TLS")
		case u.Hostname() == "" || u.User != nil || u.Path != "" && u.Path != "/" || u.RawQuery != "" || u.Fragment != "":
			v.bad(r, "is more, or less, than https:// with a host and a port", expected, "write that alone")
		case slices.Contains(*dst, v.text):
			v.bad(r, "repeats a line", "each once is expected", "remove one of the lines")
		default:
			*dst = append(*dst, v.text)
		}
	},
	write: func(list []string) []string { return list },
}

var signers = kind[[]string]{
	name: "public key",
	read: func(r *reader, v value, dst *[]string) {
		b64, isKey := strings.CutPrefix(v.text, "ed25519:")
		b, err := base64.RawURLEncoding.Strict().DecodeString(b64)
		switch {
		case v.empty(r):
		case !isKey || err != nil || len(b) != 32:
			v.bad(r, "is no public key of a signer", "ed25519: and 43 characters are expected", "copy the line that keystored prints")
		case slices.Contains(*dst, v.text):
			v.bad(r, "repeats a line", "each once is expected", "remove one of the lines")
		default:
			*dst = append(*dst, v.text)
		}
	},
	write: func(list []string) []string { return list },
}

var pemFile = text("path", func(r *reader, v value) bool {
	if v.text[0] != '/' {
		v.bad(r, "is not an absolute path", "the absolute path of a file is expected", "write the whole path")
		return false
	}
	v.plain(r)
	v.path(r, v.text)
	return true
})

var hostName = text("name", func(r *reader, v value) bool {
	if strings.ContainsAny(v.text, " ,/*@") {
		v.bad(r, "is no name of a host", "one name is expected, as keystored host list shows it", "correct it")
		return false
	}
	return true
})
