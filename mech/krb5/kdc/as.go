package kdc

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"gssproxyd/mech"
	"gssproxyd/mech/krb5"
	"gssproxyd/mech/krb5/etype"
	"gssproxyd/mech/krb5/wire"
	"gssproxyd/mech/reason"
)

// LoginOptions are what may be asked of an AS exchange. The zero value asks for what krb5.conf
// says.
type LoginOptions struct {
	// Server is the service to get a ticket for, in whatever realm the client turns out to be in;
	// zero is the realm's TGS. Changing a key at the KDC takes a ticket for kadmin/admin or
	// kadmin/changepw that comes straight from the AS.
	Server krb5.Principal
	// Options are asked for besides those krb5.conf has on (forwardable, proxiable, canonicalize).
	Options uint32
}

const (
	maxTries = 16 // requests to one realm, as MIT krb5's
	maxHops  = 10 // realms that may refer a request on, as MIT krb5's
	asUsual  = 2  // requests: the KDC asks for pre-authentication, and gets it
)

// Login gets a ticket with the client's own key: the AS exchange. The client may be an enterprise
// name; then, and with wire.OptCanonicalize, the KDC may name another realm to ask, and another
// name for the client.
//
// A KDC that is not among the realm's primary ones may not have heard of a change yet: when it
// refuses, the primary ones have the last word, as with MIT krb5.
//
// What was refused is not tried again at once with the same keys, and by one caller at a time. None
// of them has to wait for another one's turn.
func (c *Client) Login(ctx context.Context, client krb5.Principal, keys KeySource, opt LoginOptions) (*krb5.Credential, error) {
	c.trace("Getting initial credentials for %v", client)
	get := func() (*krb5.Credential, bool, *mech.Error) { return c.login(ctx, client, keys, opt) }
	var cred *krb5.Credential
	var err *mech.Error
	if id := keys.ID(client); id != nil {
		cred, err = c.once(ctx, keyOf([]byte("login"), client.AppendString(nil), id), get)
	} else if err = c.turn(ctx, asUsual); err == nil {
		cred, _, err = get()
	}
	if err != nil {
		return nil, err
	}
	return cred, nil
}

// Canonicalizes reports whether the ticket that [Client.Login] gets may be of the client under
// another name: where krb5.conf has canonicalize, and for an enterprise name.
func (c *Client) Canonicalizes(client krb5.Principal) bool {
	return c.flag("canonicalize") || client.Type == krb5.NTEnterprise
}

// login is Login; answered reports whether a KDC has.
func (c *Client) login(ctx context.Context, client krb5.Principal, keys KeySource, opt LoginOptions) (_ *krb5.Credential, answered bool, _ *mech.Error) {
	x := login{Client: c, principal: client, keys: keys, opt: opt}
	cred, err := x.run(ctx)
	if err != nil && ctx.Err() == nil && minor(err) != wire.MinorUnreachable && minor(err) != wire.MinorRealmUnknown && x.replica(ctx) {
		y := login{Client: c, principal: client, keys: keys, opt: opt, primary: true}
		again, err2 := y.run(ctx)
		if err2 == nil || minor(err2) != wire.MinorUnreachable && minor(err2) != wire.MinorRealmUnknown {
			cred, err = again, err2
		}
	}
	return cred, len(x.answered) > 0, err
}

// identifyRealm asks the AS, starting at the client's realm, which realm knows the enterprise name.
func (c *Client) identifyRealm(ctx context.Context, client krb5.Principal) (realm string, err *mech.Error) {
	if err := c.turn(ctx, 1); err != nil {
		return "", err
	}
	x := login{Client: c, principal: client, identify: true, opt: LoginOptions{Options: wire.OptCanonicalize}}
	if _, err := x.run(ctx); err != nil {
		return "", err
	}
	return x.client.Realm, nil
}

