package api

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"gssproxyd/audit"
	"gssproxyd/keystore"
	"gssproxyd/limits"
	"gssproxyd/mech/krb5/etype"
	"gssproxyd/mech/reason"
)

// calls has a request that is good for each procedure, about a principal if it is about one.
var calls = map[string]func(principal string) any{
	"import": func(p string) any {
		return &ImportRequest{Principal: p, Keys: []KeyGiven{{KVNO: 3, Enctype: 18, Key: keyBytes}}}
	},
	"alias":         func(p string) any { return &AliasRequest{Principal: p, Add: []string{"HTTP/alias@EXAMPLE.COM"}} },
	"policy":        func(p string) any { return &PolicyRequest{Principal: p, Hosts: &[]string{web1}} },
	"rotate":        func(p string) any { return &RotateRequest{Principal: p} },
	"disable":       func(p string) any { return &DisableRequest{p, "a test"} },
	"enable":        func(p string) any { return &Named{p} },
	"history":       func(p string) any { return &Named{p} },
	"show":          func(p string) any { return &Named{p} },
	"list":          func(string) any { return &Nothing{} },
	"host-add":      nil,
	"host-remove":   nil,
	"host-list":     func(string) any { return &Nothing{} },
	"master-grant":  nil,
	"master-revoke": nil,
	"master-rotate": func(string) any { return &ForceRequest{} },
	"master-show":   func(string) any { return &Nothing{} },
	"signer-new":    func(string) any { return &Nothing{} },
	"signer-switch": func(string) any { return &ForceRequest{} },
	"signer-show":   func(string) any { return &Nothing{} },
	"backup":        func(string) any { return &Nothing{} },
	"delete":        func(p string) any { return &Named{p} },
}

// once are the requests that are good once.
func (w *world) once(name string, n int) any {
	host := fmt.Sprintf("host%d.example.com", n)
	switch name {
	case "host-add":
		return &HostRequest{host, w.host.Recipient().String()}
	case "host-remove":
		w.enrol(host)
		return &HostNamed{host}
	case "master-grant":
		return &MemberRequest{host, w.identity(host).Recipient().String()}
	case "master-revoke":
		w.do("master-grant", &MemberRequest{host, w.identity(host).Recipient().String()}, nil)
		return &HostNamed{host}
	}
	return nil
}

// Each procedure can be called by whom a section lets, with a certificate or by uid, with the principals
// that it names, and by nobody else.
func TestRights(t *testing.T) {
	uid := uint32(4711)
	var admins []Admin
	for _, v := range Verbs {
		admins = append(admins, Admin{Name: string(v), Certificate: "may-" + string(v), Principals: []string{"HTTP/*@EXAMPLE.COM"}, Verbs: []Verb{v}})
		// all but one
		admins = append(admins, Admin{Name: "not " + string(v), Certificate: "not-" + string(v), Principals: []string{"*"}, Verbs: slices.DeleteFunc(slices.Clone(Verbs), func(o Verb) bool { return o == v })})
	}
	admins = append(admins, Admin{Name: "uid", UID: &uid, Principals: []string{www}, Verbs: []Verb{Show}})
	w := newWorld(t, func(w *world) {
		w.server.o.Rotate = func(context.Context, string, string, bool) error { return nil }
	}, admins...)
	w.give(www)
	w.give(mail)
	if len(calls) != len(procedures) {
		t.Fatalf("%d procedures, %d are called here", len(procedures), len(calls))
	}
	n := 0
	request := func(name, principal string) any {
		n++
		if r := w.once(name, n); r != nil {
			return r
		}
		return calls[name](principal)
	}
	names := slices.DeleteFunc(slices.Sorted(maps.Keys(procedures)), func(s string) bool { return s == "delete" })
	for _, name := range append(names, "delete") { // last, since it is for good
		verb := string(procedures[name].verb)
		may, not := w.client(w.ca.issue(nil, "may-"+verb)), w.client(w.ca.issue(nil, "not-"+verb))
		path := "/v1/admin/" + name
		denied := func(who string, c *http.Client, principal string) {
			t.Helper()
			if status, r, err := w.post(c, path, request(name, principal), nil); status != 403 || r.Reason != reason.StoreNotPermitted || err != nil {
				t.Errorf("%s: %s: %d %v %v", name, who, status, r, err)
			}
		}
		denied("who may do all else", not, www)
		denied("who is no administrator", w.client(w.ca.issue(nil, web1)), www)
		if procedures[name].verb != Hosts && procedures[name].verb != Master && name != "list" {
			denied("another principal", may, mail)
		}
		want := 200
		if name == "signer-switch" {
			want = 400 // there is no next signer that the instance's configuration names
		}
		if status, r, err := w.post(may, path, request(name, www), nil); status != want || err != nil {
			t.Errorf("%s: %d %v %v", name, status, r, err)
		}
	}
	var list EntriesShown
	if _, _, err := w.post(w.client(w.ca.issue(nil, "may-list")), "/v1/admin/list", &Nothing{}, &list); err != nil || len(list.Entries) != 1 || list.Entries[0].Principal != www {
		t.Errorf("a list has what its reader may not see: %+v %v", list, err)
	}
	if !w.audited(audit.StoreDenied, reason.StoreNotPermitted) {
		t.Error("no audit line")
	}

	// Over the socket it is the uid that the kernel says.
	local := func(uid uint32, name, principal string) (int, Refusal) {
		b, _ := json.Marshal(calls[name](principal))
		r := httptest.NewRequest("POST", "/v1/admin/"+name, bytes.NewReader(b))
		rec := httptest.NewRecorder()
		c := &caller{name: fmt.Sprintf("uid %d", uid), uid: &uid}
		if err := w.server.answer(rec, r, c); err != nil {
			w.server.fail(rec, r, c, err)
		}
		var refusal Refusal
		json.Unmarshal(rec.Body.Bytes(), &refusal)
		return rec.Code, refusal
	}
	for _, test := range []struct {
		uid             uint32
		name, principal string
		status          int
	}{
		{uid, "show", www, 200}, {uid, "show", mail, 403}, {uid, "history", www, 403}, {uid + 1, "show", www, 403}, {0, "show", mail, 200},
	} {
		if status, r := local(test.uid, test.name, test.principal); status != test.status {
			t.Errorf("%+v: %d %v", test, status, r)
		}
	}
	// New rights count from the next question on.
	w.server.SetAdmins(nil)
	if status, r := local(uid, "show", www); status != 403 {
		t.Error(status, r)
	}
}

