package krb5

import (
	"encoding/binary"

	"gssproxyd/mech"
)

// MIC token (RFC 4121 section 4.2.6.1):
//
//	0   04 04
//	2   flags
//	3   FF FF FF FF FF
//	8   sequence number, 64 bits
//	16  checksum over message and the 16 bytes before

// GetMIC appends to dst the token that protects msg. The error is a *[mech.Error].
func (c *Context) GetMIC(dst, msg []byte) ([]byte, error) {
	k := c.key()
	if k == nil {
		return dst, noContext()
	}
	if !c.cfx() {
		return c.getMIC1(dst, msg)
	}
	h := c.header(tokMIC, false, 0xFFFFFFFF)
	dst = append(dst, h[:]...)
	dst = k.AppendChecksum(dst, signUsage(c.Initiator), msg, dst[len(dst)-tokenHeaderSize:])
	c.SendSeq++
	return dst, nil
}

// VerifyMIC checks a token of the peer's GetMIC over msg. The supplementary code says what is wrong
// with the order of messages, if the context detects that; the message is authentic nonetheless.
// The error is a *[mech.Error].
func (c *Context) VerifyMIC(msg, mic []byte) (supplementary mech.Major, err error) {
	if c.key() == nil {
		return 0, noContext()
	}
	body, tok := c.unframe(mic)
	switch tok {
	case tokMIC:
	case tokMIC1:
		return c.verifyMIC1(msg, body)
	default:
		return 0, badToken("MIC")
	}
	if len(body) < tokenHeaderSize || body[3] != 0xFF || binary.BigEndian.Uint32(body[4:]) != 0xFFFFFFFF {
		return 0, defective(0, "MIC token with a malformed header")
	}
	header, sum := body[:tokenHeaderSize], body[tokenHeaderSize:]
	if !c.fromPeer(header[2]) {
		return 0, badMIC(minorBadDirection, "")
	}
	if !c.peerKey(header[2]).VerifyChecksum(signUsage(!c.Initiator), sum, msg, header) {
		return 0, badMIC(0, "the MIC does not verify")
	}
	return c.Window.Check(binary.BigEndian.Uint64(header[8:])), nil
}
