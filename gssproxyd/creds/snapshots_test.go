package creds

import (
	"context"
	"errors"
	"strconv"
	"testing"
	"testing/synctest"
	"time"

	"gssproxyd/conf"
	"gssproxyd/limits"
	"gssproxyd/mech/krb5"
	"gssproxyd/mech/krb5/ccache"
	"gssproxyd/mech/krb5/krb5conf"
	"gssproxyd/mech/reason"
)

// What a cache held that is gone is not kept.
func TestSnapshotOfNoCache(t *testing.T) {
	p := newHolder(limits.ForProcess())
	defer p.Close()
	c := callerOf(t, &Service{Service: &conf.Service{Name: "a"}, shared: &p.shared, Krb5: new(krb5conf.Config)}, 0)
	client, err := krb5.ParsePrincipal("alice@LAB.TEST", "")
	if err != nil {
		t.Fatal(err)
	}
	cache := new(ccache.Memory).Open("x")
	tgt := &krb5.Credential{Client: client, Server: client, EndTime: uint32(c.Now.Unix() + 3600), Ticket: []byte("t")}
	if err := cache.Initialize(t.Context(), client, tgt); err != nil {
		t.Fatal(err)
	}
	if s, err := c.look(t.Context(), cache, 0); err != nil || s == nil || len(p.room.snapshots.kept) != 1 {
		t.Fatalf("%v, %v, %d snapshots; expected one", s, err, len(p.room.snapshots.kept))
	}
	if err := cache.Destroy(t.Context()); err != nil {
		t.Fatal(err)
	}
	if s, err := c.look(t.Context(), cache, 0); err != nil || s != nil || len(p.room.snapshots.kept) != 0 {
		t.Errorf("%v, %v, %d snapshots; expected none", s, err, len(p.room.snapshots.kept))
	}
}

// Who has caches read pays for the memory: while the call lasts, and for as long as what was read
// is remembered, which makes room for what the payer wants next.
func TestReadingIsPaid(t *testing.T) {
	p := newHolder(limits.ForProcess())
	defer p.Close()
	budget := p.limits.Cache
	svc := &Service{Service: &conf.Service{Name: "a"}, shared: &p.shared, Krb5: new(krb5conf.Config), memory: new(ccache.Memory)}
	const user = 1000
	asked := func(uid uint32) *Caller { return callerOf(t, svc, uid) }
	client, err := krb5.ParsePrincipal("alice@LAB.TEST", "")
	Must(t, err)
	caches := make([]ccache.Cache, 3)
	for i := range caches {
		caches[i] = svc.memory.Open(strconv.Itoa(i))
		ticket := &krb5.Credential{Client: client, Server: client, EndTime: uint32(time.Now().Unix() + 3600), Ticket: make([]byte, 100<<10)}
		Must(t, caches[i].Initialize(t.Context(), client, ticket))
	}
	for _, cache := range caches {
		c := asked(user)
		_, err := c.look(t.Context(), cache, user)
		Must(t, err)
		if c.charged < 100<<10 || budget.Held(user) < c.charged {
			t.Errorf("%d bytes read, %d charged", c.charged, budget.Held(user))
		}
		c.Done()
	}
	one := budget.Held(user) / len(caches)
	if one < 100<<10 {
		t.Fatalf("%d bytes are charged for what is remembered of each cache", one)
	}
	// Others take what there is but for the reserve; the user's share is what is remembered at its
	// cost.
	for other := uint32(100_000); other < 100_100; other++ {
		for budget.Take(other, 64<<10) == nil {
		}
	}
	Must(t, caches[0].Update(t.Context(), nil, &krb5.Credential{Client: client, Server: client, KeyType: 1, EndTime: uint32(time.Now().Unix() + 3600), Ticket: []byte("t")}))
	c := asked(user)
	_, err = c.look(t.Context(), caches[0], user)
	Must(t, err)
	c.Done()
	if p.room.snapshots.kept[snapshotKey{1000, "a MEMORY:1"}].snapshot != nil {
		t.Error("what is remembered makes no room")
	}
	p.room.snapshots.clear(func(s kept) bool { return s.payer == user })
	for budget.Take(user, 4<<10) == nil {
	}
	if _, err := asked(user).look(t.Context(), caches[1], user); err == nil || reasonOf(err) != reason.OverLimit {
		t.Errorf("beyond its share: %v", err)
	}
	root := asked(0)
	if _, err := root.look(t.Context(), caches[2], 0); err != nil {
		t.Errorf("root: %v", err)
	}
	root.Done()
}

