package keystore_test

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"errors"
	"flag"
	"fmt"
	"io"
	"iter"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"filippo.io/age"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"pgregory.net/rapid"

	"gssproxyd/audit"
	"gssproxyd/keystore"
	"gssproxyd/keystore/delivery"
	"gssproxyd/mech/krb5/etype"
	"gssproxyd/mech/reason"
)

// identity is that of an instance or a host.
type identity struct{ *age.X25519Identity }

func newIdentity(t testing.TB) identity {
	t.Helper()
	i, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	return identity{i}
}

func (i identity) Recipient() string { return i.X25519Identity.Recipient().String() }

func (i identity) Open(content []byte) (etype.Secret, error) {
	r, err := age.Decrypt(bytes.NewReader(content), i.X25519Identity)
	if err != nil {
		return nil, err
	}
	return io.ReadAll(r)
}

// fleet is a backend with a store in it, and what its instances have said.
type fleet struct {
	b        keystore.Backend
	recovery identity
	signer   ed25519.PublicKey
	first    keystore.Options

	mu     sync.Mutex
	now    time.Time
	events []*audit.Event
}

func newFleet(t testing.TB, b keystore.Backend) *fleet {
	t.Helper()
	f := &fleet{b: b, recovery: newIdentity(t), now: time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC)}
	f.first = f.options(t, "a")
	var err error
	if f.signer, err = keystore.Create(t.Context(), b, f.first, []string{f.recovery.Recipient()}); err != nil {
		t.Fatal(err)
	}
	f.first.Signers = []ed25519.PublicKey{f.signer}
	return f
}

func (f *fleet) options(t testing.TB, name string) keystore.Options {
	o := keystore.Options{
		Identity: newIdentity(t), Name: name, StateDir: t.TempDir(),
		Audit: func(_ context.Context, e *audit.Event) {
			f.mu.Lock()
			defer f.mu.Unlock()
			f.events = append(f.events, e)
		},
		Now: func() time.Time {
			f.mu.Lock()
			defer f.mu.Unlock()
			return f.now
		},
	}
	if f.signer != nil {
		o.Signers = []ed25519.PublicKey{f.signer}
	}
	os.Chmod(o.StateDir, 0o700)
	return o
}

func (f *fleet) pass(d time.Duration) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.now = f.now.Add(d)
}

// audited returns the events of a kind since the last call, each as its principal, reason and text.
func (f *fleet) audited(kind audit.Kind) (list []string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, e := range f.events {
		if e.Kind == kind {
			list = append(list, fmt.Sprintf("%s|%s|%s", e.Principal, e.Reason, e.Text))
		}
	}
	f.events = nil
	return list
}

