package etype

import "encoding/binary"

// nfold stretches or folds in to n bytes (RFC 3961 section 5.1): copies of in, each rotated right
// by 13 bits more than the one before, are laid end to end up to a multiple of n and added n bytes
// at a time in ones' complement arithmetic.
func nfold(in []byte, n int) []byte {
	total := len(in) * n / gcd(len(in), n)
	out := make([]byte, n)
	bits := len(in) * 8
	carry := 0
	for i := total - 1; i >= 0; i-- {
		// Bits at*8 to at*8+7 of the copy that was rotated by 13 for each copy before it.
		at := i % len(in)
		first := ((at*8-13*(i/len(in)))%bits + bits) % bits
		v := 0
		for b := range 8 {
			p := (first + b) % bits
			v = v<<1 | int(in[p/8]>>(7-p%8))&1
		}
		carry += v + int(out[i%n])
		out[i%n] = byte(carry)
		carry >>= 8
	}
	for i := n - 1; carry != 0; i = (i + n - 1) % n {
		carry += int(out[i])
		out[i] = byte(carry)
		carry >>= 8
	}
	return out
}

func gcd(a, b int) int {
	for b != 0 {
		a, b = b, a%b
	}
	return a
}

// The last byte of a derivation constant says what the key is for (RFC 3961 section 5.3).
const (
	forEncryption = 0xAA
	forIntegrity  = 0x55
	forChecksum   = 0x99
)

// foldedUsages is one more than the highest key usage whose constants are folded beforehand. RFC
// 4120 and GSS-API use numbers up to 41; folding takes longer than the derivation proper.
const foldedUsages = 64

var (
	folded    = foldUsages()
	foldedPRF = nfold([]byte("prf"), 16)
)

func foldUsages() (t [foldedUsages][3][16]byte) {
	for u := range t {
		for i, purpose := range [...]byte{forEncryption, forIntegrity, forChecksum} {
			c := usageConstant(uint32(u), purpose)
			copy(t[u][i][:], nfold(c[:], 16))
		}
	}
	return t
}

func usageConstant(usage uint32, purpose byte) (c [5]byte) {
	binary.BigEndian.PutUint32(c[:], usage)
	c[4] = purpose
	return c
}

// appendFolded appends the 16-byte folded constant of usage and purpose.
func appendFolded(dst []byte, usage uint32, purpose byte) []byte {
	if usage < foldedUsages {
		i := 0
		switch purpose {
		case forIntegrity:
			i = 1
		case forChecksum:
			i = 2
		}
		return append(dst, folded[usage][i][:]...)
	}
	c := usageConstant(usage, purpose)
	return append(dst, nfold(c[:], 16)...)
}
