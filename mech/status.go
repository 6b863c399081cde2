package mech

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"syscall"

	"gssproxyd/mech/reason"
)

// Major is a GSS major status: calling error in bits 24-31, routine error in bits 16-23,
// supplementary bits below (RFC 2744 section 3.9.1).
type Major uint32

// Supplementary bits, combined with Complete or a routine error.
const (
	Complete       Major = 0
	ContinueNeeded Major = 1 << 0
	DuplicateToken Major = 1 << 1
	OldToken       Major = 1 << 2
	UnseqToken     Major = 1 << 3
	GapToken       Major = 1 << 4
)

// Routine errors.
const (
	BadMech             Major = 1 << 16
	BadName             Major = 2 << 16
	BadNameType         Major = 3 << 16
	BadBindings         Major = 4 << 16
	BadStatus           Major = 5 << 16
	BadMIC              Major = 6 << 16
	BadSig              Major = BadMIC
	NoCred              Major = 7 << 16
	NoContext           Major = 8 << 16
	DefectiveToken      Major = 9 << 16
	DefectiveCredential Major = 10 << 16
	CredentialsExpired  Major = 11 << 16
	ContextExpired      Major = 12 << 16
	Failure             Major = 13 << 16
	CredUnavail         Major = Failure // the name RFC 2743 gives a missing credential element
	BadQOP              Major = 14 << 16
	Unauthorized        Major = 15 << 16
	Unavailable         Major = 16 << 16
	DuplicateElement    Major = 17 << 16
	NameNotMN           Major = 18 << 16
)

// Calling errors.
const (
	CallInaccessibleRead  Major = 1 << 24
	CallInaccessibleWrite Major = 2 << 24
	CallBadStructure      Major = 3 << 24
)

// Routine returns the routine error alone.
func (m Major) Routine() Major { return m & 0x00ff0000 }

// Failed reports whether there is a calling or routine error; supplementary bits alone are none.
func (m Major) Failed() bool { return m&0xffff0000 != 0 }

const invalidStatus = "An invalid status code was supplied"

var callingText = [...]string{
	1: "A required input parameter could not be read",
	2: "A required output parameter could not be written",
	3: "A parameter was malformed",
}

var routineText = [...]string{
	1:  "An unsupported mechanism was requested",
	2:  "An invalid name was supplied",
	3:  "A supplied name was of an unsupported type",
	4:  "Incorrect channel bindings were supplied",
	5:  invalidStatus,
	6:  "A token had an invalid Message Integrity Check (MIC)",
	7:  "No credentials were supplied, or the credentials were unavailable or inaccessible",
	8:  "No context has been established",
	9:  "Invalid token was supplied",
	10: "Invalid credential was supplied",
	11: "The referenced credential has expired",
	12: "The referenced context has expired",
	13: "Unspecified GSS failure.  Minor code may provide more information",
	14: "The quality-of-protection (QOP) requested could not be provided",
	15: "The operation is forbidden by local security policy",
	16: "The operation or option is not available or unsupported",
	17: "The requested credential element already exists",
	18: "The provided name was not mechanism specific (MN)",
}

var supplementaryText = [...]string{
	"The routine must be called again to complete its function",
	"The token was a duplicate of an earlier token",
	"The token's validity period has expired",
	"A later token has already been processed",
	"An expected per-message token was not received",
}

// Text returns the words gss_display_status of MIT krb5 has for the code. A code of several parts
// gives them in that function's order (calling error, routine error, supplementary bits upwards)
// joined by ", ", as the C daemon joins them for gssx_status.major_status_string. No NUL at the
// end.
func (m Major) Text() string {
	if m == Complete {
		return "The routine completed successfully"
	}
	var parts []string
	add := func(table []string, i int) {
		if i < len(table) && table[i] != "" {
			parts = append(parts, table[i])
		} else {
			parts = append(parts, invalidStatus)
		}
	}
	if c := int(m >> 24); c != 0 {
		add(callingText[:], c)
	}
	if r := int(m >> 16 & 0xff); r != 0 {
		add(routineText[:], r)
	}
	for bit := 0; bit < 16; bit++ {
		if m>>bit&1 != 0 {
			add(supplementaryText[:], bit)
		}
	}
	return strings.Join(parts, ", ")
}

