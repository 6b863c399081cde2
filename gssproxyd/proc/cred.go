package proc

import (
	"errors"
	"fmt"

	"gssproxyd/conf"
	"gssproxyd/keytab/seal"
	"gssproxyd/mech"
	"gssproxyd/mech/krb5"
	"gssproxyd/xdr"
)

// cred is what a credential handle says. The handle is sealed with a key of the daemon's own, bound to the service
// that made it, and kept by the client; it names keys and holds none, so it stays good while keytabs rotate.
type cred struct {
	usage xdr.CredUsage
	name  string // principal shown to the client

	// The name the client asked for, as it gave it; none when any key of the service will do.
	wantedType, wanted string
}

const credVersion = 1

// seal makes the handle of a credential.
func (c *call) seal(cr *cred) []byte {
	return c.keep(func(b []byte) []byte {
		plain := xdr.AppendUint32(nil, credVersion)
		plain = xdr.AppendUint32(plain, uint32(cr.usage))
		plain = xdr.AppendString(plain, cr.name)
		plain = xdr.AppendString(plain, cr.wantedType)
		plain = xdr.AppendString(plain, cr.wanted)
		return c.svc.p.box.Seal(b, plain, c.svc.Name, seal.KindCred)
	})
}

// unseal opens the handle of a gssx_cred. One that does not open was made by another daemon, for another service or
// under a key long gone: it counts as no credential at all, and the call goes on as if none had been sent.
func (c *call) unseal(x *xdr.Cred) (cred, bool) {
	var room [512]byte
	plain, err := c.svc.p.box.Unseal(room[:0], x.CredHandleReference, c.svc.Name, seal.KindCred)
	if err != nil {
		c.svc.p.foreign.Add(1)
		return cred{}, false
	}
	var d xdr.Decoder
	d.Reset(plain)
	version := d.Uint32()
	cr := cred{usage: xdr.CredUsage(d.Uint32()), name: string(d.Opaque()), wantedType: string(d.Opaque()), wanted: string(d.Opaque())}
	return cr, d.Err() == nil && version == credVersion
}

// target decides for whom a call without a handle acts, and with which name: the caller's own uid, or the uid that a
// trusted service gives as a name. asked is nil when no name was given.
func (c *call) target(asked *xdr.Name) (uid uint32, name *xdr.Name, err error) {
	own := c.Conn.Peer.UID == c.svc.EUID
	if asked == nil {
		if own && c.svc.Trusted && c.svc.Krb5Principal != "" {
			return c.Conn.Peer.UID, c.configuredName(), nil
		}
		return c.Conn.Peer.UID, nil, nil
	}
	t := mech.OID(asked.NameType)
	if own && c.svc.Trusted && (t == mech.NTStringUID || t == mech.NTMachineUID) {
		uid, err := parseUID(asked.DisplayName)
		return uid, nil, err
	}
	return c.Conn.Peer.UID, asked, nil
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
		return 0, refusal(mech.BadName, ReasonBadArgument, fmt.Sprintf("%.32q is not a uid: decimal digits below 4294967295 expected", b))
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
	st, err := c.svc.store(uid)
	if err != nil {
		return nil, refusal(mech.CredUnavail, ReasonCredStore, err.Error())
	}
	*a = krb5.Acceptor{Keys: st.keytab.Ring(), Replay: st.replay, Conf: c.svc.krb5, Now: c.svc.p.now}
	if wanted != nil {
		display, nameType := nameOf(wanted)
		p, err := krb5.AcceptorName(display, nameType, c.svc.krb5, c.svc.p.users)
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
