// Package abuse tests that a daemon which is abused by some users serves the others: one hostile
// uid, then twenty, do what costs the daemon connections, memory, CPU time, the KDC's patience or
// lines in its log, and root, the kernel and the configured services are answered all the same.
//
// By itself it takes some seconds for each abuse, and nothing in it depends on how fast they pass.
// With NIGHTLY=1 it takes a minute for each, and compares how long calls take with what they take
// beside as many callers who mean no harm.
package abuse

import (
	"fmt"
	"os"
	"testing"
)

// nightly says that each abuse is to have a minute, and that it counts how long calls take
// meanwhile.
var nightly = os.Getenv("NIGHTLY") == "1"

func TestMain(m *testing.M) {
	if kind := os.Getenv("ABUSE_KIND"); kind != "" {
		if err := run(kind); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}
