package krb5

import (
	"cmp"
	"fmt"
	"io"
	"slices"
	"time"

	"gssproxyd/mech"
	"gssproxyd/mech/krb5/der"
	"gssproxyd/mech/krb5/etype"
	"gssproxyd/mech/krb5/krb5conf"
	"gssproxyd/mech/krb5/wire"
	"gssproxyd/mech/reason"
)

// Initiator is the client side of the Kerberos mechanism (RFC 4121): what gss_init_sec_context
// needs besides the acceptor's tokens. Getting the tickets is somebody else's work. It is not
// changed by use and safe for concurrent use.
type Initiator struct {
	Ticket *Credential // for the service; only Init and Delegates need it

	// Target is the service as the caller named it, unparsed with realm, which may be empty. The
	// context shows it as the peer's name; empty: the ticket's server. The legs of one context must
	// agree on it.
	Target string

	Flags    uint32           // mech.Flag bits asked for; what comes of them is in the Context
	Bindings *ChannelBindings // nil: none
	Delegate *Credential      // the forwarded ticket-granting ticket, sent if Delegates says so; nil: delegation is not done

	// NoCIFlags leaves out the flags CONF and INTEG unless they are asked for. Otherwise every
	// context has them.
	NoCIFlags bool

	// Preferred are the types that the acceptor is offered for its subkey, besides the session key's;
	// nil: all that are permitted and better than that.
	Preferred []etype.ID

	Mech mech.OID         // of the tokens' framing; empty: mech.KRB5
	Conf *krb5conf.Config // nil: defaults
	Now  func() time.Time // nil: time.Now
}

// Initiated is the result of [Initiator.Init] and [Initiator.Continue]. It can be used again and
// again: each call overwrites what the last one left, including the keys and buffers that its
// fields point to. It must not be copied, nor printed for debugging: it prints as its Context.
type Initiated struct {
	Context Context
	Token   []byte // for the acceptor, empty if there is nothing to send

	// Partial is nil when the context is established. Otherwise the context is not to be used yet,
	// and Partial is what [Initiator.Continue] needs, with the acceptor's answer, to go on: here,
	// or in any other process. It holds keys.
	Partial etype.Secret

	session, subkey, reply etype.Key
	plain                  []byte // messages to be encrypted, the partial context that was read
	scratch                []byte
	token                  []byte
	partial                []byte
}

// Format writes the Context's names, whatever the verb.
func (out Initiated) Format(f fmt.State, _ rune) { io.WriteString(f, out.Context.String()) }

// Reset overwrites every key and plaintext. out can be used again.
func (out *Initiated) Reset() {
	for _, b := range []*[]byte{&out.plain, &out.scratch, &out.partial} {
		wipe(b)
	}
	out.session.Destroy()
	out.subkey.Destroy()
	out.reply.Destroy()
	*out = Initiated{
		session: out.session, subkey: out.subkey, reply: out.reply,
		plain: out.plain, scratch: out.scratch, partial: out.partial, token: out.token[:0],
	}
}

// initiatorAsks are the flags that a caller can ask for.
const initiatorAsks = initiatorFlags | mech.FlagDeleg

// flags returns the context's flags as far as they follow from what is asked for and from the
// ticket.
func (i *Initiator) flags() uint32 {
	ask := i.Flags
	if i.Conf != nil && i.Conf.EnforceOKAsDelegate && ask&mech.FlagDeleg != 0 {
		ask = ask&^mech.FlagDeleg | mech.FlagDelegPolicy
	}
	flags := ask&initiatorAsks | mech.FlagTrans
	if !i.NoCIFlags {
		flags |= mech.FlagConf | mech.FlagInteg
	}
	if ask&mech.FlagDCEStyle != 0 {
		flags |= mech.FlagMutual
	}
	if ask&mech.FlagDelegPolicy != 0 && i.Ticket != nil && i.Ticket.Flags&wire.FlagOKAsDelegate != 0 {
		flags |= mech.FlagDeleg | mech.FlagDelegPolicy
	}
	return flags
}

// Delegates reports whether Init delegates a credential if it is given one: delegation is asked for
// and, where the caller or krb5.conf leave it to the KDC, the ticket says that the service may have
// one. A forwarded ticket is needed only then.
func (i *Initiator) Delegates() bool { return i.flags()&mech.FlagDeleg != 0 }

func (i *Initiator) now() time.Time {
	if i.Now != nil {
		return i.Now()
	}
	return time.Now()
}

// Init makes the first token (RFC 4121 section 4.1) and begins a context, which without mutual
// authentication is established at once. The error is a *[mech.Error]; out is empty then.
func (i *Initiator) Init(out *Initiated) error {
	out.Context, out.Token, out.Partial = Context{}, nil, nil
	if err := i.begin(out, i.now()); err != nil {
		out.Context, out.Token, out.Partial = Context{}, nil, nil
		return err
	}
	return nil
}

