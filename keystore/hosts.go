package keystore

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"gssproxyd/audit"
	"gssproxyd/keystore/delivery"
	"gssproxyd/mech/reason"
)

// A Host is one that is enrolled: keys are sealed to its recipient.
type Host struct {
	Name      string // as in its certificate: a DNS name or a URI
	Recipient string // of age
	Mark             // of its last change
	Added     time.Time
	By        string    // who has added it, or removed it
	Removed   time.Time // zero: it is enrolled
	Seen      time.Time // when some instance has heard of it last, as far as was told; zero: never
}

// AddHost enrols a host, also one that was removed. It is [ErrExists] if it is enrolled: to give it
// another recipient, remove it first.
func (s *Store) AddHost(ctx context.Context, name, recipient, by string) (*Host, error) {
	if !strings.ContainsAny(name, ":/") && name != strings.ToLower(name) {
		return nil, &Argument{fmt.Sprintf("%q has capitals in it; DNS names of certificates are compared in lower case, so write it so", name)}
	}
	if name == "" || len(name) > maxHostName || strings.ContainsFunc(name, func(c rune) bool { return c <= ' ' || c >= 0x7f }) {
		return nil, &Argument{fmt.Sprintf("%.300q is no name of a host: a DNS name or a URI of at most %d characters is expected, as its certificate has it", name, maxHostName)}
	}
	if _, err := parseRecipient(recipient); err != nil {
		return nil, &Argument{err.Error()}
	}
	return s.changeHost(ctx, name, by, func(h *Host) (string, error) {
		if h.Revision != 0 && h.Removed.IsZero() {
			return "", fmt.Errorf("host %s: %w", name, ErrExists)
		}
		h.Recipient, h.Added, h.Removed = recipient, s.o.Now(), time.Time{}
		return "enrolled with recipient " + recipient, nil
	})
}

const maxHostName = 512

// RemoveHost removes a host, or returns [ErrNoHost]. The keys that it has it has.
func (s *Store) RemoveHost(ctx context.Context, name, by string) error {
	_, err := s.changeHost(ctx, name, by, func(h *Host) (string, error) {
		if h.Revision == 0 || !h.Removed.IsZero() {
			return "", fmt.Errorf("host %s: %w", name, ErrNoHost)
		}
		h.Removed = s.o.Now()
		return "removed", nil
	})
	return err
}

func (s *Store) changeHost(ctx context.Context, host, by string, f func(h *Host) (what string, err error)) (*Host, error) {
	for {
		h, name, version, err := s.host(ctx, host)
		if errors.Is(err, ErrNoHost) {
			h, err = &Host{Name: host}, nil
		}
		if err != nil {
			return nil, err
		}
		what, err := f(h)
		if err != nil {
			return nil, err
		}
		h.By, h.Mark = by, Mark{s.mark().Epoch, h.Revision + 1}
		err = s.keep(ctx, nil, sealed{name, version, h.wire()}, h.Mark)
		if err == nil {
			s.o.Audit(ctx, &audit.Event{Kind: audit.HostChanged, Time: s.o.Now(), Target: host, Text: fmt.Sprintf("by %s: %s", by, what)})
			return h, nil
		}
		if !errors.Is(err, ErrConflict) {
			return nil, err
		}
	}
}

// host reads the record of a host, removed or not.
func (s *Store) host(ctx context.Context, host string) (h *Host, name string, version uint64, err error) {
	if err := s.use(func(r *ring) error {
		name = r.hostName(host)
		return nil
	}); err != nil {
		return nil, "", 0, err
	}
	k, version, err := s.read(ctx, name, "")
	if errors.Is(err, errAbsent) {
		err = fmt.Errorf("host %s: %w", host, ErrNoHost)
	}
	return k.host, name, version, err
}

// Host returns a host that is enrolled, without Seen, or [ErrNoHost].
func (s *Store) Host(ctx context.Context, name string) (*Host, error) {
	h, _, _, err := s.host(ctx, name)
	if err == nil && !h.Removed.IsZero() {
		return nil, fmt.Errorf("host %s: %w; %s removed it on %s", name, ErrNoHost, h.By, h.Removed.UTC().Format(time.RFC3339))
	}
	return h, err
}

// Hosts returns all hosts that are enrolled, by name. Beside them there may be an error about those
// that are refused.
func (s *Store) Hosts(ctx context.Context) ([]*Host, error) {
	instances, _, err := s.instances(ctx)
	if err != nil {
		return nil, err
	}
	var hosts []*Host
	var refused []error
	for k, err := range s.list(ctx, hostPrefix, func(uint64) {}) {
		switch {
		case err != nil:
			refused = append(refused, err)
		case k.host.Removed.IsZero():
			for _, i := range instances {
				if at, ok := i.Hosts[k.host.Name]; ok && at.Add(i.ahead).After(k.host.Seen) {
					k.host.Seen = at.Add(i.ahead)
				}
			}
			hosts = append(hosts, k.host)
		}
	}
	slices.SortFunc(hosts, func(a, b *Host) int { return strings.Compare(a.Name, b.Name) })
	return hosts, errors.Join(refused...)
}

