package conf

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
)

// EntryRules reads what the entry of a key store says that callers may do with its keys: the keys
// about that of a [service/NAME] section, with a value for each line. The error says what is wrong
// with the first that is not good. isEnctype reports whether a text is the name of an encryption type
// that is supported: this package knows none.
func EntryRules(rules map[string][]string, isEnctype func(string) bool) (*Permission, error) {
	r := newReader(Source{})
	s := new(Service)
	options := permissionOptions(ServiceSection)
	var known []string
	for i := range options {
		known = append(known, options[i].Key)
	}
	for _, key := range slices.Sorted(maps.Keys(rules)) {
		i := slices.Index(known, key)
		values := rules[key]
		switch {
		case i < 0:
			return nil, fmt.Errorf("unknown key %q; %s", shorten(key), DidYouMean(key, known))
		case len(values) == 0:
			return nil, fmt.Errorf("%s has no value", key)
		case len(values) > 1 && !options[i].Repeat:
			return nil, fmt.Errorf("%s has %d values; one is expected", key, len(values))
		}
		for _, text := range values {
			v := value{key: key, text: text}
			if trim(text) != text || strings.ContainsAny(text, "\r\n\x00") || hasComment(text) || oddBlank(text) != 0 {
				return nil, errors.New(v.is("has a blank or a comment in it that a line of a file could not have"))
			}
			options[i].set(r, target{cfg: r.cfg, svc: s}, v)
			for _, p := range slices.Concat(r.errors, r.warnings) {
				return nil, errors.New(p.What + "; " + p.Expected)
			}
		}
	}
	if s.burstAlone() {
		return nil, errors.New(burstAlone)
	}
	for _, text := range s.Permission.Enctypes {
		if !isEnctype(text) {
			return nil, fmt.Errorf("enctypes has %q in it, which is the name of no encryption type that is supported", shorten(text))
		}
	}
	return &s.Permission, nil
}
