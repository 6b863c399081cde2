// Package etype implements the Kerberos encryption types: encryption with integrity, keyed
// checksums and pseudo-random functions, per RFC 3961, RFC 3962, RFC 4757 and RFC 8009.
//
// A [Key] is used for a key usage number (RFC 4120 section 7.5.1), from which every operation
// derives its own keys. A long-term key is prepared once for the usages it serves ([Key.Prepare]);
// a session key is used as it comes, and a caller-held Key value can be filled again and again with
// [Key.Init].
//
// Ciphertexts carry a random confounder and an integrity check. Decryption compares in constant
// time and says no more than [ErrIntegrity]. Nothing in this package prints key bytes: see
// [Secret].
package etype

import (
	"errors"
	"fmt"
	"strings"

	"github.com/jcmturner/gokrb5/v8/iana/chksumtype"
	"github.com/jcmturner/gokrb5/v8/iana/etypeID"
)

// ID is an encryption type number (RFC 3961 section 8 and its IANA registry).
type ID int32

// Encryption type numbers. DES3 and the Camellia types are named and parsed but not implemented:
// [ID.Supported] is false for them.
const (
	DES3         = ID(etypeID.DES3_CBC_SHA1_KD)           // des3-cbc-sha1
	AES128SHA1   = ID(etypeID.AES128_CTS_HMAC_SHA1_96)    // RFC 3962
	AES256SHA1   = ID(etypeID.AES256_CTS_HMAC_SHA1_96)    // RFC 3962
	AES128SHA256 = ID(etypeID.AES128_CTS_HMAC_SHA256_128) // RFC 8009
	AES256SHA384 = ID(etypeID.AES256_CTS_HMAC_SHA384_192) // RFC 8009
	RC4          = ID(etypeID.RC4_HMAC)                   // RFC 4757
	RC4Export    = ID(etypeID.RC4_HMAC_EXP)               // RFC 4757, 56-bit variant
	Camellia128  = ID(etypeID.CAMELLIA128_CTS_CMAC)       // RFC 6803
	Camellia256  = ID(etypeID.CAMELLIA256_CTS_CMAC)       // RFC 6803
)

// ChecksumHMACMD5 is the keyed HMAC-MD5 checksum type of RFC 4757 section 4, which is applied to
// keys of any encryption type by some messages (PAC signatures, PA-FOR-USER).
const ChecksumHMACMD5 = chksumtype.KERB_CHECKSUM_HMAC_MD5

var (
	// ErrIntegrity says that a ciphertext was not made with this key for this usage, or was
	// changed.
	ErrIntegrity = errors.New("etype: integrity check failed: wrong key or damaged ciphertext")
	// ErrShort says that a ciphertext is shorter than confounder and checksum together.
	ErrShort = errors.New("etype: ciphertext shorter than its confounder and checksum")
)

// info is what is fixed about one encryption type.
type info struct {
	id         ID
	name       string
	aliases    []string
	key        int   // key length in bytes
	mac        int   // checksum bytes of a ciphertext
	confounder int   // random bytes in front of the plaintext
	sumType    int32 // mandatory checksum type
	sum        int   // length of that checksum
	prf        int   // length of one PRF output
	cfx        bool  // RFC 4121 tokens (newer than RFC 4757 and DES)
	supported  bool
	family     family
	hash       digest
}

// family says which document's mechanics apply.
type family uint8

const (
	rfc3962 family = iota
	rfc8009
	rfc4757
)

