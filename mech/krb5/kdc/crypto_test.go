package kdc

import (
	"encoding/hex"
	"fmt"
	"strings"
	"testing"

	"github.com/jcmturner/gokrb5/v8/crypto"

	"gssproxyd/mech/krb5/etype"
)

// TestStringToKey has vectors of RFC 3962 appendix B and RFC 8009 appendix A, and asks gokrb5.
func TestStringToKey(t *testing.T) {
	salt8009, err := hex.DecodeString("10df9dd783e5bc8acea1730e74355f61")
	check(t, err)
	for _, v := range []struct {
		id             etype.ID
		password, salt string
		params         string
		want           string
	}{
		{17, "password", "ATHENA.MIT.EDUraeburn", "00000001", "42263c6e89f4fc28b8df68ee09799f15"},
		{18, "password", "ATHENA.MIT.EDUraeburn", "00000001", "fe697b52bc0d3ce14432ba036a92e65bbb52280990a2fa27883998d72af30161"},
		{17, "password", "ATHENA.MIT.EDUraeburn", "000004b0", "4c01cd46d632d01e6dbe230a01ed642a"},
		{19, "password", string(salt8009) + "ATHENA.MIT.EDUraeburn", "00008000", "089bca48b105ea6ea77ca5d2f39dc5e7"},
		{20, "password", string(salt8009) + "ATHENA.MIT.EDUraeburn", "00008000", "45bd806dbf6a833a9cffc1c94589a222367a79bc21c413718906e9f578a78467"},
		{23, "foo", "", "", "ac8e657f83df82beea5d43bdaf7800cc"},
	} {
		params, err := hex.DecodeString(v.params)
		check(t, err)
		k, err := StringToKey(v.id, etype.Secret(v.password), v.salt, params)
		check(t, err)
		if got := hex.EncodeToString(k.Secret()); got != v.want {
			t.Errorf("%v %s: %s, want %s", v.id, v.params, got, v.want)
		}
	}
	for _, id := range []etype.ID{17, 18, 19, 20, 23} {
		for _, params := range []string{"", "00001000"} {
			if params == "" && (id == 19 || id == 20) {
				continue // gokrb5 has another idea of the default
			}
			b, err := hex.DecodeString(params)
			check(t, err)
			if id == 23 {
				b = nil
			}
			k, err := StringToKey(id, etype.Secret("long pass phrase, longer than a block of the hash: 0123456789 0123456789"), "saltREALM", b)
			check(t, err)
			e, err := crypto.GetEtype(int32(id))
			check(t, err)
			want, err := e.StringToKey("long pass phrase, longer than a block of the hash: 0123456789 0123456789", "saltREALM", params)
			if params == "" {
				want, err = e.StringToKey("long pass phrase, longer than a block of the hash: 0123456789 0123456789", "saltREALM", e.GetDefaultStringToKeyParams())
			}
			check(t, err)
			if string(want) != string(k.Secret()) {
				t.Errorf("%v %q: %x, gokrb5 has %x", id, params, []byte(k.Secret()), want)
			}
		}
	}
	for _, params := range []string{"\x00\x00\x00\x00", "\xff\xff\xff\xff", "\x00\x00\x01", "\x00\x10\x00\x01"} {
		if _, err := StringToKey(18, etype.Secret("x"), "y", []byte(params)); err == nil {
			t.Errorf("parameters %x are accepted", params)
		}
	}
	if _, err := StringToKey(16, etype.Secret("x"), "y", nil); err == nil {
		t.Error("triple DES is accepted")
	}
}

// TestNothingPrinted: options, key sources and errors show no keys.
func TestNothingPrinted(t *testing.T) {
	secret := etype.Secret("\x01secret\x02")
	for _, v := range []any{Password(secret), LoginOptions{}, KeyHint{}} {
		for _, f := range []string{"%v", "%+v", "%#v", "%s", "%x", "%d"} {
			if s := fmt.Sprintf(f, v); containsAny(s, "secret", hex.EncodeToString(secret), fmt.Sprint([]byte(secret))) {
				t.Errorf("%T with %s prints %s", v, f, s)
			}
		}
	}
}

func containsAny(s string, parts ...string) bool {
	for _, p := range parts {
		if strings.Contains(s, p) {
			return true
		}
	}
	return false
}
