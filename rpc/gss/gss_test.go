package gss

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"runtime"
	"strings"
	"testing"
	"time"

	"gssproxyd/keytab"
	"gssproxyd/mech/krb5"
	"gssproxyd/mech/krb5/der"
	"gssproxyd/mech/krb5/etype"
	"gssproxyd/rpc"
	"gssproxyd/xdr"
)

var program = rpc.Program{Number: 2112, Version: 2, Last: 22, Name: func(proc uint32) string { return fmt.Sprintf("PROC%d", proc) }}

const service = "kadmin/admin@EXAMPLE.TEST"

// both are the two ends' keys: an initiator with a ticket, and an acceptor of the service.
func both(t testing.TB) (krb5.Initiator, *krb5.Acceptor) {
	t.Helper()
	long, err := etype.GenerateKey(etype.AES256SHA1)
	check(t, err)
	session, err := etype.GenerateKey(etype.AES256SHA1)
	check(t, err)
	self := krb5.Principal{Realm: "EXAMPLE.TEST", Components: []string{"HTTP", "lab.example.test"}, Type: krb5.NTSrvInst}
	server := krb5.Principal{Realm: "EXAMPLE.TEST", Components: []string{"kadmin", "admin"}, Type: krb5.NTSrvInst}
	now := time.Now()
	end := uint32(now.Add(time.Hour).Unix())
	cred := &krb5.Credential{Client: self, Server: server, KeyType: session.Enctype(), Key: bytes.Clone(session.Secret()), AuthTime: uint32(now.Unix()), EndTime: end}
	plain := tlv(der.Application(3), seq(
		field(0, der.AppendFlags(nil, 0)),
		field(1, typed(int64(session.Enctype()), session.Secret())),
		field(2, der.AppendString(nil, self.Realm)), field(3, name(self)), field(4, typed(1, nil)),
		field(5, der.AppendTime(nil, cred.AuthTime)), field(7, der.AppendTime(nil, end))))
	cipher, err := long.Encrypt(nil, 2, plain)
	check(t, err)
	cred.Ticket = tlv(der.Application(1), seq(
		field(0, der.AppendInt(nil, 5)), field(1, der.AppendString(nil, server.Realm)), field(2, name(server)),
		field(3, seq(field(0, der.AppendInt(nil, int64(long.Enctype()))), field(1, der.AppendInt(nil, 1)), field(2, der.AppendOctets(nil, cipher))))))
	ring := keytab.Compile("FILE:/test/kadm5.keytab", []keytab.Entry{{Principal: service, NameType: 1, KVNO: 1, Enctype: long.Enctype(), Key: bytes.Clone(long.Secret())}})
	return krb5.Initiator{Ticket: cred}, &krb5.Acceptor{Keys: ring}
}

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func tlv(tag der.Tag, parts ...[]byte) []byte {
	return der.AppendValue(nil, tag, bytes.Join(parts, nil))
}
func seq(parts ...[]byte) []byte   { return tlv(der.Sequence, parts...) }
func field(n int, b []byte) []byte { return tlv(der.Context(n), b) }
func typed(kind int64, b []byte) []byte {
	return seq(field(0, der.AppendInt(nil, kind)), field(1, der.AppendOctets(nil, b)))
}

func name(p krb5.Principal) []byte {
	var parts []byte
	for _, c := range p.Components {
		parts = der.AppendString(parts, c)
	}
	return seq(field(0, der.AppendInt(nil, int64(p.Type))), field(1, tlv(der.Sequence, parts)))
}

// answer is what a reply is made of, for spoil to change.
type answer struct {
	xid       uint32
	flavor    xdr.AuthFlavor
	mic       uint32 // what the verifier is of
	spoilMIC  bool
	major     uint32 // of the context
	number    uint32 // beside the results
	results   []byte
	clear     bool                // not encrypted
	token     func([]byte) []byte // that of the context, or of the results
	header    func(*xdr.Reply)
	raw       func(c net.Conn, record []byte) // sends it
	sameAsOld bool                            // sends the reply before this one once more
}

