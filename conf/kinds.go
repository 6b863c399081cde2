package conf

import (
	"errors"
	"fmt"
	"math"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

// A kind is a type of value: its name in the manual, how it is read and how it
// is written. read changes *dst, which holds the default, or reports to r.
type kind[T any] struct {
	name  string
	read  func(r *reader, v value, dst *T)
	write func(T) []string
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

// odd reports a value that the C daemon takes in its own way, and returns
// whether to do so.
func (v value) odd(r *reader, wrong, expected, do, asC string) bool {
	return r.odd(v.at, v.is(wrong), expected, v.instead(do), asC)
}

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

func (v value) is(wrong string) string {
	return fmt.Sprintf("%s = %q %s", v.key, shorten(v.text), wrong)
}

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

// integer reads what strtoll(3) reads of a 32-bit number. low is the least
// value that makes sense; below it the C daemon takes below, or keeps the
// default. Text without a number at its start is fatal for it too.
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

// number reads a decimal number. What follows it is an error, which the C
// daemon does not see: a comment behind the value, most of the time.
func (v value) number(r *reader) (int64, bool) {
	n, rest, ok := leadingNumber(v.text)
	if !ok {
		v.bad(r, "is not a number", "decimal digits are expected", "write a number")
		return 0, false
	}
	if rest != "" && !v.odd(r, "has something behind the number", "a number alone is expected", behind(rest), fmt.Sprintf("it is read as %d", n)) {
		return 0, false
	}
	return n, true
}

func behind(rest string) string {
	if strings.ContainsAny(rest, "#;") {
		return ownLine
	}
	return fmt.Sprintf("remove %q", shorten(rest))
}

const ownLine = "there are no comments behind a value: give the comment a line of its own"

// leadingNumber splits off the decimal number at the start of s. Numbers that
// do not fit are returned as the nearest one that does.
func leadingNumber(s string) (n int64, rest string, ok bool) {
	i := 0
	if s != "" && (s[0] == '+' || s[0] == '-') {
		i = 1
	}
	start := i
	for i < len(s) && '0' <= s[i] && s[i] <= '9' {
		i++
	}
	if i == start {
		return 0, s, false
	}
	n, _ = strconv.ParseInt(s[:i], 10, 64) // clamped when out of range
	return n, s[i:], true
}

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
		case rest == "" || v.odd(r, "has something behind the number", "a number alone is expected", behind(rest), fmt.Sprintf("it is read as %d", n)):
			*dst = time.Duration(n) * time.Second
		}
	},
	write: func(d time.Duration) []string { return []string{strconv.Itoa(int(d / time.Second))} },
}

// noUser is (uid_t)-1: no process has it, and it is what the kernel reports for
// a peer without credentials.
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

var userName = kind[string]{
	name: "user name",
	read: func(r *reader, v value, dst *string) {
		const expected = "the name of a user is expected"
		if v.empty(r) {
			return
		}
		switch _, err := r.users.UID(v.text); {
		case err == nil:
			*dst = v.text
		case !errors.Is(err, ErrNoUser):
			v.unanswered(r, err, expected, "repair the name service")
		case strings.Trim(v.text, "0123456789") == "":
			v.bad(r, "is a number", expected, "write the user's name")
		default:
			v.bad(r, "is not a user of this system", expected, "create the user (getent passwd must know it), or remove the line")
		}
	},
	write: optional,
}

func optional(s string) []string {
	if s == "" {
		return nil
	}
	return []string{s}
}

// empty reports a value that is not there. Where the C daemon starts with one,
// what it does then is of no use: it listens on a name nobody can reach, or
// asks for credentials of nobody.
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

var principal = kind[string]{
	name: "principal",
	read: func(r *reader, v value, dst *string) {
		if !v.empty(r) {
			v.plain(r)
			*dst = v.text
		}
	},
	write: optional,
}

