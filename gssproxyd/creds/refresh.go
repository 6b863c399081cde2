package creds

import (
	"context"
	"errors"
	"log/slog"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	"gssproxyd/keytab"
	"gssproxyd/limits"
	"gssproxyd/mech"
	"gssproxyd/mech/krb5"
	"gssproxyd/mech/krb5/ccache"
	"gssproxyd/mech/krb5/kdc"
	"gssproxyd/mech/reason"
)

// refresh sees to it that a credential's tickets live, and says until when. While they do, no KDC
// is waited for for long.
func (c *Caller) refresh(ctx context.Context, cr *Credential, keys *keytab.Keytab) error {
	if cr.seen != nil {
		cr.expires = uint32(cr.seen.expires)
		if !cr.proxy() {
			cr.service = cr.seen.service
		}
	}
	live := int64(cr.expires) > c.KDCTime(cr).Unix()
	key, get := c.renewal(cr, keys)
	var fresh *krb5.Credential
	switch {
	case live && get == nil:
		return nil
	case live:
		if fresh = c.Service.logins.try(ctx, key, validWait, get); fresh == nil {
			return nil
		}
	case get != nil:
		var err error
		if fresh, err = c.Service.logins.do(ctx, key, get); errors.Is(err, context.DeadlineExceeded) {
			return mech.Errorf(mech.NoCred, mech.KRB5Minor(156), reason.KDCUnreachable, "no KDC of realm '%s' has answered within %v", cr.Client.Realm, CallTimeout)
		} else if err != nil {
			return err
		}
	case cr.expires > 0:
		return expired(cr)
	default:
		return mech.Errorf(mech.NoCred, uint32(ccache.ErrNoCache), reason.NoCredential, "No credentials cache found: there are no tickets of %s", cr.described())
	}
	if !fresh.Client.Equal(cr.Client) {
		cr.Client, cr.asked = fresh.Client, cr.login()
	}
	cr.expires, cr.seen = fresh.EndTime, nil
	return nil
}

// renewal returns how a credential is replaced when it is time for that: with the keys, or by
// renewing what is there. The exchange is under the key in logins. It may go on after the call has
// ended, for others who wait, or begin without one who does: nothing of the call goes into it.
// There is none (nil) while the credential is good, and where there is no way.
func (c *Caller) renewal(cr *Credential, keys *keytab.Keytab) (key string, get func(context.Context) (*krb5.Credential, error)) {
	have := cr.seen
	if have == nil {
		have = new(snapshot)
	}
	now := c.KDCTime(cr).Unix()
	live := have.expires > now
	if live && now < have.renewAt && have.expires-now >= int64(c.Service.MinLifetime/time.Second) || cr.proxy() {
		return "", nil // evidence cannot be had again without the user
	}
	svc, client, cache, uid := c.Service, cr.login(), cr.cache, c.Peer.UID
	withKeys := has(keys, client)
	if !withKeys && (have.tgt == nil || have.tgt.Flags&kdc.OptRenewable == 0 || !live || int64(have.tgt.RenewTill) <= now) {
		return "", nil
	}
	key = svc.cacheName(cache) + " " + client.String()
	admit := func(krb5.Principal) error { return nil }
	if s, store, way := cr.heir(), cr.uid, cr.way; s != nil && (svc.kdc.Canonicalizes(client) || !client.Equal(s.client)) {
		admit = func(is krb5.Principal) error { return s.admit(is, store, way) }
		key += " as " + s.client.String() // not for those who take it under any name
	}
	return key, func(ctx context.Context) (fresh *krb5.Credential, err error) {
		if withKeys {
			fresh, err = svc.login(ctx, client, cache, keys, admit)
		} else {
			fresh, err = svc.renew(ctx, cache, have)
		}
		if err != nil && live {
			svc.log.Line(slog.LevelWarn, uid, svc.Name+" refresh", limits.UsualRate, "credential could not be refreshed: using it to its end", func() []any {
				return []any{"service", svc.Name, "uid", uid, "principal", client.String(), "cache", cache.Name(), "error", err}
			})
		}
		return fresh, err
	}
}

