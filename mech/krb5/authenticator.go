package krb5

import (
	"gssproxyd/mech"
	"gssproxyd/mech/krb5/der"
	"gssproxyd/mech/krb5/etype"
)

// authenticator is an Authenticator (RFC 4120 section 5.5.1). Slices alias the plaintext.
type authenticator struct {
	etype.Redacted
	client       wireName
	hasChecksum  bool
	checksumType int32
	checksum     []byte
	cusec        int32 // 0 to 999,999
	ctime        uint32
	subkey       wireKey
	seq          uint32 // 0 when absent
	authData     []byte // contents of the SEQUENCE OF, nil when absent
}

// parse reads the plaintext b.
func (a *authenticator) parse(b []byte) *mech.Error {
	*a = authenticator{}
	r := der.NewReader(b)
	app := r.Enter(der.Application(2))
	seq := r.Enter(der.Sequence)
	ok := readVersion(&r, 0)
	readRealmAndName(&r, 1, &a.client)
	if r.Has(3) {
		f := r.Field(3)
		a.checksumType, a.checksum = readTyped(&r)
		r.Leave(f)
		a.hasChecksum = true
	}
	f := r.Field(4)
	a.cusec = int32(r.Int(0, 999_999))
	r.Leave(f)
	f = r.Field(5)
	a.ctime = r.Time()
	r.Leave(f)
	if r.Has(6) {
		f = r.Field(6)
		readKey(&r, &a.subkey)
		r.Leave(f)
	}
	if r.Has(7) {
		f = r.Field(7)
		a.seq = r.Uint32()
		r.Leave(f)
	}
	a.authData = readSequence(&r, 8)
	r.LeaveOpen(seq)
	r.Leave(app)
	return malformed("authenticator", &r, ok)
}