// A cache that several calls want at once is read by one of them, and by the next one only if that
// did not do.
func TestReadOnce(t *testing.T) { synctest.Test(t, testReadOnce) }

func testReadOnce(t *testing.T) {
	all := &snapshots{budget: limits.NewBudget("bytes", 1<<20)}
	key, other := snapshotKey{1000, "a FILE:x"}, snapshotKey{1001, "a FILE:x"}
	stamp := ccache.Stamp{}
	s, fails, err := all.get(t.Context(), key, 1000, stamp)
	if s != nil || err != nil {
		t.Fatal(s, err)
	}
	for what, get := range map[string]func() (*snapshot, func(), error){
		"another user's cache": func() (*snapshot, func(), error) { return all.get(t.Context(), other, 1000, stamp) },
		"another's call":       func() (*snapshot, func(), error) { return all.get(t.Context(), key, 33, stamp) },
	} {
		if s, read, err := get(); s != nil || err != nil {
			t.Fatal(what, s, err)
		} else {
			read()
		}
	}
	reads := make(chan func())
	got := make(chan *snapshot, 2)
	for range 2 {
		go func() {
			s, read, err := all.get(t.Context(), key, 1000, stamp)
			if err != nil {
				t.Error(err)
			}
			if s == nil {
				reads <- read
			}
			got <- s
		}()
	}
	gone, leave := context.WithCancel(t.Context())
	left := make(chan error)
	go func() {
		_, _, err := all.get(gone, key, 1000, stamp)
		left <- err
	}()
	synctest.Wait()
	leave()
	if err := <-left; !errors.Is(err, context.Canceled) {
		t.Errorf("who goes away: %v", err)
	}
	select {
	case <-reads:
		t.Fatal("two read at the same time")
	default:
	}
	fails() // and leaves nothing
	read := <-reads
	want := &snapshot{stamp: stamp, expires: 1}
	all.add(key, want, 1000, 100, 0)
	read()
	if a, b := <-got, <-got; a != nil && b != nil || a != want && b != want {
		t.Errorf("of two calls one reads, and the other has that: %v, %v", a, b)
	}
}

// What is remembered, at whoever's cost, has nobody refused who wants to read a cache now; what is
// kept for those who have a reserve stays theirs.
func TestRememberedMakesRoom(t *testing.T) {
	p := newHolder(limits.ForProcess())
	defer p.Close()
	const web, user = 33, 1000
	p.limits.Reserve(web)
	svc := &Service{Service: &conf.Service{Name: "a"}, shared: &p.shared, Krb5: new(krb5conf.Config), memory: new(ccache.Memory)}
	client, err := krb5.ParsePrincipal("alice@LAB.TEST", "")
	Must(t, err)
	look := func(uid uint32, name string, n int) error {
		cache := svc.memory.Open(name)
		ticket := &krb5.Credential{Client: client, Server: client, EndTime: uint32(time.Now().Unix() + 3600), Ticket: make([]byte, n)}
		Must(t, cache.Initialize(t.Context(), client, ticket))
		c := callerOf(t, svc, uid)
		defer c.Done()
		_, err := c.look(t.Context(), cache, uid)
		return err
	}
	Must(t, look(web, "web", 100<<10))
	for i := 0; i < 1000 && p.limits.Cache.Take(user, 400<<10) == nil; i++ {
		p.limits.Cache.Give(user, 400<<10)
		Must(t, look(0, strconv.Itoa(i), 100<<10)) // on behalf of as many users
	}
	if err := look(user, "user", 400<<10); err != nil {
		t.Error(err)
	}
	if p.room.snapshots.kept[snapshotKey{33, "a MEMORY:web"}].snapshot == nil {
		t.Error("what is within a reserve is forgotten")
	}
}

