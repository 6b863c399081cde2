package ccache

import (
	"bytes"
	"cmp"
	"container/list"
	"context"
	"os"
	"slices"
	"sync"
	"time"

	"gssproxyd/mech/krb5"
)

// Memory holds MEMORY caches, within limits: at a limit what was not used for the longest time is
// dropped, and is [ErrNoCache] from then on, so what is kept here can be had again some other way.
// [ErrQuota] is what the payer cannot have, or is more than a cache holds. Keys are overwritten
// when their credential is dropped. The zero value is empty and ready; its fields are set before
// first use. It is safe for concurrent use.
type Memory struct {
	MaxCaches int              // 10,000 if 0
	Payers    Payers           // nil: nobody pays
	Now       func() time.Time // nil: time.Now

	mu      sync.Mutex
	caches  map[memoryKey]*contents
	used    list.List // of the caches, the one used last at the end
	bytes   int       // that are charged
	version uint64    // of the last change, for stamps
	purged  int64     // when that was done, in Unix seconds
	closed  bool
}

// Payers is charged for the memory that caches take, each to a uid. It may drop others
// ([Memory.DropOldest]) to make room.
type Payers interface {
	// Take charges uid for n bytes. An error says why it cannot have them.
	Take(uid uint32, n int) error
	// Give gives n bytes back.
	Give(uid uint32, n int)
}

// purgeEvery is how long the keys of expired tickets may stay while caches are written, in seconds.
const purgeEvery = 600

// memoryKey tells caches apart: each payer has its own.
type memoryKey struct {
	payer uint32
	name  string
}

// contents is one cache, guarded by its Memory.
type contents struct {
	memoryKey
	used   *list.Element
	client krb5.Principal
	creds  []*krb5.Credential

	bytes   int // that are charged
	version uint64
}

// cost is about the memory that a cache of credentials takes, in bytes.
func cost(creds []*krb5.Credential) int {
	n := 512
	for _, cred := range creds {
		n += weight(cred)
	}
	return n
}

// Open returns the cache of that name, without "MEMORY:". This program's user pays for what is put
// there.
func (m *Memory) Open(name string) Cache { return m.OpenFor(uint32(os.Geteuid()), name) }

// OpenFor is Open with another uid that pays. Caches of other payers are others, also under the
// same name.
func (m *Memory) OpenFor(payer uint32, name string) Cache {
	return &memoryCache{m, memoryKey{payer, name}}
}

// Len returns how many caches there are and the size of them all, in bytes.
func (m *Memory) Len() (caches, size int) {
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

// Close destroys all caches, and none is made any more.
func (m *Memory) Close() {
	m.mu.Lock()
	m.closed = true
	m.mu.Unlock()
	m.Clear()
}

// DropOldest destroys the cache that was not used for the longest time of those whose payer which
// accepts, and reports whether there was one.
func (m *Memory) DropOldest(which func(payer uint32) bool) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	for e := m.used.Front(); e != nil; e = e.Next() {
		if c := e.Value.(*contents); which(c.payer) {
			m.remove(c)
			return true
		}
	}
	return false
}

func (m *Memory) take(payer uint32, n int) error {
	if m.Payers == nil {
		return nil
	}
	return m.Payers.Take(payer, n)
}