// login is one AS exchange with all its requests.
type login struct {
	*Client
	principal krb5.Principal // the client asked for
	keys      KeySource
	opt       LoginOptions
	primary   bool // ask primary KDCs only
	identify  bool // it is enough to know that the client exists

	client   krb5.Principal // the client as the realm under way knows it
	options  uint32
	etypes   []etype.ID
	answered []answered
	shift    time.Duration
	shifted  bool // shift is the realm's clock minus ours, as an error of this exchange says
}

// answered is a KDC that did.
type answered struct {
	realm string
	by    target
}

// primaryTimeout bounds the look-up of which KDCs are primary ones: there is an answer already.
const primaryTimeout = 2 * time.Second

// replica reports whether an answer came from a KDC that is not among the primary ones of its
// realm, where those are known.
func (x *login) replica(ctx context.Context) bool {
	ctx, cancel := context.WithTimeout(ctx, primaryTimeout)
	defer cancel()
	return slices.ContainsFunc(x.answered, func(a answered) bool {
		primaries, err := x.locate(ctx, a.realm, true)
		return err == nil && !slices.ContainsFunc(primaries, func(s server) bool { return s.host == a.by.host && s.port == a.by.port })
	})
}

func (x *login) run(ctx context.Context) (*krb5.Credential, *mech.Error) {
	x.client = x.principal
	x.options = x.opt.Options
	for key, option := range map[string]uint32{"forwardable": wire.FlagForwardable, "proxiable": wire.FlagProxiable} {
		if !x.identify && x.flag(key) {
			x.options |= option
		}
	}
	if x.Canonicalizes(x.client) && !x.identify {
		x.options |= wire.OptCanonicalize
	}
	seen := map[string]bool{}
	for range maxHops {
		cred, next, err := x.ask(ctx)
		if err != nil || next == "" {
			return cred, err
		}
		seen[x.client.Realm] = true
		if seen[next] {
			return nil, mech.Errorf(mech.Failure, wire.MinorLoop, reason.KDCReply, ": referral loop between realms '%s' and '%s'", wire.Shown(x.client.Realm), wire.Shown(next))
		}
		x.client.Realm = next
		x.shifted = false
	}
	return nil, mech.Errorf(mech.Failure, wire.MinorLoop, reason.KDCReply, ": referred through more than %d realms", maxHops)
}

// time returns the realm's time.
func (x *login) time() time.Time {
	if x.shifted {
		return x.clock().Add(x.shift)
	}
	return x.now(x.client.Realm)
}

// send sends a request and notes who answered.
func (x *login) send(ctx context.Context, req []byte) ([]byte, *mech.Error) {
	a, err := x.Client.send(ctx, x.client.Realm, req, x.primary)
	if err != nil {
		return nil, err.(*mech.Error)
	}
	x.answered = append(x.answered, answered{x.client.Realm, a.server})
	return a.reply, nil
}

// attempt is what the next request to the realm proves the client's identity with.
type attempt struct {
	padata []wire.PAData // pre-authentication
	info   []wire.EtypeInfo
	key    *etype.Key // the client's, used in padata
}

