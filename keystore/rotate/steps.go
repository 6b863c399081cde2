package rotate

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"gssproxyd/audit"
	"gssproxyd/keystore"
	"gssproxyd/keystore/kadm"
	"gssproxyd/keytab"
	"gssproxyd/mech"
	"gssproxyd/mech/krb5"
	"gssproxyd/mech/krb5/etype"
	"gssproxyd/mech/krb5/kdc"
	"gssproxyd/mech/reason"
)

// byRotation is who changes an entry when nobody has asked.
const byRotation = "rotation"

// usable returns why the keys of an entry cannot be rotated.
func usable(n *keystore.Entry) error {
	switch {
	case !n.Deleted.IsZero():
		return mech.Errorf(mech.Failure, 0, reason.RotationImpossible, "%s was deleted from the store", n.Principal)
	case n.Disabled != "":
		return mech.Errorf(mech.Failure, 0, reason.RotationImpossible, "%s is disabled (%s): enable it first, its hosts have no keys", n.Principal, n.Disabled)
	case newest(n, keystore.Current) == nil:
		return mech.Errorf(mech.Failure, 0, reason.RotationImpossible, "the store has no current key of %s: import its keytab", n.Principal)
	}
	return nil
}

// realm returns whose keys these are and how they are changed.
func (e *Engine) realm(n *keystore.Entry) (p krb5.Principal, r *Realm, err error) {
	if p, err = krb5.ParsePrincipal(n.Principal, ""); err != nil {
		return p, nil, err
	}
	if r, err = e.o.Realm(p.Realm); err != nil {
		err = mech.Errorf(mech.Failure, 0, reason.RotationImpossible, "%v", err)
	}
	return p, r, err
}

// keys gives an entry's keys in a state to log in with.
func keys(n *keystore.Entry, state keystore.KeyState) kdc.KeySource {
	var entries []keytab.Entry
	for _, k := range n.Keys {
		if k.State == state {
			entries = append(entries, keytab.Entry{Principal: n.Principal, KVNO: k.KVNO, Enctype: k.Enctype, Key: k.Secret})
		}
	}
	return kdc.Keytab(keytab.Compile("the store, "+string(state), entries))
}

// begin is steps 1 and 2.
func (h *held) begin(ctx context.Context, by string, force bool) error {
	n := h.entry
	if err := usable(n); err != nil {
		return err
	}
	p, realm, err := h.realm(n)
	if err != nil {
		return err
	}
	var rec kadm.Record
	err = h.do("record", func() error {
		ctx, cancel := context.WithTimeout(ctx, changeWithin)
		defer cancel()
		rec, err = realm.KDC.Record(ctx, kadm.Self{Principal: p, Keys: keys(n, keystore.Current)})
		return err
	})
	if err != nil {
		return err
	}
	if rec.LockedDown {
		return mech.Errorf(mech.Failure, 0, reason.KeyChangeRefused, "%s has lockdown_keys at the KDC", n.Principal)
	}
	password := newPassword()
	defer password.Zero()
	made, err := kadm.Keys(password, realm.Salt(p), enctypes(realm, rec))
	if err != nil {
		return err
	}
	defer destroy(made)

	// A login with the current keys has shown that they are the KDC's newest: so is its version.
	kvno := newest(n, keystore.Current).KVNO
	if rec.KVNO > kvno {
		kvno = rec.KVNO
	}
	what := fmt.Sprintf("rotation begun: kvno %d is pending", kvno+1)
	return h.change(ctx, "store", by, what, func(n *keystore.Entry) {
		now := h.o.Now()
		for i := range n.Keys {
			if k := &n.Keys[i]; k.State == keystore.Current {
				k.KVNO = kvno
			}
		}
		for _, k := range made {
			n.Keys = append(n.Keys, keystore.Key{
				State: keystore.Pending, KVNO: kvno + 1, Enctype: k.Enctype(), Secret: slices.Clone(k.Secret()), Since: now,
			})
		}
		n.Rotation = &keystore.Rotation{
			Password: slices.Clone(password), Step: keystore.Stored, Since: now, Begun: now, After: n.Mark, Keep: realm.keep(rec), Force: force,
		}
	})
}

