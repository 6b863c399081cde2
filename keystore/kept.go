package keystore

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"slices"
	"strings"

	"gssproxyd/audit"
	"gssproxyd/mech/reason"
)

// Kept records are those that carry a mark: entries and hosts. They are never deleted, so that one
// that is missing was taken away.

// kept is what is in a kept record: one of the two, or neither if it was refused.
type kept struct {
	record string // its name, of one that was listed or watched
	entry  *Entry
	host   *Host
}

func (k kept) mark() Mark {
	if k.host != nil {
		return k.host.Mark
	}
	return k.entry.Mark
}

// zero overwrites the keys of an entry.
func (k kept) zero() {
	if k.entry != nil {
		k.entry.Zero()
	}
}

// errAbsent is of a record that is not there, and of which this instance knows nothing.
var errAbsent = errors.New("there is no such record")

// read reads a kept record. of is whose it is, if that is known. It is errAbsent if there is none, and
// a *Refusal, audited, if there is one that is not as it has to be.
func (s *Store) read(ctx context.Context, name, of string) (kept, uint64, error) {
	for again := false; ; again = true {
		before := s.marks.get(name) // what comes later may be later than the record
		epoch := s.mark().Epoch
		record, err := s.b.Get(ctx, name)
		if err != nil {
			return kept{}, 0, err
		}
		k, err := s.judge(ctx, record, before, epoch)
		// A keyring that came meanwhile may be what it is newer than.
		if _, refused := errors.AsType[*Refusal](err); refused && !again {
			if _, err := s.refresh(ctx); err != nil {
				return kept{}, 0, err
			}
			continue
		}
		if r, ok := errors.AsType[*Refusal](err); ok {
			s.refused(ctx, r, name, of)
		}
		return k, record.Version, err
	}
}

// judge opens a kept record and compares it with the mark that it has to have at least, and the epoch.
func (s *Store) judge(ctx context.Context, record Record, least Mark, epoch uint64) (kept, error) {
	if record.Version == 0 {
		if least.Epoch == epoch && least != (Mark{}) {
			return kept{}, &Refusal{reason.StoreRolledBack, fmt.Sprintf("the record is not in the backend any more, and revision %d of it was: %s", least.Revision, rolledBack)}
		}
		return kept{}, errAbsent
	}
	k, err := s.unsealKept(ctx, record)
	if errors.Is(err, errSealed) || errors.Is(err, errMaster) {
		return kept{}, &Refusal{reason.StoreRecordBad, "the record cannot be opened: " + err.Error()}
	}
	if err != nil {
		return kept{}, err
	}
	m := k.mark()
	if m.Epoch != epoch || m.Compare(least) < 0 {
		k.zero()
		return kept{}, &Refusal{reason.StoreRolledBack, fmt.Sprintf("the record is of epoch %d and revision %d; expected epoch %d and revision %d or later: %s", m.Epoch, m.Revision, epoch, least.Revision, rolledBack)}
	}
	s.marks.saw(record.Name, m)
	return k, nil
}

const rolledBack = "the backend was rolled back, or somebody has put an old record there; keystored restore begins a new epoch"

func (s *Store) unsealKept(ctx context.Context, record Record) (kept, error) {
	if strings.HasPrefix(record.Name, hostPrefix) {
		var w hostJSON
		err := s.unseal(ctx, record, &w)
		return kept{host: w.host()}, err
	}
	var w entryJSON
	err := s.unseal(ctx, record, &w)
	return kept{entry: w.entry()}, err
}

// list yields all kept records under a prefix, and calls listed with the version of the backend at
// which they are so. One that is refused is an error in its place; the others follow.
func (s *Store) list(ctx context.Context, prefix string, listed func(at uint64)) iter.Seq2[kept, error] {
	return func(yield func(kept, error) bool) {
		epoch := s.mark().Epoch
		seen := s.marks.names(epoch)
		records, at, err := s.b.List(ctx, prefix)
		if err != nil {
			yield(kept{}, err)
			return
		}
		listed(at)
		there := make(map[string]bool, len(records))
		for _, record := range records {
			there[record.Name] = true
			if !yield(s.judgeListed(ctx, record)) {
				return
			}
		}
		for _, name := range seen {
			if strings.HasPrefix(name, prefix) && !there[name] {
				k, _, err := s.read(ctx, name, "")
				if errors.Is(err, errAbsent) {
					continue // there is a new epoch since
				}
				k.record = name
				if !yield(k, err) {
					return
				}
			}
		}
	}
}

// judgeListed judges a record that was read together with others, or some time ago: what seems wrong
// is looked at alone.
func (s *Store) judgeListed(ctx context.Context, record Record) (kept, error) {
	if record.Value == nil {
		record.Version = 0 // it was deleted
	}
	k, err := s.judge(ctx, record, s.marks.get(record.Name), s.mark().Epoch)
	if _, refused := errors.AsType[*Refusal](err); refused {
		k, _, err = s.read(ctx, record.Name, "")
	}
	k.record = record.Name
	return k, err
}

// Entry returns the entry of a principal, deleted or not, or [ErrNoEntry]. It is a [*Refusal], and
// audited, if the record is not what the store has written there last, as far as this instance can
// know. The caller zeroes the entry.
func (s *Store) Entry(ctx context.Context, principal string) (*Entry, error) {
	e, _, _, err := s.entry(ctx, principal)
	return e, err
}

func (s *Store) entry(ctx context.Context, principal string) (e *Entry, name string, version uint64, err error) {
	if e, name, version, err = s.record(ctx, principal); err == nil {
		err = e.isAlias()
	}
	return e, name, version, err
}