func TestAdminRequests(t *testing.T) {
	w := newWorld(t, nil)
	w.give(www)
	w.enrol(web1)
	call := func(name string, args any) error {
		return w.root.Call(t.Context(), name, args, new(json.RawMessage), func(string) {})
	}
	for _, test := range []struct {
		name string
		args any
		want reason.ID
	}{
		{"nothing", &Nothing{}, reason.StoreRequest},
		{"show", map[string]string{"principle": www}, reason.StoreRequest},
		{"show", &Named{"HTTP/www.example.com"}, reason.StoreRequest},
		{"show", &Named{"a\x00b@EXAMPLE.COM"}, reason.StoreRequest},
		{"show", &Named{"none@EXAMPLE.COM"}, reason.StoreNoEntry},
		{"disable", &DisableRequest{"none@EXAMPLE.COM", "a test"}, reason.StoreNoEntry},
		{"disable", &DisableRequest{www, ""}, reason.StoreRequest},
		{"policy", &PolicyRequest{Principal: www, Interval: new(int64(-1))}, reason.StoreRequest},
		{"policy", &PolicyRequest{Principal: www, Rules: &map[string][]string{"operations": {}}}, reason.StoreRequest},
		{"host-add", &HostRequest{web1, w.host.Recipient().String()}, reason.StoreExists},
		{"host-add", &HostRequest{"Web2.example.com", w.host.Recipient().String()}, reason.StoreRequest},
		{"host-add", &HostRequest{"*.example.com", w.host.Recipient().String()}, reason.StoreRequest},
		{"host-remove", &HostNamed{web2}, reason.StoreNotEnrolled},
		{"master-grant", &MemberRequest{"", ""}, reason.StoreRequest},
		{"rotate", &RotateRequest{Principal: www}, reason.StoreUnavailable}, // there is no engine here
	} {
		err := call(test.name, test.args)
		if e, ok := errors.AsType[*Error](err); !ok || e.Reason != test.want || e.Text == "" {
			t.Errorf("%s %+v: %v", test.name, test.args, err)
		}
	}
	err := call("master-revoke", &HostNamed{"two"})
	if e, ok := errors.AsType[*Error](err); !ok || e.Status != 404 || e.Reason != reason.StoreRequest || !strings.HasSuffix(e.Text, " as two; its members are one") {
		t.Error(err)
	}
	err = call("none", &Nothing{})
	if e, ok := errors.AsType[*Error](err); !ok || e.Status != 404 {
		t.Error(err)
	}
	var h HistoryShown
	if w.do("history", &Named{www}, &h); len(h.History) != 1 || h.History[0].By != "uid 0" {
		t.Errorf("%+v", h)
	}
}

