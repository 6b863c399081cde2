package wire

import (
	"github.com/jcmturner/gokrb5/v8/iana/asnAppTag"

	"gssproxyd/mech/krb5/der"
	"gssproxyd/mech/krb5/etype"
)

// The messages between client and KDC (RFC 4120 section 5.4). Unlike those between client and
// service they are few, and what is read of them is a copy but for tickets, keys and what is
// encrypted.

// end returns the reader's error; that something is left over is one, too.
func end(r *der.Reader) error {
	if r.More() {
		r.Fail(der.BadLength)
	}
	return r.Err()
}

// ReplyType returns the type of a KDC's reply, 0 unless b is by its tag and length one whole
// AS-REP, TGS-REP or KRB-ERROR.
func ReplyType(b []byte) int {
	for _, kind := range [...]int{MsgASRep, MsgTGSRep, MsgError} {
		if r := der.NewReader(b); r.Peek() == der.Application(kind) {
			r.Raw()
			if end(&r) == nil {
				return kind
			}
		}
	}
	return 0
}

// ParseTyped reads b, all of which has the shape that [ReadTyped] reads.
func ParseTyped(b []byte) (kind int32, data []byte, err error) {
	r := der.NewReader(b)
	kind, data = ReadTyped(&r)
	return kind, data, end(&r)
}

// PAData is a PA-DATA (RFC 4120 section 5.2.7).
type PAData struct {
	Type  int32
	Value []byte
}

// FindPAData returns the first element of a type.
func FindPAData(list []PAData, kind int32) (value []byte, ok bool) {
	for _, p := range list {
		if p.Type == kind {
			return p.Value, true
		}
	}
	return nil, false
}

// ParsePAData reads METHOD-DATA, the e-data of a KRB-ERROR; nil when it is something else.
func ParsePAData(b []byte) []PAData {
	r := der.NewReader(b)
	list := readPAData(&r)
	if end(&r) != nil {
		return nil
	}
	return list
}

func readPAData(r *der.Reader) (list []PAData) {
	outer := r.Enter(der.Sequence)
	for r.More() {
		seq := r.Enter(der.Sequence)
		kind := readInt(r, 1)
		value := readOctets(r, 2)
		r.LeaveOpen(seq)
		list = append(list, PAData{kind, append([]byte{}, value...)})
	}
	r.Leave(outer)
	return list
}

func readOptionalPAData(r *der.Reader, n int) (list []PAData) {
	if r.Has(n) {
		f := r.Field(n)
		list = readPAData(r)
		r.Leave(f)
	}
	return list
}

func appendPAData(dst []byte, n int, list []PAData) []byte {
	dst, f := der.Begin(dst, der.Context(n))
	dst, outer := der.Begin(dst, der.Sequence)
	for _, p := range list {
		var seq int
		dst, seq = der.Begin(dst, der.Sequence)
		dst = der.End(appendOctets(appendInt(dst, 1, int64(p.Type)), 2, p.Value), seq)
	}
	return der.End(der.End(dst, outer), f)
}

// KDCReqBody is a KDC-REQ-BODY (RFC 4120 section 5.4.1).
type KDCReqBody struct {
	Options     uint32
	Client      *Principal // in AS requests only
	Server      Principal  // its realm is the one that is asked
	Till, RTime uint32     // no RTime if 0
	Nonce       uint32
	Etypes      []etype.ID
	Addresses   []HostAddress
	Ticket      []byte // the additional one; none if empty
}

// Append appends the body.
func (b *KDCReqBody) Append(dst []byte) []byte {
	dst, seq := der.Begin(dst, der.Sequence)
	dst = appendFlags(dst, 0, b.Options)
	if b.Client != nil {
		dst = appendName(dst, 1, b.Client)
	}
	dst = appendRealmAndName(dst, 2, &b.Server)
	dst = appendTime(dst, 5, b.Till)
	dst = appendOptionalTime(dst, 6, b.RTime)
	dst = appendInt(dst, 7, int64(b.Nonce))
	dst, f := der.Begin(dst, der.Context(8))
	dst, list := der.Begin(dst, der.Sequence)
	for _, e := range b.Etypes {
		dst = der.AppendInt(dst, int64(e))
	}
	dst = der.End(der.End(dst, list), f)
	dst = appendAddresses(dst, 9, b.Addresses)
	if len(b.Ticket) > 0 {
		dst, f = der.Begin(dst, der.Context(11))
		dst = der.End(der.AppendValue(dst, der.Sequence, b.Ticket), f)
	}
	return der.End(dst, seq)
}

