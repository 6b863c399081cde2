package creds

import (
	"log/slog"

	"gssproxyd/conf"
	"gssproxyd/limits"
	"gssproxyd/mech"
	"gssproxyd/mech/krb5"
)

// Permit refuses what the configuration does not permit the callers of the service, and says in the
// log what it would not but for mode = observe. Nothing is looked at where nothing is restricted.
func (c *Caller) Permit(a *conf.Act) error {
	s := c.Service
	if !s.restricted {
		return nil
	}
	v := s.config.Permit(s.Service, a)
	for _, r := range v.Observed {
		s.log.Line(slog.LevelWarn, c.Peer.UID, s.Name+" observed "+string(r.Reason), limits.UsualRate, "it would be refused, and is only observed", func() []any {
			return []any{"uid", c.Peer.UID, "pid", c.Peer.PID, "service", s.Name, "reason", string(r.Reason), "error", r.Text}
		})
	}
	if r := v.Refused; r != nil {
		return mech.Errorf(mech.Unauthorized, 0, r.Reason, "service %q: %s", s.Name, r.Text)
	}
	return nil
}

// MayDelegate reports whether credentials may be handed on, be it an initiator's to the caller or the
// caller's to an acceptor.
func (c *Caller) MayDelegate() bool { return c.Permit(&conf.Act{Operation: conf.OpDelegate}) == nil }

// Ends returns when a context ends that its ticket lets live until end, in Unix seconds.
func (c *Caller) Ends(end uint32) uint32 {
	if most := c.Service.config.Lifetime(c.Service.Service); most > 0 {
		return uint32(min(int64(end), c.Now.Add(most).Unix()))
	}
	return end
}

// nameIn is a principal as the configuration sees it; in a realm where it has none of its own.
func nameIn(p krb5.Principal, realm string) conf.Principal {
	if p.Realm != "" {
		realm = p.Realm
	}
	return conf.Principal{Components: p.Components, Realm: realm}
}

// PermitAccepted refuses a context that was accepted.
func (c *Caller) PermitAccepted(a *krb5.Accepted) error {
	if !c.Service.restricted {
		return nil
	}
	client, err := krb5.ParsePrincipal(a.Context.There, "")
	if err != nil {
		return err
	}
	enctype, err := krb5.TicketEnctype(a.Ticket)
	if err != nil {
		return err
	}
	name := nameIn(client, "")
	return c.Permit(&conf.Act{
		Operation: conf.OpAccept, Client: &name, Enctypes: []string{enctype.String(), a.Context.SessionKey.Enctype().String()},
		Bindings: a.Context.Flags&mech.FlagChannelBound != 0, PAC: a.Context.PACVerified,
	})
}

// permitTarget refuses a server before a ticket for it is asked for, if its realm is known.
func (c *Caller) permitTarget(cr *Credential, target krb5.Principal) error {
	if !c.Service.restricted || target.Realm == "" {
		return nil
	}
	return c.Permit(&conf.Act{Operation: conf.OpInitiate, Targets: []conf.Principal{nameIn(target, "")}, Proxy: cr.proxy()})
}

// permitTicket refuses a ticket for another server than may be reached, or of another encryption
// type.
func (c *Caller) permitTicket(cr *Credential, target krb5.Principal, t *krb5.Credential) error {
	if !c.Service.restricted {
		return nil
	}
	enctype, err := krb5.TicketEnctype(t.Ticket)
	if err != nil {
		return err
	}
	return c.Permit(&conf.Act{
		Operation: conf.OpInitiate, Targets: []conf.Principal{nameIn(target, t.Server.Realm), nameIn(t.Server, "")}, Proxy: cr.proxy(),
		Enctypes: []string{enctype.String(), t.KeyType.String()},
	})
}

// permitUser refuses to get the credential of a user who is not there.
func (c *Caller) permitUser(user krb5.Principal) error {
	if !c.Service.restricted {
		return nil
	}
	name := nameIn(user, c.Service.Krb5.DefaultRealm)
	return c.Permit(&conf.Act{Operation: conf.OpImpersonate, User: &name})
}
