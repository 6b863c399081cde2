// Package reason has the stable id of everything that is refused: the same word in the reply, the
// log, the output of gssproxyd explain and the documentation. docs/reasons.md has a section on
// each.
package reason

import (
	"slices"
	"strings"
)

// ID is the stable id of a refusal. Ids are never renamed.
type ID string

// Doc says what an id means and what to do about it, each in one sentence or two without a full
// page behind it; docs/reasons.md has the page.
type Doc struct {
	ID   ID
	Text string // what happened
	Hint string // what to do
}

// All documents every id.
var All = slices.Concat(Mechanism, Call, Match, Registration, Connection, Delivery, Store, StoreAPI, Rotation)

// Doc returns what is documented of an id, with empty texts if it is not one of [All].
func (id ID) Doc() Doc {
	if i := slices.IndexFunc(All, func(d Doc) bool { return d.ID == id }); i >= 0 {
		return All[i]
	}
	return Doc{ID: id}
}

// Error returns the id: as an error it is what errors.Is compares a *mech.Error with.
func (id ID) Error() string { return string(id) }

// Before returns a text with the id in brackets before it, if there is one. It comes first because
// some programs show no more than the beginning of a text: a PostgreSQL server 127 octets.
func (id ID) Before(text string) string {
	if id == "" {
		return text
	}
	return strings.TrimSuffix("["+string(id)+"] "+text, " ")
}