// ask exchanges messages with one realm. next is the realm the KDC refers to.
func (x *login) ask(ctx context.Context) (cred *krb5.Credential, next string, err *mech.Error) {
	server := x.opt.Server
	server.Realm = x.client.Realm
	if len(server.Components) == 0 {
		server = TGS(x.client.Realm, x.client.Realm)
	}
	if err := x.chooseEtypes(); err != nil {
		return nil, "", err
	}
	var try attempt
	for range maxTries {
		sent := x.clock()
		b := x.body(server)
		encoded := b.Append(nil)
		padata := append(slices.Clone(try.padata), wire.PAData{Type: wire.PAReqEncPARep})
		req := wire.AppendKDCReq(nil, wire.MsgASReq, padata, encoded)
		reply, err := x.send(ctx, req)
		if err != nil {
			return nil, "", err
		}
		if !wire.IsKRBError(reply) {
			rep, err := parseReply(wire.MsgASRep, reply)
			if err != nil {
				return nil, "", err
			}
			if x.identify {
				return nil, "", nil
			}
			cred, err := x.accept(rep, &try, &b, req, sent)
			return cred, "", err
		}
		k, err := parseError(reply)
		if err != nil {
			return nil, "", err
		}
		method := wire.ParsePAData(k.Data)
		switch {
		case x.identify && (k.Minor() == wire.MinorPreauthRequired || k.Minor() == wire.MinorKeyExpired):
			return nil, "", nil
		case x.options&wire.OptCanonicalize != 0 && (k.Minor() == wire.MinorWrongRealm || k.Minor() == wire.MinorClientUnknown) &&
			len(k.Client.Realm) > 0 && string(k.Client.Realm) != x.client.Realm:
			return nil, string(k.Client.Realm), nil
		case k.Minor() == wire.MinorPreauthRequired:
			x.adjust(k.STime)
			if err := x.prove(&try, method); err != nil {
				return nil, "", err
			}
		case k.Minor() == wire.MinorPreauthExpired:
			try.padata = nil
		case k.Minor() == wire.MinorSkew && !x.shifted && x.timesync():
			x.adjust(k.STime)
			if try.padata != nil {
				if err := x.prove(&try, method); err != nil {
					return nil, "", err
				}
			}
		default:
			return nil, "", x.refused(k, server)
		}
	}
	return nil, "", mech.Errorf(mech.Failure, wire.MinorLoop, reason.KDCReply, "")
}

// refused is the error of a KRB-ERROR.
func (x *login) refused(k *wire.KRBError, server krb5.Principal) *mech.Error {
	with := typesAsked(k.Minor(), x.etypes)
	if !x.identify {
		with = append(with, x.keys.Describe(x.owner()))
	}
	return refused(k, x.client.Realm, x.client, server, with...)
}

// owner is whose keys are used: those under the name asked for. Without any it is the client as the
// realm under way knows it; that realm may be any that somebody on the way has made up, so it does
// not come first.
func (x *login) owner() krb5.Principal {
	if len(x.keys.Enctypes(x.principal, x.etypes)) == 0 {
		return x.client
	}
	return x.principal
}

// typesAsked says which encryption types were asked for, if that was refused.
func typesAsked(refused uint32, types []etype.ID) []string {
	if refused != wire.MinorEtypeNoSupp {
		return nil
	}
	return []string{"asked for " + strings.Trim(fmt.Sprint(types), "[]")}
}

// adjust notes the realm's time as an error tells it. If nobody protects the error, the worst
// somebody can do is to make us send a timestamp of another time.
func (x *login) adjust(stime uint32) {
	if x.timesync() && stime != 0 {
		now := x.clock()
		x.shift, x.shifted = time.Unix(int64(stime), 0).Sub(now.Truncate(time.Second)), true
	}
}

// chooseEtypes sets the types to ask for: the permitted ones, those the client has keys of first.
func (x *login) chooseEtypes() *mech.Error {
	x.etypes = slices.Clone(x.tktEnctypes())
	if len(x.etypes) == 0 {
		return mech.Errorf(mech.Failure, wire.MinorConfigEtype, reason.EnctypeNotPermitted, ": none of the types asked for is permitted: see default_tkt_enctypes and permitted_enctypes")
	}
	if x.identify {
		return nil
	}
	have := x.keys.Enctypes(x.owner(), x.etypes)
	if len(have) == 0 {
		return x.noKeys()
	}
	slices.SortStableFunc(x.etypes, func(a, b etype.ID) int {
		at := func(id etype.ID) int {
			if slices.Contains(have, id) {
				return 0
			}
			return 1
		}
		return at(a) - at(b)
	})
	return nil
}

