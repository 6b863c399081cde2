package keystore

import (
	"slices"
	"time"

	"gssproxyd/mech/krb5/etype"
)

// What sealed records have in them, as JSON. Secrets have another type there than elsewhere, where
// they cannot be marshalled.

type entryJSON struct {
	Principal string   `json:"principal"`
	Aliases   []string `json:"aliases,omitempty"`
	AliasOf   string   `json:"aliasOf,omitempty"`
	Mark
	Keys     []keyJSON     `json:"keys,omitempty"`
	Policy   Policy        `json:"policy"`
	Interval time.Duration `json:"interval,omitempty"` // in nanoseconds
	Rotation *rotationJSON `json:"rotation,omitempty"`
	Alarm    string        `json:"alarm,omitempty"`
	Disabled string        `json:"disabled,omitempty"`
	Deleted  time.Time     `json:"deleted,omitzero"`
	History  []Change      `json:"history"`
}

type keyJSON struct {
	State   KeyState  `json:"state"`
	KVNO    uint32    `json:"kvno"`
	Enctype etype.ID  `json:"enctype"`
	Key     []byte    `json:"key"`
	Since   time.Time `json:"since"`
	Until   time.Time `json:"until,omitzero"`
}

type rotationJSON struct {
	Password []byte        `json:"password"`
	Step     Step          `json:"step"`
	Since    time.Time     `json:"since"`
	Begun    time.Time     `json:"begun"`
	After    Mark          `json:"after"`
	Keep     time.Duration `json:"keep"` // in nanoseconds
	Force    bool          `json:"force,omitempty"`
	Refused  bool          `json:"refused,omitempty"`
}

// wire returns what is sealed of an entry. Its secrets are the entry's.
func (e *Entry) wire() *entryJSON {
	w := &entryJSON{
		Principal: e.Principal, Aliases: e.Aliases, AliasOf: e.aliasOf, Mark: e.Mark, Policy: e.Policy, Interval: e.Interval,
		Alarm: e.Alarm, Disabled: e.Disabled, Deleted: e.Deleted, History: e.History,
	}
	for _, k := range e.Keys {
		w.Keys = append(w.Keys, keyJSON{k.State, k.KVNO, k.Enctype, k.Secret, k.Since, k.Until})
	}
	if r := e.Rotation; r != nil {
		w.Rotation = &rotationJSON{r.Password, r.Step, r.Since, r.Begun, r.After, r.Keep, r.Force, r.Refused}
	}
	return w
}

// entry returns the entry. Its secrets are those of w.
func (w *entryJSON) entry() *Entry {
	e := &Entry{
		Principal: w.Principal, Aliases: w.Aliases, aliasOf: w.AliasOf, Mark: w.Mark, Policy: w.Policy, Interval: w.Interval,
		Alarm: w.Alarm, Disabled: w.Disabled, Deleted: w.Deleted, History: w.History,
	}
	for _, k := range w.Keys {
		e.Keys = append(e.Keys, Key{k.State, k.KVNO, k.Enctype, etype.Secret(k.Key), k.Since, k.Until})
	}
	if r := w.Rotation; r != nil {
		e.Rotation = &Rotation{etype.Secret(r.Password), r.Step, r.Since, r.Begun, r.After, r.Keep, r.Force, r.Refused}
	}
	return e
}

// Zero overwrites the keys of an entry, and the password of a rotation.
func (e *Entry) Zero() {
	for _, k := range e.Keys {
		k.Secret.Zero()
	}
	if e.Rotation != nil {
		e.Rotation.Password.Zero()
	}
}

// note appends a line to the history.
func (e *Entry) note(c Change) {
	all := append(e.History, c)
	first, size := len(all)-1, len(c.What)
	for first > 0 && len(all)-first < maxHistory && size+len(all[first-1].What) <= maxWords {
		first--
		size += len(all[first].What)
	}
	e.History = slices.Clone(all[first:])
}

// maxHistory is how many changes an entry remembers, and maxWords of how many bytes, since a change of
// long names has more than a hundred thousand and a record has to have room for what comes; the audit
// log has them all.
const (
	maxHistory = 50
	maxWords   = 256 << 10
)

type hostJSON struct {
	Name      string `json:"name"`
	Recipient string `json:"recipient"`
	Mark
	Added   time.Time `json:"added"`
	By      string    `json:"by"`
	Removed time.Time `json:"removed,omitzero"`
}

func (h *Host) wire() *hostJSON {
	return &hostJSON{h.Name, h.Recipient, h.Mark, h.Added, h.By, h.Removed}
}

func (w *hostJSON) host() *Host {
	return &Host{Name: w.Name, Recipient: w.Recipient, Mark: w.Mark, Added: w.Added, By: w.By, Removed: w.Removed}
}

// ackJSON is what a host has acknowledged of an entry.
type ackJSON struct {
	Host string `json:"host"`
	Mark
}

// instanceJSON is what an instance says of itself.
type instanceJSON struct {
	Name    string    `json:"name"`
	Keyring Mark      `json:"keyring"` // that it has
	Seen    time.Time `json:"seen"`
	Stopped bool      `json:"stopped,omitempty"`
	Signers []string  `json:"signers,omitempty"` // whose keyrings it believes
}

// hostsJSON is what an instance says of some hosts: those whose ids begin alike.
type hostsJSON struct {
	Live []string         `json:"live,omitempty"` // ids of those that it hears of, in order
	Gone map[string]int64 `json:"gone,omitempty"` // when it has heard of the others last, in Unix seconds
}
