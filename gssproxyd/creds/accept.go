package creds

import (
	"context"
	"errors"
	"slices"
	"time"

	"gssproxyd/conf"
	"gssproxyd/keytab"
	"gssproxyd/mech"
	"gssproxyd/mech/krb5"
	"gssproxyd/mech/krb5/etype"
	"gssproxyd/mech/reason"
	"gssproxyd/phase"
)

// Acceptor accepts contexts with the keys of a keytab. The zero Acceptor is ready for
// [Caller.Acceptor].
type Acceptor struct {
	krb5.Acceptor
	keytab *keytab.Keytab
	at     time.Time // of the call
	phases *phase.Clock
	stored timedReplay
}

// Acceptor sets a up with the keys that a call accepts with: those of the handle that was sent, or
// those the caller has without.
func (c *Caller) Acceptor(ctx context.Context, a *Acceptor, in *Input) error {
	if _, err := c.Usage(conf.UsageAccept); err != nil {
		return err
	}
	var uid uint32
	var wanted *Name
	switch h := in.Handle; {
	case h == nil:
		t, err := c.target(nil, conf.UsageAccept)
		if err != nil {
			return err
		}
		uid, wanted = t.uid, t.name
	case h.Usage == conf.UsageInitiate:
		return mech.Errorf(mech.NoCred, 0, reason.CredMismatch, "the credential sent is for initiating only")
	default:
		uid = h.uid
	}
	if name := in.accepts(); name != nil {
		wanted = name
	}
	if err := c.setUp(a, uid, wanted); err != nil {
		return err
	}
	if ring := a.keytab.Ring(); ring.Len() == 0 {
		ring, _ = a.keytab.Refresh(ctx, ring)
		a.Keys = ring
		if _, err := a.Check(ring.All()); err != nil {
			return withKeytab(err, a.keytab)
		}
	}
	return nil
}

// setUp sets a up to accept for a target uid with the keys of a wanted name, any in the keytab when
// wanted is nil.
func (c *Caller) setUp(a *Acceptor, uid uint32, wanted *Name) error {
	st, err := c.store(uid)
	if err != nil {
		return err
	}
	if st.keytab == nil {
		return mech.Errorf(mech.CredUnavail, 0, reason.CredStore, "cred_store names no keytab to accept with")
	}
	a.keytab, a.at, a.phases = st.keytab, c.Now, c.Service.phases
	a.Acceptor = krb5.Acceptor{Keys: st.keytab.Ring(), Replay: st.replay, Conf: c.Service.Krb5, Now: c.Service.log.Now, Preferred: c.Service.Enctypes(), DCEStyle: true, Trace: c.Service.log.Trace}
	if wanted != nil {
		p, err := c.acceptorName(wanted)
		if err != nil {
			return AsBadName(err)
		}
		a.Name = &p
	}
	return nil
}

// Accept accepts a first token, a second time with newer keys where that may help: the KDC may
// issue tickets under a new key moments before the keytab's watcher sees the file.
func (a *Acceptor) Accept(ctx context.Context, accepted *krb5.Accepted, token []byte, cb *krb5.ChannelBindings) error {
	err := a.accept(accepted, token, cb)
	if e, ok := errors.AsType[*mech.Error](err); ok && keyMayBeNew(e.Reason) {
		span := a.phases.Begin()
		ring, newer := a.keytab.Refresh(ctx, a.Keys.(*keytab.Ring))
		span.End(phase.Keys)
		if newer {
			a.Keys = ring
			err = a.accept(accepted, token, cb)
		}
	}
	a.note(accepted, err)
	return withKeytab(err, a.keytab)
}

// note notes which key has opened the ticket of a token, or that none has.
func (a *Acceptor) note(accepted *krb5.Accepted, err error) {
	if key, start, end, issued := accepted.Opened(); key != nil {
		key.Use.Opened(a.at.Unix(), int64(start), int64(end), issued)
	} else if e, ok := errors.AsType[*mech.Error](err); ok && e.Reason != reason.NoKeytab && keyMayBeNew(e.Reason) {
		var name [128]byte
		server, kvno, et := accepted.Unopened(name[:0])
		a.keytab.Missed(a.Keys.(*keytab.Ring), server, kvno, et, a.at)
	}
}

