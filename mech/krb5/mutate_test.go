package krb5

import (
	"math/rand/v2"
	"runtime"
	"testing"

	"gssproxyd/mech"
	"gssproxyd/mech/krb5/etype"
	"gssproxyd/mech/krb5/wire"
	"gssproxyd/mech/reason"
	"gssproxyd/tests/lab"
)

// The mutator works on what the acceptor decrypts, too, and has it encrypted again.
var mutate, mutateBytes = lab.Mutate, lab.MutateBytes

// mutant is a request with one layer changed.
func mutant(t testing.TB, r *rand.Rand, b *bench) []byte {
	et := testEtypes[r.IntN(len(testEtypes))]
	q := newRequest(t, b.keys[et], testEtypes[r.IntN(len(testEtypes))])
	q.addresses = []Address{{Type: 2, Data: []byte{192, 0, 2, 1}}, {Type: 20, Data: make([]byte, 16)}}
	q.renew = q.end
	pac := makePAC(q, "alice", q.auth, q.ticketKey)
	elements := []AuthData{ifRelevant(AuthData{wire.ADWin2kPAC, pac}), ifRelevant(cammac(q.ticketKey, indicators("otp")))}
	q.ticketAD = elements
	q.authAD = []AuthData{ifRelevant(AuthData{wire.ADEtypeNegotiation, seqOf(integer(18), integer(20))}, AuthData{wire.ADAPOptions, make([]byte, 4)})}
	f := &forwarded{tickets: 1, session: q.session}
	f.infos = [][]byte{f.info(t)}
	cred := f.encode(t)
	q.sum = gssSum(nil, 0x13f, cred)
	switch r.IntN(9) {
	case 0:
		return mutate(r, q.token(t))
	case 1:
		return frame(q.oid, tokAPReq, mutate(r, q.apReq(t)))
	case 2:
		q.mutateTicket = func(p []byte) []byte { return mutate(r, p) }
	case 3:
		q.mutateAuth = func(p []byte) []byte { return mutate(r, p) }
	case 4:
		q.sum = gssSum(nil, 0x13f, mutate(r, cred))
		if r.IntN(4) == 0 {
			q.sum = mutateBytes(r, q.sum)
		}
	case 5:
		q.ticketAD = []AuthData{ifRelevant(AuthData{wire.ADWin2kPAC, mutateBytes(r, pac)})}
	case 6:
		q.ticketAD = []AuthData{{wire.ADIfRelevant, mutate(r, elements[1].Data)}}
	case 7:
		q.ticketAD = []AuthData{ifRelevant(cammac(q.ticketKey, AuthData{wire.ADAuthIndicator, mutate(r, indicators("a", "b").Data)}, AuthData{wire.ADIfRelevant, mutate(r, elements[1].Data)}))}
	case 8:
		q.transited, q.flags = string(mutateBytes(r, []byte("EDU,MIT.,ATHENA.,WASHINGTON.EDU,CS. /COM,/HP,,"))), 0x40a10000
		q.client.Realm = "OTHER.TEST"
		q.authClient = q.client
	}
	return q.token(t)
}

// checkAnswer checks what every answer must be: a context of somebody, or a *mech.Error worth
// reading.
func checkAnswer(t testing.TB, out *Accepted, err error) {
	t.Helper()
	if err == nil {
		if out.Context.There == "" || out.Context.Here != testService || out.Context.SessionKey == nil {
			t.Fatalf("incomplete context %v", &out.Context)
		}
		return
	}
	e, ok := err.(*mech.Error)
	if !ok || !e.Major.Failed() || e.Reason == "" || e.Text == "" || len(e.Text) > 2000 {
		t.Fatalf("error %#v", err)
	}
	if out.Context.There != "" || out.Token != nil || out.Delegated != nil {
		t.Fatal("a failed Accept left a result")
	}
}

func TestMutants(t *testing.T) {
	rounds := 100
	if testing.Short() {
		rounds = 30
	}
	b := newBench(t)
	r := rand.New(rand.NewPCG(1, 2))
	good := newRequest(t, b.keys[etype.AES256SHA1], etype.AES256SHA1).token(t)
	var out Accepted
	reasons := make(map[reason.ID]int)
	for range rounds {
		var tokens [100][]byte
		for i := range tokens {
			tokens[i] = mutant(t, r, b)
		}
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		for _, token := range tokens {
			err := b.Accept(&out, token, nil)
			runtime.ReadMemStats(&after)
			// The most that was measured beyond four times the token is 6,300 octets, for one that
			// is accepted with a delegated credential.
			if got, limit := after.TotalAlloc-before.TotalAlloc, uint64(4*len(token)+8<<10); got > limit {
				t.Fatalf("%d octets allocated for a token of %d (%v)", got, len(token), err)
			}
			checkAnswer(t, &out, err)
			if e, ok := err.(*mech.Error); ok {
				reasons[e.Reason]++
			} else {
				reasons["accepted"]++
			}
			before = after
		}
		if err := b.Accept(&out, good, nil); err != nil {
			t.Fatalf("a good token after the mutants: %v", err)
		}
	}
	for _, want := range []reason.ID{"accepted", reason.DefectiveToken, reason.BadIntegrity, reason.BadMatch, reason.Transited, reason.BadDelegation} {
		if reasons[want] == 0 {
			t.Errorf("the mutants never got as far as %q: %v", want, reasons)
		}
	}
}

// FuzzAccept puts data at one place of a request, or lets it steer the mutator.
func FuzzAccept(f *testing.F) {
	b := newBench(f)
	q := newRequest(f, b.keys[18], 18)
	q.ticketAD = []AuthData{ifRelevant(cammac(q.ticketKey, indicators("otp")))}
	for where, data := range [][]byte{q.token(f), q.apReq(f), q.encTicketPart(), q.authenticator(), (&forwarded{tickets: 1, session: q.session}).encode(f),
		adDER(q.ticketAD), makePAC(q, "alice", q.auth, q.ticketKey), cammac(q.ticketKey, indicators("otp")).Data, adDER(q.ticketAD), {1, 2, 3, 4, 5, 6, 7, 8}, []byte("EDU,MIT.")} {
		f.Add(uint8(where), data)
	}
	f.Fuzz(func(t *testing.T, where uint8, data []byte) {
		q := newRequest(t, b.keys[18], 18)
		var token []byte
		switch where % 11 {
		case 0:
			token = data
		case 1:
			token = frame(mech.KRB5, tokAPReq, data)
		case 2:
			q.mutateTicket = func([]byte) []byte { return data }
		case 3:
			q.mutateAuth = func([]byte) []byte { return data }
		case 4:
			q.sum = gssSum(nil, 0x13f, data[:min(len(data), 0xffff)])
		case 5:
			q.ticketAD = []AuthData{{wire.ADIfRelevant, data}}
		case 6:
			q.ticketAD = []AuthData{ifRelevant(AuthData{wire.ADWin2kPAC, data})}
		case 7:
			q.ticketAD = []AuthData{ifRelevant(AuthData{wire.ADCAMMAC, data})}
		case 8:
			q.authAD = []AuthData{{wire.ADIfRelevant, data}}
		case 9:
			var seed [32]byte
			copy(seed[:], data)
			token = mutant(t, rand.New(rand.NewChaCha8(seed)), b)
		case 10:
			q.transited, q.flags = string(data), 0
			q.client.Realm, q.authClient.Realm = "X.OTHER", "X.OTHER"
		}
		if token == nil {
			token = q.token(t)
		}
		var out Accepted
		err := b.Accept(&out, token, nil)
		checkAnswer(t, &out, err)
	})
}
