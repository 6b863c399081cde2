package e2e

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"gssproxyd/mech"
	"gssproxyd/mech/krb5/der"
	"gssproxyd/tests/lab"
	"gssproxyd/xdr"
)

// mark puts a record mark before a fragment.
func mark(last bool, body []byte) []byte {
	n := uint32(len(body))
	if last {
		n |= 1 << 31
	}
	return append(binary.BigEndian.AppendUint32(nil, n), body...)
}

// header is a call's header and nothing else.
func header(change func(*xdr.CallHeader)) []byte {
	h := xdr.CallHeader{XID: 7, MsgType: xdr.MsgCall, RPCVersion: 2, Program: xdr.Program, Version: xdr.Version,
		Procedure: uint32(xdr.ProcIndicateMechs)}
	change(&h)
	return h.Append(nil)
}

// indicate is a good call's record without its mark.
func indicate() []byte { return lab.Record(9, xdr.ProcIndicateMechs, &xdr.ArgIndicateMechs{})[4:] }

// alive makes a call that must be answered.
func alive(t testing.TB, w *lab.Wire) {
	t.Helper()
	var res xdr.ResIndicateMechs
	if err := w.Call(xdr.ProcIndicateMechs, &xdr.ArgIndicateMechs{}, &res); err != nil {
		t.Fatalf("the next call: %v", err)
	}
	if len(res.Mechs) == 0 {
		t.Error("the next call: no mechanisms")
	}
}

// closed reports whether the daemon has ended the connection.
func closed(w *lab.Wire) bool {
	_, err := w.Receive()
	return errors.Is(err, io.EOF) || errors.Is(err, syscall.ECONNRESET)
}

// defined says what is wrong with a call's status, if anything: it is an error of the GSS-API with
// a text, and a minor text that begins with a reason's id, or it is none.
func defined(s xdr.Status) error {
	text := bytes.TrimSuffix(s.MinorStatusString, []byte{0})
	switch {
	case s.MajorStatus == 0:
		return nil
	case !mech.Major(s.MajorStatus).Failed() || s.MajorStatus>>32 != 0:
		return fmt.Errorf("no error: %w", lab.StatusError(s))
	case len(s.MajorStatusString) < 2 || !reasonID.Match(text):
		return fmt.Errorf("no text, or no reason: %w", lab.StatusError(s))
	}
	return nil
}

