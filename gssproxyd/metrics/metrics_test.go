package metrics

import (
	"fmt"
	"maps"
	"math"
	"os"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil/promlint"

	"gssproxyd/audit"
	"gssproxyd/gssproxyd/creds"
	"gssproxyd/gssproxyd/stores"
	"gssproxyd/keytab"
	"gssproxyd/limits"
	"gssproxyd/mech/reason"
	"gssproxyd/phase"
	"gssproxyd/xdr"
)

// full are metrics whose sources know everything.
func full(t testing.TB) *Metrics {
	t.Helper()
	l := limits.ForProcess()
	if err := l.Conns.Take(1000, 3); err != nil {
		t.Fatal(err)
	}
	m := New(Sources{
		Stores: func() []stores.State {
			return []stores.State{{Store: "main", Contact: time.Unix(1000, 0), Entries: []stores.EntryState{{Principal: "HTTP/www@A", Epoch: 1, Revision: 7, Issued: time.Unix(900, 0), Ending: true}, {Principal: "none@A"}}}}
		},
		Version: "1.2.3", Limits: l,
		Keytabs: func() []creds.KeytabState {
			return []creds.KeytabState{
				{State: keytab.State{Source: "FILE:/etc/krb5.keytab", Keys: make([]keytab.KeyState, 2), Newest: time.Unix(1e9, 0), Missed: []keytab.Missed{{KVNO: 4, Newest: 3}, {KVNO: 2, Newest: 3}, {KVNO: 3, Newest: 3, Held: true}}}},
				{State: keytab.State{Source: "FILE:/etc/none\xff", Needed: true}},
				{State: keytab.State{Source: "FILE:/etc/default"}},
				{State: keytab.State{Source: "FILE:/home/of", Keys: make([]keytab.KeyState, 1)}, PerUser: true},
			}
		},
		ReplayBytes:   func() int64 { return 16 << 10 },
		Configuration: func() (time.Time, bool) { return time.Unix(2e9, 0), false },
		AuditLost:     func() (uint64, bool) { return 7, true },
	})
	m.Services([]string{"web", "mail\xff"})
	return m
}

