package etype

import (
	"crypto/rand"
	"crypto/rc4"
	"crypto/sha1"
	"crypto/subtle"
	"encoding/binary"
)

// signatureKey is the constant of RFC 4757 section 4, with its terminating zero.
var signatureKey = []byte("signaturekey\x00")

const rc4Sum = 16 // bytes of checksum in front of a ciphertext

// rc4Usage maps a key usage number to the one that goes into the derivation (RFC 4757 section 3, as
// implementations have it).
func rc4Usage(usage uint32) uint32 {
	switch usage {
	case 3:
		return 8
	case 23:
		return 13
	}
	return usage
}

func (s *secrets) decryptRC4(w *workspace, dst []byte, usage uint32, ct []byte) ([]byte, bool) {
	out, ok := s.tryRC4(w, dst, usage, ct)
	if !ok && usage == 9 { // Windows uses 9 where RFC 4757 says 8; either may come
		return s.tryRC4(w, dst, 8, ct)
	}
	return out, ok
}

func (s *secrets) tryRC4(w *workspace, dst []byte, usage uint32, ct []byte) ([]byte, bool) {
	var k1 [rc4Sum]byte
	u := s.usage(usage)
	if u == nil {
		copy(k1[:], s.deriveKey(w, usage, forIntegrity))
	}
	begin := func() {
		if u != nil {
			w.resume(&u.integ)
		} else {
			w.start(k1[:])
		}
	}
	sum, body := ct[:rc4Sum], ct[rc4Sum:]
	conf := w.conf[:s.t.confounder]
	begin()
	w.h.Write(sum)
	stream := newRC4(w.finish())
	out := grow(dst, len(body)-len(conf))
	pt := out[len(dst):]
	stream.XORKeyStream(conf, body[:len(conf)])
	stream.XORKeyStream(pt, body[len(conf):])
	begin()
	w.h.Write(conf)
	w.h.Write(pt)
	return out, subtle.ConstantTimeCompare(w.finish(), sum) == 1
}

func (s *secrets) encryptRC4(w *workspace, dst []byte, usage uint32, pt [][]byte) []byte {
	n := s.t.confounder
	for _, p := range pt {
		n += len(p)
	}
	out := grow(dst, rc4Sum+n)
	sum, body := out[len(dst):len(dst)+rc4Sum], out[len(dst)+rc4Sum:]
	conf := w.conf[:s.t.confounder]
	rand.Read(conf)
	at := copy(body, conf)
	for _, p := range pt {
		at += copy(body[at:], p)
	}
	var k1 [rc4Sum]byte
	copy(k1[:], s.deriveKey(w, usage, forIntegrity))
	w.start(k1[:])
	w.h.Write(body)
	copy(sum, w.finish())
	w.start(k1[:])
	w.h.Write(sum)
	newRC4(w.finish()).XORKeyStream(body, body)
	return out
}

// checksumMD5 is the HMAC-MD5 checksum of RFC 4757 section 4. w is one of MD5, whatever the key's
// type.
func (s *secrets) checksumMD5(w *workspace, u *usageKeys, usage uint32, msg [][]byte) []byte {
	w.h.Reset()
	binary.LittleEndian.PutUint32(w.buf[:], rc4Usage(usage))
	w.h.Write(w.buf[:4])
	for _, m := range msg {
		w.h.Write(m)
	}
	digest := w.h.Sum(w.buf[:0])
	if u != nil && s.t.family == rfc4757 {
		w.resume(&u.check)
	} else {
		w.start(s.raw[:s.t.key])
		w.h.Write(signatureKey)
		w.start(w.finish())
	}
	w.h.Write(digest)
	return w.finish()
}

func (s *secrets) prfRC4(dst, in []byte) []byte {
	w := hashSHA1.get()
	defer hashSHA1.put(w)
	w.start(s.raw[:s.t.key])
	w.h.Write(in)
	return append(dst, w.finish()[:sha1.Size]...)
}

// CryptRC4 encrypts or decrypts src into dst, of the same length, with the unauthenticated stream
// that per-message tokens of RFC 4757 section 7 are made of: sequence numbers with mask 0, sealed
// messages with mask 0xF0, which is applied to each byte of the key. seed is the checksum or the
// big-endian sequence number. It reports false, and does nothing, unless k is an RC4 key.
func (k *Key) CryptRC4(dst, src, seed []byte, mask byte) bool {
	s := k.secrets()
	if s == nil || s.t.family != rfc4757 {
		return false
	}
	w := hashMD5.get()
	defer hashMD5.put(w)
	key := w.buf[:s.t.key]
	for i := range key {
		key[i] = s.raw[i] ^ mask
	}
	w.start(key)
	w.h.Write(zeroIV[:4]) // usage 0
	w.start(w.finish())
	w.h.Write(seed)
	newRC4(w.finish()).XORKeyStream(dst, src)
	return true
}

// newRC4 is called with keys of 16 bytes only.
func newRC4(key []byte) *rc4.Cipher {
	c, err := rc4.NewCipher(key)
	if err != nil {
		panic("etype: " + err.Error())
	}
	return c
}
