package creds

import (
	"context"

	"gssproxyd/conf"
	"gssproxyd/mech"
	"gssproxyd/mech/krb5"
	"gssproxyd/mech/krb5/etype"
	"gssproxyd/mech/krb5/kdc"
	"gssproxyd/mech/reason"
)

// Credential returns the credential that a context is started with: that of the handle that was
// sent, or the one the caller gets without.
func (c *Caller) Credential(ctx context.Context, in *Input) (*Credential, error) {
	if h := in.Handle; h != nil {
		if h.Usage == conf.UsageAccept {
			return nil, mech.Errorf(mech.NoCred, 0, reason.CredMismatch, "the credential sent is for accepting only")
		}
		cr, _, err := c.resume(ctx, h, 0)
		return cr, err
	}
	t, err := c.target(nil, conf.UsageInitiate)
	if err != nil {
		return nil, err
	}
	if t.successor, err = c.successorOfLost(in); err != nil {
		return nil, err
	}
	if t.successor == nil {
		t.successor = c.left()
	}
	return c.acquire(ctx, &t)
}

// MayReach refuses to use a credential towards a target that it may not be used for. One that acts
// for a user reaches the service itself. To reach others the service must be trusted, impersonate
// or have allow_constrained_delegation, which count for its own euid only; another uid of a service
// that impersonates acts in its own name.
func (c *Caller) MayReach(cr *Credential, target krb5.Principal) error {
	if err := c.permitTarget(cr, target); err != nil {
		return err
	}
	if !cr.proxy() {
		return nil
	}
	if target.Realm == "" {
		target.Realm = cr.service.Realm
	}
	svc, own := c.Service, c.own()
	switch {
	case target.Equal(cr.service):
		return nil
	case own && (svc.Trusted || svc.Impersonate || svc.AllowConstrainedDelegation):
		return nil
	case !own && svc.Impersonate:
		name, err := c.userName(c.Peer.UID)
		if err != nil {
			return err
		}
		user, err := c.Principal(*name)
		if err != nil {
			return err
		}
		if cr.Client.Equal(user) {
			return nil
		}
	}
	return mech.Errorf(mech.Unauthorized, 0, reason.NoDelegation, "uid %d of service %q may not reach %s as %s", c.Peer.UID, svc.Name, target, cr.Client)
}

// Ticket gets the ticket for a target. It may be one that the credential shares with other calls.
func (c *Caller) Ticket(ctx context.Context, cr *Credential, target krb5.Principal, opt kdc.TicketOptions) (*krb5.Credential, error) {
	t, err := c.ticket(ctx, cr, target, opt)
	if err != nil {
		return nil, err
	}
	if err := c.permitTicket(cr, target, t); err != nil {
		if !cr.Shares(t) {
			t.Destroy()
		}
		return nil, err
	}
	return t, nil
}

func (c *Caller) ticket(ctx context.Context, cr *Credential, target krb5.Principal, opt kdc.TicketOptions) (*krb5.Credential, error) {
	if t := c.seenTicket(cr, target, opt); t != nil {
		if trace := c.Service.log.Trace; trace != nil {
			trace("Found the %v in %s", t, cr.cache.Name())
		}
		return t, nil
	}
	opt.StartRealm = cr.startRealm()
	if !cr.proxy() {
		return c.Service.kdc.Ticket(ctx, cr, cr.Client, target, opt)
	}
	evidence, err := findTicket(ctx, cr, func(ticket *krb5.Credential) bool {
		return ticket.Client.Equal(cr.Client) && ticket.Server.Equal(cr.service)
	})
	if err != nil {
		return nil, err
	}
	if evidence == nil {
		return nil, mech.Errorf(mech.NoCred, 0, reason.NoCredential, "no evidence ticket of %v for %v", cr.Client, cr.service)
	}
	defer evidence.Destroy()
	return c.Service.kdc.S4U2Proxy(ctx, cr, cr.service, evidence, target, opt)
}

// Forward gets the forwarded ticket-granting ticket that delegates a credential, with a session key
// of an encryption type. nil if there is nothing to be forwarded: delegation is then not done, and
// the context's flags say so.
func (c *Caller) Forward(ctx context.Context, cr *Credential, enctype etype.ID) (*krb5.Credential, error) {
	if cr.proxy() {
		return nil, nil
	}
	tgt, err := findTicket(ctx, cr, func(ticket *krb5.Credential) bool {
		return isTGT(ticket) && ticket.Server.Components[1] == cr.Client.Realm &&
			ticket.Client.Equal(cr.Client) && ticket.Flags&kdc.OptForwardable != 0
	})
	if err != nil || tgt == nil {
		return nil, nil
	}
	defer tgt.Destroy()
	return c.Service.kdc.Forward(ctx, tgt, enctype)
}
