package der

import (
	"encoding/binary"
	"time"
)

// Reader walks an encoding. The zero value reads nothing; see [NewReader]. It may live on the
// stack.
type Reader struct {
	b        []byte
	pos, end int // what is left of the innermost entered value
	fault    Fault
	at       int
}

// NewReader returns a Reader of b by value.
func NewReader(b []byte) Reader { return Reader{b: b, end: len(b)} }

// Fault returns the first failure's kind, 0 when there was none.
func (r *Reader) Fault() Fault { return r.fault }

// Err returns the first failure as an *Error, or nil. It allocates only when there is one.
func (r *Reader) Err() error {
	if r.fault == 0 {
		return nil
	}
	return &Error{r.fault, r.at}
}

// Fail records f at the current place unless an earlier failure is recorded.
func (r *Reader) Fail(f Fault) { r.fail(f, r.pos) }

func (r *Reader) fail(f Fault, at int) {
	if r.fault == 0 {
		r.fault, r.at = f, at
	}
	r.pos = r.end
}

// More reports whether the innermost entered value has octets left and nothing failed.
func (r *Reader) More() bool { return r.fault == 0 && r.pos < r.end }

// Peek returns the next value's tag, 0 at the end or after a failure.
func (r *Reader) Peek() Tag {
	if !r.More() {
		return 0
	}
	return Tag(r.b[r.pos])
}

// header reads a tag and length and returns where the contents start and end. It does not move r.
func (r *Reader) header() (tag Tag, start, end int, ok bool) {
	if r.fault != 0 {
		return 0, 0, 0, false
	}
	p := r.pos
	if r.end-p < 2 {
		f := Overrun
		if p == r.end {
			f = Missing
		}
		r.fail(f, p)
		return 0, 0, 0, false
	}
	tag = Tag(r.b[p])
	if tag&0x1f == 0x1f {
		r.fail(BadID, p)
		return 0, 0, 0, false
	}
	n := int(r.b[p+1])
	p += 2
	if n >= 0x80 {
		octets := n & 0x7f
		switch {
		case octets == 0:
			r.fail(Indefinite, r.pos)
			return 0, 0, 0, false
		case octets > 4 || octets > r.end-p:
			r.fail(Overrun, r.pos)
			return 0, 0, 0, false
		}
		v := uint64(0)
		for range octets {
			v = v<<8 | uint64(r.b[p])
			p++
		}
		if v < 0x80 || v>>(8*(octets-1)) == 0 {
			r.fail(NonCanonical, r.pos)
			return 0, 0, 0, false
		}
		if v > uint64(r.end-p) {
			r.fail(Overrun, r.pos)
			return 0, 0, 0, false
		}
		n = int(v)
	}
	if n > r.end-p {
		r.fail(Overrun, r.pos)
		return 0, 0, 0, false
	}
	return tag, p, p + n, true
}

// expect reads a header with tag t. Where a field [n] should be, anything else means that it is
// missing.
func (r *Reader) expect(t Tag) (start, end int, ok bool) {
	if r.pos == r.end && t&0xc0 != 0x80 {
		r.fail(Overrun, r.pos)
		return 0, 0, false
	}
	tag, start, end, ok := r.header()
	if ok && tag != t {
		f := BadID
		if t&0xc0 == 0x80 {
			f = Missing
		}
		r.fail(f, r.pos)
		ok = false
	}
	return start, end, ok
}

// Enter descends into the next value, which must have tag t, and returns what [Reader.Leave] or
// [Reader.LeaveOpen] needs to come back.
func (r *Reader) Enter(t Tag) (outer int) {
	start, end, ok := r.expect(t)
	if !ok {
		return r.end
	}
	outer = r.end
	r.pos, r.end = start, end
	return outer
}

// Field enters the field [n].
func (r *Reader) Field(n int) (outer int) { return r.Enter(Context(n)) }

// Has reports whether the field [n] is next; an optional field is entered only then.
func (r *Reader) Has(n int) bool { return r.Peek() == Context(n) }

// Leave comes back from the value entered when outer was returned; all of it must have been read.
func (r *Reader) Leave(outer int) {
	if r.pos != r.end {
		r.fail(BadLength, r.pos)
	}
	r.end = outer
	if r.fault != 0 {
		r.pos = outer
	}
}

// LeaveOpen comes back from a value that later versions of the protocol may extend: what was not
// read is passed over.
func (r *Reader) LeaveOpen(outer int) {
	r.pos, r.end = r.end, outer
	if r.fault != 0 {
		r.pos = outer
	}
}

