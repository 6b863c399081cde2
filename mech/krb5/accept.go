package krb5

import (
	"bytes"
	"cmp"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"gssproxyd/mech"
	"gssproxyd/mech/krb5/der"
	"gssproxyd/mech/krb5/etype"
	"gssproxyd/mech/krb5/krb5conf"
	"gssproxyd/mech/krb5/rcache"
	"gssproxyd/mech/krb5/wire"
	"gssproxyd/mech/reason"
)

// ReplayCache remembers authenticators; *rcache.Cache is one.
type ReplayCache interface {
	// Store records the tag of an authenticator, or returns rcache.ErrReplay if it is there
	// already. It is atomic among all users of the cache.
	Store(tag []byte, now time.Time, skew time.Duration) error
}

// Acceptor is the service side of the Kerberos mechanism (RFC 4121): what gss_accept_sec_context
// needs besides the token. It is not changed by use and safe for concurrent use.
type Acceptor struct {
	Keys   Keys
	Name   *Principal       // accept as this principal only; nil: as any in Keys. Of type NTSrvHst: as the service on that host, on any host if it has none, in any realm
	Replay ReplayCache      // nil: none
	Conf   *krb5conf.Config // nil: defaults
	Now    func() time.Time // nil: time.Now

	// MessageEnctypes are the types that the key for messages may have, because whoever is to use
	// the context knows no others; nil: any that is permitted. The acceptor's subkey is chosen
	// among them, and where the initiator offers none of them is of the first that is permitted:
	// the session key's type does not matter.
	MessageEnctypes []etype.ID

	// Allowed are the types that session keys and subkeys may have, of those that are permitted:
	// what a program has set for its credential (gss_krb5_set_allowable_enctypes); nil: all of them.
	// The ticket's own is not the program's to choose.
	Allowed []etype.ID

	// Preferred are the types among which the acceptor's subkey is chosen where the initiator has a
	// key of one, or offers it; nil: any that is permitted.
	Preferred []etype.ID

	// IgnoreDelegated leaves a forwarded credential unread, as when the caller does not want it.
	IgnoreDelegated bool

	// DCEStyle admits the exchange of DCE RPC, whose third message establishes the context: Accept
	// then leaves a Partial for Continue. Otherwise it is refused.
	DCEStyle bool

	// Trace is told the steps up to the context, each as one line for people: what libkrb5 writes
	// where KRB5_TRACE says; nil: nobody. Lines never have keys or tokens in them.
	Trace func(format string, args ...any)
}

// Accepted is the result of [Acceptor.Accept] and [Acceptor.Continue]. It can be used again and
// again: each call overwrites what the last one left, including the keys and buffers that Context
// and Token point to. It must not be copied, nor printed for debugging: it prints as its Context.
type Accepted struct {
	Context   Context
	Token     []byte      // framed AP-REP for the initiator, empty when it wants none
	Delegated *Credential // forwarded by the initiator, nil if there is none
	Ticket    []byte      // DER of the ticket that was accepted, the evidence for S4U2Proxy; aliases the token

	// Partial is nil when the context is established. Otherwise the context is not to be used yet,
	// and Partial is what [Acceptor.Continue] needs, with the initiator's next token, to go on:
	// here, or in any other process. It holds keys.
	Partial etype.Secret

	opened *etype.ServiceKey // nil: no key has opened the ticket of req
	// Skew is how far the initiator's clock is ahead of ours by its authenticator, if SkewKnown: that
	// has verified and is no replay, whatever becomes of the context then.
	Skew      time.Duration
	SkewKnown bool

	req                    wire.APReq
	tkt                    wire.EncTicket
	auth                   wire.Authenticator
	ad                     clientAuthData
	sum                    gssChecksum
	session, subkey, reply etype.Key
	authData               []AuthData
	plain                  []byte // the ticket's encrypted part, to which Context points
	authPlain              []byte // the authenticator, to which Context points
	scratch                []byte
	token                  []byte
	partial                []byte
}

