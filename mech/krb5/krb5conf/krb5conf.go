// Package krb5conf reads krb5.conf as MIT's library does: include and includedir, final markers,
// quoted values, nested subsections, several files with the earlier ones winning. What the program
// uses of [libdefaults] comes as typed fields; anything else is at Get and All. Unknown sections
// and keys are none of its business and never an error.
package krb5conf

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/user"
	"slices"
	"strconv"
	"strings"
	"time"

	"gssproxyd/mech/krb5/etype"
)

// Config is what the files say. It is never changed after Load and safe for concurrent use.
type Config struct {
	DefaultRealm string // [libdefaults] default_realm; empty when not set

	// PermittedEnctypes holds the supported encryption types that tickets and session keys may
	// have, in order of preference: permitted_enctypes, by default MIT's list. RC4 and triple DES
	// count only when they are named, or when allow_rc4 or allow_des3 is set; weak types only with
	// allow_weak_crypto.
	PermittedEnctypes []etype.ID
	// TktEnctypes and TGSEnctypes hold the types to ask the AS and the TGS for, in order of
	// preference: what default_tkt_enctypes and default_tgs_enctypes have of PermittedEnctypes, by
	// default all of them. Where nothing is left they are empty, and nothing can be asked for.
	TktEnctypes, TGSEnctypes []etype.ID

	Clockskew              time.Duration // clockskew, by default five minutes
	IgnoreAcceptorHostname bool          // ignore_acceptor_hostname

	ClientAwareBindings bool // client_aware_channel_bindings: initiators insist on channel bindings
	EnforceOKAsDelegate bool // enforce_ok_as_delegate: delegate only where the KDC approves

	// QualifyShortname is the domain to add to a host name without a dot: qualify_shortname, by
	// default the first domain of the resolver's search list. Empty adds none.
	QualifyShortname string

	// Names of files and caches, with %{uid}, %{TEMP} and the like expanded.
	DefaultKeytabName       string // default_keytab_name, by default FILE:/etc/krb5.keytab
	DefaultClientKeytabName string // default_client_keytab_name
	DefaultRcacheName       string // default_rcache_name; empty when not set
	DefaultCCacheName       string // default_ccache_name, by default FILE:/tmp/krb5cc_%{uid}

	Watch    []string // files and directories, missing ones included, whose change can change the result
	Warnings []string // "file:line: what", for what has no effect or another than it seems, each once

	allowWeakCrypto, allowRC4, allowDES3 bool

	files []string // read, in order
	roots []*node
}

// defaultFile is read when KRB5_CONFIG is not set.
const defaultFile = "/etc/krb5.conf"

// Files returns the list of files KRB5_CONFIG names, separated by colons, or /etc/krb5.conf.
func Files(getenv func(string) string) []string {
	if v := getenv("KRB5_CONFIG"); v != "" {
		return strings.Split(v, ":")
	}
	return []string{defaultFile}
}

// Load reads the files; a relation of an earlier file comes before those of later ones. A file that
// does not exist is skipped, as is one that may not be read as long as another one is; with no file
// at all everything has its default. An error names file and line, what was found and what was
// expected; of the result only Watch and Warnings count then, up to the file with the error.
func Load(files []string) (*Config, error) {
	c := new(Config)
	var denied error
	for _, name := range files {
		if name == "" {
			continue
		}
		c.watch(name)
		r := reader{root: &node{section: true}, conf: c}
		switch err := r.file(name); {
		case err == nil:
			c.roots = append(c.roots, r.root)
		case errors.Is(err, fs.ErrNotExist) && isFile(err, name):
		case errors.Is(err, fs.ErrPermission) && isFile(err, name):
			denied = err
			c.warn("%v; the file is ignored", err)
		default:
			return c, err
		}
	}
	if denied != nil && len(c.roots) == 0 {
		return c, fmt.Errorf("no Kerberos configuration can be read: %w", denied)
	}
	return c, c.settings()
}

// isFile reports whether err is about the named file itself and not about one it includes.
func isFile(err error, name string) bool {
	pe, ok := err.(*fs.PathError)
	return ok && pe.Path == name
}

func (c *Config) watch(name string) {
	if !slices.Contains(c.Watch, name) {
		c.Watch = append(c.Watch, name)
	}
}

