package krb5conf

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// The grammar, as MIT's profile library reads it:
//
//	[section]            at the top; "[section]*" makes it final
//	key = value          "key* = value" makes it final; "value" may be quoted
//	key = {              a subsection, to the line with "}" ("}*": final)
//	include FILE         at the start of a line, anywhere
//	includedir DIR       the same, for the files valid names in it
//	# comment            or ";"
//
// Sections of one name are merged, within a file and over all files. A final section or relation
// hides what later files say under that name; within one file a section that is opened again after
// it was made final is discarded. Anything before the first line that starts with "[" is a comment.

const (
	maxFile    = 16 << 20 // a configuration file larger than this is a mistake
	maxDepth   = 10       // of include in include
	maxNesting = 64       // of subsections
)

// node is a section or a relation.
type node struct {
	name     string
	value    string
	section  bool
	final    bool
	children []*node
	pos      pos
}

// pos is where a relation was read.
type pos struct {
	file string
	line int
}

func (p pos) String() string { return fmt.Sprintf("%s:%d", p.file, p.line) }

// sub returns the subsection of that name, nil if there is none.
func (n *node) sub(name string) *node {
	for _, c := range n.children {
		if c.section && c.name == name {
			return c
		}
	}
	return nil
}

// enter returns the subsection of that name, made if there is none.
func (n *node) enter(name string, at pos) *node {
	if c := n.sub(name); c != nil {
		return c
	}
	c := &node{name: name, section: true, pos: at}
	n.children = append(n.children, c)
	return c
}

// relate adds a relation unless a final one of that name is there.
func (n *node) relate(name, value string, final bool, at pos) {
	for _, c := range n.children {
		if c.name == name && c.final {
			return
		}
	}
	n.children = append(n.children, &node{name: name, value: value, final: final, pos: at})
}

// reader reads one file of the list with everything it includes.
type reader struct {
	root  *node
	conf  *Config
	depth int
}

// parser is the state within one file; an included file starts afresh, so that fragments are
// independent in syntax and share only the tree.
type parser struct {
	*reader
	at      pos
	started bool    // a section has been seen
	stack   []*node // open sections, outermost first
	brace   bool    // "key =" was read, the brace is to come
	level   int     // 0 before the first section, 1 in a section, more in subsections
	early   bool    // something before the first section has been warned of
	braced  int     // the last line with a { that is part of a value, or 0
	discard int     // level of the final section whose repetition is skipped, or 0
}

// file reads a regular file, or a directory as includedir does.
func (r *reader) file(name string) error {
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return err
	}
	if st.IsDir() {
		return r.dir(name)
	}
	text, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return err
	}
	if len(text) > maxFile {
		return fmt.Errorf("%s: larger than %d MiB; expected a Kerberos configuration file", name, maxFile>>20)
	}
	r.conf.files = append(r.conf.files, name)
	return r.parse(name, string(text))
}

func (r *reader) parse(name, text string) error {
	p := parser{reader: r, at: pos{file: name}}
	for line := range strings.Lines(text) {
		p.at.line++
		if err := p.line(strings.TrimRight(line, "\r\n")); err != nil {
			return err
		}
	}
	if p.level > 1 {
		r.conf.warn("%s: the file ends inside %q; expected a line with }", p.at, p.stack[len(p.stack)-1].name)
	}
	return nil
}

// dir reads the files of a directory whose names are letters, digits, "-" and "_" only, or end in
// ".conf" and do not start with a dot, in order of their names.
func (r *reader) dir(name string) error {
	entries, err := os.ReadDir(name)
	if err != nil {
		return err
	}
	r.conf.watch(name)
	for _, e := range entries {
		if !includable(e.Name()) {
			continue
		}
		path := filepath.Join(name, e.Name())
		if st, err := os.Stat(path); err == nil && st.IsDir() {
			continue
		}
		r.conf.watch(path)
		if err := r.file(path); err != nil {
			return err
		}
	}
	return nil
}

