package conf

import (
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// Store returns the credential store for uid: CredStore with %U replaced by the uid in decimal, %u
// by the user's name and %% by %. Without any % it is CredStore itself, which is to be read only.
// users is asked only for %u. The error wraps [ErrNoUser] if the uid has no name.
func (s *Service) Store(uid uint32, users Users) ([]KeyValue, error) {
	var out []KeyValue
	for i, kv := range s.CredStore {
		if !strings.Contains(kv.Value, "%") {
			continue
		}
		v, err := substitute(kv.Value, uid, users)
		if err != nil {
			return nil, fmt.Errorf("service %s: cred_store = %v: %w", s.Name, kv, err)
		}
		if out == nil {
			out = slices.Clone(s.CredStore)
		}
		out[i].Value = v
	}
	if out == nil {
		return s.CredStore, nil
	}
	return out, nil
}

func substitute(text string, uid uint32, users Users) (string, error) {
	var b strings.Builder
	for {
		before, after, found := strings.Cut(text, "%")
		b.WriteString(before)
		if !found {
			return b.String(), nil
		}
		code, rest := "", ""
		if after != "" {
			code, rest = after[:1], after[1:]
		}
		switch code {
		case "%":
			b.WriteByte('%')
		case "U":
			b.WriteString(strconv.FormatUint(uint64(uid), 10))
		case "u":
			name, err := users.Name(uid)
			if err != nil {
				return "", err
			}
			// A name becomes part of a path here.
			if name == "" || name == "." || name == ".." || strings.ContainsAny(name, "/\x00") {
				return "", fmt.Errorf("the name %q of uid %d cannot be part of a path", name, uid)
			}
			b.WriteString(name)
		default:
			return "", fmt.Errorf("%q stands for nothing", "%"+code)
		}
		text = rest
	}
}

// residual splits the name of a keytab or cache, as libkrb5 writes them, into its type and the
// rest: "FILE:/a" and "/a" are the type FILE, and "/a".
func residual(name string) (kind, rest string) {
	if kind, rest, ok := strings.Cut(name, ":"); ok && !strings.HasPrefix(name, "/") {
		return kind, rest
	}
	return "FILE", name
}

// badSubstitution returns the first % of text that stands for nothing, with the character behind
// it, or "".
func badSubstitution(text string) string {
	if bad := unsubstituted.FindStringSubmatch(text); bad != nil {
		return bad[1]
	}
	return ""
}

var unsubstituted = regexp.MustCompile(`^(?:[^%]|%[Uu%])*(%(?:[^Uu%]|$))`)
