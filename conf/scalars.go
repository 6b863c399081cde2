package conf

import (
	"errors"
	"fmt"
	"math"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

var boolean = kind[bool]{
	name: "boolean",
	read: func(r *reader, v value, dst *bool) {
		switch strings.ToLower(v.text) {
		case "1", "on", "true", "yes":
			*dst = true
		case "0", "off", "false", "no":
			*dst = false
		default:
			if v.odd(r, "is not a boolean", "1, on, true, yes, 0, off, false or no is expected", "write one of these", "it is read as no") {
				*dst = false
			}
		}
	},
	write: func(b bool) []string {
		if b {
			return []string{"yes"}
		}
		return []string{"no"}
	},
}

// integer reads what strtoll(3) reads of a 32-bit number. low is the least value that makes sense;
// below it the C daemon takes below, or keeps the default. Text without a number at its start is
// fatal for it too.
func integer(name string, low, below int) kind[int] {
	return kind[int]{
		name: name,
		read: func(r *reader, v value, dst *int) {
			n, ok := v.number(r)
			switch {
			case !ok:
			case n > math.MaxInt32 || n < math.MinInt32:
				v.bad(r, "does not fit into 32 bits", expectNumber(low), "write a smaller number")
			case n < int64(low):
				if v.odd(r, "is too small", expectNumber(low), "write a larger number, or remove the line", fmt.Sprintf("%d is used", below)) {
					*dst = below
				}
			default:
				*dst = int(n)
			}
		},
		write: func(n int) []string { return []string{strconv.Itoa(n)} },
	}
}

func expectNumber(low int) string {
	return fmt.Sprintf("a number from %d to 2147483647 is expected", low)
}

// number reads a decimal number. What follows it is an error, which the C daemon does not see: a
// comment behind the value, most of the time.
func (v value) number(r *reader) (int64, bool) {
	n, rest, ok := leadingNumber(v.text)
	if !ok {
		v.bad(r, "is not a number", "decimal digits are expected", "write a number")
		return 0, false
	}
	return n, v.alone(r, n, rest)
}

// alone reports whether to take a number that has rest behind it.
func (v value) alone(r *reader, n int64, rest string) bool {
	return rest == "" || v.odd(r, "has something behind the number", "a number alone is expected", behind(rest), fmt.Sprintf("it is read as %d", n))
}

func behind(rest string) string {
	if strings.ContainsAny(rest, "#;") {
		return ownLine
	}
	return fmt.Sprintf("remove %q", shorten(rest))
}

// leadingNumber splits off the decimal number at the start of s. Numbers that do not fit are
// returned as the nearest one that does.
func leadingNumber(s string) (n int64, rest string, ok bool) {
	i := len(leading.FindString(s))
	if i == 0 {
		return 0, s, false
	}
	n, _ = strconv.ParseInt(s[:i], 10, 64) // clamped when out of range
	return n, s[i:], true
}

var leading = regexp.MustCompile(`^[+-]?[0-9]+`)

// seconds keeps the default where the C daemon does so in silence.
var seconds = kind[time.Duration]{
	name: "seconds",
	read: func(r *reader, v value, dst *time.Duration) {
		const keep = "the default is used"
		n, rest, ok := leadingNumber(v.text)
		switch {
		case !ok:
			v.odd(r, "is not a number", expectNumber(0), "write a number", keep)
		case n < 0:
			v.odd(r, "is negative", expectNumber(0), "write a larger number, or remove the line", keep)
		case n > math.MaxInt32:
			v.odd(r, "does not fit into 32 bits", expectNumber(0), "write a smaller number", keep)
		case v.alone(r, n, rest):
			*dst = time.Duration(n) * time.Second
		}
	},
	write: func(d time.Duration) []string { return []string{strconv.Itoa(int(d / time.Second))} },
}

// noUser is (uid_t)-1: no process has it, and it is what the kernel reports for a peer without
// credentials.
const noUser = math.MaxUint32

var user = kind[uint32]{
	name: "user",
	read: func(r *reader, v value, dst *uint32) {
		const expected = "a uid from 0 to 4294967294 or the name of a user is expected"
		n, rest, ok := leadingNumber(v.text)
		if ok && rest == "" {
			switch {
			case n == -1 || n == noUser:
				v.bad(r, "is the uid that means no user", expected, "write the uid of the service")
			case n >= 0 && n < noUser:
				*dst = uint32(n)
			case n >= math.MinInt32 && n < 0:
				if uid := uint32(int32(n)); v.odd(r, "is negative", expected, fmt.Sprintf("write %d", uid), fmt.Sprintf("it is read as %d", uid)) {
					*dst = uid
				}
			default:
				v.bad(r, "is not a uid", expected, "write the uid of the service")
			}
			return
		}
		if ok && r.compat && 0 <= n && n <= math.MaxInt32 {
			v.odd(r, "has something behind the number", expected, behind(rest), fmt.Sprintf("it is read as %d", n))
			*dst = uint32(n)
			return
		}
		uid, err := r.users.UID(v.text)
		switch {
		case err == nil:
			if ok {
				r.warn(v.at, v.is("is the name of a user that begins with a digit"), fmt.Sprintf("its uid %d is used, where the C daemon reads %d", uid, n))
			}
			*dst = uid
		case v.text == "":
			v.bad(r, "is empty", expected, "write the uid of the service")
		case !errors.Is(err, ErrNoUser):
			v.unanswered(r, err, expected, "repair the name service, or write the uid")
		case ok:
			v.bad(r, "has something behind the number", expected, behind(rest))
		default:
			v.bad(r, "is not a user of this system", expected, "create the user (getent passwd must know it), or write the uid")
		}
	},
	write: func(uid uint32) []string { return []string{strconv.FormatUint(uint64(uid), 10)} },
}

var userName = text("user name", func(r *reader, v value) bool {
	const expected = "the name of a user is expected"
	switch _, err := r.users.UID(v.text); {
	case err == nil:
		return true
	case !errors.Is(err, ErrNoUser):
		v.unanswered(r, err, expected, "repair the name service")
	case strings.Trim(v.text, "0123456789") == "":
		v.bad(r, "is a number", expected, "write the user's name")
	default:
		v.bad(r, "is not a user of this system", expected, "create the user (getent passwd must know it), or remove the line")
	}
	return false
})

var principal = text("principal", func(r *reader, v value) bool {
	v.plain(r)
	return true
})

var unmappedUser = text("nobody, refuse or user name", func(r *reader, v value) bool {
	if v.text != NobodyUser && v.text != RefuseUser {
		v.knownUser(r, v.text)
	}
	return true
})

// knownUser warns about a user that there is not: the name service may know it later, when it is
// asked again.
func (v value) knownUser(r *reader, name string) {
	if _, err := r.users.UID(name); err != nil {
		r.warn(v.at, v.is("cannot be resolved now: "+err.Error()), "create the user (getent passwd must know it), or repair the name service; it is looked up for each context")
	}
}

// either is one of two words; the second is true.
func either(no, yes string) kind[bool] {
	words := []string{no, yes}
	return kind[bool]{
		name: no + " or " + yes,
		read: func(r *reader, v value, dst *bool) {
			i := slices.Index(words, strings.ToLower(v.text))
			if i < 0 {
				v.bad(r, "is neither", no+" or "+yes+" is expected", DidYouMean(v.text, words))
				return
			}
			*dst = i == 1
		},
		write: func(b bool) []string {
			if b {
				return []string{yes}
			}
			return []string{no}
		},
	}
}

var appArmor = text("AppArmor label", func(r *reader, v value) bool {
	if strings.HasSuffix(v.text, ")") {
		v.bad(r, "has a mode behind the name", "the name of a profile is expected", "leave it out: only a profile that is enforced counts")
		return false
	}
	return true
})

var seLinux = kind[string]{
	name: "SELinux context",
	read: func(r *reader, v value, dst *string) {
		if _, ok := parseContext(v.text); !ok {
			v.bad(r, "is not an SELinux context", "user:role:type or user:role:type:range is expected", "write the context of the peer's process (ps -Z), or remove the line")
			return
		}
		r.warn(v.at, v.key+" is deprecated", "tell services apart by euid, program or socket")
		*dst = v.text
	},
	write: optional,
}

var usage = kind[Usage]{
	name: "initiate, accept or both",
	read: func(r *reader, v value, dst *Usage) {
		i := slices.Index(usages[:], strings.ToLower(v.text))
		if i < 0 {
			v.bad(r, "is not a usage", "initiate, accept or both is expected", DidYouMean(v.text, usages[:]))
			return
		}
		*dst = Usage(i)
	},
	write: func(u Usage) []string { return []string{u.String()} },
}
