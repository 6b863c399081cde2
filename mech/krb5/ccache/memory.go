package ccache

import (
	"context"
	"crypto/rand"
	"fmt"
	"sync"
	"time"

	"gssproxyd/mech/krb5"
)

// Memory holds MEMORY caches, within limits. Keys are overwritten when their credential is dropped. The zero
// value is empty and ready; its fields are set before first use. It is safe for concurrent use.
type Memory struct {
	MaxCaches int // 0 means 10,000
	MaxBytes  int // of all credentials, encoded; 0 means 64 MiB
	Now       func() time.Time

	mu      sync.Mutex
	caches  map[string]*contents
	bytes   int
	version uint64 // of the last change, for stamps
}

// contents is one cache, guarded by its Memory.
type contents struct {
	client krb5.Principal
	creds  []*krb5.Credential
	bytes  int

	version uint64
}

// Open returns the cache of that name, without "MEMORY:".
func (m *Memory) Open(name string) Cache { return &memoryCache{m, name} }

// New returns a cache with a random name.
func (m *Memory) New() Cache { return m.Open(rand.Text()) }

// Len returns how many caches there are and the bytes of their credentials.
func (m *Memory) Len() (caches, bytes int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.caches), m.bytes
}

// Purge destroys the caches all of whose tickets have expired and returns how many these were. It is done
// too before a limit is an error.
func (m *Memory) Purge() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.purge()
}

func (m *Memory) now() int64 {
	if m.Now != nil {
		return m.Now().Unix()
	}
	return time.Now().Unix()
}

func (m *Memory) purge() int {
	now, n := m.now(), 0
	for name, c := range m.caches {
		if c.expired(now) {
			m.remove(name)
			n++
		}
	}
	return n
}

func expired(c *krb5.Credential, now int64) bool { return c.EndTime != 0 && int64(c.EndTime) <= now }

// expired reports whether there were tickets and none is valid. What has no end time and is no setting, as a
// sealed handle, does not expire.
func (c *contents) expired(now int64) bool {
	had := false
	for _, cred := range c.creds {
		switch {
		case expired(cred, now):
			had = true
		case !IsConfig(cred.Server):
			return false
		}
	}
	return had
}

func (m *Memory) remove(name string) {
	c := m.caches[name]
	for _, cred := range c.creds {
		cred.Destroy()
	}
	m.bytes -= c.bytes
	delete(m.caches, name)
}

// room reports whether one more cache, if asked for, and bytes more fit; a reason if not.
func (m *Memory) room(caches, bytes int) (string, bool) {
	maxCaches, maxBytes := m.MaxCaches, m.MaxBytes
	if maxCaches == 0 {
		maxCaches = 10_000
	}
	if maxBytes == 0 {
		maxBytes = 64 << 20
	}
	for purged := false; ; purged = true {
		switch {
		case len(m.caches)+caches <= maxCaches && m.bytes+bytes <= maxBytes:
			return "", true
		case !purged && m.purge() > 0:
		case len(m.caches)+caches > maxCaches:
			return fmt.Sprintf("the limit of %d caches in memory is reached", maxCaches), false
		default:
			return fmt.Sprintf("the limit of %d bytes of credentials in memory is reached", maxBytes), false
		}
	}
}

type memoryCache struct {
	m    *Memory
	name string
}

func (c *memoryCache) Name() string { return "MEMORY:" + c.name }

// lock locks the registry and returns the content; the caller unlocks. Nothing here waits for long, so no
// context is asked.
func (c *memoryCache) lock() (*contents, error) {
	c.m.mu.Lock()
	if all := c.m.caches[c.name]; all != nil {
		return all, nil
	}
	return nil, &Error{Name: c.Name(), Code: ErrNoCache}
}

func (c *memoryCache) Principal(context.Context) (krb5.Principal, error) {
	defer c.m.mu.Unlock()
	all, err := c.lock()
	if err != nil {
		return krb5.Principal{}, err
	}
	return all.client, nil
}

func (c *memoryCache) Credentials(context.Context) ([]*krb5.Credential, error) {
	defer c.m.mu.Unlock()
	all, err := c.lock()
	if err != nil {
		return nil, err
	}
	creds := make([]*krb5.Credential, len(all.creds))
	for i, cred := range all.creds {
		creds[i] = cred.Clone()
	}
	return creds, nil
}

