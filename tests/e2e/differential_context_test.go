package e2e

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"gssproxyd/mech"
	"gssproxyd/tests/lab"
	"gssproxyd/xdr"
)

// shiftedTokens are tokens of other times for the service, n of each kind.
func shiftedTokens(t *testing.T, n int) map[string][][]byte {
	t.Helper()
	r := realm(t)
	principal := "svc/" + lab.Host
	made := make(map[string][][]byte)
	for what, offset := range map[string]time.Duration{"expired": -24 * time.Hour, "not yet valid": 24 * time.Hour, "slow clock": -time.Hour} {
		env, err := r.Shifted(offset, "alice", "alice", "10h", principal)
		check(t, err)
		made[what], err = tool(t, lab.Nobody, env...).Tokens(n, service, lab.Usual|lab.Mutual, nil)
		check(t, err)
	}
	env, err := r.Kinit("alice", "alice")
	check(t, err)
	_, err = r.Run(lab.Root, env, "/usr/bin/kvno", principal)
	check(t, err)
	made["fast clock"], err = tool(t, lab.Nobody, append(r.ShiftEnv(time.Hour), env...)...).Tokens(n, service, lab.Usual|lab.Mutual, nil)
	check(t, err)
	return made
}

// TestDifferentialAccept: ACCEPT_SEC_CONTEXT with good tokens of every kind and with everything
// that can be wrong with one.
func TestDifferentialAccept(t *testing.T) {
	p := newPair(t, lab.Options{})
	client := alice(t, "-f", "-r", "2d") // renewable, for contexts with all of a ticket's times
	// accept gives each daemon a token of its own.
	accept := func(what string, token func() []byte, change func(s *side, a *xdr.ArgAcceptSecContext)) {
		t.Helper()
		p.compare(t, "ACCEPT_SEC_CONTEXT "+what, xdr.ProcAcceptSecContext, func(s *side) xdr.Message {
			a := lab.AcceptArg(token(), nil)
			if change != nil {
				change(s, a)
			}
			return a
		})
	}
	fresh := func(target string, flags uint32, bindings []byte) func() []byte {
		return func() []byte {
			t.Helper()
			tokens, err := client.Tokens(1, target, flags, bindings)
			check(t, err)
			return tokens[0]
		}
	}
	always := func(token []byte) func() []byte { return func() []byte { return token } }
	usual := fresh(service, lab.Usual|lab.Mutual, nil)

	for _, n := range enctypes {
		check(t, client.Enctypes(n))
		for _, flags := range []uint32{lab.Usual | lab.Mutual, lab.Usual, lab.Mutual, 0, lab.Usual | lab.Mutual | lab.Deleg, lab.Conf, 0x1000 | lab.Usual | lab.Mutual, 0x6000 | lab.Usual} {
			accept(fmt.Sprintf("%d flags %#x", n, flags), fresh(serviceOf(n), flags, nil), nil)
		}
		for _, theirs := range []string{"", "ours", "others"} {
			for _, sent := range []string{"", "ours"} {
				accept(fmt.Sprintf("%d bindings %q checked against %q", n, theirs, sent), fresh(serviceOf(n), lab.Usual, []byte(theirs)),
					func(_ *side, a *xdr.ArgAcceptSecContext) {
						if sent != "" {
							a.InputCB = xdr.Some(xdr.CB{ApplicationData: []byte(sent)})
						}
					})
			}
		}
	}
	check(t, client.Enctypes(18))
	accept("bindings with addresses", fresh(service, lab.Usual, []byte("ours")), func(_ *side, a *xdr.ArgAcceptSecContext) {
		a.InputCB = xdr.Some(xdr.CB{InitiatorAddrtype: 2, InitiatorAddress: []byte{10, 0, 0, 1}, ApplicationData: []byte("ours")})
	})
	accept("empty bindings", usual, func(_ *side, a *xdr.ArgAcceptSecContext) { a.InputCB = xdr.Some(xdr.CB{}) })
	accept("delegated credential wanted, none sent", usual, func(_ *side, a *xdr.ArgAcceptSecContext) { a.RetDelegCred = true })
	accept("a context handle, which is ignored", usual, func(_ *side, a *xdr.ArgAcceptSecContext) {
		a.ContextHandle = xdr.Some(xdr.Ctx{ExportedContextToken: []byte("garbage"), State: []byte("x")})
	})
	option := func(name, value string) func(*side, *xdr.ArgAcceptSecContext) {
		return func(_ *side, a *xdr.ArgAcceptSecContext) {
			a.CallCtx.Options = append(a.CallCtx.Options, xdr.Option{Option: []byte(name), Value: []byte(value)})
		}
	}
	accept("an unknown call option", usual, option("x\x00", "y\x00"))
	accept("exported_context_type unknown", usual, option("exported_context_type\x00", "y\x00"))
	accept("exported_context_type without NUL", usual, option("exported_context_type", "linux_lucid_v1"))
	accept("exported_creds_type unknown", usual, option("exported_creds_type\x00", "y\x00"))

	// Replays: the token twice to each.
	once := make(map[*side][]byte)
	for _, s := range []*side{p.c, p.ours} {
		once[s] = usual()
	}
	for _, what := range []string{"first time", "replay", "replay again"} {
		p.compare(t, "ACCEPT_SEC_CONTEXT "+what, xdr.ProcAcceptSecContext, func(s *side) xdr.Message { return lab.AcceptArg(once[s], nil) })
	}

	shifted := shiftedTokens(t, 2)
	for _, what := range []string{"expired", "not yet valid", "slow clock", "fast clock"} {
		i := -1
		accept(what, func() []byte { i++; return shifted[what][i] }, nil)
	}

	// Services the keytab has no key, or the wrong key, for.
	check(t, realm(t).RandKey("absent/"+lab.Host))
	accept("a service not in the keytab", fresh("absent@"+lab.Host, lab.Usual, nil), nil)
	stale := staleKeytab(t)
	for what, target := range map[string]string{"key changed, kvno too": "stale@" + lab.Host, "key changed, kvno not": "liar@" + lab.Host} {
		q := newPair(t, lab.Options{Keytab: stale})
		q.compare(t, "ACCEPT_SEC_CONTEXT "+what, xdr.ProcAcceptSecContext, func(*side) xdr.Message {
			return lab.AcceptArg(fresh(target, lab.Usual, nil)(), nil)
		})
	}
	q := newPair(t, lab.Options{Keytab: filepath.Join(realm(t).Dir, "no-such-keytab")})
	q.compare(t, "ACCEPT_SEC_CONTEXT no keytab", xdr.ProcAcceptSecContext, func(*side) xdr.Message { return lab.AcceptArg(usual(), nil) })
	q.compare(t, "ACQUIRE_CRED no keytab", xdr.ProcAcquireCred, acquire(nil))

	// Tokens that are none.
	good := usual()
	accept("empty", always(nil), nil)
	accept("one byte", always([]byte{0x60}), nil)
	accept("garbage", always([]byte("GET / HTTP/1.1\r\n\r\n")), nil)
	accept("zeros", always(make([]byte, 100)), nil)
	accept("only a frame", always([]byte("\x60\x0b\x06\x09\x2a\x86\x48\x86\xf7\x12\x01\x02\x02")), nil)
	accept("only a frame and its id", always([]byte("\x60\x0d\x06\x09\x2a\x86\x48\x86\xf7\x12\x01\x02\x02\x01\x00")), nil)
	accept("SPNEGO", always([]byte("\x60\x10\x06\x06\x2b\x06\x01\x05\x05\x02\xa0\x06\x30\x04\xa0\x02\x30\x00")), nil)
	accept("unknown mechanism", always([]byte("\x60\x06\x06\x02\x2a\x03\x01\x00")), nil)
	accept("NTLM", always([]byte("NTLMSSP\x00\x01\x00\x00\x00\x07\x82\x08\xa2\x00\x00\x00\x00")), nil)
	accept("an AP-REP's id", always(replace(good, "\x01\x00\x6e", "\x02\x00\x6e")), nil)
	accept("a KRB-ERROR's id", always(replace(good, "\x01\x00\x6e", "\x03\x00\x6e")), nil)
	accept("an unknown id", always(replace(good, "\x01\x00\x6e", "\x09\x00\x6e")), nil)
	accept("protocol version 4", always(replace(good, "\xa0\x03\x02\x01\x05\xa1\x03\x02\x01\x0e", "\xa0\x03\x02\x01\x04\xa1\x03\x02\x01\x0e")), nil)
	accept("message type 13", always(replace(good, "\xa1\x03\x02\x01\x0e", "\xa1\x03\x02\x01\x0d")), nil)
	accept("a byte more", always(append(append([]byte{}, good...), 0)), nil)
	accept("last byte changed", always(flip(good, len(good)-1)), nil)
	accept("ticket changed", always(flip(good, len(good)/2)), nil)
	for _, n := range []int{1, 2, 5, 13, 15, 17, 19, 30, 60, 100, 200, 400, len(good) - 1} {
		accept(fmt.Sprintf("cut short at %d", n), always(good[:n]), nil)
	}
	// The KRB5 framing may have other OIDs.
	for _, o := range []mech.OID{mech.KRB5Old, mech.KRB5Wrong, mech.IAKERB} {
		accept(fmt.Sprintf("framed as %v", o), func() []byte { return reframe(usual(), o) }, nil)
	}

	// With a credential handle: any name, the right one, another, one that does not open.
	handle := func(n *xdr.Name) map[*side]xdr.Cred {
		t.Helper()
		c, ours := p.compare(t, "ACQUIRE_CRED for ACCEPT_SEC_CONTEXT", xdr.ProcAcquireCred, acquire(func(a *xdr.ArgAcquireCred) {
			if n != nil {
				a.DesiredName = xdr.Some(*n)
			}
		}))
		return map[*side]xdr.Cred{p.c: c.(*xdr.ResAcquireCred).OutputCredHandle.V, p.ours: ours.(*xdr.ResAcquireCred).OutputCredHandle.V}
	}
	hostbased, other, short := name(service, mech.NTHostbased), name(serviceOf(17), mech.NTHostbased), name("svc", mech.NTHostbased)
	for _, c := range []struct {
		what string
		name *xdr.Name
	}{{"no name", nil}, {"its name", &hostbased}, {"its name without host", &short}, {"another's name", &other}} {
		h := handle(c.name)
		accept("with a handle of "+c.what, usual, func(s *side, a *xdr.ArgAcceptSecContext) { a.CredHandle = xdr.Some(h[s]) })
	}
	accept("with a handle that does not open", usual, func(s *side, a *xdr.ArgAcceptSecContext) {
		a.CredHandle = xdr.Some(xdr.Cred{CredHandleReference: []byte("not one of yours, whoever you are, is it?")})
	})
	accept("with an empty handle", usual, func(s *side, a *xdr.ArgAcceptSecContext) { a.CredHandle = xdr.Some(xdr.Cred{}) })
}

