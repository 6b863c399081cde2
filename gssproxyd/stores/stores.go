// Package stores has the keys that this host gets from key stores.
//
// A helper process asks the stores: this very program, started once more, as a user that nobody else
// is. It has a socket to the daemon and no file, it speaks TLS, and what it hands on are deliveries:
// signed by the store, sealed to this host. The daemon believes nothing of it. It verifies each
// delivery, opens it with the host's identity, and keeps it, so that it can start without a store. A
// helper that is somebody else's can hand on nothing, or the same again.
//
// The daemon's side is [Stores], the other one [Help]. Files are in one order, and use those below
// only:
//
//	stores.go         what a configuration names, and who follows it
//	serve.go          the helper, as the daemon has it: started, told, heard
//	ending.go         previous keys that are in use, and taken away soon
//	judge.go          whether a delivery is one, and what is in it
//	files.go          what is kept of them
//	helper.go         the helper
//	certs.go          the files that it speaks TLS with
//	conversation.go   what the two say to each other
package stores

import (
	"cmp"
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"gssproxyd/audit"
	"gssproxyd/conf"
	"gssproxyd/keystore/delivery"
	"gssproxyd/keytab"
	"gssproxyd/limits"
	"gssproxyd/mech/krb5/etype"
	"gssproxyd/mech/reason"
)

// Options is what Stores are made of.
type Options struct {
	Dir      string // the state directory, which is there
	Hostname string // by which stores know this host that are not told otherwise

	// Open opens what is sealed to this host, for who zeroes it.
	Open func(sealed []byte) (etype.Secret, error)

	// Start starts the helper.
	Start StartFunc

	// Record is told of deliveries that are refused; nil: nobody is.
	Record func(context.Context, *audit.Event) error

	Lines *limits.Meter // of the log
	Log   *slog.Logger
	Now   func() time.Time // nil: time.Now
}

// Stores are the key stores of the configuration in force. It is safe for concurrent use.
type Stores struct {
	o Options

	// How long answers to the helper are held back: after what was refused, and between two polls.
	afterBad, betweenPolls time.Duration

	working sync.Mutex // held while a report is taken, or a configuration: no two at a time
	helper  func()     // ends it; nil: there is none

	mu      sync.Mutex // of what is below, and held for moments only
	closed  bool
	stores  map[string]*store
	entries map[name]*entry // those of former configurations too, which calls in flight may have
	changed chan struct{}   // closed, and another one, when stores have changed
	came    chan struct{}   // likewise, when there is news of an entry
}

// name is of an entry in a store.
type name struct{ store, principal string }

func (n name) String() string { return "STORE:" + n.store + ":" + n.principal }

// store is what there is of one that is configured. All stay as they are but what is behind the blank
// line, which is of mu.
type store struct {
	*conf.KeyStore
	host    string
	signers []ed25519.PublicKey
	entries []*entry // sorted by principal
	kept    *kept

	link
	good  *files // that were read last and can be used
	wrong string // what is wrong with those that are there now, and was said
}

// link is the contact to a store.
type link struct {
	contact time.Time // the last answer
	url     string    // from where
	lost    string    // why there is none; empty: there is, or nobody has tried
	since   time.Time // when it was lost
	orderly bool      // the store had said so: it comes again, or another one is there
	said    bool      // the log says that it is lost
}

// entry is what there is of a principal in a store. Both locks are held when it is written, so either
// will do to read.
type entry struct {
	name
	permission atomic.Pointer[conf.Permission] // never nil; written with working held, and read without

	delivery *delivery.Delivery // in force; nil: none
	bad      error              // why the last one was refused
	badMark  mark               // of that one, if it was signed and for this host,
	badAt    time.Time          // and when it came
	stale    bool               // what is in force was good for the former configuration only, and stays until this one's is in force
	refused  string             // what the store says for not sending any; of mu alone
	hope     time.Time          // until then calls wait for what comes first; of mu alone
	follow   map[*follower]bool
	ending   map[uint32]bool // versions of keys of which it was said that they end and are in use; of the alarm's goroutine
}

// follower is who follows an entry.
type follower struct {
	put      func([]keytab.Entry, error)
	previous func() []keytab.Previous
}

