package der

import (
	"bytes"
	"encoding/asn1"
	"encoding/hex"
	"testing"
	"time"
)

func unhex(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestReaderFaults(t *testing.T) {
	for _, c := range []struct {
		name, in string
		read     func(*Reader)
		want     Fault
		at       int
	}{
		{"empty", "", func(r *Reader) { r.Int32() }, Overrun, 0},
		{"field missing at the end", "", func(r *Reader) { r.Field(0) }, Missing, 0},
		{"other field", "a100", func(r *Reader) { r.Field(0) }, Missing, 0},
		{"tag only", "02", func(r *Reader) { r.Int32() }, Overrun, 0},
		{"short contents", "020201", func(r *Reader) { r.Int32() }, Overrun, 0},
		{"wrong tag", "0401aa", func(r *Reader) { r.Int32() }, BadID, 0},
		{"indefinite", "30800000", func(r *Reader) { r.Enter(Sequence) }, Indefinite, 0},
		{"long form of short", "04810100", func(r *Reader) { r.Octets() }, NonCanonical, 0},
		{"leading zero length", "04820080" + "00", func(r *Reader) { r.Octets() }, NonCanonical, 0},
		{"huge length", "0484ffffffff00", func(r *Reader) { r.Octets() }, Overrun, 0},
		{"five length octets", "048501000000000000", func(r *Reader) { r.Octets() }, Overrun, 0},
		{"high tag number", "1f8101", func(r *Reader) { r.Raw() }, BadID, 0},
		{"empty integer", "0200", func(r *Reader) { r.Int32() }, BadLength, 0},
		{"padded integer", "02020001", func(r *Reader) { r.Int32() }, NonCanonical, 0},
		{"padded negative", "0202ff80", func(r *Reader) { r.Int32() }, NonCanonical, 0},
		{"33 bits", "02050100000000", func(r *Reader) { r.Uint32() }, OutOfRange, 0},
		{"int32", "02050080000000", func(r *Reader) { r.Int32() }, OutOfRange, 0},
		{"nine octets", "0209010000000000000000", func(r *Reader) { r.Int(-1<<63, 1<<63-1) }, OutOfRange, 0},
		{"left over", "300302010102", func(r *Reader) { o := r.Enter(Sequence); r.Leave(o) }, BadLength, 2},
		{"inner beyond outer", "30030402aabb", func(r *Reader) { r.Enter(Sequence); r.Octets() }, Overrun, 2},
		{"empty bits", "0300", func(r *Reader) { r.Flags() }, BadLength, 0},
		{"unused 8", "03020800", func(r *Reader) { r.Flags() }, BadFormat, 0},
		{"unused of nothing", "030101", func(r *Reader) { r.Flags() }, BadFormat, 0},
		{"time length", "180e" + hex.EncodeToString([]byte("20260101000000")), func(r *Reader) { r.Time() }, BadLength, 0},
		{"time zone", "180f" + hex.EncodeToString([]byte("20260101000000z")), func(r *Reader) { r.Time() }, BadFormat, 0},
		{"time digit", "180f" + hex.EncodeToString([]byte("2026010100000:Z")), func(r *Reader) { r.Time() }, BadTime, 0},
		{"february 30", "180f" + hex.EncodeToString([]byte("20260230000000Z")), func(r *Reader) { r.Time() }, BadTime, 0},
		{"before 1970", "180f" + hex.EncodeToString([]byte("19691231235959Z")), func(r *Reader) { r.Time() }, BadTime, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := NewReader(unhex(t, c.in))
			c.read(&r)
			if r.Fault() != c.want {
				t.Fatalf("fault %v, want %v", r.Fault(), c.want)
			}
			e := r.Err().(*Error)
			if e.Offset != c.at {
				t.Errorf("offset %d, want %d", e.Offset, c.at)
			}
			if c.want.Minor()>>8 != 0x6eda36 {
				t.Errorf("minor %#x is not of the asn1 table", c.want.Minor())
			}
			// Sticky: nothing more is read, nothing changes.
			r.Int32()
			r.Leave(r.Enter(Sequence))
			if r.More() || r.Peek() != 0 || r.Raw() != nil || r.Rest() != nil || r.Fault() != c.want {
				t.Error("reader went on after its error")
			}
		})
	}
}

