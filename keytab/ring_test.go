package keytab

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"gssproxyd/mech/krb5/etype"
)

func mustRing(t testing.TB, records ...written) *Ring {
	t.Helper()
	entries, err := Parse(encode(records...))
	if err != nil {
		t.Fatal(err)
	}
	return Compile("FILE:/test", entries)
}

func TestLookup(t *testing.T) {
	// Records of one principal: the key's bytes are its position.
	type rec struct {
		et        etype.ID
		kvno, ts  uint32
		principal string
	}
	const aes128, aes256 = etype.AES128SHA1, etype.AES256SHA1
	for _, test := range []struct {
		name string
		recs []rec
		kvno uint32
		et   etype.ID
		want int // position, -1 none
	}{
		{"exact", []rec{{aes256, 1, 1, ""}, {aes256, 2, 2, ""}}, 1, aes256, 0},
		{"old after rotation", []rec{{aes256, 2, 2, ""}, {aes256, 1, 1, ""}}, 1, aes256, 1},
		{"other version", []rec{{aes256, 1, 1, ""}}, 2, aes256, -1},
		{"other enctype", []rec{{aes256, 1, 1, ""}}, 1, aes128, -1},
		{"enctype decides", []rec{{aes256, 1, 1, ""}, {aes128, 1, 1, ""}}, 1, aes128, 1},
		{"other principal", []rec{{aes256, 1, 1, "other"}}, 1, aes256, -1},
		{"first of equals", []rec{{aes256, 1, 1, ""}, {aes256, 1, 2, ""}}, 1, aes256, 0},
		{"8-bit wrap", []rec{{aes256, 3, 1, ""}, {aes256, 4, 1, ""}}, 260, aes256, 1},
		{"exact before wrap", []rec{{aes256, 4, 1, ""}, {aes256, 260, 1, ""}}, 260, aes256, 1},
		{"first wrap", []rec{{aes256, 4, 1, ""}, {aes256, 4, 2, ""}}, 516, aes256, 0},
		{"no wrap the other way", []rec{{aes256, 260, 1, ""}}, 4, aes256, -1},
		{"wrap to 0 takes part as 0", []rec{{aes256, 0, 1, ""}}, 256, aes256, 0},
		{"newest", []rec{{aes256, 2, 9, ""}, {aes256, 7, 1, ""}, {aes256, 3, 9, ""}}, 0, aes256, 1},
		{"newest wrapped", []rec{{aes256, 255, 10, ""}, {aes256, 1, 10, ""}}, 0, aes256, 1},
		{"newest wrapped, file order", []rec{{aes256, 1, 10, ""}, {aes256, 255, 10, ""}}, 0, aes256, 0},
		{"small but older is no wrap", []rec{{aes256, 255, 10, ""}, {aes256, 1, 9, ""}}, 0, aes256, 0},
		{"small but older, file order", []rec{{aes256, 1, 9, ""}, {aes256, 255, 10, ""}}, 0, aes256, 1},
		{"240 is not large", []rec{{aes256, 240, 10, ""}, {aes256, 1, 10, ""}}, 0, aes256, 0},
		{"128 is not small", []rec{{aes256, 255, 10, ""}, {aes256, 128, 10, ""}}, 0, aes256, 0},
		{"times are unsigned", []rec{{aes256, 255, 1 << 31, ""}, {aes256, 1, 1<<31 - 1, ""}}, 0, aes256, 0},
		{"entry of version 0 matches any", []rec{{aes256, 0, 1, ""}}, 9, aes256, 0},
		{"exact before version 0", []rec{{aes256, 0, 1, ""}, {aes256, 9, 1, ""}}, 9, aes256, 1},
		{"empty ring", nil, 1, aes256, -1},
	} {
		t.Run(test.name, func(t *testing.T) {
			var records []written
			for i, rec := range test.recs {
				w := service(rec.kvno)
				w.enctype, w.timestamp, w.key = rec.et, rec.ts, testKey(rec.et, byte(i))
				if rec.principal != "" {
					w.comps = []string{rec.principal}
				}
				records = append(records, w)
			}
			got := mustRing(t, records...).Lookup([]byte(serviceName), test.kvno, test.et)
			switch {
			case got == nil && test.want >= 0:
				t.Errorf("no key, want number %d", test.want)
			case got != nil && test.want < 0:
				t.Errorf("got number %d, want none", got.Key.Secret()[0])
			case got != nil && int(got.Key.Secret()[0]) != test.want:
				t.Errorf("got number %d, want %d", got.Key.Secret()[0], test.want)
			}
		})
	}
}

