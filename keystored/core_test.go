package main

import (
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"gssproxyd/tests/lab"
)

// However the program ends, its memory is in no core file, and no other process of its user reads it.
func TestNoCore(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("not run: it takes root to become another user")
	}
	p := newProgram(t)
	if err := os.Remove(p.path); err != nil { // the link
		t.Fatal(err)
	}
	program := lab.Executable(t, p.dir, "keystored")
	err := filepath.WalkDir(p.dir, func(path string, _ fs.DirEntry, err error) error {
		if err == nil {
			err = os.Lchown(path, int(lab.Nobody.UID), int(lab.Nobody.GID))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	ready := func() bool {
		c, err := net.Dial("unix", p.dir+"/run/keystored/socket")
		if err != nil {
			return false
		}
		return c.Close() == nil
	}
	lab.NoCore(t, p.dir, lab.Nobody, []syscall.Signal{syscall.SIGABRT, syscall.SIGSEGV}, ready, program, "serve", "-c", p.dir+"/keystored.conf")
}
