package krb5

import (
	"bytes"
	"math/rand/v2"
	"runtime"
	"testing"

	"gssproxyd/mech"
	"gssproxyd/mech/krb5/der"
	"gssproxyd/mech/krb5/etype"
)

// A mutator that knows DER. Changing bytes at random mostly breaks the outermost length and goes no
// further; this one changes one value anywhere in the tree and, more often than not, makes the lengths
// around it right again. It works on what the acceptor decrypts, too, and has it encrypted again.

// node is one value of a tree.
type node struct {
	tag      byte
	children []*node
	content  []byte // without children
	length   []byte // written in place of the right length, if not nil
}

// parseTree reads as much of b as is DER; wrapped DER in OCTET STRINGs is read too.
func parseTree(b []byte) (nodes []*node, ok bool) {
	r := der.NewReader(b)
	for r.More() {
		tag := r.Peek()
		v := r.Value(tag)
		if r.Fault() != 0 {
			return nil, false
		}
		n := &node{tag: byte(tag), content: v}
		if tag&0x20 != 0 || tag == der.OctetString && len(v) > 4 && v[0] == byte(der.Sequence) {
			if kids, ok := parseTree(v); ok {
				n.children, n.content = kids, nil
			}
		}
		nodes = append(nodes, n)
	}
	return nodes, true
}

func (n *node) encode(dst []byte) []byte {
	content := n.content
	for _, c := range n.children {
		content = c.encode(content)
	}
	if n.length != nil {
		return append(append(append(dst, n.tag), n.length...), content...)
	}
	return append(der.AppendHeader(dst, der.Tag(n.tag), len(content)), content...)
}

// all lists the nodes of a forest.
func all(nodes []*node) (list []*node) {
	for _, n := range nodes {
		list = append(list, n)
		list = append(list, all(n.children)...)
	}
	return list
}

var oddLengths = [][]byte{{0}, {0x7f}, {0x80}, {0x81, 0}, {0x81, 0xff}, {0x82, 0xff, 0xff}, {0x83, 0, 0, 1},
	{0x84, 0x7f, 0xff, 0xff, 0xff}, {0x84, 0xff, 0xff, 0xff, 0xff}, {0x88, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff}, {0xff}}

var oddTags = []byte{0x00, 0x02, 0x03, 0x04, 0x05, 0x0c, 0x18, 0x1b, 0x1f, 0x30, 0x31, 0x60, 0x61, 0x62, 0x63, 0x6e, 0x7f, 0xa0, 0xa1, 0xa2, 0xa3, 0xaa, 0xff}

var oddIntegers = []int64{0, -1, 1, 127, 128, 1<<31 - 1, -1 << 31, 1 << 31, 1<<32 - 1, 1 << 32, 1<<63 - 1, -1 << 63}

// mutate changes one value of b, sometimes several.
func mutate(r *rand.Rand, b []byte) []byte {
	roots, ok := parseTree(b)
	if !ok || len(roots) == 0 {
		return mutateBytes(r, b)
	}
	for range 1 + r.IntN(3)/2 {
		list := all(roots)
		n := list[r.IntN(len(list))]
		switch r.IntN(14) {
		case 0:
			n.tag = oddTags[r.IntN(len(oddTags))]
		case 1:
			n.tag ^= 1 << r.IntN(8)
		case 2:
			n.length = oddLengths[r.IntN(len(oddLengths))]
		case 3: // empty
			n.children, n.content = nil, nil
		case 4: // drop a child
			if k := len(n.children); k > 0 {
				i := r.IntN(k)
				n.children = append(append([]*node(nil), n.children[:i]...), n.children[i+1:]...)
			}
		case 5: // double a child
			if k := len(n.children); k > 0 {
				c := n.children[r.IntN(k)]
				n.children = append(append([]*node(nil), n.children...), c)
			}
		case 6: // double it many times
			if k := len(n.children); k > 0 {
				c := n.children[r.IntN(k)]
				for range r.IntN(300) {
					n.children = append(n.children, c)
				}
			}
		case 7: // change places
			if k := len(n.children); k > 1 {
				i, j := r.IntN(k), r.IntN(k)
				n.children[i], n.children[j] = n.children[j], n.children[i]
			}
		case 8: // another value from elsewhere
			o := list[r.IntN(len(list))]
			if o != n {
				n.tag, n.content, n.children = o.tag, o.encode(nil), nil
			}
		case 9: // truncate
			c := n.encodeContent()
			n.children, n.content = nil, c[:r.IntN(len(c)+1)]
		case 10: // lengthen
			n.content = append(n.encodeContent(), make([]byte, r.IntN(300))...)
			n.children = nil
		case 11: // nest
			c := n.encode(nil)
			for range r.IntN(40) {
				c = der.AppendValue(nil, der.Tag(n.tag), c)
			}
			n.children, n.content = nil, c
		case 12: // an integer
			if n.tag == byte(der.Integer) {
				v := der.AppendInt(nil, oddIntegers[r.IntN(len(oddIntegers))])
				n.content = v[2:]
			}
		case 13:
			n.content = mutateBytes(r, n.encodeContent())
			n.children = nil
		}
	}
	var out []byte
	for _, n := range roots {
		out = n.encode(out)
	}
	return out
}