// New returns Stores without a configuration.
func New(o Options) *Stores {
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Record == nil {
		o.Record = func(context.Context, *audit.Event) error { return nil }
	}
	return &Stores{
		o: o, afterBad: time.Second, betweenPolls: 500 * time.Millisecond,
		stores: make(map[string]*store), entries: make(map[name]*entry), changed: make(chan struct{}), came: make(chan struct{}),
	}
}

// Prepare has the stores of a configuration asked that is to be in force soon. What is in force stays
// so, be it that it is none of the new configuration's. On an error nothing has changed.
func (s *Stores) Prepare(c *conf.Config) error { return s.configure(c, false) }

// Configure has the stores of a configuration from now on, with what is kept of them in the state
// directory. On an error nothing has changed.
func (s *Stores) Configure(c *conf.Config) error { return s.configure(c, true) }

func (s *Stores) configure(c *conf.Config, inForce bool) error {
	s.working.Lock()
	defer s.working.Unlock()
	all := make(map[string]*store)
	for _, k := range c.KeyStores {
		principals := c.Entries(k.Name)
		if len(principals) == 0 {
			continue
		}
		st := &store{KeyStore: k, host: cmp.Or(k.Host, s.o.Hostname)}
		for _, text := range k.Signers {
			key, err := delivery.ParseSigner(text)
			if err != nil {
				return fmt.Errorf("[store/%s]: signer: %w", k.Name, err)
			}
			st.signers = append(st.signers, key)
		}
		var err error
		if st.kept, err = openKept(s.o.Dir, k.Name); err != nil {
			return fmt.Errorf("[store/%s]: what comes of it cannot be kept: %w", k.Name, err)
		}
		slices.Sort(principals)
		for _, p := range principals {
			e := s.entry(name{k.Name, p})
			if d := e.delivery; d != nil && st.kept.mark(p).before(markOf(d)) {
				st.kept.marks[p] = markOf(d) // it could not be written
			}
			st.entries = append(st.entries, e)
		}
		all[k.Name] = st
	}
	s.mu.Lock()
	former := s.stores
	for name, st := range all {
		if was := former[name]; was != nil {
			st.link = was.link
			if was.CA == st.CA && was.Cert == st.Cert && was.Key == st.Key && was.CRL == st.CRL {
				st.good, st.wrong = was.good, was.wrong
			}
		}
	}
	s.stores = all
	s.mu.Unlock()
	for name, st := range all {
		was := former[name]
		for _, e := range st.entries {
			// What was good may not be so for another configuration, as after a restart.
			if was == nil || was.host != st.host || !slices.Equal(was.Signers, st.Signers) || !slices.Contains(was.entries, e) || e.stale && inForce {
				s.load(st, e, inForce)
			}
		}
	}
	s.mu.Lock()
	s.tell()
	s.mu.Unlock()
	switch {
	case len(all) > 0 && s.helper == nil && !s.closed:
		ctx, cancel := context.WithCancel(context.Background())
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			var looking sync.WaitGroup
			defer looking.Wait()
			looking.Go(func() { s.alarm(ctx) })
			s.serve(ctx)
		}()
		s.helper = func() { cancel(); <-ended }
	case len(all) == 0:
		s.endHelper()
	}
	return nil
}

// Close ends the helper. What is in force stays so.
func (s *Stores) Close() {
	s.working.Lock()
	s.mu.Lock()
	s.closed = true
	s.wake()
	s.mu.Unlock()
	end := s.helper
	s.helper = nil
	s.working.Unlock()
	if end != nil { // not under the lock, which it may wait for
		end()
	}
}

// endHelper ends the helper. s.working is held, which the conversation may wait for.
func (s *Stores) endHelper() {
	if end := s.helper; end != nil {
		s.helper = nil
		s.working.Unlock()
		end()
		s.working.Lock()
	}
}

// sorted are the stores, by name.
func (s *Stores) sorted() (list []*store) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, st := range s.stores {
		list = append(list, st)
	}
	slices.SortFunc(list, func(a, b *store) int { return strings.Compare(a.Name, b.Name) })
	return list
}

// tell has the conversation look at the stores again. s.mu is held.
func (s *Stores) tell() {
	close(s.changed)
	s.changed = make(chan struct{})
}

