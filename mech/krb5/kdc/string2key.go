package kdc

import (
	"crypto/aes"
	"crypto/hmac"
	"crypto/pbkdf2"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"hash"
	"unicode/utf16"

	"golang.org/x/crypto/md4" //lint:ignore SA1019 what RFC 4757 keys are made with

	"gssproxyd/mech/krb5/etype"
)

// maxIterations bounds what a KDC, or somebody pretending to be one, can make us compute: about a
// second.
const maxIterations = 1 << 20

// foldedKerberos is "kerberos" folded to 128 bits (RFC 3961 section 5.1).
const foldedKerberos = "6b65726265726f737b9b5b2b93132b93"

// StringToKey derives a key from a password as its type demands (RFC 3962 section 4, RFC 8009
// section 4, RFC 4757 section 2). params are four octets with the number of iterations, or none for
// the type's default. The error says which type or parameter is not supported.
func StringToKey(id etype.ID, password etype.Secret, salt string, params []byte) (*etype.Key, error) {
	var iterations int
	switch id {
	case etype.AES128SHA1, etype.AES256SHA1:
		iterations = 4096
	case etype.AES128SHA256, etype.AES256SHA384:
		iterations = 32768
	case etype.RC4:
		return rc4Key(password)
	default:
		return nil, fmt.Errorf("no keys of type %v can be made from a password", id)
	}
	switch len(params) {
	case 0:
	case 4:
		n := binary.BigEndian.Uint32(params)
		if n == 0 || n > maxIterations {
			return nil, fmt.Errorf("the KDC asks for %d iterations; expected 1 to %d", n, maxIterations)
		}
		iterations = int(n)
	default:
		return nil, fmt.Errorf("the KDC's parameters for %v are of %d octets, expected 4", id, len(params))
	}
	h := sha1.New
	switch id {
	case etype.AES128SHA256:
		h = sha256.New
	case etype.AES256SHA384:
		h = sha512.New384
	}
	if id == etype.AES128SHA256 || id == etype.AES256SHA384 {
		salt = id.String() + "\x00" + salt
	}
	base, err := pbkdf2.Key(h, string(password), []byte(salt), iterations, id.KeySize())
	if err != nil {
		return nil, err
	}
	defer clear(base)
	var raw []byte
	if id == etype.AES128SHA1 || id == etype.AES256SHA1 {
		raw, err = derive3962(base)
	} else {
		raw = derive8009(h, base)
	}
	if err != nil {
		return nil, err
	}
	defer clear(raw)
	return etype.NewKey(id, raw)
}

// derive3962 is DK of RFC 3961 with the constant "kerberos".
func derive3962(base []byte) ([]byte, error) {
	c, err := aes.NewCipher(base)
	if err != nil {
		return nil, err
	}
	block, _ := hex.DecodeString(foldedKerberos)
	var raw []byte
	for len(raw) < len(base) {
		c.Encrypt(block, block)
		raw = append(raw, block...)
	}
	return raw, nil
}

// derive8009 is KDF-HMAC-SHA2 of RFC 8009 section 3 with the label "kerberos".
func derive8009(h func() hash.Hash, base []byte) []byte {
	m := hmac.New(h, base)
	m.Write([]byte("\x00\x00\x00\x01kerberos\x00"))
	m.Write(binary.BigEndian.AppendUint32(nil, uint32(8*len(base))))
	return m.Sum(nil)[:len(base)]
}

// rc4Key is MD4 of the password in UTF-16.
func rc4Key(password etype.Secret) (*etype.Key, error) {
	var wide []byte
	for _, u := range utf16.Encode([]rune(string(password))) {
		wide = binary.LittleEndian.AppendUint16(wide, u)
	}
	defer clear(wide)
	h := md4.New()
	h.Write(wide)
	return etype.NewKey(etype.RC4, h.Sum(nil))
}
