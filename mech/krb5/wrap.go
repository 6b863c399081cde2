package krb5

import (
	"encoding/binary"
	"errors"

	"gssproxyd/mech"
	"gssproxyd/mech/krb5/etype"
	"gssproxyd/mech/krb5/wire"
)

// Wrap token (RFC 4121 section 4.2.6.2):
//
//	0   05 04
//	2   flags
//	3   FF
//	4   EC, 16 bits
//	6   RRC, 16 bits
//	8   sequence number, 64 bits
//	16  the rest, rotated right by RRC bytes:
//	      sealed:     encryption of message, EC bytes of filler and the header with RRC 0
//	      not sealed: message, checksum of EC bytes over message and the header with EC and RRC 0

// Wrap appends to dst the token that carries msg, encrypted if conf, else only protected. The room
// after dst must not overlap msg. The error is a *[mech.Error].
func (c *Context) Wrap(dst, msg []byte, conf bool) ([]byte, error) {
	k := c.key()
	if k == nil {
		return dst, noContext()
	}
	if !c.cfx() {
		return c.wrap1(dst, msg, conf)
	}
	usage := sealUsage(c.Initiator)
	h := c.header(tokWrap, conf, 0)
	start := len(dst)
	dst = append(dst, h[:]...)
	if conf {
		var err error
		if dst, err = k.Encrypt(dst, usage, msg, dst[start:]); err != nil {
			return dst[:start], noContext()
		}
	} else {
		header := dst[start:]
		dst = append(dst, msg...)
		dst = k.AppendChecksum(dst, usage, msg, header)
		binary.BigEndian.PutUint16(dst[start+4:], uint16(k.Enctype().ChecksumSize()))
	}
	c.SendSeq++
	return dst, nil
}

// Unwrap appends to dst the message that token, of the peer's Wrap, carries and reports whether it
// came encrypted. The supplementary code says what is wrong with the order of messages, if the
// context detects that; the message is authentic nonetheless. The room after dst must not overlap
// token. The error is a *[mech.Error]; then dst is returned as it was.
func (c *Context) Unwrap(dst, token []byte) (msg []byte, conf bool, supplementary mech.Major, err error) {
	if c.key() == nil {
		return dst, false, 0, noContext()
	}
	body, tok := c.unframe(token)
	switch tok {
	case tokWrap:
	case tokWrap1:
		return c.unwrap1(dst, body)
	default:
		return dst, false, 0, badToken("wrap")
	}
	if len(body) < tokenHeaderSize || body[3] != 0xFF {
		return dst, false, 0, defective(0, "wrap token with a malformed header")
	}
	header, payload := body[:tokenHeaderSize], body[tokenHeaderSize:]
	if len(payload) == 0 {
		return dst, false, 0, badMIC(wire.MinorBadMsgSize, "")
	}
	flags := header[2]
	ec := int(binary.BigEndian.Uint16(header[4:]))
	rrc := int(binary.BigEndian.Uint16(header[6:]))
	if !c.fromPeer(flags) {
		return dst, false, 0, badMIC(minorBadDirection, "")
	}
	k := c.peerKey(flags)
	usage := sealUsage(!c.Initiator)
	payload = rotateLeft(payload, rrc)
	conf = flags&flagSealed != 0
	if conf {
		msg, err = unseal(k, dst, usage, header, payload, ec)
	} else {
		msg, err = unprotect(k, dst, usage, header, payload, ec)
	}
	if err != nil {
		return dst, false, 0, err
	}
	return msg, conf, c.Window.Check(binary.BigEndian.Uint64(header[8:])), nil
}

// unseal decrypts the payload and compares the header within with the one that came in clear.
func unseal(k *etype.Key, dst []byte, usage uint32, header, payload []byte, ec int) ([]byte, error) {
	out, err := k.Decrypt(dst, usage, payload)
	if errors.Is(err, etype.ErrShort) {
		return dst, defective(0, "wrap token too short for its encryption type")
	}
	if err != nil {
		return dst, badMIC(minorBadIntegrity, "")
	}
	n := len(out) - len(dst) - tokenHeaderSize - ec
	if n < 0 {
		clear(out[len(dst):])
		return dst, defective(0, "wrap token with less inside than its header says")
	}
	inner := out[len(out)-tokenHeaderSize:]
	// All but the RRC, which is no part of what was encrypted.
	if string(inner[:6]) != string(header[:6]) || string(inner[8:]) != string(header[8:]) {
		clear(out[len(dst):])
		return dst, defective(0, "wrap token whose encrypted header differs from the one in clear")
	}
	return out[:len(dst)+n], nil
}

// unprotect verifies the checksum at the end of the payload.
func unprotect(k *etype.Key, dst []byte, usage uint32, header, payload []byte, ec int) ([]byte, error) {
	size := k.Enctype().ChecksumSize()
	if ec != size || len(payload) < size {
		return dst, defective(0, "wrap token with a checksum of the wrong length")
	}
	msg, sum := payload[:len(payload)-size], payload[len(payload)-size:]
	var signed [tokenHeaderSize]byte
	copy(signed[:4], header)
	copy(signed[8:], header[8:])
	if !k.VerifyChecksum(usage, sum, msg, signed[:]) {
		return dst, badMIC(0, "the checksum of the wrap token does not verify")
	}
	return append(dst, msg...), nil
}

// rotateLeft returns b, or a copy of b rotated left by n bytes.
func rotateLeft(b []byte, n int) []byte {
	if len(b) == 0 || n%len(b) == 0 {
		return b
	}
	n %= len(b)
	return append(append(make([]byte, 0, len(b)), b[n:]...), b[:n]...)
}

// WrapSizeLimit returns the longest message that Wrap turns into a token of at most outSize bytes,
// as MIT krb5 reckons it: for RC4 it allows for more padding than there is. 0 if there is no such
// message.
func (c *Context) WrapSizeLimit(conf bool, outSize uint32) uint32 {
	k := c.key()
	if k == nil {
		return 0
	}
	if !c.cfx() {
		return c.wrapSizeLimit1(outSize)
	}
	overhead := uint32(tokenHeaderSize + k.Enctype().ChecksumSize())
	if conf {
		overhead = uint32(2*tokenHeaderSize + k.Enctype().Overhead())
	}
	return outSize - min(outSize, overhead)
}
