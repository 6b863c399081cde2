package audit

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/iotest"

	"pgregory.net/rapid"
)

// drawFiles is a chain in files, as a log writes them, and its head.
func drawFiles(t *rapid.T) (files [][]byte, head Head) {
	c := newChain()
	for i := range rapid.IntRange(1, 3).Draw(t, "files") {
		var b []byte
		if i == 0 {
			b = c.append(b, appendFields(nil, line{Event: &Event{Kind: Begun}}))
		} else {
			prev := c.last
			b = c.append(b, appendFields(nil, line{Event: &Event{Kind: Continued}, prev: prev[:]}))
		}
		for range rapid.IntRange(0, 4).Draw(t, "lines") {
			b = c.append(b, appendFields(nil, line{Event: drawEvent(t)}))
		}
		files = append(files, b)
	}
	return files, c.head()
}

// verifyBytes is Verify for files in memory, called a, b, c ...
func verifyBytes(files [][]byte, heads ...Head) (*Report, error) {
	v := newVerifier(heads)
	for i, b := range files {
		if _, err := v.file(string(rune('a'+i)), bytes.NewReader(b)); err != nil {
			return &v.report, err
		}
	}
	return &v.report, v.end()
}

// TestVerify: what was written is found as it is, and any change of one byte is found.
func TestVerify(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		files, head := drawFiles(t)
		r, err := verifyBytes(files, head)
		if err != nil || r.Head != head || r.Lines != head.Seq || !r.Begun {
			t.Fatalf("%+v, %v; head %v", r, err, head)
		}
		n := rapid.IntRange(0, len(files)-1).Draw(t, "file")
		at := rapid.IntRange(0, len(files[n])-1).Draw(t, "byte")
		files[n] = bytes.Clone(files[n])
		files[n][at] ^= byte(rapid.IntRange(1, 255).Draw(t, "change"))
		_, err = verifyBytes(files, head)
		broken, ok := errors.AsType[*Broken](err)
		if !ok {
			t.Fatalf("a change of byte %d of file %d was not found: %v", at, n, err)
		}
		// The last newline is no line's but the file's end.
		changed := Place{string(rune('a' + n)), int64(1 + bytes.Count(files[n][:at], []byte{'\n'}))}
		if broken.Place != changed {
			t.Fatalf("a change in %v was found in %v", changed, broken)
		}
	})
}