func open(t testing.TB, b keystore.Backend, o keystore.Options) *keystore.Store {
	t.Helper()
	s, err := keystore.Open(t.Context(), b, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

// join adds an instance to the fleet.
func (f *fleet) join(t testing.TB, by *keystore.Store, name string) (*keystore.Store, keystore.Options) {
	t.Helper()
	o := f.options(t, name)
	if err := by.Grant(t.Context(), name, o.Identity.Recipient(), "test"); err != nil {
		t.Fatal(err)
	}
	return open(t, f.b, o), o
}

const principal = "HTTP/www.example.com@EXAMPLE.COM"

var key32 = etype.Secret("0123456789abcdef-KEY-KEY-KEY-32.")

func change(t testing.TB, s *keystore.Store, principal, what string, f func(e *keystore.Entry)) *keystore.Entry {
	t.Helper()
	e, err := s.Change(t.Context(), nil, principal, "uid 0", what, func(e *keystore.Entry) error {
		f(e)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return e
}

func nothing(*keystore.Entry) {}

var sameEntry = cmp.Options{cmpopts.IgnoreUnexported(keystore.Entry{}), cmpopts.EquateEmpty(), cmp.Transformer("bytes", func(s etype.Secret) string { return fmt.Sprintf("%x", []byte(s)) })}

func TestEntryIsKept(t *testing.T) {
	backends(t, func(t *testing.T, b keystore.Backend) {
		f := newFleet(t, b)
		s, ctx := open(t, b, f.first), t.Context()
		if _, err := s.Entry(ctx, principal); !errors.Is(err, keystore.ErrNoEntry) {
			t.Errorf("%v", err)
		}
		want := &keystore.Entry{
			Principal: principal, Aliases: []string{"HTTP/www@EXAMPLE.COM"}, Mark: keystore.Mark{Epoch: 1, Revision: 1},
			Keys:     []keystore.Key{{State: keystore.Current, KVNO: 3, Enctype: 18, Secret: key32, Since: f.now}},
			Policy:   keystore.Policy{Hosts: []string{"*.example.com"}, Rules: map[string][]string{"allowed_client": {"*@EXAMPLE.COM"}}},
			Interval: 24 * time.Hour,
			Rotation: &keystore.Rotation{Password: etype.Secret("password"), Step: keystore.Stored, Begun: f.now, Force: true, Refused: true},
			Alarm:    "alarm", Disabled: "why", Deleted: f.now,
			History: []keystore.Change{{Time: f.now, Mark: keystore.Mark{Epoch: 1, Revision: 1}, By: "uid 0", What: "imported; alias HTTP/www@EXAMPLE.COM"}},
		}
		change(t, s, principal, "imported", func(e *keystore.Entry) {
			e.Aliases, e.Keys, e.Policy, e.Interval, e.Rotation = want.Aliases, want.Keys, want.Policy, want.Interval, want.Rotation
			e.Alarm, e.Disabled, e.Deleted = want.Alarm, want.Disabled, want.Deleted
		})
		if got := f.audited(audit.EntryChanged); !slices.Equal(got, []string{principal + "||revision 1 by uid 0: imported; alias HTTP/www@EXAMPLE.COM"}) {
			t.Errorf("%q", got)
		}
		got, err := s.Entry(ctx, principal)
		must(t, err)
		if diff := cmp.Diff(want, got, sameEntry); diff != "" {
			t.Errorf("-want +got:\n%s", diff)
		}
		for e, err := range s.Entries(ctx) {
			if diff := cmp.Diff(want, e, sameEntry); diff != "" || err != nil {
				t.Errorf("%v, -want +got:\n%s", err, diff)
			}
		}
		if text := fmt.Sprintf("%v %+v %#v", got.Keys, got.Rotation, got.Keys); strings.Contains(text, "KEY") || strings.Contains(text, "password") {
			t.Error("printed: " + text)
		}
		failed := errors.New("it is not to be")
		if _, err := s.Change(ctx, nil, principal, "", "", func(*keystore.Entry) error { return failed }); !errors.Is(err, failed) {
			t.Errorf("%v", err)
		}
		got.Zero()
		if !bytes.Equal(got.Keys[0].Secret, make([]byte, 32)) || !bytes.Equal(got.Rotation.Password, make([]byte, 8)) {
			t.Error("not zeroed")
		}
	})
}

// Two instances change the same entries at the same time: no change is lost, and both see the same.
func TestInstancesAgree(t *testing.T) {
	f := newFleet(t, newMemory())
	a := open(t, f.b, f.first)
	b, _ := f.join(t, a, "b")
	var done sync.WaitGroup
	const each = 20
	for i, s := range []*keystore.Store{a, b} {
		done.Go(func() {
			for n := range each {
				change(t, s, principal, "", func(e *keystore.Entry) { e.Policy.Hosts = append(e.Policy.Hosts, fmt.Sprintf("%d-%d", i, n)) })
			}
		})
	}
	done.Wait()
	for _, s := range []*keystore.Store{a, b} {
		e, err := s.Entry(t.Context(), principal)
		must(t, err)
		if hosts := e.Policy.Hosts; len(slices.Compact(slices.Sorted(slices.Values(hosts)))) != 2*each || e.Revision != 2*each {
			t.Errorf("%d changes are there, revision %d", len(hosts), e.Revision)
		}
	}
}

// TestModel has two instances do what a map does, with restarts and new master keys between.
func TestModel(t *testing.T) {
	if os.Getenv("NIGHTLY") != "1" { // the marks of each change are written to a disk
		must(t, flag.Set("rapid.checks", "25"))
	}
	f := newFleet(t, newMemory())
	ctx := t.Context()
	first := open(t, f.b, f.first)
	second, options := f.join(t, first, "b")
	stores, opts := []*keystore.Store{first, second}, []keystore.Options{f.first, options}
	checks := 0
	rapid.Check(t, func(r *rapid.T) {
		checks++ // each has entries of its own
		realm := fmt.Sprintf("@R%d", checks)
		model := map[string]*keystore.Entry{}
		names := rapid.SampledFrom([]string{"a" + realm, "b" + realm, "HTTP/c" + realm})
		r.Repeat(map[string]func(*rapid.T){
			"change": func(r *rapid.T) {
				name, s := names.Draw(r, "name"), rapid.SampledFrom(stores).Draw(r, "instance")
				kvno, key := rapid.Uint32().Draw(r, "kvno"), rapid.SliceOfN(rapid.Byte(), 32, 32).Draw(r, "key")
				e := change(t, s, name, "changed", func(e *keystore.Entry) {
					e.Keys = append(e.Keys, keystore.Key{State: keystore.Current, KVNO: kvno, Enctype: 18, Secret: key, Since: f.now})
				})
				want := model[name]
				if want == nil {
					want = &keystore.Entry{Principal: name}
					model[name] = want
				}
				want.Keys = append(want.Keys, keystore.Key{State: keystore.Current, KVNO: kvno, Enctype: 18, Secret: key, Since: f.now})
				want.Mark = keystore.Mark{Epoch: 1, Revision: want.Revision + 1}
				want.History = append(want.History, keystore.Change{Time: f.now, Mark: want.Mark, By: "uid 0", What: "changed"})
				if diff := cmp.Diff(want, e, sameEntry); diff != "" {
					r.Fatal(diff)
				}
			},
			"read": func(r *rapid.T) {
				name, s := names.Draw(r, "name"), rapid.SampledFrom(stores).Draw(r, "instance")
				e, err := s.Entry(ctx, name)
				if want := model[name]; want == nil && !errors.Is(err, keystore.ErrNoEntry) || want != nil && (err != nil || cmp.Diff(want, e, sameEntry) != "") {
					r.Fatalf("%v %s", err, cmp.Diff(want, e, sameEntry))
				}
			},
			"restart": func(r *rapid.T) {
				i := rapid.IntRange(0, 1).Draw(r, "instance")
				must(t, stores[i].Close())
				stores[i] = open(t, f.b, opts[i])
			},
			"rotate master": func(r *rapid.T) {
				if rapid.IntRange(0, 9).Draw(r, "now") > 0 {
					r.Skip("all that there is is sealed anew: now and then")
				}
				must(t, rapid.SampledFrom(stores).Draw(r, "instance").RotateMaster(ctx, "test", false, func(string) {}))
			},
		})
		for _, s := range stores {
			n := 0
			for e, err := range s.Entries(ctx) {
				if err == nil && !strings.HasSuffix(e.Principal, realm) {
					continue
				}
				if diff := cmp.Diff(model[e.Principal], e, sameEntry); diff != "" || err != nil {
					r.Fatalf("%v %s", err, diff)
				}
				n++
			}
			if n != len(model) {
				r.Fatalf("%d entries, want %d", n, len(model))
			}
		}
	})
}

// entryRecord returns the record of the entry that has just been stored: the newest.
func entryRecord(t testing.TB, b keystore.Backend) keystore.Record {
	t.Helper()
	records, _, err := b.List(t.Context(), "kept/entry/")
	if err != nil || len(records) == 0 {
		t.Fatal(err, records)
	}
	return slices.MaxFunc(records, func(a, b keystore.Record) int { return int(a.Version) - int(b.Version) })
}

// What stands in the backend and was not written there last by the store is refused, by a reason, and
// audited; and nothing is ever stored over it.
func TestRecordsRefused(t *testing.T) {
	for name, test := range map[string]struct {
		tamper func(t *testing.T, b keystore.Backend, older, newer, other keystore.Record)
		want   reason.ID
	}{
		"replayed": {func(t *testing.T, b keystore.Backend, older, newer, other keystore.Record) {
			commit(t, b, put(newer.Name, string(older.Value), newer.Version))
		}, reason.StoreRolledBack},
		"deleted": {func(t *testing.T, b keystore.Backend, older, newer, other keystore.Record) {
			commit(t, b, keystore.Record{Name: newer.Name, Version: newer.Version})
		}, reason.StoreRolledBack},
		"swapped": {func(t *testing.T, b keystore.Backend, older, newer, other keystore.Record) {
			commit(t, b, put(newer.Name, string(other.Value), newer.Version))
		}, reason.StoreRecordBad},
		"edited": {func(t *testing.T, b keystore.Backend, older, newer, other keystore.Record) {
			value := bytes.Clone(newer.Value)
			value[len(value)/2] ^= 1
			commit(t, b, put(newer.Name, string(value), newer.Version))
		}, reason.StoreRecordBad},
		"edited header": {func(t *testing.T, b keystore.Backend, older, newer, other keystore.Record) {
			value := bytes.Clone(newer.Value)
			value[8] ^= 1 // the master key's id
			commit(t, b, put(newer.Name, string(value), newer.Version))
		}, reason.StoreRecordBad},
		"truncated": {func(t *testing.T, b keystore.Backend, older, newer, other keystore.Record) {
			commit(t, b, put(newer.Name, string(newer.Value[:len(newer.Value)-1]), newer.Version))
		}, reason.StoreRecordBad},
		"cut off": {func(t *testing.T, b keystore.Backend, older, newer, other keystore.Record) {
			commit(t, b, put(newer.Name, "GSKS", newer.Version))
		}, reason.StoreRecordBad},
		"of another store": {func(t *testing.T, b keystore.Backend, older, newer, other keystore.Record) {
			f := newFleet(t, newMemory())
			change(t, open(t, f.b, f.first), principal, "", nothing)
			commit(t, b, put(newer.Name, string(entryRecord(t, f.b).Value), newer.Version))
		}, reason.StoreRecordBad},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFleet(t, newMemory())
			s, ctx := open(t, f.b, f.first), t.Context()
			change(t, s, "other@R", "", nothing)
			other := entryRecord(t, f.b)
			change(t, s, principal, "", nothing)
			older := entryRecord(t, f.b)
			change(t, s, principal, "", nothing)
			newer := entryRecord(t, f.b)
			test.tamper(t, f.b, older, newer, other)
			f.audited("")

			check := func(s *keystore.Store, how string) {
				t.Helper()
				_, err := s.Entry(ctx, principal)
				audited := f.audited(audit.RecordRefused)
				if !errors.Is(err, test.want) || len(audited) != 1 || !strings.HasPrefix(audited[0], principal+"|"+string(test.want)+"|") {
					t.Errorf("%s: %v; %q", how, err, audited)
				}
				if _, err := s.Change(ctx, nil, principal, "", "", func(*keystore.Entry) error { return nil }); !errors.Is(err, test.want) {
					t.Errorf("%s: changed, %v", how, err)
				}
				good := 0
				var refused error
				for e, err := range s.Entries(ctx) {
					if err != nil {
						refused = err
					} else if e.Principal == "other@R" {
						good++
					}
				}
				if !errors.Is(refused, test.want) || good != 1 {
					t.Errorf("%s: of all entries %v is refused, %d are good", how, refused, good)
				}
				f.audited("")
			}
			check(s, "by who saw it")
			must(t, s.Close())
			s = open(t, f.b, f.first)
			check(s, "after a restart")
		})
	}
}

// A fresh instance knows no marks: it cannot know that a record is an old one, and says nothing.
func TestFreshInstance(t *testing.T) {
	f := newFleet(t, newMemory())
	s := open(t, f.b, f.first)
	change(t, s, principal, "", nothing)
	older := entryRecord(t, f.b)
	change(t, s, principal, "", nothing)
	commit(t, f.b, put(older.Name, string(older.Value), entryRecord(t, f.b).Version))
	fresh, _ := f.join(t, s, "fresh")
	if e, err := fresh.Entry(t.Context(), principal); err != nil || e.Revision != 1 {
		t.Errorf("%+v, %v", e, err)
	}
	if _, err := s.Entry(t.Context(), principal); !errors.Is(err, reason.StoreRolledBack) {
		t.Errorf("%v", err)
	}
}

// rewriteKeyring puts another keyring in the backend's.
func rewriteKeyring(t *testing.T, b keystore.Backend, f func(keyring []byte) []byte) {
	t.Helper()
	r, err := b.Get(t.Context(), "keyring")
	must(t, err)
	commit(t, b, keystore.Record{Name: "keyring", Value: f(bytes.Clone(r.Value)), Version: r.Version})
}

// A keyring that the store has not signed is not opened, and an old one is not used.
func TestKeyringRefused(t *testing.T) {
	for name, test := range map[string]struct {
		tamper func(t *testing.T, f *fleet, first []byte)
		want   reason.ID
	}{
		"edited": {func(t *testing.T, f *fleet, first []byte) {
			rewriteKeyring(t, f.b, func(k []byte) []byte { k[100] ^= 1; return k })
		}, reason.StoreKeyringUnsigned},
		"another generation": {func(t *testing.T, f *fleet, first []byte) {
			rewriteKeyring(t, f.b, func(k []byte) []byte { k[20]++; return k })
		}, reason.StoreKeyringUnsigned},
		"cut off": {func(t *testing.T, f *fleet, first []byte) {
			rewriteKeyring(t, f.b, func(k []byte) []byte { return k[:len(k)-1] })
		}, reason.StoreKeyringUnsigned},
		"none": {func(t *testing.T, f *fleet, first []byte) {
			rewriteKeyring(t, f.b, func(k []byte) []byte { return []byte("none") })
		}, reason.StoreKeyringUnsigned},
		// Who can write to the backend knows all public keys: of the instances, and the signer's. He
		// makes a keyring of his own for them.
		"planted": {func(t *testing.T, f *fleet, first []byte) {
			planted := newFleet(t, newMemory())
			o := planted.options(t, "a")
			o.Identity = f.first.Identity
			must(t, open(t, planted.b, planted.first).Grant(t.Context(), "victim", o.Identity.Recipient(), "somebody"))
			theirs, err := planted.b.Get(t.Context(), "keyring")
			must(t, err)
			rewriteKeyring(t, f.b, func([]byte) []byte { return theirs.Value })
		}, reason.StoreKeyringUnsigned},
		"planted under the signer's name": {func(t *testing.T, f *fleet, first []byte) {
			planted := newFleet(t, newMemory())
			o := planted.options(t, "a")
			o.Identity = f.first.Identity
			must(t, open(t, planted.b, planted.first).Grant(t.Context(), "victim", o.Identity.Recipient(), "somebody"))
			theirs, err := planted.b.Get(t.Context(), "keyring")
			must(t, err)
			forged := bytes.Clone(theirs.Value) // the instance that has made it looks at it still
			copy(forged[21:], f.signer)
			rewriteKeyring(t, f.b, func([]byte) []byte { return forged })
		}, reason.StoreKeyringUnsigned},
		"a lower generation": {func(t *testing.T, f *fleet, first []byte) {
			rewriteKeyring(t, f.b, func([]byte) []byte { return first })
		}, reason.StoreKeyringOld},
		"gone": {func(t *testing.T, f *fleet, first []byte) {
			rewriteKeyring(t, f.b, func([]byte) []byte { return nil })
		}, reason.StoreKeyringOld},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFleet(t, newMemory())
			ctx := t.Context()
			first, err := f.b.Get(ctx, "keyring")
			must(t, err)
			s := open(t, f.b, f.first)
			change(t, s, principal, "", nothing)
			must(t, s.Grant(ctx, keystore.Recovery, newIdentity(t).Recipient(), "test"))
			f.audited("")
			test.tamper(t, f, first.Value)

			// Who runs goes on with what it has, and changes nothing.
			if _, err := s.Entry(ctx, principal); err != nil {
				t.Errorf("an instance that runs does not read any more: %v", err)
			}
			if _, err := s.Change(ctx, nil, principal, "", "", func(*keystore.Entry) error { return nil }); !errors.Is(err, test.want) {
				t.Errorf("an instance that runs: %v", err)
			}
			if err := s.Grant(ctx, "mallory", newIdentity(t).Recipient(), "test"); !errors.Is(err, test.want) {
				t.Errorf("a keyring was made of it: %v", err)
			}
			if audited := f.audited(audit.RecordRefused); len(audited) < 2 || !strings.HasPrefix(audited[0], "|"+string(test.want)+"|") {
				t.Errorf("%q", audited)
			}
			s.Close()
			f.audited("")
			if _, err := keystore.Open(ctx, f.b, f.first); !errors.Is(err, test.want) {
				t.Errorf("an instance that starts: %v", err)
			}
			if audited := f.audited(audit.RecordRefused); len(audited) != 1 {
				t.Errorf("%q", audited)
			}
		})
	}
}

