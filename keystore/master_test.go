package keystore_test

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"gssproxyd/audit"
	"gssproxyd/keystore"
	"gssproxyd/mech/krb5/etype"
	"gssproxyd/mech/reason"
)

// fill stores something of each kind.
func fill(t *testing.T, s *keystore.Store, n int) {
	t.Helper()
	for i := range n {
		change(t, s, fmt.Sprintf("host/%d@R", i), "", func(e *keystore.Entry) {
			e.Keys = []keystore.Key{{State: keystore.Current, KVNO: 1, Enctype: 18, Secret: key32}}
		})
	}
	_, err := s.AddHost(t.Context(), "web1", newIdentity(t).Recipient(), "")
	must(t, err)
	must(t, s.Acknowledge(t.Context(), "web1", map[string]keystore.Mark{"host/0@R": {Epoch: 1, Revision: 1}}))
}

// noAcks says that acknowledgements are not there any more: hosts send them again.
const noAcks = true

// check reads all that fill has stored.
func check(t *testing.T, s *keystore.Store, n int, without ...bool) {
	t.Helper()
	ctx := t.Context()
	for e, err := range s.Entries(ctx) {
		must(t, err)
		if !bytes.Equal(e.Keys[0].Secret, key32) {
			t.Errorf("%s has another key", e.Principal)
		}
		n--
	}
	if n != 0 {
		t.Errorf("%d entries are missing", n)
	}
	if hosts, _, err := s.Hosts(ctx); err != nil || len(hosts) != 1 {
		t.Errorf("%v, %v", hosts, err)
	}
	if acks, err := s.Acknowledged(ctx, "host/0@R"); err != nil || len(acks) != 1-len(without) {
		t.Errorf("%v, %v", acks, err)
	}
}

// masters returns the ids of the master keys that records are sealed with.
func masters(t *testing.T, b keystore.Backend) (ids []byte) {
	t.Helper()
	records, _, err := b.List(t.Context(), "")
	must(t, err)
	for _, r := range records {
		if r.Name != "keyring" {
			ids = append(ids, r.Value[8])
		}
	}
	slices.Sort(ids)
	return slices.Compact(ids)
}

func TestRotateMaster(t *testing.T) {
	m := newMemory()
	f := newFleet(t, m)
	a, ctx := open(t, f.b, f.first), t.Context()
	b, _ := f.join(t, a, "b")
	fill(t, a, 5)
	old := entryRecord(t, m)
	f.audited("")

	// Nothing is sealed with a key before both instances have it.
	loaded := false
	m.before(func(changes []keystore.Record) (bool, error) {
		if k, err := b.Keyring(); err == nil && len(k.Masters) == 2 {
			loaded = true
		}
		for _, c := range changes {
			if !c.Keep && c.Name != "keyring" && c.Value[8] == 2 && !loaded {
				t.Errorf("%s is sealed with a key that the other instance does not have", c.Name)
			}
		}
		return false, nil
	})
	var said []string
	must(t, b.RotateMaster(ctx, "uid 0", false, func(text string) { said = append(said, text) }))
	if !strings.Contains(strings.Join(said, "\n"), "records are sealed with the new key") {
		t.Errorf("%q", said)
	}
	if got := f.audited(audit.KeyringChanged); len(got) != 3 || !strings.Contains(got[0], "master key 2 was made") || !strings.Contains(got[1], "master key 2 seals") || !strings.Contains(got[2], "master key 1 is out of use") {
		t.Errorf("%q", got)
	}
	if ids := masters(t, m); !bytes.Equal(ids, []byte{2}) {
		t.Errorf("records are sealed with %v", ids)
	}
	for _, s := range []*keystore.Store{a, b} {
		check(t, s, 5)
	}
	if k, err := b.Keyring(); err != nil || len(k.Masters) != 1 || k.Sealing != 2 {
		t.Errorf("%+v, %v", k, err)
	}
	// Nobody can open what the old key has sealed.
	now := entryRecord(t, m)
	commit(t, m, put(now.Name, string(old.Value), now.Version))
	fresh, _ := f.join(t, b, "c")
	refused := 0
	for _, err := range fresh.Entries(ctx) {
		if errors.Is(err, reason.StoreRecordBad) {
			refused++
		}
	}
	if refused != 1 {
		t.Errorf("%d are refused", refused)
	}
}

var errKilled = errors.New("killed")

// killedAt makes a call of an instance's that is killed at the nth of its own commits, which is made or not.
// It returns the call's error: errKilled, or what it says where there are fewer.
func killedAt(t *testing.T, m *memory, n int, made bool, own func([]keystore.Record) bool, call func(context.Context) error) error {
	ctx, kill := context.WithCancel(t.Context())
	defer kill()
	defer m.before(nil)
	count := 0
	m.before(func(changes []keystore.Record) (bool, error) {
		if !own(changes) {
			return false, nil
		}
		if count++; count == n {
			kill()
			return made, errKilled
		}
		return false, nil
	})
	return call(ctx)
}

