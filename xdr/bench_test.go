package xdr

import "testing"

// find returns the first captured record of a procedure whose name starts so.
func find(b *testing.B, name string, p Proc, reply bool) *record {
	b.Helper()
	for _, r := range records(b) {
		if r.proc == p && r.reply == reply && len(r.name) > len(name) && r.name[:len(name)] == name {
			return &r
		}
	}
	b.Fatal("no such record")
	return nil
}

func benchmarkDecode(b *testing.B, r *record) {
	var d Decoder
	var h CallHeader
	var arg ArgAcceptSecContext
	b.ReportAllocs()
	b.SetBytes(int64(len(r.data)))
	for b.Loop() {
		d.Reset(r.data)
		h.Decode(&d)
		arg.Decode(&d)
	}
	if d.Err() != nil {
		b.Fatal(d.Err())
	}
}

// The call of Linux nfsd: header and arguments.
func BenchmarkDecodeAcceptKernel(b *testing.B) {
	benchmarkDecode(b, find(b, "kernel/1-", ProcAcceptSecContext, false))
}

// The call of the client plugin, with a credential handle: header and arguments.
func BenchmarkDecodeAcceptPlugin(b *testing.B) {
	benchmarkDecode(b, find(b, "plugin-calls.jsonl", ProcAcceptSecContext, false))
}

func benchmarkEncode(b *testing.B, r *record) {
	d := NewDecoder(r.data)
	var h ReplyHeader
	var res ResAcceptSecContext
	h.Decode(d)
	res.Decode(d)
	if d.Err() != nil {
		b.Fatal(d.Err())
	}
	buf := make([]byte, 0, len(r.data))
	b.ReportAllocs()
	b.SetBytes(int64(len(r.data)))
	for b.Loop() {
		buf = res.Append(h.Append(buf[:0]))
	}
}

// The reply to Linux nfsd: header and results.
func BenchmarkEncodeAcceptKernel(b *testing.B) {
	benchmarkEncode(b, find(b, "kernel/1-", ProcAcceptSecContext, true))
}

// The reply to the client plugin: header and results.
func BenchmarkEncodeAcceptPlugin(b *testing.B) {
	benchmarkEncode(b, find(b, "plugin-calls.jsonl", ProcAcceptSecContext, true))
}

// The longest reply: the list of mechanisms.
func BenchmarkEncodeIndicateMechs(b *testing.B) {
	r := find(b, "plugin-calls.jsonl", ProcIndicateMechs, true)
	d := NewDecoder(r.data)
	var h ReplyHeader
	var res ResIndicateMechs
	h.Decode(d)
	res.Decode(d)
	buf := make([]byte, 0, len(r.data))
	b.ReportAllocs()
	for b.Loop() {
		buf = res.Append(h.Append(buf[:0]))
	}
}
