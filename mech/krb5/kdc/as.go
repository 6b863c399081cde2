package kdc

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"gssproxyd/mech"
	"gssproxyd/mech/krb5"
	"gssproxyd/mech/krb5/der"
	"gssproxyd/mech/krb5/etype"
	"gssproxyd/mech/krb5/wire"
	"gssproxyd/mech/reason"
)

// LoginOptions are what may be asked of an AS exchange. The zero value asks for what krb5.conf says.
type LoginOptions struct {
	// Server is the service to get a ticket for, in whatever realm the client turns out to be in;
	// zero is the realm's TGS. Nothing sets it yet: changing a key at the KDC takes a ticket for
	// kadmin/admin or kadmin/changepw that comes straight from the AS.
	Server krb5.Principal
	// Options are asked for besides those krb5.conf has on (forwardable, proxiable, canonicalize).
	Options uint32
}

const (
	maxTries = 16 // requests to one realm, as MIT krb5's
	maxHops  = 10 // realms that may refer a request on, as MIT krb5's
	asUsual  = 2  // requests: the KDC asks for pre-authentication, and gets it
)

// Login gets a ticket with the client's own key: the AS exchange. The client may be an enterprise name; then, and
// with wire.OptCanonicalize, the KDC may name another realm to ask, and another name for the client.
//
// A KDC that is not among the realm's primary ones may not have heard of a change yet: when it refuses, the primary
// ones have the last word, as with MIT krb5.
//
// What was refused is not tried again at once with the same keys, and by one caller at a time. None of them has to wait
// for another one's turn.
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

// Canonicalizes reports whether the ticket that [Client.Login] gets may be of the client under another name: where
// krb5.conf has canonicalize, and for an enterprise name.
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

// replica reports whether an answer came from a KDC that is not among the primary ones of its realm, where those are
// known.
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
	padata []paData // pre-authentication
	info   []keyInfo
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
		encoded := b.encode()
		padata := append(slices.Clone(try.padata), paData{kind: wire.PAReqEncPARep})
		req := request(wire.MsgASReq, padata, encoded)
		reply, err := x.send(ctx, req)
		if err != nil {
			return nil, "", err
		}
		if !isError(reply) {
			var rep kdcRep
			if err := rep.parse(wire.MsgASRep, reply); err != nil {
				return nil, "", err
			}
			if x.identify {
				return nil, "", nil
			}
			cred, err := x.accept(&rep, &try, &b, req, sent)
			return cred, "", err
		}
		var k krbError
		if err := k.parse(reply); err != nil {
			return nil, "", err
		}
		method := parsePAData(k.data)
		switch {
		case x.identify && (k.minor() == wire.MinorPreauthRequired || k.minor() == wire.MinorKeyExpired):
			return nil, "", nil
		case x.options&wire.OptCanonicalize != 0 && (k.minor() == wire.MinorWrongRealm || k.minor() == wire.MinorClientUnknown) &&
			k.client.Realm != "" && k.client.Realm != x.client.Realm:
			return nil, k.client.Realm, nil
		case k.minor() == wire.MinorPreauthRequired:
			x.adjust(k.stime)
			if err := x.prove(&try, method); err != nil {
				return nil, "", err
			}
		case k.minor() == wire.MinorPreauthExpired:
			try.padata = nil
		case k.minor() == wire.MinorSkew && !x.shifted && x.timesync():
			x.adjust(k.stime)
			if try.padata != nil {
				if err := x.prove(&try, method); err != nil {
					return nil, "", err
				}
			}
		default:
			return nil, "", x.refused(&k, server)
		}
	}
	return nil, "", mech.Errorf(mech.Failure, wire.MinorLoop, reason.KDCReply, "")
}

// refused is the error of a KRB-ERROR.
func (x *login) refused(k *krbError, server krb5.Principal) *mech.Error {
	with := typesAsked(k.minor(), x.etypes)
	if !x.identify {
		with = append(with, x.keys.Describe(x.owner()))
	}
	return k.refused(x.client.Realm, x.client, server, with...)
}

// owner is whose keys are used: those under the name asked for. Without any it is the client as the realm under way knows
// it; that realm may be any that somebody on the way has made up, so it does not come first.
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

