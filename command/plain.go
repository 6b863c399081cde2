package command

import (
	"fmt"
	"io"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Plain is where commands print. A terminal acts on some characters, and names of files and
// principals are others' to choose: what is not to be seen is escaped there, as JSON does it too, and
// only lines end.
type Plain struct{ io.Writer }

// Write writes whole texts.
func (w Plain) Write(b []byte) (int, error) {
	if _, err := io.WriteString(w.Writer, Escaped(string(b), "\n\t")); err != nil {
		return 0, err
	}
	return len(b), nil
}

// Escaped is s with what is not to be seen, but for some, as JSON escapes it. What is not UTF-8 is \xNN.
func Escaped(s, but string) string {
	hidden := func(r rune) bool { return !unicode.IsPrint(r) && !strings.ContainsRune(but, r) }
	if utf8.ValidString(s) && !strings.ContainsFunc(s, hidden) {
		return s
	}
	var b strings.Builder
	for i, r := range s {
		switch {
		case r == utf8.RuneError && !strings.HasPrefix(s[i:], string(utf8.RuneError)):
			fmt.Fprintf(&b, `\x%02x`, s[i])
		case !hidden(r):
			b.WriteRune(r)
		case r > 0xffff:
			r -= 0x10000
			fmt.Fprintf(&b, `\u%04x\u%04x`, 0xd800+r>>10, 0xdc00+r&0x3ff)
		default:
			fmt.Fprintf(&b, `\u%04x`, r)
		}
	}
	return b.String()
}

// Shown is a text with parts that others choose, for a line of its own.
func Shown(s string) string { return Escaped(s, "") }

// Word is a text of others among words of ours: in quotes, if it could be taken for more than one.
func Word(s string) string {
	if strings.ContainsAny(s, `", `) {
		return `"` + strings.ReplaceAll(s, `"`, `\"`) + `"`
	}
	return s
}