// Format writes the Context's names, whatever the verb.
func (out Accepted) Format(f fmt.State, verb rune) { io.WriteString(f, out.Context.String()) }

// DropDelegated forgets the credential that the initiator has forwarded, and the context's flag that
// there is one.
func (out *Accepted) DropDelegated() {
	if out.Delegated != nil {
		out.Delegated.Destroy()
		out.Delegated = nil
	}
	out.Context.Flags &^= mech.FlagDeleg
}

// Opened returns the key that has opened the ticket of the token last accepted, or refused for
// something else, and from when until when the ticket is valid; nil if none has. issued reports
// whether the ticket was made when it begins, and not later: one that was postdated begins when its
// client wanted that, and is encrypted anew when it is validated; and of one that does not say when it
// begins, all that is known is when its client logged in.
func (out *Accepted) Opened() (key *etype.ServiceKey, start, end uint32, issued bool) {
	if out.opened == nil {
		return nil, 0, 0, false
	}
	t := &out.tkt
	return out.opened, cmp.Or(t.StartTime, t.AuthTime), t.EndTime, t.StartTime != 0 && t.Flags&(wire.FlagPostdated|wire.FlagInvalid) == 0
}

// Unopened appends to b whom the ticket says it is for, an unparsed principal with its realm, and
// returns the version and the type of the key that it says it is encrypted with, after a token that
// was refused since no key opens its ticket. Anybody may have written that.
func (out *Accepted) Unopened(b []byte) (server []byte, kvno uint32, et etype.ID) {
	t := &out.req.Ticket
	return t.Server.AppendString(b), t.Enc.KVNO, t.Enc.Etype
}

// keepAtMost bounds the buffers that survive Reset.
const keepAtMost = 64 << 10

// Reset overwrites every key and plaintext. out can be used again.
func (out *Accepted) Reset() {
	for _, b := range []*[]byte{&out.plain, &out.authPlain, &out.scratch, &out.partial} {
		wipe(b)
	}
	if out.Delegated != nil {
		out.Delegated.Key.Zero()
	}
	out.session.Destroy()
	out.subkey.Destroy()
	out.reply.Destroy()
	clear(out.authData)
	*out = Accepted{
		session: out.session, subkey: out.subkey, reply: out.reply, authData: out.authData[:0],
		plain: out.plain, authPlain: out.authPlain, scratch: out.scratch, token: out.token[:0],
		partial: out.partial,
	}
}

// wipe overwrites and empties a buffer.
func wipe(b *[]byte) {
	clear((*b)[:cap(*b)])
	if cap(*b) > keepAtMost {
		*b = nil
	}
	*b = (*b)[:0]
}

func (a *Acceptor) now() time.Time {
	if a.Now != nil {
		return a.Now()
	}
	return time.Now()
}

// Accept verifies an initiator's first token (RFC 4121 section 4.1) and establishes a context, or
// begins one if out has a Partial afterwards. cb may be nil. On success out holds the context and
// the answer; a failure is a *mech.Error whose Token, if any, is for the initiator, and out is
// empty.
func (a *Acceptor) Accept(out *Accepted, token []byte, cb *ChannelBindings) error {
	out.Context, out.Token, out.Delegated, out.Ticket, out.Partial, out.sum, out.opened = Context{}, nil, nil, nil, nil, gssChecksum{}, nil
	out.SkewKnown = false
	oid, message, framed, err := unframe(token)
	if err == nil {
		err = malformed("AP-REQ", out.req.Parse(message))
	}
	if err != nil {
		return err
	}
	now := a.now()
	err = a.verify(out, cb, now)
	if err == nil {
		err = a.establish(out, oid, framed)
	}
	if err == nil {
		return nil
	}
	if out.req.Options&wire.APMutualRequired != 0 || out.sum.flags&mech.FlagMutual != 0 {
		err.Token = appendKRBError(nil, oid, err.Minor, now, out.req.Ticket.Server)
	}
	if out.Delegated != nil {
		out.Delegated.Key.Zero()
	}
	out.Context, out.Token, out.Delegated, out.Ticket = Context{}, nil, nil, nil
	return err
}

