package proc

import (
	"context"
	"crypto/rand"
	"errors"
	"log/slog"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	"gssproxyd/conf"
	"gssproxyd/keytab"
	"gssproxyd/limits"
	"gssproxyd/mech"
	"gssproxyd/mech/krb5"
	"gssproxyd/mech/krb5/ccache"
	"gssproxyd/mech/krb5/kdc"
	"gssproxyd/mech/reason"
	"gssproxyd/xdr"
)

// kdcTimeout bounds one exchange with the KDCs of a realm, callTimeout all that one call waits for. Clients give a call up
// after fifteen seconds.
const (
	kdcTimeout  = 10 * time.Second
	callTimeout = 12 * time.Second
)

// initiator is a credential to initiate with: whose tickets, and where they are.
type initiator struct {
	client  krb5.Principal
	asked   krb5.Principal // by which name a keytab has keys of client; the zero value if that is the KDC's name, too
	service krb5.Principal // the service that has evidence tickets of client's; the zero value if they are client's own
	cache   ccache.Cache
	uid     uint32 // whose store it is from
	way     way
	seen    *snapshot // what the cache holds; nil if that is not known
	expires uint32    // of the ticket everything else is got with

	// What a new ticket-granting ticket must be of: client itself where it is a handle's, what a lost one was, or nil.
	ofHandle  bool
	successor *successor

	// temporary says that the cache was made for this call, in memory of its own. What is to last goes into a handle,
	// tickets and all.
	temporary bool
}

// newTemporary makes a credential of client for this call, with a cache whose name begins with kind.
func (c *call) newTemporary(ctx context.Context, kind string, way way, client krb5.Principal, creds ...*krb5.Credential) (*initiator, error) {
	m := &ccache.Memory{Now: c.svc.p.now}
	i := &initiator{client: client, uid: c.Conn.Peer.UID, way: way, cache: m.Open(kind + " " + rand.Text()), temporary: true}
	if err := i.cache.Initialize(ctx, client, creds...); err != nil {
		return nil, cacheError(err)
	}
	return i, nil
}

// drop ends the use of a credential by its call.
func (i *initiator) drop(ctx context.Context) {
	if i.temporary {
		_ = i.cache.Destroy(ctx) // there is nothing to be done if it is gone already
	}
}

// Find makes an initiator the [kdc.TicketStore] that its tickets are taken from: as they were seen, even if the cache has
// made room for others meanwhile.
func (i *initiator) Find(ctx context.Context, match func(*krb5.Credential) bool) (found []*krb5.Credential, err error) {
	if i.seen != nil {
		for _, cred := range i.seen.creds {
			if match(cred) {
				found = append(found, cred.Clone())
			}
		}
		runtime.KeepAlive(i.seen)
		return found, nil
	}
	creds, err := i.cache.Credentials(ctx)
	for _, cred := range creds {
		if match(cred) {
			found = append(found, cred)
		} else {
			cred.Destroy()
		}
	}
	return found, err
}

// Update changes the cache.
func (i *initiator) Update(ctx context.Context, drop func(*krb5.Credential) bool, add ...*krb5.Credential) error {
	return i.cache.Update(ctx, drop, add...)
}

// startRealm is the realm whose ticket-granting ticket the others are got with.
func (i *initiator) startRealm() string {
	switch {
	case i.seen != nil && i.seen.start != "":
		return i.seen.start
	case i.proxy():
		return i.service.Realm // the evidence may be of a user from elsewhere
	}
	return i.client.Realm
}

// described says whose tickets these are, and where, unless that is in memory under a name that nobody has given.
func (i *initiator) described() string {
	name := i.cache.Name()
	if strings.HasPrefix(name, memoryPrefix) {
		return i.client.String()
	}
	return i.client.String() + " in " + name
}

// login is who the tickets are asked for with a key of a keytab: by that name the keytab has it.
func (i *initiator) login() krb5.Principal {
	if len(i.asked.Components) > 0 {
		return i.asked
	}
	return i.client
}