// unsaid reports whether a commit is of something else than what instances say of themselves.
func unsaid(changes []keystore.Record) bool {
	return !slices.ContainsFunc(changes, func(c keystore.Record) bool { return strings.HasPrefix(c.Name, "live/instance/") })
}

// Wherever it is killed, with the last commit made or not, another instance finishes it; and until
// then everything can be read and changed.
func TestRotateMasterKilled(t *testing.T) {
	for n := 1; ; n++ {
		finished := false
		for _, also := range []bool{false, true} {
			m := newMemory()
			f := newFleet(t, m)
			a := open(t, m, f.first)
			b, _ := f.join(t, a, "b")
			fill(t, a, 2)
			err := killedAt(t, m, n, also, unsaid, func(ctx context.Context) error { return a.RotateMaster(ctx, "test", false, func(string) {}) })
			if finished = err == nil; finished {
				continue
			}
			if !errors.Is(err, errKilled) {
				t.Fatalf("at commit %d: %v", n, err)
			}
			check(t, b, 2)
			change(t, b, "host/0@R", "", nothing)
			must(t, b.RotateMaster(t.Context(), "test", false, func(string) {}))
			check(t, a, 2)
			check(t, b, 2)
			if ids := masters(t, m); len(ids) != 1 {
				t.Errorf("at commit %d: records are sealed with %v", n, ids)
			}
			if k, err := b.Keyring(); err != nil || len(k.Masters) != 1 {
				t.Errorf("at commit %d: %+v, %v", n, k, err)
			}
		}
		if finished {
			if n < 7 { // three keyrings, four records
				t.Errorf("%d commits", n-1)
			}
			return
		}
	}
}

// Wherever a revocation is killed, with the last commit made or not, it is called again and finishes:
// nothing is left that a rotation of the master key would wait for.
func TestRevokeKilled(t *testing.T) {
	for n := 1; ; n++ {
		finished := false
		for _, also := range []bool{false, true} {
			m := newMemory()
			f := newFleet(t, m)
			a := open(t, m, f.first)
			before, _, err := m.List(t.Context(), "live/instance/")
			must(t, err)
			b, _ := f.join(t, a, "b")
			after, _, err := m.List(t.Context(), "live/instance/")
			must(t, err)
			of := after[slices.IndexFunc(after, func(r keystore.Record) bool { return r.Name != before[0].Name })].Name
			for i := range 150 { // of hosts that it has heard of
				commit(t, m, put(fmt.Sprintf("%s/%03d", of, i), "x", 0))
			}
			err = killedAt(t, m, n, also, func(changes []keystore.Record) bool {
				return slices.ContainsFunc(changes, func(c keystore.Record) bool { return !c.Keep && (c.Value == nil || c.Name == "keyring") })
			}, func(ctx context.Context) error { return a.Revoke(ctx, "b", "test") })
			if finished = err == nil; !finished {
				if !errors.Is(err, errKilled) {
					t.Fatalf("at commit %d: %v", n, err)
				}
				all := n == 3 && also // it was, and nobody was told
				if err := a.Revoke(t.Context(), "b", "test"); err != nil != all || all && !errors.Is(err, keystore.ErrNoMember) {
					t.Errorf("at commit %d, made %t: %v", n, also, err)
				}
			}
			if left, _, err := m.List(t.Context(), of); err != nil || len(left) > 0 {
				t.Errorf("at commit %d, made %t: %d records are left, %v", n, also, len(left), err)
			}
			if _, err := b.Change(t.Context(), nil, principal, "", "", func(*keystore.Entry) error { return nil }); !errors.Is(err, reason.StoreKeyringSealed) {
				t.Errorf("at commit %d, made %t: %v", n, also, err)
			}
			f.pass(2 * time.Minute)
			must(t, a.RotateMaster(t.Context(), "test", false, func(string) {}))
		}
		if finished {
			if n != 4 { // a keyring, and 151 records
				t.Errorf("%d commits", n-1)
			}
			return
		}
	}
}

// An instance that is a member by another name than its own is not forgotten as one that was revoked.
func TestRevokeByInstance(t *testing.T) {
	f := newFleet(t, newMemory())
	a, ctx := open(t, f.b, f.first), t.Context()
	o := f.options(t, "b")
	must(t, a.Grant(ctx, "member", o.Identity.Recipient(), ""))
	b := open(t, f.b, o)
	argument, is := errors.AsType[*keystore.Argument](a.Revoke(ctx, "b", ""))
	if !is || !strings.Contains(argument.Text, "as a member of another name") {
		t.Errorf("%v", argument)
	}
	change(t, b, principal, "", nothing)
}

