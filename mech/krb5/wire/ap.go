package wire

import (
	"github.com/jcmturner/gokrb5/v8/iana"
	"github.com/jcmturner/gokrb5/v8/iana/asnAppTag"

	"gssproxyd/mech/krb5/der"
	"gssproxyd/mech/krb5/etype"
)

const pvno = iana.PVNO

// Ticket is a Ticket (RFC 4120 section 5.3).
type Ticket struct {
	Raw    []byte // the whole Ticket
	Server Name
	Enc    Encrypted
}

func (t *Ticket) read(r *der.Reader) {
	start := *r
	t.Raw = start.Raw()
	app := r.Enter(der.Application(asnAppTag.Ticket))
	seq := r.Enter(der.Sequence)
	readVersion(r, 0)
	readRealmAndName(r, 1, &t.Server)
	readEncrypted(r, 3, &t.Enc)
	r.LeaveOpen(seq)
	r.Leave(app)
}

func (t *Ticket) readField(r *der.Reader, n int) {
	f := r.Field(n)
	t.read(r)
	r.Leave(f)
}

// Parse reads b.
func (t *Ticket) Parse(b []byte) error {
	r := der.NewReader(b)
	t.read(&r)
	return r.Err()
}

// EncTicket is an EncTicketPart (RFC 4120 section 5.3).
type EncTicket struct {
	etype.Redacted
	Flags         uint32
	Key           Key
	Client        Name
	TransitedType int32
	Transited     []byte
	AuthTime      uint32
	StartTime     uint32 // 0 when absent
	EndTime       uint32
	RenewTill     uint32 // 0 when absent
	Addresses     []byte // contents of the SEQUENCE OF HostAddress, nil when absent
	AuthData      []byte // contents of the SEQUENCE OF, nil when absent
}

// Parse reads the plaintext b.
func (t *EncTicket) Parse(b []byte) error {
	r, m := enter(b, asnAppTag.EncTicketPart)
	t.Flags = readFlags(&r, 0)
	readKey(&r, 1, &t.Key)
	readRealmAndName(&r, 2, &t.Client)
	t.TransitedType, t.Transited = readTypedField(&r, 4)
	t.AuthTime = readTime(&r, 5)
	t.StartTime = readOptionalTime(&r, 6)
	t.EndTime = readTime(&r, 7)
	t.RenewTill = readOptionalTime(&r, 8)
	t.Addresses = readOptionalSequence(&r, 9)
	t.AuthData = readOptionalSequence(&r, 10)
	return m.leave(&r)
}

// APReq is an AP-REQ (RFC 4120 section 5.5.1).
type APReq struct {
	Options uint32
	Ticket  Ticket
	Auth    Encrypted // the Authenticator
}

// Parse reads b.
func (q *APReq) Parse(b []byte) error {
	r, m := enterMessage(b, MsgAPReq)
	q.Options = readFlags(&r, 2)
	q.Ticket.readField(&r, 3)
	readEncrypted(&r, 4, &q.Auth)
	return m.leave(&r)
}

// AppendAPReq appends an AP-REQ with the encoded authenticator auth, which usage tells what for.
func AppendAPReq(dst []byte, options uint32, ticket []byte, session *etype.Key, usage uint32, auth []byte) ([]byte, error) {
	dst, m := beginMessage(dst, MsgAPReq)
	dst = appendFlags(dst, 2, options)
	dst = appendRaw(dst, 3, ticket)
	dst, err := appendEncrypted(dst, 4, session, usage, auth)
	if err != nil {
		return nil, err
	}
	return m.end(dst), nil
}

// Authenticator is an Authenticator (RFC 4120 section 5.5.1) that was read.
type Authenticator struct {
	etype.Redacted
	Client       Name
	HasChecksum  bool
	ChecksumType int32
	Checksum     []byte
	Cusec        int32 // 0 to 999,999
	Ctime        uint32
	Subkey       Key
	Seq          uint32 // 0 when absent
	AuthData     []byte // contents of the SEQUENCE OF, nil when absent
}

