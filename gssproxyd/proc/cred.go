package proc

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"log/slog"
	"strings"
	"time"

	"gssproxyd/conf"
	"gssproxyd/keytab"
	"gssproxyd/keytab/seal"
	"gssproxyd/mech"
	"gssproxyd/mech/krb5"
	"gssproxyd/mech/krb5/ccache"
	"gssproxyd/mech/krb5/etype"
	"gssproxyd/mech/reason"
	"gssproxyd/xdr"
)

// cred is what a credential handle says. The handle is sealed with a key of the daemon's own and kept by the client. For
// an acceptor it names keys and holds none, so it stays good while keytabs rotate. For an initiator it names a credential
// cache, or holds the tickets of one in memory, so that any instance of the daemon can go on with it.
//
// A credential is only ever replaced, renewed or continued by one of the same principal that the daemon itself once
// obtained in the same way. So a handle says which way that was.
type cred struct {
	etype.Redacted
	usage xdr.CredUsage
	name  string // principal shown to the client
	asked string // by which name its tickets were asked for, where the KDC has that one for it; "" if that is name
	uid   uint32 // whose store it is from
	way   way

	maker maker

	// To accept: the name the client asked for, as it gave it; none when any key of the service will do.
	wantedType, wanted string

	// To initiate.
	cache   string       // name of the credential cache
	tickets etype.Secret // the content of one in memory (ccache.AppendContent); none otherwise
	service string       // the service whose evidence tickets these are, if any

	// lent says that another service made the handle. Its tickets live in a cache of the call's own: never does one
	// service open a cache that another's handle names.
	lent bool
}

// isOf reports whether a credential to initiate with is of a principal, by the name that the KDC has for it or the one it
// was asked for by.
func (cr *cred) isOf(p krb5.Principal) bool {
	for _, name := range []string{cr.name, cr.asked} {
		if of, err := krb5.ParsePrincipal(name, ""); name != "" && err == nil && sameName(p, of) {
			return true
		}
	}
	return false
}

// way is how the tickets of a credential to initiate with were obtained.
type way uint32

const (
	wayKeytab    way = iota + 1 // with a key of the service's keytabs
	wayCache                    // they were in the cache that cred_store names
	wayDelegated                // an initiator forwarded them
	wayS4U                      // in a user's name, by S4U
)

// maker is for whom a handle was made.
type maker struct {
	service string
	caller  uint32
	own     bool   // the caller's uid was the service's euid
	keytab  string // "FILE:" and the clean path that cred_store names as the service's; empty if it names none
}

// made returns what a handle that is made in this call says of that.
func (c *call) made() maker {
	m := maker{service: c.svc.Name, caller: c.Conn.Peer.UID, own: c.own()}
	if st, err := c.store(m.caller); err == nil && st.keytabNamed {
		m.keytab = st.keytab.Ring().Name()
	}
	return m
}

// own reports whether the caller is the service itself, not one of the users it lets in.
func (c *call) own() bool { return c.Conn.Peer.UID == c.svc.EUID }

// mayOpen reports whether this call may use a handle: one made for the same service and uid, which has to be trusted still
// to use another uid's store, or one that another service with the same keytab lends. Who has the keytab's keys could make
// the same; so both have to be the services themselves, and the handle has to carry what it stands for.
func (c *call) mayOpen(cr *cred) (may, lent bool) {
	now := c.made()
	if cr.maker.service == now.service && cr.maker.caller == now.caller {
		return cr.uid == now.caller || now.own && c.svc.Trusted, false
	}
	return cr.maker.own && now.own && now.keytab != "" && cr.maker.keytab == now.keytab && len(cr.tickets) > 0, true
}

const credVersion = 4