func text(t testing.TB, m *Metrics) string {
	t.Helper()
	b, err := m.Text(false)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// expect looks for whole lines.
func expect(t testing.TB, text string, lines ...string) {
	t.Helper()
	for _, line := range lines {
		if !strings.Contains("\n"+text, "\n"+line+"\n") {
			t.Errorf("there is no line %s", line)
		}
	}
	if t.Failed() {
		t.Log(text)
	}
}

func TestRecord(t *testing.T) {
	m := full(t)
	accept := xdr.ProcAcceptSecContext.String()
	for _, e := range []audit.Event{
		{Kind: audit.CallAllowed, Service: "web", Procedure: accept, Took: 300 * time.Microsecond},
		{Kind: audit.CallAllowed, Service: "web", Procedure: accept, Took: 3 * time.Millisecond},
		{Kind: audit.CallObserved, Service: "web", Procedure: accept, Reason: string(reason.Replay)},
		{Kind: audit.CallDenied, Service: "web", Procedure: accept, Reason: string(reason.Replay), Took: time.Minute},
		{Kind: audit.CallDenied, Service: "web", Procedure: accept, Reason: string(reason.Replay), Routine: true},
		{Kind: audit.CallDenied, Service: "mail\xff", Procedure: "Proc(99)", Reason: "made up"},
		{Kind: audit.CallAllowed, Service: "gone", Procedure: accept},
		{Kind: audit.ConnectionDenied, Reason: string(reason.ProgramUnknown)},
		{Kind: audit.ConnectionDenied, Reason: string(reason.ProgramUnknown), Routine: true},
		{Kind: audit.KeyLoaded},
	} {
		m.Record(&e)
	}
	m.Skew(-2 * time.Second)
	m.Skew(250 * time.Millisecond)
	m.Phase(phase.KDC, 20*time.Millisecond)
	got := text(t, m)
	expect(t, got,
		`gssproxyd_calls_total{outcome="allowed",procedure="`+accept+`",reason="",service="web"} 2`,
		`gssproxyd_calls_total{outcome="observed",procedure="`+accept+`",reason="replay",service="web"} 1`,
		`gssproxyd_calls_total{outcome="denied",procedure="`+accept+`",reason="replay",service="web"} 1`,
		`gssproxyd_calls_total{outcome="routine",procedure="`+accept+`",reason="replay",service="web"} 1`,
		`gssproxyd_calls_total{outcome="denied",procedure="other",reason="other",service="mail?"} 1`,
		`gssproxyd_calls_total{outcome="allowed",procedure="`+accept+`",reason="",service="other"} 1`,
		`gssproxyd_call_duration_seconds_bucket{procedure="`+accept+`",le="0.0005"} 3`, // with two that took nothing
		`gssproxyd_call_duration_seconds_count{procedure="`+accept+`"} 5`,
		`gssproxyd_connections_denied_total{reason="program-unknown"} 1`,
		`gssproxyd_clock_skew_seconds_count{clock="behind"} 1`,
		`gssproxyd_clock_skew_seconds_sum{clock="behind"} 2`,
		`gssproxyd_clock_skew_seconds_sum{clock="ahead"} 0.25`,
		`gssproxyd_phase_duration_seconds_sum{phase="kdc"} 0.02`,
		`gssproxyd_limit_used{resource="connections"} 3`,
		`gssproxyd_replay_cache_bytes 16384`,
		`gssproxyd_keytab_keys{keytab="FILE:/etc/krb5.keytab"} 2`,
		`gssproxyd_keytab_keys{keytab="FILE:/etc/none?"} 0`,
		`gssproxyd_keytab_newest_key_timestamp_seconds{keytab="FILE:/etc/krb5.keytab"} 1e+09`,
		`gssproxyd_keytab_kvno_drift{keytab="FILE:/etc/krb5.keytab"} 1`,
		`gssproxyd_configuration_read_timestamp_seconds 2e+09`,
		`gssproxyd_configuration_last_read_successful 0`,
		`gssproxyd_audit_lost_events_total 7`,
	)
	if strings.Contains(got, `newest_key_timestamp_seconds{keytab="FILE:/etc/none`) {
		t.Error("a keytab without keys has a newest one")
	}

	m.Services([]string{"mail\xff"})
	if got := text(t, m); strings.Contains(got, `service="web"`) || !strings.Contains(got, `service="mail?"`) {
		t.Error("a reload forgets the wrong service")
	}
}

// Whatever callers do, the number of series has a bound.
func TestCardinality(t *testing.T) {
	m := full(t)
	event := func(i int) *audit.Event {
		return &audit.Event{
			Kind: audit.CallDenied, Service: fmt.Sprint("service", i), Procedure: fmt.Sprint("Proc(", i, ")"), Reason: fmt.Sprint("reason", i),
			Principal: fmt.Sprint("user", i), Target: fmt.Sprint("host", i), Caller: &audit.Caller{UID: uint32(i), PID: int32(i)},
		}
	}
	m.Record(event(0))
	before := strings.Count(text(t, m), "\ngssproxyd_")
	for i := range 1000 {
		m.Record(event(i))
	}
	if after := strings.Count(text(t, m), "\ngssproxyd_"); after != before {
		t.Errorf("%d series have become %d", before, after)
	}
}

// Names are of the daemon, have their units, and what Prometheus' own check says of them is heeded.
func TestLint(t *testing.T) {
	families, err := provoked(t).registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	problems, err := promlint.NewWithMetricFamilies(families).Lint()
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		t.Errorf("%s: %s", p.Metric, p.Text)
	}
}

// provoked are metrics each of which has a value.
func provoked(t testing.TB) *Metrics {
	m := full(t)
	m.Record(&audit.Event{Kind: audit.CallAllowed, Service: "web", Procedure: xdr.ProcGetMic.String()})
	m.Record(&audit.Event{Kind: audit.ConnectionDenied})
	return m
}

