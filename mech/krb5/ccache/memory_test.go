package ccache

import (
	"bytes"
	"fmt"
	"sync"
	"testing"
	"time"

	"gssproxyd/mech/krb5"
)

// purses is so many bytes for all who pay: the oldest caches of whoever wants more make room.
type purses struct {
	m    *Memory
	mu   sync.Mutex
	left int
}

func (p *purses) Take(uid uint32, n int) error {
	for {
		p.mu.Lock()
		if n <= p.left {
			p.left -= n
			p.mu.Unlock()
			return nil
		}
		p.mu.Unlock()
		if !p.m.DropOldest(func(payer uint32) bool { return payer == uid }) {
			return fmt.Errorf("no %d bytes for uid %d", n, uid)
		}
	}
}

func (p *purses) Give(_ uint32, n int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.left += n
}

// At a limit what was not used for the longest time makes room; only what cannot be paid for is
// refused.
func TestMemoryLimits(t *testing.T) {
	ctx := t.Context()
	now := time.Unix(1_900_000_000, 0)
	one := testCred("alice", "host/lab", 18, 1_900_000_100)
	m := &Memory{MaxCaches: 3, Now: func() time.Time { return now }}
	all := 3*cost(nil) + 4*weight(one)
	p := &purses{m: m, left: all}
	m.Payers = p
	there := func(want string) {
		t.Helper()
		var names string
		for e := m.used.Front(); e != nil; e = e.Next() {
			names += e.Value.(*contents).name
		}
		if n, bytes := m.Len(); names != want || n != len(want) || bytes != all-p.left {
			t.Errorf("caches %s, %d bytes, %d charged; expected %s", names, bytes, all-p.left, want)
		}
	}
	keep := func(name string, creds ...*krb5.Credential) Cache {
		t.Helper()
		c := m.Open(name)
		must(t, c.Initialize(ctx, principal("alice"), creds...))
		return c
	}
	a, b := keep("a", one), keep("b", one)
	keep("c", one)
	key := m.caches[b.(*memoryCache).memoryKey].creds[0].Key
	_, err := a.Principal(ctx)
	must(t, err)
	keep("d")
	there("cad")
	if !bytes.Equal(key, make([]byte, len(key))) {
		t.Error("the key of a cache that made room is still in memory")
	}
	_, err = b.Principal(ctx)
	wantErr(t, err, ErrNoCache, "MEMORY:b")
	wantErr(t, Store(ctx, b, one), ErrNoCache, "MEMORY:b")
	keep("c", one) // in its own place
	there("adc")

	// Every kind of use counts.
	if _, ok := StampOf(a); !ok {
		t.Error("no stamp")
	}
	there("dca")
	_, err = Find(ctx, m.Open("c"), Query{})
	must(t, err)
	there("dac")
	must(t, Store(ctx, m.Open("d"), one))
	there("acd")
	_, err = a.Credentials(ctx)
	must(t, err)
	there("cda")

	// Bytes count as well.
	must(t, Store(ctx, a, testCred("alice", "nfs/lab", 18, 1_900_000_200)))
	there("cda")
	must(t, Store(ctx, a, testCred("alice", "ftp/lab", 18, 1_900_000_200)))
	there("da")
	must(t, a.Update(ctx, func(c *krb5.Credential) bool { return c.Server.Components[0] == "nfs" }))
	there("da")
	must(t, Store(ctx, a, testCred("alice", "ftp/lab", 18, 1_900_000_200))) // the same again
	there("da")
	has(t, a, "alice", one, testCred("alice", "ftp/lab", 18, 1_900_000_200))

	// Nobody's make room for another payer, who has caches of his own also under the same name.
	five := []*krb5.Credential{one, one, one, one, one}
	wantErr(t, m.OpenFor(1000, "a").Initialize(ctx, principal("bob"), five...), ErrQuota, "for uid")
	there("da")
	must(t, m.OpenFor(1000, "a").Initialize(ctx, principal("bob")))
	there("daa")
	has(t, a, "alice", one, testCred("alice", "ftp/lab", 18, 1_900_000_200))
	wantErr(t, a.Initialize(ctx, principal("alice"), five...), ErrQuota, "for uid")
	there("a")
	m.Clear()
	there("")

	m.Close()
	wantErr(t, a.Initialize(ctx, principal("alice"), one), ErrNoCache, "no more caches")
	there("")
}

