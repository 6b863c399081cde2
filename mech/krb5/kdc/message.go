package kdc

import (
	"gssproxyd/mech"
	"gssproxyd/mech/krb5"
	"gssproxyd/mech/krb5/der"
	"gssproxyd/mech/krb5/etype"
	"gssproxyd/mech/krb5/wire"
	"gssproxyd/mech/reason"
)

// The messages between client and KDC (RFC 4120 section 5.4). Writing builds trees of slices: requests are few, and
// the code is to look like the ASN.1. Reading goes through a der.Reader and copies what it keeps. As MIT krb5 does,
// fields after the last known one are passed over, so that later versions of the protocol can extend a message.

func tlv(tag der.Tag, parts ...[]byte) []byte {
	n := 0
	for _, p := range parts {
		n += len(p)
	}
	b := der.AppendHeader(make([]byte, 0, n+6), tag, n)
	for _, p := range parts {
		b = append(b, p...)
	}
	return b
}

func sequence(parts ...[]byte) []byte    { return tlv(der.Sequence, parts...) }
func application(n int, b []byte) []byte { return tlv(der.Application(n), b) }
func field(n int, b []byte) []byte       { return tlv(der.Context(n), b) }
func integer(v int64) []byte             { return der.AppendInt(nil, v) }
func octets(b []byte) []byte             { return der.AppendOctets(nil, b) }
func text(s string) []byte               { return der.AppendString(nil, s) }
func timestamp(t uint32) []byte          { return der.AppendTime(nil, t) }
func flags(f uint32) []byte              { return der.AppendFlags(nil, f) }
func typed(kind int32, b []byte) []byte {
	return sequence(field(0, integer(int64(kind))), field(1, octets(b)))
}
func keyDER(k *etype.Key) []byte { return typed(int32(k.Enctype()), k.Secret()) }
func optional(n int, t uint32) []byte {
	if t == 0 {
		return nil
	}
	return field(n, timestamp(t))
}

func name(p krb5.Principal) []byte {
	var comps [][]byte
	for _, c := range p.Components {
		comps = append(comps, text(c))
	}
	return sequence(field(0, integer(int64(p.Type))), field(1, sequence(comps...)))
}

// seal returns an EncryptedData without a key version.
func seal(k *etype.Key, usage uint32, plain []byte) []byte {
	// The one error is to have no key, which the callers have seen to; the KDC refuses what then comes out.
	cipher, _ := k.Encrypt(nil, usage, plain)
	return sequence(field(0, integer(int64(k.Enctype()))), field(2, octets(cipher)))
}

// checksum returns a Checksum of the key's mandatory type.
func checksum(k *etype.Key, usage uint32, msg []byte) []byte {
	return typed(k.Enctype().ChecksumType(), k.AppendChecksum(nil, usage, msg))
}

// paData is a PA-DATA.
type paData struct {
	kind  int32
	value []byte
}

func paDataList(list []paData) []byte {
	var parts [][]byte
	for _, p := range list {
		parts = append(parts, sequence(field(1, integer(int64(p.kind))), field(2, octets(p.value))))
	}
	return sequence(parts...)
}

// find returns the first element of a type.
func find(list []paData, kind int32) (value []byte, ok bool) {
	for _, p := range list {
		if p.kind == kind {
			return p.value, true
		}
	}
	return nil, false
}

// body is a KDC-REQ-BODY to be.
type body struct {
	options     uint32
	client      *krb5.Principal // in AS requests only
	realm       string
	server      krb5.Principal
	till, rtime uint32
	nonce       uint32
	etypes      []etype.ID
	addresses   []krb5.Address
	tickets     [][]byte
}

func (b *body) encode() []byte {
	parts := [][]byte{field(0, flags(b.options))}
	add := func(n int, v []byte) { parts = append(parts, field(n, v)) }
	if b.client != nil {
		add(1, name(*b.client))
	}
	add(2, text(b.realm))
	add(3, name(b.server))
	add(5, timestamp(b.till))
	parts = append(parts, optional(6, b.rtime))
	add(7, integer(int64(b.nonce)))
	var list [][]byte
	for _, e := range b.etypes {
		list = append(list, integer(int64(e)))
	}
	add(8, sequence(list...))
	if len(b.addresses) > 0 {
		list = nil
		for _, a := range b.addresses {
			list = append(list, typed(a.Type, a.Data))
		}
		add(9, sequence(list...))
	}
	if len(b.tickets) > 0 {
		add(11, sequence(b.tickets...))
	}
	return sequence(parts...)
}