// TestPage: docs/metrics.md has every metric that there is, as the code documents it, and no other.
func TestPage(t *testing.T) {
	page, err := os.ReadFile("../../docs/metrics.md")
	if err != nil {
		t.Fatal(err)
	}
	written := make(map[string]string)
	for _, row := range regexp.MustCompile("(?m)^\\| `(gssproxyd_[a-z_]+)` .*$").FindAllStringSubmatch(string(page), -1) {
		written[row[1]] = row[0]
	}
	there, err := provoked(t).registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	types := make(map[string]string)
	for _, f := range there {
		if strings.HasPrefix(f.GetName(), "gssproxyd_") {
			types[f.GetName()] = strings.ToLower(f.GetType().String())
			var labels []string
			for _, l := range f.GetMetric()[0].GetLabel() {
				labels = append(labels, l.GetName())
			}
			if i := slices.IndexFunc(Docs, func(d Doc) bool { return d.Name == f.GetName() }); i < 0 {
				t.Errorf("%s is not documented", f.GetName())
			} else if want := slices.Sorted(slices.Values(Docs[i].Labels)); !slices.Equal(labels, want) || Docs[i].Text != f.GetHelp() {
				t.Errorf("%s has labels %q and %q, documented are %q", f.GetName(), labels, f.GetHelp(), want)
			}
		} else if !strings.HasPrefix(f.GetName(), "go_") && !strings.HasPrefix(f.GetName(), "process_") {
			t.Errorf("%s is a name of somebody else's", f.GetName())
		}
	}
	for _, d := range Docs {
		labels := "none"
		if len(d.Labels) > 0 {
			labels = "`" + strings.Join(d.Labels, "`, `") + "`"
		}
		if types[d.Name] != d.Type {
			t.Errorf("%s is documented as a %s, and is %q", d.Name, d.Type, types[d.Name])
		}
		if want := fmt.Sprintf("| `%s` | %s | %s | %s |", d.Name, d.Type, labels, d.Text); written[d.Name] != want {
			t.Errorf("docs/metrics.md has\n%s\nwant\n%s", written[d.Name], want)
		}
		delete(written, d.Name)
	}
	for name := range maps.Keys(written) {
		t.Errorf("docs/metrics.md has %s, which is no metric", name)
	}
}

// Both formats are there, and a scrape while the counters run is a whole one.
func TestText(t *testing.T) {
	m := full(t)
	stop, done := make(chan struct{}), new(sync.WaitGroup)
	for range 4 {
		done.Go(func() {
			for i := 0; ; i++ {
				select {
				case <-stop:
					return
				default:
				}
				m.Record(&audit.Event{Kind: audit.CallAllowed, Service: "web", Procedure: xdr.ProcGetMic.String(), Took: time.Duration(i)})
				m.Skew(time.Duration(i) - math.MaxInt32)
				m.Phase(phase.Match, 1)
				if i%100 == 0 {
					m.Services([]string{"web"})
				}
			}
		})
	}
	for range 20 {
		for _, open := range []bool{false, true} {
			b, err := m.Text(open)
			if err != nil || strings.HasSuffix(string(b), "# EOF\n") != open || !strings.Contains(string(b), "gssproxyd_build_info") {
				t.Fatalf("%v\n%s", err, b)
			}
		}
	}
	close(stop)
	done.Wait()
}

// What a call costs.
func BenchmarkRecord(b *testing.B) {
	m := full(b)
	e := &audit.Event{Kind: audit.CallAllowed, Service: "web", Procedure: xdr.ProcAcceptSecContext.String(), Took: 100 * time.Microsecond}
	b.ReportAllocs()
	for b.Loop() {
		m.Record(e)
	}
}

// What its phases cost: an accept has five of them.
func BenchmarkPhases(b *testing.B) {
	m := full(b)
	var c phase.Clock
	c.Tell(m.Phase)
	b.ReportAllocs()
	for b.Loop() {
		for p := phase.Queue; p <= phase.Replay; p++ {
			c.Begin().End(p)
		}
	}
}

// What a scrape costs.
func BenchmarkText(b *testing.B) {
	m := provoked(b)
	for b.Loop() {
		if _, err := m.Text(false); err != nil {
			b.Fatal(err)
		}
	}
}
