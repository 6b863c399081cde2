package rotate

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"filippo.io/age"
	"go.uber.org/goleak"

	"gssproxyd/keystore"
	"gssproxyd/keystore/bolt"
	"gssproxyd/keystore/kadm"
	"gssproxyd/keytab"
	"gssproxyd/mech/krb5"
	"gssproxyd/mech/krb5/etype"
	"gssproxyd/mech/krb5/kdc"
	"gssproxyd/mech/krb5/krb5conf"
	"gssproxyd/mech/reason"
	"gssproxyd/tests/lab"
)

// The tests in this file have MIT's krb5kdc and kadmind, and two instances of a store over one bolt
// file.

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

type identity struct{ *age.X25519Identity }

func newIdentity(t testing.TB) identity {
	i, err := age.GenerateX25519Identity()
	check(t, err)
	return identity{i}
}

func (i identity) Recipient() string { return i.X25519Identity.Recipient().String() }

func (i identity) Open(content []byte) (etype.Secret, error) {
	r, err := age.Decrypt(bytes.NewReader(content), i.X25519Identity)
	if err != nil {
		return nil, err
	}
	return io.ReadAll(r)
}

// fleet is a realm, a store with a principal's keys in it, and hosts that follow it.
type fleet struct {
	testing.TB
	*lab.Realm
	kadmind *lab.Kadmind
	stores  [2]*keystore.Store
	hosts   []*follower
	tickets []*krb5.Credential // for the service, of every key that it had
}

func newFleet(t testing.TB, ctx context.Context, wg *sync.WaitGroup) *fleet {
	r := lab.New(t)
	k, err := r.Kadmind()
	check(t, err)
	f := &fleet{TB: t, Realm: r, kadmind: k}
	check(t, r.RandKey(principal))
	check(t, r.Kadmin("modprinc", "+requires_preauth", principal))

	b, err := bolt.Open(filepath.Join(t.TempDir(), "store.bolt"))
	check(t, err)
	t.Cleanup(func() { b.Close() })
	first := keystore.Options{Identity: newIdentity(t), Name: "a", StateDir: t.TempDir()}
	check(t, os.Chmod(first.StateDir, 0o700))
	signer, err := keystore.Create(ctx, b, first, []string{newIdentity(t).Recipient()})
	check(t, err)
	first.Signers = []ed25519.PublicKey{signer}
	second := keystore.Options{Identity: newIdentity(t), Name: "b", StateDir: t.TempDir(), Signers: first.Signers}
	check(t, os.Chmod(second.StateDir, 0o700))
	for i, o := range []keystore.Options{first, second} {
		if i > 0 {
			check(t, f.stores[0].Grant(ctx, o.Name, o.Identity.Recipient(), "test"))
		}
		f.stores[i], err = keystore.Open(ctx, b, o)
		check(t, err)
		t.Cleanup(func() { f.stores[i].Close() })
	}

	path, err := r.Keytab("first.keytab", principal)
	check(t, err)
	content, err := os.ReadFile(path)
	check(t, err)
	entries, err := keytab.Parse(content)
	check(t, err)
	_, err = f.stores[0].Change(ctx, nil, principal, "test", "import", func(n *keystore.Entry) error {
		n.Policy.Hosts = []string{"web*"}
		for _, e := range entries {
			n.Keys = append(n.Keys, keystore.Key{State: keystore.Current, KVNO: e.KVNO, Enctype: e.Enctype, Secret: slices.Clone(e.Key), Since: time.Now()})
		}
		return nil
	})
	check(t, err)
	for i := range 3 {
		h := &follower{f: f, name: fmt.Sprintf("web%d", i+1), store: f.stores[i%2], ready: make(chan struct{})}
		_, err := h.store.AddHost(ctx, h.name, newIdentity(t).Recipient(), "test")
		check(t, err)
		f.hosts = append(f.hosts, h)
		wg.Go(func() { h.follow(ctx) })
		<-h.ready
	}
	return f
}

// client is one that remembers nothing of others.
func (f *fleet) client(conf string) *kdc.Client {
	c, err := krb5conf.Load([]string{conf})
	check(f, err)
	return &kdc.Client{Conf: c}
}

