package der

import "time"

// Begin appends tag t and a place for a length to b. The contents are appended next; [End] with the
// returned mark then sets the length.
func Begin(b []byte, t Tag) (_ []byte, mark int) {
	return append(b, byte(t), 0), len(b) + 2
}

// End sets the length of the value whose contents start at mark, moving them up when the length
// needs more than one octet. Values are ended in the reverse order of their beginning.
func End(b []byte, mark int) []byte {
	n := len(b) - mark
	if n < 0x80 {
		b[mark-1] = byte(n)
		return b
	}
	octets := 1
	for v := n >> 8; v > 0; v >>= 8 {
		octets++
	}
	var room [8]byte
	b = append(b, room[:octets]...)
	copy(b[mark+octets:], b[mark:mark+n])
	b[mark-1] = 0x80 | byte(octets)
	for i := octets - 1; i >= 0; i-- {
		b[mark+i] = byte(n)
		n >>= 8
	}
	return b
}

// HeaderSize returns how many octets tag and length of n octets of contents take.
func HeaderSize(n int) int {
	size := 2
	if n >= 0x80 {
		for ; n > 0; n >>= 8 {
			size++
		}
	}
	return size
}

// AppendHeader appends tag t and length n.
func AppendHeader(b []byte, t Tag, n int) []byte {
	if n < 0x80 {
		return append(b, byte(t), byte(n))
	}
	octets := HeaderSize(n) - 2
	b = append(b, byte(t), 0x80|byte(octets))
	for i := octets - 1; i >= 0; i-- {
		b = append(b, byte(n>>(8*i)))
	}
	return b
}

// AppendValue appends a value with tag t and contents v.
func AppendValue(b []byte, t Tag, v []byte) []byte { return append(AppendHeader(b, t, len(v)), v...) }

// AppendInt appends an INTEGER.
func AppendInt(b []byte, v int64) []byte {
	octets := 1
	for octets < 8 && v>>(8*octets-1) != 0 && v>>(8*octets-1) != -1 {
		octets++
	}
	b = append(b, byte(Integer), byte(octets))
	for i := octets - 1; i >= 0; i-- {
		b = append(b, byte(v>>(8*i)))
	}
	return b
}

// AppendOctets appends an OCTET STRING.
func AppendOctets(b, v []byte) []byte { return AppendValue(b, OctetString, v) }

// AppendString appends a GeneralString.
func AppendString[S ~string | ~[]byte](b []byte, s S) []byte {
	return append(AppendHeader(b, GeneralString, len(s)), s...)
}

// AppendFlags appends a BIT STRING of 32 bits, the first of which is the most significant of f.
func AppendFlags(b []byte, f uint32) []byte {
	return append(b, byte(BitString), 5, 0, byte(f>>24), byte(f>>16), byte(f>>8), byte(f))
}

// AppendTime appends a GeneralizedTime, YYYYMMDDhhmmssZ, of Unix seconds.
func AppendTime(b []byte, unix uint32) []byte {
	b = append(b, byte(GeneralizedTime), 15)
	return time.Unix(int64(unix), 0).UTC().AppendFormat(b, "20060102150405Z")
}
