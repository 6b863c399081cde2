package kdc

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jcmturner/gokrb5/v8/iana/errorcode"

	"gssproxyd/mech/krb5"
	"gssproxyd/mech/krb5/der"
	"gssproxyd/mech/krb5/etype"
	"gssproxyd/mech/krb5/wire"
)

// The KDCs of these tests: they verify every request as strictly as the specifications allow, and
// can get everything wrong that a KDC or somebody in its place can.

// world is some realms with what connects them.
type world struct {
	t     testing.TB
	mu    sync.Mutex
	kdcs  map[string]*fakeKDC
	keys  map[string]*etype.Key // by principal, of both sides of a trust
	types []etype.ID
	now   func() time.Time
	quiet bool // wrong requests are no failures: other KDCs have lied to the client

	// The user of a ticket on its way through realms is in its PAC. Here it is by the ticket's
	// client.
	proxied map[string]krb5.Principal
}

// fakeKDC is one realm's.
type fakeKDC struct {
	*world
	realm     string
	preauth   bool              // AS requests need a timestamp
	referHost map[string]string // unknown host to realm
	via       map[string]string // realm to the next one on the way there
	referUser map[string]string // unknown client to realm
	delegate  map[string]bool   // "service > target" that may be
	oldS4U    bool              // knows PA-FOR-USER only
	noS4U     bool              // passes over S4U padata
	alias     map[string]string // of a client to its own name, where canonicalize is asked for
	confirms  bool              // says what request it has seen (RFC 6806 section 11)

	asked []seenRequest

	// Changes to what is issued: the reply before it is encoded, the plaintext, the whole.
	mutateIssue func(*issue)
	mutatePlain func([]byte) []byte
	mutateReply func([]byte) []byte
}

// seenRequest is a request as the KDC understood it.
type seenRequest struct {
	kind    int
	padata  []paData
	options uint32
	client  krb5.Principal // AS: asked for; TGS: of the ticket
	server  krb5.Principal
	till    uint32
	rtime   uint32
	nonce   uint32
	etypes  []etype.ID
	addrs   int
	tickets [][]byte
	body    []byte
	raw     []byte
	subkey  *etype.Key
	session *etype.Key
	ticket  fakeTicket
}

// fakeTicket is what is in a ticket.
type fakeTicket struct {
	flags    uint32
	key      *etype.Key
	client   krb5.Principal
	authTime uint32
	endTime  uint32
}

// issue is a reply to be.
type issue struct {
	kind                    int
	version, msgType        int64
	client                  krb5.Principal
	server, inside          krb5.Principal // in the ticket, and in the encrypted part
	session                 *etype.Key
	sessionDER              []byte
	nonce                   uint32
	flags                   uint32
	auth, start, end, renew uint32
	addresses               []krb5.Address
	padata, encPadata       []paData
	key                     *etype.Key // the reply's
	encType                 etype.ID   // as named
	usage                   uint32
	partTag                 int
}

func newWorld(t testing.TB, realms ...string) *world {
	w := &world{t: t, kdcs: map[string]*fakeKDC{}, keys: map[string]*etype.Key{}, types: []etype.ID{18, 17, 20, 19, 23}, now: time.Now, proxied: map[string]krb5.Principal{}}
	for _, r := range realms {
		w.kdcs[r] = &fakeKDC{world: w, realm: r, referHost: map[string]string{}, via: map[string]string{}, referUser: map[string]string{}, delegate: map[string]bool{}}
		w.add("krbtgt/"+r+"@"+r, 18)
		w.add("user@"+r, 18)
		w.add("HTTP/www."+strings.ToLower(r)+"@"+r, 18)
	}
	return w
}

func (w *world) add(name string, id etype.ID) *etype.Key {
	k, err := etype.GenerateKey(id)
	check(w.t, err)
	w.keys[name] = k.Prepare(wire.UsageEncTimestamp, wire.UsageASRep)
	return k
}

func (w *world) trust(from, to string) { w.add("krbtgt/"+to+"@"+from, 18) }

