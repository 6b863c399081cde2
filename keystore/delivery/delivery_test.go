package delivery

import (
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// pair returns a key pair, the same one in each run.
func pair(seed byte) (ed25519.PublicKey, ed25519.PrivateKey) {
	b := make([]byte, ed25519.SeedSize)
	b[0] = seed
	k := ed25519.NewKeyFromSeed(b)
	return k.Public().(ed25519.PublicKey), k
}

var sample = &Delivery{
	Host: "web1.example.com", Principal: "HTTP/www.example.com@EXAMPLE.COM", Aliases: []string{"HTTP/www@EXAMPLE.COM"},
	Epoch: 1, Revision: 7, Issued: time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC),
	Rules: map[string][]string{"allowed_client": {"*@EXAMPLE.COM"}}, Sealed: []byte("an age file"),
}

func signedSample(t testing.TB, d *Delivery, key ed25519.PrivateKey) []byte {
	t.Helper()
	b, err := Sign(d, key)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestSignAndVerify(t *testing.T) {
	public, private := pair(1)
	other, _ := pair(2)
	b := signedSample(t, sample, private)
	if strings.Contains(string(b), "\n") {
		t.Error("more than one line")
	}
	got, err := Verify(b, sample.Host, []ed25519.PublicKey{other, public})
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(sample, got); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

// edit makes another delivery of one, as who has it in hands could.
func edit(t *testing.T, b []byte, f func(s *signed)) []byte {
	t.Helper()
	var s signed
	if err := json.Unmarshal(b, &s); err != nil {
		t.Fatal(err)
	}
	f(&s)
	b, err := json.Marshal(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestVerifyRefuses(t *testing.T) {
	public, private := pair(1)
	other, theirs := pair(2)
	good := signedSample(t, sample, private)
	for name, test := range map[string]struct {
		b    []byte
		host string
		want error
	}{
		"for another host":  {good, "web2.example.com", ErrHost},
		"for no host":       {good, "", ErrHost},
		"by another signer": {signedSample(t, sample, theirs), sample.Host, ErrSignature},
		"by another signer under the signer's name": {edit(t, signedSample(t, sample, theirs), func(s *signed) { s.Signer = FormatSigner(public) }), sample.Host, ErrSignature},
		"payload edited":      {edit(t, good, func(s *signed) { s.Payload[len(s.Payload)/2] ^= 1 }), sample.Host, ErrSignature},
		"signature edited":    {edit(t, good, func(s *signed) { s.Signature[0] ^= 1 }), sample.Host, ErrSignature},
		"signature cut off":   {edit(t, good, func(s *signed) { s.Signature = s.Signature[:63] }), sample.Host, ErrSignature},
		"unsigned":            {edit(t, good, func(s *signed) { s.Signature = nil }), sample.Host, ErrSignature},
		"for another purpose": {edit(t, good, func(s *signed) { s.Signature = ed25519.Sign(private, s.Payload) }), sample.Host, ErrSignature},
		"no JSON":             {[]byte("hello"), sample.Host, ErrFormat},
		"cut off":             {good[:len(good)-1], sample.Host, ErrFormat},
		"nothing":             {nil, sample.Host, ErrFormat},
		"null":                {[]byte("null"), sample.Host, ErrSignature},
		"too long":            {append([]byte(strings.Repeat(" ", MaxLen)), good...), sample.Host, ErrFormat},
		"no delivery":         {edit(t, good, func(s *signed) { s.Payload = []byte("1"); s.Signature = ed25519.Sign(private, message(s.Payload)) }), sample.Host, ErrFormat},
	} {
		d, err := Verify(test.b, test.host, []ed25519.PublicKey{public})
		if d != nil || !errors.Is(err, test.want) {
			t.Errorf("%s: %v, want %v", name, err, test.want)
		}
	}
	if _, err := Verify(good, sample.Host, nil); !errors.Is(err, ErrSignature) {
		t.Errorf("without signers: %v", err)
	}
	if _, err := Verify(good, sample.Host, []ed25519.PublicKey{other}); !errors.Is(err, ErrSignature) {
		t.Errorf("with another signer: %v", err)
	}
}

// What is sent stays as it is: hosts and stores are not changed on one day.
func TestForm(t *testing.T) {
	_, private := pair(1)
	var s signed
	if err := json.Unmarshal(signedSample(t, sample, private), &s); err != nil {
		t.Fatal(err)
	}
	want := `{"host":"web1.example.com","principal":"HTTP/www.example.com@EXAMPLE.COM","aliases":["HTTP/www@EXAMPLE.COM"],"epoch":1,"revision":7,` +
		`"issued":"2030-01-02T03:04:05Z","rules":{"allowed_client":["*@EXAMPLE.COM"]},"sealed":"YW4gYWdlIGZpbGU="}`
	if string(s.Payload) != want || s.Signer != FormatSigner(private.Public().(ed25519.PublicKey)) || len(s.Signature) != ed25519.SignatureSize {
		t.Errorf("%s, signed by %s", s.Payload, s.Signer)
	}
	withdrawn := &Delivery{Host: "h", Principal: "p", Epoch: 1, Revision: 2, Issued: sample.Issued, Withdrawn: "store-disabled", Text: "why"}
	b, err := json.Marshal(withdrawn)
	if want := `{"host":"h","principal":"p","epoch":1,"revision":2,"issued":"2030-01-02T03:04:05Z","withdrawn":"store-disabled","text":"why"}`; err != nil || string(b) != want {
		t.Errorf("%s, %v", b, err)
	}
}

func TestSignerAsText(t *testing.T) {
	public, _ := pair(1)
	text := FormatSigner(public)
	got, err := ParseSigner(text)
	if err != nil || !got.Equal(public) {
		t.Errorf("%v, %v", got, err)
	}
	for _, s := range []string{"", "ed25519:", text[8:], text + "A", text[:len(text)-1], text + "=", " " + text, strings.ToUpper(text), text[:len(text)-1] + "_"} {
		if k, err := ParseSigner(s); err == nil || !strings.Contains(err.Error(), "43 characters") {
			t.Errorf("%q: %v, %v", s, k, err)
		}
	}
}

func TestKeysAreNotPrinted(t *testing.T) {
	k := Keys{{State: "current", KVNO: 1, Enctype: 18, Key: []byte("KEY-KEY")}}
	for _, format := range []string{"%v", "%+v", "%#v", "%s"} {
		if text := fmt.Sprintf(format, k[0]); text != "[redacted]" {
			t.Errorf("%s: %s", format, text)
		}
		if text := fmt.Sprintf(format, k); !strings.Contains(text, "[redacted]") || strings.Contains(text, "current") {
			t.Errorf("%s: %s", format, text)
		}
	}
	k.Zero()
	if string(k[0].Key) != "\x00\x00\x00\x00\x00\x00\x00" {
		t.Error("not zeroed")
	}
}

// Whatever is received, nothing is taken for signed that is not.
func FuzzVerify(f *testing.F) {
	public, private := pair(1)
	f.Add(signedSample(f, sample, private))
	f.Add([]byte(`{"payload":"e30=","signer":"","signature":""}`))
	good, _ := json.Marshal(sample)
	f.Fuzz(func(t *testing.T, b []byte) {
		d, err := Verify(b, sample.Host, []ed25519.PublicKey{public})
		if err != nil {
			return
		}
		if got, _ := json.Marshal(d); string(got) != string(good) {
			t.Errorf("%s", got)
		}
	})
}
