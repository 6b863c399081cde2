package etype

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"crypto/subtle"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
)

// Key is a protocol key with its encryption type. The zero value is no key; fill it with
// [Key.Init].
//
// A key may be used by one goroutine at a time; after [Key.Prepare] by any number. Copies of a Key
// share the key: pass pointers.
//
// Formatting, marshalling or logging a Key, or a struct that holds one, shows no key bytes.
type Key struct {
	// fmt does not call the methods of unexported fields but prints what is in them. It stops at a
	// pointer there, unless the verb suits no pointer; at a pointer to a pointer it always does.
	p **secrets
}

type secrets struct {
	t      *info
	raw    [32]byte
	base   cipher.Block // AES under the protocol key (RFC 3962), made on first use
	kdf    macKey       // HMAC under the protocol key (RFC 8009), made on first use
	usages []usageKeys
}

// usageKeys are the keys derived for one usage (RFC 3961 section 5.3).
type usageKeys struct {
	usage uint32
	enc   cipher.Block // nil for RC4
	integ macKey
	check macKey
}

var errNoKey = errors.New("etype: no key: not initialised or destroyed")

// NewKey returns a key made of a copy of raw. The error names an unsupported type or a wrong
// length.
func NewKey(id ID, raw []byte) (*Key, error) {
	k := newKey()
	if err := k.Init(id, raw); err != nil {
		return nil, err
	}
	return k, nil
}

// GenerateKey returns a random key.
func GenerateKey(id ID) (*Key, error) {
	k := newKey()
	if err := k.Generate(id); err != nil {
		return nil, err
	}
	return k, nil
}

// newKey returns a Key and all it points to in one piece of memory.
func newKey() *Key {
	all := new(struct {
		k Key
		p *secrets
		s secrets
	})
	all.p = &all.s
	all.k.p = &all.p
	return &all.k
}

// Init makes k the key of a copy of raw, forgetting what it was before. The memory of a Key that
// was initialised before is reused, so do not call it while others may use the key.
func (k *Key) Init(id ID, raw []byte) error {
	if t := id.lookup(); t.supported && len(raw) != t.key {
		return fmt.Errorf("etype: %v needs a key of %d bytes, got %d", id, t.key, len(raw))
	}
	if err := k.reset(id); err != nil {
		return err
	}
	copy((*k.p).raw[:], raw)
	return nil
}

// Generate makes k a random key, forgetting what it was before, as [Key.Init] does.
func (k *Key) Generate(id ID) error {
	if err := k.reset(id); err != nil {
		return err
	}
	s := *k.p
	rand.Read(s.raw[:s.t.key])
	return nil
}

func (k *Key) reset(id ID) error {
	t := id.lookup()
	if !t.supported {
		return fmt.Errorf("etype: %v is not supported", id)
	}
	if k.p == nil {
		k.p = newKey().p
	}
	**k.p = secrets{t: t}
	return nil
}

// Destroy overwrites the key and what was derived from it, except for AES key schedules, which the
// standard library gives no access to. k is no key afterwards.
func (k *Key) Destroy() {
	s := k.secrets()
	if s == nil {
		return
	}
	for i := range s.usages {
		s.usages[i].integ.zero()
		s.usages[i].check.zero()
	}
	s.kdf.zero()
	*s = secrets{}
}

// secrets returns nil if there is no key; a nil Key is none.
func (k *Key) secrets() *secrets {
	if k == nil || k.p == nil || (*k.p).t == nil {
		return nil
	}
	return *k.p
}

// Enctype returns the key's encryption type, 0 for no key.
func (k *Key) Enctype() ID {
	if s := k.secrets(); s != nil {
		return s.t.id
	}
	return 0
}

// Secret returns the key bytes; they alias the key and vanish with it.
func (k *Key) Secret() Secret {
	if s := k.secrets(); s != nil {
		return Secret(s.raw[:s.t.key])
	}
	return nil
}

// Format writes the encryption type, whatever the verb.
func (k Key) Format(f fmt.State, _ rune) { io.WriteString(f, k.String()) }

// String returns the encryption type.
func (k Key) String() string {
	if s := k.secrets(); s != nil {
		return "Key(" + s.t.name + " " + redacted + ")"
	}
	return "Key(none)"
}

// LogValue returns the encryption type.
func (k Key) LogValue() slog.Value { return slog.StringValue(k.String()) }

// MarshalText returns the encryption type.
func (k Key) MarshalText() ([]byte, error) { return []byte(k.String()), nil }

// Prepare derives the keys of the given usages now and keeps them, and makes k safe for concurrent
// use, the faster in these usages. It returns k. It must not run while others use k.
func (k *Key) Prepare(usages ...uint32) *Key {
	s := k.secrets()
	if s == nil {
		return k
	}
	w := s.t.hash.get()
	defer s.t.hash.put(w)
	s.deriveBase(w)
	for _, u := range usages {
		if s.usage(u) == nil {
			s.usages = append(s.usages, s.derive(w, u))
		}
	}
	return k
}