func (x *login) noKeys() *mech.Error {
	return mech.Errorf(mech.Failure, wire.MinorNotInKeytab, reason.NoKey, "Keytab contains no suitable keys for %s (%s, asked for %s)", x.client.Shown(), x.keys.Describe(x.owner()), strings.Trim(fmt.Sprint(x.etypes), "[]"))
}

// body makes a request body with a fresh nonce and the present time.
func (x *login) body(server krb5.Principal) wire.KDCReqBody {
	b := wire.KDCReqBody{Options: x.options, Client: &x.client, Server: server, Nonce: nonce(), Etypes: x.etypes}
	now := x.time()
	if x.identify {
		b.Till = unix(now.Add(15 * time.Second))
		return b
	}
	b.Till = unix(now.Add(x.duration("ticket_lifetime", 24*time.Hour)))
	if renew := x.duration("renew_lifetime", 0); renew > 0 {
		b.Options |= wire.FlagRenewable
		b.RTime = max(b.Till, unix(now.Add(renew)))
	} else {
		b.Options |= wire.OptRenewableOK
	}
	return b
}

// parseKeyInfo reads ETYPE-INFO2.
func parseKeyInfo(b []byte) ([]wire.EtypeInfo, *mech.Error) {
	list, err := wire.ParseEtypeInfo(b)
	return list, malformed("PA-ETYPE-INFO2", err)
}

// hint describes the key of a type.
func hint(id etype.ID, kvno uint32, info []wire.EtypeInfo) KeyHint {
	h := KeyHint{Enctype: id, KVNO: kvno}
	for _, i := range info {
		if i.Etype == id {
			h.Salt, h.Params = i.Salt, i.Params
			break
		}
	}
	return h
}

// prove makes the pre-authentication that the KDC offers in method: an encrypted timestamp.
func (x *login) prove(try *attempt, method []wire.PAData) (err *mech.Error) {
	if value, ok := wire.FindPAData(method, wire.PAETypeInfo2); ok {
		if try.info, err = parseKeyInfo(value); err != nil {
			return err
		}
	}
	try.key = nil
	for _, id := range x.etypes {
		if try.info != nil && !slices.ContainsFunc(try.info, func(i wire.EtypeInfo) bool { return i.Etype == id }) {
			continue
		}
		if try.key = x.keys.Key(x.owner(), hint(id, 0, try.info)); try.key != nil {
			break
		}
	}
	if try.key == nil {
		return x.noKeys()
	}
	x.trace("Proving to be %v with a key of type %v", x.client, try.key.Enctype())
	_, offered := wire.FindPAData(method, wire.PAEncTimestamp)
	offered = offered || len(try.padata) > 0 // the same once more, at another time
	if disabled, _ := x.Conf.Get("realms", x.client.Realm, "disable_encrypted_timestamp"); !offered || isTrue(disabled) {
		var offers []string
		for _, p := range method {
			if p.Type != wire.PAFXCookie && p.Type != wire.PAFXError && p.Type != wire.PAETypeInfo2 {
				offers = append(offers, fmt.Sprint(p.Type))
			}
		}
		return mech.Errorf(mech.Failure, wire.MinorNoPreauth, reason.PreauthFailed, ": the KDC asks for pre-authentication that is not supported or not permitted; it offers the types %s", wire.Shown(strings.Join(offers, ", ")))
	}
	now := x.time()
	stamp, e := wire.AppendEncrypted(nil, try.key, wire.UsageEncTimestamp, wire.AppendEncTimestamp(nil, unix(now), int64(now.Nanosecond()/1000)))
	if e != nil {
		return x.noKeys()
	}
	try.padata = []wire.PAData{{Type: wire.PAEncTimestamp, Value: stamp}}
	if cookie, ok := wire.FindPAData(method, wire.PAFXCookie); ok {
		try.padata = append(try.padata, wire.PAData{Type: wire.PAFXCookie, Value: cookie})
	}
	return nil
}

