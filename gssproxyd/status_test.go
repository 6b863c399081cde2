package main

import (
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// The C daemon does not know the NULL procedure and says so: it is there.
func TestStatusProcUnavail(t *testing.T) {
	path := filepath.Join(t.TempDir(), "sock")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				call := make([]byte, 4+40)
				if _, err := io.ReadFull(c, call); err == nil { // the first connection asks nothing
					reply := append([]byte{0x80, 0, 0, 24}, call[4:8]...)
					c.Write(append(reply, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 3))
				}
			}()
		}
	}()
	if who, err := askSocket(t.Context(), path); err != nil || !strings.HasPrefix(who, "process "+strconv.Itoa(os.Getpid())+" ") {
		t.Errorf("%q, %v", who, err)
	}
}

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
