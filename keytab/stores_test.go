package keytab

import (
	"bytes"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"gssproxyd/mech/krb5/etype"
)

// fakeStores have what tests put there.
type fakeStores struct {
	put     map[string]func([]Entry, error)
	entries []Entry
	stopped int
}

func (f *fakeStores) Follow(store, principal string, put func([]Entry, error), _ func() []Previous) func() {
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

// What a key store keeps for tickets from before is told of with its use, which does not begin anew with
// other keys; soon before it is taken away that is said of one that is in use.
func TestPrevious(t *testing.T) {
	const principal, day = "HTTP/www@A", 24 * time.Hour
	now := time.Now().Truncate(time.Second)
	key := func(kvno uint32, et etype.ID) Entry {
		return Entry{Principal: principal, KVNO: kvno, Enctype: et, Key: bytes.Repeat([]byte{byte(kvno)}, et.KeySize()), Timestamp: uint32(now.Add(-7 * day).Unix())}
	}
	previous := func(kvno uint32, et etype.ID, until time.Time) Entry {
		e := key(kvno, et)
		e.Previous, e.Until = true, until.Unix()
		return e
	}
	f := &fakeStores{put: make(map[string]func([]Entry, error)), entries: []Entry{
		key(3, etype.AES256SHA1), previous(2, etype.AES256SHA1, now.Add(time.Hour)), previous(2, etype.AES128SHA1, now.Add(time.Hour)), previous(1, etype.AES256SHA1, now.Add(3*day)),
	}}
	s := &Set{Stores: f}
	k, err := s.Open("STORE:main:" + principal)
	if err != nil {
		t.Fatal(err)
	}
	defer k.Close()
	whys := func() (list []string) {
		for _, key := range k.State(now, 0).Keys {
			list = append(list, string(key.Prune)+" "+key.Why)
		}
		return list
	}
	until, later := now.Add(time.Hour).UTC().Format(time.RFC3339), now.Add(3*day).UTC().Format(time.RFC3339)
	kept := "no the store keeps it until "
	if got := whys(); !slices.Equal(got, []string{"newest ", kept + until, kept + until, kept + later}) {
		t.Errorf("%q", got)
	}
	for _, kvno := range []uint32{1, 2, 3} {
		k.Ring().Lookup([]byte(principal), kvno, etype.AES256SHA1).Use.Opened(now.Unix(), now.Unix(), now.Unix()+60, true)
	}
	f.put["main "+principal](f.entries, nil)
	want := []Previous{{2, now.Add(-7 * day), now.Add(time.Hour), now}, {1, now.Add(-7 * day), now.Add(3 * day), now}}
	if got := k.previous(); !slices.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
	if got := whys(); got[1] != "no STILL IN USE, and the store takes it away at "+until || got[3] != kept+later {
		t.Errorf("%q", got)
	}
}

// A previous key that is in use is said to end in the last quarter of the time that it is kept, and in the
// last day; if it was used within as much time.
func TestEnding(t *testing.T) {
	now, h := time.Unix(1750000000, 0), time.Hour
	for _, test := range []struct {
		kept, left, unused time.Duration
		soon               bool
	}{
		{10 * h, 3 * h, 0, false}, {10 * h, 2 * h, 0, true}, {10 * h, 2 * h, 3 * h, false}, {10 * h, 2 * h, 2 * h, true}, {10 * h, -h, 0, true},
		{240 * h, 25 * h, 0, false}, {240 * h, 23 * h, 0, true}, {240 * h, 23 * h, 23 * h, true}, {240 * h, 23 * h, 25 * h, false},
	} {
		p := Previous{Since: now.Add(test.left - test.kept), Until: now.Add(test.left), Used: now.Add(-test.unused)}
		if at, soon := p.Ending(now); soon != test.soon || !at.Equal(p.Until) {
			t.Errorf("%+v: %v, %v", test, at, soon)
		}
	}
	for _, p := range []Previous{{Used: now}, {Since: now.Add(-h), Until: now.Add(time.Minute)}} {
		if _, soon := p.Ending(now); soon {
			t.Errorf("%+v", p)
		}
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
