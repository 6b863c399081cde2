package krb5

import (
	"gssproxyd/mech/krb5/etype"
	"gssproxyd/mech/krb5/wire"
)

// What an acceptor tells Trace. Nothing is put together where nobody listens: the accept path is
// hot.

// traceTicket tells which key opened the ticket, and whose it is.
func (a *Acceptor) traceTicket(out *Accepted, key *etype.ServiceKey) {
	if a.Trace == nil {
		return
	}
	t := &out.req.Ticket
	a.Trace("AP-REQ with a ticket for %s, kvno %d, %v: decrypted with the key of %s, kvno %d, in keytab %s",
		wire.Shown(t.Server.AppendString(nil)), t.Enc.KVNO, t.Enc.Etype, key.Principal, key.KVNO, a.Keys.Name())
	a.Trace("The ticket is of %s, session key %v", wire.Shown(out.tkt.Client.AppendString(nil)), out.tkt.Key.Etype)
}

// traceReplay tells that the replay cache did not know the authenticator.
func (a *Acceptor) traceReplay(out *Accepted) {
	if a.Trace == nil {
		return
	}
	a.Trace("The authenticator of %s made at %s is new to the replay cache", wire.Shown(out.auth.Client.AppendString(nil)), stamp(out.auth.Ctime))
}
