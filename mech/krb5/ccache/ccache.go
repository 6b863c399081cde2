// Package ccache keeps Kerberos credentials where MIT krb5 keeps them, so that both see each other's: FILE, DIR,
// MEMORY, KEYRING and KCM caches behind one interface, found by name through a [Resolver].
//
// A cache has a client principal and a list of credentials, some of which are settings ([Config]). A cache
// is only a name until [Cache.Initialize]; before that, and after [Cache.Destroy], every other operation is
// [ErrNoCache]. Two processes and any number of goroutines may use one cache at a time.
//
// Everything read from outside is checked before memory is taken for it. Nothing here prints a key: errors
// name caches, principals and byte offsets.
package ccache

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"gssproxyd/mech"
	"gssproxyd/mech/krb5"
	"gssproxyd/mech/krb5/etype"
)

// Cache is one credential cache. The credentials given and returned are the caller's: a cache keeps and
// returns copies.
type Cache interface {
	// Name returns the full name, "FILE:/tmp/krb5cc_0"; [Resolver.Open] of it is this cache.
	Name() string

	// Principal returns the client principal.
	Principal(ctx context.Context) (krb5.Principal, error)

	// Credentials returns what the cache holds, settings included, oldest first as far as the kind knows.
	// Where a cache is damaged the entries before the damage come with the error, an [ErrFormat].
	Credentials(ctx context.Context) ([]*krb5.Credential, error)

	// Initialize makes the cache, or replaces all it holds: by client as its principal and creds. A failure
	// leaves the old content. Readers of a FILE, DIR or MEMORY cache see the old content or the new.
	Initialize(ctx context.Context, client krb5.Principal, creds ...*krb5.Credential) error

	// Update adds credentials and removes those stored before for which drop is true; nil drops none.
	// When nothing can be added, nothing is removed. drop must not keep or change what it is given.
	Update(ctx context.Context, drop func(*krb5.Credential) bool, add ...*krb5.Credential) error

	// Destroy removes the cache. That there is none is [ErrNoCache].
	Destroy(ctx context.Context) error
}

// Code is a minor status of MIT's that a cache gives as its error. Every error of this package has one, for
// errors.Is and for [Minor].
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
	ErrEnctype  = Code(mech.MinorKRB5 + 200) // KRB5_CC_NOT_KTYPE: found, but with no permitted encryption type
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
	code := ErrIO
	errors.As(err, &code)
	return uint32(code)
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

// Query says which credentials are meant. A zero field asks for nothing.
type Query struct {
	Client, Server krb5.Principal
	AnyRealm       bool       // the server's realm does not count
	ValidAt        time.Time  // the credential ends later than this
	Enctypes       []etype.ID // permitted for the session key, in order of preference
	Flags          uint32     // ticket flags that must be set
	SecondTicket   []byte     // stored with the credential, exactly
	AuthData       []krb5.AuthData

	// UserToUser asks for a ticket encrypted in a session key. Without it such tickets do not count, as
	// they are no use to an ordinary service.
	UserToUser bool
}

// Match reports whether c is meant, its encryption type included.
func (q *Query) Match(c *krb5.Credential) bool {
	return q.match(c) && (q.Enctypes == nil || slices.Contains(q.Enctypes, c.KeyType))
}

func (q *Query) match(c *krb5.Credential) bool {
	return (isZero(q.Client) || q.Client.Equal(c.Client)) &&
		(isZero(q.Server) || slices.Equal(q.Server.Components, c.Server.Components) && (q.AnyRealm || q.Server.Realm == c.Server.Realm)) &&
		q.UserToUser == c.IsSKey &&
		c.Flags&q.Flags == q.Flags &&
		(q.ValidAt.IsZero() || int64(c.EndTime) > q.ValidAt.Unix()) &&
		(q.SecondTicket == nil || slices.Equal(q.SecondTicket, c.SecondTicket)) &&
		(q.AuthData == nil || slices.EqualFunc(q.AuthData, c.AuthData, func(a, b krb5.AuthData) bool {
			return a.Type == b.Type && slices.Equal(a.Data, b.Data)
		}))
}

func isZero(p krb5.Principal) bool { return p.Realm == "" && p.Components == nil }

// best returns the index of the credential meant: of those with the most preferred encryption type the first.
// Without one the error is ErrNotFound, or ErrEnctype when only the encryption type is missing.
func (q *Query) best(creds []*krb5.Credential) (int, error) {
	found, rank, none := -1, 0, ErrNotFound
	for i, c := range creds {
		switch {
		case !q.match(c):
		case q.Enctypes == nil:
			return i, nil
		default:
			if r := slices.Index(q.Enctypes, c.KeyType); r < 0 {
				none = ErrEnctype
			} else if found < 0 || r < rank {
				found, rank = i, r
			}
		}
	}
	if found < 0 {
		return -1, none
	}
	return found, nil
}

// A finder looks through its credentials without copying them all.
type finder interface {
	find(ctx context.Context, q *Query) (*krb5.Credential, error)
}