// Tickets in memory are charged to the uid whose store they are in. One's own make room first; for
// a uid that has nothing those of others do, but not what is within a reserve. What cannot be paid
// for is refused.
func TestMemoryIsPaid(t *testing.T) {
	const web, user, another = 33, 1000, 1001
	p := newHolder(limits.ForProcess())
	defer p.Close()
	p.limits.Reserve(web)
	a, b := &ccache.Memory{Payers: &p.room}, &ccache.Memory{Payers: &p.room}
	services := make(map[*conf.Service]*Service)
	for name, m := range map[string]*ccache.Memory{"a": a, "b": b} {
		cs := &conf.Service{Name: name}
		services[cs] = &Service{Service: cs, shared: &p.shared, memory: m}
	}
	p.current.Store(&Generation{Services: services})
	client, err := krb5.ParsePrincipal("alice@LAB.TEST", "")
	Must(t, err)
	put := func(m *ccache.Memory, uid uint32, name string) error {
		ticket := &krb5.Credential{Client: client, Server: client, EndTime: uint32(time.Now().Unix() + 3600), Ticket: make([]byte, 200<<10)}
		return m.OpenFor(uid, name).Initialize(t.Context(), client, ticket)
	}
	there := func(m *ccache.Memory, uid uint32, name string) bool {
		_, err := m.OpenFor(uid, name).Principal(t.Context())
		return err == nil
	}
	Must(t, put(a, web, "web"))
	budget := p.limits.Cache
	one := budget.Held(web)
	if one < 200<<10 || one > budget.Part(web) {
		t.Fatalf("%d bytes are charged for 200 KiB", one)
	}
	Must(t, put(a, another, "first"))
	for n := range 200 { // 40 MB
		Must(t, put(a, user, strconv.Itoa(n)))
	}
	if caches, n := a.Len(); budget.Held(user) != n-2*one || caches != n/one || n > 16<<20 {
		t.Errorf("%d bytes are charged for %d caches of %d bytes", budget.Held(user), caches-2, n-2*one)
	}
	if !there(a, web, "web") || !there(a, another, "first") {
		t.Error("others made room for a user who has many")
	}
	before, _ := a.Len()
	Must(t, put(b, user, "b"))
	if after, _ := a.Len(); after >= before {
		t.Error("what a user has with one service makes no room for what it has with another")
	}

	// Nobody is refused who wants to read a cache now, because of tickets in memory: not who has
	// them, nor another.
	read := func(uid uint32, m *ccache.Memory, name string) error {
		for cs, s := range services {
			if s.memory == m {
				s.Krb5 = new(krb5conf.Config)
				c := callerOf(t, services[cs], uid)
				defer c.Done()
				_, err := c.look(t.Context(), m.OpenFor(uid, name), uid)
				return err
			}
		}
		return errors.New("no such service")
	}
	if err := read(user, b, "b"); err != nil {
		t.Errorf("a user's own: %v", err)
	}
	if err := read(another, a, "first"); err != nil {
		t.Errorf("another's: %v", err)
	}
	if !there(a, another, "first") || !there(a, web, "web") {
		t.Error("who has little has made room for who has much")
	}

	// All that users can have is taken: a new one still gets something, within its share.
	const crowd = 100_000
	for uid := uint32(crowd); uid < crowd+100; uid++ {
		Must(t, put(a, uid, "x"))
	}
	for uid := uint32(crowd) + 90; uid < crowd+100; uid++ {
		if err := read(uid, a, "x"); err != nil {
			t.Errorf("one of many: %v", err)
		}
	}
	if !there(a, crowd+99, "x") || there(a, crowd, "x") {
		t.Error("not the tickets used last are there")
	}
	if !there(a, web, "web") {
		t.Error("what is within a reserve made room")
	}
	for uid := uint32(2 * crowd); uid < 2*crowd+100; uid++ { // held for calls: that makes no room
		for budget.Take(uid, 64<<10) == nil {
		}
	}
	a.Clear()
	b.Clear()
	for uid := uint32(2 * crowd); uid < 2*crowd+100; uid++ {
		for budget.Take(uid, 1<<10) == nil {
		}
	}
	if err := put(a, user, "x"); err == nil || reasonOf(cacheError(err)) != reason.OverLimit {
		t.Errorf("with nothing left: %v", err)
	}
	Must(t, put(a, web, "web"))
}

// The key of a ticket that a call got for itself ends with the call, that of a snapshot with the
// snapshot.
func TestShares(t *testing.T) {
	own, seen := &krb5.Credential{Key: []byte("own")}, &krb5.Credential{Key: []byte("seen")}
	cr := &Credential{seen: &snapshot{creds: []*krb5.Credential{{}, seen}}}
	if cr.Shares(own) || !cr.Shares(seen) {
		t.Errorf("a credential shares a ticket of the call's own: %t, of its snapshot: %t", cr.Shares(own), cr.Shares(seen))
	}
}
