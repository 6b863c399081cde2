// Package seal seals what the daemon gives to its clients for keeping: credential handles and
// partial contexts.
//
// The daemon holds no state for its clients; they bring it back with the next call. What they bring
// is untrusted, so it is encrypted and authenticated with a key that only the daemon has, and bound
// to its kind and to who may bring it: a context of one caller, or a context shown as a handle,
// does not open. Who may bring a handle is part of what is sealed, and for who opens it to look at.
//
// A sealed object is
//
//	"GPX" | version 2 | kind | key id, 8 bytes | nonce, 24 bytes | ciphertext | tag, 16 bytes
//
// with XChaCha20-Poly1305 (draft-irtf-cfrg-xchacha-03; the tag and the block function are RFC 8439)
// and the associated data: version, kind, key id, owner. The nonce is random. Its 192 bits leave
// the chance of any repetition below 2^-64 after 2^64 objects under one key, so keys need no
// counter and no rotation for the cipher's sake; AES-GCM with its 96 bits would reach its bound of
// 2^32 objects within days on a busy daemon. Keys are rotated to limit what a stolen one opens.
package seal

import (
	"crypto/cipher"
	"crypto/rand"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/crypto/chacha20poly1305"

	"gssproxyd/mech/krb5/etype"
)

// A Kind is a use of sealed objects; one kind does not open as another. It can be read without a
// key.
type Kind byte

const (
	KindCred      Kind = 1 // a credential handle
	KindContext   Kind = 2 // a security context that is not established yet
	KindNamedCred Kind = 3 // a credential handle of a name that was asked for
)

// KindOf returns the kind that a sealed object says it is of, which is to be believed when it
// opens; 0 if it is none of this daemon's make.
func KindOf(sealed []byte) Kind {
	v, kind := Inspect(sealed)
	if v != version {
		return 0
	}
	return kind
}

// Inspect returns the version of the format and the kind that a sealed object says it is of; 0 if it
// is none.
func Inspect(sealed []byte) (version byte, kind Kind) {
	if len(sealed) < overhead || string(sealed[:len(magic)]) != magic {
		return 0, 0
	}
	return sealed[len(magic)], Kind(sealed[kindAt])
}

// ErrNotOurs is returned for anything that this daemon did not seal for this owner and kind, or has
// no key for any more.
var ErrNotOurs = errors.New("seal: not sealed by this daemon for this owner, or its key is gone")

const (
	version  = 2
	magic    = "GPX"
	kindAt   = len(magic) + 1
	idAt     = kindAt + 1
	nonceAt  = idAt + idSize
	sealedAt = nonceAt + chacha20poly1305.NonceSizeX
	idSize   = 8
	keySize  = chacha20poly1305.KeySize
	tagSize  = chacha20poly1305.Overhead
	keepFor  = 30 * 24 * time.Hour // how long a superseded key opens what it sealed
	maxKeys  = 32
)

// overhead is how many bytes longer than its plaintext a sealed object is.
const overhead = sealedAt + tagSize

type key struct {
	id      [idSize]byte
	created int64 // Unix seconds
	secret  etype.Secret
	aead    cipher.AEAD
}

// Format writes the key's id, whatever the verb: fmt does not ask the unexported field for its own
// way of printing.
func (k key) Format(f fmt.State, _ rune) { fmt.Fprintf(f, "key(%x)", k.id[:]) }

func newKey(now time.Time) *key {
	k := &key{created: now.Unix(), secret: make(etype.Secret, keySize)}
	rand.Read(k.id[:])
	rand.Read(k.secret)
	k.init()
	return k
}

func (k *key) init() {
	aead, err := chacha20poly1305.NewX(k.secret)
	if err != nil {
		panic(err) // the length is keySize
	}
	k.aead = aead
}

// A Box seals and unseals. It is safe for concurrent use.
type Box struct {
	keys atomic.Pointer[[]*key] // newest last, never empty
	dir  string                 // of the key file; "" when the keys are in memory only
	mu   sync.Mutex             // one change of keys at a time
	read time.Time              // when the file was last looked at for an unknown key
}

// New returns a Box with a fresh key that lives as long as the Box.
func New() *Box {
	b := &Box{}
	b.keys.Store(&[]*key{newKey(time.Now())})
	return b
}

// Seal appends the sealed plaintext to dst. Its length is len(plaintext)+overhead. It opens for the
// same owner only; the empty owner is as good as any.
func (b *Box) Seal(dst, plaintext []byte, owner string, kind Kind) []byte {
	keys := *b.keys.Load()
	k := keys[len(keys)-1]
	dst = slices.Grow(dst, len(plaintext)+overhead)
	dst = append(dst, magic...)
	dst = append(dst, version, byte(kind))
	dst = append(dst, k.id[:]...)
	dst = dst[:len(dst)+chacha20poly1305.NonceSizeX]
	nonce := dst[len(dst)-chacha20poly1305.NonceSizeX:]
	rand.Read(nonce)
	return k.aead.Seal(dst, nonce, plaintext, associated(k, owner, kind))
}

// Unseal appends the plaintext of a sealed object to dst. Whatever is wrong with the object, the
// error is ErrNotOurs and dst is returned as it was.
func (b *Box) Unseal(dst, sealed []byte, owner string, kind Kind) ([]byte, error) {
	if KindOf(sealed) != kind || kind == 0 {
		return dst, ErrNotOurs
	}
	id := [idSize]byte(sealed[idAt:nonceAt])
	k, known := b.find(id)
	if !known {
		b.reread(time.Now())
		k, _ = b.find(id)
	}
	if k == nil {
		return dst, ErrNotOurs
	}
	out, err := k.aead.Open(dst, sealed[nonceAt:sealedAt], sealed[sealedAt:], associated(k, owner, kind))
	if err != nil {
		return dst, ErrNotOurs
	}
	return out, nil
}

// find returns the key to open what the key of that id has sealed: nil if there is none, or it was
// superseded too long ago.
func (b *Box) find(id [idSize]byte) (k *key, known bool) {
	keys := *b.keys.Load()
	for i, k := range keys {
		if k.id != id {
			continue
		}
		if i+1 < len(keys) && keys[i+1].outlived(time.Now()) {
			return nil, true
		}
		return k, true
	}
	return nil, false
}

// outlived reports whether what a key's predecessor has sealed does not open any more.
func (k *key) outlived(now time.Time) bool { return k.created < now.Add(-keepFor).Unix() }

// associated returns the associated data. All before the owner has a fixed length.
func associated(k *key, owner string, kind Kind) []byte {
	b := make([]byte, 0, 64)
	b = append(b, version, byte(kind))
	b = append(b, k.id[:]...)
	return append(b, owner...)
}
