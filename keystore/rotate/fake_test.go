package rotate

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"gssproxyd/audit"
	"gssproxyd/keystore"
	"gssproxyd/keystore/kadm"
	"gssproxyd/mech"
	"gssproxyd/mech/krb5"
	"gssproxyd/mech/krb5/etype"
	"gssproxyd/mech/krb5/kdc"
	"gssproxyd/mech/reason"
)

const principal = "HTTP/www.example.test@EXAMPLE.TEST"

var errKilled = errors.New("this instance was killed")

// fakeStore is the state of a store, in memory. What it gives away and takes are copies.
type fakeStore struct {
	mu      sync.Mutex
	entries map[string]*keystore.Entry
	locks   map[string]*fakeLock
	hosts   map[string]*keystore.Host
	bad     map[string]bool                     // hosts whose records are refused
	marks   map[string]map[string]keystore.Mark // by principal and host
	uses    []keystore.Use                      // of the one principal
	changed chan struct{}                       // is closed with each change
}

func newFakeStore() *fakeStore {
	return &fakeStore{
		entries: make(map[string]*keystore.Entry), locks: make(map[string]*fakeLock), hosts: make(map[string]*keystore.Host), bad: make(map[string]bool),
		marks: make(map[string]map[string]keystore.Mark), changed: make(chan struct{}),
	}
}

func (s *fakeStore) notify() {
	close(s.changed)
	s.changed = make(chan struct{})
}

func cloneEntry(n *keystore.Entry) *keystore.Entry {
	c := *n
	c.Keys = slices.Clone(n.Keys)
	for i := range c.Keys {
		c.Keys[i].Secret = slices.Clone(n.Keys[i].Secret)
	}
	c.Policy.Hosts, c.History = slices.Clone(n.Policy.Hosts), slices.Clone(n.History)
	if n.Rotation != nil {
		r := *n.Rotation
		r.Password = slices.Clone(r.Password)
		c.Rotation = &r
	}
	return &c
}

// get returns a copy of an entry; without calling it a failure that there is none.
func (s *fakeStore) get(principal string) *keystore.Entry {
	s.mu.Lock()
	defer s.mu.Unlock()
	return cloneEntry(s.entries[principal])
}

// edit changes an entry as an administrator does.
func (s *fakeStore) edit(principal string, f func(*keystore.Entry)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f(s.entries[principal])
	s.entries[principal].Revision++
	s.notify()
}

// instance is one instance of the store: what an engine has.
type instance struct {
	*fakeStore
	dead bool // under mu
}

// kill ends an instance: nothing it does from now on has an effect, and its locks end.
func (s *instance) kill() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.dead = true
	s.expire()
}

// lose has the instance lose its locks, as when it is not heard of. It does not know: it is stopped.
func (s *instance) lose() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for name, l := range s.locks {
		if l.owner == s {
			delete(s.locks, name)
		}
	}
	s.notify()
}

func (s *instance) expire() {
	for name, l := range s.locks {
		if l.owner == s {
			close(l.lost)
			delete(s.locks, name)
		}
	}
	s.notify()
}

func (s *instance) alive(ctx context.Context) error {
	if s.dead {
		return errKilled
	}
	return ctx.Err()
}

func (s *instance) Entry(ctx context.Context, principal string) (*keystore.Entry, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.alive(ctx); err != nil {
		return nil, err
	}
	n := s.entries[principal]
	if n == nil {
		return nil, keystore.ErrNoEntry
	}
	return cloneEntry(n), nil
}

func (s *instance) Change(ctx context.Context, lock keystore.Lock, principal, by, what string, f func(*keystore.Entry) error) (*keystore.Entry, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.alive(ctx); err != nil {
		return nil, err
	}
	if lock != nil && s.locks[principal] != lock {
		return nil, keystore.ErrLockLost
	}
	n := cloneEntry(s.entries[principal])
	if err := f(n); err != nil {
		return nil, err
	}
	n.Revision++
	n.History = append(n.History, keystore.Change{Time: time.Now(), Mark: n.Mark, By: by, What: what})
	s.entries[principal] = n
	s.notify()
	return cloneEntry(n), nil
}

type fakeLock struct {
	owner *instance
	name  string
	lost  chan struct{}
}

func (l *fakeLock) Lost() <-chan struct{} { return l.lost }

func (l *fakeLock) Unlock(context.Context) error {
	l.owner.mu.Lock()
	defer l.owner.mu.Unlock()
	if l.owner.locks[l.name] != l {
		return keystore.ErrLockLost
	}
	delete(l.owner.locks, l.name)
	l.owner.notify()
	return nil
}