// wake has those look again who wait for news of an entry. s.mu is held.
func (s *Stores) wake() {
	close(s.came)
	s.came = make(chan struct{})
}

// entry returns the entry of a name.
func (s *Stores) entry(n name) *entry {
	s.mu.Lock()
	defer s.mu.Unlock()
	e := s.entries[n]
	if e == nil {
		e = &entry{name: n, follow: make(map[*follower]bool)}
		e.permission.Store(noneYet(n, "nothing has come of it yet"))
		s.entries[n] = e
	}
	return e
}

// noneYet is what may be done with an entry whose keys have not come.
func noneYet(n name, why string) *conf.Permission {
	return &conf.Permission{Withheld: &conf.Refusal{
		Reason: reason.NoDelivery, Text: fmt.Sprintf("there are no keys of %s from the key store %q: %s", n.principal, n.store, why),
	}}
}

// Permission returns who says what callers may do with the keys of an entry, as [creds.Stores] has it.
//
// [creds.Stores]: gssproxyd/gssproxyd/creds
func (s *Stores) Permission(store, principal string) func() *conf.Permission {
	return s.entry(name{store, principal}).permission.Load
}

// Follow tells put of the keys of an entry, as [keytab.Stores] has it.
func (s *Stores) Follow(store, principal string, put func([]keytab.Entry, error), previous func() []keytab.Previous) (stop func()) {
	e, f := s.entry(name{store, principal}), &follower{put, previous}
	s.working.Lock()
	defer s.working.Unlock()
	s.mu.Lock()
	e.follow[f] = true
	s.mu.Unlock()
	keys, err := s.keys(e)
	f.put(keys, err)
	zero(keys)
	return func() {
		s.working.Lock()
		defer s.working.Unlock()
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(e.follow, f)
	}
}

// keys opens the keys of an entry, or says why there are none. s.working is held.
func (s *Stores) keys(e *entry) ([]keytab.Entry, error) {
	if w := e.permission.Load().Withheld; w != nil {
		return nil, errors.New(w.Text)
	}
	return openKeys(e.delivery, s.o.Open)
}

func zero(keys []keytab.Entry) {
	for i := range keys {
		clear(keys[i].Key)
	}
}

// firstHope is for how long calls wait for an entry of which nothing was here when it was configured,
// callWait how long one of them may.
const (
	firstHope = 30 * time.Second
	callWait  = 5 * time.Second
)

// Await implements creds.Stores.
func (s *Stores) Await(ctx context.Context, store, principal string) {
	e := s.entry(name{store, principal})
	ctx, cancel := context.WithTimeout(ctx, callWait)
	defer cancel()
	s.await(ctx, func() bool { return e.known() || time.Now().After(e.hope) })
}

// AwaitAll waits until it is known of each entry whether there are keys, and returns the others when
// ctx ends.
func (s *Stores) AwaitAll(ctx context.Context) (unknown []string) {
	s.await(ctx, func() bool {
		unknown = nil
		for _, st := range s.stores {
			for _, e := range st.entries {
				if !e.known() {
					unknown = append(unknown, e.String())
				}
			}
		}
		return len(unknown) == 0
	})
	slices.Sort(unknown)
	return unknown
}

// await waits until something is so, of which done is told with s.mu held, or ctx ends.
func (s *Stores) await(ctx context.Context, done func() bool) {
	for {
		s.mu.Lock()
		over, came := done() || s.closed, s.came
		s.mu.Unlock()
		if over {
			return
		}
		select {
		case <-came:
		case <-ctx.Done():
			return
		}
	}
}

// known reports whether a store has said what there is of an entry, now or before a restart. One of
// the locks is held.
func (e *entry) known() bool { return e.have() != mark{} || e.badMark != mark{} || e.refused != "" }