// principalMap splits at the last colon: a principal may have one, a user's name
// never has.
var principalMap = kind[[]PrincipalUser]{
	name: "PRINCIPAL:USER",
	read: func(r *reader, v value, dst *[]PrincipalUser) {
		const expected = "PRINCIPAL@REALM:USER is expected, as in host/client.example.com@EXAMPLE.COM:root"
		i := strings.LastIndexByte(v.text, ':')
		if i < 0 {
			v.bad(r, "has no : in it", expected, "write the user behind the principal")
			return
		}
		m := PrincipalUser{Principal: v.text[:i], User: v.text[i+1:]}
		name, realm, ok := strings.Cut(m.Principal, "@")
		switch {
		case trim(m.Principal) != m.Principal || trim(m.User) != m.User:
			v.bad(r, "has a blank beside the :", expected, "remove it")
		case !ok || name == "" || realm == "":
			v.bad(r, "has no realm in it", expected, "write the whole principal")
		case strings.Contains(m.Principal, "*"):
			v.bad(r, "has a * in it, which stands for itself here", expected, "write a line for each principal, or a rule for all of them in krb5.conf (auth_to_local)")
		case m.User == "":
			v.bad(r, "has nothing behind the :", expected, "write the user's name")
		case slices.ContainsFunc(*dst, func(o PrincipalUser) bool { return o.Principal == m.Principal }):
			v.bad(r, "repeats the principal", "one user for each principal is expected", "remove one of the lines")
		default:
			v.knownUser(r, m.User)
			*dst = append(*dst, m)
		}
	},
	write: func(list []PrincipalUser) []string {
		lines := make([]string, len(list))
		for i, m := range list {
			lines[i] = m.Principal + ":" + m.User
		}
		return lines
	},
}

var unmappedUser = kind[string]{
	name: "nobody, refuse or user name",
	read: func(r *reader, v value, dst *string) {
		if v.empty(r) {
			return
		}
		if v.text != NobodyUser && v.text != RefuseUser {
			v.knownUser(r, v.text)
		}
		*dst = v.text
	},
	write: optional,
}

// knownUser warns about a user that there is not: the name service may know it
// later, when it is asked again.
func (v value) knownUser(r *reader, name string) {
	if _, err := r.users.UID(name); err != nil {
		r.warn(v.at, v.is("cannot be resolved now: "+err.Error()), "create the user (getent passwd must know it), or repair the name service; it is looked up for each context")
	}
}

// path warns about a path that is not what it seems to be: with words for a
// shell, or relative. Nothing is expanded or unquoted in the files.
func (v value) path(r *reader, path string) {
	switch word := shellWord(path); {
	case word == `"` || word == "'":
		r.warn(v.at, v.is("has a quote in it, which is part of the path"), "remove the quotes")
	case word != "":
		r.warn(v.at, v.is(fmt.Sprintf("has %q in it, which stands for itself: no shell expands it", word)), "write out what is meant")
	case path != "" && path[0] != '/':
		r.warn(v.at, v.is("has a relative path in it, which depends on the directory the daemon is started in"), "write a path that begins with /")
	}
}

// shellWord returns the first part of a path that a shell would replace, or a
// quote at an end of it; "" if there is neither.
func shellWord(path string) string {
	if path != "" && strings.ContainsAny(path[:1], "\"'") {
		return path[:1]
	}
	if n := len(path); n > 0 && strings.ContainsAny(path[n-1:], "\"'") {
		return path[n-1:]
	}
	if strings.HasPrefix(path, "~") {
		user, _, _ := strings.Cut(path, "/")
		return user
	}
	for i := range path {
		letter := func(c byte) bool { return c == '_' || 'a' <= c|0x20 && c|0x20 <= 'z' }
		switch rest := path[i:]; {
		case rest[0] == '`':
			return rest
		case rest[0] != '$' || len(rest) == 1:
		case rest[1] == '{' || rest[1] == '(':
			if end := strings.IndexAny(rest, "})"); end > 0 {
				return rest[:end+1]
			}
			return rest
		case letter(rest[1]):
			end := 1
			for end < len(rest) && (letter(rest[end]) || '0' <= rest[end] && rest[end] <= '9') {
				end++
			}
			return rest[:end]
		}
	}
	return ""
}

// maxSocket is the size of sun_path without its NUL.
const maxSocket = 107

