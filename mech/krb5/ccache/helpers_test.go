package ccache

import (
	"context"

	"gssproxyd/mech/krb5"
)

// What the tests do with single entries of a cache. The program itself reads a cache whole, and
// chooses.

// Keys of settings, and what is not exported, for the tests outside the package.
const (
	FastAvail = "fast_avail"
	PAType    = "pa_type"
	RecordUID = recordUID
)

// Collection returns the caches that are there in a collection, the primary one first.
func Collection(ctx context.Context, r *Resolver, name string) ([]Cache, error) {
	return r.existing(ctx, name)
}

// Query says which credentials are meant. A zero field asks for nothing, but tickets for
// user-to-user do not count unless they are asked for.
type Query struct {
	Client, Server krb5.Principal
	UserToUser     bool
}

func (q *Query) Match(c *krb5.Credential) bool {
	return (q.Client.Components == nil || q.Client.Equal(c.Client)) && (q.Server.Components == nil || q.Server.Equal(c.Server)) &&
		q.UserToUser == c.IsSKey
}

// Find returns the first credential meant.
func Find(ctx context.Context, c Cache, q Query) (*krb5.Credential, error) {
	creds, err := c.Credentials(ctx)
	for _, cred := range creds {
		if q.Match(cred) {
			return cred, nil
		}
	}
	if err == nil {
		err = &Error{Name: c.Name(), Code: ErrNotFound, Text: "for " + q.Server.String()}
	}
	return nil, err
}

// Store adds credentials.
func Store(ctx context.Context, c Cache, creds ...*krb5.Credential) error {
	return c.Update(ctx, nil, creds...)
}

// Remove removes those meant.
func Remove(ctx context.Context, c Cache, q Query) error { return c.Update(ctx, q.Match) }

// Config returns a setting.
func Config(ctx context.Context, c Cache, key string, about *krb5.Principal) ([]byte, error) {
	entry, err := Find(ctx, c, Query{Server: configServer(key, about)})
	if err != nil {
		return nil, err
	}
	return entry.Ticket, nil
}

// SetConfig sets a setting, or with a nil value removes it.
func SetConfig(ctx context.Context, c Cache, key string, about *krb5.Principal, value []byte) error {
	client, err := c.Principal(ctx)
	if err != nil {
		return err
	}
	q := Query{Server: configServer(key, about)}
	if value == nil {
		return c.Update(ctx, q.Match)
	}
	return c.Update(ctx, q.Match, ConfigEntry(client, key, about, value))
}
