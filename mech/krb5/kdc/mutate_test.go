package kdc

import (
	"bytes"
	"math/rand/v2"
	"runtime"
	"strings"
	"testing"
	"time"

	"gssproxyd/mech"
	"gssproxyd/mech/krb5"
	"gssproxyd/mech/krb5/etype"
	"gssproxyd/mech/krb5/wire"
	"gssproxyd/tests/lab"
)

// checkResult is what holds for every exchange, whatever the KDC says.
func checkResult(t testing.TB, cred *krb5.Credential, err error) {
	t.Helper()
	if err == nil {
		if cred.EndTime <= cred.StartTime || len(cred.Ticket) == 0 || !cred.KeyType.Supported() || len(cred.Key) != cred.KeyType.KeySize() ||
			cred.Flags&wire.FlagInvalid != 0 || len(cred.Addresses) > 0 {
			t.Fatalf("accepted: %+v", *cred)
		}
		return
	}
	e, ok := err.(*mech.Error)
	if !ok || cred != nil {
		t.Fatalf("error %#v with %v", err, cred)
	}
	if !e.Major.Failed() || e.Minor == 0 || e.Reason == "" || e.Text == "" || len(e.Text) > 2000 ||
		strings.ContainsFunc(e.Text, func(r rune) bool { return r < ' ' || r == 0x7f }) {
		t.Fatalf("error %#v", e)
	}
}

// stage is a world where everything can be asked for and everything goes wrong.
type stage struct {
	*world
	c          *Client
	user, http krb5.Principal
	tgt, self  *krb5.Credential
	evidence   *krb5.Credential
}

func newStage(t testing.TB) *stage {
	w := newWorld(t, "A.TEST", "B.TEST")
	w.trust("A.TEST", "B.TEST")
	w.trust("B.TEST", "A.TEST")
	s := &stage{world: w, c: w.client(), user: principal(t, "user@A.TEST"), http: principal(t, "HTTP/www.a.test@A.TEST")}
	s.c.Timeout = time.Minute
	s.tgt = w.login(s.c, "user@A.TEST").creds[0]
	s.self = w.login(s.c, "HTTP/www.a.test@A.TEST").creds[0]
	var err error
	s.evidence, err = s.c.S4U2Self(t.Context(), s.tickets(s.self), s.http, s.user)
	check(t, err)
	w.kdcs["A.TEST"].delegate[s.http.String()+" > nfs/a"] = true
	w.kdcs["A.TEST"].referHost["b"] = "B.TEST"
	w.kdcs["A.TEST"].delegate[s.http.String()+" > nfs/b"] = true
	w.kdcs["B.TEST"].delegate[s.http.String()+" > nfs/b"] = true
	w.add("nfs/a@A.TEST", 18)
	w.add("nfs/b@B.TEST", 18)
	w.quiet = true
	return s
}

func (s *stage) tickets(creds ...*krb5.Credential) *store { return &store{creds} }

// exchange does one of everything with mutations by r, of what is sent or of what is sealed in it.
func (s *stage) exchange(t testing.TB, kind int, plain, whole func([]byte) []byte) {
	for _, k := range s.kdcs {
		k.mutatePlain, k.mutateReply = plain, whole
		k.preauth = kind%2 == 0
	}
	ctx := t.Context()
	var cred *krb5.Credential
	var err error
	switch kind % 9 {
	case 0, 1:
		cred, err = s.c.Login(ctx, s.user, s.world, LoginOptions{})
	case 2:
		cred, err = s.c.Ticket(ctx, s.tickets(s.tgt), s.user, s.http, TicketOptions{})
	case 3:
		cred, err = s.c.Ticket(ctx, s.tickets(s.tgt), s.user, krb5.Principal{Realm: "B.TEST", Components: []string{"nfs", "b"}}, TicketOptions{})
	case 4:
		cred, err = s.c.Forward(ctx, s.tgt, etype.AES256SHA1)
	case 5:
		cred, err = s.c.S4U2Self(ctx, s.tickets(s.self), s.http, s.user)
	case 6:
		cred, err = s.c.S4U2Self(ctx, s.tickets(s.self), s.http, krb5.Principal{Realm: "B.TEST", Components: []string{"user"}, Type: 1})
	case 7:
		cred, err = s.c.S4U2Proxy(ctx, s.tickets(s.self), s.http, s.evidence, krb5.Principal{Components: []string{"nfs", "a"}}, TicketOptions{})
	case 8:
		cred, err = s.c.S4U2Proxy(ctx, s.tickets(s.self), s.http, s.evidence, krb5.Principal{Components: []string{"nfs", "b"}}, TicketOptions{})
	}
	checkResult(t, cred, err)
}