// request returns an AS-REQ or TGS-REQ.
func request(kind int, padata []paData, body []byte) []byte {
	parts := [][]byte{field(1, integer(5)), field(2, integer(int64(kind)))}
	if len(padata) > 0 {
		parts = append(parts, field(3, paDataList(padata)))
	}
	return application(kind, sequence(append(parts, field(4, body))...))
}

// apReq returns an AP-REQ (RFC 4120 section 5.5.1) with the authenticator, which usage tells what for.
func apReq(cred *krb5.Credential, session *etype.Key, usage uint32, authenticator []byte) []byte {
	return application(14, sequence(
		field(0, integer(5)), field(1, integer(14)), field(2, flags(0)), field(3, cred.Ticket),
		field(4, seal(session, usage, authenticator))))
}

// authenticator returns an Authenticator (RFC 4120 section 5.5.1); sum and subkey may be nil.
func authenticator(client krb5.Principal, sum []byte, now uint32, usec int64, subkey *etype.Key) []byte {
	parts := [][]byte{field(0, integer(5)), field(1, text(client.Realm)), field(2, name(client))}
	if sum != nil {
		parts = append(parts, field(3, sum))
	}
	parts = append(parts, field(4, integer(usec)), field(5, timestamp(now)))
	if subkey != nil {
		parts = append(parts, field(6, keyDER(subkey)))
	}
	return application(2, sequence(parts...))
}

func readName(r *der.Reader) (p krb5.Principal) {
	seq := r.Enter(der.Sequence)
	f := r.Field(0)
	p.Type = r.Int32()
	r.Leave(f)
	f = r.Field(1)
	list := r.Enter(der.Sequence)
	for r.More() {
		if len(p.Components) == krb5.MaxComponents {
			r.Fail(der.OutOfRange)
			break
		}
		p.Components = append(p.Components, string(r.String()))
	}
	r.Leave(list)
	r.Leave(f)
	r.LeaveOpen(seq)
	return p
}

// readRealmAndName reads the fields [n] realm and [n+1] name.
func readRealmAndName(r *der.Reader, n int) krb5.Principal {
	f := r.Field(n)
	realm := string(r.String())
	r.Leave(f)
	f = r.Field(n + 1)
	p := readName(r)
	r.Leave(f)
	p.Realm = realm
	return p
}

// readInt reads the field [n], an Int32.
func readInt(r *der.Reader, n int) int32 {
	f := r.Field(n)
	v := r.Int32()
	r.Leave(f)
	return v
}

// readTime reads the field [n], a KerberosTime.
func readTime(r *der.Reader, n int) uint32 {
	f := r.Field(n)
	t := r.Time()
	r.Leave(f)
	return t
}

// readOptionalTime reads the field [n] if it is there.
func readOptionalTime(r *der.Reader, n int) uint32 {
	if !r.Has(n) {
		return 0
	}
	return readTime(r, n)
}

// readTyped reads the shape Checksum, HostAddress and EncryptionKey share.
func readTyped(r *der.Reader) (kind int32, data []byte) {
	seq := r.Enter(der.Sequence)
	kind = readInt(r, 0)
	f := r.Field(1)
	data = r.Octets()
	r.Leave(f)
	r.LeaveOpen(seq)
	return kind, data
}

// encrypted is an EncryptedData (RFC 4120 section 5.2.9). cipher aliases the message.
type encrypted struct {
	etype  etype.ID
	kvno   uint32 // 0 when absent
	cipher []byte
}

func readEncrypted(r *der.Reader) (e encrypted) {
	seq := r.Enter(der.Sequence)
	e.etype = etype.ID(readInt(r, 0))
	if r.Has(1) {
		f := r.Field(1)
		e.kvno = r.Uint32() // signed by some KDCs, like sequence numbers
		r.Leave(f)
	}
	f := r.Field(2)
	e.cipher = r.Octets()
	r.Leave(f)
	r.LeaveOpen(seq)
	return e
}

