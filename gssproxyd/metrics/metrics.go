// Package metrics counts and times what the daemon does, and writes that as text for Prometheus. It
// knows neither who asks for the text nor how: package scrape does.
//
// What happens is told ([Metrics.Record], [Metrics.Phase], [Metrics.Skew]); how things stand is asked
// when the text is wanted ([Sources]). No label has a uid, a process or a principal in it: how many
// series there are is the configuration's to say, and no caller's.
package metrics

import (
	"bytes"
	"runtime"
	"strings"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/common/expfmt"

	"gssproxyd/audit"
	"gssproxyd/gssproxyd/creds"
	"gssproxyd/gssproxyd/stores"
	"gssproxyd/limits"
	"gssproxyd/mech/reason"
	"gssproxyd/phase"
	"gssproxyd/xdr"
)

// Sources says how things stand. Its functions may be called from any goroutine, and wait for
// nothing.
type Sources struct {
	Version       string
	Limits        *limits.Limits
	Keytabs       func() []creds.KeytabState
	ReplayBytes   func() int64
	Configuration func() (read time.Time, good bool) // the one in force, and whether the last reading is that
	AuditLost     func() (events uint64, logs bool)  // whether there is a log at all
	Stores        func() []stores.State              // key stores
}

// Metrics are the metrics of a daemon. It is safe for concurrent use.
type Metrics struct {
	sources  Sources
	registry *prometheus.Registry
	services atomic.Pointer[map[string]string] // labels by name
	reasons  map[string]bool
	procs    map[string]prometheus.Observer // by procedure

	calls         *prometheus.CounterVec
	duration      *prometheus.HistogramVec
	denied        *prometheus.CounterVec
	phases        [phase.Count]prometheus.Observer
	ahead, behind prometheus.Observer
}

// other is the label of what is not one of a closed set.
const other = "other"

// Buckets, in seconds. Most calls take 50 µs to 1 ms, and what waits for others takes as long as these.
var (
	durations = []float64{50e-6, 100e-6, 250e-6, 500e-6, 1e-3, 2.5e-3, 5e-3, 10e-3, 25e-3, 50e-3, .1, .25, .5, 1, 2.5, 5, 10}
	parts     = append([]float64{1e-6, 5e-6, 10e-6, 25e-6}, durations...)
	skews     = []float64{.01, .1, .5, 1, 2, 5, 10, 30, 60, 120, 180, 240, 300, 600, 3600}
)

// New returns metrics without a service: of calls to services that [Metrics.Services] has not named,
// it is not said which.
func New(s Sources) *Metrics {
	m := &Metrics{sources: s, registry: prometheus.NewRegistry(), reasons: make(map[string]bool), procs: make(map[string]prometheus.Observer)}
	m.Services(nil)
	for _, d := range reason.All {
		m.reasons[string(d.ID)] = true
	}
	m.calls = prometheus.NewCounterVec(prometheus.CounterOpts{Name: calls.Name, Help: calls.Text}, calls.Labels)
	m.denied = prometheus.NewCounterVec(prometheus.CounterOpts{Name: connectionsDenied.Name, Help: connectionsDenied.Text}, connectionsDenied.Labels)
	m.duration = prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: callDuration.Name, Help: callDuration.Text, Buckets: durations}, callDuration.Labels)
	for p := xdr.ProcNull + 1; p <= xdr.ProcWrapSizeLimit; p++ {
		m.procs[p.String()] = m.duration.WithLabelValues(p.String())
	}
	timed := prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: phaseDuration.Name, Help: phaseDuration.Text, Buckets: parts}, phaseDuration.Labels)
	for p := range phase.Count {
		m.phases[p] = timed.WithLabelValues(p.String())
	}
	skew := prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: clockSkew.Name, Help: clockSkew.Text, Buckets: skews}, clockSkew.Labels)
	m.ahead, m.behind = skew.WithLabelValues("ahead"), skew.WithLabelValues("behind")
	m.registry.MustRegister(m.calls, m.denied, m.duration, timed, skew, newState(&m.sources),
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return m
}

// Services says which services there are from now on. Counts of others are forgotten.
func (m *Metrics) Services(names []string) {
	labels := make(map[string]string, len(names))
	for _, name := range names {
		labels[name] = strings.ToValidUTF8(name, "?")
	}
	former := m.services.Swap(&labels)
	if former == nil {
		return
	}
	for name, label := range *former {
		if _, stays := labels[name]; !stays {
			m.calls.DeletePartialMatch(prometheus.Labels{"service": label})
		}
	}
}