// load takes what is kept of an entry. What is in force and was good for the former configuration only
// stays if this one is not in force yet. s.working is held.
func (s *Stores) load(st *store, e *entry, inForce bool) {
	raw, err := st.kept.read(e.principal)
	var j *judged
	if err == nil && raw != nil {
		j, err = s.judge(st, e, raw, st.kept.mark(e.principal))
	}
	switch {
	case (err != nil || raw == nil) && e.delivery != nil && !inForce:
		s.mu.Lock()
		e.stale = true
		s.mu.Unlock()
	case err != nil:
		s.denied(e, err, "what was kept of it is refused")
		s.withhold(e, err.Error(), err)
	case raw == nil:
		s.withhold(e, "nothing has come of it yet", nil)
	default:
		if m := markOf(j.delivery); st.kept.mark(e.principal).before(m) {
			st.kept.marks[e.principal] = m // which was not written any more
		}
		s.use(e, j)
		s.o.Log.Info("keys kept of a key store are in use", "source", e.String(), "epoch", e.delivery.Epoch, "revision", e.delivery.Revision, "issued", e.delivery.Issued.UTC().Format(time.RFC3339))
	}
}

// withhold takes the keys of an entry away. s.working is held.
func (s *Stores) withhold(e *entry, why string, bad error) {
	s.mu.Lock()
	e.delivery, e.stale, e.bad, e.badMark, e.hope = nil, false, bad, mark{}, time.Now().Add(firstHope)
	s.mu.Unlock()
	p := noneYet(e.name, why)
	e.permission.Store(p)
	e.put(nil, errors.New(p.Withheld.Text))
}

