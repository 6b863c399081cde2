package keystore

import (
	"context"
	"errors"
	"time"

	"gssproxyd/mech/krb5/etype"
	"gssproxyd/mech/reason"
)

// A Rotation is a change of an entry's key that goes on: what it takes to finish it is here, so that
// any instance can.
type Rotation struct {
	Password etype.Secret // that the pending keys are of; it is never made anew in the same rotation
	Step     Step         // the last one that is done
	Since    time.Time    // Step is done
	Begun    time.Time
	After    Mark          // of the last change without the pending keys: who acknowledged a later one has them
	Keep     time.Duration // how long a ticket of the keys now current can be good
	Force    bool          // go on without the hosts that do not acknowledge
	Refused  bool          // the KDC has refused the current keys since it was asked
}

// Step is a step of a rotation.
type Step string

// The steps in their order. Sent is written before the KDC is asked: an instance that finds it asks
// the KDC which key it has before it sends the password again.
const (
	Stored       Step = "stored"       // the pending keys are in the entry
	Acknowledged Step = "acknowledged" // by every live host that may have them
	Sent         Step = "sent"         // to the KDC, or is about to be
)

// EndRotation ends the rotation that goes on, since the KDC has other keys than the current ones: those
// are previous ones from now on. If the KDC has the pending keys these are current, with the version
// that it gives them. If not they are previous ones too, since nobody knows whether the KDC had them
// for a while.
func (e *Entry) EndRotation(pending bool, kvno uint32, now time.Time) {
	until := now.Add(e.Rotation.Keep)
	for i := range e.Keys {
		switch k := &e.Keys[i]; {
		case k.State == Pending && pending:
			k.State, k.Since, k.KVNO = Current, now, kvno
		case k.State != Previous:
			k.State, k.Since, k.Until = Previous, now, until
		case k.Until.IsZero(): // it was imported as that
			k.Until = until
		}
	}
	e.Rotation.Password.Zero()
	e.Rotation, e.Alarm = nil, ""
}

// A Use is that a host has opened a ticket with a previous key of an entry.
type Use struct {
	Host string    `json:"host"`
	KVNO uint32    `json:"kvno"`
	At   time.Time `json:"at"`
}

// NoteUse notes that a host has opened a ticket with a previous key of an entry.
func (s *Store) NoteUse(ctx context.Context, principal string, u Use) error {
	for {
		var name string
		if err := s.use(func(r *ring) error {
			prefix := r.usesName(principal)
			name = prefix + r.name(usePrefix, u.Host)
			return nil
		}); err != nil {
			return err
		}
		record, err := s.b.Get(ctx, name)
		if err != nil {
			return err
		}
		var was Use
		if record.Version != 0 {
			if err := s.unseal(ctx, record, &was); err == nil && was.KVNO == u.KVNO && !u.At.After(was.At) {
				return nil
			}
		}
		if _, err := s.commit(ctx, nil, sealed{name, record.Version, u}); !errors.Is(err, ErrConflict) {
			return err
		}
	}
}

// Uses returns when hosts have used previous keys of an entry last.
func (s *Store) Uses(ctx context.Context, principal string) (uses []Use, err error) {
	var prefix string
	if err := s.use(func(r *ring) error {
		prefix = r.usesName(principal)
		return nil
	}); err != nil {
		return nil, err
	}
	records, _, err := s.b.List(ctx, prefix)
	if err != nil {
		return nil, err
	}
	for _, record := range records {
		var u Use
		if err := s.unseal(ctx, record, &u); err != nil {
			s.refused(ctx, &Refusal{reason.StoreRecordBad, "what a host has used cannot be opened: " + err.Error()}, record.Name, principal)
			continue // as if the host had said nothing
		}
		uses = append(uses, u)
	}
	return uses, nil
}