var socketPath = kind[string]{
	name: "path",
	read: func(r *reader, v value, dst *string) {
		if v.empty(r) {
			return
		}
		v.plain(r)
		path := v.text
		if path[0] != '/' {
			if !v.odd(r, "is not an absolute path", "a path that begins with / is expected", "write the whole path", "it is read as /"+path) {
				return
			}
			path = "/" + path
		}
		if len(path) > maxSocket {
			if !v.odd(r, fmt.Sprintf("has %d bytes", len(path)), fmt.Sprintf("at most %d fit into a socket's address", maxSocket), "shorten it", "it is cut there") {
				return
			}
			path = path[:maxSocket]
		}
		v.path(r, path)
		*dst = path
	},
	write: optional,
}

var programPath = kind[string]{
	name: "path",
	read: func(r *reader, v value, dst *string) {
		const expected = "the absolute path of an executable file is expected"
		switch {
		case v.empty(r):
			return
		case v.text[0] != '/':
			v.bad(r, "is not an absolute path", expected, "write the whole path")
			return
		case strings.Contains(v.text, "|"):
			v.bad(r, "contains |", expected, "write one path; a service for each program")
			return
		}
		*dst = v.text
		// The kernel reports resolved paths. A file that is not there yet, or
		// not readable, is no reason to complain.
		real, err := filepath.EvalSymlinks(v.text)
		program, _, arguments := strings.Cut(v.text, " ")
		switch {
		case err == nil && real != v.text:
			r.warn(v.at, v.is("is not the path the kernel reports for that program, so no peer will match"), "write "+real)
		case err != nil && arguments && !hasComment(v.text):
			r.warn(v.at, v.is("has arguments, it seems: the kernel reports a program's path alone, so no peer will match"), "write "+program)
		default:
			v.path(r, v.text)
		}
	},
	write: optional,
}

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

// flagNames are the GSS request flags, bit by bit. INTEGRITIY is what the C
// daemon reads.
var flagNames = [...]string{"DELEGATE", "MUTUAL_AUTH", "REPLAY_DETECT", "SEQUENCE", "CONFIDENTIALITY", "INTEGRITY", "ANONYMOUS"}

const (
	misspelt = "INTEGRITIY"
	delegate = 1 // GSS_C_DELEG_FLAG
)

// flags changes the flags that are there. base is the default, which is not
// repeated when they are written.
func flags(base uint32) kind[uint32] {
	return kind[uint32]{name: "flags", read: readFlags, write: func(set uint32) []string { return writeFlags(set, base) }}
}

func readFlags(r *reader, v value, dst *uint32) {
	const expected = "+NAME, -NAME or a number with a sign is expected"
	const ignored = "it is ignored"
	for token := range tokens(v.text) {
		name := strings.TrimLeft(token[:1], "+-") + token[1:]
		if name == token {
			v.odd(r, fmt.Sprintf("has %q in it, without a sign", shorten(token)), expected, "write + to add the flag or - to remove it", ignored)
			continue
		}
		bits, ok := flagBits(name)
		if !ok {
			v.odd(r, fmt.Sprintf("has the unknown flag %q in it", shorten(token)), expected, DidYouMean(name, flagNames[:]), ignored)
			continue
		}
		if token[0] == '+' {
			*dst |= bits
		} else {
			*dst &^= bits
		}
	}
}

func writeFlags(set, base uint32) []string {
	var list []string
	write := func(sign string, set uint32) {
		for i, name := range flagNames {
			if bit := uint32(1) << i; set&bit != 0 {
				list = append(list, sign+name)
				set &^= bit
			}
		}
		if set != 0 {
			list = append(list, fmt.Sprintf("%s%#x", sign, set))
		}
	}
	write("+", set)
	write("-", base&^set)
	return optional(strings.Join(list, " "))
}

// flagBits reads a name in any case, or what strtoul(3) reads in base 0.
func flagBits(name string) (uint32, bool) {
	if strings.EqualFold(name, misspelt) {
		name = "INTEGRITY"
	}
	for i, known := range flagNames {
		if strings.EqualFold(name, known) {
			return 1 << i, true
		}
	}
	if strings.Contains(name, "_") { // not a digit separator here
		return 0, false
	}
	n, err := strconv.ParseUint(name, 0, 32)
	return uint32(n), err == nil && n != 0
}

