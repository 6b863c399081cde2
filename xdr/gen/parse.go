package main

import (
	"fmt"
	"slices"
	"strconv"
)

// kind is the wire form of a type, after all typedefs.
type kind int

const (
	kindVoid kind = iota
	kindInt
	kindUint
	kindHyper
	kindUhyper
	kindBool
	kindOpaque // opaque x<size>, string x<size>: the same on the wire
	kindFixed  // opaque x[size]
	kindList   // T x<size>
	kindArray  // T x[size]
	kindOptional
	kindNamed // a struct, union or enum
)

// unlimited is the size of an opaque or a list without an upper limit.
const unlimited = 1<<32 - 1

// maxFixed is the greatest size of a fixed form, in elements and in bytes.
const maxFixed = 1 << 20

// typ is a type of the language. Typedefs are resolved when it is made; hint keeps the name of the
// last one gone through, which is what the writer chooses the way of printing by.
type typ struct {
	kind kind
	hint string
	size uint64 // of fixed forms, or the limit of variable ones
	elem *typ   // of list, array, optional
	def  *def   // of kindNamed
	text bool   // of kindOpaque: a string
}

// decl is a named value: a field, an arm of a union.
type decl struct {
	pos
	name      string
	typ       *typ
	doc, note string
}

// def is a struct, a union or an enum.
type def struct {
	pos
	what    string // "struct", "union" or "enum"
	name    string
	doc     string
	fields  []decl     // of a struct
	values  []constant // of an enum
	tag     decl       // of a union: its discriminant
	arms    []arm      // of a union
	deflt   *decl      // of a union: the default arm, if there is one
	minWire uint64     // the least number of bytes it takes on the wire
}

// arm is one branch of a union. A label is the name of an enum value, or a number.
type arm struct {
	labels []string
	decl   decl
}

type constant struct {
	pos
	name      string
	value     int64
	doc, note string
}

// procedure is one entry of a program; arg and res are nil for void.
type procedure struct {
	pos
	name     string
	number   int64
	arg, res *def
	doc      string
}

type program struct {
	name, versionName string
	number, version   int64
	procs             []procedure
}

// file is a parsed .x file, in the order of its definitions.
type file struct {
	name   string
	consts []constant
	defs   []*def
	prog   *program
}

// parser walks the tokens. Its methods panic with a parseError, which parse catches: the grammar
// stays readable.
type parser struct {
	file
	toks   []token
	prev   token // the last one taken
	types  map[string]*typ
	names  map[string]pos   // of everything that is defined
	values map[string]int64 // of const and of enum values
}

type parseError struct{ error }

// parse reads the subset of the XDR language (RFC 4506 section 6, RFC 5531 section 12) that package
// xdr needs: const, typedef, enum, struct, union and one program with one version. Types are
// defined before they are used, so there is no recursion.
func parse(name, src string) (f *file, err error) {
	toks, err := lex(name, src)
	if err != nil {
		return nil, err
	}
	p := &parser{file: file{name: name}, toks: toks, types: map[string]*typ{}, names: map[string]pos{}, values: map[string]int64{}}
	defer func() {
		switch r := recover().(type) {
		case nil:
		case parseError:
			f, err = nil, r.error
		default:
			panic(r)
		}
	}()
	for p.peek().text != "" {
		p.definition()
	}
	return &p.file, nil
}

func (p *parser) fail(at pos, format string, args ...any) {
	panic(parseError{at.errorf(format, args...)})
}

func (p *parser) peek() token { return p.toks[0] }

func (p *parser) next() token {
	p.prev = p.toks[0]
	if p.prev.text != "" {
		p.toks = p.toks[1:]
	}
	return p.prev
}

// expect takes the next token, which must be text.
func (p *parser) expect(text string) token {
	t := p.next()
	if t.text != text {
		p.fail(t.pos, "%q expected, found %s", text, t)
	}
	return t
}

func (p *parser) accept(text string) bool {
	if p.peek().text != text {
		return false
	}
	p.next()
	return true
}

