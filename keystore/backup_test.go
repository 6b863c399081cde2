package keystore_test

import (
	"bytes"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"gssproxyd/audit"
	"gssproxyd/keystore"
	"gssproxyd/mech/reason"
)

func TestBackupAndRestore(t *testing.T) {
	f := newFleet(t, newMemory())
	a, ctx := open(t, f.b, f.first), t.Context()
	b, options := f.join(t, a, "b")
	fill(t, a, 120)
	var backup bytes.Buffer
	if n, err := a.Backup(ctx, &backup); err != nil || n != 121 {
		t.Fatalf("%d, %v", n, err)
	}
	if bytes.Contains(backup.Bytes(), []byte(b64(string(key32)))) {
		t.Error("a key is there to be read")
	}
	want, err := a.Entry(ctx, "host/0@R")
	must(t, err)
	// What comes after is lost, and all others have seen it.
	change(t, b, "host/0@R", "", nothing)
	change(t, b, "lost@R", "", nothing)
	must(t, a.Close())
	must(t, b.Close())
	f.audited("")

	fresh := newMemory()
	if _, err := keystore.Restore(ctx, f.b, f.first, bytes.NewReader(backup.Bytes())); err == nil || !strings.Contains(err.Error(), "not empty") {
		t.Errorf("%v", err)
	}
	if n, err := keystore.Restore(ctx, fresh, f.first, bytes.NewReader(backup.Bytes())); err != nil || n != 121 {
		t.Fatalf("%d, %v", n, err)
	}
	if got := f.audited(audit.KeyringChanged); len(got) != 1 || !strings.Contains(got[0], "restored, epoch 1893553445") {
		t.Errorf("%q", got)
	}
	for _, o := range []keystore.Options{f.first, options} {
		s := open(t, fresh, o)
		check(t, s, 120, noAcks)
		got, err := s.Entry(ctx, "host/0@R")
		must(t, err)
		want.Epoch = uint64(f.now.Unix())
		if diff := cmp.Diff(want, got, sameEntry); diff != "" {
			t.Errorf("-want +got:\n%s", diff)
		}
		if _, err := s.Entry(ctx, "lost@R"); !errors.Is(err, keystore.ErrNoEntry) {
			t.Errorf("%v", err)
		}
		must(t, s.Close())
	}
	// A record of the former epoch is an old one, to a fresh instance, too.
	s := open(t, fresh, f.first)
	now := entryRecord(t, fresh)
	old, err := f.b.Get(ctx, now.Name)
	must(t, err)
	commit(t, fresh, put(now.Name, string(old.Value), now.Version))
	c, _ := (&fleet{b: fresh, signer: f.signer, now: f.now}).join(t, s, "c")
	refused := 0
	for _, err := range c.Entries(ctx) {
		if errors.Is(err, reason.StoreRolledBack) {
			refused++
		}
	}
	if refused != 1 {
		t.Errorf("%d are refused", refused)
	}
	// Once more is another epoch.
	f.pass(time.Second)
	must(t, s.Close())
	again := newMemory()
	_, err = keystore.Restore(ctx, again, f.first, bytes.NewReader(backup.Bytes()))
	must(t, err)
	check(t, open(t, again, f.first), 120, noAcks)
}

func TestRestoreRefuses(t *testing.T) {
	f := newFleet(t, newMemory())
	s, ctx := open(t, f.b, f.first), t.Context()
	change(t, s, "a@R", "", nothing)
	change(t, s, "b@R", "", nothing)
	var out bytes.Buffer
	_, err := s.Backup(ctx, &out)
	must(t, err)
	must(t, s.Close())
	backup := out.String()
	lines := strings.SplitAfter(backup, "\n") // the format, two entries, the keyring, the end
	without := func(i int) string { return strings.Join(append(append([]string{}, lines[:i]...), lines[i+1:]...), "") }
	stranger := f.options(t, "stranger")
	unpinned := f.first
	unpinned.Signers = nil
	for name, test := range map[string]struct {
		backup string
		o      keystore.Options
		want   string
	}{
		"cut off":           {backup[:len(backup)/2], f.first, "without its last line"},
		"without an entry":  {without(2), f.first, "store-keyring-unsigned"},
		"without its end":   {without(4), f.first, "without its last line"},
		"edited":            {strings.Replace(backup, `"value":"R1NL`, `"value":"R1NM`, 1), f.first, "store-keyring-unsigned"},
		"no backup":         {"{}\n", f.first, "its format"},
		"no JSON":           {"hello\n", f.first, "line 2"},
		"a very long line":  {strings.Repeat("x", 3<<20), f.first, "too long"},
		"no signer":         {backup, unpinned, "store-keyring-unsigned"},
		"no right identity": {backup, stranger, "store-keyring-sealed"},
	} {
		b := newMemory()
		_, err := keystore.Restore(ctx, b, test.o, strings.NewReader(test.backup))
		if err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: %v, want %q", name, err, test.want)
		}
		if len(b.records) != 0 {
			t.Errorf("%s: something was written", name)
		}
	}
	// One that was killed on the way does not open.
	b := newMemory()
	killed := errors.New("killed")
	b.before(func(changes []keystore.Record) (bool, error) {
		if changes[0].Name == "keyring" {
			return false, killed
		}
		return false, nil
	})
	if _, err := keystore.Restore(ctx, b, f.first, strings.NewReader(backup)); !errors.Is(err, killed) {
		t.Errorf("%v", err)
	}
	if _, err := keystore.Open(ctx, b, f.first); !errors.Is(err, reason.StoreKeyringOld) || !strings.Contains(err.Error(), "restore") {
		t.Errorf("%v", err)
	}
}
