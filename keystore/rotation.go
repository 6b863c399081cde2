package keystore

import (
	"time"

	"gssproxyd/mech/krb5/etype"
)

// A Rotation is a change of an entry's key that goes on: what it takes to finish it is here, so that
// any instance can.
type Rotation struct {
	Password etype.Secret // that the pending keys are of; it is never made anew in the same rotation
	Step     Step         // the last one that is done
	Since    time.Time    // Step is done
	Begun    time.Time
	After    Mark          // of the last change without the pending keys: who acknowledged a later one has them
	Keep     time.Duration // how long a ticket of the keys now current can be good
	Force    bool          // go on without the hosts that do not acknowledge
	Alarm    string        // why it does not go on, with a reason's id in brackets; empty: it does
}

// Step is a step of a rotation.
type Step string

// The steps in their order. Sent is written before the KDC is asked: an instance that finds it asks
// the KDC which key it has before it sends the password again.
const (
	Stored       Step = "stored"       // the pending keys are in the entry
	Acknowledged Step = "acknowledged" // by every live host that may have them
	Sent         Step = "sent"         // to the KDC, or is about to be
)