// usage returns the prepared keys of a usage, nil if there are none.
func (s *secrets) usage(usage uint32) *usageKeys {
	for i := range s.usages {
		if s.usages[i].usage == usage {
			return &s.usages[i]
		}
	}
	return nil
}

// deriveBase makes what every derivation from this key needs.
func (s *secrets) deriveBase(w *workspace) {
	switch s.t.family {
	case rfc3962:
		if s.base == nil {
			s.base = newAES(s.raw[:s.t.key])
		}
	case rfc8009:
		if s.kdf.inner == nil {
			s.kdf = w.macKey(s.raw[:s.t.key])
		}
	}
}

// derive makes all keys of a usage.
func (s *secrets) derive(w *workspace, usage uint32) usageKeys {
	u := usageKeys{usage: usage}
	if s.t.family != rfc4757 {
		u.enc = newAES(s.deriveKey(w, usage, forEncryption))
	}
	u.integ = w.macKey(s.deriveKey(w, usage, forIntegrity))
	u.check = w.macKey(s.deriveKey(w, usage, forChecksum))
	return u
}

// deriveKey returns one key of a usage, in a buffer of w that the next derivation overwrites.
func (s *secrets) deriveKey(w *workspace, usage uint32, purpose byte) []byte {
	s.deriveBase(w)
	switch s.t.family {
	case rfc3962: // DK of RFC 3961 section 5.1
		return s.dk(w, appendFolded(w.buf[:0], usage, purpose))
	case rfc8009:
		n := s.t.key
		if purpose != forEncryption {
			n = s.t.mac
		}
		c := usageConstant(usage, purpose)
		return s.kdfHMAC(w, c[:], nil, n)
	default: // RFC 4757: one key a usage, another for checksums in any
		w.start(s.raw[:s.t.key])
		if purpose == forChecksum {
			w.h.Write(signatureKey)
		} else {
			binary.LittleEndian.PutUint32(w.buf[:], rc4Usage(usage))
			w.h.Write(w.buf[:4])
		}
		return append(w.buf[:0], w.finish()...)
	}
}

// dk encrypts the 16-byte constant at the start of w.buf, and the result again as the key is long.
func (s *secrets) dk(w *workspace, c []byte) []byte {
	s.base.Encrypt(c, c)
	if s.t.key == 32 {
		c = c[:32]
		s.base.Encrypt(c[16:], c[:16])
	}
	return c
}

// kdfHMAC is KDF-HMAC-SHA2 (RFC 8009 section 3) for n bytes, in w.buf.
func (s *secrets) kdfHMAC(w *workspace, label, context []byte, n int) []byte {
	w.resume(&s.kdf)
	b := append(w.buf[:0], 0, 0, 0, 1)
	b = append(b, label...)
	b = append(b, 0)
	w.h.Write(b)
	if len(context) > 0 {
		w.h.Write(context)
	}
	w.h.Write(binary.BigEndian.AppendUint32(w.buf[:0], uint32(n)*8))
	return append(w.buf[:0], w.finish()[:n]...)
}

// cipherFor returns the block cipher of a usage, prepared or derived.
func (s *secrets) cipherFor(w *workspace, u *usageKeys, usage uint32) cipher.Block {
	if u != nil {
		return u.enc
	}
	return newAES(s.deriveKey(w, usage, forEncryption))
}

// startMAC begins the integrity or checksum HMAC of a usage, prepared or derived.
func (s *secrets) startMAC(w *workspace, u *usageKeys, usage uint32, purpose byte) {
	switch {
	case u == nil:
		w.start(s.deriveKey(w, usage, purpose))
	case purpose == forIntegrity:
		w.resume(&u.integ)
	default:
		w.resume(&u.check)
	}
}

// newAES is called with keys of proper length only.
func newAES(key []byte) cipher.Block {
	b, err := aes.NewCipher(key)
	if err != nil {
		panic("etype: " + err.Error())
	}
	return b
}

// Decrypt appends the plaintext of ct, without its confounder, to dst. The room after dst must not
// overlap ct. The error is [ErrShort] or [ErrIntegrity]; then dst is returned as it was.
func (k *Key) Decrypt(dst []byte, usage uint32, ct []byte) ([]byte, error) {
	s := k.secrets()
	if s == nil {
		return dst, errNoKey
	}
	if len(ct) < s.t.confounder+s.t.mac {
		return dst, ErrShort
	}
	w := s.t.hash.get()
	defer s.t.hash.put(w)
	out, ok := dst, false
	switch s.t.family {
	case rfc3962:
		out, ok = s.decrypt3962(w, dst, usage, ct)
	case rfc8009:
		out, ok = s.decrypt8009(w, dst, usage, ct)
	case rfc4757:
		out, ok = s.decryptRC4(w, dst, usage, ct)
	}
	if !ok {
		clear(out[len(dst):])
		return dst, ErrIntegrity
	}
	return out, nil
}

