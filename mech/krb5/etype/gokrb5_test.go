package etype

import (
	"bytes"
	"testing"

	"github.com/jcmturner/gokrb5/v8/crypto"
)

// gokrb5 is an independent implementation; its PRFs are not compared, since they are wrong.
func TestAgainstGokrb5(t *testing.T) {
	for _, id := range supported {
		k := testKey(t, id)
		theirs, err := crypto.GetEtype(int32(id))
		if err != nil {
			t.Fatal(err)
		}
		for _, usage := range []uint32{1, 2, 11, 12, 22, 24} {
			for _, n := range []int{0, 1, 8, 15, 16, 17, 31, 32, 33, 100, 345} {
				pt := bytes.Repeat([]byte{byte(n)}, n)
				_, ct, err := theirs.EncryptMessage(k.Secret(), pt, usage)
				if err != nil {
					t.Fatal(err)
				}
				if got, err := k.Decrypt(nil, usage, ct); err != nil || !bytes.Equal(got, pt) {
					t.Errorf("%v usage %d, %d bytes: %x, %v", id, usage, n, got, err)
				}
				ct, _ = k.Encrypt(nil, usage, pt)
				if got, err := theirs.DecryptMessage(k.Secret(), ct, usage); err != nil || !bytes.Equal(got, pt) {
					t.Errorf("%v usage %d, %d bytes: gokrb5 decrypts to %x, %v", id, usage, n, got, err)
				}
				sum, err := theirs.GetChecksumHash(k.Secret(), pt, usage)
				if err != nil {
					t.Fatal(err)
				}
				if got := k.AppendChecksum(nil, usage, pt); !bytes.Equal(got, sum) || len(got) != id.ChecksumSize() {
					t.Errorf("%v usage %d, %d bytes: checksum %x, gokrb5 %x", id, usage, n, got, sum)
				}
			}
		}
	}
}
