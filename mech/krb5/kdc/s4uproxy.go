package kdc

import (
	"context"

	"gssproxyd/mech"
	"gssproxyd/mech/krb5"
	"gssproxyd/mech/krb5/etype"
	"gssproxyd/mech/krb5/wire"
	"gssproxyd/mech/reason"
)

// pacOptionRBCD is the bit of PA-PAC-OPTIONS (MS-KILE section 2.2.10) for delegation that the
// target's side allows.
const pacOptionRBCD = 0x10000000

// S4U2Proxy gets a ticket for the target in the name of the user who came to the service (MS-SFU
// section 3.1.5.2). evidence is the user's ticket for the service, one that was accepted or that of
// [Client.S4U2Self]. A target without a realm is asked for in the service's; one of another realm
// is reached by referral from there, and only if that realm allows it for the service
// (resource-based delegation).
//
// A target that is the service itself needs no KDC: the evidence is the ticket.
func (c *Client) S4U2Proxy(ctx context.Context, tickets TicketStore, service krb5.Principal, evidence *krb5.Credential, target krb5.Principal, opt TicketOptions) (*krb5.Credential, error) {
	c.trace("S4U2Proxy: a ticket for %v in the name of %v, with the evidence for %v", target, evidence.Client, service)
	if target.Equal(service) || target.Realm == "" && sameName(target, service) {
		return evidence.Clone(), nil
	}
	w, err := c.newWalk(ctx, tickets, service, target, opt)
	if err != nil {
		return nil, err
	}
	return w.obtain("proxy", evidence.Client, target, evidence.Ticket, func() (*krb5.Credential, *mech.Error) { return w.proxy(evidence, target) })
}

func (w *walk) proxy(evidence *krb5.Credential, target krb5.Principal) (*krb5.Credential, *mech.Error) {
	tgt, err := w.localTGT()
	if err != nil {
		return nil, err
	}
	server := target
	server.Realm = w.start // that of who is asked: no KDC of another realm can read our TGT
	r, err := w.delegate(tgt, server, evidence.Ticket)
	if err != nil {
		return nil, notDelegated(err, tgt, evidence)
	}
	if !sameName(r.cred.Server, server) {
		if !isTGS(r.cred.Server) {
			return nil, mech.Errorf(mech.Failure, wire.MinorWrongPrincipal, reason.KDCReply, ": the ticket is for %s, expected %s", r.cred.Server.Shown(), server.Shown())
		}
		// A ticket for the user at the TGS of another realm. That the KDC knows of resource-based
		// delegation must be told, or it is nothing but an ordinary referral.
		if err := checkRBCD(r); err != nil {
			return nil, notDelegated(err, tgt, evidence)
		}
		_, own, _, err := w.referrals(tgt, server)
		if err != nil {
			return nil, err
		}
		realm := own.Server.Components[1]
		proxy := r.cred
		if proxy.Server.Components[1] != realm {
			if proxy, err = w.offWay(proxy, realm, nil); err != nil {
				return nil, err
			}
		}
		server.Realm = realm
		if r, err = w.delegate(own, server, proxy.Ticket); err != nil {
			return nil, notDelegated(err, tgt, evidence)
		}
		if err := checkRBCD(r); err != nil {
			return nil, notDelegated(err, tgt, evidence)
		}
		if !r.cred.Server.Equal(server) {
			return nil, mech.Errorf(mech.Failure, wire.MinorWrongPrincipal, reason.KDCReply, ": the ticket is for %s, expected %s", r.cred.Server.Shown(), server.Shown())
		}
	}
	if target.Realm != "" && r.cred.Server.Realm != target.Realm {
		return nil, mech.Errorf(mech.Failure, wire.MinorWrongPrincipal, reason.ServerUnknown, ": the realm of %s is '%s', expected '%s'", wire.Shown(target.Local()), wire.Shown(r.cred.Server.Realm), wire.Shown(target.Realm))
	}
	if !r.cred.Client.Equal(evidence.Client) {
		return nil, mech.Errorf(mech.Failure, wire.MinorReplyModified, reason.KDCReply, ": the ticket is for the client %s, expected %s: the KDC may not support S4U2Proxy", r.cred.Client.Shown(), evidence.Client.Shown())
	}
	return r.cred, nil
}

// delegate is one request with a ticket of the user's as evidence.
func (w *walk) delegate(tgt *krb5.Credential, server krb5.Principal, evidence []byte) (*tgsReply, *mech.Error) {
	q := w.request(tgt, server, wire.OptCnameInAddlTkt|wire.OptCanonicalize)
	q.second, q.anyClient = evidence, true
	q.padata = func(uint32, *etype.Key, *etype.Key) []wire.PAData {
		return []wire.PAData{{Type: wire.PAPACOptions, Value: wire.AppendPACOptions(nil, pacOptionRBCD)}}
	}
	r, err := w.exchange(w.ctx, q)
	if err == nil {
		r.subkey.Destroy()
	}
	if c := minor(err); c == wire.MinorPolicy || c == wire.MinorBadOption {
		err.Reason = reason.DelegationRefused
	}
	return r, err
}

// notDelegated says of a refusal for whom the service was to act, and which of the two tickets may
// be why it may not.
func notDelegated(err *mech.Error, tgt, evidence *krb5.Credential) *mech.Error {
	if err.Reason != reason.DelegationRefused {
		return err
	}
	err.Text += ", asked to act for the user '" + evidence.Client.Shown() + "'"
	if evidence.Flags&wire.FlagForwardable == 0 {
		err.Text += "; the user's ticket is not forwardable"
	}
	if tgt.Flags&wire.FlagForwardable == 0 {
		err.Text += "; the service's own ticket-granting ticket is not forwardable"
	}
	return err
}

func checkRBCD(r *tgsReply) *mech.Error {
	value, _ := wire.FindPAData(r.encPadata, wire.PAPACOptions)
	if wire.ParsePACOptions(value)&pacOptionRBCD == 0 {
		return mech.Errorf(mech.Failure, wire.MinorPadataNoSupp, reason.DelegationRefused, ": the KDC does not delegate to other realms")
	}
	return nil
}
