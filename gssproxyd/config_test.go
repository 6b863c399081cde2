package main

import (
	"os"
	"path/filepath"
	"testing"
)

// TestLoadNames: a command that has no name service of its own knows the users of this system.
func TestLoadNames(t *testing.T) {
	file := filepath.Join(t.TempDir(), "gssproxy.conf")
	if err := os.WriteFile(file, []byte("[service/x]\nmechs = krb5\neuid = root\ncred_store = keytab:/x\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("KRB5_CONFIG", os.DevNull)
	cfg, err := (&options{config: file}).load(nil)
	if err != nil {
		t.Fatal(err)
	}
	if uid := cfg.conf.Services[0].EUID; uid != 0 {
		t.Errorf("root is uid %d", uid)
	}
}
