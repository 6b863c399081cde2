package krb5

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"gssproxyd/mech"
	"gssproxyd/mech/krb5/etype"
	"gssproxyd/mech/reason"
)

// hexBytes is bytes that JSON has in hexadecimal.
type hexBytes []byte

func (h *hexBytes) UnmarshalText(b []byte) (err error) {
	*h, err = hex.DecodeString(string(b))
	return err
}

// contextVector is one pair of contexts established and exported by MIT krb5, and what it made of a
// message with them: six tokens in this order, then pseudo-random output.
type contextVector struct {
	Name      string
	Initiator hexBytes `json:"initiator_ctx"`
	Acceptor  hexBytes `json:"acceptor_ctx"`

	MICInitiator, MICAcceptor     hexBytes
	PlainInitiator, PlainAcceptor hexBytes
	SealInitiator, SealAcceptor   hexBytes

	PRFFull    hexBytes `json:"prf_full_seed_64"`
	PRFPartial hexBytes `json:"prf_partial_seed_64"`
	Message    string
}

func contextVectors(t testing.TB) []contextVector {
	t.Helper()
	b, err := os.ReadFile("../../testdata/mit-context-vectors.json")
	if err != nil {
		t.Fatal(err)
	}
	for old, name := range map[string]string{
		"mic_by_initiator": "MICInitiator", "mic_by_acceptor": "MICAcceptor",
		"wrap_conf0_by_initiator": "PlainInitiator", "wrap_conf0_by_acceptor": "PlainAcceptor",
		"wrap_conf1_by_initiator": "SealInitiator", "wrap_conf1_by_acceptor": "SealAcceptor",
	} {
		b = bytes.ReplaceAll(b, []byte(old), []byte(name))
	}
	var v []contextVector
	if err := json.Unmarshal(b, &v); err != nil {
		t.Fatal(err)
	}
	if len(v) != 5 {
		t.Fatalf("%d vectors", len(v))
	}
	return v
}

// pair imports both contexts.
func (v *contextVector) pair(t testing.TB) (initiator, acceptor *Context) {
	t.Helper()
	var err error
	if initiator, err = ImportContext(v.Initiator); err != nil {
		t.Fatal(err)
	}
	if acceptor, err = ImportContext(v.Acceptor); err != nil {
		t.Fatal(err)
	}
	return initiator, acceptor
}

func TestImportVectors(t *testing.T) {
	for _, v := range contextVectors(t) {
		i, a := v.pair(t)
		if !i.Initiator || a.Initiator || i.Here != a.There || i.There != a.Here || a.There != "alice@EXAMPLE.TEST" {
			t.Errorf("%s: %v, %v", v.Name, i, a)
		}
		if i.Flags != 0x13e || a.Flags != 0x1be || i.Mech != mech.KRB5 || i.StartTime == 0 || i.EndTime != a.EndTime || i.AuthTime != a.AuthTime {
			t.Errorf("%s: flags %x, %x or times %d, %d are wrong", v.Name, i.Flags, a.Flags, i.StartTime, i.EndTime)
		}
		for _, keys := range [][2]*etype.Key{{i.Subkey, a.Subkey}, {i.AcceptorSubkey, a.AcceptorSubkey}, {i.SessionKey, a.SessionKey}} {
			if keys[0].Enctype() != keys[1].Enctype() || !bytes.Equal(keys[0].Secret(), keys[1].Secret()) {
				t.Errorf("%s: the ends disagree about a key", v.Name)
			}
		}
		if len(i.AuthData) != 0 || len(a.AuthData) == 0 || len(a.PAC) == 0 || !a.PACVerified {
			t.Errorf("%s: authorization data is wrong: %d and %d elements, PAC of %d", v.Name, len(i.AuthData), len(a.AuthData), len(a.PAC))
		}
	}
}