// heir returns what new tickets must be of: of whom the handle is, or what the successor must, or
// else whom the cache is of, where that one says by which other name they were asked for. Somebody
// else may have written so, unless it is in memory.
func (cr *Credential) heir() *successor {
	if cr.ofHandle {
		other := gone(cr)
		return &successor{client: cr.Client, refuse: func(krb5.Principal) error { return other }}
	}
	if cr.successor != nil || cr.seen == nil || len(cr.asked.Components) == 0 || strings.HasPrefix(cr.cache.Name(), memoryPrefix) {
		return cr.successor
	}
	of, asked, name := cr.Client, cr.asked, cr.cache.Name()
	return &successor{client: of, refuse: func(instead krb5.Principal) error {
		return mech.Errorf(mech.NoCred, 0, reason.NoCredential, "credential cache %s is of %s, asked for as %s, and the KDC would give new tickets of %s: remove the cache if these are the right ones", name, of, asked, instead)
	}}
}

// login gets a ticket-granting ticket with a keytab's key and writes the cache with it, under the
// name that the KDC has for the client, if admit lets that one pass.
func (s *Service) login(ctx context.Context, client krb5.Principal, cache ccache.Cache, keys *keytab.Keytab, admit func(krb5.Principal) error) (*krb5.Credential, error) {
	ring := keys.Ring()
	if !s.kdc.Canonicalizes(client) { // else the KDC says who it is
		if err := admit(client); err != nil {
			return nil, err
		}
	}
	s.log.Tracef("Getting new credentials of %s for %s with the keys of %s", client, cache.Name(), ring.Name())
	var opt kdc.LoginOptions
	if s.AllowConstrainedDelegation || s.Impersonate {
		opt.Options = kdc.OptForwardable // so that the evidence got with it is, too
	}
	tgt, err := s.loginWith(ctx, client, ring, opt)
	if err != nil {
		// The key may have been changed at the KDC a moment ago.
		if newer, ok := keys.Refresh(ctx, ring); ok {
			tgt, err = s.loginWith(ctx, client, newer, opt)
		}
	}
	if err != nil {
		return nil, asNoCred(err)
	}
	defer tgt.Destroy() // the cache has its copy, and who waits wants to know when it ends
	is := tgt.Client
	if err := admit(is); err != nil {
		return nil, err
	}
	entries := []*krb5.Credential{tgt, ccache.ConfigEntry(is, ccache.RefreshTime, nil, strconv.AppendInt(nil, halfLife(tgt), 10))}
	if !is.Equal(client) {
		entries = append(entries, ccache.ConfigEntry(is, ccache.RecordAsked, nil, client.AppendString(nil)))
	}
	if realm := tgt.Server.Components[1]; realm != is.Realm {
		entries = append(entries, ccache.ConfigEntry(is, ccache.StartRealm, nil, []byte(realm)))
	}
	if err := cache.Initialize(ctx, is, entries...); err != nil {
		return nil, cacheError(err)
	}
	return tgt, nil
}

// renew exchanges a snapshot's renewable ticket-granting ticket for one that lives on.
func (s *Service) renew(ctx context.Context, cache ccache.Cache, have *snapshot) (*krb5.Credential, error) {
	old := have.tgt
	fresh, err := s.kdc.Renew(ctx, old)
	if err != nil {
		return nil, asNoCred(err)
	}
	defer fresh.Destroy() // as after a login
	add := []*krb5.Credential{fresh}
	refresh := ccache.ConfigEntry(old.Client, ccache.RefreshTime, nil, strconv.AppendInt(nil, halfLife(fresh), 10))
	if slices.ContainsFunc(have.creds, func(cred *krb5.Credential) bool { return cred.Server.Equal(refresh.Server) }) {
		add = append(add, refresh)
	}
	replaced := func(cred *krb5.Credential) bool {
		return cred.Client.Equal(old.Client) && (cred.Server.Equal(old.Server) || cred.Server.Equal(refresh.Server))
	}
	err = cache.Update(ctx, replaced, add...)
	runtime.KeepAlive(have) // its keys are overwritten once nobody has it
	if err != nil {
		return nil, cacheError(err)
	}
	return fresh, nil
}