// seal makes the handle of a credential.
func (c *call) seal(cr *cred) []byte {
	m := c.made()
	plain := make([]byte, 0, 256+len(cr.tickets))
	for _, n := range []uint32{credVersion, uint32(cr.usage), cr.uid, uint32(cr.way), m.caller, oneIf(m.own)} {
		plain = xdr.AppendUint32(plain, n)
	}
	for _, s := range []string{m.service, m.keytab, cr.name, cr.wantedType, cr.wanted, cr.cache, cr.service, cr.asked} {
		plain = xdr.AppendString(plain, s)
	}
	plain = xdr.AppendOpaque(plain, cr.tickets)
	defer clear(plain)
	kind := seal.KindCred
	if cr.wanted != "" {
		kind = seal.KindNamedCred
	}
	return c.keep(func(b []byte) []byte { return c.svc.p.box.Seal(b, plain, "", kind) })
}

func oneIf(b bool) uint32 {
	if b {
		return 1
	}
	return 0
}

// unseal opens a handle, nil if it does not open for this call.
func (c *call) unseal(sealed []byte) *cred {
	kind := seal.KindOf(sealed)
	if kind != seal.KindCred && kind != seal.KindNamedCred {
		return nil
	}
	plain, err := c.svc.p.box.Unseal(c.opened[:0], sealed, "", kind)
	if err != nil {
		return nil
	}
	c.opened = plain // cleared when the call ends
	var d xdr.Decoder
	d.Reset(plain)
	version := d.Uint32()
	cr := &cred{usage: xdr.CredUsage(d.Uint32()), uid: d.Uint32(), way: way(d.Uint32())}
	cr.maker.caller, cr.maker.own = d.Uint32(), d.Uint32() != 0
	for _, s := range []*string{&cr.maker.service, &cr.maker.keytab, &cr.name, &cr.wantedType, &cr.wanted, &cr.cache, &cr.service, &cr.asked} {
		*s = string(d.Opaque())
	}
	cr.tickets = d.Opaque()
	if d.Err() != nil || version != credVersion {
		return nil
	}
	may, lent := c.mayOpen(cr)
	if !may {
		return nil
	}
	if cr.lent = lent; lent {
		cr.uid = c.Conn.Peer.UID // each has a store of its own
	}
	return cr
}

// handle is what has become of a credential handle that came with a call.
type handle struct {
	*cred           // what it says; nil if there is none, or it does not open
	lost  *xdr.Cred // one that does not open, with what it says in clear
}

// handle opens the handle of a gssx_cred. One that does not open was made by another daemon, for another service or under a
// key long gone. The call goes on as if none had been sent, but see [call.lostInitiator] and [handle.accepts].
func (c *call) handle(x *xdr.Opt[xdr.Cred]) handle {
	if !x.Set || len(x.V.CredHandleReference) == 0 {
		return handle{}
	}
	if cr := c.unseal(x.V.CredHandleReference); cr != nil {
		return handle{cred: cr}
	}
	c.svc.p.note(slog.LevelDebug, c, reason.BadCredential, "a credential handle does not open: it counts as none")
	return handle{lost: &x.V}
}

// initiates returns the name of what a handle was there to initiate with, as it says in clear if it does not open. nil if
// it was there to accept only, or there is none.
func (h handle) initiates() *xdr.Name {
	switch {
	case h.cred != nil && h.usage != xdr.CredAccept:
		return &xdr.Name{DisplayName: []byte(h.name), NameType: oidKrb5Principal}
	case h.lost == nil:
		return nil
	}
	name, initiates := &h.lost.DesiredName, len(h.lost.Elements) == 0
	for i := range h.lost.Elements {
		if e := &h.lost.Elements[i]; e.CredUsage != xdr.CredAccept {
			initiates = true
			if len(e.MN.DisplayName) > 0 {
				name = &e.MN
			}
		}
	}
	if !initiates {
		return nil
	}
	return name
}

