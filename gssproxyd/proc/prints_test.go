package proc

import (
	"fmt"
	"strings"
	"testing"

	"gssproxyd/mech/krb5"
)

// No way of printing what a call works with shows keys or plaintexts.
func TestNothingPrints(t *testing.T) {
	secret := []byte("0123456789abcdef")
	c := call{buf: secret, begun: secret}
	a := accepting{accepted: krb5.Accepted{Partial: secret}}
	i := initiating{out: krb5.Initiated{Partial: secret}}
	for _, v := range []any{c, &c, a, &a, i, &i, []any{struct{ call }{c}}} {
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