func TestOpenRefuses(t *testing.T) {
	f := newFleet(t, newMemory())
	ctx := t.Context()
	refused := func(b keystore.Backend, o keystore.Options, id reason.ID, text string) {
		t.Helper()
		s, err := keystore.Open(ctx, b, o)
		if err == nil {
			s.Close()
			t.Error("opened")
			return
		}
		if id != "" && !errors.Is(err, id) || !strings.Contains(err.Error(), text) {
			t.Errorf("%v, want %s %q", err, id, text)
		}
	}
	stranger := f.options(t, "stranger")
	refused(f.b, stranger, reason.StoreKeyringSealed, stranger.Identity.Recipient())
	unsigned := f.options(t, "a")
	unsigned.Signers = nil
	refused(f.b, unsigned, "", "no signer")
	unsigned.Signers = []ed25519.PublicKey{make([]byte, 32)}
	refused(f.b, unsigned, reason.StoreKeyringUnsigned, delivery.FormatSigner(f.signer))
	vacant := newMemory()
	refused(vacant, f.options(t, "a"), "", "keystored init")
	commit(t, vacant, put("kept/entry/x", "x", 0))
	refused(vacant, f.options(t, "a"), reason.StoreKeyringOld, "not there")

	second := newFleet(t, newMemory())
	o := second.first
	o.StateDir = f.first.StateDir
	refused(second.b, o, "", "another store")
	s := open(t, f.b, f.first)
	refused(f.b, f.first, "", "another process has the state directory")
	must(t, s.Close())
	must(t, os.Chmod(f.first.StateDir, 0o777))
	refused(f.b, f.first, "", "chmod go-w")
	must(t, os.Chmod(f.first.StateDir, 0o700))

	if _, err := keystore.Create(ctx, f.b, f.options(t, "a"), nil); err == nil || !strings.Contains(err.Error(), "not empty") {
		t.Errorf("%v", err)
	}
	if _, err := keystore.Create(ctx, newMemory(), f.options(t, "a"), []string{"age1"}); err == nil || !strings.Contains(err.Error(), `"age1"`) {
		t.Errorf("%v", err)
	}

	// With a recovery identity everything opens.
	rescue := f.options(t, "rescue")
	rescue.Identity = f.recovery
	must(t, open(t, f.b, rescue).Grant(ctx, "new", stranger.Identity.Recipient(), "rescue"))
	open(t, f.b, stranger)
}