// Seen notes that an enrolled host is heard of now. Other instances are told within half a minute.
func (s *Store) Seen(host string) {
	s.hostsMu.Lock()
	defer s.hostsMu.Unlock()
	s.hosts[host] = s.o.Now()
}

// forgotten is after how long it is not known any more when a host was seen.
const forgotten = 30 * 24 * time.Hour

// beat writes what this instance says of itself.
func (s *Store) beat(ctx context.Context, stopped bool) error {
	s.beating.Lock()
	defer s.beating.Unlock()
	var name string
	i := instanceJSON{Name: s.o.Name, Seen: s.o.Now(), Stopped: stopped}
	for {
		if err := s.use(func(r *ring) error {
			name, i.Keyring = r.instanceName(s.o.Name), r.mark
			return nil
		}); err != nil {
			return err
		}
		record, err := s.b.Get(ctx, name)
		if err != nil {
			return err
		}
		var was instanceJSON
		if record.Version != 0 {
			if err := s.unseal(ctx, record, &was); err != nil {
				s.complain(ctx, "what this instance has said of itself cannot be read", err)
			}
		}
		s.hostsMu.Lock()
		for host, at := range was.Hosts { // of a former run
			if at.After(s.hosts[host]) {
				s.hosts[host] = at
			}
		}
		maps.DeleteFunc(s.hosts, func(_ string, at time.Time) bool { return i.Seen.Sub(at) > forgotten })
		i.Hosts = maps.Clone(s.hosts)
		s.hostsMu.Unlock()
		if err := s.commit(ctx, nil, sealed{name, record.Version, i}); err == nil {
			s.touched()
			return nil
		} else if !errors.Is(err, ErrConflict) {
			return err
		}
	}
}

// outOfTouch is how long after an instance has told the others of itself it may not speak for the store
// any more: two of three times that it did not come to that.
const outOfTouch = 50 * time.Second

// touched notes that the others were told.
func (s *Store) touched() {
	s.hostsMu.Lock()
	defer s.hostsMu.Unlock()
	now := s.o.Now()
	if now.Sub(s.told) > outOfTouch {
		s.touch = now
	}
	s.told = now
}

// InTouch returns since when this instance has been in touch with the others without a break; the zero
// time if it is not, as without its backend, or when it was revoked: then it does not know what they
// have changed, nor they which hosts it hears of.
func (s *Store) InTouch() time.Time {
	if s.use(func(*ring) error { return nil }) != nil {
		return time.Time{}
	}
	s.hostsMu.Lock()
	defer s.hostsMu.Unlock()
	if s.o.Now().Sub(s.told) > outOfTouch {
		return time.Time{}
	}
	return s.touch
}

// instances returns what the instances say of themselves; what is not theirs is left out.
func (s *Store) instances(ctx context.Context) (list map[string]instanceJSON, at uint64, err error) {
	records, at, err := s.b.List(ctx, instancePrefix)
	if err != nil {
		return nil, 0, err
	}
	list = map[string]instanceJSON{} // by the record's name
	for _, record := range records {
		var i instanceJSON
		if err := s.unseal(ctx, record, &i); err != nil {
			s.complain(ctx, "what an instance has said of itself cannot be read", err)
			continue
		}
		i.ahead = s.aheadOf(record.Name, i.Seen)
		list[record.Name] = i
	}
	// What this one knows it need not have told.
	s.hostsMu.Lock()
	defer s.hostsMu.Unlock()
	list[""] = instanceJSON{Name: s.o.Name, Keyring: s.mark(), Seen: s.o.Now(), Hosts: maps.Clone(s.hosts)}
	return list, at, nil
}

// heard is when this instance first saw that another one had told of itself at a time by its own clock.
type heard struct{ said, here time.Time }

// aheadOf returns what is to be added to times of another instance to have them by this one's clock,
// or somewhat later: from when it was seen that it had told of itself, and not from when it says so,
// since clocks of instances differ.
func (s *Store) aheadOf(record string, said time.Time) time.Duration {
	s.hostsMu.Lock()
	defer s.hostsMu.Unlock()
	h := s.heard[record]
	if !h.said.Equal(said) {
		h = heard{said, s.o.Now()}
		s.heard[record] = h
	}
	if ahead := h.here.Sub(said); ahead.Abs() <= maxAhead {
		return ahead
	}
	return 0
}

// maxAhead is by how much clocks may differ. What is older by more was said before this instance ran.
const maxAhead = 10 * time.Minute