func (s *instance) Lock(ctx context.Context, principal string) (keystore.Lock, error) {
	for {
		s.mu.Lock()
		if err := s.alive(ctx); err != nil {
			s.mu.Unlock()
			return nil, err
		}
		if s.locks[principal] == nil {
			l := &fakeLock{s, principal, make(chan struct{})}
			s.locks[principal] = l
			s.mu.Unlock()
			return l, nil
		}
		changed := s.changed
		s.mu.Unlock()
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

func (s *instance) Watch(ctx context.Context) iter.Seq2[*keystore.Entry, error] {
	return func(yield func(*keystore.Entry, error) bool) {
		seen := map[string]keystore.Mark{}
		for {
			s.mu.Lock()
			var list []*keystore.Entry
			for p, n := range s.entries {
				if seen[p] != n.Mark {
					seen[p] = n.Mark
					list = append(list, cloneEntry(n))
				}
			}
			changed := s.changed
			s.mu.Unlock()
			for _, n := range list {
				if !yield(n, nil) {
					return
				}
			}
			select {
			case <-changed:
			case <-ctx.Done():
				return
			}
		}
	}
}

func (s *instance) Known(name string) (*keystore.Host, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	h := s.hosts[name]
	switch {
	case h == nil:
		return nil, keystore.ErrNoHost
	case s.bad[name]:
		return nil, &keystore.Refusal{Reason: reason.StoreRecordBad, Text: "it was edited"}
	}
	known := *h
	return &known, nil
}

// InTouch is since the first moment of the test.
func (s *instance) InTouch() time.Time { return time.Unix(1, 0) }

func (s *instance) Acknowledged(ctx context.Context, principal string) (map[string]keystore.Mark, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return maps.Clone(s.marks[principal]), s.alive(ctx)
}

func (s *instance) Uses(ctx context.Context, principal string) ([]keystore.Use, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.uses), s.alive(ctx)
}

// fakeHost is a host of the store that accepts.
type fakeHost struct {
	s    *fakeStore
	name string
	mu   sync.Mutex
	keys []keystore.Key
}

func (s *fakeStore) host(name string) *fakeHost {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.hosts[name] = &keystore.Host{Name: name}
	return &fakeHost{s: s, name: name}
}

// beat is heard of.
func (h *fakeHost) beat() {
	h.s.mu.Lock()
	defer h.s.mu.Unlock()
	h.s.hosts[h.name].Seen = time.Now()
}

// load is heard of, has the entry in force and says so.
func (h *fakeHost) load() {
	h.beat()
	n := h.s.get(principal)
	h.mu.Lock()
	h.keys = n.Keys
	h.mu.Unlock()
	h.s.mu.Lock()
	defer h.s.mu.Unlock()
	if h.s.marks[principal] == nil {
		h.s.marks[principal] = make(map[string]keystore.Mark)
	}
	h.s.marks[principal][h.name] = n.Mark
}

// open opens a ticket as a host does: with the key of its version, or if that is above all that it
// knows with a pending one.
func (h *fakeHost) open(t fakeTicket) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	highest := uint32(0)
	for _, k := range h.keys {
		highest = max(highest, k.KVNO)
		if k.KVNO == t.kvno && k.Enctype == t.enctype && bytes.Equal(k.Secret, t.key) {
			return nil
		}
	}
	for _, k := range h.keys {
		if t.kvno > highest && k.State == keystore.Pending && k.Enctype == t.enctype && bytes.Equal(k.Secret, t.key) {
			return nil
		}
	}
	return fmt.Errorf("%s has %s, and cannot open a ticket of kvno %d", h.name, describe(h.keys), t.kvno)
}

func describe(keys []keystore.Key) string {
	var list []string
	for _, k := range keys {
		list = append(list, fmt.Sprintf("%s %d %v", k.State, k.KVNO, k.Enctype))
	}
	return strings.Join(list, ", ")
}

// fakeKDC is a KDC with keepold, and with replicas that learn of a change when lag is over. It is
// asked of at random.
type fakeKDC struct {
	mu       sync.Mutex
	rand     *rand.Rand
	lag      time.Duration
	far      bool   // of those that are asked all are replicas
	kpasswd  bool   // tells nothing and purges nothing
	salt     string // of passwords to come
	versions []fakeVersion
	record   kadm.Record // what it says besides
	faults   []fault     // of the changes to come, one each
	changes  int         // that were executed
	refused  int         // logins
	asked    int         // changes
	logins   int
	locks    int           // after so many refused logins in a row nobody is let in; 0: never
	failures int           // in a row
	ahead    time.Duration // of the instances' clocks
}

type fakeVersion struct {
	salt  string
	kvno  uint32
	keys  []*etype.Key
	since time.Time
}