func TestRingIndexes(t *testing.T) {
	des := service(1)
	des.enctype, des.key = 1, []byte("12345678")
	short := service(2)
	short.key = short.key[:31]
	host := service(5)
	host.comps = []string{"host", "www.example.com"}
	aes128 := service(5)
	aes128.enctype, aes128.key = etype.AES128SHA1, testKey(etype.AES128SHA1, 1)
	r := mustRing(t, des, service(3), host, short, aes128, service(4))

	if r.Len() != 4 || r.Principals() != 2 || r.Name() != "FILE:/test" || len(r.All()) != 4 {
		t.Errorf("%d keys of %d principals in %s, want 4 of 2 in FILE:/test", r.Len(), r.Principals(), r.Name())
	}
	describe := func(keys []*etype.ServiceKey) (out []string) {
		for _, k := range keys {
			out = append(out, fmt.Sprintf("%s %d %d %d", k.Principal, k.KVNO, k.Timestamp, int32(k.Key.Enctype())))
		}
		return out
	}
	for _, test := range []struct {
		name string
		got  []*etype.ServiceKey
		want []string
	}{
		{"by enctype", r.ByEnctype(etype.AES256SHA1), []string{serviceName + " 3 1003 18", "host/www.example.com@EXAMPLE.COM 5 1005 18", serviceName + " 4 1004 18"}},
		{"by principal", r.ByPrincipal([]byte(serviceName)), []string{serviceName + " 3 1003 18", serviceName + " 5 1005 17", serviceName + " 4 1004 18"}},
		{"unused enctype", r.ByEnctype(etype.AES256SHA384), nil},
		{"unsupported enctype", r.ByEnctype(1), nil},
		{"unknown principal", r.ByPrincipal([]byte("x")), nil},
	} {
		if diff := cmp.Diff(test.want, describe(test.got)); diff != "" {
			t.Errorf("%s:\n%s", test.name, diff)
		}
	}
	skipped := r.Skipped()
	if len(skipped) != 2 || skipped[0].Enctype != 1 || !strings.Contains(skipped[0].Reason, "not supported") ||
		skipped[1].KVNO != 2 || !strings.Contains(skipped[1].Reason, "31 bytes") {
		t.Errorf("skipped: %+v", skipped)
	}
}

func TestCovers(t *testing.T) {
	one, both, none := mustRing(t, service(1)), mustRing(t, service(2), service(1)), mustRing(t)
	changed := service(1)
	changed.key = testKey(etype.AES256SHA1, 99)
	for _, test := range []struct {
		name     string
		new, old *Ring
		want     bool
	}{
		{"same", one, mustRing(t, service(1)), true},
		{"more", both, one, true},
		{"less", one, both, false},
		{"from nothing", one, none, true},
		{"to nothing", none, one, false},
		{"other key under the same version", mustRing(t, changed), one, false},
	} {
		if got := test.new.covers(test.old); got != test.want {
			t.Errorf("%s: %v, want %v", test.name, got, test.want)
		}
	}
}

// The entries alias the file; the ring must not.
func TestCompileCopies(t *testing.T) {
	file := encode(service(1))
	entries, err := Parse(file)
	if err != nil {
		t.Fatal(err)
	}
	r := Compile("FILE:/test", entries)
	clear(file)
	if got := r.Lookup([]byte(serviceName), 1, 18).Key.Secret(); !bytes.Equal(got, testKey(18, 1)) {
		t.Error("the ring's key changed with the file's buffer")
	}
}

// The keys are those that open tickets: what one side seals under usage 2, the ring's key opens.
func TestRingKeysWork(t *testing.T) {
	file, err := os.ReadFile("testdata/server-run5.keytab")
	if err != nil {
		t.Fatal(err)
	}
	entries, err := Parse(file)
	if err != nil {
		t.Fatal(err)
	}
	r := Compile("FILE:/test", entries)
	if r.Len() != len(entries) {
		t.Fatalf("%d keys of %d entries", r.Len(), len(entries))
	}
	for _, e := range entries {
		kdc, err := etype.NewKey(e.Enctype, e.Key)
		if err != nil {
			t.Fatal(err)
		}
		ct, err := kdc.Encrypt(nil, 2, []byte("a ticket"))
		if err != nil {
			t.Fatal(err)
		}
		pt, err := r.Lookup([]byte(e.Principal), e.KVNO, e.Enctype).Key.Decrypt(nil, 2, ct)
		if err != nil || string(pt) != "a ticket" {
			t.Errorf("%v: %q, %v", e.Enctype, pt, err)
		}
	}
}

// Keys outlive the ring while one of them is held, and are zeroed when nothing is.
func TestKeysAreZeroed(t *testing.T) {
	entries, err := Parse(encode(service(1), service(2)))
	if err != nil {
		t.Fatal(err)
	}
	retired := make(chan struct{})
	ring := compile("FILE:/test", entries, func(keys []*etype.Key) { destroy(keys); close(retired) })
	held := ring.Lookup([]byte(serviceName), 1, 18)
	raw := ring.Lookup([]byte(serviceName), 2, 18).Key.Secret() // keeps these bytes, but neither ring nor ServiceKey
	runtime.KeepAlive(ring)
	ring = nil
	for range 3 {
		runtime.GC() // cleanups of one collection have been queued by the next
	}
	select {
	case <-retired:
		t.Fatal("keys were destroyed while one of the ring was held")
	default:
	}
	if !bytes.Equal(raw, testKey(18, 2)) {
		t.Fatal("key bytes changed")
	}
	runtime.KeepAlive(held)
	for deadline := time.Now().Add(limit); ; {
		runtime.GC()
		select {
		case <-retired:
			if !bytes.Equal(raw, make([]byte, 32)) {
				t.Error("the key bytes are still there")
			}
			return
		case <-time.After(time.Millisecond):
		}
		if time.Now().After(deadline) {
			t.Fatal("keys of an unreachable ring were not destroyed")
		}
	}
}