// staleKeytab has for stale/ a key of kvno 1 where the KDC has 2, and for liar/ another key of the
// same kvno.
func staleKeytab(t *testing.T) string {
	t.Helper()
	r := realm(t)
	stale, liar := "stale/"+lab.Host, "liar/"+lab.Host
	check(t, r.RandKey(stale))
	check(t, r.RandKey(liar))
	path, err := r.Keytab("stale-keytab", stale, liar)
	check(t, err)
	check(t, r.Rotate(stale))
	b, err := os.ReadFile(path)
	check(t, err)
	// The keys of liar/ are what follows its name: change a byte of each, nothing but the last is
	// fixed there.
	for i := 0; ; {
		at := bytes.Index(b[i:], []byte("liar"))
		if at < 0 {
			break
		}
		i += at + len("liar")
		// name type, timestamp, kvno, enctype and key length follow host: 2+len(host)+4+4+1+2+2
		b[i+2+len(lab.Host)+4+4+1+2+2+3] ^= 0x55
	}
	check(t, os.WriteFile(path, b, 0o600))
	return path
}

func replace(token []byte, from, to string) []byte {
	if !bytes.Contains(token, []byte(from)) {
		panic(fmt.Sprintf("no %x in the token", from))
	}
	return bytes.Replace(token, []byte(from), []byte(to), 1)
}

