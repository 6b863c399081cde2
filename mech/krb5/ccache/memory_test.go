package ccache

import (
	"bytes"
	"fmt"
	"sync"
	"testing"
	"time"
)

func TestMemoryLimits(t *testing.T) {
	ctx := t.Context()
	now := time.Unix(1_900_000_000, 0)
	one := testCred("alice", "host/lab", 18, 1_900_000_100)
	m := &Memory{MaxCaches: 3, MaxBytes: 4 * size(one), Now: func() time.Time { return now }}
	var caches []Cache
	for i := range 3 {
		c := m.Open(fmt.Sprint(i))
		must(t, c.Initialize(ctx, principal("alice"), one))
		caches = append(caches, c)
	}
	wantErr(t, m.New().Initialize(ctx, principal("alice")), ErrQuota, "3 caches")
	must(t, caches[0].Initialize(ctx, principal("alice"), one)) // in its own place
	must(t, Store(ctx, caches[0], testCred("alice", "nfs/lab", 18, 1_900_000_200)))
	wantErr(t, Store(ctx, caches[0], testCred("alice", "ftp/lab", 18, 1_900_000_200)), ErrQuota, "bytes")
	has(t, caches[0], "alice", one, testCred("alice", "nfs/lab", 18, 1_900_000_200))
	// The same again takes no room.
	must(t, Store(ctx, caches[0], one))
	if n, bytes := m.Len(); n != 3 || bytes != 4*size(one)-2 { // nfs is shorter, in name and ticket
		t.Errorf("%d caches, %d bytes", n, bytes)
	}

	// When their tickets have expired, caches make room; one with a ticket left stays.
	must(t, SetConfig(ctx, caches[1], "k", nil, nil))
	now = time.Unix(1_900_000_150, 0)
	c := m.New()
	must(t, c.Initialize(ctx, principal("bob")))
	_, err := caches[1].Principal(ctx)
	wantErr(t, err, ErrNoCache, "MEMORY:1")
	_, err = caches[0].Principal(ctx)
	must(t, err)
	must(t, SetConfig(ctx, caches[0], RefreshTime, nil, []byte("1"))) // expired tickets go with any change
	creds, err := caches[0].Credentials(ctx)
	must(t, err)
	if len(creds) != 2 {
		t.Errorf("%v, expected nfs and the setting", creds)
	}
	now = time.Unix(1_900_000_300, 0)
	if n := m.Purge(); n != 1 {
		t.Errorf("%d purged, expected 1", n)
	}
	must(t, c.Destroy(ctx))
	if n, bytes := m.Len(); n != 0 || bytes != 0 {
		t.Errorf("%d caches, %d bytes left", n, bytes)
	}
}

// A cache that a purge takes while its last ticket is being replaced is not lost.
func TestMemoryPurgedWhileUpdated(t *testing.T) {
	old := testCred("alice", "host/lab", 18, 100)
	m := &Memory{MaxBytes: 2*size(old) - 1, Now: func() time.Time { return time.Unix(50, 0) }}
	c := m.Open("x")
	must(t, c.Initialize(t.Context(), principal("alice"), old))
	m.Now = func() time.Time { return time.Unix(200, 0) }
	other := m.Open("y")
	must(t, other.Initialize(t.Context(), principal("alice")))
	longer := testCred("alice", "host/lab.example.test", 18, 300)
	must(t, Store(t.Context(), c, longer))
	has(t, c, "alice", longer)
	if n, bytes := m.Len(); n != 2 || bytes != size(longer) {
		t.Errorf("%d caches, %d bytes", n, bytes)
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
