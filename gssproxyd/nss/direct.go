package nss

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"time"

	"gssproxyd/conf"
)

// Direct asks the name service from this very process: for commands, and for a user's own proxy,
// whose keys are the user's. It runs getent(1), and where that is not installed reads /etc/passwd and
// /etc/group. Its methods may be called from any goroutine.
type Direct struct {
	sources *sources
	timeout time.Duration // of one look-up
	now     func() time.Time

	mu    sync.Mutex
	names map[uint32]rememberedName
}

type rememberedName struct {
	name  string // "" if there is no such user
	until time.Time
}

const (
	directTimeout = 5 * time.Second
	nameExpiry    = time.Minute
	maxNames      = 1024
)

// NewDirect returns a Direct that waits five seconds for an answer and remembers names, and that
// there is none, for a minute. UIDs and GIDs are not remembered: they are looked up when a
// configuration is read.
func NewDirect() *Direct {
	return &Direct{sources: newSources("/etc"), timeout: directTimeout, now: time.Now, names: map[uint32]rememberedName{}}
}

// NewFiles returns a Direct that reads /etc/passwd and /etc/group, and asks nobody.
func NewFiles() *Direct {
	d := NewDirect()
	d.sources = &sources{etc: "/etc"}
	return d
}

// UID implements [conf.Users].
func (d *Direct) UID(name string) (uint32, error) {
	a, err := d.named(user, name)
	return a.UID, err
}

// GID implements [conf.Users].
func (d *Direct) GID(name string) (uint32, error) {
	a, err := d.named(group, name)
	return a.GID, err
}

func (d *Direct) named(k kind, name string) (Account, error) {
	q := question{k, name}
	if err := q.checkName(); err != nil {
		return Account{}, err
	}
	return q.checkAnswer(d.lookUp(q))
}

// Name implements [conf.Users].
func (d *Direct) Name(id uint32) (string, error) {
	name, ok := d.remembered(id)
	if !ok {
		a, err := d.lookUp(question{uid, strconv.FormatUint(uint64(id), 10)})
		switch {
		case err == nil && a.UID == id:
			name = a.Name
		case err == nil || errors.Is(err, conf.ErrNoUser):
		default:
			return "", fmt.Errorf("uid %d: %w", id, err)
		}
		d.remember(id, name)
	}
	if name == "" {
		return "", fmt.Errorf("uid %d: %w", id, conf.ErrNoUser)
	}
	return name, nil
}

func (d *Direct) remembered(id uint32) (string, bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	n, ok := d.names[id]
	return n.name, ok && d.now().Before(n.until)
}

func (d *Direct) remember(id uint32, name string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(d.names) >= maxNames {
		clear(d.names)
	}
	d.names[id] = rememberedName{name, d.now().Add(nameExpiry)}
}

// lookUp returns one entry of passwd or group, without a look at nsswitch.conf where getent takes one.
func (d *Direct) lookUp(q question) (Account, error) {
	ctx, cancel := context.WithTimeout(context.Background(), d.timeout)
	defer cancel()
	return d.sources.lookUpEntry(ctx, q, nsswitch{})
}
