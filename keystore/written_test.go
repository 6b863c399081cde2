package keystore_test

import (
	"os"
	"strings"
	"testing"
	"time"

	"gssproxyd/keystore"
	"gssproxyd/mech/krb5/etype"
)

// docs/keystore.md says how much a rotation writes: a record of an entry that has lived long, with keys of
// four types in three versions and as much of a history as is kept, and that of an acknowledgement.
func TestWritten(t *testing.T) {
	page, err := os.ReadFile("../docs/keystore.md")
	must(t, err)
	f := newFleet(t, newMemory())
	s := open(t, f.b, f.first)
	for range 50 {
		change(t, s, principal, "rotation begun: kvno 17 is pending", nothing)
	}
	e := change(t, s, principal, "not waited for, since not heard of: web1.example.com", func(e *keystore.Entry) {
		for kvno, state := range []keystore.KeyState{keystore.Previous, keystore.Current, keystore.Pending} {
			for _, enctype := range []etype.ID{17, 18, 19, 20} {
				e.Keys = append(e.Keys, keystore.Key{State: state, KVNO: uint32(16 + kvno), Enctype: enctype, Secret: key32, Since: f.now, Until: f.now})
			}
		}
		e.Policy.Hosts = []string{"web*.example.com"}
		e.Rotation = &keystore.Rotation{Password: key32, Step: keystore.Stored, Since: f.now, Begun: f.now, Keep: time.Hour}
	})
	must(t, s.Acknowledge(t.Context(), "web1.example.com", map[string]keystore.Mark{principal: e.Mark}))
	for prefix, want := range map[string]struct {
		most int
		said string
	}{
		"kept/entry/": {12 << 10, "up to 12 KiB"},
		"live/ack/":   {512, "up to half a KiB"},
	} {
		records, _, err := f.b.List(t.Context(), prefix)
		must(t, err)
		if len(records) != 1 || !strings.Contains(string(page), want.said) {
			t.Fatalf("%d records %s; docs/keystore.md has to say %q", len(records), prefix, want.said)
		}
		if n := len(records[0].Name) + len(records[0].Value); n > want.most || n < want.most/2 {
			t.Errorf("%s: %d bytes", prefix, n)
		}
	}
}