// TestHostileRecords sends what no client sends. Each gets the answer of the table, after which the
// connection serves, or it is closed without an answer, and a new connection serves.
func TestHostileRecords(t *testing.T) {
	needOurs(t)
	d := daemon(t, "ours", lab.Options{})
	const closes = ""
	for _, c := range []struct {
		name string
		send []byte
		want string // hex of the answer behind the mark, or closes
	}{
		{"length 0", mark(true, nil), closes},
		{"xid only", mark(true, []byte{0, 0, 0, 1}), closes},
		{"header cut short", mark(true, indicate()[:39]), closes},
		{"a reply", mark(true, header(func(h *xdr.CallHeader) { h.MsgType = xdr.MsgReply })), closes},
		{"message type 7", mark(true, header(func(h *xdr.CallHeader) { h.MsgType = 7 })), closes},
		{"credential of 401 bytes", mark(true, header(func(h *xdr.CallHeader) { h.Cred.Body = make([]byte, 401) })), closes},
		{"verifier of 2^32-1 bytes", mark(true, append(header(func(*xdr.CallHeader) {})[:36], 0xff, 0xff, 0xff, 0xff)), closes},
		{"1 MiB of zeros", mark(true, make([]byte, 1<<20)), "00000000 00000001 00000001 00000000 00000002 00000002"},
		{"1 MiB + 1", mark(true, make([]byte, 1<<20+1))[:1<<10], closes},
		{"2^31 - 1", []byte{0xff, 0xff, 0xff, 0xff, 1, 2, 3, 4}, closes},
		{"1 MiB + 1 in two fragments", append(mark(false, make([]byte, 1<<20)), mark(true, make([]byte, 1))...), closes},
		{"RPC version 3", mark(true, header(func(h *xdr.CallHeader) { h.RPCVersion = 3 })), "00000007 00000001 00000001 00000000 00000002 00000002"},
		{"another program", mark(true, header(func(h *xdr.CallHeader) { h.Program = 100003 })), "00000007 00000001 00000000 00000000 00000000 00000001"},
		{"another version", mark(true, header(func(h *xdr.CallHeader) { h.Version = 2 })), "00000007 00000001 00000000 00000000 00000000 00000002 00000001 00000001"},
		{"procedure 16", mark(true, header(func(h *xdr.CallHeader) { h.Procedure = 16 })), "00000007 00000001 00000000 00000000 00000000 00000003"},
		{"procedure 2^32-1", mark(true, header(func(h *xdr.CallHeader) { h.Procedure = 1<<32 - 1 })), "00000007 00000001 00000000 00000000 00000000 00000003"},
		{"credential AUTH_SYS", mark(true, header(func(h *xdr.CallHeader) { h.Cred.Flavor = xdr.AuthSys })), "00000007 00000001 00000001 00000001 00000007"},
		{"no arguments", mark(true, header(func(*xdr.CallHeader) {})), "00000007 00000001 00000000 00000000 00000000 00000004"},
		{"procedure 0", mark(true, header(func(h *xdr.CallHeader) { h.Procedure = 0 })), "00000007 00000001 00000000 00000000 00000000 00000000"},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := wire(t, d)
			_, err := w.Write(c.send)
			if c.want == closes {
				if !closed(w) {
					t.Error("not closed")
				}
				w = wire(t, d)
			} else {
				check(t, err)
				got, err := w.Receive()
				if want := strings.ReplaceAll(c.want, " ", ""); err != nil || hex.EncodeToString(got) != want {
					t.Errorf("answer %x (%v), want %s", got, err, want)
				}
			}
			alive(t, w)
		})
	}

	t.Run("fragments, byte by byte", func(t *testing.T) {
		w := wire(t, d)
		body := indicate()
		send := append(append(mark(false, body[:1]), mark(false, nil)...), append(mark(false, body[1:30]), mark(true, body[30:])...)...)
		for i := range send {
			_, err := w.Write(send[i : i+1])
			check(t, err)
		}
		got, err := w.Receive()
		if err != nil || len(got) < 1000 {
			t.Errorf("answer of %d bytes, %v", len(got), err)
		}
		alive(t, w)
	})
	t.Run("two calls in one write", func(t *testing.T) {
		w := wire(t, d)
		one := mark(true, indicate())
		_, err := w.Write(append(append([]byte{}, one...), one...))
		check(t, err)
		for range 2 {
			got, err := w.Receive()
			if err != nil || len(got) < 1000 {
				t.Errorf("answer of %d bytes, %v", len(got), err)
			}
		}
		alive(t, w)
	})
	t.Run("gone in the middle", func(t *testing.T) {
		for n := range 60 {
			w := wire(t, d)
			w.Write(mark(true, indicate())[:min(n, 55)])
			w.Close()
		}
		alive(t, wire(t, d))
	})
}

// TestHostileArguments gives every procedure arguments that do not decode, lack what they need, or
// are noise. Each gets a defined answer on a connection that lives: what decodes is done, or
// refused with a reason.
func TestHostileArguments(t *testing.T) {
	needOurs(t)
	d := daemon(t, "ours", lab.Options{})
	w := wire(t, d)
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 1))

	needsNothing := []xdr.Proc{xdr.ProcIndicateMechs, xdr.ProcGetCallContext, xdr.ProcAcquireCred}
	for proc := xdr.ProcIndicateMechs; proc <= xdr.ProcWrapSizeLimit; proc++ {
		// Everything absent or empty: a missing target name, no token, no context.
		res := proc.Res()
		if err := w.Call(proc, proc.Arg(), res); err != nil {
			t.Fatalf("%v with nothing in it: %v", proc, err)
		}
		status := *statusOf(res)
		if err := defined(status); err != nil || (status.MajorStatus == 0) != slices.Contains(needsNothing, proc) {
			t.Errorf("%v with nothing in it: %v (%v)", proc, lab.StatusError(status), err)
		}
		// The same cut short at every byte; whole it is answered above.
		whole := lab.Record(1, proc, proc.Arg())[4:]
		for n := 40; n < len(whole); n += 4 {
			if got := exchangeRaw(t, w, proc, whole[:n]); got != xdr.AcceptGarbageArgs {
				t.Errorf("%v cut at byte %d of %d: %v", proc, n, len(whole), got)
			}
		}
		// Huge counts and lengths in every word.
		for n := 40; n < len(whole); n += 4 {
			for _, word := range []uint32{1<<32 - 1, 1 << 31, 1<<31 - 1, 1 << 28, 1 << 20, 2} {
				b := append([]byte{}, whole...)
				binary.BigEndian.PutUint32(b[n:], word)
				exchangeRaw(t, w, proc, b)
			}
		}
		for range 200 {
			b := append([]byte{}, whole[:40]...)
			for range rnd.IntN(80) {
				b = binary.BigEndian.AppendUint32(b, rnd.Uint32()>>(8*rnd.IntN(4)))
			}
			exchangeRaw(t, w, proc, b)
		}
	}
	alive(t, w)
}

