package keystore

import (
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"gssproxyd/audit"
)

// Keyring is what may be shown of a keyring.
type Keyring struct {
	Epoch      uint64
	Generation uint64 // one more with each change
	Signer     ed25519.PublicKey
	Members    []Member
	Masters    []Master // the last one is the newest
	Sealing    uint32   // the id of the one that is sealed with
}

// Master is what may be shown of a master key.
type Master struct {
	ID   uint32
	Made time.Time
}

// Keyring returns what may be shown of the keyring that is in use here.
func (s *Store) Keyring() (k Keyring, err error) {
	err = s.use(func(r *ring) error {
		k = Keyring{r.mark.Epoch, r.mark.Revision, slices.Clone(r.signer.Public().(ed25519.PublicKey)), slices.Clone(r.Members), nil, r.Sealing}
		for _, m := range r.Masters {
			k.Masters = append(k.Masters, Master{m.ID, m.Made})
		}
		return nil
	})
	return k, err
}

// errAsIs says that a keyring is to stay as it is.
var errAsIs = errors.New("there is nothing to change")

// changeKeyring makes a keyring of the next generation. f says what it has changed; it is called again
// after a conflict.
func (s *Store) changeKeyring(ctx context.Context, by string, f func(k *keyring) (what string, err error)) error {
	for {
		if _, err := s.refresh(ctx); err != nil {
			return err
		}
		var k keyring
		var version uint64
		if err := s.use(func(r *ring) error {
			k, version = r.clone(), r.version
			return nil
		}); err != nil {
			return err
		}
		var done audit.Event
		what, err := f(&k)
		if err == nil {
			k.mark.Revision++
			var record []byte
			if record, err = k.seal(); err == nil {
				done.Kind, done.Time, done.Text = audit.KeyringChanged, s.o.Now(), fmt.Sprintf("generation %d by %s: %s", k.mark.Revision, by, what)
				err = s.o.intend(ctx, done)
			}
			if err == nil {
				_, err = s.b.Commit(ctx, nil, Record{Name: keyringName, Value: record, Version: version})
			}
		}
		k.zero()
		switch {
		case errors.Is(err, errAsIs):
			return nil
		case errors.Is(err, ErrConflict):
			continue
		case err != nil:
			return err
		}
		s.o.Audit(ctx, &done)
		if _, err := s.refresh(ctx); err != nil {
			return err
		}
		return s.marks.flush()
	}
}

// Grant lets an instance open the keyring from now on, or with the name [Recovery] an identity that
// is kept offline. It is [ErrExists] if there is a member of the name already.
func (s *Store) Grant(ctx context.Context, name, recipient, by string) error {
	if _, err := parseRecipient(recipient); err != nil {
		return &Argument{err.Error()}
	}
	return s.changeKeyring(ctx, by, func(k *keyring) (string, error) {
		for _, m := range k.Members {
			if m.Recipient == recipient || m.Name == name && name != Recovery {
				return "", fmt.Errorf("member %s, %s: %w", m.Name, m.Recipient, ErrExists)
			}
		}
		k.Members = append(k.Members, Member{name, recipient, s.o.Now(), by})
		return fmt.Sprintf("granted to %s, %s", name, recipient), nil
	})
}

// Revoke takes a member out of the keyring, by its name or recipient, or returns [ErrNoMember]. What
// it knows it knows: the master key is to be rotated then, and the signer. A next signer is discarded,
// since it knows that one too. When it was killed it is called again with the name, and goes on where
// it was.
func (s *Store) Revoke(ctx context.Context, member, by string) error {
	var name string
	err := s.changeKeyring(ctx, by, func(k *keyring) (string, error) {
		i := slices.IndexFunc(k.Members, func(m Member) bool { return m.Name == member || m.Recipient == member })
		if i < 0 {
			return "", fmt.Errorf("%w as %s; its members are %s", ErrNoMember, member, memberNames(k.Members))
		}
		if k.Members[i].Recipient == s.o.Identity.Recipient() {
			return "", &Argument{"an instance cannot revoke itself: have another one do it"}
		}
		name = k.Members[i].Name
		what := fmt.Sprintf("revoked of %s, %s", name, k.Members[i].Recipient)
		k.Members = slices.Delete(k.Members, i, i+1)
		if k.Next != nil {
			clear(k.Next)
			k.Next = nil
			what += "; the next signer, whose key it had, was discarded"
		}
		return what, nil
	})
	switch {
	case errors.Is(err, ErrNoMember):
		return s.revoked(ctx, member, err)
	case err != nil || name == Recovery:
		return err
	}
	return s.forgetInstance(ctx, name)
}

// revoked finishes a Revoke that was killed: of an instance that is no member any more it deletes what
// is left. It is the error noMember if nothing is.
func (s *Store) revoked(ctx context.Context, instance string, noMember error) error {
	var name string
	if err := s.use(func(r *ring) error {
		name = r.instanceName(instance)
		return nil
	}); err != nil {
		return err
	}
	instances, _, err := s.instances(ctx)
	if err != nil {
		return err
	}
	switch i, left := instances[name]; {
	case !left:
		return noMember
	case i.Keyring.Compare(s.mark()) >= 0: // it can write still
		return &Argument{fmt.Sprintf("an instance is called %s and opens the store, as a member of another name: revoke it by that, or by its recipient (keystored recipient there)", instance)}
	}
	return s.forgetInstance(ctx, instance)
}

// forgetInstance deletes what an instance has said of itself, and last the record by which it is found
// that something is left.
func (s *Store) forgetInstance(ctx context.Context, instance string) error {
	var name string
	if err := s.use(func(r *ring) error {
		name = r.instanceName(instance)
		return nil
	}); err != nil {
		return err
	}
	records, _, err := s.b.List(ctx, name) // those about hosts too
	if err != nil {
		return err
	}
	slices.Reverse(records) // the instance's own is the first
	for some := range slices.Chunk(records, saidAtOnce) {
		for i := range some {
			some[i].Value = nil
		}
		if _, err := s.b.Commit(ctx, nil, some...); err != nil {
			return err
		}
	}
	return nil
}

