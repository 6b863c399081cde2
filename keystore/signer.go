package keystore

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"gssproxyd/keystore/delivery"
)

// The signer is changed in two steps, since it has to be in the configuration of every instance and host
// before it signs anything. Each step is a keyring of its own; the one with which the new signer begins
// is the first that it signs.

// Signers are the public keys of those who sign for a store.
type Signers struct {
	Current ed25519.PublicKey
	Next    ed25519.PublicKey // that is to come; nil: none
	Former  ed25519.PublicKey // while entries are not all signed anew; nil: they are
}

// Signers returns who signs here, and who is to.
func (s *Store) Signers() (p Signers, err error) {
	err = s.use(func(r *ring) error {
		p = Signers{publicOf(r.Seed), publicOf(r.Next), bytes.Clone(r.Former)}
		return nil
	})
	return p, err
}

// NewSigner makes the signer that is to come, which signs nothing before [Store.SwitchSigner]. If there
// is one, that stays.
func (s *Store) NewSigner(ctx context.Context, by string) error {
	return s.changeKeyring(ctx, by, func(k *keyring) (string, error) {
		switch {
		case k.Former != nil:
			return "", &Argument{"a change of the signer is not finished: keystored master signer switch goes on with it"}
		case k.Next != nil:
			return "", errAsIs
		}
		k.Next = make([]byte, ed25519.SeedSize)
		rand.Read(k.Next)
		return "the next signer is " + delivery.FormatSigner(publicOf(k.Next)), nil
	})
}

// SwitchSigner makes the next signer the one that signs, and gives each entry a revision, so that all
// that hosts have is signed by it. When it was killed it is called again, and goes on. An instance that
// lives and does not have the signer in its configuration is an error that names it, unless force is
// given: it then changes nothing any more. progress is told what is done, in words.
func (s *Store) SwitchSigner(ctx context.Context, by string, force bool, progress func(string)) (err error) {
	lock, err := s.b.Lock(ctx, "master")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, lock.Unlock(ctx)) }()
	if _, err := s.refresh(ctx); err != nil {
		return err
	}
	p, err := s.Signers()
	if err != nil {
		return err
	}
	if p.Next != nil {
		if err := s.believed(ctx, p.Next, force); err != nil {
			return err
		}
	}
	if err := s.changeKeyring(ctx, by, func(k *keyring) (string, error) {
		next := publicOf(k.Next)
		switch {
		case next == nil && k.Former != nil:
			progress("going on with a change of the signer that was not finished")
			return "", errAsIs
		case next == nil:
			return "", &Argument{"there is no next signer: keystored master signer new makes one"}
		case !bytes.Equal(next, p.Next):
			return "", &Argument{"the next signer was changed meanwhile: look at keystored master signer show"}
		}
		k.Former = publicOf(k.Seed)
		clear(k.Seed)
		k.Seed, k.Next = k.Next, nil
		return fmt.Sprintf("%s signs, and %s does not any more", delivery.FormatSigner(next), delivery.FormatSigner(k.Former)), nil
	}); err != nil {
		return err
	}
	if err := s.signAnew(ctx, by, progress); err != nil {
		return err
	}
	return s.changeKeyring(ctx, by, func(k *keyring) (string, error) {
		if k.Former == nil {
			return "", errAsIs
		}
		what := "all entries are signed anew, and nothing is left that hosts need of signer " + delivery.FormatSigner(k.Former)
		k.Former = nil
		return what, nil
	})
}

// believed returns an error that names the instances that live and do not believe a signer.
func (s *Store) believed(ctx context.Context, signer ed25519.PublicKey, force bool) error {
	line := delivery.FormatSigner(signer)
	if !slices.ContainsFunc(s.o.Signers, func(k ed25519.PublicKey) bool { return bytes.Equal(k, signer) }) {
		return &Argument{fmt.Sprintf("the configuration of this instance does not name the next signer: write signer = %s there, and start it again", line)}
	}
	instances, _, err := s.instances(ctx)
	if err != nil {
		return err
	}
	now := s.o.Now()
	var without, gone []string
	for name, i := range instances {
		switch {
		case name == "" || i.Name == s.o.Name || i.Stopped || slices.Contains(i.Signers, line):
		case now.Sub(i.Seen) > silent:
			gone = append(gone, i.Name)
		default:
			without = append(without, i.Name)
		}
	}
	slices.Sort(without)
	slices.Sort(gone)
	switch {
	case force || len(without)+len(gone) == 0:
		return nil
	case len(without) > 0:
		return &Argument{fmt.Sprintf("these instances do not have it in their configuration, and would change nothing any more: %s; write signer = %s there, and start them again; --force goes on without", strings.Join(without, ", "), line)}
	}
	return &Argument{fmt.Sprintf("not heard of for %v, and without the next signer when they were: %s; start them with signer = %s or, if they are no more, revoke them; --force goes on without", silent, strings.Join(gone, ", "), line)}
}

