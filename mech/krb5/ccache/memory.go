package ccache

import (
	"bytes"
	"container/list"
	"context"
	"crypto/rand"
	"fmt"
	"slices"
	"sync"
	"time"

	"gssproxyd/mech/krb5"
)

// Memory holds MEMORY caches, within limits: at a limit what was not used for the longest time is dropped, and is
// [ErrNoCache] from then on, so what is kept here can be had again some other way. [ErrQuota] is only what is too big
// to be kept alone. Keys are overwritten when their credential is dropped. The zero value is empty and ready; its
// fields are set before first use. It is safe for concurrent use.
type Memory struct {
	MaxCaches int // 0 means 10,000
	MaxBytes  int // of all credentials, encoded; 0 means 64 MiB
	Now       func() time.Time

	mu      sync.Mutex
	caches  map[string]*contents
	used    list.List // of the caches, the one used last at the end
	bytes   int
	version uint64 // of the last change, for stamps
	purged  int64  // when that was done, in Unix seconds
}

// purgeEvery is how long the keys of expired tickets may stay while caches are written, in seconds.
const purgeEvery = 600

// contents is one cache, guarded by its Memory.
type contents struct {
	name   string
	used   *list.Element
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

// Clear destroys all caches.
func (m *Memory) Clear() {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, c := range m.caches {
		m.remove(c)
	}
}

func (m *Memory) now() int64 {
	if m.Now != nil {
		return m.Now().Unix()
	}
	return time.Now().Unix()
}

// purge destroys the caches all of whose tickets have expired, but for one that is being written.
func (m *Memory) purge(but *contents) {
	now := m.now()
	for _, c := range m.caches {
		if c != but && c.expired(now) {
			m.remove(c)
		}
	}
	m.purged = now
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

func (m *Memory) remove(c *contents) {
	for _, cred := range c.creds {
		cred.Destroy()
	}
	m.bytes -= c.bytes
	m.used.Remove(c.used)
	delete(m.caches, c.name)
}

// room makes room for one cache, the last used, to be of n bytes: old is that cache as it is, nil if it is new. There is
// none, and nothing happens, for what would not fit alone; a reason then.
func (m *Memory) room(old *contents, n int) (string, bool) {
	maxCaches, maxBytes := m.MaxCaches, m.MaxBytes
	if maxCaches == 0 {
		maxCaches = 10_000
	}
	if maxBytes == 0 {
		maxBytes = 64 << 20
	}
	if n > maxBytes {
		return fmt.Sprintf("%d bytes of credentials in one cache; expected at most %d", n, maxBytes), false
	}
	if m.now()-m.purged >= purgeEvery {
		m.purge(old)
	}
	caches, bytes := len(m.caches)+1, m.bytes+n
	if old != nil {
		caches, bytes = caches-1, bytes-old.bytes
	}
	for caches > maxCaches || bytes > maxBytes { // never when none is left but this one
		least := m.used.Front().Value.(*contents)
		caches, bytes = caches-1, bytes-least.bytes
		m.remove(least)
	}
	return "", true
}

type memoryCache struct {
	m    *Memory
	name string
}

func (c *memoryCache) Name() string { return "MEMORY:" + c.name }

// lock locks the registry and returns the content, which counts as used now; the caller unlocks. Nothing here waits
// for long, so no context is asked.
func (c *memoryCache) lock() (*contents, error) {
	c.m.mu.Lock()
	if all := c.m.caches[c.name]; all != nil {
		c.m.used.MoveToBack(all.used)
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

// read is Credentials with the principal and the stamp.
func (c *memoryCache) read(_ context.Context, h *hold) (*Reading, error) {
	defer c.m.mu.Unlock()
	all, err := c.lock()
	if err != nil {
		return nil, err
	}
	for _, cred := range all.creds {
		if err := h.add(cred.Clone()); err != nil {
			return nil, &Error{Name: c.Name(), Code: ErrQuota, Err: err}
		}
	}
	return &Reading{Client: all.client, Stamp: Stamp{memory: c.m, version: all.version}}, nil
}

func (c *memoryCache) Initialize(_ context.Context, client krb5.Principal, creds ...*krb5.Credential) error {
	creds, ok := fitting(creds, c.m.now())
	if !ok {
		return &Error{Name: c.Name(), Code: ErrQuota, Err: errFull}
	}
	n := 0
	for _, cred := range creds {
		n += size(cred)
	}
	defer c.m.mu.Unlock()
	old, _ := c.lock()
	if why, ok := c.m.room(old, n); !ok {
		return &Error{Name: c.Name(), Code: ErrQuota, Text: why}
	}
	if old != nil {
		c.m.remove(old)
	}
	if c.m.caches == nil {
		c.m.caches = make(map[string]*contents)
	}
	c.m.version++
	all := &contents{name: c.name, client: client, bytes: n, version: c.m.version}
	for _, cred := range creds {
		all.creds = append(all.creds, cred.Clone())
	}
	all.used = c.m.used.PushBack(all)
	c.m.caches[c.name] = all
	c.m.bytes += n
	return nil
}

// Update also drops what has expired, and of two equal entries keeps the new. What is then too much for one cache goes as
// in a file.
func (c *memoryCache) Update(_ context.Context, drop func(*krb5.Credential) bool, add ...*krb5.Credential) error {
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
	stay := make([]*krb5.Credential, 0, len(all.creds)+len(add))
	for _, old := range all.creds {
		if !goes(old) {
			stay = append(stay, old)
		}
	}
	stay = append(stay, add...)
	stay, ok := fitting(stay, now)
	if !ok {
		return &Error{Name: c.Name(), Code: ErrQuota, Err: errFull}
	}
	n := 0
	for _, cred := range stay {
		n += size(cred)
	}
	if why, ok := c.m.room(all, n); !ok {
		return &Error{Name: c.Name(), Code: ErrQuota, Text: why}
	}
	stays := make(map[*krb5.Credential]bool, len(stay))
	for _, cred := range stay {
		stays[cred] = true
	}
	for i, cred := range stay {
		if slices.Contains(add, cred) {
			stay[i] = cred.Clone()
		}
	}
	for _, old := range all.creds {
		if !stays[old] {
			old.Destroy()
		}
	}
	c.m.version++
	all.version = c.m.version
	all.creds = stay
	c.m.bytes += n - all.bytes
	all.bytes = n
	return nil
}

// same reports whether a new credential replaces the old one: same parties and purpose.
func same(a, b *krb5.Credential) bool {
	return a.Client.Equal(b.Client) && a.Server.Equal(b.Server) && (a.KeyType == b.KeyType || IsConfig(b.Server)) &&
		a.IsSKey == b.IsSKey && bytes.Equal(a.SecondTicket, b.SecondTicket) &&
		slices.EqualFunc(a.AuthData, b.AuthData, func(a, b krb5.AuthData) bool { return a.Type == b.Type && bytes.Equal(a.Data, b.Data) })
}

func (c *memoryCache) Destroy(context.Context) error {
	defer c.m.mu.Unlock()
	all, err := c.lock()
	if err != nil {
		return err
	}
	c.m.remove(all)
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