// server is one for a single client. What it does wrong is spoil's doing; it fails the test for what
// the client does wrong.
type server struct {
	t        *testing.T
	acceptor *krb5.Acceptor
	accepted krb5.Accepted
	spoil    func(cred *xdr.GSSCred, a *answer)
	old      []byte
	got      []xdr.GSSCred // of all calls
	done     chan struct{}
}

const window = 32

// dial starts a server, and returns a connection to it. It ends with the connection.
func dial(t *testing.T, acceptor *krb5.Acceptor, spoil func(*xdr.GSSCred, *answer)) (net.Conn, *server) {
	t.Helper()
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	check(t, err)
	defer l.Close()
	nc, err := net.Dial("tcp4", l.Addr().String())
	check(t, err)
	peer, err := l.Accept()
	check(t, err)
	s := &server{t: t, acceptor: acceptor, spoil: spoil, done: make(chan struct{})}
	go func() {
		defer close(s.done)
		defer peer.Close()
		in := bufio.NewReader(peer)
		for {
			record, err := rpc.ReadRecord(in)
			if err != nil {
				return
			}
			if !s.answer(peer, record) {
				return
			}
		}
	}()
	t.Cleanup(func() { nc.Close(); <-s.done })
	return nc, s
}

// answer reports whether there may be more.
func (s *server) answer(nc net.Conn, record []byte) bool {
	d := xdr.NewDecoder(record)
	var h xdr.CallHeader
	h.Decode(d)
	var cred xdr.GSSCred
	cred.Decode(xdr.NewDecoder(h.Cred.Body))
	if d.Err() != nil || h.Cred.Flavor != xdr.AuthRpcsecGSS || cred.Version != 1 || cred.Service != xdr.GSSServicePrivacy || h.Program != program.Number || h.Version != program.Version {
		s.t.Errorf("a call with the header %+v, credential %+v, %v", h, cred, d.Err())
		return false
	}
	cred.Handle = bytes.Clone(cred.Handle)
	s.got = append(s.got, cred)
	c := &s.accepted.Context
	a := answer{xid: h.XID, flavor: xdr.AuthRpcsecGSS, mic: cred.Seq, number: cred.Seq}
	var body func() []byte
	if cred.Procedure == xdr.GSSProcInit {
		var init xdr.GSSInit
		init.Decode(d)
		if err := s.acceptor.Accept(&s.accepted, init.Token, nil); err != nil {
			s.t.Error(err)
			return false
		}
		a.mic = window
		body = func() []byte {
			token := s.accepted.Token
			if a.token != nil {
				token = a.token(token)
			}
			return (&xdr.GSSInitResult{Handle: []byte("handle"), Major: a.major, Window: window, Token: token}).Append(nil)
		}
	} else {
		signed := record[:24+8+(len(h.Cred.Body)+3)&^3]
		if _, err := c.VerifyMIC(signed, h.Verf.Body); err != nil || h.Verf.Flavor != xdr.AuthRpcsecGSS || string(cred.Handle) != "handle" {
			s.t.Errorf("a call with a wrong verifier or handle: %v, %q", err, cred.Handle)
		}
		var args xdr.GSSPrivate
		args.Decode(d)
		plain, conf, _, err := c.Unwrap(nil, args.Token)
		if err != nil || !conf || len(plain) < 4 || binary.BigEndian.Uint32(plain) != cred.Seq {
			s.t.Errorf("a call with wrong arguments: %v, encrypted %t, %x", err, conf, plain)
			return false
		}
		if cred.Procedure == xdr.GSSProcDestroy {
			return false
		}
		a.results = append([]byte("echo "), plain[4:]...)
		body = func() []byte {
			token, err := c.Wrap(nil, append(xdr.AppendUint32(nil, a.number), a.results...), !a.clear)
			if err != nil {
				s.t.Error(err)
			}
			if a.token != nil {
				token = a.token(token)
			}
			return (&xdr.GSSPrivate{Token: token}).Append(nil)
		}
	}
	if s.spoil != nil {
		s.spoil(&cred, &a)
	}
	mic, err := c.GetMIC(nil, xdr.AppendUint32(nil, a.mic))
	if err != nil {
		s.t.Error(err)
		return false
	}
	if a.spoilMIC {
		mic[len(mic)-1] ^= 1
	}
	head := xdr.ReplyHeader{XID: a.xid, MsgType: xdr.MsgReply}
	head.Reply.Accepted.Verf = xdr.OpaqueAuth{Flavor: a.flavor, Body: mic}
	if a.header != nil {
		a.header(&head.Reply)
	}
	reply := append(head.Append(nil), body()...)
	if a.sameAsOld {
		binary.BigEndian.PutUint32(s.old, a.xid)
		reply = s.old
	}
	s.old = reply
	if a.raw != nil {
		a.raw(nc, reply)
		return false
	}
	_, err = nc.Write(append(rpc.AppendMark(nil, len(reply)), reply...))
	return err == nil
}

