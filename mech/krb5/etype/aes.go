package etype

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"crypto/subtle"
	"slices"
)

// The AES types differ in what is authenticated: the plaintext (RFC 3962) or the ciphertext with
// its initial vector, always zero (RFC 8009).

// zeroIV is the initial vector, of which RFC 8009 authenticates 16 bytes.
var zeroIV [aes.BlockSize]byte

func (s *secrets) decrypt3962(w *workspace, dst []byte, usage uint32, ct []byte) ([]byte, bool) {
	n := len(ct) - s.t.mac
	u := s.usage(usage)
	out := grow(dst, n-aes.BlockSize)
	pt := out[len(dst):]
	decryptCTS(s.cipherFor(w, u, usage), w, pt, ct[:n])
	s.startMAC(w, u, usage, forIntegrity)
	w.h.Write(w.conf[:])
	w.h.Write(pt)
	return out, subtle.ConstantTimeCompare(w.finish()[:s.t.mac], ct[n:]) == 1
}

func (s *secrets) encrypt3962(w *workspace, dst []byte, usage uint32, pt [][]byte) []byte {
	u := s.usage(usage)
	out, body := s.layOut(w, dst, pt)
	block := s.cipherFor(w, u, usage)
	s.startMAC(w, u, usage, forIntegrity)
	w.h.Write(body)
	copy(out[len(out)-s.t.mac:], w.finish())
	encryptCTS(block, w, body)
	return out
}

func (s *secrets) decrypt8009(w *workspace, dst []byte, usage uint32, ct []byte) ([]byte, bool) {
	n := len(ct) - s.t.mac
	u := s.usage(usage)
	s.startMAC(w, u, usage, forIntegrity)
	w.h.Write(zeroIV[:])
	w.h.Write(ct[:n])
	if subtle.ConstantTimeCompare(w.finish()[:s.t.mac], ct[n:]) != 1 {
		return dst, false
	}
	out := grow(dst, n-aes.BlockSize)
	decryptCTS(s.cipherFor(w, u, usage), w, out[len(dst):], ct[:n])
	return out, true
}

func (s *secrets) encrypt8009(w *workspace, dst []byte, usage uint32, pt [][]byte) []byte {
	u := s.usage(usage)
	out, body := s.layOut(w, dst, pt)
	encryptCTS(s.cipherFor(w, u, usage), w, body)
	s.startMAC(w, u, usage, forIntegrity)
	w.h.Write(zeroIV[:])
	w.h.Write(body)
	copy(out[len(out)-s.t.mac:], w.finish())
	return out
}

// layOut appends a random confounder, the plaintext and room for the checksum to dst. body is the
// part to be encrypted.
func (s *secrets) layOut(w *workspace, dst []byte, pt [][]byte) (out, body []byte) {
	n := aes.BlockSize
	for _, p := range pt {
		n += len(p)
	}
	out = grow(dst, n+s.t.mac)
	body = out[len(dst) : len(dst)+n]
	rand.Read(w.conf[:])
	at := copy(body, w.conf[:])
	for _, p := range pt {
		at += copy(body[at:], p)
	}
	return out, body
}

// grow returns dst lengthened by n bytes of any value.
func grow(dst []byte, n int) []byte { return slices.Grow(dst, n)[:len(dst)+n] }

// encryptCTS encrypts p, at least one block, in place: CBC with zero initial vector and ciphertext
// stealing, the last two blocks always swapped unless there is just one (RFC 3962 section 5).
//
// The block mode of crypto/cipher is not used: it copies the key schedule into an object of 512
// bytes each time, which costs more than it saves on messages of this size.
func encryptCTS(b cipher.Block, w *workspace, p []byte) {
	const size = aes.BlockSize
	b.Encrypt(p[:size], p[:size])
	at := size
	for ; at+size < len(p); at += size {
		block := p[at : at+size : at+size]
		subtle.XORBytes(block, block, p[at-size:at])
		b.Encrypt(block, block)
	}
	if at >= len(p) {
		return
	}
	prev := p[at-size : at : at]
	clear(w.prev[copy(w.prev[:], p[at:]):])
	subtle.XORBytes(w.prev[:], w.prev[:], prev)
	b.Encrypt(w.prev[:], w.prev[:])
	copy(p[at:], prev)
	copy(prev, w.prev[:])
}

// decryptCTS reverses encryptCTS: the first block of plaintext goes to w.conf, the rest to dst,
// which is one block shorter than ct.
func decryptCTS(b cipher.Block, w *workspace, dst, ct []byte) {
	const size = aes.BlockSize
	if len(ct) == size {
		b.Decrypt(w.conf[:], ct)
		return
	}
	// The last block, of 1 to 16 bytes, begins at last. All before the two swapped ones is plain
	// CBC.
	last := (len(ct) - 1) / size * size
	if last > size {
		b.Decrypt(w.conf[:], ct[:size])
		for at := size; at < last-size; at += size {
			b.Decrypt(dst[at-size:at:at], ct[at:at+size])
		}
		cbc := dst[:last-2*size]
		subtle.XORBytes(cbc, cbc, ct)
	}
	tail := ct[last:]
	b.Decrypt(w.prev[:], ct[last-size:last])
	subtle.XORBytes(dst[last-size:], w.prev[:], tail)
	copy(w.prev[:], tail)
	b.Decrypt(w.prev[:], w.prev[:])
	if last == size {
		w.conf = w.prev
		return
	}
	subtle.XORBytes(dst[last-2*size:last-size], w.prev[:], ct[last-2*size:last-size])
}
