// Package xdr is the wire form of the gssproxy protocol: ONC RPC program 400112 and the RPC headers
// around it, in XDR (RFC 4506).
//
// The types and their codecs are generated from gss_proxy.x and rpc.x by package gen; so are those of
// two protocols of the daemon's own, for an administrator (admin.x) and for pods (pods.x), and of
// what MIT krb5's kadmind is asked (kadm5.x, rpcsec_gss.x). This file is the small runtime they stand
// on. Everything on the wire is big endian and a multiple of four
// bytes.
//
// A [Decoder] never copies: every []byte it gives out aliases its input, so a decoded value lives
// no longer than the record it came from. Its bounds are the bytes that are left: a length or a
// count is compared with them before anything is made, so a record of n bytes cannot make the
// decoder allocate more than a small multiple of n.
//
// Where RFC 4506 leaves room the decoder does what the XDR library of C does: padding bytes are
// skipped whatever they hold, every bool but 0 is true, and an enum may hold any value. Such input
// decodes, but encodes again in the one canonical form. Bytes after the last field are left alone;
// [Decoder.Remaining] counts them.
package xdr

//go:generate go run ./gen

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"math"
)

// Message is a type that travels on the wire; pointers to all generated types are Messages.
type Message interface {
	// Decode overwrites every field with what d holds next. Slices are new or alias d's input; none
	// of the old value's memory is used again. After an error in d the value is partly filled and
	// of no use.
	Decode(d *Decoder)
	// Append appends the encoded value to b. Limits written in the .x file are not checked here:
	// they protect the one who decodes.
	Append(b []byte) []byte
	// Print writes one line per field, without the content of secret fields.
	Print(p *Printer)
}

// Opt is an XDR optional, "T *name" (RFC 4506 section 4.19): by value, so that an absent one costs
// nothing. V is the zero value when Set is false.
type Opt[T any] struct {
	Set bool
	V   T
}

// Some returns an Opt that is present and holds v.
func Some[T any](v T) Opt[T] { return Opt[T]{Set: true, V: v} }

// MarshalJSON is for fields that are left out when they are absent (omitzero).
func (o Opt[T]) MarshalJSON() ([]byte, error) { return json.Marshal(o.V) }

// UnmarshalJSON reads what MarshalJSON writes.
func (o *Opt[T]) UnmarshalJSON(b []byte) error {
	o.Set = true
	return json.Unmarshal(b, &o.V)
}

// Error says why bytes are not the XDR that was asked for.
type Error struct {
	Offset int    // in bytes from the start of the input, of the item that could not be decoded
	What   string // what was expected there, and what was found
}

// Error returns offset and reason; it never contains input bytes other than a length, a count or a
// discriminant.
func (e *Error) Error() string { return fmt.Sprintf("xdr: byte %d: %s", e.Offset, e.What) }

// Decoder reads XDR items one after the other from a byte slice. The first error sticks: from then
// on every method returns a zero value, so a caller checks Err once, after the last item. The zero
// value decodes an empty input; a Decoder may be reused by Reset.
type Decoder struct {
	buf  []byte
	off  int // never beyond len(buf); at len(buf) after an error, so that whatever comes next is short
	need int // 0 before an error; after one the number of bytes that were missing at offset at, or -1 if err says it all
	at   int
	err  error
}

// NewDecoder returns a Decoder at the start of b. It keeps b, and does not change it.
func NewDecoder(b []byte) *Decoder { return &Decoder{buf: b} }

// Reset puts d at the start of b and forgets an error.
func (d *Decoder) Reset(b []byte) { *d = Decoder{buf: b} }

// Err returns nil, or the first error; it is an *Error.
func (d *Decoder) Err() error {
	if d.need > 0 && d.err == nil {
		d.err = &Error{Offset: d.at, What: fmt.Sprintf("%d bytes expected, %d left", d.need, len(d.buf)-d.at)}
	}
	return d.err
}

func (d *Decoder) failed() bool { return d.need != 0 }

// Remaining returns the number of bytes not decoded yet; 0 after an error.
func (d *Decoder) Remaining() int { return len(d.buf) - d.off }

// Offset returns the number of bytes decoded so far; after an error the length of the input
// ([Error] has the place of the fault).
func (d *Decoder) Offset() int { return d.off }

func (d *Decoder) fail(off int, format string, args ...any) {
	if !d.failed() {
		d.need, d.err = -1, &Error{Offset: off, What: fmt.Sprintf(format, args...)}
	}
	d.off = len(d.buf)
}

// short fails because n bytes are needed here and are not there. It leaves the words to Err: so
// small, it is inlined with its callers.
func (d *Decoder) short(n int) {
	if d.need == 0 {
		d.need, d.at = n, d.off
	}
	d.off = len(d.buf)
}

