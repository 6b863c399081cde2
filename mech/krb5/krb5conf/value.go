package krb5conf

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"gssproxyd/mech/krb5/etype"
)

// mitDefault is the order of DEFAULT in MIT krb5 1.18 and later.
var mitDefault = []etype.ID{
	etype.AES256SHA1, etype.AES128SHA1, etype.AES256SHA384, etype.AES128SHA256,
	etype.DES3, etype.RC4, etype.Camellia128, etype.Camellia256,
}

// enctypes computes PermittedEnctypes, and what is asked for of these.
func (c *Config) enctypes() error {
	if n := c.libdefault("permitted_enctypes"); n == nil {
		c.PermittedEnctypes = c.usable(c.defaultEnctypes())
	} else if c.PermittedEnctypes = c.usable(c.enctypesOf(n, "permitted_enctypes")); len(c.PermittedEnctypes) == 0 {
		return fmt.Errorf("%s: permitted_enctypes = %q permits no supported encryption type; expected for example aes256-cts-hmac-sha1-96, or no such line", n.pos, n.value)
	}
	c.TktEnctypes = c.requested("default_tkt_enctypes")
	c.TGSEnctypes = c.requested("default_tgs_enctypes")
	return nil
}

// enctypesOf reads the list of a setting.
func (c *Config) enctypesOf(n *node, key string) []etype.ID {
	list, unknown := c.parseEnctypes(n.value)
	for _, u := range unknown {
		c.warn("%s: %s: unknown encryption type %q is ignored", n.pos, key, u)
	}
	return list
}

// requested returns the types that a setting has asked for, as far as they are permitted; all that
// are permitted where it is not set.
func (c *Config) requested(key string) []etype.ID {
	n := c.libdefault(key)
	if n == nil {
		return c.PermittedEnctypes
	}
	list := []etype.ID{}
	for _, id := range c.enctypesOf(n, key) {
		if slices.Contains(c.PermittedEnctypes, id) {
			list = append(list, id)
		}
	}
	if len(list) == 0 {
		c.warn("%s: %s = %q has no type that permitted_enctypes permits: no ticket can be asked for", n.pos, key, n.value)
	}
	return list
}

// DefaultEnctypes returns what PermittedEnctypes is without a krb5.conf.
func DefaultEnctypes() []etype.ID {
	var c Config
	return c.usable(c.defaultEnctypes())
}

// defaultEnctypes is what DEFAULT stands for.
func (c *Config) defaultEnctypes() []etype.ID {
	return slices.DeleteFunc(slices.Clone(mitDefault), func(id etype.ID) bool {
		return id == etype.RC4 && !c.allowRC4 || id == etype.DES3 && !c.allowDES3
	})
}

// usable drops what is not supported, and what is weak unless that is allowed.
func (c *Config) usable(list []etype.ID) []etype.ID {
	return slices.DeleteFunc(list, func(id etype.ID) bool {
		return !id.Supported() || id == etype.RC4Export && !c.allowWeakCrypto
	})
}

// parseEnctypes reads a list of names and families separated by blanks or commas, each added, or
// with a "-" in front removed; DEFAULT is the default list.
func (c *Config) parseEnctypes(s string) (list []etype.ID, unknown []string) {
	for _, word := range strings.FieldsFunc(s, func(r rune) bool { return strings.ContainsRune(" \t\r\n,", r) }) {
		name := strings.TrimPrefix(word, "+")
		remove := false
		if name == word {
			name, remove = strings.CutPrefix(word, "-")
		}
		var ids []etype.ID
		if strings.EqualFold(name, "DEFAULT") {
			ids = c.defaultEnctypes()
		} else if parsed, ok := etype.Parse(name); ok {
			ids = parsed
		} else {
			unknown = append(unknown, name)
		}
		for _, id := range ids {
			at := slices.Index(list, id)
			switch {
			case remove && at >= 0:
				list = slices.Delete(list, at, at+1)
			case !remove && at < 0:
				list = append(list, id)
			}
		}
	}
	return list, unknown
}

// ParseDuration reads krb5's notation of a time span: seconds ("300"), parts with units
// ("1d2h3m4s", blanks allowed), "h:m:s", "h:m" or "d-h:m:s". A span is less than 2^31 seconds
// either way.
func ParseDuration(s string) (time.Duration, bool) {
	s = strings.Trim(s, blanks)
	s, neg := strings.CutPrefix(s, "-")
	sec, ok := parseSpan(s)
	if !ok || sec > maxSeconds {
		return 0, false
	}
	if neg {
		sec = -sec
	}
	return time.Duration(sec) * time.Second, true
}

const maxSeconds = 1<<31 - 1

// parseSpan returns seconds; no sum of its terms overflows.
func parseSpan(s string) (int64, bool) {
	const day = 86400
	if days, clock, ok := strings.Cut(s, "-"); ok {
		n, rest, ok := number(days)
		sec, ok2 := clockSpan(clock)
		return n*day + sec, ok && ok2 && rest == "" && strings.Count(clock, ":") == 2
	}
	if strings.Contains(s, ":") {
		return clockSpan(s)
	}
	n, rest, ok := number(s)
	if !ok || rest == "" { // a bare number is in seconds
		return n, ok
	}
	var total int64
	letters, spans := "dhms", []int64{day, 3600, 60, 1}
	for {
		i := strings.IndexByte(letters, rest[0])
		if i < 0 {
			return 0, false
		}
		total += n * spans[i]
		letters, spans = letters[i+1:], spans[i+1:]
		if s = strings.TrimLeft(rest[1:], blanks); s == "" {
			return total, true
		}
		if n, rest, ok = number(s); !ok || rest == "" {
			return 0, false
		}
	}
}

// clockSpan reads h:m or h:m:s; minutes and seconds have at most two digits.
func clockSpan(s string) (int64, bool) {
	parts := strings.Split(s, ":")
	if len(parts) != 2 && len(parts) != 3 {
		return 0, false
	}
	var total int64
	for i, span := 0, int64(3600); i < len(parts); i, span = i+1, span/60 {
		n, rest, ok := number(parts[i])
		if !ok || rest != "" || i > 0 && len(parts[i]) > 2 {
			return 0, false
		}
		total += n * span
	}
	return total, true
}

// number reads digits; the value is at most maxSeconds.
func number(s string) (n int64, rest string, ok bool) {
	i := 0
	for ; i < len(s) && '0' <= s[i] && s[i] <= '9'; i++ {
		if n = n*10 + int64(s[i]-'0'); n > maxSeconds {
			return 0, s, false
		}
	}
	return n, s[i:], i > 0
}
