package keytab

import (
	"bytes"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"gssproxyd/mech/krb5/etype"
	"gssproxyd/tests/lab"
)

// lintNow is a day after the entries of newKey were written.
var lintNow = time.Unix(1_700_000_000, 0)

// newKey is a record that nothing is to be said of.
func newKey(kvno uint32, et etype.ID) written {
	w := service(kvno)
	w.timestamp, w.enctype, w.key = uint32(lintNow.Unix()-24*3600), et, testKey(et, byte(kvno)+byte(et))
	return w
}

// found are the ids of a report's findings, in their order.
func found(r Report) (ids []FindingID) {
	for _, f := range r.Findings {
		ids = append(ids, f.ID)
	}
	return ids
}

// lintFile writes a file for nobody but its owner, and lints it a day after its keys were made.
func lintFile(t *testing.T, content []byte) Report {
	t.Helper()
	path := filepath.Join(t.TempDir(), "test.keytab")
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
	return Lint([]string{path}, LintOptions{Now: lintNow, OlderThan: 365 * 24 * time.Hour})[0]
}

func TestLintContent(t *testing.T) {
	good := newKey(3, etype.AES256SHA1)
	at := func(w written, when time.Duration) written {
		w.timestamp = uint32(lintNow.Add(when).Unix())
		return w
	}
	with := func(w written, change func(*written)) written { change(&w); return w }
	hole := func(content string) []byte {
		return append(binary.BigEndian.AppendUint32(nil, uint32(-len(content))), content...)
	}
	const day = 24 * time.Hour
	for _, test := range []struct {
		name string
		file []byte
		want []FindingID
		text string // in the text of the first
	}{
		{"good", encode(good), nil, ""},
		{"both kinds of AES256", encode(good, newKey(3, etype.AES256SHA384), newKey(3, etype.AES128SHA1)), nil, ""},
		{"rotated", encode(at(newKey(2, etype.AES256SHA1), -20*day), good), nil, ""},
		{"a year old", encode(at(good, -365*day)), nil, ""},
		{"older", encode(at(good, -366*day)), []FindingID{OldKey}, "written 366 days ago, on 2022-11-13"},
		{"old, and a new one", encode(at(newKey(2, etype.AES256SHA1), -900*day), good), nil, ""},
		{"superseded", encode(newKey(1, etype.AES256SHA1), newKey(2, etype.AES256SHA1), at(good, -40*day)), []FindingID{SupersededKeys}, "(1, 2), 40 days"},
		{"written tomorrow", encode(at(good, 24*time.Hour)), nil, ""},
		{"written later", encode(at(good, 10*day)), []FindingID{FutureKey}, "2023-11-24"},
		{"written nobody knows when", encode(with(good, func(w *written) { w.timestamp = 0 })), []FindingID{NoTimestamp}, ""},
		{"RC4 beside AES", encode(good, newKey(3, etype.RC4)), []FindingID{WeakEnctype}, "arcfour-hmac"},
		{"DES alone", encode(newKey(3, 1)), []FindingID{WeakEnctype, NoAES256}, "des-cbc-crc"},
		{"triple DES", encode(good, newKey(3, etype.DES3)), []FindingID{WeakEnctype}, "des3-cbc-sha1"},
		{"RC4 that is superseded", encode(newKey(2, etype.RC4), good), nil, ""},
		{"Camellia", encode(good, newKey(3, etype.Camellia128)), []FindingID{UnsupportedEnctype}, "camellia128-cts-cmac"},
		{"a type of a later day", encode(good, with(good, func(w *written) { w.enctype = 99 })), []FindingID{UnsupportedEnctype}, "etype 99"},
		{"AES128 alone", encode(newKey(3, etype.AES128SHA256)), []FindingID{NoAES256}, ""},
		{"half a rotation", encode(newKey(2, etype.AES128SHA1), newKey(2, etype.AES256SHA1), good), []FindingID{HalfRotation}, "version 2 has a key of aes128-cts-hmac-sha1-96"},
		{"versions begin anew", encode(at(newKey(255, etype.AES256SHA1), -2*day), newKey(1, etype.AES256SHA1)), nil, ""},
		{"a gap", encode(newKey(1, etype.AES256SHA1), good), []FindingID{KVNOGap}, "version 2 is missing between 1 and 3"},
		{"a wide gap", encode(newKey(3, etype.AES256SHA1), newKey(9, etype.AES256SHA1)), []FindingID{KVNOGap}, "versions 4 to 8"},
		{"version 0 is any", encode(newKey(0, etype.AES256SHA1), good), nil, ""},
		{"twice", encode(good, good, good), []FindingID{DuplicateEntry}, "3 times"},
		{"twice, with another key", encode(good, with(good, func(w *written) { w.key = testKey(w.enctype, 77) })), []FindingID{ConflictingKeys}, "1 entries more"},
		{"a short key", encode(with(good, func(w *written) { w.key = w.key[:16] })), []FindingID{BadKey}, "has 16 bytes, expected 32"},
		{"none", []byte{5, 2}, []FindingID{NoEntries}, ""},
		{"an empty hole", slices.Concat([]byte{5, 2}, hole("\x00\x00\x00"), encode(good)[2:]), nil, ""},
		{"a hole with something", slices.Concat([]byte{5, 2}, hole("\x00key"), encode(good)[2:]), []FindingID{HoleWithData}, "4 bytes at byte 6"},
		{"zeros at the end", append(encode(good), 0, 0, 0, 0, 0, 0), nil, ""},
		{"something at the end", append(encode(good), 0, 0, 0, 0, 'x', 'y'), []FindingID{TrailingData}, "2 bytes follow"},
		{"cut short", encode(good)[:40], []FindingID{Malformed}, "cut short"},
		{"another file", []byte("-----BEGIN"), []FindingID{Malformed}, "05 02"},
		{"empty", nil, []FindingID{Malformed}, "empty"},
	} {
		t.Run(test.name, func(t *testing.T) {
			r := lintFile(t, test.file)
			if !slices.Equal(found(r), test.want) {
				t.Fatalf("%+v, want %v", r.Findings, test.want)
			}
			if len(test.want) > 0 && !strings.Contains(r.Findings[0].Text, test.text) {
				t.Errorf("%q, want %q in it", r.Findings[0].Text, test.text)
			}
		})
	}
}