// accept opens and verifies a reply to the request req with the body b, sent at a local time.
func (x *login) accept(rep *wire.KDCRep, try *attempt, b *wire.KDCReqBody, req []byte, sent time.Time) (*krb5.Credential, *mech.Error) {
	if !slices.Contains(x.etypes, rep.Enc.Etype) {
		return nil, mech.Errorf(mech.Failure, wire.MinorConfigEtype, reason.EnctypeNotPermitted, ": the KDC encrypts its reply with %v, which was not asked for", rep.Enc.Etype)
	}
	plain, key, err := x.open(rep, try)
	if err != nil {
		return nil, err
	}
	var p encPart
	if err := p.parse(plain); err != nil {
		return nil, err
	}
	defer p.key.Destroy()
	if p.Flags&wire.FlagEncPARep != 0 {
		if err := checkRequestSum(p.PAData, key, req); err != nil {
			return nil, err
		}
	}
	if err := x.verify(rep, &p, b); err != nil {
		return nil, err
	}
	if x.timesync() {
		for _, realm := range []string{x.client.Realm, p.Server.Realm} { // of which the one may be an alias
			x.setOffset(realm, p.AuthTime, sent)
		}
	} else if skew := time.Unix(int64(p.StartTime), 0).Sub(sent).Abs(); skew > x.clockskew() {
		return nil, mech.Errorf(mech.Failure, wire.MinorReplySkew, reason.ClockSkew, ": the clocks of the KDC and of this host are %v apart", skew.Truncate(time.Second))
	}
	cred := p.credential(rep)
	x.traceTicket(cred)
	return cred, nil
}

// open decrypts the reply with the client's key: the one used already, that of the version the
// reply names, or the newest. It returns the key, too.
func (x *login) open(rep *wire.KDCRep, try *attempt) (plain []byte, key *etype.Key, err *mech.Error) {
	info := try.info
	if value, ok := wire.FindPAData(rep.PAData, wire.PAETypeInfo2); ok {
		if info, err = parseKeyInfo(value); err != nil {
			return nil, nil, err
		}
	}
	h := hint(rep.Enc.Etype, rep.Enc.KVNO, info)
	if h.Salt == nil && len(info) == 0 {
		salt := Salt(rep.Client)
		h.Salt = &salt
	}
	candidates := []func() *etype.Key{
		func() *etype.Key { return try.key },
		func() *etype.Key { return x.keys.Key(x.owner(), h) },
		func() *etype.Key { h.KVNO = 0; return x.keys.Key(x.owner(), h) },
	}
	some := false
	for _, candidate := range candidates {
		if key = candidate(); key == nil || key.Enctype() != rep.Enc.Etype {
			continue
		}
		some = true
		if plain, err := key.Decrypt(nil, wire.UsageASRep, rep.Enc.Cipher); err == nil {
			return plain, key, nil
		}
	}
	if !some {
		return nil, nil, x.noKeys()
	}
	return nil, nil, mech.Errorf(mech.Failure, wire.MinorBadIntegrity, reason.PreauthFailed, ": cannot decrypt AS-REP (client %s, %s)", x.client.Shown(), x.keys.Describe(x.owner()))
}

// checkRequestSum verifies that the KDC saw the request as it was sent (RFC 6806 section 11).
func checkRequestSum(padata []wire.PAData, key *etype.Key, req []byte) *mech.Error {
	value, ok := wire.FindPAData(padata, wire.PAReqEncPARep)
	if !ok {
		return mech.Errorf(mech.Failure, wire.MinorReplyModified, reason.KDCReply, ": the reply has no checksum of the request")
	}
	kind, sum, e := wire.ParseTyped(value)
	if err := malformed("checksum of the request", e); err != nil {
		return err
	}
	if !key.VerifyChecksumType(kind, wire.UsageASReqChecksum, sum, req) {
		return mech.Errorf(mech.Failure, wire.MinorReplyModified, reason.KDCReply, ": the request was changed on its way to the KDC")
	}
	return nil
}

