// Package delivery is what a host gets of an entry of a key store: signed by the store, the keys in
// it sealed to the host. Neither who carries it nor who stores it can read a key in it, or put one
// in.
package delivery

import (
	"crypto/ed25519"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"gssproxyd/mech/krb5/etype"
)

// A Delivery is what the store says to one host about one entry.
type Delivery struct {
	Host      string    `json:"host"` // for whom it is
	Principal string    `json:"principal"`
	Aliases   []string  `json:"aliases,omitempty"` // other names with the same keys
	Epoch     uint64    `json:"epoch"`             // these two order deliveries of one principal: a lower one is refused
	Revision  uint64    `json:"revision"`
	Issued    time.Time `json:"issued"`

	// Withdrawn is why the host has no keys of the entry any more, a reason's id; Text is that in
	// words. Without it there are keys.
	Withdrawn string `json:"withdrawn,omitempty"`
	Text      string `json:"text,omitempty"`

	Rules  map[string][]string `json:"rules,omitempty"`  // of the entry's policy, for callers on the host
	Sealed []byte              `json:"sealed,omitempty"` // an age file for the host's recipient: the JSON of Keys
}

// Keys are the keys of a delivery.
type Keys []Key

// A Key is one key of them.
type Key struct {
	State   string `json:"state"` // "pending", "current" or "previous"
	KVNO    uint32 `json:"kvno"`
	Enctype int32  `json:"enctype"`
	Key     []byte `json:"key"`
	Since   int64  `json:"since"`           // it is in this state, in Unix seconds
	Until   int64  `json:"until,omitempty"` // of a previous key: when it is taken away; 0: not known
}

// Zero overwrites the keys.
func (k Keys) Zero() {
	for i := range k {
		clear(k[i].Key)
	}
}

// Format writes "[redacted]" for every verb and flag, as etype.Secret does.
func (Key) Format(f fmt.State, _ rune) { io.WriteString(f, etype.Secret(nil).String()) }

// signed is a delivery as it travels and lies on disk: what was signed, byte for byte.
type signed struct {
	Payload   []byte `json:"payload"`   // the JSON of a Delivery
	Signer    string `json:"signer"`    // the public key, see [FormatSigner]
	Signature []byte `json:"signature"` // Ed25519 of context and payload
}

// context keeps a signature from meaning something else somewhere else.
const context = "gssproxyd key store: delivery 1\x00"

// MaxLen bounds a signed delivery.
const MaxLen = 1 << 20

// Sign returns a delivery as one line of JSON.
func Sign(d *Delivery, key ed25519.PrivateKey) ([]byte, error) {
	payload, err := json.Marshal(d)
	if err != nil {
		return nil, err
	}
	return json.Marshal(signed{payload, FormatSigner(key.Public().(ed25519.PublicKey)), ed25519.Sign(key, message(payload))})
}

func message(payload []byte) []byte { return append([]byte(context), payload...) }

// Errors of Verify.
var (
	ErrFormat    = errors.New("it is no delivery of a key store")
	ErrSignature = errors.New("it is not signed by a signer that is known here")
	ErrHost      = errors.New("it is for another host")
)

// Verify returns what a signer of the store has said to a host. It does not open Sealed, and does
// not know whether there was a later one.
func Verify(b []byte, host string, signers []ed25519.PublicKey) (*Delivery, error) {
	var s signed
	if len(b) > MaxLen {
		return nil, fmt.Errorf("%w: %d bytes; at most %d are expected", ErrFormat, len(b), MaxLen)
	}
	if json.Unmarshal(b, &s) != nil {
		return nil, ErrFormat
	}
	if !verified(&s, signers) {
		if _, err := ParseSigner(s.Signer); err == nil { // a hint, which may be made up
			return nil, fmt.Errorf("%w: it says that it is %s", ErrSignature, s.Signer)
		}
		return nil, ErrSignature
	}
	var d Delivery
	if err := json.Unmarshal(s.Payload, &d); err != nil {
		return nil, ErrFormat
	}
	if d.Host != host {
		return nil, fmt.Errorf("%w, %q", ErrHost, d.Host)
	}
	return &d, nil
}

// verified reports whether the signature is one of theirs. What it says of its signer is a hint only.
func verified(s *signed, signers []ed25519.PublicKey) bool {
	for _, k := range signers {
		if ed25519.Verify(k, message(s.Payload), s.Signature) {
			return true
		}
	}
	return false
}

// FormatSigner returns a signer's public key as configurations have it.
func FormatSigner(k ed25519.PublicKey) string {
	return signerPrefix + base64.RawURLEncoding.EncodeToString(k)
}

const signerPrefix = "ed25519:"

// ParseSigner reads a signer's public key as configurations have it. The error says what is
// expected.
func ParseSigner(s string) (ed25519.PublicKey, error) {
	b, err := base64.RawURLEncoding.DecodeString(strings.TrimPrefix(s, signerPrefix))
	if err != nil || len(b) != ed25519.PublicKeySize || FormatSigner(b) != s {
		return nil, fmt.Errorf("%q is no signer; %s and 43 characters are expected, as keystored prints them", s, signerPrefix)
	}
	return b, nil
}