// Bases of the com_err families, as the uint32 that travels in gssx_status.minor_status: base plus
// the position in the family's table.
const (
	MinorKRB5 uint32 = 0x96c73a00 // -1765328384: RFC 4120 error codes 0-127, library errors 128-255
	MinorK5G  uint32 = 0x025ea100 // the krb5 mechanism's own errors
	MinorGGSS uint32 = 0x861b6d00 // errors common to all mechanisms
	MinorASN1 uint32 = 0x6eda3600
	MinorKV5M uint32 = 0x970ea700 // bad magic numbers
	MinorProf uint32 = 0xaaca6000 // configuration files
	// MinorSPNEGO is no com_err family, but where MIT krb5's SPNEGO has its few.
	MinorSPNEGO uint32 = 0x20000000
)

// KRB5Minor returns the minor status of a Kerberos protocol or library error, 0 to 255 (RFC 4120
// section 7.5.9 for the first 128).
func KRB5Minor(code uint8) uint32 { return MinorKRB5 + uint32(code) }

// MinorText returns MIT's message for a minor status: com_err families by table, small numbers as
// errno in the words of glibc. 0 is the empty string.
func MinorText(minor uint32) string {
	base, at := minor&^0xff, int(minor&0xff)
	var table []string
	switch base {
	case 0:
		return errnoText(at)
	case MinorKRB5:
		if krb5Text[at] == "" {
			return "KRB5 error code " + strconv.Itoa(at)
		}
		table = krb5Text[:]
	case MinorK5G:
		table = k5gText[:]
	case MinorGGSS:
		table = ggssText[:]
	case MinorASN1:
		table = asn1Text[:]
	case MinorKV5M:
		table = kv5mText[:]
	case MinorProf:
		table = profText[:]
	case MinorSPNEGO:
		table = spnegoText[:]
	}
	if at < len(table) {
		return table[at]
	}
	return "Unknown code " + familyName(base) + " " + strconv.Itoa(at)
}

// errnoText says what strerror of glibc says. Go's texts for Linux are the same but for the case of
// the first letter.
func errnoText(n int) string {
	if n == 0 {
		return ""
	}
	if n == 133 { // EHWPOISON, which Go has no text for
		return "Memory page has hardware error"
	}
	s := syscall.Errno(n).Error()
	if strings.HasPrefix(s, "errno ") {
		return "Unknown error " + strconv.Itoa(n)
	}
	if c := s[0]; 'a' <= c && c <= 'z' {
		s = string(c-'a'+'A') + s[1:]
	}
	return s
}

// familyName decodes the letters a com_err family's base is made of: four groups of six bits above
// the low byte.
func familyName(base uint32) string {
	const letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_"
	var b []byte
	for shift := 26; shift >= 8; shift -= 6 {
		if i := base >> shift & 0x3f; i != 0 {
			b = append(b, letters[i-1])
		}
	}
	return string(b)
}

// Error is the failure of a mechanism's operation: what goes into gssx_status, and what the
// operator reads.
type Error struct {
	Major  Major
	Minor  uint32    // as on the wire; see MinorText
	Mech   OID       // empty when not known
	Text   string    // minor text with details, no NUL; empty means MinorText(Minor)
	Reason reason.ID // stable id
	Token  []byte    // error token for the peer, framed; nil when there is none
}

// Is reports whether target is e's reason, for errors.Is.
func (e *Error) Is(target error) bool {
	id, ok := target.(reason.ID)
	return ok && id != "" && id == e.Reason
}

// ReasonOf returns the reason of the *Error that err is or wraps, empty if there is none.
func ReasonOf(err error) reason.ID {
	if e, ok := errors.AsType[*Error](err); ok {
		return e.Reason
	}
	return ""
}

// MinorString returns Text, or the table's text for Minor when there is none.
func (e *Error) MinorString() string {
	if e.Text != "" {
		return e.Text
	}
	return MinorText(e.Minor)
}

// Error returns one line: the reason id in brackets, and the minor text (the major's when there is
// no minor).
func (e *Error) Error() string {
	s := e.MinorString()
	if s == "" {
		s = e.Major.Text()
	}
	return e.Reason.Before(s)
}

// Errorf returns an error of the krb5 mechanism. Its text is that of the format; one that is empty
// or begins with ": " comes behind the table's text for the minor status.
func Errorf(major Major, minor uint32, id reason.ID, format string, args ...any) *Error {
	details, continues := strings.CutPrefix(format, ": ")
	text := fmt.Sprintf(details, args...)
	if words := MinorText(minor); words != "" && (continues || format == "") {
		if text != "" {
			words += ": " + text
		}
		text = words
	}
	return &Error{Major: major, Minor: minor, Mech: KRB5, Text: text, Reason: id}
}

// Of makes e an error of another mechanism, or of none, and returns it.
func (e *Error) Of(m OID) *Error {
	e.Mech = m
	return e
}
