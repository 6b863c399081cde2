package krb5

import (
	"math/rand/v2"
	"testing"

	"gssproxyd/mech"
)

// exchange is what an initiator and an acceptor of DCE style have in their hands when the other
// end's token comes, so that hostile ones can be tried on them.
type exchange struct {
	b        *bench
	i, dce   *Initiator
	partials [2]Initiated // plain, DCE style
	acceptor Accepted
}

func newExchange(t testing.TB) *exchange {
	t.Helper()
	x := &exchange{b: newBench(t)}
	x.b.DCEStyle = true
	x.i = newInitiator(t, x.b, 18, 18, mech.FlagMutual|mech.FlagSequence)
	x.dce = newInitiator(t, x.b, 18, 17, mech.FlagDCEStyle)
	for n, i := range []*Initiator{x.i, x.dce} {
		if err := i.Init(&x.partials[n]); err != nil {
			t.Fatal(err)
		}
	}
	if err := x.b.Accept(&x.acceptor, x.partials[1].Token, nil); err != nil {
		t.Fatal(err)
	}
	return x
}

// third is the message that x's acceptor waits for.
func (x *exchange) third(t testing.TB) *apReply {
	a := reply(t, x.dce, &x.partials[1])
	a.subkey, *a.seq = nil, int64(x.acceptor.Context.SendSeq)
	return a
}

// try gives token to every end that waits, and checks what it says. The partial contexts are good.
func (x *exchange) try(t testing.TB, token []byte) {
	t.Helper()
	var out Initiated
	for n, i := range []*Initiator{x.i, x.dce} {
		err := i.Continue(&out, x.partials[n].Partial, token)
		checkLeg(t, &out.Context, err)
		if out.Partial != nil || (len(out.Token) > 0) != (err == nil && i == x.dce) {
			t.Fatalf("partial context %v, token of %d octets", out.Partial, len(out.Token))
		}
	}
	var last Accepted
	err := x.b.Continue(&last, x.acceptor.Partial, token)
	checkLeg(t, &last.Context, err)
	if last.Token != nil || last.Partial != nil || last.Delegated != nil {
		t.Fatal("the last leg left more than a context")
	}
}

// checkLeg checks what every answer must be: a context of somebody, or a *mech.Error worth reading.
func checkLeg(t testing.TB, c *Context, err error) {
	t.Helper()
	if err == nil {
		if c.There == "" || c.Here == "" || c.SessionKey == nil || c.Subkey == nil {
			t.Fatalf("incomplete context %v", c)
		}
		if _, err := c.Wrap(nil, []byte("message"), true); err != nil {
			t.Fatal(err)
		}
		return
	}
	e, ok := err.(*mech.Error)
	if !ok || !e.Major.Failed() || e.Reason == "" || e.Text == "" || len(e.Text) > 2000 || e.Token != nil {
		t.Fatalf("error %#v", err)
	}
	if c.There != "" || c.SessionKey != nil {
		t.Fatal("a failed leg left a result")
	}
}

// hostile is an answer with one layer changed.
func (x *exchange) hostile(t testing.TB, r *rand.Rand) []byte {
	a := reply(t, x.i, &x.partials[0])
	switch r.IntN(8) {
	case 0:
		return mutate(r, frame(mech.KRB5, tokAPRep, a.encode(t)))
	case 1:
		return frame(mech.KRB5, tokAPRep, mutate(r, a.encode(t)))
	case 2:
		a.mutate = func(p []byte) []byte { return mutate(r, p) }
		return frame(mech.KRB5, tokAPRep, a.encode(t))
	case 3:
		return frame(mech.KRB5, tokKRBError, mutate(r, errorDER(t, 37, testNow, "some text")))
	case 4:
		return mutate(r, errorDER(t, 37, testNow, "some text"))
	case 5:
		a = reply(t, x.dce, &x.partials[1])
		a.mutate = func(p []byte) []byte { return mutate(r, p) }
		return a.encode(t)
	case 6:
		return mutate(r, x.third(t).encode(t))
	default:
		a = x.third(t)
		a.mutate = func(p []byte) []byte { return mutate(r, p) }
		return a.encode(t)
	}
}

func TestHostileAnswers(t *testing.T) {
	x := newExchange(t)
	rounds := 10_000
	if testing.Short() {
		rounds = 2000
	}
	r := rand.New(rand.NewPCG(3, 4))
	for range rounds {
		x.try(t, x.hostile(t, r))
	}
	// They have not hurt.
	if err := x.b.Continue(new(Accepted), x.acceptor.Partial, x.third(t).encode(t)); err != nil {
		t.Error(err)
	}
}

// FuzzContinue gives tokens, and the plaintexts in them, to the ends that wait for one.
func FuzzContinue(f *testing.F) {
	x := newExchange(f)
	a := reply(f, x.i, &x.partials[0])
	for where, data := range [][]byte{frame(mech.KRB5, tokAPRep, a.encode(f)), a.encode(f), a.part(), errorDER(f, 37, testNow, "some text"), x.third(f).encode(f), x.third(f).part(), {1, 2, 3}} {
		f.Add(uint8(where), data)
	}
	f.Fuzz(func(t *testing.T, where uint8, data []byte) {
		plain := func(a *apReply) []byte {
			a.mutate = func([]byte) []byte { return data }
			return a.encode(t)
		}
		switch where % 7 {
		case 0, 4:
			x.try(t, data)
		case 1:
			x.try(t, frame(mech.KRB5, tokAPRep, data))
		case 2:
			x.try(t, frame(mech.KRB5, tokAPRep, plain(reply(t, x.i, &x.partials[0]))))
		case 3:
			x.try(t, frame(mech.KRB5, tokKRBError, data))
		case 5:
			x.try(t, plain(x.third(t)))
		case 6:
			var seed [32]byte
			copy(seed[:], data)
			x.try(t, x.hostile(t, rand.New(rand.NewChaCha8(seed))))
		}
	})
}

// FuzzPartial reads partial contexts that nobody sealed.
func FuzzPartial(f *testing.F) {
	initiator, acceptor := partials(f)
	f.Add([]byte(initiator), true)
	f.Add([]byte(acceptor), false)
	x := newExchange(f)
	answer := frame(mech.KRB5, tokAPRep, reply(f, x.i, &x.partials[0]).encode(f))
	f.Fuzz(func(t *testing.T, partial []byte, initiator bool) {
		if initiator {
			var out Initiated
			err := x.i.Continue(&out, partial, answer)
			if err != nil {
				checkLeg(t, &out.Context, err)
			}
			return
		}
		var out Accepted
		if err := x.b.Continue(&out, partial, answer[30:]); err != nil {
			checkLeg(t, &out.Context, err)
		}
	})
}