// Enctypes, ID and Key make a world the KeySource of all its principals.
func (w *world) Enctypes(client krb5.Principal, among []etype.ID) (list []etype.ID) {
	if k := w.keys[client.String()]; k != nil && slices.Contains(among, k.Enctype()) {
		list = append(list, k.Enctype())
	}
	return list
}

func (w *world) ID(krb5.Principal) []byte { return nil }

func (w *world) Describe(krb5.Principal) string { return "the world's" }

func (w *world) Key(client krb5.Principal, h KeyHint) *etype.Key {
	if k := w.keys[client.String()]; k != nil && k.Enctype() == h.Enctype {
		return k
	}
	return nil
}

// client talks to the world's KDCs, in memory; settings are of [libdefaults].
func (w *world) client(settings ...string) *Client {
	text := "[libdefaults]\n default_realm = A.TEST\n dns_lookup_kdc = false\n forwardable = true\n permitted_enctypes = aes256-cts aes128-cts aes256-sha2 aes128-sha2 rc4-hmac\n " +
		strings.Join(settings, "\n ") + "\n[realms]\n"
	for r := range w.kdcs {
		text += " " + r + " = {\n  kdc = " + strings.ToLower(r) + "\n }\n"
	}
	return &Client{Conf: config(w.t, text), Dial: w.dial, Timeout: time.Minute}
}

func (w *world) dial(_ context.Context, network, address string) (net.Conn, error) {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return nil, err
	}
	k := w.kdcs[strings.ToUpper(host)]
	if k == nil {
		return nil, errors.New("no such host")
	}
	return &memConn{answer: k.answer, stream: network == "tcp"}, nil
}

// memConn is a connection to a function.
type memConn struct {
	net.Conn
	answer func([]byte) []byte
	stream bool
	in     bytes.Buffer
}

func (c *memConn) Write(b []byte) (int, error) {
	req := b
	if c.stream {
		req = b[4:]
	}
	reply := c.answer(bytes.Clone(req))
	if c.stream {
		c.in.Write(binary.BigEndian.AppendUint32(nil, uint32(len(reply))))
	}
	c.in.Write(reply)
	return len(b), nil
}

func (c *memConn) Read(b []byte) (int, error) {
	if c.in.Len() == 0 {
		return 0, io.EOF
	}
	return c.in.Read(b)
}

func (c *memConn) Close() error                    { return nil }
func (c *memConn) SetReadDeadline(time.Time) error { return nil }

// login returns a store with the user's TGT.
func (w *world) login(c *Client, name string) *store {
	w.t.Helper()
	cred, err := c.Login(w.t.Context(), principal(w.t, name), w, LoginOptions{})
	check(w.t, err)
	return &store{[]*krb5.Credential{cred}}
}

// last is the last request a KDC has seen.
func (k *fakeKDC) last() seenRequest { return k.asked[len(k.asked)-1] }

// refusal is an error for the client.
type refusal struct {
	code  int32
	text  string
	data  []byte
	realm string // where the client belongs
}

func (r refusal) Error() string { return fmt.Sprint(r.code, r.text) }

// answer is the KDC.
func (k *fakeKDC) answer(req []byte) []byte {
	k.mu.Lock()
	defer k.mu.Unlock()
	q, err := k.read(req)
	q.raw = req
	var i *issue
	if err == nil {
		k.asked = append(k.asked, q)
		if q.kind == wire.MsgASReq {
			i, err = k.as(&q)
		} else {
			i, err = k.tgs(&q)
		}
	}
	var reply []byte
	if err != nil {
		r, ok := err.(refusal)
		if !ok {
			if !k.quiet {
				k.t.Errorf("KDC of %s: %v", k.realm, err)
			}
			r = refusal{code: errorcode.KRB_ERR_GENERIC, text: err.Error()}
		}
		reply = errorMessage(r, k.realm, q.server, unix(k.now()))
	} else {
		if k.mutateIssue != nil {
			k.mutateIssue(i)
		}
		reply = i.encode(k)
	}
	if k.mutateReply != nil {
		reply = k.mutateReply(reply)
	}
	return reply
}

