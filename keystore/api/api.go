// Package api is what is asked of a key store over the network, and on its host over a Unix socket:
// by hosts, for what they may have, and by administrators. docs/keystore.md has the protocol.
//
// Who asks is who a verified certificate names, or whom the kernel says, and never what is in a
// request. Keys of entries come in, and go out only as package delivery seals them to a host.
package api

import (
	"encoding/json"
	"fmt"
	"net/http"
	"time"

	"gssproxyd/keystore"
	"gssproxyd/mech/reason"
)

// MaxBody bounds what is asked, in bytes, and what of a watch's answer is not a single delivery.
const MaxBody = 1 << 20

// MaxWait is how long a watch waits at most.
const MaxWait = time.Minute

// Watch is what a host asks with POST /v1/watch: to be told when the store has anything else of these
// principals than the host has.
type Watch struct {
	Have        []Have `json:"have"`
	WaitSeconds int    `json:"wait_seconds"` // 0: answer at once
}

// Have is what a host has of a principal; its mark is zero if that is nothing.
type Have struct {
	Principal string `json:"principal"`
	keystore.Mark

	// When the host has opened a ticket with a previous key last, and of which version that was; zero
	// if it has opened none that it remembers.
	PreviousUsed time.Time `json:"previous_used,omitzero"`
	PreviousKVNO uint32    `json:"previous_kvno,omitempty"`
}

// Watched answers a watch.
type Watched struct {
	Deliveries []json.RawMessage `json:"deliveries"` // as package delivery signs them
	Refused    []Refused         `json:"refused"`
}

// Refused is a principal of which there is nothing to deliver.
type Refused struct {
	Principal string `json:"principal"`
	Refusal
}

// Listed answers GET /v1/list.
type Listed struct {
	Principals []Marked `json:"principals"` // that the host may have, with the marks that the store has
}

// A Refusal is what is answered instead of anything else, with the status of HTTP that fits.
type Refusal struct {
	Reason reason.ID `json:"reason"`
	Text   string    `json:"text"`
	Hint   string    `json:"hint"`
}

// An Error is a refusal.
type Error struct {
	Status int // of HTTP
	Refusal

	principal string // whose entry it is about, for the audit log
	closes    bool   // the connection, too
}

// Error returns the reason, the text and the hint.
func (e *Error) Error() string {
	s := e.Reason.Before(e.Text)
	if e.Hint != "" {
		s += "; " + e.Hint
	}
	return s
}

// Unwrap returns the reason.
func (e *Error) Unwrap() error { return e.Reason }

// refuse makes a refusal.
func refuse(status int, id reason.ID, format string, args ...any) *Error {
	return &Error{Status: status, Refusal: Refusal{id, fmt.Sprintf(format, args...), id.Doc().Hint}}
}

// badRequest refuses what was not asked as docs/keystore.md says.
func badRequest(format string, args ...any) *Error {
	return refuse(http.StatusBadRequest, reason.StoreRequest, format, args...)
}
