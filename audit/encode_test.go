package audit

import (
	"bytes"
	"encoding/json"
	"reflect"
	"strings"
	"testing"
	"time"
	"unicode"

	"pgregory.net/rapid"
)

// full is a line with every field.
func full() line {
	prev := noLine
	return line{Event: &Event{
		Kind: CallAllowed, Time: time.Date(2026, 11, 29, 12, 0, 0, 123456789, time.FixedZone("", 3600)), Took: 1234 * time.Microsecond,
		Connection: "c0ffee", Call: 3, Socket: "/run/s", Service: "http", Procedure: "ACCEPT_SEC_CONTEXT",
		Caller:    &Caller{UID: 33, PID: 7, Program: "/usr/sbin/apache2", Unit: "apache2.service", Pod: "p", Container: "c", Label: "l"},
		Principal: "alice@EXAMPLE.COM", Target: "HTTP/www@EXAMPLE.COM", Enctype: "aes256-cts-hmac-sha1-96",
		Reason: "replay", Text: "why", Repeated: 4, Source: "/etc/http.keytab", KVNO: 2, Digest: "d",
		Routine: true, Trace: func() []string { return []string{"not in the log"} },
	}, lost: 1, prev: prev[:]}
}

// TestFields: the lines have the fields of the table, in its order, and no others; all of an event
// is in them, but for what it says is not.
func TestFields(t *testing.T) {
	c := newChain()
	l := full()
	for _, v := range []reflect.Value{reflect.ValueOf(*l.Event), reflect.ValueOf(*l.Caller)} {
		for i := range v.NumField() {
			if v.Field(i).IsZero() {
				t.Errorf("this test's event has no %s", v.Type().Field(i).Name)
			}
		}
	}
	b := c.append(nil, appendFields(nil, l))
	dec := json.NewDecoder(bytes.NewReader(b))
	if tok, err := dec.Token(); err != nil || tok != json.Delim('{') {
		t.Fatal(tok, err)
	}
	for _, f := range Fields {
		name, err := dec.Token()
		if err != nil || name != f.Name {
			t.Fatalf("field %v, %v; the table has %s here\n%s", name, err, f.Name, b)
		}
		if _, err := dec.Token(); err != nil {
			t.Fatal(err)
		}
	}
	if tok, err := dec.Token(); err != nil || tok != json.Delim('}') {
		t.Fatalf("%v, %v after the table's fields\n%s", tok, err, b)
	}
	const want = `{"seq":1,"time":"2026-11-29T11:00:00.123456Z","kind":"call-allowed","took_us":1234,"connection":"c0ffee","call":"c0ffee-3","uid":33,`
	if !bytes.HasPrefix(b, []byte(want)) {
		t.Errorf("%s", b)
	}
	if c.append(nil, appendFields(nil, line{Event: &Event{Kind: Started, Caller: &Caller{}}})); c.seq != 2 {
		t.Error(c.seq)
	}
	if got := string(appendFields(nil, line{Event: &Event{Kind: Started, Caller: &Caller{}}})); got != `,"time":"0001-01-01T00:00:00.000000Z","kind":"started","uid":0` {
		t.Errorf("zero fields: %s", got)
	}
}

// FuzzText: whatever the text, a field of it is what package encoding/json reads as that text, with
// nothing in it that does not print, and of bounded length.
func FuzzText(f *testing.F) {
	for _, s := range []string{"", "a", `"\`, "\x00\x1b[2J\x7f\u0085", "\xff\xc3", "é\u2028\u202e\U000e0001😀", strings.Repeat("\x00", 500), strings.Repeat("é", 600)} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		b := appendText(nil, `,"t":"`, s)
		if s == "" && b == nil {
			return
		}
		if len(b) > maxText+len(`,"t":""`) {
			t.Errorf("%d bytes", len(b))
		}
		for _, r := range string(b) {
			if !unicode.IsPrint(r) {
				t.Errorf("%q does not print", r)
			}
		}
		var got struct{ T string }
		if err := json.Unmarshal(append(append([]byte(`{"x":1`), b...), '}'), &got); err != nil {
			t.Fatalf("%v: %s", err, b)
		}
		want := strings.ToValidUTF8(s, "\ufffd")
		if r := []rune(s); len(r) > 0 { // one for each byte, not for each run of them
			want = string(r)
		}
		if cut, ok := strings.CutSuffix(got.T, "…"); got.T != want && !(ok && strings.HasPrefix(want, cut) && len(b) > maxText-16) {
			t.Errorf("%q is read as %q", s, got.T)
		}
	})
}

// TestLongest: no line is longer than maxLine, whatever is in it.
func TestLongest(t *testing.T) {
	long := strings.Repeat("\x00", 10_000)
	l := full()
	for _, p := range []any{l.Event, l.Caller} {
		v := reflect.ValueOf(p).Elem()
		for i := range v.NumField() {
			if v.Field(i).Kind() == reflect.String {
				v.Field(i).SetString(long)
			}
		}
	}
	c := chain{seq: 1<<64 - 2, h: newChain().h}
	if b := c.append(nil, appendFields(nil, l)); len(b) > maxLine {
		t.Errorf("%d bytes", len(b))
	}
}

// drawEvent is any event.
func drawEvent(t *rapid.T) *Event {
	text := rapid.OneOf(rapid.Just(""), rapid.String(), rapid.Map(rapid.SliceOf(rapid.Byte()), func(b []byte) string { return string(b) }))
	e := &Event{
		Kind:       rapid.SampledFrom(Kinds[:14]).Draw(t, "kind").Kind, // the others are the log's
		Time:       time.UnixMicro(rapid.Int64Range(0, 1<<52).Draw(t, "time")),
		Took:       time.Duration(rapid.Int64().Draw(t, "took")),
		Connection: text.Draw(t, "connection"), Call: rapid.Uint64().Draw(t, "call"),
		Socket: text.Draw(t, "socket"), Principal: text.Draw(t, "principal"), Text: text.Draw(t, "text"), KVNO: rapid.Uint32().Draw(t, "kvno"),
	}
	if rapid.Bool().Draw(t, "caller") {
		e.Caller = &Caller{UID: rapid.Uint32().Draw(t, "uid"), PID: rapid.Int32().Draw(t, "pid"), Program: text.Draw(t, "program")}
	}
	return e
}

func BenchmarkEncode(b *testing.B) {
	l := full()
	l.lost, l.prev, l.Digest, l.Source, l.KVNO, l.Reason, l.Text = 0, nil, "", "", 0, "", ""
	var buf []byte
	b.ReportAllocs()
	for b.Loop() {
		buf = appendFields(buf[:0], l)
	}
	b.SetBytes(int64(len(buf)))
}

func BenchmarkChain(b *testing.B) {
	fields := appendFields(nil, full())
	c := newChain()
	var buf []byte
	b.ReportAllocs()
	for b.Loop() {
		buf = c.append(buf[:0], fields)
	}
	b.SetBytes(int64(len(buf)))
}