func errorMessage(r refusal, realm string, server krb5.Principal, now uint32) []byte {
	parts := [][]byte{field(0, integer(5)), field(1, integer(30)), field(4, timestamp(now)), field(5, integer(0)), field(6, integer(int64(r.code)))}
	if r.realm != "" {
		parts = append(parts, field(7, text(r.realm)))
	}
	parts = append(parts, field(9, text(realm)), field(10, name(server)))
	if r.text != "" {
		parts = append(parts, field(11, text(r.text)))
	}
	if r.data != nil {
		parts = append(parts, field(12, octets(r.data)))
	}
	return application(30, sequence(parts...))
}

// read parses a request and, for the TGS, checks who sends it.
func (k *fakeKDC) read(b []byte) (q seenRequest, err error) {
	r := der.NewReader(b)
	q.kind = int(r.Peek()) & 0x1f
	app := r.Enter(der.Application(q.kind))
	seq := r.Enter(der.Sequence)
	if v, m := readInt(&r, 1), readInt(&r, 2); v != 5 || int(m) != q.kind {
		return q, fmt.Errorf("version %d, type %d", v, m)
	}
	if r.Has(3) {
		f := r.Field(3)
		q.padata = readPAData(&r)
		r.Leave(f)
	}
	f := r.Field(4)
	start := r
	q.body = start.Raw()
	in := r.Enter(der.Sequence)
	g := r.Field(0)
	q.options = r.Flags()
	r.Leave(g)
	if r.Has(1) {
		g = r.Field(1)
		q.client = readName(&r)
		r.Leave(g)
	}
	g = r.Field(2)
	realm := string(r.String())
	r.Leave(g)
	q.client.Realm = realm
	g = r.Field(3)
	q.server = readName(&r)
	r.Leave(g)
	q.server.Realm = realm
	readOptionalTime(&r, 4)
	q.till = readTime(&r, 5)
	q.rtime = readOptionalTime(&r, 6)
	g = r.Field(7)
	q.nonce = r.Uint32()
	r.Leave(g)
	g = r.Field(8)
	h := r.Enter(der.Sequence)
	for r.More() {
		q.etypes = append(q.etypes, etype.ID(r.Int32()))
	}
	r.Leave(h)
	r.Leave(g)
	if r.Has(9) {
		g = r.Field(9)
		h := r.Enter(der.Sequence)
		for r.More() {
			readTyped(&r)
			q.addrs++
		}
		r.Leave(h)
		r.Leave(g)
	}
	if r.Has(10) {
		g = r.Field(10)
		readEncrypted(&r)
		r.Leave(g)
	}
	if r.Has(11) {
		g = r.Field(11)
		h := r.Enter(der.Sequence)
		for r.More() {
			q.tickets = append(q.tickets, r.Raw())
		}
		r.Leave(h)
		r.Leave(g)
	}
	r.Leave(in)
	r.Leave(f)
	r.Leave(seq)
	r.Leave(app)
	if r.Err() != nil || r.More() {
		return q, fmt.Errorf("request: %v", r.Err())
	}
	if realm != k.realm && (k.alias == nil || !strings.EqualFold(realm, k.realm)) {
		return q, refusal{code: errorcode.KDC_ERR_WRONG_REALM, text: "realm " + realm}
	}
	if q.kind == wire.MsgTGSReq {
		err = k.authenticate(&q)
	}
	return q, err
}

