package xdr

import (
	"encoding/binary"
	"errors"
	"reflect"
	"runtime"
	"testing"
)

// factor bounds what decoding a record allocates: no more than factor times the record's length.
// The most that an array can take in memory is six times its least form on the wire (an option: 8
// bytes, here two slices of 24), and each of three nested counts can claim all the bytes left once
// before they run out; an element of a credential is 216 bytes against 52. That makes 216/52 + 6 +
// 6, and a little for the rounding of sizes.
const factor = 18

// allocated returns the bytes that f allocates.
func allocated(f func()) uint64 {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	f()
	runtime.ReadMemStats(&after)
	return after.TotalAlloc - before.TotalAlloc
}

// check decodes into m, and fails the test for an allocation out of proportion or an error of the
// wrong sort.
func check(t testing.TB, m Message, b []byte) (ratio float64, err error) {
	d := NewDecoder(b)
	n := allocated(func() { m.Decode(d); err = d.Err() })
	const fixed = 4096 // an error's text, and what the runtime does meanwhile
	if n > factor*uint64(len(b))+fixed {
		t.Fatalf("%T: %d bytes allocated for a record of %d", m, n, len(b))
	}
	if e := (*Error)(nil); err != nil && (!errors.As(err, &e) || e.Offset < 0 || e.Offset > len(b)) {
		t.Fatalf("%T: error %v", m, err)
	}
	return max(0, float64(n)-fixed) / float64(len(b)), err
}

// The worst that nested counts can do, in a record of the greatest length.
func TestNestedCounts(t *testing.T) {
	const size = 1 << 20
	b := make([]byte, size)
	put := func(off, v int) { binary.BigEndian.PutUint32(b[off:], uint32(v)) }
	left := func(off, least int) int { return (size - off - 4) / least }
	put(12, 1)            // input_cred_handle is present
	put(40, left(40, 52)) // elements
	put(60, left(60, 12)) // elements[0].MN.name_attributes
	put(72, left(72, 8))  // elements[0].MN.name_attributes[0].extensions
	ratio, err := check(t, new(ArgAcquireCred), b)
	if err == nil {
		t.Error("no error")
	}
	if ratio < 10 {
		t.Errorf("ratio %.1f: the counts are not where the test believes", ratio)
	}
	t.Logf("%.1f times the record's length; %v", ratio, err)

	for _, off := range []int{40, 60, 72} {
		old := binary.BigEndian.Uint32(b[off:])
		put(off, int(old)+1)
		if ratio, err := check(t, new(ArgAcquireCred), b); err == nil || ratio > 12 {
			t.Errorf("one element too many at %d: ratio %.1f, error %v", off, ratio, err)
		}
		put(off, int(old))
	}
}

// Every word of captured records in turn becomes a length or a count that promises too much.
func TestHostileLengths(t *testing.T) {
	type key struct {
		proc  Proc
		reply bool
	}
	seen := map[key]bool{}
	worst := 0.0
	for _, r := range records(t) {
		k := key{r.proc, r.reply}
		_, body, err := decodeRecord(&r, r.data)
		if body == nil || err != nil || seen[k] {
			continue
		}
		seen[k] = true
		b := body.Append(nil)
		for off := 0; off < len(b); off += 4 {
			old := binary.BigEndian.Uint32(b[off:])
			left := uint32(len(b) - off - 4)
			for _, v := range []uint32{1<<32 - 1, 1 << 31, left + 1, left / 8, left / 12, left / 52} {
				binary.BigEndian.PutUint32(b[off:], v)
				ratio, _ := check(t, newMessage(reflect.TypeOf(body).Elem()), b)
				worst = max(worst, ratio)
			}
			binary.BigEndian.PutUint32(b[off:], old)
		}
	}
	t.Logf("%d kinds of message, at worst %.1f times the record's length", len(seen), worst)
}

// FuzzMessage decodes any bytes as any message: no panic, and what decodes, encodes and decodes
// again to the same.
func FuzzMessage(f *testing.F) {
	kinds := kinds()
	index := map[reflect.Type]int{}
	for i, k := range kinds {
		index[k] = i
		f.Add(i, newMessage(k).Append(nil))
	}
	seeds := map[int]int{}
	add := func(m Message) {
		i := index[reflect.TypeOf(m).Elem()]
		if b := m.Append(nil); len(b) < 4096 && seeds[i] < 4 {
			f.Add(i, b)
			seeds[i]++
		}
	}
	for _, r := range records(f) {
		header, body, err := decodeRecord(&r, r.data)
		if err != nil {
			f.Fatal(err)
		}
		add(header)
		if body != nil {
			add(body)
		}
	}
	entry := Kadm5Principal{Principal: []byte("a@A\x00"), Modifier: Kadm5Name{Name: []byte("b@A\x00")}, TaggedData: Kadm5TaggedData{Absent: 1},
		Keys: []Kadm5Key{{Version: 1}, {Version: 2, Salted: Kadm5KeySalted{KVNO: 3, Enctype: 18}}}}
	add(&Kadm5PrincipalResult{API: Kadm5API, Found: Kadm5Found{Principal: entry}})
	add(&Kadm5ChangePassword{API: Kadm5API, Principal: []byte("a@A\x00"), KeepOld: true, Keys: []Kadm5KeySalt{{Enctype: 18}}, Password: []byte("secret\x00")})
	f.Fuzz(func(t *testing.T, kind int, data []byte) {
		k := kinds[uint(kind)%uint(len(kinds))]
		m := newMessage(k)
		d := NewDecoder(data)
		m.Decode(d)
		if d.Err() != nil {
			if e := (*Error)(nil); !errors.As(d.Err(), &e) || e.Offset < 0 || e.Offset > len(data) || d.Remaining() != 0 {
				t.Fatalf("%#v, %d bytes left", d.Err(), d.Remaining())
			}
			return
		}
		b := m.Append(nil)
		if len(b) != d.Offset() {
			t.Fatalf("%d bytes decoded, %d encoded", d.Offset(), len(b))
		}
		again := newMessage(k)
		d = NewDecoder(b)
		again.Decode(d)
		if d.Err() != nil || d.Remaining() != 0 {
			t.Fatalf("own encoding: %v, %d bytes left", d.Err(), d.Remaining())
		}
		if !reflect.DeepEqual(m, again) {
			t.Fatalf("%+v\nbecame\n%+v", m, again)
		}
		if Sprint(m) == "" {
			t.Fatal("nothing printed")
		}
	})
}
