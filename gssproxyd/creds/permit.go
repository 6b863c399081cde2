package creds

import (
	"log/slog"
	"slices"
	"time"

	"gssproxyd/audit"
	"gssproxyd/conf"
	"gssproxyd/limits"
	"gssproxyd/mech"
	"gssproxyd/mech/krb5"
	"gssproxyd/mech/krb5/etype"
	"gssproxyd/mech/reason"
)

// Permit refuses what the configuration does not permit the callers of the service, and says in the
// log what it would not but for mode = observe. Nothing is looked at where nothing is restricted.
func (c *Caller) Permit(a *conf.Act) error {
	s := c.Service
	if !s.restricted {
		return nil
	}
	return c.judged(s.permit(a))
}

// permit is [conf.Config.Permit] for the service, with what entries of key stores say.
func (s *Service) permit(a *conf.Act) conf.Verdict {
	if s.entries == nil {
		return s.config.Permit(s.Service, a)
	}
	return s.config.Permit(s.Service, a, s.narrowing()...)
}

// narrowing is what the entries of key stores say now that the service has keys of. It holds for all
// that its callers do, whichever key that takes.
func (s *Service) narrowing() (list []*conf.Permission) {
	for _, entry := range s.entries {
		list = append(list, entry())
	}
	return list
}

// Enctypes are the encryption types that contexts may have; nil if they may have any.
func (s *Service) Enctypes() []etype.ID {
	if s.entries == nil {
		return s.enctypes
	}
	return enctypes(s.config.Enforced(s.Service, s.narrowing()...))
}

// Count counts the call, where there is a limit to how many a second there may be, and refuses it if
// it is one too many.
func (c *Caller) Count() error {
	s := c.Service
	if !s.counted {
		return nil
	}
	c.awaitKeys()
	rates, entries := s.rates, s.narrowing()
	if entries != nil {
		rates, _ = callRates(s.config, s.Service, entries...)
	}
	var v conf.Verdict
	s.limits.Calls.Take(c.Peer.UID, s.Name, rates, c.Now, func(early [limits.Rates]time.Duration) bool {
		v = s.config.Permit(s.Service, &conf.Act{Call: true, Early: early}, entries...)
		return v.Refused == nil
	})
	return c.judged(v)
}

// awaitKeys gives the first keys of an entry of a key store time to come.
func (c *Caller) awaitKeys() {
	s := c.Service
	if !slices.ContainsFunc(s.narrowing(), func(p *conf.Permission) bool { return p.Withheld != nil && p.Withheld.Reason == reason.NoDelivery }) {
		return
	}
	for _, e := range s.CredStore {
		if store, principal, ok := e.Entry(); ok {
			s.shared.stores.Await(c.Context, store, principal)
		}
	}
}

// judged is the refusal of a verdict; what is only observed is logged.
func (c *Caller) judged(v conf.Verdict) error {
	s := c.Service
	for _, r := range v.Observed {
		if c.observed != nil {
			*c.observed = append(*c.observed, r)
			continue
		}
		e := *c.Event
		e.Kind, e.Reason, e.Text = audit.CallObserved, string(r.Reason), r.Text
		s.record(c.Context, &e) // it counts for nothing here: the call goes on
		s.log.Line(slog.LevelWarn, c.Peer.UID, s.Name+" observed "+string(r.Reason), limits.UsualRate, "it would be refused, and is only observed", func() []any {
			return []any{"uid", c.Peer.UID, "pid", c.Peer.PID, "service", s.Name, "reason", string(r.Reason), "error", r.Text}
		})
	}
	return c.refusal(v)
}

func (c *Caller) refusal(v conf.Verdict) error {
	if r := v.Refused; r != nil {
		return mech.Errorf(mech.Unauthorized, 0, r.Reason, "service %q: %s", c.Service.Name, r.Text)
	}
	return nil
}

// MayDelegate reports whether credentials may be handed on, be it an initiator's to the caller or the
// caller's to an acceptor.
func (c *Caller) MayDelegate() bool { return c.Permit(&conf.Act{Operation: conf.OpDelegate}) == nil }

// Ends returns when a context ends that its ticket lets live until end, in Unix seconds. Programs let
// an acceptor's live on for a grace, the clock skew, so that it has to end that much before.
func (c *Caller) Ends(end uint32, grace time.Duration) uint32 {
	if most := c.Service.config.Lifetime(c.Service.Service, c.Service.narrowing()...); most > 0 {
		return uint32(min(int64(end), c.Now.Add(most-grace).Unix()))
	}
	return end
}

