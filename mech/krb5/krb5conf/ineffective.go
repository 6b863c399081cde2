package krb5conf

import (
	"slices"
	"strings"
	"unicode"
)

// What looks as if it meant something, and means nothing or something else to MIT's library, and so
// to this package: each is a warning with its line.

// sections are the names of sections that programs of MIT krb5 ask for.
var sections = []string{
	"libdefaults", "realms", "domain_realm", "capaths", "appdefaults", "plugins",
	"login", "logging", "kdcdefaults", "dbdefaults", "dbmodules", "otp",
}

// before warns of a line before the first section, where everything is a comment, if it is more
// than that.
func (p *parser) before(line string) {
	text := strings.TrimFunc(line, isBlank)
	for _, word := range []string{"include", "includedir"} {
		if _, ok := keyword(text, word); ok {
			p.conf.warn("%s: %s has no effect: it must be at the start of the line", p.at, word)
			return
		}
	}
	if p.early || text == "" || text[0] == '#' || text[0] == ';' || text[0] != '[' && !strings.Contains(text, "=") {
		return
	}
	p.early = true // for what follows as well
	p.conf.warn("%s: %q has no effect: the file begins with the first line that has a [ at its start", p.at, line)
}

// misnamed warns of the name of a section that nobody asks for, and that differs from one that is
// asked for by blanks and case only.
func (p *parser) misnamed(name string) {
	meant := strings.ToLower(strings.TrimFunc(name, isBlank))
	if meant != name && slices.Contains(sections, meant) {
		p.conf.warn("%s: [%s] has no effect: blanks and case count in the name of a section; write [%s]", p.at, name, meant)
	}
}

// behind warns of text behind a brace, which is ignored; a comment may be there.
func (p *parser) behind(brace, rest string) {
	if rest = strings.TrimFunc(rest, isBlank); rest != "" && rest[0] != '#' && rest[0] != ';' {
		p.conf.warn("%s: %q behind %s has no effect: write it on a line of its own", p.at, rest, brace)
	}
}

// misread warns of a value with braces in it that are part of it, of a realm with a comment behind
// it, which is part of it too, and of a value with something at its ends that looks like a blank.
func (p *parser) misread(key, value string) {
	text := strings.TrimFunc(value, isBlank)
	inside, braced := strings.CutPrefix(text, "{")
	inside, closed := strings.CutSuffix(inside, "}")
	trimmed := strings.TrimFunc(inside, isBlank)
	braced = braced && (trimmed != inside || trimmed == "" || strings.ContainsAny(trimmed, "=#;")) // not {word}, which may be meant
	switch {
	case braced && closed:
		p.conf.warn("%s: %s = %q is a value, and no subsection: the line of a subsection ends with {, and } has a line of its own", p.at, key, value)
	case braced:
		p.braced = p.at.line
		p.conf.warn("%s: %s = %q is a value, and begins no subsection: the line of a subsection ends with {", p.at, key, value)
	case (p.stack[0].name == "domain_realm" || key == "default_realm") && strings.ContainsAny(value, " \t"):
		p.conf.warn("%s: %s = %q is a realm with blanks in it; a comment must have a line of its own", p.at, key, value)
	case text != value:
		p.conf.warn("%s: %s = %q has a character at an end which looks like a blank and is part of the value; remove it", p.at, key, value)
	}
}

// isBlank reports whether a character looks like a blank.
func isBlank(r rune) bool { return unicode.IsSpace(r) || r == '\u200b' || r == '\ufeff' }

// oddBlank returns the first character of s that looks like a blank and is none.
func oddBlank(s string) (rune, bool) {
	for _, r := range s {
		if r > unicode.MaxASCII && isBlank(r) {
			return r, true
		}
	}
	return 0, false
}
