package main

import (
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"
)

// pos is a place in a .x file; lines count from 1.
type pos struct {
	file string
	line int
}

func (p pos) String() string { return fmt.Sprintf("%s:%d", p.file, p.line) }

// errorf makes the generator's one kind of error: place, what is wrong, what to do.
func (p pos) errorf(format string, args ...any) error {
	return fmt.Errorf("%s: %s", p, fmt.Sprintf(format, args...))
}

// token is a word, a number or one character of punctuation. The end of the file is a token without
// text.
type token struct {
	pos
	text string
	doc  string // the comment that ends on the line above, of the first token of a line
	note string // the comment behind it on the same line
}

func (t token) String() string {
	if t.text == "" {
		return "the end of the file"
	}
	return fmt.Sprintf("%q", t.text)
}

func isWord(c byte) bool {
	return c == '_' || '0' <= c && c <= '9' || 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z'
}

// lex splits src into tokens; the last one is the end of the file. Comments hang on the tokens they
// belong to.
func lex(name, src string) ([]token, error) {
	var toks []token
	at := pos{name, 1}
	doc, docEnd := "", 0
	add := func(text string) {
		t := token{pos: at, text: text}
		if first := len(toks) == 0 || toks[len(toks)-1].line < at.line; first && docEnd == at.line-1 {
			t.doc = doc
		}
		toks = append(toks, t)
	}
	for i := 0; i < len(src); {
		switch c := src[i]; {
		case c == '\n':
			at.line++
			i++
		case c == ' ' || c == '\t' || c == '\r':
			i++
		case strings.HasPrefix(src[i:], "/*"):
			n := strings.Index(src[i+2:], "*/")
			if n < 0 {
				return nil, at.errorf("comment without an end; close it with */")
			}
			text := src[i+2 : i+2+n]
			i += n + 4
			for _, r := range text {
				if r == utf8.RuneError || !unicode.IsPrint(r) && !unicode.IsSpace(r) {
					return nil, at.errorf("comment with a character %U, which Go would not take", r)
				}
			}
			comment := strings.Join(strings.Fields(text), " ")
			if last := len(toks) - 1; last >= 0 && toks[last].line == at.line {
				toks[last].note = comment
				at.line += strings.Count(text, "\n")
				break
			}
			at.line += strings.Count(text, "\n")
			doc, docEnd = comment, at.line
		case isWord(c) || c == '-':
			n := 1
			for i+n < len(src) && isWord(src[i+n]) {
				n++
			}
			add(src[i : i+n])
			i += n
		case strings.IndexByte("{}()[]<>;:,=*", c) >= 0:
			add(src[i : i+1])
			i++
		default:
			return nil, at.errorf("unexpected character %q; the XDR language knows words, numbers, /* comments */ and {}()[]<>;:,=*", c)
		}
	}
	add("")
	return toks, nil
}
