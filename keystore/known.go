package keystore

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"strings"
	"time"

	"gssproxyd/mech/reason"
)

// What a rotation asks about many hosts again and again is in memory, as one watch of the backend
// tells it: hosts, when they were seen, and acknowledgements of entries that somebody asks about. How
// late that may be is what [Store.InTouch] says: an instance is in touch when its own word has come
// back to it by the same watch.

// standing is how a host stands.
type standing struct {
	host    *Host // as it was last, nil: it was never known
	refused error // why its record is not believed any more
}

// acks are the acknowledgements of one entry.
type acks struct {
	principal string
	of        map[string]ack // by the record's name
	listed    bool           // all that there are were added
	asked     time.Time
}

// ack is one of them, without a host if it is not to be read.
type ack struct {
	ackJSON
	version uint64
}

// learnAll reads what is to be known, and returns the version of the backend up to which it is.
func (s *Store) learnAll(ctx context.Context) (at uint64, err error) {
	if _, at, err = s.instances(ctx); err != nil {
		return 0, err
	}
	known := map[string]standing{}
	for k, err := range s.list(ctx, hostPrefix, func(uint64) {}) {
		if err := s.place(known, k, err); err != nil {
			return 0, err
		}
	}
	s.hostsMu.Lock()
	defer s.hostsMu.Unlock()
	s.known = known
	clear(s.acks) // who asks lists them again, later than at
	return at, nil
}

// follow learns what is changed after a version, until ctx ends.
func (s *Store) follow(ctx context.Context, after uint64) {
	for {
		err := s.followFrom(ctx, after)
		for err != nil {
			s.complain(ctx, "what changes in the backend is not followed for a moment", err)
			if !sleep(ctx, pause) {
				return
			}
			after, err = s.learnAll(ctx)
		}
	}
}

// followFrom learns what is changed after a version, and returns why not any more.
func (s *Store) followFrom(ctx context.Context, after uint64) error {
	for c, err := range s.b.Watch(ctx, "", after) {
		if err != nil {
			return err
		}
		for _, record := range c.Records {
			if err := s.learn(ctx, record); err != nil {
				return err
			}
		}
	}
	return ctx.Err()
}

// learn takes a change.
func (s *Store) learn(ctx context.Context, record Record) error {
	switch name := record.Name; {
	case strings.HasPrefix(name, hostPrefix):
		k, err := s.judgeListed(ctx, record)
		return s.place(nil, k, err)
	case strings.HasPrefix(name, instancePrefix):
		s.hear(ctx, record)
	case strings.HasPrefix(name, ackPrefix):
		s.hostsMu.Lock()
		a := s.acks[name[:strings.LastIndexByte(name, '/')+1]]
		s.hostsMu.Unlock()
		if a != nil {
			s.note(ctx, a, record)
		}
	}
	return nil
}

// place puts how a host stands where it is found, s.known unless another place is given. One whose record
// is refused has a place too.
func (s *Store) place(known map[string]standing, k kept, err error) error {
	refusal, refused := errors.AsType[*Refusal](err)
	if err != nil && !refused && !errors.Is(err, errAbsent) {
		return err
	}
	s.hostsMu.Lock()
	defer s.hostsMu.Unlock()
	if known == nil {
		known = s.known
	}
	if k.host == nil {
		k.host = s.known[k.record].host
	}
	if k.host != nil {
		s.records[k.host.Name] = k.record
	}
	if known[k.record] = (standing{k.host, err}); errors.Is(err, errAbsent) {
		delete(known, k.record)
	}
	if refused {
		s.o.Log.Warn("the record of a host is refused: the host gets nothing, and no rotation waits for it", "host", known[k.record].name(), "record", k.record, "reason", refusal.Reason, "text", refusal.Text)
	}
	return nil
}

// name returns the name of the host; empty: it was never known.
func (k standing) name() string {
	if k.host == nil {
		return ""
	}
	return k.host.Name
}

// nameOf returns the name of a host by that of its record; empty: it was never known.
func (s *Store) nameOf(record string) string {
	s.hostsMu.Lock()
	defer s.hostsMu.Unlock()
	return s.known[record].name()
}

