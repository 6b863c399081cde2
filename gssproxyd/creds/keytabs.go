package creds

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"gssproxyd/audit"
	"gssproxyd/keytab"
	"gssproxyd/mech"
	"gssproxyd/mech/krb5"
	"gssproxyd/mech/krb5/etype"
	"gssproxyd/mech/krb5/kdc"
	"gssproxyd/mech/reason"
)

// KeytabState is how a keytab is that services have open.
type KeytabState struct {
	keytab.State
	Uses []KeytabUse // sorted
}

// KeytabUse is a service that has a keytab open, and for which key of cred_store.
type KeytabUse struct{ Service, As string }

// Keytabs returns how the keytabs are that the services of the configuration in force have open,
// sorted by their names. Those of users are open once the user has called.
func (h *Holder) Keytabs() []KeytabState {
	g := h.Current()
	if g == nil {
		return nil
	}
	now, skew := h.log.Now(), time.Duration(0)
	uses := make(map[*keytab.Keytab][]KeytabUse)
	for _, s := range g.Services {
		skew = s.Krb5.Clockskew // krb5.conf's, the same for all
		s.eachStore(func(st *store) {
			for as, k := range map[string]*keytab.Keytab{"keytab": st.keytab, "client_keytab": st.clientKeytab} {
				if use := (KeytabUse{s.Name, as}); k != nil && !slices.Contains(uses[k], use) {
					uses[k] = append(uses[k], use)
				}
			}
		})
	}
	list := make([]KeytabState, 0, len(uses))
	for k, of := range uses {
		slices.SortFunc(of, func(a, b KeytabUse) int {
			return cmp.Or(strings.Compare(a.Service, b.Service), -strings.Compare(a.As, b.As))
		})
		list = append(list, KeytabState{k.State(now, skew), of})
	}
	slices.SortFunc(list, func(a, b KeytabState) int { return strings.Compare(a.Source, b.Source) })
	return list
}

// eachStore calls f for what the service has open.
func (s *Service) eachStore(f func(*store)) {
	if s.fixed != nil {
		f(s.fixed)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, st := range s.stores {
		f(st)
	}
}

// note notes which key has opened the ticket of a token, or that none has.
func (a *Acceptor) note(accepted *krb5.Accepted, err error) {
	if key, start, end := accepted.Opened(); key != nil {
		key.Use.Opened(a.at.Unix(), int64(start), int64(end))
	} else if e, ok := errors.AsType[*mech.Error](err); ok && e.Reason != reason.NoKeytab && keyMayBeNew(e.Reason) {
		var name [128]byte
		server, kvno, et := accepted.Unopened(name[:0])
		a.keytab.Missed(a.Keys.(*keytab.Ring), server, kvno, et, a.at)
	}
}

// loginWith gets a ticket-granting ticket with a key of a ring, and notes which that was.
func (s *Service) loginWith(ctx context.Context, client krb5.Principal, ring *keytab.Ring, opt kdc.LoginOptions) (*krb5.Credential, error) {
	keys := &usedKeys{KeySource: kdc.Keytab(ring)}
	tgt, err := s.kdc.Login(ctx, client, keys, opt)
	if err == nil && keys.last != nil { // nil: another call has asked meanwhile, with these keys, and notes it
		for _, k := range ring.ByPrincipal(keys.of.AppendString(nil)) {
			if k.Key == keys.last {
				k.Use.Initiated(s.log.Now().Unix())
			}
		}
	}
	return tgt, err
}

// usedKeys remember which key was asked for last: with that one an exchange ends that succeeds.
type usedKeys struct {
	kdc.KeySource
	of   krb5.Principal
	last *etype.Key
}

// Key implements [kdc.KeySource].
func (u *usedKeys) Key(client krb5.Principal, h kdc.KeyHint) *etype.Key {
	key := u.KeySource.Key(client, h)
	if key != nil {
		u.of, u.last = client, key
	}
	return key
}

// maxKeyEvents is of how many versions of keys there are events when a keytab changes. The digest is
// of all.
const maxKeyEvents = 256

// keysChanged records what has become of the keys of a keytab. That they are not in use any more
// because the daemon ends is no event.
func (h *Holder) keysChanged(former, ring *keytab.Ring) {
	if h.closing.Load() {
		return
	}
	changes := ring.Changes(former)
	if len(changes) == 0 {
		return
	}
	now, digest, left := h.log.Now(), ring.Digest(), 0
	if n := len(changes) - maxKeyEvents; n > 0 {
		changes, left = changes[:maxKeyEvents], n
	}
	for i, c := range changes {
		text := ""
		if left > 0 && i == len(changes)-1 {
			text = fmt.Sprintf("and %d more versions of keys have changed", left)
		}
		for _, what := range []struct {
			kind audit.Kind
			ids  []etype.ID
		}{{audit.KeyLoaded, c.Loaded}, {audit.KeyReplaced, c.Replaced}, {audit.KeyPruned, c.Pruned}} {
			if len(what.ids) > 0 {
				h.record(context.Background(), &audit.Event{ // whatever becomes of that, the keys are what they are
					Kind: what.kind, Time: now, Source: ring.Name(), Principal: c.Principal, KVNO: c.KVNO,
					Enctype: strings.Join(namesOf(what.ids), ", "), Digest: digest, Text: text,
				})
			}
		}
	}
}
