// Package keytab keeps long-term Kerberos keys: it reads keytab files, compiles them into rings
// that answer "which key opens this ticket" without allocating, and follows the files as they are
// rotated, sealed ones among them.
//
// Parse turns file bytes into entries and Compile turns entries into a Ring; both are pure. Open
// and Set watch a file and publish a new Ring whenever it changes. A reader calls Keytab.Ring once
// per request and uses that ring to the end: a ring never changes, and a broken or half-written
// file never replaces a good one.
package keytab

import (
	"bytes"
	"encoding/binary"
	"fmt"

	"gssproxyd/mech/krb5/etype"
	"gssproxyd/mech/krb5/wire"
)

// An Entry is one record of a keytab file.
type Entry struct {
	Principal string       // unparsed with its realm, special characters quoted: "HTTP/www.example.com@EXAMPLE.COM"
	NameType  int32        // RFC 4120 section 6.2; not significant in comparisons
	Timestamp uint32       // seconds since 1970: when the entry was written
	KVNO      uint32       // the 32-bit extension when the file has it, else the 8-bit number
	Enctype   etype.ID     // need not be a supported one
	Key       etype.Secret // aliases the bytes given to Parse; its length is not checked against Enctype
	Offset    int          // of the record's length field in the file
	Pending   bool         // the KDC may not have the key yet, so it is for accepting only; no file says so
	Previous  bool         // a key store keeps the key for tickets from before Timestamp only; likewise
	Until     int64        // when the store takes that away, in Unix seconds; 0: not known
}

// A FormatError says where a keytab stops making sense.
type FormatError struct {
	Offset int    // byte offset in the file
	Text   string // what was found and what was expected
}

// Error returns "byte N: " and the text.
func (e *FormatError) Error() string { return fmt.Sprintf("byte %d: %s", e.Offset, e.Text) }

// Parse reads a keytab of format 05 02 (MIT krb5's doc/formats/keytab_file_format.rst; all integers
// big-endian).
//
// Holes left by removed entries are skipped, a record length of zero ends the file whatever
// follows, and bytes after a record's last known field are ignored. Anything cut short is a
// *FormatError: the file is damaged or still being written, and the caller is better served by the
// keys it already has. A file with no entries is not an error. The keys alias b; memory used
// besides is at most a small multiple of len(b).
func Parse(b []byte) ([]Entry, error) {
	return parse(b, func(int, []byte, bool) {})
}

// parse is Parse, and calls unused with what is no entry: the content of a hole, or with last the
// bytes behind the end, and where they begin.
func parse(b []byte, unused func(offset int, content []byte, last bool)) ([]Entry, error) {
	switch {
	case len(b) == 0:
		return nil, &FormatError{0, "the file is empty; a keytab starts with bytes 05 02"}
	case len(b) < 2:
		return nil, &FormatError{0, "one byte only; a keytab starts with bytes 05 02"}
	case bytes.HasPrefix(b, []byte("BQIA")):
		return nil, &FormatError{0, "text in base64; decode it, for example with base64 -d"}
	case looksSealed(b):
		return nil, errSealed
	case b[0] != 5:
		return nil, &FormatError{0, fmt.Sprintf("starts with bytes %02x %02x; a keytab starts with 05 02", b[0], b[1])}
	case b[1] == 1:
		return nil, &FormatError{1, "old keytab format 05 01 (host byte order); write it again as 05 02, for example with ktutil rkt and wkt"}
	case b[1] == 3, b[1] == 4:
		return nil, &FormatError{1, fmt.Sprintf("starts with bytes 05 %02x, as a credential cache; a keytab starts with 05 02", b[1])}
	case b[1] != 2:
		return nil, &FormatError{1, fmt.Sprintf("unknown keytab format 05 %02x; expected 05 02", b[1])}
	}
	var entries []Entry
	for pos := 2; pos < len(b); {
		start := pos
		if len(b)-pos < 4 {
			return nil, &FormatError{start, fmt.Sprintf("%d bytes where a 4-byte record length was expected; %s", len(b)-pos, cutShort)}
		}
		size := int64(int32(binary.BigEndian.Uint32(b[pos:])))
		pos += 4
		if size == 0 {
			unused(pos, b[pos:], true)
			break
		}
		if n := max(size, -size); n > int64(len(b)-pos) {
			what := "record"
			if size < 0 {
				what = "hole"
			}
			return nil, &FormatError{start, fmt.Sprintf("%s of %d bytes, but only %d are left; %s", what, n, len(b)-pos, cutShort)}
		}
		if size < 0 {
			unused(pos, b[pos:pos+int(-size)], false)
			pos += int(-size)
			continue
		}
		r := record{b: b[pos : pos+int(size)], start: pos}
		e := r.entry()
		if r.err != nil {
			return nil, r.err
		}
		e.Offset = start
		entries = append(entries, e)
		pos += int(size)
	}
	return entries, nil
}

var errSealed = &FormatError{0, "a sealed keytab, of age's format; write SEALED: before its path"}

const cutShort = "the file is cut short or still being written"

// A record reads the fields of one keytab record; the first failure sticks.
type record struct {
	b     []byte
	pos   int
	start int // file offset of b[0]
	err   error
}

func (r *record) entry() Entry {
	var e Entry
	count := int(r.uint16("number of name components"))
	if r.err == nil && count == 0 {
		r.err = &FormatError{r.start, "a principal without components; expected one at least"}
	}
	realm := r.data("realm")
	var name []byte
	for i := 0; i < count && r.err == nil; i++ {
		if i > 0 {
			name = append(name, '/')
		}
		name = wire.AppendQuoted(name, r.data("name component"))
	}
	e.Principal = string(wire.AppendQuoted(append(name, '@'), realm))
	e.NameType = int32(r.uint32("name type"))
	e.Timestamp = r.uint32("timestamp")
	if v := r.take(1, "key version"); v != nil {
		e.KVNO = uint32(v[0])
	}
	e.Enctype = etype.ID(int16(r.uint16("encryption type")))
	e.Key = etype.Secret(r.data("key"))
	// Writers that reuse a hole leave zero fill here, hence zero means absent.
	if r.err == nil && len(r.b)-r.pos >= 4 {
		if v := r.uint32("32-bit key version"); v != 0 {
			e.KVNO = v
		}
	}
	return e
}

func (r *record) take(n int, what string) []byte {
	if r.err != nil {
		return nil
	}
	if left := len(r.b) - r.pos; n > left {
		r.err = &FormatError{r.start + r.pos, fmt.Sprintf("%s needs %d bytes, but its record ends after %d; the file is damaged", what, n, left)}
		return nil
	}
	r.pos += n
	return r.b[r.pos-n : r.pos : r.pos]
}

func (r *record) uint16(what string) uint16 {
	if v := r.take(2, what); v != nil {
		return binary.BigEndian.Uint16(v)
	}
	return 0
}

func (r *record) uint32(what string) uint32 {
	if v := r.take(4, what); v != nil {
		return binary.BigEndian.Uint32(v)
	}
	return 0
}

func (r *record) data(what string) []byte { return r.take(int(r.uint16("length of the "+what)), what) }