func TestGrantAndRevoke(t *testing.T) {
	f := newFleet(t, newMemory())
	a, ctx := open(t, f.b, f.first), t.Context()
	b, options := f.join(t, a, "b")
	change(t, b, principal, "", nothing)
	if err := a.Grant(ctx, "b", newIdentity(t).Recipient(), ""); !errors.Is(err, keystore.ErrExists) {
		t.Errorf("%v", err)
	}
	if err := a.Grant(ctx, "c", options.Identity.Recipient(), ""); !errors.Is(err, keystore.ErrExists) {
		t.Errorf("%v", err)
	}
	if err := a.Revoke(ctx, "c", ""); !errors.Is(err, keystore.ErrNoMember) || !strings.HasSuffix(err.Error(), " as c; its members are a, recovery, b") {
		t.Errorf("%v", err)
	}
	if err := a.Revoke(ctx, "a", ""); err == nil || !strings.Contains(err.Error(), "itself") {
		t.Errorf("%v", err)
	}
	k, err := a.Keyring()
	must(t, err)
	names := []string{}
	for _, m := range k.Members {
		names = append(names, m.Name+" "+m.Recipient)
	}
	want := []string{"a " + f.first.Identity.Recipient(), "recovery " + f.recovery.Recipient(), "b " + options.Identity.Recipient()}
	if !slices.Equal(names, want) || k.Generation != 2 || k.Epoch != 1 || !k.Signer.Equal(f.signer) || len(k.Masters) != 1 || k.Sealing != k.Masters[0].ID {
		t.Errorf("%+v", k)
	}
	f.audited("")
	must(t, a.Revoke(ctx, "b", "uid 0"))
	if audited := f.audited(audit.KeyringChanged); len(audited) != 1 || !strings.Contains(audited[0], "generation 3 by uid 0: revoked of b, ") {
		t.Errorf("%q", audited)
	}
	// It is out as soon as it hears of it, and when it writes at the latest.
	if _, err := b.Change(ctx, nil, principal, "", "", func(*keystore.Entry) error { return nil }); !errors.Is(err, reason.StoreKeyringSealed) {
		t.Errorf("%v", err)
	}
	if _, err := b.Entry(ctx, principal); !errors.Is(err, reason.StoreKeyringSealed) {
		t.Errorf("%v", err)
	}
	for _, err := range b.Watch(ctx) {
		if !errors.Is(err, reason.StoreKeyringSealed) {
			t.Errorf("%v", err)
		}
	}
}

