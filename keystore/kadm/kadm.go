// Package kadm changes the long-term keys of a service at its KDC, as the service itself: it proves
// with the key it has that it may have another one. There are two ways, both behind [KDC]:
//
//   - [Kadmin] speaks to MIT krb5's kadmind, which keeps the old keys for tickets that are out. A
//     service needs no line in kadm5.acl for this.
//   - [Kpasswd] is the password change protocol (RFC 3244, version 1), which Active Directory and
//     others have. MIT krb5 discards the old keys then: tickets that are out can be neither renewed
//     nor used as evidence.
//
// Keys are made from a password, by the KDC and by [Keys] alike, so that acceptors have them before
// the KDC does.
//
// Nothing here tries twice: the same password sent again is accepted, and is another version of the
// key. What became of a request whose answer is lost is for [Prober.Probe] to find out.
//
// Errors are of type [*mech.Error], and errors.Is compares them with ids of package reason:
//
//   - [reason.KeyChangeUnknown]: the request went out, and no answer that proves itself came back.
//     It may have been executed, or may still be.
//   - any other: it was not executed. [reason.KeyChangeRefused] and [reason.KeyChangeTooSoon] are the
//     KDC's word, [reason.AdminServerUnreachable] says that nobody was there to ask, and those of
//     package [gssproxyd/mech/krb5/kdc] that there was no ticket to ask with.
package kadm

import (
	"context"
	"time"

	"gssproxyd/mech/krb5"
	"gssproxyd/mech/krb5/etype"
	"gssproxyd/mech/krb5/kdc"
)

// Self is a principal that acts on its own entry at the KDC.
type Self struct {
	Principal krb5.Principal // with its realm
	Keys      kdc.KeySource  // with which the KDC lets it in now: those it has, see [kdc.Keytab]
}

// KDC is a way to change keys. Its methods are safe for concurrent use, and wait no longer than
// their context.
type KDC interface {
	// Change gives the principal a new password, and with it keys of a new version. They are of
	// the given types, salted with [kdc.Salt], where the way can say so ([Kadmin]); or of those
	// that the KDC chooses, with its own salt ([Kpasswd]). The old keys stay at the KDC where the
	// way can have it ([Kadmin]): they log nobody in, but tickets made with them are good. The
	// password is printable ASCII. It stays the caller's.
	Change(ctx context.Context, self Self, password etype.Secret, enctypes []etype.ID) error
	// Purge has the KDC forget all versions of the key before that one. Where it cannot be asked
	// to, the error is errors.ErrUnsupported.
	Purge(ctx context.Context, self Self, from uint32) error
	// Record reads the principal's entry, as far as the KDC tells, and what its next keys are made
	// with.
	Record(ctx context.Context, self Self) (Record, error)
}

// Record is what a KDC tells of a principal. What it does not tell is zero, but for the salt.
type Record struct {
	Salt         string        // that a new password is given, also if the KDC does not tell
	Params       []byte        // of string-to-key for the AES types of RFC 3962; none: the default
	KVNO         uint32        // of the newest key
	Ticket       etype.ID      // the type of key that tickets for it are made with
	Keys         []KeyVersion  // all keys that the KDC has, newest first
	MaxLife      time.Duration // of tickets for it; the realm's own limit is not in it
	MaxRenewable time.Duration // from a ticket's start
	Changed      time.Time     // when its keys were
	Policy       string        // name of its password policy
	LockedDown   bool          // kadmind changes no keys of it (lockdown_keys)
}

// KeyVersion is a key of a [Record].
type KeyVersion struct {
	KVNO    uint32
	Enctype etype.ID
}

// Keys makes the keys of a password, in the order of enctypes: those that the KDC makes of it with
// a [Record]'s Salt and Params. They are the caller's to destroy. The error names a type for which
// there are no such keys.
func Keys(password etype.Secret, salt string, params []byte, enctypes []etype.ID) ([]*etype.Key, error) {
	keys := make([]*etype.Key, 0, len(enctypes))
	for _, id := range enctypes {
		var own []byte
		if rfc3962(id) {
			own = params
		}
		k, err := kdc.StringToKey(id, password, salt, own)
		if err != nil {
			for _, k := range keys {
				k.Destroy()
			}
			return nil, err
		}
		keys = append(keys, k)
	}
	return keys, nil
}

// rfc3962 reports whether a type is of those that have one meaning of parameters.
func rfc3962(id etype.ID) bool { return id == etype.AES128SHA1 || id == etype.AES256SHA1 }
