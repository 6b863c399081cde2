package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// What the kernel's flag means.
func TestKernelStatus(t *testing.T) {
	flag := filepath.Join(t.TempDir(), "use-gss-proxy")
	for _, test := range []struct {
		text, want string
		good       bool
	}{
		{"", "not loaded", true},
		{"-1\n", "undecided", false},
		{"0\n", "does NOT ask this daemon (0): a client came before", false},
		{"1\n", "asks the daemon at /var/run/gssproxy.sock", true},
	} {
		if test.text != "" {
			if err := os.WriteFile(flag, []byte(test.text), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if text, good := kernelStatus(flag); good != test.good || !strings.Contains(text, test.want) {
			t.Errorf("%q: %v, %s", test.text, good, text)
		}
	}
}
