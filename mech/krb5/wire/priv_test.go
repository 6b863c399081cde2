package wire

import (
	"bytes"
	"testing"

	"github.com/jcmturner/gokrb5/v8/crypto"
	"github.com/jcmturner/gokrb5/v8/messages"
	"github.com/jcmturner/gokrb5/v8/types"

	"gssproxyd/mech/krb5/etype"
)

// TestPriv asks gokrb5 what a KRB-PRIV is.
func TestPriv(t *testing.T) {
	k, err := etype.GenerateKey(etype.AES256SHA1)
	if err != nil {
		t.Fatal(err)
	}
	theirKey := types.EncryptionKey{KeyType: int32(k.Enctype()), KeyValue: bytes.Clone(k.Secret())}
	sent := EncPriv{Data: []byte("data"), Seq: 1<<30 + 5, Sender: HostAddress{Type: AddrINET, Data: []byte{127, 0, 0, 1}}}
	b, err := AppendPriv(nil, k, sent.Append(nil))
	if err != nil {
		t.Fatal(err)
	}
	var theirs messages.KRBPriv
	if err := theirs.Unmarshal(b); err != nil {
		t.Fatal(err)
	}
	if err := theirs.DecryptEncPart(theirKey); err != nil {
		t.Fatal(err)
	}
	if p := theirs.DecryptedEncPart; string(p.UserData) != "data" || p.SequenceNumber != int64(sent.Seq) || !bytes.Equal(p.SAddress.Address, sent.Sender.Data) || p.SAddress.AddrType != AddrINET {
		t.Errorf("gokrb5 reads %+v", p)
	}

	made := messages.NewKRBPriv(theirs.DecryptedEncPart)
	if err := made.EncryptEncPart(theirKey); err != nil {
		t.Fatal(err)
	}
	if b, err = made.Marshal(); err != nil {
		t.Fatal(err)
	}
	var p Priv
	if err := p.Parse(b); err != nil {
		t.Fatal(err)
	}
	plain, err := k.Decrypt(nil, UsageKRBPriv, p.Enc.Cipher)
	if err != nil {
		t.Fatal(err)
	}
	var got EncPriv
	if err := got.Parse(plain); err != nil || string(got.Data) != "data" || !got.HasSeq || got.Seq != sent.Seq || got.Sender.Type != AddrINET {
		t.Errorf("%+v, %v", got.Sender, err)
	}
	if _, err := crypto.DecryptEncPart(theirs.EncPart, theirKey, UsageKRBPriv+1); err == nil {
		t.Error("the key usage does not count")
	}
}
