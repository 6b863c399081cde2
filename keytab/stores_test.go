package keytab

import (
	"bytes"
	"errors"
	"strings"
	"testing"

	"gssproxyd/mech/krb5/etype"
)

// fakeStores have what tests put there.
type fakeStores struct {
	put     map[string]func([]Entry, error)
	entries []Entry
	stopped int
}

func (f *fakeStores) Follow(store, principal string, put func([]Entry, error)) func() {
	f.put[store+" "+principal] = put
	put(f.entries, nil)
	return func() { f.stopped++ }
}

// The keytab of an entry has the keys that are put there, at once and without a file; they are told of
// as those of files are.
func TestEntryOfStore(t *testing.T) {
	const name = "STORE:main:HTTP/www:8080@A"
	of := func(kvno uint32) []Entry {
		return []Entry{{Principal: "HTTP/www:8080@A", KVNO: kvno, Enctype: etype.AES256SHA1, Key: bytes.Repeat([]byte{1}, 32)}}
	}
	f := &fakeStores{put: make(map[string]func([]Entry, error)), entries: of(1)}
	var changes []Change
	s := &Set{Stores: f, Changed: func(former, ring *Ring) { changes = append(changes, ring.Changes(former)...) }}
	k, err := s.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	again, err := s.OpenOptional(name)
	if err != nil || again != k {
		t.Fatal("it is opened twice", err)
	}
	if k.Ring().Name() != name || k.Ring().Len() != 1 || k.Err() != nil {
		t.Errorf("%v, %v", k.Ring().Len(), k.Err())
	}
	first := k.Ring()
	if r, newer := k.Refresh(t.Context(), first); newer || r != first {
		t.Error("there is another ring")
	}
	f.put["main HTTP/www:8080@A"](of(2), nil)
	if r, newer := k.Refresh(t.Context(), first); !newer || r.Lookup([]byte("HTTP/www:8080@A"), 2, etype.AES256SHA1) == nil {
		t.Error("the ring is the former one")
	}
	f.put["main HTTP/www:8080@A"](nil, errors.New("withdrawn"))
	if k.Ring().Len() != 0 || k.Err() == nil || k.Err().Error() != "withdrawn" {
		t.Errorf("%d keys, %v", k.Ring().Len(), k.Err())
	}
	f.put["main HTTP/www:8080@A"](of(3), nil)
	again.Close()
	if f.stopped != 0 {
		t.Error("it is not followed any more")
	}
	k.Close()
	if f.stopped != 1 || len(s.entries) != 0 {
		t.Error("it is followed still")
	}
	var kinds []string
	for _, c := range changes {
		kinds = append(kinds, strings.Repeat("+", len(c.Loaded))+strings.Repeat("-", len(c.Pruned)))
	}
	if got := strings.Join(kinds, " "); got != "+ - + - + -" {
		t.Errorf("changes: %s", got)
	}
}

// Who knows keytabs by files says in words that such a one has none.
func TestEntryHasNoFile(t *testing.T) {
	const name = "STORE:main:a@A"
	var s Set
	if _, err := s.Open(name); err == nil || !strings.Contains(err.Error(), "there are no key stores here") {
		t.Error(err)
	}
	for name, good := range map[string]bool{name: true, "STORE:main": false, "STORE::a@A": false, "STORE:main:": false} {
		if err := CheckName(name); (err == nil) != good {
			t.Errorf("%s: %v", name, err)
		}
	}
	var r Reader
	if err := r.CheckFile(name); err != nil {
		t.Error(err)
	}
	if _, err := r.Principals(name); !errors.Is(err, errInStore) {
		t.Error(err)
	}
	if reports := Lint([]string{name}, LintOptions{}); len(reports) != 1 || len(reports[0].Findings) != 1 || !strings.Contains(reports[0].Findings[0].Text, "in a key store") {
		t.Errorf("%+v", reports)
	}
}
