package keystore_test

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"gssproxyd/audit"
	"gssproxyd/keystore"
	"gssproxyd/mech/reason"
)

const (
	web1    = "WEB1$@AD.EXAMPLE"
	web2    = "WEB2$@AD.EXAMPLE"
	service = "HTTP/www.ad.example@AD.EXAMPLE"
)

// A name belongs to one entry at a time, and its marks never go back, whosever it is.
func TestAliases(t *testing.T) {
	f := newFleet(t, newMemory())
	s, ctx := open(t, f.b, f.first), t.Context()
	last := keystore.Mark{}
	later := func(e *keystore.Entry) *keystore.Entry {
		t.Helper()
		if e.Mark.Compare(last) <= 0 {
			t.Errorf("%s is at %v, and the name was at %v", e.Principal, e.Mark, last)
		}
		last = e.Mark
		return e
	}
	give := func(names ...string) func(e *keystore.Entry) {
		return func(e *keystore.Entry) { e.Aliases = names }
	}
	refused := func(principal string, words string, names ...string) {
		t.Helper()
		claims := s.Claims(ctx, principal, nil, names)
		_, err := s.Change(ctx, nil, principal, "", "", func(e *keystore.Entry) error { e.Aliases = append(e.Aliases, names...); return nil })
		var argument *keystore.Argument
		if !errors.Is(err, reason.StoreConflict) && !errors.As(err, &argument) || !strings.Contains(err.Error(), words) || claims == nil || claims.Error() != err.Error() {
			t.Errorf("%s, %q: %v, %v", principal, names, err, claims)
		}
	}

	// As an entry of its own.
	for range 7 {
		later(change(t, s, service, "", func(e *keystore.Entry) { e.Keys = []keystore.Key{{KVNO: 1, Enctype: 18, Secret: slices.Clone(key32)}} }))
	}
	refused(web1, "is an entry of its own: delete it first", service)
	later(change(t, s, service, "deleted", func(e *keystore.Entry) { e.Keys, e.Deleted = nil, f.now }))
	f.audited(audit.EntryChanged)

	// As an alias.
	e := later(change(t, s, web1, "import", give(service, "host/www@AD.EXAMPLE", service)))
	if !slices.Equal(e.Aliases, []string{service, "host/www@AD.EXAMPLE"}) {
		t.Errorf("%q", e.Aliases)
	}
	if got := f.audited(audit.EntryChanged); len(got) != 1 || got[0] != web1+"||revision 9 by uid 0: import; alias "+service+"; alias host/www@AD.EXAMPLE" {
		t.Errorf("%q", got)
	}
	if _, err := s.Entry(ctx, service); !errors.Is(err, reason.StoreConflict) || !strings.Contains(err.Error(), service+" is an alias of "+web1) {
		t.Errorf("%v", err)
	}
	if _, err := s.Change(ctx, nil, service, "", "", func(*keystore.Entry) error { t.Error("it is changed"); return nil }); !errors.Is(err, reason.StoreConflict) {
		t.Errorf("%v", err)
	}
	refused(web2, "is an alias of "+web1+" already", service)
	refused(web2, "cannot be an alias", web2)
	refused(web2, "cannot be an alias", "HTTP/www.ad.example@EXAMPLE")
	refused(web2, "is an alias of "+web1, "host/web2@AD.EXAMPLE", "host/www@AD.EXAMPLE") // and the others are free still
	var many []string
	for i := range 101 {
		many = append(many, fmt.Sprintf("HTTP/%d@AD.EXAMPLE", i))
	}
	refused(web2, "101 aliases; at most 100", many...)
	change(t, s, web2, "", give(many[:100]...))
	change(t, s, web2, "", give("host/web2@AD.EXAMPLE"))
	list := func(s *keystore.Store) (names []string) {
		for e, err := range s.Entries(ctx) {
			must(t, err)
			if e.Deleted.IsZero() {
				names = append(names, e.Principal)
			}
		}
		slices.Sort(names)
		return names
	}
	if got := list(s); !slices.Equal(got, []string{web1, web2}) {
		t.Errorf("%q", got)
	}

	// It is what it was in a backup, and with a new master key.
	must(t, s.RotateMaster(ctx, "", false, func(string) {}))
	var backup bytes.Buffer
	_, err := s.Backup(ctx, &backup)
	must(t, err)
	must(t, s.Close())
	fresh := newMemory()
	_, err = all.Do(ctx, fresh, f.first, &backup)
	must(t, err)
	s = open(t, fresh, f.first)
	if got := list(s); !slices.Equal(got, []string{web1, web2}) {
		t.Errorf("%q", got)
	}
	refused(web2, "is an alias of "+web1+" already", service)

	// It goes on to the other account, and is an entry of its own again.
	later(change(t, s, web1, "", give()))
	gone, err := s.Entry(ctx, service)
	must(t, err)
	if gone.Deleted.IsZero() || gone.Mark != last || len(gone.History) == 0 || !strings.Contains(gone.History[len(gone.History)-1].What, "no alias "+service) {
		t.Errorf("%+v", gone)
	}
	for range 3 {
		later(change(t, s, web2, "", give(service)))
	}
	later(change(t, s, web2, "", give()))
	later(change(t, s, service, "", func(e *keystore.Entry) { e.Deleted = time.Time{} }))
}