// Acknowledge notes that a host has in force what was delivered to it of an entry at a mark.
func (s *Store) Acknowledge(ctx context.Context, host, principal string, m Mark) error {
	for {
		var name string
		if err := s.use(func(r *ring) error {
			name = r.ackName(principal, host)
			return nil
		}); err != nil {
			return err
		}
		record, err := s.b.Get(ctx, name)
		if err != nil {
			return err
		}
		var was ackJSON
		if record.Version != 0 {
			if err := s.unseal(ctx, record, &was); err == nil && was.Compare(m) >= 0 {
				return nil
			}
		}
		if err := s.commit(ctx, nil, sealed{name, record.Version, ackJSON{host, m}}); !errors.Is(err, ErrConflict) {
			return err
		}
	}
}

// Acknowledged returns what each host has acknowledged of an entry, by the host's name.
func (s *Store) Acknowledged(ctx context.Context, principal string) (map[string]Mark, error) {
	var prefix string
	if err := s.use(func(r *ring) error {
		prefix = r.acksName(principal)
		return nil
	}); err != nil {
		return nil, err
	}
	records, _, err := s.b.List(ctx, prefix)
	if err != nil {
		return nil, err
	}
	marks := map[string]Mark{}
	for _, record := range records {
		var ack ackJSON
		if err := s.unseal(ctx, record, &ack); err != nil {
			s.refused(ctx, &Refusal{reason.StoreRecordBad, "an acknowledgement cannot be opened: " + err.Error()}, record.Name, principal)
			continue // as if the host had said nothing
		}
		marks[ack.Host] = ack.Mark
	}
	return marks, nil
}

// Permits reports whether a host may have the keys.
func (p *Policy) Permits(host string) bool {
	return slices.ContainsFunc(p.Hosts, func(pattern string) bool { return matches(pattern, host) })
}

// matches reports whether a name is one of a pattern's, where a * stands for any number of characters
// but dots and slashes: what is between these is compared piece by piece.
func matches(pattern, name string) bool {
	const separators = "./"
	for {
		i, j := strings.IndexAny(pattern, separators), strings.IndexAny(name, separators)
		if i < 0 || j < 0 {
			return i == j && starred(pattern, name)
		}
		if pattern[i] != name[j] || !starred(pattern[:i], name[:j]) {
			return false
		}
		pattern, name = pattern[i+1:], name[j+1:]
	}
}

// starred reports whether s is what is between the stars of a pattern, in that order, with anything in
// their places.
func starred(pattern, s string) bool {
	first, rest, star := strings.Cut(pattern, "*")
	if !star {
		return s == pattern
	}
	s, ok := strings.CutPrefix(s, first)
	parts := strings.Split(rest, "*")
	last := parts[len(parts)-1]
	for _, part := range parts[:len(parts)-1] {
		_, after, found := strings.Cut(s, part)
		if s = after; !found {
			return false
		}
	}
	return ok && strings.HasSuffix(s, last)
}

// Deliver returns what a host gets of an entry, signed: its keys, sealed to the host, or that it may
// not have them any more and why: [reason.StoreNoRight], [reason.StoreDeleted] or
// [reason.StoreDisabled], which withdrawn is then; else it is empty.
func (s *Store) Deliver(h *Host, e *Entry) (b []byte, withdrawn reason.ID, err error) {
	d := &delivery.Delivery{
		Host: h.Name, Principal: e.Principal, Epoch: e.Epoch, Revision: e.Revision, Issued: s.o.Now(),
	}
	withdraw := func(id reason.ID, text string) { withdrawn, d.Withdrawn, d.Text = id, string(id), text }
	switch {
	case !h.Removed.IsZero():
		withdraw(reason.StoreNoRight, "the host is not enrolled any more")
	case !e.Policy.Permits(h.Name):
		withdraw(reason.StoreNoRight, "the entry's policy does not name the host")
	case !e.Deleted.IsZero():
		withdraw(reason.StoreDeleted, "the entry was deleted on "+e.Deleted.UTC().Format(time.RFC3339))
	case e.Disabled != "":
		withdraw(reason.StoreDisabled, "the entry is disabled: "+e.Disabled)
	default:
		d.Aliases, d.Rules = e.Aliases, e.Policy.Rules
		if d.Sealed, err = sealKeys(h, e); err != nil {
			return nil, "", fmt.Errorf("host %s, entry %s: %w", h.Name, e.Principal, err)
		}
	}
	err = s.use(func(r *ring) (err error) {
		b, err = delivery.Sign(d, r.signer)
		return err
	})
	return b, withdrawn, err
}

// sealKeys seals the keys of an entry to a host.
func sealKeys(h *Host, e *Entry) ([]byte, error) {
	recipient, err := parseRecipient(h.Recipient)
	if err != nil {
		return nil, err
	}
	var keys delivery.Keys
	for _, k := range e.Keys {
		keys = append(keys, delivery.Key{State: string(k.State), KVNO: k.KVNO, Enctype: int32(k.Enctype), Key: k.Secret, Since: k.Since.Unix()})
	}
	plain, err := json.Marshal(keys)
	if err != nil {
		return nil, err
	}
	defer clear(plain)
	return appendAge(nil, plain, recipient)
}
