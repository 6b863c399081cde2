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
// with the first that is not good; which encryption types there are is not looked at, see
// [Permission].Enctypes.
func EntryRules(rules map[string][]string) (*Permission, error) {
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
	return &s.Permission, nil
}
