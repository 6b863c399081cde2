package wire

import (
	"github.com/jcmturner/gokrb5/v8/iana/asnAppTag"

	"gssproxyd/mech/krb5/der"
	"gssproxyd/mech/krb5/etype"
)

// Cred is a KRB-CRED (RFC 4120 section 5.8).
type Cred struct {
	First   Ticket // the zero value if there is none
	Tickets int
	Enc     Encrypted
}

// Parse reads b.
func (c *Cred) Parse(b []byte) error {
	r, m := enterMessage(b, MsgCred)
	f := r.Field(2)
	list := r.Enter(der.Sequence)
	for ; r.More(); c.Tickets++ {
		var t Ticket
		if t.read(&r); c.Tickets == 0 {
			c.First = t
		}
	}
	r.Leave(list)
	r.Leave(f)
	readEncrypted(&r, 3, &c.Enc)
	return m.leave(&r)
}

// AppendCred appends a KRB-CRED of one ticket with the encoded EncKrbCredPart plain, encrypted in
// k.
func AppendCred(dst, ticket []byte, k *etype.Key, plain []byte) ([]byte, error) {
	dst, m := beginMessage(dst, MsgCred)
	dst, f := der.Begin(dst, der.Context(2))
	dst = der.End(der.AppendValue(dst, der.Sequence, ticket), f)
	dst, err := appendEncrypted(dst, 3, k, UsageKRBCred, plain)
	if err != nil {
		return nil, err
	}
	return m.end(dst), nil
}

// CredInfo is a KrbCredInfo (RFC 4120 section 5.8.1). Nothing in it but the key aliases the
// message.
type CredInfo struct {
	etype.Redacted
	Key            Key
	Client, Server Principal
	HasServer      bool // there is a name of the server
	Flags          uint32
	AuthTime       uint32 // 0 when absent, as the other times
	StartTime      uint32
	EndTime        uint32
	RenewTill      uint32
	Addresses      []HostAddress
}

// read leaves the realm or the name of the client as it was where the message has none.
func (c *CredInfo) read(r *der.Reader) {
	seq := r.Enter(der.Sequence)
	readKey(r, 0, &c.Key)
	readOptionalName(r, 1, &c.Client)
	if r.Has(3) {
		c.Flags = readFlags(r, 3)
	}
	c.AuthTime = readOptionalTime(r, 4)
	c.StartTime = readOptionalTime(r, 5)
	c.EndTime = readOptionalTime(r, 6)
	c.RenewTill = readOptionalTime(r, 7)
	c.HasServer = readOptionalName(r, 8, &c.Server)
	c.Addresses = readAddresses(r, 10)
	r.LeaveOpen(seq)
}

// readOptionalName reads the fields [n] realm and [n+1] name into p, each if it is there, and
// reports whether the name was.
func readOptionalName(r *der.Reader, n int, p *Principal) bool {
	if r.Has(n) {
		p.Realm = string(readString(r, n))
	}
	if !r.Has(n + 1) {
		return false
	}
	var name Name
	readNameField(r, n+1, &name)
	read := name.Principal()
	p.Components, p.Type = read.Components, read.Type
	return true
}

// ParseEncCred reads the EncKrbCredPart (RFC 4120 section 5.8.1) in the plaintext b and calls each
// with what it says of a ticket; where that does not name the client it is of client.
func ParseEncCred(b []byte, client Principal, each func(*CredInfo)) error {
	r, m := enter(b, asnAppTag.EncKrbCredPart)
	f := r.Field(0)
	list := r.Enter(der.Sequence)
	for r.More() {
		c := CredInfo{Client: client}
		if c.read(&r); r.Fault() == 0 {
			each(&c)
		}
	}
	r.Leave(list)
	r.Leave(f)
	return m.leave(&r)
}

// AppendEncCred appends an EncKrbCredPart of one ticket.
func AppendEncCred(dst []byte, c *CredInfo, nonce, ctime uint32, cusec int32) []byte {
	dst, m := begin(dst, asnAppTag.EncKrbCredPart)
	dst, f := der.Begin(dst, der.Context(0))
	dst, list := der.Begin(dst, der.Sequence)
	dst = der.End(der.End(c.append(dst), list), f)
	dst = appendInt(dst, 1, int64(nonce))
	dst = appendTime(dst, 2, ctime)
	dst = appendInt(dst, 3, int64(cusec))
	return m.end(dst)
}

func (c *CredInfo) append(dst []byte) []byte {
	dst, seq := der.Begin(dst, der.Sequence)
	dst = appendTypedField(dst, 0, int32(c.Key.Etype), c.Key.Value)
	dst = appendRealmAndName(dst, 1, &c.Client)
	dst = appendFlags(dst, 3, c.Flags)
	for n, t := range [...]uint32{c.AuthTime, c.StartTime, c.EndTime, c.RenewTill} {
		dst = appendOptionalTime(dst, 4+n, t)
	}
	dst = appendRealmAndName(dst, 8, &c.Server)
	return der.End(appendAddresses(dst, 10, c.Addresses), seq)
}
