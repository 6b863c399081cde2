package conf

import (
	"errors"
	"fmt"
)

// Users resolves names of users and groups. Its methods may be called from any goroutine.
type Users interface {
	// UID returns the uid of a user; the error wraps ErrNoUser if there is no such user.
	UID(name string) (uint32, error)
	// Name returns the name of the user with a uid, likewise.
	Name(uid uint32) (string, error)
	// GID returns the gid of a group; the error wraps ErrNoGroup if there is no such group.
	GID(name string) (uint32, error)
}

// ErrNoUser means that the name service answered, and knows no such user.
var ErrNoUser = errors.New("no such user")

// ErrNoGroup means that the name service answered, and knows no such group.
var ErrNoGroup = errors.New("no such group")

// FixedUsers is a Users with the given names and uids and no groups, for tests and dry runs.
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

// GID implements [Users].
func (FixedUsers) GID(name string) (uint32, error) { return FixedGroups{}.GID(name) }

// FixedGroups is a Users with the given names and gids of groups beside the users.
type FixedGroups struct {
	FixedUsers
	Groups map[string]uint32
}

// GID implements [Users].
func (f FixedGroups) GID(name string) (uint32, error) {
	if gid, ok := f.Groups[name]; ok {
		return gid, nil
	}
	return 0, fmt.Errorf("group %q: %w", name, ErrNoGroup)
}