// Principals are judged by themselves, and what there is of each is reported.
func TestLintPrincipals(t *testing.T) {
	other := newKey(7, etype.AES128SHA1)
	other.comps = []string{"host", "a\nb"}
	r := lintFile(t, encode(newKey(2, etype.AES256SHA1), newKey(3, etype.AES256SHA1), other))
	if len(r.Findings) != 1 || r.Findings[0].ID != NoAES256 || r.Findings[0].Principal != `host/a\nb@EXAMPLE.COM` || r.Findings[0].KVNO != 7 {
		t.Errorf("%+v", r.Findings)
	}
	got, err := json.Marshal(r.Principals)
	if err != nil {
		t.Fatal(err)
	}
	want := `[{"principal":"HTTP/www.example.com@EXAMPLE.COM","versions":[` +
		`{"kvno":2,"enctypes":["aes256-cts-hmac-sha1-96"],"written":"2023-11-13T22:13:20Z"},` +
		`{"kvno":3,"enctypes":["aes256-cts-hmac-sha1-96"],"written":"2023-11-13T22:13:20Z"}]},` +
		`{"principal":"host/a\\nb@EXAMPLE.COM","versions":[{"kvno":7,"enctypes":["aes128-cts-hmac-sha1-96"],"written":"2023-11-13T22:13:20Z"}]}]`
	if string(got) != want {
		t.Errorf("%s, want %s", got, want)
	}
}

// Who has made the file up does not decide how much is said of it, or how long that takes.
func TestLintBounded(t *testing.T) {
	b := []byte{5, 2}
	for range 1000 {
		b = append(b, 0xff, 0xff, 0xff, 0xff, 'x') // a hole
	}
	add := func(kvno uint32, et etype.ID) {
		b = appendRecord(b, written{realm: "R", comps: []string{"a"}, timestamp: 1, kvno: kvno, enctype: et})
	}
	for i := range 30_000 {
		add(uint32(2*i+1), etype.AES128SHA1)
	}
	for i := range 100_000 {
		add(100_001, etype.AES128SHA1)
		add(100_003, etype.ID(1000+i%30_000))
	}
	r := lintFile(t, b)
	n := make(map[FindingID]int)
	var last Finding
	for _, f := range r.Findings {
		if n[f.ID]++; f.ID == HoleWithData {
			last = f
		}
		if len(f.Text) > 1000 {
			t.Errorf("a text of %d bytes: %.100s", len(f.Text), f.Text)
		}
	}
	want := map[FindingID]int{
		HoleWithData: maxAlike + 1, BadKey: maxAlike + 1, KVNOGap: maxAlike + 1,
		DuplicateEntry: maxAlike + 1, UnsupportedEnctype: 1, NoAES256: 1, HalfRotation: 1, OldKey: 1, SupersededKeys: 1,
	}
	if !maps.Equal(n, want) || last.Text != "there are 900 findings more like those above" {
		t.Errorf("%v, want %v; %+v", n, want, last)
	}
}