// Entries yields all entries, deleted ones too, in no order. One that is refused is a [*Refusal] in
// its place, and those after it follow. The caller zeroes each.
func (s *Store) Entries(ctx context.Context) iter.Seq2[*Entry, error] {
	return func(yield func(*Entry, error) bool) {
		for k, err := range s.list(ctx, entryPrefix, func(uint64) {}) {
			if err == nil && k.entry.aliasOf != "" {
				continue
			}
			if !yield(k.entry, err) {
				return
			}
		}
	}
}

// Change calls f with the entry of a principal, which is new if there is none, and stores what f has
// made of it, with a higher revision and a line in its history: by is who did it, what is what was
// done, in words. Aliases that it has got or lost are stored with it; one that is not to be had is a
// [*Refusal] or an [*Argument]. If somebody else has changed the entry meanwhile, f is called again with what is
// there now. What f returns is returned, and nothing is changed then. If a lock is given, nothing is
// changed unless it is held still, by error [ErrLockLost]. It returns the entry as stored; the
// caller zeroes it.
//
// The change is audited. After any other error it may have been made or not.
func (s *Store) Change(ctx context.Context, lock Lock, principal, by, what string, f func(e *Entry) error) (*Entry, error) {
	for {
		e, name, version, err := s.entry(ctx, principal)
		if errors.Is(err, ErrNoEntry) {
			e, err = &Entry{Principal: principal}, nil
		}
		if err != nil {
			return nil, err
		}
		revision, had := e.Revision, slices.Clone(e.Aliases)
		if err := f(e); err != nil {
			e.Zero()
			return nil, err
		}
		now := s.o.Now()
		e.Principal = principal
		claims, names, err := s.claims(ctx, e, had, now)
		if err != nil {
			e.Zero()
			return nil, err
		}
		for _, c := range claims {
			revision = max(revision, c.Revision)
		}
		e.Mark = Mark{s.mark().Epoch, revision + 1}
		e.note(Change{now, e.Mark, by, what + names})
		var others []sealed
		for _, c := range claims {
			c.Mark = e.Mark
			c.note(Change{now, e.Mark, by, principal + ": " + what + c.what})
			others = append(others, sealed{c.record, c.version, c.wire()})
		}
		err = s.keep(ctx, lock, sealed{name, version, e.wire()}, e.Mark, audit.Event{Kind: audit.EntryChanged, Time: now, Principal: principal, Text: fmt.Sprintf("revision %d by %s: %s", e.Revision, by, what+names)}, others...)
		if err == nil {
			return e, nil
		}
		e.Zero()
		if !errors.Is(err, ErrConflict) {
			return nil, err
		}
	}
}

// keep commits kept records of one mark, and audits what was done; the mark is on disk when it returns.
// Those that are watched are seen in the order of others and record.
func (s *Store) keep(ctx context.Context, lock Lock, record sealed, m Mark, done audit.Event, others ...sealed) error {
	if err := s.o.intend(ctx, done); err != nil {
		return err
	}
	records := append(others, record)
	if _, err := s.commit(ctx, lock, records...); err != nil {
		return err
	}
	s.o.Audit(ctx, &done) // before anything that can fail
	for _, r := range records {
		s.marks.saw(r.name, m)
	}
	if err := s.marks.flush(); err != nil {
		return fmt.Errorf("it was stored, but %w", err)
	}
	return nil
}

// Lock waits until no instance has the lock of a principal, and takes it. It is for what takes more
// than one Change.
func (s *Store) Lock(ctx context.Context, principal string) (Lock, error) {
	var name string
	if err := s.use(func(r *ring) error {
		name = r.entryName(principal)
		return nil
	}); err != nil {
		return nil, err
	}
	return s.b.Lock(ctx, name)
}

// Watch yields all entries that there are, then nil, and from then on each one that is changed, by any
// instance, as it then is, until ctx ends; the caller zeroes each. Records that are refused are audited
// and left out. The last pair has an error, unless ctx ended: the store is not to be used any more.
// What the backend forgets or loses meanwhile is listed again.
func (s *Store) Watch(ctx context.Context) iter.Seq2[*Entry, error] {
	return func(yield func(*Entry, error) bool) {
		tell := func(k kept, err error) (more bool, _ error) {
			if err == nil && k.entry != nil && k.entry.aliasOf != "" {
				return true, nil // the entry says so too
			}
			if err == nil {
				return yield(k.entry, nil), nil
			}
			if _, refused := errors.AsType[*Refusal](err); refused && !errors.Is(err, reason.StoreKeyringSealed) || errors.Is(err, errAbsent) {
				return true, nil
			}
			return true, err
		}
		for ctx.Err() == nil {
			more, err := s.watch(ctx, tell)
			if !more || ctx.Err() != nil {
				return
			}
			if fatal := s.use(func(*ring) error { return nil }); fatal != nil {
				yield(nil, fatal)
				return
			}
			if err != nil && !errors.Is(err, ErrCompacted) {
				s.complain(ctx, "the backend cannot be watched", err)
				sleep(ctx, pause)
			}
		}
	}
}

// watch lists and watches once.
func (s *Store) watch(ctx context.Context, tell func(kept, error) (bool, error)) (more bool, err error) {
	var after uint64
	for k, err := range s.list(ctx, entryPrefix, func(at uint64) { after = at }) {
		if more, err := tell(k, err); !more || err != nil {
			return more, err
		}
	}
	if more, _ := tell(kept{}, nil); !more {
		return false, nil
	}
	for c, err := range s.b.Watch(ctx, entryPrefix, after) {
		if err != nil {
			return true, err
		}
		for _, record := range c.Records {
			if more, err := tell(s.judgeListed(ctx, record)); !more || err != nil {
				return more, err
			}
		}
	}
	return true, nil
}