func TestReexportVectors(t *testing.T) {
	for _, v := range contextVectors(t) {
		for _, token := range []hexBytes{v.Initiator, v.Acceptor} {
			c, err := ImportContext(append(token, "trailing bytes are nobody's"...))
			if err != nil {
				t.Fatal(err)
			}
			if got := c.AppendExport([]byte("x")); !bytes.Equal(got[1:], token) {
				t.Errorf("%s: %s", v.Name, cmp.Diff(hex.Dump(token), hex.Dump(got[1:])))
			}
		}
	}
}

// What MIT sent, this package must understand; what this package sends must be what MIT would have
// sent, wherever there is no randomness in it.
func TestVectorTokens(t *testing.T) {
	for _, v := range contextVectors(t) {
		i, a := v.pair(t)
		msg := []byte(v.Message)
		for _, side := range []struct {
			from, to         *Context
			mic, plain, seal hexBytes
		}{{i, a, v.MICInitiator, v.PlainInitiator, v.SealInitiator}, {a, i, v.MICAcceptor, v.PlainAcceptor, v.SealAcceptor}} {
			if got, err := side.from.GetMIC(nil, msg); err != nil || !bytes.Equal(got, side.mic) {
				t.Errorf("%s: MIC %x, %v; want %x", v.Name, got, err, side.mic)
			}
			if maj, err := side.to.VerifyMIC(msg, side.mic); maj != 0 || err != nil {
				t.Errorf("%s: MIC: %v, %v", v.Name, maj, err)
			}
			got, err := side.from.Wrap(nil, msg, false)
			if i.cfx() && (err != nil || !bytes.Equal(got, side.plain)) {
				t.Errorf("%s: wrap %x, %v; want %x", v.Name, got, err, side.plain)
			}
			got, err = side.from.Wrap(nil, msg, true)
			if err != nil || len(got) != len(side.seal) || !bytes.Equal(got[:16], side.seal[:16]) {
				t.Errorf("%s: sealed wrap %x, %v; want %x", v.Name, got, err, side.seal)
			}
			for conf, token := range map[bool]hexBytes{false: side.plain, true: side.seal} {
				m, c, _, err := side.to.Unwrap([]byte("before "), token)
				if string(m) != "before "+v.Message || c != conf || err != nil {
					t.Errorf("%s: unwrap %q, %v, %v", v.Name, m, c, err)
				}
			}
			for _, token := range []hexBytes{side.plain, side.seal} {
				if _, _, maj, err := side.to.Unwrap(nil, token); maj != mech.DuplicateToken || err != nil {
					t.Errorf("%s: replay: %v, %v", v.Name, maj, err)
				}
			}
			if maj, err := side.to.VerifyMIC(msg, side.mic); maj != mech.DuplicateToken || err != nil {
				t.Errorf("%s: replay: %v, %v", v.Name, maj, err)
			}
		}
		for _, c := range []*Context{i, a} {
			if got, err := c.PseudoRandom(false, []byte("seed"), 64); err != nil || !bytes.Equal(got, v.PRFFull) {
				t.Errorf("%s: PRF %x, %v; want %x", v.Name, got, err, v.PRFFull)
			}
			if got, err := c.PseudoRandom(true, []byte("seed"), 64); err != nil || !bytes.Equal(got, v.PRFPartial) {
				t.Errorf("%s: partial PRF %x, %v; want %x", v.Name, got, err, v.PRFPartial)
			}
		}
	}
}

// After messages a re-exported context carries on where the original is.
func TestReexportCarriesState(t *testing.T) {
	for _, v := range contextVectors(t) {
		i, a := v.pair(t)
		tok, err := i.Wrap(nil, []byte("one"), true)
		if err != nil {
			t.Fatal(err)
		}
		again, err := ImportContext(i.AppendExport(nil))
		if err != nil || again.SendSeq != i.SendSeq {
			t.Fatal(err, again)
		}
		if _, _, _, err := a.Unwrap(nil, tok); err != nil {
			t.Fatal(err)
		}
		if a, err = ImportContext(a.AppendExport(nil)); err != nil {
			t.Fatal(err)
		}
		if _, _, maj, err := a.Unwrap(nil, tok); maj != mech.DuplicateToken || err != nil {
			t.Errorf("%s: the window was lost: %v, %v", v.Name, maj, err)
		}
	}
}

