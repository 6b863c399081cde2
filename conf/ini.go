package conf

import (
	"bytes"
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"
)

// The syntax is that of libini_config with INI_PARSE_NOWRAP, which the C daemon
// uses:
//
//   - UTF-8, with or without a byte order mark; lines end in LF or CR LF.
//   - A comment is a whole line: it begins with '#', ';' or '//' in column 0,
//     or reaches from a line that begins with '/*' to one that ends with '*/'.
//     There are no comments behind a value, and an indented '#' begins none; what
//     looks like one is reported.
//   - [section] begins in column 0; blanks inside the brackets do not count.
//     Section names are compared without regard to case.
//   - key = value, indented or not, split at the first '=', blanks around both
//     removed; keys are compared without regard to case. Nothing is unquoted.
//   - No line continues on the next one.

const (
	maxFile = 1 << 20 // bytes; sanity, libini has no limit
	maxName = 1024    // bytes of a key or section name, libini's MAX_KEY
)

type entry struct {
	key, value string
	at         position
}

type section struct {
	name    string // "" is what precedes the first section
	at      position
	entries []entry
}

// parse splits a file into its sections, in order, repeated ones included. Lines that are wrong are
// reported to r and left out. expected is said of a header that is none.
func parse(file string, nth int, data []byte, r *report, expected string) []section {
	p := parser{at: position{file: file, nth: nth}, r: r, expected: expected}
	if len(data) > maxFile {
		p.at.line = 1
		p.bad(fmt.Sprintf("the file has %d bytes", len(data)), fmt.Sprintf("at most %d are read", maxFile), "is this the right file?")
		return nil
	}
	for _, bom := range []string{"\xff\xfe", "\xfe\xff", "\x00\x00\xfe\xff"} {
		if bytes.HasPrefix(data, []byte(bom)) {
			p.at.line = 1
			p.bad("the file is encoded in UTF-16 or UTF-32", "UTF-8 is expected", "convert it with iconv(1)")
			return nil
		}
	}
	data = bytes.TrimPrefix(data, []byte("\xef\xbb\xbf"))
	for line := range bytes.Lines(data) {
		p.at.line++
		p.line(strings.TrimRight(string(line), "\r\n"))
	}
	if p.comment.line > 0 {
		p.at = p.comment
		p.bad("the comment that begins with /* here has no end", "a line that ends with */ is expected", "close it, or begin every line with #")
	}
	return p.sections
}

type parser struct {
	r        *report
	expected string // of a section's header
	at       position
	comment  position // where the open /* is, if line > 0
	sections []section
	lost     bool // in a section whose header is wrong
}

func (p *parser) bad(what, expected, do string) { p.r.fail(p.at, what, expected, do) }

func (p *parser) line(s string) {
	switch {
	case !utf8.ValidString(s):
		p.bad("the line is not valid UTF-8", "", "convert the file with iconv(1), or remove the bytes")
	case strings.ContainsRune(s, 0):
		p.bad("the line has a NUL byte in it", "text is expected", "remove it")
	case p.comment.line > 0:
		p.inComment(s, s)
	case strings.HasPrefix(s, "/*"):
		p.comment = p.at
		p.inComment(s, s[2:])
	case s == "", s[0] == '#', s[0] == ';', strings.HasPrefix(s, "//"), trim(s) == "":
	case s[0] == '[':
		p.section(trim(s))
	default:
		p.entry(s)
	}
}

// inComment closes the comment if its end is in tail, the part of the line where it may be.
func (p *parser) inComment(line, tail string) {
	if !strings.HasSuffix(trim(tail), "*/") {
		return
	}
	p.comment = position{}
	if trim(line) == "*/" && line[0] == '*' {
		p.r.warn(p.at, "*/ in column 0 ends the comment here, but not for the C daemon", "indent it by a blank")
	}
}

func (p *parser) section(s string) {
	p.lost = true // until the header is found to be good
	if s[len(s)-1] != ']' {
		p.bad(fmt.Sprintf("the section header %q has no ] at its end", shorten(s)), p.expected, "end it with ]; a comment must have a line of its own")
		return
	}
	name := trim(s[1 : len(s)-1])
	switch {
	case name == "":
		p.bad("the section has no name", p.expected, "name it")
	case len(name) > maxName:
		p.bad(fmt.Sprintf("the section's name has %d bytes", len(name)), fmt.Sprintf("at most %d are expected", maxName), "shorten it")
	default:
		p.lost = false
		p.sections = append(p.sections, section{name: name, at: p.at})
	}
}

func (p *parser) entry(s string) {
	indent := s[:len(s)-len(strings.TrimLeft(s, blanks))]
	key, value, ok := strings.Cut(s, "=")
	key, value = trim(key), trim(value)
	switch {
	case strings.Trim(indent, " \t") != "":
		p.bad("the line begins with a control character", "", "remove it")
	case !ok && strings.HasPrefix(s[len(indent):], "["):
		p.lost = true
		p.bad(fmt.Sprintf("%q is indented", shorten(trim(s))), "a section begins in column 0", "remove the blanks before [")
	case !ok && beginsComment(s[len(indent):]):
		p.bad(commentIndented, columnZero, removeBlanks)
	case !ok:
		p.bad(fmt.Sprintf("%q has no =", shorten(trim(s))), "key = value is expected; a value cannot continue on the next line", "add the value, or make it a comment with # in column 0")
	case key == "":
		p.bad("there is no key before =", "key = value is expected", "add the key, or make it a comment with # in column 0")
	case len(key) >= maxName:
		p.bad(fmt.Sprintf("the key has %d bytes", len(key)), fmt.Sprintf("fewer than %d are expected", maxName), "shorten it")
	case p.lost:
	default:
		if len(p.sections) == 0 {
			p.sections = append(p.sections, section{at: p.at})
		}
		last := &p.sections[len(p.sections)-1]
		last.entries = append(last.entries, entry{key, value, p.at})
	}
}

// What is said of a comment with blanks before it.
const (
	commentIndented = "the comment is indented"
	columnZero      = "a comment begins in column 0"
	removeBlanks    = "remove the blanks before it"
)

// beginsComment reports whether s would be a comment, or begin one, in column 0.
func beginsComment(s string) bool {
	return strings.HasPrefix(s, "#") || strings.HasPrefix(s, ";") || strings.HasPrefix(s, "//") || strings.HasPrefix(s, "/*")
}

// hasComment reports whether a value has what looks like a comment behind it, or is one: a # with
// white space, or nothing, before it. Principals and paths may have a # elsewhere.
func hasComment(value string) bool {
	return strings.HasPrefix(value, "#") || strings.Contains(value, " #") || strings.Contains(value, "\t#")
}

// oddBlank returns the first character of s that looks like a blank and is none, such as the
// no-break space; 0 if there is none.
func oddBlank(s string) rune {
	for _, c := range s {
		if c > unicode.MaxASCII && (unicode.IsSpace(c) || c == '\u200b' || c == '\ufeff') {
			return c
		}
	}
	return 0
}

const blanks = " \t\n\v\f\r" // isspace(3) in the C locale

func trim(s string) string { return strings.Trim(s, blanks) }

// shorten keeps messages readable when a line is not, and passwords out of them.
func shorten(s string) string {
	const most, secret = 60, "password"
	if i := strings.Index(s, secret); i >= 0 && len(s) > i+len(secret) {
		s = s[:i+len(secret)] + "..."
	}
	if len(s) <= most {
		return s
	}
	return strings.ToValidUTF8(s[:most], "") + "..."
}