// Uint32 decodes an unsigned int.
func (d *Decoder) Uint32() uint32 {
	b := d.buf[d.off:]
	if len(b) < 4 {
		d.short(4)
		return 0
	}
	d.off += 4
	return binary.BigEndian.Uint32(b)
}

// Int32 decodes an int, or an enum of any value.
func (d *Decoder) Int32() int32 { return int32(d.Uint32()) }

// Uint64 decodes an unsigned hyper.
func (d *Decoder) Uint64() uint64 {
	b := d.buf[d.off:]
	if len(b) < 8 {
		d.short(8)
		return 0
	}
	d.off += 8
	return binary.BigEndian.Uint64(b)
}

// Int64 decodes a hyper.
func (d *Decoder) Int64() int64 { return int64(d.Uint64()) }

// Bool decodes a bool. As in C, every value but 0 is true.
func (d *Decoder) Bool() bool { return d.Uint32() != 0 }

// Opaque decodes variable-length opaque data or a string. The result aliases the input and has no
// spare capacity; it is nil only after an error.
func (d *Decoder) Opaque() []byte { return d.OpaqueMax(math.MaxInt) }

// OpaqueMax is Opaque with an upper limit on the length, in bytes.
func (d *Decoder) OpaqueMax(limit int) []byte {
	b := d.buf[d.off:]
	if len(b) < 4 {
		d.short(4)
		return nil
	}
	n := uint64(binary.BigEndian.Uint32(b))
	b = b[4:]
	padded := (n + 3) &^ 3
	if padded > uint64(len(b)) {
		d.fail(d.off, "opaque data of %d bytes, padded to %d, but %d are left", n, padded, len(b))
		return nil
	}
	if n > uint64(limit) {
		d.fail(d.off, "opaque data of %d bytes, at most %d are allowed", n, limit)
		return nil
	}
	d.off += 4 + int(padded)
	return b[:n:n]
}

// Fixed decodes fixed-length opaque data of n bytes, and its padding. The result aliases the input;
// it is nil after an error.
func (d *Decoder) Fixed(n int) []byte {
	b := d.buf[d.off:]
	padded := (n + 3) &^ 3
	if len(b) < padded {
		d.short(padded)
		return nil
	}
	d.off += padded
	return b[:n:n]
}

// Count decodes the number of elements of a variable-length array, of which each takes at least
// minWire bytes. A count that the remaining bytes cannot hold is an error, so the caller may
// allocate that many elements. It is 0 after an error.
func (d *Decoder) Count(minWire int) int { return d.CountMax(minWire, math.MaxInt) }

// CountMax is Count with an upper limit on the number of elements.
func (d *Decoder) CountMax(minWire, limit int) int {
	off := d.off
	n := uint64(d.Uint32())
	if n*uint64(minWire) > uint64(d.Remaining()) {
		d.fail(off, "array of %d elements of at least %d bytes, but %d bytes are left", n, minWire, d.Remaining())
		return 0
	}
	if n > uint64(limit) {
		d.fail(off, "array of %d elements, at most %d are allowed", n, limit)
		return 0
	}
	return int(n)
}

// AppendUint32 appends an unsigned int.
func AppendUint32(b []byte, v uint32) []byte { return binary.BigEndian.AppendUint32(b, v) }

// AppendInt32 appends an int or an enum.
func AppendInt32(b []byte, v int32) []byte { return binary.BigEndian.AppendUint32(b, uint32(v)) }

// AppendUint64 appends an unsigned hyper.
func AppendUint64(b []byte, v uint64) []byte { return binary.BigEndian.AppendUint64(b, v) }

// AppendInt64 appends a hyper.
func AppendInt64(b []byte, v int64) []byte { return binary.BigEndian.AppendUint64(b, uint64(v)) }

// AppendBool appends a bool: 1 or 0.
func AppendBool(b []byte, v bool) []byte {
	if v {
		return append(b, 0, 0, 0, 1)
	}
	return append(b, 0, 0, 0, 0)
}

// AppendOpaque appends variable-length opaque data: length, bytes, zero padding. v must be shorter
// than 4 GiB.
func AppendOpaque(b, v []byte) []byte {
	return AppendFixed(AppendUint32(b, uint32(len(v))), v)
}

// AppendFixed appends fixed-length opaque data: bytes and zero padding.
func AppendFixed(b, v []byte) []byte {
	b = append(b, v...)
	return append(b, "\x00\x00\x00"[:-len(v)&3]...)
}

// AppendString appends a string, which on the wire is the same as opaque data.
func AppendString(b []byte, v string) []byte {
	b = append(AppendUint32(b, uint32(len(v))), v...)
	return append(b, "\x00\x00\x00"[:-len(v)&3]...)
}