func (m *Memory) give(payer uint32, n int) {
	if m.Payers != nil && n > 0 {
		m.Payers.Give(payer, n)
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

// expired reports whether there were tickets and none is valid. What has no end time and is no
// setting, as a sealed handle, does not expire.
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
	m.give(c.payer, c.bytes)
	m.used.Remove(c.used)
	delete(m.caches, c.memoryKey)
}

// tidy makes room for one more cache, and once in a while destroys those that have expired.
func (m *Memory) tidy() {
	if m.now()-m.purged >= purgeEvery {
		m.purge(nil)
	}
	for len(m.caches) >= cmp.Or(m.MaxCaches, 10_000) {
		m.remove(m.used.Front().Value.(*contents))
	}
}

type memoryCache struct {
	m *Memory
	memoryKey
}

func (c *memoryCache) Name() string { return "MEMORY:" + c.name }

// lock locks the registry and returns the content, which counts as used now; the caller unlocks.
// Nothing here waits for long, so no context is asked.
func (c *memoryCache) lock() (*contents, error) {
	c.m.mu.Lock()
	if all := c.m.caches[c.memoryKey]; all != nil {
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
	_, creds, err := c.copied()
	return creds, err
}

// read is Credentials with the principal and the stamp.
func (c *memoryCache) read(_ context.Context, h *hold) (*Reading, error) {
	got, creds, err := c.copied()
	for i, cred := range creds { // without the lock: others may have to make room
		if err := h.add(cred); err != nil {
			destroy(creds[i+1:])
			return nil, &Error{Name: c.Name(), Code: ErrQuota, Err: err}
		}
	}
	return got, err
}

// copied returns copies of the credentials, with the principal and the stamp.
func (c *memoryCache) copied() (*Reading, []*krb5.Credential, error) {
	defer c.m.mu.Unlock()
	all, err := c.lock()
	if err != nil {
		return nil, nil, err
	}
	creds := make([]*krb5.Credential, len(all.creds))
	for i, cred := range all.creds {
		creds[i] = cred.Clone()
	}
	return &Reading{Client: all.client, Stamp: Stamp{memory: c.m, version: all.version}}, creds, nil
}

func (c *memoryCache) Initialize(_ context.Context, client krb5.Principal, creds ...*krb5.Credential) error {
	creds, ok := fitting(creds, c.m.now())
	if !ok {
		return &Error{Name: c.Name(), Code: ErrQuota, Err: errFull}
	}
	n := cost(creds)
	if err := c.m.take(c.payer, n); err != nil { // before the lock: others may have to make room
		return &Error{Name: c.Name(), Code: ErrQuota, Err: err}
	}
	defer c.m.mu.Unlock()
	old, _ := c.lock()
	if c.m.closed {
		c.m.give(c.payer, n)
		return &Error{Name: c.Name(), Code: ErrNoCache, Text: "no more caches are kept in memory here"}
	}
	if old != nil {
		c.m.remove(old)
	}
	c.m.tidy()
	if c.m.caches == nil {
		c.m.caches = make(map[memoryKey]*contents)
	}
	c.m.version++
	all := &contents{memoryKey: c.memoryKey, client: client, bytes: n, version: c.m.version}
	for _, cred := range creds {
		all.creds = append(all.creds, cred.Clone())
	}
	all.used = c.m.used.PushBack(all)
	c.m.caches[c.memoryKey] = all
	c.m.bytes += n
	return nil
}

// Update also drops what has expired, and of two equal entries keeps the new. What is then too much
// for one cache goes as in a file.
func (c *memoryCache) Update(_ context.Context, drop func(*krb5.Credential) bool, add ...*krb5.Credential) error {
	room := 0
	for _, cred := range add {
		room += weight(cred)
	}
	if err := c.m.take(c.payer, room); err != nil { // before the lock: others may have to make room
		return &Error{Name: c.Name(), Code: ErrQuota, Err: err}
	}
	defer func() { c.m.give(c.payer, room) }() // what is not used of it
	defer c.m.mu.Unlock()
	all, err := c.lock()
	if err != nil {
		return err
	}
	now := c.m.now()
	if now-c.m.purged >= purgeEvery {
		c.m.purge(all)
	}
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
	more := cost(stay) - all.bytes
	c.m.bytes += more
	all.bytes += more
	room -= more
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
	m *Memory
	memoryKey
}

func (c memoryCollection) primary(context.Context) (Cache, error) {
	return c.m.OpenFor(c.payer, c.name), nil
}

// all returns the named cache only: the others belong to whoever made them.
func (c memoryCollection) all(context.Context) ([]Cache, error) {
	return []Cache{c.m.OpenFor(c.payer, c.name)}, nil
}