// fresh returns a copy of an imported context that does not know it was imported.
func fresh(c *Context) *Context {
	f := *c
	f.imported = nil
	return &f
}

func TestFreshExport(t *testing.T) {
	sameKey := cmp.Comparer(func(a, b *etype.Key) bool {
		return a == b || a != nil && b != nil && a.Enctype() == b.Enctype() && bytes.Equal(a.Secret(), b.Secret())
	})
	for _, v := range contextVectors(t) {
		i, a := v.pair(t)
		a.Indicators = []string{"pkinit", ""}
		bare := *a
		bare.AuthData, bare.PAC, bare.PACVerified, bare.Indicators, bare.SessionKey = nil, nil, false, nil, nil
		bare.Mech = mech.IAKERB
		upgraded := *i
		upgraded.Subkey, _ = etype.NewKey(etype.RC4, make([]byte, 16))
		upgraded.AcceptorSubkey, _ = etype.NewKey(etype.AES256SHA1, make([]byte, 32))
		for _, c := range []*Context{i, a, &bare, &upgraded} {
			token := fresh(c).AppendExport([]byte("x"))[1:]
			if n := fresh(c).exportSize(); len(token) > n {
				t.Errorf("%s: token of %d bytes, %d expected", v.Name, len(token), n)
			}
			back, err := ImportContext(token)
			if err != nil {
				t.Fatalf("%s: %v", v.Name, err)
			}
			if d := cmp.Diff(c, back, sameKey, cmpopts.IgnoreUnexported(Context{}), cmpopts.EquateEmpty()); d != "" {
				t.Errorf("%s: %s", v.Name, d)
			}
			if again := fresh(back).AppendExport(nil); !bytes.Equal(again, token) {
				t.Errorf("%s: %s", v.Name, cmp.Diff(hex.Dump(token), hex.Dump(again)))
			}
		}
	}
}

// What MIT exported, and a context of the same content that this package made, are the same token
// but for two parts: the krb5_context and the auth_context, of which an importer uses the session
// key alone.
func TestExportsAsMIT(t *testing.T) {
	withoutContexts := func(token []byte) []byte {
		start := bytes.Index(token, be32(nil, magicContext))
		end := bytes.LastIndex(token, be32(nil, magicAuthContext))
		if start < 0 || end < start {
			t.Fatalf("no contexts in %x", token)
		}
		return slices.Concat(token[:start], token[end:])
	}
	for _, v := range contextVectors(t) {
		i, a := v.pair(t)
		for c, token := range map[*Context]hexBytes{i: v.Initiator, a: v.Acceptor} {
			want, got := withoutContexts(token), withoutContexts(fresh(c).AppendExport(nil))
			if !bytes.Equal(got, want) {
				t.Errorf("%s: %s", v.Name, cmp.Diff(hex.Dump(want), hex.Dump(got)))
			}
		}
	}
}

// The words that stand in a krb5_context are read to their end by the rules of 1.18 and by those of
// 1.19 and later.
func TestContextWordsOnEveryRelease(t *testing.T) {
	for _, lists := range []int{1, 2} {
		r := tokenReader{b: append(slices.Clone(contextWords), be32(nil, magicAuthContext)...)}
		if r.k5contextLists(lists); r.problem != "" || r.at != len(contextWords) {
			t.Errorf("%d lists of enctypes: %d of %d bytes read: %s", lists, r.at, len(contextWords), r.problem)
		}
	}
}

// layoutCanonical is what MIT krb5 1.19 and later write in that place; 1.18 refuses it.
var layoutCanonical = words(0, 300, 0x10, 0, 0, 0x504,
	magicOSContext, 0, 0, 0, magicOSContext, magicProfile, 0, magicProfile, magicContext)

