package mech

import (
	"encoding/binary"
	"errors"
)

// AppendExportedName appends the exported name token of RFC 2743 section 3.2: 04 01, big-endian
// length and DER of the mechanism's OID, big-endian length and octets of the name. The OID's
// content must be shorter than 128 octets.
func AppendExportedName(b []byte, oid OID, name string) []byte {
	return appendName(b, 0x01, oid, name)
}

// AppendCompositeName appends the composite token MIT writes (04 02, after RFC 6680): as
// AppendExportedName, then the big-endian length and octets of attrs.
func AppendCompositeName(b []byte, oid OID, name string, attrs []byte) []byte {
	b = appendName(b, 0x02, oid, name)
	b = binary.BigEndian.AppendUint32(b, uint32(len(attrs)))
	return append(b, attrs...)
}

func appendName(b []byte, kind byte, oid OID, name string) []byte {
	b = append(b, 0x04, kind)
	b = binary.BigEndian.AppendUint16(b, uint16(len(oid)+2))
	b = append(b, 0x06, byte(len(oid)))
	b = append(b, oid...)
	b = binary.BigEndian.AppendUint32(b, uint32(len(name)))
	return append(b, name...)
}

var errExportedName = errors.New("not an exported name: expected 04 01 or 04 02, OID length and DER, name length and name, and nothing after")

// ParseExportedName takes either token apart. Attributes of a composite token are checked for
// length and dropped. Anything after the token is an error.
func ParseExportedName(b []byte) (oid OID, name string, err error) {
	if len(b) < 6 || b[0] != 0x04 || b[1] != 0x01 && b[1] != 0x02 {
		return "", "", errExportedName
	}
	composite := b[1] == 0x02
	n := int(binary.BigEndian.Uint16(b[2:]))
	if n < 3 || n > 129 || len(b) < 4+n+4 || b[4] != 0x06 || int(b[5]) != n-2 {
		return "", "", errExportedName
	}
	oid = OID(b[6 : 4+n])
	field, b, ok := cut32(b[4+n:])
	if ok && composite {
		_, b, ok = cut32(b)
	}
	if !ok || len(b) != 0 {
		return "", "", errExportedName
	}
	return oid, string(field), nil
}

// cut32 splits a field with a big-endian 32-bit length off b.
func cut32(b []byte) (field, rest []byte, ok bool) {
	if len(b) < 4 {
		return nil, nil, false
	}
	n := binary.BigEndian.Uint32(b)
	b = b[4:]
	if uint64(n) > uint64(len(b)) {
		return nil, nil, false
	}
	return b[:n], b[n:], true
}
