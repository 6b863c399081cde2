package ccache

import (
	"bytes"
	"testing"

	"github.com/google/go-cmp/cmp"

	"gssproxyd/mech/krb5"
	"gssproxyd/mech/krb5/etype"
)

// sameBytes compares keys, which print redacted.
var sameBytes = cmp.Comparer(func(a, b etype.Secret) bool { return bytes.Equal(a, b) })

func TestContent(t *testing.T) {
	client := principal("alice")
	creds := []*krb5.Credential{
		testCred("alice", "krbtgt/"+realm, etype.AES256SHA1, never),
		ConfigEntry(client, RefreshTime, nil, []byte("12")),
		testCred("alice", "http/www", etype.AES128SHA1, never),
	}
	b := AppendContent([]byte("before"), client, creds)[len("before"):]
	p, got, err := ParseContent(b)
	must(t, err)
	if d := cmp.Diff(creds, got, sameBytes); d != "" || !p.Equal(client) {
		t.Errorf("%v: %s", p, d)
	}
	for n := range b {
		if _, got, err := ParseContent(b[:n]); err == nil && len(got) == len(creds) {
			t.Errorf("%d bytes of %d are all", n, len(b))
		}
	}
	older := bytes.Clone(b)
	older[1] = 3
	if _, _, err := ParseContent(older); err == nil {
		t.Error("another version is read")
	}
}
