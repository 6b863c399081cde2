package main

import (
	"bytes"
	_ "embed"
	"errors"
	"fmt"
	"html"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"text/template"
	"time"

	"golang.org/x/sys/unix"

	"gssproxyd/tests/lab"
)

// row is a line of the tables: a case, measured with so many connections.
type row struct {
	op, rcache string
	conns      int
}

// rows are the cases that were measured, in the order of the tables.
func (b *bench) rows() []row {
	var all []row
	add := func(op, rcache string, conns ...int) {
		for _, n := range conns {
			if len(b.results[key("ours", op, rcache, n)]) > 0 {
				all = append(all, row{op, rcache, n})
			}
		}
	}
	for _, rcache := range b.rcaches {
		add(accept, rcache, b.conns...)
	}
	add(kdcHangs, "none", b.conns...)
	for _, op := range append(slices.Clone(initiating), emptyCall) {
		add(op, "none", b.conns...)
	}
	add(freshTickets, "none", 1)
	return all
}

// of is the median of what a daemon needed for a row's calls.
func (b *bench) of(kind string, r row) result {
	return median(b.results[key(kind, r.op, r.rcache, r.conns)])
}

// pageConns are the connections that the page has figures for.
var pageConns = []int{1, 16}

// labels are what the page calls cases, by case and replay cache. What has none is not on the page.
var labels = map[[2]string]string{
	{accept, "none"}:       "accept, no replay cache",
	{accept, "disk"}:       "accept, replay cache on disk",
	{initCached, "none"}:   "initiate, ticket in a cache file",
	{initHandle, "none"}:   "initiate, ticket in a credential handle",
	{acquireGood, "none"}:  "acquire, with a credential handle",
	{emptyCall, "none"}:    "empty call (GET_CALL_CONTEXT)",
	{freshTickets, "none"}: "initiate, tickets from the KDC",

	{inProcess, "none"}:        "C: libgssapi, no replay cache",
	{accepting, "none"}:        "Go: package interposer, no replay cache",
	{inProcess, "disk"}:        "C: libgssapi, replay cache on disk",
	{debiansThreads, "none"}:   "C: libgssapi, the C project's plugin, threads",
	{ourThreads, "none"}:       "C: libgssapi, our plugin, threads",
	{debiansProcesses, "none"}: "C: libgssapi, the C project's plugin, processes",
	{ourProcesses, "none"}:     "C: libgssapi, our plugin, processes",
	{accepting, "disk"}:        "Go: package interposer, replay cache on disk",
	{plainHTTP, "disk"}:        "Go: a plain HTTP handler",
	{sessionHTTP, "disk"}:      "Go: an HTTP handler for those with a session",
	{tokenHTTP, "disk"}:        "Go: an HTTP handler for those with a token",
}

// line is a line of the page's table.
type line struct {
	op      string
	Label   string
	Conns   int
	C, Ours struct{ CPU, P50 float64 } // µs
}

func (l *line) CPURatio() float64 { return l.C.CPU / l.Ours.CPU }
func (l *line) P50Ratio() float64 { return l.C.P50 / l.Ours.P50 }

// programLine is a line of the page's table of programs.
type programLine struct {
	Label                         string
	AtOnce                        int
	Program, Daemon, Time, Allocs string
}

// programLines are the lines of programs that were measured.
func (b *bench) programLines() []programLine {
	var lines []programLine
	micros := func(f float64) string { return fmt.Sprintf("%.0f µs", f) }
	for _, p := range measured() {
		if len(b.costs[p]) == 0 {
			continue
		}
		c := b.costOf(p)
		l := programLine{
			Label: labels[[2]string{p.op, p.rcache}], AtOnce: p.conns,
			Program: micros(c.program), Daemon: micros(c.daemon), Time: micros(c.time), Allocs: fmt.Sprintf("%.0f", c.allocs),
		}
		if p.op == inProcess {
			l.Daemon = "–"
		}
		if p.op == inProcess || throughPlugin(p.op) {
			l.Allocs = "–"
		}
		lines = append(lines, l)
	}
	return lines
}

//go:embed performance.md.tmpl
var pageText string