// tokens are the parts of a list separated by commas and blanks.
func tokens(s string) func(func(string) bool) {
	return strings.FieldsFuncSeq(s, func(c rune) bool { return c == ',' || c == ' ' })
}

var mechNames = []string{"krb5"}

var mechs = kind[[]string]{
	name: "list of mechanisms",
	read: func(r *reader, v value, dst *[]string) {
		const dropped = "the C daemon leaves out the whole service, and so does this one"
		list := slices.Collect(tokens(v.text))
		if len(list) == 0 {
			v.odd(r, "names no mechanism", "krb5 is expected", "write krb5", dropped)
			return
		}
		for _, m := range list {
			if !slices.Contains(mechNames, m) {
				do := DidYouMean(m, mechNames)
				if strings.EqualFold(m, "spnego") || strings.EqualFold(m, "iakerb") {
					do = "remove it: the client's own library does it, on top of krb5"
				}
				v.odd(r, fmt.Sprintf("has the unknown mechanism %q in it", shorten(m)), "krb5 is expected", do, dropped)
				return
			}
		}
		*dst = slices.Compact(list)
	},
	write: func(m []string) []string { return optional(strings.Join(m, ", ")) },
}

// storeKeys are those of gss_acquire_cred_from(3) that there is anything to do for.
var storeKeys = []string{"keytab", "client_keytab", "ccache", "rcache"}

// notStored are its other keys, with what to do instead.
var notStored = map[string]string{
	"password": "put the key into a keytab (ktutil, addent -password) and write client_keytab:/path; whatever was written here should be changed",
	"verify":   "remove the line: credentials that a keytab was needed for need no proof of their KDC",
}

var credStore = kind[[]KeyValue]{
	name: "key:value",
	read: func(r *reader, v value, dst *[]KeyValue) {
		const expected = "key:value is expected, as in keytab:/etc/krb5.keytab"
		key, val, ok := strings.Cut(v.text, ":")
		if !ok {
			v.bad(r, "has no : in it", expected, "write a key before the value")
			return
		}
		if !slices.Contains(storeKeys, key) {
			v.text = key + ":..." // do not show what may be a secret
			known := "one of " + strings.Join(storeKeys, ", ") + " is expected"
			noEffect := false
			switch bare := trim(key); {
			case notStored[bare] != "":
				noEffect = v.odd(r, "is not supported", known, notStored[bare], "the element has no effect here, and credentials that need it are not got")
			case slices.Contains(storeKeys, bare):
				noEffect = v.odd(r, "has a blank before the :", expected, "remove it", "the blank is part of the key, so the element has no effect")
			default:
				noEffect = v.odd(r, fmt.Sprintf("has the unknown key %q in it", shorten(key)), known, DidYouMean(bare, storeKeys), "the element has no effect")
			}
			if noEffect {
				*dst = append(*dst, KeyValue{Key: key}) // and its value, whatever it is, is not kept
			}
			return
		}
		if trim(val) != val && !v.odd(r, "has a blank behind the :", expected, "remove it", "the blank is part of the value") {
			return
		}
		if val == "" && !v.odd(r, "has nothing behind the :", expected, "add the value, or remove the line", "the value is empty") {
			return
		}
		if code := badSubstitution(val); code != "" && !v.odd(r, fmt.Sprintf("has %q in it, which stands for nothing", code), "%U (uid), %u (user name) or %% is expected", "correct it; a single % is written %%", "requests that need it fail") {
			return
		}
		for _, kv := range *dst {
			if kv.Key == key && !v.odd(r, "repeats the key "+key, "one value for each key is expected", "remove one of them", "libgssapi refuses every request with such a store") {
				return
			}
		}
		switch kind, path := residual(val); {
		case key == "rcache" && kind != "file2", !slices.Contains([]string{"FILE", "WRFILE", "DIR", "file2"}, kind):
			v.path(r, "/"+val) // a name of another kind
		default:
			v.path(r, path)
		}
		*dst = append(*dst, KeyValue{key, val})
	},
	write: func(store []KeyValue) []string {
		lines := make([]string, len(store))
		for i, kv := range store {
			lines[i] = kv.String()
		}
		return lines
	},
}
