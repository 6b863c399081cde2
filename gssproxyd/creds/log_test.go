package creds

import (
	"bytes"
	"log/slog"
	"strings"
	"testing"

	"gssproxyd/limits"
)

// A KDC that is down is asked for by everybody, and fills no log.
func TestMetered(t *testing.T) {
	var log bytes.Buffer
	l := slog.New(metered{slog.NewTextHandler(&log, nil), limits.NewMeter()}).With("a", 1).WithGroup("b")
	for range 1000 {
		l.Info("KDC does not answer", "realm", "R")
	}
	l.Info("something else")
	if n := strings.Count(log.String(), "KDC"); n < 20 || n > 100 || !strings.Contains(log.String(), "something else") { // twenty, and one a second
		t.Errorf("%d lines:\n%s", n, log.String())
	}
}
