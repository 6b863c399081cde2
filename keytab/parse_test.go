package keytab

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	gokrb5 "github.com/jcmturner/gokrb5/v8/keytab"
	"pgregory.net/rapid"

	"gssproxyd/mech/krb5/etype"
	"gssproxyd/tests/lab"
)

// written is one record as a writer would put it in a file.
type written struct {
	realm     string
	comps     []string
	timestamp uint32
	kvno      uint32
	enctype   etype.ID
	key       []byte
	noKVNO32  bool
	extra     string // after the last field
}

// encode writes a keytab of format 05 02.
func encode(records ...written) []byte {
	b := []byte{5, 2}
	for _, r := range records {
		b = appendRecord(b, r)
	}
	return b
}

func appendRecord(b []byte, w written) []byte {
	data := func(r []byte, s string) []byte {
		return append(binary.BigEndian.AppendUint16(r, uint16(len(s))), s...)
	}
	r := binary.BigEndian.AppendUint16(nil, uint16(len(w.comps)))
	r = data(r, w.realm)
	for _, c := range w.comps {
		r = data(r, c)
	}
	r = binary.BigEndian.AppendUint32(r, 1)
	r = binary.BigEndian.AppendUint32(r, w.timestamp)
	r = append(r, byte(w.kvno))
	r = binary.BigEndian.AppendUint16(r, uint16(w.enctype))
	r = data(r, string(w.key))
	if !w.noKVNO32 {
		r = binary.BigEndian.AppendUint32(r, w.kvno)
	}
	r = append(r, w.extra...)
	return append(binary.BigEndian.AppendUint32(b, uint32(len(r))), r...)
}

// testKey returns key bytes of the right length that depend on n.
func testKey(et etype.ID, n byte) []byte { return bytes.Repeat([]byte{n}, et.KeySize()) }

func service(kvno uint32) written {
	return written{realm: "EXAMPLE.COM", comps: []string{"HTTP", "www.example.com"}, timestamp: 1000 + kvno, kvno: kvno,
		enctype: etype.AES256SHA1, key: testKey(etype.AES256SHA1, byte(kvno))}
}

const serviceName = "HTTP/www.example.com@EXAMPLE.COM"

