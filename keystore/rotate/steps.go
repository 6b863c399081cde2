package rotate

import (
	"bytes"
	"cmp"
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

// maxPrevious is of how many versions previous keys are kept at the most: enough for who rotates again
// and again by hand, and far from the 256 after which versions in some keytabs come back.
const maxPrevious = 64

// crowded returns an error if previous keys of so many versions are kept that there is to be no other.
func crowded(n *keystore.Entry) error {
	versions, first := make(map[uint32]bool), time.Time{}
	for _, k := range n.Keys {
		if k.State == keystore.Previous && !k.Until.IsZero() {
			versions[k.KVNO] = true
			first = earlier(first, k.Until)
		}
	}
	if len(versions) < maxPrevious {
		return nil
	}
	return mech.Errorf(mech.Failure, 0, reason.RotationImpossible, "the keys of %s were changed so often that %d former versions are kept, for tickets that are good still: it can be rotated again after %s", n.Principal, len(versions), first.UTC().Format(time.RFC3339))
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
	if err := cmp.Or(usable(n), crowded(n)); err != nil {
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
	if refusesKeys(err) {
		return changedElsewhere(n, err)
	}
	if err != nil {
		return err
	}
	if rec.LockedDown {
		return mech.Errorf(mech.Failure, 0, reason.KeyChangeRefused, "%s has lockdown_keys at the KDC", n.Principal)
	}
	password := newPassword()
	defer password.Zero()
	types := enctypes(realm, rec, n)
	if rec.Ticket != 0 && !slices.Contains(types, rec.Ticket) {
		return mech.Errorf(mech.Failure, 0, reason.RotationImpossible, "the KDC makes tickets for %s with a key of type %v, and new keys would be of %s: no host could open them; in Active Directory, set msDS-SupportedEncryptionTypes of the account to 24, which is AES; or add the type to enctypes of [realm/%s]",
			n.Principal, rec.Ticket, strings.Trim(fmt.Sprint(types), "[]"), p.Realm)
	}
	made, err := kadm.Keys(password, rec.Salt, rec.Params, types)
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
		n.Alarm = ""
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
func enctypes(r *Realm, rec kadm.Record, n *keystore.Entry) (ids []etype.ID) {
	if len(r.Enctypes) > 0 {
		return r.Enctypes
	}
	add := func(id etype.ID) {
		if id.Supported() && !slices.Contains(ids, id) {
			ids = append(ids, id)
		}
	}
	for _, k := range rec.Keys {
		if k.KVNO == rec.Keys[0].KVNO {
			add(k.Enctype)
		}
	}
	if len(ids) > 0 {
		return ids
	}
	for _, k := range n.Keys {
		if k.State == keystore.Current {
			add(k.Enctype)
		}
	}
	add(rec.Ticket)
	return ids
}

// keep returns how long after a change of keys a ticket made with the old ones can be good. The skew
// counts three times: hosts allow it, and it is what the clock of the instance that begins to count
// may be off, and that of the one which ends it, see [held.onTime].
func (r *Realm) keep(rec kadm.Record) time.Duration {
	life, renewable := rec.MaxLife, rec.MaxRenewable
	if life == 0 && renewable == 0 {
		life, renewable = r.MaxLife, r.MaxRenewable
	}
	return life + renewable + 3*r.Skew + r.Lag
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
			return mech.Errorf(mech.Failure, 0, reason.RotationUnacknowledged, "%s: live hosts have not acknowledged the pending keys: %s", h.entry.Principal, some(r.awaited))
		}
		what += "; forced on without " + some(r.awaited)
	}
	if len(r.dead) > 0 {
		what += "; not waited for, since not heard of: " + some(r.dead)
	}
	return h.set(ctx, keystore.Acknowledged, what)
}

// set writes that a step is done.
func (h *held) set(ctx context.Context, step keystore.Step, what string) error {
	return h.change(ctx, string(step), byRotation, what, func(n *keystore.Entry) {
		n.Rotation.Step, n.Rotation.Since, n.Rotation.Refused, n.Alarm = step, h.o.Now(), false, ""
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
	with, wait, err := h.login(ctx, realm, prober)
	if wait > 0 || err != nil {
		return wait, err
	}
	done, err := h.verify(ctx, prober)
	switch {
	case errors.Is(err, reason.KeyChangedElsewhere):
		return h.elsewhere(ctx, realm, err)
	case done || err != nil:
		return 0, err
	case with == keystore.Pending: // one KDC has them, and another one makes the tickets
		return 0, unverified(h.entry)
	}
	self := kadm.Self{Principal: p, Keys: keys(h.entry, keystore.Current)}
	if h.entry.Rotation.Step == keystore.Sent {
		if h.left(realm) > 0 {
			return poll, nil
		}
		if err := h.lost(ctx, realm, self); err != nil {
			return 0, err
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
		return realm.KDC.Change(ctx, self, h.entry.Rotation.Password, pendingTypes(h.entry))
	})
	switch {
	case errors.Is(err, reason.KeyChangeUnknown):
		h.o.Log.Warn("the KDC's answer is lost; it is asked which key it has", "principal", h.entry.Principal, "err", err)
		return poll, nil
	case refused(err) && ctx.Err() == nil:
		step := h.change(ctx, "acknowledged", byRotation, "the KDC has not changed the key", func(n *keystore.Entry) {
			n.Rotation.Step, n.Rotation.Since, n.Rotation.Refused = keystore.Acknowledged, h.o.Now(), refusesKeys(err)
		})
		return 0, cmp.Or(step, err)
	case err != nil:
		return 0, err
	}
	for { // not every KDC may have it yet
		if done, err := h.verify(ctx, prober); done || err != nil {
			return 0, err
		}
		if h.left(realm) <= 0 {
			if err := h.lost(ctx, realm, self); err != nil {
				return 0, err
			}
			if h.sentOften(h.entry) {
				return 0, unverified(h.entry)
			}
			// MIT's KDC with a database of type db2 writes back what it has read of a principal that
			// logs in, to note when it did: a change that comes in between is lost.
			h.o.Log.Warn("the KDC has lost the change that it says it has made; it is asked again", "principal", h.entry.Principal)
			return poll, nil
		}
		if err := sleep(ctx, poll); err != nil {
			return 0, err
		}
	}
}

// login gets the prober a ticket with the keys that the KDC has: the current ones, and where it
// refuses them the pending ones, as an instance may have got so far whose record of it was lost. Each
// refusal counts toward a lockout: in a rotation there is one of either at the most, until somebody
// asks for it again. It returns which keys the KDC has taken, or how long to wait if that is not to be
// tried yet.
func (h *held) login(ctx context.Context, realm *Realm, prober Prober) (with keystore.KeyState, wait time.Duration, err error) {
	if outOfStep(h.entry) {
		wait, err = h.elsewhere(ctx, realm, alarm(h.entry))
		return "", wait, err
	}
	if !h.entry.Rotation.Refused {
		err = h.do("login", func() error { return prober.Login(ctx, keys(h.entry, keystore.Current)) })
		if err == nil {
			return keystore.Current, 0, h.onTime(realm, prober)
		}
		if !refusesKeys(err) {
			return "", 0, err
		}
		// Before anything that can fail, after which they would be tried again.
		if err := h.change(ctx, "refused", byRotation, "the KDC does not take the current key any more", func(n *keystore.Entry) {
			n.Rotation.Refused = true
		}); err != nil {
			return "", 0, err
		}
	}
	if left := h.left(realm); h.entry.Rotation.Step == keystore.Sent && realm.Lag > 0 && left > 0 {
		return "", left, nil // the next KDC that is asked may not have the pending keys yet
	}
	// With the password, and so with whatever salt it has there.
	err = h.do("login", func() error { return prober.Login(ctx, kdc.Password(h.entry.Rotation.Password)) })
	switch {
	case err == nil:
		return keystore.Pending, 0, h.onTime(realm, prober)
	case refusesKeys(err):
		wait, err = h.elsewhere(ctx, realm, changedElsewhere(h.entry, err))
	}
	return "", wait, err
}

// elsewhere is what to do when the KDC has shown another key than the current and the pending ones: it
// has not taken these, or not for long. A request that can still arrive is waited for.
func (h *held) elsewhere(ctx context.Context, realm *Realm, why error) (wait time.Duration, err error) {
	if h.entry.Rotation.Step != keystore.Sent {
		return 0, why
	}
	if err := h.stop(ctx, why); overtaken(err) {
		return 0, err
	}
	if left := h.left(realm); left > 0 {
		return left, nil
	}
	err = h.change(ctx, "settle", byRotation, "the KDC has another key than those that it was asked to have", func(n *keystore.Entry) {
		n.Rotation.Step, n.Rotation.Since = keystore.Acknowledged, h.o.Now()
	})
	if err != nil {
		return 0, err
	}
	return 0, why
}

// lost returns an error unless what the KDC was asked for has come to nothing, by its own word: only
// then it is asked again, as each time makes one more version of the key. That tickets are made with
// the current key may also be a replica's doing that is further behind than was configured.
func (h *held) lost(ctx context.Context, realm *Realm, self kadm.Self) error {
	ctx, cancel := context.WithTimeout(ctx, changeWithin)
	defer cancel()
	rec, err := realm.KDC.Record(ctx, self)
	if refusesKeys(err) || err == nil && rec.KVNO > newest(h.entry, keystore.Current).KVNO {
		return unverified(h.entry)
	}
	return err
}

func unverified(n *keystore.Entry) error {
	return mech.Errorf(mech.Failure, 0, reason.RotationUnverified, "%s: the KDC has changed the key, and tickets are still made with the old one", n.Principal)
}

// left returns how long it is uncertain what became of the request.
func (h *held) left(r *Realm) time.Duration {
	return r.settled() - h.o.Now().Sub(h.sight(h.entry).seenSent)
}

// onTime returns an error if the clock of this instance is further off the KDC's than Kerberos lets
// it be: how long keys are kept is counted by it, and the clocks of two instances are then twice
// that apart at the most.
func (h *held) onTime(realm *Realm, prober Prober) error {
	if d := prober.Ahead(); d.Abs() > realm.Skew {
		return mech.Errorf(mech.Failure, 0, reason.ClockSkew, "the clocks of the KDC and of this keystored are %v apart, more than %v: keys are neither changed nor forgotten until that is mended", d.Abs().Truncate(time.Second), realm.Skew)
	}
	return nil
}

// refusesKeys reports whether an error of a login says that the KDC has other keys.
func refusesKeys(err error) bool {
	return errors.Is(err, reason.PreauthFailed) || errors.Is(err, reason.NoKey) || errors.Is(err, reason.ClientUnknown)
}

// changedElsewhere is the error when the KDC has refused what keys there are.
func changedElsewhere(n *keystore.Entry, why error) error {
	known := fmt.Sprintf("kvno %d", newest(n, keystore.Current).KVNO)
	if k := newest(n, keystore.Pending); k != nil {
		known += fmt.Sprintf(" and pending %d", k.KVNO)
	}
	return mech.Errorf(mech.Failure, 0, reason.KeyChangedElsewhere, "%s: the key was changed by somebody else, the KDC does not take %s of the store: import the new keytab; the KDC is not asked before, except by keystored rotate (%v)", n.Principal, known, why)
}

// outOfStep reports whether the KDC is known to have other keys than the entry. Until somebody has
// imported its keys, or asks for a rotation, it is not asked: each time would count toward a lockout.
func outOfStep(n *keystore.Entry) bool {
	return strings.HasPrefix(n.Alarm, reason.KeyChangedElsewhere.Before(""))
}

// alarm is the error that an entry's alarm was made of.
func alarm(n *keystore.Entry) error {
	return mech.Errorf(mech.Failure, 0, reason.KeyChangedElsewhere, "%s", strings.TrimPrefix(n.Alarm, reason.KeyChangedElsewhere.Before("")+" "))
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
	for _, state := range []keystore.KeyState{keystore.Pending, keystore.Current, keystore.Previous} {
		if candidates, err = appendKeys(candidates, h.entry, state); err != nil {
			return false, err
		}
		if state == keystore.Pending {
			pending = len(candidates)
		}
	}
	var i int
	var kvno uint32
	err = h.do("probe", func() error {
		i, kvno, err = prober.Probe(ctx, candidates)
		return err
	})
	if errors.Is(err, reason.KeyChangedElsewhere) && h.entry.Rotation.Step == keystore.Sent {
		again, err := h.remake(ctx)
		if err != nil {
			return false, err
		}
		if again {
			return h.verify(ctx, prober)
		}
	}
	if err != nil || i >= pending {
		return false, err
	}
	return true, h.commit(ctx, kvno)
}

// appendKeys appends an entry's keys in a state.
func appendKeys(list []*etype.Key, n *keystore.Entry, state keystore.KeyState) ([]*etype.Key, error) {
	for _, k := range n.Keys {
		if k.State == state {
			key, err := etype.NewKey(k.Enctype, k.Secret)
			if err != nil {
				return list, err
			}
			list = append(list, key)
		}
	}
	return list, nil
}

// commit makes the pending keys current, with the version that the KDC gives them.
func (h *held) commit(ctx context.Context, kvno uint32) error {
	now := h.o.Now()
	what := fmt.Sprintf("rotated: kvno %d is current, the one before it is kept until %s", kvno, now.Add(h.entry.Rotation.Keep).UTC().Format(time.RFC3339))
	err := h.change(ctx, "commit", byRotation, what, func(n *keystore.Entry) { n.EndRotation(true, kvno, now) })
	if err == nil {
		h.mu.Lock()
		delete(h.seen, h.entry.Principal)
		h.mu.Unlock()
		h.o.Log.Info("keys rotated", "principal", h.entry.Principal, "kvno", kvno)
	}
	return err
}

// forget is step 6: at the KDC, then here. It returns when to look again, if all is in use still.
func (h *held) forget(ctx context.Context) (again time.Time, err error) {
	now, from := h.o.Now(), ^uint32(0)
	uses, err := h.o.Store.Uses(ctx, h.entry.Principal)
	if err != nil {
		return again, err
	}
	gone := func(k *keystore.Key) bool {
		return over(k, now) && !now.Before(inUse(h.entry, k, uses))
	}
	any := false
	for _, k := range h.entry.Keys {
		if gone(&k) {
			any = true
			continue
		}
		from = min(from, k.KVNO)
		if over(&k, now) {
			again = earlier(again, inUse(h.entry, &k, uses))
		}
	}
	if !any {
		return again, nil
	}
	p, realm, err := h.realm(h.entry)
	if err != nil {
		return again, err
	}
	if known := realm.known(h.entry, now); now.Before(known) {
		return known, nil
	}
	if err := h.checkKeys(ctx, p, realm); err != nil {
		return again, err
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
		return again, err
	}
	what := fmt.Sprintf("previous keys before kvno %d are forgotten", from)
	for _, u := range uses {
		for _, k := range h.entry.Keys {
			if gone(&k) && k.KVNO == u.KVNO && now.Sub(u.At) < kept(&k) {
				what += fmt.Sprintf("; %s used kvno %d until %s, and it was kept for twice its time", u.Host, u.KVNO, u.At.UTC().Format(time.RFC3339))
				break
			}
		}
	}
	return again, h.change(ctx, "forget", byRotation, what, func(n *keystore.Entry) {
		n.Keys = slices.DeleteFunc(n.Keys, func(k keystore.Key) bool {
			if !gone(&k) {
				return false
			}
			k.Secret.Zero()
			return true
		})
	})
}

// kept is how long a previous key is kept, if nobody uses it.
func kept(k *keystore.Key) time.Duration { return k.Until.Sub(k.Since) }

// inUse returns until when a previous key is kept because hosts use it: until none of them has for as
// long as a ticket can be good, since there are tickets then that live longer than was known. A host
// cannot have it kept for ever: twice its time is the most.
func inUse(n *keystore.Entry, k *keystore.Key, uses []keystore.Use) time.Time {
	until := k.Until
	for _, u := range uses {
		if u.KVNO == k.KVNO && n.Policy.Permits(u.Host) && u.At.Add(kept(k)).After(until) {
			until = u.At.Add(kept(k))
		}
	}
	if most := k.Until.Add(kept(k)); until.After(most) {
		return most
	}
	return until
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
	if h.entry.Rotation == nil && m.Reason != reason.KeyChangedElsewhere {
		n, err := h.o.Store.Entry(ctx, h.entry.Principal)
		if err != nil {
			return why
		}
		defer n.Zero()
		if n.Rotation != nil || !sameKeys(n, h.entry) {
			return errMoved
		}
	} else {
		if h.entry.Alarm == why.Error() {
			return why
		}
		err := h.change(ctx, "alarm", byRotation, "stops: "+why.Error(), func(n *keystore.Entry) {
			n.Alarm = why.Error()
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
	for _, k := range pendingKeys(n) {
		ids = append(ids, k.Enctype)
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
