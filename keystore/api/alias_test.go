package api

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"gssproxyd/keystore"
	"gssproxyd/mech/reason"
)

const account = "WEB$@EXAMPLE.COM"

// A host asks for an account by one of its names, and acknowledges it by that. It is told when the name
// is somebody else's, with a higher mark each time.
func TestAliasDelivered(t *testing.T) {
	w := newWorld(t, nil)
	w.enrol(web1, web2)
	w.do("import", &ImportRequest{Principal: account, Aliases: []string{www, mail}, Write: true, Hosts: []string{"web*.example.com"}, Keys: []KeyGiven{{KVNO: 3, Enctype: 18, Key: keyBytes}}}, nil)
	c := w.client(w.ca.issue(nil, web1))
	have := Have{Principal: www}
	asks := func(principal, withdrawn string) {
		t.Helper()
		got := w.deliveries(<-w.watch(c, 60, have), web1)
		if len(got) != 1 || got[0].Principal != principal || got[0].Withdrawn != withdrawn || (withdrawn == "") != slices.Contains(got[0].Aliases, www) {
			t.Fatalf("%+v", got)
		}
		now := keystore.Mark{Epoch: got[0].Epoch, Revision: got[0].Revision}
		if now.Compare(have.Mark) <= 0 {
			t.Errorf("%v after %v", now, have.Mark)
		}
		have.Mark = now
	}
	asks(account, "")
	if marks, err := w.store.Acknowledged(t.Context(), account); err != nil || len(marks) != 1 {
		t.Errorf("that a host has use for the account is not known: %v, %v", marks, err)
	}
	if status, r, err := w.post(c, "/v1/acknowledge", have, nil); status != 204 || err != nil {
		t.Fatal(status, r, err)
	}
	var shown Shown
	if w.do("show", &Named{account}, &shown); shown.Acknowledged[web1] != have.Mark || !slices.Equal(shown.Aliases, []string{www, mail}) {
		t.Errorf("%+v", shown)
	}

	waits := w.watch(c, 60, have)
	w.watching(www, 1)
	w.do("disable", &DisableRequest{account, "it was stolen"}, nil)
	got := w.deliveries(<-waits, web1)
	if len(got) != 1 || got[0].Principal != www || got[0].Aliases != nil || got[0].Withdrawn != string(reason.StoreDisabled) {
		t.Errorf("a withdrawal has other names than were asked for: %+v", got)
	}
	w.do("enable", &Named{account}, nil)
	asks(account, "")

	// The name goes elsewhere.
	waits = w.watch(c, 60, have)
	w.watching(www, 1)
	w.do("alias", &AliasRequest{Principal: account, Drop: []string{www}}, nil)
	if got := w.deliveries(<-waits, web1); len(got) != 1 || got[0].Principal != www || got[0].Withdrawn == "" {
		t.Errorf("%+v", got)
	}
	w.give("DC$@EXAMPLE.COM", web1)
	waits = w.watch(c, 60, Have{Principal: www, Mark: keystore.Mark{Epoch: have.Epoch, Revision: have.Revision + 1}})
	w.watching(www, 1)
	w.do("alias", &AliasRequest{Principal: "DC$@EXAMPLE.COM", Add: []string{www}}, nil)
	if got := w.deliveries(<-waits, web1); len(got) != 1 || got[0].Principal != "DC$@EXAMPLE.COM" {
		t.Errorf("%+v", got)
	}
	asks("DC$@EXAMPLE.COM", "")
}

// What a host says of an entry by an alias is of the entry: which previous keys it uses, of two names the
// one that it has used last; and what it has in force, also if this instance was not told of that yet.
func TestAliasSaid(t *testing.T) {
	w := newWorld(t, nil)
	w.enrol(web1)
	w.do("import", &ImportRequest{Principal: account, Aliases: []string{www, mail}, Write: true, Hosts: []string{web1}, Keys: []KeyGiven{{KVNO: 3, Enctype: 18, Key: keyBytes}}}, nil)
	c := w.client(w.ca.issue(nil, web1))
	at := time.Now().Add(-10 * time.Hour).UTC().Truncate(time.Second)
	uses := []Have{{Principal: mail, PreviousKVNO: 1, PreviousUsed: at.Add(-time.Hour)}, {Principal: www, PreviousKVNO: 2, PreviousUsed: at}, {Principal: account, PreviousKVNO: 1, PreviousUsed: at.Add(-time.Minute)}}
	if status, r, err := w.post(c, "/v1/watch", Watch{Have: uses}, nil); status != 200 {
		t.Fatal(status, r, err)
	}
	if got, err := w.store.Uses(t.Context(), account); err != nil || len(got) != 1 || got[0] != (keystore.Use{Host: web1, KVNO: 2, At: at}) {
		t.Errorf("%+v, %v", got, err)
	}

	x := w.server.index
	x.mu.Lock()
	k := x.entries[account]
	now := k.mark
	k.mark.Revision--
	x.entries[account] = k
	x.mu.Unlock()
	if status, r, err := w.post(c, "/v1/acknowledge", Have{Principal: www, Mark: now}, nil); status != 204 || err != nil {
		t.Error(status, r, err)
	}
	if marks, err := w.store.Acknowledged(t.Context(), account); err != nil || marks[web1] != now {
		t.Errorf("%v, %v", marks, err)
	}
}

