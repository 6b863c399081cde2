package keystore_test

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"filippo.io/age"
	"golang.org/x/sys/unix"

	"gssproxyd/audit"
	"gssproxyd/keystore"
	"gssproxyd/keystore/delivery"
	"gssproxyd/mech/reason"
	"gssproxyd/tests/lab"
)

func quiet(string) {}

// restarted is an instance that was stopped, and started with these signers in its configuration.
func restarted(t *testing.T, b keystore.Backend, s *keystore.Store, o *keystore.Options, signers ...ed25519.PublicKey) *keystore.Store {
	t.Helper()
	must(t, s.Close())
	o.Signers = signers
	return open(t, b, *o)
}

// signs says whose the keyring in the backend is.
func signs(t *testing.T, b keystore.Backend) ed25519.PublicKey {
	t.Helper()
	r, err := b.Get(t.Context(), "keyring")
	must(t, err)
	return ed25519.PublicKey(r.Value[21:53])
}

// delivered is what a host gets of an entry.
func delivered(t *testing.T, s *keystore.Store, host, principal string) []byte {
	t.Helper()
	hosts, _, err := s.Hosts(t.Context())
	must(t, err)
	h := hosts[slices.IndexFunc(hosts, func(h *keystore.Host) bool { return h.Name == host })]
	e, err := s.Entry(t.Context(), principal)
	must(t, err)
	b, _, err := s.Deliver(h, e, principal)
	must(t, err)
	return b
}

