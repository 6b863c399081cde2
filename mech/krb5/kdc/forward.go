package kdc

import (
	"context"

	"gssproxyd/mech"
	"gssproxyd/mech/krb5"
	"gssproxyd/mech/krb5/etype"
	"gssproxyd/mech/krb5/wire"
	"gssproxyd/mech/reason"
)

// Renew exchanges a renewable ticket, most often a TGT, for one that lives on (RFC 4120 section
// 3.3.1). The old one stays good until its end.
func (c *Client) Renew(ctx context.Context, cred *krb5.Credential) (*krb5.Credential, error) {
	r, err := c.exchange(ctx, tgsRequest{tgt: cred, server: cred.Server, options: wire.OptRenew | cred.Flags&inherited, etypes: c.tgsEnctypes(nil)})
	if err != nil {
		return nil, err
	}
	return r.cred, nil
}

// Forward gets a copy of a forwardable TGT to give away: without addresses, forwardable again, with
// a session key of its own (RFC 4120 section 2.6). That key's type is enctype, that of the ticket
// to send the forwarded one under: what the other side can do. A KDC that refuses it chooses
// another.
func (c *Client) Forward(ctx context.Context, tgt *krb5.Credential, enctype etype.ID) (*krb5.Credential, error) {
	if !isTGS(tgt.Server) {
		return nil, mech.Errorf(mech.Failure, wire.MinorNoTicket, reason.NoCredential, ": %s is no ticket-granting ticket", tgt.Server.Shown())
	}
	q := tgsRequest{tgt: tgt, server: TGS(tgt.Client.Realm, tgt.Client.Realm), till: tgt.EndTime,
		options: wire.FlagForwarded | tgt.Flags&inherited, etypes: c.tgsEnctypes(nil)}
	if tgt.Flags&wire.FlagRenewable != 0 {
		q.renewTill = tgt.RenewTill
	}
	if one := c.tgsEnctypes([]etype.ID{enctype}); len(one) > 0 {
		q2 := q
		q2.etypes = one
		if r, err := c.exchange(ctx, q2); err == nil {
			return r.cred, nil
		} else if minor(err) == wire.MinorUnreachable || ctx.Err() != nil {
			return nil, err
		}
	}
	r, err := c.exchange(ctx, q)
	if err != nil {
		return nil, err
	}
	return r.cred, nil
}
