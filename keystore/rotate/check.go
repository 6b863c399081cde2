package rotate

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"strconv"
	"time"

	"gssproxyd/keystore"
	"gssproxyd/mech/krb5"
	"gssproxyd/mech/reason"
)

// Somebody may change a key beside the store, or put the KDC back to an old state. Users would notice
// first. So each instance logs in once a day as each principal that it could rotate, which counts as
// no failure where all is right; and where it is not, there is an alarm, and nobody asks again.

const (
	// checkEvery is how often it is looked whether the KDC has the current keys still, and
	// checkFirst within what time that is done first with keys that are new, or new to this engine.
	checkEvery = 24 * time.Hour
	checkFirst = time.Hour
)

// checkTime is when the keys that are current since a time are to be checked.
type checkTime struct{ since, at time.Time }

// checkAt returns when the keys of an entry are to be checked, the zero time if never.
func (e *Engine) checkAt(n *keystore.Entry) time.Time {
	e.mu.Lock()
	defer e.mu.Unlock()
	var realm *Realm
	if n.Rotation == nil && !outOfStep(n) && usable(n) == nil {
		_, realm, _ = e.realm(n)
	}
	if realm == nil {
		delete(e.checked, n.Principal)
		return time.Time{}
	}
	c, since := e.checked[n.Principal], newest(n, keystore.Current).Since
	if c.at.IsZero() || !c.since.Equal(since) {
		now := e.o.Now()
		c = checkTime{since, later(now, realm.known(n, now)).Add(spread(checkFirst, n.Principal))}
		e.checked[n.Principal] = c
	}
	return c.at
}

// spread is a part of a time, which one follows from what it is for.
func spread(d time.Duration, what string) time.Duration {
	h := fnv.New64a()
	h.Write([]byte(what + "\x00" + strconv.FormatInt(int64(d), 10)))
	return time.Duration(float64(d) * (float64(h.Sum64()>>11) / (1 << 53)))
}

// check looks whether the KDC has the current keys still.
func (h *held) check(ctx context.Context) error {
	if c := h.checkAt(h.entry); c.IsZero() || h.o.Now().Before(c) {
		return nil // there is nothing to check any more
	}
	p, realm, err := h.realm(h.entry)
	if err == nil {
		ctx, cancel := context.WithTimeout(ctx, changeWithin)
		defer cancel()
		err = h.checkKeys(ctx, p, realm)
	}
	if err != nil && !errors.Is(err, reason.KeyChangedElsewhere) {
		// Without its reason: that is no alarm of the entry's.
		err = fmt.Errorf("it is not known whether the KDC has the current key still: %v", err)
	}
	if err == nil {
		h.mu.Lock()
		defer h.mu.Unlock()
		h.checked[h.entry.Principal] = checkTime{newest(h.entry, keystore.Current).Since, h.o.Now().Add(checkEvery)}
	}
	return err
}

// checkKeys returns an error unless the KDC lets in who has the current keys, makes tickets with one
// of them, and has the time that this instance has. If its version of them is another one, the entry
// gets that.
func (h *held) checkKeys(ctx context.Context, p krb5.Principal, realm *Realm) error {
	prober := realm.Prober(p)
	defer prober.Close()
	if err := prober.Login(ctx, keys(h.entry, keystore.Current)); refusesKeys(err) {
		return changedElsewhere(h.entry, err)
	} else if err != nil {
		return err
	}
	if err := h.onTime(realm, prober); err != nil {
		return err
	}
	candidates, err := appendKeys(nil, h.entry, keystore.Current)
	defer func() { destroy(candidates) }()
	current := len(candidates)
	if err == nil {
		candidates, err = appendKeys(candidates, h.entry, keystore.Previous) // which a replica may have
	}
	if err != nil {
		return err
	}
	i, kvno, err := prober.Probe(ctx, candidates)
	if err != nil || i >= current || kvno <= newest(h.entry, keystore.Current).KVNO {
		return err
	}
	return h.change(ctx, "kvno", byRotation, fmt.Sprintf("the KDC has the current key as kvno %d", kvno), func(n *keystore.Entry) {
		for i := range n.Keys {
			if k := &n.Keys[i]; k.State == keystore.Current {
				k.KVNO = kvno
			}
		}
	})
}