var keywords = []string{"bool", "case", "const", "default", "double", "quadruple", "enum", "float", "hyper", "int", "opaque", "string",
	"struct", "switch", "typedef", "union", "unsigned", "void"}

// isIdent tells a name, or a keyword, from everything else: it starts with a letter.
func isIdent(text string) bool {
	return text != "" && ('a' <= text[0] && text[0] <= 'z' || 'A' <= text[0] && text[0] <= 'Z')
}

func (p *parser) ident() token {
	t := p.next()
	if !isIdent(t.text) {
		p.fail(t.pos, "a name expected, found %s", t)
	}
	if slices.Contains(keywords, t.text) {
		p.fail(t.pos, "a name expected, found the keyword %s", t)
	}
	return t
}

// define notes that a name is taken.
func (p *parser) define(t token) {
	if old, ok := p.names[t.text]; ok {
		p.fail(t.pos, "%s is already defined at %s; choose another name", t.text, old)
	}
	p.names[t.text] = t.pos
}

// defined reads a name that is defined here.
func (p *parser) defined() string {
	t := p.ident()
	p.define(t)
	return t.text
}

// value reads a number (decimal, 0x hexadecimal, 0 octal) or the name of a constant.
func (p *parser) value() int64 {
	t := p.next()
	if t.text != "" && (t.text[0] == '-' || '0' <= t.text[0] && t.text[0] <= '9') {
		v, err := strconv.ParseInt(t.text, 0, 64)
		if err != nil {
			p.fail(t.pos, "%s is not a number", t)
		}
		return v
	}
	v, ok := p.values[t.text]
	if !ok {
		p.fail(t.pos, "a number or the name of a constant expected, found %s", t)
	}
	return v
}

// valueIn is value with its range checked.
func (p *parser) valueIn(what string, least, most int64) int64 {
	at := p.peek().pos
	v := p.value()
	if v < least || v > most {
		p.fail(at, "%s is %d; it must be from %d to %d", what, v, least, most)
	}
	return v
}

func (p *parser) definition() {
	switch t := p.next(); t.text {
	case "const":
		c := p.constant()
		c.doc = t.doc
		c.note = p.expect(";").note
		p.consts = append(p.consts, c)
	case "typedef":
		d := p.decl()
		p.expect(";")
		if d.typ.kind == kindVoid {
			p.fail(d.pos, "a typedef of void says nothing; remove it")
		}
		p.define(token{pos: d.pos, text: d.name})
		named := *d.typ
		named.hint = d.name
		p.types[d.name] = &named
	case "enum", "struct", "union":
		name := p.ident()
		d := &def{pos: name.pos, what: t.text, name: name.text, doc: t.doc}
		switch t.text {
		case "enum":
			p.enum(d)
		case "struct":
			p.structure(d)
		case "union":
			p.union(d)
		}
		p.expect(";")
		p.define(name) // only now: a type that contains itself is not defined yet
		p.types[d.name] = &typ{kind: kindNamed, hint: d.name, def: d}
		p.defs = append(p.defs, d)
	case "program":
		p.program(t)
	default:
		p.fail(t.pos, "const, typedef, enum, struct, union or program expected, found %s", t)
	}
}

func (p *parser) constant() constant {
	name := p.ident()
	p.define(name)
	p.expect("=")
	c := constant{pos: name.pos, name: name.text, value: p.value(), doc: name.doc}
	p.values[c.name] = c.value
	return c
}

func (p *parser) enum(d *def) {
	d.minWire = 4
	p.expect("{")
	for {
		at := p.peek().pos
		c := p.constant()
		if c.value != int64(int32(c.value)) {
			p.fail(at, "%s is %d; an enum value must fit in 32 bits with a sign", c.name, c.value)
		}
		for _, o := range d.values {
			if o.value == c.value {
				p.fail(at, "%s and %s are both %d; each value may have one name", o.name, c.name, c.value)
			}
		}
		c.note = p.prev.note
		end := p.next()
		switch end.text {
		case ",":
			c.note += end.note
		case "}":
		default:
			p.fail(end.pos, "\",\" or \"}\" expected after %s, found %s", c.name, end)
		}
		if d.values = append(d.values, c); end.text == "}" {
			return
		}
	}
}