// engine is one of an instance, whose clients of the KDC have that krb5.conf, and whose clock is
// ahead.
func (f *fleet) engine(i int, conf string, ahead time.Duration) *Engine {
	c := f.client(conf)
	realm := &Realm{
		KDC:    &kadm.Kadmin{Client: c},
		Prober: func(p krb5.Principal) Prober { return &kadm.Prober{Client: c, Principal: p} },
		Skew:   5 * time.Minute,
	}
	return New(Options{
		Store: f.stores[i], Realm: func(string) (*Realm, error) { return realm, nil },
		Now: func() time.Time { return time.Now().Add(ahead) },
	})
}

// sawLongAgo has an engine have seen minutes ago how the rotation is: what was sent has arrived, or
// never will.
func (f *fleet) sawLongAgo(e *Engine) {
	f.Helper()
	n, err := e.o.Store.Entry(context.Background(), principal)
	check(f, err)
	defer n.Zero()
	if n.Rotation != nil {
		long := time.Now().Add(-2 * time.Minute)
		e.seen[principal] = sighting{begun: n.Rotation.Begun, seenBegun: long, sent: n.Rotation.Since, seenSent: long, times: 1}
	}
}

// kvno is what the KDC has.
func (f *fleet) kvno() uint32 {
	f.Helper()
	n, err := f.stores[0].Entry(f.Context(), principal)
	check(f, err)
	defer n.Zero()
	rec, err := (&kadm.Kadmin{Client: f.client(f.kadmind.Conf)}).Record(f.Context(), kadm.Self{Principal: parsed(), Keys: keys(n, keystore.Current)})
	check(f, err)
	if k := newest(n, keystore.Current); n.Rotation != nil || k.KVNO != rec.KVNO {
		f.Errorf("the entry has %s, rotation %v; the KDC kvno %d", describe(n.Keys), n.Rotation, rec.KVNO)
	}
	return rec.KVNO
}

// ticket is one of alice for the service.
func (f *fleet) ticket(ctx context.Context, c *kdc.Client) (*krb5.Credential, error) {
	alice, err := krb5.ParsePrincipal("alice", lab.Name)
	check(f, err)
	server := parsed()
	server.Type = krb5.NTSrvInst
	return c.Login(ctx, alice, kdc.Password(etype.Secret("alice")), kdc.LoginOptions{Server: server})
}

// follower is a host that follows the store, and has its keys in force and says so at once.
type follower struct {
	f     *fleet
	name  string
	store *keystore.Store
	ready chan struct{} // is closed when it has keys
	held  atomic.Pointer[snapshot]
}

// snapshot is what a host has in force at a time.
type snapshot struct{ accept, current, pending *keytab.Ring }

func (h *follower) follow(ctx context.Context) {
	for n, err := range h.store.Watch(ctx) {
		if err != nil {
			h.f.Error(err)
			return
		}
		if n == nil {
			continue
		}
		ring := func(states ...keystore.KeyState) *keytab.Ring {
			var entries []keytab.Entry
			for _, k := range n.Keys {
				if slices.Contains(states, k.State) {
					entries = append(entries, keytab.Entry{Principal: principal, KVNO: k.KVNO, Enctype: k.Enctype, Key: k.Secret})
				}
			}
			return keytab.Compile("the store", entries)
		}
		h.held.Store(&snapshot{ring(keystore.Pending, keystore.Current, keystore.Previous), ring(keystore.Current), ring(keystore.Pending)})
		h.store.Seen(h.name)
		err = h.store.Acknowledge(ctx, h.name, map[string]keystore.Mark{principal: n.Mark})
		if n.Zero(); err != nil && ctx.Err() == nil {
			h.f.Error(err)
		}
		select {
		case <-h.ready:
		default:
			close(h.ready)
		}
	}
}

// accept has the host accept a context of who has the ticket.
func (h *follower) accept(ticket *krb5.Credential) error {
	var out krb5.Initiated
	defer out.Reset()
	if err := (&krb5.Initiator{Ticket: ticket}).Init(&out); err != nil {
		return err
	}
	var in krb5.Accepted
	defer in.Reset()
	if err := (&krb5.Acceptor{Keys: h.held.Load().accept}).Accept(&in, out.Token, nil); err != nil {
		return fmt.Errorf("%s: %w", h.name, err)
	}
	return nil
}