// Who may read, write, and replace the file, and what it is.
func TestLintPlace(t *testing.T) {
	root := os.Geteuid() == 0
	for _, test := range []struct {
		name string
		make func(t *testing.T, dir, file string) (path string)
		want []FindingID
		text string
		root bool // only root can make it
	}{
		{"good", nil, nil, "", false},
		{"group", func(t *testing.T, _, file string) string { chmod(t, file, 0o640); return file }, []FindingID{ReadableByOthers}, "group ", false},
		{"others", func(t *testing.T, _, file string) string { chmod(t, file, 0o606); return file }, []FindingID{ReadableByOthers, WritableByOthers}, "everybody may read the file: its mode is 0606", false},
		{"group writes", func(t *testing.T, _, file string) string { chmod(t, file, 0o620); return file }, []FindingID{WritableByOthers}, "group ", false},
		{"directory", func(t *testing.T, dir, file string) string { chmod(t, dir, 0o777); return file }, []FindingID{ReplaceableByOthers}, "has mode 0777", false},
		{"sticky directory", func(t *testing.T, dir, file string) string {
			chmod(t, dir, 0o777|os.ModeSticky)
			return file
		}, nil, "", false},
		{"link through such a directory", func(t *testing.T, dir, file string) string {
			chmod(t, dir, 0o777)
			link := filepath.Join(t.TempDir(), "link")
			if err := os.Symlink(file, link); err != nil {
				t.Fatal(err)
			}
			return link
		}, []FindingID{ReplaceableByOthers}, "has mode 0777", false},
		{"no file", func(_ *testing.T, dir, _ string) string { return dir + "/none" }, []FindingID{Missing}, "no such file", false},
		{"no directory", func(_ *testing.T, dir, _ string) string { return dir + "/none/keytab" }, []FindingID{Missing}, "/none: no such file", false},
		{"a directory itself", func(_ *testing.T, dir, _ string) string { return dir }, []FindingID{Unreadable}, "it is a directory", false},
		{"another type", func(*testing.T, string, string) string { return "MEMORY:x" }, []FindingID{Unreadable}, "MEMORY", false},
		{"service's file", func(t *testing.T, _, file string) string { chown(t, file, 12345); return file }, []FindingID{ForeignOwner}, "uid 12345", true},
		{"daemon's file", func(t *testing.T, _, file string) string { chown(t, file, 4711); return file }, nil, "", true},
		{"service's directory", func(t *testing.T, dir, file string) string { chown(t, dir, 12345); return file }, []FindingID{ReplaceableByOthers}, "uid 12345", true},
		{"daemon's directory", func(t *testing.T, dir, file string) string { chown(t, dir, 4711); return file }, nil, "", true},
	} {
		t.Run(test.name, func(t *testing.T) {
			if test.root && !root {
				t.Skip("not run: only root can make it")
			}
			dir := t.TempDir()
			path := filepath.Join(dir, "test.keytab")
			if err := os.WriteFile(path, encode(newKey(1, etype.AES256SHA1)), 0o600); err != nil {
				t.Fatal(err)
			}
			if test.make != nil {
				path = test.make(t, dir, path)
			}
			r := Lint([]string{path, path}, LintOptions{Now: lintNow, OlderThan: time.Hour * 24 * 365, Reader: Reader{Owners: []uint32{4711}}})
			if len(r) != 1 && test.name != "another type" {
				t.Errorf("%d reports of one path", len(r))
			}
			if !slices.Equal(found(r[0]), test.want) {
				t.Fatalf("%+v, want %v", r[0].Findings, test.want)
			}
			if len(test.want) > 0 && !strings.Contains(r[0].Findings[0].Text, test.text) {
				t.Errorf("%q, want %q in it", r[0].Findings[0].Text, test.text)
			}
		})
	}
}

// That all may read does not mean that all may write.
func TestLintMode(t *testing.T) {
	path := filepath.Join(t.TempDir(), "test.keytab")
	if err := os.WriteFile(path, encode(newKey(1, etype.AES256SHA1)), 0o600); err != nil {
		t.Fatal(err)
	}
	chmod(t, path, 0o664)
	r := Lint([]string{path}, LintOptions{Now: lintNow, OlderThan: time.Hour * 24 * 365})[0]
	if !slices.Equal(found(r), []FindingID{ReadableByOthers, WritableByOthers}) || !strings.HasPrefix(r.Findings[0].Text, "everybody ") || !strings.HasPrefix(r.Findings[1].Text, "group ") {
		t.Errorf("%+v", r.Findings)
	}
}

