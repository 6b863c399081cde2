package main

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"

	"github.com/spf13/cobra"

	"gssproxyd/audit"
	"gssproxyd/keytab"
	"gssproxyd/rpc"
	"gssproxyd/xdr"
)

// hostile is a name as a user may choose it for a program or a file: with a line of its own, with
// what a terminal obeys, and with what it does not show.
const hostile = "/tmp/a\n  caller: uid 0\x1b[2J\u009b2J\u202e\x7f\U000e0041\xff"

// What root reads does not look otherwise than it is, whatever names users have chosen.
func TestShown(t *testing.T) {
	var out bytes.Buffer
	printDenial(&out, &xdr.AdminDenial{
		Kind: "connection-denied", Text: hostile, Principal: hostile, Target: hostile, Trace: []string{hostile},
		Caller: xdr.AdminCaller{Program: hostile, Unit: hostile, Label: hostile},
	})
	if n := strings.Count(out.String(), "\n"); n != 4 {
		t.Errorf("%d lines of a refusal, want 4", n)
	}
	cmd := new(cobra.Command)
	cmd.SetOut(&out)
	printReport(cmd, keytab.Report{File: hostile, Findings: []keytab.Finding{{Text: hostile}}})
	printReport(cmd, keytab.Report{File: hostile})
	if n := strings.Count(out.String(), "\n"); n != 6 {
		t.Errorf("%d lines, want 6", n)
	}
	begin := out.Len()
	if err := printJSON(&out, map[string]string{"file": hostile}); err != nil {
		t.Fatal(err)
	}
	var back map[string]string
	if err := json.Unmarshal(out.Bytes()[begin:], &back); err != nil || back["file"] != strings.ToValidUTF8(hostile, "\ufffd") {
		t.Errorf("%q, %v", back["file"], err)
	}
	if at := strings.IndexAny(out.String(), "\x1b\u009b\u202e\x7f\U000e0041\xff"); at >= 0 {
		t.Errorf("%q", out.String()[at:])
	}
	if s := "/usr/sbin/\u00e4pp le"; shown(s) != s {
		t.Errorf("%s", shown(s))
	}
}

// However long what others chose is, root sees the last refusals.
func TestLongDenials(t *testing.T) {
	d := new(daemon)
	for i := range maxDenials {
		d.denials.add(&audit.Event{Caller: &audit.Caller{PID: int32(i), Program: strings.Repeat("p", 4095)}, Text: strings.Repeat("t", 2000)})
	}
	var res xdr.AdminResDenials
	if err := d.adminDenials(t.Context(), &xdr.AdminArgDenials{Last: maxDenials}, &res); err != nil {
		t.Fatal(err)
	}
	n := len(res.Denials)
	if size := len(res.Append(nil)); size >= rpc.MaxRecord || n < 50 {
		t.Fatalf("%d refusals in %d bytes", n, size)
	}
	for i, one := range res.Denials {
		if want := int32(maxDenials - n + i); one.Caller.PID != want {
			t.Fatalf("refusal %d is %d, not %d", i, one.Caller.PID, want)
		}
	}
}