// adjust notes the realm's time as an error tells it. If nobody protects the error, the worst somebody can do is to
// make us send a timestamp of another time.
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
	return mech.Errorf(mech.Failure, wire.MinorNotInKeytab, reason.NoKey, "Keytab contains no suitable keys for %s (%s, asked for %s)", wire.Shown(x.client.String()), x.keys.Describe(x.owner()), strings.Trim(fmt.Sprint(x.etypes), "[]"))
}

// body makes a request body with a fresh nonce and the present time.
func (x *login) body(server krb5.Principal) body {
	b := body{options: x.options, client: &x.client, realm: x.client.Realm, server: server, nonce: nonce(), etypes: x.etypes}
	now := x.time()
	if x.identify {
		b.till = unix(now.Add(15 * time.Second))
		return b
	}
	b.till = unix(now.Add(x.duration("ticket_lifetime", 24*time.Hour)))
	if renew := x.duration("renew_lifetime", 0); renew > 0 {
		b.options |= wire.FlagRenewable
		b.rtime = max(b.till, unix(now.Add(renew)))
	} else {
		b.options |= wire.OptRenewableOK
	}
	return b
}

// keyInfo is an entry of ETYPE-INFO2.
type keyInfo struct {
	etype  etype.ID
	salt   *string
	params []byte
}

// parseKeyInfo reads ETYPE-INFO2 (RFC 4120 section 5.2.7.5).
func parseKeyInfo(b []byte) (list []keyInfo, err *mech.Error) {
	list = []keyInfo{} // an empty list is not the same as none
	r := der.NewReader(b)
	outer := r.Enter(der.Sequence)
	for r.More() {
		var i keyInfo
		seq := r.Enter(der.Sequence)
		i.etype = etype.ID(readInt(&r, 0))
		if r.Has(1) {
			f := r.Field(1)
			s := string(r.String())
			i.salt = &s
			r.Leave(f)
		}
		if r.Has(2) {
			f := r.Field(2)
			i.params = append([]byte{}, r.Octets()...)
			r.Leave(f)
		}
		r.LeaveOpen(seq)
		list = append(list, i)
	}
	r.Leave(outer)
	return list, malformed("PA-ETYPE-INFO2", &r)
}

// hint describes the key of a type.
func hint(id etype.ID, kvno uint32, info []keyInfo) KeyHint {
	h := KeyHint{Enctype: id, KVNO: kvno}
	for _, i := range info {
		if i.etype == id {
			h.Salt, h.Params = i.salt, i.params
			break
		}
	}
	return h
}