// accept accepts a first token, and has it timed if somebody wants to know.
func (a *Acceptor) accept(accepted *krb5.Accepted, token []byte, cb *krb5.ChannelBindings) error {
	span := a.phases.Begin()
	if !span.Timed() || a.Replay == nil {
		err := a.Acceptor.Accept(accepted, token, cb)
		span.End(phase.Crypto)
		return err
	}
	replay := a.Replay
	a.stored = timedReplay{cache: replay}
	a.Replay = &a.stored
	err := a.Acceptor.Accept(accepted, token, cb)
	a.Replay = replay
	span.EndBut(phase.Crypto, phase.Replay, a.stored.took)
	return err
}

// timedReplay is a replay cache that says how long it took.
type timedReplay struct {
	cache krb5.ReplayCache
	took  time.Duration
}

// Store implements [krb5.ReplayCache].
func (r *timedReplay) Store(tag []byte, now time.Time, skew time.Duration) error {
	begun := time.Now()
	err := r.cache.Store(tag, now, skew)
	r.took += time.Since(begun)
	return err
}

// Continue goes on with a context that an Accept has begun, see [krb5.Acceptor.Continue].
func (a *Acceptor) Continue(accepted *krb5.Accepted, partial etype.Secret, token []byte) error {
	defer a.phases.Begin().End(phase.Crypto)
	return a.Acceptor.Continue(accepted, partial, token)
}

// acceptorHandle makes the handle of an acceptor for a target, if there are keys for it.
func (c *Caller) acceptorHandle(ctx context.Context, t *target) (*Handle, error) {
	var a Acceptor
	if err := c.setUp(&a, t.uid, t.name); err != nil {
		return nil, err
	}
	ring := a.keytab.Ring()
	principal, err := a.Check(ring.All())
	if err != nil {
		if ring, newer := a.keytab.Refresh(ctx, ring); newer {
			principal, err = a.Check(ring.All())
		}
	}
	if err != nil {
		return nil, withKeytab(err, a.keytab)
	}
	h := &Handle{Usage: conf.UsageAccept, Name: principal, uid: t.uid}
	if t.name != nil {
		// A service without a host is shown as the one on this host, though it is accepted for any.
		p, err := c.Principal(*t.name)
		if err != nil {
			return nil, AsBadName(err)
		}
		h.Name = p.String()
		h.wanted, h.wantedType = string(t.name.Text), string(t.name.Type)
	}
	return h, nil
}

// Delegated returns the handle of the credential that the initiator of an accepted context has
// forwarded. Without one, a caller whose credential is for both usages gets one that acts for the
// initiator with the ticket just accepted as evidence (S4U2Proxy), and the context's flags say so.
// nil if there is neither.
func (c *Caller) Delegated(ctx context.Context, accepted *krb5.Accepted, in *Input) (*Handle, error) {
	var cr *Credential
	switch {
	case accepted.Delegated != nil:
		var err error
		if cr, err = c.newTemporary(ctx, "delegated", wayDelegated, accepted.Delegated.Client, accepted.Delegated); err != nil {
			return nil, err
		}
		cr.expires = accepted.Delegated.EndTime
	case in.Handle != nil && in.Handle.Usage == conf.UsageBoth && c.MayDelegate():
		service, err := c.open(ctx, in.Handle)
		if err != nil {
			return nil, err
		}
		defer service.Drop(ctx)
		if key, get := c.renewal(service, c.keysOf(in.Handle)); get != nil {
			c.Service.logins.try(ctx, key, 0, get) // for the next one: accepting waits for no KDC
		}
		if service.seen == nil {
			return nil, gone(service)
		}
		evidence, err := evidenceOf(accepted)
		if err != nil {
			return nil, err
		}
		if cr, err = c.withEvidence(ctx, service, evidence, wayEvidence); err != nil {
			return nil, err
		}
		accepted.Context.Flags |= mech.FlagDeleg
	default:
		return nil, nil
	}
	defer cr.Drop(ctx)
	return cr.Handle(ctx, conf.UsageInitiate)
}

// evidenceOf is the ticket that was accepted, as a credential.
func evidenceOf(a *krb5.Accepted) (*krb5.Credential, error) {
	ctx := &a.Context
	client, err := krb5.ParsePrincipal(ctx.There, "")
	if err != nil {
		return nil, err
	}
	server, err := krb5.ParsePrincipal(ctx.Here, "")
	if err != nil {
		return nil, err
	}
	return &krb5.Credential{
		Client: client, Server: server,
		KeyType: ctx.SessionKey.Enctype(), Key: slices.Clone(ctx.SessionKey.Secret()),
		AuthTime: ctx.AuthTime, StartTime: ctx.StartTime, EndTime: ctx.EndTime, RenewTill: ctx.RenewTill,
		Flags: ctx.TicketFlags, Ticket: slices.Clone(a.Ticket),
	}, nil
}
