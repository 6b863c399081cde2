package krb5

import (
	"crypto/rand"
	"crypto/subtle"
	"encoding/binary"

	"gssproxyd/mech"
	"gssproxyd/mech/krb5/der"
	"gssproxyd/mech/krb5/etype"
)

// Tokens of RC4 contexts (RFC 1964 section 1.2 with the algorithms of RFC 4757 section 7), framed
// as RFC 2743 section 3.1 says, 32-bit sequence numbers:
//
//	0   01 01 (MIC) or 02 01 (wrap)
//	2   11 00, HMAC-MD5
//	4   10 00, RC4, for a sealed wrap token; else FF FF
//	6   FF FF
//	8   sequence number, big-endian, and four times the sender (00 initiator, FF acceptor), encrypted
//	16  checksum, of which 8 bytes, over the first 8 bytes and message or confounder, message and padding
//	24  wrap: 8 bytes of confounder, message, padding 01; encrypted if sealed

// Key usages of the checksums, in the numbering of etype.Key: RC4's own for wrap is 13.
const (
	usageRC4Wrap = 23
	usageRC4MIC  = 15
)

const (
	rc4HeaderSize = 24
	rc4Confounder = 8
	rc4SealMask   = 0xF0
	rc4Padding    = 1 // the only length of padding, and its value
)

// appendFrame appends the framing and the first 8 bytes of a token with n bytes after its header.
func (c *Context) appendFrame(dst []byte, tok uint16, sealed bool, n int) []byte {
	oid := c.mech()
	dst = der.AppendHeader(dst, der.Application(0), der.HeaderSize(len(oid))+len(oid)+rc4HeaderSize+n)
	dst = append(der.AppendHeader(dst, der.ObjectID, len(oid)), oid...)
	dst = binary.BigEndian.AppendUint16(dst, tok)
	dst = append(dst, signAlgHMACMD5, 0)
	if sealed {
		return append(dst, sealAlgRC4, 0, 0xFF, 0xFF)
	}
	return append(dst, 0xFF, 0xFF, 0xFF, 0xFF)
}

// appendSeqAndSum appends the encrypted sequence number and the checksum.
func (c *Context) appendSeqAndSum(dst []byte, k *etype.Key, sum []byte) []byte {
	sum = sum[:rc4CksumSize]
	var seq [8]byte
	binary.BigEndian.PutUint32(seq[:], uint32(c.SendSeq))
	if !c.Initiator {
		copy(seq[4:], "\xFF\xFF\xFF\xFF")
	}
	dst = append(dst, seq[:]...)
	seqField := dst[len(dst)-len(seq):]
	k.CryptRC4(seqField, seqField, sum, 0)
	return append(dst, sum...)
}

func (c *Context) getMIC1(dst, msg []byte) ([]byte, error) {
	k := c.rc4Key()
	if k == nil {
		return dst, noContext()
	}
	dst = c.appendFrame(dst, tokMIC1, false, 0)
	sum := k.AppendChecksum(nil, usageRC4MIC, dst[len(dst)-8:], msg)
	dst = c.appendSeqAndSum(dst, k, sum)
	c.advance1()
	return dst, nil
}

func (c *Context) wrap1(dst, msg []byte, conf bool) ([]byte, error) {
	k := c.rc4Key()
	if k == nil {
		return dst, noContext()
	}
	dst = c.appendFrame(dst, tokWrap1, conf, rc4Confounder+len(msg)+rc4Padding)
	start := dst[len(dst)-8:]
	confounder := make([]byte, rc4Confounder)
	rand.Read(confounder)
	sum := k.AppendChecksum(nil, usageRC4Wrap, start, confounder, msg, []byte{rc4Padding})
	dst = c.appendSeqAndSum(dst, k, sum)
	at := len(dst)
	dst = append(append(append(dst, confounder...), msg...), rc4Padding)
	if conf {
		var seed [4]byte
		binary.BigEndian.PutUint32(seed[:], uint32(c.SendSeq))
		k.CryptRC4(dst[at:], dst[at:], seed[:], rc4SealMask)
	}
	c.advance1()
	return dst, nil
}