// use puts in force what a delivery says: what callers may do first, unless that was nothing. s.working
// is held.
func (s *Stores) use(e *entry, j *judged) {
	defer zero(j.keys)
	switch w := j.permission.Withheld; {
	case w != nil:
		e.permission.Store(j.permission)
		e.put(nil, errors.New(w.Text))
	case e.permission.Load().Withheld != nil:
		e.put(j.keys, nil)
		e.permission.Store(j.permission)
	default:
		e.permission.Store(j.permission)
		e.put(j.keys, nil)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	e.delivery, e.stale, e.bad, e.badMark, e.refused = j.delivery, false, nil, mark{}, ""
	s.wake()
}

// put tells those who follow. s.working is held.
func (e *entry) put(keys []keytab.Entry, err error) {
	for f := range e.follow {
		f.put(keys, err)
	}
}

// take takes a delivery that the helper has handed on. It returns the entries that it is of, and whether
// it was a good one.
func (s *Stores) take(storeName string, raw []byte) (of []*entry, good bool) {
	s.working.Lock()
	defer s.working.Unlock()
	s.mu.Lock()
	st := s.stores[storeName]
	s.mu.Unlock()
	if st == nil {
		return nil, true // it was there a moment ago
	}
	d, err := verify(st, raw)
	if err != nil {
		s.denied(&entry{name: name{st.Name, ""}}, err, "what the helper handed on is refused")
		return nil, false
	}
	for _, principal := range append([]string{d.Principal}, d.Aliases...) { // of one account there may be several
		i, there := slices.BinarySearchFunc(st.entries, principal, func(e *entry, p string) int { return strings.Compare(e.principal, p) })
		if there && !slices.Contains(of, st.entries[i]) {
			of = append(of, st.entries[i])
		}
	}
	if len(of) == 0 {
		s.denied(&entry{name: name{st.Name, d.Principal}}, refuse(reason.DeliveryElsewhere, "no service of the configuration has its keys"), "a delivery is refused")
		return nil, false
	}
	good = true
	for _, e := range of {
		good = s.takeFor(st, e, d, raw) && good
	}
	return of, good
}

// takeFor is take for one of the entries that a delivery is of.
func (s *Stores) takeFor(st *store, e *entry, d *delivery.Delivery, raw []byte) (good bool) {
	if h := e.have(); h != (mark{}) && h == markOf(d) {
		return true // again
	}
	j, err := s.judge(st, e, raw, st.kept.mark(e.principal))
	if err == nil {
		if err = st.kept.write(e.principal, raw, markOf(d)); err != nil {
			s.o.Log.Error("what has come of a key store is used, and cannot be kept: it will be missing after a restart without the store", "source", e.String(), "error", err)
		}
		s.use(e, j)
		args := []any{"source", e.String(), "epoch", d.Epoch, "revision", d.Revision, "issued", d.Issued.UTC().Format(time.RFC3339)}
		if w := j.permission.Withheld; w != nil {
			s.o.Log.Warn("keys withdrawn by a key store", append(args, "reason", string(w.Reason), "text", w.Text)...)
		} else {
			s.o.Log.Info("keys taken from a key store", args...)
		}
		return true
	}
	s.mu.Lock()
	e.bad, e.badMark, e.badAt = err, markOf(d), s.o.Now()
	s.wake()
	s.mu.Unlock()
	s.denied(e, err, "a delivery is refused")
	return false
}

// denied logs and records that a delivery was refused.
func (s *Stores) denied(e *entry, err error, what string) {
	id := reason.DeliveryMalformed
	if r, ok := errors.AsType[*refusal](err); ok {
		id = r.id
	}
	source := strings.TrimSuffix(e.String(), ":")
	s.o.Log.Error("key store: "+what, "source", source, "reason", string(id), "error", err, "hint", id.Doc().Hint)
	s.o.Record(context.Background(), &audit.Event{
		Kind: audit.DeliveryDenied, Time: s.o.Now(), Source: source, Principal: e.principal, Reason: string(id), Text: err.Error(),
	})
}

// have returns the mark of what is in force, a zero one if nothing of this configuration is.
func (e *entry) have() mark {
	if e.delivery == nil || e.stale {
		return mark{}
	}
	return markOf(e.delivery)
}

// badAgain is how long what was refused is not asked for again: it may be good one day without being
// another, as when the host is enrolled with another recipient.
const badAgain = time.Minute

// asked returns what the store is to be told of an entry.
func (e *entry) asked(now time.Time) have {
	h := have{Principal: e.principal, mark: e.have()}
	if h.mark.before(e.badMark) && now.Sub(e.badAt) < badAgain {
		h.mark, h.Refused = e.badMark, true
	}
	var used time.Time
	for _, p := range e.previous() {
		if p.Used.After(used) {
			used, h.PreviousKVNO, h.PreviousUsed = p.Used, p.KVNO, p.Used.UTC().Truncate(time.Minute).Format(time.RFC3339)
		}
	}
	return h
}

// previous returns the use of an entry's previous keys. One of the locks is held.
func (e *entry) previous() []keytab.Previous {
	for f := range e.follow { // more than one have the same
		return f.previous()
	}
	return nil
}

// State is how a store is.
type State struct {
	Store   string
	Contact time.Time // the last answer of it; zero: none since the start
	URL     string    // from where that was
	Lost    string    // why there is none now; empty: there is, or none is missed yet
	Entries []EntryState
}

// EntryState is how an entry of a store is.
type EntryState struct {
	Principal       string
	Epoch, Revision uint64    // of what is in force; zero: nothing is
	Issued          time.Time // when the store has made it
	Withdrawn       string    // the reason if the store has taken the keys away
	Text            string    // why there are no keys, or why what has come last was refused, or what the store says for not sending any, or what is amiss with those that are in use
	Ending          bool      // a previous key is taken away soon, and is still in use
}

// States returns how the stores are, sorted by name.
func (s *Stores) States() (list []State) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, st := range s.stores {
		state := State{Store: st.Name, Contact: st.contact, URL: st.url, Lost: st.lost}
		for _, e := range st.entries {
			one := EntryState{Principal: e.principal}
			if d := e.delivery; d != nil {
				one.Epoch, one.Revision, one.Issued, one.Withdrawn = d.Epoch, d.Revision, d.Issued, d.Withdrawn
			}
			now := s.o.Now()
			for _, p := range e.previous() {
				if at, soon := p.Ending(now); soon {
					one.Ending = true
					one.Text = fmt.Sprintf("kvno %d is still in use, the last time at %s, and goes at %s", p.KVNO, p.Used.UTC().Format(time.RFC3339), at.UTC().Format(time.RFC3339))
				}
			}
			switch w := e.permission.Load().Withheld; {
			case e.bad != nil:
				one.Text = "what has come last was refused: " + e.bad.Error()
			case e.refused != "":
				one.Text = "the store refuses it: " + e.refused
			case w != nil:
				one.Text = w.Text
			}
			state.Entries = append(state.Entries, one)
		}
		list = append(list, state)
	}
	slices.SortFunc(list, func(a, b State) int { return strings.Compare(a.Store, b.Store) })
	return list
}