// A fault is what becomes of a change.
type fault struct {
	err     error         // it is not executed, and this is said
	lost    bool          // the answer is
	never   bool          // the request is as well
	delayed time.Duration // until it is executed, after the answer is given up
}

type fakeTicket struct {
	kvno    uint32
	enctype etype.ID
	key     []byte
	good    time.Time // until then
}

func newFakeKDC(password string, kvno uint32, ids ...etype.ID) *fakeKDC {
	k := &fakeKDC{rand: rand.New(rand.NewPCG(1, 2)), salt: kdc.Salt(parsed())}
	k.record.MaxLife, k.record.MaxRenewable = 10*time.Minute, 30*time.Minute
	k.put(etype.Secret(password), ids, kvno)
	k.versions[0].since = time.Time{}
	return k
}

func parsed() krb5.Principal {
	p, err := krb5.ParsePrincipal(principal, "")
	if err != nil {
		panic(err)
	}
	return p
}

func (k *fakeKDC) put(password etype.Secret, ids []etype.ID, kvno uint32) {
	keys, err := kadm.Keys(password, k.salt, nil, ids)
	if err != nil {
		panic(err)
	}
	k.versions = append(k.versions, fakeVersion{k.salt, kvno, keys, time.Now()})
}

// newest is the version that the KDC which is asked makes tickets with.
func (k *fakeKDC) newest() *fakeVersion {
	v := &k.versions[len(k.versions)-1]
	if k.lag > 0 && (k.far || k.rand.IntN(2) == 0) && len(k.versions) > 1 && time.Since(v.since) < k.lag {
		return &k.versions[len(k.versions)-2]
	}
	return v
}

func (k *fakeKDC) ticket() fakeTicket {
	k.mu.Lock()
	defer k.mu.Unlock()
	v := k.newest()
	key := v.keys[k.rand.IntN(len(v.keys))]
	return fakeTicket{v.kvno, key.Enctype(), slices.Clone(key.Secret()), time.Now().Add(k.record.MaxLife + k.record.MaxRenewable)}
}

// replicas gives the KDC some that learn of a change after lag.
func (w *world) replicas(lag time.Duration) { w.kdc.lag, w.realm.Lag = lag, lag }

// kvno is the version of the master's newest key.
func (k *fakeKDC) kvno() uint32 {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.versions[len(k.versions)-1].kvno
}

// login is refused with keys that are not the newest ones of the KDC that is asked.
func (k *fakeKDC) login(ctx context.Context, p krb5.Principal, keys kdc.KeySource) error {
	if err := ctx.Err(); err != nil {
		return mech.Errorf(mech.Failure, 0, reason.KDCUnreachable, "%v", err)
	}
	k.logins++
	if k.locks > 0 && k.failures >= k.locks {
		return mech.Errorf(mech.Failure, 0, reason.ClientRevoked, "locked out")
	}
	v := k.newest()
	for _, want := range v.keys {
		if got := keys.Key(p, kdc.KeyHint{Enctype: want.Enctype(), Salt: &v.salt}); got != nil && bytes.Equal(got.Secret(), want.Secret()) {
			k.failures = 0
			return nil
		}
	}
	k.refused++
	k.failures++
	return mech.Errorf(mech.Failure, 0, reason.PreauthFailed, "preauthentication failed")
}

func (k *fakeKDC) Change(ctx context.Context, self kadm.Self, password etype.Secret, ids []etype.ID) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.asked++
	if err := k.login(ctx, self.Principal, self.Keys); err != nil {
		return err
	}
	var f fault
	if len(k.faults) > 0 {
		f, k.faults = k.faults[0], k.faults[1:]
	}
	if f.err != nil {
		return f.err
	}
	unknown := mech.Errorf(mech.Failure, 0, reason.KeyChangeUnknown, "no answer")
	password = slices.Clone(password)
	execute := func() {
		k.changes++
		k.put(password, ids, k.versions[len(k.versions)-1].kvno+1)
	}
	switch {
	case f.never:
		return unknown
	case f.delayed > 0:
		time.AfterFunc(f.delayed, func() {
			k.mu.Lock()
			defer k.mu.Unlock()
			execute()
		})
		return unknown
	}
	execute()
	if f.lost {
		return unknown
	}
	return nil
}

func (k *fakeKDC) Purge(ctx context.Context, self kadm.Self, from uint32) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.kpasswd {
		return fmt.Errorf("kpasswd: %w", errors.ErrUnsupported)
	}
	if err := k.login(ctx, self.Principal, self.Keys); err != nil {
		return err
	}
	k.versions = slices.DeleteFunc(k.versions, func(v fakeVersion) bool { return v.kvno < from })
	return nil
}