// advance1 counts a message sent.
func (c *Context) advance1() { c.SendSeq = uint64(uint32(c.SendSeq + 1)) }

// parts1 checks the form of a token and decrypts its sequence number. fromPeer is false if this end
// itself might have sent it.
func (c *Context) parts1(body []byte) (k *etype.Key, seq uint32, fromPeer bool, err error) {
	k = c.rc4Key()
	if k == nil {
		return nil, 0, false, defective(0, "RFC 1964 token in a context of a newer encryption type")
	}
	if len(body) < rc4HeaderSize || binary.LittleEndian.Uint16(body[2:]) != signAlgHMACMD5 || body[6] != 0xFF || body[7] != 0xFF {
		return nil, 0, false, defective(0, "RFC 1964 token with a malformed header")
	}
	var plain [8]byte
	k.CryptRC4(plain[:], body[8:16], body[16:rc4HeaderSize], 0)
	dir := plain[4]
	if plain[5] != dir || plain[6] != dir || plain[7] != dir {
		return nil, 0, false, badMIC(minorBadSeq, "")
	}
	want := byte(0)
	if c.Initiator {
		want = 0xFF
	}
	return k, binary.BigEndian.Uint32(plain[:]), dir == want, nil
}

func (c *Context) verifyMIC1(msg, body []byte) (mech.Major, error) {
	k, seq, fromPeer, err := c.parts1(body)
	if err != nil {
		return 0, err
	}
	if len(body) != rc4HeaderSize || body[4] != 0xFF || body[5] != 0xFF {
		return 0, defective(0, "RFC 1964 MIC token with a malformed header")
	}
	sum := k.AppendChecksum(nil, usageRC4MIC, body[:8], msg)
	if subtle.ConstantTimeCompare(sum[:rc4CksumSize], body[16:]) != 1 {
		return 0, badMIC(0, "the MIC does not verify")
	}
	if !fromPeer {
		return 0, badMIC(minorBadDirection, "")
	}
	return c.Window.Check(uint64(seq)), nil
}

func (c *Context) unwrap1(dst, body []byte) (msg []byte, conf bool, supplementary mech.Major, err error) {
	k, seq, fromPeer, err := c.parts1(body)
	if err != nil {
		return dst, false, 0, err
	}
	alg := binary.LittleEndian.Uint16(body[4:])
	payload := body[rc4HeaderSize:]
	if len(payload) < rc4Confounder+1 || alg != sealAlgRC4 && alg != 0xFFFF {
		return dst, false, 0, defective(0, "RFC 1964 wrap token with a malformed header")
	}
	conf = alg == sealAlgRC4
	if conf {
		var seed [4]byte
		binary.BigEndian.PutUint32(seed[:], seq)
		plain := make([]byte, len(payload))
		k.CryptRC4(plain, payload, seed[:], rc4SealMask)
		payload = plain
	}
	// What the padding is must not show in how the token is refused.
	pad := int(payload[len(payload)-1])
	badPad := pad > len(payload)-rc4Confounder
	sum := k.AppendChecksum(nil, usageRC4Wrap, body[:8], payload)
	if subtle.ConstantTimeCompare(sum[:rc4CksumSize], body[16:rc4HeaderSize]) != 1 || badPad {
		return dst, false, 0, badMIC(0, "the checksum of the wrap token does not verify")
	}
	if !fromPeer {
		return dst, false, 0, badMIC(minorBadDirection, "")
	}
	return append(dst, payload[rc4Confounder:len(payload)-pad]...), conf, c.Window.Check(uint64(seq)), nil
}

// wrapSizeLimit1 is MIT's reckoning, in its 32-bit arithmetic: padding to 8 bytes, and the framing
// counted once more than needed.
func (c *Context) wrapSizeLimit1(outSize uint32) uint32 {
	oid := uint32(len(c.mech()))
	padded := (rc4Confounder + outSize + 8) &^ 7
	inner := uint32(der.HeaderSize(int(oid))) + oid + 2 + padded + rc4CksumSize + 14
	overhead := uint32(der.HeaderSize(int(inner))) + inner - outSize
	if overhead+7+oid >= outSize {
		return 0
	}
	return (outSize - overhead - 7 - oid) &^ 7
}
