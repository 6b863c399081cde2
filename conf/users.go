package conf

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	osuser "os/user"
	"strconv"
	"strings"
	"sync"
	"time"
)

// Users resolves names of users. Its methods may be called from any goroutine.
type Users interface {
	// UID returns the uid of a user; the error wraps ErrNoUser if there is
	// no such user.
	UID(name string) (uint32, error)
	// Name returns the name of the user with a uid, likewise.
	Name(uid uint32) (string, error)
}

// ErrNoUser means that the name service answered, and knows no such user.
var ErrNoUser = errors.New("no such user")

// NSS asks the system's name service, as nsswitch.conf(5) sets it up, through
// getent(1). Where that is not installed it reads /etc/passwd.
type NSS struct {
	timeout time.Duration // of one look-up
	expiry  time.Duration // of a cached name
	program string        // "" if there is no getent
	now     func() time.Time

	mu    sync.Mutex
	names map[uint32]cachedName
}

type cachedName struct {
	name  string // "" if there is no such user
	until time.Time
}

const (
	nssTimeout = 5 * time.Second
	nssExpiry  = time.Minute
	nssNames   = 1024 // cached at most
)

// NewNSS returns an NSS that waits five seconds for an answer and remembers
// names, and that there is none, for a minute. UIDs are not remembered: they
// are looked up when a configuration is read.
func NewNSS() *NSS {
	program, err := exec.LookPath("getent")
	if err != nil {
		program = ""
	}
	return &NSS{timeout: nssTimeout, expiry: nssExpiry, program: program, now: time.Now, names: map[uint32]cachedName{}}
}

// UID implements [Users].
func (n *NSS) UID(name string) (uint32, error) {
	// getent takes digits for a uid, and a leading - for an option.
	if name == "" || name[0] == '-' || strings.Trim(name, "0123456789") == "" || strings.ContainsAny(name, ":\x00\n") {
		return 0, fmt.Errorf("%q: %w", name, ErrNoUser)
	}
	found, uid, err := n.lookUp(name)
	if err == nil && found != name && !strings.EqualFold(found, name) {
		// Directories may ignore case, and answer with their own spelling.
		err = fmt.Errorf("the name service answers with %q", found)
	}
	if err != nil {
		return 0, fmt.Errorf("user %q: %w", name, err)
	}
	return uid, nil
}

// Name implements [Users].
func (n *NSS) Name(uid uint32) (string, error) {
	name, ok := n.cached(uid)
	if !ok {
		found, got, err := n.lookUp(strconv.FormatUint(uint64(uid), 10))
		switch {
		case err == nil && got == uid:
			name = found
		case err == nil || errors.Is(err, ErrNoUser):
		default:
			return "", fmt.Errorf("uid %d: %w", uid, err)
		}
		n.cache(uid, name)
	}
	if name == "" {
		return "", fmt.Errorf("uid %d: %w", uid, ErrNoUser)
	}
	return name, nil
}

func (n *NSS) cached(uid uint32) (string, bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	c, ok := n.names[uid]
	return c.name, ok && n.now().Before(c.until)
}

func (n *NSS) cache(uid uint32, name string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if len(n.names) >= nssNames {
		clear(n.names)
	}
	n.names[uid] = cachedName{name, n.now().Add(n.expiry)}
}

// lookUp returns the name and uid of one passwd entry.
func (n *NSS) lookUp(key string) (string, uint32, error) {
	if n.program == "" {
		return lookUpFile(key)
	}
	ctx, cancel := context.WithTimeout(context.Background(), n.timeout)
	defer cancel()
	line, err := Getent(ctx, n.program, "passwd", key)
	if err != nil {
		return "", 0, err
	}
	fields := strings.Split(line, ":") // name:password:uid:...
	if len(fields) < 3 {
		return "", 0, fmt.Errorf("getent passwd: %q is no passwd entry", line)
	}
	uid, err := strconv.ParseUint(fields[2], 10, 32)
	if err != nil {
		return "", 0, fmt.Errorf("getent passwd: %q is no uid", fields[2])
	}
	return fields[0], uint32(uid), nil
}

// Getent asks the name service for the entry of a key in a database through
// getent(1), the program with the given path, and returns the entry's first
// line. The error is ErrNoUser if there is no such entry. The program is killed
// when ctx ends.
func Getent(ctx context.Context, program, database, key string) (string, error) {
	patience := time.Duration(0)
	if deadline, ok := ctx.Deadline(); ok {
		patience = time.Until(deadline).Round(10 * time.Millisecond)
	}
	cmd := exec.CommandContext(ctx, program, database, key)
	cmd.WaitDelay = time.Second
	out, err := cmd.Output()
	var exit *exec.ExitError
	switch {
	case ctx.Err() != nil:
		return "", fmt.Errorf("getent %s gave no answer within %v", database, patience)
	case errors.As(err, &exit) && exit.ExitCode() == 2: // key not found
		return "", ErrNoUser
	case err != nil:
		return "", fmt.Errorf("getent %s: %w", database, err)
	}
	line, _, _ := strings.Cut(string(out), "\n")
	return line, nil
}

// lookUpFile reads /etc/passwd, which is what os/user does without cgo.
func lookUpFile(key string) (string, uint32, error) {
	look := osuser.Lookup
	if strings.Trim(key, "0123456789") == "" {
		look = osuser.LookupId
	}
	u, err := look(key)
	if err != nil {
		var noName osuser.UnknownUserError
		var noUID osuser.UnknownUserIdError
		if errors.As(err, &noName) || errors.As(err, &noUID) {
			return "", 0, fmt.Errorf("%w in /etc/passwd, and getent is not installed to ask elsewhere", ErrNoUser)
		}
		return "", 0, err
	}
	uid, err := strconv.ParseUint(u.Uid, 10, 32)
	return u.Username, uint32(uid), err
}

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
