// Package observability tests what dist/observability has for Prometheus and Grafana: every name in
// it is that of a metric, the page about it has every alarm, and, with the flag -promtool, Debian's
// promtool says that each alarm goes off when it should.
package observability

import (
	"encoding/json"
	"flag"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"testing"

	"gssproxyd/gssproxyd/metrics"
	"gssproxyd/mech/reason"
	"gssproxyd/phase"
)

var promtoolFlag = flag.Bool("promtool", false, "test the alarms with what tests/observability/install-deps unpacks")

const (
	alerts    = "../../dist/observability/alerts.yml"
	dashboard = "../../dist/observability/grafana.json"
	promtool  = "/var/cache/gssproxyd-tests/prometheus/usr/bin/promtool"
)

func read(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// Every name is that of a metric, with labels that it has, and values that they can have.
func TestNames(t *testing.T) {
	labels := make(map[string][]string) // by series
	for _, d := range metrics.Docs {
		labels[d.Name] = append([]string{"instance", "job"}, d.Labels...)
		if d.Type == "histogram" {
			for _, suffix := range []string{"_sum", "_count", "_bucket"} {
				labels[d.Name+suffix] = append(labels[d.Name], "le")
			}
		}
	}
	reasons := func(id string) bool {
		return slices.ContainsFunc(reason.All, func(d reason.Doc) bool { return string(d.ID) == id })
	}
	phases := func(name string) bool {
		for p := range phase.Count {
			if p.String() == name {
				return true
			}
		}
		return false
	}
	selector := regexp.MustCompile(`\bgssproxyd_[a-z_]+(\{[^}]*\})?`)
	matcher := regexp.MustCompile(`(\w+)(=~?|!=)"([^"]*)"`)
	for _, path := range []string{alerts, dashboard, "testdata/alerts_test.yml"} {
		seen := 0
		for _, s := range selector.FindAllString(strings.ReplaceAll(read(t, path), `\"`, `"`), -1) {
			name, in, _ := strings.Cut(s, "{")
			known, ok := labels[name]
			if !ok {
				t.Errorf("%s: %s is no metric", path, name)
				continue
			}
			seen++
			for _, m := range matcher.FindAllStringSubmatch(in, -1) {
				switch label, value := m[1], m[3]; {
				case !slices.Contains(known, label):
					t.Errorf("%s: %s has no label %s", path, name, label)
				case label == "reason" && value != "" && !reasons(value):
					t.Errorf("%s: %s is no reason", path, value)
				case label == "phase" && !phases(value):
					t.Errorf("%s: %s is no phase", path, value)
				}
			}
		}
		if seen == 0 {
			t.Errorf("%s names no metric", path)
		}
	}
}

// The page has every alarm, and no other; and each has a test of its own.
func TestAlarms(t *testing.T) {
	find := func(path, pattern string) (names []string) {
		for _, m := range regexp.MustCompile(pattern).FindAllStringSubmatch(read(t, path), -1) {
			names = append(names, m[1])
		}
		slices.Sort(names)
		return slices.Compact(names)
	}
	there := find(alerts, `alert: (\w+)`)
	if page := find("../../docs/metrics.md", "(?m)^\\| `(Gssproxyd\\w+)`"); !slices.Equal(there, page) {
		t.Errorf("there are %q\ndocs/metrics.md has %q", there, page)
	}
	if tested := find("testdata/alerts_test.yml", `alertname: (\w+)`); !slices.Equal(there, tested) {
		t.Errorf("there are %q\ntested are %q", there, tested)
	}
	if len(there) == 0 {
		t.Error("there are none")
	}
}

// The dashboard is one: JSON, with a question in every panel, no two in one place.
func TestDashboard(t *testing.T) {
	var board struct {
		Title  string
		Panels []struct {
			ID      int
			Title   string
			GridPos struct{ X, Y, W, H int }
			Targets []struct{ Expr string }
		}
	}
	if err := json.Unmarshal([]byte(read(t, dashboard)), &board); err != nil {
		t.Fatal(err)
	}
	if board.Title == "" || len(board.Panels) == 0 {
		t.Errorf("%+v", board)
	}
	taken := make(map[[2]int]string)
	for i, p := range board.Panels {
		if p.ID != i+1 || len(p.Targets) == 0 || p.GridPos.X+p.GridPos.W > 24 {
			t.Errorf("%+v", p)
		}
		for _, target := range p.Targets {
			if !strings.Contains(target.Expr, "gssproxyd_") {
				t.Errorf("%s asks for %s", p.Title, target.Expr)
			}
		}
		for x := p.GridPos.X; x < p.GridPos.X+p.GridPos.W; x++ {
			for y := p.GridPos.Y; y < p.GridPos.Y+p.GridPos.H; y++ {
				if other := taken[[2]int{x, y}]; other != "" {
					t.Fatalf("%s is where %s is", p.Title, other)
				}
				taken[[2]int{x, y}] = p.Title
			}
		}
	}
}

// Each alarm goes off when it should, and not before.
func TestPromtool(t *testing.T) {
	if !*promtoolFlag {
		t.Skip("not run: make test-observability does, which unpacks promtool")
	}
	for _, args := range [][]string{{"check", "rules", alerts}, {"test", "rules", "testdata/alerts_test.yml"}} {
		if out, err := exec.Command(promtool, args...).CombinedOutput(); err != nil {
			t.Errorf("promtool %s: %v\n%s", strings.Join(args, " "), err, out)
		}
	}
}