func TestSwitchSigner(t *testing.T) {
	f := newFleet(t, newMemory())
	a, ctx := open(t, f.b, f.first), t.Context()
	b, bOptions := f.join(t, a, "b")
	fill(t, a, 2)
	change(t, a, "host/0@R", "", func(e *keystore.Entry) { e.Policy.Hosts = []string{"web1"} })
	must(t, a.Acknowledge(ctx, "web1", map[string]keystore.Mark{"host/0@R": {Epoch: 1, Revision: 2}}))
	f.audited("")
	old := f.signer
	refused := func(err error, want string) {
		t.Helper()
		if _, is := errors.AsType[*keystore.Argument](err); !is || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
	refused(a.SwitchSigner(ctx, "test", true, quiet), "there is no next signer")

	// The next one signs nothing, and there is one only.
	must(t, a.NewSigner(ctx, "test"))
	p, err := a.Signers()
	must(t, err)
	must(t, a.NewSigner(ctx, "test"))
	if again, _ := a.Signers(); !bytes.Equal(again.Next, p.Next) || !bytes.Equal(p.Current, old) || !bytes.Equal(signs(t, f.b), old) {
		t.Errorf("%+v, before %+v", again, p)
	}
	line := delivery.FormatSigner(p.Next)
	if got := f.audited(audit.KeyringChanged); len(got) != 1 || !strings.Contains(got[0], line) {
		t.Errorf("%q", got)
	}
	change(t, b, "host/1@R", "", nothing)
	if _, err := delivery.Verify(delivered(t, b, "web1", "host/0@R"), "web1", []ed25519.PublicKey{old}); err != nil {
		t.Error(err)
	}

	// Nobody is cut off by it.
	refused(a.SwitchSigner(ctx, "test", true, quiet), "the configuration of this instance does not name the next signer: write signer = "+line)
	a = restarted(t, f.b, a, &f.first, old, p.Next)
	refused(a.SwitchSigner(ctx, "test", false, quiet), "would change nothing any more: b;")
	f.pass(2 * time.Minute)
	refused(a.SwitchSigner(ctx, "test", false, quiet), "not heard of for 1m30s, and without the next signer when they were: b;")
	if !bytes.Equal(signs(t, f.b), old) {
		t.Error("it signs")
	}
	if behind, err := a.Behind(ctx); err != nil || len(behind) != 0 {
		t.Errorf("%+v, %v", behind, err)
	}

	// Forced on, an instance that was left behind says what it lacks, and changes nothing.
	must(t, a.SwitchSigner(ctx, "test", true, quiet))
	if now, err := a.Signers(); err != nil || !bytes.Equal(now.Current, p.Next) || now.Next != nil || now.Former != nil || !bytes.Equal(signs(t, f.b), p.Next) {
		t.Errorf("%+v, %v", now, err)
	}
	if got := f.audited(audit.KeyringChanged); len(got) != 2 || !strings.Contains(got[0], line+" signs, and "+delivery.FormatSigner(old)+" does not any more") {
		t.Errorf("%q", got)
	}
	_, err = b.Change(ctx, nil, "host/1@R", "", "", func(*keystore.Entry) error { return nil })
	if !errors.Is(err, reason.StoreKeyringUnsigned) || !strings.Contains(err.Error(), "is the store's signer now, and the configuration of this instance does not name it: write signer = "+line) {
		t.Errorf("%v", err)
	}
	must(t, b.Close())
	if _, err := keystore.Open(ctx, f.b, bOptions); !errors.Is(err, reason.StoreKeyringUnsigned) || !strings.Contains(err.Error(), line) {
		t.Errorf("%v", err)
	}
	bOptions.Signers = []ed25519.PublicKey{p.Next}
	b = open(t, f.b, bOptions)

	// Each entry has a revision that the new one signs, and hosts that do not have it are known.
	for _, s := range []*keystore.Store{a, b} {
		d := delivered(t, s, "web1", "host/0@R")
		got, err := delivery.Verify(d, "web1", []ed25519.PublicKey{p.Next})
		if err != nil || got.Revision != 3 {
			t.Errorf("%+v, %v", got, err)
		}
		if _, err := delivery.Verify(d, "web1", []ed25519.PublicKey{old}); !errors.Is(err, delivery.ErrSignature) || !strings.HasSuffix(err.Error(), "it says that it is "+line) {
			t.Errorf("%v", err)
		}
	}
	behind, err := b.Behind(ctx)
	if err != nil || len(behind) != 1 || behind[0].Name != "web1" || !slices.Equal(behind[0].Principals, []string{"host/0@R"}) {
		t.Errorf("%+v, %v", behind, err)
	}
	must(t, a.Acknowledge(ctx, "web1", map[string]keystore.Mark{"host/0@R": {Epoch: 1, Revision: 3}}))
	if behind, err := b.Behind(ctx); err != nil || len(behind) != 0 {
		t.Errorf("%+v, %v", behind, err)
	}
	change(t, b, "host/0@R", "deleted", func(e *keystore.Entry) { e.Keys, e.Deleted = nil, f.now })
	if behind, err := b.Behind(ctx); err != nil || len(behind) != 0 {
		t.Errorf("who had an entry that was deleted is to have something of it: %+v, %v", behind, err)
	}
	var out bytes.Buffer
	_, err = b.Backup(ctx, &out)
	must(t, err)
	newOnly := f.first
	newOnly.StateDir, newOnly.Signers = t.TempDir(), []ed25519.PublicKey{p.Next}
	if _, err := all.Do(ctx, newMemory(), newOnly, &out); err != nil {
		t.Errorf("a backup needs the former signer: %v", err)
	}
	refused(a.SwitchSigner(ctx, "test", false, quiet), "there is no next signer")
}

// Wherever it is killed, with the last commit made or not, it is called again, by any instance.
func TestSwitchSignerKilled(t *testing.T) {
	for n := 1; ; n++ {
		finished := false
		for _, also := range []bool{false, true} {
			m := newMemory()
			f := newFleet(t, m)
			a := open(t, m, f.first)
			b, bOptions := f.join(t, a, "b")
			fill(t, a, 2)
			must(t, a.NewSigner(t.Context(), "test"))
			p, err := a.Signers()
			must(t, err)
			a = restarted(t, m, a, &f.first, f.signer, p.Next)
			b = restarted(t, m, b, &bOptions, f.signer, p.Next)
			err = killedAt(t, m, n, also, unsaid, func(ctx context.Context) error { return a.SwitchSigner(ctx, "test", false, quiet) })
			if finished = err == nil; finished {
				continue
			}
			if !errors.Is(err, errKilled) {
				t.Fatalf("at commit %d: %v", n, err)
			}
			check(t, b, 2)
			if err := b.SwitchSigner(t.Context(), "test", false, quiet); err != nil {
				// All was done but to be told so.
				if now, _ := b.Signers(); now.Next != nil || now.Former != nil {
					t.Errorf("at commit %d: %v", n, err)
				}
			}
			if now, err := b.Signers(); err != nil || !bytes.Equal(now.Current, p.Next) || now.Former != nil {
				t.Errorf("at commit %d: %+v, %v", n, now, err)
			}
			for _, s := range []*keystore.Store{a, b} {
				change(t, s, "host/0@R", "", nothing)
				for _, name := range []string{"host/0@R", "host/1@R"} {
					e, err := s.Entry(t.Context(), name)
					must(t, err)
					if e.Revision < 2 {
						t.Errorf("at commit %d: %s was not signed anew", n, name)
					}
				}
			}
		}
		if finished {
			if n < 5 { // two keyrings, two entries
				t.Errorf("%d commits", n-1)
			}
			return
		}
	}
}

// What a member had that is revoked is of no use after a change of the signer and of the master key: a
// keyring that it plants, a delivery that it makes, records that it kept.
func TestRevokedMemberSignsNothing(t *testing.T) {
	m := newMemory()
	f := newFleet(t, m)
	a, ctx := open(t, m, f.first), t.Context()
	thief, thiefs := f.join(t, a, "thief")
	fill(t, a, 1)
	change(t, a, "host/0@R", "", func(e *keystore.Entry) { e.Policy.Hosts = []string{"web1"} })
	must(t, a.NewSigner(ctx, "test")) // whose key the thief has as well
	record, err := m.Get(ctx, "keyring")
	must(t, err)
	stolen, err := thiefs.Identity.Open(record.Value[53 : len(record.Value)-64])
	must(t, err)
	must(t, thief.Close())

	// As docs/keystore.md says.
	must(t, a.Revoke(ctx, "thief", "test"))
	if p, err := a.Signers(); err != nil || p.Next != nil {
		t.Fatalf("it knows the next signer: %+v, %v", p, err)
	}
	must(t, a.NewSigner(ctx, "test"))
	p, err := a.Signers()
	must(t, err)
	a = restarted(t, m, a, &f.first, f.signer, p.Next)
	must(t, a.SwitchSigner(ctx, "test", false, quiet))
	must(t, a.RotateMaster(ctx, "test", false, quiet))
	a = restarted(t, m, a, &f.first, p.Next)

	var k map[string]any
	must(t, json.Unmarshal(stolen, &k))
	var seeds struct{ Signer, Next []byte }
	must(t, json.Unmarshal(stolen, &seeds))
	recipient, err := age.ParseX25519Recipient(thiefs.Identity.Recipient())
	must(t, err)
	own, err := age.ParseX25519Recipient(f.first.Identity.Recipient())
	must(t, err)
	for name, seed := range map[string][]byte{"the former signer": seeds.Signer, "the next one that was discarded": seeds.Next} {
		key := ed25519.NewKeyFromSeed(seed)
		planted := append(binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64([]byte("GSKR\x01"), 1), 1000), key.Public().(ed25519.PublicKey)...)
		var sealed bytes.Buffer
		w, err := age.Encrypt(&sealed, recipient, own)
		must(t, err)
		must(t, json.NewEncoder(w).Encode(k))
		must(t, w.Close())
		planted = append(planted, sealed.Bytes()...)
		planted = append(planted, ed25519.Sign(key, append([]byte("gssproxyd key store: keyring 1\x00"), planted...))...)
		now, err := m.Get(ctx, "keyring")
		must(t, err)
		// It is one that is taken where the former signer is still believed.
		believer := f.options(t, "believer")
		believer.Identity, believer.Signers = thiefs.Identity, []ed25519.PublicKey{key.Public().(ed25519.PublicKey)}
		other := newMemory()
		commit(t, other, put("keyring", string(planted), 0))
		must(t, open(t, other, believer).Close())

		commit(t, m, put("keyring", string(planted), now.Version))
		if _, err := a.Change(ctx, nil, "host/0@R", "", "", func(*keystore.Entry) error { return nil }); !errors.Is(err, reason.StoreKeyringUnsigned) {
			t.Errorf("%s: %v", name, err)
		}
		fresh := f.first
		fresh.StateDir = t.TempDir()
		if _, err := keystore.Open(ctx, m, fresh); !errors.Is(err, reason.StoreKeyringUnsigned) {
			t.Errorf("%s: %v", name, err)
		}
		planting, err := m.Get(ctx, "keyring")
		must(t, err)
		commit(t, m, put("keyring", string(now.Value), planting.Version))

		d, err := delivery.Sign(&delivery.Delivery{Host: "web1", Principal: "host/0@R", Epoch: 1, Revision: 1000}, key)
		must(t, err)
		if _, err := delivery.Verify(d, "web1", []ed25519.PublicKey{p.Next}); !errors.Is(err, delivery.ErrSignature) {
			t.Errorf("%s: %v", name, err)
		}
	}
	now, err := m.Get(ctx, "keyring")
	must(t, err)
	if _, err := thiefs.Identity.Open(now.Value[53 : len(now.Value)-64]); err == nil {
		t.Error("it opens the keyring")
	}
	if ids := masters(t, m); !bytes.Equal(ids, []byte{2}) {
		t.Errorf("records are sealed with %v, of which it has 1", ids)
	}
	change(t, a, "host/0@R", "", nothing)
}

