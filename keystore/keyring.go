package keystore

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"filippo.io/age"
	"golang.org/x/crypto/chacha20poly1305"

	"gssproxyd/keystore/delivery"
	"gssproxyd/mech/krb5/etype"
	"gssproxyd/mech/reason"
)

// keyring is what a store needs to read what it keeps, as it is sealed to its members.
type keyring struct {
	Store   []byte   `json:"store"`            // the store's id, random
	NameKey []byte   `json:"nameKey"`          // of the names of records: it stays when master keys change
	Seed    []byte   `json:"signer"`           // of the signer's private key
	Next    []byte   `json:"next,omitempty"`   // of the one that is to come, which signs nothing yet
	Former  []byte   `json:"former,omitempty"` // the public key of the one before, until entries are signed anew
	Masters []master `json:"masters"`
	Sealing uint32   `json:"sealing"` // the id of the master key that is sealed with; the others open
	Members []Member `json:"members"`

	mark Mark // the epoch and the generation, which the record has in the clear
}

type master struct {
	ID   uint32    `json:"id"`
	Key  []byte    `json:"key"`
	Made time.Time `json:"made"`
}

// A Member is an instance that can open the keyring, or an identity for recovery.
type Member struct {
	Name      string    `json:"name"`
	Recipient string    `json:"recipient"`
	Added     time.Time `json:"added"`
	By        string    `json:"by"`
}

// Recovery is the name of the members that are no instances: whose identities are kept offline.
const Recovery = "recovery"

// hybridPrefix begins age's recipients of the kind ML-KEM-768 with X25519.
const hybridPrefix = "age1pq1"

const storeIDLen = 16

func newMaster(id uint32, now time.Time) master {
	m := master{id, make([]byte, chacha20poly1305.KeySize), now}
	rand.Read(m.Key)
	return m
}

// Format writes "[redacted]" for every verb and flag, as etype.Secret does.
func (keyring) Format(f fmt.State, _ rune) { io.WriteString(f, etype.Secret(nil).String()) }

// Format is that of keyring.
func (master) Format(f fmt.State, v rune) { keyring{}.Format(f, v) }

func (k *keyring) zero() {
	for _, secret := range [][]byte{k.NameKey, k.Seed, k.Next} {
		clear(secret)
	}
	for _, m := range k.Masters {
		clear(m.Key)
	}
}

// clone returns a copy whose keys are its own.
func (k *keyring) clone() keyring {
	c := *k
	c.Store, c.NameKey, c.Seed = bytes.Clone(k.Store), bytes.Clone(k.NameKey), bytes.Clone(k.Seed)
	c.Next, c.Former = bytes.Clone(k.Next), bytes.Clone(k.Former)
	c.Masters, c.Members = slices.Clone(k.Masters), slices.Clone(k.Members)
	for i := range c.Masters {
		c.Masters[i].Key = bytes.Clone(c.Masters[i].Key)
	}
	return c
}

// The record of a keyring is keyringMagic, the epoch and the generation (8 bytes each, the highest
// first), the signer's public key (32 bytes), an age file with the JSON of it, and the signer's
// Ed25519 signature (64 bytes) of keyringContext and all before it.
const (
	keyringMagic   = "GSKR\x01"
	keyringHeader  = len(keyringMagic) + 8 + 8 + ed25519.PublicKeySize
	keyringContext = "gssproxyd key store: keyring 1\x00"

	// maxKeyring bounds it: it is parsed when it is signed, but copied before.
	maxKeyring = 1 << 20
)

// seal returns the record of a keyring.
func (k *keyring) seal() ([]byte, error) {
	var recipients []age.Recipient
	for _, m := range k.Members {
		r, err := parseRecipient(m.Recipient)
		if err != nil {
			return nil, fmt.Errorf("member %s: %w", m.Name, err)
		}
		recipients = append(recipients, r)
	}
	plain, err := json.Marshal(k)
	if err != nil {
		return nil, err
	}
	defer clear(plain)
	signer := ed25519.NewKeyFromSeed(k.Seed)
	defer clear(signer)
	b := []byte(keyringMagic)
	b = binary.BigEndian.AppendUint64(b, k.mark.Epoch)
	b = binary.BigEndian.AppendUint64(b, k.mark.Revision)
	b = append(b, signer.Public().(ed25519.PublicKey)...)
	if b, err = appendAge(b, plain, recipients...); err != nil {
		return nil, err
	}
	return append(b, ed25519.Sign(signer, keyringMessage(b))...), nil
}

