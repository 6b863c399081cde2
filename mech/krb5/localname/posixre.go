package localname

import (
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"
)

// posixRegexp is a POSIX extended regular expression (IEEE Std 1003.1, chapter 9)
// as regcomp of glibc compiles it in the C locale: octets, the leftmost of the
// longest matches. The \w \W \s \S \b operators of GNU are there; \< \> and
// back-references are not, as the engine underneath has nothing like them, nor is
// \B, of which glibc has its own idea.
type posixRegexp struct{ re *regexp.Regexp }

// matchAll reports whether the whole of s matches.
func (r *posixRegexp) matchAll(s string) bool {
	s = latin1(s)
	m := r.re.FindStringIndex(s)
	return m != nil && m[0] == 0 && m[1] == len(s)
}

// replace puts text in the place of the leftmost longest match, or with global of
// one after the other; "^" matches again after each. An empty match would repeat for
// ever and is an error.
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
	for i := 0; i < len(s); i++ {
		if s[i] >= utf8.RuneSelf {
			b := make([]rune, len(s))
			for i := range b {
				b[i] = rune(s[i])
			}
			return string(b)
		}
	}
	return s
}

// unlatin1 undoes latin1.
func unlatin1(s string) string {
	for i := 0; i < len(s); i++ {
		if s[i] >= utf8.RuneSelf {
			b := make([]byte, 0, len(s))
			for _, c := range s {
				b = append(b, byte(c))
			}
			return string(b)
		}
	}
	return s
}

// compilePOSIX compiles an expression by writing it down again in Go's syntax,
// every group, bracket expression and repetition spelled out.
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
			t.literal(c)
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

func (t *translator) literal(c byte) { t.put(fmt.Sprintf(`\x{%02x}`, c)) }

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
		t.literal(c)
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

// classes are the character classes of the C locale.
var classes = map[string]func(c byte) bool{
	"alpha":  isAlpha,
	"digit":  isDigit,
	"alnum":  func(c byte) bool { return isAlpha(c) || isDigit(c) },
	"upper":  func(c byte) bool { return 'A' <= c && c <= 'Z' },
	"lower":  func(c byte) bool { return 'a' <= c && c <= 'z' },
	"space":  func(c byte) bool { return c == ' ' || '\t' <= c && c <= '\r' },
	"blank":  func(c byte) bool { return c == ' ' || c == '\t' },
	"punct":  func(c byte) bool { return '!' <= c && c <= '~' && !isAlpha(c) && !isDigit(c) },
	"print":  func(c byte) bool { return ' ' <= c && c <= '~' },
	"graph":  func(c byte) bool { return '!' <= c && c <= '~' },
	"cntrl":  func(c byte) bool { return c < ' ' || c == 0x7f },
	"xdigit": func(c byte) bool { return isDigit(c) || 'a' <= c && c <= 'f' || 'A' <= c && c <= 'F' },
}

func isAlpha(c byte) bool { return 'a' <= c|0x20 && c|0x20 <= 'z' }
func isDigit(c byte) bool { return '0' <= c && c <= '9' }

var errBracket = errors.New("[ without ]")

// bracket reads a bracket expression, in which a backslash is an octet like any
// other, and writes the octets it stands for.
func (t *translator) bracket() error {
	var set [256]bool
	negate := false
	if rest, ok := strings.CutPrefix(t.in, "^"); ok {
		t.in, negate = rest, true
	}
	for first := true; ; first = false {
		if !first && strings.HasPrefix(t.in, "]") {
			t.in = t.in[1:]
			break
		}
		if !first && strings.HasPrefix(t.in, "-") && !strings.HasPrefix(t.in, "-]") {
			return errors.New("- between two ranges")
		}
		low, class, err := t.element()
		if err != nil {
			return err
		}
		ranged := len(t.in) >= 2 && t.in[0] == '-' && t.in[1] != ']'
		switch {
		case class != nil && ranged:
			return errors.New("a range that starts with a class")
		case class != nil:
			for c := range set {
				set[c] = set[c] || class(byte(c))
			}
		case ranged:
			t.in = t.in[1:]
			high, class, err := t.element()
			if err != nil {
				return err
			}
			if class != nil || high < low {
				return errors.New("a range whose end is before its start")
			}
			for c := int(low); c <= int(high); c++ {
				set[c] = true
			}
		default:
			set[low] = true
		}
	}
	var b strings.Builder
	b.WriteByte('[')
	for c := 0; c < len(set); c++ {
		if from := c; set[c] != negate {
			for c+1 < len(set) && set[c+1] != negate {
				c++
			}
			fmt.Fprintf(&b, `\x{%02x}-\x{%02x}`, from, c)
		}
	}
	if b.Len() == 1 { // nothing at all: Go has no empty class
		b.WriteString(`^\x{00}-\x{10ffff}`)
	}
	b.WriteByte(']')
	t.put(b.String())
	return nil
}

// element reads one element of a bracket expression: an octet, or a class.
func (t *translator) element() (c byte, class func(byte) bool, err error) {
	if t.in == "" {
		return 0, nil, errBracket
	}
	if len(t.in) > 1 && t.in[0] == '[' && strings.IndexByte(":=.", t.in[1]) >= 0 {
		kind := t.in[1]
		name, rest, ok := strings.Cut(t.in[2:], string(kind)+"]")
		if !ok {
			return 0, nil, errBracket
		}
		t.in = rest
		switch {
		case kind == ':' && classes[name] != nil:
			return 0, classes[name], nil
		case kind == ':':
			return 0, nil, fmt.Errorf("unknown class [:%s:]", name)
		case len(name) != 1:
			return 0, nil, fmt.Errorf("unknown collating element %q", name)
		case kind == '=':
			return 0, func(b byte) bool { return b == name[0] }, nil
		}
		return name[0], nil, nil
	}
	c, t.in = t.in[0], t.in[1:]
	return c, nil, nil
}