func TestWatch(t *testing.T) {
	f := newFleet(t, newMemory())
	a := open(t, f.b, f.first)
	b, _ := f.join(t, a, "b")
	change(t, a, principal, "", nothing)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	next, stop := iter.Pull2(b.Watch(ctx))
	defer stop()
	pulled := func(want string) {
		t.Helper()
		e, err, ok := next()
		got := "nothing"
		if e != nil {
			got = fmt.Sprint(e.Principal, " ", e.Revision)
		}
		if err != nil || !ok || got != want {
			t.Fatalf("%s, %v, %t; want %s", got, err, ok, want)
		}
	}
	pulled(principal + " 1")
	pulled("nothing")
	change(t, a, principal, "", nothing)
	pulled(principal + " 2")
	// What was put back is left out, and audited.
	f.audited("")
	record := entryRecord(t, f.b)
	commit(t, f.b, put(record.Name, "edited", record.Version))
	change(t, a, "other@R", "", nothing)
	pulled("other@R 1")
	if audited := f.audited(audit.RecordRefused); len(audited) != 1 || !strings.HasPrefix(audited[0], "|store-record-bad|") {
		t.Errorf("%q", audited)
	}
	cancel()
	if _, err, ok := next(); ok {
		t.Errorf("after the end: %v", err)
	}
}

