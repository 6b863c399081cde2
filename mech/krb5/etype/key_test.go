package etype

import (
	"bytes"
	"encoding/gob"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"

	"pgregory.net/rapid"
)

var supported = []ID{AES128SHA1, AES256SHA1, AES128SHA256, AES256SHA384, RC4}

func testKey(t testing.TB, id ID) *Key {
	t.Helper()
	raw := make([]byte, id.KeySize())
	for i := range raw {
		raw[i] = byte(i*7 + 1)
	}
	k, err := NewKey(id, raw)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func TestRoundTrip(t *testing.T) {
	for _, id := range supported {
		plain, prepared := testKey(t, id), testKey(t, id).Prepare(0, 7, 100)
		rapid.Check(t, func(rt *rapid.T) {
			pt := rapid.SliceOfN(rapid.Byte(), 0, 300).Draw(rt, "pt")
			cut := rapid.IntRange(0, len(pt)).Draw(rt, "cut")
			usage := rapid.SampledFrom([]uint32{0, 3, 7, 9, 23, 64, 100, 1 << 31}).Draw(rt, "usage")
			before := []byte("before")
			ct, err := plain.Encrypt(before, usage, pt[:cut], pt[cut:])
			if err != nil || !bytes.HasPrefix(ct, before) {
				rt.Fatal(err, ct)
			}
			ct = ct[len(before):]
			if len(ct) != len(pt)+id.Overhead() {
				rt.Fatalf("%d bytes for %d", len(ct), len(pt))
			}
			for _, k := range []*Key{plain, prepared} {
				got, err := k.Decrypt(before, usage, ct)
				if err != nil || !bytes.Equal(got, append(before, pt...)) {
					rt.Fatalf("%x, %v; want %x", got, err, pt)
				}
			}
			at := rapid.IntRange(0, len(ct)*8-1).Draw(rt, "bit")
			ct[at/8] ^= 1 << (at % 8)
			if got, err := plain.Decrypt(before, usage, ct); !errors.Is(err, ErrIntegrity) || !bytes.Equal(got, before) {
				rt.Fatalf("damaged ciphertext: %x, %v", got, err)
			}
		})
	}
}

// A failed decryption must leave nothing of the unauthenticated plaintext behind.
func TestFailedDecryptClears(t *testing.T) {
	for _, id := range supported {
		k := testKey(t, id)
		ct, _ := k.Encrypt(nil, 1, bytes.Repeat([]byte{0xee}, 100))
		ct[len(ct)/2] ^= 1
		room := make([]byte, 0, 200)
		if _, err := k.Decrypt(room, 1, ct); err != ErrIntegrity {
			t.Fatal(err)
		}
		if !bytes.Equal(room[:200], make([]byte, 200)) {
			t.Errorf("%v leaves %x", id, room[:200])
		}
	}
}

func TestDecryptShort(t *testing.T) {
	for _, id := range supported {
		k := testKey(t, id)
		for n := range id.Overhead() + 40 {
			want := ErrIntegrity
			if n < id.Overhead() {
				want = ErrShort
			}
			if got, err := k.Decrypt(nil, 2, make([]byte, n)); err != want || len(got) != 0 {
				t.Errorf("%v, %d bytes: %x, %v", id, n, got, err)
			}
		}
	}
}

func FuzzDecrypt(f *testing.F) {
	var keys []*Key
	for i, id := range supported {
		k := testKey(f, id)
		keys = append(keys, k, testKey(f, id).Prepare(2, 9))
		ct, _ := k.Encrypt(nil, 2, []byte("some plaintext of a ticket"))
		f.Add(uint8(2*i), uint32(2), ct)
		f.Add(uint8(2*i+1), uint32(9), ct[:id.Overhead()-1])
	}
	f.Fuzz(func(t *testing.T, which uint8, usage uint32, ct []byte) {
		k := keys[int(which)%len(keys)]
		pt, err := k.Decrypt([]byte{1}, usage, ct)
		switch {
		case err == nil && len(pt) != 1+len(ct)-k.Enctype().Overhead():
			t.Fatalf("%d bytes of %d", len(pt), len(ct))
		case err != nil && (len(pt) != 1 || err != ErrShort && err != ErrIntegrity):
			t.Fatalf("%x, %v", pt, err)
		}
	})
}

func TestChecksumHMACMD5AnyKey(t *testing.T) {
	aes := testKey(t, AES128SHA1)
	rc4, err := NewKey(RC4, aes.Secret())
	if err != nil {
		t.Fatal(err)
	}
	msg := []byte("S4UByteArray")
	sum := aes.AppendChecksumHMACMD5(nil, 17, msg)
	if want := rc4.AppendChecksum(nil, 17, msg); !bytes.Equal(sum, want) {
		t.Errorf("%x, want %x", sum, want)
	}
	if !aes.VerifyChecksumType(ChecksumHMACMD5, 17, sum, msg) || aes.VerifyChecksumType(ChecksumHMACMD5, 17, sum[:12], msg) {
		t.Error("verification is wrong")
	}
}

// RFC 4757 as peers have it: what is encrypted for usage 8 may be decrypted as 9.
func TestRC4UsageNine(t *testing.T) {
	k := testKey(t, RC4)
	for _, usage := range []uint32{8, 9, 3} {
		ct, _ := k.Encrypt(nil, usage, []byte("x"))
		if _, err := k.Decrypt(nil, 9, ct); err != nil {
			t.Errorf("usage %d: %v", usage, err)
		}
	}
	ct, _ := k.Encrypt(nil, 9, []byte("x"))
	if _, err := k.Decrypt(nil, 8, ct); err != ErrIntegrity {
		t.Error("9 decrypts as 8")
	}
}

func TestNewKeyRefusals(t *testing.T) {
	for _, v := range []struct {
		id  ID
		n   int
		say string
	}{
		{AES256SHA1, 16, "32 bytes, got 16"}, {AES128SHA256, 0, "16 bytes, got 0"}, {RC4, 17, "16 bytes, got 17"},
		{DES3, 24, "des3-cbc-sha1 is not supported"}, {0, 16, "etype 0 is not"}, {-133, 16, "etype -133 is not"},
	} {
		if k, err := NewKey(v.id, make([]byte, v.n)); err == nil || k != nil || !strings.Contains(err.Error(), v.say) {
			t.Errorf("%d, %d bytes: %v", v.id, v.n, err)
		}
	}
	if _, err := GenerateKey(Camellia128); err == nil {
		t.Error("camellia generated")
	}
	a, _ := GenerateKey(AES256SHA384)
	b, err := GenerateKey(AES256SHA384)
	if err != nil || bytes.Equal(a.Secret(), b.Secret()) || len(a.Secret()) != 32 {
		t.Error("generated keys are not random or not 32 bytes")
	}
}

func TestNoKey(t *testing.T) {
	destroyed := testKey(t, AES128SHA256).Prepare(1)
	raw := destroyed.Secret()
	ct, _ := destroyed.Encrypt(nil, 1, []byte("x"))
	destroyed.Destroy()
	if !bytes.Equal(raw, make([]byte, 16)) {
		t.Error("Destroy leaves the key")
	}
	for _, k := range []*Key{{}, destroyed} {
		if _, err := k.Decrypt(nil, 1, ct); err == nil {
			t.Error("decrypts")
		}
		if _, err := k.Encrypt(nil, 1, nil); err == nil {
			t.Error("encrypts")
		}
		if k.Enctype() != 0 || k.Secret() != nil || k.AppendChecksum(nil, 1) != nil || k.PRF(nil, nil) != nil ||
			k.VerifyChecksum(1, nil) || k.VerifyChecksumType(ChecksumHMACMD5, 1, nil) || k.AppendChecksumHMACMD5(nil, 1) != nil ||
			k.Prepare(1).secrets() != nil || k.CryptRC4(nil, nil, nil, 0) {
			t.Error("works without a key")
		}
		k.Destroy()
	}
	if err := destroyed.Init(AES128SHA1, make([]byte, 16)); err != nil {
		t.Error(err)
	}
}

func TestInitReuse(t *testing.T) {
	a, b := testKey(t, AES256SHA1), testKey(t, AES128SHA256)
	want, _ := b.Encrypt(nil, 11, []byte("authenticator"))
	var k Key
	for range 2 {
		if err := k.Init(AES256SHA1, a.Secret()); err != nil {
			t.Fatal(err)
		}
		ct, _ := a.Encrypt(nil, 11, []byte("x"))
		if _, err := k.Prepare(11).Decrypt(nil, 11, ct); err != nil {
			t.Error(err)
		}
		if err := k.Init(AES128SHA256, b.Secret()); err != nil {
			t.Fatal(err)
		}
		if got, err := k.Decrypt(nil, 11, want); err != nil || string(got) != "authenticator" {
			t.Error(got, err)
		}
	}
	if n := testing.AllocsPerRun(100, func() { k.Init(AES256SHA1, a.Secret()) }); n != 0 {
		t.Errorf("Init allocates %v times", n)
	}
}

func TestConcurrentPrepared(t *testing.T) {
	for _, id := range supported {
		k := testKey(t, id).Prepare(2, 22)
		ct, _ := k.Encrypt(nil, 2, []byte("ticket"))
		other, _ := testKey(t, id).Encrypt(nil, 5, []byte("other"))
		var wg sync.WaitGroup
		for range 4 {
			wg.Go(func() {
				for range 50 {
					if pt, err := k.Decrypt(nil, 2, ct); err != nil || string(pt) != "ticket" {
						t.Error(pt, err)
					}
					if pt, err := k.Decrypt(nil, 5, other); err != nil || string(pt) != "other" {
						t.Error(pt, err)
					}
					k.PRF(nil, ct)
				}
			})
		}
		wg.Wait()
	}
}

func TestParse(t *testing.T) {
	for _, v := range []struct {
		name string
		want []ID
	}{
		{"aes256-cts-hmac-sha1-96", []ID{AES256SHA1}}, {"AES256-CTS", []ID{AES256SHA1}}, {"aes128-sha2", []ID{AES128SHA256}},
		{"arcfour-hmac-md5", []ID{RC4}}, {"rc4-hmac", []ID{RC4}}, {"rc4", []ID{RC4}}, {"camellia", []ID{Camellia256, Camellia128}},
		{"aes", []ID{AES256SHA1, AES128SHA1, AES256SHA384, AES128SHA256}}, {"des3", []ID{DES3}}, {"des3-hmac-sha1", []ID{DES3}},
		{"arcfour-hmac-exp", []ID{RC4Export}}, {"des-cbc-crc", nil}, {"", nil}, {"DEFAULT", nil}, {"18", nil},
	} {
		got, ok := Parse(v.name)
		if fmt.Sprint(got) != fmt.Sprint(v.want) || ok != (v.want != nil) {
			t.Errorf("%q: %v %v", v.name, got, ok)
		}
	}
	for _, s := range infos {
		got, ok := Parse(s.id.String())
		if !ok || len(got) != 1 || got[0] != s.id {
			t.Errorf("%v does not parse to itself", s.id)
		}
	}
}

func TestSizes(t *testing.T) {
	for _, v := range []struct {
		id                      ID
		key, mac, overhead, sum int
		sumType                 int32
		cfx                     bool
	}{
		{AES128SHA1, 16, 12, 28, 12, 15, true}, {AES256SHA1, 32, 12, 28, 12, 16, true},
		{AES128SHA256, 16, 16, 32, 16, 19, true}, {AES256SHA384, 32, 24, 40, 24, 20, true},
		{RC4, 16, 16, 24, 16, -138, false}, {DES3, 24, 20, 28, 20, 12, false},
		{Camellia128, 16, 16, 32, 16, 17, true}, {Camellia256, 32, 16, 32, 16, 18, true}, {99, 0, 0, 0, 0, 0, false},
	} {
		if v.id.KeySize() != v.key || v.id.MACSize() != v.mac || v.id.Overhead() != v.overhead || v.id.ChecksumSize() != v.sum ||
			v.id.ChecksumType() != v.sumType || v.id.CFX() != v.cfx {
			t.Errorf("%v: wrong", v.id)
		}
	}
}

// No way of printing a secret may show it, not even from within somebody else's struct.
func TestNothingPrints(t *testing.T) {
	raw := []byte("0123456789abcdefFEDCBA9876543210")
	k, err := NewKey(AES256SHA1, raw)
	if err != nil {
		t.Fatal(err)
	}
	k.Prepare(2)
	type exported struct {
		S Secret
		K *Key
		V Key
		E ServiceKey
		A []*Key
		M map[string]Secret
		I any
	}
	type unexported struct {
		k *Key
		v Key
		e ServiceKey
		a []Key
		m map[string]*Key
		i any
	}
	service := ServiceKey{Principal: "svc@R", Key: k}
	values := []any{
		Secret(raw), new(Secret(raw)), k, *k, service, &service, []Secret{raw}, [1]Key{*k},
		exported{raw, k, *k, service, []*Key{k}, map[string]Secret{"a": raw}, k},
		unexported{k, *k, service, []Key{*k}, map[string]*Key{"a": k}, *k},
		&unexported{k, *k, service, []Key{*k}, map[string]*Key{"a": k}, k},
	}
	var out strings.Builder
	for _, v := range values {
		for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "% x", "%X", "%d", "%08b", "%t", "%c", "%U"} {
			fmt.Fprintf(&out, verb+"\n", v)
		}
		fmt.Fprintf(&out, "%T %p\n", v, k)
		fmt.Fprintln(&out, v, errors.New(fmt.Sprint(v)))
		if b, err := json.Marshal(v); err == nil {
			out.Write(b)
		}
		for _, h := range []slog.Handler{slog.NewTextHandler(&out, nil), slog.NewJSONHandler(&out, nil)} {
			slog.New(h).Info("x", "v", v)
		}
		gob.NewEncoder(&out).Encode(k)
	}
	text := out.String()
	if !strings.Contains(text, redacted) || !strings.Contains(text, "Key(aes256-cts-hmac-sha1-96 [redacted])") {
		t.Error("redaction is not visible")
	}
	for _, leak := range []string{
		"0123456789abcdef", "FEDCBA98", "30313233343536", "30 31 32 33", "0x30, 0x31, 0x32", "48 49 50 51", "[48 49", "MDEyMzQ1Njc4OW", `\x30\x31`,
	} {
		if i := strings.Index(strings.ToLower(text), strings.ToLower(leak)); i >= 0 {
			t.Errorf("%q in %q", leak, text[max(0, i-80):i+20])
		}
	}
}

func TestSecretZero(t *testing.T) {
	s := Secret("abc")
	s.Zero()
	if string(s) != "\x00\x00\x00" {
		t.Error("not zero")
	}
}
