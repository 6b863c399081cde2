package fuse

import (
	"context"
	"strings"
	"syscall"
	"testing"
	"time"

	"gssproxyd/limits"
	"gssproxyd/rpc/peer"
)

// TestWords: whatever refuses a step says why, to who reads transact, and in error of an execution. What is held is paid for,
// and given back.
func TestWords(t *testing.T) {
	const uid = 1000
	full := func(b *limits.Budget) {
		for b.Take(uid, 1000) == nil {
		}
		b.Give(uid, 100) // for what is asked
	}
	nothing := func(*limits.Budget) {}
	const tooLong, tooMuch = "bad-argument: a step takes an object of", "too-much-buffered: too many bytes of buffers"
	for _, c := range []struct {
		name   string
		before func(*limits.Budget)
		input  string
		errno  syscall.Errno
		says   string
	}{
		{"too long", nothing, strings.Repeat(" ", maxInput+1), syscall.EMSGSIZE, tooLong},
		{"no room for what is asked", full, strings.Repeat(" ", 1000), syscall.EAGAIN, tooMuch},
		{"no room for the answer", full, "{}", syscall.EAGAIN, tooMuch},
		{"answered", nothing, "{}", 0, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			l := limits.ForProcess()
			c.before(l.Buffers)
			before := l.Buffers.Held(uid)
			s := &Server{ctx: t.Context(), o: Options{Limits: l, Now: time.Now}}
			by := &caller{Opener: &peer.Opener{Info: &peer.Info{UID: uid}}}
			const answered = 10000 // bytes, of which base64 makes more
			op := &operation{do: func(context.Context, *exchange, []byte) (any, error) {
				return &Message{Message: make([]byte, answered)}, nil
			}}
			paid := func(held bool) {
				t.Helper()
				if n := l.Buffers.Held(uid) - before; held && n < answered || !held && n != 0 {
					t.Errorf("%d bytes are paid for", n)
				}
			}

			talk := &conversation{op: op, by: by, x: s.exchange(owner{uid: uid}), held: s.charge(uid)}
			if _, errno := talk.write([]byte(c.input)); errno != c.errno {
				t.Errorf("transact: %v, want %v", errno, c.errno)
			}
			if words := strings.NewReplacer(`{"reason":"`, "", `","text":"`, ": ").Replace(string(talk.out)); !talk.asked || c.says == "" == strings.Contains(words, "hint") || !strings.HasPrefix(words, c.says) {
				t.Errorf("transact answers %.200s", words)
			}
			paid(c.errno == 0)
			talk.reset()
			paid(false)

			e := &execution{op: op, x: s.exchange(owner{uid: uid}), used: func() {}, inHeld: s.charge(uid), held: s.charge(uid)}
			_, errno := input{e}.Write(t.Context(), []byte(c.input), 0)
			if errno == 0 {
				_, errno = (&control{e, by}).Write(t.Context(), []byte("execute"), 0)
			}
			if errno != c.errno || c.says == "" && len(e.words) > 0 || !strings.HasPrefix(string(e.words), c.says) {
				t.Errorf("an execution: %v, want %v: %.200s", errno, c.errno, e.words)
			}
			if c.errno == 0 {
				paid(true)
			}
			e.end()
			paid(false)
		})
	}
}

// TestAnswerKept: what a step was answered stays when something else is refused.
func TestAnswerKept(t *testing.T) {
	s := &Server{ctx: t.Context(), o: Options{Limits: limits.ForProcess(), Now: time.Now}}
	e := &execution{x: s.exchange(owner{uid: 1000}), used: func() {}, inHeld: s.charge(1000), held: s.charge(1000)}
	if err := e.answer([]byte("answer\n")); err != nil {
		t.Fatal(err)
	}
	input{e}.Write(t.Context(), make([]byte, maxInput+1), 0)
	if len(e.words) == 0 || string(e.out) != "answer\n" {
		t.Errorf("%s; %s", e.words, e.out)
	}
}