func (i *Initiator) begin(out *Initiated, now time.Time) *mech.Error {
	if err := i.checkTicket(now); err != nil {
		return err
	}
	c, tkt := &out.Context, i.Ticket
	if err := initKey(&out.session, wire.Key{Etype: tkt.KeyType, Value: tkt.Key}, "the ticket's session key"); err != nil {
		return err
	}
	if err := out.subkey.Generate(tkt.KeyType); err != nil {
		return mech.Errorf(mech.Failure, 0, reason.Internal, ": %v", err)
	}
	flags := i.flags()
	if i.Delegate == nil {
		flags &^= mech.FlagDeleg | mech.FlagDelegPolicy
	}
	options := uint32(0)
	if flags&mech.FlagMutual != 0 {
		options = wire.APMutualRequired
	}
	seq := randomSeq()
	at := authenticatorTime{uint32(now.Unix()), int32(now.Nanosecond() / 1000)}
	var err *mech.Error
	if out.scratch, err = i.appendAuthenticator(out.scratch[:0], out, flags, at, seq); err != nil {
		return err
	}
	*c = Context{
		Initiator: true, Flags: flags, Mech: i.Mech, There: i.Target,
		AuthTime: tkt.AuthTime, StartTime: tkt.StartTime, EndTime: tkt.EndTime, RenewTill: tkt.RenewTill, TicketFlags: tkt.Flags,
		SendSeq: uint64(seq), Subkey: &out.subkey, SessionKey: &out.session,
	}
	out.plain = tkt.Client.AppendString(out.plain[:0])
	c.Here = string(out.plain)
	if c.There == "" {
		out.plain = tkt.Server.AppendString(out.plain[:0])
		c.There = string(out.plain)
	}

	frame := -1
	out.token = out.token[:0]
	if flags&mech.FlagDCEStyle == 0 {
		out.token, frame = beginFrame(out.token, c.mech(), tokAPReq)
	}
	token, e := wire.AppendAPReq(out.token, options, tkt.Ticket, &out.session, wire.UsageAPReq, out.scratch)
	if e != nil {
		return mech.Errorf(mech.Failure, 0, reason.Internal, ": %v", e)
	}
	if frame >= 0 {
		token = der.End(token, frame)
	}
	out.token, out.Token = token, token

	if flags&mech.FlagMutual != 0 {
		out.partial = c.appendPartial(out.partial[:0], at)
		out.Partial = out.partial
		return nil
	}
	// There will be no answer: both ends count from the initiator's number.
	c.RecvSeq = c.SendSeq
	c.Window = newWindow(c.RecvSeq, flags, c.cfx())
	c.Flags |= mech.FlagProtReady
	return nil
}

// checkTicket refuses what no acceptor would take.
func (i *Initiator) checkTicket(now time.Time) *mech.Error {
	tkt := i.Ticket
	if tkt == nil || len(tkt.Ticket) == 0 {
		return mech.Errorf(mech.Failure, wire.MinorNoTicket, reason.NoCredential, ": there is no ticket to send")
	}
	name := func() string {
		return "the ticket of " + tkt.Client.Shown() + " for " + tkt.Server.Shown()
	}
	start, at := cmp.Or(tkt.StartTime, tkt.AuthTime), now.Unix()
	switch {
	case at > int64(tkt.EndTime):
		return mech.Errorf(mech.Failure, wire.MinorExpired, reason.TicketExpired, ": %s ended at %s, it is %s", name(), stamp(tkt.EndTime), stamp(uint32(at)))
	case int64(start) > at+int64(clockskew(i.Conf)/time.Second):
		return mech.Errorf(mech.Failure, wire.MinorNotYetValid, reason.TicketNotYetValid, ": %s starts at %s, it is %s", name(), stamp(start), stamp(uint32(at)))
	case !slices.Contains(permittedEnctypes(i.Conf), tkt.KeyType):
		return notPermitted(tkt.KeyType, "the ticket's session key")
	}
	var t wire.Ticket
	return malformed("ticket", t.Parse(tkt.Ticket))
}

// Continue takes the acceptor's answer to the token that came with partial, and establishes the
// context. Of i only Target, Conf and Now count. There is a last token for the acceptor with DCE
// style. The error is a *[mech.Error], which has the acceptor's reason if it is that which answered
// with an error; out is empty then.
func (i *Initiator) Continue(out *Initiated, partial, token []byte) error {
	out.plain = append(out.plain[:0], partial...) // which may be out's own
	out.Context, out.Token, out.Partial = Context{}, nil, nil
	if err := i.finish(out, token, i.now()); err != nil {
		out.Context, out.Token = Context{}, nil
		return err
	}
	return nil
}

func (i *Initiator) finish(out *Initiated, token []byte, now time.Time) *mech.Error {
	c := &out.Context
	at, err := c.readPartial(out.plain, true, &out.session, &out.subkey, &out.reply)
	if err != nil {
		return err
	}
	if i.Target != "" && i.Target != c.There {
		return mech.Errorf(mech.BadName, 0, reason.BadName, ": the context was begun with %s, not with %s", wire.Shown(c.There), wire.Shown(i.Target))
	}
	id, message, err := c.openReply(token)
	if err != nil {
		return err
	}
	if id == tokKRBError {
		return peerError(message, now)
	}
	if err := i.takeAPRep(out, message, at); err != nil {
		return err
	}
	if c.Flags&mech.FlagDCEStyle == 0 {
		return nil
	}
	out.scratch = wire.AppendEncAPRep(out.scratch[:0], uint32(now.Unix()), int32(now.Nanosecond()/1000), nil, uint32(c.RecvSeq))
	answer, e := appendAPRep(out.token[:0], "", &out.session, out.scratch)
	if e != nil {
		return mech.Errorf(mech.Failure, 0, reason.Internal, ": %v", e)
	}
	out.token, out.Token = answer, answer
	return nil
}
