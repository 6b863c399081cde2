package keytab

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"

	"gssproxyd/mech/krb5/etype"
	"gssproxyd/mech/krb5/wire"
)

// What has changed between two rings, for who keeps a record of it. Names are in it, and no keys.

// Change is what has become of the keys of one version of a principal's.
type Change struct {
	Principal string // fit to be shown
	KVNO      uint32
	Loaded    []etype.ID // types of the keys that were not there before
	Replaced  []etype.ID // of those that others have taken the place of
	Pruned    []etype.ID // of those that are not there any more
}

// Changes returns what is different in r from a former ring, sorted by principal and version.
func (r *Ring) Changes(former *Ring) (list []Change) {
	names := make(map[string]bool, len(r.byName))
	for _, ring := range []*Ring{former, r} {
		for name := range ring.byName {
			names[name] = true
		}
	}
	for name := range names {
		list = append(list, changes(name, former.ByPrincipal([]byte(name)), r.ByPrincipal([]byte(name)))...)
	}
	slices.SortFunc(list, func(a, b Change) int {
		return cmp.Or(strings.Compare(a.Principal, b.Principal), cmp.Compare(a.KVNO, b.KVNO))
	})
	return list
}

// changes is Changes for one principal.
func changes(principal string, former, now []*etype.ServiceKey) (list []Change) {
	of := func(kvno uint32) *Change {
		for i := range list {
			if list[i].KVNO == kvno {
				return &list[i]
			}
		}
		list = append(list, Change{Principal: wire.Shown(principal), KVNO: kvno})
		return &list[len(list)-1]
	}
	add := func(ids *[]etype.ID, k *etype.ServiceKey) {
		if !slices.Contains(*ids, k.Key.Enctype()) {
			*ids = append(*ids, k.Key.Enctype())
		}
	}
	for _, k := range now {
		switch {
		case slices.ContainsFunc(former, func(old *etype.ServiceKey) bool { return same(k, old) }):
		case slices.ContainsFunc(former, func(old *etype.ServiceKey) bool { return alike(k, old) }):
			add(&of(k.KVNO).Replaced, k)
		default:
			add(&of(k.KVNO).Loaded, k)
		}
	}
	for _, old := range former {
		if !slices.ContainsFunc(now, func(k *etype.ServiceKey) bool { return alike(k, old) }) {
			add(&of(old.KVNO).Pruned, old)
		}
	}
	return list
}

// alike reports whether two keys of one principal are of the same version and type.
func alike(a, b *etype.ServiceKey) bool {
	return a.KVNO == b.KVNO && a.Key.Enctype() == b.Key.Enctype()
}

// Digest returns a hash of the sorted names of a ring's keys, in hexadecimal: of a line for each,
// "PRINCIPAL kvno N ENCTYPE\n". It is the same for two rings that have keys of the same names, and
// says nothing of the keys.
func (r *Ring) Digest() string {
	names := make([]string, len(r.keys))
	for i := range r.keys {
		k := &r.keys[i]
		names[i] = fmt.Sprintf("%s kvno %d %v\n", k.Principal, k.KVNO, k.Key.Enctype())
	}
	slices.Sort(names)
	sum := sha256.Sum256([]byte(strings.Join(names, "")))
	return hex.EncodeToString(sum[:])
}