// What a writer does with a lock that it has lost is not done.
func TestChangeUnderLock(t *testing.T) {
	f := newFleet(t, newMemory())
	s, ctx := open(t, f.b, f.first), t.Context()
	lock, err := s.Lock(ctx, principal)
	must(t, err)
	f1 := func(*keystore.Entry) error { return nil }
	if _, err := s.Change(ctx, lock, principal, "", "", f1); err != nil {
		t.Error(err)
	}
	must(t, lock.Unlock(ctx))
	if _, err := s.Change(ctx, lock, principal, "", "", f1); !errors.Is(err, keystore.ErrLockLost) {
		t.Errorf("%v", err)
	}
}

func TestHosts(t *testing.T) {
	f := newFleet(t, newMemory())
	a, ctx := open(t, f.b, f.first), t.Context()
	b, options := f.join(t, a, "b")
	recipient := newIdentity(t).Recipient()
	for name, text := range map[string]string{"": "no name", "a b": "no name", strings.Repeat("x", 513): "no name"} {
		if _, err := a.AddHost(ctx, name, recipient, ""); err == nil || !strings.Contains(err.Error(), text) {
			t.Errorf("%q: %v", name, err)
		}
	}
	if _, err := a.AddHost(ctx, "web1", "age1x", ""); err == nil || !strings.Contains(err.Error(), "no age recipient") {
		t.Errorf("%v", err)
	}
	h, err := a.AddHost(ctx, "web1", recipient, "uid 0")
	must(t, err)
	if _, err := b.AddHost(ctx, "web1", recipient, ""); !errors.Is(err, keystore.ErrExists) {
		t.Errorf("%v", err)
	}
	got, _ := known(t, b, "web1", nil)
	if diff := cmp.Diff(h, got); diff != "" || got.By != "uid 0" || !got.Added.Equal(f.now) {
		t.Errorf("%+v, -want +got:\n%s", got, diff)
	}
	known(t, b, "web2", keystore.ErrNoHost)

	// When a host was seen is known here at once, elsewhere soon, and after restarts.
	a.Seen("web1")
	hosts, _, err := a.Hosts(ctx)
	if must(t, err); len(hosts) != 1 || !hosts[0].Seen.Equal(f.now) {
		t.Errorf("%+v", hosts)
	}
	seen := f.now
	f.pass(time.Hour)
	must(t, a.Close())
	if hosts, _, err = b.Hosts(ctx); err != nil || !hosts[0].Seen.Equal(seen) {
		t.Errorf("%+v, %v", hosts[0], err)
	}
	a = open(t, f.b, f.first)
	must(t, b.Close())
	if hosts, _, err = a.Hosts(ctx); err != nil || !hosts[0].Seen.Equal(seen) {
		t.Errorf("%+v, %v", hosts[0], err)
	}
	b = open(t, f.b, options)

	record := func() keystore.Record {
		records, _, err := f.b.List(ctx, "kept/host/")
		must(t, err)
		return records[0]
	}
	enrolled := record()
	must(t, b.RemoveHost(ctx, "web1", "uid 1"))
	if err := b.RemoveHost(ctx, "web1", "uid 1"); !errors.Is(err, keystore.ErrNoHost) {
		t.Errorf("%v", err)
	}
	if _, err := known(t, a, "web1", keystore.ErrNoHost); !strings.Contains(err.Error(), "uid 1 removed it") {
		t.Errorf("%v", err)
	}
	if hosts, _, err := a.Hosts(ctx); err != nil || len(hosts) != 0 {
		t.Errorf("%v, %v", hosts, err)
	}
	// A host that was removed, with keys that somebody has now, does not come back by its old record.
	removed := record()
	commit(t, f.b, put(enrolled.Name, string(enrolled.Value), removed.Version))
	for _, s := range []*keystore.Store{a, b} {
		known(t, s, "web1", reason.StoreRolledBack)
		hosts, refused, err := s.Hosts(ctx)
		if err != nil || len(hosts) != 0 || len(refused) != 1 || !errors.Is(refused[0], reason.StoreRolledBack) || !strings.Contains(refused[0].Error(), "web1") {
			t.Errorf("%v, %v, %v", hosts, refused, err)
		}
	}
	commit(t, f.b, put(enrolled.Name, string(removed.Value), record().Version))
	if h, err := a.AddHost(ctx, "web1", recipient, ""); err != nil || h.Revision != 3 {
		t.Errorf("%+v, %v", h, err)
	}
}