// open decrypts a ticket of one of the services.
func (w *world) open(b []byte, servers ...string) (t fakeTicket, server krb5.Principal, err error) {
	r := der.NewReader(b)
	app := r.Enter(der.Application(1))
	seq := r.Enter(der.Sequence)
	readInt(&r, 0)
	server = readRealmAndName(&r, 1)
	f := r.Field(3)
	enc := readEncrypted(&r)
	r.Leave(f)
	r.Leave(seq)
	r.Leave(app)
	key := w.keys[server.String()]
	if r.Err() != nil || key == nil || len(servers) > 0 && !slices.Contains(servers, server.String()) {
		return t, server, refusal{code: errorcode.KRB_AP_ERR_BAD_INTEGRITY, text: "ticket for " + server.String()}
	}
	plain, e := enc.open(key, 2)
	if e != nil {
		return t, server, refusal{code: errorcode.KRB_AP_ERR_BAD_INTEGRITY, text: "ticket"}
	}
	r = der.NewReader(plain)
	r.Enter(der.Application(3))
	r.Enter(der.Sequence)
	f = r.Field(0)
	t.flags = r.Flags()
	r.Leave(f)
	f = r.Field(1)
	kind, raw := readTyped(&r)
	r.Leave(f)
	t.client = readRealmAndName(&r, 2)
	f = r.Field(4)
	readTyped(&r)
	r.Leave(f)
	t.authTime = readTime(&r, 5)
	readOptionalTime(&r, 6)
	t.endTime = readTime(&r, 7)
	if r.Err() != nil {
		return t, server, r.Err()
	}
	t.key, err = etype.NewKey(etype.ID(kind), raw)
	return t, server, err
}

func (k *fakeKDC) authenticate(q *seenRequest) (err error) {
	value, ok := find(q.padata[:1], wire.PATGSReq)
	if !ok {
		return errors.New("the first padata is not PA-TGS-REQ")
	}
	r := der.NewReader(value)
	r.Enter(der.Application(14))
	r.Enter(der.Sequence)
	readInt(&r, 0)
	readInt(&r, 1)
	f := r.Field(2)
	r.Flags()
	r.Leave(f)
	f = r.Field(3)
	ticket := r.Raw()
	r.Leave(f)
	f = r.Field(4)
	enc := readEncrypted(&r)
	r.Leave(f)
	if r.Err() != nil {
		return r.Err()
	}
	var server krb5.Principal
	if q.ticket, server, err = k.open(ticket); err != nil {
		return err
	}
	if !isTGS(server) && q.options&wire.OptRenew == 0 || isTGS(server) && server.Components[1] != k.realm {
		return refusal{code: 35, text: "ticket for " + server.String()}
	}
	q.session = q.ticket.key
	plain, err := enc.open(q.session, wire.UsageTGSReqAuth)
	if err != nil {
		return fmt.Errorf("authenticator: %w", err)
	}
	r = der.NewReader(plain)
	r.Enter(der.Application(2))
	r.Enter(der.Sequence)
	readInt(&r, 0)
	if who := readRealmAndName(&r, 1); !who.Equal(q.ticket.client) {
		return refusal{code: 36, text: "authenticator of " + who.String()}
	}
	f = r.Field(3)
	kind, sum := readTyped(&r)
	r.Leave(f)
	readInt(&r, 4)
	now := readTime(&r, 5)
	f = r.Field(6)
	keyType, raw := readTyped(&r)
	r.Leave(f)
	if r.Err() != nil || !q.session.VerifyChecksumType(kind, wire.UsageTGSReqChecksum, sum, q.body) {
		return fmt.Errorf("authenticator's checksum: %v", r.Err())
	}
	if d := int64(now) - k.now().Unix(); d > 300 || d < -300 {
		return refusal{code: errorcode.KRB_AP_ERR_SKEW}
	}
	if q.ticket.endTime+300 < unix(k.now()) {
		return refusal{code: errorcode.KRB_AP_ERR_TKT_EXPIRED}
	}
	q.subkey, err = etype.NewKey(etype.ID(keyType), raw)
	q.client = q.ticket.client
	return err
}

// sessionKey makes one of the first type of the list the world knows.
func (k *fakeKDC) sessionKey(q *seenRequest) (*etype.Key, error) {
	for _, id := range q.etypes {
		if slices.Contains(k.types, id) {
			return etype.GenerateKey(id)
		}
	}
	return nil, refusal{code: errorcode.KDC_ERR_ETYPE_NOSUPP}
}

