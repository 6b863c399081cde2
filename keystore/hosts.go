package keystore

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
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
		err = s.keep(ctx, nil, sealed{name, version, h.wire()}, h.Mark, audit.Event{Kind: audit.HostChanged, Time: s.o.Now(), Target: host, Text: fmt.Sprintf("by %s: %s", by, what)})
		if err == nil {
			s.place(nil, kept{record: name, host: h}, nil)
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
	k, version, err := s.read(ctx, name, host)
	if errors.Is(err, errAbsent) {
		err = fmt.Errorf("host %s: %w", host, ErrNoHost)
	}
	return k.host, name, version, err
}

// enrolled returns nil, or if the host was removed [ErrNoHost].
func (h *Host) enrolled() error {
	if h.Removed.IsZero() {
		return nil
	}
	return fmt.Errorf("host %s: %w; %s removed it on %s", h.Name, ErrNoHost, h.By, h.Removed.UTC().Format(time.RFC3339))
}

// Hosts returns all hosts that are enrolled, by name, and of those whose records are refused why.
func (s *Store) Hosts(ctx context.Context) (hosts []*Host, refused []error, err error) {
	if _, _, err := s.instances(ctx); err != nil { // what they have said up to now
		return nil, nil, err
	}
	for k, err := range s.list(ctx, hostPrefix, func(uint64) {}) {
		if r, is := errors.AsType[*Refusal](err); is {
			refused = append(refused, fmt.Errorf("host %s: %w", cmp.Or(s.nameOf(k.record), k.record), r))
			continue
		} else if err != nil {
			return nil, nil, err
		}
		if k.host.Removed.IsZero() {
			s.hostsMu.Lock()
			k.host.Seen = s.seen(idOf(k.record))
			s.hostsMu.Unlock()
			hosts = append(hosts, k.host)
		}
	}
	slices.SortFunc(hosts, func(a, b *Host) int { return strings.Compare(a.Name, b.Name) })
	return hosts, refused, nil
}

// Permits reports whether a host may have the keys.
func (p *Policy) Permits(host string) bool {
	return slices.ContainsFunc(p.Hosts, func(pattern string) bool {
		return pattern == host || strings.Contains(pattern, "*") && matches(pattern, host)
	})
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

// Deliver returns what a host gets of an entry that it has asked for by its principal or an alias,
// signed: its keys, sealed to the host, or that it may not have them any more and why:
// [reason.StoreNoRight], [reason.StoreDeleted] or [reason.StoreDisabled], which withdrawn is then;
// else it is empty.
func (s *Store) Deliver(h *Host, e *Entry, asked string) (b []byte, withdrawn reason.ID, err error) {
	d := &delivery.Delivery{
		Host: h.Name, Principal: e.Principal, Epoch: e.Epoch, Revision: e.Revision, Issued: s.o.Now(),
	}
	withdraw := func(id reason.ID, text string) { // and no other name of it
		withdrawn, d.Principal, d.Withdrawn, d.Text = id, asked, string(id), text
	}
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

// seconds returns a time in Unix seconds, 0 for the zero time.
func seconds(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.Unix()
}

// sealKeys seals the keys of an entry to a host.
func sealKeys(h *Host, e *Entry) ([]byte, error) {
	recipient, err := parseRecipient(h.Recipient)
	if err != nil {
		return nil, err
	}
	var keys delivery.Keys
	for _, k := range e.Keys {
		keys = append(keys, delivery.Key{State: string(k.State), KVNO: k.KVNO, Enctype: int32(k.Enctype), Key: k.Secret, Since: k.Since.Unix(), Until: seconds(k.Until)})
	}
	plain, err := json.Marshal(keys)
	if err != nil {
		return nil, err
	}
	defer clear(plain)
	return appendAge(nil, plain, recipient)
}