func TestCalls(t *testing.T) {
	by, acceptor := both(t)
	nc, s := dial(t, acceptor, nil)
	c, err := New(t.Context(), nc, &program, by)
	check(t, err)
	for n := range 3 {
		args := bytes.Repeat([]byte{'a'}, 1000*n)
		results, err := c.Call(t.Context(), uint32(n+1), args)
		if err != nil || string(results) != "echo "+string(args) {
			t.Fatalf("call %d: %v, %d bytes", n, err, len(results))
		}
	}
	check(t, c.Close())
	<-s.done
	for n, cred := range s.got {
		want := xdr.GSSProcData
		switch n {
		case 0:
			want = xdr.GSSProcInit
		case 4:
			want = xdr.GSSProcDestroy
		}
		if cred.Procedure != want || cred.Seq != uint32(n) {
			t.Errorf("call %d has the credential %+v", n, cred)
		}
	}
	if len(s.got) != 5 {
		t.Errorf("%d calls, expected one to begin, three, and one to end", len(s.got))
	}
	if _, err := c.Call(t.Context(), 1, nil); !errors.Is(err, rpc.ErrNotSent) {
		t.Errorf("a call after the end: %v", err)
	}
}

// Whatever a server answers but what it should is an error, and never says that nothing was done.
func TestHostile(t *testing.T) {
	denied := func(r *xdr.Reply) {
		*r = xdr.Reply{Stat: xdr.ReplyDenied, Denied: xdr.Denied{Stat: xdr.RejectAuthError, AuthStat: xdr.AuthStatGSSCredproblem}}
	}
	for _, test := range []struct {
		name  string
		begin bool // the answer to the first token is spoilt, not that to the second call
		spoil func(a *answer)
		want  string
	}{
		{"wrong MIC", false, func(a *answer) { a.spoilMIC = true }, "the verifier of the reply"},
		{"MIC of another number", false, func(a *answer) { a.mic++ }, "the verifier of the reply"},
		{"no MIC", false, func(a *answer) { a.flavor = xdr.AuthNone }, "the verifier of the reply is of the flavor NONE"},
		{"another number within", false, func(a *answer) { a.number-- }, "those of call number 1, not of 2"},
		{"results in clear", false, func(a *answer) { a.clear = true }, "not encrypted"},
		{"results changed", false, func(a *answer) { a.token = func(b []byte) []byte { b[len(b)-1] ^= 1; return b } }, "the results"},
		{"no results", false, func(a *answer) { a.token = func([]byte) []byte { return nil } }, "the results"},
		{"no number within", false, func(a *answer) { a.token = func(b []byte) []byte { return b[:20] } }, "the results"},
		{"a former reply", false, func(a *answer) { a.sameAsOld = true }, "the verifier of the reply"},
		{"another call's reply", false, func(a *answer) { a.xid-- }, "the reply is to call"},
		{"denied", false, func(a *answer) { a.header = denied }, "GSS_CREDPROBLEM"},
		{"an error in place of results", false, func(a *answer) {
			a.header = func(r *xdr.Reply) { r.Accepted.Outcome.Stat = xdr.AcceptProcUnavail }
		}, "PROC_UNAVAIL"},
		{"no answer", false, func(a *answer) { a.raw = func(net.Conn, []byte) {} }, "closed the connection without an answer"},
		{"half an answer", false, func(a *answer) {
			a.raw = func(c net.Conn, b []byte) { c.Write(append(rpc.AppendMark(nil, len(b)), b[:len(b)/2]...)) }
		}, "the reply is not complete"},
		{"an announced gigabyte", false, func(a *answer) {
			a.raw = func(c net.Conn, b []byte) { c.Write([]byte{0xbf, 0xff, 0xff, 0xff, 1, 2, 3}) }
		}, "record is longer than"},
		{"a record that grows", false, func(a *answer) {
			a.raw = func(c net.Conn, b []byte) {
				fragment := make([]byte, 4+64<<10)
				binary.BigEndian.PutUint32(fragment, 64<<10)
				for { // until the client has had enough
					if _, err := c.Write(fragment); err != nil {
						return
					}
				}
			}
		}, "record is longer than"},
		{"fragments without an end", false, func(a *answer) {
			a.raw = func(c net.Conn, b []byte) {
				for {
					if _, err := c.Write(make([]byte, 4<<10)); err != nil {
						return
					}
				}
			}
		}, "more than 1024 fragments"},
		{"no RPC", false, func(a *answer) { a.raw = func(c net.Conn, b []byte) { io.WriteString(c, "\x80\x00\x00\x08HTTP/1.1") } }, "no header"},

		{"wrong MIC of the window", true, func(a *answer) { a.spoilMIC = true }, "the verifier of the reply"},
		{"MIC of another window", true, func(a *answer) { a.mic++ }, "the verifier of the reply"},
		{"no MIC of the window", true, func(a *answer) { a.flavor = xdr.AuthNone }, "the verifier of the reply"},
		{"no proof of the service's key", true, func(a *answer) { a.token = func(b []byte) []byte { b[len(b)-1] ^= 1; return b } }, "AP-REP"},
		{"no token", true, func(a *answer) { a.token = func(b []byte) []byte { return nil } }, "token is missing"},
		{"refused", true, func(a *answer) { a.major = 13 << 16 }, "major status 0xd0000"},
		{"denied at once", true, func(a *answer) { a.header = denied }, "GSS_CREDPROBLEM"},
		{"no answer at all", true, func(a *answer) { a.raw = func(net.Conn, []byte) {} }, "without an answer"},
	} {
		t.Run(test.name, func(t *testing.T) {
			by, acceptor := both(t)
			nc, _ := dial(t, acceptor, func(cred *xdr.GSSCred, a *answer) {
				if test.begin == (cred.Procedure == xdr.GSSProcInit) && (test.begin || cred.Seq == 2) {
					test.spoil(a)
				}
			})
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			c, err := New(t.Context(), nc, &program, by)
			if err == nil {
				defer c.Close()
				_, err = c.Call(t.Context(), 1, []byte("once"))
				if test.begin || err != nil {
					t.Fatalf("not begun as it should: %v", err)
				}
				_, err = c.Call(t.Context(), 2, []byte("twice"))
			}
			runtime.ReadMemStats(&after)
			if err == nil || !strings.Contains(err.Error(), test.want) || errors.Is(err, rpc.ErrNotSent) {
				t.Errorf("error %v, expected %q", err, test.want)
			}
			if n := after.TotalAlloc - before.TotalAlloc; n > 16*rpc.MaxRecord {
				t.Errorf("%d bytes allocated", n)
			}
			if !test.begin {
				if _, err := c.Call(t.Context(), 3, nil); !errors.Is(err, rpc.ErrNotSent) {
					t.Errorf("the next call: %v", err)
				}
			}
		})
	}
}

