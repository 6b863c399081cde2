package wire

import (
	"github.com/jcmturner/gokrb5/v8/iana/asnAppTag"

	"gssproxyd/mech/krb5/etype"
)

// Priv is a KRB-PRIV (RFC 4120 section 5.7).
type Priv struct{ Enc Encrypted }

// Parse reads b.
func (p *Priv) Parse(b []byte) error {
	r, m := enterMessage(b, MsgPriv)
	readEncrypted(&r, 3, &p.Enc)
	return m.leave(&r)
}

// AppendPriv appends a KRB-PRIV with the encoded EncKrbPrivPart plain, encrypted in k.
func AppendPriv(dst []byte, k *etype.Key, plain []byte) ([]byte, error) {
	dst, m := beginMessage(dst, MsgPriv)
	dst, err := appendEncrypted(dst, 3, k, UsageKRBPriv, plain)
	if err != nil {
		return nil, err
	}
	return m.end(dst), nil
}

// EncPriv is an EncKrbPrivPart (RFC 4120 section 5.7.1), of which times and the recipient's address
// are left out.
type EncPriv struct {
	etype.Redacted
	Data   []byte
	Seq    uint32
	HasSeq bool
	Sender HostAddress
}

// Parse reads the plaintext b.
func (p *EncPriv) Parse(b []byte) error {
	*p = EncPriv{}
	r, m := enter(b, asnAppTag.EncKrbPrivPart)
	p.Data = readOctets(&r, 0)
	readOptionalTime(&r, 1)
	if r.Has(2) {
		readInt(&r, 2)
	}
	if r.Has(3) {
		p.Seq, p.HasSeq = readUint(&r, 3), true
	}
	p.Sender.Type, p.Sender.Data = readTypedField(&r, 4)
	return m.leave(&r)
}

// Append appends the EncKrbPrivPart, with the sequence number whether HasSeq says so or not.
func (p *EncPriv) Append(dst []byte) []byte {
	dst, m := begin(dst, asnAppTag.EncKrbPrivPart)
	dst = appendOctets(dst, 0, p.Data)
	dst = appendInt(dst, 3, int64(p.Seq))
	return m.end(appendTypedField(dst, 4, p.Sender.Type, p.Sender.Data))
}
