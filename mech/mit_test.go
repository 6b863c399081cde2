package mech_test

import (
	"bytes"
	"fmt"
	"os/exec"
	"strings"
	"testing"

	"gssproxyd/mech"
	"gssproxyd/tests/lab"
)

// The texts are compared with those of the library that is installed.
func TestTextsMIT(t *testing.T) {
	var in bytes.Buffer
	var ours []string
	major := func(m mech.Major) {
		fmt.Fprintln(&in, "major", uint32(m))
		ours = append(ours, m.Text())
	}
	minor := func(m uint32) {
		fmt.Fprintln(&in, "minor", m)
		ours = append(ours, mech.MinorText(m))
	}
	for i := range mech.Major(256) {
		major(i << 16)
		if i > 0 {
			major(i << 24)
			major(i)
			major(i<<8 | mech.CallBadStructure | mech.NoCred)
		}
	}
	for i := range uint32(256) {
		if i > 0 {
			minor(i)
		}
		for _, base := range []uint32{mech.MinorKRB5, mech.MinorK5G, mech.MinorGGSS, mech.MinorASN1, mech.MinorKV5M, mech.MinorProf, 0x1234500} {
			minor(base + i)
		}
	}
	cmd := exec.Command(lab.BuildC(t, "testdata/status.c"))
	cmd.Env = []string{"LC_ALL=C", "KRB5_CONFIG=/dev/null"}
	cmd.Stdin = &in
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	theirs := strings.Split(strings.TrimSuffix(string(out), "\n"), "\n")
	if len(theirs) != len(ours) {
		t.Fatalf("%d texts, want %d", len(theirs), len(ours))
	}
	for i := range ours {
		if ours[i] != theirs[i] {
			t.Errorf("%q, MIT %q", ours[i], theirs[i])
		}
	}
}