// proxy tells whether the tickets are evidence for constrained delegation (S4U2Proxy).
func (i *initiator) proxy() bool { return len(i.service.Components) > 0 }

// initiate finds the credential that a call initiates with: in the credential cache of the environment, or got with a
// key of its keytab and kept there. A ticket past half of its life is replaced before it is used, unless that takes long;
// while it cannot be done the old one serves to its end.
func (c *call) initiate(ctx context.Context, env *environment) (*initiator, error) {
	if env.impersonate {
		return c.impersonateUser(ctx, env)
	}
	st, err := c.store(env.uid)
	if err != nil {
		return nil, err
	}
	return c.initiateFrom(ctx, st, env)
}

func (c *call) initiateFrom(ctx context.Context, st *store, env *environment) (*initiator, error) {
	keys := st.clientKeytab
	if env.serviceKeytab && st.keytabNamed {
		keys = st.keytab
	}
	name := env.name
	if env.configured {
		name = c.configuredName()
	}
	var wanted *krb5.Principal
	if name != nil {
		p, err := c.initiatorName(name, keys)
		if err != nil {
			return nil, asBadName(err)
		}
		wanted = &p
	}
	if env.configured && !has(keys, *wanted) {
		// It may be in the other one.
		if other := st.clientKeytab; has(other, *wanted) {
			keys = other
		} else if st.keytabNamed && has(st.keytab, *wanted) {
			keys = st.keytab
		}
	}
	i, err := c.findCache(ctx, st, env.uid, keys, wanted)
	if err != nil {
		return nil, err
	}
	// Before anything is written; what the KDC calls the client is known when there are tickets.
	if err := env.successor.admit(i.client, i.uid, i.way); err != nil {
		if i.seen != nil || !c.svc.kdc.Canonicalizes(i.client) {
			return nil, err
		}
		i.successor = env.successor
	}
	if i.seen == nil && i.way != wayKeytab {
		err := noCredentials(st, keys, i.client.String())
		if keys != nil && keys.Ring().Len() > 0 {
			err = withKeytab(err, keys)
		}
		return nil, err
	}
	if trace := c.svc.p.trace; trace != nil {
		trace("Initiating as %s, credential cache %s, %s", i.client, i.cache.Name(), keytabName(keys))
	}
	usable := keys
	if i.way != wayKeytab {
		usable = nil
	}
	return i, withKeytab(c.refresh(ctx, i, usable), keys)
}

// findCache finds the cache to use and whose it is, or is to be.
func (c *call) findCache(ctx context.Context, st *store, uid uint32, keys *keytab.Keytab, wanted *krb5.Principal) (*initiator, error) {
	i := &initiator{uid: uid, way: wayCache}
	var err error
	if name := st.ccache; name != "" {
		if strings.HasPrefix(name, memoryPrefix) {
			name += " of " + strconv.FormatUint(uint64(uid), 10) // each user has its own, as in files
		}
		r := c.resolver(uid)
		if i.cache, err = r.Open(ctx, name); err != nil {
			return nil, cacheError(err)
		}
		if i.seen, err = c.look(ctx, i.cache, uid); err != nil {
			return nil, err
		}
		if wanted != nil && i.seen != nil && !i.seen.is(*wanted) {
			// Another one of the collection, where the kind has collections.
			i.cache, err = r.Match(ctx, name, *wanted)
			if errors.Is(err, ccache.ErrNotFound) {
				return nil, mech.Errorf(mech.NoCred, 0, reason.NoCredential, "credential cache %s is of %s, not of %s", st.ccache, i.seen.client, wanted)
			}
			if err != nil {
				return nil, cacheError(err)
			}
			if i.seen, err = c.look(ctx, i.cache, uid); err != nil {
				return nil, err
			}
		}
	}
	switch {
	case wanted != nil:
		i.client = *wanted
	case i.seen != nil && len(i.seen.client.Components) > 0:
		i.client = i.seen.client
		if has(keys, i.seen.asked) {
			i.asked = i.seen.asked
		}
		if uid != c.Conn.Peer.UID && i.login().String() != c.firstOf(keys) {
			i.asked = krb5.Principal{}
			return i, nil // what a user's cache says makes him none of the keytab's others
		}
	default:
		first := c.firstOf(keys)
		if first == "" {
			return nil, noCredentials(st, keys, "")
		}
		if i.client, err = krb5.ParsePrincipal(first, ""); err != nil {
			return nil, err
		}
	}
	if has(keys, i.login()) {
		i.way = wayKeytab
	}
	if i.cache == nil {
		i.cache = c.svc.memory.OpenFor(uid, "acquired "+c.svc.Name+" "+strconv.FormatUint(uint64(uid), 10)+" "+keytabName(keys)+" "+i.client.String())
		i.seen, err = c.look(ctx, i.cache, uid)
	}
	if i.seen != nil && i.seen.asked.Equal(i.client) {
		i.client, i.asked = i.seen.client, i.client
	}
	return i, err
}

