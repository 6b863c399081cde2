package wire

import (
	"gssproxyd/mech/krb5/der"
	"gssproxyd/mech/krb5/etype"
)

// What messages are made of. Readers of a field take its number n; those of optional fields leave
// zero where it is absent.

// message is where the SEQUENCE of a message and the application tag around it end, or began.
type message struct{ app, seq int }

// enter returns a reader of the fields of the message in b, which has that application tag.
func enter(b []byte, tag int) (der.Reader, message) {
	r := der.NewReader(b)
	app := r.Enter(der.Application(tag))
	return r, message{app, r.Enter(der.Sequence)}
}

// enterMessage is enter for a message that begins with version and type; of these the tag has said
// the type.
func enterMessage(b []byte, tag int) (der.Reader, message) {
	r, m := enter(b, tag)
	readVersion(&r, 0)
	readInt(&r, 1)
	return r, m
}

func (m message) leave(r *der.Reader) error {
	r.LeaveOpen(m.seq)
	r.Leave(m.app)
	return r.Err()
}

// begin begins a message with that application tag, and beginMessage one that begins with version
// and type.
func begin(dst []byte, tag int) ([]byte, message) {
	dst, app := der.Begin(dst, der.Application(tag))
	dst, seq := der.Begin(dst, der.Sequence)
	return dst, message{app, seq}
}

func beginMessage(dst []byte, tag int) ([]byte, message) {
	dst, m := begin(dst, tag)
	return appendInt(appendInt(dst, 0, pvno), 1, int64(tag)), m
}

func (m message) end(dst []byte) []byte { return der.End(der.End(dst, m.seq), m.app) }

func readInt(r *der.Reader, n int) int32 {
	f := r.Field(n)
	v := r.Int32()
	r.Leave(f)
	return v
}

func readUint(r *der.Reader, n int) uint32 {
	f := r.Field(n)
	v := r.Uint32()
	r.Leave(f)
	return v
}

func readFlags(r *der.Reader, n int) uint32 {
	f := r.Field(n)
	v := r.Flags()
	r.Leave(f)
	return v
}

func readTime(r *der.Reader, n int) uint32 {
	f := r.Field(n)
	t := r.Time()
	r.Leave(f)
	return t
}

func readOptionalTime(r *der.Reader, n int) uint32 {
	if !r.Has(n) {
		return 0
	}
	return readTime(r, n)
}

func readString(r *der.Reader, n int) []byte {
	f := r.Field(n)
	s := r.String()
	r.Leave(f)
	return s
}

func readOctets(r *der.Reader, n int) []byte {
	f := r.Field(n)
	b := r.Octets()
	r.Leave(f)
	return b
}

// readOptionalSequence returns the contents of a SEQUENCE, nil when it is absent.
func readOptionalSequence(r *der.Reader, n int) []byte {
	if !r.Has(n) {
		return nil
	}
	f := r.Field(n)
	b := r.Value(der.Sequence)
	r.Leave(f)
	return b
}

// readVersion reads a version, which must be that of Kerberos.
func readVersion(r *der.Reader, n int) {
	if readInt(r, n) != pvno {
		r.Fail(der.BadVersion)
	}
}

// readName reads a PrincipalName, and no realm.
func readName(r *der.Reader, n *Name) {
	seq := r.Enter(der.Sequence)
	n.Type = readInt(r, 0)
	f := r.Field(1)
	list := r.Enter(der.Sequence)
	start := *r
	for i := 0; r.More(); i++ {
		if i == MaxComponents {
			r.Fail(der.OutOfRange)
			break
		}
		r.String()
	}
	n.Components = start.Rest()
	r.Leave(list)
	r.Leave(f)
	r.LeaveOpen(seq)
}

// readNameField reads a PrincipalName.
func readNameField(r *der.Reader, field int, n *Name) {
	f := r.Field(field)
	readName(r, n)
	r.Leave(f)
}

// readRealmAndName reads the fields [n] realm and [n+1] name.
func readRealmAndName(r *der.Reader, field int, n *Name) {
	n.Realm = readString(r, field)
	readNameField(r, field+1, n)
}

// ReadTyped reads what HostAddress, the elements of AuthorizationData, Checksum and EncryptionKey
// have in common: an Int32 and an OCTET STRING.
func ReadTyped(r *der.Reader) (kind int32, data []byte) {
	seq := r.Enter(der.Sequence)
	kind = readInt(r, 0)
	data = readOctets(r, 1)
	r.LeaveOpen(seq)
	return kind, data
}

func readTypedField(r *der.Reader, n int) (kind int32, data []byte) {
	f := r.Field(n)
	kind, data = ReadTyped(r)
	r.Leave(f)
	return kind, data
}

// Key is an EncryptionKey (RFC 4120 section 5.2.9).
type Key struct {
	etype.Redacted
	Etype etype.ID
	Value []byte // nil when there is no key
}

func readKey(r *der.Reader, n int, k *Key) {
	kind, value := readTypedField(r, n)
	k.Etype, k.Value = etype.ID(kind), value
}

// Encrypted is an EncryptedData (RFC 4120 section 5.2.9).
type Encrypted struct {
	Etype  etype.ID
	KVNO   uint32 // 0 when absent
	Cipher []byte
}

