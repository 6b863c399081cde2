package creds

import (
	"cmp"
	"context"
	"errors"
	"time"

	"gssproxyd/conf"
	"gssproxyd/keytab"
	"gssproxyd/mech"
	"gssproxyd/mech/krb5"
)

// acquire gets the credential that a target initiates with.
func (c *Caller) acquire(ctx context.Context, t *target) (*Credential, error) {
	if t.impersonate {
		return c.acquireAsUser(ctx, t)
	}
	st, err := c.store(t.uid)
	if err != nil {
		return nil, err
	}
	return c.acquireFrom(ctx, st, t)
}

// resume returns the credential of a handle to initiate with, good for at least so long. Tickets
// that have come to their end are replaced in the way in which they were got; then fresh is set.
// Where that cannot be done the credential has expired, and nothing takes its place.
func (c *Caller) resume(ctx context.Context, h *Handle, atLeast time.Duration) (cr *Credential, fresh bool, err error) {
	if cr, err = c.open(ctx, h); err != nil {
		return nil, false, err
	}
	left := int64(cr.expires) - c.KDCTime(cr).Unix()
	fresh = left <= 0 || left < int64(atLeast/time.Second)
	keys := c.keysOf(h)
	if _, get := c.renewal(cr, keys); !fresh || get != nil {
		// While there is a way to get new ones that does not work now, those that there are serve
		// to their end.
		if err = c.refresh(ctx, cr, keys); err == nil {
			return cr, fresh, nil
		}
	}
	defer cr.Drop(ctx)
	if e, ok := errors.AsType[*mech.Error](err); ok && e.Major != mech.CredentialsExpired {
		return nil, false, err
	}
	// As a call without the handle would, where that goes the same way.
	if h.way == wayS4U && c.Service.Impersonate || h.way == wayKeytab && h.lent {
		t, err := c.target(nil, conf.UsageInitiate)
		if err != nil {
			return nil, false, err
		}
		former := cr
		t.successor = &successor{client: cr.Client, uid: h.uid, way: h.way, refuse: func(krb5.Principal) error { return gone(former) }}
		cr, err := c.acquire(ctx, &t)
		return cr, true, err
	}
	return nil, false, gone(cr)
}

// keysOf returns the keytab that new tickets for the credential of a handle are got with: one that
// the caller could use without the handle, if it was got with a keytab. nil if there is none.
func (c *Caller) keysOf(h *Handle) *keytab.Keytab {
	own := c.own()
	if h.way != wayKeytab || h.lent || c.Service.CredUsage == conf.UsageAccept || h.uid != c.Peer.UID && !(own && c.Service.Trusted) {
		return nil
	}
	st, err := c.store(h.uid)
	if err != nil {
		return nil // what there is serves to its end
	}
	keys := []*keytab.Keytab{st.clientKeytab}
	if own && st.keytabNamed && h.uid == c.Peer.UID { // not for a user, whoever his cache says he is
		keys = append(keys, st.keytab)
	}
	for _, k := range keys {
		if hasName(k, []byte(cmp.Or(h.asked, h.Name))) {
			return k
		}
	}
	return nil
}
