// Package ccache keeps Kerberos credentials where MIT krb5 keeps them, so that both see each
// other's: FILE, DIR, MEMORY, KEYRING and KCM caches behind one interface, found by name through a
// [Resolver].
//
// A cache has a client principal and a list of credentials, some of which are settings
// ([IsConfig]). A cache is only a name until [Cache.Initialize]; before that, and after
// [Cache.Destroy], every other operation is [ErrNoCache]. Two processes and any number of
// goroutines may use one cache at a time.
//
// The package is long because there are five kinds; what they share, and what holds for each of
// them, is the encoding of entries and the limits.
//
// Everything read from outside is checked before memory is taken for it. Nothing here prints a key:
// errors name caches, principals and byte offsets.
package ccache

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strings"

	"gssproxyd/mech"
	"gssproxyd/mech/krb5"
)

// Cache is one credential cache. The credentials given and returned are the caller's: a cache keeps
// and returns copies.
type Cache interface {
	// Name returns the full name, "FILE:/tmp/krb5cc_0"; [Resolver.Open] of it is this cache.
	Name() string

	// Principal returns the client principal.
	Principal(ctx context.Context) (krb5.Principal, error)

	// Credentials returns what the cache holds, settings included, oldest first as far as the kind
	// knows. Where a cache is damaged the entries before the damage come with the error, an
	// [ErrFormat].
	Credentials(ctx context.Context) ([]*krb5.Credential, error)

	// Initialize makes the cache, or replaces all it holds: by client as its principal and creds. A
	// failure leaves the old content. Readers of a FILE, DIR or MEMORY cache see the old content or
	// the new.
	Initialize(ctx context.Context, client krb5.Principal, creds ...*krb5.Credential) error

	// Update adds credentials and removes those stored before for which drop is true; nil drops
	// none. When nothing can be added, nothing is removed. drop must not keep or change what it is
	// given.
	Update(ctx context.Context, drop func(*krb5.Credential) bool, add ...*krb5.Credential) error

	// Destroy removes the cache. That there is none is [ErrNoCache].
	Destroy(ctx context.Context) error
}

// Code is a minor status of MIT's that a cache gives as its error. Every error of this package has
// one, for errors.Is and for [Minor].
type Code uint32

// The codes, with MIT's names for them.
const (
	ErrBadName  = Code(mech.MinorKRB5 + 139) // KRB5_CC_BADNAME: the name has no cache of its form
	ErrKind     = Code(mech.MinorKRB5 + 140) // KRB5_CC_UNKNOWN_TYPE: no such kind, or not to be had here
	ErrNotFound = Code(mech.MinorKRB5 + 141) // KRB5_CC_NOTFOUND: no such credential, or no such cache in a collection
	ErrIO       = Code(mech.MinorKRB5 + 193) // KRB5_CC_IO: reading or writing failed
	ErrAccess   = Code(mech.MinorKRB5 + 194) // KRB5_FCC_PERM: not permitted
	ErrNoCache  = Code(mech.MinorKRB5 + 195) // KRB5_FCC_NOFILE: the cache does not exist or is not initialized
	ErrQuota    = Code(mech.MinorKRB5 + 198) // KRB5_CC_NOMEM: no room: a limit on memory or keys
	ErrFormat   = Code(mech.MinorKRB5 + 199) // KRB5_CC_FORMAT: damaged
	ErrVersion  = Code(mech.MinorKRB5 + 212) // KRB5_CCACHE_BADVNO: unknown version of the format
	ErrNoSupp   = Code(mech.MinorKRB5 + 247) // KRB5_CC_NOSUPP: this kind has no such operation
)

// Error returns MIT's text.
func (c Code) Error() string {
	if s := mech.MinorText(uint32(c)); s != "" {
		return s
	}
	return fmt.Sprintf("unknown error code %d", int32(c))
}

// Minor returns the minor status for an error of this package; [ErrIO] for any other.
func Minor(err error) uint32 {
	if code, ok := errors.AsType[Code](err); ok {
		return uint32(code)
	}
	return uint32(ErrIO)
}

// Error is what every operation of this package fails with.
type Error struct {
	Name string // of the cache
	Code Code   // what errors.Is finds
	Text string // what was found, what was expected, what to do; may be empty
	Err  error  // the cause below, may be nil
}

// Error returns all there is to say in one line.
func (e *Error) Error() string {
	s := "credential cache " + e.Name + ": " + e.Code.Error()
	if e.Text != "" {
		s += ": " + e.Text
	}
	if e.Err != nil {
		s += ": " + e.Err.Error()
	}
	return s
}

// Unwrap returns code and cause.
func (e *Error) Unwrap() []error {
	if e.Err == nil {
		return []error{e.Code}
	}
	return []error{e.Code, e.Err}
}

// Keys of settings that MIT's library keeps in a cache.
const (
	ProxyImpersonator = "proxy_impersonator" // the principal on whose behalf evidence tickets are used
	RefreshTime       = "refresh_time"       // when to get new credentials with the client keytab, decimal seconds
	StartRealm        = "start_realm"        // the realm whose TGT the cache has, unless the client's
)

// RecordAsked is the key of the setting that says which client the ticket-granting ticket was asked
// for, where the KDC calls it by another name.
const RecordAsked = "gssproxyd_asked"

// recordUID is the key of the setting that says for which uid this program has made a FILE or DIR
// cache, decimal. It is the first entry of the file, and none of those that a [Cache] tells of.
// Other programs read past it, as past all settings they do not know.
const recordUID = "gssproxyd_uid"

const (
	confRealm   = "X-CACHECONF:"
	confName    = "krb5_ccache_conf_data"
	removedConf = "X-RMED-CONF:" // of settings removed from a file
)

// IsConfig reports whether a server principal marks a setting instead of a ticket.
func IsConfig(server krb5.Principal) bool {
	return server.Realm == confRealm && len(server.Components) > 0 && server.Components[0] == confName
}

// isRecord reports whether an entry is the setting recordUID.
func isRecord(c *krb5.Credential) bool {
	return IsConfig(c.Server) && len(c.Server.Components) == 2 && c.Server.Components[1] == recordUID
}

// configServer returns the server principal of a setting, of its own for the principal about unless
// that is nil.
func configServer(key string, about *krb5.Principal) krb5.Principal {
	p := krb5.Principal{Realm: confRealm, Components: []string{confName, key}, Type: krb5.NTPrincipal}
	if about != nil {
		p.Components = append(p.Components, about.String())
	}
	return p
}

// ConfigEntry returns the entry that keeps a setting in the cache of client.
func ConfigEntry(client krb5.Principal, key string, about *krb5.Principal, value []byte) *krb5.Credential {
	return &krb5.Credential{Client: client, Server: configServer(key, about), Ticket: value}
}

// DefaultName returns the name of the default cache: KRB5CCNAME if set and not empty, else
// configured (default_ccache_name of [libdefaults], its %{tokens} expanded).
func DefaultName(getenv func(string) string, configured string) string {
	return cmp.Or(getenv("KRB5CCNAME"), configured)
}

// split returns kind and residual of a name; one without a kind is a file's.
func split(name string) (kind, residual string) {
	kind, residual, ok := strings.Cut(name, ":")
	if !ok {
		return "FILE", name
	}
	return kind, residual
}