func TestParse(t *testing.T) {
	one := service(3)
	oneEntry := Entry{Principal: serviceName, NameType: 1, Timestamp: 1003, KVNO: 3, Enctype: 18, Key: testKey(18, 3), Offset: 2}
	at := func(e Entry, offset int) Entry { e.Offset = offset; return e }
	hole := func(n int) []byte {
		return append(binary.BigEndian.AppendUint32(nil, uint32(-n)), make([]byte, n)...)
	}
	join := func(parts ...[]byte) []byte { return bytes.Join(parts, nil) }
	size := len(encode(one)) - 2

	wide := one
	wide.kvno = 0x1234
	wideEntry := oneEntry
	wideEntry.KVNO = 0x1234
	short := one
	short.noKVNO32 = true
	shortExtra := short
	shortExtra.extra = "abc" // too few for a kvno
	zeroFill := one
	zeroFill.noKVNO32, zeroFill.extra = true, "\x00\x00\x00\x00\x00\x00\x00"
	extra := one
	extra.extra = "more fields of a later day"

	for _, test := range []struct {
		name string
		file []byte
		want []Entry
	}{
		{"no entries", []byte{5, 2}, nil},
		{"one", encode(one), []Entry{oneEntry}},
		{"two", encode(one, one), []Entry{oneEntry, at(oneEntry, 2+size)}},
		{"hole first", join([]byte{5, 2}, hole(20), encode(one)[2:]), []Entry{at(oneEntry, 26)}},
		{"hole last", join(encode(one), hole(7)), []Entry{oneEntry}},
		{"zero length ends", join(encode(one), make([]byte, 4), []byte("an append that is not committed yet")), []Entry{oneEntry}},
		{"32-bit version", encode(wide), []Entry{wideEntry}},
		{"8-bit version", encode(short), []Entry{oneEntry}},
		{"3 bytes are no version", encode(shortExtra), []Entry{oneEntry}},
		{"zero fill is no version", encode(zeroFill), []Entry{oneEntry}},
		{"unknown fields", encode(extra), []Entry{oneEntry}},
		{
			"quoting",
			encode(written{realm: "A@B/C", comps: []string{"a/b", "c@d\\e", "\t\n\b\x00 é"}, kvno: 1, enctype: 17}),
			[]Entry{{Principal: `a\/b/c\@d\\e/\t\n\b\0 é@A\@B\/C`, NameType: 1, KVNO: 1, Enctype: 17, Key: etype.Secret{}, Offset: 2}},
		},
		{
			"negative encryption type, empty parts",
			encode(written{comps: []string{""}, enctype: -135, kvno: 255, key: []byte("k")}),
			[]Entry{{Principal: "@", NameType: 1, KVNO: 255, Enctype: -135, Key: etype.Secret("k"), Offset: 2}},
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			got, err := Parse(test.file)
			if err != nil {
				t.Fatal(err)
			}
			if diff := diffEntries(test.want, got); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// diffEntries compares keys as the bytes they are: printed they are all alike.
func diffEntries(want, got []Entry) string {
	type plain Entry
	conv := func(in []Entry) (out []struct {
		plain
		key string
	}) {
		for _, e := range in {
			p := plain(e)
			p.Key = nil
			out = append(out, struct {
				plain
				key string
			}{p, fmt.Sprintf("%x", []byte(e.Key))})
		}
		return out
	}
	return cmp.Diff(fmt.Sprintf("%+v", conv(want)), fmt.Sprintf("%+v", conv(got)))
}

func TestParseErrors(t *testing.T) {
	good := encode(service(1))
	for _, test := range []struct {
		name   string
		file   []byte
		offset int
		text   string
	}{
		{"empty", nil, 0, "empty"},
		{"one byte", []byte{5}, 0, "05 02"},
		{"not a keytab", []byte("-----BEGIN"), 0, "starts with bytes 2d 2d"},
		{"base64", []byte("BQIAAABH"), 0, "base64"},
		{"credential cache", []byte{5, 4, 0, 12}, 1, "credential cache"},
		{"version 1", []byte{5, 1, 0}, 1, "05 01"},
		{"version 3", []byte{5, 3}, 1, "05 03"},
		{"version 7", []byte{5, 7}, 1, "unknown keytab format 05 07"},
		{"stub of a length", append(good[:len(good):len(good)], 0, 0), len(good), "2 bytes where a 4-byte record length"},
		{"record beyond the end", []byte{5, 2, 0, 0, 0, 9, 1}, 2, "record of 9 bytes, but only 1 are left"},
		{"hole beyond the end", []byte{5, 2, 0xff, 0xff, 0xff, 0xf7, 1}, 2, "hole of 9 bytes, but only 1 are left"},
		{"largest hole", []byte{5, 2, 0x80, 0, 0, 0, 1}, 2, "hole of 2147483648 bytes"},
		{"largest record", []byte{5, 2, 0x7f, 0xff, 0xff, 0xff, 1}, 2, "record of 2147483647 bytes"},
		{"no components", []byte{5, 2, 0, 0, 0, 4, 0, 0, 0, 0}, 6, "without components"},
		{"realm beyond the record", []byte{5, 2, 0, 0, 0, 4, 0, 1, 0xff, 0xff}, 10, "realm needs 65535 bytes"},
		{"ends after realm", []byte{5, 2, 0, 0, 0, 5, 0, 1, 0, 1, 'R'}, 11, "length of the name component needs 2 bytes"},
		{"ends before the time", []byte{5, 2, 0, 0, 0, 10, 0, 1, 0, 0, 0, 0, 0, 0, 0, 1}, 16, "timestamp"},
	} {
		t.Run(test.name, func(t *testing.T) {
			entries, err := Parse(test.file)
			fe, ok := errors.AsType[*FormatError](err)
			if !ok {
				t.Fatalf("got %d entries and error %v, want a FormatError", len(entries), err)
			}
			if fe.Offset != test.offset || !strings.Contains(fe.Text, test.text) {
				t.Errorf("got %v; want byte %d and %q", fe, test.offset, test.text)
			}
		})
	}
}

// A file cut anywhere but between records is refused.
func TestParseTruncated(t *testing.T) {
	file := encode(service(1), service(2), service(3))
	ends := map[int]int{2: 0}
	for n, pos := 1, 2; pos < len(file); n++ {
		pos += 4 + int(binary.BigEndian.Uint32(file[pos:]))
		ends[pos] = n
	}
	for n := range file {
		entries, err := Parse(file[:n])
		if want, whole := ends[n]; whole {
			if err != nil || len(entries) != want {
				t.Errorf("first %d bytes: %d entries, error %v; want %d", n, len(entries), err, want)
			}
		} else if err == nil {
			t.Errorf("first %d bytes: no error", n)
		}
	}
}

// theirs parses with an independent implementation.
func theirs(t rapid.TB, file []byte) []string {
	kt := gokrb5.New()
	if err := kt.Unmarshal(file); err != nil {
		t.Fatalf("gokrb5: %v", err)
	}
	var out []string
	for _, e := range kt.Entries {
		out = append(out, fmt.Sprintf("%s %d %d %d %x", e.Principal, uint32(e.Timestamp.Unix()), e.KVNO, e.Key.KeyType, e.Key.KeyValue))
	}
	return out
}

func ours(t rapid.TB, file []byte) []string {
	entries, err := Parse(file)
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, e := range entries {
		out = append(out, fmt.Sprintf("%s %d %d %d %x", e.Principal, e.Timestamp, e.KVNO, int32(e.Enctype), []byte(e.Key)))
	}
	return out
}

func TestParseAsGokrb5(t *testing.T) {
	files, err := filepath.Glob("testdata/*.keytab")
	if err != nil || len(files) == 0 {
		t.Fatalf("no files: %v", err)
	}
	for _, name := range files {
		file, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(theirs(t, file), ours(t, file)); diff != "" {
			t.Errorf("%s:\n%s", name, diff)
		}
	}
	rapid.Check(t, func(t *rapid.T) {
		name := rapid.StringMatching(`[a-zA-Z0-9.]{1,12}`)
		var records []written
		for range rapid.IntRange(1, 5).Draw(t, "records") { // gokrb5 refuses a keytab without entries
			records = append(records, written{
				realm:     name.Draw(t, "realm"),
				comps:     rapid.SliceOfN(name, 1, 4).Draw(t, "comps"),
				timestamp: rapid.Uint32().Draw(t, "timestamp"),
				kvno:      rapid.Uint32Range(1, 1<<32-1).Draw(t, "kvno"),
				enctype:   etype.ID(rapid.Int16Range(0, 1000).Draw(t, "enctype")),
				key:       rapid.SliceOfN(rapid.Byte(), 1, 40).Draw(t, "key"),
			})
		}
		file := encode(records...)
		if diff := cmp.Diff(theirs(t, file), ours(t, file)); diff != "" {
			t.Error(diff)
		}
	})
}

// MIT's klist shows the same entries, holes, quoting and long versions included.
func TestParseAsMIT(t *testing.T) {
	if _, err := exec.LookPath("klist"); err != nil {
		lab.Lacking(t, "klist", err)
	}
	var records []written
	for i, comps := range [][]string{{"HTTP", "www.example.com"}, {"odd/name", "x@y\\z", "\t\n\b"}, {"host"}} {
		for _, kvno := range []uint32{uint32(i) + 1, uint32(i) + 256, uint32(i) + 70000} {
			w := service(kvno)
			w.comps = comps
			w.noKVNO32 = kvno < 256
			records = append(records, w)
		}
	}
	file := append(encode(records...), 0, 0, 0, 0, 'x')
	// A hole where the second record was.
	path := filepath.Join(t.TempDir(), "mit.keytab")
	second := 6 + int(binary.BigEndian.Uint32(file[2:]))
	size := int32(binary.BigEndian.Uint32(file[second:]))
	binary.BigEndian.PutUint32(file[second:], uint32(-size))
	clear(file[second+4:][:size])
	if err := os.WriteFile(path, file, 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("klist", "-kK", path).Output()
	if err != nil {
		t.Fatalf("klist: %v", err)
	}
	var want []string
	for _, line := range strings.Split(strings.TrimSpace(string(out)), "\n")[3:] {
		want = append(want, strings.Join(strings.Fields(line), " "))
	}
	entries, err := Parse(file)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, e := range entries {
		got = append(got, fmt.Sprintf("%d %s (0x%x)", e.KVNO, e.Principal, []byte(e.Key)))
	}
	if len(got) != 8 {
		t.Errorf("%d entries, want 8", len(got))
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func FuzzParse(f *testing.F) {
	f.Add(encode())
	f.Add(encode(service(1), service(300)))
	f.Add([]byte{5, 2, 0x80, 0, 0, 0, 1})
	for _, name := range []string{"testdata/all.keytab", "testdata/server-run5.keytab"} {
		file, err := os.ReadFile(name)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(file)
	}
	f.Fuzz(func(t *testing.T, file []byte) {
		before := bytes.Clone(file)
		entries, err := Parse(file)
		if !bytes.Equal(before, file) {
			t.Error("the input was written to")
		}
		if err != nil {
			fe, ok := errors.AsType[*FormatError](err)
			if !ok || fe.Offset < 0 || fe.Offset > len(file) {
				t.Errorf("error %v; want a FormatError within the file", err)
			}
			return
		}
		total := 0
		for i, e := range entries {
			total += len(e.Key) + len(e.Principal)/2
			if i > 0 && e.Offset <= entries[i-1].Offset {
				t.Errorf("entry %d at byte %d, after one at %d", i, e.Offset, entries[i-1].Offset)
			}
		}
		if total > len(file) {
			t.Errorf("names and keys of %d bytes out of a file of %d", total, len(file))
		}
		if r := Compile("FILE:/fuzz", entries); r.Len()+len(r.Skipped()) != len(entries) {
			t.Errorf("%d keys and %d skipped of %d entries", r.Len(), len(r.Skipped()), len(entries))
		}
	})
}