// initiate has the host log in as the service: with the current key, and when the KDC has refused
// that with a pending one, or with one that it has got meanwhile.
func (h *follower) initiate(ctx context.Context, c *kdc.Client) error {
	for {
		held := h.held.Load()
		cred, err := c.Login(ctx, parsed(), kdc.Keytab(held.current), kdc.LoginOptions{})
		if errors.Is(err, reason.PreauthFailed) && held.pending.Len() > 0 {
			cred, err = c.Login(ctx, parsed(), kdc.Keytab(held.pending), kdc.LoginOptions{})
		}
		switch {
		case err == nil:
			cred.Destroy()
			return nil
		case !errors.Is(err, reason.PreauthFailed) || h.held.Load() == held:
			return fmt.Errorf("%s as initiator: %w", h.name, err)
		}
	}
}

// opens fails the test unless all hosts accept with a new ticket, and with all there were.
func (f *fleet) opens(when string) {
	f.Helper()
	t, err := f.ticket(f.Context(), f.client(f.Conf))
	check(f, err)
	f.tickets = append(f.tickets, t)
	for _, h := range f.hosts {
		for _, t := range f.tickets {
			if err := h.accept(t); err != nil {
				f.Errorf("%s: %v", when, err)
			}
		}
	}
}

// Killed at each step, in either instance, and finished by the other: MIT's KDC has one version of
// the key more, and every ticket from before, during and after opens.
func TestKilledMIT(t *testing.T) {
	lab.Require(t)
	all := points(t)
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	f := newFleet(t, ctx, &wg)
	want := f.kvno()
	for i, at := range all {
		if at == "before purge" {
			break // those after it are below
		}
		f.opens("before " + at)
		a := f.engine(i%2, f.kadmind.Conf, 0)
		a.step = func(name string) error {
			if name == at {
				return errKilled
			}
			return nil
		}
		if err := a.Rotate(ctx, principal, "test", false); !errors.Is(err, errKilled) {
			t.Fatalf("killed %s: %v", at, err)
		}
		f.opens("killed " + at)
		b := f.engine(1-i%2, f.kadmind.Conf, 0)
		f.sawLongAgo(b)
		if at != "after commit" {
			check(t, b.Rotate(ctx, principal, "test", false))
		}
		if want++; f.kvno() != want {
			t.Fatalf("killed %s: kvno is %d, want %d", at, f.kvno(), want)
		}
		f.opens("after one that was killed " + at)
	}

	for _, at := range []string{"before purge", "after purge", "before forget", "after forget"} {
		late := 30 * 24 * time.Hour
		a := f.engine(0, f.kadmind.Conf, late)
		a.step = func(name string) error {
			if name == at {
				return errKilled
			}
			return nil
		}
		if _, err := a.attend(ctx, principal); !errors.Is(err, errKilled) {
			t.Fatalf("killed %s: %v", at, err)
		}
		_, err := f.engine(1, f.kadmind.Conf, late).attend(ctx, principal)
		check(t, err)
		n, err := f.stores[1].Entry(ctx, principal)
		check(t, err)
		rec, err := (&kadm.Kadmin{Client: f.client(f.kadmind.Conf)}).Record(ctx, kadm.Self{Principal: parsed(), Keys: keys(n, keystore.Current)})
		check(t, err)
		if newest(n, keystore.Previous) != nil || rec.Keys[len(rec.Keys)-1].KVNO != want {
			t.Errorf("killed %s: kept are %s, at the KDC %v", at, describe(n.Keys), rec.Keys)
		}
		check(t, f.engine(0, f.kadmind.Conf, 0).Rotate(ctx, principal, "test", false)) // for the next
		if want++; f.kvno() != want {
			t.Fatalf("killed %s: kvno is %d, want %d", at, f.kvno(), want)
		}
	}

	// The KDC's answer is lost: it is asked what it has, not again.
	lost, end, err := lab.Swallow(f.kadmind.Kadmin, 2)
	check(t, err)
	defer end()
	conf, err := f.kadmind.Via(lost, f.kadmind.Kpasswd)
	check(t, err)
	e := f.engine(0, conf, 0)
	var asked atomic.Int32
	e.step = func(name string) error {
		if name == "before change" {
			asked.Add(1)
		}
		return nil
	}
	realm, _ := e.o.Realm(lab.Name)
	realm.Enctypes = []etype.ID{etype.AES256SHA1}
	realm.KDC = unrecorded{realm.KDC, want}
	check(t, e.Rotate(ctx, principal, "test", false))
	if want++; asked.Load() != 1 {
		t.Errorf("the KDC was asked %d times", asked.Load())
	}
	if _, err = f.kadmind.Via(f.kadmind.Kadmin, f.kadmind.Kpasswd); err != nil || f.kvno() != want {
		t.Errorf("kvno is %d, want %d; %v", f.kvno(), want, err)
	}
	f.tickets = nil // of keys that were purged
	f.opens("after a lost answer")
}