// firstOf returns who one is with a keytab where nothing else says so: krb5_principal if the keytab has it, else as with MIT
// krb5 the principal of its first entry. "" if there is none.
func (c *call) firstOf(k *keytab.Keytab) string {
	if k != nil {
		if c.svc.Krb5Principal != "" {
			if p, err := c.importName(c.configuredName()); err == nil && has(k, p) {
				return p.String()
			}
		}
		if ring := k.Ring(); ring.Len() > 0 {
			return ring.All()[0].Principal
		}
	}
	return ""
}

func keytabName(k *keytab.Keytab) string {
	if k == nil {
		return "no keytab"
	}
	return k.Ring().Name()
}

// noCredentials refuses to initiate, as client where it is known who, with neither tickets nor keys.
func noCredentials(st *store, keys *keytab.Keytab, client string) error {
	e := mech.Errorf(mech.NoCred, 0, reason.NoCredential, "No credentials cache found")
	e.Minor = uint32(ccache.ErrNoCache)
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

// cacheError makes a credential cache's error the refusal of a call.
func cacheError(err error) error {
	if limits.Refused(err) {
		return overLimit(err)
	}
	e := mech.Errorf(mech.NoCred, 0, reason.NoCredential, "%v", err)
	e.Minor = ccache.Minor(err)
	return e
}

// refresh sees to it that a credential's tickets live, and says until when. While they do, no KDC is waited for for long.
func (c *call) refresh(ctx context.Context, i *initiator, keys *keytab.Keytab) error {
	if i.seen != nil {
		i.expires = uint32(i.seen.expires)
		if !i.proxy() {
			i.service = i.seen.service
		}
	}
	live := int64(i.expires) > c.kdcTime(i).Unix()
	key, get := c.renewal(i, keys)
	var fresh *krb5.Credential
	switch {
	case live && get == nil:
		return nil
	case live:
		if fresh = c.svc.p.logins.try(ctx, key, patience, get); fresh == nil {
			return nil
		}
	case get != nil:
		var err error
		if fresh, err = c.svc.p.logins.do(ctx, key, get); errors.Is(err, context.DeadlineExceeded) {
			e := mech.Errorf(mech.NoCred, 0, reason.KDCUnreachable, "no KDC of realm '%s' has answered within %v", i.client.Realm, callTimeout)
			e.Minor = mech.KRB5Minor(156)
			return e
		} else if err != nil {
			return err
		}
	case i.expires > 0:
		return expired(i)
	default:
		e := mech.Errorf(mech.NoCred, 0, reason.NoCredential, "No credentials cache found: there are no tickets of %s", i.described())
		e.Minor = uint32(ccache.ErrNoCache)
		return e
	}
	if !fresh.Client.Equal(i.client) {
		i.client, i.asked = fresh.Client, i.login()
	}
	i.expires, i.seen = fresh.EndTime, nil
	return nil
}

// renewal returns how a credential is got anew when it is time for that: with the keys, or by renewing what is there. The
// exchange is under the key in logins. It may go on after the call has ended, for others who wait, or begin without one
// who does: nothing of the call goes into it. There is none (nil) while the credential is good, and where there is no way.
func (c *call) renewal(i *initiator, keys *keytab.Keytab) (key string, get func(context.Context) (*krb5.Credential, error)) {
	have := i.seen
	if have == nil {
		have = new(snapshot)
	}
	now := c.kdcTime(i).Unix()
	live := have.expires > now
	if live && now < have.renewAt && have.expires-now >= int64(c.svc.MinLifetime/time.Second) || i.proxy() {
		return "", nil // evidence cannot be had anew without the user
	}
	svc, client, cache, uid := c.svc, i.login(), i.cache, c.Conn.Peer.UID
	anew := has(keys, client)
	if !anew && (have.tgt == nil || have.tgt.Flags&kdc.OptRenewable == 0 || !live || int64(have.tgt.RenewTill) <= now) {
		return "", nil
	}
	key = svc.cacheName(cache) + " " + client.String()
	admit := func(krb5.Principal) error { return nil }
	if s, store, way := i.heir(), i.uid, i.way; s != nil && (svc.kdc.Canonicalizes(client) || !client.Equal(s.client)) {
		admit = func(is krb5.Principal) error { return s.admit(is, store, way) }
		key += " as " + s.client.String() // not for those who take it under any name
	}
	return key, func(ctx context.Context) (fresh *krb5.Credential, err error) {
		if anew {
			fresh, err = svc.login(ctx, client, cache, keys, admit)
		} else {
			fresh, err = svc.renew(ctx, cache, have)
		}
		if err != nil && live {
			svc.p.line(slog.LevelWarn, uid, svc.Name+" refresh", limits.UsualRate, "credential could not be refreshed: using it to its end", func() []any {
				return []any{"service", svc.Name, "uid", uid, "principal", client.String(), "cache", cache.Name(), "error", err}
			})
		}
		return fresh, err
	}
}

// heir returns what new tickets must be of: of whom the handle is, or what the successor must, or else whom the cache is of,
// where that one says by which other name they were asked for. Somebody else may have written so, unless it is in memory.
func (i *initiator) heir() *successor {
	if i.ofHandle {
		other := gone(i)
		return &successor{client: i.client, refuse: func(krb5.Principal) error { return other }}
	}
	if i.successor != nil || i.seen == nil || len(i.asked.Components) == 0 || strings.HasPrefix(i.cache.Name(), memoryPrefix) {
		return i.successor
	}
	of, asked, name := i.client, i.asked, i.cache.Name()
	return &successor{client: of, refuse: func(instead krb5.Principal) error {
		return mech.Errorf(mech.NoCred, 0, reason.NoCredential, "credential cache %s is of %s, asked for as %s, and the KDC would give new tickets of %s: remove the cache if these are the right ones", name, of, asked, instead)
	}}
}

func expired(i *initiator) *mech.Error {
	e := mech.Errorf(mech.CredentialsExpired, 0, reason.TicketExpired, "Ticket expired: the credentials of %s", i.described())
	e.Minor = mech.KRB5Minor(32)
	return e
}

// kdcTime is the time now as the KDCs of a credential's realm have it, as far as that is known.
func (c *call) kdcTime(i *initiator) time.Time { return c.now.Add(c.svc.kdc.Offset(i.startRealm())) }

// login gets a ticket-granting ticket with a keytab's key and starts the cache anew with it, under the name that the KDC has
// for the client, if admit lets that one pass.
func (s *service) login(ctx context.Context, client krb5.Principal, cache ccache.Cache, keys *keytab.Keytab, admit func(krb5.Principal) error) (*krb5.Credential, error) {
	ring := keys.Ring()
	if !s.kdc.Canonicalizes(client) { // else the KDC says who it is
		if err := admit(client); err != nil {
			return nil, err
		}
	}
	s.p.tracef("Getting new credentials of %s for %s with the keys of %s", client, cache.Name(), ring.Name())
	var opt kdc.LoginOptions
	if s.AllowConstrainedDelegation || s.Impersonate {
		opt.Options = kdc.OptForwardable // so that the evidence got with it is, too
	}
	tgt, err := s.kdc.Login(ctx, client, kdc.Keytab(ring), opt)
	if err != nil {
		// The key may have been changed at the KDC a moment ago.
		if newer, ok := keys.Refresh(ctx, ring); ok {
			tgt, err = s.kdc.Login(ctx, client, kdc.Keytab(newer), opt)
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
func (s *service) renew(ctx context.Context, cache ccache.Cache, have *snapshot) (*krb5.Credential, error) {
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

// halfLife is when half of a ticket's life is over, in Unix seconds.
func halfLife(cred *krb5.Credential) int64 {
	start := int64(max(cred.StartTime, cred.AuthTime))
	return start + (int64(cred.EndTime)-start)/2
}

// asNoCred makes a failure to get tickets GSS_S_NO_CRED, as gss_acquire_cred has it.
func asNoCred(err error) error {
	var e *mech.Error
	if errors.As(err, &e) && e.Major == mech.Failure {
		e.Major = mech.NoCred
	}
	return err
}

// ticket gets the ticket for a target.
func (c *call) ticket(ctx context.Context, i *initiator, target krb5.Principal, opt kdc.TicketOptions) (*krb5.Credential, error) {
	if t := c.seenTicket(i, target, opt); t != nil {
		if trace := c.svc.p.trace; trace != nil {
			trace("Found the %v in %s", t, i.cache.Name())
		}
		return t, nil
	}
	opt.StartRealm = i.startRealm()
	if !i.proxy() {
		return c.svc.kdc.Ticket(ctx, i, i.client, target, opt)
	}
	evidence, err := findTicket(ctx, i, func(cred *krb5.Credential) bool {
		return cred.Client.Equal(i.client) && cred.Server.Equal(i.service)
	})
	if err != nil {
		return nil, err
	}
	if evidence == nil {
		return nil, mech.Errorf(mech.NoCred, 0, reason.NoCredential, "no evidence ticket of %v for %v", i.client, i.service)
	}
	defer evidence.Destroy()
	return c.svc.kdc.S4U2Proxy(ctx, i, i.service, evidence, target, opt)
}

// findTicket returns the first ticket that match accepts, nil if there is none.
func findTicket(ctx context.Context, i *initiator, match func(*krb5.Credential) bool) (*krb5.Credential, error) {
	first := false
	found, err := i.Find(ctx, func(cred *krb5.Credential) bool {
		is := !first && !ccache.IsConfig(cred.Server) && match(cred)
		first = first || is
		return is
	})
	if len(found) > 0 {
		return found[0], nil
	}
	if err != nil {
		return nil, cacheError(err)
	}
	return nil, nil
}

// resolver finds credential caches on behalf of a uid; the caller pays for reading them.
func (c *call) resolver(uid uint32) *ccache.Resolver {
	r := &struct { // one allocation: each call to initiate needs it
		resolver ccache.Resolver
		payer    reader
		uid      uint32
	}{payer: reader{c.svc.p, c.Conn.Peer.UID}, uid: uid}
	r.resolver = ccache.Resolver{For: &r.uid, Payer: &r.payer, Memory: c.svc.memory, Keyrings: c.svc.p.keyrings, KCMSocket: c.svc.kcmSocket}
	return &r.resolver
}

// cacheName is a name that no other cache has: in memory each service has caches of its own.
func (s *service) cacheName(cache ccache.Cache) string {
	name := cache.Name()
	if strings.HasPrefix(name, memoryPrefix) {
		name = s.Name + " " + name
	}
	return name
}

// environment is for whom a call without a credential acts, under which name and with which keys.
type environment struct {
	usage         xdr.CredUsage
	uid           uint32
	name          *xdr.Name // none: as the keys or the cache say
	serviceKeytab bool      // the service's keytab is used to initiate, too
	impersonate   bool      // on behalf of the user with the service's own credential
	configured    bool      // to initiate as krb5_principal: the request names nobody

	successor *successor // what the credential must be, if it is to take the place of another one
}

// environment decides that from who the caller is, whether the service trusts it, and the name it gave:
//
//	name given:  by a trusted service, as a uid   acts for that user
//	             by another uid than the service  acts for the caller
//	             by the service itself            takes that name from the service's keytab
//	no name:     by a trusted service             acts for itself with the service's keytab
//	             by another uid than the service  acts for the caller
//	             by the service itself            takes the store as it is configured
//
// A service that acts for itself and names nobody initiates as krb5_principal, which may be in either of its keytabs.
//
// With impersonate a caller who acts for a user, or gives a name, gets that user's credential by S4U with the service's
// keytab.
func (c *call) environment(asked *xdr.Name, usage xdr.CredUsage) (env environment, err error) {
	if usage, err = c.usage(usage); err != nil {
		return env, err
	}
	own := c.own()
	env = environment{usage: usage, uid: c.Conn.Peer.UID, name: asked, configured: asked == nil && own && c.svc.Krb5Principal != ""}
	forUser := false
	switch {
	case asked != nil && own && c.svc.Trusted && isUID(asked):
		if env.uid, err = parseUID(asked.DisplayName); err != nil {
			return env, err
		}
		env.name, forUser = nil, true
	case asked != nil && own:
		env.serviceKeytab = true
	case asked == nil && own && c.svc.Trusted:
		env.serviceKeytab = true
	case !own:
		forUser = true
	}
	if forUser && c.svc.Impersonate && usage != xdr.CredAccept {
		if env.name, err = c.userName(env.uid); err != nil {
			return env, err
		}
		env.serviceKeytab = true
	}
	if env.name != nil && c.svc.Impersonate && usage != xdr.CredAccept {
		env.impersonate = true
	}
	if env.serviceKeytab {
		if env.name == nil && c.svc.Krb5Principal != "" {
			env.name = c.configuredName()
		}
		if len(c.svc.CredStore) > 0 && !namesKeytab(c.svc.CredStore) {
			return env, mech.Errorf(mech.CredUnavail, 0, reason.CredStore, "cred_store names neither keytab nor client_keytab")
		}
	}
	return env, nil
}

// userName is the name of a user of this host.
func (c *call) userName(uid uint32) (*xdr.Name, error) {
	user, err := c.users().Name(uid)
	if e := (*mech.Error)(nil); errors.As(err, &e) {
		return nil, e
	}
	if err != nil {
		return nil, mech.Errorf(mech.CredUnavail, 0, reason.CredStore, "uid %d: %v", uid, err)
	}
	return &xdr.Name{DisplayName: []byte(user), NameType: []byte(mech.NTUserName)}, nil
}

// ownName is the principal of the user who is calling.
func (c *call) ownName() (krb5.Principal, error) {
	name, err := c.userName(c.Conn.Peer.UID)
	if err != nil {
		return krb5.Principal{}, err
	}
	return c.importName(name)
}

func isUID(n *xdr.Name) bool {
	t := mech.OID(n.NameType)
	return t == mech.NTStringUID || t == mech.NTMachineUID
}

func namesKeytab(elements []conf.KeyValue) bool {
	for _, e := range elements {
		if strings.HasSuffix(e.Key, "keytab") {
			return true
		}
	}
	return false
}