func (n *node) encodeContent() []byte {
	b := bytes.Clone(n.content)
	for _, c := range n.children {
		b = c.encode(b)
	}
	return b
}

// mutateBytes changes some octets, or how many there are.
func mutateBytes(r *rand.Rand, b []byte) []byte {
	b = bytes.Clone(b)
	switch {
	case len(b) == 0:
		return []byte{byte(r.Uint32())}
	case r.IntN(3) == 0:
		return b[:r.IntN(len(b))]
	}
	for range 1 + r.IntN(4) {
		b[r.IntN(len(b))] = byte(r.Uint32())
	}
	return b
}

// mutant is a request with one layer changed.
func mutant(t testing.TB, r *rand.Rand, b *bench) []byte {
	et := testEtypes[r.IntN(len(testEtypes))]
	q := newRequest(t, b.keys[et], testEtypes[r.IntN(len(testEtypes))])
	q.addresses = []Address{{2, []byte{192, 0, 2, 1}}, {20, make([]byte, 16)}}
	q.renew = q.end
	pac := makePAC(q, "alice", q.auth, q.ticketKey)
	elements := []AuthData{ifRelevant(AuthData{adWin2kPAC, pac}), ifRelevant(cammac(q.ticketKey, indicators("otp")))}
	q.ticketAD = elements
	q.authAD = []AuthData{ifRelevant(AuthData{adEtypeNegotiation, seqOf(integer(18), integer(20))}, AuthData{adAPOptions, make([]byte, 4)})}
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
		q.ticketAD = []AuthData{ifRelevant(AuthData{adWin2kPAC, mutateBytes(r, pac)})}
	case 6:
		q.ticketAD = []AuthData{{adIfRelevant, mutate(r, elements[1].Data)}}
	case 7:
		q.ticketAD = []AuthData{ifRelevant(cammac(q.ticketKey, AuthData{adAuthIndicator, mutate(r, indicators("a", "b").Data)}, AuthData{adIfRelevant, mutate(r, elements[1].Data)}))}
	case 8:
		q.transited, q.flags = string(mutateBytes(r, []byte("EDU,MIT.,ATHENA.,WASHINGTON.EDU,CS. /COM,/HP,,"))), 0x40a10000
		q.client.Realm = "OTHER.TEST"
		q.authClient = q.client
	}
	return q.token(t)
}

// checkAnswer checks what every answer must be: a context of somebody, or a *mech.Error worth reading.
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
	reasons := make(map[mech.Reason]int)
	for range rounds {
		var tokens [100][]byte
		size := 0
		for i := range tokens {
			tokens[i] = mutant(t, r, b)
			size += len(tokens[i])
		}
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		for _, token := range tokens {
			err := b.Accept(&out, token, nil)
			checkAnswer(t, &out, err)
			if e, ok := err.(*mech.Error); ok {
				reasons[e.Reason]++
			} else {
				reasons["accepted"]++
			}
		}
		runtime.ReadMemStats(&after)
		if got, limit := after.TotalAlloc-before.TotalAlloc, uint64(16*size+len(tokens)*64<<10); got > limit {
			t.Fatalf("%d octets allocated for %d octets of tokens", got, size)
		}
		if err := b.Accept(&out, good, nil); err != nil {
			t.Fatalf("a good token after the mutants: %v", err)
		}
	}
	for _, want := range []mech.Reason{"accepted", mech.ReasonDefectiveToken, mech.ReasonBadIntegrity, mech.ReasonBadMatch, mech.ReasonTransited, mech.ReasonBadDelegation} {
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
			q.ticketAD = []AuthData{{adIfRelevant, data}}
		case 6:
			q.ticketAD = []AuthData{ifRelevant(AuthData{adWin2kPAC, data})}
		case 7:
			q.ticketAD = []AuthData{ifRelevant(AuthData{adCAMMAC, data})}
		case 8:
			q.authAD = []AuthData{{adIfRelevant, data}}
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