// lostInitiator returns what a credential that is got in place of one whose handle does not open must be of: the principal
// that the handle names in clear. nil if there is none such, as when it was there to accept only.
func (c *call) lostInitiator(h handle) (*successor, error) {
	name := h.initiates()
	if h.lost == nil || name == nil {
		return nil, nil
	}
	refuse := func(instead string) error {
		return mech.Errorf(mech.DefectiveCredential, 0, reason.BadCredential, "the credential handle does not open; it says that it is of %.256q, and the call would go on %s", name.DisplayName, instead)
	}
	of, err := c.importName(name)
	if err != nil {
		return nil, refuse("as whoever the service is")
	}
	return &successor{client: of, refuse: func(instead krb5.Principal) error { return refuse("as " + instead.String()) }}, nil
}

// leave leaves for later calls of the connection what has become of an attempt to acquire a credential to initiate with.
// The plugin of the C project sends the handle that it finds in a program's cache, and if that is refused starts the
// context without one: it would be the service's own. See [call.left].
func (c *call) leave(h handle, err error) {
	if err == nil && c.left() == nil {
		return
	}
	name := h.initiates()
	switch {
	case err != nil && name != nil:
		s := &successor{refuse: func(krb5.Principal) error { return err }}
		s.client, _ = c.importName(name) // nobody, if it is no name
		c.Conn.Left.Store(s)
	case err == nil && name == nil:
		c.Conn.Left.Store((*successor)(nil)) // the caller has one of its own now
	}
}

// left returns what a credential must be that is got without a handle on a connection where one was refused before: what
// that one was. nil if there is none such.
func (c *call) left() *successor {
	s, _ := c.Conn.Left.Load().(*successor)
	return s
}

// accepts returns the name to accept for that a handle was asked for with; if it does not open, that it names in clear, if
// it is one of ours that says a name was asked for. nil if there is none: then any will do, as without a handle.
func (h handle) accepts() *xdr.Name {
	switch {
	case h.cred != nil && h.wanted != "":
		return h.cred.wantedName()
	case h.lost != nil && seal.KindOf(h.lost.CredHandleReference) == seal.KindNamedCred:
		return &h.lost.DesiredName
	}
	return nil
}

// wantedName returns the name to accept for that a credential was asked for with, if it was.
func (cr *cred) wantedName() *xdr.Name {
	return &xdr.Name{DisplayName: []byte(cr.wanted), NameType: []byte(cr.wantedType)}
}

// successor is what a credential must be that takes the place of another one.
type successor struct {
	client krb5.Principal
	uid    uint32 // whose store it is from
	way    way    // 0: whichever, and from whichever store
	refuse func(instead krb5.Principal) error
}

// admit refuses what is not the successor of a credential; without one anything is admitted.
func (s *successor) admit(client krb5.Principal, uid uint32, way way) error {
	if s == nil || client.Equal(s.client) && (s.way == 0 || s.way == way && s.uid == uid) {
		return nil
	}
	return s.refuse(client)
}

// credOf makes the handle's content of a credential to initiate with. Tickets in memory go with it.
func (c *call) credOf(ctx context.Context, i *initiator, usage xdr.CredUsage) (*cred, error) {
	cr := &cred{usage: usage, name: i.client.String(), uid: i.uid, way: i.way, cache: i.cache.Name()}
	if len(i.asked.Components) > 0 {
		cr.asked = i.asked.String()
	}
	if i.proxy() {
		cr.service = i.service.String()
	}
	if strings.HasPrefix(cr.cache, memoryPrefix) {
		creds, err := i.cache.Credentials(ctx)
		if err != nil {
			return nil, cacheError(err)
		}
		cr.tickets = ccache.AppendContent(nil, i.client, creds)
		for _, cred := range creds {
			cred.Destroy()
		}
	}
	return cr, nil
}

const memoryPrefix = "MEMORY:"

