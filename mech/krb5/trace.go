package krb5

import "gssproxyd/mech/krb5/etype"

// What an acceptor tells Trace. Nothing is put together where nobody listens: the accept path is hot.

// traceTicket tells which key opened the ticket, and whose it is.
func (a *Acceptor) traceTicket(out *Accepted, key *etype.ServiceKey) {
	if a.Trace == nil {
		return
	}
	t := &out.req.ticket
	a.Trace("AP-REQ with a ticket for %s, kvno %d, %v: decrypted with the key of %s, kvno %d, in keytab %s",
		shown(t.server.appendString(nil)), t.enc.kvno, t.enc.etype, key.Principal, key.KVNO, a.Keys.Name())
	a.Trace("The ticket is of %s, session key %v", shown(out.tkt.client.appendString(nil)), out.tkt.key.etype)
}

// traceReplay tells that the replay cache did not know the authenticator.
func (a *Acceptor) traceReplay(out *Accepted) {
	if a.Trace == nil {
		return
	}
	a.Trace("The authenticator of %s made at %s is new to the replay cache", shown(out.auth.client.appendString(nil)), stamp(out.auth.ctime))
}
