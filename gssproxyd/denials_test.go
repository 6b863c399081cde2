package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"runtime"
	"strings"
	"testing"

	"github.com/spf13/cobra"

	"gssproxyd/audit"
	"gssproxyd/command"
	"gssproxyd/keytab"
	"gssproxyd/rpc"
	"gssproxyd/xdr"
)

// TestDenialsOfHostile: names as long as a record neither stay in memory nor keep others' refusals, or
// any, from being shown.
func TestDenialsOfHostile(t *testing.T) {
	var d daemon
	used := func() uint64 {
		var m runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	before := used()
	d.denials.add(&audit.Event{Kind: audit.CallDenied, Caller: &audit.Caller{UID: 1}, Text: "of another user"}, nil)
	for i := range 2 * maxDenials {
		long := strings.Repeat("x", 1<<16)
		d.denials.add(&audit.Event{
			Kind: audit.CallDenied, Caller: &audit.Caller{UID: 2, Program: long}, Principal: long[:maxKept+1], Target: long, Text: fmt.Sprint(i) + long[:maxKept/2],
			Trace: func() []string { return []string{strings.Repeat("y", 1000)} },
		}, nil)
	}
	if now := used(); now > before+8<<20 {
		t.Errorf("%d bytes are kept", now-before)
	}
	if list := d.denials.last(maxDenials); len(list) != maxDenials || list[0].Caller.UID != 1 {
		t.Errorf("%d are kept, the oldest of uid %d", len(list), list[0].Caller.UID)
	}
	ask := func(n uint32) []xdr.AdminDenial {
		var res xdr.AdminResDenials
		if err := d.adminDenials(t.Context(), &xdr.AdminArgDenials{Last: n}, &res); err != nil {
			t.Fatal(err)
		}
		if n := len(res.Append(nil)); n > rpc.MaxRecord-100 {
			t.Errorf("%d bytes do not go into an answer", n)
		}
		return res.Denials
	}
	all := ask(maxDenials)
	if len(all) < 100 || !strings.HasPrefix(all[len(all)-1].Text, fmt.Sprint(2*maxDenials-1)) || !strings.HasPrefix(all[0].Text, fmt.Sprint(2*maxDenials-len(all))) {
		t.Errorf("%d are shown", len(all))
	}

	services := make([]string, 1<<15)
	for i := range services {
		services[i] = strings.Repeat("z", 100)
	}
	d.denials.add(&audit.Event{Kind: audit.ConnectionDenied, Caller: &audit.Caller{UID: 1}, Text: "the last", Trace: func() []string { return services }}, nil)
	if last := ask(1); len(last) != 1 || last[0].Text != "the last" {
		t.Errorf("%+v", last)
	}
}

// TestDenialsOfManyUIDs: a user with more uids than refusals are remembered pushes out what others without
// a reserve had, and nothing of who has one; who has one pushes out his own.
func TestDenialsOfManyUIDs(t *testing.T) {
	const service, first = 33, 4_000_000_000
	reserved := map[uint32]bool{0: true, service: true}
	var d denials
	add := func(uid uint32) {
		d.add(&audit.Event{Kind: audit.ConnectionDenied, Caller: &audit.Caller{UID: uid}}, reserved)
	}
	for _, uid := range []uint32{0, service, 1000} {
		for range 10 {
			add(uid)
		}
	}
	for i := range uint32(4 * maxDenials) {
		add(first + i)
	}
	check := func(want map[uint32]int) {
		t.Helper()
		held := make(map[uint32]int)
		for _, e := range d.last(maxDenials) {
			held[e.Caller.UID]++
		}
		for uid, n := range want {
			if held[uid] != n {
				t.Errorf("of uid %d %d are remembered, want %d", uid, held[uid], n)
			}
		}
		if n := len(d.last(2 * maxDenials)); n != maxDenials {
			t.Errorf("%d are remembered", n)
		}
	}
	check(map[uint32]int{0: 10, service: 10, first + 4*maxDenials - 1: 1})
	for range 4 * maxDenials {
		add(service)
	}
	check(map[uint32]int{0: 10, service: (maxDenials - 10) / 2, first + 4*maxDenials - 1: 1})
}

// TestPrintedForTerminal: no name that somebody else has chosen says anything to a terminal, or looks
// like something of ours.
func TestPrintedForTerminal(t *testing.T) {
	hostile := "\x1b]0;gone\a\u009b2J\u202e\r\nuid 0\x7f\xff𝄞\U000e0001"
	d := xdr.AdminDenial{
		Kind: "call-denied", Caller: xdr.AdminCaller{Program: "/tmp/x, service root " + hostile}, Principal: hostile, Target: "HTTP/www@A", Text: hostile, Trace: []string{hostile},
	}
	var b bytes.Buffer
	printDenial(command.Plain{Writer: &b}, &d)
	if got := b.String(); command.Escaped(got, "\n") != got || strings.Count(got, "\n") != 4 {
		t.Errorf("%q", got)
	}
	for _, want := range []string{`, program "/tmp/x, service root \u001b]0;gone\u0007\u009b2J\u202e\u000d\u000auid 0\u007f\xff𝄞\udb40\udc01"`, ", target HTTP/www@A\n"} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("%s is not in\n%s", want, &b)
		}
	}
	b.Reset()
	if err := command.PrintJSON(command.Plain{Writer: &b}, hostile); err != nil || command.Escaped(b.String(), "\n") != b.String() {
		t.Errorf("%q, %v", &b, err)
	}
	var back string
	if err := json.Unmarshal(b.Bytes(), &back); err != nil || back != strings.ToValidUTF8(hostile, "\ufffd") {
		t.Errorf("%q, %v", back, err)
	}
	cmd := new(cobra.Command)
	b.Reset()
	cmd.SetOut(&b)
	printReport(cmd, keytab.Report{File: hostile, Findings: []keytab.Finding{{Text: hostile}}})
	if got := b.String(); command.Escaped(got, "\n") != got || strings.Count(got, "\n") != 1 {
		t.Errorf("%q", got)
	}
	var out, err bytes.Buffer
	run([]string{"check", "-c", "/nonexistent/\x1b[2J"}, &out, &err)
	if said := out.String() + err.String(); !strings.Contains(said, `/nonexistent/\u001b[2J`) || command.Escaped(said, "\n\t") != said {
		t.Errorf("%q", said)
	}
}