func flip(token []byte, at int) []byte {
	b := bytes.Clone(token)
	b[at] ^= 1
	return b
}

// reframe puts the AP-REQ of a token into the frame of another mechanism.
func reframe(token []byte, o mech.OID) []byte {
	at := bytes.Index(token, []byte("\x01\x00\x6e"))
	inner := append([]byte{6, byte(len(o))}, string(o)+string(token[at:])...)
	return append([]byte{0x60, 0x82, byte(len(inner) >> 8), byte(len(inner))}, inner...)
}

// TestDifferentialMessages: GET_MIC, VERIFY, WRAP, UNWRAP and WRAP_SIZE_LIMIT on established
// contexts. The tokens the daemons make are checked by the initiator, MIT's library; theirs are
// its.
func TestDifferentialMessages(t *testing.T) {
	p := newPair(t, lab.Options{})
	client := alice(t)
	for _, n := range enctypes {
		for _, flags := range []uint32{lab.Usual | lab.Mutual, lab.Usual, lab.Conf | lab.Integ | lab.Mutual} {
			t.Run(fmt.Sprintf("%d/%#x", n, flags), func(t *testing.T) {
				check(t, client.Enctypes(n))
				for _, s := range []*side{p.c, p.ours} {
					id, token, err := client.Init(serviceOf(n), flags, nil)
					check(t, err)
					res, err := s.Accept(token, nil)
					check(t, err)
					check(t, lab.StatusError(res.Status))
					if flags&lab.Mutual != 0 {
						_, _, err = client.Step(id, res.OutputToken.V)
						check(t, err)
					}
					s.id, s.ctx = id, res.ContextHandle.V
				}
				testMessages(t, p, client)
			})
		}
	}
}