// A call that waits ends with its context, and may have been executed.
func TestContextEnds(t *testing.T) {
	by, acceptor := both(t)
	ctx, cancel := context.WithCancel(t.Context())
	nc, _ := dial(t, acceptor, func(cred *xdr.GSSCred, a *answer) {
		if cred.Seq == 1 {
			a.raw = func(c net.Conn, _ []byte) {
				cancel()
				io.Copy(io.Discard, c) // until the client hangs up
			}
		}
	})
	c, err := New(ctx, nc, &program, by)
	check(t, err)
	defer c.Close()
	if _, err := c.Call(ctx, 1, nil); !errors.Is(err, context.Canceled) || errors.Is(err, rpc.ErrNotSent) {
		t.Errorf("error %v", err)
	}
	if _, err := c.Call(ctx, 1, nil); !errors.Is(err, rpc.ErrNotSent) {
		t.Errorf("with a context that is over: %v", err)
	}
}

// What does not leave whole was not executed.
func TestNotSent(t *testing.T) {
	by, acceptor := both(t)
	nc, _ := dial(t, acceptor, nil)
	c, err := New(t.Context(), nc, &program, by)
	check(t, err)
	defer c.Close()
	over, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := c.Call(over, 1, nil); !errors.Is(err, rpc.ErrNotSent) || !errors.Is(err, context.Canceled) {
		t.Errorf("with a context that is over: %v", err)
	}
	c.seq = xdr.GSSMaxSeq - 2
	if _, err := c.Call(t.Context(), 1, nil); err != nil {
		t.Errorf("with the last number: %v", err)
	}
	if _, err := c.Call(t.Context(), 1, nil); !errors.Is(err, rpc.ErrNotSent) {
		t.Errorf("without a number: %v", err)
	}

	by, acceptor = both(t)
	nc, _ = dial(t, acceptor, nil)
	if c, err = New(t.Context(), nc, &program, by); err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.Call(t.Context(), 1, make([]byte, rpc.MaxRecord)); !errors.Is(err, rpc.ErrNotSent) {
		t.Errorf("a call that is too long: %v", err)
	}
}