// unframe takes the AP-REQ out of the framing of RFC 2743 section 3.1, whose mechanism it returns.
// A bare AP-REQ is the form DCE RPC uses.
func unframe(token []byte) (oid mech.OID, message []byte, framed bool, err *mech.Error) {
	switch {
	case len(token) == 0:
		return "", nil, false, mech.Errorf(mech.DefectiveToken, minorBadHeader, reason.DefectiveToken, ": the token is empty")
	case token[0] == byte(der.Application(wire.MsgAPReq)):
		return mech.KRB5, token, false, nil
	case bytes.HasPrefix(token, []byte("NTLMSSP\x00")):
		return "", nil, false, mech.Errorf(mech.BadMech, minorWrongMech, reason.WrongMech, ": the token is for NTLM")
	case token[0] != byte(der.Application(0)):
		return "", nil, false, mech.Errorf(mech.DefectiveToken, minorBadHeader, reason.DefectiveToken, ": the token starts with octet %#02x; expected 0x60 (GSS-API) or 0x6e (Kerberos AP-REQ)", token[0])
	}
	r, name, rest := readFrame(token)
	if err := malformed("GSS-API framing", r.Err()); err != nil {
		if !namesMech(token) {
			err.Major = mech.DefectiveToken
		}
		return "", nil, false, err
	}
	for _, known := range [...]mech.OID{mech.KRB5, mech.IAKERB, mech.KRB5Wrong, mech.KRB5Old} {
		if string(name) == string(known) {
			oid = known
		}
	}
	switch {
	case oid != "":
	case string(name) == string(mech.SPNEGO):
		return "", nil, false, mech.Errorf(mech.NoCred, minorWrongMech, reason.WrongMech, ": the token is for SPNEGO; here is a credential for Kerberos alone")
	default:
		return "", nil, false, mech.Errorf(mech.BadMech, minorWrongMech, reason.WrongMech, ": the token is for mechanism %v", mech.OID(name[:min(len(name), 32)]))
	}
	if len(rest) < 2 {
		return "", nil, false, mech.Errorf(mech.Failure, minorBadHeader, reason.DefectiveToken, ": the token ends behind its mechanism")
	}
	if binary.BigEndian.Uint16(rest) != tokAPReq {
		// MIT krb5 says CONTINUE_NEEDED here, with no token to continue with: callers would wait
		// forever.
		return "", nil, false, mech.Errorf(mech.DefectiveToken, wire.MinorMsgType, reason.DefectiveToken, ": expected an AP-REQ, got %s", tokenName(rest))
	}
	return oid, rest[2:], true, nil
}

// namesMech reports whether a framed token is whole up to its mechanism, whatever its length says
// of the rest. As in MIT's library a token that is not even that is GSS_S_DEFECTIVE_TOKEN, and what
// is wrong behind it a failure of the mechanism.
func namesMech(token []byte) bool {
	i := 2
	if len(token) > 1 && token[1]&0x80 != 0 {
		i += int(token[1] & 0x7f)
	}
	return i+1 < len(token) && token[i] == byte(der.ObjectID) && i+2+int(token[i+1]) <= len(token)
}

// tokenName describes the start of a framed token.
func tokenName(b []byte) string {
	if len(b) < 2 {
		return "an empty token"
	}
	switch id := binary.BigEndian.Uint16(b); id {
	case tokAPRep:
		return "an AP-REP"
	case tokKRBError:
		return "a KRB-ERROR"
	case 0x0501:
		return "an IAKERB proxy message"
	case 0x0101, 0x0201:
		return "a per-message token"
	default:
		return fmt.Sprintf("token id %04x", id)
	}
}

