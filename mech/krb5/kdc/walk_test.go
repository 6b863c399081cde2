package kdc

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jcmturner/gokrb5/v8/iana/errorcode"

	"gssproxyd/mech"
	"gssproxyd/mech/krb5"
	"gssproxyd/mech/krb5/etype"
	"gssproxyd/mech/krb5/wire"
	"gssproxyd/mech/reason"
)

func TestWay(t *testing.T) {
	c := &Client{Conf: config(t, `[capaths]
 A = {
  C = B
  D = .
  E = B
  E = C extra
  L = A
  L = L
  L = B
  L = B
 }
`)}
	for _, w := range []struct{ from, to, want string }{
		{"A", "C", "A B C"},
		{"A", "D", "A D"},
		{"A", "E", "A B C E"},
		{"A", "L", "A B L"},
		{"A", "X", "A X"},
		{"ONE.TEST", "TWO.TEST", "ONE.TEST TEST TWO.TEST"},
		{"A.B.TEST", "B.TEST", "A.B.TEST B.TEST"},
		{"TEST", "A.B.TEST", "TEST B.TEST A.B.TEST"},
		{"A.B.TEST", "X.Y.B.TEST", "A.B.TEST B.TEST Y.B.TEST X.Y.B.TEST"},
		{"A.ORG", "A.NET", "A.ORG A.NET"},
	} {
		if got := strings.Join(c.way(w.from, w.to), " "); got != w.want {
			t.Errorf("%s to %s: %s, want %s", w.from, w.to, got, w.want)
		}
	}
}

// chain makes realms R0 to Rn, each of which refers to the next for the last one's host and realm.
func chain(t testing.TB, n int) (*world, *Client) {
	var names []string
	for i := range n {
		names = append(names, fmt.Sprintf("R%d.TEST%d", i, i))
	}
	w := newWorld(t, names...)
	last := names[n-1]
	for i := range n - 1 {
		w.trust(names[i], names[i+1])
		w.kdcs[names[i]].via[last] = names[i+1]
		w.kdcs[names[i]].referHost["www."+strings.ToLower(last)] = names[i+1]
	}
	return w, w.client()
}

func TestChains(t *testing.T) {
	for _, n := range []int{2, 3, 4, 10, 12, 14} { // ten requests are made at most for one ticket
		w, c := chain(t, n)
		last := fmt.Sprintf("R%d.TEST%d", n-1, n-1)
		user := principal(t, "user@R0.TEST0")
		for _, realm := range []string{last, ""} {
			s := w.login(c, user.String())
			server := krb5.Principal{Realm: realm, Components: []string{"HTTP", "www." + strings.ToLower(last)}, Type: krb5.NTSrvHst}
			cred, err := c.Ticket(t.Context(), s, user, server, TicketOptions{})
			if n > 10 {
				wantErr(t, err, wire.MinorUnreachable, reason.KDCReply)
				continue
			}
			if err != nil {
				t.Fatalf("%d realms, asking in %q: %v", n, realm, err)
			}
			checkCred(t, cred, user.String(), server.String(), 0)
		}
	}
}

// The tickets on the way are not left behind in memory.
func TestWalkForgets(t *testing.T) {
	world, c := chain(t, 4)
	user := principal(t, "user@R0.TEST0")
	w, fault := c.newWalk(t.Context(), world.login(c, user.String()), user, krb5.Principal{}, TicketOptions{})
	if fault != nil {
		t.Fatal(fault)
	}
	cred, fault := w.service(krb5.Principal{Components: []string{"HTTP", "www.r3.test3"}, Type: krb5.NTSrvHst})
	if fault != nil {
		t.Fatal(fault)
	}
	w.forget(cred)
	zero := make([]byte, 64)
	for _, one := range slices.Concat(w.have, w.got) {
		if blank := bytes.HasPrefix(zero, one.Key); blank != (one != cred) {
			t.Errorf("the key of the %v is blank: %v", one, blank)
		}
	}
	if len(w.got) != 4 {
		t.Errorf("%d tickets of KDCs, expected 4", len(w.got))
	}
}

