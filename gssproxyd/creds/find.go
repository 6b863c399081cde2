package creds

import (
	"context"
	"errors"
	"slices"
	"strconv"
	"strings"

	"gssproxyd/keytab"
	"gssproxyd/mech"
	"gssproxyd/mech/krb5"
	"gssproxyd/mech/krb5/ccache"
	"gssproxyd/mech/reason"
)

// acquireFrom finds the credential of a target in a store: in its credential cache, or got with a
// key of its keytab and kept there. A ticket past half of its life is replaced before it is used,
// unless that takes long; while it cannot be done the old one serves to its end.
func (c *Caller) acquireFrom(ctx context.Context, st *store, t *target) (*Credential, error) {
	keys := st.clientKeytab
	if t.serviceKeytab && st.keytabNamed {
		keys = st.keytab
	}
	name := t.name
	if t.configured {
		name = c.configuredName()
	}
	var wanted *krb5.Principal
	if name != nil {
		p, err := c.initiatorName(name, keys)
		if err != nil {
			return nil, AsBadName(err)
		}
		wanted = &p
	}
	if t.configured && !has(keys, *wanted) {
		// It may be in the other one.
		if other := st.clientKeytab; has(other, *wanted) {
			keys = other
		} else if st.keytabNamed && has(st.keytab, *wanted) {
			keys = st.keytab
		}
	}
	cr, err := c.findCache(ctx, st, t.uid, keys, wanted)
	if err != nil {
		return nil, err
	}
	// Before anything is written; what the KDC calls the client is known when there are tickets.
	if err := t.successor.admit(cr.Client, cr.uid, cr.way); err != nil {
		if cr.seen != nil || !c.Service.kdc.Canonicalizes(cr.Client) {
			return nil, err
		}
		cr.successor = t.successor
	}
	if cr.seen == nil && cr.way != wayKeytab {
		err := noCredentials(st, keys, cr.Client.String())
		if keys != nil && keys.Ring().Len() > 0 {
			err = withKeytab(err, keys)
		}
		return nil, err
	}
	if trace := c.Service.log.Trace; trace != nil {
		trace("Initiating as %s, credential cache %s, %s", cr.Client, cr.cache.Name(), keytabName(keys))
	}
	usable := keys
	if cr.way != wayKeytab {
		usable = nil
	}
	return cr, withKeytab(c.refresh(ctx, cr, usable), keys)
}

// initiatorName makes a principal of a name to initiate with. One without a realm, as that of a
// host in no [domain_realm] is, is of the default realm, or where keys have it in another one only,
// of that: to accept it is the keys' as well.
func (c *Caller) initiatorName(n *Name, keys *keytab.Keytab) (krb5.Principal, error) {
	p, err := c.Principal(*n)
	if err != nil || p.Realm != "" {
		return p, err
	}
	p.Realm = c.Service.Krb5.DefaultRealm
	if keys == nil || has(keys, p) {
		return p, nil
	}
	for _, k := range keys.Ring().All() {
		if own, err := krb5.ParsePrincipal(k.Principal, ""); err == nil && slices.Equal(own.Components, p.Components) {
			return own, nil
		}
	}
	return p, nil
}

// findCache finds the cache to use and whose it is, or is to be.
func (c *Caller) findCache(ctx context.Context, st *store, uid uint32, keys *keytab.Keytab, wanted *krb5.Principal) (*Credential, error) {
	cr := &Credential{uid: uid, way: wayCache}
	var err error
	if name := st.ccache; name != "" {
		if strings.HasPrefix(name, memoryPrefix) {
			name += " of " + strconv.FormatUint(uint64(uid), 10) // each user has its own, as in files
		}
		r := c.resolver(uid)
		if cr.cache, err = r.Open(ctx, name); err != nil {
			return nil, cacheError(err)
		}
		if cr.seen, err = c.look(ctx, cr.cache, uid); err != nil {
			return nil, err
		}
		if wanted != nil && cr.seen != nil && !cr.seen.is(*wanted) {
			// Another one of the collection, where the kind has collections.
			cr.cache, err = r.Match(ctx, name, *wanted)
			if errors.Is(err, ccache.ErrNotFound) {
				return nil, mech.Errorf(mech.NoCred, 0, reason.NoCredential, "credential cache %s is of %s, not of %s", st.ccache, cr.seen.client, wanted)
			}
			if err != nil {
				return nil, cacheError(err)
			}
			if cr.seen, err = c.look(ctx, cr.cache, uid); err != nil {
				return nil, err
			}
		}
	}
	switch {
	case wanted != nil:
		cr.Client = *wanted
	case cr.seen != nil && len(cr.seen.client.Components) > 0:
		cr.Client = cr.seen.client
		if has(keys, cr.seen.asked) {
			cr.asked = cr.seen.asked
		}
		if uid != c.Peer.UID && cr.login().String() != c.firstOf(keys) {
			cr.asked = krb5.Principal{}
			return cr, nil // what a user's cache says makes him none of the keytab's others
		}
	default:
		first := c.firstOf(keys)
		if first == "" {
			return nil, noCredentials(st, keys, "")
		}
		if cr.Client, err = krb5.ParsePrincipal(first, ""); err != nil {
			return nil, err
		}
	}
	if has(keys, cr.login()) {
		cr.way = wayKeytab
	}
	if cr.cache == nil {
		cr.cache = c.Service.memory.OpenFor(uid, "acquired "+c.Service.Name+" "+strconv.FormatUint(uint64(uid), 10)+" "+keytabName(keys)+" "+cr.Client.String())
		cr.seen, err = c.look(ctx, cr.cache, uid)
	}
	if cr.seen != nil && cr.seen.asked.Equal(cr.Client) {
		cr.Client, cr.asked = cr.seen.client, cr.Client
	}
	return cr, err
}

// firstOf returns who one is with a keytab where nothing else says so: krb5_principal if the keytab
// has it, else as with MIT krb5 the principal of its first entry. "" if there is none.
func (c *Caller) firstOf(k *keytab.Keytab) string {
	if k != nil {
		if c.Service.Krb5Principal != "" {
			if p, err := c.Principal(*c.configuredName()); err == nil && has(k, p) {
				return p.String()
			}
		}
		if ring := k.Ring(); ring.Len() > 0 {
			return ring.All()[0].Principal
		}
	}
	return ""
}

// noCredentials refuses to initiate, as client where it is known who, with neither tickets nor
// keys.
func noCredentials(st *store, keys *keytab.Keytab, client string) error {
	e := mech.Errorf(mech.NoCred, uint32(ccache.ErrNoCache), reason.NoCredential, "No credentials cache found")
	if st.ccache != "" {
		e.Text += " (cache: " + st.ccache + ")"
	}
	switch {
	case keys == nil && client == "":
	case keys == nil:
		e.Text += "; there is no keytab with a key of " + client
	case keys.Ring().Len() == 0:
		e.Text += "; " + noKeys(keys)
	default:
		e.Text += "; " + keytabName(keys) + " has no key of " + client
	}
	return e
}