// Parse reads the plaintext b.
func (a *Authenticator) Parse(b []byte) error {
	*a = Authenticator{}
	r, m := enter(b, asnAppTag.Authenticator)
	readVersion(&r, 0)
	readRealmAndName(&r, 1, &a.Client)
	if r.Has(3) {
		a.ChecksumType, a.Checksum = readTypedField(&r, 3)
		a.HasChecksum = true
	}
	f := r.Field(4)
	a.Cusec = int32(r.Int(0, 999_999))
	r.Leave(f)
	a.Ctime = readTime(&r, 5)
	if r.Has(6) {
		readKey(&r, 6, &a.Subkey)
	}
	if r.Has(7) {
		a.Seq = readUint(&r, 7)
	}
	a.AuthData = readOptionalSequence(&r, 8)
	return m.leave(&r)
}

// NewAuthenticator is what an Authenticator is made of.
type NewAuthenticator struct {
	etype.Redacted
	Client       *Principal
	ChecksumType int32
	Checksum     []byte // nil: none
	Cusec        int32
	Ctime        uint32
	Subkey       *etype.Key
	Seq          uint32 // 0: none
	AuthData     []byte // contents of the SEQUENCE OF; none if empty
}

// Append appends the Authenticator.
func (a *NewAuthenticator) Append(dst []byte) []byte {
	dst, m := begin(dst, asnAppTag.Authenticator)
	dst = appendInt(dst, 0, pvno)
	dst = appendRealmAndName(dst, 1, a.Client)
	if a.Checksum != nil {
		dst = appendTypedField(dst, 3, a.ChecksumType, a.Checksum)
	}
	dst = appendInt(dst, 4, int64(a.Cusec))
	dst = appendTime(dst, 5, a.Ctime)
	dst = appendKey(dst, 6, a.Subkey)
	if a.Seq != 0 {
		dst = appendInt(dst, 7, int64(a.Seq))
	}
	if len(a.AuthData) > 0 {
		var f int
		dst, f = der.Begin(dst, der.Context(8))
		dst = der.End(der.AppendValue(dst, der.Sequence, a.AuthData), f)
	}
	return m.end(dst)
}

// APRep is an AP-REP (RFC 4120 section 5.5.2).
type APRep struct{ Enc Encrypted }

// Parse reads b.
func (p *APRep) Parse(b []byte) error {
	r, m := enterMessage(b, MsgAPRep)
	readEncrypted(&r, 2, &p.Enc)
	return m.leave(&r)
}

// AppendAPRep appends an AP-REP with the encoded EncAPRepPart plain.
func AppendAPRep(dst []byte, session *etype.Key, plain []byte) ([]byte, error) {
	dst, m := beginMessage(dst, MsgAPRep)
	dst, err := appendEncrypted(dst, 2, session, UsageAPRep, plain)
	if err != nil {
		return nil, err
	}
	return m.end(dst), nil
}

// EncAPRep is an EncAPRepPart (RFC 4120 section 5.5.2).
type EncAPRep struct {
	etype.Redacted
	Ctime  uint32
	Cusec  int32
	Subkey Key
	Seq    uint32 // 0 when absent
}

// Parse reads the plaintext b.
func (p *EncAPRep) Parse(b []byte) error {
	*p = EncAPRep{}
	r, m := enter(b, asnAppTag.EncAPRepPart)
	p.Ctime = readTime(&r, 0)
	p.Cusec = readInt(&r, 1)
	if r.Has(2) {
		readKey(&r, 2, &p.Subkey)
	}
	if r.Has(3) {
		p.Seq = readUint(&r, 3)
	}
	return m.leave(&r)
}

// AppendEncAPRep appends an EncAPRepPart: the authenticator's time, the subkey if there is one, and
// the sender's first sequence number.
func AppendEncAPRep(dst []byte, ctime uint32, cusec int32, subkey *etype.Key, seq uint32) []byte {
	dst, m := begin(dst, asnAppTag.EncAPRepPart)
	dst = appendTime(dst, 0, ctime)
	dst = appendInt(dst, 1, int64(cusec))
	if subkey != nil {
		dst = appendKey(dst, 2, subkey)
	}
	return m.end(appendInt(dst, 3, int64(seq)))
}