func TestCircles(t *testing.T) {
	w := newWorld(t, "A.TEST", "B.TEST", "C.TEST")
	for _, p := range [][2]string{{"A", "B"}, {"B", "C"}, {"C", "A"}, {"C", "B"}} {
		w.trust(p[0]+".TEST", p[1]+".TEST")
		w.kdcs[p[0]+".TEST"].via["D.ORG"] = p[1] + ".TEST"
		w.kdcs[p[0]+".TEST"].referHost["www.d.org"] = p[1] + ".TEST"
	}
	c := w.client()
	s := w.login(c, "user@A.TEST")
	for _, realm := range []string{"", "D.ORG"} {
		_, err := c.Ticket(t.Context(), s, principal(t, "user@A.TEST"), krb5.Principal{Realm: realm, Components: []string{"HTTP", "www.d.org"}}, TicketOptions{})
		wantErr(t, err, wire.MinorUnreachable, reason.KDCReply, "referral loop")
	}
	if n := len(w.kdcs["B.TEST"].asked); n > 4 {
		t.Errorf("realm B was asked %d times", n)
	}
}

// TestGuess: where nobody refers, the host's domain is the realm.
func TestGuess(t *testing.T) {
	w := newWorld(t, "A.TEST", "B.TEST")
	w.trust("A.TEST", "B.TEST")
	c := w.client()
	s := w.login(c, "user@A.TEST")
	cred, err := c.Ticket(t.Context(), s, principal(t, "user@A.TEST"), krb5.Principal{Components: []string{"HTTP", "www.b.test"}}, TicketOptions{})
	check(t, err)
	checkCred(t, cred, "user@A.TEST", "HTTP/www.b.test@", 0)
	_, err = c.Ticket(t.Context(), s, principal(t, "user@A.TEST"), krb5.Principal{Components: []string{"HTTP", "short"}}, TicketOptions{})
	wantErr(t, err, wire.MinorServerUnknown, reason.ServerUnknown)
	_, err = c.Ticket(t.Context(), s, principal(t, "user@A.TEST"), krb5.Principal{Components: []string{"service"}}, TicketOptions{})
	wantErr(t, err, wire.MinorHostRealm, reason.ServerUnknown)
}

// TestCapathsTried: the furthest realm on the way is asked for first, then the nearer ones.
func TestCapathsTried(t *testing.T) {
	w := newWorld(t, "A.TEST", "B.TEST", "C.ORG")
	w.trust("A.TEST", "B.TEST")
	w.trust("B.TEST", "C.ORG")
	c := w.client()
	user, server := principal(t, "user@A.TEST"), principal(t, "HTTP/www.c.org@C.ORG")
	s := w.login(c, "user@A.TEST")
	_, err := c.Ticket(t.Context(), s, user, server, TicketOptions{})
	wantErr(t, err, wire.MinorServerUnknown, reason.ServerUnknown, "krbtgt/C.ORG@A.TEST")
	c.Conf = config(t, "[realms]\n A.TEST = {\n kdc = a.test\n }\n B.TEST = {\n kdc = b.test\n }\n C.ORG = {\n kdc = c.org\n }\n[capaths]\n A.TEST = {\n  C.ORG = B.TEST\n }\n")
	w.kdcs["A.TEST"].asked = nil
	cred, err := c.Ticket(t.Context(), s, user, server, TicketOptions{})
	check(t, err)
	checkCred(t, cred, "user@A.TEST", "HTTP/www.c.org@C.ORG", 0)
	var asked []string
	for _, q := range w.kdcs["A.TEST"].asked {
		asked = append(asked, q.server.Components[1])
	}
	if !slices.Equal(asked, []string{"C.ORG", "B.TEST"}) {
		t.Errorf("realm A was asked for %v", asked)
	}
	if want := "krbtgt/A.TEST@A.TEST krbtgt/B.TEST@A.TEST krbtgt/C.ORG@B.TEST HTTP/www.c.org@C.ORG"; s.servers() != want {
		t.Errorf("the store has %s", s.servers())
	}
	// What is stored is used.
	n := len(w.kdcs["A.TEST"].asked) + len(w.kdcs["B.TEST"].asked)
	w.add("nfs/c@C.ORG", 18)
	_, err = c.Ticket(t.Context(), s, user, principal(t, "nfs/c@C.ORG"), TicketOptions{})
	check(t, err)
	if m := len(w.kdcs["A.TEST"].asked) + len(w.kdcs["B.TEST"].asked); m != n {
		t.Errorf("%d more requests to realms on the way", m-n)
	}
}