// known waits until an instance knows of a host what is to be known, and returns it.
func known(t *testing.T, s *keystore.Store, host string, want error) (h *keystore.Host, err error) {
	t.Helper()
	for end := time.Now().Add(time.Minute); ; time.Sleep(time.Millisecond) {
		if h, err = s.Known(host); errors.Is(err, want) {
			return h, err
		}
		if time.Now().After(end) {
			t.Fatalf("%s: %+v, %v; want %v", host, h, err, want)
		}
	}
}

func TestAcknowledge(t *testing.T) {
	f := newFleet(t, newMemory())
	a, ctx := open(t, f.b, f.first), t.Context()
	b, _ := f.join(t, a, "b")
	mark := func(n uint64) keystore.Mark { return keystore.Mark{Epoch: 1, Revision: n} }
	must(t, a.Acknowledge(ctx, "web1", map[string]keystore.Mark{principal: mark(3)}))
	must(t, b.Acknowledge(ctx, "web1", map[string]keystore.Mark{principal: mark(2)})) // late
	must(t, b.Acknowledge(ctx, "web2", map[string]keystore.Mark{principal: mark(1)}))
	must(t, b.Acknowledge(ctx, "web2", map[string]keystore.Mark{"other@R": mark(9)}))
	got, err := b.Acknowledged(ctx, principal)
	must(t, err)
	if diff := cmp.Diff(map[string]keystore.Mark{"web1": mark(3), "web2": mark(1)}, got); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	must(t, a.Acknowledge(ctx, "web1", map[string]keystore.Mark{principal: mark(4)}))
	// What cannot be read is as if the host had said nothing.
	must(t, b.Close()) // which would say so as well
	records, _, err := f.b.List(ctx, "live/ack/")
	must(t, err)
	for _, r := range records {
		commit(t, f.b, put(r.Name, "edited", r.Version))
	}
	f.audited("")
	if got, err = a.Acknowledged(ctx, principal); err != nil || len(got) != 0 || len(f.audited(audit.RecordRefused)) != 2 {
		t.Errorf("%v, %v", got, err)
	}
	must(t, a.Acknowledge(ctx, "web1", map[string]keystore.Mark{principal: mark(4)}))
	if got, err = a.Acknowledged(ctx, principal); err != nil || got["web1"] != mark(4) {
		t.Errorf("%v, %v", got, err)
	}
}

