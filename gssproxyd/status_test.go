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