func (c *Config) warn(format string, args ...any) {
	if w := fmt.Sprintf(format, args...); !slices.Contains(c.Warnings, w) { // a file can be included twice
		c.Warnings = append(c.Warnings, w)
	}
}

// settings fills the typed fields.
func (c *Config) settings() (err error) {
	keep := func(e error) {
		if e != nil {
			err = errors.Join(err, e)
		}
	}
	boolean := func(key string, def bool) bool {
		n := c.libdefault(key)
		if n == nil {
			return def
		}
		v, ok := ParseBool(n.value)
		if !ok {
			keep(fmt.Errorf("%s: %s = %q; expected yes or no (also true, on, 1, false, off, 0)", n.pos, key, n.value))
		}
		return v
	}
	expand := func(key, def string) string {
		at, s := pos{}, def
		if n := c.libdefault(key); n != nil {
			at, s = n.pos, n.value
		}
		v, e := expandTokens(s)
		if e != nil {
			keep(fmt.Errorf("%s: %s: %w", at, key, e))
		}
		return v
	}

	c.DefaultRealm, _ = c.Get("libdefaults", "default_realm")
	c.allowWeakCrypto = boolean("allow_weak_crypto", false)
	c.allowRC4 = boolean("allow_rc4", false)
	c.allowDES3 = boolean("allow_des3", false)
	c.IgnoreAcceptorHostname = boolean("ignore_acceptor_hostname", false)
	c.ClientAwareBindings = boolean("client_aware_channel_bindings", false)
	c.EnforceOKAsDelegate = boolean("enforce_ok_as_delegate", false)
	c.DefaultKeytabName = expand("default_keytab_name", "FILE:/etc/krb5.keytab")
	c.DefaultClientKeytabName = expand("default_client_keytab_name", "FILE:/etc/krb5/user/%{euid}/client.keytab")
	c.DefaultRcacheName = expand("default_rcache_name", "")
	c.DefaultCCacheName = expand("default_ccache_name", "FILE:/tmp/krb5cc_%{uid}")

	// Nothing here asks DNS, but a value that MIT's library has an error for is an error.
	if n := c.libdefault("dns_canonicalize_hostname"); n != nil && !strings.EqualFold(n.value, "fallback") {
		if _, ok := ParseBool(n.value); !ok {
			keep(fmt.Errorf("%s: dns_canonicalize_hostname = %q; expected yes, no or fallback", n.pos, n.value))
		}
	}

	c.Clockskew = 5 * time.Minute
	if n := c.libdefault("clockskew"); n != nil {
		if d, ok := ParseDuration(n.value); ok && d >= 0 {
			c.Clockskew = d
		} else {
			c.warn("%s: clockskew = %q; expected seconds, or a duration like 5m: 300 seconds are used", n.pos, n.value)
		}
	}

	if v, ok := c.Get("libdefaults", "qualify_shortname"); ok {
		c.QualifyShortname = v
	} else {
		c.QualifyShortname = searchDomain("/etc/resolv.conf")
	}

	keep(c.enctypes())
	c.unheeded()
	return err
}

func (c *Config) libdefault(key string) *node {
	if ns := find(c.roots, []string{"libdefaults", key}); len(ns) > 0 {
		return ns[0]
	}
	return nil
}

// Get returns the first value at a path such as "libdefaults", "default_realm" or "realms",
// "EXAMPLE.ORG", "kdc", and whether there is one. A nil Config has none.
func (c *Config) Get(path ...string) (string, bool) {
	if c == nil || len(path) == 0 {
		return "", false
	}
	if ns := find(c.roots, path); len(ns) > 0 {
		return ns[0].value, true
	}
	return "", false
}

// All returns every value at a path, in order; nil if there is none, as in a nil Config.
func (c *Config) All(path ...string) []string {
	if c == nil || len(path) == 0 {
		return nil
	}
	var vals []string
	for _, n := range find(c.roots, path) {
		vals = append(vals, n.value)
	}
	return vals
}

// AuthToLocal returns the values of auth_to_local of a realm, in order; nil if there is none, which
// means DEFAULT.
func (c *Config) AuthToLocal(realm string) []string { return c.All("realms", realm, "auth_to_local") }