// Raw returns the whole next value, tag and length included, nil on failure. Like every slice a
// Reader returns it aliases the input.
func (r *Reader) Raw() []byte {
	_, _, end, ok := r.header()
	if !ok {
		return nil
	}
	b := r.b[r.pos:end:end]
	r.pos = end
	return b
}

// Rest returns what is left of the innermost entered value and passes over it.
func (r *Reader) Rest() []byte {
	if r.fault != 0 {
		return nil
	}
	b := r.b[r.pos:r.end:r.end]
	r.pos = r.end
	return b
}

// Value returns the contents of the next value, which must have tag t; nil on failure, never nil
// otherwise.
func (r *Reader) Value(t Tag) []byte {
	start, end, ok := r.expect(t)
	if !ok {
		return nil
	}
	r.pos = end
	return r.b[start:end:end]
}

// Octets returns the contents of an OCTET STRING.
func (r *Reader) Octets() []byte { return r.Value(OctetString) }

// String returns the contents of a GeneralString, RFC 4120's KerberosString and Realm: any octets.
func (r *Reader) String() []byte { return r.Value(GeneralString) }

// Int reads an INTEGER between lo and hi.
func (r *Reader) Int(lo, hi int64) int64 {
	at := r.pos
	v := r.Value(Integer)
	switch {
	case r.fault != 0:
		return 0
	case len(v) == 0:
		r.fail(BadLength, at)
		return 0
	case len(v) > 1 && (v[0] == 0 && v[1] < 0x80 || v[0] == 0xff && v[1] >= 0x80):
		r.fail(NonCanonical, at)
		return 0
	case len(v) > 8:
		r.fail(OutOfRange, at)
		return 0
	}
	n := int64(int8(v[0]))
	for _, c := range v[1:] {
		n = n<<8 | int64(c)
	}
	if n < lo || n > hi {
		r.fail(OutOfRange, at)
		return 0
	}
	return n
}

// Int32 reads an INTEGER of 32 bits, RFC 4120's Int32.
func (r *Reader) Int32() int32 { return int32(r.Int(-1<<31, 1<<31-1)) }

// Uint32 reads RFC 4120's UInt32 the way sequence numbers must be read: implementations that hold
// them signed encode the upper half as negative numbers, which stand for the same 32 bits.
func (r *Reader) Uint32() uint32 { return uint32(r.Int(-1<<31, 1<<32-1)) }

// Flags reads a BIT STRING as RFC 4120's KerberosFlags: bit 0 is the most significant of the
// result. Missing bits are 0, bits after the 32nd are passed over.
func (r *Reader) Flags() uint32 {
	at := r.pos
	v := r.Value(BitString)
	if r.fault != 0 {
		return 0
	}
	if len(v) == 0 {
		r.fail(BadLength, at)
		return 0
	}
	unused := v[0]
	if unused > 7 || unused > 0 && len(v) == 1 {
		r.fail(BadFormat, at)
		return 0
	}
	var f [4]byte
	if n := copy(f[:], v[1:]); n > 0 && n == len(v)-1 {
		f[n-1] &^= 1<<unused - 1 // bits beyond the string's end are not part of it
	}
	return binary.BigEndian.Uint32(f[:])
}

// Time reads a GeneralizedTime in RFC 4120's one form, YYYYMMDDhhmmssZ, and returns Unix seconds.
// Times after 2106 read as the largest uint32, times before 1970 are an error.
func (r *Reader) Time() uint32 {
	at := r.pos
	v := r.Value(GeneralizedTime)
	if r.fault != 0 {
		return 0
	}
	if len(v) != 15 {
		r.fail(BadLength, at)
		return 0
	}
	if v[14] != 'Z' {
		r.fail(BadFormat, at)
		return 0
	}
	var f [7]int // century, year, month, day, hour, minute, second
	for i := range f {
		a, b := v[2*i]-'0', v[2*i+1]-'0'
		if a > 9 || b > 9 {
			r.fail(BadTime, at)
			return 0
		}
		f[i] = int(a)*10 + int(b)
	}
	year, month, day := f[0]*100+f[1], f[2], f[3]
	date := time.Date(year, time.Month(month), day, 0, 0, 0, 0, time.UTC)
	if year < 1970 || month < 1 || month > 12 || date.Day() != day || f[4] > 23 || f[5] > 59 || f[6] > 60 {
		r.fail(BadTime, at)
		return 0
	}
	return uint32(min(date.Unix()+int64(f[4]*3600+f[5]*60+f[6]), 1<<32-1))
}
