package main

import (
	"os"
	"strings"
	"testing"

	"gssproxyd/conf"
	"gssproxyd/gssproxyd/proc"
	"gssproxyd/mech"
)

// TestEveryReasonIsDocumented: whoever meets a reason id in a log or an error text finds a section on it.
func TestEveryReasonIsDocumented(t *testing.T) {
	page, err := os.ReadFile("../docs/reasons.md")
	if err != nil {
		t.Fatal(err)
	}
	var ids []string
	for _, list := range [][]mech.ReasonDoc{mech.Reasons, proc.Reasons} {
		for _, r := range list {
			ids = append(ids, string(r.ID))
			if r.Text == "" || r.Hint == "" {
				t.Errorf("reason %s has no text or no hint", r.ID)
			}
		}
	}
	for _, r := range conf.Reasons {
		ids = append(ids, string(r.ID))
	}
	seen := map[string]bool{}
	for _, id := range ids {
		if seen[id] {
			t.Errorf("reason %s is listed twice", id)
		}
		seen[id] = true
		if !strings.Contains(string(page), "\n### "+id+"\n") {
			t.Errorf("docs/reasons.md has no section ### %s", id)
		}
	}
}
