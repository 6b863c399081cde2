package xdr

import (
	"encoding/hex"
	"fmt"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Printer collects printed messages as lines of "path.to.field: value". Secret fields show their
// length and nothing else; other opaque data is quoted when it is text and in hex when it is not,
// and cut when it is long. The zero value is ready.
type Printer struct {
	out  []byte
	path []byte
}

// shown is how many bytes of opaque data or text are printed.
const shown = 256

// Sprint returns the lines of one message.
func Sprint(m Message) string {
	var p Printer
	m.Print(&p)
	return p.String()
}

// String returns the lines so far, each with its newline.
func (p *Printer) String() string { return string(p.out) }

// Message prints m under a name. An empty name adds nothing to the path.
func (p *Printer) Message(name string, m Message) {
	old := p.enter(name)
	m.Print(p)
	p.leave(old)
}

// enter appends a name to the path; leave undoes it with the length that enter returned.
func (p *Printer) enter(name string) (old int) {
	old = len(p.path)
	if name != "" && old > 0 {
		p.path = append(p.path, '.')
	}
	p.path = append(p.path, name...)
	return old
}

func (p *Printer) enterItem(name string, i int) (old int) {
	old = p.enter(name)
	p.path = fmt.Appendf(p.path, "[%d]", i)
	return old
}

func (p *Printer) leave(old int) { p.path = p.path[:old] }

func (p *Printer) line(name, value string) {
	old := p.enter(name)
	p.out = fmt.Appendf(p.out, "%s: %s\n", p.path, value)
	p.leave(old)
}

func (p *Printer) int(name string, v int64)     { p.line(name, strconv.FormatInt(v, 10)) }
func (p *Printer) uint(name string, v uint64)   { p.line(name, strconv.FormatUint(v, 10)) }
func (p *Printer) bool(name string, v bool)     { p.line(name, strconv.FormatBool(v)) }
func (p *Printer) count(name string, n int)     { p.line(name, plural(n, "item")) }
func (p *Printer) secret(name string, v []byte) { p.line(name, plural(len(v), "byte")) }
func (p *Printer) opaque(name string, v []byte) { p.line(name, show(v)) }
func (p *Printer) oid(name string, v []byte)    { p.line(name, dotted(v)) }

// present returns set, and says so when an optional is absent.
func (p *Printer) present(name string, set bool) bool {
	if !set {
		p.line(name, "absent")
	}
	return set
}

// text prints a string whose length may count a final NUL, without the NUL.
func (p *Printer) text(name string, v []byte) { p.line(name, show(trimNUL(v))) }

// oids prints a set of object identifiers on one line.
func (p *Printer) oids(name string, v [][]byte) {
	words := make([]string, len(v))
	for i := range v {
		words[i] = dotted(v[i])
	}
	if len(v) == 0 {
		words = []string{"none"}
	}
	p.line(name, strings.Join(words, " "))
}

// optionValue prints the value of an option. A short text is a keyword or a user's name; anything
// else may be a credential.
func (p *Printer) optionValue(name string, v []byte) {
	if t := trimNUL(v); len(t) <= 64 && isText(t) {
		p.text(name, v)
	} else {
		p.secret(name, v)
	}
}

// seconds prints a relative time.
func (p *Printer) seconds(name string, v uint64) {
	if v == 0xffffffff {
		p.line(name, "indefinite")
	} else {
		p.line(name, strconv.FormatUint(v, 10)+" s")
	}
}

// names gives words to bits or numbers.
type names []struct {
	v    uint64
	word string
}

// flagNames are the GSS_C_*_FLAG bits of RFC 2744 and of the extensions in MIT's gssapi_ext.h,
// lowest first.
var flagNames = names{
	{0x1, "delegation"}, {0x2, "mutual"}, {0x4, "replay"}, {0x8, "sequence"}, {0x10, "confidentiality"},
	{0x20, "integrity"}, {0x40, "anonymous"}, {0x80, "prot-ready"}, {0x100, "transferable"},
	{0x800, "channel-bound"}, {0x1000, "dce-style"}, {0x2000, "identify"}, {0x4000, "extended-error"},
	{0x8000, "delegation-policy"},
}

// FlagNames returns the names of the GSS flags in a set, and the bits that have none.
func FlagNames(flags uint64) (known []string, unknown uint64) {
	return flagNames.bits(flags)
}

// flags prints a set of GSS flags: the number, and the names of the bits that have one.
func (p *Printer) flags(name string, v uint64) {
	p.line(name, fmt.Sprintf("%#x", v)+flagNames.spaced(v))
}

// bits returns the words of the bits that are set in v, and those that have none.
func (n names) bits(v uint64) (words []string, rest uint64) {
	for _, b := range n {
		if v&b.v != 0 {
			words = append(words, b.word)
			v &^= b.v
		}
	}
	return words, v
}

// spaced returns the words of the bits that are set in v, each with a space before it.
func (n names) spaced(v uint64) string {
	words, _ := n.bits(v)
	return strings.Join(append([]string{""}, words...), " ")
}

// number returns the word of v with a space before it, or nothing.
func (n names) number(v uint64) string {
	for _, w := range n {
		if w.v == v {
			return " " + w.word
		}
	}
	return ""
}

// The three parts of a major status (RFC 2744 section 3.9.1).
var (
	callingErrors = names{{1, "CALL_INACCESSIBLE_READ"}, {2, "CALL_INACCESSIBLE_WRITE"}, {3, "CALL_BAD_STRUCTURE"}}
	routineErrors = names{{1, "BAD_MECH"}, {2, "BAD_NAME"}, {3, "BAD_NAMETYPE"}, {4, "BAD_BINDINGS"}, {5, "BAD_STATUS"}, {6, "BAD_SIG"},
		{7, "NO_CRED"}, {8, "NO_CONTEXT"}, {9, "DEFECTIVE_TOKEN"}, {10, "DEFECTIVE_CREDENTIAL"}, {11, "CREDENTIALS_EXPIRED"},
		{12, "CONTEXT_EXPIRED"}, {13, "FAILURE"}, {14, "BAD_QOP"}, {15, "UNAUTHORIZED"}, {16, "UNAVAILABLE"}, {17, "DUPLICATE_ELEMENT"},
		{18, "NAME_NOT_MN"}, {19, "BAD_MECH_ATTR"}}
	supplementary = names{{1, "CONTINUE_NEEDED"}, {2, "DUPLICATE_TOKEN"}, {4, "OLD_TOKEN"}, {8, "UNSEQ_TOKEN"}, {16, "GAP_TOKEN"}}
)

// major prints a major status: the number, and the names of its parts.
func (p *Printer) major(name string, v uint64) {
	if v == 0 {
		p.line(name, "COMPLETE")
		return
	}
	p.line(name, fmt.Sprintf("%#x", v)+callingErrors.number(v>>24)+routineErrors.number(v>>16&0xff)+supplementary.spaced(v&0xffff))
}

// minor prints a minor status, and as a signed number too when that is how error tables list it.
func (p *Printer) minor(name string, v uint64) {
	s := strconv.FormatUint(v, 10)
	if v == uint64(uint32(v)) && int32(v) < 0 {
		s += fmt.Sprintf(" (%d)", int32(v))
	}
	p.line(name, s)
}

func plural(n int, unit string) string {
	if n == 1 {
		return "1 " + unit
	}
	return strconv.Itoa(n) + " " + unit + "s"
}

// trimNUL drops one NUL from the end.
func trimNUL(v []byte) []byte {
	if n := len(v); n > 0 && v[n-1] == 0 {
		return v[:n-1]
	}
	return v
}

// isText reports whether v is printable UTF-8; the empty string is.
func isText(v []byte) bool {
	for len(v) > 0 {
		r, n := utf8.DecodeRune(v)
		if r == utf8.RuneError && n == 1 || !unicode.IsPrint(r) {
			return false
		}
		v = v[n:]
	}
	return true
}

// show prints bytes: text in quotes, also with a NUL at its end, other bytes in hex, not more than
// shown of them.
func show(v []byte) string {
	rest := ""
	if n := len(v) - shown; n > 0 {
		v, rest = v[:shown], fmt.Sprintf("... and %s more", plural(n, "byte"))
	}
	if isText(trimNUL(v)) {
		return strconv.Quote(string(v)) + rest
	}
	return hex.EncodeToString(v) + rest
}

// dotted prints the DER content octets of an object identifier (X.690 section 8.19), or their hex
// if they are not one.
func dotted(v []byte) string {
	if len(v) == 0 {
		return "none"
	}
	var s []byte
	var arc uint64
	for i, c := range v {
		if arc >= 1<<56 || arc == 0 && c == 0x80 || i == len(v)-1 && c&0x80 != 0 {
			return "not an OID: " + show(v)
		}
		arc = arc<<7 | uint64(c&0x7f)
		if c&0x80 != 0 {
			continue
		}
		if s == nil { // the first two arcs share a number
			top := min(arc/40, 2)
			s = strconv.AppendUint(s, top, 10)
			arc -= 40 * top
		}
		s = append(s, '.')
		s = strconv.AppendUint(s, arc, 10)
		arc = 0
	}
	return string(s)
}
