package krb5

import (
	"bytes"
	"encoding/binary"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf16"

	"gssproxyd/mech"
	"gssproxyd/mech/krb5/der"
	"gssproxyd/mech/krb5/etype"
	"gssproxyd/mech/krb5/wire"
	"gssproxyd/mech/reason"
)

// pacBuffer is one buffer of a PAC to be.
type pacBuffer struct {
	kind uint32
	data []byte
}

func layPAC(buffers []pacBuffer) []byte {
	b := binary.LittleEndian.AppendUint64(nil, uint64(len(buffers)))
	offset := 8 + 16*len(buffers)
	for _, p := range buffers {
		b = binary.LittleEndian.AppendUint32(b, p.kind)
		b = binary.LittleEndian.AppendUint32(b, uint32(len(p.data)))
		b = binary.LittleEndian.AppendUint64(b, uint64(offset))
		offset += (len(p.data) + 7) &^ 7
	}
	for _, p := range buffers {
		b = append(b, p.data...)
		b = append(b, make([]byte, -len(p.data)&7)...)
	}
	return b
}

func clientInfo(name string, auth time.Time) []byte {
	b := binary.LittleEndian.AppendUint64(nil, uint64(auth.Unix()+ntEpoch)*1e7)
	u := utf16.Encode([]rune(name))
	b = binary.LittleEndian.AppendUint16(b, uint16(2*len(u)))
	for _, c := range u {
		b = binary.LittleEndian.AppendUint16(b, c)
	}
	return b
}

// makePAC makes a PAC signed with key; trailer stands behind the signature, as an RODC's id does.
func makePAC(q *request, name string, auth time.Time, key *etype.Key, trailer ...byte) []byte {
	kind := binary.LittleEndian.AppendUint32(nil, uint32(key.Enctype().ChecksumType()))
	n := key.Enctype().ChecksumSize()
	blank := slices.Concat(kind, make([]byte, n+len(trailer)))
	buffers := []pacBuffer{{1, bytes.Repeat([]byte{7}, 400)}, {pacClientInfo, clientInfo(name, auth)}, {pacServerChecksum, blank}, {pacKDCChecksum, append([]byte{16, 0, 0, 0}, make([]byte, 12)...)}}
	sum := key.AppendChecksum(nil, wire.UsagePAC, layPAC(buffers))
	buffers[2].data = slices.Concat(kind, sum, trailer)
	buffers[3].data = append([]byte{16, 0, 0, 0}, randomBytes(12)...)
	return layPAC(buffers)
}

func TestPAC(t *testing.T) {
	b := newBench(t)
	for _, et := range testEtypes {
		q := newRequest(t, b.keys[et], etype.AES256SHA1)
		good := makePAC(q, "alice", q.auth, q.ticketKey)
		for _, c := range []struct {
			name     string
			pac      []byte
			verified bool
		}{
			{"good", good, true},
			{"RODC trailer", makePAC(q, "alice", q.auth, q.ticketKey, 0x34, 0x12), true},
			{"other key", makePAC(q, "alice", q.auth, mustKey(t, et)), false},
			{"other client", makePAC(q, "bob", q.auth, q.ticketKey), false},
			{"longer name", makePAC(q, "alice2", q.auth, q.ticketKey), false},
			{"shorter name", makePAC(q, "alic", q.auth, q.ticketKey), false},
			{"other authentication", makePAC(q, "alice", q.auth.Add(time.Second), q.ticketKey), false},
			{"changed", func() []byte { p := bytes.Clone(good); p[100] ^= 1; return p }(), false},
			{"no signature", layPAC([]pacBuffer{{pacClientInfo, clientInfo("alice", q.auth)}}), false},
			{"empty signature", layPAC([]pacBuffer{{pacServerChecksum, nil}, {pacKDCChecksum, nil}}), false},
			{"short signature", layPAC([]pacBuffer{{pacServerChecksum, []byte{16, 0, 0, 0, 1}}, {pacKDCChecksum, []byte{16, 0, 0, 0}}}), false},
			{"plain SHA-1", layPAC([]pacBuffer{{pacServerChecksum, append([]byte{14, 0, 0, 0}, make([]byte, 20)...)}, {pacKDCChecksum, []byte{16, 0, 0, 0}}}), false},
			{"two signatures", layPAC([]pacBuffer{{pacServerChecksum, make([]byte, 28)}, {pacServerChecksum, make([]byte, 28)}, {pacKDCChecksum, make([]byte, 16)}}), false},
		} {
			t.Run(et.String()+"/"+c.name, func(t *testing.T) {
				q := *q
				q.ticketAD = []AuthData{ifRelevant(AuthData{wire.ADWin2kPAC, c.pac})}
				q.authAD = []AuthData{ifRelevant(AuthData{wire.ADWin2kPAC, good}), {77, []byte("x")}} // a client's own word is none
				var out Accepted
				if err := b.Accept(&out, q.token(t), nil); err != nil {
					t.Fatal(err)
				}
				ctx := &out.Context
				if ctx.PACVerified != c.verified || !bytes.Equal(ctx.PAC, c.pac) {
					t.Errorf("verified %v, want %v; %d octets of %d", ctx.PACVerified, c.verified, len(ctx.PAC), len(c.pac))
				}
				var types []int32
				for _, a := range ctx.AuthData {
					types = append(types, a.Type)
				}
				if !slices.Equal(types, []int32{1, 1, 77}) || !bytes.Equal(ctx.AuthData[0].Data, q.ticketAD[0].Data) {
					t.Errorf("authorization data %v", types)
				}
			})
		}
	}
	t.Run("only in the authenticator", func(t *testing.T) {
		q := newRequest(t, b.keys[18], 18)
		q.authAD = []AuthData{ifRelevant(AuthData{wire.ADWin2kPAC, makePAC(q, "alice", q.auth, q.ticketKey)})}
		var out Accepted
		if err := b.Accept(&out, q.token(t), nil); err != nil || out.Context.PAC != nil || out.Context.PACVerified {
			t.Errorf("%v, %v", err, out.Context.PACVerified)
		}
	})
	t.Run("name beyond ASCII", func(t *testing.T) {
		q := newRequest(t, b.keys[18], 18)
		q.client.Components = []string{"jürgen", "😀"}
		q.authClient = q.client
		q.ticketAD = []AuthData{ifRelevant(AuthData{wire.ADWin2kPAC, makePAC(q, "jürgen/😀", q.auth, q.ticketKey)})}
		var out Accepted
		if err := b.Accept(&out, q.token(t), nil); err != nil || !out.Context.PACVerified {
			t.Errorf("%v, %v", err, out.Context.PACVerified)
		}
	})
	t.Run("64 KiB", func(t *testing.T) {
		q := newRequest(t, b.keys[18], 18)
		p := layPAC([]pacBuffer{{1, randomBytes(64 << 10)}})
		q.ticketAD = []AuthData{ifRelevant(AuthData{wire.ADWin2kPAC, p})}
		var out Accepted
		if err := b.Accept(&out, q.token(t), nil); err != nil || !bytes.Equal(out.Context.PAC, p) {
			t.Error(err)
		}
	})
}