// verify does what RFC 4120 section 3.2.3 asks of a server that receives an AP-REQ, in the order
// MIT krb5 does it, and interprets the GSS-API's checksum. The order decides which error a token
// with several faults gets, and that the replay cache learns of authenticators which fail later.
func (a *Acceptor) verify(out *Accepted, cb *ChannelBindings, now time.Time) *mech.Error {
	service, err := a.openTicket(out)
	if err != nil {
		return err
	}
	out.opened = service
	a.traceTicket(out, service)
	tkt, auth := &out.tkt, &out.auth
	if err := out.openAuthenticator(); err != nil {
		return err
	}
	if !auth.Client.Same(tkt.Client) {
		return mech.Errorf(mech.Failure, wire.MinorBadMatch, reason.BadMatch, ": the authenticator is of %s, the ticket of %s", wire.Shown(auth.Client.AppendString(nil)), wire.Shown(tkt.Client.AppendString(nil)))
	}
	if why := tkt.Client.Fault(); why != "" {
		// MIT's library accepts it, and what the service then takes it for is anybody's choice who
		// runs a KDC.
		return mech.Errorf(mech.Failure, wire.MinorParseMalformed, reason.BadClient, ": the ticket is of %s: %s", wire.Shown(tkt.Client.AppendString(nil)), why)
	}
	if cb != nil && cb.InitiatorAddrType == uint32(wire.AddrINET) && !addressIn(tkt.Addresses, cb.InitiatorAddr) {
		return mech.Errorf(mech.Failure, wire.MinorBadAddress, reason.BadAddress, ": the ticket of %s is limited to other addresses than the initiator's", wire.Shown(tkt.Client.AppendString(nil)))
	}
	if err := a.checkPath(tkt, service); err != nil {
		return err
	}
	skew := clockskew(a.Conf)
	if a.Replay != nil {
		if err := a.storeReplay(out, now, skew); err != nil {
			return err
		}
		a.traceReplay(out)
	}
	out.Skew, out.SkewKnown = time.Unix(int64(auth.Ctime), int64(auth.Cusec)*1000).Sub(now), true
	if err := checkTimes(tkt, auth, now, skew); err != nil {
		return err
	}
	if tkt.Flags&wire.FlagInvalid != 0 {
		return mech.Errorf(mech.Failure, wire.MinorTicketInvalid, reason.TicketInvalid, ": ticket of %s", wire.Shown(tkt.Client.AppendString(nil)))
	}
	if out.scratch, err = readTicketAuthData(&out.Context, tkt, service.Key, out.scratch); err != nil {
		return err
	}
	if err := out.ad.read(auth.AuthData); err != nil {
		return err
	}
	out.Context.Here = service.Principal
	out.Context.SessionKey = &out.session
	if err := a.checkEnctypes(out); err != nil {
		return err
	}
	if auth.Subkey.Value != nil {
		if err := initKey(&out.subkey, auth.Subkey, "the authenticator's subkey"); err != nil {
			return err
		}
		out.Context.Subkey = &out.subkey
	}
	if err := out.sum.read(auth, out.req.Options, &out.session, cb); err != nil {
		return err
	}
	if out.sum.cred != nil && !a.IgnoreDelegated {
		if out.Delegated, err = readDelegated(out.sum.cred, &out.tkt.Client, out.Context.Subkey, &out.session); err != nil {
			return err
		}
		if out.Delegated == nil {
			out.sum.flags &^= mech.FlagDeleg
		}
	}
	if out.ad.cbt && cb != nil && !out.sum.bound {
		return mech.Errorf(mech.BadBindings, 0, reason.BadBindings, ": the client insists on channel bindings but sent none")
	}
	return nil
}

