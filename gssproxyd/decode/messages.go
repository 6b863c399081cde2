package decode

import (
	"fmt"
	"time"

	"gssproxyd/mech"
	"gssproxyd/mech/krb5/der"
	"gssproxyd/mech/krb5/wire"
	"gssproxyd/mech/reason"
)

// Kerberos messages (RFC 4120 section 5), as far as they travel in the clear.

// message returns what reads the message that begins like b, nil if there is nothing.
func message(b []byte) func(p *Part, b []byte, depth int) {
	switch tag := der.Tag(b[0]); tag {
	case der.Application(wire.MsgAPReq):
		return (*Part).apReq
	case der.Application(wire.MsgAPRep):
		return (*Part).apRep
	case der.Application(wire.MsgError):
		return (*Part).krbError
	case der.Application(wire.MsgCred):
		return (*Part).krbCred
	case der.Application(wire.MsgASRep), der.Application(wire.MsgTGSRep):
		return (*Part).kdcRep
	case der.Application(1):
		return func(p *Part, b []byte, _ int) {
			var t wire.Ticket
			p.problem(t.Parse(b))
			p.ticket(&t)
		}
	default:
		if otherMessages[tag] != "" {
			return (*Part).otherMessage
		}
	}
	return nil
}

// otherMessages are those that nobody has to do with who looks for why a call was refused.
var otherMessages = map[der.Tag]string{
	der.Application(wire.MsgASReq):  "AS-REQ, which asks a KDC for a first ticket",
	der.Application(wire.MsgTGSReq): "TGS-REQ, which asks a KDC for a ticket for a service",
	der.Application(20):             "KRB-SAFE",
	der.Application(21):             "KRB-PRIV",
}

func (p *Part) otherMessage(b []byte, _ int) {
	p.Kind = OtherMessage
	p.set(Message, otherMessages[der.Tag(b[0])])
}

// encrypted sets what is said of an encrypted part.
func (p *Part) encrypted(e *wire.Encrypted) {
	p.set(Enctype, e.Etype.String())
	if e.KVNO != 0 {
		p.set(KVNO, uint64(e.KVNO))
	}
	p.set(Ciphertext, uint64(len(e.Cipher)))
}

func shown(n wire.Name) string {
	if len(n.Realm) == 0 && len(n.Components) == 0 {
		return ""
	}
	return wire.Shown(n.AppendString(nil))
}

// ticket sets what a ticket says; a part of that may be missing where it has a problem.
func (p *Part) ticket(t *wire.Ticket) {
	p.Kind = Ticket
	if p.Problem != "" {
		return
	}
	p.Octets = len(t.Raw)
	p.set(Server, shown(t.Server))
	p.encrypted(&t.Enc)
	if why := t.Server.Fault(); why != "" {
		p.Hint = "nobody is known by the server's name: " + why
	}
}

func (p *Part) apReq(b []byte, _ int) {
	p.Kind = APReq
	var q wire.APReq
	if p.problem(q.Parse(b)); p.Problem != "" {
		return
	}
	p.set(Options, names(q.Options, []bit{{wire.APUseSessionKey, "use-session-key"}, {wire.APMutualRequired, "mutual-required"}}, 32))
	var ticket Part
	ticket.ticket(&q.Ticket)
	p.add(ticket)
	auth := Part{Kind: Authenticator, Octets: len(q.Auth.Cipher)}
	auth.encrypted(&q.Auth)
	p.add(auth)
	key := fmt.Sprintf("of type %s", q.Ticket.Enc.Etype)
	if q.Ticket.Enc.KVNO != 0 {
		key += fmt.Sprintf(" and version %d", q.Ticket.Enc.KVNO)
	}
	p.Hint = "the service needs the server's key " + key + "; gssproxyd keytabs says which versions the daemon has. " +
		"Who the client is, only that key shows"
}

func (p *Part) apRep(b []byte, _ int) {
	p.Kind = APRep
	var r wire.APRep
	if p.problem(r.Parse(b)); p.Problem == "" {
		p.encrypted(&r.Enc)
	}
}

func (p *Part) krbCred(b []byte, _ int) {
	p.Kind = KRBCred
	var c wire.Cred
	if p.problem(c.Parse(b)); p.Problem != "" {
		return
	}
	p.set(Tickets, uint64(c.Tickets))
	if c.Tickets > 0 {
		var t Part
		t.ticket(&c.First)
		p.add(t)
	}
	p.encrypted(&c.Enc)
	if c.Enc.Etype == 0 {
		p.Hint = "it is not encrypted: whoever has it can use its tickets. Delete copies of it"
	}
}

func (p *Part) kdcRep(b []byte, _ int) {
	kind := wire.MsgASRep
	p.Kind = ASRep
	if der.Tag(b[0]) == der.Application(wire.MsgTGSRep) {
		kind, p.Kind = wire.MsgTGSRep, TGSRep
	}
	var r wire.KDCRep
	if p.problem(r.Parse(kind, b)); p.Problem != "" {
		return
	}
	p.set(Client, r.Client.Shown())
	p.encrypted(&r.Enc)
	var t Part
	t.ticket(&r.Ticket)
	p.add(t)
}

func (p *Part) krbError(b []byte, _ int) {
	p.Kind = KRBError
	var e wire.KRBError
	if p.problem(e.Parse(b)); p.Problem != "" {
		return
	}
	p.set(Code, e.Code)
	p.set(CodeName, wire.ErrorName(e.Code))
	if 0 <= e.Code && e.Code < 128 {
		p.set(CodeText, mech.MinorText(mech.MinorKRB5+uint32(e.Code)))
	}
	p.set(ServerTime, clock(e.STime))
	if e.CTime != 0 {
		p.set(ClientTime, clock(e.CTime))
	}
	p.set(Client, shown(e.Client))
	p.set(Server, shown(e.Server))
	p.set(ErrorText, wire.Shown(e.Text))
	if e.Data != nil {
		p.set(ErrorData, uint64(len(e.Data)))
	}
	p.Hint = "nobody has signed it: it is to be believed no further than the connection is that it came through"
	if id, ok := reasons[mech.MinorKRB5+uint32(e.Code)]; ok {
		p.Hint += fmt.Sprintf(". %s (gssproxyd explain %s)", id.Doc().Hint, id)
	}
}

// reasons are those that gssproxyd gives with an error code, and that have a remedy.
var reasons = map[uint32]reason.ID{
	wire.MinorSkew:         reason.ClockSkew,
	wire.MinorReplay:       reason.Replay,
	wire.MinorExpired:      reason.TicketExpired,
	wire.MinorNotYetValid:  reason.TicketNotYetValid,
	wire.MinorNoKey:        reason.NoKey,
	wire.MinorBadKeyVer:    reason.KVNOMismatch,
	wire.MinorBadIntegrity: reason.BadIntegrity,
	wire.MinorModified:     reason.BadIntegrity,
}

func clock(unix uint32) string { return time.Unix(int64(unix), 0).UTC().Format(time.RFC3339) }