// newPassword returns 32 random bytes in base64url. It has characters of four classes, as password
// policies ask for, which by chance every fourth one would lack.
func newPassword() etype.Secret {
	random := make([]byte, 32)
	defer clear(random)
	for {
		rand.Read(random)
		p := etype.Secret(base64.RawURLEncoding.AppendEncode(nil, random))
		if bytes.ContainsAny(p, lower) && bytes.ContainsAny(p, upper) && bytes.ContainsAny(p, "0123456789") && bytes.ContainsAny(p, "-_") {
			return p
		}
		p.Zero()
	}
}

const (
	lower = "abcdefghijklmnopqrstuvwxyz"
	upper = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
)

// enctypes are those that the KDC may use.
func enctypes(r *Realm, rec kadm.Record) (ids []etype.ID) {
	if len(r.Enctypes) > 0 {
		return r.Enctypes
	}
	for _, k := range rec.Keys {
		if k.KVNO == rec.Keys[0].KVNO && k.Enctype.Supported() && !slices.Contains(ids, k.Enctype) {
			ids = append(ids, k.Enctype)
		}
	}
	if len(ids) == 0 {
		return etype.AllSupported()
	}
	return ids
}

// keep returns how long after a change of keys a ticket made with the old ones can be good.
func (r *Realm) keep(rec kadm.Record) time.Duration {
	life, renewable := rec.MaxLife, rec.MaxRenewable
	if life == 0 && renewable == 0 {
		life, renewable = r.MaxLife, r.MaxRenewable
	}
	return life + renewable + r.Skew + r.Lag
}

// acknowledge is step 3, when there is nobody to wait for, or the time for it is over.
func (h *held) acknowledge(ctx context.Context) error {
	r, err := h.roll(ctx, h.entry)
	if err != nil {
		return err
	}
	what := fmt.Sprintf("acknowledged by %s", number(len(r.ready), "host"))
	if len(r.awaited) > 0 {
		if !h.late(h.entry) {
			return errMoved
		}
		if !h.entry.Rotation.Force {
			return mech.Errorf(mech.Failure, 0, reason.RotationUnacknowledged, "%s: live hosts have not acknowledged the pending keys: %s", h.entry.Principal, strings.Join(r.awaited, ", "))
		}
		what += "; forced on without " + strings.Join(r.awaited, ", ")
	}
	if len(r.dead) > 0 {
		what += "; not waited for, since not heard of: " + strings.Join(r.dead, ", ")
	}
	return h.set(ctx, keystore.Acknowledged, what)
}

// set writes that a step is done.
func (h *held) set(ctx context.Context, step keystore.Step, what string) error {
	return h.change(ctx, string(step), byRotation, what, func(n *keystore.Entry) {
		n.Rotation.Step, n.Rotation.Since, n.Rotation.Alarm = step, h.o.Now(), ""
	})
}