// What is brought becomes what it should, and can be brought again.
func TestImport(t *testing.T) {
	other := bytes.Repeat([]byte{8}, 32)
	key := func(kvno uint32, enctype int32, b []byte) KeyGiven {
		return KeyGiven{KVNO: kvno, Enctype: enctype, Key: b}
	}
	short := keyBytes[:16]
	w := newWorld(t, nil)
	for _, step := range []struct {
		name string
		keys []KeyGiven
		want Outcome
		kvno uint32 // that is current then
	}{
		{"new", []KeyGiven{key(3, 18, keyBytes), key(2, 18, other)}, KeyNew, 3},
		{"again", []KeyGiven{key(3, 18, keyBytes), key(2, 18, other)}, KeySame, 3},
		{"a part", []KeyGiven{key(3, 18, keyBytes)}, KeySame, 3},
		{"another type", []KeyGiven{key(3, 17, short), key(3, 18, keyBytes)}, KeyMore, 3},
		{"an older one", []KeyGiven{key(1, 18, other)}, KeyOlder, 3},
		{"another key", []KeyGiven{key(3, 18, other), key(9, 18, other)}, KeyConflict, 3},
		{"a newer one", []KeyGiven{key(4, 18, other), key(3, 18, keyBytes)}, KeyNewer, 4},
	} {
		for _, write := range []bool{false, true, true} {
			var res Imported
			err := w.root.Call(t.Context(), "import", &ImportRequest{Principal: www, Keys: step.keys, Write: write, Hosts: []string{web1}}, &res, nil)
			if e, _ := errors.AsType[*Error](err); step.want == KeyConflict && write {
				if e == nil || e.Reason != reason.StoreConflict {
					t.Errorf("%s: %v", step.name, err)
				}
				continue
			}
			if err != nil || res.Outcome != step.want || res.Written != (write && step.want != KeySame) || len(res.Keys) != len(step.keys) {
				t.Errorf("%s, write %t: %+v %v", step.name, write, res, err)
			}
			if write {
				step.want = KeySame // the next time
			}
		}
		var shown Shown
		if w.do("show", &Named{www}, &shown); shown.KVNO != step.kvno || !slices.Equal(shown.Policy.Hosts, []string{web1}) {
			t.Errorf("%s: %+v", step.name, shown)
		}
	}
	var shown Shown
	w.do("show", &Named{www}, &shown)
	for _, k := range shown.Keys {
		want := keystore.Previous
		if k.KVNO == 4 {
			want = keystore.Current
		}
		if k.State != want {
			t.Errorf("%+v", k)
		}
	}
	for name, keys := range map[string][]KeyGiven{
		"none": nil, "a short one": {key(1, 18, short)}, "an unknown type": {key(1, 99, keyBytes)}, "DES": {key(1, 3, keyBytes[:8])},
		"one twice": {key(1, 18, keyBytes), key(1, 18, other)}, "many": slices.Repeat([]KeyGiven{key(1, 18, keyBytes)}, maxKeys+1),
	} {
		err := w.root.Call(t.Context(), "import", &ImportRequest{Principal: mail, Keys: keys, Write: true}, new(Imported), nil)
		if e, ok := errors.AsType[*Error](err); !ok || e.Reason != reason.StoreRequest {
			t.Errorf("%s: %v", name, err)
		}
	}
	// What was deleted can come back.
	w.do("delete", &Named{www}, nil)
	w.give(www)
	if w.do("show", &Named{www}, &shown); shown.KVNO != 3 || len(shown.Keys) == 0 {
		t.Errorf("%+v", shown)
	}
	if s := fmt.Sprintf("%v %+v %#v", ImportRequest{Keys: []KeyGiven{key(1, 18, keyBytes)}}, key(1, 18, keyBytes), key(1, 18, keyBytes)); strings.Contains(s, "7 7") || strings.Contains(s, "0x7, 0x7") {
		t.Errorf("a key is printed: %s", s)
	}
}

