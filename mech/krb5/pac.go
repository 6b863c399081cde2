package krb5

import (
	"encoding/binary"
	"unicode/utf16"
	"unicode/utf8"

	"gssproxyd/mech"
	"gssproxyd/mech/krb5/etype"
	"gssproxyd/mech/krb5/wire"
	"gssproxyd/mech/reason"
)

// A PAC (MS-PAC section 2.3) is a table of typed buffers, little-endian:
//
//	0  4  number of buffers
//	4  4  version, 0
//	8  …  per buffer: type, size, offset in 64 bits from the start of the PAC
//
// Only its frame, the server's signature and the client's name are looked at here: what the buffers
// say is for the application.

const (
	pacServerChecksum = 6
	pacKDCChecksum    = 7
	pacClientInfo     = 10
	maxPACBuffers     = 4096 // MIT's limit
)

// pac is a PAC whose table has been checked.
type pac struct{ b []byte }

// parse checks the table of b: every buffer lies within b, behind the table, at a multiple of 8.
func (p *pac) parse(b []byte) *mech.Error {
	bad := func(minor uint32, why string) *mech.Error {
		return mech.Errorf(mech.Failure, minor, reason.DefectiveToken, ": malformed PAC in the ticket: %s", why)
	}
	if len(b) < 8 {
		return bad(minorERANGE, "shorter than its header")
	}
	if binary.LittleEndian.Uint32(b[4:]) != 0 {
		return bad(minorEINVAL, "unknown version")
	}
	n := binary.LittleEndian.Uint32(b)
	if n < 1 || n > maxPACBuffers || int(n)*16 > len(b)-8 {
		return bad(minorERANGE, "number of buffers")
	}
	p.b = b[:len(b):len(b)]
	table := uint64(8 + int(n)*16)
	for i := range int(n) {
		e := b[8+16*i:]
		size, offset := uint64(binary.LittleEndian.Uint32(e[4:])), binary.LittleEndian.Uint64(e[8:])
		if offset%8 != 0 {
			return bad(minorEINVAL, "unaligned buffer")
		}
		if offset < table || offset > uint64(len(b)) || size > uint64(len(b))-offset {
			return bad(minorERANGE, "buffer out of bounds")
		}
	}
	return nil
}

// buffer returns where the one buffer of the type lies; false if there is none or more than one.
func (p *pac) buffer(kind uint32) (start, end int, ok bool) {
	for i := range int(binary.LittleEndian.Uint32(p.b)) {
		e := p.b[8+16*i:]
		if binary.LittleEndian.Uint32(e) != kind {
			continue
		}
		if ok {
			return 0, 0, false
		}
		start = int(binary.LittleEndian.Uint64(e[8:]))
		end, ok = start+int(binary.LittleEndian.Uint32(e[4:])), true
	}
	return start, end, ok
}

// verify reports whether the PAC carries a good signature of the service key, and is about the
// client and the initial authentication of the ticket (MS-PAC sections 2.7 and 2.8). scratch is
// used and returned.
func (p *pac) verify(t *wire.EncTicket, service *etype.Key, scratch []byte) (bool, []byte) {
	server, serverEnd, ok := p.buffer(pacServerChecksum)
	kdc, kdcEnd, ok2 := p.buffer(pacKDCChecksum)
	if !ok || !ok2 || serverEnd-server < 4 || kdcEnd-kdc < 4 {
		return false, scratch
	}
	kind := int32(binary.LittleEndian.Uint32(p.b[server:]))
	sum := p.b[server+4 : serverEnd]
	// An RODC identifier may follow the signature, so its length comes from its type.
	n := service.Enctype().ChecksumSize()
	if kind == etype.ChecksumHMACMD5 {
		n = 16
	}
	if n > len(sum) {
		return false, scratch
	}
	scratch = append(scratch[:0], p.b...)
	clear(scratch[server+4 : serverEnd])
	clear(scratch[kdc+4 : kdcEnd])
	if !service.VerifyChecksumType(kind, wire.UsagePAC, sum[:n], scratch) {
		return false, scratch
	}
	scratch = t.Client.AppendComponents(scratch[:0])
	return p.isAbout(t.AuthTime, scratch), scratch
}

// ntEpoch is the start of Unix time in seconds since 1601.
const ntEpoch = 11644473600

// isAbout compares PAC_CLIENT_INFO: time in units of 100 ns since 1601, length and name in UTF-16.
func (p *pac) isAbout(authTime uint32, name []byte) bool {
	start, end, ok := p.buffer(pacClientInfo)
	if !ok || end-start < 10 {
		return false
	}
	b := p.b[start:end]
	n := int(binary.LittleEndian.Uint16(b[8:]))
	if n%2 != 0 || n > len(b)-10 || binary.LittleEndian.Uint64(b)/1e7 != uint64(authTime)+ntEpoch {
		return false
	}
	var room [2]uint16
	for b = b[10 : 10+n]; len(name) > 0; {
		c, size := utf8.DecodeRune(name)
		if c == utf8.RuneError && size < 2 {
			return false
		}
		for _, u := range utf16.AppendRune(room[:0], c) {
			if len(b) < 2 || binary.LittleEndian.Uint16(b) != u {
				return false
			}
			b = b[2:]
		}
		name = name[size:]
	}
	return len(b) == 0
}
