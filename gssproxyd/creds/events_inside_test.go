package creds

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"gssproxyd/audit"
	"gssproxyd/conf"
	"gssproxyd/keytab/seal"
	"gssproxyd/limits"
)

// TestKeyEvents: which keys are in use is recorded when that changes, with names and never a key,
// and whatever becomes of the record.
func TestKeyEvents(t *testing.T) {
	t.Setenv("KRB5RCACHENAME", "none:")
	good, err := os.ReadFile("../../testdata/kernel/keys/server.keytab")
	Must(t, err)
	path := filepath.Join(t.TempDir(), "a.keytab")
	Must(t, os.WriteFile(path, good, 0o600))
	events := make(chan audit.Event, 100)
	l, at := limits.ForProcess(), time.Unix(1_800_000_000, 0)
	h := New(Options{
		Box: seal.New(), Limits: l, Users: conf.FixedUsers{"root": 0},
		Record: func(_ context.Context, e *audit.Event) error { events <- *e; return errors.New("disk full") },
		Log:    &Log{slog.New(slog.DiscardHandler), l.Lines, func() time.Time { return at }, nil},
	})
	load := func(services map[string]string) {
		c, k := Config(t, "/nonexistent", services)
		Must(t, h.Load(c, k))
	}
	taken := func() (list []string) {
		for len(events) > 0 {
			e := <-events
			if e.Caller != nil || e.Source != "FILE:"+path || !e.Time.Equal(at) || len(e.Digest) != 64 {
				t.Errorf("%+v", e)
			}
			list = append(list, fmt.Sprintf("%s %s %d %s", e.Kind, e.Principal, e.KVNO, e.Enctype))
		}
		return list
	}
	want := func(what string, want ...string) {
		t.Helper()
		if got := taken(); !slices.Equal(got, want) {
			t.Errorf("%s: %q, want %q", what, got, want)
		}
	}
	with := map[string]string{"a": "cred_store = keytab:" + path + "\ncred_store = client_keytab:" + path}
	load(with)
	k := h.Current().named("a").fixed.keytab
	of := " nfs/nfs-vm.nfsvm.test@NFSVM.TEST 1 aes256-cts-hmac-sha1-96, aes128-cts-hmac-sha1-96"
	want("the start", "key-loaded"+of)
	load(with)
	want("the same again")
	Must(t, os.WriteFile(path, good[:len(good)-1], 0o600))
	k.Refresh(t.Context(), k.Ring())
	want("a broken file")
	load(map[string]string{"b": "cred_store = keytab:" + path + ".none"})
	want("another configuration", "key-pruned"+of)
	Must(t, os.WriteFile(path, good, 0o600))
	load(with)
	want("as before", "key-loaded"+of)
	h.Close()
	want("the end")
}
