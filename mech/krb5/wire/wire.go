// Package wire has the messages of Kerberos (RFC 4120 section 5) as they travel: the shape of each
// with its reader and its writer, how names are written, and the protocol's numbers. What a message
// means, and what is wrong with it but its form, is for those who read it.
//
// Readers work in place: slices of what was read point into the message, or into the plaintext it
// was read from. As in MIT krb5 what follows the last known field of an element is passed over, so
// that later versions of the protocol can extend it; a required field that is not there is an
// error. The errors are of type *[der.Error].
//
// Writers append to a slice, from the outside in.
//
// Its length is the protocol's: one message after the other, and the numbers.
package wire

import (
	"strings"
	"unicode"
)

// maxShown is how many octets of what a peer chose are shown.
const maxShown = 200

// Shown makes s, which the peer chose, fit for messages: printable and of bounded length.
func Shown[S ~string | ~[]byte](s S) string {
	t := string(s[:min(len(s), maxShown)])
	t = strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) || r == '\ufffd' {
			return '?'
		}
		return r
	}, t)
	if len(s) > maxShown {
		t += "..."
	}
	return t
}
