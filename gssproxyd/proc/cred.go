package proc

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"

	"gssproxyd/conf"
	"gssproxyd/keytab"
	"gssproxyd/keytab/seal"
	"gssproxyd/mech"
	"gssproxyd/mech/krb5"
	"gssproxyd/mech/krb5/ccache"
	"gssproxyd/mech/krb5/etype"
	"gssproxyd/xdr"
)

// cred is what a credential handle says. The handle is sealed with a key of the daemon's own, bound to the service
// that made it, and kept by the client. For an acceptor it names keys and holds none, so it stays good while keytabs
// rotate. For an initiator it names a credential cache, or holds the tickets of one in memory, so that any instance of
// the daemon can go on with it.
type cred struct {
	etype.Redacted
	usage xdr.CredUsage
	name  string // principal shown to the client
	uid   uint32 // whose store it is from

	// To accept: the name the client asked for, as it gave it; none when any key of the service will do.
	wantedType, wanted string

	// To initiate.
	cache   string       // name of the credential cache
	tickets etype.Secret // a ccache.GSSCred with the content of one in memory; none otherwise
	service string       // the service whose evidence tickets these are, if any
}

const credVersion = 2

// seal makes the handle of a credential.
func (c *call) seal(cr *cred) []byte {
	plain := make([]byte, 0, 256+len(cr.tickets))
	plain = xdr.AppendUint32(plain, credVersion)
	plain = xdr.AppendUint32(plain, uint32(cr.usage))
	plain = xdr.AppendUint32(plain, cr.uid)
	for _, s := range []string{cr.name, cr.wantedType, cr.wanted, cr.cache, cr.service} {
		plain = xdr.AppendString(plain, s)
	}
	plain = xdr.AppendOpaque(plain, cr.tickets)
	defer clear(plain)
	return c.keep(func(b []byte) []byte { return c.svc.p.box.Seal(b, plain, c.svc.Name, seal.KindCred) })
}

// unseal opens the handle of a gssx_cred. One that does not open was made by another daemon, for another service or
// under a key long gone: it counts as no credential at all, and the call goes on as if none had been sent.
func (c *call) unseal(x *xdr.Cred) (*cred, bool) {
	plain, err := c.svc.p.box.Unseal(c.opened[:0], x.CredHandleReference, c.svc.Name, seal.KindCred)
	if err != nil {
		c.svc.p.note(slog.LevelDebug, c, mech.ReasonBadCredential, "a credential handle does not open: it counts as none")
		return nil, false
	}
	c.opened = plain // cleared when the call ends
	var d xdr.Decoder
	d.Reset(plain)
	version := d.Uint32()
	cr := &cred{usage: xdr.CredUsage(d.Uint32()), uid: d.Uint32()}
	for _, s := range []*string{&cr.name, &cr.wantedType, &cr.wanted, &cr.cache, &cr.service} {
		*s = string(d.Opaque())
	}
	cr.tickets = d.Opaque()
	if d.Err() != nil || version != credVersion {
		c.svc.p.note(slog.LevelDebug, c, mech.ReasonBadCredential, "a credential handle does not open: it counts as none")
		return nil, false
	}
	return cr, true
}

// credOf makes the handle's content of a credential to initiate with. Tickets in memory go with it.
func (c *call) credOf(ctx context.Context, i *initiator, usage xdr.CredUsage, uid uint32) (*cred, error) {
	cr := &cred{usage: usage, name: i.client.String(), uid: uid, cache: i.cache.Name()}
	if i.proxy() {
		cr.service = i.service.String()
	}
	if strings.HasPrefix(cr.cache, memoryPrefix) {
		creds, err := i.cache.Credentials(ctx)
		if err != nil {
			return nil, cacheError(err)
		}
		token := ccache.GSSCred{Usage: 1, Content: &ccache.Content{Principal: i.client, Credentials: creds}}
		cr.tickets = token.Append(nil)
		token.Destroy()
	}
	return cr, nil
}

const memoryPrefix = "MEMORY:"

// initiator opens the credential of a handle to initiate with. Tickets that came with the handle are put where they
// were, unless the daemon still has them there, perhaps refreshed since.
func (c *call) initiator(ctx context.Context, cr *cred) (*initiator, error) {
	i := new(initiator)
	var err error
	if i.client, err = krb5.ParsePrincipal(cr.name, ""); err != nil {
		return nil, badCredential(err)
	}
	if cr.service != "" {
		if i.service, err = krb5.ParsePrincipal(cr.service, ""); err != nil {
			return nil, badCredential(err)
		}
	}
	if i.cache, err = c.svc.resolver(cr.uid).Open(ctx, cr.cache); err != nil {
		return nil, badCredential(err)
	}
	if i.seen, err = c.look(ctx, i.cache, cr.uid); err != nil {
		return nil, err
	}
	if i.seen == nil && len(cr.tickets) > 0 {
		// The daemon was started anew, or there was room for others only.
		token, err := ccache.ParseGSSCred(cr.tickets)
		if err != nil || token.Content == nil {
			return nil, badCredential(err)
		}
		if err := i.cache.Initialize(ctx, i.client, token.Content.Credentials...); err != nil {
			token.Destroy()
			return nil, cacheError(err)
		}
		if i.seen, err = c.snapshot(i.client, token.Content.Credentials); err != nil {
			return nil, err
		}
	}
	if i.seen == nil || i.seen.expires == 0 || !i.seen.client.Equal(i.client) {
		return nil, badCredential(fmt.Errorf("%s has no tickets of %s any more", cr.cache, cr.name))
	}
	i.expires = uint32(i.seen.expires)
	return i, nil
}

// keysOf returns the keytab that new tickets for the credential of a handle are got with: one that the caller could use
// without the handle. nil if there is none.
func (c *call) keysOf(cr *cred) *keytab.Keytab {
	own := c.Conn.Peer.UID == c.svc.EUID
	if c.svc.CredUsage == conf.UsageAccept || cr.uid != c.Conn.Peer.UID && !(own && c.svc.Trusted) {
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
		if k != nil && len(k.Ring().ByPrincipal([]byte(cr.name))) > 0 {
			return k
		}
	}
	return nil
}

// badCredential refuses a handle whose credential is not there any more.
func badCredential(err error) error {
	e := refusal(mech.DefectiveCredential, mech.ReasonBadCredential, "the credential of the handle cannot be used")
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
		return 0, refusal(mech.CredUnavail, ReasonBadArgument, fmt.Sprintf("%.32q is not a uid: decimal digits below 4294967295 expected", b))
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
	return 0, refusal(mech.CredUnavail, ReasonUsageNotAllowed,
		fmt.Sprintf("service %q has cred_usage = %s", c.svc.Name, c.svc.CredUsage))
}

// acceptor sets a up to accept for a target uid with the keys of a wanted name, any in the keytab when wanted is nil.
// It returns the store that the keys are from.
func (c *call) acceptor(a *krb5.Acceptor, uid uint32, wanted *xdr.Name) (*store, error) {
	st, err := c.store(uid)
	if err != nil {
		return nil, err
	}
	if st.keytab == nil {
		return nil, refusal(mech.CredUnavail, ReasonCredStore, "cred_store names no keytab to accept with")
	}
	*a = krb5.Acceptor{Keys: st.keytab.Ring(), Replay: st.replay, Conf: c.svc.krb5, Now: c.svc.p.now, DCEStyle: true, Trace: c.svc.p.trace}
	if wanted != nil {
		display, nameType := nameOf(wanted)
		p, err := krb5.AcceptorName(display, nameType, c.svc.krb5, c.users())
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