// Recipients of age's two kinds cannot be in one file, so one of the other kind is refused in words,
// wherever one is given.
func TestHybridRecipient(t *testing.T) {
	f := newFleet(t, newMemory())
	s, ctx := open(t, f.b, f.first), t.Context()
	id, err := age.GenerateHybridIdentity()
	must(t, err)
	hybrid := id.Recipient().String()
	const want = "is a hybrid post-quantum recipient of age, and all others here are of X25519"
	_, add := s.AddHost(ctx, "web1", hybrid, "")
	empty := newMemory()
	_, create := keystore.Create(ctx, empty, f.options(t, "x"), []string{hybrid})
	for name, err := range map[string]error{"grant": s.Grant(ctx, "b", hybrid, ""), "recovery": s.Grant(ctx, keystore.Recovery, hybrid, ""), "host": add, "create": create} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if k, err := s.Keyring(); err != nil || len(k.Members) != 2 || len(empty.records) > 0 {
		t.Errorf("%+v, %v", k, err)
	}
}

// With Intend nothing is stored that cannot be said before; what was said is done or not, and then said.
func TestIntend(t *testing.T) {
	f := newFleet(t, newMemory())
	full := errors.New("no space left on device")
	var fails error
	var before []string
	f.first.Intend = func(_ context.Context, e *audit.Event) error {
		if e.Kind != audit.ChangeBegun {
			t.Errorf("%s", e.Kind)
		}
		before = append(before, e.Principal+"|"+e.Text)
		return fails
	}
	s, ctx := open(t, f.b, f.first), t.Context()
	change(t, s, "a@R", "", nothing)
	if want := "a@R|entry-changed: revision 1 by uid 0: "; len(before) != 1 || !strings.HasPrefix(before[0], want) {
		t.Errorf("%q", before)
	}
	f.audited("")
	at := f.b.(*memory).at
	fails = full
	committed := at()
	_, add := s.AddHost(ctx, "web1", newIdentity(t).Recipient(), "")
	_, edit := s.Change(ctx, nil, "a@R", "", "", func(*keystore.Entry) error { return nil })
	empty := newMemory()
	other := f.options(t, "x")
	other.Intend = f.first.Intend
	_, create := keystore.Create(ctx, empty, other, nil)
	for name, err := range map[string]error{
		"host": add, "change": edit, "create": create, "grant": s.Grant(ctx, "b", newIdentity(t).Recipient(), ""), "signer": s.NewSigner(ctx, ""),
		"master": s.RotateMaster(ctx, "", false, quiet),
	} {
		if !errors.Is(err, reason.AuditFailed) || !strings.Contains(err.Error(), full.Error()) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if at() != committed || len(empty.records) > 0 {
		t.Errorf("%d commits, %d records", at()-committed, len(empty.records))
	}
	for _, kind := range []audit.Kind{audit.EntryChanged, audit.HostChanged, audit.KeyringChanged} {
		if got := f.audited(kind); len(got) > 0 {
			t.Errorf("%q", got)
		}
	}
}

// What is stored while the marks cannot be written is audited as stored, and the error says so.
func TestMarksFull(t *testing.T) {
	f := newFleet(t, newMemory())
	if err := unix.Mount("marks", f.first.StateDir, "tmpfs", 0, "mode=0700,size=16k"); err != nil {
		lab.Lacking(t, "mount(2)", err)
	}
	defer unix.Unmount(f.first.StateDir, unix.MNT_DETACH)
	s := open(t, f.b, f.first)
	change(t, s, "a@R", "", nothing)
	filler, err := os.Create(filepath.Join(f.first.StateDir, "filler"))
	must(t, err)
	for size := 4096; size > 0; {
		if _, err := filler.Write(make([]byte, size)); err != nil {
			size /= 2
		}
	}
	must(t, filler.Close())
	f.audited("")
	stored := 0
	for err = nil; err == nil && stored < 1000; stored++ { // the last page has room
		_, err = s.Change(t.Context(), nil, "a@R", "test", "a test", func(*keystore.Entry) error { return nil })
	}
	if err == nil || !strings.Contains(err.Error(), "it was stored, but the marks of what was seen could not be written") {
		t.Errorf("%v", err)
	}
	if got := f.audited(audit.EntryChanged); len(got) != stored || !strings.Contains(got[stored-1], fmt.Sprintf("revision %d by test: a test", stored+1)) {
		t.Errorf("%d changes, audited are %d", stored, len(got))
	}
	must(t, os.Remove(filler.Name()))
	change(t, s, "a@R", "", nothing)
	must(t, s.Close())
}
