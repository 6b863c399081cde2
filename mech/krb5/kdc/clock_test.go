package kdc

import (
	"testing"
	"time"

	"github.com/jcmturner/gokrb5/v8/iana/errorcode"

	"gssproxyd/mech/krb5"
	"gssproxyd/mech/krb5/wire"
	"gssproxyd/mech/reason"
)

// TestTimeInErrors: the time in a KRB-ERROR is tried, and is nobody's before a reply has verified;
// then the reply's own time counts.
func TestTimeInErrors(t *testing.T) {
	const ahead, forged = 20 * time.Minute, 24 * time.Minute // what the KDC takes for the same still
	w := newWorld(t, "A.TEST")
	w.now = func() time.Time { return time.Now().Add(ahead) }
	w.add("HTTP/www.a.test@A.TEST", 18)
	k, user, http := w.kdcs["A.TEST"], principal(t, "user@A.TEST"), principal(t, "HTTP/www.a.test@A.TEST")
	tgt := w.login(w.client(), "user@A.TEST").creds[0]
	tgt.StartTime -= 60
	get := func(c *Client) error {
		_, err := c.Ticket(t.Context(), &store{[]*krb5.Credential{tgt}}, user, http, TicketOptions{})
		return err
	}
	near := func(what string, c *Client, want time.Duration) {
		t.Helper()
		if got := c.Offset("A.TEST"); (got - want).Abs() > 90*time.Second { // a busy machine takes its time
			t.Errorf("%s: offset %v, want about %v", what, got, want)
		}
	}

	c := w.client() // it has not seen the login
	asked := 0
	k.mutateIssue = func(i *issue) {
		near("while a reply is on its way", c, 0)
		i.nonce++
		asked++
	}
	wantErr(t, get(c), wire.MinorSkew, reason.ClockSkew)
	near("after a reply that did not verify", c, 0)
	if asked == 0 {
		t.Error("the time in the error was not tried")
	}

	k.mutateIssue = nil
	k.mutateReply = func(reply []byte) []byte {
		if wire.IsKRBError(reply) {
			return errorMessage(refusal{code: errorcode.KRB_AP_ERR_SKEW}, "A.TEST", http, unix(time.Now().Add(forged)))
		}
		return reply
	}
	c = w.client()
	check(t, get(c))
	near("after an error with another time than the reply", c, ahead)

	k.mutateReply = nil
	k.mutateIssue = func(i *issue) { i.start = tgt.StartTime }
	c = w.client()
	_, fault := c.exchange(t.Context(), tgsRequest{tgt: tgt, server: tgt.Server, options: wire.OptRenew, etypes: c.enctypes(nil)})
	if fault != nil {
		t.Fatal(fault)
	}
	near("after a reply that keeps the old start", c, 0)
}
