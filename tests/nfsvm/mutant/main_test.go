package main

import (
	"bytes"
	"testing"

	"gssproxyd/xdr"
)

func reply(t *testing.T) []byte {
	t.Helper()
	res := xdr.ResAcceptSecContext{
		ContextHandle: xdr.Some(xdr.Ctx{ExportedContextToken: make([]byte, 52)}),
		OutputToken:   xdr.Some([]byte("token")),
		Options: []xdr.Option{
			{Option: []byte("other\x00")},
			{Option: []byte("linux_creds_v1\x00"), Value: make([]byte, 12)},
		},
	}
	head := []byte{0, 0, 0, 7, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}
	return res.Append(head)
}

// Each mutation changes what it is named for, and nothing else.
func TestMutations(t *testing.T) {
	var before xdr.ResAcceptSecContext
	in := reply(t)
	before.Decode(xdr.NewDecoder(in[24:]))
	for name, mutate := range mutations {
		out, err := spoil(mutate, in)
		if err != nil {
			t.Fatal(err)
		}
		var after xdr.ResAcceptSecContext
		d := xdr.NewDecoder(out[24:])
		after.Decode(d)
		if d.Err() != nil || d.Remaining() != 0 {
			t.Fatalf("%s: %v, %d bytes left", name, d.Err(), d.Remaining())
		}
		lucid := len(after.ContextHandle.V.ExportedContextToken)
		for field, same := range map[string]bool{
			"lucid length":  lucid == 52,
			"lucid content": bytes.Equal(after.ContextHandle.V.ExportedContextToken, before.ContextHandle.V.ExportedContextToken),
			"token":         bytes.Equal(after.OutputToken.V, before.OutputToken.V),
			"options":       len(after.Options) == 2,
		} {
			want := map[string][]string{
				"missing-creds":   {"options"},
				"oversized-token": {"token"},
				"sequence-2^31":   {"lucid content"},
				"lucid-too-long":  {"lucid length", "lucid content"},
				"lucid-too-short": {"lucid length", "lucid content"},
			}[name]
			changed := false
			for _, w := range want {
				changed = changed || w == field
			}
			if same == changed {
				t.Errorf("%s: %s the same: %v", name, field, same)
			}
		}
	}
}

func TestRecord(t *testing.T) {
	in := []byte{0, 0, 0, 2, 'a', 'b', 0x80, 0, 0, 1, 'c'}
	if got, err := record(bytes.NewReader(in)); err != nil || string(got) != "abc" {
		t.Errorf("%q, %v", got, err)
	}
	if got := frame([]byte("abc")); !bytes.Equal(got, []byte{0x80, 0, 0, 3, 'a', 'b', 'c'}) {
		t.Errorf("% x", got)
	}
	if _, err := record(bytes.NewReader([]byte{0xff, 0xff, 0xff, 0xff})); err == nil {
		t.Error("a record of 2 GiB was accepted")
	}
}