// send is steps 4 and 5. If it must not be sent yet it returns how long to wait.
func (h *held) send(ctx context.Context) (wait time.Duration, err error) {
	p, realm, err := h.realm(h.entry)
	if err != nil {
		return 0, err
	}
	prober := realm.Prober(p)
	defer prober.Close()
	tgt := []kdc.KeySource{keys(h.entry, keystore.Current)}
	if h.entry.Rotation.Step == keystore.Sent {
		tgt = append(tgt, keys(h.entry, keystore.Pending))
	}
	err = h.do("login", func() error { return prober.Login(ctx, tgt...) })
	if (errors.Is(err, reason.PreauthFailed) || errors.Is(err, reason.NoKey)) && len(tgt) > 1 && h.left(realm) > 0 {
		return poll, nil // the KDCs do not know the same keys yet
	}
	if err != nil {
		return 0, err
	}
	if done, err := h.verify(ctx, prober); done || err != nil {
		return 0, err
	}
	if h.entry.Rotation.Step == keystore.Sent {
		if h.left(realm) > 0 {
			return poll, nil
		}
	}
	if err := h.set(ctx, keystore.Sent, "the KDC is asked"); err != nil {
		return 0, err
	}
	err = h.do("change", func() error {
		if h.o.Now().Sub(h.entry.Rotation.Since) > sendWithin || isLost(h.lock) {
			return errMoved // whoever has the lock now counts on it that nothing is sent any more
		}
		ctx, cancel := context.WithTimeout(ctx, changeWithin)
		defer cancel()
		return realm.KDC.Change(ctx, kadm.Self{Principal: p, Keys: tgt[0]}, h.entry.Rotation.Password, pendingTypes(h.entry))
	})
	switch {
	case errors.Is(err, reason.KeyChangeUnknown):
		h.o.Log.Warn("the KDC's answer is lost; it is asked which key it has", "principal", h.entry.Principal, "err", err)
		return poll, nil
	case refused(err) && ctx.Err() == nil:
		if err := h.set(ctx, keystore.Acknowledged, "the KDC has not changed the key"); err != nil {
			return 0, err
		}
		return 0, err
	case err != nil:
		return 0, err
	}
	for { // not every KDC may have it yet
		if done, err := h.verify(ctx, prober); done || err != nil {
			return 0, err
		}
		if h.left(realm) <= 0 && !h.sentOften(h.entry) {
			// MIT's KDC with a database of type db2 writes back what it has read of a principal that
			// logs in, to note when it did: a change that comes in between is lost.
			h.o.Log.Warn("the KDC has lost the change that it says it has made; it is asked again", "principal", h.entry.Principal)
			return poll, nil
		}
		if h.left(realm) <= 0 {
			return 0, mech.Errorf(mech.Failure, 0, reason.RotationUnverified, "%s: the KDC says that it has changed the key, and tickets are still made with the old one", h.entry.Principal)
		}
		if err := sleep(ctx, poll); err != nil {
			return 0, err
		}
	}
}

// left returns how long it is uncertain what became of the request.
func (h *held) left(r *Realm) time.Duration {
	return r.settled() - h.sentFor(h.entry)
}

// refused reports whether an error of a change says that it was not made.
func refused(err error) bool {
	var m *mech.Error
	return errors.As(err, &m) && m.Reason != reason.KeyChangeUnknown
}

// verify is step 5: if the KDC makes tickets with a pending key, the pending keys are the current
// ones.
func (h *held) verify(ctx context.Context, prober Prober) (done bool, err error) {
	var candidates []*etype.Key
	defer func() { destroy(candidates) }()
	pending := 0 // how many of them are, the first ones
	for _, state := range []keystore.KeyState{keystore.Pending, keystore.Current} {
		for _, k := range h.entry.Keys {
			if k.State != state {
				continue
			}
			key, err := etype.NewKey(k.Enctype, k.Secret)
			if err != nil {
				return false, err
			}
			candidates = append(candidates, key)
			if state == keystore.Pending {
				pending++
			}
		}
	}
	var i int
	var kvno uint32
	err = h.do("probe", func() error {
		i, kvno, err = prober.Probe(ctx, candidates)
		return err
	})
	if err != nil || i >= pending {
		return false, err
	}
	return true, h.commit(ctx, kvno)
}