// establish fills in the context and makes the AP-REP.
func (a *Acceptor) establish(out *Accepted, oid mech.OID, framed bool) *mech.Error {
	c, tkt, auth := &out.Context, &out.tkt, &out.auth
	flags := out.sum.flags | mech.FlagTrans
	dce := flags&mech.FlagDCEStyle != 0
	switch {
	case dce == framed:
		return mech.Errorf(mech.DefectiveToken, 0, reason.DefectiveToken, ": only a DCE-style token comes without GSS-API framing, and it must")
	case dce && !a.DCEStyle:
		return mech.Errorf(mech.Unavailable, 0, reason.DCEStyle, ": DCE-style authentication takes three messages; only one is accepted here")
	case dce:
		flags = flags&^mech.FlagDeleg | mech.FlagMutual
		out.DropDelegated()
	}
	if c.Subkey == nil {
		c.Subkey = &out.session
	}
	c.Mech = oid
	out.scratch = tkt.Client.AppendString(out.scratch[:0])
	c.There = string(out.scratch)
	c.AuthTime, c.StartTime, c.EndTime, c.RenewTill = tkt.AuthTime, tkt.StartTime, tkt.EndTime, tkt.RenewTill
	c.TicketFlags = tkt.Flags
	out.authData = appendAuthData(appendAuthData(out.authData[:0], tkt.AuthData), auth.AuthData)
	c.AuthData = out.authData
	c.RecvSeq, c.SendSeq = uint64(auth.Seq), uint64(auth.Seq)
	c.Window = newWindow(c.RecvSeq, flags, c.Subkey.Enctype().CFX())
	out.Ticket = out.req.Ticket.Raw

	if flags&mech.FlagMutual != 0 {
		// A new subkey unless the old per-message formats, which cannot say which key they use,
		// stay.
		et := a.negotiate(out)
		send := c.Subkey
		if dce || c.Subkey.Enctype().CFX() || et != out.session.Enctype() && et.CFX() {
			if err := out.reply.Generate(et); err != nil {
				return mech.Errorf(mech.Failure, 0, reason.Internal, ": %v", err)
			}
			c.AcceptorSubkey, send = &out.reply, &out.reply
		} else if auth.Subkey.Value == nil {
			send = nil
		}
		seq := randomSeq()
		c.SendSeq = uint64(seq)
		out.scratch = wire.AppendEncAPRep(out.scratch[:0], auth.Ctime, auth.Cusec, send, seq)
		frame := oid
		if dce {
			frame = ""
		} else {
			flags |= mech.FlagProtReady
		}
		token, err := appendAPRep(out.token[:0], frame, &out.session, out.scratch)
		if err != nil {
			return mech.Errorf(mech.Failure, 0, reason.Internal, ": %v", err)
		}
		out.token, out.Token = token, token
	}
	if a.MessageEnctypes != nil && !slices.Contains(a.MessageEnctypes, c.MessageEnctype()) {
		return mech.Errorf(mech.Unavailable, 0, reason.ContextEnctype, ": the context with %s has a key of %v, and its user knows %s only", wire.Shown(c.There), c.MessageEnctype(), enctypeList(a.MessageEnctypes))
	}
	c.Flags = flags
	if dce {
		out.partial = c.appendPartial(out.partial[:0], authenticatorTime{})
		out.Partial = out.partial
	}
	return nil
}

// openAuthenticator decrypts and reads the authenticator with the ticket's session key.
func (out *Accepted) openAuthenticator() *mech.Error {
	enc := &out.req.Auth
	if err := initKey(&out.session, out.tkt.Key, "the ticket's session key"); err != nil {
		return err
	}
	if enc.Etype != out.session.Enctype() {
		return mech.Errorf(mech.Failure, wire.MinorBadEnctype, reason.DefectiveToken, ": the authenticator is encrypted with %v, the session key is of %v", enc.Etype, out.session.Enctype())
	}
	var err error
	out.authPlain, err = out.session.Decrypt(out.authPlain[:0], wire.UsageAPReq, enc.Cipher)
	switch {
	case errors.Is(err, etype.ErrShort):
		return mech.Errorf(mech.Failure, wire.MinorBadMsgSize, reason.DefectiveToken, ": the authenticator is too short to be encrypted with %v", enc.Etype)
	case err != nil:
		return mech.Errorf(mech.Failure, wire.MinorBadIntegrity, reason.BadIntegrity, ": the authenticator does not decrypt with the ticket's session key")
	}
	return malformed("authenticator", out.auth.Parse(out.authPlain))
}