// Find returns the credential of c that q asks for: the first stored, or with q.Enctypes the one preferred. A
// server with the empty realm, which asks for referrals, is looked for in the client's realm too. There is
// none: [ErrNotFound], or [ErrEnctype] if only for its encryption type.
func Find(ctx context.Context, c Cache, q Query) (*krb5.Credential, error) {
	found, err := find(ctx, c, &q)
	if errors.Is(err, ErrNotFound) && q.Server.Components != nil && q.Server.Realm == "" && q.Client.Realm != "" {
		q.Server.Realm = q.Client.Realm
		found, err = find(ctx, c, &q)
	}
	return found, err
}

func find(ctx context.Context, c Cache, q *Query) (*krb5.Credential, error) {
	if f, ok := c.(finder); ok {
		return f.find(ctx, q)
	}
	// What a damaged cache still has is used; that something is missing may be due to the damage.
	creds, err := c.Credentials(ctx)
	if err != nil && creds == nil {
		return nil, err
	}
	i, miss := q.best(creds)
	for j, c := range creds {
		if j != i {
			c.Destroy()
		}
	}
	switch {
	case miss == nil:
		return creds[i], nil
	case err != nil:
		return nil, err
	}
	return nil, missing(c.Name(), q, miss)
}

func missing(name string, q *Query, err error) error {
	e := &Error{Name: name, Code: ErrNotFound}
	errors.As(err, &e.Code)
	if q.Server.Components != nil {
		e.Text = "for " + q.Server.String()
	}
	return e
}

// Store adds credentials to c.
func Store(ctx context.Context, c Cache, creds ...*krb5.Credential) error {
	return c.Update(ctx, nil, creds...)
}

// Remove removes the credentials q asks for. That there are none is no error.
func Remove(ctx context.Context, c Cache, q Query) error { return c.Update(ctx, q.Match) }

// Keys of the settings MIT's library keeps in a cache.
const (
	FastAvail         = "fast_avail"         // "yes": the KDC of the TGT principal does FAST (RFC 6113)
	PAType            = "pa_type"            // pre-authentication type that got the TGT, decimal
	PAConfigData      = "pa_config_data"     // what that type wants to know next time
	ProxyImpersonator = "proxy_impersonator" // the principal on whose behalf evidence tickets are used
	RefreshTime       = "refresh_time"       // when to get new credentials with the client keytab, decimal seconds
	StartRealm        = "start_realm"        // the realm whose TGT the cache has, unless the client's
)

const (
	confRealm   = "X-CACHECONF:"
	confName    = "krb5_ccache_conf_data"
	removedConf = "X-RMED-CONF:" // of settings removed from a file
)

// IsConfig reports whether a server principal marks a setting instead of a ticket.
func IsConfig(server krb5.Principal) bool {
	return server.Realm == confRealm && len(server.Components) > 0 && server.Components[0] == confName
}

// ConfigServer returns the server principal of a setting, of its own for the principal about unless that is nil.
func ConfigServer(key string, about *krb5.Principal) krb5.Principal {
	p := krb5.Principal{Realm: confRealm, Components: []string{confName, key}, Type: krb5.NTPrincipal}
	if about != nil {
		p.Components = append(p.Components, about.String())
	}
	return p
}

// ConfigEntry returns the entry that keeps a setting in the cache of client.
func ConfigEntry(client krb5.Principal, key string, about *krb5.Principal, value []byte) *krb5.Credential {
	return &krb5.Credential{Client: client, Server: ConfigServer(key, about), Ticket: value}
}

// Config returns a setting of c; see [FastAvail] and others for the keys. about is nil but for settings that
// are kept for each of several principals. That there is none is [ErrNotFound].
func Config(ctx context.Context, c Cache, key string, about *krb5.Principal) ([]byte, error) {
	client, err := c.Principal(ctx)
	if err != nil {
		return nil, err
	}
	entry, err := Find(ctx, c, Query{Client: client, Server: ConfigServer(key, about)})
	if err != nil {
		return nil, err
	}
	return entry.Ticket, nil
}

// SetConfig sets a setting of c, or with a nil value removes it.
func SetConfig(ctx context.Context, c Cache, key string, about *krb5.Principal, value []byte) error {
	client, err := c.Principal(ctx)
	if err != nil {
		return err
	}
	q := Query{Client: client, Server: ConfigServer(key, about)}
	if value == nil {
		return c.Update(ctx, q.Match)
	}
	return c.Update(ctx, q.Match, ConfigEntry(client, key, about, value))
}

// DefaultName returns the name of the default cache: KRB5CCNAME if set and not empty, else configured
// (default_ccache_name of [libdefaults], its %{tokens} expanded).
func DefaultName(getenv func(string) string, configured string) string {
	if v := getenv("KRB5CCNAME"); v != "" {
		return v
	}
	return configured
}

// split returns kind and residual of a name; one without a kind is a file's.
func split(name string) (kind, residual string) {
	kind, residual, ok := strings.Cut(name, ":")
	if !ok {
		return "FILE", name
	}
	return kind, residual
}