func readEncrypted(r *der.Reader, n int, e *Encrypted) {
	f := r.Field(n)
	seq := r.Enter(der.Sequence)
	e.Etype = etype.ID(readInt(r, 0))
	e.KVNO = 0
	if r.Has(1) {
		e.KVNO = readUint(r, 1) // signed by some KDCs, like sequence numbers
	}
	e.Cipher = readOctets(r, 2)
	r.LeaveOpen(seq)
	r.Leave(f)
}

// HostAddress is a HostAddress (RFC 4120 section 5.2.5).
type HostAddress struct {
	Type int32
	Data []byte
}

// maxAddresses bounds a list of addresses.
const maxAddresses = 256

// readAddresses reads HostAddresses, of which it copies the data.
func readAddresses(r *der.Reader, n int) (list []HostAddress) {
	items := der.NewReader(readOptionalSequence(r, n))
	for items.More() {
		if len(list) == maxAddresses {
			items.Fail(der.OutOfRange)
			break
		}
		kind, data := ReadTyped(&items)
		list = append(list, HostAddress{kind, append([]byte{}, data...)})
	}
	if f := items.Fault(); f != 0 {
		r.Fail(f)
	}
	return list
}

func appendInt(dst []byte, n int, v int64) []byte {
	dst, f := der.Begin(dst, der.Context(n))
	return der.End(der.AppendInt(dst, v), f)
}

func appendFlags(dst []byte, n int, v uint32) []byte {
	dst, f := der.Begin(dst, der.Context(n))
	return der.End(der.AppendFlags(dst, v), f)
}

func appendTime(dst []byte, n int, unix uint32) []byte {
	dst, f := der.Begin(dst, der.Context(n))
	return der.End(der.AppendTime(dst, unix), f)
}

// appendOptionalTime appends a KerberosTime unless it is 0.
func appendOptionalTime(dst []byte, n int, unix uint32) []byte {
	if unix == 0 {
		return dst
	}
	return appendTime(dst, n, unix)
}

func appendString[S ~string | ~[]byte](dst []byte, n int, s S) []byte {
	dst, f := der.Begin(dst, der.Context(n))
	return der.End(der.AppendString(dst, s), f)
}

func appendOctets(dst []byte, n int, b []byte) []byte {
	dst, f := der.Begin(dst, der.Context(n))
	return der.End(der.AppendOctets(dst, b), f)
}

// appendRaw appends a field whose value is encoded.
func appendRaw(dst []byte, n int, encoded []byte) []byte {
	return der.AppendValue(dst, der.Context(n), encoded)
}

// appendName appends a PrincipalName.
func appendName(dst []byte, n int, p *Principal) []byte {
	dst, f := der.Begin(dst, der.Context(n))
	dst, seq := der.Begin(dst, der.Sequence)
	dst = appendInt(dst, 0, int64(p.Type))
	dst, g := der.Begin(dst, der.Context(1))
	dst, list := der.Begin(dst, der.Sequence)
	for _, c := range p.Components {
		dst = der.AppendString(dst, c)
	}
	return der.End(der.End(der.End(der.End(dst, list), g), seq), f)
}

// appendRealmAndName appends the fields [n] realm and [n+1] name.
func appendRealmAndName(dst []byte, n int, p *Principal) []byte {
	return appendName(appendString(dst, n, p.Realm), n+1, p)
}

// AppendTyped appends the shape that [ReadTyped] reads.
func AppendTyped(dst []byte, kind int32, data []byte) []byte {
	dst, seq := der.Begin(dst, der.Sequence)
	return der.End(appendOctets(appendInt(dst, 0, int64(kind)), 1, data), seq)
}

func appendTypedField(dst []byte, n int, kind int32, data []byte) []byte {
	dst, f := der.Begin(dst, der.Context(n))
	return der.End(AppendTyped(dst, kind, data), f)
}

func appendKey(dst []byte, n int, k *etype.Key) []byte {
	return appendTypedField(dst, n, int32(k.Enctype()), k.Secret())
}

// appendAddresses appends HostAddresses unless there are none.
func appendAddresses(dst []byte, n int, addresses []HostAddress) []byte {
	if len(addresses) == 0 {
		return dst
	}
	dst, f := der.Begin(dst, der.Context(n))
	dst, list := der.Begin(dst, der.Sequence)
	for _, a := range addresses {
		dst = AppendTyped(dst, a.Type, a.Data)
	}
	return der.End(der.End(dst, list), f)
}

// AppendEncrypted appends an EncryptedData in a key that has no version.
func AppendEncrypted(dst []byte, k *etype.Key, usage uint32, plain []byte) ([]byte, error) {
	dst, seq := der.Begin(dst, der.Sequence)
	dst = appendInt(dst, 0, int64(k.Enctype()))
	dst, f := der.Begin(dst, der.Context(2))
	dst = der.AppendHeader(dst, der.OctetString, len(plain)+k.Enctype().Overhead())
	dst, err := k.Encrypt(dst, usage, plain)
	if err != nil {
		return nil, err
	}
	return der.End(der.End(dst, f), seq), nil
}

func appendEncrypted(dst []byte, n int, k *etype.Key, usage uint32, plain []byte) ([]byte, error) {
	dst, f := der.Begin(dst, der.Context(n))
	dst, err := AppendEncrypted(dst, k, usage, plain)
	if err != nil {
		return nil, err
	}
	return der.End(dst, f), nil
}
