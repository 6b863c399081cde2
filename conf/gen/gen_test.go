package main

import (
	"bytes"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"gssproxyd/conf"
)

// The committed page is what the tables say.
func TestManual(t *testing.T) {
	got, err := os.ReadFile("../" + page)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(got), string(manual())); diff != "" {
		t.Errorf("docs/gssproxyd.conf.5 is not what package conf says: run go generate ./conf\n%s", diff)
	}
}

func TestManualHasEverything(t *testing.T) {
	text := string(manual())
	for _, o := range conf.Options {
		if !strings.Contains(text, "\n.It Sy "+quote(o.Key)+"\n") {
			t.Errorf("%s is not in the manual", o.Key)
		}
	}
	for _, r := range conf.Reasons {
		if !strings.Contains(text, "\n.It Sy "+string(r.ID)+"\n") {
			t.Errorf("%s is not in the manual", r.ID)
		}
	}
	if strings.Contains(text, "`") {
		t.Error("a backquote is left over")
	}
}

func TestManualFormats(t *testing.T) {
	groff, err := exec.LookPath("groff")
	if err != nil {
		t.Skip("no groff to format it:", err)
	}
	cmd := exec.Command(groff, "-mdoc", "-Tutf8", "-ww", "-z")
	cmd.Stdin = bytes.NewReader(manual())
	if out, err := cmd.CombinedOutput(); err != nil || len(out) > 0 {
		t.Errorf("groff: %v\n%s", err, out)
	}
}

func TestProse(t *testing.T) {
	for in, want := range map[string]string{
		"a `b c` d. E":  "a \\fBb c\\fR d.\nE",
		".x\n\n'y \\n-": "\\&.x\n.Pp\n\\(aqy \\en\\-",
	} {
		if got := prose(in); got != want {
			t.Errorf("prose(%q) = %q, want %q", in, got, want)
		}
	}
}