func (k *fakeKDC) issue(q *seenRequest, client, server krb5.Principal) (*issue, error) {
	session, err := k.sessionKey(q)
	if err != nil {
		return nil, err
	}
	now := unix(k.now())
	i := &issue{kind: q.kind + 1, version: 5, msgType: int64(q.kind + 1), client: client, server: server, inside: server, session: session, sessionDER: keyDER(session),
		nonce: q.nonce, auth: now, start: now, end: q.till, flags: q.options & inherited, partTag: 25}
	if q.options&wire.FlagRenewable != 0 {
		i.renew = q.rtime
	}
	if q.kind == wire.MsgTGSReq {
		i.auth, i.end, i.flags = q.ticket.authTime, min(q.till, q.ticket.endTime), q.options&(inherited|wire.FlagForwarded)|q.ticket.flags&wire.FlagForwarded
		i.key, i.usage, i.partTag = q.subkey, wire.UsageTGSRepSubkey, 26
	}
	return i, nil
}

func (k *fakeKDC) as(q *seenRequest) (*issue, error) {
	client := q.client
	key := k.keys[client.String()]
	if key == nil {
		r := refusal{code: errorcode.KDC_ERR_C_PRINCIPAL_UNKNOWN, text: "CLIENT_NOT_FOUND"}
		if to := k.referUser[client.Local()]; to != "" {
			r = refusal{code: errorcode.KDC_ERR_WRONG_REALM, realm: to}
		}
		return nil, r
	}
	if k.keys[q.server.String()] == nil {
		return nil, refusal{code: errorcode.KDC_ERR_S_PRINCIPAL_UNKNOWN, text: "SERVER_NOT_FOUND"}
	}
	if k.preauth {
		value, ok := find(q.padata, wire.PAEncTimestamp)
		if !ok {
			return nil, refusal{code: errorcode.KDC_ERR_PREAUTH_REQUIRED, data: k.method(key)}
		}
		r := der.NewReader(value)
		enc := readEncrypted(&r)
		plain, err := enc.open(key, wire.UsageEncTimestamp)
		if err != nil {
			return nil, refusal{code: errorcode.KDC_ERR_PREAUTH_FAILED, text: "PREAUTH_FAILED"}
		}
		r = der.NewReader(plain)
		r.Enter(der.Sequence)
		if d := int64(readTime(&r, 0)) - k.now().Unix(); d > 300 || d < -300 {
			return nil, refusal{code: errorcode.KRB_AP_ERR_SKEW, text: "CLOCK_SKEW"}
		}
	}
	server := q.server
	if own := k.alias[client.String()]; own != "" && q.options&wire.OptCanonicalize != 0 {
		client = principal(k.t, own)
		server = TGS(client.Realm, client.Realm)
	}
	i, err := k.issue(q, client, server)
	if err != nil {
		return nil, err
	}
	i.key, i.usage = key, wire.UsageASRep
	if _, asked := find(q.padata, wire.PAReqEncPARep); asked && k.confirms {
		i.flags |= wire.FlagEncPARep
		i.encPadata = []paData{{wire.PAReqEncPARep, checksum(key, wire.UsageASReqChecksum, q.raw)}}
	}
	return i, nil
}

// method offers a timestamp.
func (k *fakeKDC) method(key *etype.Key) []byte {
	return paDataList([]paData{{wire.PAFXCookie, []byte("MIT")}, {wire.PAETypeInfo2, sequence(sequence(field(0, integer(int64(key.Enctype())))))}, {wire.PAEncTimestamp, nil}})
}

