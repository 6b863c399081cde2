package main

import (
	"bytes"
	"os/exec"
	"strings"
	"testing"
)

// A ring of three files under one that uses them all and above one that they all use has one upward
// arrow, whatever order the files come in.
func TestOrder(t *testing.T) {
	arrows := []string{"top a", "top b", "top c", "a b", "b c", "c a", "a low", "b low", "c low"}
	for _, files := range [][]string{
		{"a", "b", "c", "low", "top"},
		{"low", "c", "b", "a", "top"},
		{"c", "low", "a", "top", "b"},
	} {
		index := make(map[string]int)
		for i, f := range files {
			index[f] = i
		}
		g := newGraph(files)
		for _, a := range arrows {
			from, to, _ := strings.Cut(a, " ")
			g.use(index[from], index[to], "name")
			g.use(index[from], index[to], "another")
		}
		g.sort()
		if g.count() != len(arrows) || len(g.upward()) != 1 {
			t.Errorf("%v: %d of %d arrows upward, want 1 of %d", files, len(g.upward()), g.count(), len(arrows))
		}
		if files[g.order[0]] != "top" || files[g.order[4]] != "low" {
			t.Errorf("%v: order %v", files, g.order)
		}
	}
}

// This package is its own example: main.go uses graph.go, and nothing runs back.
func TestRun(t *testing.T) {
	if _, err := exec.LookPath("go"); err != nil {
		t.Skip("not run: the go command is not in PATH")
	}
	var out bytes.Buffer
	if err := run(&out, []string{"."}, false); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(out.String(), " 0 of   1 arrows upward\n        main.go\n        graph.go\n") {
		t.Errorf("printed:\n%s", &out)
	}
	rooms, err := readRooms("../../arch_test.go")
	if err != nil {
		t.Fatal(err)
	}
	if len(rooms) == 0 || !rooms[0].holds("xdr/gen") || rooms[0].holds("xdrother") {
		t.Errorf("rooms: %v", rooms)
	}
}
