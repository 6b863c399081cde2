package xdr

import (
	"bytes"
	"strings"
	"testing"
)

// Each kind of item: its wire form by RFC 4506 section 4, and back.
func TestItems(t *testing.T) {
	for _, c := range []struct {
		name string
		wire string
		enc  func([]byte) []byte
		dec  func(*Decoder) any
		want any
	}{
		{"int", "\xff\xff\xff\xfe", func(b []byte) []byte { return AppendInt32(b, -2) }, func(d *Decoder) any { return d.Int32() }, int32(-2)},
		{"unsigned int", "\xfe\xdc\xba\x98", func(b []byte) []byte { return AppendUint32(b, 0xfedcba98) }, func(d *Decoder) any { return d.Uint32() }, uint32(0xfedcba98)},
		{"hyper", "\xff\xff\xff\xff\xff\xff\xff\xfe", func(b []byte) []byte { return AppendInt64(b, -2) }, func(d *Decoder) any { return d.Int64() }, int64(-2)},
		{"unsigned hyper", "\x01\x02\x03\x04\x05\x06\x07\x08", func(b []byte) []byte { return AppendUint64(b, 0x0102030405060708) }, func(d *Decoder) any { return d.Uint64() }, uint64(0x0102030405060708)},
		{"true", "\x00\x00\x00\x01", func(b []byte) []byte { return AppendBool(b, true) }, func(d *Decoder) any { return d.Bool() }, true},
		{"false", "\x00\x00\x00\x00", func(b []byte) []byte { return AppendBool(b, false) }, func(d *Decoder) any { return d.Bool() }, false},
		{"opaque of 0", "\x00\x00\x00\x00", func(b []byte) []byte { return AppendOpaque(b, nil) }, func(d *Decoder) any { return string(d.Opaque()) }, ""},
		{"opaque of 3", "\x00\x00\x00\x03abc\x00", func(b []byte) []byte { return AppendOpaque(b, []byte("abc")) }, func(d *Decoder) any { return string(d.Opaque()) }, "abc"},
		{"opaque of 4", "\x00\x00\x00\x04abcd", func(b []byte) []byte { return AppendOpaque(b, []byte("abcd")) }, func(d *Decoder) any { return string(d.OpaqueMax(4)) }, "abcd"},
		{"string", "\x00\x00\x00\x05abcde\x00\x00\x00", func(b []byte) []byte { return AppendString(b, "abcde") }, func(d *Decoder) any { return string(d.Opaque()) }, "abcde"},
		{"fixed opaque", "abcde\x00\x00\x00", func(b []byte) []byte { return AppendFixed(b, []byte("abcde")) }, func(d *Decoder) any { return string(d.Fixed(5)) }, "abcde"},
		{"count", "\x00\x00\x00\x00", func(b []byte) []byte { return AppendUint32(b, 0) }, func(d *Decoder) any { return d.Count(4) }, 0},
	} {
		if got := c.enc([]byte("x")); string(got) != "x"+c.wire {
			t.Errorf("%s: encodes to %q, want %q", c.name, got[1:], c.wire)
		}
		d := NewDecoder([]byte(c.wire))
		if got := c.dec(d); got != c.want || d.Err() != nil || d.Remaining() != 0 || d.Offset() != len(c.wire) {
			t.Errorf("%s: decodes to %v, want %v; error %v, %d bytes left", c.name, got, c.want, d.Err(), d.Remaining())
		}
		for n := range c.wire {
			d.Reset([]byte(c.wire[:n]))
			if c.dec(d); d.Err() == nil {
				t.Errorf("%s: no error for %d of %d bytes", c.name, n, len(c.wire))
			}
		}
	}
}

// What RFC 4506 does not allow, and C's library takes.
func TestLiberal(t *testing.T) {
	d := NewDecoder([]byte("\x00\x00\x00\x02\x00\x00\x00\x01a\xff\xff\xff\x80\x00\x00\x00tail"))
	if !d.Bool() {
		t.Error("bool 2 is false")
	}
	if got := d.Opaque(); string(got) != "a" {
		t.Errorf("padding that is not zero: %q", got)
	}
	if v := CredUsage(d.Int32()); v != -1<<31 || v.String() != "CredUsage(-2147483648)" {
		t.Errorf("unknown enum value %d, %v", v, v)
	}
	if d.Err() != nil || d.Remaining() != 4 {
		t.Errorf("%v, %d bytes left", d.Err(), d.Remaining())
	}
}