// Words of the krb5_context as other releases write it must be read too.
func TestImportLayouts(t *testing.T) {
	v := contextVectors(t)[0]
	_, a := v.pair(t)
	token := fresh(a).AppendExport(nil)
	for name, block := range map[string][]byte{
		"1.18":                  append(words(0), layoutCanonical...),
		"1.18, enctypes":        append(words(2, 18, 17), words(1, 18, 300, 0x10, 1, 0, 0x504, magicContext)...),
		"1.19, enctypes":        words(3, 18, 17, 20, 300, 0x10, 1, 0, 0x504, magicContext),
		"profile of two files":  append(append(words(0, 300, 0x10, 1, 0, 0x504, magicProfile, 2, 4), "/a/b\x00\x00\x00\x00"...), words(magicProfile, magicContext)...),
		"1.18, profile":         append(append(words(0, 0, 300, 0x10, 1, 0, 0x504, magicProfile, 1, 4), "/a/b"...), words(magicProfile, magicContext)...),
		"1.19, canonical":       layoutCanonical,
		"any, with MIT's times": words(0, 2, 0x10, 0, 300, 0x10, magicProfile, 0, magicProfile, magicContext),
	} {
		changed := bytes.Replace(token, contextWords, block, 1)
		back, err := ImportContext(changed)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if !bytes.Equal(back.AppendExport(nil), changed) {
			t.Errorf("%s: comes out changed", name)
		}
	}
	if _, err := ImportContext(bytes.Replace(token, contextWords, words(1, 2, 3, 4, 5, 6, magicContext), 1)); err == nil {
		t.Error("a krb5_context of no release is taken")
	}
}

func TestImportRefusals(t *testing.T) {
	v := contextVectors(t)[0]
	good := []byte(v.Acceptor)
	const prefix = 13
	patch := func(at int, w uint32) []byte {
		b := bytes.Clone(good)
		copy(b[at:], be32(nil, w))
		return b
	}
	wrapped := func(oid mech.OID, inner []byte) []byte { return append(appendCounted(nil, string(oid)), inner...) }
	for _, c := range []struct {
		name  string
		token []byte
		major mech.Major
		text  string
	}{
		{"empty", nil, mech.CallBadStructure | mech.DefectiveToken, "no mechanism OID"},
		{"OID longer than the token", words(5, 1), mech.CallBadStructure | mech.DefectiveToken, "OID of 5 bytes in 4"},
		{"empty OID", words(0, 1), mech.CallBadStructure | mech.DefectiveToken, "OID of 0 bytes"},
		{"huge OID", words(0xFFFFFFFF, 1), mech.CallBadStructure | mech.DefectiveToken, "OID of 4294967295"},
		{"unknown mechanism", wrapped("\x2a\x03", good[prefix:]), mech.BadMech, "1.2.3"},
		{"SPNEGO in SPNEGO", wrapped(mech.SPNEGO, wrapped(mech.SPNEGO, good)), mech.BadMech, "1.3.6.1.5.5.2"},
		{"nothing after the OID", good[:prefix], mech.Failure, "context: magic number 025EA108 wanted at byte 13"},
		{"other magic", patch(prefix, 1), mech.Failure, "context: magic"},
		{"half established", patch(prefix+8, 0), mech.Failure, "established"},
		{"no acceptor subkey announced", patch(prefix+12, 0), mech.Failure, "acceptor subkey: there should be none"},
		{"principal longer than the token", patch(0x7e, 1<<31), mech.Failure, "local name: count 2147483648"},
		{"unknown key type", patch(0xd0, 99), mech.Failure, "subkey: etype: etype 99 is not supported"},
		{"DES3", patch(0xd0, 16), mech.Failure, "des3-cbc-sha1 is not supported"},
		{"key of another length", patch(0xd0, 17), mech.Failure, "needs a key of 16 bytes, got 32"},
	} {
		got, err := ImportContext(c.token)
		var e *mech.Error
		if !errors.As(err, &e) || got != nil || e.Major != c.major || !strings.Contains(e.Text, c.text) || e.Reason != reason.BadContext {
			t.Errorf("%s: %v, %v; want %q", c.name, got, err, c.text)
		}
	}
	if _, err := ImportContext(wrapped(mech.SPNEGO, good)); err != nil {
		t.Errorf("SPNEGO: %v", err)
	}
	if _, err := ImportContext(wrapped(mech.IAKERB, good[prefix:])); err != nil {
		t.Errorf("IAKERB: %v", err)
	}
}