func (c *memoryCache) find(_ context.Context, q *Query) (*krb5.Credential, error) {
	defer c.m.mu.Unlock()
	all, err := c.lock()
	if err != nil {
		return nil, err
	}
	i, err := q.best(all.creds)
	if err != nil {
		return nil, missing(c.Name(), q, err)
	}
	return all.creds[i].Clone(), nil
}

func (c *memoryCache) Initialize(_ context.Context, client krb5.Principal, creds ...*krb5.Credential) error {
	n := 0
	for _, cred := range creds {
		n += size(cred)
	}
	defer c.m.mu.Unlock()
	old, _ := c.lock()
	more, caches := n, 1
	if old != nil {
		more, caches = n-old.bytes, 0
	}
	if why, ok := c.m.room(caches, more); !ok {
		return &Error{Name: c.Name(), Code: ErrQuota, Text: why}
	}
	if c.m.caches[c.name] != nil { // a purge may have taken it
		c.m.remove(c.name)
	}
	if c.m.caches == nil {
		c.m.caches = make(map[string]*contents)
	}
	c.m.version++
	all := &contents{client: client, bytes: n, version: c.m.version}
	for _, cred := range creds {
		all.creds = append(all.creds, cred.Clone())
	}
	c.m.caches[c.name] = all
	c.m.bytes += n
	return nil
}

// Update also drops what has expired, and of two equal entries keeps the new.
func (c *memoryCache) Update(_ context.Context, drop func(*krb5.Credential) bool, add ...*krb5.Credential) error {
	more := 0
	for _, cred := range add {
		more += size(cred)
	}
	defer c.m.mu.Unlock()
	all, err := c.lock()
	if err != nil {
		return err
	}
	now := c.m.now()
	goes := func(old *krb5.Credential) bool {
		for _, cred := range add {
			if same(old, cred) {
				return true
			}
		}
		return expired(old, now) || drop != nil && drop(old)
	}
	freed := 0
	gone := make([]bool, len(all.creds))
	for i, old := range all.creds {
		if gone[i] = goes(old); gone[i] {
			freed += size(old)
		}
	}
	if why, ok := c.m.room(0, more-freed); !ok {
		return &Error{Name: c.Name(), Code: ErrQuota, Text: why}
	}
	if c.m.caches[c.name] != all { // taken by a purge, as it had expired
		c.m.caches[c.name] = all
		all.bytes, all.creds, gone, freed = 0, nil, nil, 0
	}
	kept := all.creds[:0:0]
	for i, old := range all.creds {
		if gone[i] {
			old.Destroy()
		} else {
			kept = append(kept, old)
		}
	}
	for _, cred := range add {
		kept = append(kept, cred.Clone())
	}
	c.m.version++
	all.version = c.m.version
	all.creds = kept
	all.bytes += more - freed
	c.m.bytes += more - freed
	return nil
}

// same reports whether a new credential replaces the old one: same parties and purpose.
func same(a, b *krb5.Credential) bool {
	q := Query{Client: b.Client, Server: b.Server, SecondTicket: b.SecondTicket, AuthData: b.AuthData, UserToUser: b.IsSKey}
	return q.match(a) && len(a.SecondTicket) == len(b.SecondTicket) && len(a.AuthData) == len(b.AuthData) &&
		(a.KeyType == b.KeyType || IsConfig(b.Server))
}

func (c *memoryCache) Destroy(context.Context) error {
	defer c.m.mu.Unlock()
	if _, err := c.lock(); err != nil {
		return err
	}
	c.m.remove(c.name)
	return nil
}

type memoryCollection struct {
	m    *Memory
	name string
}

func (c memoryCollection) primary(context.Context) (Cache, error) { return c.m.Open(c.name), nil }

// all returns the named cache only: the others belong to whoever made them.
func (c memoryCollection) all(context.Context) ([]Cache, error) {
	return []Cache{c.m.Open(c.name)}, nil
}
func (c memoryCollection) unique(context.Context) (Cache, error) { return c.m.New(), nil }