// Caches whose tickets have expired go with the next thing written, once in a while; one with a
// ticket left stays, and so does one that is being written.
func TestMemoryPurge(t *testing.T) {
	ctx := t.Context()
	now := time.Unix(1_900_000_000, 0)
	m := &Memory{Now: func() time.Time { return now }}
	short, longer := testCred("alice", "host/lab", 18, 1_900_000_100), testCred("alice", "nfs/lab", 18, 1_900_002_000)
	a, b, c := m.Open("a"), m.Open("b"), m.Open("c")
	must(t, a.Initialize(ctx, principal("alice"), short, longer))
	must(t, b.Initialize(ctx, principal("alice"), short))
	must(t, SetConfig(ctx, b, "k", nil, nil))
	must(t, c.Initialize(ctx, principal("alice"), short))
	key := m.caches[b.(*memoryCache).memoryKey].creds[0].Key
	now = now.Add(10 * time.Minute)
	must(t, Store(ctx, c, longer))
	has(t, c, "alice", longer)
	_, err := b.Principal(ctx)
	wantErr(t, err, ErrNoCache, "MEMORY:b")
	if !bytes.Equal(key, make([]byte, len(key))) {
		t.Error("the key of an expired ticket is still in memory")
	}
	must(t, SetConfig(ctx, a, RefreshTime, nil, []byte("1"))) // expired tickets go with any change
	creds, err := a.Credentials(ctx)
	must(t, err)
	if len(creds) != 2 {
		t.Errorf("%v, expected nfs and the setting", creds)
	}
	now = now.Add(time.Hour)
	must(t, m.Open("new").Initialize(ctx, principal("alice")))
	if n, bytes := m.Len(); n != 1 || bytes != cost(nil) {
		t.Errorf("%d caches, %d bytes, expected the new one", n, bytes)
	}
}

// What the cache drops it overwrites; what it has given out it does not touch.
func TestMemoryZeroes(t *testing.T) {
	m := new(Memory)
	c := m.Open("x")
	given := testCred("alice", "host/lab", 18, never)
	must(t, c.Initialize(t.Context(), principal("alice"), given))
	inside := m.caches[c.(*memoryCache).memoryKey].creds[0]
	out, err := Find(t.Context(), c, Query{})
	must(t, err)
	must(t, c.Destroy(t.Context()))
	if !bytes.Equal(inside.Key, make([]byte, 32)) {
		t.Error("the key is still in memory")
	}
	if bytes.Equal(out.Key, inside.Key) || !bytes.Equal(out.Key, given.Key) {
		t.Error("a key given out was overwritten")
	}
}

func TestMemoryConcurrent(t *testing.T) {
	ctx := t.Context()
	m := &Memory{MaxCaches: 4}
	var wg sync.WaitGroup
	for g := range 8 {
		wg.Go(func() {
			c := m.Open(fmt.Sprint(g % 4))
			for i := range 200 {
				c.Initialize(ctx, principal("alice"), testCred("alice", "host/lab", 18, never))
				Store(ctx, c, testCred("alice", fmt.Sprint("svc/", i%5), 18, never))
				Find(ctx, c, Query{Server: principal("svc/1")})
				if i%7 == 0 {
					c.Destroy(ctx)
				}
			}
			c.Destroy(ctx)
		})
	}
	wg.Wait()
	for g := range 4 {
		m.Open(fmt.Sprint(g)).Destroy(ctx)
	}
	if n, bytes := m.Len(); n != 0 || bytes != 0 {
		t.Errorf("%d caches, %d bytes left", n, bytes)
	}
}
