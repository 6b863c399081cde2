package spnego_test

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"unicode"

	"gssproxyd/keytab"
	"gssproxyd/mech"
	"gssproxyd/mech/krb5"
	"gssproxyd/mech/krb5/der"
	"gssproxyd/mech/spnego"
	"gssproxyd/tests/lab"
)

// kerberos accepts tokens of a Kerberos that has no keys: all of them are read, none is right.
func kerberos() *spnego.Acceptor {
	a := &krb5.Acceptor{Keys: keytab.Compile("FILE:/empty", nil)}
	return &spnego.Acceptor{Mechs: []spnego.Mech{offering(mech.KRB5, func() spnego.Context { return &acceptor{a: a} })}}
}

// end is an Initiator or an Acceptor.
type end interface {
	spnego.Context
	Established() bool
}

// sane checks what must hold after any token, whoever sent it.
func sane(t testing.TB, s end, reply []byte, done bool, err error) {
	t.Helper()
	if done && (err != nil || !s.Established()) {
		t.Fatalf("done, with %v, established %v", err, s.Established())
	}
	if err == nil {
		return
	}
	if reply != nil {
		t.Fatal("an error and a token")
	}
	var e *mech.Error
	if !errors.As(err, &e) {
		return
	}
	if !e.Major.Failed() || e.Text == "" || e.Reason == "" || len(e.Text) > 2000 {
		t.Fatalf("%#x %q %q", e.Major, e.Reason, e.Text)
	}
	for _, c := range e.Text {
		if unicode.IsControl(c) || c == unicode.ReplacementChar {
			t.Fatalf("not for a log: %q", e.Text)
		}
	}
	if a, ok := s.(*spnego.Acceptor); len(e.Token) > 0 && !(ok && a.Raw()) {
		if r, err := spnego.ParseResp(e.Token); err != nil || r.State != spnego.Reject {
			t.Fatalf("the peer is told %x", e.Token)
		}
	}
}

// TestCrashers has tokens that were the end of other implementations.
func TestCrashers(t *testing.T) {
	files, err := filepath.Glob("testdata/crashers/*.hex")
	check(t, err)
	if len(files) == 0 {
		t.Fatal("no files")
	}
	for _, file := range files {
		b, err := os.ReadFile(file)
		check(t, err)
		token, err := hex.DecodeString(strings.TrimSpace(string(b)))
		check(t, err)
		a := kerberos()
		reply, done, err := a.Step(t.Context(), token)
		if err == nil || done {
			t.Errorf("%s is accepted", file)
		}
		sane(t, a, reply, done, err)
	}
}

// TestMutations changes one token of an exchange. Whatever it is, nothing breaks; and if both ends
// nevertheless come to an end with MICs, they mean the same list.
func TestMutations(t *testing.T) {
	rounds := 20000
	if testing.Short() {
		rounds = 2000
	}
	r := rand.New(rand.NewPCG(1, 2))
	finished := 0
	for round := range rounds {
		offer := [][]mech.OID{{mech.KRB5}, {mech.KRB5Wrong, mech.KRB5, spnego.NTLM}, {spnego.NTLM, mech.KRB5}}[r.IntN(3)]
		tokens, bad := 1+r.IntN(4), r.IntN(6)
		i, a := ends(tokens, integ, offer...)
		var token []byte
		var initDone, acceptDone bool
		var err error
		for leg := 0; leg < 12 && err == nil && !(initDone && acceptDone); leg++ {
			var reply []byte
			if leg%2 == 0 {
				reply, initDone, err = i.Step(t.Context(), token)
				sane(t, i, reply, initDone, err)
			} else {
				reply, acceptDone, err = a.Step(t.Context(), token)
				sane(t, a, reply, acceptDone, err)
			}
			if token = reply; leg == bad {
				token = lab.Mutate(r, token)
			}
		}
		if !initDone || !acceptDone {
			continue
		}
		finished++
		x, y := i.Inner().(*fake), a.Inner().(*fake)
		if x.at != tokens || y.at != tokens {
			t.Fatalf("round %d: both ends are done after %d and %d tokens of %d", round, x.at, y.at, tokens)
		}
		if offer[0] == spnego.NTLM && (x.got == 0 || y.got == 0) {
			t.Fatalf("round %d: both ends are done without MICs", round)
		}
	}
	if finished < rounds/20 {
		t.Errorf("only %d of %d exchanges were finished: the mutations are too coarse", finished, rounds)
	}
}