// unrecorded is a KDC that tells nothing but the version and the salt: the answer that is lost is not to be that
// of Record.
type unrecorded struct {
	kadm.KDC
	kvno uint32
}

func (u unrecorded) Record(context.Context, kadm.Self) (kadm.Record, error) {
	return kadm.Record{KVNO: u.kvno, Salt: kdc.Salt(parsed())}, nil
}

// Under load nobody notices: no accept fails, with new tickets or with old ones, no login of a host,
// and no renewal of an old ticket.
func TestLoad(t *testing.T)        { testLoad(t, 3) }
func TestNightlyLoad(t *testing.T) { lab.Nightly(t); testLoad(t, 30) }

func testLoad(t *testing.T, rotations int) {
	lab.Require(t)
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	f := newFleet(t, ctx, &wg)
	renewable := t.TempDir() + "/krb5.conf"
	b, err := os.ReadFile(f.Conf)
	check(t, err)
	check(t, os.WriteFile(renewable, bytes.Replace(b, []byte("[libdefaults]\n"), []byte("[libdefaults]\n  renew_lifetime = 1d\n"), 1), 0o600))
	before := f.kvno()

	var mu sync.Mutex
	var old []*krb5.Credential
	counts := map[string]int{}
	do := func(what string, f func() error) {
		wg.Go(func() {
			for ctx.Err() == nil {
				err := f()
				if ctx.Err() != nil {
					return
				}
				if err != nil {
					t.Errorf("%s: %v", what, err)
				}
				mu.Lock()
				counts[what]++
				mu.Unlock()
			}
		})
	}
	someHost := func() *follower { return f.hosts[rand.IntN(len(f.hosts))] }
	someOld := func() *krb5.Credential {
		mu.Lock()
		defer mu.Unlock()
		return old[rand.IntN(len(old))]
	}
	first, err := f.ticket(ctx, f.client(renewable))
	check(t, err)
	old = append(old, first)
	fresh, hosts, renewals := f.client(renewable), f.client(f.Conf), f.client(f.Conf)
	do("accept of a new ticket", func() error {
		t, err := f.ticket(ctx, fresh)
		if err != nil {
			return err
		}
		mu.Lock()
		old = append(old, t)
		mu.Unlock()
		return someHost().accept(t)
	})
	do("accept of an old ticket", func() error { return someHost().accept(someOld()) })
	do("login of a host", func() error { return someHost().initiate(ctx, hosts) })
	do("renewal", func() error {
		t, err := renewals.Renew(ctx, someOld())
		if err == nil {
			err = someHost().accept(t)
		}
		return err
	})
	for i := range rotations {
		e := f.engine(i%2, f.kadmind.Conf, 0)
		check(t, e.Rotate(ctx, principal, "test", false))
	}
	lab.Await(t, "calls of each kind after the last rotation", func() bool {
		mu.Lock()
		defer mu.Unlock()
		if len(counts) < 4 {
			return false
		}
		for _, n := range counts {
			if n < 20 {
				return false
			}
		}
		return true
	})
	cancel()
	wg.Wait()
	t.Logf("%d rotations: %v", rotations, counts)
	n, err := f.stores[0].Entry(context.WithoutCancel(ctx), principal)
	check(t, err)
	if k := newest(n, keystore.Current); k.KVNO != before+uint32(rotations) || n.Rotation != nil {
		t.Errorf("kvno is %d after %d and %d rotations", k.KVNO, before, rotations)
	}
}
