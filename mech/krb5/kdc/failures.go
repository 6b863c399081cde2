package kdc

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"time"

	"gssproxyd/mech"
	"gssproxyd/mech/krb5"
	"gssproxyd/mech/krb5/wire"
	"gssproxyd/mech/reason"
)

// What a KDC refuses it refuses again a moment later: asking at every call costs it and us, and a
// login with a wrong key that is tried often enough locks the account. So a refusal is remembered
// by all that it depends on, and given again without asking: for a second, then for twice as long
// each time, up to a limit. Where anything that it depends on is another (a key, a ticket-granting
// ticket, krb5.conf, which is another Client) the KDC is asked at once.
const (
	firstPause    = time.Second
	longestPause  = 30 * time.Second
	wrongKeyPause = 5 * time.Minute // the longest one after a wrong key, since attempts with it are counted
	maxFailures   = 1024
)

// failureKey is what a refusal depends on.
type failureKey [sha256.Size]byte

// keyOf makes one of its parts.
func keyOf(parts ...[]byte) (key failureKey) {
	h := sha256.New()
	for _, p := range parts {
		h.Write(binary.BigEndian.AppendUint64(nil, uint64(len(p))))
		h.Write(p)
	}
	h.Sum(key[:0])
	return key
}

// failure is a refusal that is remembered.
type failure struct {
	err   mech.Error
	pause time.Duration
	until time.Time
}

// remembered returns the refusal for a key while the KDC is not to be asked again, nil after that.
// c.mu is held.
func (c *Client) remembered(key failureKey, unless string) *mech.Error {
	f := c.failures[key]
	if f == nil {
		return nil
	}
	left := f.until.Sub(c.clock())
	if left <= 0 || left > f.pause { // the clock may have been set
		return nil
	}
	e := f.err
	e.Text += "; the KDC is asked again in " + max(time.Second, left.Round(time.Second)).String() + unless
	return &e
}

// remember notes what came of a request: a refusal, or nil.
func (c *Client) remember(key failureKey, err *mech.Error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	old := c.failures[key]
	if err == nil {
		delete(c.failures, key)
		return
	}
	longest := longestPause
	if err.Reason == reason.PreauthFailed {
		longest = wrongKeyPause
	}
	now := c.clock()
	f := &failure{err: *err, pause: firstPause}
	if old != nil {
		if now.Sub(old.until) < longest { // else nobody has asked for so long that it counts as new
			f.pause = min(2*old.pause, longest)
		}
	} else if len(c.failures) >= maxFailures {
		c.makeRoom(now)
	}
	f.until = now.Add(f.pause)
	if c.failures == nil {
		c.failures = make(map[failureKey]*failure)
	}
	c.failures[key] = f
}

// makeRoom forgets the refusals that are old, or if there are none any other, rather not one for a
// wrong key. c.mu is held.
func (c *Client) makeRoom(now time.Time) {
	var one failureKey
	found := false
	for key, f := range c.failures {
		if now.Sub(f.until) > f.pause {
			delete(c.failures, key)
		} else if !found || f.err.Reason != reason.PreauthFailed {
			one, found = key, true
		}
	}
	if len(c.failures) >= maxFailures {
		delete(c.failures, one)
	}
}

// refusing reports whether an error is what a KDC said, and will say again: not that it could not
// be asked, nor what has to do with the time.
func refusing(ctx context.Context, err *mech.Error) bool {
	if ctx.Err() != nil || minor(err)-mech.MinorKRB5 > 255 {
		return false
	}
	if minor(err) == wire.MinorNeverValid { // the caller has asked for a ticket that ends before it begins
		return false
	}
	switch err.Reason {
	case reason.KDCUnreachable, reason.NoCredential, reason.ClockSkew, reason.TicketExpired, reason.TicketNotYetValid:
		return false
	}
	return true
}

// unreached reports whether an error is that no KDC could be reached.
func unreached(err *mech.Error) bool {
	switch minor(err) {
	case wire.MinorUnreachable, wire.MinorRealmUnknown, wire.MinorUnavailable:
		return true
	}
	return false
}

// asking gets a ticket from the KDCs with get, unless they have just refused it.
func (c *Client) asking(ctx context.Context, key failureKey, get func() (*krb5.Credential, *mech.Error)) (*krb5.Credential, *mech.Error) {
	c.mu.Lock()
	err := c.remembered(key, "")
	c.mu.Unlock()
	if err != nil {
		c.trace("The KDC has just refused this: %s", err.Text)
		return nil, err
	}
	cred, err := get()
	if err == nil || refusing(ctx, err) {
		c.remember(key, err)
	}
	return cred, err
}

// trial is a login under way with keys of which it is not known whether they are right.
type trial struct {
	done chan struct{}
	good bool        // they are, once done is closed
	err  *mech.Error // or what all who wait are told; nil if it came to nothing
}

// once logs in with get. While it is not known whether the keys are right, one tries and the others
// wait for what comes of it: as many callers as there are would be as many attempts with a wrong
// key. Then all go on beside each other, or none.
func (c *Client) once(ctx context.Context, key failureKey, get func() (cred *krb5.Credential, answered bool, err *mech.Error)) (*krb5.Credential, *mech.Error) {
	const unless = ", and at once when the keytab has another key or the daemon is reloaded"
	for turn := false; ; {
		c.mu.Lock()
		if err := c.remembered(key, unless); err != nil {
			c.mu.Unlock()
			c.trace("The KDC has just refused this: %s", err.Text)
			return nil, err
		}
		if !turn { // before the trial: nobody waits for the turn of who tries
			c.mu.Unlock()
			if err := c.turn(ctx, asUsual); err != nil {
				return nil, err
			}
			turn = true
			continue
		}
		one, first := c.trials[key], false
		if one == nil {
			one, first = &trial{done: make(chan struct{})}, true
			if c.trials == nil {
				c.trials = make(map[failureKey]*trial)
			}
			c.trials[key] = one
		}
		c.mu.Unlock()
		if !first {
			select {
			case <-one.done:
			case <-ctx.Done():
				return nil, mech.Errorf(mech.Failure, wire.MinorUnreachable, reason.KDCUnreachable, "Cannot contact any KDC: the caller's time is over")
			}
			switch {
			case one.err != nil:
				e := *one.err
				return nil, &e
			case !one.good:
				continue
			}
		}
		return c.attempt(ctx, key, one, first, get)
	}
}

// attempt logs in, and if it is the first to try says what came of it.
func (c *Client) attempt(ctx context.Context, key failureKey, one *trial, first bool, get func() (*krb5.Credential, bool, *mech.Error)) (*krb5.Credential, *mech.Error) {
	if first {
		defer func() {
			c.mu.Lock()
			delete(c.trials, key)
			c.mu.Unlock()
			close(one.done)
		}()
	}
	cred, answered, err := get()
	refused := err != nil && answered && refusing(ctx, err)
	if err == nil || refused {
		c.remember(key, err)
	}
	if first {
		one.good = err == nil
		if refused || err != nil && unreached(err) && ctx.Err() == nil {
			e := *err
			one.err = &e
		}
	}
	return cred, err
}