// An entry that was deleted keeps its names: it is no alias before it has none, which could not be taken
// from it any more.
func TestAliasOfDeleted(t *testing.T) {
	f := newFleet(t, newMemory())
	s, ctx := open(t, f.b, f.first), t.Context()
	claim := func() error {
		_, err := s.Change(ctx, nil, web2, "", "", func(e *keystore.Entry) error { e.Aliases = []string{web1}; return nil })
		return err
	}
	change(t, s, web1, "", func(e *keystore.Entry) { e.Aliases = []string{service} })
	change(t, s, web1, "", func(e *keystore.Entry) { e.Deleted = f.now })
	if err := claim(); !errors.Is(err, reason.StoreConflict) || !strings.Contains(err.Error(), web1+" was deleted and has aliases still, "+service) {
		t.Errorf("%v", err)
	}
	change(t, s, web1, "", func(e *keystore.Entry) { e.Aliases = nil })
	must(t, claim())
	change(t, s, web2, "", func(e *keystore.Entry) { e.Aliases = []string{web1, service} })
}

// However many names come and go, a commit has no more records than etcd takes, and that of a name says
// nothing of the others.
func TestManyAliases(t *testing.T) {
	f := newFleet(t, newMemory())
	s, ctx := open(t, f.b, f.first), t.Context()
	names := func(from int) func(*keystore.Entry) error {
		return func(e *keystore.Entry) error {
			e.Aliases = nil
			for i := range 100 {
				e.Aliases = append(e.Aliases, fmt.Sprintf("HTTP/%d@AD.EXAMPLE", from+i))
			}
			return nil
		}
	}
	_, err := s.Change(ctx, nil, web1, "", "", names(0))
	must(t, err)
	var argument *keystore.Argument
	if _, err := s.Change(ctx, nil, web1, "", "", names(100)); !errors.As(err, &argument) || !strings.Contains(err.Error(), "200 names would") {
		t.Errorf("%v", err)
	}
	_, err = s.Change(ctx, nil, web1, "", "", func(e *keystore.Entry) error { e.Aliases = nil; return nil })
	must(t, err)
	gone, err := s.Entry(ctx, "HTTP/7@AD.EXAMPLE")
	must(t, err)
	for i, what := range []string{"; alias HTTP/7@AD.EXAMPLE", "; no alias HTTP/7@AD.EXAMPLE"} {
		if got := gone.History[i].What; got != web1+": "+what {
			t.Errorf("%q", got)
		}
	}
}

// Names that are long, and come and go again and again, leave room in the record for what comes then: of
// the history the oldest lines go.
func TestLongAliases(t *testing.T) {
	f := newFleet(t, newMemory())
	s, ctx := open(t, f.b, f.first), t.Context()
	change(t, s, web1, "the first", nothing)
	for i := range 25 {
		_, err := s.Change(ctx, nil, web1, "", "names", func(e *keystore.Entry) error {
			e.Aliases = nil
			for k := range 50 {
				e.Aliases = append(e.Aliases, fmt.Sprintf("%d.%d/%s@AD.EXAMPLE", i, k, strings.Repeat("x", 1000)))
			}
			return nil
		})
		if err != nil {
			t.Fatalf("change %d: %v", i, err)
		}
	}
	e := change(t, s, web1, "the last", nothing)
	last := e.History[len(e.History)-1].What
	before := e.History[len(e.History)-2].What
	if last != "the last" || !strings.HasPrefix(before, "names; alias 24.0/") || !strings.Contains(before, "; no alias 23.49/") || e.History[0].What == "the first" {
		t.Errorf("%d lines, the last are %.50q, %.50q", len(e.History), before, last)
	}
}

// Of two instances that claim a name at once, for two accounts and as an entry of its own, one gets it.
func TestAliasRace(t *testing.T) {
	f := newFleet(t, newMemory())
	a := open(t, f.b, f.first)
	b, _ := f.join(t, a, "b")
	for n := range 20 {
		name := fmt.Sprintf("HTTP/%d@AD.EXAMPLE", n)
		var got atomic.Int32
		var done sync.WaitGroup
		claim := func(s *keystore.Store, principal string, f func(e *keystore.Entry)) {
			done.Go(func() {
				_, err := s.Change(t.Context(), nil, principal, "", "", func(e *keystore.Entry) error { f(e); return nil })
				if err == nil {
					got.Add(1)
				} else if !errors.Is(err, reason.StoreConflict) {
					t.Error(err)
				}
			})
		}
		claim(a, web1, func(e *keystore.Entry) { e.Aliases = append(e.Aliases, name) })
		claim(b, web2, func(e *keystore.Entry) { e.Aliases = append(e.Aliases, name) })
		claim(b, name, func(e *keystore.Entry) { e.Keys = []keystore.Key{{KVNO: 1, Enctype: 18, Secret: slices.Clone(key32)}} })
		done.Wait()
		if got.Load() != 1 {
			t.Errorf("%s: %d have it", name, got.Load())
		}
	}
}