func TestMutants(t *testing.T) {
	rounds := 60
	if testing.Short() {
		rounds = 10
	}
	s := newStage(t)
	r := rand.New(rand.NewPCG(3, 4))
	mutateSome := func(b []byte) []byte {
		if r.IntN(2) == 0 {
			return b
		}
		return lab.Mutate(r, b)
	}
	for range rounds {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		const n = 50
		for range n {
			kind := r.IntN(9)
			if r.IntN(3) > 0 {
				s.exchange(t, kind, mutateSome, nil)
			} else {
				s.exchange(t, kind, nil, func(b []byte) []byte {
					m := mutateSome(b)
					if wire.ReplyType(m) == 0 { // or everything would be waited out
						return b
					}
					return m
				})
			}
		}
		runtime.ReadMemStats(&after)
		if got := after.TotalAlloc - before.TotalAlloc; got > n*4<<20 {
			t.Fatalf("%d octets allocated for %d exchanges", got, n)
		}
	}
	for kind := range 9 {
		s.exchange(t, kind, nil, nil) // good ones after the mutants
	}
}

// FuzzReplies puts data at one place of what a KDC says, or lets it steer the mutator.
func FuzzReplies(f *testing.F) {
	s := newStage(f)
	key, err := etype.GenerateKey(18)
	check(f, err)
	f.Add(uint8(0), []byte{})
	for where, b := range map[uint8][]byte{
		1:  errorMessage(refusal{code: 25, data: s.kdcs["A.TEST"].method(s.keys["user@A.TEST"])}, "A.TEST", s.http, 1),
		2:  s.kdcs["A.TEST"].method(s.keys["user@A.TEST"]),
		3:  sequence(sequence(field(0, integer(18)), field(1, text("salt")), field(2, octets([]byte{0, 0, 16, 0})))),
		4:  sequence(field(0, sequence(field(0, integer(7)), field(1, name(s.user)), field(2, text("A")), field(4, flags(1)))), field(1, typed(16, nil))),
		5:  sequence(field(0, flags(pacOptionRBCD))),
		6:  application(25, sequence(field(0, keyDER(key)), field(1, sequence()), field(2, integer(7)))),
		7:  typed(16, make([]byte, 12)),
		10: {1, 2, 3, 4, 5, 6, 7, 8},
		20: {1, 2, 3, 4, 5, 6, 7, 8},
	} {
		f.Add(where, b)
	}
	f.Fuzz(func(t *testing.T, where uint8, data []byte) {
		s.t = t
		bad := func(e *mech.Error) {
			if e != nil {
				checkResult(t, nil, e)
			}
		}
		switch {
		case where == 0:
			_, err := parseReply(wire.MsgASRep, data)
			bad(err)
			_, err = parseReply(wire.MsgTGSRep, data)
			bad(err)
			wire.ReplyType(data)
		case where == 1:
			if k, err := parseError(data); err != nil {
				bad(err)
			} else {
				bad(refused(k, "A.TEST", s.user, s.http))
			}
		case where == 2:
			wire.ParsePAData(data)
		case where == 3:
			_, err := parseKeyInfo(data)
			bad(err)
		case where == 4:
			bad((&s4uUser{name: s.user}).verify(&tgsReply{padata: []wire.PAData{{Type: wire.PAS4UX509User, Value: data}}, subkey: key, nonce: 7}, nil, true))
		case where == 5:
			bad(checkRBCD(&tgsReply{encPadata: []wire.PAData{{Type: wire.PAPACOptions, Value: data}}}))
		case where == 6:
			var p encPart
			bad(p.parse(bytes.Clone(data)))
		case where == 7:
			bad(checkRequestSum([]wire.PAData{{Type: wire.PAReqEncPARep, Value: data}}, key, nil))
		default:
			var seed [32]byte
			copy(seed[:], data)
			r := rand.New(rand.NewChaCha8(seed))
			change := func(b []byte) []byte {
				if m := lab.Mutate(r, b); len(b) == 0 || b[0] != 0x7e && b[0] != 0x6b && b[0] != 0x6d || wire.ReplyType(m) != 0 {
					return m
				}
				return b
			}
			if where%2 == 0 {
				s.exchange(t, int(where/2), change, nil)
			} else {
				s.exchange(t, int(where/2), nil, change)
			}
		}
	})
}