// TestWayUnreachable: a KDC that does not answer is asked once, however many realms there are on
// the way.
func TestWayUnreachable(t *testing.T) {
	w := newWorld(t, "A.TEST")
	c := w.client()
	user := principal(t, "user@A.TEST")
	s := w.login(c, user.String())
	c.Conf = config(t, "[libdefaults]\n udp_preference_limit = 1\n[realms]\n A.TEST = {\n kdc = tcp/a.test\n }\n[capaths]\n A.TEST = {\n  E.ORG = B.ORG C.ORG D.ORG\n }\n")
	var dials atomic.Int32
	c.Dial = func(ctx context.Context, _, _ string) (net.Conn, error) {
		dials.Add(1)
		<-ctx.Done()
		return nil, ctx.Err()
	}
	var err error
	for c.Timeout = 50 * time.Millisecond; dials.Load() == 0 && c.Timeout < time.Minute; c.Timeout *= 8 { // until there is time for one
		_, err = c.Ticket(t.Context(), s, user, principal(t, "HTTP/www.e.org@E.ORG"), TicketOptions{})
	}
	wantErr(t, err, wire.MinorUnreachable, reason.KDCUnreachable)
	if n := dials.Load(); n != 1 {
		t.Errorf("the KDC was asked %d times", n)
	}
}

// TestTill: a ticket is asked for that ends at the time given, and one that ends before is not
// taken from the store; but no KDC is asked for more than the TGT allows.
func TestTill(t *testing.T) {
	w := newWorld(t, "A.TEST")
	c := w.client()
	user, server := principal(t, "user@A.TEST"), principal(t, "HTTP/www.a.test@A.TEST")
	s := w.login(c, user.String())
	now, end := uint32(time.Now().Unix()), s.creds[0].EndTime
	ticket := func(till, wantEnd uint32, asks int) {
		t.Helper()
		before := len(w.kdcs["A.TEST"].asked)
		cred, err := c.Ticket(t.Context(), s, user, server, TicketOptions{Till: till})
		check(t, err)
		if cred.EndTime != wantEnd {
			t.Errorf("ends at %d, want %d", cred.EndTime, wantEnd)
		}
		if n := len(w.kdcs["A.TEST"].asked) - before; n != asks {
			t.Errorf("the KDC was asked %d times, want %d", n, asks)
		}
	}
	ticket(now+100, now+100, 1)
	ticket(now+50, now+100, 0)
	ticket(now+200, now+200, 1)
	ticket(end+1000, end, 1)
	ticket(end+1000, end, 0)

	service, target := server, principal(t, "nfs/store@A.TEST")
	w.add(target.String(), 18)
	w.kdcs["A.TEST"].delegate[service.String()+" > nfs/store"] = true
	own := w.login(c, service.String())
	evidence, err := c.S4U2Self(t.Context(), own, service, user)
	check(t, err)
	for _, till := range []uint32{now + 100, now + 200} {
		cred, err := c.S4U2Proxy(t.Context(), own, service, evidence, target, TicketOptions{Till: till})
		check(t, err)
		if cred.EndTime != till {
			t.Errorf("S4U2Proxy: ends at %d, want %d", cred.EndTime, till)
		}
	}
}