func (k *fakeKDC) tgs(q *seenRequest) (*issue, error) {
	if q.options&wire.FlagForwarded != 0 && q.ticket.flags&wire.FlagForwardable == 0 {
		return nil, refusal{code: errorcode.KDC_ERR_BADOPTION, text: "TICKET NOT FORWARDABLE"}
	}
	client, server := q.ticket.client, q.server
	if q.server.Type == krb5.NTEnterprise { // "svc/host@REALM" in another realm
		at := strings.LastIndexByte(server.Components[0], '@')
		own := krb5.Principal{Realm: server.Components[0][at+1:], Components: strings.Split(server.Components[0][:at], "/"), Type: krb5.NTPrincipal}
		if own.Realm != k.realm {
			server = TGS(own.Realm, k.realm)
		} else {
			server = own
		}
	}
	// An unknown server may be known elsewhere.
	if k.keys[server.String()] == nil {
		to := ""
		switch {
		case isTGS(server):
			to = k.via[server.Components[1]]
		case len(server.Components) == 2 && q.options&wire.OptCanonicalize != 0:
			to = k.referHost[server.Components[1]]
		}
		if to == "" || k.keys[TGS(to, k.realm).String()] == nil {
			return nil, refusal{code: errorcode.KDC_ERR_S_PRINCIPAL_UNKNOWN, text: "LOOKING_UP_SERVER"}
		}
		server = TGS(to, k.realm)
	}
	var padata, encPadata []paData
	var err error
	if !k.noS4U {
		_, forUser := find(q.padata, wire.PAForUser)
		_, x509 := find(q.padata, wire.PAS4UX509User)
		if forUser || x509 {
			if client, padata, encPadata, err = k.s4uSelf(q, server); err != nil {
				return nil, err
			}
		}
		if q.options&wire.OptCnameInAddlTkt != 0 {
			if client, encPadata, err = k.s4uProxy(q, server); err != nil {
				return nil, err
			}
		}
	}
	i, err := k.issue(q, client, server)
	if err != nil {
		return nil, err
	}
	if isTGS(server) && q.options&wire.OptCnameInAddlTkt != 0 {
		i.client = q.ticket.client // the user is in the PAC
	}
	i.padata, i.encPadata = padata, encPadata
	return i, nil
}

// s4uSelf verifies what MS-SFU sections 2.2.1 and 2.2.2 say of the padata.
func (k *fakeKDC) s4uSelf(q *seenRequest, server krb5.Principal) (user krb5.Principal, padata, encPadata []paData, err error) {
	if len(q.padata) < 2 || q.padata[1].kind != wire.PAS4UX509User {
		return user, nil, nil, errors.New("PA-S4U-X509-USER is not the second padata")
	}
	x, id, err := readS4UX509User(q.padata[1].value)
	if err != nil {
		return user, nil, nil, fmt.Errorf("PA-S4U-X509-USER: %w", err)
	}
	user = id.principal()
	sum := x.Sum.Value
	good := q.subkey.VerifyChecksumType(x.Sum.Type, 26, sum, x.ID.Bytes)
	if q.subkey.Enctype() == etype.RC4 {
		good = x.Sum.Type == 2 && bytes.Equal(sum, md4Of(x.ID.Bytes))
	}
	if uint32(id.Nonce) != q.nonce || !bytes.Equal(id.Options.Bytes, []byte{0x20, 0, 0, 0}) || !good {
		return user, nil, nil, fmt.Errorf("PA-S4U-X509-USER: nonce %d of %d, options %x, checksum %v", id.Nonce, q.nonce, id.Options.Bytes, good)
	}
	if len(q.padata) > 2 {
		if q.padata[2].kind != 129 {
			return user, nil, nil, errors.New("PA-FOR-USER is not the third padata")
		}
		if err := checkForUser(q.padata[2].value, user, q.session); err != nil {
			return user, nil, nil, fmt.Errorf("PA-FOR-USER: %w", err)
		}
	}
	if user.Realm == k.realm {
		if user.Type == krb5.NTEnterprise {
			local, _, _ := strings.Cut(user.Components[0], "@")
			user = krb5.Principal{Realm: k.realm, Components: []string{local}, Type: krb5.NTPrincipal}
		}
		if k.keys[user.String()] == nil {
			return user, nil, nil, refusal{code: errorcode.KDC_ERR_C_PRINCIPAL_UNKNOWN}
		}
	}
	if !k.oldS4U {
		id := newS4UUserID(q.nonce, user).encode()
		kind, repSum := q.subkey.Enctype().ChecksumType(), q.subkey.AppendChecksum(nil, 27, id)
		if q.subkey.Enctype() == etype.RC4 {
			kind, repSum = 2, md4Of(id)
			encPadata = []paData{{130, append(bytes.Clone(sum), repSum...)}}
		}
		padata = []paData{{130, encodeS4UX509User(id, kind, repSum)}}
	}
	if isTGS(server) {
		user = q.ticket.client // on its way back the ticket is the service's
	}
	return user, padata, encPadata, nil
}