func TestDeliver(t *testing.T) {
	f := newFleet(t, newMemory())
	s, ctx := open(t, f.b, f.first), t.Context()
	id := newIdentity(t)
	h, err := s.AddHost(ctx, "web1.example.com", id.Recipient(), "")
	must(t, err)
	e := change(t, s, principal, "", func(e *keystore.Entry) {
		e.Aliases = []string{"HTTP/www@EXAMPLE.COM"}
		e.Policy = keystore.Policy{Hosts: []string{"web*.example.com"}, Rules: map[string][]string{"allowed_client": {"*@EXAMPLE.COM"}}}
		e.Keys = []keystore.Key{{State: keystore.Pending, KVNO: 4, Enctype: 18, Secret: key32, Since: f.now}}
	})
	delivered := func(h *keystore.Host, e *keystore.Entry) *delivery.Delivery {
		t.Helper()
		b, withdrawn, err := s.Deliver(h, e, principal)
		must(t, err)
		if bytes.Contains(b, key32) {
			t.Error("the key is there to be read")
		}
		d, err := delivery.Verify(b, h.Name, []ed25519.PublicKey{f.signer})
		must(t, err)
		if d.Withdrawn != string(withdrawn) {
			t.Errorf("%q is returned, %q is delivered", withdrawn, d.Withdrawn)
		}
		return d
	}
	d := delivered(h, e)
	plain, err := id.Open(d.Sealed)
	must(t, err)
	d.Sealed = nil
	want := &delivery.Delivery{Host: h.Name, Principal: principal, Aliases: e.Aliases, Epoch: 1, Revision: 1, Issued: f.now, Rules: e.Policy.Rules}
	if diff := cmp.Diff(want, d); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	if want := `[{"state":"pending","kvno":4,"enctype":18,"key":"MDEyMzQ1Njc4OWFiY2RlZi1LRVktS0VZLUtFWS0zMi4=","since":1893553445}]`; string(plain) != want {
		t.Errorf("%s", string(plain))
	}

	other := *h
	other.Name = "db1.example.com"
	gone := *h
	gone.Removed = f.now
	disabled, deleted := *e, *e
	disabled.Disabled, deleted.Deleted = "it leaked", f.now
	for _, test := range []struct {
		h    *keystore.Host
		e    *keystore.Entry
		want reason.ID
		text string
	}{
		{&other, e, reason.StoreNoRight, "does not name the host"},
		{&other, &disabled, reason.StoreNoRight, "does not name the host"}, // and learns nothing else
		{&gone, e, reason.StoreNoRight, "not enrolled"},
		{h, &disabled, reason.StoreDisabled, "it leaked"},
		{h, &deleted, reason.StoreDeleted, "2030-01-02"},
	} {
		d := delivered(test.h, test.e)
		if d.Withdrawn != string(test.want) || !strings.Contains(d.Text, test.text) || d.Sealed != nil || d.Rules != nil || d.Aliases != nil || d.Revision != 1 {
			t.Errorf("%+v", d)
		}
	}
}

func TestPermits(t *testing.T) {
	for _, test := range []struct {
		patterns, host string
		want           bool
	}{
		{"", "web1.example.com", false},
		{"web1.example.com", "web1.example.com", true},
		{"web1.example.com", "web1.example.com.evil", false},
		{"web*.example.com", "web1.example.com", true},
		{"web*.example.com", "web.example.com", true},
		{"web*.example.com", "web1.evil.example.com", false},
		{"*", "web1", true},
		{"*", "web1.example.com", false},
		{"*.*.com", "web1.example.com", true},
		{"*a*b", "xaxbxab", true},
		{"*a*b", "xaxbxa", false},
		{"db1 *.example.com", "web1.example.com", true},
		{"spiffe://example.com/host/*", "spiffe://example.com/host/web1", true},
		{"spiffe://example.com/host/*", "spiffe://example.com/host/web1/other", false},
		{"web[1].example.com", "web1.example.com", false},
		{strings.Repeat("*a", 40) + "b", strings.Repeat("a", 400), false}, // and in time
	} {
		p := keystore.Policy{Hosts: strings.Fields(test.patterns)}
		if got := p.Permits(test.host); got != test.want {
			t.Errorf("%q permits %s: %t", test.patterns, test.host, got)
		}
	}
}

// TestClocksOfInstances: when a host was seen is told by this instance's clock, whatever another one's
// says.
func TestClocksOfInstances(t *testing.T) {
	f := newFleet(t, newMemory())
	a, ctx := open(t, f.b, f.first), t.Context()
	if _, err := a.AddHost(ctx, "Web1", newIdentity(t).Recipient(), ""); err == nil || !strings.Contains(err.Error(), "lower case") {
		t.Error(err)
	}
	_, err := a.AddHost(ctx, "web1", newIdentity(t).Recipient(), "")
	must(t, err)
	for i, off := range []time.Duration{-3 * time.Minute, 3 * time.Minute} {
		o := f.options(t, fmt.Sprint("other", i))
		o.Now = func() time.Time { return f.options(t, "").Now().Add(off) }
		must(t, a.Grant(ctx, o.Name, o.Identity.Recipient(), "test"))
		b, err := keystore.Open(ctx, f.b, o)
		must(t, err)
		f.pass(20 * time.Second)
		b.Seen("web1")
		must(t, b.Close()) // which tells
		_, _, err = a.Hosts(ctx)
		must(t, err)
		f.pass(10 * time.Second)
		hosts, _, err := a.Hosts(ctx)
		if must(t, err); len(hosts) != 1 || f.now.Sub(hosts[0].Seen) != 10*time.Second {
			t.Errorf("%v off: seen %v ago", off, f.now.Sub(hosts[0].Seen))
		}
	}
}
