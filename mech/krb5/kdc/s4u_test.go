package kdc

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/jcmturner/gofork/encoding/asn1"
	"github.com/jcmturner/gokrb5/v8/types"
	"golang.org/x/crypto/md4" //lint:ignore SA1019 MS-SFU section 2.2.2 wants it for RC4 keys

	"gssproxyd/mech/krb5"
	"gssproxyd/mech/krb5/etype"
)

// The padata of MS-SFU section 2.2 as the KDCs of these tests have it, by an ASN.1 package and
// types that are not ours, with numbers written out.

// s4uUserID is S4UUserID.
type s4uUserID struct {
	Nonce   int64               `asn1:"explicit,tag:0"`
	Name    types.PrincipalName `asn1:"explicit,tag:1"`
	Realm   string              `asn1:"generalstring,explicit,tag:2"`
	Options asn1.BitString      `asn1:"explicit,tag:4"`
}

func newS4UUserID(nonce uint32, user krb5.Principal) s4uUserID {
	return s4uUserID{
		Nonce: int64(nonce), Name: types.PrincipalName{NameType: user.Type, NameString: user.Components}, Realm: user.Realm,
		Options: asn1.BitString{Bytes: []byte{0x20, 0, 0, 0}, BitLength: 32},
	}
}

func (u s4uUserID) encode() []byte { return marshal(u) }

func (u s4uUserID) principal() krb5.Principal {
	return krb5.Principal{Realm: u.Realm, Components: u.Name.NameString, Type: u.Name.NameType}
}

// s4uSum is a Checksum.
type s4uSum struct {
	Type  int32  `asn1:"explicit,tag:0"`
	Value []byte `asn1:"explicit,tag:1"`
}

// s4uX509User is PA-S4U-X509-USER; in ID the octets of [0] are a s4uUserID.
type s4uX509User struct {
	ID  asn1.RawValue
	Sum s4uSum `asn1:"explicit,tag:1"`
}

func readS4UX509User(b []byte) (x s4uX509User, id s4uUserID, err error) {
	if err = unmarshal(b, &x); err == nil {
		err = unmarshal(x.ID.Bytes, &id)
	}
	return x, id, err
}

func encodeS4UX509User(id []byte, kind int32, sum []byte) []byte {
	return marshal(s4uX509User{asn1.RawValue{Class: asn1.ClassContextSpecific, IsCompound: true, Bytes: id}, s4uSum{kind, sum}})
}

// checkForUser verifies PA-FOR-USER.
func checkForUser(b []byte, user krb5.Principal, session *etype.Key) error {
	var f struct {
		Name    types.PrincipalName `asn1:"explicit,tag:0"`
		Realm   string              `asn1:"generalstring,explicit,tag:1"`
		Sum     s4uSum              `asn1:"explicit,tag:2"`
		Package string              `asn1:"generalstring,explicit,tag:3"`
	}
	if err := unmarshal(b, &f); err != nil {
		return err
	}
	signed := binary.LittleEndian.AppendUint32(nil, uint32(f.Name.NameType))
	for _, c := range f.Name.NameString {
		signed = append(signed, c...)
	}
	signed = append(append(signed, f.Realm...), f.Package...)
	named := krb5.Principal{Realm: f.Realm, Components: f.Name.NameString}
	if f.Package != "Kerberos" || !named.Equal(user) || f.Sum.Type != -138 || !session.VerifyChecksumType(-138, 17, f.Sum.Value, signed) {
		return fmt.Errorf("user %s, package %q, checksum of type %d", named, f.Package, f.Sum.Type)
	}
	return nil
}

func marshal(v any) []byte {
	b, err := asn1.Marshal(v)
	if err != nil {
		panic(err)
	}
	return b
}

func unmarshal(b []byte, v any) error {
	rest, err := asn1.Unmarshal(b, v)
	if err == nil && len(rest) > 0 {
		err = errors.New("something is left over")
	}
	return err
}

func md4Of(b []byte) []byte {
	h := md4.New()
	h.Write(b)
	return h.Sum(nil)
}
