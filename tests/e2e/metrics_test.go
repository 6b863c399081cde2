package e2e

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"gssproxyd/tests/lab"
	"gssproxyd/xdr"
)

// metricsAddress is an address of the loopback interface that no other test has.
func metricsAddress() string {
	n := os.Getpid()
	return fmt.Sprintf("127.91.%d.%d:9118", n>>8&0xff, n&0xff)
}

// withMetrics is a configuration with metrics somewhere, or without.
func withMetrics(config, where string) string {
	if where == "" {
		return config
	}
	return strings.Replace(config, "[gssproxy]\n", "[gssproxy]\n  metrics = "+where+"\n", 1)
}

// scrape asks for the metrics once.
func scrape(where string) (string, error) {
	network, address := "tcp", where
	if path, ok := strings.CutPrefix(where, "unix:"); ok {
		network, address = "unix", path
	}
	client := &http.Client{Timeout: lab.Patience, Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, network, address)
	}}}
	res, err := client.Get("http://host/metrics")
	if err != nil {
		return "", err
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err == nil && res.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s", res.Status, b)
	}
	if shared.Realm != nil {
		err = errors.Join(err, shared.Realm.Scan("the metrics", b))
	}
	return string(b), err
}

// series is the value of a series; zero if there is none.
func series(t *testing.T, text, name string) float64 {
	t.Helper()
	m := regexp.MustCompile("(?m)^" + regexp.QuoteMeta(name) + " (.*)$").FindStringSubmatch(text)
	if m == nil {
		return 0
	}
	v, err := strconv.ParseFloat(m[1], 64)
	check(t, err)
	return v
}

// awaitSeries waits until series have the values, since a text may be a moment old.
func awaitSeries(t *testing.T, where string, want map[string]float64) (text string) {
	t.Helper()
	defer func() {
		for name, v := range want {
			if got := series(t, text, name); got != v {
				t.Errorf("%s is %v, want %v", name, got, v)
			}
		}
	}()
	lab.Await(t, "the metrics are not as expected", func() bool {
		var err error
		text, err = scrape(where)
		check(t, err)
		for name, v := range want {
			if series(t, text, name) != v {
				return false
			}
		}
		return true
	})
	return text
}

// metricsHelper is the process that serves the metrics, 0 if there is none.
func metricsHelper(t *testing.T, d *lab.Daemon) int {
	t.Helper()
	all := children(t, d.PID())
	for _, starter := range all["starter"] {
		all["metrics-helper"] = append(all["metrics-helper"], children(t, starter)["metrics-helper"]...)
	}
	switch list := all["metrics-helper"]; len(list) {
	case 0:
		return 0
	case 1:
		return list[0]
	default:
		t.Fatalf("the metrics have the helpers %v", list)
		return 0
	}
}

