package ccache

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"strconv"
	"strings"

	"gssproxyd/mech/krb5"
	"gssproxyd/mech/krb5/etype"
)

// jsonReader reads JSON whose shape is known, value by value; the first thing that does not fit is the last,
// and in err. Unlike encoding/json it keeps bytes that are no UTF-8, which principals may have, and leaves no
// copies of keys behind.
type jsonReader struct {
	etype.Redacted
	b   []byte
	pos int
	err error
}

func (r *jsonReader) fail(what string) {
	if r.err == nil {
		r.err = fmt.Errorf("byte %d: %s", r.pos, what)
	}
}

// peek returns the next byte that is not blank, 0 at the end or after an error.
func (r *jsonReader) peek() byte {
	for ; r.err == nil && r.pos < len(r.b); r.pos++ {
		switch c := r.b[r.pos]; c {
		case ' ', '\t', '\r', '\n':
		default:
			return c
		}
	}
	return 0
}

func (r *jsonReader) expect(c byte) {
	if r.peek() != c {
		r.fail("expected " + string(rune(c)))
		return
	}
	r.pos++
}

func (r *jsonReader) end() {
	if r.peek(); r.err == nil && r.pos < len(r.b) {
		r.fail("expected the end")
	}
}

// word reports whether w is next, and reads it.
func (r *jsonReader) word(w string) bool {
	r.peek()
	if r.err != nil || !bytes.HasPrefix(r.b[r.pos:], []byte(w)) {
		return false
	}
	r.pos += len(w)
	return true
}

func (r *jsonReader) null() bool { return r.word("null") }

func (r *jsonReader) bool() bool {
	if r.word("true") {
		return true
	}
	if !r.word("false") {
		r.fail("expected true or false")
	}
	return false
}

// list reads an array with element reading each of its values.
func (r *jsonReader) list(element func()) {
	r.expect('[')
	if r.peek() != ']' {
		for element(); r.peek() == ','; element() {
			r.pos++
		}
	}
	r.expect(']')
}

// number reads an integer from low to high; MIT writes no other numbers.
func (r *jsonReader) number(low, high int64) int64 {
	r.peek()
	if r.err != nil {
		return 0
	}
	end := r.pos
	for end < len(r.b) && (r.b[end] == '-' || '0' <= r.b[end] && r.b[end] <= '9') && end-r.pos < 20 {
		end++
	}
	n, err := strconv.ParseInt(string(r.b[r.pos:end]), 10, 64)
	if err != nil || n < low || n > high {
		r.fail(fmt.Sprintf("expected an integer from %d to %d", low, high))
		return 0
	}
	r.pos = end
	return n
}

// text reads a string.
func (r *jsonReader) text() []byte {
	r.expect('"')
	if r.err != nil {
		return nil
	}
	// Room for all of it at once, lest pieces of a password stay behind.
	length := bytes.IndexByte(r.b[r.pos:], '"')
	for length >= 0 && length > 0 && r.b[r.pos+length-1] == '\\' {
		next := bytes.IndexByte(r.b[r.pos+length+1:], '"')
		if next < 0 {
			break
		}
		length += 1 + next
	}
	s := make([]byte, 0, max(length, 0))
	for r.pos < len(r.b) {
		c := r.b[r.pos]
		r.pos++
		switch {
		case c == '"':
			return s
		case c == 0:
			r.fail("NUL in a string")
			return nil
		case c != '\\':
			s = append(s, c)
			continue
		}
		if r.pos == len(r.b) {
			break
		}
		c = r.b[r.pos]
		r.pos++
		if i := strings.IndexByte(escapes, c); i >= 0 {
			s = append(s, escaped[i])
			continue
		}
		var n uint64
		if c == 'u' && r.pos+4 <= len(r.b) {
			n, _ = strconv.ParseUint(string(r.b[r.pos:r.pos+4]), 16, 16) // 0 if it is none
		}
		if n == 0 || n > 0xff {
			r.fail(`expected one of "\/bfnrt or u0001 to u00FF after \`)
			return nil
		}
		s = append(s, byte(n))
		r.pos += 4
	}
	r.fail("string without end")
	return nil
}

func (r *jsonReader) string() string { return string(r.text()) }

// optional reads a string or null.
func (r *jsonReader) optional() string {
	if r.null() {
		return ""
	}
	return r.string()
}

func (r *jsonReader) base64() []byte {
	s := r.text()
	if len(s) == 0 {
		return nil
	}
	defer clear(s)
	b, err := base64.StdEncoding.AppendDecode(make([]byte, 0, len(s)/4*3), s)
	if err != nil {
		clear(b)
		r.fail("expected base64")
		return nil
	}
	return b
}

// typed reads [number, base64].
func (r *jsonReader) typed() (int32, []byte) {
	r.expect('[')
	kind := r.number(-1<<31, 1<<31-1)
	r.expect(',')
	data := r.base64()
	r.expect(']')
	return int32(kind), data
}

// principal reads a principal with realm, or null.
func (r *jsonReader) principal() *krb5.Principal {
	if r.null() {
		return nil
	}
	s := r.string()
	if r.err != nil {
		return nil
	}
	p, err := krb5.ParsePrincipal(s, "")
	if err != nil {
		r.fail("malformed principal name")
		return nil
	}
	return &p
}