func TestNested(t *testing.T) {
	var b []byte
	b, outer := Begin(b, Application(14))
	b, seq := Begin(b, Sequence)
	b, f := Begin(b, Context(0))
	b = AppendInt(b, 5)
	b = End(b, f)
	b, f = Begin(b, Context(2))
	b = AppendFlags(b, 0x20000000)
	b = End(b, f)
	b, f = Begin(b, Context(3))
	b = AppendOctets(b, make([]byte, 70000))
	b = End(b, f)
	b, f = Begin(b, Context(9)) // an extension
	b = AppendInt(b, 1)
	b = End(b, f)
	b = End(b, seq)
	b = End(b, outer)

	r := NewReader(b)
	o := r.Enter(Application(14))
	s := r.Enter(Sequence)
	x := r.Field(0)
	if v := r.Int32(); v != 5 {
		t.Errorf("int %d", v)
	}
	r.Leave(x)
	if r.Has(1) {
		t.Error("absent field found")
	}
	x = r.Field(2)
	if v := r.Flags(); v != 0x20000000 {
		t.Errorf("flags %#x", v)
	}
	r.Leave(x)
	x = r.Field(3)
	if v := r.Octets(); len(v) != 70000 {
		t.Errorf("%d octets", len(v))
	}
	r.Leave(x)
	r.LeaveOpen(s)
	r.Leave(o)
	if r.Err() != nil || r.More() || r.pos != len(b) {
		t.Fatalf("err %v, offset %d of %d", r.Err(), r.pos, len(b))
	}
	if n := testing.AllocsPerRun(10, func() {
		r := NewReader(b)
		o := r.Enter(Application(14))
		r.LeaveOpen(o)
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func TestIntegersMatchStandardLibrary(t *testing.T) {
	for _, v := range []int64{0, 1, -1, 127, 128, -128, -129, 255, 256, 1<<31 - 1, 1 << 31, -1 << 31, 1<<32 - 1, 1<<63 - 1, -1 << 63, 1 << 55, -1 << 55} {
		want, err := asn1.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		got := AppendInt(nil, v)
		if !bytes.Equal(got, want) {
			t.Errorf("%d: %x, want %x", v, got, want)
		}
		r := NewReader(got)
		if back := r.Int(-1<<63, 1<<63-1); back != v || r.Err() != nil {
			t.Errorf("%d read back as %d, %v", v, back, r.Err())
		}
	}
	for _, c := range []struct {
		in   string
		want uint32
	}{{"0201ff", 0xffffffff}, {"020480000000", 0x80000000}, {"02050080000000", 0x80000000}, {"020500ffffffff", 0xffffffff}, {"020100", 0}} {
		r := NewReader(unhex(t, c.in))
		if got := r.Uint32(); got != c.want || r.Err() != nil {
			t.Errorf("%s: %#x %v, want %#x", c.in, got, r.Err(), c.want)
		}
	}
}

func TestTimesMatchStandardLibrary(t *testing.T) {
	check := func(u uint32) {
		b := AppendTime(nil, u)
		if want := time.Unix(int64(u), 0).UTC().Format("20060102150405Z"); string(b[2:]) != want {
			t.Fatalf("%d: %s, want %s", u, b[2:], want)
		}
		r := NewReader(b)
		if got := r.Time(); got != u || r.Err() != nil {
			t.Fatalf("%s: %d %v, want %d", b[2:], got, r.Err(), u)
		}
	}
	for u := uint64(0); u < 1<<32; u += 86399*7 + 13 {
		check(uint32(u))
	}
	check(1<<32 - 1)
	r := NewReader(append([]byte{0x18, 15}, "99991231235959Z"...))
	if got := r.Time(); got != 1<<32-1 || r.Err() != nil {
		t.Errorf("year 9999: %d %v", got, r.Err())
	}
}

func TestFlags(t *testing.T) {
	for _, c := range []struct {
		in   string
		want uint32
	}{{"030100", 0}, {"03020780", 0x80000000}, {"030207ff", 0x80000000}, {"03050040890000", 0x40890000},
		{"03060040890000ff", 0x40890000}, {"030304fff7", 0xfff00000}} {
		r := NewReader(unhex(t, c.in))
		if got := r.Flags(); got != c.want || r.Err() != nil {
			t.Errorf("%s: %#x %v, want %#x", c.in, got, r.Err(), c.want)
		}
	}
}

func TestHeader(t *testing.T) {
	for _, n := range []int{0, 1, 127, 128, 255, 256, 65535, 65536, 1 << 24} {
		h := AppendHeader(nil, OctetString, n)
		if len(h) != HeaderSize(n) {
			t.Errorf("%d: header %x, size %d", n, h, HeaderSize(n))
		}
		b, m := Begin(nil, OctetString)
		b = append(b, make([]byte, n)...)
		if b = End(b, m); !bytes.HasPrefix(b, h) || len(b) != len(h)+n {
			t.Errorf("%d: Begin/End made %x, want %x", n, b[:min(len(b), 8)], h)
		}
	}
}

// walk reads everything there is, descending into constructed values.
func walk(r *Reader, depth int) {
	for r.More() && depth < 50 {
		switch t := r.Peek(); {
		case t&0x20 != 0:
			o := r.Enter(t)
			walk(r, depth+1)
			r.LeaveOpen(o)
		case t == Integer:
			r.Int32()
		case t == BitString:
			r.Flags()
		case t == GeneralizedTime:
			r.Time()
		default:
			r.Raw()
		}
	}
}

func FuzzReader(f *testing.F) {
	for _, s := range []string{"6e0b3009a003020105a10202", "3080", "0484ffffffff", "180f3230323630313031303030303030" + "5a"} {
		f.Add(unhex(f, s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		r := NewReader(b)
		walk(&r, 0)
		if r.pos > len(b) || r.Fault() == 0 && r.More() && len(b) < 50 {
			t.Fatalf("stopped at %d of %d without a fault", r.pos, len(b))
		}
		// What was read as an integer must be written back the same.
		r = NewReader(b)
		if r.Peek() == Integer {
			if v := r.Int(-1<<63, 1<<63-1); r.Err() == nil && !bytes.HasPrefix(b, AppendInt(nil, v)) {
				t.Fatalf("%d does not write back to %x", v, b)
			}
		}
	})
}
