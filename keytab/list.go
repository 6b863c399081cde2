package keytab

import (
	"errors"
	"time"

	"gssproxyd/mech/krb5/wire"
)

// Listing is what there is to say of a keytab's file without its keys.
type Listing struct {
	File    string   `json:"file"`            // as it was named
	Sealed  bool     `json:"sealed"`          // it is a sealed keytab
	Error   string   `json:"error,omitempty"` // why it cannot be read
	Entries []Listed `json:"entries"`
}

// Listed is an entry.
type Listed struct {
	Principal string     `json:"principal"` // fit to be shown
	KVNO      uint32     `json:"kvno"`
	Enctype   string     `json:"enctype"`
	Written   *time.Time `json:"written,omitempty"` // nil: not known
}

// List lists the entries of a keytab in their order. name is what Open takes; of a path without a
// type it does not matter whether the keytab is sealed, nor whose a sealed one is.
func (r *Reader) List(name string) Listing {
	l := Listing{File: name, Entries: []Listed{}}
	s, err := parseName(name)
	if err != nil {
		l.Error = err.Error()
		return l
	}
	entries, b, err := r.look(s)
	if errors.Is(err, errSealed) {
		s.nameType = &nameType{sealed.name, plain.read, sealed.open}
		entries, b, err = r.look(s)
	}
	defer b.Zero()
	if l.Sealed = s.open != nil; err != nil {
		l.Error = err.Error()
	}
	for _, e := range entries {
		listed := Listed{Principal: wire.Shown(e.Principal), KVNO: e.KVNO, Enctype: enctypeName(e.Enctype)}
		if e.Timestamp != 0 {
			t := time.Unix(int64(e.Timestamp), 0).UTC()
			listed.Written = &t
		}
		l.Entries = append(l.Entries, listed)
	}
	return l
}