func TestImportTruncated(t *testing.T) {
	for _, v := range contextVectors(t) {
		for _, token := range []hexBytes{v.Initiator, v.Acceptor} {
			for n := range token {
				if _, err := ImportContext(token[:n]); err == nil {
					t.Fatalf("%s: %d bytes of %d are taken", v.Name, n, len(token))
				}
			}
		}
	}
}

func TestImportCopies(t *testing.T) {
	v := contextVectors(t)[0]
	token := bytes.Clone(v.Acceptor)
	c, err := ImportContext(token)
	if err != nil {
		t.Fatal(err)
	}
	clear(token)
	if !bytes.Equal(c.AppendExport(nil), v.Acceptor) || bytes.Equal(c.PAC, make([]byte, len(c.PAC))) {
		t.Error("the context depends on the caller's token")
	}
}

// Every word of a token replaced by what a count, a length or a number may be feared to be.
func TestImportMutated(t *testing.T) {
	for _, v := range contextVectors(t) {
		for _, token := range []hexBytes{v.Initiator, v.Acceptor} {
			accepted := 0
			for at := range len(token) - 4 {
				for _, w := range []uint32{0, 1, 23, 0x10000, 1<<31 - 1, 1 << 31, 1<<32 - 1} {
					changed := bytes.Clone(token)
					binary.BigEndian.PutUint32(changed[at:], w)
					if c, err := ImportContext(changed); err == nil {
						accepted++
						useContext(t, c, changed)
					}
				}
			}
			if accepted == 0 {
				t.Errorf("%s: no change is harmless", v.Name)
			}
		}
	}
}

// useContext does everything to a context that was imported from token, which may have come from
// anywhere.
func useContext(t testing.TB, c *Context, token []byte) {
	t.Helper()
	if out := c.AppendExport(nil); !bytes.HasPrefix(token, out) {
		t.Fatalf("%x comes out as %x", token, out)
	}
	tok, err := c.Wrap(nil, token, len(token)%2 == 0)
	if err != nil {
		t.Fatal(err)
	}
	c.Unwrap(nil, tok)
	mic, err := c.GetMIC(nil, token)
	if err != nil {
		t.Fatal(err)
	}
	c.VerifyMIC(token, mic)
	c.Unwrap(nil, token)
	c.VerifyMIC(nil, token)
	c.WrapSizeLimit(true, uint32(len(token)))
	c.WrapSizeLimit(false, uint32(c.SendSeq))
	c.Window.Check(c.SendSeq)
	if _, err := c.PseudoRandom(false, token, 100); err != nil {
		t.Fatal(err)
	}
	if _, err := ImportContext(c.AppendExport(nil)); err != nil {
		t.Fatal(err)
	}
	if _, err := ImportContext(bytes.Replace(fresh(c).AppendExport(nil), contextWords, layoutCanonical, 1)); err != nil {
		t.Fatal(err)
	}
	c.Destroy()
}

func FuzzImportContext(f *testing.F) {
	for _, v := range contextVectors(f) {
		f.Add([]byte(v.Initiator))
		f.Add([]byte(v.Acceptor))
		_, a := v.pair(f)
		f.Add(fresh(a).AppendExport(nil))
	}
	f.Fuzz(func(t *testing.T, token []byte) {
		c, err := ImportContext(token)
		if err != nil {
			var e *mech.Error
			if !errors.As(err, &e) || c != nil {
				t.Fatal(c, err)
			}
			return
		}
		useContext(t, c, token)
	})
}

