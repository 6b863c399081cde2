package kdc

import (
	"fmt"

	"gssproxyd/mech"
	"gssproxyd/mech/krb5"
	"gssproxyd/mech/krb5/wire"
)

// trace tells Trace, if there is one.
func (c *Client) trace(format string, args ...any) {
	if c.Trace != nil {
		c.Trace(format, args...)
	}
}

// traceAnswer tells who answered, and what.
func (c *Client) traceAnswer(realm string, a answer) {
	if c.Trace == nil {
		return
	}
	what := "an AS-REP"
	switch wire.ReplyType(a.reply) {
	case wire.MsgTGSRep:
		what = "a TGS-REP"
	case wire.MsgError:
		what = "a KRB-ERROR"
		if k, err := parseError(a.reply); err == nil {
			what = fmt.Sprintf("error %d", k.Code)
			if k.Code > 0 && k.Code < 128 {
				what += ": " + mech.MinorText(k.Minor())
			}
		}
	}
	c.Trace("The KDC of realm %s at %v answers: %s", realm, a.server, what)
}

// traceTicket tells what was got.
func (c *Client) traceTicket(cred *krb5.Credential) {
	c.trace("Got a ticket of %v for %v, session key %v", cred.Client, cred.Server, cred.KeyType)
}