func chmod(t *testing.T, path string, mode os.FileMode) {
	t.Helper()
	if err := os.Chmod(path, mode); err != nil {
		t.Fatal(err)
	}
}

func chown(t *testing.T, path string, uid int) {
	t.Helper()
	if err := os.Chown(path, uid, -1); err != nil {
		t.Fatal(err)
	}
}

// What services do with a file, whichever of its names they know it by.
func TestLintUses(t *testing.T) {
	dir := t.TempDir()
	path, other := filepath.Join(dir, "a.keytab"), filepath.Join(dir, "b.keytab")
	if err := os.WriteFile(path, encode(newKey(1, etype.AES256SHA1)), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Link(path, other); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		uses []Use
		want []FindingID
	}{
		{nil, nil},
		{[]Use{{Keytab: path, Service: "a", EUID: 1}, {Keytab: path, Service: "b", EUID: 1}}, nil},
		{[]Use{{Keytab: path, Service: "a", EUID: 1}, {Keytab: dir + "/c", Service: "b", EUID: 2, Initiate: true}}, nil},
		{[]Use{{Keytab: path, Service: "a", EUID: 1}, {Keytab: "FILE:" + other, Service: "b", EUID: 2}}, []FindingID{SharedByUsers}},
		{[]Use{{Keytab: path, Service: "a", EUID: 1}, {Keytab: other, Service: "a", EUID: 1, Initiate: true}}, []FindingID{AcceptAndInitiate}},
	} {
		r := Lint([]string{path}, LintOptions{Now: lintNow, OlderThan: time.Hour * 24 * 365, Uses: test.uses})
		if !slices.Equal(found(r[0]), test.want) {
			t.Errorf("%+v: %+v, want %v", test.uses, r[0].Findings, test.want)
		}
	}
}

// Nothing that is said of a keytab has a byte of a key in it.
func TestLintKeepsKeys(t *testing.T) {
	secret := []byte("0123456789abcdefFEDCBA9876543210")
	w := newKey(3, etype.AES256SHA1)
	w.key = secret
	second := w
	second.key = slices.Concat(secret[16:], secret[:16])
	short := w
	short.enctype = etype.AES128SHA1
	file := append(encode(w, w, second, short), 0, 0, 0, 0)
	file = append(file, secret...)
	r := lintFile(t, file)
	if len(r.Findings) < 4 {
		t.Errorf("%+v", r.Findings)
	}
	text, err := json.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	said := append(text, fmt.Sprintf("%+v %#v", r, r)...)
	for i := 0; i+8 <= len(secret); i++ {
		part := secret[i : i+8]
		for _, form := range []string{string(part), hex.EncodeToString(part), base64.RawStdEncoding.EncodeToString(part)[:9], fmt.Sprint([]byte(part))} {
			if bytes.Contains(said, []byte(form)) {
				t.Fatalf("%q is in %s", form, said)
			}
		}
	}
}

func TestLintSealed(t *testing.T) {
	o := new(opener)
	for name, test := range map[string]struct {
		content []byte
		prefix  string
		unseal  func([]byte) (etype.Secret, error)
		mode    os.FileMode
		want    []FindingID
	}{
		"named":              {pretendToSeal(encode(newKey(1, etype.AES256SHA1))), "SEALED:", o.open, 0o644, nil},
		"recognized":         {pretendToSeal(encode(newKey(1, etype.AES256SHA1))), "", o.open, 0o600, nil},
		"written by others":  {pretendToSeal(encode(newKey(1, etype.AES256SHA1))), "", o.open, 0o666, []FindingID{WritableByOthers}},
		"weak":               {pretendToSeal(encode(newKey(1, etype.AES256SHA1), newKey(1, etype.RC4))), "", o.open, 0o600, []FindingID{WeakEnctype}},
		"damaged":            {pretendToSeal(encode(newKey(1, etype.AES256SHA1))[:50]), "", o.open, 0o600, []FindingID{Malformed}},
		"not to be opened":   {pretendToSeal(encode(newKey(1, etype.AES256SHA1))), "SEALED:", nil, 0o600, []FindingID{Unopened}},
		"not sealed at all":  {encode(newKey(1, etype.AES256SHA1)), "SEALED:", o.open, 0o600, []FindingID{Unopened}},
		"readable, not seal": {encode(newKey(1, etype.AES256SHA1)), "", o.open, 0o644, []FindingID{ReadableByOthers}},
	} {
		path := filepath.Join(t.TempDir(), "test.keytab")
		write(t, path, test.content)
		chmod(t, path, test.mode)
		r := Lint([]string{test.prefix + path}, LintOptions{Now: lintNow, OlderThan: 365 * 24 * time.Hour, Reader: Reader{Unseal: test.unseal}})[0]
		if !slices.Equal(found(r), test.want) || r.File != path {
			t.Errorf("%s: %s: %+v, want %v", name, r.File, r.Findings, test.want)
		}
	}
	if n := o.left(); n > 0 {
		t.Errorf("%d opened keytabs are in memory still", n)
	}
}