// TestChanges: a line that is missing, doubled, moved or put in is found where it is.
func TestChanges(t *testing.T) {
	c := newChain()
	var lines [][]byte
	for i := range 6 {
		k := CallAllowed
		if i == 0 {
			k = Begun
		}
		lines = append(lines, c.append(nil, appendFields(nil, line{Event: &Event{Kind: k, Text: strings.Repeat("x", i)}})))
	}
	prev := c.last
	next := bytes.Join([][]byte{
		c.append(nil, appendFields(nil, line{Event: &Event{Kind: Continued}, prev: prev[:]})),
		c.append(nil, appendFields(nil, line{Event: &Event{Kind: Lost}, lost: 4})),
	}, nil)
	last := c.head()
	other := newChain()
	anew := other.append(nil, appendFields(nil, line{Event: &Event{Kind: Begun, Text: "anew"}}))
	all := bytes.Join(lines, nil)
	pick := func(order ...int) (b []byte) {
		for _, i := range order {
			b = append(b, lines[i]...)
		}
		return b
	}
	at := func(h Head, seq uint64) Head { h.Seq = seq; return h }
	for _, test := range []struct {
		name  string
		files [][]byte
		heads []Head
		want  string // "" if nothing is wrong
	}{
		{"whole", [][]byte{all, next}, []Head{last}, ""},
		{"the later file alone", [][]byte{next}, []Head{last, {6, string(prev[:])}}, ""},
		{"the end cut off", [][]byte{all}, nil, ""},
		{"one missing", [][]byte{pick(0, 1, 3, 4, 5)}, nil, "a:3: seq 4 follows seq 2: what was between them is missing"},
		{"the first missing", [][]byte{pick(1, 2)}, nil, "a:1: begins neither a chain nor a file: "},
		{"twice", [][]byte{pick(0, 1, 1)}, nil, "a:3: seq 2 follows seq 2: it is not in its place, or there twice"},
		{"moved", [][]byte{pick(0, 2, 1)}, nil, "a:2: seq 3 follows seq 1: "},
		{"put in", [][]byte{append(pick(0, 1), append([]byte("hello\n"), pick(2)...)...)}, nil, "a:3: is no line of an audit log, and what follows says nothing of it"},
		{"other bytes", [][]byte{bytes.Repeat([]byte{0}, 3*maxLine)}, nil, "a:1: is no line of an audit log"},
		{"nothing", [][]byte{nil}, nil, "a:0: there is no line"},
		{"a file missing", [][]byte{pick(0, 1), next}, nil, "b:1: seq 7 follows seq 2: what was between them is missing"},
		{"the wrong order", [][]byte{next, all}, nil, "b:1: another chain begins here, after seq 8"},
		{"begun anew", [][]byte{all, anew}, nil, "b:1: another chain begins here, after seq 6"},
		{"the head cut off", [][]byte{all}, []Head{last}, "a:6: the chain ends here, with seq 6, and the head that was given has seq 8"},
		{"another chain", [][]byte{all, next}, []Head{at(last, 3)}, "a:3: the head that was given for seq 3 has another hash"},
		{"another former chain", [][]byte{next}, []Head{at(last, 6)}, "a:1: the head that was given for seq 6 has another hash"},
		{"a head too old", [][]byte{next}, []Head{at(last, 2)}, "the head 2 is of an older file"},
	} {
		r, err := verifyBytes(test.files, test.heads...)
		if test.want == "" && err != nil || test.want != "" && (err == nil || !strings.HasPrefix(err.Error(), test.want)) {
			t.Errorf("%s: %v; want %s", test.name, err, test.want)
		}
		if test.name == "whole" && r.Lost != 4 {
			t.Errorf("%+v", r)
		}
	}
	v := newVerifier(nil)
	if _, err := v.file("x", iotest.ErrReader(os.ErrPermission)); !errors.Is(err, os.ErrPermission) {
		t.Error(err)
	}
	if _, err := Verify([]string{filepath.Join(t.TempDir(), "none")}); !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
}

func TestParseHead(t *testing.T) {
	h := Head{12, strings.Repeat("0a", 32)}
	if got, err := ParseHead(h.String()); err != nil || got != h {
		t.Error(got, err)
	}
	for _, s := range []string{"", "12", "12:", "0:" + h.Hash, ":" + h.Hash, "12:" + strings.ToUpper(h.Hash), "12:" + h.Hash + "0", "-1:" + h.Hash} {
		if _, err := ParseHead(s); err == nil {
			t.Errorf("%q is a head", s)
		}
	}
}

// FuzzVerify: no bytes are too much for Verify, and what is a chain for it is one.
func FuzzVerify(f *testing.F) {
	c := newChain()
	one := c.append(nil, appendFields(nil, line{Event: &Event{Kind: Begun}}))
	two := c.append(bytes.Clone(one), appendFields(nil, line{Event: &Event{Kind: Lost}, lost: 1}))
	f.Add(one, []byte(nil))
	f.Add(two, one)
	f.Add(two[:len(two)-9], []byte("\n"))
	f.Add([]byte(lineStart+hashStart), []byte(`{"seq":1,"hash":"`+string(noLine[:])+lineEnd))
	f.Add(bytes.Repeat([]byte("x"), maxLine+1), two)
	f.Add([]byte(`{"seq":2,"kind":"continued","prev":"`+string(noLine[:])+`","hash":"`+string(noLine[:])+lineEnd), []byte{0xff})
	f.Fuzz(func(t *testing.T, a, b []byte) {
		r, err := verifyBytes([][]byte{a, b})
		if err == nil && (r.Lines == 0 || !isHash([]byte(r.Head.Hash))) {
			t.Errorf("%+v", r)
		}
	})
}