func keyringMessage(signed []byte) []byte { return append([]byte(keyringContext), signed...) }

// openKeyring verifies the record of a keyring, and opens it. Nothing in it is looked at before.
func openKeyring(record []byte, id Identity, signers []ed25519.PublicKey) (keyring, error) {
	refuse := func(r reason.ID, format string, args ...any) (keyring, error) {
		return keyring{}, &Refusal{r, "the keyring " + fmt.Sprintf(format, args...)}
	}
	if len(record) < keyringHeader+ed25519.SignatureSize || len(record) > maxKeyring || string(record[:len(keyringMagic)]) != keyringMagic {
		return refuse(reason.StoreKeyringUnsigned, "is none: %d bytes that do not begin as one", len(record))
	}
	signer, signed, good := keyringSigner(record)
	if !slices.ContainsFunc(signers, func(k ed25519.PublicKey) bool { return bytes.Equal(k, signer) }) {
		return refuse(reason.StoreKeyringUnsigned, "says it is signed by %s, which is none of the configured signers", delivery.FormatSigner(signer))
	}
	if !good {
		return refuse(reason.StoreKeyringUnsigned, "is not signed by %s, as it says", delivery.FormatSigner(signer))
	}
	plain, err := id.Open(signed[keyringHeader:])
	if err != nil {
		return refuse(reason.StoreKeyringSealed, "cannot be opened by this instance (%v): its recipient is %s; on an instance that can, run keystored master grant", err, id.Recipient())
	}
	defer plain.Zero()
	var k keyring
	if err := json.Unmarshal(plain, &k); err != nil {
		return refuse(reason.StoreKeyringSealed, "is not understood; a newer version may have written it: %v", err)
	}
	k.mark = Mark{binary.BigEndian.Uint64(signed[len(keyringMagic):]), binary.BigEndian.Uint64(signed[len(keyringMagic)+8:])}
	return k, nil
}

// keyringSigner returns who the record of a keyring says has signed it, what is signed, and whether that
// is so.
func keyringSigner(record []byte) (signer ed25519.PublicKey, signed []byte, good bool) {
	signed, signature := record[:len(record)-ed25519.SignatureSize], record[len(record)-ed25519.SignatureSize:]
	signer = ed25519.PublicKey(signed[keyringHeader-ed25519.PublicKeySize : keyringHeader])
	return signer, signed, ed25519.Verify(signer, keyringMessage(signed), signature)
}

// publicOf returns the public key of a signer's seed, nil of none.
func publicOf(seed []byte) ed25519.PublicKey {
	if len(seed) != ed25519.SeedSize {
		return nil
	}
	private := ed25519.NewKeyFromSeed(seed)
	defer clear(private)
	return bytes.Clone(private.Public().(ed25519.PublicKey))
}

// appendAge appends an age file.
func appendAge(b, plain []byte, to ...age.Recipient) ([]byte, error) {
	out := bytes.NewBuffer(b)
	w, err := age.Encrypt(out, to...)
	if err == nil {
		_, err = w.Write(plain)
	}
	if err == nil {
		err = w.Close()
	}
	return out.Bytes(), err
}

// parseRecipient reads an age recipient, of X25519: another kind cannot be mixed with those.
func parseRecipient(s string) (age.Recipient, error) {
	if strings.HasPrefix(s, hybridPrefix) {
		return nil, fmt.Errorf("%.24q... is a hybrid post-quantum recipient of age, and all others here are of X25519: age does not mix the two in one file, which would be no safer than the weaker; give one of X25519 (age1..., as keystored recovery new and gssproxyd keytab recipient print it)", s)
	}
	r, err := age.ParseX25519Recipient(s)
	if err != nil {
		return nil, fmt.Errorf("%.80q is no age recipient of X25519 (age1..., as gssproxyd keytab recipient prints it): %w", s, err)
	}
	return r, nil
}
