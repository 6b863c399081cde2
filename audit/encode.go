package audit

import (
	"strconv"
	"time"
	"unicode"
	"unicode/utf8"
)

// maxText is how many bytes of a line the text of one field may take. What is longer is cut, and ends
// in an ellipsis.
const maxText = 1024

// maxLine is how long a line may be, with its newline: more than all fields at their longest.
const maxLine = 32 << 10

// line is an event, with what only the log's own events have.
type line struct {
	*Event
	lost uint64
	prev []byte
}

// appendFields appends the fields of a line that its event has, each with a comma before it.
func appendFields(b []byte, l line) []byte {
	b = append(b, `,"time":"`...)
	b = appendTime(b, l.Time)
	b = append(b, '"')
	b = appendText(b, `,"kind":"`, string(l.Kind))
	b = appendNumber(b, `,"took_us":`, uint64(max(0, l.Took.Microseconds())))
	b = appendText(b, `,"connection":"`, l.Connection)
	if l.Call != 0 {
		b = appendEscaped(append(b, `,"call":"`...), l.Connection)
		b = strconv.AppendUint(append(b, '-'), l.Call, 10)
		b = append(b, '"')
	}
	if c := l.Caller; c != nil {
		b = append(b, `,"uid":`...) // 0 is somebody
		b = strconv.AppendUint(b, uint64(c.UID), 10)
		b = appendNumber(b, `,"pid":`, uint64(max(0, c.PID)))
		b = appendText(b, `,"program":"`, c.Program)
		b = appendText(b, `,"unit":"`, c.Unit)
		b = appendText(b, `,"pod":"`, c.Pod)
		b = appendText(b, `,"container":"`, c.Container)
		b = appendText(b, `,"label":"`, c.Label)
	}
	b = appendText(b, `,"socket":"`, l.Socket)
	b = appendText(b, `,"service":"`, l.Service)
	b = appendText(b, `,"procedure":"`, l.Procedure)
	b = appendText(b, `,"principal":"`, l.Principal)
	b = appendText(b, `,"target":"`, l.Target)
	b = appendText(b, `,"enctype":"`, l.Enctype)
	b = appendText(b, `,"reason":"`, l.Reason)
	b = appendText(b, `,"text":"`, l.Text)
	b = appendNumber(b, `,"repeated":`, l.Repeated)
	b = appendText(b, `,"source":"`, l.Source)
	b = appendNumber(b, `,"kvno":`, uint64(l.KVNO))
	b = appendText(b, `,"digest":"`, l.Digest)
	b = appendNumber(b, `,"lost":`, l.lost)
	if l.prev != nil {
		b = append(b, `,"prev":"`...)
		b = append(b, l.prev...)
		b = append(b, '"')
	}
	return b
}

func appendNumber(b []byte, name string, n uint64) []byte {
	if n == 0 {
		return b
	}
	return strconv.AppendUint(append(b, name...), n, 10)
}

// appendTime appends a time in UTC as RFC 3339 has it, always with microseconds.
func appendTime(b []byte, t time.Time) []byte {
	t = t.UTC()
	year, month, day := t.Date()
	hour, minute, second := t.Clock()
	if year < 0 || year > 9999 {
		year = 0
	}
	b = appendDigits(b, year, 4)
	b = appendDigits(append(b, '-'), int(month), 2)
	b = appendDigits(append(b, '-'), day, 2)
	b = appendDigits(append(b, 'T'), hour, 2)
	b = appendDigits(append(b, ':'), minute, 2)
	b = appendDigits(append(b, ':'), second, 2)
	b = appendDigits(append(b, '.'), t.Nanosecond()/1000, 6)
	return append(b, 'Z')
}

// appendDigits appends the last n decimal digits of x.
func appendDigits(b []byte, x, n int) []byte {
	b = append(b, "000000"[:n]...)
	for i := len(b) - 1; n > 0; i, n = i-1, n-1 {
		b[i] = byte('0' + x%10)
		x /= 10
	}
	return b
}

// appendText appends a field with a string, if it has one: name, with the comma before it and the
// quote behind, the string and a quote.
func appendText(b []byte, name, s string) []byte {
	if s == "" {
		return b
	}
	return append(appendEscaped(append(b, name...), s), '"')
}

// appendEscaped appends what is between the quotes of a string. Bytes that are not UTF-8 are replaced
// as package encoding/json does it. What a terminal would act on, or not show, is escaped.
func appendEscaped(b []byte, s string) []byte {
	end := len(b) + maxText - len(`\ud83d\ude00…`) // there is room for one more character, and the ellipsis
	for i := 0; i < len(s); {
		if len(b) > end {
			b = append(b, "…"...)
			break
		}
		plain := i
		for most := min(len(s), i+end-len(b)+1); i < most && isPlain[s[i]]; {
			i++
		}
		if i > plain {
			b = append(b, s[plain:i]...)
			continue
		}
		c := s[i]
		r, n := utf8.DecodeRuneInString(s[i:])
		switch {
		case c == '"' || c == '\\':
			b = append(b, '\\', c)
		case r == utf8.RuneError && n == 1:
			b = append(b, `\ufffd`...)
		case unicode.IsPrint(r):
			b = append(b, s[i:i+n]...)
		case r > 0xffff:
			r -= 0x10000
			b = appendEscape(appendEscape(b, 0xd800+r>>10), 0xdc00+r&0x3ff)
		default:
			b = appendEscape(b, r)
		}
		i += n
	}
	return b
}

// isPlain has the bytes that stand for themselves.
var isPlain = func() (plain [256]bool) {
	for c := ' '; c < 0x7f; c++ {
		plain[c] = c != '"' && c != '\\'
	}
	return plain
}()

const hexDigits = "0123456789abcdef"

// appendEscape appends the escape of a UTF-16 code unit.
func appendEscape(b []byte, r rune) []byte {
	return append(b, '\\', 'u', hexDigits[r>>12&15], hexDigits[r>>8&15], hexDigits[r>>4&15], hexDigits[r&15])
}