func testMessages(t *testing.T, p *pair, client *lab.Tool) {
	// each runs f for the two daemons and their replies.
	each := func(c, ours xdr.Message, f func(s *side, res xdr.Message)) {
		f(p.c, c)
		f(p.ours, ours)
	}
	// move takes the context on: its sequence numbers have moved.
	move := func(s *side, ctx xdr.Opt[xdr.Ctx]) {
		if ctx.Set {
			s.ctx = ctx.V
		}
	}
	msg := []byte("a message of the tests")
	for range 3 {
		c, ours := p.compare(t, "GET_MIC", xdr.ProcGetMic, func(s *side) xdr.Message {
			return &xdr.ArgGetMic{ContextHandle: s.ctx, MessageBuffer: msg}
		})
		each(c, ours, func(s *side, res xdr.Message) {
			r := res.(*xdr.ResGetMic)
			if major, err := client.Verify(s.id, msg, r.TokenBuffer); err != nil || major != 0 {
				t.Errorf("%s: the initiator does not verify the MIC: %#x %v", s.kind, major, err)
			}
			move(s, r.ContextHandle)
		})
		for _, conf := range []bool{true, false} {
			c, ours = p.compare(t, "WRAP", xdr.ProcWrap, func(s *side) xdr.Message {
				return &xdr.ArgWrap{ContextHandle: s.ctx, ConfReq: conf, MessageBuffer: [][]byte{msg}}
			})
			each(c, ours, func(s *side, res xdr.Message) {
				r := res.(*xdr.ResWrap)
				if len(r.TokenBuffer) != 1 {
					t.Fatalf("%s: %d tokens", s.kind, len(r.TokenBuffer))
				}
				got, sealed, major, err := client.Unwrap(s.id, r.TokenBuffer[0])
				if err != nil || major != 0 || sealed != conf || !bytes.Equal(got, msg) {
					t.Errorf("%s: the initiator unwraps %q, confidential %v, major %#x: %v", s.kind, got, sealed, major, err)
				}
				move(s, r.ContextHandle)
			})
		}
		mics, wraps := make(map[*side][]byte), make(map[*side][]byte)
		for _, s := range []*side{p.c, p.ours} {
			var err error
			mics[s], err = client.MIC(s.id, msg)
			check(t, err)
			wraps[s], err = client.Wrap(s.id, true, msg)
			check(t, err)
		}
		c, ours = p.compare(t, "VERIFY", xdr.ProcVerify, func(s *side) xdr.Message {
			return &xdr.ArgVerifyMic{ContextHandle: s.ctx, MessageBuffer: msg, TokenBuffer: mics[s]}
		})
		each(c, ours, func(s *side, res xdr.Message) { move(s, res.(*xdr.ResVerifyMic).ContextHandle) })
		p.compare(t, "VERIFY again", xdr.ProcVerify, func(s *side) xdr.Message {
			return &xdr.ArgVerifyMic{ContextHandle: s.ctx, MessageBuffer: msg, TokenBuffer: mics[s]}
		})
		c, ours = p.compare(t, "UNWRAP", xdr.ProcUnwrap, func(s *side) xdr.Message {
			return &xdr.ArgUnwrap{ContextHandle: s.ctx, TokenBuffer: [][]byte{wraps[s]}, QopState: 5}
		})
		each(c, ours, func(s *side, res xdr.Message) { move(s, res.(*xdr.ResUnwrap).ContextHandle) })
		p.compare(t, "UNWRAP again", xdr.ProcUnwrap, func(s *side) xdr.Message {
			return &xdr.ArgUnwrap{ContextHandle: s.ctx, TokenBuffer: [][]byte{wraps[s]}}
		})
		for what, change := range map[string]func([]byte) []byte{
			"changed":   func(b []byte) []byte { return flip(b, len(b)-1) },
			"id":        func(b []byte) []byte { return flip(b, 0) },
			"flags":     func(b []byte) []byte { return flip(b, 2) },
			"sequence":  func(b []byte) []byte { return flip(b, 15) },
			"empty":     func([]byte) []byte { return nil },
			"cut short": func(b []byte) []byte { return b[:10] },
			"header":    func(b []byte) []byte { return b[:16] },
			"longer":    func(b []byte) []byte { return append(bytes.Clone(b), 0) },
			"garbage":   func([]byte) []byte { return []byte("this is not a token of any kind") },
		} {
			p.compare(t, "VERIFY "+what, xdr.ProcVerify, func(s *side) xdr.Message {
				return &xdr.ArgVerifyMic{ContextHandle: s.ctx, MessageBuffer: msg, TokenBuffer: change(mics[s])}
			})
			p.compare(t, "UNWRAP "+what, xdr.ProcUnwrap, func(s *side) xdr.Message {
				return &xdr.ArgUnwrap{ContextHandle: s.ctx, TokenBuffer: [][]byte{change(wraps[s])}}
			})
		}
	}
	for _, conf := range []bool{true, false} {
		for _, size := range []uint64{0, 1, 16, 28, 59, 60, 61, 76, 77, 100, 1000, 65536, 1 << 31, 1<<32 - 1} {
			p.compare(t, fmt.Sprintf("WRAP_SIZE_LIMIT %v %d", conf, size), xdr.ProcWrapSizeLimit, func(s *side) xdr.Message {
				return &xdr.ArgWrapSizeLimit{ContextHandle: s.ctx, ConfReq: conf, ReqOutputSize: size}
			})
		}
	}
	p.compare(t, "VERIFY another message", xdr.ProcVerify, func(s *side) xdr.Message {
		mic, err := client.MIC(s.id, []byte("another"))
		check(t, err)
		return &xdr.ArgVerifyMic{ContextHandle: s.ctx, MessageBuffer: msg, TokenBuffer: mic}
	})
	for _, q := range []uint64{1, 1 << 31} {
		p.compare(t, "GET_MIC with a quality", xdr.ProcGetMic, func(s *side) xdr.Message {
			return &xdr.ArgGetMic{ContextHandle: s.ctx, MessageBuffer: msg, QopReq: q}
		})
		p.compare(t, "WRAP with a quality", xdr.ProcWrap, func(s *side) xdr.Message {
			return &xdr.ArgWrap{ContextHandle: s.ctx, MessageBuffer: [][]byte{msg}, QopState: q}
		})
	}
	p.compare(t, "GET_MIC of nothing", xdr.ProcGetMic, func(s *side) xdr.Message { return &xdr.ArgGetMic{ContextHandle: s.ctx} })
	p.compare(t, "WRAP of an empty message", xdr.ProcWrap, func(s *side) xdr.Message {
		return &xdr.ArgWrap{ContextHandle: s.ctx, ConfReq: true, MessageBuffer: [][]byte{{}}}
	})
	p.compare(t, "WRAP of two messages", xdr.ProcWrap, func(s *side) xdr.Message {
		return &xdr.ArgWrap{ContextHandle: s.ctx, ConfReq: true, MessageBuffer: [][]byte{msg, msg}}
	})
	// A context that is none.
	for what, token := range map[string][]byte{
		"no context":       nil,
		"garbage context":  []byte("garbage"),
		"context of zeros": make([]byte, 1000),
	} {
		ctx := xdr.Ctx{ExportedContextToken: token}
		p.compare(t, what+": GET_MIC", xdr.ProcGetMic, func(*side) xdr.Message { return &xdr.ArgGetMic{ContextHandle: ctx} })
		p.compare(t, what+": VERIFY", xdr.ProcVerify, func(*side) xdr.Message { return &xdr.ArgVerifyMic{ContextHandle: ctx} })
		p.compare(t, what+": WRAP", xdr.ProcWrap, func(*side) xdr.Message {
			return &xdr.ArgWrap{ContextHandle: ctx, MessageBuffer: [][]byte{msg}}
		})
		p.compare(t, what+": UNWRAP", xdr.ProcUnwrap, func(*side) xdr.Message {
			return &xdr.ArgUnwrap{ContextHandle: ctx, TokenBuffer: [][]byte{msg}}
		})
		p.compare(t, what+": WRAP_SIZE_LIMIT", xdr.ProcWrapSizeLimit, func(*side) xdr.Message { return &xdr.ArgWrapSizeLimit{ContextHandle: ctx} })
	}
}
