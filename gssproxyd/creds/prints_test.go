package creds

import (
	"fmt"
	"strings"
	"testing"
)

// No way of printing what a call works with shows keys or plaintexts.
func TestNothingPrints(t *testing.T) {
	secret := []byte("0123456789abcdef")
	c, h := Caller{opened: secret}, Handle{tickets: secret}
	for _, v := range []any{c, &c, h, &h, []any{struct{ Caller }{c}, map[string]Handle{"a": h}, Input{Handle: &h}}} {
		for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%x", "%q", "%d"} {
			s := fmt.Sprintf(verb, v)
			for _, shown := range []string{"0123456789", "303132", "0x30, 0x31", "48 49 50"} {
				if strings.Contains(s, shown) {
					t.Errorf("%s of %T: %q", verb, v, s)
				}
			}
		}
	}
}