// TestMetrics: what is allowed and what is refused is counted, for whom, how long each part took and
// how far clocks are apart; how things stand is said; over TCP, and over a unix socket of root's once
// a reload says so. The helper is replaced when it dies, and ends when it is not wanted.
func TestMetrics(t *testing.T) {
	needOurs(t)
	where := metricsAddress()
	path := keytab(t)
	config := strings.Replace(lab.DefaultConfig(path), "  allow_any_uid = yes\n", "", 1)
	d := daemon(t, "ours", lab.Options{Keytab: path, Config: withMetrics(config, where)})
	initiator, w := alice(t), wire(t, d)
	for range 3 {
		check(t, lab.AcceptOne(initiator, service, w))
	}
	_, token, err := initiator.Init(service, lab.Usual, nil)
	check(t, err)
	for _, want := range []bool{true, false} {
		res, err := w.Accept(token, nil)
		check(t, err)
		if (res.Status.MajorStatus == 0) != want {
			t.Fatal(lab.StatusError(res.Status))
		}
	}
	stranger, err := d.WireAs(lab.Nobody, "")
	check(t, err)
	defer stranger.Close()
	if _, err := stranger.Accept(token, nil); err == nil {
		t.Fatal("a stranger is served")
	}

	accept := xdr.ProcAcceptSecContext.String()
	called := func(outcome, reason string) string {
		return fmt.Sprintf(`gssproxyd_calls_total{outcome="%s",procedure="%s",reason="%s",service="lab"}`, outcome, accept, reason)
	}
	text := awaitSeries(t, where, map[string]float64{
		called("allowed", ""):      4,
		called("denied", "replay"): 1,
		`gssproxyd_connections_denied_total{reason="no-service-for-uid"}`:   1,
		`gssproxyd_call_duration_seconds_count{procedure="` + accept + `"}`: 5,
		`gssproxyd_phase_duration_seconds_count{phase="keys"}`:              5,
		`gssproxyd_phase_duration_seconds_count{phase="crypto"}`:            5,
		`gssproxyd_phase_duration_seconds_count{phase="replay"}`:            5,
		`gssproxyd_configuration_last_read_successful`:                      1,
	})
	positive := []string{
		`gssproxyd_phase_duration_seconds_sum{phase="match"}`, `gssproxyd_phase_duration_seconds_sum{phase="crypto"}`, `gssproxyd_phase_duration_seconds_sum{phase="replay"}`,
		`gssproxyd_limit_used{resource="connections"}`, `gssproxyd_limit_max{resource="connections"}`, `gssproxyd_replay_cache_bytes`, `process_open_fds`,
	}
	for _, name := range positive {
		if series(t, text, name) <= 0 {
			t.Errorf("%s is not positive", name)
		}
	}
	if n := series(t, text, `gssproxyd_clock_skew_seconds_count{clock="ahead"}`) + series(t, text, `gssproxyd_clock_skew_seconds_count{clock="behind"}`); n != 4 {
		t.Errorf("%v clocks were compared; the replay's is none", n)
	}
	if n := series(t, text, `gssproxyd_phase_duration_seconds_count{phase="queue"}`); n < 5 {
		t.Errorf("%v calls had their turn", n)
	}
	name := "FILE:" + path
	if n := series(t, text, fmt.Sprintf("gssproxyd_keytab_keys{keytab=%q}", name)); n < 4 {
		t.Errorf("the keytab has %v keys", n)
	}
	for _, name := range []string{fmt.Sprintf("gssproxyd_keytab_newest_key_timestamp_seconds{keytab=%q}", name), "gssproxyd_configuration_read_timestamp_seconds"} {
		if age := float64(time.Now().Unix()) - series(t, text, name); age < -1 || age > 3600 {
			t.Errorf("%s is %v s ago", name, age)
		}
	}
	if !strings.Contains(text, "\ngssproxyd_build_info{") {
		t.Error("nothing says which version it is")
	}

	// A reload with an error, and one that moves the metrics.
	path = filepath.Join(d.Options.Dir, "metrics")
	check(t, d.Configure(withMetrics(config, "localhost:9118")))
	check(t, d.Cmd.Process.Signal(syscall.SIGHUP))
	check(t, d.WaitOutput("keeping the former one", lab.Patience))
	awaitSeries(t, where, map[string]float64{`gssproxyd_configuration_last_read_successful`: 0})
	check(t, d.Configure(withMetrics(config, "unix:"+path)))
	check(t, d.Reload())
	former := where
	where = "unix:" + path
	awaitSeries(t, where, map[string]float64{called("allowed", ""): 4, `gssproxyd_configuration_last_read_successful`: 1})
	if st, err := os.Stat(path); err != nil || st.Mode().Perm() != 0o660 || st.Sys().(*syscall.Stat_t).Uid != 0 {
		t.Errorf("%v, %v", st, err)
	}
	lab.Await(t, "the former address is still served", func() bool {
		c, err := net.Dial("tcp", former)
		if err == nil {
			c.Close()
		}
		return errors.Is(err, syscall.ECONNREFUSED)
	})

	// A helper that dies, and clients who say nothing.
	var first int
	lab.Await(t, "there is no helper", func() bool { first = metricsHelper(t, d); return first != 0 })
	check(t, syscall.Kill(first, syscall.SIGKILL))
	check(t, d.WaitOutput("the helper that serves the metrics has ended", lab.Patience))
	awaitSeries(t, where, map[string]float64{called("allowed", ""): 4})
	for range 100 {
		c, err := net.Dial("unix", path)
		check(t, err)
		defer c.Close()
	}
	check(t, lab.AcceptOne(initiator, service, w))
	awaitSeries(t, where, map[string]float64{called("allowed", ""): 5})

	// Without metrics there is no helper.
	second := metricsHelper(t, d)
	check(t, d.Configure(config))
	check(t, d.Reload())
	lab.Await(t, "the helper goes on though nobody wants metrics", func() bool { return !running(second) && metricsHelper(t, d) == 0 })
	check(t, lab.AcceptOne(initiator, service, w))
	if _, err := scrape(where); err == nil {
		t.Error("the metrics are still served")
	}
	check(t, d.Configure(withMetrics(config, where)))
	check(t, d.Reload())
	awaitSeries(t, where, map[string]float64{called("allowed", ""): 0})
	third := metricsHelper(t, d)
	check(t, d.Stop())
	lab.Await(t, "the helper goes on without the daemon", func() bool { return !running(third) })
	check(t, d.Start())
}

