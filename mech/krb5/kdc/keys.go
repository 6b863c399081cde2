package kdc

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"slices"
	"strings"

	"gssproxyd/mech/krb5"
	"gssproxyd/mech/krb5/etype"
)

// KeySource has the long-term keys of a client.
type KeySource interface {
	// Enctypes lists the types there are keys of for the client, of those in among; nil if there
	// are none.
	Enctypes(client krb5.Principal, among []etype.ID) []etype.ID
	// Key returns the client's key that h describes, nil if there is none.
	Key(client krb5.Principal, h KeyHint) *etype.Key
	// ID tells these keys of the client from any others; nil if that cannot be told. A login that
	// was refused is not tried again at once with the same.
	ID(client krb5.Principal) []byte
	// Describe says for messages which keys of the client these are, without giving anything of
	// them away.
	Describe(client krb5.Principal) string
}

// KeyHint says which key the KDC wants (PA-ETYPE-INFO2, RFC 4120 section 5.2.7.5).
type KeyHint struct {
	Enctype etype.ID
	KVNO    uint32  // 0 when the KDC does not say: the newest
	Salt    *string // nil when the KDC does not say: the principal's own, see [Salt]
	Params  []byte  // of string-to-key
}

// Salt returns what a password of p is salted with by default: realm and components, joined (RFC
// 4120 section 4).
func Salt(p krb5.Principal) string { return p.Realm + strings.Join(p.Components, "") }

// Keytab gives the keys of a keytab, but for those that are pending.
func Keytab(keys krb5.Keys) KeySource { return keytabKeys{keys, false} }

// Pending gives those that are pending, for who was refused with the others.
func Pending(keys krb5.Keys) KeySource { return keytabKeys{keys, true} }

type keytabKeys struct {
	krb5.Keys
	pending bool
}

// of returns those of a client.
func (k keytabKeys) of(client krb5.Principal) []*etype.ServiceKey {
	all := k.ByPrincipal(client.AppendString(nil))
	other := func(e *etype.ServiceKey) bool { return e.Pending != k.pending }
	if !slices.ContainsFunc(all, other) {
		return all
	}
	return slices.DeleteFunc(slices.Clone(all), other)
}

// Enctypes lists the types of the newest version.
func (k keytabKeys) Enctypes(client krb5.Principal, among []etype.ID) (list []etype.ID) {
	entries := k.of(client)
	for _, id := range among {
		if slices.ContainsFunc(entries, func(e *etype.ServiceKey) bool { return e.KVNO == newest(entries) && e.Key.Enctype() == id }) {
			list = append(list, id)
		}
	}
	return list
}

// Key returns the key of the version asked for, or of the newest.
func (k keytabKeys) Key(client krb5.Principal, h KeyHint) (key *etype.Key) {
	var newest uint32
	for _, e := range k.of(client) {
		if e.Key.Enctype() != h.Enctype {
			continue
		}
		if h.KVNO != 0 && e.KVNO == h.KVNO {
			return e.Key
		}
		if key == nil || e.KVNO > newest {
			key, newest = e.Key, e.KVNO
		}
	}
	return key
}

// ID is a hash of all keys of the client.
func (k keytabKeys) ID(client krb5.Principal) []byte {
	h := sha256.New()
	for _, e := range k.of(client) {
		var b [12]byte
		binary.BigEndian.PutUint32(b[:], uint32(e.Key.Enctype()))
		binary.BigEndian.PutUint32(b[4:], e.KVNO)
		binary.BigEndian.PutUint32(b[8:], uint32(len(e.Key.Secret())))
		h.Write(b[:])
		h.Write(e.Key.Secret())
	}
	return h.Sum(nil)
}

// Describe names the keytab and the newest version.
func (k keytabKeys) Describe(client krb5.Principal) string {
	entries := k.of(client)
	if len(entries) == 0 {
		return "none in " + k.Name()
	}
	return fmt.Sprintf("key of %s, kvno %d", k.Name(), newest(entries))
}

func newest(entries []*etype.ServiceKey) (kvno uint32) {
	for _, e := range entries {
		kvno = max(kvno, e.KVNO)
	}
	return kvno
}

// Password derives keys from a password, with the salt that the KDC says.
func Password(password etype.Secret) KeySource { return passwordKeys{password} }

// passwordKeys embeds the password for the methods that keep it from being printed.
type passwordKeys struct{ etype.Secret }

func (passwordKeys) Enctypes(_ krb5.Principal, among []etype.ID) []etype.ID { return among }

func (p passwordKeys) Key(client krb5.Principal, h KeyHint) *etype.Key {
	salt := Salt(client)
	if h.Salt != nil {
		salt = *h.Salt
	}
	k, err := StringToKey(h.Enctype, p.Secret, salt, h.Params)
	if err != nil {
		return nil
	}
	return k
}

// ID is none: no daemon tries passwords.
func (passwordKeys) ID(krb5.Principal) []byte { return nil }

// Describe says that it is a password.
func (passwordKeys) Describe(krb5.Principal) string { return "a password" }
