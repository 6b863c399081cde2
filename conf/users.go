package conf

import (
	"errors"
	"fmt"
)

// Users resolves names of users. Its methods may be called from any goroutine.
type Users interface {
	// UID returns the uid of a user; the error wraps ErrNoUser if there is no such user.
	UID(name string) (uint32, error)
	// Name returns the name of the user with a uid, likewise.
	Name(uid uint32) (string, error)
}

// ErrNoUser means that the name service answered, and knows no such user.
var ErrNoUser = errors.New("no such user")

// FixedUsers is a Users with the given names and uids, for tests and dry runs.
type FixedUsers map[string]uint32

// UID implements [Users].
func (f FixedUsers) UID(name string) (uint32, error) {
	if uid, ok := f[name]; ok {
		return uid, nil
	}
	return 0, fmt.Errorf("user %q: %w", name, ErrNoUser)
}

// Name implements [Users]. Of several names it returns the first in order.
func (f FixedUsers) Name(uid uint32) (string, error) {
	best := ""
	for name, id := range f {
		if id == uid && (best == "" || name < best) {
			best = name
		}
	}
	if best == "" {
		return "", fmt.Errorf("uid %d: %w", uid, ErrNoUser)
	}
	return best, nil
}
