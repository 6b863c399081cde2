package krb5

import (
	"crypto/md5"
	"encoding/binary"
)

// ChannelBindings are what the acceptor's caller says about the channel the tokens travel in (RFC
// 2744 section 3.11).
type ChannelBindings struct {
	InitiatorAddrType uint32
	InitiatorAddr     []byte
	AcceptorAddrType  uint32
	AcceptorAddr      []byte
	AppData           []byte
}

// sum returns the MD5 hash that stands for the bindings in tokens (RFC 4121 section 4.1.1.2):
// numbers and lengths little-endian in 32 bits.
func (b *ChannelBindings) sum() (sum [md5.Size]byte) {
	h := md5.New()
	var n [8]byte
	part := func(kind uint32, v []byte) {
		binary.LittleEndian.PutUint32(n[:], kind)
		binary.LittleEndian.PutUint32(n[4:], uint32(len(v)))
		h.Write(n[:])
		h.Write(v)
	}
	part(b.InitiatorAddrType, b.InitiatorAddr)
	part(b.AcceptorAddrType, b.AcceptorAddr)
	binary.LittleEndian.PutUint32(n[:], uint32(len(b.AppData)))
	h.Write(n[:4])
	h.Write(b.AppData)
	h.Sum(sum[:0])
	return sum
}
