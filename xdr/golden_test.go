package xdr

import (
	"bytes"
	"errors"
	"testing"
)

// decodeRecord decodes a whole record: a header, and behind it arguments or results. Results are
// nil when there are none.
func decodeRecord(r *record, b []byte) (header, body Message, err error) {
	d := NewDecoder(b)
	if !r.reply {
		h := new(CallHeader)
		h.Decode(d)
		header, body = h, r.proc.Arg()
	} else {
		h := new(ReplyHeader)
		h.Decode(d)
		header = h
		if h.Reply.Stat == ReplyAccepted && h.Reply.Accepted.Outcome.Stat == AcceptSuccess {
			body = r.proc.Res()
		}
	}
	if body != nil {
		body.Decode(d)
	}
	if d.Err() == nil && d.Remaining() != 0 {
		err = errors.New("bytes are left")
	}
	return header, body, errors.Join(err, d.Err())
}

// Every captured record decodes, to the last byte, and encodes to the same bytes again.
func TestCaptures(t *testing.T) {
	seen := map[Proc]int{}
	for _, r := range records(t) {
		header, body, err := decodeRecord(&r, r.data)
		if err != nil {
			t.Errorf("%s: %v", r.name, err)
			continue
		}
		if h, ok := header.(*CallHeader); ok && (h.RPCVersion != RPCVersion || h.Program != Program || h.Version != Version || Proc(h.Procedure) != r.proc) {
			t.Errorf("%s: header %+v", r.name, h)
		}
		again := header.Append(nil)
		if body != nil {
			again = body.Append(again)
		}
		if !bytes.Equal(again, r.data) {
			t.Errorf("%s: encodes to\n%x\nnot\n%x", r.name, again, r.data)
		}
		seen[r.proc]++
	}
	for _, p := range []Proc{ProcNull, ProcIndicateMechs, ProcImportAndCanonName, ProcAcquireCred, ProcInitSecContext, ProcAcceptSecContext} {
		if seen[p] == 0 {
			t.Errorf("no record of %v among the captures", p)
		}
	}
	t.Log(seen)
}

// A record that was cut anywhere is an error.
func TestTruncated(t *testing.T) {
	for _, r := range records(t) {
		for n := range len(r.data) {
			if n > 4096 && n < len(r.data)-4096 {
				continue // the middle of one long token
			}
			header, _, err := decodeRecord(&r, r.data[:n])
			if err == nil {
				t.Fatalf("%s: the first %d of %d bytes decode to %+v", r.name, n, len(r.data), header)
			}
		}
	}
}

// What the kernel asks, field by field.
func TestKernelRequest(t *testing.T) {
	for _, r := range records(t) {
		if r.name != "kernel/1-accept-6.1/0003-c1-req.bin/call" {
			continue
		}
		_, body, err := decodeRecord(&r, r.data)
		if err != nil {
			t.Fatal(err)
		}
		arg := body.(*ArgAcceptSecContext)
		if arg.ContextHandle.Set || arg.CredHandle.Set || arg.InputCB.Set || arg.RetDelegCred || len(arg.Options) != 0 {
			t.Errorf("more than a token: %+v", arg)
		}
		var got []string
		for _, o := range arg.CallCtx.Options {
			got = append(got, string(o.Option)+"="+string(o.Value))
		}
		want := []string{"exported_context_type\x00=linux_lucid_v1\x00", "exported_creds_type\x00=linux_creds_v1\x00"}
		if len(got) != 2 || got[0] != want[0] || got[1] != want[1] {
			t.Errorf("options %q, want %q", got, want)
		}
		if len(arg.InputToken) == 0 || arg.InputToken[0] != 0x60 {
			t.Errorf("token of %d bytes", len(arg.InputToken))
		}
		return
	}
	t.Fatal("the record is missing")
}
