package stores

import (
	"slices"
	"strings"
	"testing"
	"time"

	"gssproxyd/keytab"
	"gssproxyd/mech/reason"
)

// A service may name an account by any of its names. A delivery counts for each name that it has and
// a service asks for, each with a mark of its own: one that was before a name went elsewhere is
// refused for that name.
func TestAliases(t *testing.T) {
	const account = "WEB$@EXAMPLE.COM"
	f := newFakeStore(t)
	d := newDaemon(t, f, never)
	web, directory := d.follow(www), d.follow(ldap)
	has := func(s *seen, what string, revision uint32) {
		t.Helper()
		keys, _, err := s.now()
		if err != nil || !slices.ContainsFunc(keys, func(k keytab.Entry) bool { return k.Principal == what }) || keys[0].Principal != account || keys[0].KVNO != revision {
			t.Errorf("%+v, %v: no key %d of %s", keys, err, revision, what)
		}
	}
	deliver := func(revision uint64, aliases ...string) []byte {
		one := of(account, revision, aes(uint32(revision), "current"))
		one.Aliases = aliases
		return f.sign(one)
	}
	first := deliver(5, www, ldap)
	if !d.take("main", first) {
		t.Error("it was refused")
	}
	has(web, www, 5)
	has(directory, ldap, 5)

	// The account loses a name, which another one gets.
	if !d.take("main", deliver(6, www)) {
		t.Error("it was refused")
	}
	has(web, www, 6)
	has(directory, ldap, 5)
	other := of("DC$@EXAMPLE.COM", 7, aes(1, "current"))
	other.Aliases = []string{ldap}
	if !d.take("main", f.sign(other)) {
		t.Error("it was refused")
	}
	if keys, _, _ := directory.now(); keys[0].Principal != "DC$@EXAMPLE.COM" {
		t.Errorf("%+v", keys)
	}
	if d.take("main", first) || !slices.Equal(d.denied(), []string{string(reason.DeliveryReplayed), string(reason.DeliveryReplayed)}) {
		t.Error("what was before is taken again")
	}

	// None of the names is asked for.
	if d.take("main", deliver(9, "host/web@EXAMPLE.COM")) || !slices.Equal(d.denied(), []string{string(reason.DeliveryElsewhere)}) {
		t.Error("a delivery of nobody was taken")
	}

	// What is kept is found by the name that is asked for.
	d.again(never)
	has(d.follow(www), www, 6)
	if s := d.States()[0]; s.Entries[0].Principal != www && s.Entries[1].Principal != www {
		t.Errorf("%+v", s)
	}

	// A withdrawal has the name that was asked for.
	gone := of(www, 10)
	gone.Sealed, gone.Withdrawn, gone.Text, gone.Issued = nil, "store-no-right", "no more", time.Now()
	if !d.take("main", f.sign(gone)) {
		t.Error("it was refused")
	}
	if _, _, err := d.follow(www).now(); err == nil || !strings.Contains(err.Error(), "no more") {
		t.Error(err)
	}
}