// AuthToLocalNames returns the explicit mappings of a realm: principal without realm to local name.
// Where a principal is named more than once the last counts.
func (c *Config) AuthToLocalNames(realm string) map[string]string {
	m := make(map[string]string)
	for _, name := range names(c.roots, "realms", realm, "auth_to_local_names") {
		vals := c.All("realms", realm, "auth_to_local_names", name)
		m[name] = vals[len(vals)-1]
	}
	return m
}

// DomainRealm returns the realm [domain_realm] has for a host: that of the name itself, else of
// ".parent", else of "parent", and so on upwards. Empty means the files do not say, and the realm
// is to be found by referral.
func (c *Config) DomainRealm(host string) string {
	host = strings.TrimSuffix(lower(host), ".")
	if numeric(host) {
		return ""
	}
	for p := host; p != ""; {
		if realm, ok := c.Get("domain_realm", p); ok {
			return realm
		}
		if p[0] == '.' {
			p = p[1:]
			continue
		}
		dot := strings.IndexByte(p, '.')
		if dot < 0 {
			break
		}
		p = p[dot:]
	}
	return ""
}

// numeric reports whether MIT's library takes host for an address instead of a name.
func numeric(host string) bool {
	return strings.Contains(host, ":") || strings.Trim(host, "0123456789.") == "" && strings.Count(host, ".") == 3
}

// Capath returns what [capaths] says of the way from a client's realm to a server's: the realms in
// between in order, an empty non-nil list for a direct way ("."), nil when it says nothing.
func (c *Config) Capath(client, server string) []string {
	vals := c.All("capaths", client, server)
	if len(vals) > 0 && strings.HasPrefix(vals[0], ".") {
		return []string{}
	}
	for i, v := range vals {
		if j := strings.IndexAny(v, " \t"); j >= 0 {
			vals[i] = v[:j]
		}
	}
	return vals
}

// lower folds ASCII letters only, as tolower does in the C locale.
func lower(s string) string {
	return strings.Map(func(r rune) rune {
		if 'A' <= r && r <= 'Z' {
			r += 'a' - 'A'
		}
		return r
	}, s)
}

// ParseBool reads a boolean value; ok is false for what is none.
func ParseBool(s string) (v, ok bool) {
	switch strings.ToLower(s) {
	case "y", "yes", "true", "t", "1", "on":
		return true, true
	case "n", "no", "false", "nil", "0", "off":
		return false, true
	}
	return false, false
}

// expandTokens replaces the path tokens %{uid}, %{euid}, %{username}, %{TEMP}, %{USERID},
// %{LIBDIR}, %{BINDIR}, %{SBINDIR} and %{null}.
func expandTokens(s string) (string, error) {
	var b strings.Builder
	for {
		lit, rest, ok := strings.Cut(s, "%{")
		b.WriteString(lit)
		if !ok {
			return b.String(), nil
		}
		tok, after, ok := strings.Cut(rest, "}")
		if !ok {
			return "", fmt.Errorf("%%{%s has no closing }", rest)
		}
		switch tok {
		case "uid", "USERID":
			b.WriteString(strconv.Itoa(os.Getuid()))
		case "euid":
			b.WriteString(strconv.Itoa(os.Geteuid()))
		case "TEMP":
			b.WriteString(cmp.Or(os.Getenv("TMPDIR"), "/tmp"))
		case "username":
			b.WriteString(username())
		case "LIBDIR":
			b.WriteString("/usr/lib")
		case "BINDIR":
			b.WriteString("/usr/bin")
		case "SBINDIR":
			b.WriteString("/usr/sbin")
		case "null":
		default:
			return "", fmt.Errorf("unknown token %%{%s}; expected uid, euid, username, USERID, TEMP, LIBDIR, BINDIR, SBINDIR or null", tok)
		}
		s = after
	}
}

// username is the login name of the effective user, from the files the standard library reads; the
// number where there is no name.
func username() string {
	id := strconv.Itoa(os.Geteuid())
	if u, err := user.LookupId(id); err == nil {
		return u.Username
	}
	return id
}

// searchDomain returns the first search domain of a resolv.conf, the last of several search or
// domain lines counting; empty if there is none.
func searchDomain(file string) string {
	text, err := os.ReadFile(file)
	if err != nil {
		return ""
	}
	domain := ""
	for line := range strings.Lines(string(text)) {
		if f := strings.Fields(line); len(f) > 1 && (f[0] == "search" || f[0] == "domain") {
			domain = strings.TrimSuffix(f[1], ".")
		}
	}
	return domain
}