// TestMetricsCount: whatever is asked while calls are made, no call is lost and none is refused.
func TestMetricsCount(t *testing.T) {
	needOurs(t)
	where := metricsAddress()
	d := daemon(t, "ours", lab.Options{RCache: "none:", Config: withMetrics(lab.DefaultConfig(keytab(t)), where)})
	var accepted atomic.Int64
	var running sync.WaitGroup
	ctx, stop := context.WithCancelCause(t.Context())
	for range 2 {
		initiator, w := alice(t), wire(t, d)
		running.Go(func() {
			for ctx.Err() == nil {
				if err := lab.AcceptOne(initiator, service, w); err != nil {
					stop(err)
					return
				}
				accepted.Add(1)
			}
		})
	}
	name := fmt.Sprintf(`gssproxyd_calls_total{outcome="allowed",procedure="%s",reason="",service="lab"}`, xdr.ProcAcceptSecContext)
	before := 0.0
	for n := 0; n < 10 && ctx.Err() == nil; {
		text, err := scrape(where)
		check(t, err)
		switch now := series(t, text, name); {
		case now < before:
			t.Fatalf("a count went from %v to %v", before, now)
		case now > before:
			before = now
			n++
		}
	}
	done := errors.New("done")
	stop(done)
	running.Wait()
	if err := context.Cause(ctx); err != done {
		t.Fatal(err)
	}
	awaitSeries(t, where, map[string]float64{name: float64(accepted.Load())})
}

// TestMetricsAsUser: a daemon that is another user by now serves metrics where a reload says: what is
// root's the starter opens, and it starts the helper, which is nobody of this host. That an address
// cannot be had is said, and nothing else.
func TestMetricsAsUser(t *testing.T) {
	needOurs(t)
	path := keytab(t)
	check(t, os.Chown(path, int(lab.Nobody.UID), int(lab.Nobody.GID)))
	config := strings.Replace(lab.DefaultConfig(path), "[gssproxy]", "[gssproxy]\n  run_as_user = nobody", 1)
	where := metricsAddress()
	other, err := net.Listen("tcp", where)
	check(t, err)
	defer other.Close()
	d := daemon(t, "ours", lab.Options{Keytab: path, RCache: "none:", Becomes: lab.Nobody, Config: withMetrics(config, where)})
	check(t, os.Chmod(filepath.Join(d.Options.Dir, "gssproxy.conf"), 0o644))
	initiator, w := alice(t), wire(t, d)
	check(t, lab.AcceptOne(initiator, service, w))
	check(t, d.WaitOutput("there are no metrics: their socket cannot be opened", lab.Patience))
	check(t, other.Close())
	check(t, d.Reload())
	name := fmt.Sprintf(`gssproxyd_calls_total{outcome="allowed",procedure="%s",reason="",service="lab"}`, xdr.ProcAcceptSecContext)
	awaitSeries(t, where, map[string]float64{name: 0})
	check(t, lab.AcceptOne(initiator, service, w))
	awaitSeries(t, where, map[string]float64{name: 1})

	socket := filepath.Join(d.Options.Dir, "metrics")
	where = "unix:" + socket
	check(t, os.WriteFile(filepath.Join(d.Options.Dir, "gssproxy.conf"), []byte(withMetrics(config, where)), 0o644))
	check(t, d.Reload())
	awaitSeries(t, where, map[string]float64{name: 1})
	if st, err := os.Stat(socket); err != nil || st.Mode().Perm() != 0o660 || st.Sys().(*syscall.Stat_t).Uid != 0 {
		t.Errorf("%v, %v", st, err)
	}
	for _, want := range []string{"nobody", "root"} { // by the file's mode
		who := lab.Nobody
		if want == "root" {
			who = lab.Root
		}
		if c, err := d.WireAs(who, socket); (err == nil) != (want == "root") {
			t.Errorf("%s: %v", want, err)
		} else if err == nil {
			c.Close()
		}
	}
	helper := 0
	lab.Await(t, "the former helper goes on", func() bool {
		list := children(t, children(t, d.PID())["starter"][0])["metrics-helper"]
		if len(list) == 1 {
			helper = list[0]
		}
		return len(list) == 1
	})
	if st, err := os.Stat(fmt.Sprintf("/proc/%d", helper)); err != nil || st.Sys().(*syscall.Stat_t).Uid < 0x78000000 {
		t.Errorf("%+v, %v", st, err)
	}
	check(t, syscall.Kill(helper, syscall.SIGKILL))
	awaitSeries(t, where, map[string]float64{name: 1})
	d.Kill()
	lab.Await(t, "the helper goes on without the daemon", func() bool {
		c, err := net.Dial("unix", socket)
		if err == nil {
			c.Close()
		}
		return errors.Is(err, syscall.ECONNREFUSED)
	})
	check(t, d.Start())
}