// initiator opens the credential of a handle to initiate with. Tickets that came with the handle are put where they
// were, unless the daemon still has them there, perhaps refreshed since. Without any left, it has seen nothing.
func (c *call) initiator(ctx context.Context, cr *cred) (*initiator, error) {
	i := &initiator{uid: cr.uid, way: cr.way}
	if cr.asked != "" {
		i.asked = parseAsked(cr.asked)
	}
	var err error
	if i.client, err = krb5.ParsePrincipal(cr.name, ""); err != nil {
		return nil, badCredential(err)
	}
	if cr.service != "" {
		if i.service, err = krb5.ParsePrincipal(cr.service, ""); err != nil {
			return nil, badCredential(err)
		}
	}
	if cr.lent {
		m := &ccache.Memory{Now: c.svc.p.now}
		i.cache, i.temporary = m.Open("lent "+rand.Text()), true // a handle made of it names the cache, and no other's
	} else {
		if i.cache, err = c.resolver(cr.uid).Open(ctx, cr.cache); err != nil {
			return nil, badCredential(err)
		}
		if i.seen, err = c.look(ctx, i.cache, cr.uid); err != nil {
			return nil, err
		}
	}
	if i.seen == nil && len(cr.tickets) > 0 {
		// The daemon was started anew, or there was room for others only.
		_, creds, err := ccache.ParseContent(cr.tickets)
		if err != nil {
			return nil, badCredential(err)
		}
		if err := i.cache.Initialize(ctx, i.client, creds...); err != nil {
			for _, cred := range creds {
				cred.Destroy()
			}
			return nil, cacheError(err)
		}
		if i.seen, err = c.snapshot(i.client, creds); err != nil {
			return nil, err
		}
	}
	if i.seen != nil {
		if !i.seen.client.Equal(i.client) {
			return nil, gone(i) // and not to be written over either
		}
		i.expires = uint32(i.seen.expires)
	}
	i.ofHandle = true
	return i, nil
}

// continued returns the credential of a handle to initiate with, good for at least so long. Tickets that have come to their
// end are got anew in the way in which they were got; then anew is set. Where that cannot be done the credential has
// expired, and nothing takes its place.
func (c *call) continued(ctx context.Context, cr *cred, atLeast time.Duration) (i *initiator, anew bool, err error) {
	if i, err = c.initiator(ctx, cr); err != nil {
		return nil, false, err
	}
	lasts := func() bool {
		left := int64(i.expires) - c.kdcTime(i).Unix()
		return left > 0 && left >= int64(atLeast/time.Second)
	}
	anew = !lasts()
	keys := c.keysOf(cr)
	if _, get := c.renewal(i, keys); !anew || get != nil {
		// While there is a way to get new ones that does not work now, those that there are serve to their end.
		if err = c.refresh(ctx, i, keys); err == nil {
			return i, anew, nil
		}
	}
	defer i.drop(ctx)
	var e *mech.Error
	if errors.As(err, &e) && e.Major != mech.CredentialsExpired {
		return nil, false, err
	}
	// As a call without the handle would, where that goes the same way.
	if cr.way == wayS4U && c.svc.Impersonate || cr.way == wayKeytab && cr.lent {
		env, err := c.environment(nil, xdr.CredInitiate)
		if err != nil {
			return nil, false, err
		}
		env.successor = &successor{client: i.client, uid: cr.uid, way: cr.way, refuse: func(krb5.Principal) error { return gone(i) }}
		i, err := c.initiate(ctx, &env)
		return i, true, err
	}
	return nil, false, gone(i)
}

// gone refuses a handle whose tickets have come to their end, or are not there any more.
func gone(i *initiator) error {
	e := expired(i)
	e.Text += "; they cannot be got again in the way they were got: get new ones, and a new credential"
	return e
}

// keysOf returns the keytab that new tickets for the credential of a handle are got with: one that the caller could use
// without the handle, if it was got with a keytab. nil if there is none.
func (c *call) keysOf(cr *cred) *keytab.Keytab {
	own := c.own()
	if cr.way != wayKeytab || cr.lent || c.svc.CredUsage == conf.UsageAccept || cr.uid != c.Conn.Peer.UID && !(own && c.svc.Trusted) {
		return nil
	}
	st, err := c.store(cr.uid)
	if err != nil {
		return nil // what there is serves to its end
	}
	keys := []*keytab.Keytab{st.clientKeytab}
	if own && st.keytabNamed && cr.uid == c.Conn.Peer.UID { // not for a user, whoever his cache says he is
		keys = append(keys, st.keytab)
	}
	for _, k := range keys {
		if hasName(k, []byte(cmp.Or(cr.asked, cr.name))) {
			return k
		}
	}
	return nil
}