// open decrypts with k, whose type must be the one named.
func (e *encrypted) open(k *etype.Key, usage uint32) ([]byte, error) {
	if k.Enctype() != e.etype {
		return nil, etype.ErrIntegrity
	}
	return k.Decrypt(nil, usage, e.cipher)
}

// readPAData reads a SEQUENCE OF PA-DATA.
func readPAData(r *der.Reader) (list []paData) {
	outer := r.Enter(der.Sequence)
	for r.More() {
		seq := r.Enter(der.Sequence)
		kind := readInt(r, 1)
		f := r.Field(2)
		value := r.Octets()
		r.Leave(f)
		r.LeaveOpen(seq)
		list = append(list, paData{kind, append([]byte{}, value...)})
	}
	r.Leave(outer)
	if r.Fault() != 0 {
		return nil
	}
	return list
}

// parsePAData reads METHOD-DATA, the e-data of a KRB-ERROR; nil when it is something else.
func parsePAData(b []byte) []paData {
	r := der.NewReader(b)
	list := readPAData(&r)
	if r.Err() != nil || r.More() {
		return nil
	}
	return list
}

// ticket is what can be read of a Ticket (RFC 4120 section 5.3).
type ticket struct {
	raw    []byte
	server krb5.Principal
}

func readTicket(r *der.Reader) (t ticket) {
	start := *r
	t.raw = append([]byte{}, start.Raw()...)
	app := r.Enter(der.Application(1))
	seq := r.Enter(der.Sequence)
	if v := readInt(r, 0); v != 5 {
		r.Fail(der.BadFormat)
	}
	t.server = readRealmAndName(r, 1)
	f := r.Field(3)
	readEncrypted(r)
	r.Leave(f)
	r.LeaveOpen(seq)
	r.Leave(app)
	return t
}

// kdcRep is an AS-REP or TGS-REP. Only enc aliases the message.
type kdcRep struct {
	padata []paData
	client krb5.Principal
	ticket ticket
	enc    encrypted
}

// parse reads a reply of the kind, wire.MsgASRep or wire.MsgTGSRep.
func (p *kdcRep) parse(kind int, b []byte) *mech.Error {
	r := der.NewReader(b)
	app := r.Enter(der.Application(kind))
	seq := r.Enter(der.Sequence)
	version, msg := readInt(&r, 0), readInt(&r, 1)
	if r.Has(2) {
		f := r.Field(2)
		p.padata = readPAData(&r)
		r.Leave(f)
	}
	p.client = readRealmAndName(&r, 3)
	f := r.Field(5)
	p.ticket = readTicket(&r)
	r.Leave(f)
	f = r.Field(6)
	p.enc = readEncrypted(&r)
	r.Leave(f)
	r.LeaveOpen(seq)
	r.Leave(app)
	if err := malformed("reply", &r); err != nil {
		return err
	}
	if version != 5 {
		return mech.Errorf(mech.Failure, wire.MinorReplyModified, reason.KDCReply, ": the reply is of Kerberos version %d, expected 5", version)
	}
	if msg != int32(kind) {
		return mech.Errorf(mech.Failure, wire.MinorMsgType, reason.KDCReply, ": the reply says it is of type %d, expected %d", msg, kind)
	}
	return nil
}

// malformed makes the error of what r could not read; nil if it could.
func malformed(what string, r *der.Reader) *mech.Error {
	if r.Fault() == 0 && r.More() {
		r.Fail(der.BadLength)
	}
	e, bad := r.Err().(*der.Error)
	if !bad {
		return nil
	}
	return mech.Errorf(mech.Failure, e.Fault.Minor(), reason.KDCReply, "the KDC's %s is malformed: %v", what, e)
}

// encPart is an EncKDCRepPart. Nothing in it aliases the message.
type encPart struct {
	key                *etype.Key
	nonce              uint32
	flags              uint32
	authTime           uint32
	startTime, endTime uint32
	renewTill          uint32
	server             krb5.Principal
	addresses          []krb5.Address
	padata             []paData
}

// maxAddresses bounds what a ticket can be limited to.
const maxAddresses = 256

