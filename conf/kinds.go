package conf

import (
	"fmt"
	"strings"
)

// A kind is a type of value: its name in the manual, how it is read and how it is written. read
// changes *dst, which holds the default, or reports to r.
type kind[T any] struct {
	name  string
	ours  bool // see ours
	read  func(r *reader, v value, dst *T)
	write func(T) []string
}

// ours is a kind for an option that the C daemon does not have. What it makes of a bad value elsewhere
// is no reason here to go on without what the option was to forbid.
func ours[T any](k kind[T]) kind[T] {
	read := k.read
	k.ours = true
	k.read = func(r *reader, v value, dst *T) {
		compat := r.compat
		r.compat = false
		read(r, v, dst)
		r.compat = compat
	}
	return k
}

// value is the text of an option and where it stands.
type value struct {
	key, text string
	at        position
}

// bad reports a value that no daemon can use.
func (v value) bad(r *reader, wrong, expected, do string) {
	r.fail(v.at, v.is(wrong), expected, v.instead(do))
}

// odd reports a value that the C daemon takes in its own way. Its result reports whether to do so.
func (v value) odd(r *reader, wrong, expected, do, asC string) bool {
	return r.odd(v.at, v.is(wrong), expected, v.instead(do), asC)
}

// ownLine is what to do about a comment behind a value.
const ownLine = "there are no comments behind a value: give the comment a line of its own"

// instead is do, unless a comment behind the value is what is wrong with it.
func (v value) instead(do string) string {
	if hasComment(v.text) {
		return ownLine
	}
	return do
}

// unanswered reports a user whom the name service says nothing about.
func (v value) unanswered(r *reader, err error, expected, do string) {
	v.bad(r, "cannot be looked up: "+err.Error(), expected, do)
	r.errors[len(r.errors)-1].Temporary = true
}

// is says what is wrong with the value.
func (v value) is(wrong string) string {
	return fmt.Sprintf("%s = %q %s", v.key, shorten(v.text), wrong)
}

// optional writes an optional value: nothing where it is not set.
func optional(s string) []string {
	if s == "" {
		return nil
	}
	return []string{s}
}

// text is a kind of value that is kept as it is written, and not empty. check reports what is wrong
// with one, and whether to keep it.
func text(name string, check func(r *reader, v value) bool) kind[string] {
	return kind[string]{
		name: name,
		read: func(r *reader, v value, dst *string) {
			if !v.empty(r) && check(r, v) {
				*dst = v.text
			}
		},
		write: optional,
	}
}

// lines writes a value that is a list, an element a line.
func lines[T fmt.Stringer](list []T) []string {
	out := make([]string, len(list))
	for i, e := range list {
		out[i] = e.String()
	}
	return out
}

// empty reports a value that is not there. Where the C daemon starts with one, what it does then is
// of no use: it listens on a name nobody can reach, or asks for credentials of nobody.
func (v value) empty(r *reader) bool {
	if v.text != "" {
		return false
	}
	v.bad(r, "has no value", "", "write one, or remove the line")
	return true
}

// plain warns about text that looks as if it were substituted.
func (v value) plain(r *reader) {
	for _, code := range []string{"%U", "%u"} {
		if strings.Contains(v.text, code) {
			r.warn(v.at, v.is("contains "+code+", which stands for itself here"), "only cred_store is substituted")
		}
	}
}
