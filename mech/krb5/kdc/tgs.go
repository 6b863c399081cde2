package kdc

import (
	"context"
	"slices"
	"time"

	"gssproxyd/mech"
	"gssproxyd/mech/krb5"
	"gssproxyd/mech/krb5/etype"
	"gssproxyd/mech/krb5/wire"
	"gssproxyd/mech/reason"
)

// tgsRequest is one request to a ticket-granting service.
type tgsRequest struct {
	tgt       *krb5.Credential // proves who asks
	server    krb5.Principal   // in the realm that is asked
	options   uint32
	till      uint32 // 0: as long as tgt
	renewTill uint32 // 0: not asked for
	etypes    []etype.ID
	second    []byte // the additional ticket
	// padata makes what goes with the request after PA-TGS-REQ.
	padata func(nonce uint32, subkey, session *etype.Key) []wire.PAData
	// anyClient leaves it to the caller to compare the reply's client with who it should be: with
	// S4U it is not who asks. A ticket for another TGS is always for who asks.
	anyClient bool
	// primary has the primary KDCs of the realm asked, where they are known.
	primary bool
}

// tgsReply is what came of it.
type tgsReply struct {
	cred      *krb5.Credential
	padata    []wire.PAData
	encPadata []wire.PAData
	nonce     uint32
	subkey    *etype.Key
}

// exchange sends one request and verifies the reply.
func (c *Client) exchange(ctx context.Context, q tgsRequest) (*tgsReply, *mech.Error) {
	realm := q.server.Realm
	if len(q.tgt.Ticket) == 0 {
		return nil, mech.Errorf(mech.Failure, wire.MinorNoTicket, reason.NoCredential, "")
	}
	if len(q.etypes) == 0 {
		return nil, mech.Errorf(mech.Failure, wire.MinorConfigEtype, reason.EnctypeNotPermitted, ": none of the types asked for is permitted: see default_tgs_enctypes and permitted_enctypes")
	}
	session, err := etype.NewKey(q.tgt.KeyType, q.tgt.Key)
	if err != nil {
		return nil, mech.Errorf(mech.Failure, wire.MinorProgEtype, reason.EnctypeNotPermitted, ": the key of the %v cannot be used: %s", q.tgt, err)
	}
	defer session.Destroy()
	c.trace("Requesting a ticket for %v, options %#08x, with the %v", q.server, q.options, q.tgt)
	offset := c.Offset(realm)
	reply, stime, fault := c.tgs(ctx, q, realm, session, offset)
	if minor(fault) != wire.MinorSkew || !c.timesync() || stime == 0 {
		return reply, fault
	}
	// Nobody vouches for the time in an error: this request is tried with it. For others the time
	// of a reply counts, once that has verified.
	sent := c.clock()
	offset = time.Unix(int64(stime), 0).Sub(sent).Truncate(time.Second)
	reply, _, again := c.tgs(ctx, q, realm, session, offset)
	if again != nil {
		return nil, fault
	}
	// Of tickets that are renewed the start may be another time than the KDC's.
	started := time.Unix(int64(reply.cred.StartTime), 0)
	if q.options&wire.OptRenew == 0 && started.Sub(sent.Add(offset)).Abs() <= c.clockskew() {
		c.setOffset(realm, reply.cred.StartTime, sent)
	}
	return reply, nil
}

