package creds

import (
	"context"

	"gssproxyd/mech"
	"gssproxyd/mech/krb5"
	"gssproxyd/mech/krb5/ccache"
	"gssproxyd/mech/reason"
)

// Acting for users who are not there (MS-SFU): a service gets a ticket for itself in the user's
// name (S4U2Self), which is the evidence that tickets for other services are got with (S4U2Proxy)
// where the KDC allows it.

// acquireAsUser is the option impersonate of a service: the service's keytab gets the credential,
// and then a ticket for itself in the name of the user whom the caller acts for.
func (c *Caller) acquireAsUser(ctx context.Context, t *target) (*Credential, error) {
	user, err := c.Principal(*t.name)
	if err != nil {
		return nil, AsBadName(err)
	}
	st, err := c.store(t.uid)
	if err != nil {
		return nil, err
	}
	inMemory, own := *st, *t
	inMemory.ccache = "" // that one is the user's
	own.name, own.successor, own.configured = nil, nil, c.Service.Krb5Principal != ""
	service, err := c.acquireFrom(ctx, &inMemory, &own)
	if err != nil {
		return nil, err
	}
	if sameName(service.Client, user) || sameName(service.login(), user) { // the service as itself
		return service, t.successor.admit(service.Client, t.uid, service.way)
	}
	if user.Realm == "" {
		user.Realm = c.Service.Krb5.DefaultRealm
	}
	if err := t.successor.admit(user, t.uid, wayS4U); err != nil {
		return nil, err
	}
	if err := c.permitUser(user); err != nil {
		return nil, err
	}
	cr, err := c.s4u(ctx, service, user)
	if err != nil {
		return nil, err
	}
	cr.uid = t.uid
	return cr, nil
}

// s4u gets the evidence ticket of a user for the service, and makes the credential that acts with
// it.
func (c *Caller) s4u(ctx context.Context, service *Credential, user krb5.Principal) (*Credential, error) {
	if service.proxy() {
		return nil, mech.Errorf(mech.NoCred, 0, reason.CredMismatch, "a credential that acts for a user cannot act for another one")
	}
	evidence, err := c.Service.kdc.S4U2Self(ctx, service, service.Client, user)
	if err != nil {
		return nil, err
	}
	if !evidence.Client.Equal(user) { // an enterprise name is anybody's, until the KDC says whose
		if err := c.permitUser(evidence.Client); err != nil {
			evidence.Destroy()
			return nil, err
		}
	}
	return c.withEvidence(ctx, service, evidence, wayS4U)
}

// withEvidence makes the credential of the user that a ticket for the service is of: the service's
// own tickets and the evidence, in a cache of its own.
func (c *Caller) withEvidence(ctx context.Context, service *Credential, evidence *krb5.Credential, way way) (*Credential, error) {
	kept, err := service.Find(ctx, func(ticket *krb5.Credential) bool { return !ccache.IsConfig(ticket.Server) })
	if err != nil {
		return nil, cacheError(err)
	}
	kept = append(kept, ccache.ConfigEntry(evidence.Client, ccache.ProxyImpersonator, nil, []byte(service.Client.String())), evidence)
	cr, err := c.newTemporary(ctx, "evidence", way, evidence.Client, kept...)
	for _, ticket := range kept {
		ticket.Destroy() // the cache has copies
	}
	if err != nil {
		return nil, err
	}
	cr.service, cr.expires = service.Client, min(evidence.EndTime, service.expires)
	return cr, nil
}