func TestErrors(t *testing.T) {
	const head = "\x00\x00\x00\x00" // decoded before, so that offsets show
	for _, c := range []struct {
		name, rest string
		dec        func(*Decoder)
		want       string
	}{
		{"short int", "\x00\x00", func(d *Decoder) { d.Uint32() }, "xdr: byte 4: 4 bytes expected, 2 left"},
		{"short hyper", head, func(d *Decoder) { d.Uint64() }, "xdr: byte 4: 8 bytes expected, 4 left"},
		{"short fixed", head, func(d *Decoder) { d.Fixed(6) }, "xdr: byte 4: 8 bytes expected, 4 left"},
		{"no length", "\x00", func(d *Decoder) { d.Opaque() }, "xdr: byte 4: 4 bytes expected, 1 left"},
		{"opaque too long", "\xff\xff\xff\xffabcd", func(d *Decoder) { d.Opaque() }, "xdr: byte 4: opaque data of 4294967295 bytes, padded to 4294967296, but 4 are left"},
		{"no padding", "\x00\x00\x00\x03abc", func(d *Decoder) { d.Opaque() }, "xdr: byte 4: opaque data of 3 bytes, padded to 4, but 3 are left"},
		{"opaque over its limit", "\x00\x00\x00\x05abcde\x00\x00\x00", func(d *Decoder) { d.OpaqueMax(4) }, "xdr: byte 4: opaque data of 5 bytes, at most 4 are allowed"},
		{"count", "\xff\xff\xff\xff12345678", func(d *Decoder) { d.Count(8) }, "xdr: byte 4: array of 4294967295 elements of at least 8 bytes, but 8 bytes are left"},
		{"count one too many", "\x00\x00\x00\x0212345678901", func(d *Decoder) { d.Count(6) }, "xdr: byte 4: array of 2 elements of at least 6 bytes, but 11 bytes are left"},
		{"count over its limit", "\x00\x00\x00\x0212345678", func(d *Decoder) { d.CountMax(4, 1) }, "xdr: byte 4: array of 2 elements, at most 1 are allowed"},
		{"unknown arm", "\x00\x00\x00\x02", func(d *Decoder) { new(Reply).Decode(d) }, "xdr: byte 4: stat 2 is unknown"},
	} {
		d := NewDecoder([]byte(head + c.rest))
		d.Uint32()
		c.dec(d)
		if d.Err() == nil || d.Err().Error() != c.want {
			t.Errorf("%s: error %v, want %s", c.name, d.Err(), c.want)
			continue
		}
		// The first error sticks, and nothing decodes any more.
		first := d.Err()
		if d.Uint32() != 0 || d.Uint64() != 0 || d.Bool() || d.Opaque() != nil || d.Fixed(1) != nil || d.Count(0) != 0 {
			t.Errorf("%s: decodes after the error", c.name)
		}
		new(Handle).Decode(d)
		new(Denied).Decode(d)
		if d.Err() != first || d.Remaining() != 0 {
			t.Errorf("%s: error became %v, %d bytes left", c.name, d.Err(), d.Remaining())
		}
		d.Reset([]byte(head))
		if d.Uint32(); d.Err() != nil || d.Remaining() != 0 {
			t.Errorf("%s: after Reset: %v", c.name, d.Err())
		}
	}
	var zero Decoder
	if zero.Err() != nil || zero.Remaining() != 0 || zero.Opaque() != nil || zero.Err() == nil {
		t.Error("the zero Decoder is not at the end of an empty input")
	}
}

// Decoded bytes alias the input; appending to them must not write into it.
func TestAliasing(t *testing.T) {
	in := []byte("\x00\x00\x00\x05abcde\x00\x00\x00\x00\x00\x00\x07")
	d := NewDecoder(in)
	got := d.Opaque()
	if &got[0] != &in[4] || cap(got) != 5 {
		t.Errorf("a copy, or room behind it: cap %d", cap(got))
	}
	_ = append(got, "overwritten"...)
	if v := d.Uint32(); v != 7 {
		t.Errorf("the next item became %d", v)
	}
	if got := NewDecoder([]byte("\x00\x00\x00\x00")).Opaque(); got == nil {
		t.Error("empty opaque data is nil")
	}
}

// Decoding the kernel's request takes one allocation, encoding into a buffer with room none.
func TestAllocs(t *testing.T) {
	for _, r := range records(t) {
		if r.proc != ProcAcceptSecContext || !strings.HasPrefix(r.name, "kernel/1-") {
			continue
		}
		if r.reply {
			header, body, _ := decodeRecord(&r, r.data)
			buf := make([]byte, 0, len(r.data))
			if n := testing.AllocsPerRun(10, func() { buf = body.Append(header.Append(buf[:0])) }); n != 0 || !bytes.Equal(buf, r.data) {
				t.Errorf("encode: %v allocations", n)
			}
			return
		}
		var d Decoder
		var h CallHeader
		var arg ArgAcceptSecContext
		if n := testing.AllocsPerRun(10, func() { d.Reset(r.data); h.Decode(&d); arg.Decode(&d) }); n != 1 || d.Err() != nil {
			t.Errorf("decode: %v allocations, %v", n, d.Err())
		}
	}
}

func TestProcTable(t *testing.T) {
	if Program != 400112 || Version != 1 {
		t.Errorf("program %d, version %d", Program, Version)
	}
	for p, want := range []string{"NULL", "INDICATE_MECHS", "GET_CALL_CONTEXT", "IMPORT_AND_CANON_NAME", "EXPORT_CRED", "IMPORT_CRED",
		"ACQUIRE_CRED", "STORE_CRED", "INIT_SEC_CONTEXT", "ACCEPT_SEC_CONTEXT", "RELEASE_HANDLE", "GET_MIC", "VERIFY", "WRAP", "UNWRAP",
		"WRAP_SIZE_LIMIT", "Proc(16)"} {
		p := Proc(p)
		if p.String() != want {
			t.Errorf("procedure %d is %v, want %s", uint32(p), p, want)
		}
		known := p > ProcNull && p <= ProcWrapSizeLimit
		if (p.Arg() != nil) != known || (p.Res() != nil) != known {
			t.Errorf("%v: arguments %T, results %T", p, p.Arg(), p.Res())
		}
	}
}
