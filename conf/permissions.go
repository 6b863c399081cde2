package conf

import (
	"fmt"
	"slices"
	"strings"
)

// Kinds of values of a [Permission].

var operations = kind[Operations]{
	name: "list of operations",
	read: func(r *reader, v value, dst *Operations) {
		var set Operations
		for word := range tokens(v.text) {
			i := slices.Index(operationNames, strings.ToLower(word))
			if i < 0 {
				v.bad(r, fmt.Sprintf("has %q in it", shorten(word)), strings.Join(operationNames, ", ")+" are expected", DidYouMean(word, operationNames))
				return
			}
			set |= 1 << i
		}
		if set == 0 {
			v.bad(r, "names none", strings.Join(operationNames, ", ")+" are expected", "write one, or remove the line")
			return
		}
		*dst = set
	},
	write: func(o Operations) []string { return optional(o.String()) },
}

var principals = patternLines("principal, with *", parsePattern,
	"NAME@REALM is expected, as in HTTP/*@EXAMPLE.COM", `write the realm, or @* for any; a \ before a character that stands for itself`)

var realms = patternLines("realm, with *", parseRealm, "a realm is expected, such as EXAMPLE.COM", "write one a line")

// patternLines reads a pattern a line; parse says what is wrong with one.
func patternLines(name string, parse func(text string) (Pattern, string), expected, do string) kind[[]Pattern] {
	return kind[[]Pattern]{
		name: name,
		read: func(r *reader, v value, dst *[]Pattern) {
			if v.empty(r) {
				return
			}
			p, wrong := parse(v.text)
			switch {
			case wrong != "":
				v.bad(r, wrong, expected, do)
			case slices.ContainsFunc(*dst, func(o Pattern) bool { return o.text == p.text }):
				v.bad(r, "repeats a line", "each once is expected", "remove one of the lines")
			default:
				*dst = append(*dst, p)
			}
		},
		write: lines[Pattern],
	}
}

// enctypes are kept as they are written: which there are is not this package's to know.
var enctypes = kind[[]string]{
	name: "list of encryption types",
	read: func(r *reader, v value, dst *[]string) {
		list := slices.Collect(tokens(strings.ToLower(v.text)))
		if len(list) == 0 {
			v.bad(r, "names none", "names such as aes256-cts-hmac-sha1-96 are expected", "write one, or remove the line")
			return
		}
		*dst = list
	},
	write: func(list []string) []string { return optional(strings.Join(list, " ")) },
}

var mode = either("enforce", "observe")