// TestMutatedKerberos changes tokens of MIT's, before a Kerberos that reads them.
func TestMutatedKerberos(t *testing.T) {
	var tokens [][]byte
	files, err := filepath.Glob(golden + "/*.txt")
	check(t, err)
	for _, file := range files {
		b, err := os.ReadFile(file)
		check(t, err)
		for line := range strings.Lines(string(b)) {
			text, _, _ := strings.Cut(line, " ")
			token, err := hex.DecodeString(text)
			check(t, err)
			tokens = append(tokens, token)
		}
	}
	r := rand.New(rand.NewPCG(3, 4))
	for range 5000 {
		a := kerberos()
		reply, done, err := a.Step(t.Context(), lab.Mutate(r, tokens[r.IntN(len(tokens))]))
		sane(t, a, reply, done, err)
		if done {
			t.Fatal("accepted without a key")
		}
		if err == nil {
			reply, done, err = a.Step(t.Context(), lab.Mutate(r, tokens[r.IntN(len(tokens))]))
			sane(t, a, reply, done, err)
		}
	}
}

// TestMemory bounds what a token can cost, in octets allocated.
func TestMemory(t *testing.T) {
	big := bytes.Repeat([]byte{6, 1, 0x29}, 300_000)
	for _, c := range []struct {
		name  string
		token []byte
		limit uint64
	}{
		{"list", (&spnego.NegTokenInit{MechTypes: der.AppendValue(nil, der.Sequence, big)}).Append(nil), 4 << 10},
		{"empty values", (&spnego.NegTokenInit{MechTypes: der.AppendValue(nil, der.Sequence, make([]byte, 1<<20))}).Append(nil), 4 << 10},
		{"identifier", (&spnego.NegTokenInit{MechTypes: der.AppendValue(nil, der.Sequence, der.AppendValue(nil, der.ObjectID, make([]byte, 4000)))}).Append(nil), 32 << 10},
		{"token", (&spnego.NegTokenInit{MechTypes: list(spnego.NTLM, mech.KRB5), MechToken: big}).Append(nil), 4 << 10},
		{"raw", append(der.AppendHeader(nil, der.Application(0), 1<<20+2), append([]byte{6, 0x83, 0x0f, 0xff, 0xfd}, make([]byte, 1<<20)...)...), 4 << 10},
	} {
		t.Run(c.name, func(t *testing.T) {
			// The least of several: what the runtime allocates meanwhile for itself counts, too.
			least, why := uint64(1<<63), error(nil)
			for range 10 {
				_, a := ends(2, integ)
				var before, after runtime.MemStats
				runtime.ReadMemStats(&before)
				_, _, err := a.Step(t.Context(), c.token)
				runtime.ReadMemStats(&after)
				least, why = min(least, after.TotalAlloc-before.TotalAlloc), err
			}
			if least > c.limit {
				t.Errorf("%d octets, at most %d (%v)", least, c.limit, why)
			}
		})
	}
}

func seeds(f *testing.F) {
	files, _ := filepath.Glob("testdata/*/*")
	for _, file := range files {
		b, err := os.ReadFile(file)
		check(f, err)
		for line := range strings.Lines(string(b)) {
			text, _, _ := strings.Cut(strings.TrimSpace(line), " ")
			if token, err := hex.DecodeString(text); err == nil {
				f.Add(token)
			}
		}
	}
}