// prove makes the pre-authentication that the KDC offers in method: an encrypted timestamp.
func (x *login) prove(try *attempt, method []paData) (err *mech.Error) {
	if value, ok := find(method, wire.PAETypeInfo2); ok {
		if try.info, err = parseKeyInfo(value); err != nil {
			return err
		}
	}
	try.key = nil
	for _, id := range x.etypes {
		if try.info != nil && !slices.ContainsFunc(try.info, func(i keyInfo) bool { return i.etype == id }) {
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
	_, offered := find(method, wire.PAEncTimestamp)
	offered = offered || len(try.padata) > 0 // the same once more, at another time
	if disabled, _ := x.realmSetting("disable_encrypted_timestamp"); !offered || isTrue(disabled) {
		var offers []string
		for _, p := range method {
			if p.kind != wire.PAFXCookie && p.kind != wire.PAFXError && p.kind != wire.PAETypeInfo2 {
				offers = append(offers, fmt.Sprint(p.kind))
			}
		}
		return mech.Errorf(mech.Failure, wire.MinorNoPreauth, reason.PreauthFailed, ": the KDC asks for pre-authentication that is not supported or not permitted; it offers the types %s", wire.Shown(strings.Join(offers, ", ")))
	}
	now := x.time()
	try.padata = []paData{{wire.PAEncTimestamp, seal(try.key, wire.UsageEncTimestamp, encTimestamp(unix(now), int64(now.Nanosecond()/1000)))}}
	if cookie, ok := find(method, wire.PAFXCookie); ok {
		try.padata = append(try.padata, paData{wire.PAFXCookie, cookie})
	}
	return nil
}

func (x *login) realmSetting(key string) (string, bool) {
	if x.Conf == nil {
		return "", false
	}
	return x.Conf.Get("realms", x.client.Realm, key)
}

// accept opens and verifies a reply to the request req with the body b, sent at a local time.
func (x *login) accept(rep *kdcRep, try *attempt, b *body, req []byte, sent time.Time) (*krb5.Credential, *mech.Error) {
	if !slices.Contains(x.etypes, rep.enc.etype) {
		return nil, mech.Errorf(mech.Failure, wire.MinorConfigEtype, reason.EnctypeNotPermitted, ": the KDC encrypts its reply with %v, which was not asked for", rep.enc.etype)
	}
	plain, key, err := x.open(rep, try)
	if err != nil {
		return nil, err
	}
	var p encPart
	err = p.parse(plain)
	clear(plain)
	if err != nil {
		return nil, err
	}
	defer p.key.Destroy()
	if p.flags&wire.FlagEncPARep != 0 {
		if err := checkRequestSum(p.padata, key, req); err != nil {
			return nil, err
		}
	}
	if err := x.verify(rep, &p, b); err != nil {
		return nil, err
	}
	if x.timesync() {
		for _, realm := range []string{x.client.Realm, p.server.Realm} { // of which the one may be an alias
			x.setOffset(realm, p.authTime, sent)
		}
	} else if skew := time.Unix(int64(p.startTime), 0).Sub(sent).Abs(); skew > x.clockskew() {
		return nil, mech.Errorf(mech.Failure, wire.MinorReplySkew, reason.ClockSkew, ": the clocks of the KDC and of this host are %v apart", skew.Truncate(time.Second))
	}
	cred := p.credential(rep)
	x.traceTicket(cred)
	return cred, nil
}

// open decrypts the reply with the client's key: the one used already, that of the version the reply names, or the
// newest. It returns the key, too.
func (x *login) open(rep *kdcRep, try *attempt) (plain []byte, key *etype.Key, err *mech.Error) {
	info := try.info
	if value, ok := find(rep.padata, wire.PAETypeInfo2); ok {
		if info, err = parseKeyInfo(value); err != nil {
			return nil, nil, err
		}
	}
	h := hint(rep.enc.etype, rep.enc.kvno, info)
	if h.Salt == nil && len(info) == 0 {
		salt := Salt(rep.client)
		h.Salt = &salt
	}
	candidates := []func() *etype.Key{
		func() *etype.Key { return try.key },
		func() *etype.Key { return x.keys.Key(x.owner(), h) },
		func() *etype.Key { h.KVNO = 0; return x.keys.Key(x.owner(), h) },
	}
	some := false
	for _, candidate := range candidates {
		if key = candidate(); key == nil || key.Enctype() != rep.enc.etype {
			continue
		}
		some = true
		if plain, err := key.Decrypt(nil, wire.UsageASRep, rep.enc.cipher); err == nil {
			return plain, key, nil
		}
	}
	if !some {
		return nil, nil, x.noKeys()
	}
	return nil, nil, mech.Errorf(mech.Failure, wire.MinorBadIntegrity, reason.PreauthFailed, ": cannot decrypt AS-REP (client %s, %s)", wire.Shown(x.client.String()), x.keys.Describe(x.owner()))
}

// checkRequestSum verifies that the KDC saw the request as it was sent (RFC 6806 section 11).
func checkRequestSum(padata []paData, key *etype.Key, req []byte) *mech.Error {
	value, ok := find(padata, wire.PAReqEncPARep)
	if !ok {
		return mech.Errorf(mech.Failure, wire.MinorReplyModified, reason.KDCReply, ": the reply has no checksum of the request")
	}
	r := der.NewReader(value)
	kind, sum := readTyped(&r)
	if err := malformed("checksum of the request", &r); err != nil {
		return err
	}
	if !key.VerifyChecksumType(kind, wire.UsageASReqChecksum, sum, req) {
		return mech.Errorf(mech.Failure, wire.MinorReplyModified, reason.KDCReply, ": the request was changed on its way to the KDC")
	}
	return nil
}

// verify compares the reply with the request. That the client has another name is believed where that was asked for and the
// KDC has seen so: it says in the encrypted part what it has seen (RFC 6806 section 11).
func (x *login) verify(rep *kdcRep, p *encPart, b *body) *mech.Error {
	canonical := b.options&(wire.OptCanonicalize|wire.FlagAnonymous) != 0
	confirmed := p.flags&wire.FlagEncPARep != 0 || b.options&wire.FlagAnonymous != 0
	switch {
	case p.nonce != b.nonce:
		return mech.Errorf(mech.Failure, wire.MinorReplyModified, reason.KDCReply, ": the nonce is not the request's")
	case !canonical && !rep.client.Equal(x.client):
		return mech.Errorf(mech.Failure, wire.MinorReplyModified, reason.KDCReply, ": the ticket is for the client %s, expected %s", wire.Shown(rep.client.String()), wire.Shown(x.client.String()))
	case !confirmed && !rep.client.Equal(x.principal):
		return mech.Errorf(mech.Failure, wire.MinorReplyModified, reason.KDCReply, ": the ticket is for the client %s, expected %s: the KDC does not confirm that canonicalize was asked for", wire.Shown(rep.client.String()), wire.Shown(x.principal.String()))
	case !p.server.Equal(rep.ticket.server):
		return mech.Errorf(mech.Failure, wire.MinorReplyModified, reason.KDCReply, ": ticket and reply name different servers, %s and %s", wire.Shown(rep.ticket.server.String()), wire.Shown(p.server.String()))
	case !p.server.Equal(b.server) && !(canonical && isTGS(p.server) && isTGS(b.server)):
		return mech.Errorf(mech.Failure, wire.MinorReplyModified, reason.KDCReply, ": the ticket is for %s, expected %s", wire.Shown(p.server.String()), wire.Shown(b.server.String()))
	case p.endTime > b.till:
		return mech.Errorf(mech.Failure, wire.MinorReplyModified, reason.KDCReply, ": the ticket ends later than asked for")
	case b.rtime != 0 && p.renewTill > b.rtime,
		b.rtime == 0 && p.flags&wire.FlagRenewable != 0 && p.renewTill > b.till:
		return mech.Errorf(mech.Failure, wire.MinorReplyModified, reason.KDCReply, ": the ticket can be renewed for longer than asked for")
	case len(p.addresses) > 0:
		return mech.Errorf(mech.Failure, wire.MinorReplyModified, reason.KDCReply, ": the ticket is limited to network addresses, which was not asked for")
	}
	return p.check(x.etypes, b.options)
}

// check is what holds for the reply to any request: asked are the options of the request and the flags of the
// ticket that came with it.
func (p *encPart) check(etypes []etype.ID, asked uint32) *mech.Error {
	if id := p.key.Enctype(); !slices.Contains(etypes, id) {
		return mech.Errorf(mech.Failure, wire.MinorNoPermEtype, reason.EnctypeNotPermitted, ": the KDC chose a session key of type %v, which was not asked for", id)
	}
	if extra := p.flags &^ asked & (wire.FlagForwarded | wire.FlagProxy | wire.FlagPostdated | wire.FlagInvalid | wire.FlagAnonymous); extra != 0 {
		return mech.Errorf(mech.Failure, wire.MinorReplyModified, reason.KDCReply, ": the ticket has the flags %#08x, which were not asked for", extra)
	}
	if p.endTime <= p.startTime { // a TGT that is over counts for some minutes still, but gets nothing that is not
		return mech.Errorf(mech.Failure, wire.MinorExpired, reason.TicketExpired, ": the KDC issued a ticket that ends before it begins")
	}
	return nil
}

// credential makes a credential of a verified reply.
func (p *encPart) credential(rep *kdcRep) *krb5.Credential {
	return &krb5.Credential{
		Client: rep.client, Server: p.server,
		KeyType: p.key.Enctype(), Key: slices.Clone(p.key.Secret()),
		AuthTime: p.authTime, StartTime: p.startTime, EndTime: p.endTime, RenewTill: p.renewTill,
		Flags: p.flags, Addresses: p.addresses, Ticket: rep.ticket.raw,
	}
}

// encTimestamp returns a PA-ENC-TS-ENC (RFC 4120 section 5.2.7.2).
func encTimestamp(now uint32, usec int64) []byte {
	return sequence(field(0, timestamp(now)), field(1, integer(usec)))
}