// has reports whether a keytab has keys of a principal.
func has(k *keytab.Keytab, p krb5.Principal) bool {
	var name [128]byte
	return hasName(k, p.AppendString(name[:0]))
}

// hasName is has for a principal as text, with its realm.
func hasName(k *keytab.Keytab, principal []byte) bool {
	return k != nil && len(k.Ring().ByPrincipal(principal)) > 0
}

// badCredential refuses a handle whose credential is not there any more.
func badCredential(err error) error {
	e := mech.Errorf(mech.DefectiveCredential, 0, reason.BadCredential, "the credential of the handle cannot be used")
	if err != nil {
		e.Text += ": " + err.Error()
	}
	return e
}

func (c *call) configuredName() *xdr.Name {
	return &xdr.Name{DisplayName: []byte(c.svc.Krb5Principal), NameType: oidKrb5Principal}
}

// parseUID reads the decimal uid of a STRING_UID or MACHINE_UID name as clients send it: text in both cases.
func parseUID(b []byte) (uint32, error) {
	if n := len(b); n > 0 && b[n-1] == 0 {
		b = b[:n-1]
	}
	var uid uint64
	for _, d := range b {
		if d < '0' || d > '9' || uid > 1<<32 {
			uid = 1 << 32
			break
		}
		uid = uid*10 + uint64(d-'0')
	}
	if len(b) == 0 || uid >= 1<<32-1 {
		return 0, mech.Errorf(mech.CredUnavail, 0, reason.BadArgument, "%.32q is not a uid: decimal digits below 4294967295 expected", b)
	}
	return uint32(uid), nil
}

// usage narrows the usage asked for to what the service's cred_usage allows. Numbers outside the enumeration mean
// BOTH, as in the C daemon.
func (c *call) usage(asked xdr.CredUsage) (xdr.CredUsage, error) {
	if asked != xdr.CredInitiate && asked != xdr.CredAccept {
		asked = xdr.CredBoth
	}
	allowed := xdr.CredBoth
	switch c.svc.CredUsage {
	case conf.UsageInitiate:
		allowed = xdr.CredInitiate
	case conf.UsageAccept:
		allowed = xdr.CredAccept
	}
	switch {
	case allowed == xdr.CredBoth || allowed == asked:
		return asked, nil
	case asked == xdr.CredBoth:
		return allowed, nil
	}
	return 0, mech.Errorf(mech.CredUnavail, 0, reason.UsageNotAllowed, "service %q has cred_usage = %s", c.svc.Name, c.svc.CredUsage)
}

// acceptor sets a up to accept for a target uid with the keys of a wanted name, any in the keytab when wanted is nil.
// It returns the store that the keys are from.
func (c *call) acceptor(a *krb5.Acceptor, uid uint32, wanted *xdr.Name) (*store, error) {
	st, err := c.store(uid)
	if err != nil {
		return nil, err
	}
	if st.keytab == nil {
		return nil, mech.Errorf(mech.CredUnavail, 0, reason.CredStore, "cred_store names no keytab to accept with")
	}
	*a = krb5.Acceptor{Keys: st.keytab.Ring(), Replay: st.replay, Conf: c.svc.krb5, Now: c.svc.p.now, DCEStyle: true, Trace: c.svc.p.trace}
	if wanted != nil {
		p, err := c.acceptorName(wanted)
		if err != nil {
			return nil, asBadName(err)
		}
		a.Name = &p
	}
	return st, nil
}

// asBadName makes whatever is wrong with a name GSS_S_BAD_NAME, where libgssapi does so before the mechanism is asked:
// for exported names and in gss_acquire_cred.
func asBadName(err error) error {
	var e *mech.Error
	if errors.As(err, &e) {
		e.Major, e.Mech = mech.BadName, mech.KRB5
	}
	return err
}