// Encrypt appends the ciphertext of the concatenation of pt to dst; it is [ID.Overhead] bytes
// longer than that. The room after dst must not overlap pt. The only error is to have no key.
func (k *Key) Encrypt(dst []byte, usage uint32, pt ...[]byte) ([]byte, error) {
	s := k.secrets()
	if s == nil {
		return dst, errNoKey
	}
	w := s.t.hash.get()
	defer s.t.hash.put(w)
	switch s.t.family {
	case rfc3962:
		return s.encrypt3962(w, dst, usage, pt), nil
	case rfc8009:
		return s.encrypt8009(w, dst, usage, pt), nil
	default:
		return s.encryptRC4(w, dst, usage, pt), nil
	}
}

// AppendChecksum appends the mandatory checksum of the key's encryption type, over the
// concatenation of msg, to dst.
func (k *Key) AppendChecksum(dst []byte, usage uint32, msg ...[]byte) []byte {
	s := k.secrets()
	if s == nil {
		return dst
	}
	w := s.t.hash.get()
	defer s.t.hash.put(w)
	return append(dst, s.checksum(w, usage, msg)...)
}

// VerifyChecksum reports whether sum is what [Key.AppendChecksum] makes, in constant time.
func (k *Key) VerifyChecksum(usage uint32, sum []byte, msg ...[]byte) bool {
	s := k.secrets()
	if s == nil {
		return false
	}
	w := s.t.hash.get()
	defer s.t.hash.put(w)
	return subtle.ConstantTimeCompare(s.checksum(w, usage, msg), sum) == 1
}

// VerifyChecksumType is VerifyChecksum for a checksum that names its type: the mandatory one of the
// key's encryption type, or [ChecksumHMACMD5], which any key can make. No other type is ever right.
func (k *Key) VerifyChecksumType(sumType int32, usage uint32, sum []byte, msg ...[]byte) bool {
	s := k.secrets()
	switch {
	case s == nil:
		return false
	case sumType == s.t.sumType:
		return k.VerifyChecksum(usage, sum, msg...)
	case sumType == ChecksumHMACMD5:
		w := hashMD5.get()
		defer hashMD5.put(w)
		return subtle.ConstantTimeCompare(s.checksumMD5(w, nil, usage, msg), sum) == 1
	}
	return false
}

// AppendChecksumHMACMD5 appends the [ChecksumHMACMD5] checksum, whatever the key's encryption type.
func (k *Key) AppendChecksumHMACMD5(dst []byte, usage uint32, msg ...[]byte) []byte {
	s := k.secrets()
	if s == nil {
		return dst
	}
	w := hashMD5.get()
	defer hashMD5.put(w)
	return append(dst, s.checksumMD5(w, nil, usage, msg)...)
}

func (s *secrets) checksum(w *workspace, usage uint32, msg [][]byte) []byte {
	u := s.usage(usage)
	if s.t.family == rfc4757 {
		return s.checksumMD5(w, u, usage, msg)
	}
	s.startMAC(w, u, usage, forChecksum)
	for _, m := range msg {
		w.h.Write(m)
	}
	return w.finish()[:s.t.sum]
}

// PRF appends the encryption type's pseudo-random function of in (RFC 3961 section 3) to dst.
func (k *Key) PRF(dst, in []byte) []byte {
	s := k.secrets()
	if s == nil {
		return dst
	}
	if s.t.family == rfc4757 {
		return s.prfRC4(dst, in)
	}
	w := s.t.hash.get()
	defer s.t.hash.put(w)
	s.deriveBase(w)
	if s.t.family == rfc8009 {
		return append(dst, s.kdfHMAC(w, []byte("prf"), in, s.t.prf)...)
	}
	w.h.Reset()
	w.h.Write(in)
	block := w.h.Sum(w.sum[:0])[:aes.BlockSize]
	newAES(s.dk(w, append(w.buf[:0], foldedPRF...))).Encrypt(block, block)
	return append(dst, block...)
}

// ServiceKey is one keytab entry.
type ServiceKey struct {
	Principal string // unparsed, with realm
	KVNO      uint32
	Timestamp uint32 // Unix seconds
	Pending   bool   // the KDC may not have it yet, and its version is a guess
	Previous  bool   // it is kept for tickets from before Timestamp
	Until     int64  // when it is taken away then, in Unix seconds; 0: not known
	Key       *Key
	Use       *KeyUse // when it was used; nil if nobody asks
}
