package kdc

import (
	"context"

	"gssproxyd/mech"
	"gssproxyd/mech/krb5"
	"gssproxyd/mech/krb5/etype"
	"gssproxyd/mech/reason"
)

// Renew exchanges a renewable ticket, most often a TGT, for one that lives on (RFC 4120 section 3.3.1). The old one
// stays good until its end.
func (c *Client) Renew(ctx context.Context, cred *krb5.Credential) (*krb5.Credential, error) {
	return c.again(ctx, cred, OptRenew)
}

// Validate exchanges a postdated ticket whose time has come for one that can be used. It is for callers of this package
// who postdate tickets ([LoginOptions]): the daemon asks for none, and one that somebody put into its cache is not used.
func (c *Client) Validate(ctx context.Context, cred *krb5.Credential) (*krb5.Credential, error) {
	return c.again(ctx, cred, OptValidate)
}

func (c *Client) again(ctx context.Context, cred *krb5.Credential, option uint32) (*krb5.Credential, error) {
	r, err := c.exchange(ctx, tgsRequest{tgt: cred, server: cred.Server, options: option | cred.Flags&inherited, etypes: c.tgsEnctypes(nil)})
	if err != nil {
		return nil, err
	}
	return r.cred, nil
}

// ForwardOptions are what may be asked of [Client.Forward].
type ForwardOptions struct {
	// Forwardable lets the holder of the forwarded ticket forward it again.
	Forwardable bool
	// Enctype is the session key's type, that of the ticket to send the forwarded one under: what the other side
	// can do. 0, or a KDC that refuses it, leaves the choice to the KDC.
	Enctype etype.ID
}

// Forward gets a copy of a forwardable TGT to give away: without addresses, with a session key of its own (RFC 4120
// section 2.6).
func (c *Client) Forward(ctx context.Context, tgt *krb5.Credential, opt ForwardOptions) (*krb5.Credential, error) {
	if !isTGS(tgt.Server) {
		return nil, mech.Errorf(mech.Failure, mech.KRB5Minor(codeNoTicket), reason.NoCredential, ": %s is no ticket-granting ticket", shown(tgt.Server.String()))
	}
	q := tgsRequest{tgt: tgt, server: TGS(tgt.Client.Realm, tgt.Client.Realm), till: tgt.EndTime,
		options: OptForwarded | tgt.Flags&inherited, etypes: c.tgsEnctypes(nil)}
	if !opt.Forwardable {
		q.options &^= OptForwardable
	}
	if tgt.Flags&OptRenewable != 0 {
		q.renewTill = tgt.RenewTill
	}
	if one := c.tgsEnctypes([]etype.ID{opt.Enctype}); opt.Enctype != 0 && len(one) > 0 {
		q2 := q
		q2.etypes = one
		if r, err := c.exchange(ctx, q2); err == nil {
			return r.cred, nil
		} else if code(err) == codeUnreachable || ctx.Err() != nil {
			return nil, err
		}
	}
	r, err := c.exchange(ctx, q)
	if err != nil {
		return nil, err
	}
	return r.cred, nil
}
