package kdc

import (
	"gssproxyd/mech/krb5"
	"gssproxyd/mech/krb5/der"
	"gssproxyd/mech/krb5/etype"
)

// How the KDCs of these tests read and write messages: as trees of slices that look like the ASN.1,
// and by nothing that the client uses but package der, so that they share no fault with it.

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
	cipher, err := k.Encrypt(nil, usage, plain)
	if err != nil {
		panic(err)
	}
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