func TestAliasRequests(t *testing.T) {
	w := newWorld(t, nil, Admin{Name: "web", Certificate: web1, Principals: []string{"WEB$@EXAMPLE.COM", www}, Verbs: []Verb{Import, Policy}})
	w.give(account)
	w.give(mail)
	for _, test := range []struct {
		name string
		args any
		want reason.ID
		text string
	}{
		{"alias", &AliasRequest{Principal: account}, reason.StoreRequest, "add or drop"},
		{"alias", &AliasRequest{Principal: account, Add: []string{"www"}}, reason.StoreRequest, "with the realm"},
		{"alias", &AliasRequest{Principal: account, Add: []string{"HTTP/a@B"}}, reason.StoreRequest, "same account"},
		{"alias", &AliasRequest{Principal: account, Drop: []string{www}}, reason.StoreRequest, "is no alias"},
		{"alias", &AliasRequest{Principal: account, Add: []string{mail}}, reason.StoreConflict, "entry of its own"},
		{"alias", &AliasRequest{Principal: "NONE$@EXAMPLE.COM", Add: []string{www}}, reason.StoreNoEntry, ""},
		{"alias", &AliasRequest{Principal: account, Add: []string{www}}, "", ""},
		{"alias", &AliasRequest{Principal: mail, Add: []string{www}}, reason.StoreConflict, "alias of " + account},
		{"show", &Named{www}, reason.StoreConflict, "is an alias of " + account + ": name that"},
		{"rotate", &RotateRequest{Principal: www}, reason.StoreUnavailable, ""},
	} {
		err := w.root.Call(t.Context(), test.name, test.args, new(json.RawMessage), func(string) {})
		e, _ := errors.AsType[*Error](err)
		if test.want == "" && err != nil || test.want != "" && (e == nil || e.Reason != test.want || !strings.Contains(e.Text, test.text)) {
			t.Errorf("%s %+v: %v", test.name, test.args, err)
		}
	}

	// Who gives a name away, or to an account, has to have the right to both.
	c := w.client(w.ca.issue(nil, web1))
	for _, test := range []struct {
		name string
		args any
		want int
	}{
		{"alias", &AliasRequest{Principal: account, Add: []string{"HTTP/other@EXAMPLE.COM"}}, 403},
		{"alias", &AliasRequest{Principal: account, Drop: []string{www}}, 200},
		{"import", &ImportRequest{Principal: account, Aliases: []string{"HTTP/other@EXAMPLE.COM"}, Keys: []KeyGiven{{KVNO: 3, Enctype: 18, Key: keyBytes}}}, 403},
		{"import", &ImportRequest{Principal: account, Aliases: []string{www}, Keys: []KeyGiven{{KVNO: 3, Enctype: 18, Key: keyBytes}}}, 200},
	} {
		if status, r, err := w.post(c, "/v1/admin/"+test.name, test.args, nil); status != test.want || err != nil {
			t.Errorf("%+v: %d %v %v", test.args, status, r, err)
		}
	}
}

// What an import would be refused for when it writes is said before: that an entry has too many names.
func TestImportTooManyAliases(t *testing.T) {
	w := newWorld(t, nil)
	ask := &ImportRequest{Principal: account, Write: true, Keys: []KeyGiven{{KVNO: 3, Enctype: 18, Key: keyBytes}}}
	for i := range 100 {
		ask.Aliases = append(ask.Aliases, fmt.Sprintf("HTTP/%d@EXAMPLE.COM", i))
	}
	w.do("import", ask, nil)
	ask.Write, ask.Aliases = false, append(ask.Aliases, www)
	var res Imported
	if w.do("import", ask, &res); res.Outcome != KeyConflict || !strings.Contains(res.Text, "101 aliases") {
		t.Errorf("%+v", res)
	}
}

// Names come in with the keys, or none of both.
func TestImportAliases(t *testing.T) {
	w := newWorld(t, nil)
	w.give(mail)
	for _, step := range []struct {
		name  string
		names []string
		want  Outcome
		lacks []string
	}{
		{"somebody else's", []string{www, mail}, KeyConflict, []string{www, mail}},
		{"new", []string{www}, KeyNew, []string{www}},
		{"one more", []string{www, "HTTP/www@EXAMPLE.COM"}, KeyNames, []string{"HTTP/www@EXAMPLE.COM"}},
		{"none", nil, KeySame, []string{}},
	} {
		for _, write := range []bool{false, true, true} {
			var res Imported
			err := w.root.Call(t.Context(), "import", &ImportRequest{Principal: account, Keys: []KeyGiven{{KVNO: 3, Enctype: 18, Key: keyBytes}}, Aliases: step.names, Write: write}, &res, nil)
			if e, _ := errors.AsType[*Error](err); step.want == KeyConflict && write {
				if e == nil || e.Reason != reason.StoreConflict || !strings.Contains(e.Text, mail+" is an entry of its own") {
					t.Errorf("%s: %v", step.name, err)
				}
				continue
			}
			if err != nil || res.Outcome != step.want || !slices.Equal(res.Aliases, step.lacks) || step.want == KeyConflict && !strings.Contains(res.Text, "entry of its own") {
				t.Errorf("%s, write %t: %+v, %v", step.name, write, res, err)
			}
			if write {
				step.want, step.lacks = KeySame, []string{}
			}
		}
	}
	var shown Shown
	if w.do("show", &Named{account}, &shown); !slices.Equal(shown.Aliases, []string{www, "HTTP/www@EXAMPLE.COM"}) {
		t.Errorf("%q", shown.Aliases)
	}
}
