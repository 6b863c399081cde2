package kdc

import (
	"bytes"
	"testing"

	"gssproxyd/keytab"
	"gssproxyd/mech/krb5/etype"
)

// A keytab's keys are those that are not pending, and those are a source of their own.
func TestPendingKeys(t *testing.T) {
	const et = etype.AES256SHA1
	key := func(kvno uint32, pending bool) keytab.Entry {
		return keytab.Entry{Principal: "user@A.TEST", KVNO: kvno, Enctype: et, Key: bytes.Repeat([]byte{byte(kvno)}, 32), Pending: pending}
	}
	user := principal(t, "user@A.TEST")
	former := keytab.Compile("STORE:main:user@A.TEST", []keytab.Entry{key(6, false)})
	ring := keytab.Compile("STORE:main:user@A.TEST", []keytab.Entry{key(7, true), key(6, false)})
	for want, source := range map[byte]KeySource{6: Keytab(ring), 7: Pending(ring)} {
		for _, kvno := range []uint32{0, 6, 7} {
			if k := source.Key(user, KeyHint{Enctype: et, KVNO: kvno}); k == nil || k.Secret()[0] != want {
				t.Errorf("kvno %d: not the key of version %d", kvno, want)
			}
		}
		if got := source.Enctypes(user, []etype.ID{et}); len(got) != 1 {
			t.Errorf("%v", got)
		}
	}
	// A refusal of the current keys holds when pending ones come, and not for those, nor once they are
	// the current ones.
	now := keytab.Compile("STORE:main:user@A.TEST", []keytab.Entry{key(7, false), key(6, false)})
	if a, b := Keytab(former).ID(user), Keytab(ring).ID(user); !bytes.Equal(a, b) {
		t.Error("the pending key counts for the others")
	}
	for _, other := range [][]byte{Pending(ring).ID(user), Keytab(now).ID(user)} {
		if bytes.Equal(other, Keytab(ring).ID(user)) {
			t.Error("other keys have the same id")
		}
	}
	if k := Pending(former).Key(user, KeyHint{Enctype: et}); k != nil {
		t.Error("there is no pending key")
	}
}