func (p *parser) structure(d *def) {
	p.expect("{")
	for !p.accept("}") {
		f := p.decl()
		f.note = p.expect(";").note
		if f.typ.kind == kindVoid {
			p.fail(f.pos, "a void field in struct %s; remove it", d.name)
		}
		p.unique(d, &f, d.fields)
		d.fields = append(d.fields, f)
		d.minWire += minWire(f.typ)
	}
	if len(d.fields) == 0 {
		p.fail(d.pos, "struct %s has no fields", d.name)
	}
}

func (p *parser) unique(d *def, f *decl, among []decl) {
	for _, o := range among {
		if o.name == f.name && f.name != "" {
			p.fail(f.pos, "%s %s already has a field %s at %s; choose another name", d.what, d.name, f.name, o.pos)
		}
	}
}

func (p *parser) union(d *def) {
	p.expect("switch")
	p.expect("(")
	d.tag = p.decl()
	if k := d.tag.typ; k.kind != kindInt && k.kind != kindUint && !(k.kind == kindNamed && k.def.what == "enum") {
		p.fail(d.tag.pos, "union %s switches on %s; an int, an unsigned int or an enum is possible", d.name, d.tag.name)
	}
	p.expect(")")
	p.expect("{")
	fields := []decl{d.tag}
	least := uint64(unlimited)
	seen := map[int64]pos{}
	for !p.accept("}") {
		var a arm
		deflt := p.accept("default")
		for !deflt && p.peek().text == "case" {
			p.next()
			label := p.peek()
			v := p.value()
			if old, ok := seen[v]; ok {
				p.fail(label.pos, "case %s is already at %s", label.text, old)
			}
			seen[v] = label.pos
			a.labels = append(a.labels, label.text)
			if p.expect(":"); p.peek().text == "default" {
				p.fail(p.peek().pos, "a case that shares its arm with default; default alone says the same")
			}
		}
		switch {
		case deflt && d.deflt != nil:
			p.fail(p.peek().pos, "a second default in union %s", d.name)
		case deflt:
			p.expect(":")
		case len(a.labels) == 0:
			p.fail(p.peek().pos, "\"case\", \"default\" or \"}\" expected in union %s, found %s", d.name, p.peek())
		}
		a.decl = p.decl()
		a.decl.note = p.expect(";").note
		p.unique(d, &a.decl, fields)
		fields = append(fields, a.decl)
		least = min(least, minWire(a.decl.typ))
		if deflt {
			d.deflt = &a.decl
		} else {
			d.arms = append(d.arms, a)
		}
	}
	if len(d.arms) == 0 {
		p.fail(d.pos, "union %s has no case", d.name)
	}
	d.minWire = 4 + least
}

// decl reads a declaration up to, not including, the ";" or ")" behind it.
func (p *parser) decl() decl {
	first := p.peek()
	base := p.base()
	d := decl{pos: first.pos, doc: first.doc}
	switch {
	case base.kind == kindVoid:
		d.typ = base
		return d
	case p.accept("*"):
		if base.kind == kindOpaque && base.hint == "" {
			p.fail(d.pos, "an optional of opaque or string; give the opaque a name with typedef first")
		}
		d.name = p.ident().text
		d.typ = &typ{kind: kindOptional, elem: base}
		return d
	}
	d.name = p.ident().text
	open := p.peek()
	raw := base.kind == kindOpaque && base.hint == "" // the words opaque and string, which are nothing without a size
	sized := func(bytes, elements kind, size int64) *typ {
		if raw {
			return &typ{kind: bytes, size: uint64(size), text: base.text}
		}
		return &typ{kind: elements, elem: base, size: uint64(size)}
	}
	switch {
	case p.accept("<"):
		size := int64(unlimited)
		if p.peek().text != ">" {
			size = p.valueIn("the limit of "+d.name, 0, unlimited)
		}
		p.expect(">")
		d.typ = sized(kindOpaque, kindList, size)
	case p.accept("["):
		d.typ = sized(kindFixed, kindArray, p.valueIn("the size of "+d.name, 1, maxFixed))
		p.expect("]")
		if n := minWire(d.typ); n > maxFixed {
			p.fail(d.pos, "%s takes at least %d bytes; at most %d are possible", d.name, n, maxFixed)
		}
	case raw:
		p.fail(open.pos, "%s is opaque or a string without a size; write <>, <limit> or [size] behind the name", d.name)
	default:
		d.typ = base
	}
	return d
}