func includable(name string) bool {
	if strings.HasPrefix(name, ".") {
		return false
	}
	if strings.HasSuffix(name, ".conf") {
		return true
	}
	return strings.IndexFunc(name, func(c rune) bool {
		return !('a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || c == '-' || c == '_')
	}) < 0
}

func (p *parser) fail(what, expected string) error {
	return fmt.Errorf("%s: %s; expected %s", p.at, what, expected)
}

const blanks = " \t\v\f\r\n"

// keyword returns the argument of a line that starts with word and a blank, or is the word alone.
func keyword(line, word string) (string, bool) {
	arg, ok := strings.CutPrefix(line, word)
	if !ok || arg != "" && !strings.ContainsRune(blanks, rune(arg[0])) {
		return "", false
	}
	return strings.Trim(arg, blanks), true
}

func (p *parser) line(line string) error {
	if arg, ok := keyword(line, "include"); ok {
		return p.include(arg, p.file)
	}
	if arg, ok := keyword(line, "includedir"); ok {
		return p.include(arg, p.dir)
	}
	if p.brace {
		rest, ok := strings.CutPrefix(strings.TrimLeft(line, blanks), "{")
		if !ok {
			return p.fail(fmt.Sprintf("no value for %q", p.stack[len(p.stack)-1].name), "a value, or a line with {")
		}
		p.brace = false
		p.behind("{", rest)
		return nil
	}
	if !p.started {
		if mod, ok := keyword(line, "module"); ok {
			p.conf.warn("%s: configuration module %q is not loaded: modules are C libraries", p.at, mod)
		}
		if !strings.HasPrefix(line, "[") {
			p.before(line)
			return nil
		}
		p.started = true
	}
	line = strings.TrimLeft(line, blanks)
	switch {
	case line == "" || line[0] == '#' || line[0] == ';':
		return nil
	case line[0] == '[':
		return p.section(line)
	case line[0] == '}':
		return p.close(line)
	}
	return p.relation(line)
}

func (p *parser) include(arg string, read func(string) error) error {
	if arg == "" {
		return p.fail("nothing to include", "a name")
	}
	if p.depth++; p.depth > maxDepth {
		return p.fail("too many files including each other", fmt.Sprintf("at most %d levels", maxDepth))
	}
	defer func() { p.depth-- }()
	p.conf.watch(arg)
	err := read(arg)
	if _, ok := errors.AsType[*fs.PathError](err); ok {
		return fmt.Errorf("%s: cannot include: %w", p.at, err)
	}
	return err
}

func (p *parser) section(line string) error {
	if p.level > 1 {
		return p.fail(fmt.Sprintf("section header inside %q", p.stack[len(p.stack)-1].name), "} first")
	}
	name, rest, ok := strings.Cut(line[1:], "]")
	if !ok {
		return p.fail("section header without ]", "[name]")
	}
	s := p.root.enter(name, p.at)
	p.misnamed(name)
	p.stack, p.level, p.discard = append(p.stack[:0], s), 1, 0
	if s.final {
		p.discard = 1
	}
	if r, ok := strings.CutPrefix(rest, "*"); ok {
		s.final, rest = true, r
	}
	if rest = strings.TrimLeft(rest, blanks); rest != "" {
		return p.fail(fmt.Sprintf("%q after the section header", rest), "nothing")
	}
	return nil
}

func (p *parser) close(line string) error {
	if p.level < 2 && p.braced > 0 {
		return p.fail("} without {", fmt.Sprintf("line %d to end with {: what is behind the { there makes it a value", p.braced))
	}
	if p.level < 2 {
		return p.fail("} without {", "a relation or a section header")
	}
	rest, final := strings.CutPrefix(line[1:], "*")
	if final {
		p.stack[len(p.stack)-1].final = true
	}
	p.behind("}", rest)
	p.level--
	if p.level < p.discard {
		p.discard = 0
	}
	if p.discard == 0 {
		p.stack = p.stack[:len(p.stack)-1]
	}
	return nil
}

func (p *parser) relation(line string) error {
	key, value, ok := strings.Cut(line, "=")
	key = strings.TrimRight(key, blanks)
	for _, word := range []string{"include", "includedir"} {
		if _, is := keyword(line, word); is {
			return p.fail(word+" is indented", word+" at the start of the line")
		}
	}
	if !ok || key == "" || strings.ContainsAny(key, blanks) {
		return p.fail(fmt.Sprintf("%q is no relation", line), "key = value, with no blanks in the key")
	}
	key, _, final := strings.Cut(key, "*")
	if r, odd := oddBlank(key); odd {
		p.conf.warn("%s: %q has no effect: it has the character %U in it, which looks like a blank; write a blank", p.at, key, r)
	}
	value = strings.TrimLeft(value, blanks)
	here := p.stack[len(p.stack)-1]
	if value == "" || value[0] == '{' && strings.TrimLeft(value[1:], blanks) == "" {
		p.brace = value == ""
		if p.level++; p.level > maxNesting {
			return p.fail("too many nested subsections", fmt.Sprintf("at most %d", maxNesting))
		}
		if p.discard == 0 {
			s := here.enter(key, p.at)
			p.stack = append(p.stack, s)
			if s.final {
				p.discard = p.level
			}
			s.final = s.final || final
		}
		return nil
	}
	if value[0] == '"' {
		value = unquote(value[1:])
	} else {
		value = strings.TrimRight(value, blanks)
		p.misread(key, value)
	}
	if p.discard == 0 {
		here.relate(key, value, final, p.at)
	}
	return nil
}

// unquote reads up to the closing quote, with \n, \t and \b; any other octet after a backslash
// stands for itself.
func unquote(s string) string {
	var b strings.Builder
	for i := 0; i < len(s) && s[i] != '"'; i++ {
		c := s[i]
		if c == '\\' && i+1 < len(s) {
			i++
			switch c = s[i]; c {
			case 'n':
				c = '\n'
			case 't':
				c = '\t'
			case 'b':
				c = '\b'
			}
		}
		b.WriteByte(c)
	}
	return b.String()
}

// find returns the relations at a path, over all files in their order, as far as final markers let
// one see; nil if there are none.
func find(roots []*node, path []string) (found []*node) {
	section, last := path[:len(path)-1], path[len(path)-1]
	relations(roots, section, func(c *node) (final bool) {
		if c.name != last {
			return false
		}
		found = append(found, c)
		return c.final
	})
	return found
}

// names returns the names of the relations directly under a section, over all files, without
// repetition.
func names(roots []*node, path ...string) (list []string) {
	relations(roots, path, func(c *node) (final bool) {
		if !slices.Contains(list, c.name) {
			list = append(list, c.name)
		}
		return false
	})
	return list
}

// relations calls f with the relations directly under a section, over all files in their order, up
// to a file where the section or, as f reports, a relation is final.
func relations(roots []*node, path []string, f func(*node) (final bool)) {
	for _, n := range roots {
		final := false
		for _, s := range path {
			if n = n.sub(s); n == nil {
				break
			}
			final = final || n.final
		}
		if n != nil {
			for _, c := range n.children {
				final = !c.section && f(c) || final
			}
		}
		if final {
			break
		}
	}
}
