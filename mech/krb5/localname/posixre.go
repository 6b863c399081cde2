package localname

import (
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// posixRegexp is a POSIX extended regular expression (IEEE Std 1003.1, chapter 9) as regcomp of
// glibc compiles it in the C locale: octets, the leftmost of the longest matches. The \w \W \s \S
// \b operators of GNU are there; \< \> and back-references are not, as the engine underneath has
// nothing like them, nor is \B, of which glibc has its own idea.
type posixRegexp struct{ re *regexp.Regexp }

// matchAll reports whether the whole of s matches.
func (r *posixRegexp) matchAll(s string) bool {
	s = latin1(s)
	m := r.re.FindStringIndex(s)
	return m != nil && m[0] == 0 && m[1] == len(s)
}

// replace puts text in the place of the leftmost longest match, or with global of one after the
// other; "^" matches again after each. An empty match would repeat for ever and is an error.
func (r *posixRegexp) replace(s, text string, global bool) (string, error) {
	var b strings.Builder
	rest := latin1(s)
	for {
		m := r.re.FindStringIndex(rest)
		if m == nil {
			break
		}
		if global && m[1] == 0 {
			return "", errors.New("s///g matches the empty string, without end")
		}
		b.WriteString(unlatin1(rest[:m[0]]))
		b.WriteString(text)
		rest = rest[m[1]:]
		if !global {
			break
		}
	}
	b.WriteString(unlatin1(rest))
	return b.String(), nil
}

// latin1 makes a character of each octet, since Go's engine wants UTF-8.
func latin1(s string) string {
	r := make([]rune, len(s))
	for i := range r {
		r[i] = rune(s[i])
	}
	return string(r)
}

// unlatin1 undoes latin1.
func unlatin1(s string) string {
	b := make([]byte, 0, len(s))
	for _, c := range s {
		b = append(b, byte(c))
	}
	return string(b)
}

// compilePOSIX compiles an expression by writing it down again in Go's syntax, every group, bracket
// expression and repetition spelled out.
func compilePOSIX(expr string) (*posixRegexp, error) {
	t := translator{in: expr, atom: -1}
	if err := t.run(); err != nil {
		return nil, fmt.Errorf("regular expression %q: %w", expr, err)
	}
	re, err := regexp.Compile("(?s)" + string(t.out))
	if err != nil {
		return nil, fmt.Errorf("regular expression %q: %w", expr, err)
	}
	re.Longest()
	return &posixRegexp{re}, nil
}

type translator struct {
	in     string // what is left
	out    []byte
	groups []int // where in out the open groups start
	atom   int   // where in out what a repetition would repeat starts; -1: nothing
}

func (t *translator) run() error {
	for t.in != "" {
		c := t.in[0]
		t.in = t.in[1:]
		switch {
		case c == '(':
			t.groups = append(t.groups, len(t.out))
			t.out = append(t.out, "(?:"...)
			t.atom = -1
		case c == ')' && len(t.groups) > 0:
			t.out = append(t.out, ')')
			t.atom = t.groups[len(t.groups)-1]
			t.groups = t.groups[:len(t.groups)-1]
		case c == '|':
			t.out = append(t.out, '|')
			t.atom = -1
		case c == '^':
			t.anchor(`\A`)
		case c == '$':
			t.anchor(`\z`)
		case c == '.':
			t.put(".")
		case c == '[':
			if err := t.bracket(); err != nil {
				return err
			}
		case c == '\\':
			if err := t.escape(); err != nil {
				return err
			}
		case c == '*' || c == '+' || c == '?' || c == '{':
			if err := t.repeat(c); err != nil {
				return err
			}
		default:
			t.put(octet(c))
		}
	}
	if len(t.groups) > 0 {
		return errors.New("( without )")
	}
	return nil
}

// put writes an atom.
func (t *translator) put(s string) {
	t.atom = len(t.out)
	t.out = append(t.out, s...)
}

// octet is an octet in Go's syntax, in brackets and outside.
func octet(c byte) string { return fmt.Sprintf(`\x{%02x}`, c) }

// anchor writes what matches no octets, and so cannot be repeated.
func (t *translator) anchor(s string) {
	t.out = append(t.out, s...)
	t.atom = -1
}

func (t *translator) escape() error {
	if t.in == "" {
		return errors.New("backslash at the end")
	}
	c := t.in[0]
	t.in = t.in[1:]
	switch {
	case c == 'w':
		t.put("[0-9A-Za-z_]")
	case c == 'W':
		t.put("[^0-9A-Za-z_]")
	case c == 's':
		t.put(`[\t-\r ]`)
	case c == 'S':
		t.put(`[^\t-\r ]`)
	case c == 'b':
		t.anchor(`\b`)
	case c == '`':
		t.anchor(`\A`)
	case c == '\'':
		t.anchor(`\z`)
	case c == 'B' || c == '<' || c == '>' || '1' <= c && c <= '9':
		return fmt.Errorf(`\%c is not supported`, c)
	default:
		t.put(octet(c))
	}
	return nil
}

// repeat puts a repetition around the last atom. Repetitions add up: a*{2}.
func (t *translator) repeat(op byte) error {
	if t.atom < 0 {
		return fmt.Errorf("nothing to repeat before %c", op)
	}
	times := string(op)
	if op == '{' {
		bounds, rest, ok := strings.Cut(t.in, "}")
		low, high, two := strings.Cut(bounds, ",")
		if two && low == "" {
			low = "0"
		}
		m, err := strconv.ParseUint(low, 10, 15)
		if !ok || err != nil {
			return errors.New("expected {m}, {m,}, {,n} or {m,n}")
		}
		if two && high != "" {
			if n, err := strconv.ParseUint(high, 10, 15); err != nil || n < m {
				return errors.New("expected {m,n} with n not less than m")
			}
		}
		t.in, times = rest, "{"+low
		if two {
			times += "," + high
		}
		times += "}"
	}
	t.out = append(slices.Insert(t.out, t.atom, []byte("(?:")...), ')')
	t.out = append(t.out, times...)
	return nil
}

// classes are the character classes of the C locale; Go's are the same, and two more.
const classes = " alpha digit alnum upper lower space blank punct print graph cntrl xdigit "

var errBracket = errors.New("[ without ]")

// bracket reads a bracket expression, in which a backslash is an octet like any other, and writes
// it with all octets spelled out.
func (t *translator) bracket() error {
	out := "["
	if rest, ok := strings.CutPrefix(t.in, "^"); ok {
		t.in, out = rest, "[^"
	}
	for first := true; first || !strings.HasPrefix(t.in, "]"); first = false {
		if !first && strings.HasPrefix(t.in, "-") && !strings.HasPrefix(t.in, "-]") {
			return errors.New("- between two ranges")
		}
		low, class, err := t.element()
		if err != nil {
			return err
		}
		out += low
		if len(t.in) < 2 || t.in[0] != '-' || t.in[1] == ']' {
			continue
		}
		if class {
			return errors.New("a range that starts with a class")
		}
		t.in = t.in[1:]
		high, class, err := t.element()
		if err != nil {
			return err
		}
		if class || high < low { // both are two digits in the same frame
			return errors.New("a range whose end is before its start")
		}
		out += "-" + high
	}
	t.in = t.in[1:]
	t.put(out + "]")
	return nil
}

// element reads one element of a bracket expression and returns it in Go's syntax: an octet, or a
// class, with which no range starts or ends.
func (t *translator) element() (s string, class bool, err error) {
	if t.in == "" {
		return "", false, errBracket
	}
	if len(t.in) > 1 && t.in[0] == '[' && strings.IndexByte(":=.", t.in[1]) >= 0 {
		kind := t.in[1]
		name, rest, ok := strings.Cut(t.in[2:], string(kind)+"]")
		if !ok {
			return "", false, errBracket
		}
		t.in = rest
		switch {
		case kind == ':' && strings.Contains(classes, " "+name+" "):
			return "[:" + name + ":]", true, nil
		case kind == ':':
			return "", false, fmt.Errorf("unknown class [:%s:]", name)
		case len(name) != 1:
			return "", false, fmt.Errorf("unknown collating element %q", name)
		}
		return octet(name[0]), kind == '=', nil
	}
	c := t.in[0]
	t.in = t.in[1:]
	return octet(c), false, nil
}
