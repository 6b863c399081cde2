package main

import (
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"gssproxyd/conf"
	"gssproxyd/mech/reason"
	"gssproxyd/tests/lab"
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
	for _, r := range reason.Match {
		if !strings.Contains(text, "\n.It Sy "+string(r.ID)+"\n") {
			t.Errorf("%s is not in the manual", r.ID)
		}
	}
	if strings.Contains(text, "`") {
		t.Error("a backquote is left over")
	}
}

func TestManualsFormat(t *testing.T) {
	groff, err := exec.LookPath("groff")
	if err != nil {
		lab.Lacking(t, "groff", err)
	}
	for _, page := range []string{"../" + page, "../../docs/gssproxyd.8", "../../docs/gssproxyd-mech.8"} {
		f, err := os.Open(page)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		cmd := exec.Command(groff, "-mdoc", "-Tutf8", "-ww", "-z")
		cmd.Stdin = f
		if out, err := cmd.CombinedOutput(); err != nil || len(out) > 0 {
			t.Errorf("%s: %v\n%s", page, err, out)
		}
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
