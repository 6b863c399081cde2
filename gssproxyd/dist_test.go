package main

import (
	"path/filepath"
	"testing"

	"gssproxyd/conf"
)

// The configurations that are shipped load without a warning, alone and together.
func TestShippedConfigurations(t *testing.T) {
	users := conf.FixedUsers{"root": 0, "www-data": 33}
	files, err := filepath.Glob("../dist/*.conf")
	if err != nil || len(files) < 3 {
		t.Fatal(files, err)
	}
	sources := []conf.Source{{File: "../dist/gssproxy.conf", Dir: "../dist", Users: users}}
	for _, f := range files {
		if filepath.Base(f) != "gssproxy.conf" {
			sources = append(sources, conf.Source{File: f, Users: users})
		}
	}
	for _, src := range sources {
		c, err := conf.Load(src)
		if err != nil {
			t.Error(err)
			continue
		}
		for _, w := range c.Warnings {
			t.Error(w)
		}
		for _, s := range c.Services {
			if s.KernelNFSD && (c.SocketOf(s) != "/run/gssproxy.sock" || s.EUID != 0) {
				t.Errorf("%s: the kernel does not find [service/%s]", src.File, s.Name)
			}
		}
	}
}
