package keystore

import (
	"bytes"
	"crypto/cipher"
	"crypto/ed25519"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base32"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"golang.org/x/crypto/chacha20poly1305"
)

// Names of records. What comes after them is of secret names, so that a backend does not know whose
// records it has.
const (
	keyringName    = "keyring"
	entryPrefix    = "kept/entry/"    // + the principal's
	hostPrefix     = "kept/host/"     // + the host's
	ackPrefix      = "live/ack/"      // + the principal's + "/" + the host's
	usePrefix      = "live/use/"      // likewise
	instancePrefix = "live/instance/" // + the instance's

	keptPrefix = "kept/" // of records that carry a [Mark]
	livePrefix = "live/" // of those that do not: what is replayed of them is out of date, and no more
)

// A sealed record is recordMagic, the master key's id (4 bytes, the highest first), a nonce and
// XChaCha20-Poly1305 of JSON and as many blanks as fill it up to a multiple of its prefix's pad. The
// associated data are the bytes before the nonce, the store's id and the record's name: a record is
// good for one place only.
const recordMagic = "GSKS\x01"

const recordHeader = len(recordMagic) + 4

// pads say to what records are filled up: of an entry the length tells hardly anything.
var pads = map[string]int{keptPrefix: 1024, livePrefix: 256}

// errSealed is of a record that does not open: it was changed, is not whole, is another's or another
// store's.
var errSealed = errors.New("it was not sealed by this store for this place, or was changed since")

// errMaster is of a record that is sealed with a master key that is not in the keyring.
var errMaster = errors.New("it is sealed with a master key that is not in the keyring")

// ring is a keyring in use.
type ring struct {
	keyring
	version uint64 // of its record
	signer  ed25519.PrivateKey
	aeads   map[uint32]cipher.AEAD
}

func newRing(k keyring, version uint64) (*ring, error) {
	r := &ring{keyring: k, version: version, aeads: map[uint32]cipher.AEAD{}}
	if len(k.Store) != storeIDLen || len(k.NameKey) != sha256.Size || len(k.Seed) != ed25519.SeedSize || len(k.Next) != 0 && len(k.Next) != ed25519.SeedSize {
		return nil, errors.New("a key in it has a wrong length")
	}
	r.signer = ed25519.NewKeyFromSeed(k.Seed)
	for _, m := range k.Masters {
		var err error
		if r.aeads[m.ID], err = chacha20poly1305.NewX(m.Key); err != nil {
			return nil, err
		}
	}
	if r.aeads[k.Sealing] == nil {
		return nil, errors.New("the master key that seals is not in it")
	}
	return r, nil
}

// zero overwrites the keys. Ciphers keep theirs until the memory is used again.
func (r *ring) zero() {
	r.keyring.zero()
	clear(r.signer)
}

var nameEncoding = base32.StdEncoding.WithPadding(base32.NoPadding)

// name returns what a principal, a host or an instance is called in names of records.
func (r *ring) name(prefix, of string) string {
	m := hmac.New(sha256.New, r.NameKey)
	m.Write([]byte(prefix))
	m.Write([]byte{0})
	m.Write([]byte(of))
	return strings.ToLower(nameEncoding.EncodeToString(m.Sum(nil)))
}

func (r *ring) entryName(principal string) string {
	return entryPrefix + r.name(entryPrefix, principal)
}
func (r *ring) hostName(host string) string { return hostPrefix + r.name(hostPrefix, host) }
func (r *ring) instanceName(instance string) string {
	return instancePrefix + r.name(instancePrefix, instance)
}

// acksName is the prefix of the names of all acknowledgements of an entry.
func (r *ring) acksName(principal string) string {
	return ackPrefix + r.name(ackPrefix, principal) + "/"
}

func (r *ring) ackName(principal, host string) string {
	return r.acksName(principal) + r.name(ackPrefix, host)
}

// usesName is the prefix of the names of what hosts have used of an entry.
func (r *ring) usesName(principal string) string {
	return usePrefix + r.name(usePrefix, principal) + "/"
}

func (r *ring) associated(header []byte, name string) []byte {
	return append(append(bytes.Clone(header), r.Store...), name...)
}

// seal returns the value of a record.
func (r *ring) seal(name string, v any) ([]byte, error) {
	plain, err := json.Marshal(v)
	if err != nil {
		return nil, err
	}
	defer clear(plain)
	return r.sealBytes(name, plain), nil
}

func (r *ring) sealBytes(name string, plain []byte) []byte {
	pad := pads[name[:strings.Index(name, "/")+1]]
	size := (len(plain) + pad - 1) / pad * pad
	padded := append(make([]byte, 0, size), plain...)
	for len(padded) < size {
		padded = append(padded, ' ')
	}
	defer clear(padded)
	sealed := make([]byte, recordHeader+chacha20poly1305.NonceSizeX, recordHeader+chacha20poly1305.NonceSizeX+size+chacha20poly1305.Overhead)
	copy(sealed, recordMagic)
	binary.BigEndian.PutUint32(sealed[len(recordMagic):], r.Sealing)
	nonce := sealed[recordHeader:]
	rand.Read(nonce)
	return r.aeads[r.Sealing].Seal(sealed, nonce, padded, r.associated(sealed[:recordHeader], name))
}

// masterOf returns the id of the master key that a record says it is sealed with.
func masterOf(sealed []byte) (uint32, error) {
	if len(sealed) < recordHeader+chacha20poly1305.NonceSizeX || string(sealed[:len(recordMagic)]) != recordMagic {
		return 0, errSealed
	}
	return binary.BigEndian.Uint32(sealed[len(recordMagic):]), nil
}

// openBytes returns what is in a record; the caller clears it.
func (r *ring) openBytes(name string, sealed []byte) ([]byte, error) {
	id, err := masterOf(sealed)
	if err != nil {
		return nil, err
	}
	aead := r.aeads[id]
	if aead == nil {
		return nil, errMaster
	}
	header, rest := sealed[:recordHeader], sealed[recordHeader:]
	plain, err := aead.Open(nil, rest[:aead.NonceSize()], rest[aead.NonceSize():], r.associated(header, name))
	if err != nil {
		return nil, errSealed
	}
	return plain, nil
}

// open reads what is in a record.
func (r *ring) open(name string, sealed []byte, v any) error {
	plain, err := r.openBytes(name, sealed)
	if err != nil {
		return err
	}
	defer clear(plain)
	if err := json.Unmarshal(plain, v); err != nil {
		return fmt.Errorf("what is in it is not understood; a newer version may have written it: %w", err)
	}
	return nil
}