// AppendKDCReq appends an AS-REQ or TGS-REQ with the encoded body.
func AppendKDCReq(dst []byte, kind int, padata []PAData, body []byte) []byte {
	dst, m := begin(dst, kind)
	dst = appendInt(dst, 1, pvno)
	dst = appendInt(dst, 2, int64(kind))
	dst = appendPAData(dst, 3, padata)
	dst = appendRaw(dst, 4, body)
	return m.end(dst)
}

// KDCRep is an AS-REP or TGS-REP (RFC 4120 section 5.4.2).
type KDCRep struct {
	Version, MsgType int32
	PAData           []PAData
	Client           Principal
	Ticket           Ticket
	Enc              Encrypted
}

// Parse reads b, of the kind MsgASRep or MsgTGSRep.
func (p *KDCRep) Parse(kind int, b []byte) error {
	r, m := enter(b, kind)
	p.Version, p.MsgType = readInt(&r, 0), readInt(&r, 1)
	p.PAData = readOptionalPAData(&r, 2)
	var client Name
	readRealmAndName(&r, 3, &client)
	p.Client = client.Principal()
	p.Ticket.readField(&r, 5)
	readEncrypted(&r, 6, &p.Enc)
	m.leave(&r)
	return end(&r)
}

// EncKDCRep is an EncKDCRepPart (RFC 4120 section 5.4.2).
type EncKDCRep struct {
	etype.Redacted
	Key       Key
	Nonce     uint32
	Flags     uint32
	AuthTime  uint32
	StartTime uint32 // 0 when absent
	EndTime   uint32
	RenewTill uint32 // 0 when absent
	Server    Principal
	Addresses []HostAddress
	PAData    []PAData
}

// Parse reads the plaintext b. The application tag is that of AS-REP or TGS-REP parts; some KDCs
// use the latter for both.
func (p *EncKDCRep) Parse(b []byte) error {
	tag := asnAppTag.EncASRepPart
	if len(b) > 0 && der.Tag(b[0]) == der.Application(asnAppTag.EncTGSRepPart) {
		tag = asnAppTag.EncTGSRepPart
	}
	r, m := enter(b, tag)
	readKey(&r, 0, &p.Key)
	f := r.Field(1)
	r.Value(der.Sequence) // last-req
	r.Leave(f)
	p.Nonce = readUint(&r, 2)
	readOptionalTime(&r, 3) // key-expiration
	p.Flags = readFlags(&r, 4)
	p.AuthTime = readTime(&r, 5)
	p.StartTime = readOptionalTime(&r, 6)
	p.EndTime = readTime(&r, 7)
	p.RenewTill = readOptionalTime(&r, 8)
	var server Name
	readRealmAndName(&r, 9, &server)
	p.Server = server.Principal()
	p.Addresses = readAddresses(&r, 11)
	p.PAData = readOptionalPAData(&r, 12)
	m.leave(&r)
	return end(&r)
}

// EtypeInfo is an entry of ETYPE-INFO2 (RFC 4120 section 5.2.7.5).
type EtypeInfo struct {
	Etype  etype.ID
	Salt   *string // nil when absent
	Params []byte
}

// ParseEtypeInfo reads ETYPE-INFO2; a list that is empty is not nil.
func ParseEtypeInfo(b []byte) ([]EtypeInfo, error) {
	list := []EtypeInfo{}
	r := der.NewReader(b)
	outer := r.Enter(der.Sequence)
	for r.More() {
		var i EtypeInfo
		seq := r.Enter(der.Sequence)
		i.Etype = etype.ID(readInt(&r, 0))
		if r.Has(1) {
			s := string(readString(&r, 1))
			i.Salt = &s
		}
		if r.Has(2) {
			i.Params = append([]byte{}, readOctets(&r, 2)...)
		}
		r.LeaveOpen(seq)
		list = append(list, i)
	}
	r.Leave(outer)
	return list, end(&r)
}

// AppendEncTimestamp appends a PA-ENC-TS-ENC (RFC 4120 section 5.2.7.2).
func AppendEncTimestamp(dst []byte, now uint32, usec int64) []byte {
	dst, seq := der.Begin(dst, der.Sequence)
	return der.End(appendInt(appendTime(dst, 0, now), 1, usec), seq)
}
