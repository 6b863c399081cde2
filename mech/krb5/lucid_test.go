package krb5

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"os"
	"path/filepath"
	"testing"
	"time"

	"gssproxyd/mech"
	"gssproxyd/mech/krb5/etype"
	"gssproxyd/mech/reason"
)

// What a Linux kernel was given by the C daemon and took, of every accept that was captured.
func TestLucidAsCaptured(t *testing.T) {
	files, err := filepath.Glob("../../testdata/kernel/*/vectors.json")
	if err != nil || len(files) == 0 {
		t.Fatal("no captures", err)
	}
	n := 0
	for _, name := range files {
		b, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		var vectors []struct {
			Lucid   string
			Subkey  string   `json:"aprep_subkey"`
			Enctype etype.ID `json:"aprep_subkey_etype"`
			Seq     uint64   `json:"aprep_seq"`
			EndTime uint32   `json:"ticket_endtime"`
		}
		if err := json.Unmarshal(b, &vectors); err != nil {
			t.Fatal(name, err)
		}
		for _, v := range vectors {
			if v.Lucid == "" {
				continue
			}
			n++
			raw, err := hex.DecodeString(v.Subkey)
			if err != nil {
				t.Fatal(err)
			}
			key, err := etype.NewKey(v.Enctype, raw)
			if err != nil {
				t.Fatal(err)
			}
			c := &Context{EndTime: v.EndTime, SendSeq: v.Seq, Subkey: mustKey(t, etype.AES256SHA1), AcceptorSubkey: key}
			got, err := c.AppendLucid([]byte("head"))
			if err != nil || hex.EncodeToString(got[4:]) != v.Lucid || string(got[:4]) != "head" {
				t.Errorf("%s: %x, %v; want %s", name, got, err, v.Lucid)
			}
		}
	}
	if n < 20 {
		t.Errorf("%d contexts", n)
	}
}

func TestLucid(t *testing.T) {
	for _, et := range []etype.ID{17, 18, 19, 20} {
		key, sub := mustKey(t, et), mustKey(t, et)
		one := &Context{EndTime: 0xfedcba98, SendSeq: 1<<31 - 1, Subkey: key, SessionKey: key}
		both := &Context{EndTime: 1, SendSeq: 1, Subkey: key, SessionKey: key, AcceptorSubkey: sub}
		started := *both
		started.Initiator = true
		for _, test := range []struct {
			c     *Context
			flags byte
			key   *etype.Key
		}{{one, 2, key}, {both, 6, sub}, {&started, 7, sub}} {
			b, err := test.c.AppendLucid(nil)
			if err != nil {
				t.Fatal(err)
			}
			if len(b) != 20+et.KeySize() || b[0] != test.flags && b[3] != test.flags || !bytes.Equal(b[20:], test.key.Secret()) {
				t.Errorf("%v: %x", et, b)
			}
		}
	}
}

func TestLucidRefuses(t *testing.T) {
	aes := mustKey(t, etype.AES256SHA1)
	for name, test := range map[string]struct {
		c      Context
		major  mech.Major
		reason reason.ID
	}{
		"not established":        {Context{}, mech.NoContext, reason.BadContext},
		"RC4":                    {Context{Subkey: mustKey(t, etype.RC4)}, mech.Unavailable, reason.ContextEnctype},
		"number of 32 bits":      {Context{Subkey: aes, SendSeq: 1 << 31}, mech.Unavailable, reason.ContextEnctype},
		"number of 64 bits":      {Context{Subkey: aes, SendSeq: 1 << 32}, mech.Unavailable, reason.ContextEnctype},
		"RC4 as acceptor subkey": {Context{Subkey: aes, AcceptorSubkey: mustKey(t, etype.RC4)}, mech.Unavailable, reason.ContextEnctype},
	} {
		b, err := test.c.AppendLucid([]byte("x"))
		if string(b) != "x" {
			t.Errorf("%s: %x", name, b)
		}
		wantErr(t, err, test.major, 0, test.reason)
	}
}

// The user of the context knows some types only: the subkey is of one of them, or the context is
// refused.
func TestMessageEnctypes(t *testing.T) {
	b := newBench(t)
	old := []etype.ID{18, 17}
	for _, test := range []struct {
		name               string
		permitted, message []etype.ID
		session            etype.ID
		oneWay             bool
		want               etype.ID // 0: refused
	}{
		{"session key will do", []etype.ID{20, 18}, old, 18, false, 18},
		{"of the list's types the permitted one", []etype.ID{17, 20}, old, 20, false, 17},
		{"own order counts", []etype.ID{17, 18, 20}, old, 20, false, 17},
		{"not offered, and yet better than nothing", []etype.ID{20, 18}, old, 20, false, 18},
		{"from RC4", []etype.ID{23, 18}, old, 23, false, 18},
		{"new kernel", []etype.ID{20, 18}, []etype.ID{20, 19, 18, 17}, 20, false, 20},
		{"types nobody here has", []etype.ID{18}, []etype.ID{26, 25, 18}, 18, false, 18},
		{"nothing in common", []etype.ID{20}, old, 20, false, 0},
		{"empty list", []etype.ID{20}, []etype.ID{}, 20, false, 0},
		{"one way, of a type it has", []etype.ID{20, 18}, old, 18, true, 18},
		{"one way, of another", []etype.ID{20, 18}, old, 20, true, 0},
	} {
		t.Run(test.name, func(t *testing.T) {
			b.Conf = testConf()
			b.Conf.PermittedEnctypes, b.MessageEnctypes = test.permitted, test.message
			q := newRequest(t, b.keys[test.session], test.session)
			if test.oneWay {
				q.sum, q.options, q.subkey, q.start = gssSum(nil, 0x13c, nil), 0, nil, time.Time{}
			}
			var out Accepted
			err := b.Accept(&out, q.token(t), nil)
			if test.want == 0 {
				wantErr(t, err, mech.Unavailable, 0, reason.ContextEnctype)
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if got := out.Context.MessageEnctype(); got != test.want {
				t.Errorf("%v, want %v", got, test.want)
			}
			lucid, err := out.Context.AppendLucid(nil)
			if err != nil || len(lucid) != 20+test.want.KeySize() {
				t.Errorf("%d octets, %v", len(lucid), err)
			}
			if !test.oneWay {
				if rep := q.openAPRep(t, out.Token); rep.Subkey.Etype != test.want || !bytes.Equal(rep.Subkey.Value, lucid[20:]) {
					t.Error("the AP-REP has another key than the kernel")
				}
			}
		})
	}
}