func TestMalformedPAC(t *testing.T) {
	b := newBench(t)
	put := func(p []byte, at int, v uint32) []byte {
		p = bytes.Clone(p)
		binary.LittleEndian.PutUint32(p[at:], v)
		return p
	}
	q := newRequest(t, b.keys[18], 18)
	good := makePAC(q, "alice", q.auth, q.ticketKey)
	for _, c := range []struct {
		name  string
		pac   []byte
		minor uint32
	}{
		{"empty", nil, minorERANGE},
		{"header", good[:7], minorERANGE},
		{"version", put(good, 4, 1), minorEINVAL},
		{"no buffers", put(good, 0, 0), minorERANGE},
		{"many buffers", put(good, 0, 0xffffffff), minorERANGE},
		{"table beyond", put(good, 0, 4096), minorERANGE},
		{"unaligned", put(good, 16, 0x4c), minorEINVAL},
		{"offset in the table", put(good, 16, 8), minorERANGE},
		{"offset beyond", put(good, 16, 0xfffffff8), minorERANGE},
		{"offset of 64 bits", put(good, 20, 0x80000000), minorERANGE},
		{"size beyond", put(good, 12, 0xffffffff), minorERANGE},
		{"truncated", good[:len(good)-8], minorERANGE},
	} {
		t.Run(c.name, func(t *testing.T) {
			q.ticketAD = []AuthData{ifRelevant(AuthData{wire.ADWin2kPAC, c.pac})}
			var out Accepted
			e := wantErr(t, b.Accept(&out, q.token(t), nil), mech.Failure, c.minor, reason.DefectiveToken)
			if !strings.Contains(e.Text, "PAC") {
				t.Error(e.Text)
			}
		})
	}
}

// cammac makes a CAMMAC; key nil leaves the service verifier out.
func cammac(key *etype.Key, elements ...AuthData) AuthData {
	list := adDER(elements)
	parts := [][]byte{field(0, list), field(1, seqOf(field(2, integer(18)), field(3, typed(16, make([]byte, 12)))))}
	if key != nil {
		sum := key.AppendChecksum(nil, wire.UsageCAMMAC, list)
		parts = append(parts, field(2, seqOf(field(1, integer(3)), field(2, integer(int64(key.Enctype()))), field(3, typed(key.Enctype().ChecksumType(), sum)))))
	}
	return AuthData{wire.ADCAMMAC, seqOf(parts...)}
}

func indicators(list ...string) AuthData {
	var b []byte
	for _, s := range list {
		b = append(b, der.AppendValue(nil, der.UTF8String, []byte(s))...)
	}
	return AuthData{wire.ADAuthIndicator, tlv(der.Sequence, b)}
}