// callRates are those of a service as package limits takes them, and whether there is one.
func callRates(c *conf.Config, s *conf.Service, entries ...*conf.Permission) (rates [limits.Rates]limits.Rate, any bool) {
	for i, r := range c.CallRates(s, entries...) {
		if r.PerSecond > 0 {
			rates[i], any = limits.Rate{Burst: r.Burst, Every: max(1, time.Second/time.Duration(r.PerSecond))}, true
		}
	}
	return rates, any
}

// enctypes are the encryption types of these names; [Check] has looked for others.
func enctypes(names []string) (list []etype.ID) {
	if names != nil {
		list = []etype.ID{}
	}
	for _, name := range names {
		ids, _ := etype.Parse(name)
		list = append(list, ids...)
	}
	return list
}

// nameIn is a principal as the configuration sees it; in a realm where it has none of its own.
func nameIn(p krb5.Principal, realm string) conf.Principal {
	if p.Realm != "" {
		realm = p.Realm
	}
	return conf.Principal{Components: p.Components, Realm: realm}
}

// PermitAccepted refuses a context that was accepted, or that has begun to be. The ticket has gone by
// when one is continued, and was looked at when it began.
func (c *Caller) PermitAccepted(a *krb5.Accepted) error {
	if !c.Service.restricted {
		return nil
	}
	client, err := krb5.ParsePrincipal(a.Context.There, "")
	if err != nil {
		return err
	}
	enctypes := keyTypes(&a.Context)
	if a.Ticket != nil {
		_, enctype, err := krb5.TicketInClear(a.Ticket)
		if err != nil {
			return err
		}
		enctypes = append(enctypes, enctype.String())
	}
	name := nameIn(client, "")
	return c.Permit(&conf.Act{
		Operation: conf.OpAccept, Client: &name, Enctypes: enctypes,
		Bindings: a.Context.Flags&mech.FlagChannelBound != 0, PAC: a.Context.PACVerified,
	})
}

// PermitInitiated refuses a context that is continued: it may have begun when more was permitted, and
// only now it is known what key the acceptor has chosen.
func (c *Caller) PermitInitiated(ctx *krb5.Context) error {
	if !c.Service.restricted {
		return nil
	}
	server, err := krb5.ParsePrincipal(ctx.There, "")
	if err != nil {
		return err
	}
	a := &conf.Act{Operation: conf.OpInitiate, Enctypes: keyTypes(ctx)}
	if server.Realm != "" { // else the ticket said which, when it began
		a.Targets = []conf.Principal{nameIn(server, "")}
	}
	return c.Permit(a)
}

// keyTypes are the encryption types of a context's keys.
func keyTypes(ctx *krb5.Context) (names []string) {
	for _, key := range []*etype.Key{ctx.SessionKey, ctx.Subkey, ctx.AcceptorSubkey} {
		if key != nil {
			names = append(names, key.Enctype().String())
		}
	}
	return names
}

// permitTarget refuses a server before a ticket for it is asked for, if its realm is known. What is
// only observed is said once, by permitTicket.
func (c *Caller) permitTarget(cr *Credential, target krb5.Principal) error {
	if !c.Service.restricted || target.Realm == "" {
		return nil
	}
	s := c.Service
	return c.refusal(s.permit(&conf.Act{Operation: conf.OpInitiate, Targets: []conf.Principal{nameIn(target, "")}, Proxy: cr.proxy()}))
}

// permitTicket refuses a ticket for another server than may be reached, or of another encryption
// type. A cache may have it under the name that was asked for; whom it is for it says itself.
func (c *Caller) permitTicket(cr *Credential, target krb5.Principal, t *krb5.Credential) error {
	if !c.Service.restricted {
		return nil
	}
	server, enctype, err := krb5.TicketInClear(t.Ticket)
	if err != nil {
		return err
	}
	return c.Permit(&conf.Act{
		Operation: conf.OpInitiate, Targets: []conf.Principal{nameIn(target, server.Realm), nameIn(t.Server, server.Realm), nameIn(server, "")}, Proxy: cr.proxy(),
		Enctypes: []string{enctype.String(), t.KeyType.String()},
	})
}

// permitHandle refuses a credential that would not be had any more: its handle may be older than the
// configuration.
func (c *Caller) permitHandle(h *Handle) error {
	if !c.Service.restricted {
		return nil
	}
	switch h.way {
	case wayDelegated, wayEvidence:
		return c.Permit(&conf.Act{Operation: conf.OpDelegate})
	case wayS4U:
		user, err := krb5.ParsePrincipal(h.Name, "")
		if err != nil {
			return badCredential(err)
		}
		return c.permitUser(user)
	}
	return nil
}

// permitUser refuses to get the credential of a user who is not there.
func (c *Caller) permitUser(user krb5.Principal) error {
	if !c.Service.restricted {
		return nil
	}
	name := nameIn(user, c.Service.Krb5.DefaultRealm)
	return c.Permit(&conf.Act{Operation: conf.OpImpersonate, User: &name})
}