// tgs is one request and its reply, the realm's clock being ahead of ours by offset; stime is the
// KDC's time in case of an error.
func (c *Client) tgs(ctx context.Context, q tgsRequest, realm string, session *etype.Key, offset time.Duration) (_ *tgsReply, stime uint32, err *mech.Error) {
	if err := c.turn(ctx, 1); err != nil { // before the time is looked at
		return nil, 0, err
	}
	subkey, e := etype.GenerateKey(session.Enctype())
	if e != nil {
		return nil, 0, mech.Errorf(mech.Failure, wire.MinorProgEtype, reason.EnctypeNotPermitted, ": %s", e)
	}
	defer func() {
		if err != nil || !q.anyClient { // else S4U goes on with it
			subkey.Destroy()
		}
	}()
	now := c.clock().Add(offset)
	b := wire.KDCReqBody{Options: q.options, Server: q.server, Till: q.till, RTime: q.renewTill, Nonce: nonce(),
		Etypes: q.etypes, Addresses: q.tgt.Addresses, Ticket: q.second}
	if b.Till == 0 {
		b.Till = q.tgt.EndTime
	}
	if q.options&wire.FlagForwarded != 0 {
		b.Addresses = nil
	}
	encoded := b.Append(nil)
	made := wire.NewAuthenticator{
		Client:       &q.tgt.Client,
		ChecksumType: session.Enctype().ChecksumType(), Checksum: session.AppendChecksum(nil, wire.UsageTGSReqChecksum, encoded),
		Ctime: unix(now), Cusec: int32(now.Nanosecond() / 1000), Subkey: subkey,
	}
	auth := made.Append(nil)
	apReq, e := wire.AppendAPReq(nil, 0, q.tgt.Ticket, session, wire.UsageTGSReqAuth, auth)
	clear(auth)
	if e != nil {
		return nil, 0, mech.Errorf(mech.Failure, wire.MinorProgEtype, reason.EnctypeNotPermitted, ": %s", e)
	}
	padata := []wire.PAData{{Type: wire.PATGSReq, Value: apReq}}
	if q.padata != nil {
		padata = append(padata, q.padata(b.Nonce, subkey, session)...)
	}
	primary := q.primary
	if primary {
		_, e := c.locate(ctx, realm, true)
		primary = e == nil
	}
	a, e := c.send(ctx, realm, wire.AppendKDCReq(nil, wire.MsgTGSReq, padata, encoded), primary)
	if e != nil {
		return nil, 0, e.(*mech.Error)
	}
	if wire.IsKRBError(a.reply) {
		k, err := parseError(a.reply)
		if err != nil {
			return nil, 0, err
		}
		return nil, k.STime, refused(k, realm, q.tgt.Client, q.server, typesAsked(k.Minor(), q.etypes)...)
	}
	rep, err := parseReply(wire.MsgTGSRep, a.reply)
	if err != nil {
		return nil, 0, err
	}
	plain, e := decrypt(&rep.Enc, subkey, wire.UsageTGSRepSubkey)
	if e != nil { // old Heimdal uses the session key all the same
		plain, e = decrypt(&rep.Enc, session, wire.UsageTGSRepSession)
	}
	if e != nil {
		return nil, 0, mech.Errorf(mech.Failure, wire.MinorBadIntegrity, reason.KDCReply, ": cannot decrypt TGS-REP of the KDC of realm '%s'", wire.Shown(realm))
	}
	var p encPart
	if err := p.parse(plain); err != nil {
		return nil, 0, err
	}
	defer p.key.Destroy()
	if err := c.verifyTGS(&q, rep, &p, &b, now); err != nil {
		return nil, 0, err
	}
	cred := p.credential(rep)
	if cred.Addresses == nil {
		cred.Addresses = b.Addresses // none in the reply: what the request had
	}
	if tgt := q.tgt; !tgt.Server.Equal(TGS(tgt.Client.Realm, tgt.Client.Realm)) && tgt.Flags&wire.FlagOKAsDelegate == 0 {
		cred.Flags &^= wire.FlagOKAsDelegate // another realm's word is worth what our own says of it
	}
	cred.SecondTicket = q.second
	c.traceTicket(cred)
	return &tgsReply{cred, rep.PAData, p.PAData, b.Nonce, subkey}, 0, nil
}

// verifyTGS compares a reply with its request, which was sent at a time of the realm's clock.
func (c *Client) verifyTGS(q *tgsRequest, rep *wire.KDCRep, p *encPart, b *wire.KDCReqBody, sent time.Time) *mech.Error {
	got := p.Server
	switch {
	case p.Nonce != b.Nonce:
		return mech.Errorf(mech.Failure, wire.MinorReplyModified, reason.KDCReply, ": the nonce is not the request's")
	case (!q.anyClient || isTGS(got)) && !rep.Client.Equal(q.tgt.Client):
		return mech.Errorf(mech.Failure, wire.MinorReplyModified, reason.KDCReply, ": the ticket is for the client %s, expected %s", rep.Client.Shown(), q.tgt.Client.Shown())
	case !got.Equal(rep.Ticket.Server.Principal()):
		return mech.Errorf(mech.Failure, wire.MinorReplyModified, reason.KDCReply, ": ticket and reply name different servers, %s and %s", rep.Ticket.Server.Principal().Shown(), got.Shown())
	case !got.Equal(q.server) && b.Options&wire.OptCanonicalize == 0 && !(isTGS(q.server) && isTGS(got)):
		return mech.Errorf(mech.Failure, wire.MinorReplyModified, reason.KDCReply, ": the ticket is for %s, expected %s", got.Shown(), q.server.Shown())
	case p.EndTime > b.Till && b.Options&wire.OptRenew == 0:
		return mech.Errorf(mech.Failure, wire.MinorReplyModified, reason.KDCReply, ": the ticket ends later than asked for")
	case b.RTime != 0 && p.RenewTill > b.RTime:
		return mech.Errorf(mech.Failure, wire.MinorReplyModified, reason.KDCReply, ": the ticket can be renewed for longer than asked for")
	case !sameAddresses(p.Addresses, b.Addresses):
		return mech.Errorf(mech.Failure, wire.MinorReplyModified, reason.KDCReply, ": the ticket is limited to network addresses other than those of the request")
	}
	// Renewing keeps the old start or not, as the KDC likes.
	if p.StartTime != q.tgt.StartTime {
		skew := time.Unix(int64(p.StartTime), 0).Sub(sent).Abs()
		if skew > c.clockskew() {
			return mech.Errorf(mech.Failure, wire.MinorReplySkew, reason.ClockSkew, ": the clocks of the KDC and of this host are %v apart", skew.Truncate(time.Second))
		}
	}
	asked := b.Options | q.tgt.Flags&^wire.FlagInvalid
	if q.anyClient {
		asked |= wire.FlagForwarded | wire.FlagProxy // the user's own ticket may have been one
	}
	return p.check(b.Etypes, asked)
}

// sameAddresses accepts no addresses in place of any.
func sameAddresses(got, want []krb5.Address) bool {
	return len(got) == 0 || slices.EqualFunc(got, want, func(a, b krb5.Address) bool {
		return a.Type == b.Type && string(a.Data) == string(b.Data)
	})
}