// TestFindings: each kind is documented once, and has a case in the tests above.
func TestFindings(t *testing.T) {
	source, err := os.ReadFile("lint.go")
	if err != nil {
		t.Fatal(err)
	}
	tests, err := os.ReadFile("lint_test.go")
	if err != nil {
		t.Fatal(err)
	}
	constants := bytes.Count(source, []byte("FindingID = \""))
	if constants != len(Findings) {
		t.Errorf("%d kinds, %d documented", constants, len(Findings))
	}
	for _, d := range Findings {
		if d.Text == "" || d.Hint == "" || d.Severity != Severe && d.Severity != Warning && d.Severity != Note {
			t.Errorf("%s: %+v", d.ID, d)
		}
		constant := constantOf(string(source), d.ID)
		if !strings.Contains(string(tests), constant) {
			t.Errorf("no test has %s", constant)
		}
	}
}

// constantOf returns the name of the constant with that value.
func constantOf(source string, id FindingID) string {
	for line := range strings.Lines(source) {
		if f := strings.Fields(line); len(f) == 4 && f[3] == fmt.Sprintf("%q", id) {
			return f[0]
		}
	}
	return "no constant of " + string(id)
}

// A KDC's own keytabs: as kadmin writes them, after a rotation that did not reach the file with all
// encryption types, and with an entry removed.
func TestLintOfKDC(t *testing.T) {
	r := lab.New(t)
	const name = "HTTP/www.example.com"
	check := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	lint := func(path string) []FindingID {
		return found(Lint([]string{path}, LintOptions{Now: time.Now(), OlderThan: time.Hour * 24})[0])
	}
	check(r.RandKey(name, "aes256-cts", "aes128-cts"))
	path, err := r.Keytab("lint.keytab", name)
	check(err)
	if got := lint(path); got != nil {
		t.Errorf("new: %v", got)
	}
	check(r.Rotate(name, "aes256-cts"))
	check(os.Remove(path))
	check(r.Ktadd(path, name))
	if got := lint(path); !slices.Equal(got, []FindingID{HalfRotation}) {
		t.Errorf("rotated: %v", got)
	}
	out, err := r.Run(lab.Root, []string{"KRB5_KDC_PROFILE=" + filepath.Join(r.Dir, "kdc.conf")}, "/usr/sbin/kadmin.local", "-r", lab.Name, "ktremove", "-k", path, name, "old")
	if err != nil {
		t.Fatal(err, out)
	}
	if got := lint(path); got != nil {
		t.Errorf("without the old ones: %v\n%s", got, out)
	}
	check(r.Rotate(name, "aes256-cts"))
	check(r.Rotate(name, "aes256-cts"))
	check(r.Ktadd(path, name)) // the one that is there a second time
	if got := lint(path); !slices.Contains(got, DuplicateEntry) {
		t.Errorf("added again: %v", got)
	}
}

func FuzzLint(f *testing.F) {
	good := newKey(3, etype.AES256SHA1)
	f.Add(encode(good, good, newKey(9, etype.RC4)))
	f.Add(append(encode(good), 0, 0, 0, 0, 'x'))
	f.Add([]byte{5, 2, 0xff, 0xff, 0xff, 0xff, 'x'})
	f.Fuzz(func(t *testing.T, file []byte) {
		l := lint{alike: make(map[FindingID]int), o: LintOptions{Now: lintNow, OlderThan: time.Hour}}
		l.content(file)
		if _, err := Parse(file); (err != nil) != slices.Contains(found(l.Report), Malformed) {
			t.Errorf("%v, and %v", err, found(l.Report))
		}
		for _, f := range l.Findings {
			if f.Text == "" || f.Hint == "" {
				t.Errorf("%+v", f)
			}
		}
	})
}
