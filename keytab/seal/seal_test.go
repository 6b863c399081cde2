package seal

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"

	"pgregory.net/rapid"
)

func TestSealUnseal(t *testing.T) {
	b := New()
	rapid.Check(t, func(t *rapid.T) {
		plain := rapid.SliceOf(rapid.Byte()).Draw(t, "plain")
		owner := rapid.String().Draw(t, "owner")
		kind := Kind(rapid.ByteRange(1, 255).Draw(t, "kind"))
		prefix := rapid.SliceOf(rapid.Byte()).Draw(t, "prefix")
		sealed := b.Seal(bytes.Clone(prefix), plain, owner, kind)
		if !bytes.HasPrefix(sealed, prefix) || len(sealed) != len(prefix)+len(plain)+overhead {
			t.Fatalf("sealed %d bytes after %d into %d", len(plain), len(prefix), len(sealed))
		}
		got, err := b.Unseal(bytes.Clone(prefix), sealed[len(prefix):], owner, kind)
		if err != nil || !bytes.Equal(got, append(bytes.Clone(prefix), plain...)) {
			t.Fatalf("got %x, %v; want %x after %x", got, err, plain, prefix)
		}
	})
}

// refused checks that nothing comes out, and dst stays as it was.
func refused(t *testing.T, what string, b *Box, sealed []byte, owner string, kind Kind) {
	t.Helper()
	dst := append(make([]byte, 0, 1000), "dst"...)
	got, err := b.Unseal(dst, sealed, owner, kind)
	if !errors.Is(err, ErrNotOurs) || string(got) != "dst" {
		t.Errorf("%s: %q, %v; want ErrNotOurs", what, got, err)
	}
}

func TestUnsealRefuses(t *testing.T) {
	b := New()
	sealed := b.Seal(nil, []byte("a credential"), "httpd", KindCred)
	refused(t, "other owner", b, sealed, "sshd", KindCred)
	refused(t, "prefix of the owner", b, sealed, "http", KindCred)
	refused(t, "no owner", b, sealed, "", KindCred)
	refused(t, "other kind", b, sealed, "httpd", KindContext)
	refused(t, "other daemon", New(), sealed, "httpd", KindCred)
	refused(t, "one byte more", b, append(bytes.Clone(sealed), 0), "httpd", KindCred)
	for n := range sealed {
		refused(t, fmt.Sprintf("first %d bytes", n), b, sealed[:n], "httpd", KindCred)
	}
	for i := range sealed {
		for bit := range 8 {
			changed := bytes.Clone(sealed)
			changed[i] ^= 1 << bit
			refused(t, fmt.Sprintf("bit %d of byte %d", bit, i), b, changed, "httpd", KindCred)
		}
	}
	// A handle of the C daemon: AES ciphertext of an exported credential.
	c := make([]byte, 270)
	for i := range c {
		c[i] = byte(rand.Uint32())
	}
	refused(t, "random bytes", b, c, "httpd", KindCred)
	former := bytes.Clone(sealed)
	former[len(magic)] = 1
	for what, foreign := range map[string][]byte{"random bytes": c, "nothing": nil, "the former version": former, "a beginning": sealed[:overhead-1]} {
		if k := KindOf(foreign); k != 0 {
			t.Errorf("%s: kind %d", what, k)
		}
		refused(t, what, b, foreign, "httpd", 0)
	}
	if got, err := b.Unseal(nil, sealed, "httpd", KindCred); err != nil || string(got) != "a credential" {
		t.Errorf("the original: %q, %v", got, err)
	}
}

// The header says no more than it must, and no two objects share a nonce.
func TestSealedForm(t *testing.T) {
	b := New()
	seen := make(map[string]bool)
	for range 1000 {
		s := b.Seal(nil, []byte("same"), "httpd", KindCred)
		if string(s[:5]) != "GPX\x02\x01" || KindOf(s) != KindCred {
			t.Fatalf("starts with %x", s[:5])
		}
		if nonce := string(s[nonceAt:sealedAt]); seen[nonce] {
			t.Fatal("nonce used twice")
		} else {
			seen[nonce] = true
		}
	}
}

func TestConcurrentUse(t *testing.T) {
	b := New()
	var wg sync.WaitGroup
	const goroutines, times = 8, 50
	used := make(chan struct{}, goroutines*times)
	for i := range goroutines {
		wg.Go(func() {
			for range times {
				plain := fmt.Appendf(nil, "goroutine %d", i)
				got, err := b.Unseal(nil, b.Seal(nil, plain, "s", KindCred), "s", KindCred)
				if err != nil || !bytes.Equal(got, plain) {
					t.Errorf("%q, %v; want %q", got, err, plain)
				}
				used <- struct{}{}
			}
		})
	}
	// With as many keys as there may be, none is forgotten however long one of the others rests
	// between its two calls.
	for range maxKeys - 1 {
		<-used
		if err := b.Rotate(); err != nil {
			t.Error(err)
		}
	}
	wg.Wait()
}

// What is refused costs no memory, whatever its size says.
func TestUnsealAllocations(t *testing.T) {
	b := New()
	sealed := b.Seal(nil, make([]byte, 300), "httpd", KindCred)
	other := New().Seal(nil, make([]byte, 1<<20), "httpd", KindCred)
	dst := make([]byte, 0, 1000)
	for _, test := range []struct {
		name   string
		sealed []byte
		max    float64
	}{
		{"ours", sealed, 1}, // the associated data
		{"unknown key", other, 0},
		{"garbage", make([]byte, 1<<20), 0},
	} {
		if n := testing.AllocsPerRun(100, func() { b.Unseal(dst, test.sealed, "httpd", KindCred) }); n > test.max {
			t.Errorf("%s: %v allocations, want at most %v", test.name, n, test.max)
		}
	}
}

func FuzzUnseal(f *testing.F) {
	b := New()
	sealed := b.Seal(nil, []byte("a credential"), "httpd", KindCred)
	f.Add([]byte(nil))
	f.Add(sealed)
	f.Add(sealed[:overhead])
	f.Add(append([]byte("GPX\x01"), make([]byte, 100)...))
	f.Fuzz(func(t *testing.T, in []byte) {
		if bytes.Equal(in, sealed) {
			return
		}
		// Whole inputs, and inputs that pass the header checks.
		for _, in := range [][]byte{in, append(bytes.Clone(sealed[:nonceAt]), in...)} {
			if bytes.Equal(in, sealed) {
				continue
			}
			if out, err := b.Unseal(nil, in, "httpd", KindCred); err != ErrNotOurs || out != nil {
				t.Errorf("%x opened: %q, %v", in, out, err)
			}
		}
	})
}

func BenchmarkSeal(b *testing.B) {
	box := New()
	plain, dst := make([]byte, 300), make([]byte, 0, 1000)
	b.ReportAllocs()
	for b.Loop() {
		box.Seal(dst, plain, "httpd", KindCred)
	}
}

func BenchmarkUnseal(b *testing.B) {
	box := New()
	sealed, dst := box.Seal(nil, make([]byte, 300), "httpd", KindCred), make([]byte, 0, 1000)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := box.Unseal(dst, sealed, "httpd", KindCred); err != nil {
			b.Fatal(err)
		}
	}
}