// RotateMaster makes a new master key, waits until every live instance has it, seals all records
// anew and takes the old keys out of the keyring. When it was killed it is called again, and goes on
// where it was. An instance that has not said for 90 s that it lives is an error that names it, unless
// force is given: it is not waited for then. progress is told what is done, in words.
func (s *Store) RotateMaster(ctx context.Context, by string, force bool, progress func(string)) (err error) {
	lock, err := s.b.Lock(ctx, "master")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, lock.Unlock(ctx)) }()
	if err := s.changeKeyring(ctx, by, func(k *keyring) (string, error) {
		if len(k.Masters) > 1 {
			progress("going on with a rotation of the master key that was not finished")
			return "", errAsIs
		}
		m := newMaster(k.Masters[0].ID+1, s.o.Now())
		k.Masters = append(k.Masters, m)
		return fmt.Sprintf("master key %d was made", m.ID), nil
	}); err != nil {
		return err
	}
	// From the next generation on it seals, and everybody who can write must be able to read then.
	if err := s.awaitInstances(ctx, force, progress); err != nil {
		return err
	}
	if err := s.changeKeyring(ctx, by, func(k *keyring) (string, error) {
		m := k.Masters[len(k.Masters)-1]
		if k.Sealing == m.ID {
			return "", errAsIs
		}
		k.Sealing = m.ID
		return fmt.Sprintf("master key %d seals", m.ID), nil
	}); err != nil {
		return err
	}
	// Whoever does not know of that generation cannot commit any more: nothing comes after this list
	// that the old keys have sealed.
	if err := s.sealAnew(ctx, progress); err != nil {
		return err
	}
	return s.changeKeyring(ctx, by, func(k *keyring) (string, error) {
		var left []string
		k.Masters = slices.DeleteFunc(k.Masters, func(m master) bool {
			if m.ID == k.Sealing {
				return false
			}
			left = append(left, fmt.Sprint(m.ID))
			clear(m.Key)
			return true
		})
		return fmt.Sprintf("master key %s is out of use", strings.Join(left, ", ")), nil
	})
}

// awaitInstances waits until all live instances have the keyring that this one has.
func (s *Store) awaitInstances(ctx context.Context, force bool, progress func(string)) error {
	said := ""
	for {
		instances, at, err := s.instances(ctx)
		if err != nil {
			return err
		}
		mark, now := s.mark(), s.o.Now()
		var waiting, gone []string
		for _, i := range instances {
			switch {
			case i.Name == s.o.Name || i.Stopped || i.Keyring.Compare(mark) >= 0:
			case now.Sub(i.Seen) > silent:
				gone = append(gone, i.Name)
			default:
				waiting = append(waiting, i.Name)
			}
		}
		slices.Sort(gone)
		slices.Sort(waiting)
		if len(gone) > 0 && !force {
			return fmt.Errorf("not heard of for %v, and so it may not have the new key: %s; start it or, if it is no more, revoke it; --force goes on without", silent, strings.Join(gone, ", "))
		}
		if len(waiting) == 0 {
			return nil
		}
		if now := "waiting for " + strings.Join(waiting, ", "); now != said {
			said = now
			progress(now)
		}
		if s.awaitChange(ctx, instancePrefix, at); ctx.Err() != nil {
			return ctx.Err()
		}
	}
}

// awaitChange waits until something under a prefix was changed after a version, or for a second.
func (s *Store) awaitChange(ctx context.Context, prefix string, after uint64) {
	ctx, cancel := context.WithTimeout(ctx, pause)
	defer cancel()
	for _, err := range s.b.Watch(ctx, prefix, after) {
		if err == nil {
			return
		}
	}
	<-ctx.Done() // it cannot be watched
}

// sealAnew seals all records with the key that seals now.
func (s *Store) sealAnew(ctx context.Context, progress func(string)) error {
	done := 0
	for _, prefix := range []string{keptPrefix, livePrefix} {
		records, _, err := s.b.List(ctx, prefix)
		if err != nil {
			return err
		}
		for i, record := range records {
			if err := s.sealRecordAnew(ctx, record); err != nil {
				return err
			}
			if done++; i == len(records)-1 || done%1000 == 0 {
				progress(fmt.Sprintf("%d records are sealed with the new key", done))
			}
		}
	}
	return nil
}

// sealRecordAnew seals one record anew, however it is by then. What cannot be opened is left as it is:
// no one will open it later either, and who reads it says so.
func (s *Store) sealRecordAnew(ctx context.Context, record Record) error {
	for {
		var change, fence Record
		err := s.use(func(r *ring) error {
			if id, err := masterOf(record.Value); err != nil || id == r.Sealing {
				return errAsIs
			}
			plain, err := r.openBytes(record.Name, record.Value)
			if err != nil {
				return errAsIs
			}
			defer clear(plain)
			change = Record{Name: record.Name, Value: r.sealBytes(record.Name, plain), Version: record.Version}
			fence = Record{Name: keyringName, Version: r.version, Keep: true}
			return nil
		})
		if err == nil {
			_, err = s.b.Commit(ctx, nil, change, fence)
		}
		if errors.Is(err, errAsIs) || err == nil {
			return nil
		}
		if !errors.Is(err, ErrConflict) {
			return err
		}
		if _, err := s.refresh(ctx); err != nil {
			return err
		}
		if record, err = s.b.Get(ctx, record.Name); err != nil {
			return err
		}
	}
}