// indicatorCase is a ticket's authorization data, and the authentication indicators that it vouches
// for.
type indicatorCase struct {
	name string
	ad   []AuthData
	want []string
}

func indicatorCases(t testing.TB, key *etype.Key) []indicatorCase {
	return []indicatorCase{
		{"one", []AuthData{ifRelevant(cammac(key, indicators("otp")))}, []string{"otp"}},
		{"several", []AuthData{ifRelevant(cammac(key, indicators("otp", "pkinit"), AuthData{77, nil}, indicators("x")))}, []string{"otp", "pkinit", "x"}},
		{"two containers", []AuthData{ifRelevant(cammac(key, indicators("a"))), ifRelevant(cammac(key, indicators("b")))}, []string{"a", "b"}},
		{"nested", []AuthData{ifRelevant(cammac(key, ifRelevant(indicators("deep"))))}, []string{"deep"}},
		{"other key", []AuthData{ifRelevant(cammac(mustKey(t, key.Enctype()), indicators("forged")))}, nil},
		{"bare", []AuthData{ifRelevant(indicators("bare"))}, nil},
	}
}

// badIndicators are containers that a request is refused for.
func badIndicators(key *etype.Key) map[string]AuthData {
	return map[string]AuthData{
		"no verifier":          cammac(nil, indicators("x")),
		"malformed":            {wire.ADCAMMAC, []byte{0x30, 3, 0xa0, 1, 0x30}},
		"malformed indicators": cammac(key, AuthData{wire.ADAuthIndicator, []byte{0x30, 2, 0x1b, 0}}),
	}
}

func TestIndicators(t *testing.T) {
	b := newBench(t)
	for _, et := range testEtypes {
		q := newRequest(t, b.keys[et], 18)
		for _, c := range indicatorCases(t, q.ticketKey) {
			t.Run(et.String()+"/"+c.name, func(t *testing.T) {
				q.ticketAD = c.ad
				q.authAD = []AuthData{ifRelevant(cammac(q.ticketKey, indicators("client")))}
				var out Accepted
				if err := b.Accept(&out, q.token(t), nil); err != nil {
					t.Fatal(err)
				}
				if !slices.Equal(out.Context.Indicators, c.want) {
					t.Errorf("indicators %q, want %q", out.Context.Indicators, c.want)
				}
			})
		}
	}
	q := newRequest(t, b.keys[18], 18)
	var out Accepted
	for name, ad := range badIndicators(q.ticketKey) {
		q.ticketAD = []AuthData{ifRelevant(ad)}
		if e, ok := b.Accept(&out, q.token(t), nil).(*mech.Error); !ok || e.Reason != reason.DefectiveToken {
			t.Errorf("%s: %v", name, e)
		}
	}
}

// TestCrashers feeds inputs that crashed another implementation. Requests go to Accept as they are,
// PACs inside a good ticket.
func TestCrashers(t *testing.T) {
	b := newBench(t)
	files, err := filepath.Glob("../../testdata/crashers/*")
	if err != nil || len(files) < 15 {
		t.Fatalf("%d files, %v", len(files), err)
	}
	for _, file := range files {
		t.Run(filepath.Base(file), func(t *testing.T) {
			if !strings.HasSuffix(file, ".hex") {
				file = "" // a report, not an input
			}
			var data []byte
			if file != "" {
				text, err := os.ReadFile(file)
				if err != nil {
					t.Fatal(err)
				}
				data = unhexString(t, string(text))
			}
			var out Accepted
			check := func(err error, ok bool) {
				t.Helper()
				if e, is := err.(*mech.Error); err != nil && (!is || e.Reason == "" || e.Text == "") || err == nil && !ok {
					t.Errorf("%v", err)
				}
			}
			check(b.Accept(&out, data, nil), false)
			check(b.Accept(&out, frame(mech.KRB5, tokAPReq, data), nil), false)
			q := newRequest(t, b.keys[18], 18)
			for _, ad := range [][]AuthData{{ifRelevant(AuthData{wire.ADWin2kPAC, data})}, {{wire.ADIfRelevant, data}}, {ifRelevant(AuthData{wire.ADCAMMAC, data})}} {
				q.ticketAD, q.authAD = ad, nil
				check(b.Accept(&out, q.token(t), nil), true)
				q.ticketAD, q.authAD = nil, ad
				check(b.Accept(&out, q.token(t), nil), true)
			}
			q = newRequest(t, b.keys[18], 18)
			q.sum = gssSum(nil, 0x13f, data[:min(len(data), 0xffff)])
			check(b.Accept(&out, q.token(t), nil), len(data) < 4)
			if err := b.Accept(&out, newRequest(t, b.keys[18], 18).token(t), nil); err != nil {
				t.Error(err)
			}
		})
	}
}