func (k *fakeKDC) Record(ctx context.Context, self kadm.Self) (rec kadm.Record, err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if err := k.login(ctx, self.Principal, self.Keys); err != nil {
		return rec, err
	}
	last := &k.versions[len(k.versions)-1]
	rec.KVNO, rec.Salt = last.kvno, last.salt
	if rec.Ticket = k.record.Ticket; k.kpasswd {
		return rec, nil
	}
	rec.MaxLife, rec.MaxRenewable, rec.LockedDown = k.record.MaxLife, k.record.MaxRenewable, k.record.LockedDown
	for _, v := range slices.Backward(k.versions) {
		for _, key := range v.keys {
			rec.Keys = append(rec.Keys, kadm.KeyVersion{KVNO: v.kvno, Enctype: key.Enctype()})
		}
	}
	return rec, nil
}

type fakeProber struct {
	k  *fakeKDC
	p  krb5.Principal
	in bool
}

func (p *fakeProber) Login(ctx context.Context, keys ...kdc.KeySource) (err error) {
	p.k.mu.Lock()
	defer p.k.mu.Unlock()
	for _, source := range keys {
		if err = p.k.login(ctx, p.p, source); err == nil {
			p.in = true
			return nil
		}
	}
	return err
}

func (p *fakeProber) Probe(ctx context.Context, candidates []*etype.Key) (int, uint32, error) {
	if !p.in {
		panic("Probe before Login")
	}
	t := p.k.ticket()
	for i, c := range candidates {
		if c.Enctype() == t.enctype && bytes.Equal(c.Secret(), t.key) {
			return i, t.kvno, nil
		}
	}
	return 0, 0, mech.Errorf(mech.Failure, 0, reason.KeyChangedElsewhere, "nobody has kvno %d", t.kvno)
}

func (p *fakeProber) Ahead() time.Duration { return p.k.ahead }

func (p *fakeProber) Close() { p.in = false }

// world is a store with one entry, a KDC that has its keys, and hosts.
type world struct {
	testing.TB
	*fakeStore
	kdc    *fakeKDC
	realm  *Realm
	hosts  []*fakeHost
	mu     sync.Mutex
	events []*audit.Event
}

// newWorld has hosts named web1 and so on that have the entry in force.
func newWorld(t testing.TB, hosts int, ids ...etype.ID) *world {
	if len(ids) == 0 {
		ids = []etype.ID{etype.RC4} // its keys take no time
	}
	w := &world{TB: t, fakeStore: newFakeStore(), kdc: newFakeKDC("first", 7, ids...)}
	w.realm = &Realm{
		KDC: w.kdc, Prober: func(p krb5.Principal) Prober { return &fakeProber{k: w.kdc, p: p} },
		MaxLife: 10 * time.Minute, MaxRenewable: 30 * time.Minute, Skew: 5 * time.Minute,
	}
	n := &keystore.Entry{Principal: principal, Mark: keystore.Mark{Epoch: 1, Revision: 1}, Policy: keystore.Policy{Hosts: []string{"web*"}}}
	for _, k := range w.kdc.versions[0].keys {
		n.Keys = append(n.Keys, keystore.Key{State: keystore.Current, KVNO: 7, Enctype: k.Enctype(), Secret: slices.Clone(k.Secret()), Since: time.Now()})
	}
	w.entries[principal] = n
	for i := range hosts {
		w.hosts = append(w.hosts, w.host(fmt.Sprintf("web%d", i+1)))
		w.hosts[i].load()
	}
	return w
}

// engine returns one more engine, of an instance of its own.
func (w *world) engine() (*Engine, *instance) {
	s := &instance{fakeStore: w.fakeStore}
	return New(Options{
		Store: s,
		Realm: func(name string) (*Realm, error) { return w.realm, nil },
		Audit: func(_ context.Context, e *audit.Event) {
			w.mu.Lock()
			defer w.mu.Unlock()
			w.events = append(w.events, e)
		},
		Log: slog.New(slog.DiscardHandler),
	}), s
}

// live has all hosts load what there is every few seconds until ctx ends.
func (w *world) live(ctx context.Context) {
	for sleep(ctx, 3*time.Second) == nil {
		for _, h := range w.hosts {
			h.load()
		}
	}
}

// opens fails the test unless all hosts open the tickets that are good still.
func (w *world) opens(tickets ...fakeTicket) {
	w.Helper()
	for _, h := range w.hosts {
		for _, t := range tickets {
			if err := h.open(t); err != nil && time.Now().Before(t.good) {
				w.Error(err)
			}
		}
	}
}