func TestS4U2Self(t *testing.T) {
	w := newWorld(t, "A.TEST", "B.TEST", "C.TEST")
	for _, p := range [][2]string{{"A", "B"}, {"B", "A"}, {"B", "C"}, {"C", "B"}} {
		w.trust(p[0]+".TEST", p[1]+".TEST")
	}
	w.kdcs["A.TEST"].via["C.TEST"] = "B.TEST"
	w.kdcs["C.TEST"].via["A.TEST"] = "B.TEST"
	c := w.client()
	service := principal(t, "HTTP/www.a.test@A.TEST")
	s := w.login(c, service.String())
	for _, types := range [][]etype.ID{{18}, {17}, {19}, {20}, {23}} {
		w.types = types
		s := w.login(c, service.String())
		for _, old := range []bool{false, true} {
			for _, k := range w.kdcs {
				k.oldS4U = old
			}
			for _, user := range []string{"user@A.TEST", "user@B.TEST", "user@C.TEST"} {
				cred, err := c.S4U2Self(t.Context(), s, service, principal(t, user))
				if err != nil {
					t.Fatalf("%v, old %v, %s: %v", types, old, user, err)
				}
				checkCred(t, cred, user, service.String(), types[0])
				if cred.Flags&wire.FlagForwardable == 0 {
					t.Errorf("%s: flags %#x", user, cred.Flags)
				}
			}
		}
	}
	for _, k := range w.kdcs {
		k.oldS4U = false
	}
	// The way back, as MS-SFU has it: the service by its enterprise name everywhere but at home.
	for realm, want := range map[string]string{"C.TEST": `HTTP\/www.a.test\@A.TEST@C.TEST`, "B.TEST": `HTTP\/www.a.test\@A.TEST@B.TEST`, "A.TEST": service.String()} {
		if q := w.kdcs[realm].last(); q.server.String() != want || q.options&wire.OptCanonicalize == 0 || len(q.padata) != 3 {
			t.Errorf("realm %s was asked for %s, options %#x, %d padata", realm, q.server, q.options, len(q.padata))
		}
	}

	t.Run("enterprise", func(t *testing.T) {
		w.kdcs["A.TEST"].referUser[`user@mail.test`] = "C.TEST"
		w.keys[`user\@mail.test@C.TEST`] = w.keys["user@C.TEST"]
		cred, err := c.S4U2Self(t.Context(), s, service, krb5.Principal{Components: []string{"user@mail.test"}, Type: krb5.NTEnterprise})
		check(t, err)
		checkCred(t, cred, "user@C.TEST", service.String(), 0)
	})
	t.Run("unknown user", func(t *testing.T) {
		for _, realm := range []string{"A.TEST", "B.TEST"} {
			_, err := c.S4U2Self(t.Context(), s, service, principal(t, "absent@"+realm))
			wantErr(t, err, wire.MinorClientUnknown, reason.UserUnknown, "the KDC of realm '"+realm+"' knows no user 'absent@"+realm+"' to act for")
		}
		_, err := c.S4U2Self(t.Context(), s, service, krb5.Principal{Components: []string{"absent@mail.test"}, Type: krb5.NTEnterprise})
		wantErr(t, err, wire.MinorClientUnknown, reason.UserUnknown, `the KDC of realm 'A.TEST' knows no user 'absent\@mail.test@A.TEST' to act for`)
	})
	t.Run("user refused", func(t *testing.T) {
		k := w.kdcs["A.TEST"]
		defer func() { k.mutateReply = nil }()
		for code, want := range map[int32]reason.ID{
			errorcode.KDC_ERR_NAME_EXP: reason.UserRefused, errorcode.KDC_ERR_POLICY: reason.UserRefused, errorcode.KDC_ERR_CLIENT_REVOKED: reason.UserRefused,
			errorcode.KDC_ERR_CLIENT_NOTYET: reason.UserRefused, errorcode.KDC_ERR_KEY_EXPIRED: reason.UserRefused, errorcode.KDC_ERR_SVC_UNAVAILABLE: reason.KDCUnreachable,
		} {
			k.mutateReply = func([]byte) []byte { return errorMessage(refusal{code: code}, "A.TEST", service, unix(time.Now())) }
			_, err := w.client().S4U2Self(t.Context(), s, service, principal(t, "user@A.TEST"))
			wantErr(t, err, mech.MinorKRB5+uint32(code), want)
			if named := strings.Contains(err.Error(), "asked to act for the user 'user@A.TEST'"); named != (want == reason.UserRefused) {
				t.Errorf("%v", err)
			}
		}
	})
	t.Run("KDC without S4U", func(t *testing.T) {
		w.kdcs["A.TEST"].noS4U = true
		defer func() { w.kdcs["A.TEST"].noS4U = false }()
		_, err := c.S4U2Self(t.Context(), s, service, principal(t, "user@A.TEST"))
		wantErr(t, err, wire.MinorPadataNoSupp, reason.KDCRefused)
	})

	set := func(i *issue, change func(value []byte) []byte) {
		for j := range i.padata {
			i.padata[j].value = change(i.padata[j].value)
		}
	}
	user := principal(t, "user@A.TEST")
	for name, lie := range map[string]func(*issue){
		"another client": func(i *issue) { i.client.Components = []string{"other"} },
		"another user": func(i *issue) {
			set(i, func(b []byte) []byte { return []byte(strings.Replace(string(b), "user", "root", 1)) })
		},
		"no name": func(i *issue) {
			id := sequence(field(0, integer(int64(i.nonce))), field(2, text("A.TEST")), field(4, flags(0x20000000)))
			set(i, func([]byte) []byte { return sequence(field(0, id), field(1, checksum(i.key, 27, id))) })
		},
		"nonce": func(i *issue) {
			id := newS4UUserID(i.nonce^1, user).encode()
			set(i, func([]byte) []byte {
				return encodeS4UX509User(id, i.key.Enctype().ChecksumType(), i.key.AppendChecksum(nil, 27, id))
			})
		},
		"usage of the request": func(i *issue) {
			id := newS4UUserID(i.nonce, user).encode()
			set(i, func([]byte) []byte {
				return encodeS4UX509User(id, i.key.Enctype().ChecksumType(), i.key.AppendChecksum(nil, 26, id))
			})
		},
		"unkeyed": func(i *issue) {
			set(i, func(b []byte) []byte {
				id := newS4UUserID(i.nonce, user).encode()
				return encodeS4UX509User(id, 2, md4Of(id))
			})
		},
		"cut":            func(i *issue) { set(i, func(b []byte) []byte { return b[:len(b)-1] }) },
		"lost":           func(i *issue) { i.encPadata, i.padata = i.padata, nil },
		"another server": func(i *issue) { i.server.Components = []string{"nfs", "x"}; i.inside = i.server },
	} {
		for _, k := range []etype.ID{18, 23} {
			if name == "unkeyed" && k == etype.RC4 {
				continue // as it must be: the encrypted part repeats it
			}
			w.types = []etype.ID{k}
			s := w.login(c, service.String())
			w.kdcs["A.TEST"].mutateIssue = lie
			if cred, err := c.S4U2Self(t.Context(), s, service, user); err == nil {
				t.Errorf("%s, %v: got %v", name, k, cred)
			} else if e := err.(*mech.Error); e.Reason != reason.KDCReply {
				t.Errorf("%s, %v: %v", name, k, err)
			}
			w.kdcs["A.TEST"].mutateIssue = nil
		}
	}
}

