package conf

import (
	"errors"
	"fmt"
	"math"
	"path"
	"slices"
	"strconv"
	"strings"
)

// principalMap splits at the last colon: a principal may have one, a user's name never has.
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
	write: lines[PrincipalUser],
}

// groups reads a group's number or name.
var groups = kind[[]uint32]{
	name: "group",
	read: func(r *reader, v value, dst *[]uint32) {
		const expected = "a gid from 0 to 4294967294 or the name of a group is expected"
		n, err := strconv.ParseUint(v.text, 10, 32)
		gid := uint32(n)
		if err != nil {
			gid, err = r.users.GID(v.text)
		}
		switch {
		case v.empty(r):
		case errors.Is(err, ErrNoGroup):
			v.bad(r, "is not a group of this system", expected, "create the group (getent group must know it), or write the gid")
		case err != nil:
			v.unanswered(r, err, expected, "repair the name service, or write the gid")
		case gid == math.MaxUint32:
			v.bad(r, "is not a gid", expected, "write the gid of the group")
		case slices.Contains(*dst, gid):
			v.bad(r, "repeats a group", "each group once is expected", "remove one of the lines")
		default:
			*dst = append(*dst, gid)
		}
	},
	write: func(list []uint32) []string {
		var out []string
		for _, gid := range list {
			out = append(out, strconv.FormatUint(uint64(gid), 10))
		}
		return out
	},
}

// patterns reads what path.Match takes, without a slash.
func patterns(what, expected string) kind[[]string] {
	return kind[[]string]{
		name: what + ", with * and ?",
		read: func(r *reader, v value, dst *[]string) {
			_, err := path.Match(v.text, "")
			switch {
			case v.empty(r):
			case err != nil:
				v.bad(r, "is no pattern", expected+" is expected", `write \ before a [ that stands for itself`)
			case strings.ContainsAny(v.text, "/ ,"):
				v.bad(r, fmt.Sprintf("has a %q in it", v.text[strings.IndexAny(v.text, "/ ,")]), expected+" is expected", "write one a line, without the path")
			case slices.Contains(*dst, v.text):
				v.bad(r, "repeats a line", "each once is expected", "remove one of the lines")
			default:
				*dst = append(*dst, v.text)
			}
		},
		write: func(list []string) []string { return list },
	}
}

// flagNames are the GSS request flags, bit by bit. INTEGRITIY is what the C daemon reads.
var flagNames = [...]string{"DELEGATE", "MUTUAL_AUTH", "REPLAY_DETECT", "SEQUENCE", "CONFIDENTIALITY", "INTEGRITY", "ANONYMOUS"}

const (
	misspelt = "INTEGRITIY"
	delegate = 1 // GSS_C_DELEG_FLAG
)

// flags changes the flags that are there. base is the default, which is not repeated when they are
// written.
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
		if strings.HasPrefix(val, storeType) {
			if wrong := checkEntryName(key, val); wrong != "" {
				v.bad(r, wrong, "STORE:NAME:PRINCIPAL@REALM is expected, for a keytab or client_keytab, as in keytab:STORE:main:HTTP/www.example.com@EXAMPLE.COM", "correct it")
				return
			}
		}
		for _, kv := range *dst {
			if kv.Key == key && !v.odd(r, "repeats the key "+key, "one value for each key is expected", "remove one of them", "libgssapi refuses every request with such a store") {
				return
			}
		}
		switch kind, path := residual(val); {
		case strings.HasPrefix(val, storeType):
		case key == "rcache" && kind != "file2", !slices.Contains([]string{"FILE", "WRFILE", "SEALED", "DIR", "file2"}, kind):
			v.path(r, "/"+val) // a name of another kind
		default:
			v.path(r, path)
		}
		*dst = append(*dst, KeyValue{key, val})
	},
	write: lines[KeyValue],
}