// s4uProxy looks at the evidence.
func (k *fakeKDC) s4uProxy(q *seenRequest, server krb5.Principal) (user krb5.Principal, encPadata []paData, err error) {
	value, ok := find(q.padata, wire.PAPACOptions)
	if !ok || !bytes.Equal(value, []byte{0x30, 9, 0xa0, 7, 3, 5, 0, 0x10, 0, 0, 0}) || len(q.tickets) != 1 || q.options&wire.OptCanonicalize == 0 {
		return user, nil, fmt.Errorf("S4U2Proxy: PA-PAC-OPTIONS %x, %d tickets, options %#x", value, len(q.tickets), q.options)
	}
	evidence, of, err := k.open(q.tickets[0])
	if err != nil {
		return user, nil, err
	}
	if isTGS(of) { // from another realm; the user would be in its PAC
		user = k.proxied[evidence.client.String()]
	} else if user = evidence.client; !of.Equal(q.ticket.client) {
		return user, nil, refusal{code: errorcode.KDC_ERR_BADOPTION, text: "evidence for " + of.String()}
	}
	if !k.delegate[q.ticket.client.String()+" > "+q.server.Local()] {
		return user, nil, refusal{code: errorcode.KDC_ERR_BADOPTION, text: "NOT_ALLOWED_TO_DELEGATE"}
	}
	if isTGS(server) {
		k.proxied[q.ticket.client.String()] = user
	}
	return user, []paData{{wire.PAPACOptions, value}}, nil
}

// encode makes ticket and reply.
func (i *issue) encode(k *fakeKDC) []byte {
	ticketKey := k.keys[i.server.String()]
	if ticketKey == nil {
		ticketKey = k.keys[TGS(k.realm, k.realm).String()] // of a changed name: anything will do
	}
	inTicket := application(3, sequence(field(0, flags(i.flags)), field(1, keyDER(i.session)), field(2, text(i.client.Realm)), field(3, name(i.client)),
		field(4, typed(1, nil)), field(5, timestamp(i.auth)), field(6, timestamp(i.start)), field(7, timestamp(i.end))))
	ticket := application(1, sequence(field(0, integer(5)), field(1, text(i.server.Realm)), field(2, name(i.server)), field(3, seal(ticketKey, 2, inTicket))))
	parts := [][]byte{field(0, i.sessionDER), field(1, sequence()), field(2, integer(int64(i.nonce))), field(4, flags(i.flags)), field(5, timestamp(i.auth)),
		optional(6, i.start), field(7, timestamp(i.end)), optional(8, i.renew), field(9, text(i.inside.Realm)), field(10, name(i.inside))}
	if i.addresses != nil {
		var list [][]byte
		for _, a := range i.addresses {
			list = append(list, typed(a.Type, a.Data))
		}
		parts = append(parts, field(11, sequence(list...)))
	}
	if i.encPadata != nil {
		parts = append(parts, field(12, paDataList(i.encPadata)))
	}
	plain := application(i.partTag, sequence(parts...))
	if k.mutatePlain != nil {
		plain = k.mutatePlain(plain)
	}
	cipher, err := i.key.Encrypt(nil, i.usage, plain)
	check(k.t, err)
	if i.encType == 0 {
		i.encType = i.key.Enctype()
	}
	parts = [][]byte{field(0, integer(i.version)), field(1, integer(i.msgType))}
	if i.padata != nil {
		parts = append(parts, field(2, paDataList(i.padata)))
	}
	return application(i.kind, sequence(append(parts, field(3, text(i.client.Realm)), field(4, name(i.client)), field(5, ticket),
		field(6, sequence(field(0, integer(int64(i.encType))), field(2, octets(cipher)))))...))
}