func TestS4U2Proxy(t *testing.T) {
	w := newWorld(t, "A.TEST", "B.TEST", "C.TEST")
	for _, p := range [][2]string{{"A", "B"}, {"B", "C"}} {
		w.trust(p[0]+".TEST", p[1]+".TEST")
	}
	c := w.client()
	service := principal(t, "HTTP/www.a.test@A.TEST")
	s := w.login(c, service.String())
	w.add("nfs/store@A.TEST", 18)
	w.add("nfs/www.c.test@C.TEST", 18)
	evidence, err := c.S4U2Self(t.Context(), s, service, principal(t, "user@A.TEST"))
	check(t, err)
	target := principal(t, "nfs/store@A.TEST")

	_, err = c.S4U2Proxy(t.Context(), s, service, evidence, target, TicketOptions{})
	wantErr(t, err, wire.MinorBadOption, reason.DelegationRefused, "NOT_ALLOWED_TO_DELEGATE", "client HTTP/www.a.test@A.TEST, target nfs/store@A.TEST", "asked to act for the user 'user@A.TEST'")
	plain := evidence.Clone()
	plain.Flags &^= wire.FlagForwardable
	_, err = w.client().S4U2Proxy(t.Context(), s, service, plain, target, TicketOptions{})
	wantErr(t, err, wire.MinorBadOption, reason.DelegationRefused, "; the user's ticket is not forwardable")
	w.kdcs["A.TEST"].delegate[service.String()+" > nfs/store"] = true
	c = w.client() // one that does not remember the refusal
	cred, err := c.S4U2Proxy(t.Context(), s, service, evidence, target, TicketOptions{})
	check(t, err)
	checkCred(t, cred, "user@A.TEST", target.String(), 0)
	q := w.kdcs["A.TEST"].last()
	if string(cred.SecondTicket) != string(evidence.Ticket) || string(q.tickets[0]) != string(evidence.Ticket) ||
		q.options&(wire.OptCnameInAddlTkt|wire.OptCanonicalize) != wire.OptCnameInAddlTkt|wire.OptCanonicalize || len(q.padata) != 2 {
		t.Errorf("request with options %#x, %d padata", q.options, len(q.padata))
	}

	t.Run("cached", func(t *testing.T) {
		n := len(w.kdcs["A.TEST"].asked)
		again, err := c.S4U2Proxy(t.Context(), s, service, evidence, target, TicketOptions{})
		check(t, err)
		if string(again.Ticket) != string(cred.Ticket) || len(w.kdcs["A.TEST"].asked) != n {
			t.Error("not the stored ticket")
		}
		other := evidence.Clone()
		other.Ticket = append([]byte{}, cred.Ticket...)
		_, err = c.S4U2Proxy(t.Context(), s, service, other, target, TicketOptions{})
		wantErr(t, err, wire.MinorBadOption, reason.DelegationRefused, "evidence for nfs/store@A.TEST")
		// Nor is it ever the service's own.
		own, err := c.Ticket(t.Context(), s.copy(), service, target, TicketOptions{})
		check(t, err)
		checkCred(t, own, service.String(), target.String(), 0)
	})
	t.Run("referral realm", func(t *testing.T) {
		byHost := krb5.Principal{Components: []string{"nfs", "store"}, Type: krb5.NTSrvHst}
		cred, err := c.S4U2Proxy(t.Context(), s.copy(), service, evidence, byHost, TicketOptions{})
		check(t, err)
		checkCred(t, cred, "user@A.TEST", "nfs/store@", 0)
		elsewhere := principal(t, "nfs/store@C.TEST")
		_, err = c.S4U2Proxy(t.Context(), s.copy(), service, evidence, elsewhere, TicketOptions{})
		wantErr(t, err, wire.MinorWrongPrincipal, reason.ServerUnknown)
	})
	t.Run("KDC without S4U", func(t *testing.T) {
		w.kdcs["A.TEST"].noS4U = true
		defer func() { w.kdcs["A.TEST"].noS4U = false }()
		_, err := c.S4U2Proxy(t.Context(), s, service, evidence, target, TicketOptions{Enctypes: []etype.ID{17}})
		wantErr(t, err, wire.MinorReplyModified, reason.KDCReply)
	})
	t.Run("other realms", func(t *testing.T) {
		// A refers to B, B to C, for the host and for the realm; C allows it.
		for _, r := range [][2]string{{"A.TEST", "B.TEST"}, {"B.TEST", "C.TEST"}} {
			w.kdcs[r[0]].referHost["www.c.test"] = r[1]
			w.kdcs[r[0]].via["C.TEST"] = r[1]
		}
		w.kdcs["A.TEST"].delegate[service.String()+" > nfs/www.c.test"] = true
		target := krb5.Principal{Components: []string{"nfs", "www.c.test"}, Type: krb5.NTSrvHst}
		bare := evidence.Clone()
		bare.Flags &^= wire.FlagForwardable
		_, err := c.S4U2Proxy(t.Context(), s, service, bare, target, TicketOptions{})
		wantErr(t, err, wire.MinorBadOption, reason.DelegationRefused, "says NOT_ALLOWED_TO_DELEGATE",
			"asked to act for the user 'user@A.TEST'; the user's ticket is not forwardable")
		w.kdcs["C.TEST"].delegate[service.String()+" > nfs/www.c.test"] = true
		c := w.client() // one that does not remember the refusal
		for _, target.Realm = range []string{"", "C.TEST"} {
			cred, err := c.S4U2Proxy(t.Context(), s, service, evidence, target, TicketOptions{})
			check(t, err)
			checkCred(t, cred, "user@A.TEST", target.String(), 0)
			if string(cred.SecondTicket) != string(evidence.Ticket) {
				t.Error("the second ticket is not the evidence")
			}
		}
		q := w.kdcs["C.TEST"].last()
		if q.server.String() != "nfs/www.c.test@C.TEST" || len(q.tickets) != 1 || string(q.tickets[0]) == string(evidence.Ticket) {
			t.Errorf("realm C was asked for %s with %d tickets", q.server, len(q.tickets))
		}
		target.Realm = "D.TEST"
		_, err = c.S4U2Proxy(t.Context(), s, service, evidence, target, TicketOptions{})
		wantErr(t, err, wire.MinorWrongPrincipal, reason.ServerUnknown)
		// A KDC that does not confirm resource-based delegation has given an ordinary referral.
		w.kdcs["A.TEST"].mutateIssue = func(i *issue) { i.encPadata = nil }
		target.Realm = ""
		_, err = c.S4U2Proxy(t.Context(), s, service, evidence, target, TicketOptions{Enctypes: []etype.ID{17}})
		wantErr(t, err, wire.MinorPadataNoSupp, reason.DelegationRefused)
		w.kdcs["A.TEST"].mutateIssue = nil
	})
}
