package conf

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// An address and a port, or a path; nothing that takes the DNS, and nothing that anybody is let in by
// without a word.
func TestMetrics(t *testing.T) {
	long := strings.Repeat("x", maxSocket)
	for _, test := range []struct{ value, socket, problem string }{
		{"127.0.0.1:9118", "", ""},
		{"[::1]:9118", "", ""},
		{"unix:/run/gssproxyd/metrics.sock", "/run/gssproxyd/metrics.sock", ""},
		{"0.0.0.0:9118", "", "can be reached from other hosts"},
		{"[2001:db8::1]:9118", "", "can be reached from other hosts"},
		{"localhost:9118", "", "has a name in it"},
		{":9118", "", "has no address in it"},
		{"9118", "", "is no address with a port"},
		{"127.0.0.1", "", "is no address with a port"},
		{"127.0.0.1:http", "", "is no address with a port"},
		{"127.0.0.1:0", "", "has the port 0"},
		{"127.0.0.1:9118 # loopback", "", "there are no comments behind a value"},
		{"unix:", "", "has no absolute path in it"},
		{"unix:metrics.sock", "", "has no absolute path in it"},
		{"unix:/" + long, "", "at most 107 fit"},
		{"", "", "has no value"},
	} {
		file := filepath.Join(t.TempDir(), "gssproxy.conf")
		text := "[gssproxy]\nmetrics = " + test.value + "\n[service/a]\nmechs = krb5\neuid = 0\n"
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		for _, compat := range []bool{false, true} {
			c, err := Load(Source{File: file, Users: testUsers, Compat: compat})
			said := ""
			if err != nil {
				said = err.Error()
			} else {
				said = strings.Join(c.Warnings, "\n")
				if c.Metrics != test.value || c.MetricsSocket() != test.socket {
					t.Errorf("%q is read as %q, socket %q", test.value, c.Metrics, c.MetricsSocket())
				}
			}
			if test.problem == "" && said != "" || !strings.Contains(said, test.problem) || test.problem != "" && !strings.Contains(said, ":2: ") {
				t.Errorf("%q (compat %t): %q, want %q", test.value, compat, said, test.problem)
			}
		}
	}
}
