package fuse

// object is a JSON object that comes in parts.
type object struct {
	b       []byte
	depth   int
	quoted  bool // within a text
	escaped bool // behind its backslash
	whole   bool
}

type progress int

const (
	partial progress = iota
	whole
	broken // it is no object, or something follows it
)

// add adds a part, and says whether that is the end. It looks at each byte once, whatever the parts.
func (o *object) add(part []byte) progress {
	o.b = append(o.b, part...)
	for _, c := range part {
		switch {
		case o.escaped:
			o.escaped = false
		case o.quoted:
			o.escaped, o.quoted = c == '\\', c != '"'
		case c == ' ' || c == '\t' || c == '\n' || c == '\r':
		case o.whole, o.depth == 0 && c != '{':
			return broken
		case c == '"':
			o.quoted = true
		case c == '{', c == '[':
			o.depth++
		case c == '}', c == ']':
			o.depth--
			o.whole = o.depth == 0
		}
	}
	if !o.whole {
		return partial
	}
	return whole
}