// words are the types that the language has words of its own for.
var words = map[string]kind{
	"void": kindVoid, "int": kindInt, "hyper": kindHyper, "bool": kindBool, "opaque": kindOpaque, "string": kindOpaque,
}

// base reads a type specifier.
func (p *parser) base() *typ {
	t := p.next()
	if k, ok := words[t.text]; ok {
		return &typ{kind: k, text: t.text == "string"}
	}
	switch t.text {
	case "unsigned":
		if p.accept("hyper") {
			return &typ{kind: kindUhyper}
		}
		p.accept("int")
		return &typ{kind: kindUint}
	case "float", "double", "quadruple":
		p.fail(t.pos, "%s is not supported: no protocol here has floating point numbers", t.text)
	case "struct", "union", "enum":
		p.fail(t.pos, "a %s inside a declaration is not supported; define it on its own and use its name", t.text)
	default:
		if typ, ok := p.types[t.text]; ok {
			return typ
		}
		if !isIdent(t.text) {
			p.fail(t.pos, "a type expected, found %s", t)
		}
		p.fail(t.pos, "%s is not a type defined above; a type must come before its use, and may not contain itself", t)
	}
	panic("unreachable")
}

func (p *parser) program(start token) {
	if p.prog != nil {
		p.fail(start.pos, "a second program; one file has one program with one version")
	}
	p.prog = &program{}
	p.prog.name = p.defined()
	p.expect("{")
	p.expect("version")
	p.prog.versionName = p.defined()
	p.expect("{")
	for !p.accept("}") {
		doc := p.peek().doc
		res := p.message()
		name := p.ident()
		p.define(name)
		p.expect("(")
		arg := p.message()
		p.expect(")")
		p.expect("=")
		number := p.valueIn("the number of "+name.text, 0, unlimited)
		p.expect(";")
		for _, o := range p.prog.procs {
			if o.number == number {
				p.fail(name.pos, "%s and %s are both procedure %d", o.name, name.text, number)
			}
		}
		p.prog.procs = append(p.prog.procs, procedure{pos: name.pos, name: name.text, number: number, arg: arg, res: res, doc: doc})
	}
	p.expect("=")
	p.prog.version = p.valueIn("the version", 0, unlimited)
	p.expect(";")
	if p.peek().text == "version" {
		p.fail(p.peek().pos, "a second version; one file has one program with one version")
	}
	p.expect("}")
	p.expect("=")
	p.prog.number = p.valueIn("the program number", 0, unlimited)
	p.expect(";")
}

// message reads the type of an argument or a result: void (nil), a struct or a union.
func (p *parser) message() *def {
	at := p.peek().pos
	switch t := p.base(); {
	case t.kind == kindVoid:
		return nil
	case t.kind == kindNamed && t.def.what != "enum":
		return t.def
	}
	p.fail(at, "arguments and results are void, a struct or a union here")
	return nil
}

// minWire returns the least number of bytes that a value of type t takes.
func minWire(t *typ) uint64 {
	switch t.kind {
	case kindVoid:
		return 0
	case kindHyper, kindUhyper:
		return 8
	case kindFixed:
		return (t.size + 3) &^ 3
	case kindArray:
		return t.size * minWire(t.elem)
	case kindNamed:
		return t.def.minWire
	case kindInt, kindUint, kindBool, kindOpaque, kindList, kindOptional:
		return 4
	}
	panic(fmt.Sprintf("kind %d", t.kind))
}