// commit makes the pending keys current, with the version that the KDC gives them.
func (h *held) commit(ctx context.Context, kvno uint32) error {
	until := h.o.Now().Add(h.entry.Rotation.Keep)
	what := fmt.Sprintf("rotated: kvno %d is current, the one before it is kept until %s", kvno, until.UTC().Format(time.RFC3339))
	err := h.change(ctx, "commit", byRotation, what, func(n *keystore.Entry) {
		now := h.o.Now()
		for i := range n.Keys {
			switch k := &n.Keys[i]; k.State {
			case keystore.Current:
				k.State, k.Since, k.Until = keystore.Previous, now, until
			case keystore.Previous:
				if k.Until.IsZero() { // it was imported as that
					k.Until = until
				}
			case keystore.Pending:
				k.State, k.Since, k.KVNO = keystore.Current, now, kvno
			}
		}
		n.Rotation.Password.Zero()
		n.Rotation = nil
	})
	if err == nil {
		h.mu.Lock()
		delete(h.sent, h.entry.Principal)
		h.mu.Unlock()
		h.o.Log.Info("keys rotated", "principal", h.entry.Principal, "kvno", kvno)
	}
	return err
}

// forget is step 6: at the KDC, then here.
func (h *held) forget(ctx context.Context) error {
	now, from := h.o.Now(), ^uint32(0)
	for _, k := range h.entry.Keys {
		if !over(&k, now) {
			from = min(from, k.KVNO)
		}
	}
	p, realm, err := h.realm(h.entry)
	if err != nil {
		return err
	}
	err = h.do("purge", func() error {
		ctx, cancel := context.WithTimeout(ctx, changeWithin)
		defer cancel()
		err := realm.KDC.Purge(ctx, kadm.Self{Principal: p, Keys: keys(h.entry, keystore.Current)}, from)
		if errors.Is(err, errors.ErrUnsupported) {
			return nil // it has no old keys, or keeps them as long as it likes
		}
		return err
	})
	if err != nil {
		return err
	}
	what := fmt.Sprintf("previous keys before kvno %d are forgotten", from)
	return h.change(ctx, "forget", byRotation, what, func(n *keystore.Entry) {
		n.Keys = slices.DeleteFunc(n.Keys, func(k keystore.Key) bool {
			if !over(&k, now) {
				return false
			}
			k.Secret.Zero()
			return true
		})
	})
}

// over reports whether no ticket made with a key can be good any more.
func over(k *keystore.Key, now time.Time) bool {
	return k.State == keystore.Previous && !k.Until.IsZero() && !now.Before(k.Until)
}

// stop writes why a rotation does not begin or go on, unless it says so already. It returns why; or
// that somebody else has gone on, in which case nothing is wrong.
func (h *held) stop(ctx context.Context, why error) error {
	var m *mech.Error
	if !errors.As(why, &m) || m.Reason == "" {
		return why
	}
	if h.entry.Rotation == nil {
		n, err := h.o.Store.Entry(ctx, h.entry.Principal)
		if err != nil {
			return why
		}
		defer n.Zero()
		if n.Rotation != nil || !sameKeys(n, h.entry) {
			return errMoved
		}
	} else {
		if h.entry.Rotation.Alarm == why.Error() {
			return why
		}
		err := h.change(ctx, "alarm", byRotation, "stops: "+why.Error(), func(n *keystore.Entry) {
			n.Rotation.Alarm = why.Error()
		})
		if overtaken(err) {
			return err
		}
		if err != nil {
			h.o.Log.Error("cannot write that a rotation does not go on", "principal", h.entry.Principal, "err", err)
		}
	}
	h.o.Log.Error("keys are not rotated", "principal", h.entry.Principal, "err", why)
	h.o.Audit(ctx, &audit.Event{
		Kind: audit.RotationStopped, Principal: h.entry.Principal, Reason: string(m.Reason), Text: m.Text,
	})
	return why
}

func pendingTypes(n *keystore.Entry) (ids []etype.ID) {
	for _, k := range n.Keys {
		if k.State == keystore.Pending {
			ids = append(ids, k.Enctype)
		}
	}
	return ids
}

func destroy(keys []*etype.Key) {
	for _, k := range keys {
		k.Destroy()
	}
}

func isLost(l keystore.Lock) bool {
	select {
	case <-l.Lost():
		return true
	default:
		return false
	}
}

func number(n int, of string) string {
	if n != 1 {
		of += "s"
	}
	return fmt.Sprintf("%d %s", n, of)
}