// parse reads the plaintext b. The application tag is that of AS-REP or TGS-REP parts; some KDCs use the latter for
// both (RFC 4120 section 5.4.2).
func (p *encPart) parse(b []byte) *mech.Error {
	r := der.NewReader(b)
	tag := der.Application(25)
	if r.Peek() == der.Application(26) {
		tag = der.Application(26)
	}
	app := r.Enter(tag)
	seq := r.Enter(der.Sequence)
	f := r.Field(0)
	keyType, key := readTyped(&r)
	r.Leave(f)
	f = r.Field(1)
	r.Value(der.Sequence) // last-req
	r.Leave(f)
	f = r.Field(2)
	p.nonce = r.Uint32()
	r.Leave(f)
	readOptionalTime(&r, 3) // key-expiration
	f = r.Field(4)
	p.flags = r.Flags()
	r.Leave(f)
	p.authTime = readTime(&r, 5)
	p.startTime = readOptionalTime(&r, 6)
	p.endTime = readTime(&r, 7)
	p.renewTill = readOptionalTime(&r, 8)
	p.server = readRealmAndName(&r, 9)
	if r.Has(11) {
		f = r.Field(11)
		list := r.Enter(der.Sequence)
		for r.More() {
			if len(p.addresses) == maxAddresses {
				r.Fail(der.OutOfRange)
				break
			}
			kind, data := readTyped(&r)
			p.addresses = append(p.addresses, krb5.Address{Type: kind, Data: append([]byte{}, data...)})
		}
		r.Leave(list)
		r.Leave(f)
	}
	if r.Has(12) {
		f = r.Field(12)
		p.padata = readPAData(&r)
		r.Leave(f)
	}
	r.LeaveOpen(seq)
	r.Leave(app)
	if err := malformed("reply (its encrypted part)", &r); err != nil {
		return err
	}
	if p.startTime == 0 {
		p.startTime = p.authTime
	}
	var err error
	if p.key, err = etype.NewKey(etype.ID(keyType), key); err != nil {
		return mech.Errorf(mech.Failure, wire.MinorProgEtype, reason.EnctypeNotPermitted, ": the session key the KDC chose cannot be used: %s", err)
	}
	return nil
}

// krbError is a KRB-ERROR (RFC 4120 section 5.9.1). Nothing in it aliases the message.
type krbError struct {
	stime  uint32
	code   int32
	client krb5.Principal // without realm when that is absent
	server krb5.Principal
	text   string
	data   []byte
}

func (k *krbError) parse(b []byte) *mech.Error {
	r := der.NewReader(b)
	app := r.Enter(der.Application(wire.MsgError))
	seq := r.Enter(der.Sequence)
	readInt(&r, 0) // version; Heimdal and MIT do not look at it either
	readInt(&r, 1)
	readOptionalTime(&r, 2)
	if r.Has(3) {
		readInt(&r, 3)
	}
	k.stime = readTime(&r, 4)
	readInt(&r, 5)
	k.code = readInt(&r, 6)
	realm := ""
	if r.Has(7) {
		f := r.Field(7)
		realm = string(r.String())
		r.Leave(f)
	}
	if r.Has(8) {
		f := r.Field(8)
		k.client = readName(&r)
		r.Leave(f)
	}
	k.client.Realm = realm
	k.server = readRealmAndName(&r, 9)
	if r.Has(11) {
		f := r.Field(11)
		k.text = string(r.String())
		r.Leave(f)
	}
	if r.Has(12) {
		f := r.Field(12)
		k.data = append([]byte{}, r.Octets()...)
		r.Leave(f)
	}
	r.LeaveOpen(seq)
	r.Leave(app)
	return malformed("error message", &r)
}

// isError reports that b claims to be a KRB-ERROR.
func isError(b []byte) bool { return len(b) > 0 && der.Tag(b[0]) == der.Application(wire.MsgError) }

// plausible reports that b is one whole DER value with the tag of a reply: what is worth reading at all.
func plausible(b []byte) bool {
	r := der.NewReader(b)
	switch r.Peek() {
	case der.Application(wire.MsgASRep), der.Application(wire.MsgTGSRep), der.Application(wire.MsgError):
		r.Raw()
		return r.Fault() == 0 && !r.More()
	}
	return false
}
