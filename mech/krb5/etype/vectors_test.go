package etype

import (
	"bytes"
	"encoding/hex"
	"strings"
	"testing"
)

// unhex decodes hexadecimal with any spaces in it.
func unhex(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(strings.ReplaceAll(s, " ", ""))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// RFC 3961 appendix A.1.
func TestNFold(t *testing.T) {
	for _, v := range []struct {
		in   string
		bits int
		want string
	}{
		{"012345", 64, "be072631276b1955"},
		{"password", 56, "78a07b6caf85fa"},
		{"Rough Consensus, and Running Code", 64, "bb6ed30870b7f0e0"},
		{"password", 168, "59e4a8ca7c0385c3c37b3f6d2000247cb6e6bd5b3e"},
		{"MASSACHVSETTS INSTITVTE OF TECHNOLOGY", 192, "db3b0d8f0b061e603282b308a50841229ad798fab9540c1b"},
		{"Q", 168, "518a54a2 15a8452a 518a54a2 15a8452a 518a54a2 15"},
		{"ba", 168, "fb25d531 ae897449 9f52fd92 ea9857c4 ba24cf29 7e"},
		{"kerberos", 64, "6b657262 65726f73"},
		{"kerberos", 128, "6b657262 65726f73 7b9b5b2b 93132b93"},
		{"kerberos", 168, "8372c236 344e5f15 50cd0747 e15d62ca 7a5a3bce a4"},
		{"kerberos", 256, "6b657262 65726f73 7b9b5b2b 93132b93 5c9bdcda d95c9899 c4cae4de e6d6cae4"},
	} {
		if got := nfold([]byte(v.in), v.bits/8); !bytes.Equal(got, unhex(t, v.want)) {
			t.Errorf("%d-fold(%q) = %x, want %s", v.bits, v.in, got, v.want)
		}
	}
}

func TestFoldedTable(t *testing.T) {
	for _, usage := range []uint32{0, 2, 24, foldedUsages - 1, foldedUsages, 1 << 31} {
		for _, purpose := range []byte{forEncryption, forIntegrity, forChecksum} {
			c := usageConstant(usage, purpose)
			if got, want := appendFolded(nil, usage, purpose), nfold(c[:], 16); !bytes.Equal(got, want) {
				t.Errorf("usage %d %x: %x, want %x", usage, purpose, got, want)
			}
		}
	}
}

const (
	rfc8009Key128 = "3705d96080c17728a0e800eab6e0d23c"
	rfc8009Key256 = "6d404d37faf79f9df0d33568d320669800eb4836472ea8a026d16b7182460c52"
)

// Keys of usage 2. The RFC 8009 ones are its appendix A; the others were computed with MIT krb5.
func TestDeriveKey(t *testing.T) {
	for _, v := range []struct {
		id              ID
		key, ke, ki, kc string
	}{
		{AES128SHA1, "42263c6e89f4fc28b8df68ee09799f15",
			"5b14fc4e250e14ddf9dccf1af6674f53", "4ed31063621684f09ae8d89991af3e8f", "34280a382bc92769b2da2f9ef066854b"},
		{AES256SHA1, "fe697b52bc0d3ce14432ba036a92e65bbb52280990a2fa27883998d72af30161",
			"c7cfd9cd75fe793a586a542d87e0d1396f1134a104bb1a9190b8c90ada3ddf37",
			"97151b4c76945063e2eb0529dc067d97d7bba90776d8126d91f34f3101aea8ba",
			"bfab388bdcb238e9f9c98d6a878304f04d30c82556375ac507a7a852790f4674"},
		{AES128SHA256, rfc8009Key128,
			"9b197dd1e8c5609d6e67c3e37c62c72e", "9fda0e56ab2d85e1569a688696c26a6c", "b31a018a48f54776f403e9a396325dc3"},
		{AES256SHA384, rfc8009Key256,
			"56ab22bee63d82d7bc5227f6773f8ea7a5eb1c825160c38312980c442e5c7e49",
			"69b16514e3cd8e56b82010d5c73012b622c4d00ffc23ed1f", "ef5718be86cc84963d8bbb5031e9f5c4ba41f28faf69e73d"},
	} {
		k, err := NewKey(v.id, unhex(t, v.key))
		if err != nil {
			t.Fatal(err)
		}
		w := k.secrets().t.hash.get()
		for purpose, want := range map[byte]string{forEncryption: v.ke, forIntegrity: v.ki, forChecksum: v.kc} {
			if got := k.secrets().deriveKey(w, 2, purpose); !bytes.Equal(got, unhex(t, want)) {
				t.Errorf("%v %x: %x, want %s", v.id, purpose, got, want)
			}
		}
		k.secrets().t.hash.put(w)
	}
}

// RFC 3962 appendix B: CBC with ciphertext stealing under the key "chicken teriyaki". The first
// block stands where the confounder would.
func TestCTS(t *testing.T) {
	const text = "I would like the General Gau's Chicken, please, and wonton soup."
	b := newAES([]byte("chicken teriyaki"))
	for _, v := range []struct {
		n    int
		want string
	}{
		{17, "c6353568f2bf8cb4d8a580362da7ff7f 97"},
		{31, "fc00783e0efdb2c1d445d4c8eff7ed22 97687268d6ecccc0c07b25e25ecfe5"},
		{32, "39312523a78662d5be7fcbcc98ebf5a8 97687268d6ecccc0c07b25e25ecfe584"},
		{47, "97687268d6ecccc0c07b25e25ecfe584 b3fffd940c16a18c1b5549d2f838029e 39312523a78662d5be7fcbcc98ebf5"},
		{48, "97687268d6ecccc0c07b25e25ecfe584 9dad8bbb96c4cdc03bc103e1a194bbd8 39312523a78662d5be7fcbcc98ebf5a8"},
		{64, "97687268d6ecccc0c07b25e25ecfe584 39312523a78662d5be7fcbcc98ebf5a8 4807efe836ee89a526730dbc2f7bc840 9dad8bbb96c4cdc03bc103e1a194bbd8"},
	} {
		w := hashSHA1.get()
		p := []byte(text[:v.n])
		encryptCTS(b, w, p)
		if !bytes.Equal(p, unhex(t, v.want)) {
			t.Errorf("%d bytes: %x, want %s", v.n, p, v.want)
		}
		back := make([]byte, v.n-16)
		decryptCTS(b, w, back, p)
		if got := string(w.conf[:]) + string(back); got != text[:v.n] {
			t.Errorf("%d bytes decrypt to %q", v.n, got)
		}
		hashSHA1.put(w)
	}
}

// RFC 8009 appendix A, usage 2; the RC4 ones were computed with MIT krb5.
func TestDecryptVectors(t *testing.T) {
	const bytes21 = "000102030405060708090a0b0c0d0e0f1011121314"
	for _, v := range []struct {
		id     ID
		key    string
		pt, ct string
	}{
		{AES128SHA256, rfc8009Key128, "",
			"ef85fb890bb8472f4dab20394dca781d ad877eda39d50c870c0d5a0a8e48c718"},
		{AES128SHA256, rfc8009Key128, bytes21[:12],
			"84d7f30754ed987bab0bf3506beb09cf b55402cef7e6877ce99e247e52d16ed4421dfdf8976c"},
		{AES128SHA256, rfc8009Key128, bytes21[:32],
			"3517d640f50ddc8ad3628722b3569d2a e07493fa8263254080ea65c1008e8fc2 95fb4852e7d83e1e7c48c37eebe6b0d3"},
		{AES128SHA256, rfc8009Key128, bytes21,
			"720f73b18d9859cd6ccb4346115cd336 c70f58edc0c4437c5573544c31c813bc e1e6d072c186b39a413c2f92ca9b8334a287ffcbfc"},
		{AES256SHA384, rfc8009Key256, "",
			"41f53fa5bfe7026d91faf9be959195a0 58707273a96a40f0a01960621ac61274 8b9bbfbe7eb4ce3c"},
		{AES256SHA384, rfc8009Key256, bytes21[:12],
			"4ed7b37c2bcac8f74f23c1cf07e62bc7 b75fb3f637b9f559c7f664f69eab7b60 92237526ea0d1f61cb20d69d10f2"},
		{AES256SHA384, rfc8009Key256, bytes21[:32],
			"bc47ffec7998eb91e8115cf8d19dac4b bbe2e163e87dd37f49beca92027764f6 8cf51f14d798c2273f35df574d1f932e 40c4ff255b36a266"},
		{AES256SHA384, rfc8009Key256, bytes21,
			"40013e2df58e8751957d2878bcd2d6fe 101ccfd556cb1eae79db3c3ee86429f2 b2a602ac86fef6ecb647d6295fae077a 1feb517508d2c16b4192e01f62"},
	} {
		k, err := NewKey(v.id, unhex(t, v.key))
		if err != nil {
			t.Fatal(err)
		}
		for range 2 {
			got, err := k.Decrypt([]byte("before"), 2, unhex(t, v.ct))
			if err != nil || !bytes.Equal(got, append([]byte("before"), unhex(t, v.pt)...)) {
				t.Errorf("%v: %x, %v; want %s", v.id, got, err, v.pt)
			}
			k.Prepare(2)
		}
	}
}

// RFC 8009 appendix A; the others were computed with MIT krb5.
func TestChecksumVectors(t *testing.T) {
	const bytes21 = "\x00\x01\x02\x03\x04\x05\x06\x07\x08\x09\x0a\x0b\x0c\x0d\x0e\x0f\x10\x11\x12\x13\x14"
	for _, v := range []struct {
		id    ID
		key   string
		usage uint32
		msg   string
		sum   string
	}{
		{AES128SHA256, rfc8009Key128, 2, bytes21, "d78367186643d67b411cba9139fc1dee"},
		{AES256SHA384, rfc8009Key256, 2, bytes21, "45ee791567eefca37f4ac1e0222de80d43c3bfa06699672a"},
		{AES128SHA1, "9062430c8cda3388922e6d6a509f5b7a", 3, "eight nine ten eleven twelve thirteen", "01a4b088d45628f6946614e3"},
		{AES256SHA1, "b1ae4cd8462aff1677053cc9279aac30b796fb81ce21474dd3ddbcfea4ec76d7", 4, "fourteen", "e08739e3279e2903ec8e3836"},
		{RC4, "f7d3a155af5e238a0b7a871a96ba2ab2", 6, "seventeen eighteen nineteen twenty", "eb38cc97e2230f59da4117dc5859d7ec"},
	} {
		k, err := NewKey(v.id, unhex(t, v.key))
		if err != nil {
			t.Fatal(err)
		}
		for range 2 {
			sum := k.AppendChecksum(nil, v.usage, []byte(v.msg[:5]), nil, []byte(v.msg[5:]))
			if !bytes.Equal(sum, unhex(t, v.sum)) {
				t.Errorf("%v: %x, want %s", v.id, sum, v.sum)
			}
			if !k.VerifyChecksum(v.usage, sum, []byte(v.msg)) || !k.VerifyChecksumType(v.id.ChecksumType(), v.usage, sum, []byte(v.msg)) {
				t.Errorf("%v: own checksum does not verify", v.id)
			}
			if k.VerifyChecksum(v.usage+1, sum, []byte(v.msg)) || k.VerifyChecksum(v.usage, sum[1:], []byte(v.msg)) ||
				k.VerifyChecksum(v.usage, nil, []byte(v.msg)) || k.VerifyChecksumType(7, v.usage, sum, []byte(v.msg)) {
				t.Errorf("%v: wrong checksum verifies", v.id)
			}
			k.Prepare(v.usage)
		}
	}
}

// The RFC 8009 ones are its appendix A, the others MIT krb5's.
func TestPRFVectors(t *testing.T) {
	for _, v := range []struct {
		id            ID
		key, in, want string
	}{
		{AES128SHA1, "ae272e7cdec86ac5138cdb196d8e297d", "\x01\x61", "77b39a37a868920f2a51f9dd150c5717"},
		{AES128SHA1, "67ab1cfef35e4c27ffdeac60385a3e9c", "\x01\x62", "e06c0dd31ff02091994f2ef5178bfe3d"},
		{AES256SHA1, "c01f157211f7b77eaaf457c3e156690127ee127d810ba6392e97baa243eb0616", "\x01\x61", "b2628c788e2e9c4a9bb4644678c29f2f"},
		{AES256SHA1, "9d520d2d980aa7cb6b693682b62da258b333867951642ce647ae62b1e5e0b5e9", "\x02\x62", "0d674dd0f9a6806525a4d92e828bd15a"},
		{AES128SHA256, rfc8009Key128, "test", "9d188616f63852fe86915bb840b4a886ff3e6bb0f819b49b893393d393854295"},
		{AES256SHA384, rfc8009Key256, "test", "9801f69a368c2bf675e59521e177d9a07f67efe1cfde8d3c8d6f6a0256e3b17db3c1b62ad1b8553360d17367eb1514d2"},
	} {
		k, err := NewKey(v.id, unhex(t, v.key))
		if err != nil {
			t.Fatal(err)
		}
		if got := k.PRF([]byte{9}, []byte(v.in)); !bytes.Equal(got, append([]byte{9}, unhex(t, v.want)...)) {
			t.Errorf("%v: %x, want %s", v.id, got[1:], v.want)
		}
	}
}
