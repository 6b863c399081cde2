// Package keystore is a store that keeps the Kerberos keys of a fleet of hosts, hands each host
// those that it may have, and rotates them.
//
// What it keeps is in a [Backend], which sees names that say nothing and sealed bytes. A [Store]
// seals, opens and signs; several instances may have one backend at a time. What a host gets is
// package delivery's.
package keystore

import (
	"cmp"
	"time"

	"gssproxyd/mech/krb5/etype"
)

// An Entry is what the store has of one principal.
type Entry struct {
	Principal string   // unparsed with its realm: "HTTP/www.example.com@EXAMPLE.COM"
	Aliases   []string // other names of the same account, which have its keys: Active Directory's service names

	Mark     // of its last change
	Keys     []Key
	Policy   Policy
	Interval time.Duration // between rotations; 0: it is rotated when somebody says so
	Rotation *Rotation     // that goes on; nil: none does
	Alarm    string        // why it does not go on, or why the keys are not the KDC's, with a reason's id in brackets; empty: all is well

	Disabled string    // why no host is to use its keys; empty: hosts may
	Deleted  time.Time // since when there are no keys: what is left says so to hosts; zero: it is not

	History []Change // the last ones, the newest at the end

	aliasOf string // whose alias it is: then it is no entry, but the record of a name
}

// A Mark orders what there is of an entry: a host and an instance refuse what has a lower one than
// they have seen.
type Mark struct {
	Epoch    uint64 `json:"epoch"`    // of the store: a later one when it is restored from a backup
	Revision uint64 `json:"revision"` // one more with each change of the entry
}

// Compare returns -1, 0 or 1: whether m is before, at or after other.
func (m Mark) Compare(other Mark) int {
	return cmp.Or(cmp.Compare(m.Epoch, other.Epoch), cmp.Compare(m.Revision, other.Revision))
}

// A Key is one key of an entry.
type Key struct {
	State   KeyState
	KVNO    uint32
	Enctype etype.ID
	Secret  etype.Secret
	Since   time.Time // it is in this state
	Until   time.Time // of a previous key: a ticket made with it can be good until then; zero: not known
}

// KeyState is what a key is for.
type KeyState string

// The states of keys. A pending key is one that the KDC does not have yet, or is just being given:
// its version is a guess. A previous one opens tickets that the KDC gave out before.
const (
	Pending  KeyState = "pending"
	Current  KeyState = "current"
	Previous KeyState = "previous"
)

// A Policy travels with the keys of an entry.
type Policy struct {
	// Hosts are patterns of the names of hosts that may have the keys; a * stands for anything but a
	// dot or a slash. None: no host.
	Hosts []string `json:"hosts"`

	// Rules are what callers on those hosts may do with the keys, by the keys of gssproxyd.conf that
	// say so of a service, with a value for each line. They narrow what the host's configuration
	// permits.
	Rules map[string][]string `json:"rules,omitempty"`
}

// A Change is one line of an entry's history.
type Change struct {
	Time time.Time `json:"time"`
	Mark
	By   string `json:"by"`   // who made it: "host HOST", "uid UID", "certificate NAME", "rotation"
	What string `json:"what"` // in words
}