// exchangeRaw sends a record with a call of the procedure and returns the accept_stat of the
// answer, which there must be. Where results follow they are whole, and their status is defined.
func exchangeRaw(t *testing.T, w *lab.Wire, proc xdr.Proc, record []byte) xdr.AcceptStat {
	t.Helper()
	_, err := w.Write(mark(true, record))
	check(t, err)
	b, err := w.Receive()
	if err != nil {
		t.Fatalf("no answer (%v) to %x", err, record)
	}
	dec := xdr.NewDecoder(b)
	var h xdr.ReplyHeader
	h.Decode(dec)
	if dec.Err() != nil || h.Reply.Stat != xdr.ReplyAccepted {
		t.Fatalf("answer %x to %x", b, record)
	}
	if lab.Success(h.Reply) {
		res := proc.Res()
		res.Decode(dec)
		if dec.Err() != nil || dec.Remaining() != 0 {
			t.Fatalf("answer %x to %x: results %v, %d bytes after them", b, record, dec.Err(), dec.Remaining())
		}
		if err := defined(*statusOf(res)); err != nil {
			t.Errorf("%v %x: %v", proc, record, err)
		}
	}
	return h.Reply.Accepted.Outcome.Stat
}

// TestHostileTokens: tokens that have crashed other implementations, and a good token cut short at
// every byte and changed in every byte. None is accepted, each is refused with a status and a
// reason.
func TestHostileTokens(t *testing.T) {
	needOurs(t)
	d := daemon(t, "ours", lab.Options{})
	w := wire(t, d)
	refused := func(name string, token []byte) {
		t.Helper()
		res, err := w.Accept(token, nil)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if err := defined(res.Status); err != nil || res.Status.MajorStatus == 0 || res.ContextHandle.Set {
			t.Errorf("%s: %v, context %v (%v)", name, lab.StatusError(res.Status), res.ContextHandle.Set, err)
		}
	}
	files, err := filepath.Glob("testdata/crashers/*.hex")
	check(t, err)
	if len(files) == 0 {
		t.Fatal("no crashers")
	}
	frame := func(apreq []byte) []byte {
		return der.AppendValue(nil, der.Application(0), append([]byte("\x06\x09\x2a\x86\x48\x86\xf7\x12\x01\x02\x02\x01\x00"), apreq...))
	}
	for _, f := range files {
		text, err := os.ReadFile(f)
		check(t, err)
		b, err := hex.DecodeString(strings.TrimSpace(string(text)))
		check(t, err)
		refused(f, b)
		refused(f+" framed", frame(b))
	}
	client := alice(t)
	tokens, err := client.Tokens(3, service, lab.Usual|lab.Mutual, []byte("bindings"))
	check(t, err)
	good := tokens[0]
	for n := range good {
		refused("cut short", good[:n])
	}
	for i := range good {
		for _, x := range []byte{1, 0x80} {
			b := append([]byte{}, good...)
			b[i] ^= x
			res, err := w.Accept(b, []byte("bindings"))
			if err != nil {
				t.Fatalf("byte %d changed: %v", i, err)
			}
			// A change that does not matter (an unauthenticated field MIT ignores) may be accepted
			// once: then the client is alice all the same.
			if err := defined(res.Status); err != nil {
				t.Errorf("byte %d changed: %v", i, err)
			}
			if s := res.Status; s.MajorStatus == 0 && string(res.ContextHandle.V.SrcName.DisplayName) != "alice@"+lab.Name {
				t.Errorf("byte %d changed: accepted for %q", i, res.ContextHandle.V.SrcName.DisplayName)
			}
		}
	}
	refused("empty", nil)
	// A record is 1 MiB at most: what is left for the token, and for the token's content behind its
	// frame.
	room := 1<<20 - len(lab.Record(1, xdr.ProcAcceptSecContext, lab.AcceptArg(nil, nil))[4:])
	huge := frame(make([]byte, room-(len(frame(make([]byte, 1<<16)))-1<<16)))
	if len(huge) != room {
		t.Fatalf("a token of %d bytes for %d", len(huge), room)
	}
	refused("1 MiB with its record", huge)
	res, err := w.Accept(tokens[1], []byte("bindings"))
	check(t, err)
	check(t, lab.StatusError(res.Status))
	alive(t, w)
}