// signAnew gives each entry a revision: hosts get a delivery of it, which the signer of now has signed.
func (s *Store) signAnew(ctx context.Context, by string, progress func(string)) error {
	done, refused := 0, 0
	for e, err := range s.Entries(ctx) {
		if _, bad := errors.AsType[*Refusal](err); bad {
			refused++ // hosts get nothing of it, whoever signs
			continue
		}
		if err != nil {
			return err
		}
		principal := e.Principal
		e.Zero()
		changed, err := s.Change(ctx, nil, principal, by, "signed anew: the store has another signer", func(*Entry) error { return nil })
		if err != nil {
			return fmt.Errorf("%s: %w", principal, err)
		}
		changed.Zero()
		if done++; done%1000 == 0 {
			progress(fmt.Sprintf("%d entries are signed anew", done))
		}
	}
	progress(fmt.Sprintf("%d entries are signed anew", done))
	if refused > 0 {
		progress(fmt.Sprintf("%d entries are not believed and were left as they are; keystored list says why", refused))
	}
	return nil
}

// A HostBehind is a host that does not have in force what the store has of some entries.
type HostBehind struct {
	Name       string
	Seen       time.Time // when some instance has heard of it last; zero: never
	Principals []string
}

// Behind returns the enrolled hosts that use entries, other than those that were deleted, and have not acknowledged how these are now, by
// name: of those that were heard of since the signer was switched, the ones that do not believe it.
func (s *Store) Behind(ctx context.Context) ([]HostBehind, error) {
	hosts, _, err := s.Hosts(ctx) // of those that are refused, keystored host list says so
	if err != nil {
		return nil, err
	}
	enrolled := make(map[string]*Host, len(hosts))
	for _, h := range hosts {
		enrolled[h.Name] = h
	}
	acks, err := s.acknowledgements(ctx)
	if err != nil {
		return nil, err
	}
	behind := make(map[string][]string)
	for e, err := range s.Entries(ctx) {
		if _, refused := errors.AsType[*Refusal](err); refused {
			continue
		}
		if err != nil {
			return nil, err
		}
		if !e.Deleted.IsZero() {
			continue // nobody has to have anything of it, and who has none of its services never asks again
		}
		var prefix string
		err = s.use(func(r *ring) error {
			prefix = r.acksName(e.Principal)
			return nil
		})
		has := acks[prefix]
		for _, host := range e.Policy.Hosts { // one that the policy names uses the entry, whatever it has said
			if _, said := has[host]; !said && enrolled[host] != nil {
				behind[host] = append(behind[host], e.Principal)
			}
		}
		for host, mark := range has {
			if enrolled[host] != nil && e.Policy.Permits(host) && mark.Compare(e.Mark) < 0 {
				behind[host] = append(behind[host], e.Principal)
			}
		}
		if e.Zero(); err != nil {
			return nil, err
		}
	}
	var list []HostBehind
	for _, name := range slices.Sorted(maps.Keys(behind)) {
		slices.Sort(behind[name])
		list = append(list, HostBehind{name, enrolled[name].Seen, behind[name]})
	}
	return list, nil
}

// acknowledgements returns all of them, by the prefix of their records' names, which an entry has, and by
// host.
func (s *Store) acknowledgements(ctx context.Context) (map[string]map[string]Mark, error) {
	records, _, err := s.b.List(ctx, ackPrefix)
	if err != nil {
		return nil, err
	}
	acks := make(map[string]map[string]Mark)
	for _, record := range records {
		var a ackJSON
		if s.unseal(ctx, record, &a) != nil {
			continue // as if the host had said nothing
		}
		prefix := record.Name[:strings.LastIndexByte(record.Name, '/')+1]
		if acks[prefix] == nil {
			acks[prefix] = make(map[string]Mark)
		}
		acks[prefix][a.Host] = a.Mark
	}
	return acks, nil
}

func formatSigners(keys []ed25519.PublicKey) (list []string) {
	for _, k := range keys {
		list = append(list, delivery.FormatSigner(k))
	}
	return list
}

// memberNames names members in words.
func memberNames(members []Member) string {
	var names []string
	for _, m := range members {
		names = append(names, m.Name)
	}
	return strings.Join(names, ", ")
}
