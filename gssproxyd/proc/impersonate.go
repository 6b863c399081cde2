package proc

import (
	"context"

	"gssproxyd/mech"
	"gssproxyd/mech/krb5"
	"gssproxyd/mech/krb5/ccache"
	"gssproxyd/mech/reason"
	"gssproxyd/xdr"
)

// Acting for users who are not there (MS-SFU): a service gets a ticket for itself in the user's name (S4U2Self), which
// is the evidence that tickets for other services are got with (S4U2Proxy) where the KDC allows it.

// impersonate is ACQUIRE_CRED with acquire_type impersonate_name: the caller has the service's credential and names the
// user. The service must be trusted or have allow_protocol_transition, which count for its own euid only.
func (c *call) impersonate(ctx context.Context, input *cred, user *xdr.Name) (*initiator, error) {
	switch {
	case !c.svc.Trusted && !c.svc.AllowProtocolTransition:
		return nil, mech.Errorf(mech.NoCred, 0, reason.NoTransition, "service %q has neither allow_protocol_transition nor trusted", c.svc.Name)
	case !c.own():
		return nil, mech.Errorf(mech.NoCred, 0, reason.NoTransition, "only the euid %d of service %q may act for users, not uid %d", c.svc.EUID, c.svc.Name, c.Conn.Peer.UID)
	}
	if _, err := c.usage(xdr.CredInitiate); err != nil {
		return nil, err
	}
	if input == nil || input.usage == xdr.CredAccept {
		return nil, mech.Errorf(mech.NoCred, 0, reason.CredMismatch, "impersonation needs a credential of the service to initiate with")
	}
	if user == nil {
		return nil, mech.Errorf(mech.BadName, 0, reason.BadArgument, "impersonation needs the name of a user")
	}
	service, _, err := c.continued(ctx, input, 0)
	if err != nil {
		return nil, err
	}
	defer service.drop(ctx)
	name, err := c.initiatorName(user, nil)
	if err != nil {
		return nil, asBadName(err)
	}
	return c.s4u(ctx, service, name)
}

// impersonateUser is the option impersonate of a service: the service's keytab gets the credential, and then a ticket
// for itself in the name of the user whom the caller acts for.
func (c *call) impersonateUser(ctx context.Context, env *environment) (*initiator, error) {
	user, err := c.importName(env.name)
	if err != nil {
		return nil, asBadName(err)
	}
	own := *env
	own.name, own.successor, own.configured = nil, nil, c.svc.Krb5Principal != ""
	service, err := c.initiateInMemory(ctx, &own)
	if err != nil {
		return nil, err
	}
	if sameName(service.client, user) || sameName(service.login(), user) { // the service as itself
		return service, env.successor.admit(service.client, env.uid, service.way)
	}
	if user.Realm == "" {
		user.Realm = c.svc.krb5.DefaultRealm
	}
	if err := env.successor.admit(user, env.uid, wayS4U); err != nil {
		return nil, err
	}
	i, err := c.s4u(ctx, service, user)
	if err != nil {
		return nil, err
	}
	i.uid = env.uid
	return i, nil
}

// initiateInMemory is initiate without the configured cache: that one is the user's.
func (c *call) initiateInMemory(ctx context.Context, env *environment) (*initiator, error) {
	st, err := c.store(env.uid)
	if err != nil {
		return nil, err
	}
	inMemory := *st
	inMemory.ccache = ""
	return c.initiateFrom(ctx, &inMemory, env)
}

// s4u gets the evidence ticket of a user for the service, and makes the credential that acts with it.
func (c *call) s4u(ctx context.Context, service *initiator, user krb5.Principal) (*initiator, error) {
	if service.proxy() {
		return nil, mech.Errorf(mech.NoCred, 0, reason.CredMismatch, "a credential that acts for a user cannot act for another one")
	}
	evidence, err := c.svc.kdc.S4U2Self(ctx, service, service.client, user)
	if err != nil {
		return nil, err
	}
	return c.withEvidence(ctx, service, evidence)
}

// withEvidence makes the credential of the user that a ticket for the service is of: the service's own tickets and the
// evidence, in a cache of its own.
func (c *call) withEvidence(ctx context.Context, service *initiator, evidence *krb5.Credential) (*initiator, error) {
	kept, err := service.Find(ctx, func(cred *krb5.Credential) bool { return !ccache.IsConfig(cred.Server) })
	if err != nil {
		return nil, cacheError(err)
	}
	kept = append(kept, ccache.ConfigEntry(evidence.Client, ccache.ProxyImpersonator, nil, []byte(service.client.String())), evidence)
	i, err := c.newTemporary(ctx, "evidence", wayS4U, evidence.Client, kept...)
	for _, cred := range kept {
		cred.Destroy() // the cache has copies
	}
	if err != nil {
		return nil, err
	}
	i.service, i.expires = service.client, min(evidence.EndTime, service.expires)
	return i, nil
}
