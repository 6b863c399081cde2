// Package der reads and writes the subset of DER (X.690) that Kerberos messages use.
//
// A [Reader] walks an encoding in place: it copies nothing, allocates nothing and never panics. It
// has one sticky error: after the first failure every method returns zero values, so a message is
// read in straight lines and checked once. Lengths are definite and minimal; single-octet tags
// only, which is all RFC 4120 needs.
//
// Writing is by appending to a slice, with [Begin] and [End] around constructed values.
package der

import "strconv"

// Tag is an identifier octet: class, constructed bit and number below 31.
type Tag byte

// Universal tags.
const (
	Boolean         Tag = 0x01
	Integer         Tag = 0x02
	BitString       Tag = 0x03
	OctetString     Tag = 0x04
	ObjectID        Tag = 0x06
	Enumerated      Tag = 0x0a
	UTF8String      Tag = 0x0c
	GeneralizedTime Tag = 0x18
	GeneralString   Tag = 0x1b
	Sequence        Tag = 0x30
)

// Application returns the constructed tag [APPLICATION n], n below 31.
func Application(n int) Tag { return Tag(0x60 | n) }

// Context returns the constructed tag [n], n below 31.
func Context(n int) Tag { return Tag(0xa0 | n) }

// Fault is what is wrong with an encoding. Each has the minor status MIT krb5 gives it.
type Fault uint8

// Faults.
const (
	Overrun      Fault = iota + 1 // a length points beyond the enclosing value, or the input ends
	Missing                       // a required field is absent or another stands in its place
	BadID                         // the tag is not the one this place has
	BadLength                     // bytes left over in a value, or a length the type cannot have
	BadFormat                     // contents the type cannot have
	BadTime                       // no date, or before 1970
	OutOfRange                    // an integer that does not fit its field
	Indefinite                    // indefinite length
	NonCanonical                  // a length or integer in more octets than needed
	TooDeep                       // nested beyond what a message can need
	BadVersion                    // a message of another protocol version
)

var faults = [...]struct {
	text  string
	minor uint32
}{
	Overrun:      {"value runs beyond its enclosing value", 0x6eda3605},
	Missing:      {"required field is missing", 0x6eda3601},
	BadID:        {"unexpected tag", 0x6eda3606},
	BadLength:    {"length does not match the contents", 0x6eda3607},
	BadFormat:    {"malformed value", 0x6eda3608},
	BadTime:      {"malformed time", 0x6eda3600},
	OutOfRange:   {"integer out of range", 0x6eda3604},
	Indefinite:   {"indefinite length", 0x6eda360b},
	NonCanonical: {"length or integer not in its shortest form", 0x6eda3608},
	TooDeep:      {"nested too deep", 0x6eda3608},
	BadVersion:   {"protocol version not supported", 0x96c73a03},
}

// String returns the fault in words.
func (f Fault) String() string {
	if int(f) < len(faults) && faults[f].text != "" {
		return faults[f].text
	}
	return "fault " + strconv.Itoa(int(f))
}

// Minor returns the minor status that fits best, of MIT's com_err table "asn1" but for BadVersion.
func (f Fault) Minor() uint32 {
	if int(f) < len(faults) {
		return faults[f].minor
	}
	return 0
}

// Error is the first failure of a Reader.
type Error struct {
	Fault  Fault
	Offset int // octets from the start of what the Reader was given
}

// Error returns the fault and the offset.
func (e *Error) Error() string { return e.Fault.String() + " at offset " + strconv.Itoa(e.Offset) }