// Keys of a later version that are brought while a rotation goes on end it: the KDC has them, and the
// pending ones it has not, or these are what is brought. What becomes of a request that is under way is
// waited for.
func TestImportEndsRotation(t *testing.T) {
	fill := func(b byte) []byte { return bytes.Repeat([]byte{b}, 32) }
	current, pending, other, third := fill(1), fill(2), fill(3), fill(4)
	aes128 := fill(5)[:16]
	type has struct {
		state keystore.KeyState
		kvno  uint32
		first byte // of the key
	}
	given := func(kvno uint32, b []byte) KeyGiven { return KeyGiven{KVNO: kvno, Enctype: 18, Key: b} }
	for _, test := range []struct {
		name  string
		step  keystore.Step
		given []KeyGiven
		want  Outcome
		says  string // of the rotation, or why there is a conflict
		has   []has
	}{
		{"one of the pending version", keystore.Stored, []KeyGiven{given(8, other)}, KeyNewer, "without having changed",
			[]has{{"current", 8, 3}, {"previous", 7, 1}}},
		{"likewise with the current one, acknowledged", keystore.Acknowledged, []KeyGiven{given(7, current), given(8, other)}, KeyNewer, "without having changed",
			[]has{{"current", 8, 3}, {"previous", 7, 1}}},
		{"one after the pending version", keystore.Acknowledged, []KeyGiven{given(9, other)}, KeyNewer, "without having changed",
			[]has{{"current", 9, 3}, {"previous", 8, 2}, {"previous", 8, 5}, {"previous", 7, 1}}},
		{"two, the pending one among them", keystore.Acknowledged, []KeyGiven{given(8, pending), given(9, other)}, KeyNewer, "without having changed",
			[]has{{"current", 9, 3}, {"previous", 8, 2}, {"previous", 7, 1}}},
		{"two others", keystore.Acknowledged, []KeyGiven{given(8, third), given(9, other)}, KeyNewer, "without having changed",
			[]has{{"current", 9, 3}, {"previous", 8, 4}, {"previous", 7, 1}}},
		{"the pending ones", keystore.Stored, []KeyGiven{given(8, pending)}, KeyNewer, "as kvno 8",
			[]has{{"current", 8, 2}, {"current", 8, 5}, {"previous", 7, 1}}},
		{"the pending ones, sent", keystore.Sent, []KeyGiven{given(8, pending)}, KeyNewer, "as kvno 8",
			[]has{{"current", 8, 2}, {"current", 8, 5}, {"previous", 7, 1}}},
		{"the pending ones of another version", keystore.Sent, []KeyGiven{given(11, pending)}, KeyNewer, "as kvno 11",
			[]has{{"current", 11, 2}, {"current", 11, 5}, {"previous", 7, 1}}},
		{"others, sent", keystore.Sent, []KeyGiven{given(8, other)}, KeyConflict, "not known yet what came of that", nil},
		{"an older one", keystore.Sent, []KeyGiven{given(6, other)}, KeyOlder, "", nil},
		{"the same", keystore.Stored, []KeyGiven{given(7, current)}, KeySame, "", nil},
		{"another one of the current version", keystore.Stored, []KeyGiven{given(7, other), given(8, other)}, KeyConflict, "another key of version 7", nil},
	} {
		w := newWorld(t, nil)
		since := time.Now().Add(-time.Hour).UTC().Truncate(time.Second)
		key := func(state keystore.KeyState, kvno uint32, id etype.ID, b []byte) keystore.Key {
			return keystore.Key{State: state, KVNO: kvno, Enctype: id, Secret: slices.Clone(b), Since: since}
		}
		e, err := w.store.Change(t.Context(), nil, www, "test", "rotation", func(e *keystore.Entry) error {
			e.Keys = []keystore.Key{key(keystore.Current, 7, 18, current), key(keystore.Pending, 8, 18, pending), key(keystore.Pending, 8, 17, aes128)}
			e.Rotation = &keystore.Rotation{Password: []byte("a password"), Step: test.step, Since: since, Begun: since, Keep: 48 * time.Hour}
			e.Alarm = "[key-changed-elsewhere] somebody has"
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		e.Zero()
		for _, write := range []bool{false, true} {
			var res Imported
			err := w.root.Call(t.Context(), "import", &ImportRequest{Principal: www, Keys: slices.Clone(test.given), Write: write}, &res, nil)
			if refused, _ := errors.AsType[*Error](err); write && test.want == KeyConflict {
				if refused == nil || !strings.Contains(refused.Text, test.says) {
					t.Errorf("%s: %v", test.name, err)
				}
			} else if err != nil || res.Outcome != test.want || !strings.Contains(res.Rotation+res.Text, test.says) {
				t.Errorf("%s, write %t: %+v %v", test.name, write, res, err)
			}
			e, err := w.store.Entry(t.Context(), www)
			if err != nil {
				t.Fatal(err)
			}
			if !write || test.has == nil {
				if e.Rotation == nil {
					t.Errorf("%s, write %t: it has ended the rotation", test.name, write)
				}
				continue
			}
			var got []has
			for _, k := range e.Keys {
				got = append(got, has{k.State, k.KVNO, k.Secret[0]})
				if keep := k.Until.Sub(k.Since); k.State == keystore.Previous && keep != 48*time.Hour {
					t.Errorf("%s: kvno %d is kept for %v", test.name, k.KVNO, keep)
				}
			}
			if e.Rotation != nil || e.Alarm != "" || !slices.Equal(got, test.has) {
				t.Errorf("%s: %+v, want %+v; %+v, alarm %q", test.name, got, test.has, e.Rotation, e.Alarm)
			}
		}
	}
}

// Who has keys rotated is told of each step, and what is brought meanwhile waits.
func TestRotate(t *testing.T) {
	var w *world
	steps := make(chan string)
	rotate := func(ctx context.Context, principal, by string, force bool) error {
		for step := range steps {
			e, err := w.store.Change(ctx, nil, principal, by, "rotation", func(e *keystore.Entry) error {
				e.Rotation = &keystore.Rotation{Password: []byte("a password"), Step: keystore.Step(step), Begun: time.Now(), Force: force}
				return nil
			})
			if err != nil {
				return err
			}
			e.Zero()
		}
		return &Error{Status: 409, Refusal: Refusal{reason.StoreConflict, "the KDC does not want to", ""}}
	}
	w = newWorld(t, func(w *world) { w.server.o.Rotate = rotate })
	w.give(www)
	told := make(chan string)
	done := make(chan error)
	go func() {
		done <- w.root.Call(t.Context(), "rotate", &RotateRequest{Principal: www, Force: true}, new(Named), func(s string) { told <- s })
	}()
	for _, step := range []keystore.Step{keystore.Stored, keystore.Acknowledged, keystore.Sent} {
		steps <- string(step)
		if got := <-told; got != string(step) {
			t.Errorf("%s, want %s", got, step)
		}
	}
	var res Imported
	w.do("import", &ImportRequest{Principal: www, Keys: []KeyGiven{{KVNO: 4, Enctype: 18, Key: keyBytes}}}, &res)
	if res.Outcome != KeyConflict || !strings.Contains(res.Text, "a rotation has asked the KDC") || res.Rotation != "" {
		t.Errorf("%+v", res)
	}
	close(steps)
	if e, ok := errors.AsType[*Error](<-done); !ok || e.Reason != reason.StoreConflict || !w.audited(audit.StoreDenied, reason.StoreConflict) {
		t.Error(e)
	}
}

func TestMatches(t *testing.T) {
	for _, test := range []struct {
		pattern, s string
		want       bool
	}{
		{"*", "", true}, {"*", "a/b.c@D", true}, {"a", "a", true}, {"a", "ab", false}, {"", "a", false},
		{"HTTP/*@A", "HTTP/x.y@A", true}, {"HTTP/*@A", "HTTP/@A", true}, {"HTTP/*@A", "HTTP/x@AB", false}, {"HTTP/*@A", "xHTTP/y@A", false},
		{"a*b*c", "a1b2c", true}, {"a*b*c", "abc", true}, {"a*b*c", "acb", false}, {"*a", "aa", true}, {"ab*ba", "aba", false}, {"a**b", "ab", true},
	} {
		if got := matches(test.pattern, test.s); got != test.want {
			t.Errorf("%q, %q: %t", test.pattern, test.s, got)
		}
	}
}

func TestRates(t *testing.T) {
	now := time.Now()
	r := newRates(limits.Rate{Burst: 2, Every: time.Second})
	take := func(who string, want bool, wantRefused int) {
		t.Helper()
		if refused, ok := r.take(who, now); ok != want || refused != wantRefused {
			t.Errorf("%s: %d %t", who, refused, ok)
		}
	}
	take("a", true, 0)
	take("a", true, 0)
	take("a", false, 0)
	take("a", false, 0)
	take("b", true, 0)
	now = now.Add(time.Second)
	take("a", true, 2)
	take("a", false, 0)
	for i := range maxRates { // until there is no room, not even that of a and b
		r.take(fmt.Sprint(i), now)
	}
	for i := range 5 {
		r.take(fmt.Sprint("a stranger ", i), now)
	}
	take("another one", false, 0)
	if len(r.of) != maxRates {
		t.Error(len(r.of))
	}
	now = now.Add(time.Hour)
	take("somebody else", true, 0)
	if len(r.of) > 2 {
		t.Errorf("%d are remembered who are as if they had never called", len(r.of))
	}
}
