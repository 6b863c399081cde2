package main

import (
	"net/http"
	"strconv"
	"testing"

	"gssproxyd/conf"
	"gssproxyd/gssproxyd/scrape"
	"gssproxyd/tests/lab"
)

// A reload moves the metrics to an address that is a part of the former one, and back.
func TestReloadMetrics(t *testing.T) {
	free, err := lab.FreePort() // which nobody gets while it is let go of
	if err != nil {
		t.Fatal(err)
	}
	port := strconv.Itoa(free)
	d := testDaemon(t.Output())
	for _, address := range []string{"0.0.0.0:" + port, "127.0.0.1:" + port, "0.0.0.0:" + port} {
		d.reloadMetrics(t.Context(), &conf.Config{Metrics: address})
		if d.exported.address != address {
			t.Fatalf("served is %q, want %s", d.exported.address, address)
		}
		res, err := http.Get("http://127.0.0.1:" + port + scrape.Path + "x")
		if err != nil {
			t.Fatal(err)
		}
		res.Body.Close()
	}
	d.reloadMetrics(t.Context(), new(conf.Config))
	if d.exported.address != "" || d.exported.counted.Load() != nil {
		t.Error("metrics are served that the configuration does not name")
	}
	d.serving.Wait()
}
