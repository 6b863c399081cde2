package main

import (
	"cmp"
	"crypto/subtle"
	"fmt"
	"slices"
	"strings"

	"gssproxyd/keystore/api"
	"gssproxyd/mech/krb5/etype"
)

// An account of Active Directory has one key, and many names: its own, WEB1$ or svc-web, and the service
// names that clients ask for. A keytab has the key under each of them. In the store it is one entry,
// with the others as aliases: changed once, it is changed for all.

// accounts makes one entry of the names of each account: in realms whose keys are changed by kpasswd,
// and for the principal account, if it is not empty. That one need not be in a keytab: some have the
// service names alone.
func (im *importing) accounts(realms map[string]*realm, account string) error {
	byRealm := make(map[string][]*importedEntry)
	for p, e := range im.entries {
		if e.Problem == "" && len(e.given) > 0 {
			_, realm, _ := strings.Cut(p, "@")
			byRealm[realm] = append(byRealm[realm], e)
		}
	}
	_, realm, _ := strings.Cut(account, "@")
	if account != "" && len(byRealm[realm]) == 0 {
		return fmt.Errorf("import: --account %s: a name with its realm is expected, as in svc-web@AD.EXAMPLE.COM, and keytabs that have keys of this realm", account)
	}
	for name, list := range byRealm {
		kpasswd := realms[name] != nil && realms[name].change == viaKpasswd
		said := account != "" && name == realm
		switch {
		case !kpasswd && !said:
			continue
		case said && im.entries[account] == nil:
			list = append(list, im.unnamed(account, list))
		}
		slices.SortFunc(list, func(a, b *importedEntry) int {
			return cmp.Or(cmp.Compare(rank(a, account), rank(b, account)), strings.Compare(a.Principal, b.Principal))
		})
		if !kpasswd {
			list = slices.DeleteFunc(list, func(e *importedEntry) bool { return !alike(e, list[0]) })
		}
		im.gather(list, account)
	}
	return nil
}

// unnamed makes an entry for an account that no keytab names: with the first keys that there are.
func (im *importing) unnamed(account string, list []*importedEntry) *importedEntry {
	first := slices.MinFunc(list, func(a, b *importedEntry) int { return strings.Compare(a.Principal, b.Principal) })
	e := &importedEntry{Principal: account, Aliases: []string{}, Keys: []api.KeyOutcome{}, Unusable: []string{}}
	for _, k := range first.given {
		k.Key = slices.Clone(k.Key)
		e.given = append(e.given, k)
	}
	im.entries[account] = e
	return e
}

// rank says how likely a principal is the name of an account: that with the dollar sign is a computer's,
// one with a slash is a service name.
func rank(e *importedEntry, account string) int {
	name, _, _ := strings.Cut(e.Principal, "@")
	switch {
	case e.Principal == account:
		return 0
	case strings.HasSuffix(name, "$"):
		return 1
	case !strings.Contains(name, "/"):
		return 2
	}
	return 3
}

// gather makes aliases of principals, which are in the order of their ranks, of those of a lower rank.
// Whose it is that several of one rank have the same key is not guessed.
func (im *importing) gather(list []*importedEntry, account string) {
	var left []*importedEntry
	for _, e := range list {
		i := slices.IndexFunc(left, func(x *importedEntry) bool { return rank(x, account) < rank(e, account) && alike(e, x) })
		if i >= 0 {
			im.join(left[i], e)
		} else {
			left = append(left, e)
		}
	}
	for i, x := range left {
		for _, e := range left[i+1:] {
			if alike(e, x) {
				why := fmt.Sprintf("%s and %s have one key, as names of one account do, and neither is known to be its own name: say that with --account NAME@REALM", x.Principal, e.Principal)
				x.Problem, e.Problem = cmp.Or(x.Problem, why), cmp.Or(e.Problem, why)
			}
		}
	}
}

// join makes a principal an alias of x.
func (im *importing) join(x, alias *importedEntry) {
	x.Aliases = append(x.Aliases, alias.Principal)
	add := func(list *[]string, more []string) {
		for _, s := range more {
			if !slices.Contains(*list, s) {
				*list = append(*list, s)
			}
		}
	}
	add(&x.Files, alias.Files)
	add(&x.Unusable, alias.Unusable)
	for _, k := range alias.given {
		if given(x, k) != nil {
			clear(k.Key)
			continue
		}
		x.given = append(x.given, k)
	}
	delete(im.entries, alias.Principal)
}

// given returns the key of a principal that has the version and the type of k, nil if there is none.
func given(e *importedEntry, k api.KeyGiven) *api.KeyGiven {
	i := slices.IndexFunc(e.given, func(has api.KeyGiven) bool { return has.KVNO == k.KVNO && has.Enctype == k.Enctype })
	if i < 0 {
		return nil
	}
	return &e.given[i]
}

// alike reports whether the keys of two principals are those of one account: the newest ones are, and
// none is another. A key of RC4 alone shows nothing: it has no salt, and is the same for any two
// accounts with one password.
func alike(a, b *importedEntry) bool {
	newest, shown := newestOf(a), false
	if newest != newestOf(b) {
		return false
	}
	for _, k := range a.given {
		has := given(b, k)
		if has == nil {
			continue
		}
		if subtle.ConstantTimeCompare(has.Key, k.Key) == 0 {
			return false
		}
		shown = shown || k.KVNO == newest && etype.ID(k.Enctype) != etype.RC4
	}
	return shown
}

func newestOf(e *importedEntry) (kvno uint32) {
	for _, k := range e.given {
		kvno = max(kvno, k.KVNO)
	}
	return kvno
}