// said is a connection whose peer has said all it will.
type said struct {
	net.Conn
	io.Reader
}

func (s said) Read(b []byte) (int, error)  { return s.Reader.Read(b) }
func (s said) Write(b []byte) (int, error) { return len(b), nil }
func (s said) Close() error                { return nil }

// FuzzReply: whatever a server sends, there is an error or results, and no panic.
func FuzzReply(f *testing.F) {
	by, acceptor := both(f)
	by.Flags = 2
	var ours krb5.Initiated
	var theirs krb5.Accepted
	check(f, by.Init(&ours))
	check(f, acceptor.Accept(&theirs, ours.Token, nil))
	check(f, by.Continue(&ours, ours.Partial, theirs.Token))
	mic, err := theirs.Context.GetMIC(nil, xdr.AppendUint32(nil, 1))
	check(f, err)
	token, err := theirs.Context.Wrap(nil, append(xdr.AppendUint32(nil, 1), "results"...), true)
	check(f, err)
	head := xdr.ReplyHeader{XID: 1, MsgType: xdr.MsgReply}
	head.Reply.Accepted.Verf = xdr.OpaqueAuth{Flavor: xdr.AuthRpcsecGSS, Body: mic}
	reply := (&xdr.GSSPrivate{Token: token}).Append(head.Append(nil))
	good := append(rpc.AppendMark(nil, len(reply)), reply...)
	f.Add(good)
	f.Add(good[:len(good)-1])
	f.Add([]byte{0x80, 0, 0, 0})
	f.Fuzz(func(t *testing.T, data []byte) {
		nc := said{Reader: bytes.NewReader(data)}
		c := &Client{nc: nc, in: bufio.NewReader(nc), program: &program, handle: []byte("handle")}
		c.context.Context = ours.Context
		results, err := c.Call(t.Context(), 1, nil)
		if bytes.HasPrefix(data, good) && err != nil || err == nil && string(results) != "results" {
			t.Errorf("%q, %v", results, err)
		}
	})
}
