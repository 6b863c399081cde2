package keystore

import (
	"bytes"
	"cmp"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	"gssproxyd/audit"
	"gssproxyd/keystore/delivery"
	"gssproxyd/mech/krb5/etype"
	"gssproxyd/mech/reason"
)

// An Identity opens what is sealed to an instance: package keytab/sealed has one in a file.
type Identity interface {
	// Recipient returns the age recipient that others seal to.
	Recipient() string
	// Open returns what is in an age file; the caller zeroes it.
	Open(content []byte) (etype.Secret, error)
}

// Options are those of an instance of a store.
type Options struct {
	Identity Identity
	Name     string                              // of the instance; no two may have one
	Signers  []ed25519.PublicKey                 // whose keyrings are believed, one at least; Create needs none
	StateDir string                              // a directory of this instance's alone, for the marks that it has seen
	Audit    func(context.Context, *audit.Event) // of what changes and what is refused; nil: nobody

	// Intend is told of each change before it is stored, as an event of kind [audit.ChangeBegun]. If it
	// fails the change is not made. Nil: nobody.
	Intend func(context.Context, *audit.Event) error

	Log *slog.Logger     // nil: none
	Now func() time.Time // nil: time.Now
}

func (o *Options) fill() {
	if o.Audit == nil {
		o.Audit = func(context.Context, *audit.Event) {}
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Now == nil {
		o.Now = time.Now
	}
}

// intend says what is about to be stored and will be audited as done, or returns why it may not be.
func (o *Options) intend(ctx context.Context, done audit.Event) error {
	if o.Intend == nil {
		return nil
	}
	done.Kind, done.Text = audit.ChangeBegun, string(done.Kind)+": "+done.Text
	if err := o.Intend(ctx, &done); err != nil {
		return &Refusal{reason.AuditFailed, "nothing was changed, since the audit log does not have it: " + err.Error()}
	}
	return nil
}

// A Store is a backend that is open, with its keyring. It is safe for concurrent use.
type Store struct {
	b     Backend
	o     Options
	marks *marks
	stop  context.CancelFunc
	done  sync.WaitGroup

	mu    sync.RWMutex // held by who uses the keyring, and to put another one in its place
	ring  *ring
	fatal error // why there is none

	self    string // the name of this instance's record
	beating sync.Mutex
	said    map[string]said // of hosts, by shard; while beating

	hostsMu sync.Mutex
	hosts   map[string]time.Time // by id, that were heard of here
	there   map[string]uint64    // the versions of this instance's records of hosts, by shard
	peers   map[string]*peer     // by their records' names
	known   map[string]standing  // by their records' names
	records map[string]string    // the names of hosts' records, by host
	acks    map[string]*acks     // by the prefix of their records' names
	told    time.Time            // when the others were told last that this instance lives
	touch   time.Time            // since when that was never too long ago
}

// pause is between attempts at a backend that does not answer.
const pause = time.Second

// A Refusal says why a record is not believed, a store not opened, or a name not to be had. For
// errors.Is it is its reason.
type Refusal struct {
	Reason reason.ID
	Text   string
}

// Error returns the reason and the text.
func (r *Refusal) Error() string { return r.Reason.Before(r.Text) }

// Unwrap returns the reason.
func (r *Refusal) Unwrap() error { return r.Reason }

// An Argument says what is wrong with what a method was given.
type Argument struct{ Text string }

func (a *Argument) Error() string { return a.Text }

// Errors of a Store.
var (
	ErrNoEntry  = errors.New("the store has no such entry")
	ErrNoHost   = errors.New("no such host is enrolled")
	ErrNoMember = errors.New("the keyring has no such member")
	ErrExists   = errors.New("there is one of this name already")
)

// Create makes a new store in a backend that has nothing in it: a master key, a signer and a
// keyring that o.Identity and the recovery recipients open, which are age's, of identities that are
// kept offline. The signer returned is to stand in the configuration of each instance and host.
func Create(ctx context.Context, b Backend, o Options, recovery []string) (signer ed25519.PublicKey, err error) {
	o.fill()
	if err := empty(ctx, b); err != nil {
		return nil, err
	}
	k := keyring{Store: make([]byte, storeIDLen), NameKey: make([]byte, sha256.Size), Seed: make([]byte, ed25519.SeedSize), mark: Mark{1, 1}}
	defer k.zero()
	for _, random := range [][]byte{k.Store, k.NameKey, k.Seed} {
		rand.Read(random)
	}
	k.Masters, k.Sealing = []master{newMaster(1, o.Now())}, 1
	k.Members = []Member{{o.Name, o.Identity.Recipient(), o.Now(), o.Name}}
	for _, r := range recovery {
		k.Members = append(k.Members, Member{Recovery, r, o.Now(), o.Name})
	}
	record, err := k.seal()
	if err != nil {
		return nil, err
	}
	m, err := openMarks(o.StateDir)
	if err != nil {
		return nil, err
	}
	defer m.close()
	if err := m.of(k.Store); err != nil {
		return nil, err
	}
	done := audit.Event{Kind: audit.KeyringChanged, Time: o.Now(), Text: fmt.Sprintf("generation 1 by %s: the store was created, for %s", o.Name, memberNames(k.Members))}
	if err := o.intend(ctx, done); err != nil {
		return nil, err
	}
	if _, err := b.Commit(ctx, nil, Record{Name: keyringName, Value: record}); err != nil {
		return nil, err
	}
	o.Audit(ctx, &done)
	m.saw(keyringName, k.mark)
	return publicOf(k.Seed), m.flush()
}

func empty(ctx context.Context, b Backend) error {
	records, _, err := b.List(ctx, "")
	if err != nil {
		return err
	}
	if len(records) > 0 {
		return fmt.Errorf("the backend is not empty: it has %d records, %q for one; a new store needs one that is, or another prefix in it", len(records), records[0].Name)
	}
	return nil
}

// Open opens a store, and begins to follow its keyring and to say that the instance lives. The
// error is a [*Refusal] if the keyring is not one that may be used here: not signed by one of
// o.Signers, older than one that was seen, or not for this instance. The caller closes the store, and
// the backend after it.
func Open(ctx context.Context, b Backend, o Options) (*Store, error) {
	o.fill()
	if len(o.Signers) == 0 {
		return nil, errors.New("no signer is configured: without one any keyring would be believed; keystored prints it when it creates a store")
	}
	m, err := openMarks(o.StateDir)
	if err != nil {
		return nil, err
	}
	s := &Store{b: b, o: o, marks: m, said: map[string]said{}, hosts: map[string]time.Time{}, there: map[string]uint64{}, peers: map[string]*peer{}, known: map[string]standing{}, records: map[string]string{}, acks: map[string]*acks{}}
	at, err := s.begin(ctx)
	if err != nil {
		s.drop(nil)
		m.close()
		return nil, err
	}
	running, stop := context.WithCancel(context.WithoutCancel(ctx))
	s.stop = stop
	s.done.Go(func() { s.followKeyring(running) })
	s.done.Go(func() { s.live(running) })
	s.done.Go(func() { s.follow(running, at) })
	return s, nil
}

// begin reads what there is, and tells the others that this instance lives. It returns the version of the
// backend up to which it has read.
func (s *Store) begin(ctx context.Context) (at uint64, err error) {
	if _, err := s.refresh(ctx); err != nil {
		return 0, err
	}
	if err := s.use(func(r *ring) error {
		s.self = r.instanceName(s.o.Name)
		return nil
	}); err != nil {
		return 0, err
	}
	if err := s.recall(ctx); err != nil {
		return 0, err
	}
	if err := s.beat(ctx, false); err != nil {
		return 0, err
	}
	return s.learnAll(ctx)
}

// Close ends what Open has begun, and writes down what marks were seen.
func (s *Store) Close() error {
	s.stop()
	s.done.Wait()
	ctx, cancel := context.WithTimeout(context.Background(), pause)
	defer cancel()
	if err := s.beat(ctx, true); err != nil {
		s.o.Log.Warn("the other instances are not told that this one ends", "error", err)
	}
	err := s.marks.flush()
	s.marks.close()
	s.drop(errors.New("the store is closed"))
	return err
}

// drop takes the keyring out of use.
func (s *Store) drop(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ring != nil {
		s.ring.zero()
	}
	s.ring, s.fatal = nil, err
}

// use calls f with the keyring, which f may not keep.
func (s *Store) use(f func(r *ring) error) error {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if s.ring == nil {
		return s.fatal
	}
	return f(s.ring)
}

// mark returns the epoch and generation of the keyring, zero if there is none.
func (s *Store) mark() (m Mark) {
	s.use(func(r *ring) error {
		m = r.mark
		return nil
	})
	return m
}

// refresh reads the keyring, and puts it in use if it is newer than the one that is. It returns the
// version of its record.
func (s *Store) refresh(ctx context.Context) (at uint64, err error) {
	before := s.marks.get(keyringName)
	record, err := s.b.Get(ctx, keyringName)
	if err != nil {
		return 0, err
	}
	if at, err = record.Version, s.install(ctx, record, before); err != nil {
		var refused *Refusal
		if errors.As(err, &refused) {
			s.refused(ctx, refused, keyringName, "")
		}
	}
	return at, err
}

// install puts a keyring in use, unless it is lower than a mark that was seen before it was read.
func (s *Store) install(ctx context.Context, record Record, before Mark) error {
	if record.Version == 0 {
		if err := empty(ctx, s.b); err == nil && before == (Mark{}) {
			return errors.New("there is no store in the backend; keystored init makes one")
		}
		return &Refusal{reason.StoreKeyringOld, "the keyring is not there, and other records are or it was here before; it was deleted, or a restore was not finished: empty the backend and restore a backup"}
	}
	k, err := openKeyring(record.Value, s.o.Identity, s.o.Signers)
	if errors.Is(err, reason.StoreKeyringUnsigned) {
		err = s.switched(record.Value, err)
	}
	if err != nil {
		if errors.Is(err, reason.StoreKeyringSealed) {
			s.drop(err) // it was signed: this instance was revoked
		}
		return err
	}
	next, err := newRing(k, record.Version)
	if err == nil {
		err = s.marks.of(k.Store)
	}
	if err == nil && k.mark.Compare(before) < 0 {
		err = &Refusal{reason.StoreKeyringOld, fmt.Sprintf("the keyring is of epoch %d and generation %d, and this instance has seen epoch %d and generation %d: the backend was rolled back; keystored restore begins a new epoch", k.mark.Epoch, k.mark.Revision, before.Epoch, before.Revision)}
	}
	if err != nil {
		k.zero()
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ring != nil && next.mark.Compare(s.ring.mark) <= 0 {
		if next.mark == s.ring.mark {
			s.ring.version = next.version // written again as it was
		}
		next.zero() // another reader was faster
		return nil
	}
	if s.ring != nil {
		s.ring.zero()
	}
	s.ring, s.fatal = next, nil
	s.marks.saw(keyringName, next.mark)
	s.o.Log.Info("keyring", "epoch", next.mark.Epoch, "generation", next.mark.Revision)
	return nil
}

// switched returns why a keyring of a signer that is not configured is refused: it may be the one that
// the store has named as its next, and has switched to.
func (s *Store) switched(record []byte, refused error) error {
	var next ed25519.PublicKey
	s.use(func(r *ring) error {
		next = publicOf(r.Next)
		return nil
	})
	if next == nil || len(record) < keyringHeader+ed25519.SignatureSize {
		return refused
	}
	if signer, _, good := keyringSigner(record); !good || !bytes.Equal(signer, next) {
		return refused
	}
	line := delivery.FormatSigner(next)
	return &Refusal{reason.StoreKeyringUnsigned, fmt.Sprintf("the keyring is signed by %s, which is the store's signer now, and the configuration of this instance does not name it: write signer = %[1]s there and start it again; until then it changes nothing, and soon hands out nothing", line)}
}

// followKeyring puts each new keyring in use, and tells the others.
func (s *Store) followKeyring(ctx context.Context) {
	for again := false; ; again = true {
		// Not from the version of the record on: a backend may have forgotten what came after that.
		_, at, err := s.b.List(ctx, keyringName)
		if err == nil {
			_, err = s.refresh(ctx)
		}
		if err != nil {
			s.complain(ctx, "the keyring was not read again", err)
		} else {
			if again {
				s.tell(ctx)
			}
			s.watchKeyring(ctx, at)
		}
		if !sleep(ctx, pause) {
			return
		}
	}
}

// watchKeyring puts each new keyring in use, and tells the others, until the backend fails.
func (s *Store) watchKeyring(ctx context.Context, after uint64) {
	for _, err := range s.b.Watch(ctx, keyringName, after) {
		if err != nil {
			s.complain(ctx, "the keyring cannot be followed", err)
			return
		}
		if _, err := s.refresh(ctx); err != nil {
			s.complain(ctx, "the keyring was not read again", err)
		}
		s.tell(ctx)
	}
}

// tell says to the other instances that this one lives.
func (s *Store) tell(ctx context.Context) {
	if err := s.beat(ctx, false); err != nil {
		s.complain(ctx, "the other instances are not told that this one lives", err)
	}
}

// live says now and then that the instance lives.
func (s *Store) live(ctx context.Context) {
	for sleep(ctx, beat) {
		s.tell(ctx)
		s.forget()
		if err := s.marks.flush(); err != nil {
			s.complain(ctx, "a restart would know less", err)
		}
	}
}

// complain logs what nobody waits for.
func (s *Store) complain(ctx context.Context, what string, err error) {
	if ctx.Err() == nil {
		s.o.Log.Warn(what, "error", err)
	}
}

// sleep waits, and reports whether ctx is still on.
func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// refused audits that a record was refused. Of which principal or host it is may be unknown.
func (s *Store) refused(ctx context.Context, r *Refusal, record, of string) {
	e := &audit.Event{Kind: audit.RecordRefused, Time: s.o.Now(), Principal: of, Source: record, Reason: string(r.Reason), Text: r.Text}
	if strings.HasPrefix(record, hostPrefix) {
		e.Principal, e.Target = "", cmp.Or(of, s.nameOf(record))
	}
	s.o.Audit(ctx, e)
}

// sealed is a record to be sealed and committed.
type sealed struct {
	name    string
	version uint64 // that it replaces
	what    any
}

// commit seals records with the keyring as it is, and commits them if that is the backend's still.
// It returns the version of the backend that has them. After a conflict the keyring has been read again.
func (s *Store) commit(ctx context.Context, lock Lock, records ...sealed) (at uint64, err error) {
	var changes []Record
	err = s.use(func(r *ring) error {
		// An instance that has slept through a new keyring writes nothing that others cannot open.
		changes = append(changes, Record{Name: keyringName, Version: r.version, Keep: true})
		for _, c := range records {
			value, err := r.seal(c.name, c.what)
			if err != nil {
				return err
			}
			if len(value) > maxRecord {
				return fmt.Errorf("it is too large for the store: %d bytes, at most %d are kept", len(value), maxRecord)
			}
			changes = append(changes, Record{Name: c.name, Value: value, Version: c.version})
		}
		return nil
	})
	if err != nil {
		return 0, err
	}
	if at, err = s.b.Commit(ctx, lock, changes...); errors.Is(err, ErrConflict) {
		if _, err := s.refresh(ctx); err != nil {
			return 0, err
		}
	}
	return at, err
}

// maxRecord bounds what is kept in one record: less than etcd takes.
const maxRecord = 1 << 20

// unseal opens a record that is there. If its master key is not known, the keyring is read again.
func (s *Store) unseal(ctx context.Context, record Record, v any) error {
	open := func(r *ring) error { return r.open(record.Name, record.Value, v) }
	err := s.use(open)
	if errors.Is(err, errMaster) {
		if _, err := s.refresh(ctx); err != nil {
			return err
		}
		err = s.use(open)
	}
	return err
}