// FuzzParse: what is read is written the same way, up to what is tolerated, and that again is
// stable.
func FuzzParse(f *testing.F) {
	seeds(f)
	f.Fuzz(func(t *testing.T, token []byte) {
		if i, err := spnego.ParseInit(token); err == nil {
			again, err := spnego.ParseInit(i.Append(nil))
			if err != nil || fmt.Sprintf("%x", again) != fmt.Sprintf("%x", i) {
				t.Fatalf("%x came back as %x, %v", i, again, err)
			}
		}
		if r, err := spnego.ParseResp(token); err == nil {
			again, err := spnego.ParseResp(r.Append(nil))
			if err != nil || fmt.Sprintf("%x", again) != fmt.Sprintf("%x", r) {
				t.Fatalf("%x came back as %x, %v", r, again, err)
			}
		}
	})
}

// FuzzAcceptor gives an acceptor two tokens.
func FuzzAcceptor(f *testing.F) {
	i := spnego.NegTokenInit{MechTypes: list(spnego.NTLM, mech.KRB5)}
	f.Add(i.Append(nil), resp("accept-incomplete "+fakeToken(mech.KRB5, 1)))
	i = spnego.NegTokenInit{MechTypes: list(mech.KRB5Wrong), MechToken: octets(fakeToken(mech.KRB5, 1))}
	f.Add(i.Append(nil), resp("accept-incomplete "+fakeToken(mech.KRB5, 3)))
	f.Fuzz(func(t *testing.T, first, second []byte) {
		for tokens := 1; tokens <= 3; tokens++ {
			_, a := ends(tokens, integ)
			for _, token := range [][]byte{first, second, second} {
				reply, done, err := a.Step(t.Context(), token)
				if sane(t, a, reply, done, err); err != nil {
					break
				}
			}
		}
	})
}

// FuzzInitiator gives an initiator two answers.
func FuzzInitiator(f *testing.F) {
	f.Add(resp("request-mic krb5"), micResp("accept-completed", fakeMIC(false, 1, list(spnego.NTLM, mech.KRB5))))
	f.Add(resp("accept-completed krb5 "+fakeToken(mech.KRB5, 2)), []byte(nil))
	f.Add(resp("accept-incomplete ntlm"), resp("accept-completed "+fakeToken(spnego.NTLM, 2)))
	f.Fuzz(func(t *testing.T, first, second []byte) {
		for tokens := 1; tokens <= 3; tokens++ {
			for _, offer := range [][]mech.OID{{mech.KRB5, spnego.NTLM}, {spnego.NTLM, mech.KRB5}} {
				i, _ := ends(tokens, integ, offer...)
				for _, token := range [][]byte{nil, first, second, second} {
					reply, done, err := i.Step(t.Context(), token)
					if sane(t, i, reply, done, err); err != nil {
						break
					}
				}
			}
		}
	})
}

// BenchmarkAcceptor is the negotiation around a mechanism that costs nothing.
func BenchmarkAcceptor(b *testing.B) {
	token := (&spnego.NegTokenInit{MechTypes: list(mech.KRB5Wrong, mech.KRB5, spnego.NegoEx, spnego.NTLM), MechToken: octets(fakeToken(mech.KRB5, 1))}).Append(nil)
	f := &fake{oid: mech.KRB5, tokens: 2}
	mechs := []spnego.Mech{{OID: mech.KRB5, New: func() spnego.Context { return still{f} }}}
	b.ReportAllocs()
	for b.Loop() {
		a := spnego.Acceptor{Mechs: mechs}
		if _, done, err := a.Step(b.Context(), token); err != nil || !done {
			b.Fatal(done, err)
		}
	}
}

// still is done with any token.
type still struct{ *fake }

func (still) Step(context.Context, []byte) ([]byte, bool, error) { return answer, true, nil }

var answer = make([]byte, 150)