var infos = [...]info{
	{id: DES3, name: "des3-cbc-sha1", aliases: []string{"des3-hmac-sha1", "des3-cbc-sha1-kd"}, key: 24, mac: 20, confounder: 8, sumType: chksumtype.HMAC_SHA1_DES3_KD, sum: 20, prf: 16},
	{id: AES128SHA1, name: "aes128-cts-hmac-sha1-96", aliases: []string{"aes128-cts", "aes128-sha1"}, key: 16, mac: 12, confounder: 16, sumType: chksumtype.HMAC_SHA1_96_AES128, sum: 12, prf: 16, cfx: true, supported: true, family: rfc3962, hash: hashSHA1},
	{id: AES256SHA1, name: "aes256-cts-hmac-sha1-96", aliases: []string{"aes256-cts", "aes256-sha1"}, key: 32, mac: 12, confounder: 16, sumType: chksumtype.HMAC_SHA1_96_AES256, sum: 12, prf: 16, cfx: true, supported: true, family: rfc3962, hash: hashSHA1},
	{id: AES128SHA256, name: "aes128-cts-hmac-sha256-128", aliases: []string{"aes128-sha2"}, key: 16, mac: 16, confounder: 16, sumType: chksumtype.HMAC_SHA256_128_AES128, sum: 16, prf: 32, cfx: true, supported: true, family: rfc8009, hash: hashSHA256},
	{id: AES256SHA384, name: "aes256-cts-hmac-sha384-192", aliases: []string{"aes256-sha2"}, key: 32, mac: 24, confounder: 16, sumType: chksumtype.HMAC_SHA384_192_AES256, sum: 24, prf: 48, cfx: true, supported: true, family: rfc8009, hash: hashSHA384},
	{id: RC4, name: "arcfour-hmac", aliases: []string{"rc4-hmac", "arcfour-hmac-md5"}, key: 16, mac: 16, confounder: 8, sumType: ChecksumHMACMD5, sum: 16, prf: 20, supported: true, family: rfc4757, hash: hashMD5},
	{id: RC4Export, name: "arcfour-hmac-exp", aliases: []string{"rc4-hmac-exp", "arcfour-hmac-md5-exp"}, key: 16, mac: 16, confounder: 8, sumType: ChecksumHMACMD5, sum: 16, prf: 20},
	{id: Camellia128, name: "camellia128-cts-cmac", aliases: []string{"camellia128-cts"}, key: 16, mac: 16, confounder: 16, sumType: chksumtype.CMAC_CAMELLIA128, sum: 16, prf: 16, cfx: true},
	{id: Camellia256, name: "camellia256-cts-cmac", aliases: []string{"camellia256-cts"}, key: 32, mac: 16, confounder: 16, sumType: chksumtype.CMAC_CAMELLIA256, sum: 16, prf: 16, cfx: true},
}

var families = [...]struct {
	name string
	ids  []ID
}{
	{"des3", []ID{DES3}},
	{"aes", []ID{AES256SHA1, AES128SHA1, AES256SHA384, AES128SHA256}},
	{"rc4", []ID{RC4}},
	{"camellia", []ID{Camellia256, Camellia128}},
}

// lookup returns the entry of id, nil for a number this package does not know.
func (id ID) lookup() *info {
	for i := range infos {
		if infos[i].id == id {
			return &infos[i]
		}
	}
	return &unknown
}

// unknown stands for all types that are not in the table.
var unknown info

// String returns the name krb5.conf and MIT tools use, "etype 99" for an unknown number.
func (id ID) String() string {
	if t := id.lookup(); t != &unknown {
		return t.name
	}
	return fmt.Sprintf("etype %d", int32(id))
}

// Supported reports whether this package can encrypt and decrypt with id.
func (id ID) Supported() bool { return id.lookup().supported }

// IsName reports whether a text is the name of a type that is supported, as String writes it.
func IsName(text string) bool {
	ids, _ := Parse(text)
	return len(ids) == 1 && ids[0].Supported() && ids[0].String() == text
}

// KeySize returns the length of a key in bytes, 0 for an unknown number.
func (id ID) KeySize() int { return id.lookup().key }

// MACSize returns how many bytes at the end of a ciphertext serve as its checksum; 0 for an unknown
// number. RC4 keeps its checksum in front, so there the last 16 bytes are data; replay caches tag
// them all the same.
func (id ID) MACSize() int { return id.lookup().mac }

// Overhead returns how many bytes a ciphertext is longer than its plaintext; 0 for an unknown
// number.
func (id ID) Overhead() int { return id.lookup().confounder + id.lookup().mac }

// ChecksumType returns the mandatory checksum type (RFC 3961 section 4), which [Key.AppendChecksum]
// makes; 0 for an unknown number.
func (id ID) ChecksumType() int32 { return id.lookup().sumType }

// ChecksumSize returns the length in bytes of what [Key.AppendChecksum] makes; 0 for an unknown
// number.
func (id ID) ChecksumSize() int { return id.lookup().sum }

// CFX reports whether per-message tokens under such a key follow RFC 4121; the older types keep the
// tokens of RFC 1964 and RFC 4757.
func (id ID) CFX() bool { return id.lookup().cfx }

// AllSupported returns every encryption type that is [ID.Supported].
func AllSupported() (ids []ID) {
	for _, t := range infos {
		if t.supported {
			ids = append(ids, t.id)
		}
	}
	return ids
}

// Parse returns what one word of a krb5.conf enctype list stands for: one encryption type by name
// or alias, or a family ("aes", "rc4", "des3", "camellia") in MIT's order of preference. Case does
// not matter. Types that are known but not [ID.Supported] are returned too.
func Parse(name string) ([]ID, bool) {
	for i := range families {
		if strings.EqualFold(name, families[i].name) {
			return append([]ID(nil), families[i].ids...), true
		}
	}
	for _, t := range infos {
		for _, known := range append(t.aliases, t.name) {
			if strings.EqualFold(name, known) {
				return []ID{t.id}, true
			}
		}
	}
	return nil, false
}