// verify compares the reply with the request. That the client has another name is believed where
// that was asked for and the KDC has seen so: it says in the encrypted part what it has seen (RFC
// 6806 section 11).
func (x *login) verify(rep *wire.KDCRep, p *encPart, b *wire.KDCReqBody) *mech.Error {
	canonical := b.Options&(wire.OptCanonicalize|wire.FlagAnonymous) != 0
	confirmed := p.Flags&wire.FlagEncPARep != 0 || b.Options&wire.FlagAnonymous != 0
	switch {
	case p.Nonce != b.Nonce:
		return mech.Errorf(mech.Failure, wire.MinorReplyModified, reason.KDCReply, ": the nonce is not the request's")
	case !canonical && !rep.Client.Equal(x.client):
		return mech.Errorf(mech.Failure, wire.MinorReplyModified, reason.KDCReply, ": the ticket is for the client %s, expected %s", rep.Client.Shown(), x.client.Shown())
	case !confirmed && !rep.Client.Equal(x.principal):
		return mech.Errorf(mech.Failure, wire.MinorReplyModified, reason.KDCReply, ": the ticket is for the client %s, expected %s: the KDC does not confirm that canonicalize was asked for", rep.Client.Shown(), x.principal.Shown())
	case !p.Server.Equal(rep.Ticket.Server.Principal()):
		return mech.Errorf(mech.Failure, wire.MinorReplyModified, reason.KDCReply, ": ticket and reply name different servers, %s and %s", rep.Ticket.Server.Principal().Shown(), p.Server.Shown())
	case !p.Server.Equal(b.Server) && !(canonical && isTGS(p.Server) && isTGS(b.Server)):
		return mech.Errorf(mech.Failure, wire.MinorReplyModified, reason.KDCReply, ": the ticket is for %s, expected %s", p.Server.Shown(), b.Server.Shown())
	case p.EndTime > b.Till:
		return mech.Errorf(mech.Failure, wire.MinorReplyModified, reason.KDCReply, ": the ticket ends later than asked for")
	case b.RTime != 0 && p.RenewTill > b.RTime,
		b.RTime == 0 && p.Flags&wire.FlagRenewable != 0 && p.RenewTill > b.Till:
		return mech.Errorf(mech.Failure, wire.MinorReplyModified, reason.KDCReply, ": the ticket can be renewed for longer than asked for")
	case len(p.Addresses) > 0:
		return mech.Errorf(mech.Failure, wire.MinorReplyModified, reason.KDCReply, ": the ticket is limited to network addresses, which was not asked for")
	}
	return p.check(x.etypes, b.Options)
}

// check is what holds for the reply to any request: asked are the options of the request and the
// flags of the ticket that came with it.
func (p *encPart) check(etypes []etype.ID, asked uint32) *mech.Error {
	if id := p.key.Enctype(); !slices.Contains(etypes, id) {
		return mech.Errorf(mech.Failure, wire.MinorNoPermEtype, reason.EnctypeNotPermitted, ": the KDC chose a session key of type %v, which was not asked for", id)
	}
	if extra := p.Flags &^ asked & (wire.FlagForwarded | wire.FlagProxy | wire.FlagPostdated | wire.FlagInvalid | wire.FlagAnonymous); extra != 0 {
		return mech.Errorf(mech.Failure, wire.MinorReplyModified, reason.KDCReply, ": the ticket has the flags %#08x, which were not asked for", extra)
	}
	if p.EndTime <= p.StartTime { // a TGT that is over counts for some minutes still, but gets nothing that is not
		return mech.Errorf(mech.Failure, wire.MinorExpired, reason.TicketExpired, ": the KDC issued a ticket that ends before it begins")
	}
	return nil
}
