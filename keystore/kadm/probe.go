package kadm

import (
	"context"
	"errors"
	"time"

	"gssproxyd/mech"
	"gssproxyd/mech/krb5"
	"gssproxyd/mech/krb5/etype"
	"gssproxyd/mech/krb5/kdc"
	"gssproxyd/mech/krb5/wire"
	"gssproxyd/mech/reason"
)

// Prober finds out which key of a service its KDC has, by a ticket of the service for itself. With
// a ticket-granting ticket from before a change that takes no key at all, and so counts as no
// failed login, whatever the KDC has by now. Close it after use.
type Prober struct {
	etype.Redacted
	Client    *kdc.Client
	Principal krb5.Principal // with its realm

	tgt   *krb5.Credential
	ahead time.Duration
}

// Login gets the ticket-granting ticket that Probe needs: before a change, with the keys in force.
// When it is not known which these are, after a crash, each of keys is tried in turn; what is most
// likely comes first, for every failure counts with the KDC. A KDC that does not know a key says
// so: other errors end it.
func (p *Prober) Login(ctx context.Context, keys ...kdc.KeySource) (err error) {
	for _, k := range keys {
		var tgt *krb5.Credential
		if tgt, err = p.Client.Login(ctx, p.Principal, k, kdc.LoginOptions{}); err == nil {
			p.Close()
			// Of the time that the KDC gives only seconds are told.
			p.tgt, p.ahead = tgt, time.Unix(int64(tgt.AuthTime), 0).Sub(clock(p.Client)())
			return nil
		}
		if !errors.Is(err, reason.PreauthFailed) && !errors.Is(err, reason.NoKey) {
			return err
		}
	}
	return err
}

// Probe gets a ticket for the service itself from the KDC, a primary one where those are known, and
// tells which of the candidates opens it: its index, and the version that the KDC gives this key. The
// candidates are the keys of all versions that the KDC may have, pending ones first; those of other
// types than the ticket's do not count. The error is [reason.KeyChangedElsewhere] if none of them
// opens it: nobody who has only these can accept for the service.
func (p *Prober) Probe(ctx context.Context, candidates []*etype.Key) (i int, kvno uint32, err error) {
	t, err := p.ticket(ctx)
	if err != nil {
		return 0, 0, err
	}
	tried := 0
	for i, k := range candidates {
		if k.Enctype() != t.Enc.Etype {
			continue
		}
		tried++
		if plain, err := k.Decrypt(nil, wire.UsageTicket, t.Enc.Cipher); err == nil {
			clear(plain)
			return i, t.Enc.KVNO, nil
		}
	}
	return 0, 0, mech.Errorf(mech.Failure, wire.MinorNoKey, reason.KeyChangedElsewhere, "the KDC makes tickets for %s with version %d of its key, type %v, which none of the %d keys of that type opens that are known here",
		p.Principal.Shown(), t.Enc.KVNO, t.Enc.Etype, tried)
}

// ticket gets a ticket for the service itself.
func (p *Prober) ticket(ctx context.Context) (t wire.Ticket, err error) {
	if p.tgt == nil {
		return t, mech.Errorf(mech.Failure, wire.MinorNoTicket, reason.NoCredential, ": there was no login")
	}
	cred, err := p.Client.Ticket(ctx, only{p.tgt}, p.Principal, p.Principal, kdc.TicketOptions{Primary: true})
	if err != nil {
		return t, err
	}
	cred.Destroy()
	if e := t.Parse(cred.Ticket); e != nil {
		return t, mech.Errorf(mech.Failure, 0, reason.KDCReply, ": the ticket: %s", e)
	}
	return t, nil
}

// Ahead returns what the KDC's clock was ahead of this host's at the last login.
func (p *Prober) Ahead() time.Duration { return p.ahead }

// Close destroys the ticket-granting ticket.
func (p *Prober) Close() {
	if p.tgt != nil {
		p.tgt.Destroy()
		p.tgt = nil
	}
}

// only is a store of one ticket, to which none is added: each is asked for anew.
type only struct{ tgt *krb5.Credential }

// Find implements [kdc.TicketStore].
func (s only) Find(_ context.Context, match func(*krb5.Credential) bool) ([]*krb5.Credential, error) {
	if !match(s.tgt) {
		return nil, nil
	}
	return []*krb5.Credential{s.tgt.Clone()}, nil
}

// Update implements [kdc.TicketStore].
func (only) Update(context.Context, func(*krb5.Credential) bool, ...*krb5.Credential) error {
	return nil
}
