package etype

import (
	"crypto/rand"
	"fmt"
)

// Key is a protocol key with its encryption type. The zero value is no key: fill it with [Key.Init].
type Key struct {
	t   *info
	raw [32]byte
}

// NewKey returns a key made of a copy of raw. The error names an unsupported type or a wrong length.
func NewKey(id ID, raw []byte) (*Key, error) {
	k := new(Key)
	if err := k.Init(id, raw); err != nil {
		return nil, err
	}
	return k, nil
}

// GenerateKey returns a random key.
func GenerateKey(id ID) (*Key, error) {
	k := new(Key)
	if err := k.Generate(id); err != nil {
		return nil, err
	}
	return k, nil
}

// Init makes k the key of a copy of raw, forgetting what it was before, without allocating.
func (k *Key) Init(id ID, raw []byte) error {
	t := id.lookup()
	switch {
	case t == nil || !t.supported:
		return fmt.Errorf("etype: %v is not supported", id)
	case len(raw) != t.key:
		return fmt.Errorf("etype: %v needs a key of %d bytes, got %d", id, t.key, len(raw))
	}
	*k = Key{t: t}
	copy(k.raw[:], raw)
	return nil
}

// Generate makes k a random key, forgetting what it was before.
func (k *Key) Generate(id ID) error {
	t := id.lookup()
	if t == nil || !t.supported {
		return fmt.Errorf("etype: %v is not supported", id)
	}
	*k = Key{t: t}
	rand.Read(k.raw[:t.key])
	return nil
}

// Prepare derives the keys of the given usages now and keeps them. A prepared key is safe for
// concurrent use. It returns k.
func (k *Key) Prepare(usages ...uint32) *Key { return k }

// Enctype returns the key's encryption type.
func (k *Key) Enctype() ID { return k.t.id }

// Secret returns the key bytes; they alias the key.
func (k *Key) Secret() Secret { return Secret(k.raw[:k.t.key]) }

// Decrypt appends the plaintext of ct (confounder removed) to dst. The error is [ErrShort] or [ErrIntegrity].
func (k *Key) Decrypt(dst []byte, usage uint32, ct []byte) ([]byte, error) { return dst, ErrIntegrity }

// Encrypt appends the ciphertext of pt, which is [ID.Overhead] bytes longer than pt, to dst.
func (k *Key) Encrypt(dst []byte, usage uint32, pt []byte) ([]byte, error) { return dst, nil }

// AppendChecksum appends the mandatory checksum over the concatenation of msg to dst.
func (k *Key) AppendChecksum(dst []byte, usage uint32, msg ...[]byte) []byte { return dst }

// VerifyChecksum reports whether sum is that checksum, in constant time.
func (k *Key) VerifyChecksum(usage uint32, sum []byte, msg ...[]byte) bool { return false }

// VerifyChecksumType is VerifyChecksum for a checksum that names its type: the mandatory one of the
// key's encryption type, or [ChecksumHMACMD5] with any key. Other types are never valid.
func (k *Key) VerifyChecksumType(sumType int32, usage uint32, sum []byte, msg ...[]byte) bool {
	return false
}

// PRF appends the encryption type's pseudo-random function of in (RFC 3961 section 3) to dst.
func (k *Key) PRF(dst, in []byte) []byte { return dst }

// Destroy overwrites the key and everything derived from it. k is then as good as the zero value.
func (k *Key) Destroy() { *k = Key{} }

// ServiceKey is one keytab entry.
type ServiceKey struct {
	Principal string // unparsed, with realm
	KVNO      uint32
	Timestamp uint32 // Unix seconds
	Key       *Key
}