func TestRingPrintsNoKeys(t *testing.T) {
	w := service(1)
	w.key = []byte("SECRETSECRETSECRETSECRETSECRETSE")
	entries, err := Parse(encode(w))
	if err != nil {
		t.Fatal(err)
	}
	r := Compile("FILE:/test", entries)
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%x", "%d"} {
		for _, v := range []any{entries, entries[0], &entries[0], r, *r, r.All(), r.Lookup([]byte(serviceName), 1, 18)} {
			out := fmt.Sprintf(verb, v)
			for _, secret := range []string{"SECRET", fmt.Sprintf("%x", "SECRET"), "83 69 67", "0x53, 0x45"} {
				if strings.Contains(out, secret) {
					t.Errorf("%s of %T shows key bytes: %s", verb, v, out)
				}
			}
		}
	}
}

// bigRing has n keys of n principals.
func bigRing(t testing.TB, n int) (*Ring, [][]byte) {
	var records []written
	var names [][]byte
	for i := range n {
		w := service(3)
		w.comps = []string{"HTTP", fmt.Sprintf("host%05d.department.example.com", i)}
		w.key = bytes.Clone(w.key)
		binary.BigEndian.PutUint32(w.key, uint32(i))
		records = append(records, w)
		names = append(names, fmt.Appendf(nil, "HTTP/host%05d.department.example.com@EXAMPLE.COM", i))
	}
	return mustRing(t, records...), names
}

func TestLookupDoesNotAllocate(t *testing.T) {
	r, names := bigRing(t, 501)
	for i, name := range names {
		k := r.Lookup(name, 3, 18)
		if k == nil || binary.BigEndian.Uint32(k.Key.Secret()) != uint32(i) {
			t.Fatalf("wrong key for %s", name)
		}
	}
	if n := testing.AllocsPerRun(100, func() {
		r.Lookup(names[499], 3, 18)
		r.Lookup(names[499], 0, 18)
		r.ByPrincipal(names[2])
		r.ByEnctype(18)
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func BenchmarkLookup(b *testing.B) {
	for _, n := range []int{1, 32, 501} {
		r, names := bigRing(b, n)
		order := rand.Perm(n)
		b.Run(fmt.Sprintf("entries=%d", n), func(b *testing.B) {
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				if r.Lookup(names[order[i%n]], 3, etype.AES256SHA1) == nil {
					b.Fatal("not found")
				}
			}
		})
	}
}

func BenchmarkCompile(b *testing.B) {
	var records []written
	for i := range 501 {
		w := service(uint32(i%3 + 1))
		w.comps = []string{"HTTP", fmt.Sprintf("host%05d.example.com", i/3)}
		records = append(records, w)
	}
	file := encode(records...)
	b.ReportAllocs()
	for b.Loop() {
		entries, err := Parse(file)
		if err != nil {
			b.Fatal(err)
		}
		Compile("FILE:/bench", entries)
	}
}

// A pending key opens what names its version, or one above all that there are, since that is a guess;
// it is never the newest.
func TestPending(t *testing.T) {
	const other = etype.AES128SHA1
	key := func(kvno uint32, et etype.ID, pending bool) Entry {
		return Entry{Principal: "a@A", KVNO: kvno, Enctype: et, Key: bytes.Repeat([]byte{byte(kvno)}, et.KeySize()), Pending: pending}
	}
	r := Compile("STORE:main:a@A", []Entry{key(4, etype.AES256SHA1, false), key(3, etype.AES256SHA1, false), key(5, etype.AES256SHA1, true), key(5, other, true)})
	for _, test := range []struct {
		kvno uint32
		et   etype.ID
		want uint32
	}{{0, etype.AES256SHA1, 4}, {3, etype.AES256SHA1, 3}, {4, etype.AES256SHA1, 4}, {5, etype.AES256SHA1, 5}, {6, etype.AES256SHA1, 5}, {261, etype.AES256SHA1, 5}, {2, etype.AES256SHA1, 0}, {0, other, 0}, {4, other, 0}, {5, other, 5}, {9, other, 5}} {
		var got uint32
		k := r.Lookup([]byte("a@A"), test.kvno, test.et)
		if k != nil {
			got = k.KVNO
		}
		if got != test.want || k != nil && k.Pending != (got == 5) {
			t.Errorf("kvno %d, %v: %d, want %d", test.kvno, test.et, got, test.want)
		}
	}
	for _, k := range r.state(time.Now(), UsualLife, 0) {
		if want := map[uint32]Verdict{5: PruneNewest, 4: PruneNewest, 3: PruneNo}[k.KVNO]; k.Prune != want && !(k.KVNO == 3 && k.Prune != PruneNewest) || k.Pending != (k.KVNO == 5) {
			t.Errorf("%+v", k)
		}
	}
}