// initKey makes k the key w.
func initKey(k *etype.Key, w wire.Key, what string) *mech.Error {
	switch {
	case !w.Etype.Supported():
		return notPermitted(w.Etype, what)
	case k.Init(w.Etype, w.Value) != nil:
		return mech.Errorf(mech.Failure, wire.MinorBadKeySize, reason.DefectiveToken, ": %s has %d octets, %v needs %d", what, len(w.Value), w.Etype, w.Etype.KeySize())
	}
	return nil
}

// addressIn reports whether a list of addresses, nil for a ticket without, has the IPv4 address
// addr.
func addressIn(list, addr []byte) bool {
	if list == nil {
		return true
	}
	r := der.NewReader(list)
	n, netBIOS := 0, 0
	for ; r.More(); n++ {
		kind, data := wire.ReadTyped(&r)
		if kind == wire.AddrINET && bytes.Equal(data, addr) && r.Fault() == 0 {
			return true
		}
		if kind == wire.AddrNetBIOS {
			netBIOS++
		}
	}
	return r.Fault() == 0 && n == 1 && netBIOS == 1
}

// checkPath applies the transited policy unless the KDC has.
func (a *Acceptor) checkPath(tkt *wire.EncTicket, service *etype.ServiceKey) *mech.Error {
	if tkt.Flags&wire.FlagPolicyChecked != 0 || len(tkt.Transited) == 0 || tkt.Transited[0] == 0 {
		return nil
	}
	server, err := ParsePrincipal(service.Principal, "")
	if err != nil {
		return mech.Errorf(mech.Failure, 0, reason.Internal, ": %v", err)
	}
	client := string(tkt.Client.Realm)
	ill := func(detail string) *mech.Error {
		return mech.Errorf(mech.Failure, wire.MinorIllegalCross, reason.Transited, ": %s on the way from %s to %s", detail, wire.Shown(client), wire.Shown(server.Realm))
	}
	switch {
	case tkt.TransitedType != transitedX500:
		return ill(fmt.Sprintf("unknown encoding %d of the realms", tkt.TransitedType))
	case client == server.Realm:
		return mech.Errorf(mech.Failure, wire.MinorNoRealmTicket, reason.Transited, ": the ticket lists realms in between although client and service are both of %s", wire.Shown(client))
	}
	if off, ok := checkTransited(a.Conf, string(tkt.Transited), client, server.Realm); !ok {
		if off == "" {
			return ill("malformed list of realms")
		}
		return ill("realm " + wire.Shown(off) + " is not expected")
	}
	return nil
}

// storeReplay records the authenticator by the checksum at the end of its ciphertext.
func (a *Acceptor) storeReplay(out *Accepted, now time.Time, skew time.Duration) *mech.Error {
	cipher := out.req.Auth.Cipher
	err := a.Replay.Store(cipher[len(cipher)-min(out.req.Auth.Etype.MACSize(), len(cipher)):], now, skew)
	switch {
	case err == nil:
		return nil
	case errors.Is(err, rcache.ErrReplay):
		return mech.Errorf(mech.Failure, wire.MinorReplay, reason.Replay, ": authenticator of %s made at %s, for %s", wire.Shown(out.tkt.Client.AppendString(nil)), stamp(out.auth.Ctime), wire.Shown(out.req.Ticket.Server.AppendString(nil)))
	}
	return mech.Errorf(mech.Failure, wire.MinorRcacheIO, reason.ReplayCache, ": %v", err)
}