// report writes performance.md, and performance.svg for it, into a directory.
func (b *bench) report(dir string) error {
	var lines []*line
	for _, r := range b.rows() {
		label := labels[[2]string{r.op, r.rcache}]
		if label == "" || !slices.Contains(pageConns, r.conns) {
			continue
		}
		l := &line{op: r.op, Label: label, Conns: r.conns}
		c, ours := b.of("C", r), b.of("ours", r)
		l.C.CPU, l.C.P50, l.Ours.CPU, l.Ours.P50 = c.cpu, c.p50, ours.cpu, ours.p50
		lines = append(lines, l)
	}
	if len(lines) == 0 {
		return errors.New("nothing to report: no case was measured with 1 or 16 connections")
	}
	t, err := template.New("performance.md").Parse(pageText)
	if err != nil {
		return err
	}
	var host unix.Utsname
	if err := unix.Uname(&host); err != nil {
		return err
	}
	kernel, _, _ := strings.Cut(unix.ByteSliceToString(host.Release[:]), "-") // without its builder's part
	keys := "one key"
	if b.keys > 1 {
		keys = fmt.Sprintf("%d keys", b.keys)
	}
	var page bytes.Buffer
	if err := t.Execute(&page, map[string]any{
		"Lines": lines, "Programs": b.programLines(), "Rounds": b.rounds, "N": b.n, "PeakC": b.peak("C"), "PeakOurs": b.peak("ours"),
		"Enctype": lab.EnctypeName(b.enctype), "Keys": keys, "Date": time.Now().Format(time.DateOnly),
		"CPUs": runtime.NumCPU(), "Kernel": kernel, "Go": strings.Replace(runtime.Version(), "go", "Go ", 1),
	}); err != nil {
		return err
	}
	// In the picture everything else would be short beside what a KDC has a part in.
	charted := slices.DeleteFunc(slices.Clone(lines), func(l *line) bool { return l.op == freshTickets })
	return errors.Join(
		os.WriteFile(filepath.Join(dir, "performance.md"), page.Bytes(), 0o644),
		os.WriteFile(filepath.Join(dir, "performance.svg"), chart(charted), 0o644))
}

// The picture's measures, in pixels.
const (
	chartWidth = 760
	margin     = 16
	headHeight = 64  // title and legend
	barsAt     = 130 // where the bars begin; how many connections is left of them
	barsTo     = 700 // where the longest one ends; its figure is right of it
	barHeight  = 13
	groupGap   = 34 // between cases, with the name of the next one
	pairGap    = 6
)

// chart draws the CPU time of each line in both daemons as an SVG of bars. It has its own
// background, to be readable on light and dark pages, and no fonts but the system's.
func chart(lines []*line) []byte {
	longest := 1.
	for _, l := range lines {
		longest = max(longest, l.C.CPU, l.Ours.CPU)
	}
	var body bytes.Buffer
	y := headHeight
	bar := func(class string, cpu float64) {
		width := (barsTo - barsAt) * cpu / longest
		fmt.Fprintf(&body, `<rect class="%s" x="%d" y="%d" width="%.1f" height="%d" rx="2"/>`+"\n",
			class, barsAt, y, width, barHeight)
		fmt.Fprintf(&body, `<text class="figure" x="%.1f" y="%d">%.0f</text>`+"\n",
			barsAt+width+5, y+barHeight-3, cpu)
		y += barHeight
	}
	label := ""
	for _, l := range lines {
		if l.Label != label {
			label = l.Label
			y += groupGap
			fmt.Fprintf(&body, `<text class="case" x="%d" y="%d">%s</text>`+"\n",
				margin, y-9, html.EscapeString(label))
		}
		conns := "1 connection"
		if l.Conns > 1 {
			conns = fmt.Sprintf("%d connections", l.Conns)
		}
		fmt.Fprintf(&body, `<text class="conns" x="%d" y="%d">%s</text>`+"\n",
			barsAt-10, y+barHeight+4, conns)
		bar("c", l.C.CPU)
		bar("ours", l.Ours.CPU)
		y += pairGap
	}
	height := y + margin
	var svg bytes.Buffer
	fmt.Fprintf(&svg, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" width="%[1]d" height="%[2]d" role="img">
<title>CPU time of a call in both daemons</title>
<style>
text { font: 12px system-ui, sans-serif; fill: #1f2328 }
.title, .case { font-weight: 600 }
.title { font-size: 15px }
.figure { font-size: 11px }
.conns { text-anchor: end }
.conns, .figure { fill: #59636e }
.page { fill: #ffffff; stroke: #d1d9e0 }
.c { fill: #b0b7bf }
.ours { fill: #1a7f64 }
@media (prefers-color-scheme: dark) {
text { fill: #f0f6fc }
.conns, .figure { fill: #9198a1 }
.page { fill: #0d1117; stroke: #3d444d }
.c { fill: #656c76 }
.ours { fill: #3fb68b }
}
</style>
<rect class="page" x="0.5" y="0.5" width="%d" height="%d" rx="6"/>
<text class="title" x="%d" y="28">CPU time of a call, in µs: less is better</text>
`, chartWidth, height, chartWidth-1, height-1, margin)
	for i, e := range []struct{ class, name string }{{"c", "C daemon"}, {"ours", "gssproxyd"}} {
		x := margin + 110*i
		fmt.Fprintf(&svg, `<rect class="%s" x="%d" y="42" width="%d" height="%[3]d" rx="2"/>
<text x="%d" y="53">%s</text>
`, e.class, x, barHeight, x+barHeight+6, e.name)
	}
	svg.Write(body.Bytes())
	svg.WriteString("</svg>\n")
	return svg.Bytes()
}