// Record counts an event.
func (m *Metrics) Record(e *audit.Event) {
	outcome := "allowed"
	switch {
	case e.Kind == audit.CallAllowed:
	case e.Kind == audit.CallObserved:
		outcome = "observed"
	case e.Kind == audit.CallDenied && e.Routine:
		outcome = "routine"
	case e.Kind == audit.CallDenied:
		outcome = "denied"
	case e.Kind == audit.ConnectionDenied && !e.Routine:
		m.denied.WithLabelValues(m.reason(e.Reason)).Inc()
		return
	default:
		return
	}
	procedure := e.Procedure
	took := m.procs[procedure]
	if took == nil {
		procedure, took = other, m.duration.WithLabelValues(other)
	}
	service, known := (*m.services.Load())[e.Service]
	if !known {
		service = other
	}
	m.calls.WithLabelValues(procedure, service, outcome, m.reason(e.Reason)).Inc()
	if e.Kind != audit.CallObserved { // that is no end of a call
		took.Observe(e.Took.Seconds())
	}
}

// reason is the label of a reason.
func (m *Metrics) reason(id string) string {
	if id == "" || m.reasons[id] {
		return id
	}
	return other
}

// Phase counts a phase of a call, as [phase.Clock.Tell] has it.
func (m *Metrics) Phase(p phase.Phase, took time.Duration) { m.phases[p].Observe(took.Seconds()) }

// Skew counts how far an initiator's clock is ahead of ours.
func (m *Metrics) Skew(d time.Duration) {
	if d < 0 {
		m.behind.Observe(-d.Seconds())
	} else {
		m.ahead.Observe(d.Seconds())
	}
}

// Text writes all metrics in the text format of Prometheus, or in that of OpenMetrics.
func (m *Metrics) Text(openMetrics bool) ([]byte, error) {
	families, err := m.registry.Gather()
	if err != nil {
		return nil, err
	}
	kind := expfmt.TypeTextPlain
	if openMetrics {
		kind = expfmt.TypeOpenMetrics
	}
	var b bytes.Buffer
	e := expfmt.NewEncoder(&b, expfmt.NewFormat(kind))
	for _, f := range families {
		if err := e.Encode(f); err != nil {
			return nil, err
		}
	}
	if end, ok := e.(expfmt.Closer); ok {
		err = end.Close()
	}
	return b.Bytes(), err
}

// state collects how things stand.
type state struct {
	*Sources
	descs map[string]*prometheus.Desc
}

func newState(s *Sources) *state {
	all := &state{s, make(map[string]*prometheus.Desc)}
	for _, d := range []Doc{
		buildInfo, configurationRead, configurationGood, limitUsed, limitMax, replayCache, keytabKeys, keytabNewest, keytabDrift, auditLost, storeContact, entryRevision, entryIssued, previousEnding,
	} {
		all.descs[d.Name] = prometheus.NewDesc(d.Name, d.Text, d.Labels, nil)
	}
	return all
}

// Describe implements [prometheus.Collector].
func (s *state) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range s.descs {
		ch <- d
	}
}

// Collect implements [prometheus.Collector].
func (s *state) Collect(ch chan<- prometheus.Metric) {
	say := func(d Doc, value float64, labels ...string) {
		kind := prometheus.GaugeValue
		if d.Type == counter {
			kind = prometheus.CounterValue
		}
		ch <- prometheus.MustNewConstMetric(s.descs[d.Name], kind, value, labels...)
	}
	say(buildInfo, 1, s.Version, runtime.Version())
	read, good := s.Configuration()
	say(configurationRead, float64(read.Unix()))
	if good {
		say(configurationGood, 1)
	} else {
		say(configurationGood, 0)
	}
	for _, of := range []struct {
		resource string
		counted  interface {
			Use() (what string, used, limit int)
		}
	}{
		{"connections", s.Limits.Conns}, {"buffer_bytes", s.Limits.Buffers}, {"cache_bytes", s.Limits.Cache},
		{"kdc_exchanges", s.Limits.Exchanges}, {"name_service_questions", s.Limits.Lookups}, {"large_calls", s.Limits.Turns},
	} {
		_, used, limit := of.counted.Use()
		say(limitUsed, float64(used), of.resource)
		say(limitMax, float64(limit), of.resource)
	}
	say(replayCache, float64(s.ReplayBytes()))
	for _, k := range s.Keytabs() {
		if k.PerUser || !k.Needed && len(k.Keys) == 0 {
			continue
		}
		label := strings.ToValidUTF8(k.Source, "?")
		say(keytabKeys, float64(len(k.Keys)), label)
		say(keytabDrift, float64(k.Behind()), label)
		if !k.Newest.IsZero() {
			say(keytabNewest, float64(k.Newest.Unix()), label)
		}
	}
	for _, st := range s.Stores() {
		contact := float64(0)
		if !st.Contact.IsZero() {
			contact = float64(st.Contact.Unix())
		}
		say(storeContact, contact, st.Store)
		for _, e := range st.Entries {
			if label := strings.ToValidUTF8("STORE:"+st.Store+":"+e.Principal, "?"); e.Revision > 0 {
				say(entryRevision, float64(e.Revision), label)
				say(entryIssued, float64(e.Issued.Unix()), label)
				ending := 0.0
				if e.Ending {
					ending = 1
				}
				say(previousEnding, ending, label)
			}
		}
	}
	if events, logs := s.AuditLost(); logs {
		say(auditLost, float64(events))
	}
}