// TestHostileMutants: tokens changed as only somebody who knows DER changes them, all over one
// connection. Each is made of a token of its own, so that none is a replay, and is refused with a
// reason, or accepted for what it is where the change does not matter. Good tokens among them are
// accepted.
func TestHostileMutants(t *testing.T) {
	needOurs(t)
	w := wire(t, daemon(t, "ours", lab.Options{}))
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 2))
	tokens, err := alice(t).Tokens(600, service, lab.Usual|lab.Mutual, nil)
	check(t, err)
	answer := func(token []byte) xdr.Status {
		t.Helper()
		res, err := w.Accept(token, nil)
		if err != nil {
			t.Fatalf("%.2000x: no answer: %v", token, err)
		}
		x, accepted := &res.ContextHandle, res.Status.MajorStatus == 0
		if err := defined(res.Status); err != nil || x.Set != accepted {
			t.Errorf("%.2000x: %v, context %v (%v)", token, lab.StatusError(res.Status), x.Set, err)
		}
		client, target := string(x.V.SrcName.DisplayName), string(x.V.TargName.DisplayName)
		if accepted && (client != "alice@"+lab.Name || target != "svc/"+lab.Host+"@"+lab.Name) {
			t.Errorf("%.2000x: accepted %q for %q", token, client, target)
		}
		return res.Status
	}
	ends := make(map[string]int)
	for i, token := range tokens {
		if i%20 == 19 {
			check(t, lab.StatusError(answer(token)))
			continue
		}
		m := token
		for bytes.Equal(m, token) || len(m) > 1<<20-1<<10 { // a change may come to nothing, or to more than a record holds
			m = lab.Mutate(rnd, token)
		}
		s := answer(m)
		ends[string(reasonID.Find(bytes.TrimSuffix(s.MinorStatusString, []byte{0})))]++
	}
	t.Logf("accepted, or refused because: %v", ends)
	if len(ends) < 3 { // the frame, the message and what is encrypted in it fail for different reasons
		t.Error("the mutants do not get far")
	}
}

// TestHostileMemory: what the daemon holds for its peers is bounded: half-sent records, failing and
// endless small calls. The daemon is the one that is shipped, without the race detector, which has
// a memory of its own.
func TestHostileMemory(t *testing.T) {
	needOurs(t)
	binary := filepath.Join(realm(t).Dir, "gssproxyd-static")
	check(t, lab.Build(binary, false))
	d := daemon(t, "ours", lab.Options{Binary: binary, Quiet: true})
	w := wire(t, d)
	token, err := alice(t).Tokens(1, service, lab.Usual|lab.Mutual, nil)
	check(t, err)
	res, err := w.Accept(token[0], nil)
	check(t, err)
	check(t, lab.StatusError(res.Status))
	ctx := res.ContextHandle.V
	var mic xdr.ResGetMic
	check(t, w.Call(xdr.ProcGetMic, &xdr.ArgGetMic{ContextHandle: ctx, MessageBuffer: []byte("x"), QopReq: 1}, &mic))
	if err := lab.StatusError(mic.Status); err == nil || !strings.Contains(err.Error(), "[bad-qop]") {
		t.Errorf("a quality of protection that krb5 does not have: %v", err)
	}

	t.Run("small calls", func(t *testing.T) {
		work := func(n int) {
			for range n {
				check(t, w.Call(xdr.ProcWrapSizeLimit, &xdr.ArgWrapSizeLimit{ContextHandle: ctx, ReqOutputSize: 1000}, &xdr.ResWrapSizeLimit{}))
				var v xdr.ResVerifyMic
				check(t, w.Call(xdr.ProcVerify, &xdr.ArgVerifyMic{ContextHandle: ctx, MessageBuffer: []byte("x"), TokenBuffer: []byte("y")}, &v))
				if v.Status.MajorStatus == 0 {
					t.Fatal("a MIC of one byte verifies")
				}
			}
		}
		work(2000)
		before, _, err := d.RSS()
		check(t, err)
		work(8000)
		after, _, err := d.RSS()
		check(t, err)
		if after > before+16<<20 {
			t.Errorf("resident memory grew from %d to %d MiB", before>>20, after>>20)
		}
	})
	t.Run("half records", func(t *testing.T) {
		half := mark(true, make([]byte, 1<<20))
		half = half[:len(half)-1]
		var held []*lab.Wire
		for range 500 {
			h := wire(t, d)
			held = append(held, h)
			h.SetWriteDeadline(time.Now().Add(200 * time.Millisecond))
			h.Write(half) // it may be refused half way
		}
		alive(t, w)
		alive(t, wire(t, d))
		now, peak, err := d.RSS()
		check(t, err)
		t.Logf("500 connections with 1 MiB each: %d MiB resident, %d at most", now>>20, peak>>20)
		if peak > 192<<20 {
			t.Errorf("peak of %d MiB", peak>>20)
		}
		for _, h := range held {
			h.Close()
		}

		alive(t, w)
	})
}
