package creds

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"gssproxyd/audit"
	"gssproxyd/keytab"
	"gssproxyd/mech"
	"gssproxyd/mech/krb5"
	"gssproxyd/mech/krb5/etype"
	"gssproxyd/mech/krb5/kdc"
	"gssproxyd/mech/reason"
)

// loginWith gets a ticket-granting ticket with a key of a ring, and notes which that was. Between the
// change of a key at the KDC and the news of that only a pending key is good there: those are tried
// once the KDC has refused the others, and never before, since what it refuses it may count.
func (s *Service) loginWith(ctx context.Context, client krb5.Principal, ring *keytab.Ring, opt kdc.LoginOptions) (*krb5.Credential, error) {
	tgt, err := s.loginFrom(ctx, client, ring, kdc.Keytab(ring), opt)
	if e, ok := errors.AsType[*mech.Error](err); ok && e.Reason == reason.PreauthFailed && slices.ContainsFunc(ring.ByPrincipal(client.AppendString(nil)), func(k *etype.ServiceKey) bool { return k.Pending }) {
		if tgt, bad := s.loginFrom(ctx, client, ring, kdc.Pending(ring), opt); bad == nil {
			return tgt, nil
		}
	}
	return tgt, err
}

// loginFrom is loginWith for some of the ring's keys.
func (s *Service) loginFrom(ctx context.Context, client krb5.Principal, ring *keytab.Ring, from kdc.KeySource, opt kdc.LoginOptions) (*krb5.Credential, error) {
	keys := &usedKeys{KeySource: from}
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
func (s *shared) keysChanged(former, ring *keytab.Ring) {
	if s.closing.Load() {
		return
	}
	changes := ring.Changes(former)
	if len(changes) == 0 {
		return
	}
	now, digest, left := s.log.Now(), ring.Digest(), 0
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
				s.record(context.Background(), &audit.Event{ // whatever becomes of that, the keys are what they are
					Kind: what.kind, Time: now, Source: ring.Name(), Principal: c.Principal, KVNO: c.KVNO,
					Enctype: strings.Join(namesOf(what.ids), ", "), Digest: digest, Text: text,
				})
			}
		}
	}
}
