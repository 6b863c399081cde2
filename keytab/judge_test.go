package keytab

import (
	"errors"
	"io/fs"
	"strings"
	"testing"
	"time"
)

// What a file means, by the looks at it: no look waits for another.
func TestJudge(t *testing.T) {
	p := usualPace()
	v1, v2, v12 := encode(service(1)), encode(service(2)), encode(service(1), service(2))
	half, none := v12[:len(v12)-1], error(fs.ErrNotExist)
	type look struct {
		after    time.Duration // the former one
		content  []byte
		err      error
		versions string        // of the keys in use after it
		next     time.Duration // how soon it wants another look
		hint     string        // "" where there is no error
	}
	for name, looks := range map[string][]look{
		"more keys": {
			{0, v1, nil, "1", 0, ""},
			{0, v12, nil, "1 2", 0, ""},
		},
		"fewer keys, until it is believed": {
			{0, v1, nil, "1", 0, ""},
			{0, v2, nil, "1", p.unchanged, ""},
			{p.unchanged / 3, v2, nil, "1", p.unchanged - p.unchanged/3, ""},
			{p.unchanged, v2, nil, "2", 0, ""},
		},
		"fewer keys, and other ones meanwhile": {
			{0, v1, nil, "1", 0, ""},
			{0, v2, nil, "1", p.unchanged, ""},
			{p.unchanged - 1, encode(), nil, "1", p.unchanged, ""},
			{p.unchanged - 1, v1, nil, "1", 0, ""},
		},
		"half of it, and then all": {
			{0, v1, nil, "1", 0, ""},
			{0, half, nil, "1", p.retry, ""},
			{p.retry, v12, nil, "1 2", 0, ""},
		},
		"half of it for long": {
			{0, v1, nil, "1", 0, ""},
			{0, half, nil, "1", p.retry, ""},
			{p.alarm, half, nil, "1", 0, "stay in use"},
			{time.Hour, v12, nil, "1 2", 0, ""},
		},
		"bad at first": {
			{0, half, nil, "", 0, "no keys to use"},
			{0, v1, nil, "1", 0, ""},
		},
		"missing": {
			{0, v1, nil, "1", 0, ""},
			{0, nil, none, "1", p.retry, ""},
			{p.alarm, nil, none, "1", p.grace - p.alarm, "in case it is being replaced"},
			{p.grace - p.alarm, nil, none, "", 0, "no longer used"},
			{0, half, nil, "", 0, "no longer used"},
			{time.Hour, v1, nil, "1", 0, ""},
		},
		"bad for long, and then missing": {
			{0, v1, nil, "1", 0, ""},
			{0, nil, errors.New("not readable"), "1", p.retry, ""},
			{time.Hour, nil, none, "1", p.grace, "in case it is being replaced"},
			{p.grace, nil, none, "", 0, "no longer used"},
		},
	} {
		s, now := state{ring: Compile("FILE:/test", nil)}, time.Unix(1e9, 0)
		for i, l := range looks {
			now = now.Add(l.after)
			var next time.Duration
			s, next = s.judge(p, now, l.content, func(content []byte) (*Ring, error) {
				entries, err := Parse(content)
				return Compile("FILE:/test", entries), err
			}, l.err)
			if got := versions(s.ring); got != l.versions || next != l.next {
				t.Errorf("%s, look %d: keys %q, next look in %v, want %q and %v", name, i, got, next, l.versions, l.next)
			}
			if (s.err == nil) != (l.hint == "") || !strings.Contains(s.hint, l.hint) {
				t.Errorf("%s, look %d: %v, hint %q, want %q", name, i, s.err, s.hint, l.hint)
			}
		}
	}
}