// checkTimes compares the ticket's times and the authenticator's with now.
func checkTimes(tkt *wire.EncTicket, auth *wire.Authenticator, now time.Time, skew time.Duration) *mech.Error {
	start := cmp.Or(tkt.StartTime, tkt.AuthTime)
	at, within := now.Unix(), int64(skew/time.Second)
	client := func() string { return wire.Shown(tkt.Client.AppendString(nil)) }
	switch ctime := int64(auth.Ctime); {
	case int64(start) > at+within:
		return mech.Errorf(mech.Failure, wire.MinorNotYetValid, reason.TicketNotYetValid, ": the ticket of %s starts at %s, it is %s", client(), stamp(start), stamp(uint32(at)))
	case at > int64(tkt.EndTime)+within:
		return mech.Errorf(mech.Failure, wire.MinorExpired, reason.TicketExpired, ": the ticket of %s ended at %s, it is %s", client(), stamp(tkt.EndTime), stamp(uint32(at)))
	case ctime > at+within:
		return mech.Errorf(mech.Failure, wire.MinorSkew, reason.ClockSkew, ": the clock of %s is %ds ahead, permitted are %ds", client(), ctime-at, within)
	case ctime < at-within:
		return mech.Errorf(mech.Failure, wire.MinorSkew, reason.ClockSkew, ": the clock of %s is %ds behind, permitted are %ds", client(), at-ctime, within)
	}
	return nil
}

// stamp writes a time for messages.
func stamp(unix uint32) string { return time.Unix(int64(unix), 0).UTC().Format("2006-01-02T15:04:05Z") }

func (a *Acceptor) permitted() []etype.ID { return permittedEnctypes(a.Conf) }

// allowed returns the types that session keys and subkeys may have, the best first.
func (a *Acceptor) allowed() []etype.ID {
	all := a.permitted()
	if a.Allowed == nil {
		return all
	}
	return slices.DeleteFunc(slices.Clone(all), func(et etype.ID) bool { return !slices.Contains(a.Allowed, et) })
}

func permittedEnctypes(conf *krb5conf.Config) []etype.ID {
	if conf == nil {
		return krb5conf.DefaultEnctypes()
	}
	return conf.PermittedEnctypes
}

func clockskew(conf *krb5conf.Config) time.Duration {
	if conf == nil {
		return 5 * time.Minute
	}
	return conf.Clockskew
}

// checkEnctypes refuses a session key or subkey of a type that is not allowed.
func (a *Acceptor) checkEnctypes(out *Accepted) *mech.Error {
	allowed := a.allowed()
	if k := &out.auth.Subkey; k.Value != nil && !slices.Contains(allowed, k.Etype) {
		return notPermitted(k.Etype, "the authenticator's subkey")
	}
	if et := out.session.Enctype(); !slices.Contains(allowed, et) {
		return notPermitted(et, "the ticket's session key")
	}
	return nil
}

// prefers reports whether a type is among those preferred; nil are all.
func prefers(preferred []etype.ID, et etype.ID) bool {
	return preferred == nil || slices.Contains(preferred, et)
}

// negotiate returns the type of the acceptor's subkey (RFC 4537): of those the client offers, or
// has a key of, the one this side likes best. checkEnctypes has passed, so there is one unless
// MessageEnctypes has none of them.
func (a *Acceptor) negotiate(out *Accepted) etype.ID {
	var first etype.ID
	for _, et := range a.allowed() {
		if a.MessageEnctypes != nil && !slices.Contains(a.MessageEnctypes, et) {
			continue
		}
		if !prefers(a.Preferred, et) {
			continue
		}
		if et == out.session.Enctype() || out.auth.Subkey.Value != nil && et == out.auth.Subkey.Etype || out.ad.offers(et) {
			return et
		}
		if first == 0 {
			first = et
		}
	}
	return cmp.Or(first, out.session.Enctype())
}

// enctypeList writes types for messages.
func enctypeList(list []etype.ID) string {
	var names []string
	for _, et := range list {
		names = append(names, et.String())
	}
	return strings.Join(names, ", ")
}

// randomSeq returns the acceptor's first sequence number: 30 bits, as some peers hold it signed and
// the Linux kernel refuses the upper half, and never 0, which stands for none.
func randomSeq() uint32 {
	var b [4]byte
	rand.Read(b[:])
	return max(binary.BigEndian.Uint32(b[:])&(1<<30-1), 1)
}