// An instance that was not heard of is named, and not waited for if so is said. When it wakes up it
// has the new key before it writes.
func TestRotateMasterWithoutInstance(t *testing.T) {
	m := newMemory()
	f := newFleet(t, m)
	a, ctx := open(t, m, f.first), t.Context()
	fill(t, a, 2)
	asleep := &sleeper{memory: m}
	o := f.options(t, "sleeper")
	must(t, a.Grant(ctx, "sleeper", o.Identity.Recipient(), ""))
	b := open(t, asleep, o)
	asleep.asleep.Store(true)
	f.pass(2 * time.Minute)
	if err := a.RotateMaster(ctx, "test", false, func(string) {}); err == nil || !strings.Contains(err.Error(), "sleeper") {
		t.Errorf("%v", err)
	}
	check(t, a, 2)
	must(t, a.RotateMaster(ctx, "test", true, func(string) {}))

	// What it was about to write is sealed with the key that is gone: nobody could read it.
	if _, err := b.Change(ctx, nil, "new@R", "", "", func(*keystore.Entry) error { return nil }); err == nil {
		t.Error("an instance that did not have the keyring has written")
	}
	asleep.asleep.Store(false)
	change(t, b, "new@R", "", nothing)
	if _, err := a.Entry(ctx, "new@R"); err != nil {
		t.Error(err)
	}
	if ids := masters(t, m); !bytes.Equal(ids, []byte{2}) {
		t.Errorf("records are sealed with %v", ids)
	}
}

// sleeper is a backend that has not heard of a new keyring.
type sleeper struct {
	*memory
	asleep atomic.Bool
}

func (s *sleeper) Get(ctx context.Context, name string) (keystore.Record, error) {
	if s.asleep.Load() && name == "keyring" {
		return keystore.Record{}, errors.New("it does not answer")
	}
	return s.memory.Get(ctx, name)
}

// No key, no password and no name is in what the backend has on disk, or in the state directory.
func TestNothingInTheClear(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "store.db")
	f := newFleet(t, openBolt(t, path))
	s := open(t, f.b, f.first)
	secrets := []string{string(key32), "PASSWORD-PASSWORD", "www.example.com", "host1.example.com"}
	change(t, s, principal, "", func(e *keystore.Entry) {
		e.Policy.Hosts = []string{"host1.example.com"}
		e.Keys = []keystore.Key{{State: keystore.Current, KVNO: 1, Enctype: 18, Secret: bytes.Clone(key32)}}
		e.Rotation = &keystore.Rotation{Password: etype.Secret("PASSWORD-PASSWORD")}
	})
	_, err := s.AddHost(t.Context(), "host1.example.com", newIdentity(t).Recipient(), "")
	must(t, err)
	s.Seen("host1.example.com")
	must(t, s.Acknowledge(t.Context(), "host1.example.com", map[string]keystore.Mark{principal: {Epoch: 1, Revision: 1}}))
	// What is in the keyring, as who can open it sees it.
	keyring := func() {
		r, err := f.b.Get(t.Context(), "keyring")
		must(t, err)
		plain, err := f.recovery.Open(r.Value[53 : len(r.Value)-64])
		must(t, err)
		secrets = append(secrets, keyringSecrets(t, plain)...)
	}
	keyring()
	must(t, s.RotateMaster(t.Context(), "test", false, func(string) {}))
	keyring()
	must(t, s.Close())
	if len(secrets) != 4+3+3 {
		t.Fatalf("%d secrets are looked for", len(secrets))
	}
	files, err := filepath.Glob(filepath.Join(f.first.StateDir, "*"))
	must(t, err)
	if len(files) != 1 {
		t.Errorf("%q", files)
	}
	for _, name := range append(files, path) {
		content, err := os.ReadFile(name)
		must(t, err)
		for i, secret := range secrets {
			for how, text := range map[string]string{"as it is": secret, "in base64": b64(secret)[:len(b64(secret))-4], "in hexadecimal": fmt.Sprintf("%x", secret)} {
				if bytes.Contains(content, []byte(text)) {
					t.Errorf("%s has secret %d %s", name, i, how)
				}
			}
		}
	}
}

// Of the length of a record hardly anything can be told.
func TestRecordsArePadded(t *testing.T) {
	f := newFleet(t, newMemory())
	s := open(t, f.b, f.first)
	change(t, s, "a@R", "", nothing)
	short := len(entryRecord(t, f.b).Value)
	change(t, s, principal, "", func(e *keystore.Entry) {
		e.Keys = []keystore.Key{{State: keystore.Current, KVNO: 1, Enctype: 18, Secret: key32}}
	})
	if long := len(entryRecord(t, f.b).Value); long != short || short != 9+24+1024+16 {
		t.Errorf("%d and %d", short, long)
	}
	if _, err := s.Change(t.Context(), nil, principal, "", "", func(e *keystore.Entry) error {
		e.Disabled = strings.Repeat("x", 1<<20)
		return nil
	}); err == nil || !strings.Contains(err.Error(), "too large") {
		t.Errorf("%v", err)
	}
}

func b64(s string) string { return base64.StdEncoding.EncodeToString([]byte(s)) }

// keyringSecrets returns the keys in a keyring: of names, of the signer, and the newest master key.
func keyringSecrets(t *testing.T, plain []byte) []string {
	t.Helper()
	var k struct {
		NameKey, Signer []byte
		Masters         []struct{ Key []byte }
	}
	must(t, json.Unmarshal(plain, &k))
	return []string{string(k.NameKey), string(k.Signer), string(k.Masters[len(k.Masters)-1].Key)}
}