func TestExportDoesNotAllocate(t *testing.T) {
	_, a := contextVectors(t)[0].pair(t)
	buf := make([]byte, 0, 4096)
	for name, c := range map[string]*Context{"fresh": fresh(a), "imported": a} {
		if n := testing.AllocsPerRun(100, func() { c.AppendExport(buf) }); n != 0 {
			t.Errorf("%s: %v allocations", name, n)
		}
	}
}

func TestDestroyContext(t *testing.T) {
	_, a := contextVectors(t)[0].pair(t)
	keys := []etype.Secret{a.Subkey.Secret(), a.AcceptorSubkey.Secret(), a.SessionKey.Secret(), (*a.imported).token}
	a.Destroy()
	for _, k := range keys {
		if !bytes.Equal(k, make([]byte, len(k))) {
			t.Error("a key is left")
		}
	}
	var none Context
	for _, c := range []*Context{a, &none} {
		if _, err := c.Wrap(nil, nil, true); !isMajor(err, mech.NoContext) {
			t.Error(err)
		}
		if _, _, _, err := c.Unwrap(nil, []byte{5, 4}); !isMajor(err, mech.NoContext) {
			t.Error(err)
		}
		if _, err := c.GetMIC(nil, nil); !isMajor(err, mech.NoContext) {
			t.Error(err)
		}
		if _, err := c.VerifyMIC(nil, nil); !isMajor(err, mech.NoContext) {
			t.Error(err)
		}
		if _, err := c.PseudoRandom(false, nil, 1); !isMajor(err, mech.NoContext) {
			t.Error(err)
		}
		if c.WrapSizeLimit(true, 1000) != 0 || len(c.AppendExport(nil)) != 0 {
			t.Error("an empty context works")
		}
		c.Prepare()
		c.Destroy()
	}
}

func isMajor(err error, m mech.Major) bool {
	var e *mech.Error
	return errors.As(err, &e) && e.Major == m
}

// No way of printing a context may show its keys, not even from within somebody else's struct.
func TestContextDoesNotPrint(t *testing.T) {
	v := contextVectors(t)[0]
	_, a := v.pair(t)
	a.Prepare()
	type exported struct {
		C Context
		P *Context
		I any
	}
	type unexported struct {
		c Context
		p *Context
		m map[string]*Context
		s []Context
		i any
	}
	var out strings.Builder
	for _, x := range []any{
		a, exported{*a, a, a}, &exported{*a, a, a}, []*Context{a},
		unexported{*a, a, map[string]*Context{"a": a}, []Context{*a}, a}, &unexported{*a, a, nil, []Context{*a}, *a},
	} {
		for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "% X", "%d", "%t", "%c", "%b"} {
			fmt.Fprintf(&out, verb+"\n", x)
		}
		if b, err := json.Marshal(x); err == nil {
			out.Write(b)
		}
		slog.New(slog.NewTextHandler(&out, nil)).Info("x", "x", x)
		slog.New(slog.NewJSONHandler(&out, nil)).Info("x", "x", x)
	}
	text := out.String()
	if !strings.Contains(text, "peer alice@EXAMPLE.TEST") {
		t.Error("the names are missing")
	}
	for _, k := range []*etype.Key{a.Subkey, a.AcceptorSubkey, a.SessionKey} {
		raw := []byte(k.Secret())[4:10]
		for _, verb := range []string{"%x", "%X", "% x", "% X", "%v", "%#v", "%d", "%c", "%b", "%s"} {
			leak := strings.Trim(strings.TrimSuffix(strings.TrimPrefix(fmt.Sprintf(verb, raw), "[]byte{"), "}"), "[]")
			if strings.Contains(text, leak) {
				t.Errorf("a key shows as %s", verb)
			}
		}
	}
}