// Known returns a host that is enrolled, as this instance was told of it last, or [ErrNoHost]. It is a
// [*Refusal] if the host's record is not believed. The backend is not asked: see [Store.InTouch]. What
// this instance itself has changed is known at once.
func (s *Store) Known(host string) (*Host, error) {
	s.hostsMu.Lock()
	name := s.records[host]
	s.hostsMu.Unlock()
	if err := s.use(func(r *ring) error {
		if name == "" {
			name = r.hostName(host)
		}
		return nil
	}); err != nil {
		return nil, err
	}
	s.hostsMu.Lock()
	defer s.hostsMu.Unlock()
	known := s.known[name]
	if known.refused != nil {
		return nil, fmt.Errorf("host %s: %w", host, known.refused)
	}
	if known.host == nil {
		return nil, fmt.Errorf("host %s: %w", host, ErrNoHost)
	}
	if err := known.host.enrolled(); err != nil {
		return nil, err
	}
	h := *known.host
	h.Seen = s.seen(idOf(name))
	return &h, nil
}

// Acknowledged returns what each host has acknowledged of an entry, by the host's name. Who asks again
// soon is answered without the backend: see [Store.InTouch].
func (s *Store) Acknowledged(ctx context.Context, principal string) (map[string]Mark, error) {
	var prefix string
	if err := s.use(func(r *ring) error {
		prefix = r.acksName(principal)
		return nil
	}); err != nil {
		return nil, err
	}
	s.hostsMu.Lock()
	a := s.acks[prefix]
	if a == nil {
		a = &acks{principal: principal, of: map[string]ack{}}
		s.acks[prefix] = a // what comes from now on is noted
	}
	a.asked = s.o.Now()
	listed := a.listed
	s.hostsMu.Unlock()
	if !listed {
		records, _, err := s.b.List(ctx, prefix)
		if err != nil {
			return nil, err
		}
		for _, record := range records {
			s.note(ctx, a, record)
		}
	}
	s.hostsMu.Lock()
	defer s.hostsMu.Unlock()
	a.listed = true
	marks := make(map[string]Mark, len(a.of))
	for _, one := range a.of {
		if one.Host != "" {
			marks[one.Host] = one.Mark
		}
	}
	return marks, nil
}

// note takes an acknowledgement, unless a later one is known. One that is not to be read is as if the
// host had said nothing.
func (s *Store) note(ctx context.Context, a *acks, record Record) {
	s.hostsMu.Lock()
	known := a.of[record.Name].version >= record.Version
	s.hostsMu.Unlock()
	if known {
		return
	}
	one := ack{version: record.Version}
	if record.Value != nil {
		if err := s.unseal(ctx, record, &one.ackJSON); err != nil {
			one.ackJSON = ackJSON{}
			s.refused(ctx, &Refusal{reason.StoreRecordBad, "an acknowledgement cannot be opened: " + err.Error()}, record.Name, a.principal)
		}
	}
	s.hostsMu.Lock()
	defer s.hostsMu.Unlock()
	if a.of[record.Name].version < record.Version {
		a.of[record.Name] = one
	}
}

// acksKept is how long acknowledgements are known after somebody has asked about them.
const acksKept = time.Minute

// forget drops acknowledgements that nobody asks about any more.
func (s *Store) forget() {
	s.hostsMu.Lock()
	defer s.hostsMu.Unlock()
	now := s.o.Now()
	maps.DeleteFunc(s.acks, func(_ string, a *acks) bool { return now.Sub(a.asked) > acksKept })
}

// Acknowledge notes that a host has in force what was delivered to it of entries, at most 100, at marks
// by their principals.
func (s *Store) Acknowledge(ctx context.Context, host string, marks map[string]Mark) error {
	for {
		var records []sealed
		prefixes := make(map[string]string) // by the records' names
		for principal, m := range marks {
			var name string
			if err := s.use(func(r *ring) error {
				name = r.ackName(principal, host)
				prefixes[name] = r.acksName(principal)
				return nil
			}); err != nil {
				return err
			}
			record, err := s.b.Get(ctx, name)
			if err != nil {
				return err
			}
			var was ackJSON
			if record.Version == 0 || s.unseal(ctx, record, &was) != nil || was.Compare(m) < 0 {
				records = append(records, sealed{name, record.Version, ackJSON{host, m}})
			}
		}
		if len(records) == 0 {
			return nil
		}
		at, err := s.commit(ctx, nil, records...)
		if errors.Is(err, ErrConflict) {
			continue
		} else if err != nil {
			return err
		}
		s.hostsMu.Lock()
		defer s.hostsMu.Unlock()
		for _, r := range records {
			if a := s.acks[prefixes[r.name]]; a != nil && a.of[r.name].version < at {
				a.of[r.name] = ack{r.what.(ackJSON), at} // who says so and asks then is told so
			}
		}
		return nil
	}
}
