package main

import (
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
)

// graph is the files of one package and the arrows between them.
type graph struct {
	files []string
	names []map[int]map[string]bool // file → file that it uses → the names that it uses there
	order []int                     // files, from users down to what they use
}

func newGraph(files []string) graph {
	g := graph{
		files: files,
		names: make([]map[int]map[string]bool, len(files)),
		order: make([]int, len(files)),
	}
	for i := range files {
		g.names[i] = make(map[int]map[string]bool)
		g.order[i] = i
	}
	return g
}

func (g *graph) use(from, to int, name string) {
	if from == to {
		return
	}
	if g.names[from][to] == nil {
		g.names[from][to] = make(map[string]bool)
	}
	g.names[from][to][name] = true
}

// arrow returns 1 if from uses to, else 0.
func (g *graph) arrow(from, to int) int {
	if g.names[from][to] == nil {
		return 0
	}
	return 1
}

// count returns how many arrows there are.
func (g *graph) count() int {
	n := 0
	for _, to := range g.names {
		n += len(to)
	}
	return n
}

// upward returns the arrows against the order, as pairs of files.
func (g *graph) upward() [][2]int {
	var up [][2]int
	for i, above := range g.order {
		for _, below := range g.order[i+1:] {
			if g.arrow(below, above) == 1 {
				up = append(up, [2]int{below, above})
			}
		}
	}
	return up
}

// sort looks for the order with the fewest upward arrows. To find it for certain is expensive
// (minimum feedback arc set), so: from many shuffled orders, move single files to their best place
// until none gains, and keep the best. The shuffles are the same each time, and so is the result.
func (g *graph) sort() {
	random := rand.New(rand.NewPCG(1, 2))
	best, order := len(g.upward()), slices.Clone(g.order)
	for range 400 {
		for g.improve() {
		}
		if n := len(g.upward()); n < best {
			best, order = n, slices.Clone(g.order)
		}
		random.Shuffle(len(g.order), func(i, j int) {
			g.order[i], g.order[j] = g.order[j], g.order[i]
		})
	}
	g.order = order
}

// improve moves each file to where it has the fewest upward arrows and reports whether any gained.
func (g *graph) improve() bool {
	gained := false
	for f := range g.files {
		at := slices.Index(g.order, f)
		change, least, to := 0, 0, at
		for i := at - 1; i >= 0; i-- { // up, past others
			change += g.arrow(g.order[i], f) - g.arrow(f, g.order[i])
			if change < least {
				least, to = change, i
			}
		}
		change = 0
		for i := at + 1; i < len(g.order); i++ { // down
			change += g.arrow(f, g.order[i]) - g.arrow(g.order[i], f)
			if change < least {
				least, to = change, i
			}
		}
		if to != at {
			gained = true
			g.order = slices.Insert(slices.Delete(g.order, at, at+1), to, f)
		}
	}
	return gained
}

// describe prints the files in order and the upward arrows with the names that make them.
func (g *graph) describe(w io.Writer) {
	for _, f := range g.order {
		fmt.Fprintln(w, "       ", g.files[f])
	}
	for _, a := range g.upward() {
		names := slices.Sorted(maps.Keys(g.names[a[0]][a[1]]))
		fmt.Fprintf(w, "        upward: %s uses %s: %s\n",
			g.files[a[0]], g.files[a[1]], strings.Join(names, " "))
	}
}
