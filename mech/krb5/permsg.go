package krb5

import (
	"encoding/binary"

	"gssproxyd/mech"
	"gssproxyd/mech/krb5/etype"
	"gssproxyd/mech/reason"
)

// Per-message tokens. Contexts with keys of the newer enctypes use those of RFC 4121, here and in
// wrap.go and mic.go; RC4 contexts those of RFC 1964 with the algorithms of RFC 4757, in rc4msg.go.
// Which kind has come is told by its first two bytes.
//
// The order of checks is MIT's: form, direction, integrity, sequence. As there, none of the
// operations looks at the clock: a context works on after its ticket has expired.

// Token identifiers (RFC 4121 section 4.2.2, RFC 1964 section 1.2).
const (
	tokMIC   = 0x0404
	tokWrap  = 0x0504
	tokMIC1  = 0x0101
	tokWrap1 = 0x0201
)

// Flags of a token (RFC 4121 section 4.2.2).
const (
	flagFromAcceptor = 1 << iota
	flagSealed
	flagAcceptorSubkey
)

// Key usages (RFC 4121 section 2).
const (
	usageAcceptorSeal = 22 + iota
	usageAcceptorSign
	usageInitiatorSeal
	usageInitiatorSign
)

const tokenHeaderSize = 16

// Minor codes these operations give.
const (
	minorIncomplete   = mech.MinorK5G + 7
	minorBadSeq       = mech.MinorK5G + 11
	minorBadTokHeader = mech.MinorGGSS + 12
	minorBadDirection = mech.MinorGGSS + 13
	minorBadIntegrity = mech.MinorKRB5 + 31
)

// Prepare derives the keys of per-message tokens now. It pays for a context that will see many.
func (c *Context) Prepare() {
	if k := c.key(); k != nil {
		k.Prepare(usageAcceptorSeal, usageAcceptorSign, usageInitiatorSeal, usageInitiatorSign)
	}
}

// sealUsage returns the key usage of wrap tokens that the initiator or the acceptor sends.
func sealUsage(byInitiator bool) uint32 {
	if byInitiator {
		return usageInitiatorSeal
	}
	return usageAcceptorSeal
}

// signUsage returns the key usage of MIC tokens that the initiator or the acceptor sends.
func signUsage(byInitiator bool) uint32 {
	if byInitiator {
		return usageInitiatorSign
	}
	return usageAcceptorSign
}

// header returns the beginning of a token this end sends, its last field the next sequence number.
func (c *Context) header(tok uint16, sealed bool, filler uint32) (h [tokenHeaderSize]byte) {
	binary.BigEndian.PutUint16(h[:], tok)
	if !c.Initiator {
		h[2] |= flagFromAcceptor
	}
	if sealed {
		h[2] |= flagSealed
	}
	if c.AcceptorSubkey != nil {
		h[2] |= flagAcceptorSubkey
	}
	h[3] = 0xFF
	binary.BigEndian.PutUint32(h[4:], filler)
	binary.BigEndian.PutUint64(h[8:], c.SendSeq)
	return h
}

// peerKey returns the key of a token that came with the given flags.
func (c *Context) peerKey(flags byte) *etype.Key {
	if c.AcceptorSubkey != nil && flags&flagAcceptorSubkey != 0 {
		return c.AcceptorSubkey
	}
	return c.Subkey
}

// fromPeer reports whether a token with the given flags was sent by the other end.
func (c *Context) fromPeer(flags byte) bool { return flags&flagFromAcceptor != 0 == c.Initiator }

// unframe takes the framing of RFC 2743 section 3.1 off a token if there is a proper one for the
// context's mechanism; tokens of RFC 4121 come without. It returns the token identifier too, 0 if
// the token is too short to have one.
func (c *Context) unframe(token []byte) (body []byte, tok uint16) {
	body = token
	if r, oid, inner := readFrame(token); r.Fault() == 0 && string(oid) == string(c.mech()) {
		body = inner
	}
	if len(body) < 2 {
		return body, 0
	}
	return body, binary.BigEndian.Uint16(body)
}

func defective(minor uint32, text string) error {
	return mech.Errorf(mech.DefectiveToken, minor, reason.DefectiveToken, "%s", text)
}

func badMIC(minor uint32, text string) error {
	return mech.Errorf(mech.BadMIC, minor, reason.BadMIC, "%s", text)
}

func noContext() error {
	return mech.Errorf(mech.NoContext, minorIncomplete, reason.BadContext, "")
}

// badToken says that the first bytes of a token are those of no token of the wanted kind.
func badToken(want string) error {
	return defective(minorBadTokHeader, "this is no "+want+" token: its first bytes are not those of one")
}

// PseudoRandom returns n bytes of the context's pseudo-random function over in (RFC 4402): keyed
// with the acceptor's subkey if there is one, or the initiator's if there is none or partial is
// set.
func (c *Context) PseudoRandom(partial bool, in []byte, n int) ([]byte, error) {
	k := c.key()
	if partial {
		k = c.Subkey
	}
	if k == nil {
		return nil, noContext()
	}
	if n < 0 {
		return nil, &mech.Error{Major: mech.Failure, Minor: 22, Mech: mech.KRB5, Text: "negative length of pseudo-random output"}
	}
	var out []byte
	block := append(make([]byte, 4, 4+len(in)), in...)
	for i := uint32(0); len(out) < n; i++ {
		binary.BigEndian.PutUint32(block, i)
		out = k.PRF(out, block)
	}
	return out[:n], nil
}
