package keystore_test

import (
	"bytes"
	"errors"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"gssproxyd/audit"
	"gssproxyd/keystore"
	"gssproxyd/mech/reason"
)

// all restores with the members of the backup.
var all = &keystore.Restore{Members: true}

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
	if _, err := all.Do(ctx, f.b, f.first, bytes.NewReader(backup.Bytes())); err == nil || !strings.Contains(err.Error(), "not empty") {
		t.Errorf("%v", err)
	}
	if res, err := all.Do(ctx, fresh, f.first, bytes.NewReader(backup.Bytes())); err != nil || res.Records != 121 || len(res.Hosts) != 1 || len(res.Members) != 3 {
		t.Fatalf("%+v, %v", res, err)
	}
	if ids := masters(t, fresh); !bytes.Equal(ids, []byte{2}) {
		t.Errorf("records are sealed with %v", ids)
	}
	if got := f.audited(audit.KeyringChanged); len(got) != 1 || !strings.Contains(got[0], "restored, epoch 1893553445, for a, recovery, b") {
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
	// A record from before is none any more, to a fresh instance, too.
	s := open(t, fresh, f.first)
	now := entryRecord(t, fresh)
	old, err := f.b.Get(ctx, now.Name)
	must(t, err)
	commit(t, fresh, put(now.Name, string(old.Value), now.Version))
	c, _ := (&fleet{b: fresh, signer: f.signer, now: f.now}).join(t, s, "c")
	refused := 0
	for _, err := range c.Entries(ctx) {
		if errors.Is(err, reason.StoreRecordBad) {
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
	_, err = all.Do(ctx, again, f.first, bytes.NewReader(backup.Bytes()))
	must(t, err)
	check(t, open(t, again, f.first), 120, noAcks)
}

// Who was revoked since the backup, and hosts that were removed, do not come back with it, where it can be
// known; where not nothing is restored before somebody has said so.
func TestRestoreMembers(t *testing.T) {
	f := newFleet(t, newMemory())
	a, ctx := open(t, f.b, f.first), t.Context()
	b, bOptions := f.join(t, a, "b")
	for _, name := range []string{"web1", "web2"} {
		_, err := a.AddHost(ctx, name, newIdentity(t).Recipient(), "")
		must(t, err)
	}
	change(t, a, "a@R", "", nothing)
	var out bytes.Buffer
	_, err := a.Backup(ctx, &out)
	must(t, err)
	must(t, b.Close())
	must(t, a.Revoke(ctx, "b", "test"))
	c, _ := f.join(t, a, "c")
	must(t, a.RemoveHost(ctx, "web2", "test"))
	must(t, a.Close())
	must(t, c.Close())
	shared := false
	restore := func(how *keystore.Restore, o keystore.Options) (*memory, *keystore.Restored, error) {
		t.Helper()
		fresh := newMemory()
		if o.StateDir == f.first.StateDir && !shared { // else it has seen what was restored before
			o.StateDir = t.TempDir()
		}
		res, err := how.Do(ctx, fresh, o, bytes.NewReader(out.Bytes()))
		return fresh, res, err
	}
	names := func(list []keystore.Member) (names []string) {
		for _, m := range list {
			names = append(names, m.Name)
		}
		return names
	}

	fresh, res, err := restore(&keystore.Restore{}, f.first)
	if !errors.Is(err, keystore.ErrMembers) || res == nil || !slices.Equal(names(res.Members), []string{"a", "recovery", "b"}) || res.Known || len(fresh.records) > 0 {
		t.Errorf("%+v, %v, %d records", res, err, len(fresh.records))
	}
	fresh, res, err = restore(&keystore.Restore{Former: f.b, DryRun: true}, f.first)
	if err != nil || !slices.Equal(names(res.Gone), []string{"b"}) || !slices.Equal(res.Removed, []string{"web2"}) || len(fresh.records) > 0 {
		t.Errorf("%+v, %v, %d records", res, err, len(fresh.records))
	}
	fresh, res, err = restore(&keystore.Restore{Former: f.b}, f.first)
	if err != nil || !res.Known || !slices.Equal(names(res.Members), []string{"a", "recovery", "c"}) || !slices.Equal(res.Hosts, []string{"web1"}) {
		t.Errorf("%+v, %v", res, err)
	}
	if _, err := keystore.Open(ctx, fresh, bOptions); !errors.Is(err, reason.StoreKeyringSealed) {
		t.Errorf("who was revoked opens the store: %v", err)
	}
	s := open(t, fresh, f.first)
	if hosts, _, err := s.Hosts(ctx); err != nil || len(hosts) != 1 || hosts[0].Name != "web1" {
		t.Errorf("%v, %v", hosts, err)
	}
	must(t, s.Close())
	// On demand he comes back, and is named.
	_, res, err = restore(&keystore.Restore{Former: f.b, Members: true}, f.first)
	if err != nil || !slices.Equal(names(res.Gone), []string{"b"}) || !slices.Equal(names(res.Members), []string{"a", "recovery", "b"}) {
		t.Errorf("%+v, %v", res, err)
	}
	// With an identity for recovery, on a machine that is no member.
	o := f.options(t, "d")
	own := o.Identity
	o.Identity = f.recovery
	fresh, _, err = restore(&keystore.Restore{Members: true, Recipient: own.Recipient()}, o)
	must(t, err)
	o.Identity = own
	must(t, open(t, fresh, o).Close())
	// A former backend that is not the last one knows nothing.
	if _, _, err := restore(&keystore.Restore{Former: newMemory()}, f.first); err == nil || !strings.Contains(err.Error(), "former backend: there is no keyring") {
		t.Errorf("%v", err)
	}
	other := newFleet(t, newMemory())
	both := f.first
	both.Signers = append(slices.Clone(both.Signers), other.signer)
	if _, _, err := restore(&keystore.Restore{Former: other.b}, both); err == nil {
		t.Error("the keyring of another store says who the members are")
	}
	// Where the marks cannot be opened nothing is written.
	shared = true
	must(t, os.Chmod(f.first.StateDir, 0o777))
	fresh, _, err = restore(&keystore.Restore{Members: true}, f.first)
	if err == nil || !strings.Contains(err.Error(), "others can write") || len(fresh.records) > 0 {
		t.Errorf("%v, %d records", err, len(fresh.records))
	}
	must(t, os.Chmod(f.first.StateDir, 0o700))
	empty := newMemory()
	o = f.options(t, "e")
	must(t, os.Chmod(o.StateDir, 0o777))
	if _, err := keystore.Create(ctx, empty, o, nil); err == nil || len(empty.records) > 0 {
		t.Errorf("%v, %d records", err, len(empty.records))
	}
}

// A record that was planted is in each backup from then on, and does not keep the others from coming back.
func TestRestoreLeavesOut(t *testing.T) {
	f := newFleet(t, newMemory())
	s, ctx := open(t, f.b, f.first), t.Context()
	change(t, s, "a@R", "", nothing)
	commit(t, f.b, put("kept/entry/planted", "GSKS\x01\x00\x00\x00\x09"+strings.Repeat("x", 100), 0))
	var out bytes.Buffer
	_, err := s.Backup(ctx, &out)
	must(t, err)
	must(t, s.Close())
	fresh := newMemory()
	res, err := all.Do(ctx, fresh, f.first, &out)
	if err != nil || res.Records != 1 || len(res.Refused) != 1 || !strings.Contains(res.Refused[0], "kept/entry/planted: it is sealed with a master key that is not in the keyring") {
		t.Errorf("%+v, %v", res, err)
	}
	if _, err := open(t, fresh, f.first).Entry(ctx, "a@R"); err != nil {
		t.Error(err)
	}
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
		_, err := all.Do(ctx, b, test.o, strings.NewReader(test.backup))
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
	if _, err := all.Do(ctx, b, f.first, strings.NewReader(backup)); !errors.Is(err, killed) {
		t.Errorf("%v", err)
	}
	if _, err := keystore.Open(ctx, b, f.first); !errors.Is(err, reason.StoreKeyringOld) || !strings.Contains(err.Error(), "restore") {
		t.Errorf("%v", err)
	}
}
