package ccache

import (
	"bytes"
	"fmt"
	"sync"
	"testing"
	"time"

	"gssproxyd/mech/krb5"
)

// At a limit what was not used for the longest time makes room; only what is too big to be kept alone is refused.
func TestMemoryLimits(t *testing.T) {
	ctx := t.Context()
	now := time.Unix(1_900_000_000, 0)
	one := testCred("alice", "host/lab", 18, 1_900_000_100)
	m := &Memory{MaxCaches: 3, MaxBytes: 4 * size(one), Now: func() time.Time { return now }}
	there := func(want string) {
		t.Helper()
		var names string
		for e := m.used.Front(); e != nil; e = e.Next() {
			names += e.Value.(*contents).name
		}
		if n, bytes := m.Len(); names != want || n != len(want) || bytes > m.MaxBytes {
			t.Errorf("caches %s, %d of %d bytes, expected %s", names, n, bytes, want)
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
	key := m.caches["b"].creds[0].Key
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

	// Bytes count as well, those of the new content instead of the old.
	must(t, Store(ctx, a, testCred("alice", "nfs/lab", 18, 1_900_000_200)))
	there("cda")
	must(t, Store(ctx, a, testCred("alice", "ftp/lab", 18, 1_900_000_200)))
	there("da")
	must(t, Store(ctx, a, one)) // the same again
	there("da")
	five := []*krb5.Credential{one, one, one, one, one}
	wantErr(t, a.Initialize(ctx, principal("alice"), five...), ErrQuota, "in one cache")
	wantErr(t, m.Open("e").Initialize(ctx, principal("alice"), five...), ErrQuota, "in one cache")
	wantErr(t, Store(ctx, a, five[:4]...), ErrQuota, "in one cache")
	there("da")
	has(t, a, "alice", testCred("alice", "nfs/lab", 18, 1_900_000_200), testCred("alice", "ftp/lab", 18, 1_900_000_200), one)
	must(t, a.Initialize(ctx, principal("alice"), five[:4]...))
	there("a")
	m.Clear()
	there("")
}

// Caches whose tickets have expired go with the next thing written, once in a while; one with a ticket left stays, and
// so does one that is being written.
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
	key := m.caches["b"].creds[0].Key
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
	must(t, m.New().Initialize(ctx, principal("alice")))
	if n, bytes := m.Len(); n != 1 || bytes != 0 {
		t.Errorf("%d caches, %d bytes, expected the new one", n, bytes)
	}
}

// What the cache drops it overwrites; what it has given out it does not touch.
func TestMemoryZeroes(t *testing.T) {
	m := new(Memory)
	c := m.Open("x")
	given := testCred("alice", "host/lab", 18, never)
	must(t, c.Initialize(t.Context(), principal("alice"), given))
	inside := m.caches["x"].creds[0]
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
